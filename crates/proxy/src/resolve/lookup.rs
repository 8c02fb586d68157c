//! One lookup of a name: the hosts file, then both kinds of address from the resolvers that the workload has.
//!
//! That a name does not exist is an answer; that nobody says anything of use is a failure.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::path::PathBuf;
use std::time::Duration;

use hickory_proto::op::{Message, ResponseCode};
use hickory_proto::rr::{RData, RecordType};
use outrigger_model::resource::is_virtual;
use tokio::sync::Semaphore;

use crate::dns::message::{Query, Transport};
use crate::dns::upstream::Upstreams;

/// More addresses of one name are passed over.
const MOST: usize = 256;
/// Names that are asked for at once.
const MOST_LOOKUPS: usize = 64;
/// A longer hosts file is passed over.
const LONGEST_FILE: u64 = 1 << 20;

/// What a name has, in the order of the answer.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Addresses {
    /// IPv4.
    pub v4: Vec<Ipv4Addr>,
    /// IPv6, as far as this host has a way there.
    pub v6: Vec<Ipv6Addr>,
    /// For how long it may be kept; zero says nothing.
    pub ttl: Duration,
    /// The kind that nobody said anything of, and why.
    pub(super) missing: Option<(Kind, String)>,
}

/// A kind of address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    V4,
    V6,
}

impl Addresses {
    /// All, IPv4 first.
    pub fn iter(&self) -> impl Iterator<Item = IpAddr> + '_ {
        self.v4.iter().copied().map(IpAddr::from).chain(self.v6.iter().copied().map(IpAddr::from))
    }

    fn is_empty(&self) -> bool {
        self.v4.is_empty() && self.v6.is_empty()
    }

    /// The kind that is missing stays what it was. Where there was none of it before, none is missing: there are servers that
    /// cannot say of a name that it has no IPv6 address.
    pub(super) fn complete(&mut self, before: &Self) {
        match &self.missing {
            Some((Kind::V4, _)) if !before.v4.is_empty() => self.v4.clone_from(&before.v4),
            Some((Kind::V6, _)) if !before.v6.is_empty() => self.v6.clone_from(&before.v6),
            _ => self.missing = None,
        }
    }
}

/// How a lookup ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// It has addresses.
    Found(Addresses),
    /// It has none, say those who know.
    Absent(String),
    /// Nobody says.
    Failed(String),
}

/// Whom to ask.
pub struct Lookup {
    upstreams: Upstreams,
    search: Vec<String>,
    hosts: PathBuf,
    /// Many names at once wait for each other, and leave resolvers to the workload.
    permits: Semaphore,
}

/// The answer for one kind of address.
struct Part {
    addresses: Vec<IpAddr>,
    ttl: Duration,
}

impl Lookup {
    /// `search` are the domains of names without a dot, `hosts` is the file whose word goes before that of DNS.
    pub fn new(servers: Vec<SocketAddr>, search: Vec<String>, hosts: PathBuf) -> Self {
        let permits = Semaphore::new(MOST_LOOKUPS);
        Self { upstreams: Upstreams::new(servers), search, hosts, permits }
    }

    pub(super) async fn look_up(&self, host: &str) -> Outcome {
        if let Some(addresses) = self.in_hosts_file(host) {
            return Outcome::Found(addresses);
        }
        // As the C library with `ndots:1`: a name without a dot is one of these domains' first.
        let relative = if host.contains('.') { &[] } else { self.search.as_slice() };
        for name in relative.iter().map(|domain| format!("{host}.{domain}")).chain([host.to_owned()]) {
            match self.ask(&name).await {
                Outcome::Absent(_) if name != host => {}
                // Nor is it known of a domain that says nothing that the name is not there: the next may have another host.
                ended => return ended,
            }
        }
        Outcome::Failed("no name to ask for".to_owned())
    }

    /// What the host's administrator wrote down.
    fn in_hosts_file(&self, host: &str) -> Option<Addresses> {
        let known = std::fs::metadata(&self.hosts).ok().filter(|file| file.len() <= LONGEST_FILE);
        let text = known.and_then(|_| std::fs::read_to_string(&self.hosts).ok()).unwrap_or_default();
        let mut addresses = Addresses::default();
        for line in text.lines() {
            let mut words = line.split('#').next().unwrap_or_default().split_ascii_whitespace();
            let Some(Ok(address)) = words.next().map(str::parse::<IpAddr>) else { continue };
            if words.any(|name| name.trim_end_matches('.').eq_ignore_ascii_case(host)) {
                match address {
                    IpAddr::V4(v4) => addresses.v4.push(v4),
                    IpAddr::V6(v6) => addresses.v6.push(v6),
                }
            }
        }
        if addresses.is_empty() && host == "localhost" {
            // RFC 6761, 6.3.
            addresses.v4.push(Ipv4Addr::LOCALHOST);
        }
        (!addresses.is_empty()).then_some(addresses)
    }

