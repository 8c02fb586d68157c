//! How a condition on a header or pseudo-header compares, for routes and policies alike.
//!
//! A condition of a policy either permits or forbids: in a DENY policy it forbids, in an ALLOW policy it permits, and a negation
//! turns that round. What permits holds if the field as a whole does; what forbids holds if any line of it does, too, or nobody
//! knows: a second line hides nothing. A route is told by any line, as Envoy (from 1.39) tells it.

use crate::matcher::{HeaderMatch, Matcher, Pattern};
use crate::request::RequestView;

/// A compiled [`HeaderMatch`].
#[derive(Debug)]
pub(crate) struct CompiledHeader {
    pub(crate) name: String,
    value: Matcher,
    invert: bool,
    /// It is negated and takes an empty text, which an absent field is to routes.
    forbids_absence: bool,
}

impl CompiledHeader {
    pub(crate) fn compile(header: &HeaderMatch) -> Result<Self, String> {
        if header.name.is_empty() || header.name.bytes().any(|b| b.is_ascii_uppercase()) {
            return Err(format!("\"{}\" is no lower-case header name", header.name));
        }
        let (value, invert) = (header.value.compile()?, header.invert);
        let is_presence = header.value.pattern == Pattern::Present;
        let forbids_absence = invert && !is_presence && value.matches(b"");
        Ok(Self { name: header.name.clone(), value, invert, forbids_absence })
    }

    /// For a route: a field of several lines matches by any of them, or by all as one list, and a negated condition by none; as
    /// Envoy compares.
    pub(crate) fn routes<R: RequestView>(&self, request: &R) -> bool {
        // CONNECT has no path that a route could be told by.
        let pathless = self.name == ":path" && request.path().is_empty();
        !pathless && self.matches(request, !self.invert) && !(self.forbids_absence && self.is_absent(request))
    }

    #[cold]
    fn is_absent<R: RequestView>(&self, request: &R) -> bool {
        !self.name.starts_with(':') && self.name != "host" && request.header(&self.name).next().is_none()
    }

    /// `forbids`: what the condition stands in forbids what it matches.
    pub(crate) fn matches<R: RequestView>(&self, request: &R, forbids: bool) -> bool {
        let forbids = forbids != self.invert;
        let matched = match self.name.as_str() {
            ":method" => self.value.matches(request.method().as_bytes()),
            ":path" if request.path().is_empty() => forbids,
            ":path" => self.value.matches(request.path().as_bytes()),
            ":authority" | "host" => matches_host(&self.value, request.authority()),
            ":scheme" => self.value.matches(request.scheme().as_bytes()),
            _ => self.matches_values(request, forbids),
        };
        matched != self.invert
    }

    fn matches_values<R: RequestView>(&self, request: &R, forbids: bool) -> bool {
        let mut values = request.header(&self.name);
        let Some(first) = values.next() else { return false };
        let Some(second) = values.next() else { return self.value.matches(first) };
        if forbids && request.header(&self.name).any(|value| self.value.matches(value)) {
            return true;
        }
        // RFC 9110, section 5.3: several lines of one field are one list; RFC 9113, section 8.2.3: crumbs are one cookie.
        let separator: &[u8] = if self.name == "cookie" { b"; " } else { b"," };
        let mut joined = [first, separator, second].concat();
        for value in values {
            joined.extend_from_slice(separator);
            joined.extend_from_slice(value);
        }
        self.value.matches(&joined)
    }
}

/// A host is compared as it was sent, without its port, and without dots at its end, as routes are told by it.
fn matches_host(value: &Matcher, authority: &str) -> bool {
    let either = |authority: &str, host: &str| {
        value.matches(authority.as_bytes())
            || (host.len() < authority.len() && value.matches(host.as_bytes()))
    };
    let host = without_port(authority);
    either(authority, host)
        || host.ends_with('.')
            && without_dots(authority).is_some_and(|bare| either(&bare, without_port(&bare)))
}

/// The authority without the dots at the end of its host, where there are any (a full name has one). Nothing but dots is left as
/// it is.
#[cold]
pub(crate) fn without_dots(authority: &str) -> Option<String> {
    let host = without_port(authority);
    let bare = host.trim_end_matches('.');
    (bare.len() < host.len() && !bare.is_empty()).then(|| format!("{bare}{}", &authority[host.len()..]))
}

/// `host` of `host:port`; keeps an IPv6 literal whole.
pub(crate) fn without_port(authority: &str) -> &str {
    match authority.rsplit_once(':') {
        Some((host, port))
            if !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit()) && !host.is_empty() =>
        {
            if host.contains(':') && !host.ends_with(']') { authority } else { host }
        }
        _ => authority,
    }
}
