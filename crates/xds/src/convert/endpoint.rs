//! `ClusterLoadAssignment`: endpoints by priority and locality, their health, identity and workload.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use outrigger_model::endpoint::{Endpoint, EndpointSet, Health, Locality, LocalityEndpoints, Workload};
use outrigger_model::identity::SpiffeId;

use super::address::Place;
use super::flaw::{Decoded, Under, each, flaw};
use super::metadata::{self, as_map, as_text, field, namespace, object, our, structure, text};
use super::value::uint_or;
use super::{address, left_out, note, subsets};
use crate::kind::ClientKind;
use crate::wire::core;
use crate::wire::endpoint::{
    self, ClusterLoadAssignment, LbEndpoint, LocalityLbEndpoints, lb_endpoint::HostIdentifier,
};
use crate::wire::uint;

/// Where Envoy looks for what chooses the transport socket.
pub(super) const SOCKET_MATCH: &str = "envoy.transport_socket_match";
pub(super) const TLS_MODE: &str = "tlsMode";
pub(super) const ISTIO: &str = "istio";

pub(super) fn encode<A: Place>(set: &EndpointSet<A>, kind: ClientKind) -> ClusterLoadAssignment {
    let mut localities: Vec<LocalityLbEndpoints> =
        set.localities.iter().map(|l| encode_locality(l, kind)).collect();
    if kind != ClientKind::Outrigger {
        weigh_where_nothing_is_said(&mut localities);
    }
    if kind == ClientKind::Grpc {
        localities = tidy(localities);
    }
    ClusterLoadAssignment { cluster_name: set.cluster.clone(), endpoints: localities, ..Default::default() }
}

fn encode_locality<A: Place>(locality: &LocalityEndpoints<A>, kind: ClientKind) -> LocalityLbEndpoints {
    LocalityLbEndpoints {
        locality: Some(core::Locality {
            region: locality.locality.region.clone(),
            zone: locality.locality.zone.clone(),
            sub_zone: locality.locality.sub_zone.clone(),
        }),
        lb_endpoints: locality.endpoints.iter().map(|e| encode_endpoint(e, kind)).collect(),
        load_balancing_weight: Some(locality.weight).filter(|weight| *weight > 0).and_then(uint),
        priority: locality.priority,
        ..Default::default()
    }
}

/// A locality without a weight is forgotten by gRPC, and a weight of 0 is refused. Where none of a priority has one, each gets what those
/// of its endpoints weigh that serve.
fn weigh_where_nothing_is_said(localities: &mut [LocalityLbEndpoints]) {
    let said: BTreeSet<u32> =
        localities.iter().filter(|l| l.load_balancing_weight.is_some()).map(|l| l.priority).collect();
    for l in localities.iter_mut().filter(|l| !said.contains(&l.priority)) {
        let serving = l.lb_endpoints.iter().filter(|e| e.health_status == core::HealthStatus::Healthy as i32);
        let weights = serving.map(|e| uint_or(e.load_balancing_weight.as_ref(), 1));
        l.load_balancing_weight = uint(weights.fold(0, u32::saturating_add).max(1));
    }
}

/// gRPC refuses gaps between priorities and a locality that occurs twice within one.
fn tidy(localities: Vec<LocalityLbEndpoints>) -> Vec<LocalityLbEndpoints> {
    let mut by_place: BTreeMap<(u32, [String; 3]), LocalityLbEndpoints> = BTreeMap::new();
    for l in localities.into_iter().filter(|l| l.load_balancing_weight.is_some()) {
        let place = l.locality.clone().unwrap_or_default();
        let key = (l.priority, [place.region, place.zone, place.sub_zone]);
        match by_place.get_mut(&key) {
            Some(known) => {
                let weight = |l: &LocalityLbEndpoints| uint_or(l.load_balancing_weight.as_ref(), 0);
                known.load_balancing_weight = uint(weight(known).saturating_add(weight(&l)));
                known.lb_endpoints.extend(l.lb_endpoints);
            }
            None => drop(by_place.insert(key, l)),
        }
    }
    let mut priority = 0;
    let mut last = None;
    by_place
        .into_values()
        .map(|mut l| {
            priority += u32::from(last.is_some_and(|last| last != l.priority));
            last = Some(l.priority);
            l.priority = priority;
            l
        })
        .collect()
}

fn encode_endpoint<A: Place>(endpoint: &Endpoint<A>, kind: ClientKind) -> LbEndpoint {
    let mut ours = Vec::new();
    if let Some(identity) = &endpoint.identity {
        ours.push(("identity".to_owned(), text(identity.as_str())));
    }
    if let Some(w) = &endpoint.workload {
        let workload = object([
            ("name", text(&w.name)),
            ("namespace", text(&w.namespace)),
            ("service", text(&w.service)),
            ("revision", text(&w.revision)),
        ]);
        ours.push(("workload".to_owned(), workload));
    }
    let mode = endpoint.mesh_tls.then(|| (TLS_MODE.to_owned(), text(ISTIO)));
    let metadata = metadata::with(SOCKET_MATCH, structure(mode), metadata::ours(ours));
    let metadata = match &endpoint.labels {
        Some(labels) => subsets::encode_labels(labels, metadata),
        None => metadata,
    };
    LbEndpoint {
        health_status: match endpoint.health {
            Health::Healthy => core::HealthStatus::Healthy,
            Health::Unhealthy => core::HealthStatus::Unhealthy,
            Health::Draining => core::HealthStatus::Draining,
        } as i32,
        metadata: metadata.filter(|_| kind != ClientKind::Grpc),
        load_balancing_weight: uint(endpoint.weight.max(1)),
        host_identifier: Some(HostIdentifier::Endpoint(endpoint::Endpoint {
            address: Some(address::encode(&endpoint.address)),
            hostname: endpoint.hostname.as_deref().unwrap_or_default().to_owned(),
            ..Default::default()
        })),
    }
}

