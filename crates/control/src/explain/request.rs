//! A request as it was asked about, and what a sidecar makes of its head.

use outrigger_model::request::RequestView;
use outrigger_model::route::HeaderEdits;
use outrigger_model::route::edits::Write;
use outrigger_model::route::text::{Command, Facts, of_request};
use outrigger_model::{grpc, names};

use super::body::ExplainRequest;

/// Bytes of a head, as the proxies take.
const MOST_BYTES: usize = 60 << 10;

/// A request head.
#[derive(Debug, Clone)]
pub(super) struct Asked {
    method: String,
    scheme: String,
    authority: String,
    path: String,
    headers: Vec<(String, String)>,
}

/// Where it goes, by its URL.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Goal {
    /// Over TLS of the application's own.
    pub(super) tls: bool,
    pub(super) host: String,
    pub(super) port: u16,
}

impl RequestView for Asked {
    fn method(&self) -> &str {
        &self.method
    }
    fn path(&self) -> &str {
        &self.path
    }
    fn authority(&self) -> &str {
        &self.authority
    }
    fn scheme(&self) -> &str {
        &self.scheme
    }
    fn header<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a [u8]> + 'a {
        self.headers.iter().filter(move |(known, _)| known == name).map(|(_, value)| value.as_bytes())
    }
}

/// Reads what was asked about.
///
/// # Errors
/// What of it is none of HTTP, and why.
pub(super) fn read(asked: &ExplainRequest) -> Result<(Asked, Goal), String> {
    let bytes =
        asked.url.len() + asked.method.len() + asked.headers.iter().map(|h| h.len() + 4).sum::<usize>();
    if bytes > MOST_BYTES {
        return Err(format!("the request has {bytes} bytes; proxies take heads of up to {MOST_BYTES}"));
    }
    let is_token = |text: &str| !text.is_empty() && text.bytes().all(is_token_byte);
    if !is_token(&asked.method) {
        return Err(format!("{:?} is no method; write it as GET", asked.method));
    }
    if asked.method == "CONNECT" {
        return Err("CONNECT goes to an authority, not to a URL, and cannot be explained".to_owned());
    }
    let (goal, authority, path) = url(&asked.url)?;
    let scheme = if goal.tls { "https" } else { "http" };
    let mut request = Asked {
        method: asked.method.clone(),
        scheme: scheme.to_owned(),
        authority,
        path,
        headers: Vec::new(),
    };
    for line in &asked.headers {
        let bad = || format!("{line:?} is no header; write it as 'name: value'");
        let (name, value) = line.split_once(':').ok_or_else(bad)?;
        let (name, value) = (name.to_ascii_lowercase(), value.trim_matches([' ', '\t']));
        if !is_token(&name) || value.bytes().any(|b| b < b' ' && b != b'\t' || b == 0x7f) {
            return Err(bad());
        }
        match name.as_str() {
            "host" => value.clone_into(&mut request.authority),
            _ => request.headers.push((name, value.to_owned())),
        }
    }
    Ok((request, goal))
}

/// RFC 9110, section 5.6.2.
fn is_token_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

/// Goal, authority and path of an absolute URL (RFC 9110, section 4.2).
fn url(text: &str) -> Result<(Goal, String, String), String> {
    let bad =
        |why: &str| format!("{text:?} is no URL that can be explained: {why}; write http://HOST[:PORT]/PATH");
    let (scheme, rest) = text.split_once("://").ok_or_else(|| bad("it has no scheme"))?;
    let tls = match scheme.to_ascii_lowercase().as_str() {
        "http" => false,
        "https" => true,
        _ => return Err(bad("its scheme is neither http nor https")),
    };
    // A fragment never leaves the client.
    let rest = rest.split('#').next().unwrap_or_default();
    let end = rest.find(['/', '?']).unwrap_or(rest.len());
    let (authority, path) = rest.split_at(end);
    if authority.contains('@') {
        return Err(bad("it has a user, which no client sends"));
    }
    let (host, port) = match authority.rsplit_once(':') {
        Some((host, port)) if !port.contains(']') => (
            host,
            port.parse()
                .ok()
                .filter(|port| *port > 0)
                .ok_or_else(|| bad("its port is no number from 1 to 65535"))?,
        ),
        _ => (authority, if tls { 443 } else { 80 }),
    };
    let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    if bare.is_empty() || (bare.contains(':') && bare.parse::<std::net::Ipv6Addr>().is_err()) {
        return Err(bad("its host is none"));
    }
    if path.bytes().any(|b| b <= b' ' || b == 0x7f) {
        return Err(bad("its path has a blank or a control character, which must be escaped"));
    }
    let path = if path.starts_with('/') { path.to_owned() } else { format!("/{path}") };
    let goal = Goal { tls, host: bare.to_owned(), port };
    Ok((goal, authority.to_owned(), path))
}

