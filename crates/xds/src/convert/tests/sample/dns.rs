//! Strategies for clusters of names.

use super::*;

fn named_address() -> impl Strategy<Value = NamedAddress> {
    let host =
        prop_oneof!["[a-z]{1,8}(\\.[a-z]{1,8}){0,3}", Just("192.0.2.7".into()), Just("2001:db8::7".into())];
    (host, any::<u16>()).prop_map(|(host, port)| NamedAddress { host, port })
}

pub(super) fn discovery() -> impl Strategy<Value = Discovery> {
    use DnsFamilies::{All, V4Only, V4Preferred, V6Only, V6Preferred};
    let families = proptest::sample::select(vec![V6Preferred, V4Preferred, V4Only, V6Only, All]);
    let strict = vec(locality(named_address(), 0..4), 0..4).prop_map(|localities| (localities, false));
    let logical = locality(named_address(), 1..2).prop_map(|locality| (vec![locality], true));
    let names = prop_oneof![strict, logical];
    let span = || (1_u64..9000).prop_map(Duration::from_millis);
    let retry = (span(), span()).prop_map(|(base, more)| (base, base + more));
    (name(), names, any::<bool>(), span(), of(retry), families).prop_map(
        |(cluster, (localities, first_only), respect_ttl, refresh, retry, families)| {
            Discovery::Dns(Box::new(DnsDiscovery {
                endpoints: EndpointSet::new(cluster, localities),
                first_only,
                respect_ttl,
                refresh,
                retry,
                families,
            }))
        },
    )
}
