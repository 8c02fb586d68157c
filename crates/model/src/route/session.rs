//! Sessions: what leads the requests of a client to the endpoint that has answered its first one (Envoy's stateful session filter, Gateway
//! API's `sessionPersistence`).
//!
//! The client carries the endpoint's address itself, so that every proxy can read it and none keeps anything. It is Envoy's form: an
//! address in base64, of a cookie in a protobuf message with the time when it ends. Ours has one more field, which an Envoy passes over.
//! Whoever reads it looks for the address among the endpoints of the route's clusters, and nowhere else.

use std::net::SocketAddr;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};

/// A longer text is no token.
const LONGEST: usize = 256;

/// How clients of a route stay where they are.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Session {
    /// What carries the address.
    pub by: SessionBy,
    /// Where that endpoint takes no requests any more, none other gets them: they are answered with this status.
    pub strict: Option<u16>,
    /// So long after it began a session ends. Absent: never.
    pub absolute: Option<Duration>,
    /// So long after its last answer a session ends. Absent: never.
    pub idle: Option<Duration>,
}

/// What carries the address of an endpoint.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum SessionBy {
    /// A cookie that the client is given.
    Cookie {
        /// Its name.
        name: String,
        /// Only requests for this path, and beneath it, belong to the session.
        path: Option<String>,
        /// It outlives the client's own session: until the absolute end.
        permanent: bool,
        /// What else the cookie says, such as `SameSite` or `Secure`; an empty value is none.
        attributes: Vec<(String, String)>,
    },
    /// A header of the response, which the client repeats in its requests.
    Header {
        /// Its name in lower case.
        name: String,
    },
}

/// What a client carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Token {
    /// The endpoint.
    pub address: SocketAddr,
    /// When the session ends, in seconds since 1970; 0: nothing is said.
    pub expires: u64,
    /// When it ends unless there is another request before, in the same way.
    pub idle: u64,
}

impl Session {
    /// The token in a text, if it is one of this session's that has not ended; `now` in seconds since 1970.
    pub fn read(&self, text: &[u8], now: u64) -> Option<Token> {
        let bytes = STANDARD.decode(text.get(..text.len().min(LONGEST + 1))?).ok()?;
        let token = if self.is_bare() {
            let address = std::str::from_utf8(&bytes).ok()?.parse().ok()?;
            Token { address, expires: 0, idle: 0 }
        } else {
            Token::decode(&bytes)?
        };
        let lives = |limit: Option<Duration>, end: u64| limit.is_none() || now <= end && end > 0;
        (text.len() <= LONGEST && lives(self.absolute, token.expires) && lives(self.idle, token.idle))
            .then_some(token)
    }

    /// What the client is to carry after an answer of this endpoint; `None`: what it has.
    pub fn answered(&self, had: Option<Token>, address: SocketAddr, now: u64) -> Option<Token> {
        let end =
            |limit: Option<Duration>| limit.map_or(0, |limit| now.saturating_add(limit.as_secs().max(1)));
        let idle = end(self.idle);
        match had.filter(|had| had.address == address) {
            Some(_) if self.idle.is_none() => None,
            Some(had) => Some(Token { idle, ..had }),
            None => Some(Token { address, expires: end(self.absolute), idle }),
        }
    }

    /// A token as this session's clients carry it.
    pub fn write(&self, token: &Token) -> String {
        match self.is_bare() {
            true => STANDARD.encode(token.address.to_string()),
            false => STANDARD.encode(token.encode()),
        }
    }

    /// Envoy's header has nothing but the address.
    fn is_bare(&self) -> bool {
        matches!(self.by, SessionBy::Header { .. }) && self.absolute.is_none() && self.idle.is_none()
    }
}

impl SessionBy {
    /// Whether requests for a path belong to it.
    pub fn is_for(&self, path: &str) -> bool {
        let Self::Cookie { path: Some(within), .. } = self else { return true };
        let path = path.split_once('?').map_or(path, |(path, _)| path);
        let rest = path.strip_prefix(within.as_str());
        rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/') || within.ends_with('/'))
    }
}

/// Tags of `Cookie {string address = 1; uint64 expires = 2;}` and of our own field.
const ADDRESS: u64 = 1 << 3 | 2;
const EXPIRES: u64 = 2 << 3;
const IDLE: u64 = 3 << 3;

impl Token {
    fn encode(&self) -> Vec<u8> {
        let address = self.address.to_string();
        let mut bytes = vec![ADDRESS as u8, address.len() as u8];
        bytes.extend_from_slice(address.as_bytes());
        for (tag, mut value) in [(EXPIRES, self.expires), (IDLE, self.idle)] {
            if value == 0 {
                continue;
            }
            bytes.push(tag as u8);
            while value >= 0x80 {
                bytes.push(value as u8 | 0x80);
                value >>= 7;
            }
            bytes.push(value as u8);
        }
        bytes
    }

