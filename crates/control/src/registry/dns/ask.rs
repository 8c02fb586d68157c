//! Questions to a nameserver: over UDP, and over TCP where the answer is truncated (RFC 1035, 4.2; RFC 2782 for SRV).

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::{Name, RData, RecordType};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::timeout;

/// For one question to one server.
const PATIENCE: Duration = Duration::from_secs(3);
/// The longest answer over UDP.
const UDP: u16 = 1232;
/// More addresses of one name, and more targets of one SRV, are passed over.
const MOST: usize = 256;
/// A longer one is passed over.
const LONGEST_FILE: u64 = 1 << 20;

/// Somebody to call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Found {
    pub(super) at: SocketAddr,
    /// Relative to the others.
    pub(super) weight: u32,
}

/// What is known of a name.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) found: Vec<Found>,
    /// How long it holds.
    pub(super) ttl: Duration,
    /// Targets that cannot be called, and why.
    pub(super) lacking: Option<String>,
}

/// Why nothing is known of a name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Fault {
    /// That is the answer: there is none.
    None(String),
    /// There is no answer.
    Silent(String),
}

/// Whom to ask.
pub(super) struct Resolver {
    servers: Vec<SocketAddr>,
}

/// A whole name.
pub(super) fn name(text: &str) -> Option<Name> {
    let mut name = Name::from_ascii(text).ok().filter(|name| name.num_labels() > 0)?;
    name.set_fqdn(true);
    Some(name)
}

impl Resolver {
    /// Reads `/etc/resolv.conf` where no servers are named. Blocks.
    pub(super) fn open(mut servers: Vec<SocketAddr>) -> Result<Self, String> {
        let file = std::path::Path::new("/etc/resolv.conf");
        if servers.is_empty() && std::fs::metadata(file).is_ok_and(|file| file.len() <= LONGEST_FILE) {
            let text = std::fs::read_to_string(file).unwrap_or_default();
            let of = |line: &str| line.trim().strip_prefix("nameserver")?.trim().parse::<IpAddr>().ok();
            servers = text.lines().filter_map(of).take(3).map(|ip| SocketAddr::new(ip, 53)).collect();
        }
        match servers.is_empty() {
            true => {
                Err("there is no nameserver to ask: write servers, or nameserver in /etc/resolv.conf"
                    .to_owned())
            }
            false => Ok(Self { servers }),
        }
    }

    /// Who serves a name, by its addresses or by SRV, and for how long that holds.
    pub(super) async fn look_up(&self, text: &str, port: Option<u16>) -> Result<Answer, Fault> {
        let name = name(text).ok_or_else(|| Fault::None(format!("{text:?} is no name of DNS")))?;
        let (mut found, ttl, lacking) = match port {
            Some(port) => {
                let (addresses, ttl) = self.addresses(&name).await?;
                let at = |ip| Found { at: SocketAddr::new(ip, port), weight: 100 };
                (addresses.into_iter().map(at).collect(), ttl, None)
            }
            None => self.targets(&name).await?,
        };
        found.sort_by_key(|found| found.at);
        found.dedup_by_key(|found| found.at);
        Ok(Answer { found, ttl: Duration::from_secs(ttl.into()), lacking })
    }

    /// Both kinds. One that fails is no answer: half of the addresses would take the other half away.
    async fn addresses(&self, name: &Name) -> Result<(Vec<IpAddr>, u32), Fault> {
        let (v4, v6) = tokio::join!(self.ask(name, RecordType::A), self.ask(name, RecordType::AAAA));
        let (mut all, mut ttl) = (Vec::new(), u32::MAX);
        for record in [v4?, v6?].iter().flat_map(|message| &message.answers) {
            let ip = match &record.data {
                RData::A(a) => IpAddr::V4(a.0),
                RData::AAAA(aaaa) => IpAddr::V6(aaaa.0),
                // An alias holds for its own time, too.
                RData::CNAME(_) => {
                    ttl = ttl.min(record.ttl);
                    continue;
                }
                _ => continue,
            };
            ttl = ttl.min(record.ttl);
            all.push(ip);
        }
        all.truncate(MOST);
        match all.is_empty() {
            true => Err(Fault::None(format!("{name} has no address"))),
            false => Ok((all, ttl)),
        }
    }

