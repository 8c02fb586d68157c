//! Rules for a host that a client does not have, and why: what compilation leaves out leaves no trace in what it makes.

use std::sync::Arc;

use outrigger_rules::conditions::can_hold;
use outrigger_rules::intent::{
    AttachedIntent, Carried, DestinationIntent, Host, HttpMatch, Origin, RouteIntent, Visibility,
};

use super::See;
use super::body::Lost;
use crate::world::{Service, selected};

/// Everything for a port of a service that does not reach the client's routes or clusters.
pub(super) fn rules(see: &See<'_>, service: &Service, port: u16) -> Vec<Lost> {
    let attached = see.world.attached_to(service, port, see.namespace());
    let mut lost =
        other_attached(see, service, port, &attached.iter().map(|r| r.origin.clone()).collect::<Vec<_>>());
    lost.extend(routes(see, service, port, attached.first().map(AsRef::as_ref)));
    lost.extend(destinations(see, &service.host));
    let unknown = see.unknown(service, port).zip(see.sidecar());
    lost.extend(unknown.map(|(why, sidecar)| whole(&sidecar.origin, why)));
    lost
}

/// All routes and destinations of a service, where they are nobody's.
pub(super) fn all(see: &See<'_>, service: &Service, why: &str) -> Vec<Lost> {
    let host = &service.host;
    let attached = see.world.attached_over(host).into_iter().map(|rule| rule.origin.clone());
    let routes = see.world.routes_over(host).into_iter().map(|rule| rule.origin.clone());
    let destinations = see.world.destinations_over(host).into_iter().map(|rule| rule.origin.clone());
    attached.chain(routes).chain(destinations).map(|origin| whole(&origin, why.to_owned())).collect()
}

fn whole(origin: &Origin, why: String) -> Lost {
    Lost { rule: String::new(), origin: Some(origin.to_string()), why }
}

fn hidden(visibility: &Visibility, namespace: &str) -> Option<String> {
    (!visibility.includes(namespace)).then(|| format!("its exportTo leaves out the namespace {namespace}"))
}

fn other_attached(see: &See<'_>, service: &Service, port: u16, chosen: &[Origin]) -> Vec<Lost> {
    let why = |route: &AttachedIntent| {
        let of = &route.origin.namespace;
        if !route.is_at(&service.host, port, |name| service.port_named(name)) {
            return format!("it is attached to other ports than {port}");
        }
        let spoken = service.offer(port, see.namespace()).map(|offer| offer.protocol.in_catalog());
        if !spoken.is_some_and(|spoken| can_hold(route.origin.kind, spoken)) {
            return format!("port {port} speaks nothing that a {} is for", route.origin.kind);
        }
        match chosen.first() {
            Some(first) if first.namespace == *of && first.kind == route.origin.kind => {
                format!("{first} is older, and has all connections")
            }
            Some(first) if first.namespace == *of => format!("{first} is of a more specific kind"),
            Some(first) => format!("{first} goes before it: a client's own namespace, then the service's"),
            None => format!("it holds for clients of the namespace {of} only"),
        }
    };
    let all = see.world.attached_over(&service.host);
    let others = all.iter().filter(|route| !chosen.contains(&route.origin));
    others.map(|route| whole(&route.origin, why(route))).collect()
}

/// Why nobody but its own namespace obeys a rule.
const FOREIGN: &str =
    "only the client's namespace, the service's and the root namespace have a say, and it is of none of them";

/// Why another route goes first.
const BEFORE: &str =
    "goes before it: the more specific host, then what is for fewer clients (exportTo), then the oldest";

