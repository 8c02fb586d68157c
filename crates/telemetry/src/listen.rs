//! Listening on TCP. `[::]` is every address of this host, of whichever families it has.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::{TcpListener, TcpStream};

/// Connections that wait to be accepted.
const BACKLOG: i32 = 1024;

/// Binds and listens; port 0 takes a free one.
///
/// # Errors
/// What the system says.
pub fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    match open(address) {
        Err(error) if address.ip() == Ipv6Addr::UNSPECIFIED && is_no_family(&error) => {
            tracing::info!(%address, "this host has no IPv6: listening on IPv4 alone");
            open((Ipv4Addr::UNSPECIFIED, address.port()).into())
        }
        bound => bound,
    }
}

/// The next connection; a peer of IPv4 has its own address, not one of IPv6 that stands for it.
///
/// # Errors
/// What the system says.
pub async fn accept(listener: &TcpListener) -> io::Result<(TcpStream, SocketAddr)> {
    let (stream, peer) = listener.accept().await?;
    Ok((stream, SocketAddr::new(peer.ip().to_canonical(), peer.port())))
}

/// Every address at which a listener that was bound to this one is reached.
pub fn reached(bound: SocketAddr) -> impl Iterator<Item = SocketAddr> {
    let both = bound.ip() == IpAddr::from(Ipv6Addr::UNSPECIFIED);
    [bound].into_iter().chain(both.then(|| (Ipv4Addr::UNSPECIFIED, bound.port()).into()))
}

fn open(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    if address.is_ipv6() {
        // Whatever the host's default is (net.ipv6.bindv6only).
        socket.set_only_v6(false)?;
    }
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
}

/// As where IPv6 is turned off: at the boot, or for the interfaces.
fn is_no_family(error: &io::Error) -> bool {
    const EAFNOSUPPORT: i32 = 97;
    error.kind() == io::ErrorKind::AddrNotAvailable || error.raw_os_error() == Some(EAFNOSUPPORT)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_unspecified_address_of_ipv6_is_reached_by_both_families_and_knows_its_peers() {
        let listener = bind((Ipv6Addr::UNSPECIFIED, 0).into()).unwrap();
        let bound = listener.local_addr().unwrap();
        let mut own: Vec<IpAddr> = vec![Ipv4Addr::LOCALHOST.into()];
        if bound.is_ipv6() {
            own.push(Ipv6Addr::LOCALHOST.into());
            assert_eq!(reached(bound).count(), 2);
        }
        for own in own {
            let client = TcpStream::connect((own, bound.port())).await.unwrap();
            let (_, peer) = accept(&listener).await.unwrap();
            assert_eq!(peer, client.local_addr().unwrap(), "{own}");
        }
        let one = bind((Ipv4Addr::LOCALHOST, 0).into()).unwrap();
        assert_eq!(reached(one.local_addr().unwrap()).count(), 1);
    }
}
