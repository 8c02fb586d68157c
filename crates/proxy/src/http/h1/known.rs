//! Field names that the proxy itself looks at, recognised once while parsing, so that a look-up costs one bit test.

use outrigger_model::names;

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
    GrpcStatus,
    GrpcTimeout,
    XForwardedClientCert,
    XEnvoyUpstreamServiceTime,
    XEnvoyAttemptCount,
    XOutriggerError,
    XOutriggerPeer,
    B3,
}

/// Bits above those of names: some name looks like one of ours, some name begins so.
pub(super) const ANY_LOOKALIKE: u64 = 1 << 60;
const ANY_X_B3: u64 = 1 << 61;
const ANY_X_ENVOY: u64 = 1 << 62;
const ANY_X_OUTRIGGER: u64 = 1 << 63;

impl Known {
    /// Recognises a name (a token) in any case. One comparison at most: length and first letter leave one candidate.
    #[inline(always)] // most names are constants: nothing is left of it but a bit
    pub fn of(name: &[u8]) -> Self {
        let Some(first) = name.first().map(|byte| byte | 0x20) else { return Self::Other };
        let (same, known) = match (name.len(), first) {
            (2, b't') => (is(name, b"te"), Self::Te),
            (2, _) => (is(name, b"b3"), Self::B3),
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
            (11, b't') => (is(name, b"traceparent"), Self::Traceparent),
            (11, _) => (is(name, b"grpc-status"), Self::GrpcStatus),
            (12, b'c') => (is(name, b"content-type"), Self::ContentType),
            (12, b'g') => (is(name, b"grpc-timeout"), Self::GrpcTimeout),
            (12, _) => (is(name, b"x-request-id"), Self::XRequestId),
            (13, _) => (is(name, b"authorization"), Self::Authorization),
            (14, b'c') => (is(name, b"content-length"), Self::ContentLength),
            (14, _) => (is(name, b"http2-settings"), Self::Http2Settings),
            (15, _) => (is(name, b"x-forwarded-for"), Self::XForwardedFor),
            (16, b'p') => (is(name, b"proxy-connection"), Self::ProxyConnection),
            (16, _) => (is(name, b"x-outrigger-peer"), Self::XOutriggerPeer),
            (17, b't') => (is(name, b"transfer-encoding"), Self::TransferEncoding),
            (17, b's') => (is(name, b"sec-websocket-key"), Self::SecWebsocketKey),
            (17, _) if name[2] | 0x20 == b'o' => (is(name, b"x-outrigger-error"), Self::XOutriggerError),
            (17, _) => (is(name, b"x-forwarded-proto"), Self::XForwardedProto),
            (20, _) => (is(name, b"sec-websocket-accept"), Self::SecWebsocketAccept),
            (21, _) => (is(name, b"x-envoy-attempt-count"), Self::XEnvoyAttemptCount),
            (23, _) => (is(name, b"x-forwarded-client-cert"), Self::XForwardedClientCert),
            (29, _) => (is(name, b"x-envoy-upstream-service-time"), Self::XEnvoyUpstreamServiceTime),
            _ => return Self::Other,
        };
        if same { known } else { Self::Other }
    }

    /// This name's bit in a presence set; `Other` has none.
    pub const fn bit(self) -> u64 {
        match self {
            Self::Other => 0,
            known => 1 << (known as u8),
        }
    }

    /// Fields that mean something on one connection only, and never pass (RFC 9110, section 7.6.1).
    pub fn is_hop_by_hop(self) -> bool {
        self.bit() & HOP_BY_HOP != 0
    }
}

/// Compares whole words: the length is a constant here. Setting the case bit is exact for tokens, whose bytes are all above
/// 0x20; the only others that it could confuse are control bytes.
#[inline(always)]
fn is<const N: usize>(name: &[u8], text: &[u8; N]) -> bool {
    let Some(name) = name.first_chunk::<N>() else { return false };
    name.iter().zip(text).fold(0, |differ, (a, b)| differ | ((a | 0x20) ^ b)) == 0
}

/// The bits of one line's name in a presence set: its own, and that of its prefix.
#[inline]
pub(super) fn bits(name: &[u8], known: Known) -> u64 {
    // Nearly all begin with another letter.
    if let [b'x' | b'X', ..] = name { known.bit() | bits_of_x(name, known) } else { known.bit() }
}

fn bits_of_x(name: &[u8], known: Known) -> u64 {
    // What is recognised has its dashes, and looks like nothing else.
    prefix_bit(name) | if known == Known::Other { lookalike_bit(name) } else { 0 }
}

/// Most names are done with after a look at their first letters.
fn lookalike_bit(name: &[u8]) -> u64 {
    match name {
        [b'x' | b'X', between, b'e' | b'E' | b'f' | b'F' | b'o' | b'O' | b'r' | b'R', ..]
            if !between.is_ascii_alphanumeric() && names::is_lookalike_of_ours(name) =>
        {
            ANY_LOOKALIKE
        }
        _ => 0,
    }
}

/// The bit that says whether any name may begin with `prefix`; 0: there is none.
pub(super) fn prefix_bit(prefix: &[u8]) -> u64 {
    match prefix {
        [b'x' | b'X', b'-', b'b' | b'B', ..] => ANY_X_B3,
        [b'x' | b'X', b'-', b'e' | b'E', ..] => ANY_X_ENVOY,
        [b'x' | b'X', b'-', b'o' | b'O', ..] => ANY_X_OUTRIGGER,
        _ => 0,
    }
}

/// `Upgrade` and `TE` are in the set too: the writer lets them through where they were agreed on.
pub const HOP_BY_HOP: u64 = (1 << Known::Connection as u8)
    | (1 << Known::KeepAlive as u8)
    | (1 << Known::ProxyConnection as u8)
    | (1 << Known::Http2Settings as u8)
    | (1 << Known::Upgrade as u8)
    | (1 << Known::Te as u8);
