//! Tunnels: WebSocket and any other `Upgrade`, extended CONNECT (RFC 8441), and plain CONNECT. A tunnel goes to the routed
//! upstream, never to the authority that a CONNECT names.
//!
//! The bytes are copied by the same loop as bodies; here is only when a tunnel stands.

use super::h1::Framing;
use super::head::{RequestHead, ResponseHead};

/// What a request asks for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Upgrade {
    /// An ordinary exchange.
    #[default]
    None,
    /// Another protocol on this connection or stream.
    Protocol,
    /// CONNECT.
    Connect,
}

impl Upgrade {
    /// What this request asks for.
    pub fn of(head: &RequestHead) -> Self {
        if head.is_connect() {
            return Self::Connect;
        }
        if head.upgrade().is_some() { Self::Protocol } else { Self::None }
    }

    /// Whether the other protocol begins behind a body (RFC 9110, section 7.8), which only HTTP/1.1 can say.
    pub fn follows_body(self, framing: Framing) -> bool {
        self == Self::Protocol && !framing.is_empty() && framing != Framing::Tunnel
    }

    /// Whether this response opens the tunnel.
    pub fn is_open(self, head: &ResponseHead, framing: Framing) -> bool {
        match (self, head) {
            (Self::None, _) => false,
            // The parser knew what was asked for.
            (_, ResponseHead::H1(_)) => framing == Framing::Tunnel,
            // HTTP/2 has no framing that says so: a 2xx does (RFC 9113, section 8.5; RFC 8441, section 5).
            (_, ResponseHead::H2(parts)) => parts.status.is_success(),
        }
    }
}