    /// Both kinds at once. One that fails is missing; where the other has nothing, the lookup has failed.
    async fn ask(&self, name: &str) -> Outcome {
        if self.upstreams.is_empty() {
            let why = "there is no resolver to ask: dns.upstream of the bootstrap file, or nameserver in /etc/resolv.conf";
            return Outcome::Failed(why.to_owned());
        }
        let _permit = self.permits.acquire().await;
        let (v4, v6) = tokio::join!(self.part(name, RecordType::A), self.part(name, RecordType::AAAA));
        let mut found = Addresses::default();
        let mut ttls = Vec::new();
        for part in [&v4, &v6].into_iter().flatten().filter(|part| !part.addresses.is_empty()) {
            ttls.push(part.ttl);
            for address in &part.addresses {
                match address {
                    IpAddr::V4(v4) => found.v4.push(*v4),
                    IpAddr::V6(v6) => found.v6.push(*v6),
                }
            }
        }
        found.ttl = ttls.into_iter().min().unwrap_or_default();
        drop_unreachable(&mut found);
        match (v4, v6) {
            (v4, v6) if !found.is_empty() => {
                found.missing = match (v4, v6) {
                    (Err(End::Failed(why)), _) => Some((Kind::V4, why)),
                    (_, Err(End::Failed(why))) => Some((Kind::V6, why)),
                    _ => None,
                };
                Outcome::Found(found)
            }
            (Err(End::Failed(why)), _) | (_, Err(End::Failed(why))) => Outcome::Failed(why),
            (Err(End::Absent(why)), _) | (_, Err(End::Absent(why))) => Outcome::Absent(why),
            (Ok(_), Ok(_)) => Outcome::Absent("the name has no address".to_owned()),
        }
    }

    async fn part(&self, name: &str, kind: RecordType) -> Result<Part, End> {
        let Some((query, bytes)) = Query::ask(name, kind) else {
            return Err(End::Absent("this is no name that DNS could know".to_owned()));
        };
        let mut message = self.exchange(&query, &bytes, Transport::Udp).await?;
        if message.truncation {
            message = self.exchange(&query, &bytes, Transport::Tcp).await?;
        }
        match message.response_code {
            ResponseCode::NoError => Ok(read(&message, kind)),
            ResponseCode::NXDomain => Err(End::Absent("there is no such name (NXDOMAIN)".to_owned())),
            code => Err(End::Failed(format!("the resolver says {code}"))),
        }
    }

    async fn exchange(&self, query: &Query, bytes: &[u8], transport: Transport) -> Result<Message, End> {
        let Some(answer) = self.upstreams.forward(query, bytes, transport).await else {
            let asked: Vec<String> = self.upstreams.list().iter().map(ToString::to_string).collect();
            return Err(End::Failed(format!("no resolver answers ({})", asked.join(", "))));
        };
        Message::from_vec(&answer).map_err(|error| End::Failed(format!("the answer cannot be read: {error}")))
    }
}

/// Why a part has no addresses.
enum End {
    Absent(String),
    Failed(String),
}

/// The addresses of an answer, those behind aliases included; what can be nobody's is left out.
fn read(message: &Message, kind: RecordType) -> Part {
    let mut addresses = Vec::new();
    let mut ttl = u32::MAX;
    for record in &message.answers {
        let address = match &record.data {
            RData::A(a) if kind == RecordType::A => IpAddr::V4(a.0),
            RData::AAAA(aaaa) if kind == RecordType::AAAA => IpAddr::V6(aaaa.0),
            RData::CNAME(_) => {
                ttl = ttl.min(record.ttl);
                continue;
            }
            _ => continue,
        };
        // A connection to the unspecified address would be one to ourselves.
        let nobodys = address.is_unspecified() || address.is_multicast() || is_virtual(address);
        if !nobodys && addresses.len() < MOST && !addresses.contains(&address) {
            ttl = ttl.min(record.ttl);
            addresses.push(address);
        }
    }
    Part { addresses, ttl: Duration::from_secs(u64::from(ttl)) }
}

/// RFC 6724, rule 1: where both kinds were found, one that this host has no way to is left out.
fn drop_unreachable(found: &mut Addresses) {
    if let (Some(v4), Some(v6)) = (found.v4.first(), found.v6.first()) {
        let (v4, v6) = (has_way_to((*v4).into()), has_way_to((*v6).into()));
        if v4 && !v6 {
            found.v6.clear();
        }
        if v6 && !v4 {
            found.v4.clear();
        }
    }
}

/// Connecting a datagram socket sends nothing: the kernel only looks for a route.
fn has_way_to(address: IpAddr) -> bool {
    let any: IpAddr = match address {
        IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    UdpSocket::bind((any, 0)).and_then(|socket| socket.connect((address, 9))).is_ok()
}
