//! What is refused, and by which clause. RFC 9112 lets recipients repair many broken messages; two recipients that repair
//! differently are a smuggled request. So whatever the RFC leaves to the recipient is an error here, on both sides.
//!
//! `httparse` already refuses: whitespace before the colon, obs-fold, non-token names and methods, control bytes and bare
//! CR (`explain` finds out which). `parse` refuses bare LF and sizes. The rest of the rules are the functions below.

use http::request::Parts;

use super::fields::{ConnectionOptions, H1Fields, is_tchar, list_members};
use super::grammar::{is_authority, is_protocol, is_target};
use super::known::Known;
use super::message::{Asked, TargetForm};
use super::names;
use super::{Framing, Limits};

/// Why a message is refused. The text says what is wrong; `status` what a client gets for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    #[error("the start line is longer than the limit (RFC 9112, section 3)")]
    StartLineTooLong,
    #[error("the head is larger than the limit (RFC 9112, section 5)")]
    HeadTooLarge,
    #[error("there are more header lines than the limit (RFC 9112, section 5)")]
    TooManyFields,
    #[error("a line ends in LF without CR (RFC 9112, section 2.2)")]
    BareLf,
    #[error("a CR is not followed by LF (RFC 9112, section 2.2)")]
    BareCr,
    #[error("the head has a NUL or another control byte (RFC 9110, section 5.5)")]
    ControlByte,
    #[error(
        "the request line is not method, target and version with one space between each (RFC 9112, section 3)"
    )]
    RequestLine,
    #[error("the method is not a token (RFC 9110, section 9.1)")]
    Method,
    #[error("the method is a known one in other case; methods are case-sensitive (RFC 9110, section 9.1)")]
    MethodCase,
    #[error("the protocol to switch to is not a token, or a token with a version (RFC 8441, section 4)")]
    Protocol,
    #[error("the request target is not valid for this method (RFC 9112, section 3.2)")]
    Target,
    #[error("the HTTP version is neither 1.0 nor 1.1 (RFC 9110, section 15.6.6)")]
    Version,
    #[error("the status line is malformed (RFC 9112, section 4)")]
    StatusLine,
    #[error("a header is folded over several lines (RFC 9112, section 5.2)")]
    ObsFold,
    #[error("there is whitespace before a header's colon (RFC 9112, section 5.1)")]
    SpaceBeforeColon,
    #[error("a header line has no colon, or its name is not a token (RFC 9112, section 5)")]
    FieldName,
    #[error("Connection has more than 64 options (RFC 9110, section 7.6.1)")]
    ConnectionOptions,
    #[error("a header name differs from Content-Length or Transfer-Encoding only in punctuation")]
    Lookalike,
    #[error("Content-Length is not a number of digits that fits (RFC 9112, section 6.3, rule 5)")]
    ContentLength,
    #[error("there are several Content-Length values, and they differ (RFC 9112, section 6.3, rule 5)")]
    ContentLengthsDiffer,
    #[error("both Transfer-Encoding and Content-Length are present (RFC 9112, section 6.3, rule 3)")]
    LengthAndChunked,
    #[error("Transfer-Encoding is repeated, or chunked is not the last coding (RFC 9112, section 6.1)")]
    TransferEncoding,
    #[error(
        "Transfer-Encoding names a coding other than chunked, which is not supported (RFC 9112, section 6.1)"
    )]
    TransferCoding,
    #[error("Transfer-Encoding in an HTTP/1.0 message (RFC 9112, section 6.1)")]
    TransferEncodingIn10,
    #[error("an HTTP/1.1 request without Host (RFC 9112, section 3.2)")]
    HostMissing,
    #[error("there is more than one Host (RFC 9112, section 3.2)")]
    HostRepeated,
    #[error(
        "Host or the target's authority is not host[:port], with a host of at most 253 bytes (RFC 9112, section 3.2)"
    )]
    HostInvalid,
    #[error("Host and the target's authority disagree (RFC 9112, section 3.2.2)")]
    HostDisagrees,
    #[error("a CONNECT request with Content-Length or Transfer-Encoding (RFC 9110, section 9.3.6)")]
    ConnectBody,
    #[error("the server switched protocols without being asked to (RFC 9110, section 15.2.2)")]
    UnaskedSwitch,
    #[error("too many interim responses to one request")]
    TooManyInterim,
    #[error("a 1xx response announces a body (RFC 9112, section 6.1; RFC 9110, section 8.6)")]
    BodylessFraming,
    #[error("a chunk size is not hexadecimal, or too large (RFC 9112, section 7.1)")]
    ChunkSize,
    #[error("a chunk-size line is malformed or longer than the limit (RFC 9112, section 7.1.1)")]
    ChunkLine,
    #[error("the chunk extensions of one message exceed the limit (RFC 9112, section 7.1.1)")]
    ChunkExtensions,
    #[error("chunk data is not followed by CRLF (RFC 9112, section 7.1)")]
    ChunkEnd,
    #[error("the trailer section is larger than the limit (RFC 9112, section 7.1.2)")]
    TrailersTooLarge,
    #[error("a trailer line is malformed (RFC 9112, section 7.1.2)")]
    Trailer,
    #[error("the connection ended in the middle of a message (RFC 9112, section 8)")]
    UnexpectedEof,
}

