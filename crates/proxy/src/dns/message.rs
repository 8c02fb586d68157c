//! Messages: what a query asks, and how what we have to say is written down. Pure.
//!
//! The names, records and EDNS are hickory's. Where a question ends is read here, as forwarding compares and copies it.

use std::net::IpAddr;

use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query as Question, ResponseCode};
use hickory_proto::rr::rdata::{A, AAAA, CNAME, PTR, SOA};
use hickory_proto::rr::{DNSClass, Name, RData, Record, RecordType};
use outrigger_model::resource::Host;
use outrigger_telemetry::logging::Throttle;

/// Seconds for which an answer of ours may be kept, that there is none included.
const TTL: u32 = 30;
/// Header of a message.
const HEADER: usize = 12;
/// Without EDNS (RFC 1035, 4.2.1).
const PLAIN_UDP: u16 = 512;
/// Whatever a client says that it takes: one datagram shall not become a hundred times as much.
const MOST_UDP: u16 = 4096;
/// What we say that we take: no fragments on any path (the "flag day" of 2020).
const OUR_UDP: u16 = 1232;

/// How a query came, and so goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Transport {
    Udp,
    Tcp,
}

/// What a message is to us.
pub(super) enum Parsed {
    /// One question.
    Query(Query),
    /// This is the answer, whatever it asks.
    Refused(Vec<u8>),
    /// An answer, or too little to answer: two servers could answer each other for ever.
    Ignored,
}

/// A query with one question.
#[derive(Debug)]
pub(crate) struct Query {
    message: Message,
    /// Lower case, without the last dot; absent where a label has other bytes than letters, digits, `-` and `_`.
    name: Option<String>,
    /// Where the question ends in the bytes.
    end: usize,
}

/// Reads a message.
pub(super) fn parse(bytes: &[u8]) -> Parsed {
    let Some(&[id0, id1, flags, ..]) = bytes.first_chunk::<HEADER>() else { return Parsed::Ignored };
    if flags & 0x80 != 0 {
        return Parsed::Ignored;
    }
    // The header alone is never longer than what came.
    let refuse = |code| {
        let mut answer = Message::response(u16::from_be_bytes([id0, id1]), OpCode::from_u8(flags >> 3 & 15));
        answer.metadata.recursion_desired = flags & 1 != 0;
        answer.metadata.response_code = code;
        answer.to_vec().map_or(Parsed::Ignored, Parsed::Refused)
    };
    if flags >> 3 & 15 != 0 {
        return refuse(ResponseCode::NotImp);
    }
    let Some(end) = question_end(bytes) else { return refuse(ResponseCode::FormErr) };
    let Ok(message) = Message::from_vec(bytes) else { return refuse(ResponseCode::FormErr) };
    if message.queries.len() != 1 || !message.answers.is_empty() {
        return refuse(ResponseCode::FormErr);
    }
    let name = message.queries.first().and_then(|question| plain(&question.name));
    let query = Query { message, name, end };
    if query.message.version() > 0 {
        // RFC 6891, 6.1.3.
        return Parsed::Refused(query.write(&Reply::failure(ResponseCode::BADVERS), Transport::Udp));
    }
    Parsed::Query(query)
}

/// The end of the only question, whose name is written out.
pub(super) fn question_end(bytes: &[u8]) -> Option<usize> {
    if bytes.get(4..6)? != [0, 1] {
        return None;
    }
    let mut at = HEADER;
    loop {
        match *bytes.get(at)? {
            0 => break,
            length @ 1..=63 => at += 1 + usize::from(length),
            _ => return None,
        }
        if at - HEADER > 254 {
            return None;
        }
    }
    Some(at + 5).filter(|end| *end <= bytes.len())
}

fn plain(name: &Name) -> Option<String> {
    let mut text = String::with_capacity(name.len());
    for label in name.iter() {
        if !label.iter().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_')) {
            return None;
        }
        if !text.is_empty() {
            text.push('.');
        }
        text.extend(label.iter().map(|b| char::from(b.to_ascii_lowercase())));
    }
    Some(text)
}

