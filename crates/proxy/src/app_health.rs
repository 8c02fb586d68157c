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
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::timeout;

use crate::bootstrap::time::some_duration;
use crate::http::grpc;
use crate::intercept::APP_PRIORITY;

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
    /// A GET; a status of 200 to 399 is healthy.
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

fn localhost() -> IpAddr {
    Ipv4Addr::LOCALHOST.into()
}

fn root() -> String {
    "/".into()
}

/// The row of the health port.
pub fn row(probes: BTreeMap<String, Entry>) -> Row {
    let names = probes.keys().map(String::as_str).collect::<Vec<_>>().join(", ");
    let help = match names.is_empty() {
        true => "health of the application; the bootstrap file names no probes".to_owned(),
        false => format!("health of the application, by probe: {names}"),
    };
    Row::new(PATH, &["GET"], help, move |request| {
        let found = probes.get(&request.tail).cloned();
        async move {
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
            Self::Http(Http { port, address, path, host }) => {
                let address = SocketAddr::new(*address, *port);
                http(address, path, host.as_deref(), headers)
                    .await
                    .map_err(|error| format!("{address}: {error}"))
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

type AnyError = Box<dyn std::error::Error + Send + Sync>;

/// TCP to the application at any address of its host, past the sidecar.
async fn to_application(address: SocketAddr) -> std::io::Result<TcpStream> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    #[cfg(target_os = "linux")]
    SockRef::from(&socket).set_priority(APP_PRIORITY)?;
    socket.connect(address).await
}

async fn http(
    address: SocketAddr,
    path: &str,
    host: Option<&str>,
    asked: &HeaderMap,
) -> Result<StatusCode, AnyError> {
    let tcp = to_application(address).await?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(tcp)).await?;
    let mut request = Request::get(path).header(header::CONNECTION, "close");
    request = request.header(header::HOST, host.map_or_else(|| address.to_string(), str::to_owned));
    // Applications tell probes from visitors by User-Agent, and probes may be written with headers of their own.
    // Who asks is a stranger, whom no policy has seen: what only sidecars may say he does not say either.
    let is_his =
        |name: &HeaderName| !OUR_OWN.contains(name) && !names::is_of_the_mesh(name.as_str().as_bytes());
    for (name, value) in asked.iter().filter(|(name, _)| is_his(name)) {
        request = request.header(name, value);
    }
    let request = request.body(http_body_util::Empty::<Bytes>::new())?;
    let answered = async move { Ok(sender.send_request(request).await?.status()) };
    driven(answered, connection).await
}

/// An answer, with the connection that brings it: it may end as soon as it has brought it.
async fn driven<E: Into<AnyError>>(
    answered: impl Future<Output = Result<StatusCode, AnyError>>,
    connection: impl Future<Output = Result<(), E>>,
) -> Result<StatusCode, AnyError> {
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
mod tests {
    use std::path::Path;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;
    use crate::bootstrap::Bootstrap;

    async fn answering(answer: &'static str) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let mut head = [0; 1024];
                let n = stream.read(&mut head).await.unwrap();
                assert!(n == 0 || head.starts_with(b"GET /healthz?full HTTP/1.1\r\n"));
                stream.write_all(answer.as_bytes()).await.unwrap();
            }
        });
        address
    }

    fn probe(address: SocketAddr) -> Probe {
        Probe::Http(Http {
            port: address.port(),
            address: address.ip(),
            path: "/healthz?full".into(),
            host: None,
        })
    }

    #[tokio::test]
    async fn the_applications_status_is_the_answer() {
        for status in [200, 302, 404, 500] {
            let text = format!("HTTP/1.1 {status} X\r\ncontent-length: 0\r\n\r\n");
            let address = answering(Box::leak(text.into_boxed_str())).await;
            assert_eq!(probe(address).ask(&HeaderMap::new()).await.unwrap().as_u16(), status);
        }
        let address = answering("").await;
        assert!(probe(address).ask(&HeaderMap::new()).await.is_err(), "an end is no answer");
        let tcp = Probe::Tcp(Tcp { port: address.port(), address: address.ip() });
        assert_eq!(tcp.ask(&HeaderMap::new()).await, Ok(StatusCode::OK));
        let nobody = Probe::Tcp(Tcp { port: 1, address: localhost() });
        assert!(nobody.ask(&HeaderMap::new()).await.unwrap_err().starts_with("127.0.0.1:1: "));
    }

    #[tokio::test]
    async fn headers_of_the_probe_reach_the_application_but_for_those_of_its_connection() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let heard = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut head = vec![0; 4096];
            let n = stream.read(&mut head).await.unwrap();
            stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await.unwrap();
            String::from_utf8_lossy(&head[..n]).to_lowercase()
        });
        let asked = [
            ("x-probe", "yes"),
            ("x-forwarded-proto", "https"),
            ("user-agent", "kube-probe/1.33"),
            ("connection", "x"),
            ("host", "10.1.0.7:15021"),
            ("x-forwarded-client-cert", "URI=spiffe://mesh/ns/shop/sa/admin"),
            ("x.forwarded_client.cert", "URI=spiffe://mesh/ns/shop/sa/admin"),
            ("x-outrigger-peer", "spiffe://mesh"),
            ("x-envoy-peer-metadata", "spiffe://mesh"),
        ];
        let asked =
            asked.map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value)));
        probe(address).ask(&asked.into_iter().collect()).await.unwrap();
        let head = heard.await.unwrap();
        assert!(
            head.contains("x-probe: yes\r\n") && head.contains("user-agent: kube-probe/1.33\r\n"),
            "{head}"
        );
        assert!(
            head.contains(&format!("host: {address}\r\n")) && head.matches("host:").count() == 1,
            "{head}"
        );
        assert!(!head.contains("connection: x"), "{head}");
        assert!(head.contains("x-forwarded-proto: https\r\n"), "or it is sent to where that is so: {head}");
        assert!(!head.contains("spiffe"), "a stranger says what only sidecars may: {head}");
    }

    async fn grpc_server(answer: &'static [u8], status: &'static str) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            let mut connection = h2::server::handshake(listener.accept().await.unwrap().0).await.unwrap();
            while let Some(Ok((request, mut respond))) = connection.accept().await {
                assert_eq!(request.uri().path(), "/grpc.health.v1.Health/Check");
                let mut stream = respond.send_response(http::Response::new(()), false).unwrap();
                stream.send_data(answer.into(), false).unwrap();
                let trailers = [(HeaderName::from_static("grpc-status"), status.parse().unwrap())];
                stream.send_trailers(trailers.into_iter().collect()).unwrap();
            }
        });
        address
    }

    #[tokio::test]
    async fn only_serving_is_healthy() {
        for (answer, status, healthy) in [
            (&[0, 0, 0, 0, 2, 8, 1][..], "0", true),
            (&[0, 0, 0, 0, 2, 8, 2], "0", false),
            (&[0, 0, 0, 0, 0], "0", false),
            (&[], "5", false),
        ] {
            let address = grpc_server(answer, status).await;
            let service = "shop.Pricing".into();
            let probe = Probe::Grpc(Grpc { port: address.port(), address: address.ip(), service });
            assert_eq!(probe.ask(&HeaderMap::new()).await.is_ok(), healthy, "{answer:?} {status}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_has_the_time_that_the_bootstrap_gives_it() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (port, address) = (listener.local_addr().unwrap().port(), localhost());
        // Answers after half a minute.
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                tokio::spawn(async move {
                    let mut head = [0; 1024];
                    let _ = stream.read(&mut head).await;
                    tokio::time::sleep(Duration::from_secs(30)).await;
                    let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await;
                });
            }
        });
        let probe = Probe::Http(Http { port, address, path: "/".into(), host: None });
        for (patience, status) in [(Some(10), 504), (Some(45), 200), (None, 200)] {
            let patience = patience.map(Duration::from_secs);
            let probes = BTreeMap::from([("p".to_owned(), Entry { probe: probe.clone(), patience })]);
            let table = outrigger_telemetry::admin::Table::new("t").with(row(probes));
            let answer = table.answer(outrigger_telemetry::admin::AdminRequest {
                method: Method::GET,
                path: "/app-health/p".into(),
                tail: String::new(),
                query: Vec::new(),
                headers: HeaderMap::new(),
                body: Bytes::new(),
                peer: (address, 1).into(),
            });
            assert_eq!(answer.await.status.as_u16(), status, "{patience:?}");
        }
    }

    #[test]
    fn probes_are_written_in_the_bootstrap_file() {
        let read = |probe: &str| {
            let text = format!("node: {{id: a}}\nstate_dir: /s\nprobes:\n  ready: {probe}\n");
            Bootstrap::parse(Path::new("b"), &text)
        };
        let probe = Probe::Http(Http { port: 8080, address: localhost(), path: "/ok".into(), host: None });
        for (timeout, patience) in [("", Some(10)), (", timeout: 45s", Some(45)), (", timeout: 0s", None)] {
            let patience = patience.map(Duration::from_secs);
            let read = read(&format!("{{http: {{port: 8080, path: /ok}}{timeout}}}")).unwrap();
            assert_eq!(read.probes["ready"], Entry { probe: probe.clone(), patience });
        }
        assert!(read("{grpc: {port: 9090}}").is_ok());
        for neither in ["{timeout: 1s}", "{tcp: {port: 1}, grpc: {port: 1}}"] {
            assert!(read(neither).unwrap_err().to_string().contains("one of http, tcp and grpc"));
        }
        assert!(read("{exec: {command: ls}}").unwrap_err().to_string().contains("exec"));
    }
}
