//! The conditions of a route, compiled: each is looked at once, and the first that does not hold is told.

use std::fmt;

use crate::invalid::{Flaw, Under};
use crate::matcher::header::CompiledHeader;
use crate::matcher::{Matcher, whole_text_regex};
use crate::request::{RequestView, cookie};
use crate::route::{PathMatch, RouteMatch};

/// Which condition a request does not meet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mismatch<'a> {
    /// The path.
    Path,
    /// The header of this name.
    Header(&'a str),
    /// The query parameter of this name.
    Query(&'a str),
    /// The cookie of this name.
    Cookie(&'a str),
}

impl fmt::Display for Mismatch<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Path => f.write_str("the path does not match"),
            Self::Header(name) => write!(f, "the header {name} does not match"),
            Self::Query(name) => write!(f, "the query parameter {name} does not match"),
            Self::Cookie(name) => write!(f, "the cookie {name} does not match"),
        }
    }
}

/// The conditions of a route, compiled.
#[derive(Debug)]
pub struct CompiledMatch {
    path: CompiledPath,
    headers: Vec<CompiledHeader>,
    query: Vec<(String, Matcher)>,
    /// Name, value, and whether the result is negated.
    cookies: Vec<(String, Matcher, bool)>,
}

#[derive(Debug)]
enum CompiledPath {
    Everything,
    Exact(String, bool),
    Prefix(String, bool),
    Segments(String, bool),
    Regex(regex::Regex),
    Connect,
}

impl CompiledMatch {
    /// Compiles them.
    ///
    /// # Errors
    /// The field that cannot be taken.
    pub fn compile(matches: &RouteMatch) -> Result<Self, Flaw> {
        let fold = matches.ignore_case;
        let path = match &matches.path {
            PathMatch::Prefix(p) if p == "/" || p.is_empty() => CompiledPath::Everything,
            PathMatch::Prefix(p) => CompiledPath::Prefix(p.clone(), fold),
            PathMatch::Exact(p) => CompiledPath::Exact(p.clone(), fold),
            PathMatch::Segments(p) => CompiledPath::Segments(p.trim_end_matches('/').to_owned(), fold),
            PathMatch::Regex(p) => CompiledPath::Regex(whole_text_regex(p).under("safe_regex")?),
            PathMatch::Connect => CompiledPath::Connect,
        };
        let headers = matches
            .headers
            .iter()
            .enumerate()
            .map(|(i, header)| CompiledHeader::compile(header).under(format_args!("headers[{i}]")));
        let query = matches.query.iter().enumerate().map(|(i, query)| {
            let value = query.value.compile().under(format_args!("query_parameters[{i}]"))?;
            Ok::<_, Flaw>((query.name.clone(), value))
        });
        let cookies = matches.cookies.iter().enumerate().map(|(i, cookie)| {
            let value = cookie.value.compile().under(format_args!("cookies[{i}]"))?;
            Ok::<_, Flaw>((cookie.name.clone(), value, cookie.invert))
        });
        Ok(Self {
            path,
            headers: headers.collect::<Result<_, _>>()?,
            query: query.collect::<Result<_, _>>()?,
            cookies: cookies.collect::<Result<_, _>>()?,
        })
    }

    /// The first that a request does not meet.
    pub fn mismatch<R: RequestView>(&self, request: &R) -> Option<Mismatch<'_>> {
        if !self.path.matches(request) {
            return Some(Mismatch::Path);
        }
        if let Some(header) = self.headers.iter().find(|header| !header.routes(request)) {
            return Some(Mismatch::Header(&header.name));
        }
        let meets = |(name, matcher, invert): &&(String, Matcher, bool)| {
            cookie(request, name).is_some_and(|value| matcher.matches(value)) != *invert
        };
        if let Some((name, ..)) = self.cookies.iter().find(|cookie| !meets(cookie)) {
            return Some(Mismatch::Cookie(name));
        }
        if self.query.is_empty() {
            return None;
        }
        let query = request.path().split_once('?').map_or("", |(_, query)| query);
        self.query
            .iter()
            .find(|(name, matcher)| !query_matches(query, name, matcher))
            .map(|(n, _)| Mismatch::Query(n))
    }
}

impl CompiledPath {
    fn matches<R: RequestView>(&self, request: &R) -> bool {
        let path = path_of(request.path());
        // A tunnel is what a route must ask for: CONNECT has no path that others could match.
        if path.is_empty() && request.method() == "CONNECT" {
            return matches!(self, Self::Connect);
        }
        let equal = |a: &str, b: &str, fold: bool| if fold { a.eq_ignore_ascii_case(b) } else { a == b };
        let starts = |p: &String, fold| path.get(..p.len()).is_some_and(|start| equal(start, p, fold));
        match self {
            Self::Everything => true,
            Self::Exact(p, fold) => equal(path, p, *fold),
            Self::Prefix(p, fold) => starts(p, *fold),
            Self::Segments(p, fold) => {
                starts(p, *fold) && (path.len() == p.len() || path.as_bytes()[p.len()] == b'/')
            }
            Self::Regex(regex) => regex.is_match(path),
            Self::Connect => false,
        }
    }
}

fn query_matches(query: &str, name: &str, matcher: &Matcher) -> bool {
    let mut pairs = query.split('&').map(|pair| pair.split_once('=').unwrap_or((pair, "")));
    pairs.find(|(key, _)| *key == name).is_some_and(|(_, value)| matcher.matches(value.as_bytes()))
}

pub(super) fn path_of(path_and_query: &str) -> &str {
    path_and_query.split_once('?').map_or(path_and_query, |(path, _)| path)
}
