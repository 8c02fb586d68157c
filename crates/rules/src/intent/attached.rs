//! Routes that are attached to services, as the Gateway API has it (GAMMA).
//!
//! Unlike routing for a set of hosts, all that is attached to a port of a service is one list, in an order of its own: which
//! match goes first, the match says, not its place.

use serde::{Deserialize, Serialize};

use super::{Host, HttpRoute, ObjectKind, Origin, Place, RouteIntent, Target, TcpRoute, TlsRoute};

/// Routes of one object.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct AttachedIntent {
    /// The object that says so.
    pub origin: Origin,
    /// When it was made, as `2026-01-31T10:00:00Z`, if it says so: the older of two goes first.
    pub created: Option<String>,
    /// What it is attached to, in order.
    pub parents: Vec<Parent>,
    /// Those of them that are services, each once.
    pub hosts: Vec<Host>,
    /// HTTP routes in order.
    pub http: Vec<HttpRoute>,
    /// Routes of TLS that is not ended; each server name of a port is the first's that has it.
    #[serde(default)]
    pub tls: Vec<TlsRoute>,
    /// Routes of connections; of a port the first holds.
    #[serde(default)]
    pub tcp: Vec<TcpRoute>,
    /// What it says and nobody can do.
    pub flaws: Vec<RouteFlaw>,
}

/// What a route is attached to.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Parent {
    /// API group; empty for a Service.
    pub group: String,
    /// Kind.
    pub kind: String,
    /// The namespace that was written.
    pub namespace: Option<String>,
    /// Name.
    pub name: String,
    /// Only this port, by its name.
    pub section: Option<String>,
    /// Only this port.
    pub port: Option<u16>,
    /// The service that it is; `None` for a kind that has no routes here.
    pub host: Option<Host>,
    /// Where it was written.
    pub place: Place,
}

/// Something of a route that cannot be done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RouteFlaw {
    /// The condition that it makes false.
    pub condition: RouteCondition,
    /// One of the Gateway API's words.
    pub reason: String,
    /// What, and what becomes of the requests.
    pub message: String,
}

/// A condition of a route in the Gateway API.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum RouteCondition {
    /// It is in force at its parent.
    Accepted,
    /// All that it refers to is there and may be referred to.
    ResolvedRefs,
}

impl RouteCondition {
    /// As the Gateway API writes it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Accepted => "Accepted",
            Self::ResolvedRefs => "ResolvedRefs",
        }
    }
}

impl AttachedIntent {
    /// Whether it is attached to that port of a service; `named` says which port has a name.
    pub fn is_at(&self, host: &Host, port: u16, named: impl Fn(&str) -> Option<u16>) -> bool {
        self.parents.iter().any(|parent| {
            parent.host.as_ref() == Some(host)
                && parent.port.is_none_or(|wanted| wanted == port)
                && parent.section.as_ref().is_none_or(|name| named(name) == Some(port))
        })
    }

    /// Of two the one with the lesser age goes first: Kubernetes says of every object when it was made; what does not say goes behind
    /// what does, and then names decide.
    pub fn age(&self) -> (bool, Option<&str>, &str) {
        (self.created.is_none(), self.created.as_deref(), &self.origin.name)
    }

    /// Whether it stands in place of what a rule for a set of hosts says of the same port, or of a part of that.
    pub fn replaces(&self, rule: &RouteIntent) -> bool {
        match self.origin.kind {
            // All of a port is bytes then.
            ObjectKind::TcpRoute => true,
            ObjectKind::TlsRoute => !rule.tls.is_empty(),
            _ => !rule.http.is_empty(),
        }
    }

    /// Everything that it may send something to, where that was written, and whether only copies go there.
    pub fn references(&self) -> impl Iterator<Item = (&Target, &Place, bool)> {
        let shares = self.http.iter().flat_map(|http| &http.targets);
        let shares = shares.chain(self.tls.iter().flat_map(|tls| &tls.targets));
        let shares = shares.chain(self.tcp.iter().flat_map(|tcp| &tcp.targets));
        let mirrors = self.http.iter().flat_map(|http| &http.mirrors);
        let mirrors = mirrors.map(|mirror| (&mirror.target, &mirror.place, true));
        let asked = self.http.iter().filter_map(|http| http.auth.as_deref());
        let asked = asked.map(|auth| (&auth.target, &auth.place, false));
        shares.map(|share| (&share.target, &share.place, false)).chain(mirrors).chain(asked)
    }
}

/// The group of the Gateway API's own kinds.
pub const GATEWAY_GROUP: &str = "gateway.networking.k8s.io";
