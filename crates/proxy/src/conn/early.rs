//! Protocols in which the server speaks first: both sides race, and the first bytes from either decide.
//!
//! Only where a silent connection would be the TCP proxy's, after L4 authorization, and after a short time in which the
//! client had its chance. Each connection's own first bytes decide what it is; what is remembered is only that a server
//! was heard first, which saves that wait and decides nothing, so that there is nothing to poison.
//! (*) One millisecond; where plain text and mTLS share a port, max(20 ms, 3 RTT).
//!
//! ```text
//! wait (*) ──client speaks──> detected
//!   └─silent, or remembered─> authorize ─> dial ─> race ──client──> detected (the upstream goes unused, unless opaque)
//!                                                    └──server──> opaque
//! ```

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::time::{Instant, sleep_until};

use super::{ConnInfo, HANDSHAKE_TIMEOUT, Seen, authorize};
use crate::detect::{self, Detected, Look, Outcome, Patience};
use crate::failure::{Failure, FailureKind, Stage};
use crate::l4::{self, Upstream};
use crate::runtime::snapshot::{ChainHandle, TcpHandle, TerminalHandle};
use crate::stream::{Stream, rtt};
use crate::worker::Worker;

/// Who speaks first has bytes on their way when we look: ours is the workload itself, or a peer that has them in its hands.
/// It saves a connection that would go unused, and is all that a conversation that the server opens waits for, once.
const GRACE: Duration = Duration::from_millis(1);
/// Before a server is heard whose words would be plain text for a client about to begin TLS: such a client has spoken after
/// so long, or after three round trips, whichever is longer.
const HOLD: Duration = Duration::from_millis(20);
const ROUND_TRIPS: u32 = 3;
/// Where the kernel does not tell the round trip: of a host in the same region.
const UNKNOWN_ROUND_TRIP: Duration = Duration::from_millis(15);

/// Destinations of which something is remembered; beyond it the memory starts over.
const MAX_SPEAKERS: usize = 4096;
/// Counts are halved here, so that the present weighs more than the past.
const MAX_COUNT: u32 = 64;

/// Where servers were heard first, by the name of the listener.
#[derive(Default)]
pub struct Speakers(RefCell<HashMap<Box<str>, Heard>>);

/// Who spoke first, how often.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Heard {
    server: u32,
    client: u32,
}

impl Speakers {
    /// Whether the server is expected to speak first.
    fn expects_server(&self, listener: &str) -> bool {
        self.0.borrow().get(listener).is_some_and(|heard| heard.server > heard.client)
    }

    pub(super) fn server(&self, listener: &str) {
        let mut all = self.0.borrow_mut();
        if all.len() >= MAX_SPEAKERS && !all.contains_key(listener) {
            all.clear();
        }
        let heard = all.entry(listener.into()).or_default();
        heard.server += 1;
        heard.age();
    }

    /// Counts only where a server was heard before: of all others there is nothing to remember.
    fn client(&self, listener: &str) {
        if let Some(heard) = self.0.borrow_mut().get_mut(listener) {
            heard.client += 1;
            heard.age();
        }
    }
}

impl Heard {
    fn age(&mut self) {
        if self.server.max(self.client) >= MAX_COUNT {
            (self.server, self.client) = (self.server / 2, self.client / 2);
        }
    }
}

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

fn takes_http(info: &ConnInfo) -> bool {
    info.listener.chains.iter().any(|chain| matches!(chain.terminal, TerminalHandle::Http(_)))
}

