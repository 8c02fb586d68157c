//! Clusters: one per service port and subset, shaped by the destination's traffic policy.

use std::collections::BTreeSet;

use outrigger_identity::upstream::is_server_name;
use outrigger_model::cluster::{Balance, ClientTls, Cluster, Discovery, OutsideTls, UpstreamProtocol};
use outrigger_model::endpoint::EndpointSet;
use outrigger_model::identity::SpiffeId;
use outrigger_rules::intent::{
    self, BackendTls, ClientTlsMode, DestinationIntent, Host, Location, TrafficPolicy,
};
use outrigger_xds::ClientKind;

use super::lens::Lens;
use super::limits::limits;
use super::names::{self, Outbound};
use super::{checks, described, endpoints, ingress, origin};
use crate::instance::{Instance, Protocol};

/// The cluster of a name; `None` when there is no such service or workload.
pub(super) fn compile(lens: &Lens<'_>, name: &str) -> Option<Cluster> {
    let cluster = written(lens, name)?;
    match &cluster.tls {
        ClientTls::Outside(tls) if !is_server_name(&tls.server_name) => {
            let why = format!("\"{}\" cannot be asked for as a server name", tls.server_name);
            without_anybody(lens, cluster, &why)
        }
        _ => Some(cluster),
    }
}

/// The cluster as rules have it.
fn written(lens: &Lens<'_>, name: &str) -> Option<Cluster> {
    if let Some(port) = names::parse_inbound_cluster(name) {
        return Some(ingress::cluster(lens, name, port));
    }
    let outbound = Outbound::parse(name)?;
    if let Some(of) = described::of(lens, name) {
        return described(lens, name, &outbound, of);
    }
    let endpoints = endpoints::compile(lens, name)?;
    let mut cluster = Cluster::new(name);
    cluster.place_weights = have_weights(&endpoints);
    let identities: BTreeSet<SpiffeId> = endpoints.iter().filter_map(|e| e.identity.clone()).collect();
    let identities: Vec<_> = identities.into_iter().collect();
    let (host, own) = match outbound.address() {
        // A call to the address of a workload obeys the policy of its service.
        Some(address) => {
            let instance = lens.workloads_at(address).next()?;
            (lens.host_of(instance), Some(spoken(instance, outbound.port)))
        }
        None => (lens.resolve(outbound.host)?, None),
    };
    // Of a described service the workload's port need not be one.
    let offer = lens.service(&host).and_then(|service| lens.offer(service, outbound.port));
    let protocol = offer.map(|offer| offer.protocol).or(own)?;
    let server_name = names::server_name(outbound.port, outbound.subset, &host);
    cluster.tls = ClientTls::Mesh { server_name, identities, required: false };
    cluster.protocol = upstream(protocol);
    if let Some(rule) = lens.destination_for(&host) {
        let subset = Some(outbound.subset).filter(|s| !s.is_empty());
        cluster.origin = Some(origin(rule.origin_of(subset)));
        let mut policy = rule.effective(subset, outbound.port);
        if let Err(tls) = backend_tls(lens, &rule, &host, outbound.port, &mut policy) {
            return unverified(lens, cluster, tls);
        }
        apply(&mut cluster, &policy, &host);
        // Of one instance's own address there is no other to go to.
        if outbound.address().is_none() {
            cluster.health_check = checks::check(&policy, &host, outbound.port, protocol);
        }
    }
    if is_out_of_reach(lens, &cluster) {
        cluster.tls = ClientTls::None;
    }
    Some(cluster)
}

/// What a workload that is called by its address speaks at a port: bytes, where nobody has declared it.
pub(super) fn spoken(instance: &Instance, port: u16) -> Protocol {
    instance.port(port).map_or(Protocol::Tcp, |port| port.protocol)
}

/// Whether places have shares of their own.
fn have_weights<A>(endpoints: &EndpointSet<A>) -> bool {
    endpoints.localities.iter().any(|place| place.weight > 0)
}

/// mTLS for a gRPC client without certificates, where it is not required; where it is, `foreign` withholds the cluster.
fn is_out_of_reach(lens: &Lens<'_>, cluster: &Cluster) -> bool {
    lens.kind() == ClientKind::Grpc
        && !lens.is_secure()
        && matches!(cluster.tls, ClientTls::Mesh { required: false, .. })
}

fn upstream(protocol: Protocol) -> UpstreamProtocol {
    match protocol {
        Protocol::Grpc | Protocol::Http2 => UpstreamProtocol::Http2,
        Protocol::Auto | Protocol::Http | Protocol::Tls | Protocol::Tcp => UpstreamProtocol::Follow,
    }
}

