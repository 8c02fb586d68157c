//! One client of each kind of traffic: asks, waits for the whole answer.

use std::net::SocketAddr;

use anyhow::{Context, Result, bail, ensure};
use bytes::{BufMut, Bytes, BytesMut};
use http::{Method, Request, StatusCode};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::spawn_local;

use super::Plan;
use crate::Kind;

/// A client that asks one thing at a time.
pub enum Client {
    /// HTTP/1.1; a connection per request if `each`.
    H1 { address: SocketAddr, stream: Option<TcpStream>, request: Vec<u8>, buffer: BytesMut, each: bool },
    /// HTTP/2 and gRPC.
    H2 { address: SocketAddr, send: h2::client::SendRequest<Bytes>, message: Option<Bytes>, path: String },
    /// Messages over TCP.
    Echo { address: SocketAddr, stream: TcpStream, message: Vec<u8>, buffer: Vec<u8> },
    /// One way.
    Sink { address: SocketAddr, stream: TcpStream, buffer: Vec<u8> },
}

impl Client {
    /// A connection; on HTTP/2 as many clients share it as the plan has streams.
    pub async fn connect(plan: &Plan) -> Result<Vec<Self>> {
        let address = plan.target;
        let mut stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        Ok(match plan.kind {
            Kind::H1 | Kind::Connect => {
                let request = format!(
                    "GET /{} HTTP/1.1\r\nhost: echo:8080\r\nuser-agent: bench\r\naccept: */*\r\n\r\n",
                    plan.size
                )
                .into_bytes();
                let buffer = BytesMut::with_capacity(plan.size + 1024);
                vec![Self::H1 {
                    address,
                    stream: Some(stream),
                    request,
                    buffer,
                    each: plan.kind == Kind::Connect,
                }]
            }
            Kind::H2 | Kind::Grpc => {
                let message = (plan.kind == Kind::Grpc).then(|| {
                    let mut bytes = vec![0];
                    bytes.put_u32(plan.size as u32);
                    bytes.resize(5 + plan.size, b'x');
                    Bytes::from(bytes)
                });
                let port = if message.is_some() { 8082 } else { 8081 };
                let path = format!("http://echo:{port}/{}", plan.size);
                let send = http2(stream).await?;
                let one =
                    || Self::H2 { address, send: send.clone(), message: message.clone(), path: path.clone() };
                (0..plan.streams).map(|_| one()).collect()
            }
            Kind::Tcp => {
                let (message, buffer) = (vec![b'x'; plan.size], vec![0; plan.size]);
                vec![Self::Echo { address, stream, message, buffer }]
            }
            Kind::Bulk => {
                stream.write_u8(1).await?;
                vec![Self::Sink { address, stream, buffer: vec![0; 1 << 20] }]
            }
        })
    }

    /// One request and its whole answer; how many answers (MiB, one way) that was.
    pub async fn ask(&mut self) -> Result<u64> {
        match self {
            Self::H1 { address, stream, request, buffer, each } => {
                if stream.is_none() {
                    *stream = Some(open(*address).await?);
                }
                let Some(live) = stream else { bail!("not connected") };
                http1(live, request, buffer).await?;
                if *each {
                    *stream = None;
                }
                Ok(1)
            }
            Self::H2 { send, message, path, .. } => http2_ask(send, message.clone(), path).await,
            Self::Echo { stream, message, buffer, .. } => {
                stream.write_all(message).await?;
                stream.read_exact(buffer).await?;
                Ok(1)
            }
            Self::Sink { stream, buffer, .. } => {
                stream.read_exact(buffer).await?;
                Ok(1)
            }
        }
    }

    /// After a failure, a new connection.
    pub async fn again(&mut self) -> Result<()> {
        match self {
            Self::H1 { address, stream, buffer, .. } => {
                buffer.clear();
                *stream = Some(open(*address).await?);
            }
            Self::H2 { address, send, .. } => *send = http2(open(*address).await?).await?,
            Self::Echo { address, stream, .. } => *stream = open(*address).await?,
            Self::Sink { address, stream, .. } => {
                *stream = open(*address).await?;
                stream.write_u8(1).await?;
            }
        }
        Ok(())
    }
}

async fn open(address: SocketAddr) -> Result<TcpStream> {
    let stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

async fn http2(stream: TcpStream) -> Result<h2::client::SendRequest<Bytes>> {
    let (send, connection) = h2::client::Builder::new()
        .initial_window_size(1 << 20)
        .initial_connection_window_size(4 << 20)
        .handshake(stream)
        .await?;
    spawn_local(connection);
    Ok(send.ready().await?)
}

async fn http1(stream: &mut TcpStream, request: &[u8], buffer: &mut BytesMut) -> Result<()> {
    stream.write_all(request).await?;
    let mut whole = usize::MAX;
    while buffer.len() < whole {
        ensure!(stream.read_buf(buffer).await? > 0, "the connection ended in mid-answer");
        if whole == usize::MAX
            && let Some(end) = buffer.windows(4).position(|four| four == b"\r\n\r\n")
        {
            let head = std::str::from_utf8(&buffer[..end])?;
            ensure!(head.starts_with("HTTP/1.1 200"), "the answer was {:?}", head.lines().next());
            whole = end + 4 + length(head).context("an answer without content-length")?;
        }
    }
    ensure!(buffer.len() == whole, "more bytes than the answer has");
    buffer.clear();
    Ok(())
}

fn length(head: &str) -> Option<usize> {
    head.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse().ok())?
    })
}

async fn http2_ask(
    send: &mut h2::client::SendRequest<Bytes>,
    message: Option<Bytes>,
    path: &str,
) -> Result<u64> {
    let request = match &message {
        Some(_) => Request::builder()
            .method(Method::POST)
            .uri(path)
            .header("content-type", "application/grpc")
            .header("te", "trailers"),
        None => Request::builder().method(Method::GET).uri(path).header("user-agent", "bench"),
    };
    let mut ready = send.clone().ready().await?;
    let (response, mut stream) = ready.send_request(request.body(())?, message.is_none())?;
    let grpc = message.is_some();
    if let Some(message) = message {
        stream.send_data(message, true)?;
    }
    let response = response.await?;
    ensure!(response.status() == StatusCode::OK, "the answer was {}", response.status());
    let mut body = response.into_body();
    while let Some(chunk) = body.data().await {
        let length = chunk?.len();
        body.flow_control().release_capacity(length)?;
    }
    if grpc {
        let trailers = body.trailers().await?.context("no trailers")?;
        ensure!(trailers.get("grpc-status").is_some_and(|status| status == "0"), "{trailers:?}");
    }
    Ok(1)
}
