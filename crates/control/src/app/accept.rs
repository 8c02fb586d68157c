//! The accept loop of every listener: takes what comes, gives it a place at the [`Gate`], and serves it in a task of its own,
//! handshake included. Nothing that a peer does or leaves undone holds up the next accept.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use outrigger_telemetry::{Drain, listen};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::task::JoinSet;

use super::gate::{Gate, Source, Ticket};

/// After an accept error such as EMFILE: retrying at once would only burn the CPU.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// A listening socket.
pub(super) trait Listen: Send + 'static {
    type Io: Send + 'static;
    fn accept(&mut self) -> impl Future<Output = io::Result<(Self::Io, Peer)>> + Send;
}

/// The other end, before it has said anything.
#[derive(Debug, Clone, Copy)]
pub(super) enum Peer {
    Remote(SocketAddr),
    /// A process of this user on this host, as the kernel knows it (`SO_PEERCRED`).
    Local {
        uid: u32,
    },
}

impl Peer {
    fn source(self) -> Source {
        match self {
            Self::Remote(remote) => remote.ip().into(),
            Self::Local { uid } => Source::User(uid),
        }
    }

    /// Its address; a process of this host has none.
    pub(super) fn remote(self) -> SocketAddr {
        match self {
            Self::Remote(remote) => remote,
            Self::Local { .. } => SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0),
        }
    }
}

impl Listen for TcpListener {
    type Io = TcpStream;
    async fn accept(&mut self) -> io::Result<(TcpStream, Peer)> {
        let (stream, remote) = listen::accept(self).await?;
        Ok((stream, Peer::Remote(remote)))
    }
}

impl Listen for UnixListener {
    type Io = UnixStream;
    async fn accept(&mut self) -> io::Result<(UnixStream, Peer)> {
        let (stream, _) = Self::accept(self).await?;
        let who = stream.peer_cred()?;
        Ok((stream, Peer::Local { uid: who.uid() }))
    }
}

/// How the log and the history name a user of this host: `root (uid 0)`, or only the number where `/etc/passwd` has no name
/// for it.
pub(crate) fn user(uid: u32) -> String {
    let passwd = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
    let name = passwd.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)?.parse() == Ok(uid)).then_some(name)
    });
    match name {
        Some(name) => format!("{name} (uid {uid})"),
        None => format!("uid {uid}"),
    }
}

/// Serves until the drain begins; connections then have `linger` to end.
pub(super) async fn serve<L, F, C>(
    mut listener: L,
    gate: Gate,
    drain: Drain,
    linger: Duration,
    mut connection: F,
) where
    L: Listen,
    F: FnMut(L::Io, Peer, Arc<Ticket>) -> C,
    C: Future<Output = ()> + Send + 'static,
{
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            () = drain.draining() => break,
            Some(_) = connections.join_next(), if !connections.is_empty() => continue,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((io, peer)) => {
                let ticket = Arc::new(gate.admit(peer.source()));
                let work = connection(io, peer, ticket.clone());
                connections.spawn(async move {
                    tokio::select! {
                        () = work => {}
                        () = ticket.evicted() => tracing::debug!(?peer, "a silent connection made room for another"),
                    }
                });
            }
            Err(error) => {
                tracing::warn!(%error, "accept failed; going on in 50 ms");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    drop(listener);
    let all = async { while connections.join_next().await.is_some() {} };
    // What is left is cut when the set is dropped.
    let _ = tokio::time::timeout(linger, all).await;
}