/// The cluster of a port that somebody describes.
fn described(lens: &Lens<'_>, name: &str, outbound: &Outbound<'_>, of: described::Of<'_>) -> Option<Cluster> {
    let host = of.service.host();
    let mut cluster = Cluster::new(name);
    cluster.discovery = described::discovery(lens, name, of)?;
    let protocol = lens.offer(of.service, outbound.port)?.protocol;
    cluster.protocol = upstream(protocol);
    cluster.origin = Some(origin(&of.intent.origin));
    let identities: BTreeSet<SpiffeId> = match &cluster.discovery {
        Discovery::Eds { .. } => {
            let endpoints = described::addressed(lens, name, of)?;
            cluster.place_weights = have_weights(&endpoints);
            endpoints.iter().filter_map(|e| e.identity.clone()).collect()
        }
        Discovery::Dns(dns) => {
            cluster.place_weights = have_weights(&dns.endpoints);
            dns.endpoints.iter().filter_map(|e| e.identity.clone()).collect()
        }
        _ => BTreeSet::new(),
    };
    let server_name = names::server_name(outbound.port, outbound.subset, host);
    let identities = identities.into_iter().collect();
    cluster.tls = ClientTls::Mesh { server_name, identities, required: false };
    let rule = lens.destination_for(host);
    let subset = Some(outbound.subset).filter(|subset| !subset.is_empty());
    let mut policy = rule.as_ref().map(|rule| rule.effective(subset, outbound.port)).unwrap_or_default();
    if let Some(rule) = &rule
        && let Err(tls) = backend_tls(lens, rule, host, outbound.port, &mut policy)
    {
        return unverified(lens, cluster, tls);
    }
    // Outside nobody has the mesh's TLS, unless a rule says so; but whoever has registered is inside.
    let is_alone = lens.members(of.service).next().is_none();
    let plain = policy.tls.is_none() && of.intent.location == Location::Outside && is_alone;
    if of.intent.preference.same {
        // A ring as a DestinationRule's `consistentHash` without more words.
        cluster.balance = Balance::SteadyRing;
    }
    if let Some(rule) = &rule {
        cluster.origin = Some(origin(rule.origin_of(subset)));
        apply(&mut cluster, &policy, host);
        if cluster.discovery != Discovery::OriginalDestination {
            cluster.health_check = checks::check(&policy, host, outbound.port, protocol);
        }
    }
    if plain || is_out_of_reach(lens, &cluster) {
        cluster.tls = ClientTls::None;
    }
    let by_rule = policy.tls.is_some_and(|tls| !tls.subject_alt_names.is_empty());
    described::tls(&mut cluster, of, by_rule);
    Some(cluster)
}

/// TLS that a BackendTLSPolicy wants where no rule says any.
///
/// # Errors
/// The policy, where nobody's certificate could be trusted.
fn backend_tls<'r>(
    lens: &Lens<'_>,
    rule: &'r DestinationIntent,
    host: &Host,
    port: u16,
    policy: &mut TrafficPolicy,
) -> Result<(), &'r BackendTls> {
    if rule.backend_tls.is_empty() || policy.tls.is_some() {
        return Ok(());
    }
    let service = lens.service(host);
    let named = |name: &str| service.is_some_and(|service| lens.port_named(service, name) == Some(port));
    if let Some(tls) = BackendTls::at(&rule.backend_tls, named) {
        policy.tls = Some(tls.client_tls().ok_or(tls)?);
    }
    Ok(())
}

/// No certificate of the backend could be trusted.
fn unverified(lens: &Lens<'_>, mut cluster: Cluster, because: &BackendTls) -> Option<Cluster> {
    cluster.origin = Some(origin(&because.origin));
    let why = format!("{} names nobody whose certificate could be trusted", because.origin);
    without_anybody(lens, cluster, &why)
}

/// Nobody may be called: what is refused or taken away would leave what was there before in force, which may be plain text. gRPC's
/// libraries know no such cluster, and without one their calls fail.
fn without_anybody(lens: &Lens<'_>, cluster: Cluster, why: &str) -> Option<Cluster> {
    (lens.kind() != ClientKind::Grpc).then(|| cluster.barred(why))
}

fn apply(cluster: &mut Cluster, policy: &TrafficPolicy, host: &Host) {
    if let Some(chosen) = &policy.load_balancing {
        cluster.balance = chosen.balance;
        cluster.load_reports = chosen.reports.clone().map(Box::new);
    }
    cluster.capacity =
        policy.nearness.as_ref().filter(|nearness| !nearness.off).and_then(|near| near.capacity);
    cluster.warmup = policy.warmup.filter(|_| !cluster.balance.hashes());
    if let Some(pool) = &policy.connection_pool {
        limits(cluster, pool);
    }
    if let Some(budget) = policy.retry_budget {
        cluster.limits.retry_budget = Some(budget);
    }
    cluster.outlier = policy.outlier.clone();
    cluster.breaker = policy.breaker.clone().map(Box::new);
    if let Some(rule) = &policy.tls {
        cluster.tls = tls(rule, std::mem::replace(&mut cluster.tls, ClientTls::None), host);
    }
}

/// What a rule says of TLS; `mesh` is what holds without a rule.
fn tls(rule: &intent::ClientTls, mesh: ClientTls, host: &Host) -> ClientTls {
    match (rule.mode, mesh) {
        // Whoever writes it down wants no plain text, also where a peer has no sidecar.
        (ClientTlsMode::IstioMutual, ClientTls::Mesh { server_name, identities, .. }) => {
            let named: Vec<SpiffeId> =
                rule.subject_alt_names.iter().filter_map(|name| SpiffeId::parse(name).ok()).collect();
            ClientTls::Mesh {
                server_name: rule.sni.clone().unwrap_or(server_name),
                identities: if named.is_empty() { identities } else { named },
                required: true,
            }
        }
        (ClientTlsMode::IstioMutual, other) => other,
        (ClientTlsMode::Disable, _) => ClientTls::None,
        (ClientTlsMode::Simple | ClientTlsMode::Mutual, _) => ClientTls::Outside(OutsideTls {
            server_name: rule.sni.clone().unwrap_or_else(|| host.as_str().to_owned()),
            subject_alt_names: rule.subject_alt_names.clone(),
            roots_file: rule.ca_certificates.clone(),
            roots_pem: rule.roots_pem.clone(),
            client_files: match rule.mode {
                ClientTlsMode::Mutual => rule.client_certificate.clone().zip(rule.private_key.clone()),
                _ => None,
            },
        }),
    }
}
