//! Protocols in which the server speaks first: both sides race, and the first bytes from either decide, unless they are a
//! server's that any HTTP server would say.
//!
//! Only where a silent connection would be the TCP proxy's, after L4 authorization, and after a short time in which the
//! client had its chance. Each connection's own first bytes decide what it is; what is remembered is only that a server
//! was heard first, which saves that wait and decides nothing, so that there is nothing to poison.
//! (*) One millisecond; where plain text and mTLS share a port, max(20 ms, 3 RTT).
//!
//! ```text
//! wait (*) ──client speaks──> detected
//!   └─silent, or remembered─> authorize ─> dial ─> race ──client──> detected (the upstream goes unused, unless opaque)
//!                                           │       ├──server, HTTP─> the client is waited for
//!                                           │       └──server──> opaque
//!                                           └─failed, and the client silent for long─> closed
//! ```

use std::future::{Future, pending};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::time::{Instant, sleep, sleep_until, timeout};

use super::{HANDSHAKE_TIMEOUT, Seen, authorize};
use crate::detect::{self, Detected, Look, Outcome, Patience, http, tls};
use crate::downstream::ConnInfo;
use crate::failure::{Failure, FailureKind, Retry, Stage};
use crate::http::filter::{Act, Filter};
use crate::l4::{self, Dialled};
use crate::runtime::snapshot::{ChainHandle, TcpHandle, TerminalHandle};
use crate::stream::{Stream, Unanswered, rtt};
use crate::worker::Worker;

/// Who speaks first has bytes on their way when we look: ours is the workload itself, or a peer that has them in its hands.
/// It saves a connection that would go unused, and is all that a conversation that the server opens waits for, once.
const GRACE: Duration = Duration::from_millis(1);
/// Before a server is heard whose words would be plain text for a client about to begin TLS: such a client has spoken after
/// so long, or after three round trips, whichever is longer.
const HOLD: Duration = Duration::from_millis(20);
const ROUND_TRIPS: u32 = 3;
/// A server that has begun with what may become HTTP goes on at once, or it is none.
const UNFINISHED: Duration = Duration::from_secs(1);
/// Where the kernel does not tell the round trip: of a host in the same region.
const UNKNOWN_ROUND_TRIP: Duration = Duration::from_millis(15);

/// The chain of a connection on which the client stays silent, if there is one to race for.
pub(super) fn chain(worker: &Worker, info: &ConnInfo) -> Option<Arc<ChainHandle>> {
    // A source with a sidecar speaks first: its ClientHello is waited for, or the server would answer it in plain text.
    if worker.connections.is_sidecar(info.source.ip()) && takes_tls(info) {
        return None;
    }
    let found = info.chosen(&info.listener)?;
    (found.tls.is_none() && matches!(found.terminal, TerminalHandle::Tcp(_))).then(|| found.clone())
}

fn takes_tls(info: &ConnInfo) -> bool {
    info.listener.chains.iter().any(|chain| chain.tls.is_some())
}

/// Whether what a request may do depends on what it is.
fn judges_requests(info: &ConnInfo) -> bool {
    info.listener.chains.iter().any(|chain| match &chain.terminal {
        TerminalHandle::Http(http) => http.filters.iter().any(Filter::judges),
        TerminalHandle::Tcp(_) => false,
    })
}

fn takes_http(info: &ConnInfo) -> bool {
    info.listener.chains.iter().any(|chain| matches!(chain.terminal, TerminalHandle::Http(_)))
}

