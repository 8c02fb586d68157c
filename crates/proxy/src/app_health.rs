//! Health probes of the application, asked for at the sidecar: `/app-health/NAME` on the health port.
//!
//! Who probes from outside the mesh (a kubelet, a load balancer, a monitor) has no certificate, so under STRICT it cannot ask
//! the application itself. The sidecar asks in its place, from within, where nothing is intercepted. Istio's idea.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use bytes::Bytes;
use h2::RecvStream;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, StatusCode, Version, header};
use hyper_util::rt::TokioIo;
use outrigger_model::names;
use outrigger_telemetry::admin::{AdminResponse, Row};
use serde::Deserialize;
use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::timeout;

use crate::bootstrap::time::some_duration;
use crate::http::grpc;
use crate::intercept::APP_PRIORITY;

mod redirect;

use redirect::Target;

/// Of whom the bootstrap says nothing. Who asks gives up earlier.
const PATIENCE: Duration = Duration::from_secs(10);

/// Of an answer that says SERVING; more of it is of no interest.
const MOST_ANSWER: usize = 64;

/// Headers that are not passed on: those of the connection with us, and of a body that a probe does not have.
const OUR_OWN: [HeaderName; 10] = [
    header::HOST,
    header::CONNECTION,
    header::UPGRADE,
    header::TE,
    header::TRAILER,
    header::TRANSFER_ENCODING,
    header::CONTENT_LENGTH,
    header::EXPECT,
    header::PROXY_AUTHORIZATION,
    HeaderName::from_static("keep-alive"),
];

/// The path of the probes.
pub const PATH: &str = "/app-health/*";

/// A probe of the bootstrap: one way to ask, and how long that may take.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "Written")]
pub struct Entry {
    probe: Probe,
    /// Absent: until whoever asks leaves, as befits what ends with it.
    patience: Option<Duration>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    http: Option<Http>,
    tcp: Option<Tcp>,
    grpc: Option<Grpc>,
    /// Zero: none.
    #[serde(default, deserialize_with = "some_duration")]
    timeout: Option<Duration>,
}

impl TryFrom<Written> for Entry {
    type Error = &'static str;

    fn try_from(written: Written) -> Result<Self, Self::Error> {
        let all = [written.http.map(Probe::Http), written.tcp.map(Probe::Tcp), written.grpc.map(Probe::Grpc)];
        let mut all = all.into_iter().flatten();
        let (Some(probe), None) = (all.next(), all.next()) else {
            return Err("a probe needs one of http, tcp and grpc");
        };
        let patience = written.timeout.unwrap_or(PATIENCE);
        Ok(Self { probe, patience: (!patience.is_zero()).then_some(patience) })
    }
}

/// A way to ask the application; the address is where it listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Probe {
    /// A GET; a status of 200 to 399 is healthy. A redirect on the same host is followed, one to another is healthy.
    Http(Http),
    /// A connection that is taken is healthy.
    Tcp(Tcp),
    /// `grpc.health.v1.Health/Check`; SERVING is healthy.
    Grpc(Grpc),
}

/// A GET.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Http {
    /// Its port.
    pub port: u16,
    /// Its address. Default 127.0.0.1.
    #[serde(default = "localhost")]
    pub address: IpAddr,
    /// With its query. Default `/`.
    #[serde(default = "root")]
    pub path: String,
    /// `Host`. Default the address and port.
    #[serde(default)]
    pub host: Option<String>,
    /// By TLS; as with a kubelet, whose certificate it is does not matter. Default false.
    #[serde(default)]
    pub tls: bool,
}

/// A connection.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tcp {
    /// Its port.
    pub port: u16,
    /// Its address. Default 127.0.0.1.
    #[serde(default = "localhost")]
    pub address: IpAddr,
}

/// A call of gRPC's health service.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Grpc {
    /// Its port.
    pub port: u16,
    /// Its address. Default 127.0.0.1.
    #[serde(default = "localhost")]
    pub address: IpAddr,
    /// The service that is asked for. Default empty: the whole server.
    #[serde(default)]
    pub service: String,
}

pub(crate) fn localhost() -> IpAddr {
    Ipv4Addr::LOCALHOST.into()
}

fn root() -> String {
    "/".into()
}

/// The row of the health port.
pub fn row(probes: BTreeMap<String, Entry>) -> Row {
    // What follows CONTAINER/KIND is the secret of a hook.
    let listed = |name: &&String| name.matches('/').count() < 2;
    let names = probes.keys().filter(listed).map(String::as_str).collect::<Vec<_>>().join(", ");
    let help = match names.is_empty() {
        true => "health of the application; the bootstrap file names no probes".to_owned(),
        false => format!("health of the application, by probe: {names}"),
    };
    Row::new(PATH, &["GET"], help, move |request| {
        let found = probes.get(&request.tail).cloned();
        async move {
            if request.headers.contains_key(redirect::FOLLOWED) {
                let text = "the application redirects its probe to the sidecar, which asks the application\n";
                return AdminResponse::status(StatusCode::LOOP_DETECTED, text);
            }
            let Some(Entry { probe, patience }) = found else {
                let text = format!("no probe \"{}\" in the bootstrap file (probes)\n", request.tail);
                return AdminResponse::status(StatusCode::NOT_FOUND, text);
            };
            match timeout(patience.unwrap_or(Duration::MAX), probe.ask(&request.headers)).await {
                Ok(Ok(status)) if status.as_u16() < 400 => AdminResponse::status(status, "healthy\n"),
                Ok(Ok(status)) => {
                    AdminResponse::status(status, format!("the application answers {status}\n"))
                }
                Ok(Err(reason)) => {
                    AdminResponse::status(StatusCode::SERVICE_UNAVAILABLE, format!("{reason}\n"))
                }
                Err(_) => {
                    let within = patience.unwrap_or_default();
                    let text = format!("the application has not answered within {within:?}\n");
                    AdminResponse::status(StatusCode::GATEWAY_TIMEOUT, text)
                }
            }
        }
    })
    .patient()
}