impl Refusal {
    /// The status for a client whose request is refused. A refused response is a 502, whatever the reason.
    pub fn status(self) -> u16 {
        match self {
            Self::StartLineTooLong => 414,
            Self::HeadTooLarge | Self::TooManyFields | Self::TrailersTooLarge => 431,
            Self::TransferCoding => 501,
            Self::Version => 505,
            _ => 400,
        }
    }
}

/// What one pass over the fields found out.
#[derive(Debug, Default)]
pub(super) struct Seen {
    length: Option<u64>,
    chunked: bool,
    /// Index of the Host line.
    pub(super) host: Option<usize>,
}

impl Seen {
    /// Whether the framing says that there are bytes to come.
    pub(super) fn announces_body(&self) -> bool {
        self.chunked || self.length.is_some_and(|length| length > 0)
    }
}

/// The pass: Content-Length, Transfer-Encoding, Host and Connection.
pub(super) fn survey(fields: &mut H1Fields, is_request: bool) -> Result<Seen, Refusal> {
    let mut seen = Seen::default();
    let mut options = ConnectionOptions::default();
    let mut named = 0;
    for at in 0..fields.list.len() {
        let field = fields.list[at];
        let value = fields.value_of(&field);
        match field.known {
            Known::Other if is_request && looks_like_framing(fields.name_of(&field)) => {
                return Err(Refusal::Lookalike);
            }
            Known::ContentLength => {
                let length = content_length(value)?;
                match seen.length {
                    None => seen.length = Some(length),
                    // RFC 9110, section 8.6: equal values may be collapsed; the later line goes.
                    Some(first) if first == length => fields.list[at].name_len = 0,
                    Some(_) => return Err(Refusal::ContentLengthsDiffer),
                }
            }
            Known::TransferEncoding if seen.chunked => return Err(Refusal::TransferEncoding),
            Known::TransferEncoding => {
                transfer_encoding(value)?;
                seen.chunked = true;
            }
            Known::Host if seen.host.is_some() => return Err(Refusal::HostRepeated),
            Known::Host => seen.host = Some(at),
            Known::Connection => named += connection(value, &mut options),
            _ => {}
        }
    }
    if named > MOST_OPTIONS {
        return Err(Refusal::ConnectionOptions);
    }
    fields.options = options;
    Ok(seen)
}

/// RFC 9110, section 8.6: `1*DIGIT`; a list, a sign or a blank is not one.
pub(super) fn content_length(value: &[u8]) -> Result<u64, Refusal> {
    if value.is_empty() {
        return Err(Refusal::ContentLength);
    }
    value.iter().try_fold(0u64, |sum, byte| match byte {
        b'0'..=b'9' => sum
            .checked_mul(10)
            .and_then(|sum| sum.checked_add(u64::from(byte - b'0')))
            .ok_or(Refusal::ContentLength),
        _ => Err(Refusal::ContentLength),
    })
}

