//! Where a probe that is redirected goes on, as a kubelet's does: the last answer counts, not that there is a page elsewhere. What leads
//! to another host is not the application's health, and is an answer as it stands.

use std::net::{IpAddr, SocketAddr};

use http::uri::{Authority, PathAndQuery};
use http::{HeaderMap, HeaderName, StatusCode, header};
use outrigger_identity::upstream::connect_unverified;

use super::{AnyError, Head, get, http, to_application};

/// Of one probe, the first among them.
pub(super) const MOST_REQUESTS: usize = 10;

/// Of requests behind the first: one that comes back to us goes round in circles, and each round would begin anew.
pub(super) const FOLLOWED: HeaderName = HeaderName::from_static("x-outrigger-app-health");

/// What is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Target {
    pub(super) address: SocketAddr,
    pub(super) tls: bool,
    /// With its query.
    pub(super) path: String,
    /// `Host`; absent: the address.
    pub(super) host: Option<String>,
}

impl Target {
    /// Asks, and goes where it is sent; `headers` are those of whoever asked us.
    pub(super) async fn ask(mut self, headers: &HeaderMap) -> Result<StatusCode, String> {
        for number in 0..MOST_REQUESTS {
            let (status, location) = match self.answer(headers, number > 0).await {
                Ok(answer) => answer,
                Err(error) => return Err(format!("{}: {error}", self.address)),
            };
            match location.and_then(|location| self.led(&location)) {
                Some(next) => self = next,
                None => return Ok(status),
            }
        }
        Err(format!("{}: the application has redirected {MOST_REQUESTS} times", self.address))
    }

    async fn answer(
        &self,
        headers: &HeaderMap,
        is_followed: bool,
    ) -> Result<(StatusCode, Option<String>), AnyError> {
        let mut request = get(self.address, &self.path, self.host.as_deref(), headers)?;
        if is_followed {
            request.headers_mut().insert(FOLLOWED, header::HeaderValue::from_static("followed"));
        }
        let tcp = to_application(self.address).await?;
        let head: Head = match self.tls {
            true => http(connect_unverified(tcp, self.address.ip()).await?, request).await?,
            false => http(tcp, request).await?,
        };
        Ok((head.status, location(&head).map(str::to_owned)))
    }

    /// Where a Location leads on this host.
    fn led(&self, location: &str) -> Option<Self> {
        let location = location.split('#').next().filter(|location| !location.is_empty())?;
        let (tls, rest) = match scheme(location) {
            Some((scheme, rest)) if scheme.eq_ignore_ascii_case("http") => (false, rest),
            Some((scheme, rest)) if scheme.eq_ignore_ascii_case("https") => (true, rest),
            Some(_) => return None,
            None => (self.tls, location),
        };
        match rest.strip_prefix("//") {
            Some(rest) => self.led_to(tls, rest),
            // `http:path` is nobody's.
            None if rest.len() < location.len() => None,
            None => Self::at(self.address, self.tls, self.host.clone(), &self.resolved(rest)),
        }
    }

    fn led_to(&self, tls: bool, rest: &str) -> Option<Self> {
        let (authority, path) = rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len()));
        let authority: Authority = authority.parse().ok().filter(|_| !authority.contains('@'))?;
        let host = authority.host().trim_start_matches('[').trim_end_matches(']');
        let ip = host.parse::<IpAddr>().ok().filter(|ip| *ip == self.address.ip())?;
        let port = authority.port_u16().unwrap_or(if tls { 443 } else { 80 });
        let path = if path.starts_with('/') { path.to_owned() } else { format!("/{path}") };
        Self::at(SocketAddr::new(ip, port), tls, Some(authority.to_string()), &path)
    }

    fn at(address: SocketAddr, tls: bool, host: Option<String>, path: &str) -> Option<Self> {
        let path = path.parse::<PathAndQuery>().ok()?.as_str().to_owned();
        Some(Self { address, tls, path, host })
    }

    /// A reference to a path, by this one's (RFC 3986, 5.2).
    fn resolved(&self, reference: &str) -> String {
        let base = self.path.split('?').next().unwrap_or_default();
        let directory = base.rsplit_once('/').map_or("", |(directory, _)| directory);
        let (path, query) = reference.split_at(reference.find('?').unwrap_or(reference.len()));
        let path = match path {
            "" => base.to_owned(),
            path if path.starts_with('/') => without_dots(path),
            path => without_dots(&format!("{directory}/{path}")),
        };
        path + query
    }
}