    fn decode(mut bytes: &[u8]) -> Option<Self> {
        let (mut address, mut expires, mut idle) = (None, 0, 0);
        while !bytes.is_empty() {
            match varint(&mut bytes)? {
                ADDRESS => {
                    let length = usize::try_from(varint(&mut bytes)?).ok()?;
                    let (text, rest) = bytes.split_at_checked(length)?;
                    address = std::str::from_utf8(text).ok()?.parse().ok();
                    bytes = rest;
                }
                EXPIRES => expires = varint(&mut bytes)?,
                IDLE => idle = varint(&mut bytes)?,
                // Of other kinds nobody has written one.
                _ => return None,
            }
        }
        Some(Self { address: address?, expires, idle })
    }
}

fn varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let (first, rest) = bytes.split_first()?;
        *bytes = rest;
        value |= u64::from(first & 0x7f) << shift;
        if first & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cookie(absolute: Option<u64>, idle: Option<u64>) -> Session {
        let by = SessionBy::Cookie { name: "s".into(), path: None, permanent: false, attributes: Vec::new() };
        let time = |seconds: Option<u64>| seconds.map(Duration::from_secs);
        Session { by, strict: None, absolute: time(absolute), idle: time(idle) }
    }

    fn address() -> SocketAddr {
        ([10, 0, 0, 7], 8080).into()
    }

    #[test]
    fn a_token_is_what_envoy_writes() {
        let plain = cookie(None, None);
        let token = plain.answered(None, address(), 100).unwrap();
        assert_eq!(plain.write(&token), STANDARD.encode(b"\x0a\x0d10.0.0.7:8080"));
        let timed = cookie(Some(200), None);
        let token = timed.answered(None, address(), 100).unwrap();
        assert_eq!(timed.write(&token), STANDARD.encode(b"\x0a\x0d10.0.0.7:8080\x10\xac\x02"));
        let by = SessionBy::Header { name: "x-s".into() };
        let header = Session { by, ..plain };
        assert_eq!(header.write(&token), STANDARD.encode("10.0.0.7:8080"));
        assert_eq!(header.read(STANDARD.encode("10.0.0.7:8080").as_bytes(), 5).unwrap().address, address());
    }

    #[test]
    fn a_session_ends_at_its_time_and_with_silence() {
        let session = cookie(Some(100), Some(10));
        let first = session.answered(None, address(), 1_000).unwrap();
        assert_eq!((first.expires, first.idle), (1_100, 1_010));
        let text = session.write(&first);
        assert_eq!(session.read(text.as_bytes(), 1_010), Some(first));
        assert_eq!(session.read(text.as_bytes(), 1_011), None, "silent for too long");
        let next = session.answered(Some(first), address(), 1_005).unwrap();
        assert_eq!((next.expires, next.idle), (1_100, 1_015), "it does not begin again");
        let long = Token { idle: 2_000, ..first };
        assert_eq!(session.read(session.write(&long).as_bytes(), 1_101), None, "over");
        // What says nothing of an end is none of a session that has one.
        let endless = cookie(None, None).write(&Token { expires: 0, idle: 0, ..first });
        assert_eq!(session.read(endless.as_bytes(), 1_000), None);
        let other = session.answered(Some(first), ([10, 0, 0, 8], 1).into(), 1_050).unwrap();
        assert_eq!(other.expires, 1_150, "another endpoint, another session");
        assert_eq!(cookie(None, None).answered(Some(first), address(), 1_001), None);
    }

    #[test]
    fn what_is_no_token_is_none() {
        let session = cookie(None, None);
        let long = STANDARD.encode([b'a'; 300]);
        let cut = STANDARD.encode(b"\x0a\x7f10.0.0.7:8080");
        let name = STANDARD.encode(b"\x0a\x0cexample:8080");
        let endless =
            STANDARD.encode([0x10, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01]);
        for text in ["", "?", "AAAA", &long, &cut, &name, &endless] {
            assert_eq!(session.read(text.as_bytes(), 0), None, "{text}");
        }
    }

    #[test]
    fn a_cookie_is_for_its_path_and_beneath_it() {
        let by = |path: &str| SessionBy::Cookie {
            name: "s".into(),
            path: Some(path.into()),
            permanent: false,
            attributes: Vec::new(),
        };
        for (path, request, is) in [
            ("/a", "/a", true),
            ("/a", "/a?b", true),
            ("/a", "/a/b", true),
            ("/a", "/ab", false),
            ("/a/", "/a/b", true),
            ("/", "/x", true),
            ("/a", "/", false),
        ] {
            assert_eq!(by(path).is_for(request), is, "{path} {request}");
        }
    }
}