/// RFC 9112, section 6.1: exactly `chunked`. Compressed transfer codings are unknown to every server that we know of.
fn transfer_encoding(value: &[u8]) -> Result<(), Refusal> {
    if value.eq_ignore_ascii_case(b"chunked") {
        return Ok(());
    }
    let plain = |coding: &[u8]| !coding.is_empty() && coding.iter().all(|&b| is_tchar(b));
    let codings = || value.split(|&b| b == b',').map(<[u8]>::trim_ascii);
    let chunked = codings().filter(|coding| coding.eq_ignore_ascii_case(b"chunked")).count();
    let last = codings().next_back().is_some_and(|coding| coding.eq_ignore_ascii_case(b"chunked"));
    if codings().all(plain) && chunked == usize::from(last) {
        Err(Refusal::TransferCoding)
    } else {
        Err(Refusal::TransferEncoding)
    }
}

/// Each field of a head is looked for among them.
const MOST_OPTIONS: usize = 64;

/// How many there are.
fn connection(value: &[u8], options: &mut ConnectionOptions) -> usize {
    let mut count = 0;
    for option in list_members(value) {
        count += 1;
        match option.len() {
            5 if option.eq_ignore_ascii_case(b"close") => options.close = true,
            10 if option.eq_ignore_ascii_case(b"keep-alive") => options.keep_alive = true,
            7 if option.eq_ignore_ascii_case(b"upgrade") => options.upgrade = true,
            2 if option.eq_ignore_ascii_case(b"te") => {}
            _ => options.names_fields = true,
        }
    }
    count
}

/// `Content_Length` reaches a CGI-like backend as CONTENT_LENGTH, `Transfer.Encoding` some as the real thing.
fn is_lookalike(name: &[u8]) -> bool {
    looks_like_framing(name) && Known::of(name) == Known::Other
}

fn looks_like_framing(name: &[u8]) -> bool {
    let same = |word: &[u8]| {
        let letters = name.iter().filter(|b| b.is_ascii_alphabetic()).map(u8::to_ascii_lowercase);
        letters.eq(word.iter().copied())
    };
    (13..=32).contains(&name.len()) && (same(b"contentlength") || same(b"transferencoding"))
}

/// RFC 9112, section 6.3, for requests.
pub(super) fn request_framing(seen: &Seen, minor: u8, is_connect: bool) -> Result<Framing, Refusal> {
    match (seen.chunked, seen.length) {
        (false, None) => Ok(Framing::None),
        _ if is_connect => Err(Refusal::ConnectBody),
        (true, Some(_)) => Err(Refusal::LengthAndChunked),
        (true, None) if minor == 0 => Err(Refusal::TransferEncodingIn10),
        (true, None) => Ok(Framing::Chunked),
        (false, Some(length)) => Ok(Framing::Length(length)),
    }
}

/// RFC 9112, section 6.3, for responses: rules 1 and 2 by method and status, then the fields, then until close.
pub(super) fn response_framing(
    seen: &Seen,
    minor: u8,
    status: u16,
    asked: Asked,
) -> Result<Framing, Refusal> {
    if seen.chunked && minor == 0 {
        return Err(Refusal::TransferEncodingIn10);
    }
    if seen.chunked && seen.length.is_some() {
        return Err(Refusal::LengthAndChunked);
    }
    match status {
        101 if !asked.upgrade => return Err(Refusal::UnaskedSwitch),
        100..=199 if seen.announces_body() => return Err(Refusal::BodylessFraming),
        101 => return Ok(Framing::Tunnel),
        200..=299 if asked.connect => return Ok(Framing::Tunnel),
        100..=199 | 204 | 304 => return Ok(Framing::None),
        _ => {}
    }
    Ok(match (seen.chunked, seen.length) {
        _ if asked.head => Framing::None,
        (true, _) => Framing::Chunked,
        (false, Some(length)) => Framing::Length(length),
        (false, None) => Framing::Close,
    })
}