impl Probe {
    /// Whether the application is well, for those who ask for themselves.
    ///
    /// # Errors
    /// Why it is not.
    pub async fn passes(&self) -> Result<(), String> {
        match self.ask(&HeaderMap::new()).await? {
            status if status.as_u16() < 400 => Ok(()),
            status => Err(format!("the application answers {status}")),
        }
    }

    /// Asks; `headers` are those of whoever asked us.
    async fn ask(&self, headers: &HeaderMap) -> Result<StatusCode, String> {
        match self {
            Self::Http(Http { port, address, path, host, tls }) => {
                let address = SocketAddr::new(*address, *port);
                let target = Target { address, tls: *tls, path: path.clone(), host: host.clone() };
                target.ask(headers).await
            }
            Self::Tcp(Tcp { port, address }) => {
                let address = SocketAddr::new(*address, *port);
                to_application(address).await.map(|_| StatusCode::OK).map_err(|e| format!("{address}: {e}"))
            }
            Self::Grpc(Grpc { port, address, service }) => {
                let address = SocketAddr::new(*address, *port);
                grpc(address, service).await.map_err(|error| format!("{address}: {error}"))
            }
        }
    }
}

type Nothing = http_body_util::Empty<Bytes>;
type AnyError = Box<dyn std::error::Error + Send + Sync>;
type Head = http::response::Parts;

/// TCP to the application at any address of its host, past the sidecar.
pub(crate) async fn to_application(address: SocketAddr) -> std::io::Result<TcpStream> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    #[cfg(target_os = "linux")]
    SockRef::from(&socket).set_priority(APP_PRIORITY)?;
    socket.connect(address).await
}

fn get(
    address: SocketAddr,
    path: &str,
    host: Option<&str>,
    asked: &HeaderMap,
) -> Result<Request<Nothing>, http::Error> {
    let mut request = Request::get(path).header(header::CONNECTION, "close");
    request = request.header(header::HOST, host.map_or_else(|| address.to_string(), str::to_owned));
    // Applications tell probes from visitors by User-Agent, and probes may be written with headers of their own.
    // Who asks is a stranger, whom no policy has seen: what only sidecars may say he does not say either.
    let is_his =
        |name: &HeaderName| !OUR_OWN.contains(name) && !names::is_of_the_mesh(name.as_str().as_bytes());
    for (name, value) in asked.iter().filter(|(name, _)| is_his(name)) {
        request = request.header(name, value);
    }
    request.body(Nothing::new())
}

async fn http(
    stream: impl AsyncRead + AsyncWrite + Unpin,
    request: Request<Nothing>,
) -> Result<Head, AnyError> {
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let answered = async move { Ok(sender.send_request(request).await?.into_parts().0) };
    driven(answered, connection).await
}

/// An answer, with the connection that brings it: it may end as soon as it has brought it.
pub(crate) async fn driven<T, F: From<E>, E>(
    answered: impl Future<Output = Result<T, F>>,
    connection: impl Future<Output = Result<(), E>>,
) -> Result<T, F> {
    let mut answered = std::pin::pin!(answered);
    tokio::select! {
        answer = &mut answered => answer,
        ended = connection => match ended {
            Ok(()) => answered.await,
            Err(error) => Err(error.into()),
        },
    }
}

async fn grpc(address: SocketAddr, service: &str) -> Result<StatusCode, AnyError> {
    let tcp = to_application(address).await?;
    let (sender, connection) = h2::client::handshake(tcp).await?;
    let asking = async {
        let mut sender = sender.ready().await?;
        let (response, mut body) = sender.send_request(check_request(address)?, false)?;
        body.send_data(grpc::check_message(service), true)?;
        let response = response.await?;
        if response.status() != StatusCode::OK {
            return Err(AnyError::from(format!("HTTP status {}", response.status())));
        }
        let (head, mut body) = response.into_parts();
        let answer = read(&mut body).await?;
        let trailers = body.trailers().await?.unwrap_or(head.headers);
        let status = trailers.get("grpc-status").and_then(|status| status.to_str().ok());
        match (status, grpc::serving(&answer)) {
            (Some("0") | None, Some(true)) => Ok(StatusCode::OK),
            (Some("0") | None, _) => Err("it says that it is not SERVING".into()),
            (Some(status), _) => Err(format!("grpc-status {status}").into()),
        }
    };
    driven(asking, connection).await
}

fn check_request(address: SocketAddr) -> Result<Request<()>, http::Error> {
    let mut request = Request::builder()
        .method(Method::POST)
        .version(Version::HTTP_2)
        .uri(format!("http://{address}/grpc.health.v1.Health/Check"))
        .header(header::CONTENT_TYPE, "application/grpc")
        .body(())?;
    request.headers_mut().insert(header::TE, HeaderValue::from_static("trailers"));
    Ok(request)
}

async fn read(body: &mut RecvStream) -> Result<Vec<u8>, AnyError> {
    let mut answer = Vec::new();
    while let Some(chunk) = body.data().await {
        let chunk = chunk?;
        body.flow_control().release_capacity(chunk.len())?;
        if answer.len() + chunk.len() > MOST_ANSWER {
            return Err("its answer is no HealthCheckResponse".into());
        }
        answer.extend_from_slice(&chunk);
    }
    Ok(answer)
}

#[cfg(test)]
mod tests;
