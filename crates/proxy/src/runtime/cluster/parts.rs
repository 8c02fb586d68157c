//! Parts of a cluster by metadata of its endpoints.

use std::collections::BTreeSet;

use outrigger_model::cluster::{Balance, Labels, Outlier, Part, Selector, SubsetFallback, Subsets};
use outrigger_model::endpoint::{Endpoint, Health as Reported, LocalityEndpoints};

use super::*;

fn labels(text: &str) -> Labels {
    let pairs = text.split_whitespace().filter_map(|pair| pair.split_once('='));
    pairs.map(|(key, value)| (key.to_owned(), value.to_owned())).collect()
}

fn cluster(fallback: SubsetFallback) -> ClusterHandle {
    let keys = |keys: &[&str]| -> BTreeSet<String> { keys.iter().map(|key| (*key).to_owned()).collect() };
    let subsets = Subsets {
        selectors: vec![
            Selector { keys: keys(&["stage"]), fallback: None },
            Selector { keys: keys(&["stage", "version"]), fallback: Some(SubsetFallback::Any) },
        ],
        fallback,
        default: labels("stage=dev"),
    };
    let outlier = Outlier { consecutive_5xx: 1, max_ejection_percent: 100, ..Outlier::default() };
    let config = Cluster {
        balance: Balance::RoundRobin,
        subsets: Some(Box::new(subsets)),
        outlier: Some(outlier),
        ..Cluster::new("c")
    };
    let handle = ClusterHandle::new(0, Arc::new(config), None).unwrap();
    let all = ["stage=prod version=1", "stage=prod version=2", "stage=dev version=2", ""];
    let endpoint = |(at, text): (usize, &&str)| Endpoint {
        labels: Some(Box::new(labels(text))),
        ..Endpoint::new(SocketAddr::from(([10, 0, 0, at as u8 + 1], 80)))
    };
    let endpoints = all.iter().enumerate().map(endpoint).collect();
    handle.update(&EndpointSet::new("c", vec![LocalityEndpoints { endpoints, ..Default::default() }]));
    handle
}

/// Who is reached.
fn reach(cluster: &ClusterHandle) -> Vec<u8> {
    let original = (SocketAddr::from(([10, 9, 9, 9], 80)), Reach::Network);
    let ctx = PickContext { tried: &[], original, hash: None };
    let found: BTreeSet<u8> = (0..32)
        .filter_map(|_| cluster.pick(&ctx).ok())
        .map(|endpoint| match endpoint.address.ip() {
            std::net::IpAddr::V4(ip) => ip.octets()[3],
            std::net::IpAddr::V6(_) => 0,
        })
        .collect();
    found.into_iter().collect()
}

#[test]
fn a_part_is_those_with_its_labels_and_the_fallback_serves_where_there_are_none() {
    let parts = ["stage=prod", "stage=prod version=2", "stage=test", "stage=test version=1", "version=2", ""];
    for (fallback, wanted) in [
        (SubsetFallback::None, [&[1, 2][..], &[2], &[], &[1, 2, 3, 4], &[], &[]]),
        (SubsetFallback::Any, [&[1, 2], &[2], &[1, 2, 3, 4], &[1, 2, 3, 4], &[1, 2, 3, 4], &[1, 2, 3, 4]]),
        (SubsetFallback::Default, [&[1, 2], &[2], &[3], &[1, 2, 3, 4], &[3], &[3]]),
    ] {
        let whole = cluster(fallback);
        for (part, wanted) in parts.iter().zip(wanted) {
            let part = whole.part(&Part::new("c", labels(part)));
            assert_eq!(reach(&part), wanted, "{fallback:?}");
        }
        assert_eq!(reach(&whole), wanted[5], "{fallback:?}: a route without a part");
    }
}

#[test]
fn a_session_is_kept_at_endpoints_of_its_part_alone() {
    let at = |n: u8| SocketAddr::from(([10, 0, 0, n], 80));
    let whole = cluster(SubsetFallback::Any);
    for (part, wanted) in [("stage=prod", [true, true, false, false]), ("stage=test", [true; 4])] {
        let part = whole.part(&Part::new("c", labels(part)));
        assert_eq!([1, 2, 3, 4].map(|n| part.serving_at(at(n)).is_some()), wanted);
    }
    let nobody = cluster(SubsetFallback::None).part(&Part::new("c", labels("stage=test")));
    assert!(nobody.serving_at(at(1)).is_none());
}

#[test]
fn a_part_bears_as_much_as_those_of_it_that_fail_leave() {
    let labelled = |n: u8, health| Endpoint {
        labels: Some(Box::new(labels("stage=prod"))),
        health,
        ..Endpoint::new(SocketAddr::from(([10, 0, 0, n], 80)))
    };
    let handle = cluster(SubsetFallback::None);
    let place = |priority, endpoints| LocalityEndpoints { priority, endpoints, ..Default::default() };
    // One of four is healthy: of a priority that bears 140 for each hundredth, so much, and the rest goes to the next.
    let near = (1..=4).map(|n| labelled(n, if n == 1 { Reported::Healthy } else { Reported::Unhealthy }));
    let far = vec![labelled(9, Reported::Healthy)];
    handle.update(&EndpointSet::new("c", vec![place(0, near.collect()), place(1, far)]));
    let prod = handle.part(&Part::new("c", labels("stage=prod")));
    assert_eq!(reach(&prod), [1, 9]);
}

#[test]
fn parts_share_limits_and_ejections_and_follow_endpoints() {
    let whole = cluster(SubsetFallback::None);
    let prod = whole.part(&Part::new("c", labels("stage=prod")));
    let first = whole.endpoints().all[0].clone();
    prod.report(&first, Outcome::Status(500), None);
    assert_eq!(reach(&prod), [2]);
    assert!(whole.ejection(&first).is_some());
    whole.update(&EndpointSet::new("c", Vec::new()));
    assert_eq!(reach(&prod), Vec::<u8>::new());
}