/// What the request target says: its form, where path and authority are in it, and its scheme.
#[derive(Debug)]
pub(super) struct Target {
    pub(super) form: TargetForm,
    pub(super) path: std::ops::Range<usize>,
    pub(super) authority: std::ops::Range<usize>,
    pub(super) scheme: &'static str,
}

/// RFC 9112, section 3.2.
pub(super) fn target(method: &[u8], target: &[u8]) -> Result<Target, Refusal> {
    if !is_target(target) {
        return Err(Refusal::Target);
    }
    let found = |form, path, authority, scheme| Ok(Target { form, path, authority, scheme });
    let end = target.len();
    if method == b"CONNECT" {
        // RFC 9110, section 9.3.6: without a port it is invalid.
        return match is_authority(target) && has_port(target) {
            true => found(TargetForm::Authority, 0..0, 0..end, "http"),
            false => Err(Refusal::Target),
        };
    }
    if target.first() == Some(&b'/') {
        return found(TargetForm::Origin, 0..end, 0..0, "http");
    }
    if target == b"*" && method == b"OPTIONS" {
        return found(TargetForm::Asterisk, 0..end, 0..0, "http");
    }
    let starts = |scheme: &[u8]| target.get(..scheme.len()).is_some_and(|s| s.eq_ignore_ascii_case(scheme));
    let (from, scheme) = match () {
        () if starts(b"http://") => (7, "http"),
        () if starts(b"https://") => (8, "https"),
        () => return Err(Refusal::Target),
    };
    let to = target[from..].iter().position(|&b| b == b'/' || b == b'?').map_or(end, |at| from + at);
    if from == to || !is_authority(&target[from..to]) {
        return Err(Refusal::HostInvalid); // RFC 9110, section 4.2.1: an empty host is invalid
    }
    found(TargetForm::Absolute, to..end, from..to, scheme)
}

/// RFC 9112, sections 3.2 and 3.2.2: one valid Host in HTTP/1.1. An absolute target wins over another Host; that of a CONNECT
/// must be the same.
pub(super) fn host(
    host: Option<&[u8]>,
    minor: u8,
    form: TargetForm,
    authority: &[u8],
) -> Result<(), Refusal> {
    let Some(host) = host else {
        return if minor == 0 { Ok(()) } else { Err(Refusal::HostMissing) };
    };
    if !(host.is_empty() || is_authority(host)) {
        return Err(Refusal::HostInvalid);
    }
    let agrees = match form {
        TargetForm::Origin | TargetForm::Asterisk | TargetForm::Absolute => true,
        // Many clients leave out the port in the Host of a CONNECT.
        TargetForm::Authority => {
            host.eq_ignore_ascii_case(authority) || host.eq_ignore_ascii_case(without_port(authority))
        }
    };
    if agrees { Ok(()) } else { Err(Refusal::HostDisagrees) }
}

fn without_port(authority: &[u8]) -> &[u8] {
    let port = authority.iter().rev().take_while(|b| b.is_ascii_digit()).count();
    authority[..authority.len() - port].strip_suffix(b":").unwrap_or(authority)
}

fn has_port(authority: &[u8]) -> bool {
    without_port(authority).len() < authority.len()
}

