//! Conditions of attached routes, as the Gateway API has them: whether a route is in force at a parent, and whether all that
//! it refers to can be used. The same for the API, for `get` and for the analyzer.

use std::collections::BTreeMap;

use crate::catalog::PortProtocol;
use crate::intent::{AttachedIntent, Host, ObjectKind, Origin, Parent, Place, RouteCondition, Target};

mod backend_tls;

pub use backend_tls::of as of_backend_tls;

/// What conditions depend on beside the route.
pub trait Surroundings {
    /// The ports of a service and what they speak; `None` where there is no such service.
    fn ports(&self, host: &Host) -> Option<BTreeMap<u16, PortProtocol>>;
    /// The port of a name.
    fn port_named(&self, host: &Host, name: &str) -> Option<u16>;
    /// A route of the same namespace that holds at that port instead, if there is any; `spoken` is what the port speaks.
    fn outranked(
        &self,
        route: &AttachedIntent,
        host: &Host,
        port: u16,
        spoken: PortProtocol,
    ) -> Option<Origin>;
}

/// The conditions of a route at one parent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ParentStatus<'r> {
    /// The parent.
    pub parent: &'r Parent,
    /// One of each kind.
    pub conditions: Vec<Condition>,
}

/// One condition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Condition {
    /// Which.
    pub kind: RouteCondition,
    /// Whether it is true.
    pub holds: bool,
    /// One of the Gateway API's words.
    pub reason: String,
    /// Why it is false; empty where it is true.
    pub message: String,
}

/// Told of one route; what else is wrong is in the findings.
const MOST: usize = 12;

/// The conditions of a route at each of its parents.
pub fn of<'r>(route: &'r AttachedIntent, around: &impl Surroundings) -> Vec<ParentStatus<'r>> {
    let written = |kind| {
        let flaws = route.flaws.iter().filter(move |flaw| flaw.condition == kind);
        flaws.map(|flaw| (flaw.reason.clone(), flaw.message.clone()))
    };
    let lost = lost(route, around);
    let lost = lost.iter().map(|lost| (lost.reason.to_owned(), lost.message.clone()));
    let refs = condition(RouteCondition::ResolvedRefs, written(RouteCondition::ResolvedRefs).chain(lost));
    let parents = route.parents.iter();
    parents
        .map(|parent| {
            let apart = detached(route, parent, around).map(|(why, message)| (why.to_owned(), message));
            let accepted = apart.into_iter().chain(written(RouteCondition::Accepted));
            let accepted = condition(RouteCondition::Accepted, accepted);
            ParentStatus { parent, conditions: vec![accepted, refs.clone()] }
        })
        .collect()
}

/// True without troubles; the first gives the reason, all of them the message.
fn condition(kind: RouteCondition, troubles: impl Iterator<Item = (String, String)>) -> Condition {
    let mut troubles = troubles.peekable();
    let holds = troubles.peek().is_none();
    let reason = troubles.peek().map_or_else(|| kind.as_str().to_owned(), |(reason, _)| reason.clone());
    let messages: Vec<String> = troubles.map(|(_, message)| message).take(MOST).collect();
    Condition { kind, holds, reason, message: messages.join("; ") }
}

