//! The application behind the sidecars: HTTP/1.1, HTTP/2 with gRPC, a TCP echo and a TCP source.

use std::net::IpAddr;

use anyhow::Result;
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Response};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::spawn_local;

use crate::Ports;

/// Largest body that a path can ask for.
const LARGEST: usize = 1 << 20;

/// Serves until the process is ended.
pub async fn run(ip: IpAddr) -> Result<()> {
    let (h1, h2) = (TcpListener::bind((ip, 0)).await?, TcpListener::bind((ip, 0)).await?);
    let (tcp, bulk) = (TcpListener::bind((ip, 0)).await?, TcpListener::bind((ip, 0)).await?);
    let ports = Ports {
        h1: h1.local_addr()?,
        h2: h2.local_addr()?,
        grpc: h2.local_addr()?,
        tcp: tcp.local_addr()?,
        bulk: bulk.local_addr()?,
    };
    println!("{}", serde_json::to_string(&ports)?);
    serve(h1, http1);
    serve(h2, http2);
    serve(tcp, echo);
    serve(bulk, source);
    std::future::pending().await
}

fn serve<A: Future<Output = Result<()>> + 'static>(listener: TcpListener, talk: fn(TcpStream) -> A) {
    spawn_local(async move {
        loop {
            let Ok((stream, _)) = listener.accept().await else { continue };
            let _ = stream.set_nodelay(true);
            spawn_local(talk(stream));
        }
    });
}

/// The size that a path `/1024` asks for.
fn size(path: &[u8]) -> usize {
    let digits = std::str::from_utf8(path.get(1..).unwrap_or_default()).unwrap_or_default();
    digits.parse().unwrap_or(0).min(LARGEST)
}

async fn http1(mut stream: TcpStream) -> Result<()> {
    let mut buffer = Vec::with_capacity(4096);
    let (mut asked, mut answer) = (usize::MAX, Vec::new());
    loop {
        while buffer.windows(4).all(|four| four != b"\r\n\r\n") {
            if stream.read_buf(&mut buffer).await? == 0 {
                return Ok(());
            }
        }
        let wanted = size(buffer.split(|byte| *byte == b' ').nth(1).unwrap_or_default());
        if wanted != asked {
            asked = wanted;
            answer =
                format!("HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ncontent-length: {wanted}\r\n\r\n")
                    .into_bytes();
            answer.resize(answer.len() + wanted, b'x');
        }
        buffer.clear(); // one GET at a time: the load waits for each answer
        stream.write_all(&answer).await?;
    }
}

async fn http2(stream: TcpStream) -> Result<()> {
    let body = Bytes::from(vec![b'x'; LARGEST]);
    let mut connection = h2::server::Builder::new()
        .initial_window_size(1 << 20)
        .initial_connection_window_size(4 << 20)
        .max_concurrent_streams(1024)
        .handshake::<_, Bytes>(stream)
        .await?;
    while let Some(request) = connection.accept().await {
        let (request, respond) = request?;
        let body = body.clone();
        let grpc = request.headers().contains_key("grpc-timeout") || request.method() == http::Method::POST;
        let wanted = size(request.uri().path().as_bytes());
        if grpc {
            spawn_local(unary(request.into_body(), respond, body, wanted));
        } else {
            plain(respond, body, wanted)?;
        }
    }
    Ok(())
}

fn plain(mut respond: h2::server::SendResponse<Bytes>, body: Bytes, wanted: usize) -> Result<()> {
    let mut response = Response::new(());
    response.headers_mut().insert("content-type", HeaderValue::from_static("text/plain"));
    let mut send = respond.send_response(response, wanted == 0)?;
    if wanted > 0 {
        send.send_data(body.slice(..wanted), true)?;
    }
    Ok(())
}

/// A unary call: reads the message, answers one of the size asked for.
async fn unary(
    mut request: h2::RecvStream,
    mut respond: h2::server::SendResponse<Bytes>,
    body: Bytes,
    wanted: usize,
) -> Result<()> {
    while let Some(chunk) = request.data().await {
        let length = chunk?.len();
        request.flow_control().release_capacity(length)?;
    }
    let mut response = Response::new(());
    response.headers_mut().insert("content-type", HeaderValue::from_static("application/grpc"));
    let mut send = respond.send_response(response, false)?;
    let mut message = Vec::with_capacity(wanted + 5);
    message.push(0);
    message.extend_from_slice(&u32::try_from(wanted)?.to_be_bytes());
    message.extend_from_slice(&body[..wanted]);
    send.send_data(message.into(), false)?;
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", HeaderValue::from_static("0"));
    send.send_trailers(trailers)?;
    Ok(())
}

async fn echo(mut stream: TcpStream) -> Result<()> {
    let mut buffer = vec![0; 64 << 10];
    loop {
        let read = stream.read(&mut buffer).await?;
        if read == 0 {
            return Ok(());
        }
        stream.write_all(&buffer[..read]).await?;
    }
}

/// Waits for a first byte, then writes until the client is gone.
async fn source(mut stream: TcpStream) -> Result<()> {
    let chunk = vec![0x5a; 128 << 10];
    stream.read_u8().await?;
    loop {
        stream.write_all(&chunk).await?;
    }
}
