//! Servers over bare HTTP/1.1 that keep what they are sent, and one message at a time as text.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// What a server has received, in order.
pub type Received = Arc<Mutex<Vec<String>>>;

/// A server that notes of every request what `note` makes of it, and answers what `answer` says, without the version; nothing where
/// that is nothing.
pub async fn recorder(
    note: fn(&str) -> String,
    answer: fn(&str) -> Option<&'static str>,
) -> (SocketAddr, Received) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    (address, recorder_on(listener, note, answer))
}

/// As [`recorder`], where it is told.
pub fn recorder_on(
    listener: TcpListener,
    note: fn(&str) -> String,
    answer: fn(&str) -> Option<&'static str>,
) -> Received {
    let received = Received::default();
    let all = received.clone();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let all = all.clone();
            tokio::spawn(async move {
                while let Ok(Some(request)) = message(&mut stream).await {
                    all.lock().unwrap().push(note(&request));
                    if let Some(answer) = answer(&request) {
                        let _ = stream.write_all(format!("HTTP/1.1 {answer}").as_bytes()).await;
                    }
                }
            });
        }
    });
    received
}

/// One message with its body, of which the length is known; `None` at the end.
pub async fn message(stream: &mut TcpStream) -> std::io::Result<Option<String>> {
    let mut text = String::new();
    let mut piece = [0; 4096];
    loop {
        if let Some((head, body)) = text.split_once("\r\n\r\n") {
            let lower = head.to_ascii_lowercase();
            let length = lower.lines().find_map(|line| line.strip_prefix("content-length: ")?.parse().ok());
            let chunked = lower.contains("transfer-encoding: chunked") && !body.ends_with("0\r\n\r\n");
            if !chunked && body.len() >= length.unwrap_or(0) {
                return Ok(Some(text));
            }
        }
        match stream.read(&mut piece).await? {
            0 => return Ok(None),
            n => text += &String::from_utf8_lossy(&piece[..n]),
        }
    }
}

/// Sends a request that is written as its target and fields, a line each, and after an empty line its body; to host `shop` where it
/// names none. The whole answer; `None` where the connection is closed instead.
pub async fn ask(to: SocketAddr, request: &str) -> std::io::Result<Option<String>> {
    let (head, body) = request.split_once("\n\n").unwrap_or((request, ""));
    let mut lines = head.lines();
    let mut text = format!("{} HTTP/1.1\r\n", lines.next().unwrap_or_default());
    if !head.contains("\nHost:") {
        text += "Host: shop\r\n";
    }
    lines.for_each(|line| text += &format!("{line}\r\n"));
    let mut stream = TcpStream::connect(to).await?;
    stream.write_all(format!("{text}\r\n{body}").as_bytes()).await?;
    message(&mut stream).await
}
