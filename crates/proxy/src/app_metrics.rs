//! Metrics of the application on the sidecar's page, as Istio merges them: `/stats/prometheus` on the metrics port.
//!
//! Who scrapes from outside the mesh has no certificate, so under STRICT it cannot ask the application itself. The sidecar asks in its
//! place, from within, and writes its own metrics first. What it asks is said by the bootstrap alone: of whoever scrapes it takes the formats
//! and the time. An application that does not answer, too late, or in what is no format of metrics, takes nothing from ours;
//! `outrigger_app_metrics_up` says so.
//!
//! ```text
//! scraper ─▶ our page ─▶ application: at most so long, so many bytes ─▶ its page line by line ─▶ both
//! ```

use std::iter;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, StatusCode, header};
use http_body_util::{BodyExt, Empty, LengthLimitError, Limited};
use hyper_util::rt::TokioIo;
use outrigger_identity::upstream::connect_unverified;
use outrigger_telemetry::admin::{AdminResponse, Row};
use outrigger_telemetry::logging::Throttle;
use outrigger_telemetry::metrics::{Format, Page, Registry, SharedCounter, Vector, page};
use serde::Deserialize;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

use crate::app_health::{driven, localhost, to_application};
use merge::{Reader, merged};
use ours::is_ours;

mod merge;
mod ours;

/// The application's page.
const MOST: usize = 8 << 20;

/// Pages of the application that are on their way to scrapers, all together.
const MOST_HELD: usize = 32 << 20;

/// So many scrapers ask the application at a time.
const AT_ONCE: usize = 2;

/// Where a scraper does not say how long it waits. Prometheus waits 10 s, unless it is told otherwise.
const PATIENCE: Duration = Duration::from_secs(8);

/// Whatever it says.
const MOST_PATIENCE: Duration = Duration::from_secs(25);

/// In which Prometheus says how long it waits.
const WAITS: &str = "x-prometheus-scrape-timeout-seconds";

const OPEN_METRICS: &str = "application/openmetrics-text";

static FAILED: Throttle = Throttle::new();

/// Where the application's metrics are.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Section {
    /// Its port.
    pub port: u16,
    /// Its address, or the loopback address if nobody listens there. Default 127.0.0.1.
    #[serde(default = "localhost")]
    pub address: IpAddr,
    /// With its query. Default `/metrics`.
    #[serde(default = "path")]
    pub path: String,
    /// By TLS; whose certificate it is does not matter. Default false.
    #[serde(default)]
    pub tls: bool,
}

fn path() -> String {
    "/metrics".into()
}

impl Section {
    /// What cannot work. `ours` are the sidecar's ports: its pages answer who asks from this host.
    pub(crate) fn check(&self, ours: &[u16]) -> Result<(), String> {
        if self.port == 0 {
            return Err("app_metrics.port: must be the application's, 1 to 65535".into());
        }
        if ours.contains(&self.port) {
            return Err(format!("app_metrics.port: {} is the sidecar's; give the application's", self.port));
        }
        match self.path.parse::<http::uri::PathAndQuery>() {
            Ok(_) if self.path.starts_with('/') => Ok(()),
            _ => Err(format!("app_metrics.path: \"{}\" is no path such as /metrics", self.path)),
        }
    }
}

/// The application's metrics, for whoever asks.
pub struct Application {
    section: Section,
    /// Whether nobody of ours listens at an address.
    is_free: Box<dyn Fn(SocketAddr) -> bool + Send + Sync>,
    turns: Arc<Semaphore>,
    held: Arc<Semaphore>,
    scrapes: Arc<Vector<SharedCounter, 1>>,
}

/// A page of the application as it came.
struct Answer {
    format: Format,
    content_type: HeaderValue,
    text: Bytes,
}

/// What of it may stand behind ours, and its part of what may be held.
struct Theirs {
    format: Format,
    content_type: HeaderValue,
    lines: Vec<u8>,
    place: OwnedSemaphorePermit,
}

