//! Whether bytes begin an HTTP connection: pure, bounded by the caller.
//!
//! Only a whole first line that names a version of HTTP is a request: `get key` and `delete 1` are memcached's and
//! beanstalkd's, RTSP, SIP and ICAP share HTTP's methods. Servers skip empty lines before it (RFC 9112, section 2.2), take
//! methods that nobody knows, and cut the line at whatever they know as a blank, before it and within: all of that counts. Whether
//! it is one that we would serve is our parser's to say, which is where it goes. What is no request, but what a lenient server could serve all the same, is
//! [`Verdict::Unclear`]: it must not pass as opaque and so around policy for requests.

/// The verdict on some bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// A request line.
    Http1,
    /// The connection preface.
    Http2,
    /// Not HTTP.
    Other,
    /// No request line, though there are servers that would take it for one.
    Unclear,
    /// Cannot be told yet.
    NeedMore,
}

/// What a server's first bytes are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Words {
    /// HTTP/2's SETTINGS, or an HTTP/1 status line.
    Http,
    /// No server of HTTP begins so.
    Other,
    /// Cannot be told yet.
    NeedMore,
}

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// With which a request without a version would be answered by servers that still know HTTP/0.9.
const KNOWN: [&[u8]; 9] =
    [b"GET", b"POST", b"PUT", b"HEAD", b"DELETE", b"PATCH", b"OPTIONS", b"CONNECT", b"TRACE"];

/// Longest method that is waited for.
const MAX_METHOD: usize = 32;

/// The verdict on these bytes. More bytes never change a verdict other than `NeedMore`. `end`: no more will come, and a line
/// ends where they do.
pub fn classify(bytes: &[u8], end: bool) -> Verdict {
    let bytes = skip_blanks(bytes);
    let n = bytes.len().min(PREFACE.len());
    if bytes[..n] == PREFACE[..n] {
        return if n == PREFACE.len() { Verdict::Http2 } else { Verdict::NeedMore };
    }
    let token = bytes.iter().position(|b| !is_token(*b)).unwrap_or(bytes.len());
    if token > MAX_METHOD {
        return Verdict::Unclear;
    }
    let (method, rest) = bytes.split_at(token);
    match rest.first() {
        None => return Verdict::NeedMore,
        Some(gap) if token > 0 && is_gap(*gap) => {}
        Some(_) => return Verdict::Other,
    }
    // Such as a length that happens to be a letter (LDAP): no target begins so.
    let target = rest.iter().find(|b| !is_gap(**b));
    if target.is_some_and(|b| b.is_ascii_control() && *b != b'\n') {
        return Verdict::Other;
    }
    match rest.iter().position(|b| *b == b'\n') {
        Some(line) => on_line(method, &rest[..line]),
        None if end => on_line(method, rest),
        None => Verdict::NeedMore,
    }
}

/// The verdict on a whole line.
fn on_line(method: &[u8], rest: &[u8]) -> Verdict {
    let mut words = rest.split(|b| is_gap(*b)).filter(|word| !word.is_empty());
    let Some(target) = words.next() else { return Verdict::Other };
    let Some(last) = words.next_back() else {
        // RFC 1945, section 4.1: a request without a version.
        let path = target.starts_with(b"/") || target.windows(3).any(|bytes| bytes == b"://");
        return if path && KNOWN.contains(&method) { Verdict::Unclear } else { Verdict::Other };
    };
    let is_version = last.split_at_checked(5).is_some_and(|(name, number)| {
        name.eq_ignore_ascii_case(b"HTTP/") && number.first().is_some_and(u8::is_ascii_digit)
    });
    if is_version { Verdict::Http1 } else { Verdict::Other }
}

/// The verdict on what a server says before its client has spoken. More bytes never change one other than `NeedMore`.
pub fn classify_server(bytes: &[u8]) -> Words {
    const STATUS: &[u8] = b"HTTP/";
    const HEADER: usize = 9;
    let n = bytes.len().min(STATUS.len());
    if bytes[..n] == STATUS[..n] {
        return if n == STATUS.len() { Words::Http } else { Words::NeedMore };
    }
    // RFC 9113, sections 3.4, 4.1 and 6.5: SETTINGS come first, are no acknowledgement, belong to no stream, and each is six
    // bytes long.
    let frame: [fn(u8) -> bool; HEADER] = [
        |length| length == 0,
        |_| true,
        |_| true,
        |kind| kind == 4,
        |flags| flags & 1 == 0,
        |stream| stream & 0x7f == 0,
        |stream| stream == 0,
        |stream| stream == 0,
        |stream| stream == 0,
    ];
    if !bytes.iter().zip(frame).all(|(byte, fits)| fits(*byte)) {
        return Words::Other;
    }
    match bytes {
        [_, high, low, ..] if u16::from_be_bytes([*high, *low]) % 6 != 0 => Words::Other,
        _ if bytes.len() >= HEADER => Words::Http,
        _ => Words::NeedMore,
    }
}

/// Empty lines, and what lenient servers skip before a word.
fn skip_blanks(bytes: &[u8]) -> &[u8] {
    let begins = bytes.iter().position(|b| !is_gap(*b) && *b != b'\n').unwrap_or(bytes.len());
    &bytes[begins..]
}

/// RFC 9110, section 5.6.2.
fn is_token(b: u8) -> bool {
    b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b)
}

/// Around the words of a request line, to servers that are lenient (RFC 9112, section 3), the bare CR too. The last six are blanks to
/// those that take bytes for Latin-1 text, as Python's do.
fn is_gap(b: u8) -> bool {
    matches!(b, b' ' | b'\t' | b'\r' | 0x0b | 0x0c | 0x1c..=0x1f | 0x85 | 0xa0)
}