/// The request id of a request that has none; nobody can match on it.
const SOME_ID: &str = "00000000-0000-4000-8000-000000000000";

impl Asked {
    /// As a sidecar makes it out, at either end: what nobody else may say is gone, and what it says itself is there.
    pub(super) fn through_sidecar(&mut self) {
        self.headers
            .retain(|(name, _)| !name.starts_with("x-outrigger-") && name != "x-forwarded-client-cert");
        self.tidy();
        match self.first("x-forwarded-proto").map(str::to_ascii_lowercase) {
            Some(said) if said == "http" || said == "https" => self.scheme = said,
            Some(_) => {}
            None => self.headers.push(("x-forwarded-proto".to_owned(), self.scheme.clone())),
        }
        if self.first("x-request-id").is_none() {
            self.headers.push(("x-request-id".to_owned(), SOME_ID.to_owned()));
        }
    }

    /// As the server's sidecar makes it out.
    pub(super) fn arriving(&mut self, peer: Option<&str>, own: Option<&str>) {
        self.through_sidecar();
        match peer {
            Some(peer) => {
                let by = own.map_or(String::new(), |own| format!("By={own};"));
                self.headers.push(("x-forwarded-client-cert".to_owned(), format!("{by}URI={peer}")));
            }
            None => self.headers.retain(|(name, _)| !name.starts_with("x-envoy-")),
        }
    }

    /// Without what only looks like a name that sidecars set.
    fn tidy(&mut self) {
        self.headers.retain(|(name, _)| !names::is_lookalike_of_ours(name.as_bytes()));
    }

    /// Which goes over HTTP/2 only.
    pub(super) fn is_grpc(&self) -> bool {
        self.first("content-type").is_some_and(|kind| grpc::is_grpc(kind.as_bytes()))
    }

    /// The status of an answer that a sidecar gives itself: to a call of gRPC's it stands in `grpc-status`.
    pub(super) fn answered(&self, status: u16) -> u16 {
        if self.is_grpc() { 200 } else { status }
    }

    pub(super) fn first(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    /// The protocols that it asks to switch to, as sidecars read it: none unless `Connection` says so, and never h2c.
    pub(super) fn upgrades(&self) -> impl Iterator<Item = &str> {
        let lines = |wanted: &'static str| {
            self.headers.iter().filter(move |(name, _)| name == wanted).map(|(_, value)| value.as_str())
        };
        let has = |line: &str, wanted: &str| members(line).any(|member| member.eq_ignore_ascii_case(wanted));
        let says_so = lines("connection").any(|line| has(line, "upgrade"));
        let asks = says_so && lines("upgrade").next().is_some_and(|line| !has(line, "h2c"));
        lines("upgrade").filter(move |line| asks && !has(line, "h2c")).flat_map(members)
    }

    pub(super) fn set_path(&mut self, path: String) {
        self.path = path;
    }

    pub(super) fn set_authority(&mut self, authority: &str) {
        authority.clone_into(&mut self.authority);
    }