/// Why there is none.
#[derive(Debug, thiserror::Error)]
enum Missing {
    #[error("it is one of the sidecar's own")]
    Ours,
    #[error("{0}")]
    Connect(#[from] std::io::Error),
    #[error("{0}")]
    Http(#[from] hyper::Error),
    #[error("{0}")]
    Path(#[from] http::Error),
    #[error("no answer within {0:?}")]
    Late(Duration),
    #[error("the answer is {0}")]
    Status(StatusCode),
    #[error("the answer has more than {MOST} bytes")]
    TooLarge,
    #[error("the answer is no page of metrics: {0}")]
    Unreadable(String),
    #[error("pages of more than {MOST_HELD} bytes are on their way to scrapers that do not take them")]
    Busy,
}

impl Missing {
    fn outcome(&self) -> &'static str {
        match self {
            Self::Ours | Self::Connect(_) | Self::Http(_) | Self::Path(_) => "unreachable",
            Self::Late(_) => "late",
            Self::Status(_) => "status",
            Self::TooLarge => "too_large",
            Self::Unreadable(_) => "unreadable",
            Self::Busy => "busy",
        }
    }
}

/// The row of the metrics port: ours, and the application's.
pub fn row(path: &'static str, registry: Registry, application: Arc<Application>) -> Row {
    let help = "metrics of the sidecar and of the application, in Prometheus text format or OpenMetrics";
    Row::new(path, &["GET"], help, move |request| {
        let (registry, application) = (registry.clone(), application.clone());
        async move { application.page(&registry, &request.headers).await }
    })
}

impl Application {
    /// None is asked for yet. `is_free` says whether nobody of ours listens at an address.
    pub fn new(
        section: Section,
        registry: &Registry,
        is_free: impl Fn(SocketAddr) -> bool + Send + Sync + 'static,
    ) -> Arc<Self> {
        let help = "Scrapes of the application's metrics in a scraper's place, by what came of them.";
        let scrapes = registry.counters("outrigger_app_metrics_scrapes_total", help, ["outcome"]);
        let [turns, held] = [AT_ONCE, MOST_HELD].map(|permits| Arc::new(Semaphore::new(permits)));
        Arc::new(Self { section, is_free: Box::new(is_free), turns, held, scrapes })
    }

    async fn page(&self, registry: &Registry, asked: &HeaderMap) -> AdminResponse {
        let patience = patience(asked);
        let theirs = timeout(patience, self.theirs(asked, patience)).await;
        let theirs = theirs.unwrap_or(Err(Missing::Late(patience)));
        let outcome = theirs.as_ref().map_or_else(Missing::outcome, |_| "merged");
        self.scrapes.with([outcome]).inc();
        if let Err(missing) = &theirs
            && let Some(suppressed) = FAILED.admit()
        {
            let Section { port, path, .. } = &self.section;
            tracing::warn!(
                suppressed,
                "the application's metrics (port {port}, {path}) are left out: {missing}"
            );
        }
        written(registry.page(), theirs.ok())
    }

    /// The application's lines as they may stand behind ours. What is judged has its turn and its room as long as it lasts, whoever still
    /// waits for it.
    async fn theirs(&self, asked: &HeaderMap, patience: Duration) -> Result<Theirs, Missing> {
        // Never closed; and who has none goes on without.
        let turn = self.turns.clone().acquire_owned().await;
        let any_names = takes_any_names(asked);
        let accept = accept(takes_open_metrics(asked), any_names);
        let Answer { format, content_type, text } = self.ask(accept, patience).await?;
        let place = self.hold(&text)?;
        let reader = Reader { format, any_names };
        // The control runtime has one thread, and a long page takes a while.
        let judged = tokio::task::spawn_blocking(move || -> Result<_, Missing> {
            let _turn = turn;
            let lines = merged(&text, reader, is_ours).map_err(Missing::Unreadable)?;
            Ok(Theirs { format, content_type, lines, place })
        });
        judged.await.unwrap_or_else(|error| Err(Missing::Unreadable(error.to_string())))
    }

    /// Who takes pages slowly keeps their bytes from others.
    fn hold(&self, text: &[u8]) -> Result<OwnedSemaphorePermit, Missing> {
        let size = u32::try_from(text.len()).map_err(|_| Missing::TooLarge)?;
        self.held.clone().try_acquire_many_owned(size).map_err(|_| Missing::Busy)
    }

    async fn ask(&self, accept: &'static str, patience: Duration) -> Result<Answer, Missing> {
        let Section { port, address, path, tls } = &self.section;
        let (address, tcp) = self.connect(SocketAddr::new(*address, *port)).await?;
        let request = Request::get(path.as_str())
            .header(header::HOST, address.to_string())
            .header(header::CONNECTION, "close")
            .header(header::ACCEPT, accept)
            .header(header::USER_AGENT, concat!("outrigger-proxy/", env!("CARGO_PKG_VERSION")))
            .header(WAITS, patience.as_secs_f64().to_string())
            .body(Empty::new())?;
        match tls {
            true => over(connect_unverified(tcp, address.ip()).await?, request).await,
            false => over(tcp, request).await,
        }
    }

    /// To where it says, or to the loopback address, where applications listen whose metrics are for a sidecar alone.
    async fn connect(&self, address: SocketAddr) -> Result<(SocketAddr, TcpStream), Missing> {
        let loopback = match address.is_ipv4() {
            true => localhost(),
            false => std::net::Ipv6Addr::LOCALHOST.into(),
        };
        let other = (address.ip() != loopback).then(|| SocketAddr::new(loopback, address.port()));
        let mut refused = None;
        for address in iter::once(address).chain(other) {
            if !(self.is_free)(address) {
                return Err(Missing::Ours);
            }
            match to_application(address).await {
                Ok(stream) => return Ok((address, stream)),
                Err(error) => refused = Some(refused.unwrap_or(error)),
            }
        }
        Err(refused.map_or(Missing::Ours, Missing::Connect))
    }
}

/// Ours first: a page of OpenMetrics ends where the application's does.
fn written(mut page: Page, theirs: Option<Theirs>) -> AdminResponse {
    page.gauge("outrigger_app_metrics_up", "1 if this page has the application's metrics, too.")
        .sample((), theirs.is_some());
    let Some(Theirs { format, content_type, lines, place }) = theirs else {
        return AdminResponse::new(StatusCode::OK, page::CONTENT_TYPE, page.finish());
    };
    let mut whole = page.finish_as(format).into_bytes();
    whole.extend_from_slice(&lines);
    let held = Bytes::from_owner(Held { whole, _place: place });
    let response = AdminResponse::new(StatusCode::OK, page::CONTENT_TYPE, held);
    match format {
        Format::Text => response,
        Format::OpenMetrics => response.with_header(header::CONTENT_TYPE, content_type),
    }
}

/// A page, and its part of what may be held.
struct Held {
    whole: Vec<u8>,
    _place: OwnedSemaphorePermit,
}

impl AsRef<[u8]> for Held {
    fn as_ref(&self) -> &[u8] {
        &self.whole
    }
}

async fn over(
    stream: impl AsyncRead + AsyncWrite + Unpin,
    request: Request<Empty<Bytes>>,
) -> Result<Answer, Missing> {
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let answered = async move {
        let (head, body) = sender.send_request(request).await?.into_parts();
        if head.status != StatusCode::OK {
            return Err(Missing::Status(head.status));
        }
        let (format, content_type) = format(&head.headers)?;
        let text = Limited::new(body, MOST).collect().await.map_err(|error| {
            if error.is::<LengthLimitError>() {
                Missing::TooLarge
            } else {
                Missing::Unreadable(error.to_string())
            }
        })?;
        Ok(Answer { format, content_type, text: text.to_bytes() })
    };
    driven(answered, connection).await
}

/// What an answer says that it is. Without a word it is the old format, as for Prometheus.
fn format(headers: &HeaderMap) -> Result<(Format, HeaderValue), Missing> {
    if let Some(encoding) = headers.get(header::CONTENT_ENCODING).filter(|encoding| *encoding != "identity") {
        return Err(Missing::Unreadable(format!("it is encoded, which was not asked for: {encoding:?}")));
    }
    let said = headers.get(header::CONTENT_TYPE).cloned();
    let said = said.unwrap_or(HeaderValue::from_static(page::CONTENT_TYPE));
    let media = said.to_str().unwrap_or_default().split(';').next().unwrap_or_default().trim();
    if media.eq_ignore_ascii_case("text/plain") {
        Ok((Format::Text, said))
    } else if media.eq_ignore_ascii_case(OPEN_METRICS) {
        Ok((Format::OpenMetrics, said))
    } else {
        Err(Missing::Unreadable(format!("its content type is {said:?}")))
    }
}

/// What the application may answer with. Whoever is not told that names of any letters are read writes underscores in them, and its metrics
/// would be called otherwise than where the scraper asks it itself.
fn accept(open_metrics: bool, any_names: bool) -> &'static str {
    match (open_metrics, any_names) {
        (false, false) => "text/plain;version=0.0.4;q=0.5,*/*;q=0.1",
        (false, true) => {
            "text/plain;version=1.0.0;escaping=allow-utf-8;q=0.5,text/plain;version=0.0.4;q=0.3,*/*;q=0.1"
        }
        (true, false) => {
            "application/openmetrics-text;version=1.0.0;q=0.75,text/plain;version=0.0.4;q=0.5,*/*;q=0.1"
        }
        (true, true) => {
            "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.75,\
             text/plain;version=1.0.0;escaping=allow-utf-8;q=0.5,text/plain;version=0.0.4;q=0.3,*/*;q=0.1"
        }
    }
}

/// Whether a scraper reads OpenMetrics.
fn takes_open_metrics(asked: &HeaderMap) -> bool {
    accepted(asked).any(|range| {
        let mut words = range.split(';').map(str::trim);
        let weight = |word: &str| word.strip_prefix("q=").map(|weight| weight.parse() != Ok(0.0));
        words.next().is_some_and(|media| media.eq_ignore_ascii_case(OPEN_METRICS))
            && words.find_map(weight) != Some(false)
    })
}

/// Whether it reads names that are not of Prometheus's letters.
fn takes_any_names(asked: &HeaderMap) -> bool {
    accepted(asked)
        .any(|range| range.split(';').any(|word| word.trim().eq_ignore_ascii_case("escaping=allow-utf-8")))
}

fn accepted(asked: &HeaderMap) -> impl Iterator<Item = &str> {
    let all = asked.get_all(header::ACCEPT).into_iter().filter_map(|value| value.to_str().ok());
    all.flat_map(|value| value.split(','))
}

/// Some of what the scraper has is for our own page and the way to it.
fn patience(asked: &HeaderMap) -> Duration {
    let said = asked.get(WAITS).and_then(|value| value.to_str().ok()?.parse::<f64>().ok());
    said.filter(|seconds| seconds.is_finite()).map_or(PATIENCE, |seconds| {
        Duration::from_secs_f64((seconds * 0.8).clamp(0.1, MOST_PATIENCE.as_secs_f64()))
    })
}

#[cfg(test)]
mod tests;
