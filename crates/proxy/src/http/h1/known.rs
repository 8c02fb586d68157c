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
    /// Recognises a name in any case.
    pub fn of(name: &[u8]) -> Self {
        let (text, known): (&[u8], Self) = match name.len() {
            2 => (b"te", Self::Te),
            4 if name[0] | 0x20 == b'h' => (b"host", Self::Host),
            4 => (b"date", Self::Date),
            6 => match name[0] | 0x20 {
                b'e' => (b"expect", Self::Expect),
                b'c' => (b"cookie", Self::Cookie),
                b's' => (b"server", Self::Server),
                _ => (b"accept", Self::Accept),
            },
            7 => match name[0] | 0x20 {
                b'u' => (b"upgrade", Self::Upgrade),
                b't' => (b"trailer", Self::Trailer),
                _ => (b"baggage", Self::Baggage),
            },
            10 => match name[0] | 0x20 {
                b'c' => (b"connection", Self::Connection),
                b'k' => (b"keep-alive", Self::KeepAlive),
                b't' => (b"tracestate", Self::Tracestate),
                _ => (b"user-agent", Self::UserAgent),
            },
            11 => (b"traceparent", Self::Traceparent),
            12 if name[0] | 0x20 == b'c' => (b"content-type", Self::ContentType),
            12 => (b"x-request-id", Self::XRequestId),
            13 => (b"authorization", Self::Authorization),
            14 if name[0] | 0x20 == b'c' => (b"content-length", Self::ContentLength),
            14 => (b"http2-settings", Self::Http2Settings),
            15 => (b"x-forwarded-for", Self::XForwardedFor),
            16 => (b"proxy-connection", Self::ProxyConnection),
            17 if name[0] | 0x20 == b't' => (b"transfer-encoding", Self::TransferEncoding),
            17 if name[0] | 0x20 == b's' => (b"sec-websocket-key", Self::SecWebsocketKey),
            17 => (b"x-forwarded-proto", Self::XForwardedProto),
            20 => (b"sec-websocket-accept", Self::SecWebsocketAccept),
            _ => return Self::Other,
        };
        if name.eq_ignore_ascii_case(text) { known } else { Self::Other }
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

/// `Upgrade` and `TE` are in the set too: the writer lets them through where they were agreed on.
pub const HOP_BY_HOP: u32 = (1 << Known::Connection as u8)
    | (1 << Known::KeepAlive as u8)
    | (1 << Known::ProxyConnection as u8)
    | (1 << Known::Http2Settings as u8)
    | (1 << Known::Upgrade as u8)
    | (1 << Known::Te as u8);
