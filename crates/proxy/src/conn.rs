//! The life of a downstream connection: the table of contents. `open_inbound`, `open_outbound` and then `dispatch` are it;
//! each line is a stage, and what a stage does is in its own module.
//!
//! ```text
//! accept ─> listener ─> detect ─> chain ─> terminate ─> authorize ─> HTTP or bytes
//! ```

use std::future::{Future, poll_fn};
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use outrigger_model::listener::Codec;
use outrigger_telemetry::logging::Throttle;
use tokio::net::TcpStream;
use tokio::time::Instant;

use crate::detect::{self, Detected, Look, Outcome, Patience};
use crate::downstream::ConnInfo;
use crate::failure::{Failure, FailureKind, Stage};
use crate::http::server;
use crate::l4::{self, Dialled};
use crate::listen::Purpose;
use crate::protocol::{HttpVersion, Protocol};
use crate::record::StreamRecord;
use crate::runtime::snapshot::{ChainHandle, HttpHandle, TerminalHandle};
use crate::runtime::usage::InUse;
use crate::stream::{Stream, Unanswered};
use crate::worker::Worker;

mod authorize;
mod decline;
mod early;
pub(crate) mod open;
mod resolve;
mod terminate;

/// Of a TLS handshake, and of the first bytes once they have begun.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// A connection as it comes from the accept loop.
pub struct Accepted {
    pub tcp: TcpStream,
    pub source: SocketAddr,
    /// The original destination.
    pub destination: SocketAddr,
    /// It came without address translation: the application shall see the client's address.
    pub transparent: bool,
    pub purpose: Purpose,
}

/// What is known after the first bytes.
pub(crate) struct Seen {
    /// `None` if nobody asked.
    detected: Option<Detected>,
    stream: Unanswered,
    early: Option<Dialled>,
    /// The server was heard before the client.
    server_first: bool,
}

/// Serves a connection to its end. Whatever fails is logged as one record.
pub fn serve(worker: Rc<Worker>, accepted: Accepted) -> impl Future<Output = ()> {
    // What it takes to get to the end of the chain is large and soon done: it must not stay with an idle connection, and
    // neither must what an async function would keep of its arguments.
    let opening = Box::pin(begin(worker.clone(), accepted));
    async move {
        let (info, serving) = opening.await;
        let served = match serving {
            Ok(serving) => dispatch(&worker, &info, serving).await,
            Err(failure) => Err(failure),
        };
        if let Err(failure) = served {
            refuse(&worker, &info, &failure);
        }
    }
}

async fn begin(worker: Rc<Worker>, accepted: Accepted) -> (Rc<ConnInfo>, Result<Serving, Box<Failure>>) {
    let (info, opened) = open(&worker, accepted).await;
    let serving = opened.map(|opened| terminal(&worker, &info, opened));
    (info, serving.map_err(Box::new))
}

/// What serves the connection to its end: a box of its own, as large as its kind needs.
fn terminal(worker: &Rc<Worker>, info: &Rc<ConnInfo>, opened: Opened) -> Serving {
    let (worker, info) = (worker.clone(), info.clone());
    let Opened { seen, version, _in_use } = opened;
    match &info.chain.terminal {
        TerminalHandle::Http(http) => {
            let (http, stream) = (http.clone(), seen.stream);
            Box::pin(async move {
                let _in_use = _in_use;
                let settled = Box::pin(settle(&http, version, stream)).await.map_err(Box::new)?;
                if let Some((version, stream)) = settled {
                    server::serve(worker, stream.answer(), http, info, version).await;
                }
                Ok(())
            })
        }
        TerminalHandle::Tcp(_) => {
            let serving = l4::serve(worker, info, seen.stream, seen.early);
            Box::pin(async move {
                let _in_use = _in_use;
                serving.await;
                Ok(())
            })
        }
    }
}

type Serving = Pin<Box<dyn Future<Output = Result<(), Box<Failure>>>>>;

/// A connection at the end of its chain.
struct Opened {
    seen: Seen,
    version: Option<HttpVersion>,
    /// Until the connection ends: a destination in use is never forgotten.
    _in_use: Option<InUse>,
}

async fn open(worker: &Rc<Worker>, accepted: Accepted) -> (Rc<ConnInfo>, Result<Opened, Failure>) {
    let mut info =
        ConnInfo::early(accepted.source, accepted.destination, accepted.transparent, &accepted.purpose);
    // From here on whatever fails before somebody serves the connection ends it by a reset.
    let stream = Unanswered::from(Stream::Tcp(accepted.tcp));
    let opened = match accepted.purpose {
        Purpose::Inbound { .. } => yielding(worker, pin!(open_inbound(worker, stream, &mut info))).await,
        Purpose::Outbound { to } => {
            yielding(worker, pin!(open_outbound(worker, stream, to, &mut info))).await
        }
    };
    (Rc::new(info), opened)
}