fn routes(see: &See<'_>, service: &Service, port: u16, attached: Option<&AttachedIntent>) -> Vec<Lost> {
    let sidecar = see.sidecar().map(AsRef::as_ref);
    let chosen = |carried| see.world.route_known(&service.host, see.namespace(), sidecar, carried);
    let chosen = Carried::ALL.map(|carried| (carried, chosen(carried)));
    let say = see.world.say(&service.host, see.namespace());
    let mut lost = Vec::new();
    for route in see.world.routes_over(&service.host) {
        let rival = |(carried, chosen): &(Carried, Option<Arc<RouteIntent>>)| {
            let first =
                chosen.as_ref().filter(|first| route.routes(*carried) && first.origin != route.origin)?;
            Some((*carried, first.origin.clone()))
        };
        let rivals: Vec<_> = chosen.iter().filter_map(rival).collect();
        let written = Carried::ALL.into_iter().filter(|carried| route.routes(*carried)).count();
        let all_lost = rivals.len() == written;
        let narrowed = || {
            let sidecar = sidecar.filter(|sidecar| !sidecar.imports_rule(see.namespace(), &route))?;
            Some(format!("{} knows nothing that it is for in its namespace", sidecar.origin))
        };
        let foreign = || route.reach(see.namespace(), &say).is_none().then(|| FOREIGN.to_owned());
        let why = hidden(&route.visibility, see.namespace())
            .or_else(foreign)
            .or_else(narrowed)
            .or_else(|| {
                let attached = attached.filter(|attached| attached.replaces(&route))?;
                Some(format!("{} at this port replaces it", attached.origin))
            })
            .or_else(|| {
                let (_, first) = rivals.first().filter(|_| all_lost)?;
                Some(format!("{first} {BEFORE}"))
            });
        if let Some(why) = why {
            lost.push(whole(&route.origin, why));
            continue;
        }
        for (carried, first) in &rivals {
            lost.push(whole(&route.origin, format!("of its {} routes: {first} {BEFORE}", carried.name())));
        }
        if rivals.iter().all(|(carried, _)| *carried != Carried::Http) {
            lost.extend(matches(see, &route, port));
        }
    }
    lost
}

/// Matches that are for other clients or ports.
fn matches(see: &See<'_>, intent: &RouteIntent, port: u16) -> Vec<Lost> {
    let mut lost = Vec::new();
    for (index, http) in intent.http.iter().enumerate() {
        let name = match http.route.name.as_str() {
            "" => format!("{}[{index}]", intent.origin.name),
            given => given.to_owned(),
        };
        let origin = http.of.as_ref().unwrap_or(&intent.origin);
        let others = http.matches.iter().filter_map(|m| not_for(see, m, port));
        lost.extend(others.map(|why| Lost { rule: name.clone(), origin: Some(origin.to_string()), why }));
    }
    lost
}

fn not_for(see: &See<'_>, m: &HttpMatch, port: u16) -> Option<String> {
    if let Some(wanted) = m.port.filter(|wanted| *wanted != port) {
        return Some(format!("it is for port {wanted}"));
    }
    if let Some(wanted) = m.source_namespace.as_ref().filter(|wanted| *wanted != see.namespace()) {
        return Some(format!("it is for clients of the namespace {wanted}"));
    }
    let has = |labels| selected(&m.source_labels, labels);
    if m.source_labels.is_empty() || see.scope.labels(see.world).is_some_and(has) {
        return None;
    }
    let labels: Vec<_> = m.source_labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
    Some(format!("it is for clients with {}", labels.join(", ")))
}

fn destinations(see: &See<'_>, host: &Host) -> Vec<Lost> {
    let chosen = see.world.destination_for(host, see.namespace());
    let say = see.world.say(host, see.namespace());
    let foreign = |origin: &Origin| {
        let counts = origin.namespace == see.namespace() || say.counts(&origin.namespace);
        (!counts).then(|| FOREIGN.to_owned())
    };
    let is_chosen =
        |origin: &Origin| chosen.as_ref().is_some_and(|chosen| chosen.origins().any(|o| o == origin));
    let why = |rule: &DestinationIntent| {
        let other = hidden(&rule.visibility, see.namespace()).or_else(|| foreign(&rule.origin));
        other.unwrap_or_else(|| match &chosen {
            Some(chosen) => format!(
                "{} goes before it: the client's namespace, then the service's, then the root; of one the more specific host",
                chosen.origin
            ),
            None => "it does not hold here".to_owned(),
        })
    };
    let all = see.world.destinations_over(host);
    let others = all.iter().filter(|rule| !is_chosen(&rule.origin));
    others.map(|rule| whole(&rule.origin, why(rule))).collect()
}
