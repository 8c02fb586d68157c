//! How the pure decisions see a request and a connection, whatever protocol carried them.

use std::net::SocketAddr;

use crate::claims::Proven;
use crate::identity::SpiffeId;

/// Methods that servers know (IANA's registry, and PURGE).
pub const METHODS: &[&str] = &[
    "ACL",
    "BASELINE-CONTROL",
    "BIND",
    "CHECKIN",
    "CHECKOUT",
    "CONNECT",
    "COPY",
    "DELETE",
    "GET",
    "HEAD",
    "LABEL",
    "LINK",
    "LOCK",
    "MERGE",
    "MKACTIVITY",
    "MKCALENDAR",
    "MKCOL",
    "MKREDIRECTREF",
    "MKWORKSPACE",
    "MOVE",
    "OPTIONS",
    "ORDERPATCH",
    "PATCH",
    "POST",
    "PRI",
    "PROPFIND",
    "PROPPATCH",
    "PURGE",
    "PUT",
    "QUERY",
    "REBIND",
    "REPORT",
    "SEARCH",
    "TRACE",
    "UNBIND",
    "UNCHECKOUT",
    "UNLINK",
    "UNLOCK",
    "UPDATE",
    "UPDATEREDIRECTREF",
    "VERSION-CONTROL",
];

/// Read access to a request head; implemented by the proxy's HTTP/1 and HTTP/2 heads and by `explain`.
pub trait RequestView {
    /// The method, such as `GET`.
    fn method(&self) -> &str;
    /// Path and query, the path in its one form (`path.rs`): `/a/b?c=d`. Empty: CONNECT, which has none.
    fn path(&self) -> &str;
    /// `Host` or `:authority`, with the port if one was sent.
    fn authority(&self) -> &str;
    /// `http` or `https`.
    fn scheme(&self) -> &str;
    /// All values of a header; `name` is lower-case.
    fn header<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a [u8]> + 'a;
    /// What good tokens of it say; see [`WithTokens`](crate::token::WithTokens).
    fn tokens(&self) -> Option<&Proven> {
        None
    }
    /// What all conditions on claims are supposed to come to, where nobody knows what tokens say.
    fn supposed(&self) -> Option<bool> {
        None
    }
}

/// The first cookie of that name (RFC 6265, section 5.4), without the quotes that some clients send.
pub fn cookie<'a, R: RequestView>(request: &'a R, name: &str) -> Option<&'a [u8]> {
    request.header("cookie").find_map(|line| cookie_of(line, name))
}

/// The same of one line of the field.
pub fn cookie_of<'a>(line: &'a [u8], name: &str) -> Option<&'a [u8]> {
    line.split(|b| *b == b';').find_map(|pair| {
        let value = pair.trim_ascii_start().strip_prefix(name.as_bytes())?.strip_prefix(b"=")?;
        let bare = value.strip_prefix(b"\"").and_then(|value| value.strip_suffix(b"\""));
        Some(bare.unwrap_or(value))
    })
}

/// What is known of a connection when it is authorized.
#[derive(Debug, Clone, Copy)]
pub struct ConnectionView<'a> {
    /// The identity that the peer proved, if the connection is mTLS.
    pub peer: Option<&'a SpiffeId>,
    /// The address of the peer.
    pub source: SocketAddr,
    /// The original destination.
    pub destination: SocketAddr,
    /// The server name of the TLS ClientHello.
    pub server_name: Option<&'a str>,
}
