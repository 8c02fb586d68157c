//! What a description adds to clusters and endpoints: where they are found, and what of TLS goes with a place.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use outrigger_model::cluster::{ClientTls, Cluster, Discovery, DnsDiscovery, DnsFamilies};
use outrigger_model::endpoint::{Endpoint, EndpointSet, Locality, NamedAddress, Workload as Label};
use outrigger_model::identity::SpiffeId;
use outrigger_rules::intent::{Location, Resolution, ServiceIntent, Workload, WorkloadIntent};

use super::endpoints;
use super::hints;
use super::lens::{Lens, Seen};
use super::names::Outbound;
use super::place::{Places, Spot};
use crate::instance::{Instance, State};

/// How often a name is asked for whose answer does not say how long it lives.
const REFRESH: Duration = Duration::from_secs(30);
/// After a failure.
const RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));
/// An identity that no server of the mesh has.
const NOBODY: &str = "spiffe://nobody.invalid/ns/none/sa/none";

/// A service and who describes its port.
#[derive(Clone, Copy)]
pub(super) struct Of<'a> {
    pub(super) service: Seen<'a>,
    pub(super) intent: &'a Arc<ServiceIntent>,
}

/// The service of a cluster whose port somebody describes.
pub(super) fn of<'w>(lens: &Lens<'w>, name: &str) -> Option<Of<'w>> {
    let outbound = Outbound::parse(name).filter(|outbound| outbound.address().is_none())?;
    let service = lens.service(&lens.resolve(outbound.host)?)?;
    let intent = lens.offer(service, outbound.port)?.described?;
    Some(Of { service, intent })
}

/// Where the endpoints of a cluster are found.
pub(super) fn discovery(lens: &Lens<'_>, name: &str, of: Of<'_>) -> Option<Discovery> {
    let outbound = Outbound::parse(name)?;
    let first_only = of.intent.resolution == Resolution::DnsRoundRobin;
    Some(match of.intent.resolution {
        Resolution::None => Discovery::OriginalDestination,
        Resolution::Static => Discovery::Eds { service_name: None },
        Resolution::Dns | Resolution::DnsRoundRobin => Discovery::Dns(Box::new(DnsDiscovery {
            endpoints: named(lens, name, &outbound, of),
            first_only,
            respect_ttl: true,
            refresh: REFRESH,
            retry: Some(RETRY),
            families: DnsFamilies::All,
        })),
    })
}

/// By name: those that are written down, or else the host itself.
fn named(lens: &Lens<'_>, name: &str, outbound: &Outbound<'_>, of: Of<'_>) -> EndpointSet<NamedAddress> {
    let mut places = Places::of(lens, of.service.host(), outbound);
    let subset = serving(lens, outbound, of);
    for workload in chosen(lens, &subset, of) {
        let address = NamedAddress { host: workload.address.clone(), port: port(outbound, of, workload) };
        put(&mut places, lens, of, &of.intent.origin.namespace, workload, address);
    }
    if of.intent.endpoints.is_empty() {
        let target = of.intent.ports.get(&outbound.port).and_then(|port| port.target);
        let host = of.service.host().as_str().to_owned();
        let address = NamedAddress { host, port: target.unwrap_or(outbound.port) };
        let (locality, none) = (Locality::default(), BTreeMap::new());
        places.put(Spot { locality, labels: &none, node: None }, Endpoint::new(address));
    }
    places.into_set(name)
}