/// What the first bytes are; `silent` is the chain of a client that says nothing, if it may.
pub(super) async fn first_bytes(
    worker: &Rc<Worker>,
    info: &mut ConnInfo,
    mut stream: Unanswered,
    look: Look,
    silent: Option<Arc<ChainHandle>>,
) -> Result<Seen, Failure> {
    let started = Instant::now();
    let Some(chain) = silent else {
        return match listen(info, stream, look, Some(started + HANDSHAKE_TIMEOUT)).await? {
            Listened::Client(seen) => Ok(seen),
            Listened::Nothing(_) => {
                let detail = format!("not a byte came for {HANDSHAKE_TIMEOUT:?}");
                Err(Failure::downstream(Stage::Detect, FailureKind::RequestTimeout, detail))
            }
        };
    };
    let name = info.listener.clone();
    let speakers = &worker.connections.speakers;
    let remembered = speakers.expects_server(name.name());
    // A server's words would be plain text for a client that is about to begin TLS: they are held back.
    let held = look == Look::Everything && takes_tls(info);
    let mut until = started + if held { HOLD } else { GRACE };
    if !remembered {
        match listen(info, stream, look, Some(until)).await? {
            Listened::Client(seen) => {
                speakers.client(name.name());
                return Ok(seen);
            }
            Listened::Nothing(still) => stream = still,
        }
    }
    if held {
        until =
            started + HOLD.max(stream.tcp().and_then(rtt::of).unwrap_or(UNKNOWN_ROUND_TRIP) * ROUND_TRIPS);
    }
    if held && !remembered {
        match listen(info, stream, look, Some(until)).await? {
            Listened::Client(seen) => {
                speakers.client(name.name());
                return Ok(seen);
            }
            Listened::Nothing(still) => stream = still,
        }
    }
    let race = Race { look, held: held.then_some(until), remembered };
    let seen = race.run(worker, info, &chain, stream).await?;
    match seen.server_first {
        true => speakers.server(name.name()),
        false => speakers.client(name.name()),
    }
    worker.process.metrics.count_race(seen.server_first);
    Ok(seen)
}

/// How listening to the client alone ended.
enum Listened {
    Client(Seen),
    Nothing(Unanswered),
}

/// Until there is a verdict, or `first` has passed without a byte.
async fn listen(
    info: &ConnInfo,
    stream: Unanswered,
    look: Look,
    first: Option<Instant>,
) -> Result<Listened, Failure> {
    Ok(match detect::detect(stream, look, Patience { first, rest: HANDSHAKE_TIMEOUT }).await? {
        Outcome::Decided(Detected::Unclear, stream) => Listened::Client(unclear(info, stream)?),
        Outcome::Decided(detected, stream) => Listened::Client(Seen::of(detected, stream)),
        Outcome::Slow(stream) if look == Look::Everything && tls::begins(stream.peeked()) => {
            return Err(detect::too_slow(&stream));
        }
        Outcome::Slow(stream) => Listened::Client(unclear(info, stream)?),
        Outcome::Silent(stream) => Listened::Nothing(stream),
    })
}

/// What a server might yet take for a request is opaque, but not where requests are judged: policy would be gone around.
fn unclear(info: &ConnInfo, stream: Unanswered) -> Result<Seen, Failure> {
    if !judges_requests(info) {
        return Ok(Seen::of(Detected::Opaque, stream));
    }
    let detail = format!(
        "it cannot be told whether the first {} bytes are HTTP, and {} has policy for requests; declare the port's protocol \
         if they are not",
        stream.peeked().len(),
        info.listener.name()
    );
    Err(Failure::downstream(Stage::Detect, FailureKind::DownstreamProtocol, detail))
}

/// Who speaks first.
struct Race {
    look: Look,
    /// The server is not heard before.
    held: Option<Instant>,
    /// Servers were heard first here.
    remembered: bool,
}

impl Race {
    /// Dials, and waits for whoever speaks first.
    async fn run(
        self,
        worker: &Rc<Worker>,
        info: &mut ConnInfo,
        chain: &Arc<ChainHandle>,
        mut stream: Unanswered,
    ) -> Result<Seen, Failure> {
        info.chain = chain.clone();
        let tcp = bytes_of(chain)?;
        let quiet = tcp.config.quiet();
        if let Err(denied) = authorize::connection(info) {
            // Nothing is dialled for it. But a request may be allowed where bytes are not: only the client can tell.
            if !takes_http(info) {
                return Err(denied);
            }
            let first = (!quiet.is_zero()).then(|| Instant::now() + quiet);
            return match listen(info, stream, self.look, first).await? {
                Listened::Client(seen) => Ok(seen),
                Listened::Nothing(_) => Err(denied),
            };
        }
        let info = &*info;
        let mut server =
            Server { dialling: Box::pin(l4::dial(worker, info, tcp)), dialled: None, said: BytesMut::new() };
        let said = tokio::select! {
            biased;
            said = spoke(&mut stream) => said,
            () = server.speaks(self.held, self.remembered) => {
                if judges_requests(info) && http::classify_server(&server.said) != http::Words::Other {
                    // It may still read what the client has to say.
                    return Err(server.ended().await);
                }
                let early = Some(server.upstream().await?);
                return Ok(Seen { detected: Some(Detected::Opaque), stream, early, server_first: true });
            }
            () = sleep(quiet), if !quiet.is_zero() => {
                if tcp.config.max_duration == Some(quiet) {
                    return Err(l4::outlived(Stage::Detect));
                }
                let detail = format!("neither side said anything for {quiet:?}");
                return Err(Failure::local(Stage::Detect, FailureKind::IdleTimeout(408), detail));
            }
        };
        let seen = match listen(info, Unanswered::rewound(said, stream), self.look, None).await? {
            Listened::Client(seen) => seen,
            Listened::Nothing(stream) => Seen::of(Detected::Opaque, stream),
        };
        // Whatever else it is, the upstream has had nothing of it and goes unused, or did not answer and was not needed.
        let early = match seen.detected {
            Some(Detected::Opaque) => Some(l4::while_there(&seen.stream, server.upstream()).await?),
            _ => None,
        };
        Ok(Seen { early, ..seen })
    }
}

