//! Field names that the proxy itself looks at, recognised once while parsing, so that a look-up costs one bit test.

/// A recognised field name, or `Other`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Known {
    Other = 0,
    Host,
    Connection,
    ContentLength,
    TransferEncoding,
    Upgrade,
    Expect,
    Te,
    Trailer,
    KeepAlive,
    ProxyConnection,
    Http2Settings,
    Cookie,
    Traceparent,
    Tracestate,
    Baggage,
    XRequestId,
    XForwardedFor,
    XForwardedProto,
    UserAgent,
    ContentType,
    Accept,
    Authorization,
    Date,
    Server,
    SecWebsocketKey,
    SecWebsocketAccept,
}

impl Known {
    /// Recognises a name (a token) in any case. One comparison at most: length and first letter leave one candidate.
    pub fn of(name: &[u8]) -> Self {
        let Some(first) = name.first().map(|byte| byte | 0x20) else { return Self::Other };
        let (same, known) = match (name.len(), first) {
            (2, _) => (is(name, b"te"), Self::Te),
            (4, b'h') => (is(name, b"host"), Self::Host),
            (4, _) => (is(name, b"date"), Self::Date),
            (6, b'e') => (is(name, b"expect"), Self::Expect),
            (6, b'c') => (is(name, b"cookie"), Self::Cookie),
            (6, b's') => (is(name, b"server"), Self::Server),
            (6, _) => (is(name, b"accept"), Self::Accept),
            (7, b'u') => (is(name, b"upgrade"), Self::Upgrade),
            (7, b't') => (is(name, b"trailer"), Self::Trailer),
            (7, _) => (is(name, b"baggage"), Self::Baggage),
            (10, b'c') => (is(name, b"connection"), Self::Connection),
            (10, b'k') => (is(name, b"keep-alive"), Self::KeepAlive),
            (10, b't') => (is(name, b"tracestate"), Self::Tracestate),
            (10, _) => (is(name, b"user-agent"), Self::UserAgent),
            (11, _) => (is(name, b"traceparent"), Self::Traceparent),
            (12, b'c') => (is(name, b"content-type"), Self::ContentType),
            (12, _) => (is(name, b"x-request-id"), Self::XRequestId),
            (13, _) => (is(name, b"authorization"), Self::Authorization),
            (14, b'c') => (is(name, b"content-length"), Self::ContentLength),
            (14, _) => (is(name, b"http2-settings"), Self::Http2Settings),
            (15, _) => (is(name, b"x-forwarded-for"), Self::XForwardedFor),
            (16, _) => (is(name, b"proxy-connection"), Self::ProxyConnection),
            (17, b't') => (is(name, b"transfer-encoding"), Self::TransferEncoding),
            (17, b's') => (is(name, b"sec-websocket-key"), Self::SecWebsocketKey),
            (17, _) => (is(name, b"x-forwarded-proto"), Self::XForwardedProto),
            (20, _) => (is(name, b"sec-websocket-accept"), Self::SecWebsocketAccept),
            _ => return Self::Other,
        };
        if same { known } else { Self::Other }
    }

    /// This name's bit in a presence set; `Other` has none.
    pub fn bit(self) -> u32 {
        if self == Self::Other { 0 } else { 1 << (self as u8) }
    }

    /// Fields that mean something on one connection only, and never pass (RFC 9110, section 7.6.1).
    pub fn is_hop_by_hop(self) -> bool {
        self.bit() & HOP_BY_HOP != 0
    }
}

/// Compares whole words: the length is a constant here. Setting the case bit is exact for tokens, whose bytes are all above
/// 0x20; the only others that it could confuse are control bytes.
fn is<const N: usize>(name: &[u8], text: &[u8; N]) -> bool {
    let Some(name) = name.first_chunk::<N>() else { return false };
    name.iter().zip(text).fold(0, |differ, (a, b)| differ | ((a | 0x20) ^ b)) == 0
}

/// `Upgrade` and `TE` are in the set too: the writer lets them through where they were agreed on.
pub const HOP_BY_HOP: u32 = (1 << Known::Connection as u8)
    | (1 << Known::KeepAlive as u8)
    | (1 << Known::ProxyConnection as u8)
    | (1 << Known::Http2Settings as u8)
    | (1 << Known::Upgrade as u8)
    | (1 << Known::Te as u8);
