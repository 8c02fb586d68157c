//! The grammar of what a head is made of: methods, targets, authorities, protocols. Which of it a message may say, and when,
//! is `strict`'s.

use super::fields::{class, is_tchar, list_members};

/// Token, as in RFC 9110, section 9.1.
pub(crate) fn is_method(method: &[u8]) -> bool {
    !method.is_empty() && method.len() <= 64 && method.iter().all(|&b| is_tchar(b))
}

/// Characters of a target. Visible ASCII, but none that another recipient might cut (`#`), turn into a slash (`\`) or
/// refuse in HTTP/2. `{`, `}`, `|`, `^` and `"` are no URI characters either, yet harmless and sent by real clients.
pub(crate) fn is_target(target: &[u8]) -> bool {
    !target.is_empty() && target.iter().all(|&b| TARGET[usize::from(b)])
}

static TARGET: [bool; 256] = class(b"!\"$%&'()*+,-./:;=?@[]^_{|}~");

static HOST: [bool; 256] = class(b"-._~%!$&'()*+,;=");

/// No name of a host is longer (RFC 1035, section 2.3.4), without its final dot. Whatever looks at hosts costs as much.
const LONGEST_HOST: usize = 253;

/// `host` or `host:port` (RFC 3986, section 3.2): no user info, no empty host or port, no host longer than any name, brackets
/// only around an IPv6 literal.
pub(crate) fn is_authority(authority: &[u8]) -> bool {
    let (host, port) = match authority.first() {
        Some(b'[') => {
            let Some(close) = authority.iter().position(|&b| b == b']') else { return false };
            let literal = &authority[1..close];
            let is_v6 =
                std::str::from_utf8(literal).is_ok_and(|text| text.parse::<std::net::Ipv6Addr>().is_ok());
            if !is_v6 {
                return false;
            }
            (&authority[..=close], &authority[close + 1..])
        }
        Some(_) => {
            let end = authority.iter().position(|&b| !HOST[usize::from(b)]).unwrap_or(authority.len());
            authority.split_at(end)
        }
        None => return false,
    };
    let port_ok = match port {
        [] => true,
        [b':', digits @ ..] => {
            (1..=5).contains(&digits.len())
                && digits.iter().all(u8::is_ascii_digit)
                && digits.iter().fold(0u32, |sum, d| sum * 10 + u32::from(d - b'0')) <= 65535
        }
        _ => false,
    };
    // What is neither name nor port is left over where a port would be.
    port_ok && !host.is_empty() && host.strip_suffix(b".").unwrap_or(host).len() <= LONGEST_HOST
}

/// RFC 9110, section 7.8: a token, and a version that is one, too.
pub(crate) fn is_protocol(protocol: &[u8]) -> bool {
    let token = |text: &[u8]| !text.is_empty() && text.iter().all(|&b| is_tchar(b));
    let mut parts = protocol.splitn(2, |&b| b == b'/');
    protocol.len() <= 64 && parts.all(token)
}

/// `Upgrade: h2c` was taken out of HTTP (RFC 9113, section 3.1) and smuggles requests past proxies.
pub(crate) fn is_h2c(protocols: &[u8]) -> bool {
    list_members(protocols).any(|protocol| protocol.eq_ignore_ascii_case(b"h2c"))
}
