//! Tunnels: WebSocket and any other `Upgrade`, extended CONNECT (RFC 8441), and plain CONNECT. A tunnel goes to the routed
//! upstream, never to the authority that a CONNECT names.
//!
//! Behind it no policy looks at requests any more, so only WebSocket is let through by itself: another protocol where the
//! listener or the route allows it, CONNECT where a route asks for it (which the route table sees to).
//!
//! The bytes are copied by the same loop as bodies; here is only when a tunnel stands.

use outrigger_model::route::{Route, RouteAction};

use super::h1::fields::list_members;
use super::h1::{Framing, Known, grammar};
use super::head::{RequestHead, ResponseHead};
use crate::failure::{Failure, FailureKind, Stage};

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

/// Whether listener (`upgrades`) and route let the request switch to what it asks for, to all of what it offers: the server
/// chooses.
///
/// # Errors
/// The first protocol that they do not allow.
#[cold]
pub fn check(head: &RequestHead, route: &Route, upgrades: &[String]) -> Result<(), Failure> {
    let allowed = |protocol: &[u8]| match (&route.action, std::str::from_utf8(protocol)) {
        (RouteAction::Forward(forward), Ok(protocol)) => forward.allows_upgrade(protocol, upgrades),
        // Nothing is forwarded, so nothing is switched.
        (_, Ok(_)) => true,
        (_, Err(_)) => false,
    };
    let refused = |protocol: &[u8]| {
        let name = String::from_utf8_lossy(protocol).into_owned();
        let detail = format!(
            "an upgrade to {name} is not allowed here; list it in \"upgrades\" of the port's registration or of the service's \
             TrafficRules, or in the upgrade_configs of the listener or route"
        );
        Failure::local(Stage::Route, FailureKind::UpgradeRefused, detail)
    };
    let first = match head {
        RequestHead::H1(h1) => {
            let lines = h1.fields.known(Known::Upgrade).filter(|line| !grammar::is_h2c(line));
            lines.flat_map(list_members).find(|protocol| !allowed(protocol))
        }
        RequestHead::H2(_) => head.upgrade().filter(|protocol| !allowed(protocol)),
    };
    first.map_or(Ok(()), |protocol| Err(refused(protocol)))
}