/// What a redirect leads to; other answers lead nowhere, whatever they say.
fn location(head: &Head) -> Option<&str> {
    let is_redirect = matches!(head.status.as_u16(), 301 | 302 | 303 | 307 | 308);
    head.headers.get(header::LOCATION).filter(|_| is_redirect)?.to_str().ok()
}

/// `scheme:rest`
fn scheme(location: &str) -> Option<(&str, &str)> {
    let (scheme, rest) = location.split_once(':')?;
    let letters = |c: char| c.is_ascii_alphanumeric() || matches!(c, '+' | '-' | '.');
    (scheme.starts_with(|c: char| c.is_ascii_alphabetic()) && scheme.chars().all(letters))
        .then_some((scheme, rest))
}

/// A path without `.` and `..`.
fn without_dots(path: &str) -> String {
    let mut kept: Vec<&str> = Vec::new();
    let mut segments = path.split('/').skip(1).peekable();
    while let Some(segment) = segments.next() {
        let is_dots = matches!(segment, "." | "..");
        if segment == ".." {
            kept.pop();
        }
        if !is_dots {
            kept.push(segment);
        } else if segments.peek().is_none() {
            kept.push("");
        }
    }
    format!("/{}", kept.join("/"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_location_leads_to_this_host_or_nowhere() {
        let from = Target {
            address: ([10, 1, 0, 7], 8080).into(),
            tls: false,
            path: "/health/z?full".into(),
            host: Some("shop.example".into()),
        };
        let led = |location: &str| {
            let Target { address, tls, path, host } = from.led(location)?;
            assert_eq!(address.ip(), from.address.ip(), "{location}");
            Some((address.port(), tls, path, host.unwrap_or_default()))
        };
        let shop = "shop.example";
        for (location, port, tls, path, host) in [
            ("/login", 8080, false, "/login", shop),
            ("/login?to=/health#top", 8080, false, "/login?to=/health", shop),
            ("login", 8080, false, "/health/login", shop),
            ("../login/./new/..", 8080, false, "/login/", shop),
            ("?less", 8080, false, "/health/z?less", shop),
            ("http://10.1.0.7:9090/x", 9090, false, "/x", "10.1.0.7:9090"),
            ("HTTPS://10.1.0.7", 443, true, "/", "10.1.0.7"),
            ("https://10.1.0.7:8443?a", 8443, true, "/?a", "10.1.0.7:8443"),
            ("//10.1.0.7/x", 80, false, "/x", "10.1.0.7"),
        ] {
            let wanted = Some((port, tls, path.to_owned(), host.to_owned()));
            assert_eq!(led(location), wanted, "{location}");
        }
        for elsewhere in [
            "",
            "#top",
            "http://shop.example/",
            "//10.1.0.8/",
            "mailto:a@b",
            "http://a@10.1.0.7/",
            "http:x",
            "http://a b/",
            "/a b",
        ] {
            assert_eq!(led(elsewhere), None, "{elsewhere}");
        }
        let six = Target { address: "[2001:db8::7]:8080".parse().unwrap(), ..from.clone() };
        let next = six.led("http://[2001:db8::7]:9090/x").unwrap();
        assert_eq!(next.address, "[2001:db8::7]:9090".parse::<SocketAddr>().unwrap());
    }
}
