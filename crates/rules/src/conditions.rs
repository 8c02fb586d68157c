//! Conditions of attached routes, as the Gateway API has them: whether a route is in force at a parent, and whether all that
//! it refers to can be used. The same for the API, for `get` and for the analyzer.

use std::collections::BTreeMap;

use crate::catalog::PortProtocol;
use crate::intent::{AttachedIntent, Host, ObjectKind, Parent, Place, RouteCondition, Target};

/// What conditions depend on beside the route.
pub trait Surroundings {
    /// The ports of a service and what they speak; `None` where there is no such service.
    fn ports(&self, host: &Host) -> Option<BTreeMap<u16, PortProtocol>>;
    /// The port of a name.
    fn port_named(&self, host: &Host, name: &str) -> Option<u16>;
    /// Routes of a more specific kind that hold at that port instead, if there are any.
    fn outranked(&self, route: &AttachedIntent, host: &Host, port: u16) -> bool;
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
    let web: Vec<u16> =
        at.iter().filter(|(_, spoken)| **spoken != PortProtocol::Tcp).map(|(port, _)| *port).collect();
    if web.is_empty() {
        let opaque: Vec<String> = at.keys().take(MOST).map(u16::to_string).collect();
        let message = format!(
            "{} speaks no HTTP at port {}, where there are no requests",
            short(host),
            opaque.join(", ")
        );
        return Some(("NoMatchingParent", message));
    }
    let outranked = web.iter().all(|port| around.outranked(route, host, *port));
    outranked.then(|| {
        let message = format!("GRPCRoutes hold at {}, and only one kind of route can", short(host));
        ("Conflicted", message)
    })
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

/// Whether routes of the one kind make those of the other have no effect at a port.
pub fn outranks(one: ObjectKind, other: ObjectKind) -> bool {
    (one, other) == (ObjectKind::GrpcRoute, ObjectKind::HttpRoute)
}

fn short(host: &Host) -> &str {
    host.as_str().split_once(".svc.").map_or(host.as_str(), |(name, _)| name)
}
