//! What a probe or a hook does: asks the Pod from its node, or runs a program in the container.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::Request;
use hyper_util::rt::{TokioExecutor, TokioIo};
use k8s_openapi::api::core::v1::{
    Container, ExecAction, HTTPGetAction, LifecycleHandler, Probe, TCPSocketAction,
};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;

use super::TICK;

/// What is done.
#[derive(Clone)]
pub(super) enum Action {
    /// The program, found, and its words.
    Exec(PathBuf, Vec<String>),
    Http {
        address: SocketAddr,
        path: String,
        headers: Vec<(String, String)>,
    },
    Tcp(SocketAddr),
    /// `grpc.health.v1.Health/Check` of this service.
    Grpc(SocketAddr, String),
    Sleep(Duration),
}

/// What an image makes of words: the program, and its own words.
pub(super) type Image<'a> = &'a dyn Fn(&[String]) -> Found;
/// A program and its words.
pub(super) type Found = (PathBuf, Vec<String>);
/// A program in a container that runs.
type Enter = dyn Fn(&PathBuf, &[String]) -> Command + Send + Sync;

/// Of whom, and how programs of it are found.
pub(super) struct Whose<'a> {
    pub(super) container: &'a Container,
    pub(super) address: IpAddr,
    pub(super) found: Image<'a>,
}

/// A way into a container that runs.
#[derive(Clone)]
pub(super) struct Entry(pub(super) Arc<Enter>);

impl Action {
    pub(super) fn of_probe(probe: &Probe, whose: &Whose<'_>) -> Self {
        let grpc = probe.grpc.as_ref().map(|grpc| {
            let port = IntOrString::Int(grpc.port);
            Self::Grpc(whose.at(None, &port), grpc.service.clone().unwrap_or_default())
        });
        let action = grpc
            .or_else(|| whose.exec(probe.exec.as_ref()))
            .or_else(|| whose.http(probe.http_get.as_ref()))
            .or_else(|| whose.tcp(probe.tcp_socket.as_ref()));
        action.expect("the API server lets no probe pass that does nothing")
    }

    pub(super) fn of_hook(hook: &LifecycleHandler, whose: &Whose<'_>) -> Self {
        let seconds = |seconds: i64| Duration::from_secs(u64::try_from(seconds).unwrap_or(0));
        let sleep = hook.sleep.as_ref().map(|sleep| Self::Sleep(seconds(sleep.seconds)));
        let action = sleep
            .or_else(|| whose.exec(hook.exec.as_ref()))
            .or_else(|| whose.http(hook.http_get.as_ref()))
            .or_else(|| whose.tcp(hook.tcp_socket.as_ref()));
        action.expect("the API server lets no hook pass that does nothing")
    }

    /// Does it, for as long as it takes.
    pub(super) async fn done(&self, entry: &Entry) -> Result<(), String> {
        match self {
            Self::Exec(program, words) => exec((entry.0)(program, words)).await,
            Self::Http { address, path, headers } => {
                let status = status(*address, path, headers).await.map_err(|error| error.to_string())?;
                if (200..400).contains(&status) { Ok(()) } else { Err(format!("{path} answers {status}")) }
            }
            Self::Tcp(address) => {
                TcpStream::connect(address).await.map(drop).map_err(|error| error.to_string())
            }
            Self::Grpc(address, service) => serving(*address, service).await,
            Self::Sleep(time) => {
                tokio::time::sleep(*time).await;
                Ok(())
            }
        }
    }
}

impl Whose<'_> {
    fn exec(&self, exec: Option<&ExecAction>) -> Option<Action> {
        let words = exec?.command.clone().unwrap_or_default();
        let (program, words) = (self.found)(&words);
        Some(Action::Exec(program, words))
    }

    fn http(&self, http: Option<&HTTPGetAction>) -> Option<Action> {
        let http = http?;
        assert_ne!(http.scheme.as_deref(), Some("HTTPS"), "nobody asks by HTTPS here");
        let headers = http.http_headers.iter().flatten();
        Some(Action::Http {
            address: self.at(http.host.as_deref(), &http.port),
            path: http.path.clone().unwrap_or_else(|| "/".to_owned()),
            headers: headers.map(|header| (header.name.clone(), header.value.clone())).collect(),
        })
    }

    fn tcp(&self, tcp: Option<&TCPSocketAction>) -> Option<Action> {
        let tcp = tcp?;
        Some(Action::Tcp(self.at(tcp.host.as_deref(), &tcp.port)))
    }

    fn at(&self, host: Option<&str>, port: &IntOrString) -> SocketAddr {
        let named = |name: &str| {
            let mut ports = self.container.ports.iter().flatten();
            ports.find(|port| port.name.as_deref() == Some(name)).map(|port| port.container_port)
        };
        let number = match port {
            IntOrString::Int(number) => Some(*number),
            IntOrString::String(name) => named(name),
        };
        let number = number.and_then(|number| u16::try_from(number).ok()).expect("a port of the container");
        let host = host.map(|host| host.parse().expect("an address"));
        SocketAddr::new(host.unwrap_or(self.address), number)
    }
}

