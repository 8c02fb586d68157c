//! The kernel's estimate of a connection's round trip (`tcp_info.tcpi_rtt`), asked for over `sock_diag(7)`: reading it from
//! the socket would take `unsafe` code, and it is wanted only where a client stays silent, and for the first
//! connections with an endpoint.
//!
//! One datagram each way, answered by the kernel before `send` returns; some ten microseconds, no privilege.

use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::TcpStream;

const AF_NETLINK: i32 = 16;
const NETLINK_SOCK_DIAG: i32 = 4;
const SOCK_DIAG_BY_FAMILY: u16 = 20;
const NLM_F_REQUEST: u16 = 1;
const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;
const IPPROTO_TCP: u8 = 6;
const INET_DIAG_INFO: u16 = 2;
/// `struct nlmsghdr`.
const HEADER: usize = 16;
/// `struct inet_diag_msg`.
const MESSAGE: usize = 72;
/// Of `tcpi_rtt`, in microseconds, in `struct tcp_info`.
const RTT_AT: usize = 68;

/// The round trip of a connection, as far as the kernel knows it.
pub(crate) fn of(stream: &TcpStream) -> Option<Duration> {
    if !cfg!(target_os = "linux") {
        return None;
    }
    let (local, peer) = (stream.local_addr().ok()?, stream.peer_addr().ok()?);
    ask(local, peer)
        .inspect_err(|error| tracing::debug!(%error, %peer, "no round trip from the kernel"))
        .ok()
        .and_then(|answer| rtt(&answer))
}

/// What the kernel says about the socket with these addresses.
pub(super) fn ask(local: SocketAddr, peer: SocketAddr) -> io::Result<Vec<u8>> {
    let kind = Type::DGRAM.cloexec().nonblocking();
    let mut socket = Socket::new(Domain::from(AF_NETLINK), kind, Some(Protocol::from(NETLINK_SOCK_DIAG)))?;
    socket.write_all(&request(local, peer))?;
    let mut answer = vec![0; 4096];
    let n = socket.read(&mut answer)?;
    answer.truncate(n);
    Ok(answer)
}

/// `struct inet_diag_msg` and what follows it; an error message, or anything else, has none.
pub(super) fn message(answer: &[u8]) -> Option<&[u8]> {
    (short(answer, 4)? == SOCK_DIAG_BY_FAMILY).then(|| answer.get(HEADER..))?
}

fn short(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

/// `struct nlmsghdr` and `struct inet_diag_req_v2`.
fn request(local: SocketAddr, peer: SocketAddr) -> Vec<u8> {
    let family = if local.is_ipv4() { AF_INET } else { AF_INET6 };
    let mut out = Vec::with_capacity(72);
    out.extend_from_slice(&72_u32.to_ne_bytes());
    out.extend_from_slice(&SOCK_DIAG_BY_FAMILY.to_ne_bytes());
    out.extend_from_slice(&NLM_F_REQUEST.to_ne_bytes());
    out.extend_from_slice(&[0; 8]); // sequence, port: of no matter
    out.extend_from_slice(&[family, IPPROTO_TCP, 1 << (INET_DIAG_INFO - 1), 0]);
    out.extend_from_slice(&u32::MAX.to_ne_bytes()); // in any state
    out.extend_from_slice(&local.port().to_be_bytes());
    out.extend_from_slice(&peer.port().to_be_bytes());
    for address in [local.ip(), peer.ip()] {
        let mut field = [0; 16];
        match address {
            IpAddr::V4(ip) => field[..4].copy_from_slice(&ip.octets()),
            IpAddr::V6(ip) => field.copy_from_slice(&ip.octets()),
        }
        out.extend_from_slice(&field);
    }
    out.extend_from_slice(&[0; 4]); // any interface
    out.extend_from_slice(&[0xff; 8]); // no cookie
    out
}

/// `tcpi_rtt` among the attributes of the answer.
fn rtt(answer: &[u8]) -> Option<Duration> {
    let mut rest = message(answer)?.get(MESSAGE..)?;
    loop {
        let length = usize::from(short(rest, 0)?);
        let attribute = rest.get(4..length)?;
        if short(rest, 2)? == INET_DIAG_INFO {
            let micros = u32::from_ne_bytes(attribute.get(RTT_AT..RTT_AT + 4)?.try_into().ok()?);
            return (micros > 0).then(|| Duration::from_micros(micros.into()));
        }
        rest = rest.get(length.next_multiple_of(4)..)?;
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    #[tokio::test]
    async fn the_kernel_knows_the_round_trip_of_a_connection() {
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let Ok(listener) = TcpListener::bind(address).await else { continue };
            let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
            let (server, _) = listener.accept().await.unwrap();
            for stream in [client, server] {
                let rtt = of(&stream).expect("an estimate from the handshake");
                assert!(rtt < Duration::from_secs(1), "{rtt:?} over loopback");
            }
        }
    }

    #[test]
    fn a_connection_that_is_not_there_has_none() {
        let nowhere = "192.0.2.1:9".parse().unwrap();
        assert_eq!(rtt(&ask(nowhere, nowhere).unwrap_or_default()), None);
        for broken in [&[][..], &[0; 20], &[0; 200]] {
            assert_eq!(rtt(broken), None);
        }
    }
}
