//! Applications behind sidecars, in the process of the test: raw enough to see every byte that arrives.

use std::net::SocketAddr;

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};

/// The trace that [`metrics`] gives as an exemplar.
pub const EXEMPLAR: &str = "4bf92f3577b34da6a3ce929d0e0e4736";

/// An HTTP/1.1 application that answers with its name and the head that it received, byte for byte; otherwise where the request tells it
/// or all to: `x-answer: NAME 503`, `x-answer: all late` (after a second), `x-answer: all never`.
pub async fn echo(listen: SocketAddr, name: &'static str) {
    serve(listen, move |stream| echo_heads(stream, name)).await;
}

/// The metrics of an application, one of which has a name that is its sidecar's; where `open` is set, as OpenMetrics for whoever reads that,
/// with an exemplar.
pub async fn metrics(listen: SocketAddr, name: &'static str, open: bool) {
    let text = format!("# TYPE app_up gauge\napp_up{{name=\"{name}\"}} 1\n");
    let plain = format!("{text}# TYPE app_orders_total counter\napp_orders_total 3\nistio_build 99\n");
    let exemplar = format!("# {{trace_id=\"{EXEMPLAR}\"}} 1");
    let open_metrics =
        format!("{text}# TYPE app_orders counter\napp_orders_total 3 {exemplar}\nistio_build 99\n# EOF\n");
    serve(listen, move |mut stream| {
        let (plain, open_metrics) = (plain.clone(), open_metrics.clone());
        async move {
            let mut head = [0; 4096];
            let length = stream.read(&mut head).await?;
            let asked = String::from_utf8_lossy(&head[..length]).to_ascii_lowercase();
            let (kind, page) = match open && asked.contains("application/openmetrics-text") {
                true => ("application/openmetrics-text; version=1.0.0; charset=utf-8", open_metrics),
                false => ("text/plain; version=0.0.4", plain),
            };
            let start = format!("HTTP/1.1 200 OK\r\ncontent-type: {kind}\r\nconnection: close\r\n\r\n");
            stream.write_all(format!("{start}{page}").as_bytes()).await?;
            stream.shutdown().await
        }
    })
    .await;
}

/// A TCP application that speaks first and then returns what it gets.
pub async fn greeter(listen: SocketAddr) {
    serve(listen, |mut stream| async move {
        stream.write_all(b"hello\n").await?;
        let (mut from, mut to) = stream.split();
        tokio::io::copy(&mut from, &mut to).await?;
        to.shutdown().await
    })
    .await;
}

/// A TCP application that begins with the address of whom it talks to, and then returns what it gets.
pub async fn teller(listen: SocketAddr) {
    serve(listen, |mut stream| async move {
        let peer = stream.peer_addr()?.ip();
        stream.write_all(format!("hello {peer}\n").as_bytes()).await?;
        let (mut from, mut to) = stream.split();
        tokio::io::copy(&mut from, &mut to).await?;
        to.shutdown().await
    })
    .await;
}

async fn serve<F, A>(listen: SocketAddr, talk: F)
where
    F: Fn(TcpStream) -> A + Send + 'static,
    A: Future<Output = std::io::Result<()>> + Send + 'static,
{
    let listener = TcpListener::bind(listen).await.expect("the application's address is free");
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(talk(stream));
        }
    });
}

/// Each head that comes over HTTP/1.1, byte for byte, behind a name.
pub(crate) async fn echo_heads(stream: TcpStream, name: &'static str) -> std::io::Result<()> {
    let mut stream = BufReader::new(stream);
    loop {
        let mut head = String::new();
        let (mut length, mut chunked) = (0, false);
        loop {
            let start = head.len();
            if stream.read_line(&mut head).await? == 0 {
                return Ok(());
            }
            let line = head[start..].trim_end().to_ascii_lowercase();
            if let Some(value) = line.strip_prefix("content-length:") {
                length = value.trim().parse().unwrap_or(0);
            }
            chunked |= line == "transfer-encoding: chunked";
            if line.is_empty() {
                break;
            }
        }
        if chunked {
            skip_chunks(&mut stream).await?;
        } else {
            let mut body = vec![0; length];
            stream.read_exact(&mut body).await?;
        }
        let status = match told(&head, name) {
            Some("never") => std::future::pending().await,
            Some("late") => {
                tokio::time::sleep(std::time::Duration::from_secs(1)).await;
                "200 OK".to_owned()
            }
            Some(status) => format!("{status} As-Told"),
            None => "200 OK".to_owned(),
        };
        let text = format!("{name}\n{head}");
        let answer = format!(
            "HTTP/1.1 {status}\r\nX-App-Name: {name}\r\nContent-Length: {}\r\n\r\n{text}",
            text.len()
        );
        stream.get_mut().write_all(answer.as_bytes()).await?;
    }
}

/// What the request tells an application of that name to do.
fn told<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    let (who, what) = head.lines().find_map(|line| line.strip_prefix("x-answer: "))?.split_once(' ')?;
    (who == "all" || who == name).then_some(what)
}

/// Reads a chunked body to its end, trailers included: who answers before it takes what follows for the next request.
async fn skip_chunks(stream: &mut BufReader<TcpStream>) -> std::io::Result<()> {
    let mut last = false;
    loop {
        let mut line = String::new();
        if stream.read_line(&mut line).await? == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        let line = line.trim_end();
        if last && line.is_empty() {
            return Ok(());
        }
        if !last {
            let size = line.split(';').next().unwrap_or_default();
            let size = usize::from_str_radix(size, 16).map_err(std::io::Error::other)?;
            last = size == 0;
            if !last {
                stream.read_exact(&mut vec![0; size + 2]).await?;
            }
        }
    }
}

/// One HTTP/1.1 exchange on a connection of its own: status and everything that came, as text.
pub async fn get(address: SocketAddr, path: &str, headers: &str) -> std::io::Result<(u16, String)> {
    exchange(
        address,
        &format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{headers}\r\n"),
    )
    .await
}

/// Sends bytes, reads to the end.
pub async fn exchange(address: SocketAddr, request: &str) -> std::io::Result<(u16, String)> {
    let mut stream = TcpStream::connect(address).await?;
    stream.write_all(request.as_bytes()).await?;
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).await?;
    let text = String::from_utf8_lossy(&bytes).into_owned();
    let status = text.split(' ').nth(1).and_then(|status| status.parse().ok());
    let status = status.ok_or_else(|| std::io::Error::other(format!("no HTTP answer: {text:?}")))?;
    Ok((status, text))
}

/// The body of an HTTP/1.1 answer, chunks joined.
pub fn body(text: &str) -> String {
    let Some((head, mut rest)) = text.split_once("\r\n\r\n") else { return String::new() };
    if !head.to_ascii_lowercase().contains("transfer-encoding: chunked") {
        return rest.to_owned();
    }
    let mut body = String::new();
    while let Some((size, after)) = rest.split_once("\r\n") {
        let Ok(size) = usize::from_str_radix(size, 16) else { break };
        let Some(chunk) = after.get(..size).filter(|_| size > 0) else { break };
        body.push_str(chunk);
        rest = after[size..].trim_start_matches("\r\n");
    }
    body
}