/// Why a route is not in force at a parent.
pub(crate) fn detached(
    route: &AttachedIntent,
    parent: &Parent,
    around: &impl Surroundings,
) -> Option<(&'static str, String)> {
    let Some(host) = &parent.host else {
        let message = match parent.kind.as_str() {
            "Gateway" => "there are no Gateways in this mesh yet".to_owned(),
            kind => format!("a {kind:.80} has no routes here, only Services have"),
        };
        return Some(("NoMatchingParent", message));
    };
    let Some(ports) = around.ports(host) else {
        return Some(("NoMatchingParent", format!("there is no service {}", short(host))));
    };
    let named = parent.section.as_ref().map(|name| around.port_named(host, name));
    let at = |port: &u16| parent.port.is_none_or(|p| p == *port) && named.is_none_or(|p| p == Some(*port));
    let at: BTreeMap<u16, PortProtocol> =
        ports.iter().filter(|(port, _)| at(port)).map(|(p, s)| (*p, *s)).collect();
    if at.is_empty() {
        let wanted = match (&parent.section, parent.port) {
            (Some(name), _) => format!("port \"{name:.80}\""),
            (None, port) => format!("port {}", port.unwrap_or_default()),
        };
        let known: Vec<String> = ports.keys().take(MOST).map(u16::to_string).collect();
        let message = format!("{} has no {wanted}, only {}", short(host), known.join(", "));
        return Some(("NoMatchingParent", message));
    }
    let kind = route.origin.kind;
    let mut able = at.iter().filter(|(_, spoken)| can_hold(kind, **spoken)).peekable();
    if able.peek().is_none() {
        let others: Vec<String> = at.keys().take(MOST).map(u16::to_string).collect();
        let (host, others) = (short(host), others.join(", "));
        let message = match kind {
            ObjectKind::TlsRoute => {
                format!(
                    "{host} speaks no TLS of its own at port {others}, where nobody asks for a server name"
                )
            }
            _ => format!("{host} speaks no HTTP at port {others}, where there are no requests"),
        };
        return Some(("NoMatchingParent", message));
    }
    let mut first = None;
    for (port, spoken) in able {
        let other = around.outranked(route, host, *port, *spoken)?;
        first.get_or_insert(other);
    }
    let other = first?;
    let why = if other.kind == kind { "it is the older one" } else { "only one kind of route can" };
    Some(("Conflicted", format!("{other} holds at {}, and {why}", short(host))))
}

/// A reference that cannot be used.
pub(crate) struct Lost<'r> {
    pub(crate) reason: &'static str,
    pub(crate) message: String,
    /// Only copies were to go there.
    pub(crate) mirror: bool,
    pub(crate) place: &'r Place,
}

/// The references of a route that cannot be used.
pub(crate) fn lost<'r>(route: &'r AttachedIntent, around: &impl Surroundings) -> Vec<Lost<'r>> {
    let mut found: Vec<Lost<'r>> = Vec::new();
    for (target, place, mirror) in route.references() {
        let Some(message) = unusable(target, around) else { continue };
        if !found.iter().any(|known| known.message == message && known.mirror == mirror) {
            found.push(Lost { reason: "BackendNotFound", message, mirror, place });
        }
    }
    found
}

fn unusable(target: &Target, around: &impl Surroundings) -> Option<String> {
    let host = short(&target.host);
    let Some(ports) = around.ports(&target.host) else {
        return Some(format!("there is no service {host}"));
    };
    let port = target.port.filter(|port| !ports.contains_key(port))?;
    let known: Vec<String> = ports.keys().take(MOST).map(u16::to_string).collect();
    Some(format!("{host} has no port {port}, only {}", known.join(", ")))
}

/// Whether a route makes another have no effect at a port of both. One kind holds at a port, the more specific one (GEP-1294); and
/// of routes that have nothing to tell connections by one holds, the older.
pub fn outranks(one: &AttachedIntent, other: &AttachedIntent) -> bool {
    let (kind, behind) = (one.origin.kind, other.origin.kind);
    let both = kind == ObjectKind::TcpRoute && behind == kind;
    rank(kind) > rank(behind) || (both && one.age() < other.age())
}

/// Whether there is anything for a route of a kind at a port that speaks so.
pub fn can_hold(kind: ObjectKind, spoken: PortProtocol) -> bool {
    match kind {
        ObjectKind::TcpRoute => true,
        ObjectKind::TlsRoute => matches!(spoken, PortProtocol::Tls | PortProtocol::Detect),
        _ => spoken.is_http(),
    }
}

fn rank(kind: ObjectKind) -> u8 {
    match kind {
        ObjectKind::GrpcRoute => 3,
        ObjectKind::HttpRoute => 2,
        ObjectKind::TlsRoute => 1,
        _ => 0,
    }
}

fn short(host: &Host) -> &str {
    host.as_str().split_once(".svc.").map_or(host.as_str(), |(name, _)| name)
}