/// A process that ends with this.
pub(super) struct Process(pub(super) Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

async fn exec(mut command: Command) -> Result<(), String> {
    let spawned = command.stdin(Stdio::null()).spawn().map_err(|error| format!("{command:?}: {error}"))?;
    let mut process = Process(spawned);
    loop {
        match process.0.try_wait().map_err(|error| error.to_string())? {
            Some(status) if status.success() => return Ok(()),
            Some(status) => return Err(format!("{command:?}: {status}")),
            None => tokio::time::sleep(TICK).await,
        }
    }
}

/// Of the answer's first line; who answers need not close.
async fn status(address: SocketAddr, path: &str, headers: &[(String, String)]) -> std::io::Result<u16> {
    let mut stream = BufReader::new(TcpStream::connect(address).await?);
    let own = headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("host"));
    let mut head = format!("GET {path} HTTP/1.1\r\n");
    if !own {
        head += &format!("Host: {address}\r\n");
    }
    headers.iter().for_each(|(name, value)| head += &format!("{name}: {value}\r\n"));
    stream.write_all(format!("{head}Connection: close\r\n\r\n").as_bytes()).await?;
    let mut line = String::new();
    stream.read_line(&mut line).await?;
    line.split(' ').nth(1).and_then(|status| status.parse().ok()).ok_or_else(|| std::io::Error::other(line))
}

/// The question is a message whose first field is the service, the answer one whose first field is 1: it serves.
async fn serving(address: SocketAddr, service: &str) -> Result<(), String> {
    let said = |error: &dyn std::error::Error| error.to_string();
    let stream = TcpStream::connect(address).await.map_err(|error| said(&error))?;
    let shaken = hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await;
    let (mut sender, connection) = shaken.map_err(|error| said(&error))?;
    let connection = tokio::spawn(connection);
    let mut message = Vec::new();
    if !service.is_empty() {
        message.extend([10, u8::try_from(service.len()).map_err(|error| said(&error))?]);
        message.extend(service.as_bytes());
    }
    let mut frame = vec![0];
    frame.extend(u32::try_from(message.len()).map_err(|error| said(&error))?.to_be_bytes());
    frame.extend(message);
    let request = Request::post(format!("http://{address}/grpc.health.v1.Health/Check"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(Full::new(Bytes::from(frame)))
        .map_err(|error| said(&error))?;
    let answer = sender.send_request(request).await.map_err(|error| said(&error))?;
    let body = answer.into_body().collect().await.map_err(|error| said(&error))?.to_bytes();
    connection.abort();
    if body.get(5..) == Some(&[8, 1][..]) {
        Ok(())
    } else {
        Err(format!("{service:?} does not serve: {body:?}"))
    }
}

#[cfg(test)]
mod tests {
    use http::Response;
    use hyper::service::service_fn;
    use tokio::net::TcpListener;

    use super::*;

    /// An application of gRPC whose health is that.
    async fn health(answer: &'static [u8]) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            let (stream, _) = listener.accept().await.unwrap();
            let serve = service_fn(move |request: Request<hyper::body::Incoming>| async move {
                assert_eq!(request.uri().path(), "/grpc.health.v1.Health/Check");
                let asked = request.into_body().collect().await?.to_bytes();
                assert_eq!(&asked[..], b"\0\0\0\0\x05\x0a\x03web");
                Ok::<_, hyper::Error>(Response::new(Full::new(Bytes::from_static(answer))))
            });
            let http2 = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
            http2.serve_connection(TokioIo::new(stream), serve).await
        });
        address
    }

    #[tokio::test]
    async fn grpc_is_asked_as_a_kubelet_asks() {
        let serves = health(b"\0\0\0\0\x02\x08\x01").await;
        assert_eq!(serving(serves, "web").await, Ok(()));
        let does_not = health(b"\0\0\0\0\x02\x08\x02").await;
        assert!(serving(does_not, "web").await.unwrap_err().contains("does not serve"));
    }
}