/// By address: those that are written down, and the instances and workloads that the labels select; of a host that has
/// registered instances these as well.
pub(super) fn addressed(lens: &Lens<'_>, name: &str, of: Of<'_>) -> Option<EndpointSet> {
    let outbound = Outbound::parse(name)?;
    let subset = serving(lens, &outbound, of);
    let mut places = Places::of(lens, of.service.host(), &outbound);
    let own = own_node(lens, of);
    let mut add = |namespace: &str, workload: &Workload| {
        // Written down by hand: on no node.
        if own.is_some() {
            return;
        }
        // A name among addresses is refused where both are in one object; of a selected workload nothing can be said there.
        if let Ok(ip) = workload.address.parse::<IpAddr>()
            && (!is_near(ip) || lens.may_lead_near(namespace))
        {
            let address = SocketAddr::new(ip, port(&outbound, of, workload));
            put(&mut places, lens, of, namespace, workload, address);
        }
    };
    for workload in chosen(lens, &subset, of) {
        add(&of.intent.origin.namespace, workload);
    }
    let is_in = |labels| endpoints::in_subset(lens, of.service.host(), &subset, labels);
    for entry in entries(lens, of).filter(|entry| is_in(&entry.workload.labels)) {
        add(&of.intent.origin.namespace, &entry.workload);
    }
    let port = of.intent.ports.get(&outbound.port)?;
    let target = |instance: &Instance| crate::described::target(port, outbound.port, instance);
    let at = |instance| {
        let (ip, target) = crate::described::address(of.intent, instance).zip(target(instance))?;
        Some((instance, SocketAddr::new(ip, target)))
    };
    let is_meant = |instance: &Instance| own.is_none_or(|own| instance.node() == Some(own));
    let meant = instances(lens, of).filter(|instance| is_in(&instance.labels));
    // Who is to be found before he is ready is to be found while he ends as well.
    let health = if of.intent.unready { endpoints::reached } else { endpoints::takes };
    let mut meant = endpoints::one_each(meant.filter_map(at).collect());
    if own.is_none() {
        meant = hints::meant(lens, of.service.name(), meant);
    }
    for (instance, address) in meant {
        if let Some(endpoint) =
            endpoints::endpoint(lens, instance, address, health).filter(|_| is_meant(instance))
        {
            places.put_once(Spot::of(instance), endpoint);
        }
    }
    let wanted = endpoints::named(lens, of.service.host(), &outbound);
    if !wanted.is_empty() {
        let expected = |id: &SpiffeId| wanted.iter().any(|name| name == id.as_str());
        places.retain(|endpoint| endpoint.identity.as_ref().is_none_or(expected));
    }
    Some(endpoints::or_ending(places.into_set(name)))
}

/// The node that alone is meant.
fn own_node<'a>(lens: &'a Lens<'_>, of: Of<'_>) -> Option<&'a str> {
    Some(of.intent.preference.own_node).filter(|only| *only).and_then(|_| lens.node())
}

/// Whether everybody who asks reaches something else there: what listens on its own host, or its cloud's metadata. API servers refuse such
/// addresses in EndpointSlices.
fn is_near(ip: IpAddr) -> bool {
    match ip.to_canonical() {
        IpAddr::V4(ip) => ip.is_loopback() || ip.is_link_local(),
        IpAddr::V6(ip) => ip.is_loopback() || ip.is_unicast_link_local(),
    }
}

/// The subset whose endpoints serve, as with registered instances alone. Who is written down runs.
fn serving(lens: &Lens<'_>, outbound: &Outbound<'_>, of: Of<'_>) -> String {
    let (host, own) = (of.service.host(), own_node(lens, of));
    let port = of.intent.ports.get(&outbound.port);
    let takes = |instance: &&Instance| {
        let is_up = instance.state == State::Running || of.intent.unready && instance.state != State::Stopped;
        is_up
            && own.is_none_or(|own| instance.node() == Some(own))
            && port.is_some_and(|port| crate::described::target(port, outbound.port, instance).is_some())
    };
    endpoints::serving_subset(lens, host, outbound.subset, |subset| {
        let written = own.is_none()
            && (chosen(lens, subset, of).next().is_some()
                || entries(lens, of)
                    .any(|entry| endpoints::in_subset(lens, host, subset, &entry.workload.labels)));
        let mut running = instances(lens, of).filter(takes);
        written || running.any(|instance| endpoints::in_subset(lens, host, subset, &instance.labels))
    })
}

