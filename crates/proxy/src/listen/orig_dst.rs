//! Where a connection was going before it was sent to us.

use std::io;
use std::net::SocketAddr;

use socket2::SockRef;
use tokio::net::TcpStream;

/// How the original destination of a socket's connections is found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OriginalDst {
    /// The bound address is it: explicit mode.
    Bound(SocketAddr),
    /// The kernel remembers it: `redirect` (`SO_ORIGINAL_DST`).
    Redirected,
}

impl OriginalDst {
    /// The original destination of a connection.
    ///
    /// # Errors
    /// The connection was not redirected, or the system does not tell.
    pub fn of(self, tcp: &TcpStream) -> io::Result<SocketAddr> {
        match self {
            Self::Bound(address) => Ok(address),
            Self::Redirected => redirected(tcp),
        }
    }
}

#[cfg(target_os = "linux")]
fn redirected(tcp: &TcpStream) -> io::Result<SocketAddr> {
    let socket = SockRef::from(tcp);
    let address =
        if tcp.local_addr()?.is_ipv6() { socket.original_dst_v6() } else { socket.original_dst_v4() }?;
    address.as_socket().ok_or_else(|| io::Error::other("the original destination is no IP address"))
}

#[cfg(not(target_os = "linux"))]
fn redirected(_tcp: &TcpStream) -> io::Result<SocketAddr> {
    Err(io::Error::new(io::ErrorKind::Unsupported, "redirected connections exist only on Linux"))
}