/// The server's side of a race.
struct Server<'d> {
    dialling: Pin<Box<dyn Future<Output = Result<Dialled, Failure>> + 'd>>,
    dialled: Option<Result<Dialled, Failure>>,
    /// Words that were read and decided nothing yet.
    said: BytesMut,
}

impl Server<'_> {
    /// Ready when the server has said what no server of HTTP begins with, or has ended; or when there is none, and the
    /// client has had its time. A server that speaks HTTP says nothing about what its client will speak, and a client that
    /// pauses would be taken for bytes, without routes, policy and sanitised headers. Cancelled without loss.
    async fn speaks(&mut self, held: Option<Instant>, remembered: bool) {
        self.answers().await;
        let Some(Ok(Dialled { upstream, .. })) = &mut self.dialled else {
            // A request would be answered with the reason, and perhaps by somebody else.
            return if !remembered {
                sleep(HANDSHAKE_TIMEOUT).await
            };
        };
        if let Some(held) = held {
            sleep_until(held).await;
        }
        loop {
            match http::classify_server(&self.said) {
                http::Words::Http => return pending().await,
                http::Words::Other => return,
                http::Words::NeedMore => {}
            }
            let begun = !self.said.is_empty();
            let more = detect::read_more(&mut upstream.stream, &mut self.said);
            let came = if begun { timeout(UNFINISHED, more).await.unwrap_or(Ok(0)) } else { more.await };
            if !matches!(came, Ok(n) if n > 0) {
                return;
            }
        }
    }

    /// There is a connection, or there will be none. Cancelled without loss.
    async fn answers(&mut self) {
        if self.dialled.is_none() {
            self.dialled = Some(self.dialling.as_mut().await);
        }
    }

    /// Why a client is not waited for any longer.
    async fn ended(self) -> Failure {
        let detail = "the server ended the connection, and its client had said nothing";
        let ended = || Failure::upstream(Stage::Detect, FailureKind::UpstreamClosed, Retry::Never, detail);
        self.upstream().await.err().unwrap_or_else(ended)
    }

    /// The connection, with all that was said on it.
    async fn upstream(mut self) -> Result<Dialled, Failure> {
        let dialled = match self.dialled {
            Some(dialled) => dialled,
            None => self.dialling.as_mut().await,
        };
        let Dialled { mut upstream, pass } = dialled?;
        upstream.stream = Stream::rewound(self.said.freeze(), upstream.stream);
        Ok(Dialled { upstream, pass })
    }
}

fn bytes_of(chain: &ChainHandle) -> Result<&TcpHandle, Failure> {
    match &chain.terminal {
        TerminalHandle::Tcp(tcp) => Ok(tcp),
        TerminalHandle::Http(_) => {
            let detail = "only a TCP chain can be raced for";
            Err(Failure::local(Stage::Detect, FailureKind::Internal, detail))
        }
    }
}

impl Seen {
    fn of(detected: Detected, stream: Unanswered) -> Self {
        Self { detected: Some(detected), stream, early: None::<Dialled>, server_first: false }
    }
}

/// What a side says first; nothing if it ends or breaks, which shows itself again in whatever reads next. Reads instead of
/// waiting for the socket: under TLS what comes may be session tickets. Cancelled without loss.
async fn spoke(stream: &mut Unanswered) -> Bytes {
    let mut said = BytesMut::new();
    let _ = detect::read_more(stream, &mut said).await;
    said.freeze()
}
