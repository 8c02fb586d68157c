//! A request head as it arrives over HTTP/2, and as routing and policy see it.

use http::Method;
use http::header::{self, HeaderValue};
use http::uri::Scheme;
use outrigger_model::request::RequestView;

use super::{RequestHead, target};
use crate::http::h1::Limits;
use crate::http::h1::strict::{self, Refusal};

impl RequestHead {
    /// A head that the h2 crate received, within the limits of HTTP/1; `connection` is the scheme that it has if it says none. An
    /// extended CONNECT (RFC 8441) is from here on the GET with Upgrade that it becomes
    /// for an HTTP/1 server, so that routes and policies mean the same for both.
    ///
    /// # Errors
    /// When it breaks a rule that the h2 crate does not check, and that an HTTP/1 hop would suffer from.
    pub fn from_h2(
        mut parts: http::request::Parts,
        connection: &'static str,
        limits: &Limits,
    ) -> Result<Self, Refusal> {
        strict::h2_request(&parts, limits)?;
        let scheme = parts.uri.scheme();
        if !scheme.is_some_and(|scheme| *scheme == Scheme::HTTP || *scheme == Scheme::HTTPS) {
            target::complete(&mut parts, connection)?;
        }
        if parts.extensions.get::<h2::ext::Protocol>().is_some() {
            upgraded(&mut parts)?;
        }
        Ok(Self::H2(parts))
    }
}

/// The connection's own fields are left out again when the head leaves over HTTP/2, and written anew for HTTP/1.
#[cold]
fn upgraded(parts: &mut http::request::Parts) -> Result<(), Refusal> {
    let protocol = parts.extensions.get::<h2::ext::Protocol>().map_or("", h2::ext::Protocol::as_str);
    let upgrade = HeaderValue::from_str(protocol).map_err(|_| Refusal::Protocol)?;
    parts.method = Method::GET;
    let headers = &mut parts.headers;
    let told = headers.try_insert(header::UPGRADE, upgrade);
    told.and_then(|_| headers.try_insert(header::CONNECTION, HeaderValue::from_static("upgrade")))
        .map(|_| ())
        .map_err(|_| Refusal::TooManyFields)
}

impl RequestView for RequestHead {
    fn method(&self) -> &str {
        self.method()
    }

    fn path(&self) -> &str {
        self.path()
    }

    fn authority(&self) -> &str {
        self.authority()
    }

    fn scheme(&self) -> &str {
        self.scheme()
    }

    fn header<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a [u8]> + 'a {
        self.headers(name)
    }
}