    /// Edits in the order of the proxy: remove, set, add. Of commands those of the request itself are known.
    pub(super) fn edit(&mut self, edits: &HeaderEdits) {
        self.headers.retain(|(name, _)| !edits.remove.contains(name));
        let has = |name: &str| self.headers.iter().any(|(known, _)| known == name);
        let writes: Vec<(Write<'_>, String)> = edits
            .writes(has)
            .filter_map(|write| {
                let value = write.pair().1.value(self)?;
                Some((write, String::from_utf8_lossy(&value).into_owned()))
            })
            .collect();
        for (write, value) in writes {
            let name = write.pair().0;
            if is_authority(name) {
                self.set_authority(&value);
                continue;
            }
            if let Write::Set(..) = write {
                self.headers.retain(|(known, _)| known != name);
            }
            self.headers.push((name.to_owned(), value));
        }
    }
}

impl Facts for Asked {
    fn say(&self, command: &Command, out: &mut Vec<u8>) {
        match command {
            Command::Request(name, other) => {
                let value = of_request(self, name).or_else(|| of_request(self, other.as_deref()?));
                out.extend_from_slice(value.unwrap_or_default());
            }
            Command::Protocol => out.extend_from_slice(if self.is_grpc() { b"HTTP/2" } else { b"HTTP/1.1" }),
            _ => {}
        }
    }
}

/// Of a list in a header.
fn members(line: &str) -> impl Iterator<Item = &str> {
    line.split(',').map(str::trim_ascii).filter(|member| !member.is_empty())
}

fn is_authority(name: &str) -> bool {
    matches!(name, ":authority" | "host")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(url: &str, headers: &[&str]) -> Result<(Asked, Goal), String> {
        let headers = headers.iter().map(|line| (*line).to_owned()).collect();
        read(&ExplainRequest {
            url: url.to_owned(),
            method: "GET".to_owned(),
            headers,
            ..ExplainRequest::default()
        })
    }

    #[test]
    fn a_url_says_where_a_request_goes_and_what_it_asks_for() {
        for (url, host, port, authority, path) in [
            ("http://reviews.shop", "reviews.shop", 80, "reviews.shop", "/"),
            ("https://reviews:8443?a=b", "reviews", 8443, "reviews:8443", "/?a=b"),
            ("HTTP://[::1]:80/x?y#z", "::1", 80, "[::1]:80", "/x?y"),
            ("http://[::1]/x", "::1", 80, "[::1]", "/x"),
        ] {
            let (request, goal) = asked(url, &[]).unwrap();
            assert_eq!((goal.host.as_str(), goal.port), (host, port), "{url}");
            assert_eq!((request.authority(), request.path()), (authority, path), "{url}");
        }
        let (request, goal) = asked("http://a/", &["Host: b.example", "K:  v "]).unwrap();
        assert_eq!(
            (goal.host.as_str(), request.authority(), request.first("k")),
            ("a", "b.example", Some("v"))
        );
    }

    #[test]
    fn an_upgrade_is_asked_for_as_proxies_read_it() {
        for (headers, wanted) in [
            (&["upgrade: chat"][..], &[] as &[&str]),
            (&["connection: keep-alive", "upgrade: chat"], &[]),
            (&["connection: keep-alive, Upgrade", "upgrade: chat"], &["chat"]),
            (&["connection: upgrade", "upgrade: websocket, chat/2"], &["websocket", "chat/2"]),
            (&["connection: upgrade", "upgrade: a", "upgrade: h2c, b", "upgrade: c"], &["a", "c"]),
            (&["connection: upgrade", "upgrade: H2C", "upgrade: c"], &[]),
            (&["connection: upgrade, http2-settings", "upgrade: h2c"], &[]),
            (&["connection: upgrade"], &[]),
        ] {
            let (request, _) = asked("http://a/", headers).unwrap();
            assert_eq!(request.upgrades().collect::<Vec<_>>(), wanted, "{headers:?}");
        }
    }

    #[test]
    fn what_is_no_request_is_refused_with_a_reason() {
        for (url, headers, why) in [
            ("reviews/x", &[][..], "no scheme"),
            ("ftp://reviews/x", &[], "neither http nor https"),
            ("http:///x", &[], "its host"),
            ("http://u:p@reviews/", &[], "a user"),
            ("http://reviews:99999/", &[], "its port"),
            ("http://reviews/a b", &[], "a blank"),
            ("http://reviews/", &["no colon"], "no header"),
            ("http://reviews/", &["a b: c"], "no header"),
            ("http://reviews/", &["a: b\r\nc: d"], "no header"),
        ] {
            let error = asked(url, headers).unwrap_err();
            assert!(error.contains(why), "{url}: {error}");
        }
        let long = format!("http://reviews/{}", "a".repeat(MOST_BYTES));
        assert!(asked(&long, &[]).unwrap_err().contains("bytes"));
    }
}
