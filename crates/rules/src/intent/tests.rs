use std::collections::BTreeMap;

use outrigger_model::cluster::{Balance, Outlier};

use super::*;
use crate::host::Resolver;

fn destination() -> DestinationIntent {
    let origin = Origin {
        kind: ObjectKind::DestinationRule,
        namespace: "shop".into(),
        name: "reviews".into(),
        file: None,
        line: 1,
    };
    let policy = |balancing| TrafficPolicy {
        load_balancing: Some(LoadBalancing::from(balancing)),
        ..TrafficPolicy::default()
    };
    let mut base = policy(Balance::RoundRobin);
    base.outlier = Some(Outlier::default());
    let subset = SubsetIntent {
        name: "v1".into(),
        labels: [("version".to_owned(), "v1".to_owned())].into(),
        policy: policy(Balance::Random),
        ports: [(90, TrafficPolicy::default())].into(),
        fallback: None,
        place: Place::default(),
        origin: origin.clone(),
    };
    DestinationIntent {
        origin,
        created: None,
        host: Resolver::default().service("reviews", "shop"),
        place: Place::default(),
        visibility: Visibility::Everyone,
        policy: base,
        ports: [(80, policy(Balance::LeastRequest))].into(),
        subsets: vec![subset],
        subsets_only: false,
        merged: Vec::new(),
        backend_tls: Vec::new(),
    }
}

#[test]
fn a_port_level_policy_inherits_nothing() {
    let effective = destination().effective(None, 80);
    assert_eq!(effective.load_balancing, Some(Balance::LeastRequest.into()));
    assert_eq!(effective.outlier, None);
    assert_eq!(destination().effective(Some("v1"), 90), TrafficPolicy::default());
}

#[test]
fn a_subset_overrides_field_by_field() {
    let effective = destination().effective(Some("v1"), 8080);
    assert_eq!(effective.load_balancing, Some(Balance::Random.into()));
    assert_eq!(effective.outlier, Some(Outlier::default()));
}

#[test]
fn an_origin_reads_as_kind_namespace_and_name() {
    assert_eq!(destination().origin.to_string(), "DestinationRule shop/reviews");
}

#[test]
fn rules_of_one_host_are_merged_as_istio_merges_them() {
    let named = |name: &str, subset: &str| {
        let mut rule = destination();
        rule.origin.name = name.into();
        rule.subsets[0].name = subset.into();
        rule.subsets[0].origin = rule.origin.clone();
        rule
    };
    let (mut a, b, mut c) = (named("a", "v1"), named("b", "v2"), named("c", "v2"));
    (a.policy, a.ports) = (TrafficPolicy::default(), BTreeMap::new());
    c.policy.load_balancing = Some(Balance::Random.into());
    let whole = DestinationIntent::merge([&a, &b, &c]).unwrap();
    assert_eq!(whole.subsets.iter().map(|s| s.name.as_str()).collect::<Vec<_>>(), ["v1", "v2"]);
    assert_eq!(
        (whole.policy.clone(), whole.ports.clone()),
        (b.policy.clone(), b.ports.clone()),
        "the first there is"
    );
    assert_eq!(whole.origin_of(None).name, "b");
    assert_eq!(whole.origin_of(Some("v1")).name, "a");
    assert_eq!(whole.origins().map(|o| o.name.as_str()).collect::<Vec<_>>(), ["b", "a", "c"]);
}
