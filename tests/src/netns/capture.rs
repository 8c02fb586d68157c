//! What crosses a host's network card: `tcpdump` into a file, and the TCP streams in it.
//!
//! A capture begins and ends with a datagram of our own that must be in the file: so it has seen everything in between, and an empty
//! result is no accident.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::process::Stdio;

use tokio::net::UdpSocket;

use super::{GATEWAY, Host, v4};
use crate::mesh::Process;
use crate::require;
use crate::wait::eventually;

/// RFC 863: nobody minds what is sent there.
const DISCARD: u16 = 9;

/// A running capture.
pub struct Capture {
    host: Host,
    directory: tempfile::TempDir,
    // Ends before its directory goes.
    _process: Process,
}

/// What was captured.
pub struct Wire {
    raw: Vec<u8>,
    /// Each direction of each TCP connection.
    pub flows: Vec<Flow>,
}

/// One direction of a TCP connection, put together.
pub struct Flow {
    /// The sender.
    pub from: SocketAddr,
    /// The receiver.
    pub to: SocketAddr,
    /// What was sent, without gaps and repetitions.
    pub bytes: Vec<u8>,
    next: u32,
    early: BTreeMap<u32, Vec<u8>>,
}

impl Host {
    /// Captures what passes this host's card and what `filter` (pcap's language) names.
    ///
    /// # Panics
    /// Without tcpdump: ask [`require::tool`] first.
    pub async fn capture(&self, filter: &str) -> Capture {
        let tcpdump = require::tool("tcpdump").expect("the test has asked for it");
        let directory = tempfile::tempdir().expect("a temporary directory");
        let mut command = self.command(tcpdump);
        command.args(["-i", "eth0", "-n", "-U", "--immediate-mode", "-Z", "root", "-w"]);
        command.arg(directory.path().join("pcap")).arg(format!("({filter}) or (udp port {DISCARD})"));
        command.stdin(Stdio::null());
        let process = Process::spawn(command, directory.path().join("log"));
        let capture = Capture { host: self.clone(), directory, _process: process };
        capture.mark().await;
        capture
    }
}

impl Capture {
    fn file(&self) -> PathBuf {
        self.directory.path().join("pcap")
    }

    /// Sends a datagram until it is in the file.
    async fn mark(&self) {
        let word = format!("outrigger-mark-{:016x}", fastrand::u64(..));
        eventually("the capture sees a datagram", || async {
            let text = word.clone();
            let sent = self.host.run(async move {
                let socket = UdpSocket::bind("0.0.0.0:0").await?;
                socket.send_to(text.as_bytes(), (v4(GATEWAY), DISCARD)).await
            });
            sent.await.map_err(|e| e.to_string())?;
            let raw = std::fs::read(self.file()).unwrap_or_default();
            if find(&raw, word.as_bytes()) { Ok(()) } else { Err(format!("{} bytes so far", raw.len())) }
        })
        .await;
    }

    /// Everything up to now.
    pub async fn so_far(&self) -> Wire {
        self.mark().await;
        Wire::parse(std::fs::read(self.file()).expect("tcpdump has made the file"))
    }
}

impl Wire {
    fn parse(raw: Vec<u8>) -> Self {
        let mut flows: Vec<Flow> = Vec::new();
        let mut rest = raw.get(24..).unwrap_or_default();
        while rest.len() >= 16 {
            let length = u32::from_le_bytes([rest[8], rest[9], rest[10], rest[11]]) as usize;
            let Some(packet) = rest.get(16..16 + length) else { break };
            rest = &rest[16 + length..];
            if let Some(segment) = Segment::parse(packet) {
                segment.put(&mut flows);
            }
        }
        Self { raw, flows }
    }

    /// Whether this text crossed the wire as it stands.
    pub fn contains(&self, text: &str) -> bool {
        let text = text.as_bytes();
        find(&self.raw, text) || self.flows.iter().any(|flow| find(&flow.bytes, text))
    }

    /// What was sent to or from a port.
    pub fn of_port(&self, port: u16) -> impl Iterator<Item = &Flow> {
        self.flows.iter().filter(move |flow| flow.from.port() == port || flow.to.port() == port)
    }