    /// The targets of the lowest priority: the others are for when none of these can be reached, which nobody knows here. One that
    /// is not there is passed over; one that nobody answers for is no answer, or the others would have its share.
    async fn targets(&self, name: &Name) -> Result<(Vec<Found>, u32, Option<String>), Fault> {
        let answer = self.ask(name, RecordType::SRV).await?;
        let mut all: Vec<_> = answer
            .answers
            .iter()
            .filter_map(|record| match &record.data {
                RData::SRV(srv) => Some((srv, record.ttl)),
                _ => None,
            })
            // RFC 2782: a target of "." says that there is none.
            .filter(|(srv, _)| !srv.target.is_root() && srv.port > 0)
            .collect();
        let first = all.iter().map(|(srv, _)| srv.priority).min();
        all.retain(|(srv, _)| Some(srv.priority) == first);
        all.truncate(MOST);
        let mut ttl = all.iter().map(|(_, ttl)| *ttl).min().unwrap_or_default();
        let (mut found, mut lacking) = (Vec::new(), Vec::new());
        for (srv, _) in all {
            let (addresses, of_target) = match self.addresses(&srv.target).await {
                Ok(answer) => answer,
                Err(Fault::None(why)) => {
                    lacking.push(why);
                    continue;
                }
                Err(silent) => return Err(silent),
            };
            ttl = ttl.min(of_target);
            let weight = u32::from(srv.weight).max(1);
            found.extend(addresses.into_iter().map(|ip| Found { at: SocketAddr::new(ip, srv.port), weight }));
        }
        match found.is_empty() {
            true if lacking.is_empty() => Err(Fault::None(format!("{name} has no SRV record with a target"))),
            true => Err(Fault::None(format!("{name} has no target that is there: {}", lacking.join("; ")))),
            false => Ok((found, ttl, (!lacking.is_empty()).then(|| lacking.join("; ")))),
        }
    }

    /// An answer of one of the servers.
    async fn ask(&self, name: &Name, kind: RecordType) -> Result<Message, Fault> {
        let mut failures = Vec::new();
        for server in &self.servers {
            let asked = timeout(PATIENCE, ask_at(*server, name, kind)).await;
            match asked.unwrap_or_else(|_| Err(format!("no answer within {} s", PATIENCE.as_secs()))) {
                Ok(answer) if answer.response_code == ResponseCode::NoError => return Ok(answer),
                // That is an answer: the others would say the same.
                Ok(answer) if answer.response_code == ResponseCode::NXDomain => {
                    return Err(Fault::None(format!("{name}: there is no such name (NXDOMAIN)")));
                }
                Ok(answer) => failures.push(format!("{server}: {}", answer.response_code)),
                Err(why) => failures.push(format!("{server}: {why}")),
            }
        }
        Err(Fault::Silent(format!("{name} {kind}: no nameserver answers ({})", failures.join("; "))))
    }
}

async fn ask_at(server: SocketAddr, name: &Name, kind: RecordType) -> Result<Message, String> {
    // Who cannot see the question must not know it.
    let mut id = [0; 2];
    aws_lc_rs::rand::fill(&mut id).map_err(|_| "there is no randomness".to_owned())?;
    let mut question = Message::new(u16::from_ne_bytes(id), MessageType::Query, OpCode::Query);
    question.metadata.recursion_desired = true;
    question.add_query(Query::query(name.clone(), kind));
    let mut edns = Edns::new();
    edns.set_max_payload(UDP);
    question.edns = Some(edns);
    let bytes = question.to_vec().map_err(|error| error.to_string())?;
    let answer = over_udp(server, &question, &bytes).await?;
    if answer.truncation { over_tcp(server, &question, &bytes).await } else { Ok(answer) }
}

/// From a port that the kernel picks; what does not belong to the question is somebody else's.
async fn over_udp(server: SocketAddr, question: &Message, bytes: &[u8]) -> Result<Message, String> {
    let failed = |error: std::io::Error| error.to_string();
    let any: SocketAddr = if server.is_ipv4() { ([0, 0, 0, 0], 0).into() } else { ([0u16; 8], 0).into() };
    let socket = UdpSocket::bind(any).await.map_err(failed)?;
    socket.connect(server).await.map_err(failed)?;
    socket.send(bytes).await.map_err(failed)?;
    let mut buffer = vec![0; 4096];
    loop {
        let length = socket.recv(&mut buffer).await.map_err(failed)?;
        match Message::from_vec(&buffer[..length]) {
            Ok(answer) if is_of(&answer, question) => return Ok(answer),
            _ => {}
        }
    }
}

async fn over_tcp(server: SocketAddr, question: &Message, bytes: &[u8]) -> Result<Message, String> {
    let asked = async {
        let mut stream = TcpStream::connect(server).await?;
        stream.write_u16(bytes.len() as u16).await?;
        stream.write_all(bytes).await?;
        let mut answer = vec![0; usize::from(stream.read_u16().await?)];
        stream.read_exact(&mut answer).await?;
        Ok::<_, std::io::Error>(answer)
    };
    let bytes = asked.await.map_err(|error| error.to_string())?;
    let answer = Message::from_vec(&bytes).map_err(|error| format!("the answer cannot be read: {error}"))?;
    if is_of(&answer, question) { Ok(answer) } else { Err("the answer is of another question".to_owned()) }
}

fn is_of(answer: &Message, question: &Message) -> bool {
    answer.id == question.id
        && answer.message_type == MessageType::Response
        && answer.queries == question.queries
}
