//! Where a connection was going before it was sent to us.

use std::io;
use std::net::SocketAddr;

use socket2::{SockRef, Socket};
use tokio::net::TcpStream;

/// How the original destination of a socket's connections is found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OriginalDst {
    /// The bound address is it: explicit mode.
    Bound(SocketAddr),
    /// The kernel knows it: it translated the address (`redirect`, `SO_ORIGINAL_DST`), or left it as it was (`tproxy`).
    Intercepted,
}

/// Where a connection was going.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Original {
    /// The address and port.
    pub address: SocketAddr,
    /// Nothing was translated (`tproxy`): replies, and what is sent on to the application, are in the names of the two ends.
    pub transparent: bool,
}

impl OriginalDst {
    /// The original destination of a connection; `bound` is where its listener is.
    ///
    /// # Errors
    /// The connection was not intercepted but made to the listener itself, which would be a loop; or the system does not tell.
    pub fn of(self, tcp: &TcpStream, bound: SocketAddr) -> io::Result<Original> {
        match self {
            Self::Bound(address) => Ok(Original { address, transparent: false }),
            Self::Intercepted => intercepted(tcp, bound),
        }
    }
}

#[cfg(target_os = "linux")]
fn intercepted(tcp: &TcpStream, bound: SocketAddr) -> io::Result<Original> {
    let local = tcp.local_addr()?;
    if local.port() != bound.port() {
        return Ok(Original { address: local, transparent: true });
    }
    // Without a translation there is nothing to tell (ENOENT, ENOPROTOOPT), or the address itself.
    let address = translated(&SockRef::from(tcp), local.is_ipv6()).filter(|address| *address != local);
    let address = address.ok_or_else(|| {
        io::Error::other(
            "it was not intercepted but made to this port itself; such a connection leads nowhere",
        )
    })?;
    // The scope of a link-local address is not part of what rules and registries compare.
    Ok(Original { address: SocketAddr::new(address.ip(), address.port()), transparent: false })
}

/// What the kernel says was the destination.
#[cfg(target_os = "linux")]
pub fn translated(socket: &Socket, v6: bool) -> Option<SocketAddr> {
    let original = if v6 { socket.original_dst_v6() } else { socket.original_dst_v4() };
    original.ok().and_then(|address| address.as_socket())
}

#[cfg(not(target_os = "linux"))]
pub fn translated(_: &Socket, _: bool) -> Option<SocketAddr> {
    None
}

#[cfg(not(target_os = "linux"))]
fn intercepted(_tcp: &TcpStream, _bound: SocketAddr) -> io::Result<Original> {
    Err(io::Error::new(io::ErrorKind::Unsupported, "intercepted connections exist only on Linux"))
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    #[tokio::test]
    async fn a_connection_to_the_port_itself_leads_nowhere() {
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let Ok(listener) = TcpListener::bind(address).await else { continue };
            let bound = listener.local_addr().unwrap();
            let _client = TcpStream::connect(bound).await.unwrap();
            let (tcp, _) = listener.accept().await.unwrap();
            let error = OriginalDst::Intercepted.of(&tcp, bound).unwrap_err();
            assert!(error.to_string().contains("not intercepted"), "{error}");
            // To a listener elsewhere nothing was translated: this is how tproxy looks.
            let elsewhere = SocketAddr::new(bound.ip(), 1);
            let kept = OriginalDst::Intercepted.of(&tcp, elsewhere).unwrap();
            assert_eq!(kept, Original { address: bound, transparent: true });
        }
    }
}
