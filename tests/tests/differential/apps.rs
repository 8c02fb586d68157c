//! The applications behind both proxies: each answers as the request itself says, and all that came is kept by the request's run.
//!
//! `x-answers: 503, reset, 200+x-a=b` is what the attempts of a request are answered in turn, the last for all that follow.

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;

/// The header that says which run of which case a request is of.
pub const RUN: &str = "x-run";

/// Applications that get copies.
pub const COPIES: [&str; 2] = ["m", "n"];

/// What came of a run.
#[derive(Default)]
struct Run {
    attempts: Vec<Attempt>,
    /// Told when an attempt has come, and when held ones may be answered.
    news: Arc<Notify>,
    released: bool,
}

/// One request that reached an application.
#[derive(Clone)]
pub struct Attempt {
    /// Which application.
    pub endpoint: &'static str,
    /// As it came.
    pub head: String,
    /// Without its framing.
    pub body: String,
}

/// All applications.
#[derive(Clone)]
pub struct Apps {
    runs: Arc<Mutex<HashMap<String, Run>>>,
    /// Where each listens.
    pub addresses: Arc<BTreeMap<&'static str, SocketAddr>>,
}

impl Apps {
    /// Starts an application for each name, at the address.
    pub async fn start(places: impl IntoIterator<Item = (&'static str, SocketAddr)>) -> Self {
        let apps = Self { runs: Arc::default(), addresses: Arc::new(places.into_iter().collect()) };
        for (&name, &address) in apps.addresses.iter().filter(|(name, _)| **name != "dead") {
            let listener = TcpListener::bind(address).await.expect("the address is free");
            let apps = apps.clone();
            tokio::spawn(async move {
                while let Ok((stream, _)) = listener.accept().await {
                    let apps = apps.clone();
                    tokio::spawn(async move { apps.serve(name, stream).await });
                }
            });
        }
        apps
    }

    /// What has come of a run.
    pub fn attempts(&self, run: &str) -> Vec<Attempt> {
        self.runs.lock().unwrap().get(run).map(|run| run.attempts.clone()).unwrap_or_default()
    }

    /// Waits until so many requests of a run have come; gives up after a while.
    pub async fn until(&self, run: &str, count: usize) {
        let news = self.runs.lock().unwrap().entry(run.to_owned()).or_default().news.clone();
        let enough = async {
            loop {
                let told = news.notified();
                tokio::pin!(told);
                told.as_mut().enable();
                if self.attempts(run).len() >= count {
                    return;
                }
                told.await;
            }
        };
        let _ = tokio::time::timeout(Duration::from_secs(3), enough).await;
    }

    /// Lets what is held of a run be answered.
    pub fn release(&self, run: &str) {
        let mut runs = self.runs.lock().unwrap();
        let run = runs.entry(run.to_owned()).or_default();
        run.released = true;
        run.news.notify_waiters();
    }

    async fn serve(&self, endpoint: &'static str, mut stream: TcpStream) -> std::io::Result<()> {
        while let Some((head, body)) = request(&mut stream).await? {
            let run = field(&head, RUN).unwrap_or_default().to_owned();
            let answers = field(&head, "x-answers").unwrap_or("200").to_owned();
            let is_head = head.starts_with("HEAD ");
            let count = {
                let mut runs = self.runs.lock().unwrap();
                let run = runs.entry(run.clone()).or_default();
                run.attempts.push(Attempt { endpoint, head, body });
                run.news.notify_waiters();
                // Copies are answered by their own count.
                let is_copy = |name: &str| COPIES.contains(&name);
                run.attempts.iter().filter(|one| is_copy(one.endpoint) == is_copy(endpoint)).count()
            };
            let all: Vec<&str> = answers.split(',').map(str::trim).collect();
            let answer = all[(count - 1).min(all.len() - 1)];
            match answer {
                "reset" => return Ok(()),
                "hang" => {
                    // Whoever asked gives up.
                    return stream.read(&mut [0; 1]).await.map(|_| ());
                }
                "cut" => {
                    let head = "HTTP/1.1 200 OK\r\nx-app: yes\r\ncontent-length: 100\r\n\r\nonly a part";
                    return stream.write_all(head.as_bytes()).await;
                }
                "late" => tokio::time::sleep(Duration::from_millis(300)).await,
                "hold" => self.released(&run).await,
                _ => {}
            }
            stream.write_all(response(answer, count, is_head).as_bytes()).await?;
        }
        Ok(())
    }

    async fn released(&self, run: &str) {
        let news = self.runs.lock().unwrap().entry(run.to_owned()).or_default().news.clone();
        loop {
            let told = news.notified();
            tokio::pin!(told);
            told.as_mut().enable();
            if self.runs.lock().unwrap().get(run).is_some_and(|run| run.released) {
                return;
            }
            told.await;
        }
    }
}

/// The answer of a word: a status, or `grpc` and a status of gRPC's; each `+name=value` is a header.
fn response(word: &str, count: usize, is_head: bool) -> String {
    let mut parts = word.split('+');
    let word = parts.next().unwrap_or_default();
    let grpc = word.strip_prefix("grpc");
    let status = if word.bytes().all(|b| b.is_ascii_digit()) { word } else { "200" };
    let mut text = format!("HTTP/1.1 {status} Said\r\nx-app: yes\r\nx-count: {count}\r\n");
    if let Some(status) = grpc {
        text += &format!("content-type: application/grpc\r\ngrpc-status: {status}\r\n");
    }
    for (name, value) in parts.filter_map(|part| part.split_once('=')) {
        text += &format!("{name}: {value}\r\n");
    }
    let body = if grpc.is_some() { String::new() } else { format!("answer {count}") };
    match status {
        "204" | "304" => text + "\r\n",
        _ => format!("{text}content-length: {}\r\n\r\n{}", body.len(), if is_head { "" } else { &body }),
    }
}

/// The value of a header, by its name in lower case.
pub fn field<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    let lines = head.lines().skip(1).filter_map(|line| line.split_once(':'));
    lines.filter(|(known, _)| known.eq_ignore_ascii_case(name)).map(|(_, value)| value.trim()).next()
}