/// The endpoints of the description itself that belong to a subset.
fn chosen<'a>(lens: &'a Lens<'_>, subset: &'a str, of: Of<'a>) -> impl Iterator<Item = &'a Workload> {
    of.intent
        .endpoints
        .iter()
        .filter(move |workload| endpoints::in_subset(lens, of.service.host(), subset, &workload.labels))
}

/// The workloads that are written down elsewhere and that the description selects.
fn entries<'a>(lens: &'a Lens<'_>, of: Of<'a>) -> impl Iterator<Item = &'a Arc<WorkloadIntent>> {
    let selecting = Some(&of.intent.origin.namespace).filter(|_| !of.intent.selector.is_empty());
    let all = selecting.map(|namespace| lens.workloads(namespace)).unwrap_or_default();
    all.iter().filter(move |entry| crate::world::selected(&of.intent.selector, &entry.workload.labels))
}

/// The instances that the description selects, and those that have registered for its host.
fn instances<'a>(lens: &'a Lens<'_>, of: Of<'a>) -> impl Iterator<Item = &'a Instance> {
    let selecting = Some(&of.intent.origin.namespace).filter(|_| !of.intent.selector.is_empty());
    let selected = selecting.into_iter().flat_map(|namespace| lens.instances_of(namespace));
    let is = move |instance: &&Instance| {
        let selector = &of.intent.selector;
        instance.word.may_be(selector) && crate::world::selected(selector, &instance.labels)
    };
    selected.filter(is).chain(lens.members(of.service))
}

fn port(outbound: &Outbound<'_>, of: Of<'_>, workload: &Workload) -> u16 {
    let described = of.intent.ports.get(&outbound.port);
    described.map_or(outbound.port, |described| workload.port(outbound.port, described))
}

fn put<A>(
    places: &mut Places<'_, A>,
    lens: &Lens<'_>,
    of: Of<'_>,
    namespace: &str,
    workload: &Workload,
    address: A,
) {
    let inside = of.intent.location == Location::Inside && workload.has_sidecar();
    // Also of one that has no sidecar: a rule may demand mTLS all the same.
    let named = Some(&workload.service_account).filter(|account| !account.is_empty());
    let identity =
        named.and_then(|account| SpiffeId::workload(&lens.settings().trust_domain, namespace, account).ok());
    let [region, zone, sub_zone] = workload.locality.clone();
    let revision = workload.labels.get("version").cloned().unwrap_or_default();
    let service = workload.labels.get("app").cloned().unwrap_or_else(|| of.service.name().to_owned());
    let label = Label { name: service.clone(), namespace: namespace.to_owned(), service, revision };
    let endpoint = Endpoint {
        weight: workload.weight,
        identity,
        mesh_tls: inside,
        workload: Some(Arc::new(label)),
        ..Endpoint::new(address)
    };
    let locality = Locality { region, zone, sub_zone };
    places.put(Spot { locality, labels: &workload.labels, node: None }, endpoint);
}

/// What of TLS goes with the place: whoever shows a certificate is one of those named, unless a rule names others.
pub(super) fn tls(cluster: &mut Cluster, of: Of<'_>, by_rule: bool) {
    let names = &of.intent.subject_alt_names;
    if by_rule {
        return;
    }
    match &mut cluster.tls {
        ClientTls::Outside(tls) if tls.subject_alt_names.is_empty() => {
            tls.subject_alt_names.clone_from(names);
        }
        ClientTls::Mesh { identities, .. } if !names.is_empty() => {
            identities.extend(names.iter().filter_map(|name| SpiffeId::parse(name).ok()));
            // No list is anybody: who is named by other than an identity is nobody of the mesh.
            if identities.is_empty() {
                identities.extend(SpiffeId::parse(NOBODY));
            }
            identities.sort_unstable_by(|a, b| a.as_str().cmp(b.as_str()));
            identities.dedup();
        }
        ClientTls::Outside(_) | ClientTls::Mesh { .. } | ClientTls::None => {}
    }
}

#[cfg(test)]
mod tests;