/// What the first bytes are; `silent` is the chain of a client that says nothing, if it may.
pub(super) async fn first_bytes(
    worker: &Rc<Worker>,
    info: &mut ConnInfo,
    mut stream: Stream,
    look: Look,
    silent: Option<Arc<ChainHandle>>,
) -> Result<Seen, Failure> {
    let started = Instant::now();
    let Some(chain) = silent else {
        return match listen(stream, look, started + HANDSHAKE_TIMEOUT).await? {
            Outcome::Decided(detected, stream) => Ok(Seen::of(detected, stream)),
            Outcome::Silent(_) => {
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
        match listen(stream, look, until).await? {
            Outcome::Decided(detected, decided) => {
                speakers.client(name.name());
                return Ok(Seen::of(detected, decided));
            }
            Outcome::Silent(still) => stream = still,
        }
    }
    if held {
        until =
            started + HOLD.max(stream.tcp().and_then(rtt::of).unwrap_or(UNKNOWN_ROUND_TRIP) * ROUND_TRIPS);
    }
    if held && !remembered {
        match listen(stream, look, until).await? {
            Outcome::Decided(detected, decided) => {
                speakers.client(name.name());
                return Ok(Seen::of(detected, decided));
            }
            Outcome::Silent(still) => stream = still,
        }
    }
    let seen = race(worker, info, &chain, stream, look, held.then_some(until)).await?;
    match seen.server_first {
        true => speakers.server(name.name()),
        false => speakers.client(name.name()),
    }
    worker.shared.metrics.count_race(seen.server_first);
    Ok(seen)
}

async fn listen(stream: Stream, look: Look, first: Instant) -> Result<Outcome, Failure> {
    detect::detect(stream, look, Patience { first: Some(first), rest: HANDSHAKE_TIMEOUT }).await
}

/// Dials, then waits for whoever speaks first. The server is not heard before `held`.
async fn race(
    worker: &Rc<Worker>,
    info: &mut ConnInfo,
    chain: &Arc<ChainHandle>,
    mut stream: Stream,
    look: Look,
    held: Option<Instant>,
) -> Result<Seen, Failure> {
    info.chain = chain.clone();
    let tcp = bytes_of(chain)?;
    let idle = tcp.config.idle_timeout;
    if let Err(denied) = authorize::connection(info) {
        // Nothing is dialled for it. But a request may be allowed where bytes are not: only the client can tell.
        if !takes_http(info) {
            return Err(denied);
        }
        let first = (!idle.is_zero()).then(|| Instant::now() + idle);
        let patience = Patience { first, rest: HANDSHAKE_TIMEOUT };
        return match detect::detect(stream, look, patience).await? {
            Outcome::Decided(detected, stream) => Ok(Seen::of(detected, stream)),
            Outcome::Silent(_) => Err(denied),
        };
    }
    let mut upstream = Box::pin(l4::dial(worker, info, tcp)).await?;
    let greeting = tokio::select! {
        biased;
        said = spoke(&mut stream) => Err(said),
        greeting = async {
            if let Some(held) = held {
                sleep_until(held).await;
            }
            spoke(&mut upstream.stream).await
        } => Ok(greeting),
        () = tokio::time::sleep(idle), if !idle.is_zero() => {
            let detail = format!("neither side said anything for {idle:?}");
            return Err(Failure::local(Stage::Detect, FailureKind::IdleTimeout, detail));
        }
    };
    let said = match greeting {
        Ok(greeting) => {
            upstream.stream = Stream::rewound(greeting, upstream.stream);
            let early = Some(upstream);
            return Ok(Seen { detected: Some(Detected::Opaque), stream, early, server_first: true });
        }
        Err(said) => said,
    };
    let patience = Patience { first: None, rest: HANDSHAKE_TIMEOUT };
    match detect::detect(Stream::rewound(said, stream), look, patience).await? {
        Outcome::Decided(detected, stream) => {
            // Whatever else wins, this upstream has had nothing of it and goes unused.
            let early = (detected == Detected::Opaque).then_some(upstream);
            Ok(Seen { early, ..Seen::of(detected, stream) })
        }
        Outcome::Silent(stream) => Ok(Seen { early: Some(upstream), ..Seen::of(Detected::Opaque, stream) }),
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
    fn of(detected: Detected, stream: Stream) -> Self {
        Self { detected: Some(detected), stream, early: None::<Upstream>, server_first: false }
    }
}

/// What a side says first; nothing if it ends or breaks, which shows itself again in whatever reads next. Reads instead of
/// waiting for the socket: under TLS what comes may be session tickets. Cancelled without loss.
async fn spoke(stream: &mut Stream) -> Bytes {
    let mut said = BytesMut::new();
    let _ = detect::read_more(stream, &mut said).await;
    said.freeze()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_is_expected_where_servers_were_heard_more_often_and_recently() {
        let speakers = Speakers::default();
        speakers.client("l");
        assert!(!speakers.expects_server("l"), "of clients alone nothing is remembered");
        assert!(speakers.0.borrow().is_empty());
        speakers.server("l");
        assert!(speakers.expects_server("l"));
        speakers.client("l");
        assert!(!speakers.expects_server("l"));
        (0..1000).for_each(|_| speakers.server("l"));
        (0..MAX_COUNT).for_each(|_| speakers.client("l"));
        assert!(!speakers.expects_server("l"), "a long past does not outweigh the present");
    }

    #[test]
    fn the_memory_is_bounded() {
        let speakers = Speakers::default();
        (0..2 * MAX_SPEAKERS).for_each(|n| speakers.server(&n.to_string()));
        assert!(speakers.0.borrow().len() <= MAX_SPEAKERS);
    }
}
