//! How conditions read to people: `the path begins with /a and the header k is "v"`.

use std::fmt::{self, Display, Formatter};

use crate::matcher::{HeaderMatch, Pattern, StringMatch};
use crate::policy::{ClaimMatch, ClaimValue, Permission, Principal};
use crate::route::{CookieMatch, PathMatch, QueryMatch, RouteMatch};

impl Display for StringMatch {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match &self.pattern {
            Pattern::Exact(text) => write!(f, "is {text:?}")?,
            Pattern::Prefix(text) => write!(f, "begins with {text:?}")?,
            Pattern::Suffix(text) => write!(f, "ends with {text:?}")?,
            Pattern::Contains(text) => write!(f, "contains {text:?}")?,
            Pattern::Regex(pattern) => return write!(f, "matches {pattern:?}"),
            Pattern::Present => return f.write_str("is there"),
            Pattern::Range(start, end) => return write!(f, "is a number from {start} to below {end}"),
        }
        if self.ignore_case { f.write_str(" in any case") } else { Ok(()) }
    }
}

impl Display for HeaderMatch {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let not = if self.invert { "not: " } else { "" };
        match self.name.strip_prefix(':') {
            Some(pseudo) => write!(f, "{not}the {pseudo} {}", self.value),
            None => write!(f, "{not}the header {} {}", self.name, self.value),
        }
    }
}

impl Display for PathMatch {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exact(path) => write!(f, "the path is {path}"),
            Self::Prefix(path) if path.is_empty() || path == "/" => f.write_str("any path"),
            Self::Prefix(path) => write!(f, "the path begins with {path}"),
            Self::Segments(path) => {
                let path = path.trim_end_matches('/');
                if path.is_empty() {
                    f.write_str("any path")
                } else {
                    write!(f, "the path is {path} or below it")
                }
            }
            Self::Regex(pattern) => write!(f, "the path matches {pattern:?}"),
            Self::Connect => f.write_str("a CONNECT request"),
        }
    }
}

impl Display for QueryMatch {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "the query parameter {} {}", self.name, self.value)
    }
}

impl Display for CookieMatch {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let not = if self.invert { "not: " } else { "" };
        write!(f, "{not}the cookie {} {}", self.name, self.value)
    }
}

impl Display for RouteMatch {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let path = self.path.to_string();
        let conditions = self.headers.iter().map(HeaderMatch::to_string);
        let conditions = conditions.chain(self.query.iter().map(QueryMatch::to_string));
        let conditions: Vec<_> = conditions.chain(self.cookies.iter().map(CookieMatch::to_string)).collect();
        match (path.as_str(), conditions.is_empty()) {
            ("any path", true) => f.write_str("every request"),
            ("any path", false) => f.write_str(&conditions.join(" and ")),
            (path, _) => {
                f.write_str(path)?;
                if self.ignore_case {
                    f.write_str(" in any case")?;
                }
                conditions.iter().try_for_each(|condition| write!(f, " and {condition}"))
            }
        }
    }
}

impl Display for Permission {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::Any => f.write_str("anything"),
            Self::And(list) => all(f, list, " and "),
            Self::Or(list) => all(f, list, " or "),
            Self::Not(inner) => write!(f, "not: {inner}"),
            Self::Header(header) => header.fmt(f),
            Self::Path(path) => write!(f, "the path {path}"),
            Self::DestinationPort(port) => write!(f, "the port is {port}"),
            Self::DestinationIp(net) => write!(f, "the destination is in {net}"),
            Self::ServerName(name) => write!(f, "the server name {name}"),
        }
    }
}

impl Display for Principal {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::Any => f.write_str("anybody"),
            Self::And(list) => all(f, list, " and "),
            Self::Or(list) => all(f, list, " or "),
            Self::Not(inner) => write!(f, "not: {inner}"),
            Self::Authenticated(None) => f.write_str("the peer has an identity"),
            Self::Authenticated(Some(id)) => write!(f, "the peer's identity {id}"),
            Self::SourceIp(net) => write!(f, "the peer is in {net}"),
            Self::Header(header) => header.fmt(f),
            Self::Claim(claim) => claim.fmt(f),
        }
    }
}

impl Display for ClaimMatch {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let path = self.path.get(1..).unwrap_or_default().join(".");
        write!(f, "the token's claim {path} {}", self.value)
    }
}

impl Display for ClaimValue {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::Present => f.write_str("is there"),
            Self::Text(text) => text.fmt(f),
            Self::Bool(is) => write!(f, "is {is}"),
            Self::Member(one) => write!(f, "has one that {one}"),
            Self::AnyOf(list) => all(f, list, " or "),
        }
    }
}

/// Conditions in one line beyond which their number tells enough.
const MOST: usize = 8;

fn all<T: Display>(f: &mut Formatter<'_>, list: &[T], word: &str) -> fmt::Result {
    for (at, item) in list.iter().take(MOST).enumerate() {
        if at > 0 {
            f.write_str(word)?;
        }
        item.fmt(f)?;
    }
    match list.len() {
        0 => f.write_str("nothing"),
        more if more > MOST => write!(f, "{word}{} more", more - MOST),
        _ => Ok(()),
    }
}
