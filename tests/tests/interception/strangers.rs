//! Strangers who write their packets themselves: nothing that they send comes past the sidecar.

use std::io::ErrorKind;
use std::mem::MaybeUninit;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::time::Duration;

use outrigger_tests::app::greeter;
use outrigger_tests::netns::Net;
use outrigger_tests::require;
use socket2::{Domain, Protocol, SockAddr, Socket, Type};
use tokio::net::{TcpSocket, TcpStream};

use crate::BINARY;

const ACK: u8 = 0x10;

/// One segment with a signature (RFC 2385) that nobody asked for: who listens drops it without a word, where it would reset any
/// other that opens nothing.
fn signed(from: SocketAddr, to: SocketAddr, flags: u8) -> Vec<u8> {
    let mut segment = Vec::with_capacity(40);
    segment.extend_from_slice(&from.port().to_be_bytes());
    segment.extend_from_slice(&to.port().to_be_bytes());
    segment.extend_from_slice(&1_u32.to_be_bytes());
    segment.extend_from_slice(&1_u32.to_be_bytes());
    // Ten words of header, a window, a checksum, nothing urgent; the option and two that fill it up.
    segment.extend_from_slice(&[10 << 4, flags, 0xff, 0xff, 0, 0, 0, 0]);
    segment.extend_from_slice(&[19, 18]);
    segment.extend_from_slice(&[7; 16]);
    segment.extend_from_slice(&[1, 1]);
    let sum = checksum(from.ip(), to.ip(), &segment);
    segment[16..18].copy_from_slice(&sum.to_be_bytes());
    segment
}

/// RFC 9293, section 3.1, with the pseudo-header of either family.
fn checksum(from: IpAddr, to: IpAddr, segment: &[u8]) -> u16 {
    let mut all = Vec::new();
    for address in [from, to] {
        match address {
            IpAddr::V4(address) => all.extend_from_slice(&address.octets()),
            IpAddr::V6(address) => all.extend_from_slice(&address.octets()),
        }
    }
    let length = u16::try_from(segment.len()).expect("it is short");
    all.extend_from_slice(&[0, 6]);
    all.extend_from_slice(&length.to_be_bytes());
    all.extend_from_slice(segment);
    let words = all.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0)));
    let sum: u32 = words.sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    !u16::try_from((folded & 0xffff) + (folded >> 16)).expect("it is folded")
}

fn send_raw(from: SocketAddr, to: SocketAddr, segment: &[u8]) {
    let socket = Socket::new(Domain::for_address(to), Type::RAW, Some(Protocol::TCP)).expect("root may");
    socket.bind(&SockAddr::from(SocketAddr::new(from.ip(), 0))).expect("it is ours");
    let sent = socket.send_to(segment, &SockAddr::from(SocketAddr::new(to.ip(), 0)));
    assert_eq!(sent.expect("it is sent"), segment.len());
    // Of no use but that nobody else is waited for.
    let _ = socket.set_read_timeout(Some(Duration::from_millis(1)));
    let _ = socket.recv(&mut [MaybeUninit::uninit(); 1]);
}

async fn connect(from: SocketAddr, to: SocketAddr) -> std::io::Result<TcpStream> {
    let socket = if to.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    socket.bind(from)?;
    tokio::time::timeout(Duration::from_secs(5), socket.connect(to)).await?
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flow_that_begins_in_its_middle_is_not_opened_past_the_sidecar() {
    if !require::netns() || require::tool("nft").is_none() {
        return;
    }
    for mode in ["redirect", "tproxy"] {
        let net = Net::new();
        let (host, stranger) = (net.host("host"), net.host("stranger"));
        host.ask(Path::new(BINARY), &["intercept", "apply", "--mode", mode]).unwrap();
        for (own, address) in stranger.addresses().into_iter().zip(host.addresses()) {
            let to = SocketAddr::new(address, 8080);
            host.run(greeter(to)).await;
            for flags in [None, Some(ACK), Some(0)] {
                let from = SocketAddr::new(own, 40_000 + u16::from(flags.unwrap_or(0xff)));
                let tried = stranger.run(async move {
                    if let Some(flags) = flags {
                        send_raw(from, to, &signed(from, to, flags));
                    }
                    connect(from, to).await
                });
                // What is intercepted is the sidecar's, and there is none.
                let tried = tried.await.map(drop).map_err(|error| error.kind());
                assert_eq!(tried, Err(ErrorKind::ConnectionRefused), "{mode}, {flags:?}, {from} to {to}");
            }
        }
    }
}
