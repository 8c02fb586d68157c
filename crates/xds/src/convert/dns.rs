//! Clusters whose endpoints DNS knows: `STRICT_DNS`, `LOGICAL_DNS`, and the extension that stands for both.

#![allow(deprecated)] // the extension took the fields' place, and hardly anybody sends it yet

use std::time::Duration;

use outrigger_model::cluster::{Discovery, DnsDiscovery, DnsFamilies};

use super::extension::{is, unpack};
use super::flaw::{Decoded, Under, flaw};
use super::value::{duration_at, positive_or};
use super::{endpoint, note};
use crate::kind::ClientKind;
use crate::wire::cluster;
use crate::wire::cluster::cluster::{
    ClusterDiscoveryType, CustomClusterType, DiscoveryType, DnsLookupFamily, RefreshRate,
};
use crate::wire::{self, dns_cluster, protobuf};

/// Envoy's shortest; below it would ask without a pause.
const SHORTEST: Duration = Duration::from_millis(1);

pub(super) fn encode(dns: &DnsDiscovery, kind: ClientKind, wire: &mut cluster::Cluster) {
    // gRPC has no other (gRFC A37).
    let logical = dns.first_only || kind == ClientKind::Grpc;
    let discovery = if logical { DiscoveryType::LogicalDns } else { DiscoveryType::StrictDns };
    wire.cluster_discovery_type = Some(ClusterDiscoveryType::Type(discovery as i32));
    let mut assignment = endpoint::encode(&dns.endpoints, kind);
    if kind != ClientKind::Outrigger && assignment.cluster_name.is_empty() {
        assignment.cluster_name.clone_from(&wire.name);
    }
    wire.load_assignment = Some(assignment);
    wire.respect_dns_ttl = dns.respect_ttl;
    wire.dns_refresh_rate = Some(wire::duration(dns.refresh.max(SHORTEST)));
    wire.dns_failure_refresh_rate = dns.retry.map(|(base, max)| RefreshRate {
        base_interval: Some(wire::duration(base)),
        max_interval: Some(wire::duration(max)),
    });
    wire.dns_lookup_family = match dns.families {
        DnsFamilies::V6Preferred => DnsLookupFamily::Auto,
        DnsFamilies::V4Preferred => DnsLookupFamily::V4Preferred,
        DnsFamilies::V4Only => DnsLookupFamily::V4Only,
        DnsFamilies::V6Only => DnsLookupFamily::V6Only,
        DnsFamilies::All => DnsLookupFamily::All,
    } as i32;
}

/// Of a cluster of either type.
pub(super) fn decode(wire: &cluster::Cluster, first_only: bool) -> Decoded<Discovery> {
    note!(wire, dns_jitter, dns_resolvers, use_tcp_for_dns_lookups, dns_resolution_config);
    let retry = wire.dns_failure_refresh_rate.as_ref();
    let retry = retry.map(|rate| retry_after(rate.base_interval.as_ref(), rate.max_interval.as_ref()));
    let families = match DnsLookupFamily::try_from(wire.dns_lookup_family) {
        Ok(DnsLookupFamily::Auto) => DnsFamilies::V6Preferred,
        Ok(DnsLookupFamily::V4Only) => DnsFamilies::V4Only,
        Ok(DnsLookupFamily::V6Only) => DnsFamilies::V6Only,
        Ok(DnsLookupFamily::V4Preferred) => DnsFamilies::V4Preferred,
        Ok(DnsLookupFamily::All) => DnsFamilies::All,
        Err(_) => return flaw("dns_lookup_family", "is unknown"),
    };
    let dns = DnsDiscovery {
        first_only,
        respect_ttl: wire.respect_dns_ttl,
        refresh: refresh(wire.dns_refresh_rate.as_ref())?,
        retry: retry.transpose().under("dns_failure_refresh_rate")?,
        families,
        ..DnsDiscovery::default()
    };
    with_names(wire, dns)
}

/// Of a cluster of the extension `envoy.clusters.dns`.
pub(super) fn decode_extension(wire: &cluster::Cluster, custom: &CustomClusterType) -> Decoded<Discovery> {
    let config = match &custom.typed_config {
        Some(config) if is::<dns_cluster::DnsCluster>(config) => config,
        _ => return flaw("", format!("\"{}\" is not supported", custom.name)),
    };
    let dns: dns_cluster::DnsCluster = unpack(config).under("typed_config")?;
    note!(dns, dns_jitter, dns_min_refresh_rate, typed_dns_resolver_config);
    use dns_cluster::DnsLookupFamily as F;
    let families = match F::try_from(dns.dns_lookup_family) {
        Ok(F::Unspecified | F::Auto) => DnsFamilies::V6Preferred,
        Ok(F::V4Only) => DnsFamilies::V4Only,
        Ok(F::V6Only) => DnsFamilies::V6Only,
        Ok(F::V4Preferred) => DnsFamilies::V4Preferred,
        Ok(F::All) => DnsFamilies::All,
        Err(_) => return flaw("typed_config.dns_lookup_family", "is unknown"),
    };
    let retry = dns.dns_failure_refresh_rate.as_ref();
    let retry = retry.map(|rate| retry_after(rate.base_interval.as_ref(), rate.max_interval.as_ref()));
    let dns = DnsDiscovery {
        first_only: dns.all_addresses_in_single_endpoint,
        respect_ttl: dns.respect_dns_ttl,
        refresh: refresh(dns.dns_refresh_rate.as_ref()).under("typed_config")?,
        retry: retry.transpose().under("typed_config.dns_failure_refresh_rate")?,
        families,
        ..DnsDiscovery::default()
    };
    with_names(wire, dns)
}

fn with_names(wire: &cluster::Cluster, mut dns: DnsDiscovery) -> Decoded<Discovery> {
    let Some(assignment) = &wire.load_assignment else {
        return flaw("load_assignment", "is required for endpoints by DNS");
    };
    dns.endpoints = endpoint::decode(assignment).under("load_assignment")?;
    if dns.first_only && dns.endpoints.len() != 1 {
        let reason = format!("LOGICAL_DNS takes exactly one endpoint, not {}", dns.endpoints.len());
        return flaw("load_assignment", reason);
    }
    Ok(Discovery::Dns(Box::new(dns)))
}

fn refresh(wire: Option<&protobuf::Duration>) -> Decoded<Duration> {
    positive_or(wire, DnsDiscovery::default().refresh, "dns_refresh_rate")
}

fn retry_after(
    base: Option<&protobuf::Duration>,
    max: Option<&protobuf::Duration>,
) -> Decoded<(Duration, Duration)> {
    let Some(base) = duration_at(base, "base_interval")?.filter(|base| !base.is_zero()) else {
        return flaw("base_interval", "is required and must be greater than zero");
    };
    match duration_at(max, "max_interval")? {
        None => Ok((base, base.saturating_mul(10))),
        Some(max) if max >= base => Ok((base, max)),
        Some(_) => flaw("max_interval", "must not be less than base_interval"),
    }
}