    /// The number of TLS records with application data to and from a port, when nothing but TLS went there.
    ///
    /// # Errors
    /// What was there beside TLS, or that there was nothing.
    pub fn only_tls(&self, port: u16) -> Result<usize, String> {
        let mut records = 0;
        for flow in self.of_port(port) {
            let mut rest = &flow.bytes[..];
            while let [kind, 3, 0..=3, high, low, ..] = rest {
                // RFC 8446 §5.1 and §5.2: change_cipher_spec to application_data, at most 2^14 + 256 bytes.
                let length = usize::from(u16::from_be_bytes([*high, *low]));
                if !(20..=23).contains(kind) || length > (1 << 14) + 256 {
                    break;
                }
                records += usize::from(*kind == 23);
                rest = rest.get(5 + length..).unwrap_or_default();
            }
            if !rest.is_empty() {
                let text = String::from_utf8_lossy(&rest[..rest.len().min(80)]).into_owned();
                return Err(format!("{} to {} is not TLS: {text:?}", flow.from, flow.to));
            }
        }
        if records == 0 { Err(format!("no TLS at all on port {port}")) } else { Ok(records) }
    }
}

/// A TCP segment.
struct Segment<'a> {
    from: SocketAddr,
    to: SocketAddr,
    sequence: u32,
    syn: bool,
    data: &'a [u8],
}

impl<'a> Segment<'a> {
    /// Ethernet, IP, TCP; `None` for anything else.
    fn parse(frame: &'a [u8]) -> Option<Self> {
        let packet = frame.get(14..)?;
        let (from, to, tcp): (IpAddr, IpAddr, &[u8]) = match frame.get(12..14)? {
            [0x08, 0x00] => {
                let head = usize::from(packet.first()? & 15) * 4;
                let length = usize::from(u16::from_be_bytes([*packet.get(2)?, *packet.get(3)?]));
                let address = |at: usize| Some(<[u8; 4]>::try_from(packet.get(at..at + 4)?).ok()?.into());
                (*packet.get(9)? == 6).then_some(())?;
                (address(12)?, address(16)?, packet.get(head..length)?)
            }
            [0x86, 0xdd] => {
                let length = usize::from(u16::from_be_bytes([*packet.get(4)?, *packet.get(5)?]));
                let address = |at: usize| Some(<[u8; 16]>::try_from(packet.get(at..at + 16)?).ok()?.into());
                (*packet.get(6)? == 6).then_some(())?;
                (address(8)?, address(24)?, packet.get(40..40 + length)?)
            }
            _ => return None,
        };
        let port = |at: usize| Some(u16::from_be_bytes([*tcp.get(at)?, *tcp.get(at + 1)?]));
        Some(Self {
            from: SocketAddr::new(from, port(0)?),
            to: SocketAddr::new(to, port(2)?),
            sequence: u32::from_be_bytes(tcp.get(4..8)?.try_into().ok()?),
            syn: tcp.get(13)? & 2 != 0,
            data: tcp.get(usize::from(tcp.get(12)? >> 4) * 4..)?,
        })
    }

    fn put(self, flows: &mut Vec<Flow>) {
        let start = if self.syn { self.sequence.wrapping_add(1) } else { self.sequence };
        let known = flows.iter().rposition(|flow| flow.from == self.from && flow.to == self.to);
        // A repeated SYN belongs to the flow that it began, another one begins a flow on the same ports.
        let known = known.filter(|at| !self.syn || flows[*at].next == start);
        let at = known.unwrap_or_else(|| {
            let (bytes, early) = (Vec::new(), BTreeMap::new());
            flows.push(Flow { from: self.from, to: self.to, bytes, next: start, early });
            flows.len() - 1
        });
        if !self.data.is_empty() {
            flows[at].take(start, self.data);
        }
    }
}

impl Flow {
    /// Sequence numbers wrap: what is less than half the circle behind has been seen.
    fn take(&mut self, sequence: u32, data: &[u8]) {
        let behind = self.next.wrapping_sub(sequence);
        if behind >= 1 << 31 {
            self.early.insert(sequence, data.to_vec());
            return;
        }
        let new = data.get(behind as usize..).unwrap_or_default();
        self.bytes.extend_from_slice(new);
        self.next = self.next.wrapping_add(new.len() as u32);
        let due = self.early.keys().copied().find(|early| self.next.wrapping_sub(*early) < 1 << 31);
        if let Some(due) = due {
            let data = self.early.remove(&due).unwrap_or_default();
            self.take(due, &data);
        }
    }
}

fn find(bytes: &[u8], text: &[u8]) -> bool {
    bytes.windows(text.len()).any(|window| window == text)
}

#[cfg(test)]
mod tests;
