//! The hash of a request for consistent hashing: Envoy's function over what the route names, so that all sidecars agree.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::time::Duration;

use outrigger_model::request::cookie;
use outrigger_model::route::HashOn;
use smallvec::SmallVec;
use xxhash_rust::xxh64::xxh64;

use super::head::RequestHead;
use crate::balance;

/// What was found.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Hashed {
    /// `None`: the request has nothing of what is hashed, and any endpoint will do.
    pub hash: Option<u64>,
    /// For a client without the cookie: the value of `set-cookie`.
    pub cookie: Option<String>,
}

/// Hashes a request.
pub fn of(on: &[HashOn], head: &RequestHead, source: SocketAddr) -> Hashed {
    let mut found = Hashed::default();
    for source_of in on {
        let next = match source_of {
            HashOn::Header(name) => header(head, name),
            HashOn::Query(name) => query(head.path(), name).map(|value| xxh64(value.as_bytes(), 0)),
            HashOn::SourceAddress => Some(balance::hash_of_ip(source.ip())),
            HashOn::Cookie { name, path, ttl } => match (cookie(head, name), ttl) {
                (Some(value), _) => Some(xxh64(value, 0)),
                (None, Some(ttl)) => {
                    let value = format!("{:016x}", fastrand::u64(..));
                    found.cookie = Some(set_cookie(name, &value, path.as_deref(), *ttl, &[]));
                    Some(xxh64(value.as_bytes(), 0))
                }
                (None, None) => None,
            },
        };
        // Rotated, so that the order counts and equal values do not cancel out.
        if let Some(next) = next {
            found.hash = Some(found.hash.map_or(0, |hash| hash.rotate_left(1)) ^ next);
        }
    }
    found
}

/// Of several values the order does not matter.
fn header(head: &RequestHead, name: &str) -> Option<u64> {
    if name == ":path" {
        return Some(xxh64(head.path().as_bytes(), 0));
    }
    if name == ":authority" || name == "host" {
        return Some(xxh64(head.authority().as_bytes(), 0));
    }
    let mut values: SmallVec<[&[u8]; 4]> = head.headers(name).collect();
    values.sort_unstable();
    values.into_iter().fold(None, |hash, value| Some(xxh64(value, hash.unwrap_or(0))))
}

fn query<'p>(path: &'p str, name: &str) -> Option<&'p str> {
    let (_, query) = path.split_once('?')?;
    query
        .split('&')
        .map(|pair| pair.split_once('=').unwrap_or((pair, "")))
        .find(|(key, _)| *key == name)
        .map(|p| p.1)
}

/// A life time of zero is the browser's session.
pub fn set_cookie(
    name: &str,
    value: &str,
    path: Option<&str>,
    ttl: Duration,
    attributes: &[(String, String)],
) -> String {
    let mut text = format!("{name}=\"{value}\"");
    // Writing to a String cannot fail.
    if !ttl.is_zero() {
        let _ = write!(text, "; Max-Age={}", ttl.as_secs().max(1));
    }
    if let Some(path) = path.filter(|path| !path.is_empty()) {
        let _ = write!(text, "; Path={path}");
    }
    for (name, value) in attributes {
        let equals = if value.is_empty() { "" } else { "=" };
        let _ = write!(text, "; {name}{equals}{value}");
    }
    text.push_str("; HttpOnly");
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::h1::H1Request;

    fn request(path: &str, headers: &[(&str, &str)]) -> RequestHead {
        let mut head = RequestHead::H1(H1Request::new("GET", path, "shop").unwrap());
        headers.iter().for_each(|(name, value)| head.append(name, value).unwrap());
        head
    }

    fn hash(on: HashOn, head: &RequestHead) -> Option<u64> {
        of(&[on], head, ([10, 0, 0, 7], 4711).into()).hash
    }

    #[test]
    fn each_source_is_hashed_and_what_is_absent_is_not() {
        let head = request("/a?x=1&user=ann", &[("X-User", "ann"), ("cookie", "a=b; sid=\"s1\"")]);
        let ann = Some(xxh64(b"ann", 0));
        assert_eq!(hash(HashOn::Header("x-user".into()), &head), ann);
        assert_eq!(hash(HashOn::Query("user".into()), &head), ann);
        assert_eq!(hash(HashOn::SourceAddress, &head), Some(xxh64(b"10.0.0.7", 0)));
        let cookie = |name: &str| HashOn::Cookie { name: name.into(), path: None, ttl: None };
        assert_eq!(hash(cookie("sid"), &head), Some(xxh64(b"s1", 0)));
        for absent in [HashOn::Header("x-other".into()), HashOn::Query("y".into()), cookie("si")] {
            assert_eq!(hash(absent, &head), None);
        }
    }

    #[test]
    fn several_sources_make_one_hash_in_which_their_order_counts() {
        let head = request("/?q=ann", &[("x-user", "ann"), ("x-shop", "7")]);
        let (user, shop) = (HashOn::Header("x-user".into()), HashOn::Header("x-shop".into()));
        let source = ([10, 0, 0, 7], 4711).into();
        let one = of(&[user.clone(), shop.clone()], &head, source).hash;
        assert_eq!(one, Some(xxh64(b"ann", 0).rotate_left(1) ^ xxh64(b"7", 0)));
        assert_ne!(one, of(&[shop, user.clone()], &head, source).hash);
        assert_ne!(
            of(&[user, HashOn::Query("q".into())], &head, source).hash,
            Some(0),
            "they do not cancel out"
        );
    }

    #[test]
    fn a_client_without_the_cookie_is_given_one_that_leads_it_back() {
        let on = HashOn::Cookie {
            name: "sid".into(),
            path: Some("/".into()),
            ttl: Some(Duration::from_secs(3600)),
        };
        let source = ([10, 0, 0, 7], 4711).into();
        let first = of(std::slice::from_ref(&on), &request("/", &[]), source);
        let set = first.cookie.unwrap();
        let value = set.strip_prefix("sid=\"").and_then(|s| s.split_once('"')).unwrap();
        assert_eq!(value.1, "; Max-Age=3600; Path=/; HttpOnly");
        let again = of(&[on], &request("/", &[("cookie", &format!("sid={}", value.0))]), source);
        assert_eq!((again.hash, again.cookie), (first.hash, None));
        assert!(!set_cookie("a", "b", None, Duration::ZERO, &[]).contains("Max-Age"), "a session's");
    }
}
