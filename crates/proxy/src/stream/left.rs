//! Whether a peer that has ended its side of a connection is still there to read. A FIN says the same of one that waits for its
//! answer (`nc -N`, BusyBox wget) and of one that has closed the connection; only the peer's own kernel knows. Where that is
//! ours, as for the application of a sidecar, it tells over `sock_diag(7)`: a socket that no process holds any more has no
//! inode.

use std::future::{Future, pending};
use std::net::SocketAddr;
use std::time::Duration;

use socket2::SockRef;
use tokio::io::Interest;
use tokio::net::TcpStream;
use tokio::time::sleep;

use super::{Stream, rtt};
use crate::listen::orig_dst;

/// Between looks: from soon, since the FIN leaves before the process lets go, to seldom, since a peer may go later without
/// another word.
const SOONEST: Duration = Duration::from_millis(1);
const SELDOM: Duration = Duration::from_secs(1);

/// Within `struct inet_diag_msg`.
const STATE_AT: usize = 1;
const INODE_AT: usize = 68;
/// FIN-WAIT-1, FIN-WAIT-2, TIME-WAIT and CLOSING, of `enum tcp_state`: the states of a socket that has sent its FIN first.
const HAS_ENDED: [u8; 4] = [4, 5, 6, 11];

/// A peer's end or reset, whatever it has sent before that nobody has read. Its end is told with what is urgent, which is never asked
/// for otherwise.
#[cfg(any(target_os = "linux", target_os = "android"))]
const ENDED: Interest = Interest::PRIORITY.add(Interest::ERROR);
#[cfg(not(any(target_os = "linux", target_os = "android")))]
const ENDED: Interest = Interest::ERROR;

/// Ends when the peer has gone, while nobody reads: by a reset, or by an end before which it has said nothing and behind which nobody is left.
/// What somebody has sent who is gone since is not lost.
pub(crate) async fn gone(stream: &Stream) {
    let Some(tcp) = stream.tcp() else { return pending().await };
    match tcp.ready(ENDED).await {
        Ok(ready) if !ready.is_error() => {}
        _ => return,
    }
    let silent = match tcp.peek(&mut [0]).await {
        // Of TLS, and of what was read ahead, there is something to send on.
        Ok(there) => there == 0 && matches!(stream, Stream::Tcp(_)),
        Err(_) => return,
    };
    tokio::select! {
        _ = tcp.ready(Interest::ERROR) => {}
        () = left(stream), if silent => {}
    }
}

/// Ends when the peer of this connection, which has ended its side, has gone; never if it cannot be known.
pub(crate) fn left(stream: &Stream) -> impl Future<Output = ()> + use<> {
    let views = stream.tcp().map(views).unwrap_or_default();
    async move {
        let mut pause = SOONEST;
        loop {
            match views.iter().flatten().find_map(|(own, to)| holds(*own, *to)) {
                Some(true) => sleep(pause).await,
                Some(false) => return,
                None => pending().await,
            }
            pause = SELDOM.min(2 * pause);
        }
    }
}

/// The addresses of a connection as its client may see them: interception translates that of the server.
fn views(tcp: &TcpStream) -> [Option<(SocketAddr, SocketAddr)>; 2] {
    let Ok(own) = tcp.peer_addr() else { return [None; 2] };
    let translated = orig_dst::translated(&SockRef::from(tcp), own.is_ipv6());
    [tcp.local_addr().ok(), translated].map(|to| Some((own, to?)))
}

/// Whether a process of this host holds the socket with these addresses, which has sent its FIN.
fn holds(own: SocketAddr, to: SocketAddr) -> Option<bool> {
    if !cfg!(target_os = "linux") {
        return None;
    }
    let message = rtt::ask(own, to).ok()?;
    let message = rtt::message(&message)?;
    HAS_ENDED.contains(message.get(STATE_AT)?).then(|| message.get(INODE_AT..INODE_AT + 4) != Some(&[0; 4]))
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;
    use tokio::time::timeout;

    use super::*;

    #[tokio::test]
    async fn a_peer_that_waits_is_told_from_one_that_is_gone() {
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let Ok(listener) = TcpListener::bind(address).await else { continue };
            let mut client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
            let mut server = listener.accept().await.unwrap().0;
            client.shutdown().await.unwrap();
            assert_eq!(server.read(&mut [0]).await.unwrap(), 0);
            let (own, to) = (server.peer_addr().unwrap(), server.local_addr().unwrap());
            assert_eq!(holds(own, to), Some(true));
            let gone = tokio::spawn(left(&Stream::Tcp(server)));
            drop(client);
            timeout(Duration::from_secs(10), gone).await.expect("it is found out").unwrap();
            assert_eq!(holds("192.0.2.1:9".parse().unwrap(), to), None, "nobody knows of others");
        }
    }
}
