//! Whether a request to a page of ours may come from a web browser that has another page open.
//!
//! A page of a stranger can make the browser of an operator call any address that the operator reaches. Two things tell:
//! `Host`, which after DNS rebinding is the stranger's name though the address is ours, and `Origin`, which is the page's.
//! A stranger's name is never an IP address and never `localhost`; other names of ours must be told.

use http::header::{HOST, ORIGIN};
use http::{HeaderMap, HeaderValue, Uri};

/// The names by which pages are asked for, beside IP addresses and `localhost`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Site {
    names: Vec<String>,
}

impl Site {
    /// These names, in any case; one may begin with `*.` for all below it.
    pub fn new<T: AsRef<str>>(names: impl IntoIterator<Item = T>) -> Self {
        let names = names.into_iter().map(|name| canonical(name.as_ref())).filter(|name| !name.is_empty());
        Self { names: names.collect() }
    }

    /// Whether somebody is to be turned away, and why. `setting` is where names are told.
    pub fn refuse(&self, target: &Uri, headers: &HeaderMap, setting: &str) -> Option<String> {
        // RFC 9112, section 3.2.2: the absolute form goes before Host. HTTP/1.0 and programs may have neither; browsers have.
        for host in target.host().into_iter().chain(headers.get_all(HOST).iter().map(text)) {
            let name = without_port(host);
            if !self.knows(name) {
                return Some(format!(
                    "Refused: this process is not known as {name:?}. Ask by IP address or localhost, or put the name into \
                     {setting}.\n"
                ));
            }
        }
        let host = target.authority().map(|authority| authority.as_str());
        let host = host.or_else(|| headers.get(HOST).map(text)).unwrap_or_default();
        for origin in headers.get_all(ORIGIN).iter().map(text) {
            let own =
                origin.split_once("://").is_some_and(|(_, authority)| authority.eq_ignore_ascii_case(host));
            if !own || host.is_empty() {
                return Some(format!("Refused: a web page from {origin:?} must not ask this process.\n"));
            }
        }
        None
    }

    fn knows(&self, name: &str) -> bool {
        let name = canonical(name);
        let bare = name.trim_start_matches('[').trim_end_matches(']');
        if name == "localhost" || bare.parse::<std::net::IpAddr>().is_ok() {
            return true;
        }
        self.names.iter().any(|known| match known.strip_prefix('*') {
            Some(suffix) => name.len() > suffix.len() && name.ends_with(suffix),
            None => *known == name,
        })
    }
}

fn text(value: &HeaderValue) -> &str {
    // What is not text is no name of ours.
    value.to_str().unwrap_or("\u{fffd}")
}

fn canonical(name: &str) -> String {
    name.trim().trim_end_matches('.').to_ascii_lowercase()
}

fn without_port(host: &str) -> &str {
    match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|b| b.is_ascii_digit()) && !name.ends_with(':') => {
            // `::1` without brackets has no port.
            if name.contains(':') && !name.starts_with('[') { host } else { name }
        }
        _ => host,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(target: &str, headers: &[(&str, &str)]) -> Option<String> {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(http::HeaderName::try_from(*name).unwrap(), HeaderValue::from_str(value).unwrap());
        }
        let site = Site::new(["control.example", "*.mesh.example."]);
        site.refuse(&target.parse().unwrap(), &map, "pageNames")
    }

    #[test]
    fn only_addresses_localhost_and_told_names_are_ours() {
        for host in [
            "127.0.0.1:15000",
            "10.0.0.7",
            "[::1]:15000",
            "[fd00::1]",
            "::1",
            "localhost",
            "LOCALHOST:15000",
            "localhost.",
            "control.example:15014",
            "Control.Example",
            "a.mesh.example",
            "a.b.mesh.example:1",
        ] {
            assert_eq!(refused("/", &[("host", host)]), None, "{host}");
        }
        for host in [
            "rebound.evil",
            "rebound.evil:15000",
            "localhost.evil",
            "127.0.0.1.evil:1",
            "mesh.example",
            "evilmesh.example",
            "control.example.evil",
            "",
            ":80",
            "\u{e9}",
        ] {
            let said = refused("/", &[("host", host)]);
            assert!(said.as_ref().is_some_and(|said| said.contains("pageNames")), "{host}: {said:?}");
        }
        assert_eq!(refused("/", &[]), None, "HTTP/1.0");
        assert!(refused("/", &[("host", "localhost"), ("host", "rebound.evil")]).is_some(), "a second Host");
        assert!(refused("http://rebound.evil/", &[("host", "localhost")]).is_some(), "the absolute form");
    }

    #[test]
    fn only_our_own_pages_may_ask() {
        let from = |host: &str, origin: &str| refused("/", &[("host", host), ("origin", origin)]);
        assert_eq!(from("127.0.0.1:15000", "http://127.0.0.1:15000"), None);
        assert_eq!(from("localhost:15000", "http://Localhost:15000"), None);
        for origin in
            ["http://evil.example", "null", "http://127.0.0.1:15001", "http://127.0.0.1:15000.evil", ""]
        {
            assert!(from("127.0.0.1:15000", origin).is_some(), "{origin}");
        }
        assert!(refused("/", &[("origin", "http://")]).is_some());
    }
}