/// The next request of a connection; `None` at its end.
async fn request(stream: &mut TcpStream) -> std::io::Result<Option<(String, String)>> {
    let Some((head, rest)) = read_head(stream).await? else { return Ok(None) };
    let body = read_body(stream, &head, rest, false).await?;
    Ok(Some((head, String::from_utf8_lossy(&body).into_owned())))
}

/// A head, and what came after it; `None` where the connection ends.
pub async fn read_head(stream: &mut TcpStream) -> std::io::Result<Option<(String, Vec<u8>)>> {
    let mut bytes = Vec::new();
    let mut piece = [0; 4096];
    loop {
        if let Some(at) = bytes.windows(4).position(|four| four == b"\r\n\r\n") {
            let rest = bytes.split_off(at + 4);
            bytes.truncate(at + 2);
            return Ok(Some((String::from_utf8_lossy(&bytes).into_owned(), rest)));
        }
        match stream.read(&mut piece).await? {
            0 => return Ok(None),
            n => bytes.extend_from_slice(&piece[..n]),
        }
    }
}

/// A body without its framing, which may end with the connection where `open`; as much as there is of one that is cut off.
pub async fn read_body(
    stream: &mut TcpStream,
    head: &str,
    mut bytes: Vec<u8>,
    open: bool,
) -> std::io::Result<Vec<u8>> {
    let length = field(head, "content-length").and_then(|value| value.parse().ok());
    let chunked = field(head, "transfer-encoding").is_some_and(|value| value.eq_ignore_ascii_case("chunked"));
    let length = if open || chunked { length } else { length.or(Some(0)) };
    let mut piece = [0; 4096];
    loop {
        if chunked {
            if let Some(body) = unchunked(&bytes) {
                return Ok(body);
            }
        } else if length.is_some_and(|length: usize| bytes.len() >= length) {
            return Ok(bytes);
        }
        match stream.read(&mut piece).await {
            Ok(0) | Err(_) if open => return Ok(bytes),
            Ok(0) => return Err(std::io::ErrorKind::UnexpectedEof.into()),
            Ok(n) => bytes.extend_from_slice(&piece[..n]),
            Err(error) => return Err(error),
        }
    }
}

/// The chunks, if all have come.
fn unchunked(mut rest: &[u8]) -> Option<Vec<u8>> {
    let mut body = Vec::new();
    loop {
        let at = rest.windows(2).position(|two| two == b"\r\n")?;
        let size = std::str::from_utf8(&rest[..at]).ok()?.split(';').next()?;
        let size = usize::from_str_radix(size.trim(), 16).ok()?;
        rest = &rest[at + 2..];
        if size == 0 {
            return rest.windows(2).any(|two| two == b"\r\n").then_some(body);
        }
        body.extend_from_slice(rest.get(..size)?);
        rest = rest.get(size + 2..)?;
    }
}