/// The name may be empty here: endpoints in place need none.
pub(super) fn decode<A: Place>(wire: &ClusterLoadAssignment) -> Decoded<EndpointSet<A>> {
    note!(wire, named_endpoints, policy);
    Ok(EndpointSet::new(&wire.cluster_name, each(&wire.endpoints, "endpoints", decode_locality)?))
}

fn decode_locality<A: Place>(wire: &LocalityLbEndpoints) -> Decoded<LocalityEndpoints<A>> {
    note!(wire, proximity);
    if wire.lb_config.is_some() {
        return flaw("lb_config", "is not supported; use lb_endpoints");
    }
    if wire.priority > 128 {
        return flaw("priority", format!("{} is greater than 128", wire.priority));
    }
    let place = wire.locality.clone().unwrap_or_default();
    let mut endpoints = each(&wire.lb_endpoints, "lb_endpoints", decode_endpoint)?;
    share(&mut endpoints);
    let sum: u64 = endpoints.iter().map(|e| u64::from(e.weight)).sum();
    if sum > u64::from(u32::MAX) {
        let why = format!("the sum of the weights is {sum}; at most {} is allowed", u32::MAX);
        return flaw("lb_endpoints", why);
    }
    Ok(LocalityEndpoints {
        locality: Locality { region: place.region, zone: place.zone, sub_zone: place.sub_zone },
        priority: wire.priority,
        // A control plane that says nothing leaves it to the endpoints.
        weight: uint_or(wire.load_balancing_weight.as_ref(), 0),
        endpoints,
    })
}

/// Neighbours are mostly of one workload: what two have in common is kept once.
fn share<A>(endpoints: &mut [Endpoint<A>]) {
    for i in 1..endpoints.len() {
        if let [before, this] = &mut endpoints[i - 1..=i] {
            if before.identity == this.identity {
                this.identity.clone_from(&before.identity);
            }
            if before.workload == this.workload {
                this.workload.clone_from(&before.workload);
            }
        }
    }
}

fn decode_endpoint<A: Place>(wire: &LbEndpoint) -> Decoded<Endpoint<A>> {
    let endpoint = match &wire.host_identifier {
        Some(HostIdentifier::Endpoint(endpoint)) => endpoint,
        Some(HostIdentifier::EndpointName(_)) => return flaw("endpoint_name", "is not supported"),
        None => return flaw("endpoint", "is required"),
    };
    note!(endpoint, health_check_config, additional_addresses);
    let metadata = wire.metadata.as_ref();
    let weight = uint_or(wire.load_balancing_weight.as_ref(), 1);
    if weight == 0 {
        return flaw("load_balancing_weight", "must be at least 1");
    }
    let tls_mode = namespace(metadata, SOCKET_MATCH).map(|fields| field(fields, TLS_MODE));
    Ok(Endpoint {
        address: address::decode(endpoint.address.as_ref()).under("endpoint.address")?,
        weight,
        health: health(wire.health_status)?,
        identity: match our(metadata, "identity") {
            None => None,
            Some(value) => match SpiffeId::parse(as_text(value).unwrap_or_default()) {
                Ok(id) => Some(id),
                Err(e) => return flaw("metadata.filter_metadata[outrigger].identity", e.to_string()),
            },
        },
        mesh_tls: tls_mode == Some(ISTIO),
        workload: match our(metadata, "workload").and_then(as_map) {
            Some(fields) => Some(Arc::new(Workload {
                name: field(fields, "name").to_owned(),
                namespace: field(fields, "namespace").to_owned(),
                service: field(fields, "service").to_owned(),
                revision: field(fields, "revision").to_owned(),
            })),
            None => namespace(metadata, ISTIO)
                .and_then(|fields| istio_workload(field(fields, "workload")))
                .map(Arc::new),
        },
        hostname: Some(&*endpoint.hostname).filter(|name| !name.is_empty()).map(Box::from),
        labels: Some(subsets::labels(metadata)).filter(|labels| !labels.is_empty()).map(Box::new),
    })
}

/// Istio packs it into one text: `name;namespace;service;revision;cluster`.
fn istio_workload(text: &str) -> Option<Workload> {
    let mut parts = text.split(';').map(str::to_owned);
    Some(Workload {
        name: parts.next()?,
        namespace: parts.next()?,
        service: parts.next()?,
        revision: parts.next()?,
    })
}

fn health(status: i32) -> Decoded<Health> {
    use core::HealthStatus as H;
    match H::try_from(status) {
        Ok(H::Unknown | H::Healthy) => Ok(Health::Healthy),
        Ok(H::Degraded) => {
            left_out("health_status: DEGRADED");
            Ok(Health::Healthy)
        }
        Ok(H::Unhealthy | H::Timeout) => Ok(Health::Unhealthy),
        Ok(H::Draining) => Ok(Health::Draining),
        Err(_) => flaw("health_status", format!("{status} is unknown")),
    }
}