impl Query {
    /// A question of our own, and its bytes. `None`: no such name can be asked for.
    pub(crate) fn ask(name: &str, kind: RecordType) -> Option<(Self, Vec<u8>)> {
        let mut message = Message::new(0, MessageType::Query, OpCode::Query);
        message.metadata.recursion_desired = true;
        message.add_query(Question::query(absolute(name)?, kind));
        let mut edns = Edns::new();
        edns.set_max_payload(OUR_UDP);
        message.edns = Some(edns);
        let bytes = message.to_vec().ok()?;
        let end = question_end(&bytes)?;
        Some((Self { message, name: None, end }, bytes))
    }

    /// The type that is asked for.
    pub(super) fn kind(&self) -> RecordType {
        self.message.queries.first().map_or(RecordType::ZERO, |question| question.query_type)
    }

    fn class(&self) -> Option<DNSClass> {
        self.message.queries.first().map(|question| question.query_class)
    }

    /// The name, if it may be one of the mesh.
    pub(super) fn mesh_name(&self) -> Option<&str> {
        self.name.as_deref().filter(|name| !name.is_empty() && self.class() == Some(DNSClass::IN))
    }

    /// The address whose name is asked for.
    pub(super) fn reverse(&self) -> Option<IpAddr> {
        if self.kind() != RecordType::PTR || self.class() != Some(DNSClass::IN) {
            return None;
        }
        let net = self.message.queries.first()?.name.parse_arpa_name().ok()?;
        (net.prefix_len() == net.max_prefix_len()).then(|| net.addr())
    }

    /// Zone transfers are many messages, and not for resolvers.
    pub(super) fn is_transfer(&self) -> bool {
        matches!(self.kind(), RecordType::AXFR | RecordType::IXFR)
    }

    /// Where the question ends in the bytes of the query.
    pub(super) fn question_end(&self) -> usize {
        self.end
    }

    /// The longest answer.
    pub(super) fn limit(&self, transport: Transport) -> usize {
        usize::from(match transport {
            Transport::Udp => self.message.max_payload().clamp(PLAIN_UDP, MOST_UDP),
            Transport::Tcp => u16::MAX,
        })
    }

    /// Writes an answer; one that is too long says so and is empty.
    pub(super) fn write(&self, reply: &Reply, transport: Transport) -> Vec<u8> {
        let mut answer = Message::new(self.message.id, MessageType::Response, OpCode::Query);
        answer.metadata.recursion_desired = self.message.recursion_desired;
        answer.metadata.checking_disabled = self.message.checking_disabled;
        answer.metadata.recursion_available = true;
        answer.metadata.authoritative = reply.authoritative;
        answer.metadata.response_code = reply.code;
        answer.metadata.truncation = reply.truncated;
        // As it was asked, letter case included: some resolvers check it.
        answer.queries.clone_from(&self.message.queries);
        if let (Some(question), false) = (self.message.queries.first(), reply.truncated) {
            let owner = &question.name;
            answer.answers = reply.answers.iter().map(|data| record(owner, reply, data)).collect();
            answer.authorities.extend(reply.zone.as_deref().and_then(|zone| soa(zone, owner)));
        }
        if let Some(asked) = &self.message.edns {
            let mut edns = Edns::new();
            edns.set_max_payload(OUR_UDP).set_dnssec_ok(asked.flags().dnssec_ok);
            answer.edns = Some(edns);
        }
        let written = match answer.to_vec() {
            Ok(bytes) if bytes.len() <= self.limit(transport) => Ok(bytes),
            Ok(_) => answer.truncate().to_vec(),
            Err(error) => Err(error),
        };
        written.unwrap_or_else(|error| {
            // A fault of ours or of the configuration, not of the query.
            if let Some(suppressed) = UNWRITTEN.admit() {
                tracing::warn!(%error, suppressed, "a DNS answer cannot be written");
            }
            let failure = Message::error_msg(self.message.id, OpCode::Query, ResponseCode::ServFail);
            failure.to_vec().unwrap_or_default()
        })
    }
}