/// The same rules for a request that came over HTTP/2 and may leave over HTTP/1 (RFC 9113, sections 8.3.1 and 10.3): the
/// h2 crate checks the frame layer and the characters of names and values, not what they say together.
pub(crate) fn h2_request(parts: &Parts, limits: &Limits) -> Result<(), Refusal> {
    let authority = parts.uri.authority().map(|authority| authority.as_str().as_bytes());
    if authority.is_some_and(|authority| !is_authority(authority)) {
        return Err(Refusal::HostInvalid);
    }
    let mut hosts = parts.headers.get_all(http::header::HOST).iter();
    match (hosts.next(), hosts.next()) {
        (_, Some(_)) => return Err(Refusal::HostRepeated),
        (Some(host), None) => match authority {
            Some(authority) if !host.as_bytes().eq_ignore_ascii_case(authority) => {
                return Err(Refusal::HostDisagrees);
            }
            None if !is_authority(host.as_bytes()) => return Err(Refusal::HostInvalid),
            _ => {}
        },
        (None, None) if authority.is_none() => return Err(Refusal::HostMissing),
        (None, None) => {}
    }
    if names::is_method_variant(parts.method.as_str().as_bytes()) {
        return Err(Refusal::MethodCase);
    }
    if let Some(protocol) = parts.extensions.get::<h2::ext::Protocol>()
        && !is_protocol(protocol.as_str().as_bytes())
    {
        return Err(Refusal::Protocol);
    }
    let is_connect =
        parts.method == http::Method::CONNECT && parts.extensions.get::<h2::ext::Protocol>().is_none();
    if is_connect {
        // RFC 9110, section 9.3.6: without a port it is invalid, and it has no content.
        if !authority.is_some_and(has_port) {
            return Err(Refusal::Target);
        }
        if parts.headers.contains_key(http::header::CONTENT_LENGTH) {
            return Err(Refusal::ConnectBody);
        }
    }
    let path = parts.uri.path_and_query().map(|path| path.as_str().as_bytes());
    let is_form = |path: &[u8]| path[0] == b'/' || (path == b"*" && parts.method == http::Method::OPTIONS);
    if path.is_some_and(|path| !is_target(path) || !is_form(path)) {
        return Err(Refusal::Target);
    }
    if path.is_some_and(|path| path.len() + parts.method.as_str().len() + LINE > limits.start_line) {
        return Err(Refusal::StartLineTooLong);
    }
    if h2_size(parts) > limits.head {
        return Err(Refusal::HeadTooLarge);
    }
    // One more is Host; the crumbs of a cookie become one line.
    if parts.headers.len() >= limits.fields {
        let crumbs = parts.headers.get_all(http::header::COOKIE).iter().count();
        if parts.headers.len() - crumbs.saturating_sub(1) + usize::from(authority.is_some()) > limits.fields {
            return Err(Refusal::TooManyFields);
        }
    }
    if parts.headers.contains_key(http::header::TRANSFER_ENCODING) {
        return Err(Refusal::TransferEncoding); // RFC 9113, section 8.2.2
    }
    if parts.headers.keys().any(|name| is_lookalike(name.as_str().as_bytes())) {
        return Err(Refusal::Lookalike);
    }
    h2_content_length(&parts.headers).map(|_| ())
}

/// Two spaces and the version, without CRLF.
const LINE: usize = " HTTP/1.1 ".len();

/// Bytes of an HTTP/2 head as HTTP/1 writes it.
pub(crate) fn h2_size(parts: &Parts) -> usize {
    let line = parts.method.as_str().len() + LINE + "\r\n\r\n".len();
    let path = parts.uri.path_and_query().map_or(0, |path| path.as_str().len());
    let host = parts.uri.authority().map_or(0, |authority| "host: \r\n".len() + authority.as_str().len());
    let fields = parts.headers.iter().map(|(name, value)| name.as_str().len() + value.len() + ": \r\n".len());
    line + path + host + fields.sum::<usize>()
}

/// The one Content-Length of an HTTP/2 message; the h2 crate looks only at the first.
pub(crate) fn h2_content_length(headers: &http::HeaderMap) -> Result<Option<u64>, Refusal> {
    let mut found = None;
    for value in headers.get_all(http::header::CONTENT_LENGTH) {
        let length = content_length(value.as_bytes())?;
        if found.is_some_and(|first| first != length) {
            return Err(Refusal::ContentLengthsDiffer);
        }
        found = Some(length);
    }
    Ok(found)
}