/// Until it has reached the end of its chain a connection counts as one that rests: those that say nothing make room first.
async fn yielding<T>(
    worker: &Worker,
    mut opening: Pin<&mut impl Future<Output = Result<T, Failure>>>,
) -> Result<T, Failure> {
    let account = worker.ledger.open(worker.alarm.place(&worker.process.drain));
    account.rest(Some(Instant::now()));
    poll_fn(|cx| {
        account.place().register(cx);
        if account.told().is_some() {
            let detail = "it had not begun, and others need its place";
            return Poll::Ready(Err(Failure::local(Stage::Accept, FailureKind::Overload, detail)));
        }
        opening.as_mut().poll(cx)
    })
    .await
}

/// A connection to our workload.
async fn open_inbound(
    worker: &Rc<Worker>,
    stream: Unanswered,
    info: &mut ConnInfo,
) -> Result<Opened, Failure> {
    worker.process.loops.inward(info.original().0)?;
    info.listener = resolve::inbound(worker, info.destination).await?;
    let mut seen = look(worker, info, stream).await?;
    info.chain = select(info, seen.detected.as_ref())?;
    let chain = info.chain.clone();
    let version = match (&chain.tls, &seen.detected) {
        (Some(tls), Some(Detected::Tls(hello))) => {
            let terminated = terminate::mesh(worker, tls, hello, seen.stream, info).await?;
            match terminated.version {
                Some(version) => {
                    seen.stream = terminated.stream;
                    Some(version)
                }
                None => {
                    let (inside, version) = look_inside(worker, info, terminated.stream).await?;
                    seen = inside;
                    version
                }
            }
        }
        (Some(_), _) => return Err(terminate::plain_text(info)),
        (None, detected) => version_of(detected.as_ref()),
    };
    authorize::connection(info)?;
    Ok(Opened { seen, version, _in_use: None })
}

/// A connection from our workload.
async fn open_outbound(
    worker: &Rc<Worker>,
    stream: Unanswered,
    to: Option<Arc<str>>,
    info: &mut ConnInfo,
) -> Result<Opened, Failure> {
    let found = match resolve::outbound(worker, info.destination, to.as_deref()).await {
        Ok(found) => found,
        Err(failure) => {
            Box::pin(decline::tell(worker, stream, &failure)).await;
            return Err(failure);
        }
    };
    (info.listener, info.destination) = (found.listener, found.destination);
    let _in_use = found.in_use;
    let seen = look(worker, info, stream).await?;
    info.chain = select(info, seen.detected.as_ref())?;
    if info.chain.tls.is_some() {
        let detail = format!("chain {} terminates TLS, which outbound never does", info.chain.name);
        return Err(Failure::local(Stage::Terminate, FailureKind::NoChain, detail));
    }
    authorize::connection(info)?;
    let version = version_of(seen.detected.as_ref());
    Ok(Opened { seen, version, _in_use })
}

/// Looks at the first bytes, if the listener's chains ask for them.
async fn look(worker: &Rc<Worker>, info: &mut ConnInfo, stream: Unanswered) -> Result<Seen, Failure> {
    if !info.listener.needs_first_bytes {
        return Ok(Seen { detected: None, stream, early: None, server_first: false });
    }
    // The server may be the one that speaks first, if a silent connection would be the TCP proxy's.
    let silent = early::chain(worker, info);
    early::first_bytes(worker, info, stream, Look::Everything, silent).await
}

/// Looks into TLS whose ALPN leaves open what is inside, where that makes a difference: the second of the two detections.
async fn look_inside(
    worker: &Rc<Worker>,
    info: &mut ConnInfo,
    stream: Unanswered,
) -> Result<(Seen, Option<HttpVersion>), Failure> {
    let (http1, http2) = (info.inside(HttpVersion::Http1), info.inside(HttpVersion::Http2));
    if http1.is_none() && http2.is_none() {
        return Ok((Seen { detected: None, stream, early: None, server_first: false }, None));
    }
    let silent = Some(info.chain.clone());
    let seen = early::first_bytes(worker, info, stream, Look::Http, silent).await?;
    let version = version_of(seen.detected.as_ref());
    let chain = match version {
        Some(HttpVersion::Http1) => http1,
        Some(HttpVersion::Http2) => http2,
        None => None,
    };
    if let (Some(chain), Some(version)) = (chain, version) {
        info.found_inside(version);
        info.chain = chain;
        return Ok((seen, Some(version)));
    }
    Ok((seen, None))
}

