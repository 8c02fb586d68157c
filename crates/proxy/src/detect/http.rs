//! Whether bytes begin an HTTP connection: pure, bounded by the caller.
//!
//! Servers skip empty lines before a request line (RFC 9112, section 2.2) and take methods that nobody knows, so both
//! count: what an application could take for HTTP must not pass as opaque and so around L7 policy.

/// The verdict on some bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// A request line.
    Http1,
    /// The connection preface.
    Http2,
    /// Not HTTP.
    Other,
    /// Cannot be told yet.
    NeedMore,
}

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Methods after which nothing else need be seen.
const KNOWN: [&[u8]; 9] =
    [b"GET", b"POST", b"PUT", b"HEAD", b"DELETE", b"PATCH", b"OPTIONS", b"CONNECT", b"TRACE"];

/// Longest method that is waited for.
const MAX_METHOD: usize = 32;

/// The verdict on these bytes. More bytes never change a verdict other than `NeedMore`.
pub fn classify(bytes: &[u8]) -> Verdict {
    let bytes = skip_empty_lines(bytes);
    let n = bytes.len().min(PREFACE.len());
    if bytes[..n] == PREFACE[..n] {
        return if n == PREFACE.len() { Verdict::Http2 } else { Verdict::NeedMore };
    }
    let Some(space) = bytes.iter().position(|b| !is_token(*b)) else {
        return if bytes.len() > MAX_METHOD { Verdict::Other } else { Verdict::NeedMore };
    };
    if space == 0 || space > MAX_METHOD || !matches!(bytes[space], b' ' | b'\t') {
        // A lone CR may be the first half of an empty line.
        return if bytes == b"\r" { Verdict::NeedMore } else { Verdict::Other };
    }
    if KNOWN.iter().any(|known| bytes[..space].eq_ignore_ascii_case(known)) {
        return Verdict::Http1;
    }
    match bytes.iter().position(|b| *b == b'\n') {
        None => Verdict::NeedMore,
        Some(end) => {
            let line = bytes[..end].trim_ascii_end();
            let version = line.len().checked_sub(8).map(|at| &line[at..]);
            if version.is_some_and(|v| v.starts_with(b"HTTP/")) { Verdict::Http1 } else { Verdict::Other }
        }
    }
}

fn skip_empty_lines(mut bytes: &[u8]) -> &[u8] {
    loop {
        bytes = match bytes {
            [b'\r', b'\n', rest @ ..] | [b'\n', rest @ ..] => rest,
            _ => return bytes,
        };
    }
}

/// RFC 9110, section 5.6.2.
fn is_token(b: u8) -> bool {
    b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b)
}