static UNWRITTEN: Throttle = Throttle::new();

/// What we have to say.
#[derive(Debug, Default)]
pub(super) struct Reply {
    code: ResponseCode,
    authoritative: bool,
    truncated: bool,
    /// The name that the records are about, where the question's name is another one for it.
    canonical: Option<Name>,
    answers: Vec<RData>,
    /// There is nothing, says this zone.
    zone: Option<String>,
}

impl Reply {
    /// Nothing but a code.
    pub(super) fn failure(code: ResponseCode) -> Self {
        Self { code, ..Self::default() }
    }

    /// Too long for this transport; `code` is the whole answer's.
    pub(super) fn truncated(code: ResponseCode) -> Self {
        Self { code, truncated: true, ..Self::default() }
    }

    /// The name does not exist.
    pub(super) fn no_such_name(zone: &str) -> Self {
        let zone = Some(zone.to_owned());
        Self { code: ResponseCode::NXDomain, authoritative: true, zone, ..Self::default() }
    }

    /// The name of an address.
    pub(super) fn pointer(host: &str) -> Self {
        let answers = absolute(host).map(|name| RData::PTR(PTR(name))).into_iter().collect();
        Self { authoritative: true, answers, ..Self::default() }
    }

    /// What a service has of a type; all that the mesh knows are addresses.
    pub(super) fn host(host: &Host, alias: bool, kind: RecordType, zone: &str) -> Self {
        let data = host.addresses.iter().map(|address| match address {
            IpAddr::V4(v4) => RData::A(A(*v4)),
            IpAddr::V6(v6) => RData::AAAA(AAAA(*v6)),
        });
        let wanted = |data: &RData| kind == RecordType::ANY || data.record_type() == kind;
        let mut answers: Vec<RData> = data.filter(wanted).collect();
        let canonical = absolute(&host.host).filter(|_| alias);
        // RFC 2308, 2.2: also what is empty behind an alias comes with the alias.
        let empty = answers.is_empty() && !(alias && kind == RecordType::CNAME);
        answers.splice(0..0, canonical.iter().map(|name| RData::CNAME(CNAME(name.clone()))));
        let zone = empty.then(|| zone.to_owned());
        Self { authoritative: true, canonical, answers, zone, ..Self::default() }
    }

    /// Whether it says more than that there is nothing.
    pub(super) fn has_records(&self) -> bool {
        self.zone.is_none() && !self.answers.is_empty()
    }
}

fn record(asked: &Name, reply: &Reply, data: &RData) -> Record {
    let owner = match (&reply.canonical, data) {
        (Some(canonical), data) if !matches!(data, RData::CNAME(_)) => canonical,
        _ => asked,
    };
    Record::from_rdata(owner.clone(), TTL, data.clone())
}

/// RFC 2308, 3: for how long the absence may be kept. The owner must be the name asked for or above it; a name in short form
/// is a zone of its own.
fn soa(zone: &str, asked: &Name) -> Option<Record> {
    let zone = absolute(zone)?;
    let (server, person) = (zone.prepend_label("dns").ok()?, zone.prepend_label("hostmaster").ok()?);
    let owner = if zone.zone_of(asked) { zone } else { asked.clone() };
    let soa = SOA::new(server, person, 1, 7200, 1800, 86_400, TTL);
    Some(Record::from_rdata(owner, TTL, RData::SOA(soa)))
}

fn absolute(text: &str) -> Option<Name> {
    let labels = text.trim_end_matches('.').split('.').map(str::as_bytes);
    let mut name = Name::from_labels(labels).ok()?;
    name.set_fqdn(true);
    Some(name)
}
