//! The ClientHello, as far as it decides what is done with a connection: server name and ALPN names offered.
//!
//! Pure; RFC 8446, sections 4.1.2 and 5.1. A hello may be split over records and segments, and with post-quantum key
//! shares it is larger than one segment. What is malformed is not TLS.

/// The first handshake message of a client.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Hello {
    /// SNI (RFC 6066).
    pub server_name: Option<Box<str>>,
    /// ALPN names offered, in order (RFC 7301).
    pub alpn: Vec<Box<[u8]>>,
}

/// What some bytes are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Parsed {
    /// A whole hello.
    Hello(Hello),
    /// The beginning of one.
    NeedMore,
    /// Something else.
    NotTls,
}

const RECORD_HEADER: usize = 5;
const HANDSHAKE: u8 = 22;
const CLIENT_HELLO: u8 = 1;
const MAX_RECORD: usize = 16 * 1024;
/// Of a hello; a post-quantum one has about 2 KiB.
const MAX_HELLO: usize = 24 * 1024;
const EXTENSION_SERVER_NAME: u16 = 0;
const EXTENSION_ALPN: u16 = 16;

impl Hello {
    /// The offered names that are text, for matching.
    pub fn alpn_names(&self) -> Vec<&str> {
        self.alpn.iter().filter_map(|name| std::str::from_utf8(name).ok()).collect()
    }

    /// The offered names by which filter chains tell the mesh's TLS from the application's: a sidecar that is known only
    /// by its server name counts as if it had offered Istio's names for what it offers.
    pub fn mesh_protocols<T: FromIterator<Box<str>>>(&self) -> T {
        let ours = self.server_name.as_deref().is_some_and(|name| mesh_host(name).is_some())
            && !self.alpn.iter().any(|name| name.starts_with(b"istio"));
        let offered = self.alpn_names();
        let istio = |name: &&str| match *name {
            "h2" => Some("istio-h2"),
            "http/1.1" => Some("istio-http/1.1"),
            _ => None,
        };
        let also = offered.iter().filter_map(istio).chain(["istio"]).filter(|_| ours);
        offered.iter().copied().chain(also).map(Box::from).collect()
    }

    /// Whether a name is offered.
    pub fn offers(&self, name: &[u8]) -> bool {
        self.alpn.iter().any(|offered| **offered == *name)
    }
}

/// The host of a server name of the form `outbound_.PORT_.SUBSET_.HOST`; the subset may be empty.
pub fn mesh_host(name: &str) -> Option<&str> {
    let mut parts = name.strip_prefix("outbound_.")?.splitn(3, "_.");
    parts.next()?.parse::<u16>().ok()?;
    parts.next()?;
    parts.next().filter(|host| !host.is_empty())
}

/// Whether these bytes are the beginning of a ClientHello, or all of it.
pub fn begins(bytes: &[u8]) -> bool {
    !bytes.is_empty() && parse(bytes) != Parsed::NotTls
}

/// Looks for a ClientHello at the start of the bytes.
pub fn parse(bytes: &[u8]) -> Parsed {
    let mut message = Vec::new();
    let mut rest = bytes;
    loop {
        // Judged by each byte that is there, so that a later one cannot turn a verdict around.
        let valid = [
            rest.first().is_none_or(|b| *b == HANDSHAKE),
            rest.get(1).is_none_or(|b| *b == 3),
            rest.get(2).is_none_or(|b| *b <= 4),
        ];
        if valid.contains(&false) {
            return Parsed::NotTls;
        }
        let Some((header, after)) = rest.split_at_checked(RECORD_HEADER) else {
            return Parsed::NeedMore;
        };
        let length = usize::from(u16::from_be_bytes([header[3], header[4]]));
        if length == 0 || length > MAX_RECORD {
            return Parsed::NotTls;
        }
        let present = length.min(after.len());
        message.extend_from_slice(&after[..present]);
        match message_length(&message) {
            Err(()) => return Parsed::NotTls,
            Ok(Some(total)) if message.len() >= total => {
                return hello(&message[4..total]).map_or(Parsed::NotTls, Parsed::Hello);
            }
            Ok(_) if present < length => return Parsed::NeedMore,
            Ok(_) => rest = &after[length..],
        }
    }
}

/// The length of the handshake message with its header, once known; an error if it is no ClientHello.
fn message_length(message: &[u8]) -> Result<Option<usize>, ()> {
    if message.first().is_some_and(|kind| *kind != CLIENT_HELLO) {
        return Err(());
    }
    let Some(header) = message.get(..4) else { return Ok(None) };
    let length = 4 + usize::from(header[1]) * 65536 + usize::from(header[2]) * 256 + usize::from(header[3]);
    if length > MAX_HELLO { Err(()) } else { Ok(Some(length)) }
}

struct Cursor<'a>(&'a [u8]);

impl<'a> Cursor<'a> {
    fn take(&mut self, n: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(n)?;
        self.0 = rest;
        Some(taken)
    }

    fn byte(&mut self) -> Option<usize> {
        self.take(1).map(|b| usize::from(b[0]))
    }

    fn short(&mut self) -> Option<u16> {
        self.take(2).map(|b| u16::from_be_bytes([b[0], b[1]]))
    }

    /// A vector with a length of one byte.
    fn vector8(&mut self) -> Option<&'a [u8]> {
        let n = self.byte()?;
        self.take(n)
    }

    /// A vector with a length of two bytes.
    fn vector16(&mut self) -> Option<&'a [u8]> {
        let n = self.short()?;
        self.take(usize::from(n))
    }
}

fn hello(body: &[u8]) -> Option<Hello> {
    let mut cursor = Cursor(body);
    let version = cursor.short()?;
    if version >> 8 != 3 {
        return None;
    }
    cursor.take(32)?; // random
    cursor.vector8()?; // session id
    cursor.vector16()?; // cipher suites
    cursor.vector8()?; // compression methods
    let mut hello = Hello::default();
    if cursor.0.is_empty() {
        return Some(hello); // before TLS 1.2 extensions could be absent
    }
    let mut extensions = Cursor(cursor.vector16()?);
    while !extensions.0.is_empty() {
        let kind = extensions.short()?;
        let data = extensions.vector16()?;
        match kind {
            EXTENSION_SERVER_NAME => hello.server_name = server_name(data)?,
            EXTENSION_ALPN => hello.alpn = alpn(data)?,
            _ => {}
        }
    }
    Some(hello)
}

/// The host name, if there is one; the outer `None` is malformed.
#[allow(clippy::option_option)]
fn server_name(data: &[u8]) -> Option<Option<Box<str>>> {
    let mut names = Cursor(Cursor(data).vector16()?);
    while !names.0.is_empty() {
        let kind = names.byte()?;
        let name = names.vector16()?;
        if kind == 0 {
            return std::str::from_utf8(name).ok().map(|name| Some(plain(name)));
        }
    }
    Some(None)
}

/// A name of a host has one form: without case, and without the final dots that a server name must not have (RFC 6066, section 3).
fn plain(name: &str) -> Box<str> {
    name.trim_end_matches('.').to_ascii_lowercase().into()
}

fn alpn(data: &[u8]) -> Option<Vec<Box<[u8]>>> {
    let mut names = Cursor(Cursor(data).vector16()?);
    let mut found = Vec::new();
    while !names.0.is_empty() {
        found.push(names.vector8()?.into());
    }
    Some(found)
}