/// Chooses the chain and notes what it was chosen by.
fn select(info: &mut ConnInfo, detected: Option<&Detected>) -> Result<Arc<ChainHandle>, Failure> {
    info.note(detected);
    info.chosen(&info.listener).cloned().ok_or_else(|| {
        // Under STRICT the reason is worth more than "no chain".
        if detected.is_some() && !info.is_tls && !info.listener.takes_plain {
            return terminate::plain_text(info);
        }
        let what = detected.map_or("a connection", name_of);
        let detail = format!("listener {} has no filter chain for {what}", info.listener.name());
        Failure::local(Stage::Route, FailureKind::NoChain, detail)
    })
}

fn name_of(detected: &Detected) -> &'static str {
    match detected {
        Detected::Tls(_) => "TLS of this server name and these ALPN names",
        Detected::Http1 => "HTTP/1 in plain text",
        Detected::Http2 => "HTTP/2 in plain text",
        Detected::Opaque | Detected::Unclear => "plain text that is not HTTP",
    }
}

fn version_of(detected: Option<&Detected>) -> Option<HttpVersion> {
    match detected {
        Some(Detected::Http1) => Some(HttpVersion::Http1),
        Some(Detected::Http2) => Some(HttpVersion::Http2),
        Some(Detected::Tls(_) | Detected::Opaque | Detected::Unclear) | None => None,
    }
}

/// The end of the chain; from here on the connection is registered, so that a change of policy can close it, and not a byte
/// goes on before it was judged by what is in force by now.
async fn dispatch(
    worker: &Rc<Worker>,
    info: &Rc<ConnInfo>,
    mut serving: Serving,
) -> Result<(), Box<Failure>> {
    let drain = &worker.process.drain;
    let open = worker.connections.register(info, worker.alarm.place(drain));
    if let Err(failure) = open::judge(&open, worker) {
        return Err(Box::new(failure));
    }
    let ended = poll_fn(|cx| {
        if let Poll::Ready(served) = serving.as_mut().poll(cx) {
            return Poll::Ready(Ended::Served(served));
        }
        match open.closed(cx) {
            Some(failure) => Poll::Ready(Ended::Closed(Box::new(failure.clone()))),
            None if drain.is_forced() => Poll::Ready(Ended::Forced),
            None => Poll::Pending,
        }
    });
    match ended.await {
        Ended::Served(served) => served,
        Ended::Closed(failure) => {
            // The records of what was under way take the reason from `closed_by`.
            if let Some(suppressed) = CLOSED.admit() {
                tracing::info!(source = %info.source, listener = info.listener.name(), %failure, suppressed, "open connection closed");
            }
            Ok(())
        }
        Ended::Forced => Ok(()),
    }
}

static CLOSED: Throttle = Throttle::new();

/// How a connection came to its end.
enum Ended {
    Served(Result<(), Box<Failure>>),
    Closed(Box<Failure>),
    /// The drain's deadline has passed.
    Forced,
}

/// The HTTP version, from the codec, ALPN or the first bytes. `None`: closed before a byte.
async fn settle(
    http: &HttpHandle,
    known: Option<HttpVersion>,
    stream: Unanswered,
) -> Result<Option<(HttpVersion, Unanswered)>, Failure> {
    match http.config.codec {
        Codec::Http1 => return Ok(Some((HttpVersion::Http1, stream))),
        Codec::Http2 => return Ok(Some((HttpVersion::Http2, stream))),
        Codec::Auto => {}
    }
    if let Some(version) = known {
        return Ok(Some((version, stream)));
    }
    let idle = http.config.idle_timeout;
    let first = (!idle.is_zero()).then(|| Instant::now() + idle);
    let head = http.config.request_headers_timeout;
    let rest = if head.is_zero() { HANDSHAKE_TIMEOUT } else { head };
    Ok(match detect::detect(stream, Look::Http, Patience { first, rest }).await? {
        Outcome::Decided(Detected::Http2, stream) => Some((HttpVersion::Http2, stream)),
        // The HTTP/1 codec answers what is not HTTP with the right status.
        Outcome::Decided(_, stream) => Some((HttpVersion::Http1, stream)),
        Outcome::Slow(stream) => return Err(detect::too_slow(&stream)),
        Outcome::Silent(stream) => {
            // Nothing was asked on a connection of HTTP, so there is no answer that its end could cut.
            drop(stream.answer());
            None
        }
    })
}

/// The access log has them all.
static REFUSED: Throttle = Throttle::new();

/// Writes the record of a connection that failed before anything served it, or that was closed under it.
fn refuse(worker: &Rc<Worker>, info: &Rc<ConnInfo>, failure: &Failure) {
    if let Some(suppressed) = REFUSED.admit() {
        tracing::info!(
            source = %info.source,
            destination = %info.destination,
            listener = info.listener.name(),
            %failure,
            suppressed,
            "connection closed"
        );
    }
    StreamRecord::open(worker, info, Protocol::Tcp, Instant::now()).fail(failure);
}

#[cfg(test)]
mod tests;
