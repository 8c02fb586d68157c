//! Our own clients lose nothing; the others can be told everything without a panic.

use outrigger_model::cluster::Cluster;
use proptest::prelude::*;

use super::super::hash_of;
use super::*;
use crate::{ClientKind, decode, encode};

proptest! {
    #![proptest_config(ProptestConfig { cases: 600, ..ProptestConfig::default() })]

    #[test]
    fn every_resource_survives_the_way_to_our_own_proxy(resource in sample::resource()) {
        let encoded = encode(&resource, ClientKind::Outrigger);
        let decoded = decode(encoded.type_url, &encoded.value);
        prop_assert_eq!(decoded.as_ref(), Ok(&resource));
        prop_assert_eq!(hash_of(&decoded.unwrap()), hash_of(&resource));
    }

    #[test]
    fn what_envoy_is_sent_means_the_same_to_us(resource in sample::resource()) {
        prop_assume!(ClientKind::Envoy.takes(resource.kind()));
        let encoded = encode(&resource, ClientKind::Envoy);
        let decoded = decode(encoded.type_url, &encoded.value).unwrap();
        prop_assert_eq!(decoded.name(), resource.name());
        // Told again it says the same: what was normalised stays so.
        let again = encode(&decoded, ClientKind::Envoy);
        prop_assert_eq!(decode(again.type_url, &again.value), Ok(decoded));
    }

    #[test]
    fn grpc_can_be_told_anything(resource in sample::resource()) {
        prop_assert_eq!(encode(&resource, ClientKind::Grpc).type_url, type_url(resource.kind()));
    }
}

#[test]
fn a_version_depends_on_the_value_alone() {
    let a = Resource::Cluster(Cluster::new("a"));
    assert_eq!(hash_of(&a), hash_of(&a.clone()));
    assert_ne!(hash_of(&a), hash_of(&Resource::Cluster(Cluster::new("b"))));
    let mut changed = Cluster::new("a");
    changed.limits.max_retries = 1;
    assert_ne!(hash_of(&a), hash_of(&Resource::Cluster(changed)));
}

#[test]
fn an_unknown_type_is_named() {
    let refused = decode("type.googleapis.com/nobody.knows", &[]).unwrap_err();
    assert!(refused.reason.contains("nobody.knows"), "{refused}");
}
