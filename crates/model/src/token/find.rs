//! Where in a request its tokens are.

use std::borrow::Cow;

use super::{JwtProvider, TokenHeader};
use crate::request::RequestView;

/// Of one provider in one request. Each costs a signature.
pub(super) const MOST: usize = 8;

/// Where a token was.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum From<'p> {
    Header(&'p str),
    Param(&'p str),
    Cookie,
}

/// A token, as it was found.
#[derive(PartialEq, Eq)]
pub(super) struct Found<'r, 'p> {
    pub(super) token: Cow<'r, str>,
    pub(super) from: From<'p>,
}

/// The places of a provider.
#[derive(Debug)]
pub(super) struct Places {
    headers: Vec<TokenHeader>,
    params: Vec<String>,
    cookies: Vec<String>,
}

impl Places {
    pub(super) fn of(provider: &JwtProvider) -> Self {
        let JwtProvider { headers, params, cookies, .. } = provider.clone();
        if headers.is_empty() && params.is_empty() && cookies.is_empty() {
            let bearer = TokenHeader { name: "authorization".into(), prefix: "Bearer ".into() };
            return Self { headers: vec![bearer], params: vec!["access_token".into()], cookies };
        }
        Self { headers, params, cookies }
    }

    /// Adds the tokens that are there, one more than [`MOST`] at most.
    pub(super) fn find<'r, 'p: 'r, R: RequestView>(&'p self, request: &'r R, all: &mut Vec<Found<'r, 'p>>) {
        for TokenHeader { name, prefix } in &self.headers {
            for value in request.header(name).filter_map(|value| after(value, prefix)).take(MOST + 1) {
                // What is no text is a token that is none.
                let token = std::str::from_utf8(value).unwrap_or_default();
                all.push(Found { token: token.into(), from: From::Header(name) });
            }
        }
        if !self.params.is_empty()
            && let Some((_, query)) = request.path().split_once('?')
        {
            for (name, value) in pairs(query) {
                if let Some(wanted) = self.params.iter().find(|wanted| **wanted == name) {
                    all.push(Found { token: value, from: From::Param(wanted) });
                }
                if all.len() > MOST {
                    return;
                }
            }
        }
        if !self.cookies.is_empty() {
            let cookies = request.header("cookie").flat_map(|value| value.split(|b| *b == b';'));
            let named = cookies.filter_map(|cookie| {
                let at = cookie.iter().position(|b| *b == b'=')?;
                let name = cookie[..at].trim_ascii();
                let ours = self.cookies.iter().any(|wanted| wanted.as_bytes() == name);
                ours.then(|| std::str::from_utf8(&cookie[at + 1..]).unwrap_or_default())
            });
            let tokens = named.map(|value| value.trim().trim_matches('"')).take(MOST + 1);
            all.extend(tokens.map(|token| Found { token: token.into(), from: From::Cookie }));
        }
    }
}

/// What follows a prefix. The scheme of `Authorization` knows no case (RFC 9110, section 11.1).
fn after<'v>(value: &'v [u8], prefix: &str) -> Option<&'v [u8]> {
    let (start, rest) = value.split_at_checked(prefix.len())?;
    start.eq_ignore_ascii_case(prefix.as_bytes()).then(|| rest.trim_ascii())
}

fn pairs(query: &str) -> impl Iterator<Item = (Cow<'_, str>, Cow<'_, str>)> {
    query.split('&').map(|pair| pair.split_once('=').unwrap_or((pair, ""))).map(|(name, value)| {
        let value = unescaped(value);
        (unescaped(name), value)
    })
}

/// What escapes stand for; such as stand for no text stay.
fn unescaped(text: &str) -> Cow<'_, str> {
    if !text.contains('%') {
        return text.into();
    }
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        let escaped = match tail {
            [a, b, ..] if *first == b'%' => char::from(*a).to_digit(16).zip(char::from(*b).to_digit(16)),
            _ => None,
        };
        match escaped.and_then(|(high, low)| u8::try_from(high * 16 + low).ok()) {
            Some(byte) => {
                bytes.push(byte);
                rest = &tail[2..];
            }
            None => {
                bytes.push(*first);
                rest = tail;
            }
        }
    }
    String::from_utf8(bytes).map_or_else(|_| text.into(), Cow::Owned)
}

/// A path without a parameter, wherever it occurs.
pub(super) fn without(path: &str, param: &str) -> String {
    let Some((path, query)) = path.split_once('?') else { return path.to_owned() };
    let name = |pair: &&str| unescaped(pair.split_once('=').map_or(*pair, |(name, _)| name)) != param;
    let rest: Vec<&str> = query.split('&').filter(name).collect();
    if rest.is_empty() { path.to_owned() } else { format!("{path}?{}", rest.join("&")) }
}
