//! Endpoints: the running instances of a service port, or of a subset of it.

use std::collections::{BTreeMap, HashSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use outrigger_model::endpoint::{Endpoint, EndpointSet, Health, Workload};
use outrigger_rules::intent::{ClientTlsMode, Fallback, Host, MtlsMode};

use super::lens::Lens;
use super::names::Outbound;
use super::place::{Places, Spot};
use crate::canonical;
use crate::instance::{Instance, State};

/// The registered endpoints of a cluster; `None` when there is no such service or workload.
pub(super) fn compile(lens: &Lens<'_>, name: &str) -> Option<EndpointSet> {
    let outbound = Outbound::parse(name)?;
    if let Some(address) = outbound.address() {
        // The very address that was called, not the instance's main one.
        let at = lens.workloads_at(address).map(|instance| (instance, address.ip()));
        return Some(set(lens, name, (outbound.port, HashSet::new(), reached), at, Places::alike()));
    }
    let host = lens.resolve(outbound.host)?;
    let service = lens.service(&host)?;
    lens.offer(service, outbound.port)?;
    let runs = |subset: &str| {
        let is = |instance: &Instance| {
            instance.state == State::Running
                && instance.port(outbound.port).is_some()
                && in_subset(lens, &host, subset, &instance.labels)
        };
        lens.members(service).any(is)
    };
    let subset = serving_subset(lens, &host, outbound.subset, runs);
    let chosen = lens.members(service).filter(|instance: &&Instance| {
        instance.port(outbound.port).is_some() && in_subset(lens, &host, &subset, &instance.labels)
    });
    let named = named(lens, &host, &outbound);
    let expected = |instance: &&Instance| {
        named.is_empty()
            || instance
                .identity(&lens.settings().trust_domain)
                .is_ok_and(|id| named.iter().any(|n| n == id.as_str()))
    };
    let chosen =
        chosen.filter(expected).filter_map(|instance| Some((instance, *instance.addresses.first()?)));
    // Whom an operator has taken out in one registry is out in the others as well, also where only those are asked for.
    let is_out =
        |instance: &&Instance| instance.state == State::Maintenance && instance.port(outbound.port).is_some();
    let out = lens.members(service).filter(is_out);
    let out = out.filter_map(|instance| Some((instance, *instance.addresses.first()?)));
    let out = out.map(|(instance, ip)| (SocketAddr::new(ip, outbound.port), &*instance.network)).collect();
    let set = set(lens, name, (outbound.port, out, takes), chosen, Places::of(lens, &host, &outbound));
    Some(or_ending(set))
}

/// What a caller of a service gets: those who take requests.
pub(super) fn takes(state: State) -> Health {
    match state {
        State::Running => Health::Healthy,
        State::Stopping => Health::Draining,
        State::Starting | State::Unhealthy | State::Maintenance | State::Stopped => Health::Unhealthy,
    }
}

/// Whoever calls one by its own address means that one, and there is no other to go to: that it is not ready takes it out of
/// services, and not out of reach. Members of a group find each other so before any of them is ready.
pub(super) fn reached(state: State) -> Health {
    match state {
        State::Running | State::Starting | State::Unhealthy | State::Stopping => Health::Healthy,
        State::Maintenance | State::Stopped => Health::Unhealthy,
    }
}

/// Where nobody takes requests, those who are on their way out and still answer do, as in a cluster without a mesh: a single replica
/// that is replaced, or whose node is drained, is not gone before it has gone.
pub(super) fn or_ending(mut set: EndpointSet) -> EndpointSet {
    if !set.iter().any(|endpoint| endpoint.health == Health::Healthy) {
        let ending = set.iter_mut().filter(|endpoint| endpoint.health == Health::Draining);
        ending.for_each(|endpoint| endpoint.health = Health::Healthy);
    }
    set
}

/// The identities that a rule expects of the servers of a host. One that is none of these would be refused in the handshake, so
/// it is not dialled.
pub(super) fn named(lens: &Lens<'_>, host: &Host, outbound: &Outbound<'_>) -> Vec<String> {
    let subset = Some(outbound.subset).filter(|subset| !subset.is_empty());
    let rule = lens.destination_for(host);
    let tls = rule.and_then(|rule| rule.effective(subset, outbound.port).tls);
    tls.filter(|tls| tls.mode == ClientTlsMode::IstioMutual)
        .map(|tls| tls.subject_alt_names)
        .unwrap_or_default()
}

/// Fallbacks one after the other.
const MOST_FALLBACKS: usize = 8;

/// The subset whose instances serve: as long as nobody of one runs, its fallback's. Of a subset that has none nobody else does.
pub(super) fn serving_subset(
    lens: &Lens<'_>,
    host: &Host,
    subset: &str,
    runs: impl Fn(&str) -> bool,
) -> String {
    let mut subset = subset.to_owned();
    let Some(rule) = lens.destination_for(host) else { return subset };
    for _ in 0..MOST_FALLBACKS {
        let Some(fallback) = rule.subset(&subset).and_then(|subset| subset.fallback.as_ref()) else { break };
        if runs(&subset) {
            break;
        }
        subset = match fallback {
            Fallback::Any => String::new(),
            Fallback::Subset(other) => other.clone(),
        };
    }
    subset
}

/// A subset that nobody defined has no endpoints: requests fail instead of going to the wrong version.
pub(super) fn in_subset(
    lens: &Lens<'_>,
    host: &Host,
    subset: &str,
    labels: &BTreeMap<String, String>,
) -> bool {
    subset.is_empty()
        || lens
            .destination_for(host)
            .is_some_and(|rule| rule.subset(subset).is_some_and(|subset| subset.selects(labels)))
}

fn set<'a>(
    lens: &Lens<'_>,
    name: &str,
    (port, out, health): (u16, HashSet<Door<'a>>, fn(State) -> Health),
    instances: impl Iterator<Item = (&'a Instance, IpAddr)>,
    mut places: Places<'_, SocketAddr>,
) -> EndpointSet {
    let at = |(instance, ip)| Some((instance, SocketAddr::new(ip, port)));
    for (instance, address) in one_each(instances.filter_map(at).collect()) {
        if let Some(mut endpoint) = endpoint(lens, instance, address, health) {
            if out.contains(&(address, &instance.network)) {
                endpoint.health = Health::Unhealthy;
            }
            places.put(Spot::of(instance), endpoint);
        }
    }
    places.into_set(name)
}

/// A workload's port: an address of a network.
type Door<'a> = (SocketAddr, &'a str);

/// One instance for an address of a network. One workload is several instances where it is in two registries, as while it moves from one to
/// the other: whoever says that it was taken out is believed, else whoever knows of its sidecar, then whoever says that it takes requests,
/// and of those alike the one whose id comes first. Who claims the address of another identity replaces nobody.
pub(super) fn one_each(all: Vec<(&Instance, SocketAddr)>) -> Vec<(&Instance, SocketAddr)> {
    let mut seen = HashSet::with_capacity(all.len());
    if all.iter().all(|(instance, address)| seen.insert((*address, &instance.network))) {
        return all;
    }
    let mut doors: BTreeMap<Door<'_>, Vec<&Instance>> = BTreeMap::new();
    for (instance, address) in all {
        doors.entry((address, &instance.network)).or_default().push(instance);
    }
    let of = |((address, _), at)| one_of(at).into_iter().map(move |instance| (instance, address));
    doors.into_iter().flat_map(of).collect()
}

fn one_of(mut at: Vec<&Instance>) -> Vec<&Instance> {
    // Who has stopped is no endpoint, and says nothing of the others.
    at.retain(|instance| instance.state != State::Stopped);
    at.sort_by(|one, other| order(one).cmp(&order(other)));
    let first = at.first().copied();
    // Without a sidecar nobody proves who is there.
    let mut known: Vec<(&str, &str)> = Vec::new();
    at.retain(|instance| {
        let who = (&*instance.namespace, &*instance.service_account);
        let is_new = instance.sidecar && !known.contains(&who);
        known.extend(is_new.then_some(who));
        is_new
    });
    let out = first.filter(|first| first.state == State::Maintenance || at.is_empty());
    out.map_or(at, |out| vec![out])
}

fn order(instance: &Instance) -> (bool, bool, u8, &str) {
    let rank = match instance.state {
        State::Maintenance | State::Running => 0,
        State::Stopping => 1,
        State::Starting | State::Unhealthy | State::Stopped => 2,
    };
    (instance.state != State::Maintenance, !instance.sidecar, rank, &instance.id)
}

/// `None`: it has stopped.
pub(super) fn endpoint(
    lens: &Lens<'_>,
    instance: &Instance,
    address: SocketAddr,
    health: fn(State) -> Health,
) -> Option<Endpoint> {
    if instance.state == State::Stopped {
        return None;
    }
    Some(Endpoint {
        address,
        weight: instance.weight,
        health: health(instance.state),
        identity: instance.identity(&lens.settings().trust_domain).ok().filter(|_| instance.sidecar),
        mesh_tls: instance.sidecar && lens.mtls_mode(instance, address.port()) != MtlsMode::Disable,
        workload: Some(Arc::new(workload(instance))),
        hostname: None,
        labels: None,
    })
}

/// Bytes of what an instance says of itself that callers' metrics have of it: a label's value, and a name of DNS.
const LONGEST: (usize, usize) = (63, 253);

/// How metrics name an instance: as its own sidecar does.
pub(crate) fn workload(instance: &Instance) -> Workload {
    let version = instance.version.as_ref().or_else(|| instance.labels.get("version"));
    let version = version.map(|version| word(version, LONGEST.0)).unwrap_or_default();
    let name = match instance.metadata.get(canonical::WORKLOAD) {
        Some(name) => word(name, LONGEST.1),
        None if version.is_empty() => instance.service.clone(),
        None => format!("{}-{version}", instance.service),
    };
    Workload {
        name,
        namespace: instance.namespace.clone(),
        service: instance.service.clone(),
        revision: version,
    }
}

/// As much of a text as metrics have room for, in one line.
fn word(text: &str, longest: usize) -> String {
    text[..text.floor_char_boundary(longest)].chars().filter(|c| !c.is_control()).collect()
}
