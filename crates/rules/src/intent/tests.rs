use std::collections::BTreeMap;
use std::time::Duration;

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
    let policy = |balancing| TrafficPolicy { load_balancing: Some(balancing), ..TrafficPolicy::default() };
    let mut base = policy(LoadBalancing::RoundRobin);
    base.outlier = Some(Outlier::default());
    let subset = SubsetIntent {
        name: "v1".into(),
        labels: [("version".to_owned(), "v1".to_owned())].into(),
        policy: policy(LoadBalancing::Random),
        ports: [(90, TrafficPolicy::default())].into(),
        place: Place::default(),
        origin: origin.clone(),
    };
    DestinationIntent {
        origin,
        host: Resolver::default().service("reviews", "shop"),
        place: Place::default(),
        visibility: Visibility::Everyone,
        policy: base,
        ports: [(80, policy(LoadBalancing::LeastRequest))].into(),
        subsets: vec![subset],
        merged: Vec::new(),
    }
}

#[test]
fn a_port_level_policy_inherits_nothing() {
    let effective = destination().effective(None, 80);
    assert_eq!(effective.load_balancing, Some(LoadBalancing::LeastRequest));
    assert_eq!(effective.outlier, None);
    assert_eq!(destination().effective(Some("v1"), 90), TrafficPolicy::default());
}

#[test]
fn a_subset_overrides_field_by_field() {
    let effective = destination().effective(Some("v1"), 8080);
    assert_eq!(effective.load_balancing, Some(LoadBalancing::Random));
    assert_eq!(effective.outlier, Some(Outlier::default()));
}

#[test]
fn default_retries_are_only_what_never_reached_the_app() {
    let retry = RetryIntent::default();
    assert_eq!(retry.attempts, 2);
    assert_eq!(retry.on.to_string(), "connect-failure,refused-stream,reset-before-request");
    assert_eq!(retry.backoff.base, Duration::from_millis(25));
}

#[test]
fn an_origin_reads_as_kind_namespace_and_name() {
    assert_eq!(destination().origin.to_string(), "DestinationRule shop/reviews");
}

#[test]
fn every_retry_condition_is_found_by_its_own_name() {
    for (name, condition) in RetryCondition::NAMES {
        assert_eq!(RetryCondition::parse(name), Some(condition));
        assert_eq!(condition.as_str(), name);
        assert_eq!(serde_json::to_value(condition).unwrap(), name);
    }
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
    c.policy.load_balancing = Some(LoadBalancing::Random);
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
