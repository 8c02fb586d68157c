//! Protocols in which the server speaks first: both sides race, and the first bytes from either decide.
//!
//! Only where a silent connection would be the TCP proxy's, after L4 authorization, and after a short time in which the
//! client had its chance. Each connection's own first bytes decide; nothing is remembered, so nothing can be poisoned.

use std::rc::Rc;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use tokio::io::AsyncReadExt;

use super::{ConnInfo, HANDSHAKE_TIMEOUT, Seen, authorize};
use crate::detect::{self, Detected, Look, Outcome, Patience};
use crate::failure::{Failure, FailureKind, Stage};
use crate::l4;
use crate::runtime::snapshot::{ChainHandle, TerminalHandle};
use crate::stream::Stream;
use crate::worker::Worker;

/// Of the first read from a server that speaks first.
const GREETING: usize = 4096;

/// The chain of a connection on which the client stays silent, if there is one to race for.
pub(super) fn chain(worker: &Worker, info: &ConnInfo) -> Option<Arc<ChainHandle>> {
    // A source with a sidecar speaks first: its ClientHello is waited for, or the server would answer it in plain text.
    if worker.connections.is_sidecar(info.source.ip()) && info.listener.chains.iter().any(|c| c.tls.is_some())
    {
        return None;
    }
    let found = info.chosen(&info.listener)?;
    (found.tls.is_none() && matches!(found.terminal, TerminalHandle::Tcp(_))).then(|| found.clone())
}

/// Dials, then waits for whoever speaks first.
pub(super) async fn race(
    worker: &Rc<Worker>,
    info: &mut ConnInfo,
    chain: Arc<ChainHandle>,
    stream: Stream,
) -> Result<Seen, Failure> {
    info.chain = chain.clone();
    authorize::connection(info)?;
    let TerminalHandle::Tcp(tcp) = &chain.terminal else {
        return Err(Failure::local(
            Stage::Detect,
            FailureKind::Internal,
            "only a TCP chain can be raced for",
        ));
    };
    let mut upstream = Box::pin(l4::dial(worker, info, tcp)).await?;
    let idle = tcp.config.idle_timeout;
    let greeting = tokio::select! {
        biased;
        () = detect::readable(&stream) => None,
        greeting = spoke(&mut upstream.stream) => Some(greeting),
        () = tokio::time::sleep(idle), if !idle.is_zero() => {
            let detail = format!("neither side said anything for {idle:?}");
            return Err(Failure::local(Stage::Detect, FailureKind::IdleTimeout, detail));
        }
    };
    if let Some(greeting) = greeting {
        upstream.stream = Stream::rewound(greeting, upstream.stream);
        return Ok(Seen { detected: Some(Detected::Opaque), stream, early: Some(upstream) });
    }
    let patience = Patience { first: None, rest: HANDSHAKE_TIMEOUT };
    match detect::detect(stream, Look::Everything, patience).await? {
        Outcome::Decided(detected, stream) => {
            // Whatever else wins, this upstream has had nothing of it and goes unused.
            let early = (detected == Detected::Opaque).then_some(upstream);
            Ok(Seen { detected: Some(detected), stream, early })
        }
        Outcome::Silent(stream) => {
            Ok(Seen { detected: Some(Detected::Opaque), stream, early: Some(upstream) })
        }
    }
}

/// What the server says first; nothing if it ends or breaks, which the tunnel will pass on. Reads instead of waiting for the
/// socket: under TLS what comes may be session tickets. Cancelled without loss.
async fn spoke(stream: &mut Stream) -> Bytes {
    let mut greeting = BytesMut::with_capacity(GREETING);
    // An error shows itself again in the tunnel.
    let _ = stream.read_buf(&mut greeting).await;
    greeting.freeze()
}
