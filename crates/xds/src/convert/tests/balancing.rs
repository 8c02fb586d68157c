//! How others say who gets a request, and who gets none for a while.

use std::time::Duration;

use outrigger_model::cluster::{
    Balance, Cluster, FailurePercentage, LeastOf, LoadReports, Outlier, SuccessRate, Warmup,
};

use super::super::cluster;
use crate::kind::ClientKind;
use crate::wire::cluster::cluster::{CommonLbConfig, LbConfig, LbPolicy, LeastRequestLbConfig};
use crate::wire::cluster::load_balancing_policy::Policy;
use crate::wire::cluster::{LoadBalancingPolicy, OutlierDetection};
use crate::wire::core::TypedExtensionConfig;
use crate::wire::least_request::{LeastRequest, least_request::SelectionMethod};
use crate::wire::missing::PeakEwma;
use crate::wire::reported::ClientSideWeightedRoundRobin;
use crate::wire::{self, any, scalar, uint, wrr_locality};

fn of_envoy(edit: impl FnOnce(&mut wire::cluster::Cluster)) -> Result<Cluster, String> {
    let mut wire = cluster::encode(&Cluster::new("c"), ClientKind::Envoy);
    edit(&mut wire);
    cluster::decode(&wire).map_err(|flaw| format!("{}: {}", flaw.field, flaw.reason))
}

fn typed<M: prost::Message + prost::Name>(message: &M) -> Policy {
    let config = TypedExtensionConfig { name: "any".into(), typed_config: Some(any(message)) };
    Policy { typed_extension_config: Some(config) }
}

fn policies<const N: usize>(policies: [Policy; N]) -> Option<LoadBalancingPolicy> {
    Some(LoadBalancingPolicy { policies: policies.into() })
}

#[test]
fn ejection_by_success_rate_is_on_where_an_envoys_is() {
    let ejection = |detection: OutlierDetection| {
        of_envoy(|c| c.outlier_detection = Some(detection)).map(|cluster| cluster.outlier.unwrap())
    };
    let default = OutlierDetection::default();
    let plain = ejection(default.clone()).unwrap();
    assert_eq!(plain.success_rate, Some(SuccessRate::default()));
    assert_eq!((plain.failure_percentage, plain.local_apart), (None, false));
    assert!(plain.check_ends_ejection, "as in Envoy");
    let off = ejection(OutlierDetection { enforcing_success_rate: uint(0), ..default.clone() }).unwrap();
    assert_eq!(off.success_rate, None);
    let local = OutlierDetection {
        enforcing_success_rate: uint(0),
        split_external_local_origin_errors: true,
        consecutive_local_origin_failure: uint(7),
        enforcing_failure_percentage_local_origin: uint(30),
        base_ejection_time: Some(wire::duration(Duration::from_secs(900))),
        ..default.clone()
    };
    let local = ejection(local).unwrap();
    assert_eq!((local.local_apart, local.consecutive_local), (true, 7));
    let share = FailurePercentage { enforcing: 0, enforcing_local: 30, ..FailurePercentage::default() };
    assert_eq!(local.failure_percentage, Some(share));
    assert_eq!(local.success_rate.map(|rate| (rate.enforcing, rate.enforcing_local)), Some((0, 100)));
    assert_eq!(local.max_ejection, Duration::from_secs(900), "not below the base");
    // None of it may be ejected, unless one always may.
    let none = OutlierDetection { max_ejection_percent: uint(0), ..default.clone() };
    let found = ejection(none.clone()).unwrap();
    assert_eq!((found.consecutive_5xx, found.consecutive_gateway, found.consecutive_local), (0, 0, 0));
    assert_eq!((found.success_rate, found.failure_percentage), (None, None));
    let one = ejection(OutlierDetection { always_eject_one_host: wire::boolean(true), ..none }).unwrap();
    assert_eq!((one.consecutive_5xx, one.max_ejection_percent), (5, 0));
    for (field, detection) in [
        ("enforcing_success_rate", OutlierDetection { enforcing_success_rate: uint(101), ..default.clone() }),
        (
            "failure_percentage_threshold",
            OutlierDetection { failure_percentage_threshold: uint(101), ..default.clone() },
        ),
    ] {
        let why = ejection(detection).unwrap_err();
        assert!(why.contains(field), "{why}");
    }
}

#[test]
fn a_panic_threshold_is_what_ejection_leaves_and_goes_back_as_one() {
    let panic = |value| CommonLbConfig {
        healthy_panic_threshold: Some(scalar::Percent { value }),
        ..Default::default()
    };
    let read = of_envoy(|c| {
        c.outlier_detection = Some(OutlierDetection::default());
        c.common_lb_config = Some(panic(30.0));
    });
    assert_eq!(read.unwrap().outlier.unwrap().min_health_percent, 30);
    let outlier = Some(Outlier { min_health_percent: 40, ..Outlier::default() });
    let model = Cluster { outlier, ..Cluster::new("c") };
    for kind in [ClientKind::Envoy, ClientKind::Outrigger] {
        let common = cluster::encode(&model, kind).common_lb_config.unwrap();
        assert_eq!(common.healthy_panic_threshold.map(|percent| percent.value), Some(40.0), "{kind:?}");
    }
}

#[test]
fn the_metrics_of_a_policy_have_bounds() {
    let read = |metrics: Vec<String>| {
        let config = ClientSideWeightedRoundRobin {
            metric_names_for_computing_utilization: metrics,
            ..Default::default()
        };
        of_envoy(|c| c.load_balancing_policy = policies([typed(&config)])).map(|_| ())
    };
    assert_eq!(read(vec!["named_metrics.a".into(); 16]), Ok(()));
    for metrics in [vec!["named_metrics.a".into(); 17], vec!["a".repeat(257)]] {
        let why = read(metrics).unwrap_err();
        assert!(
            why.contains("metric_names_for_computing_utilization") && why.contains("at most 16"),
            "{why}"
        );
    }
}

#[test]
fn typed_policies_are_read_and_the_first_known_counts() {
    let balance = |policy| of_envoy(|c| c.load_balancing_policy = policy).map(|cluster| cluster.balance);
    let unknown = Policy {
        typed_extension_config: Some(TypedExtensionConfig {
            name: "other".into(),
            typed_config: Some(wire::protobuf::Any { type_url: "a/b.Other".into(), value: Vec::new() }),
        }),
    };
    let full = LeastRequest { selection_method: SelectionMethod::FullScan as i32, ..Default::default() };
    let all = Balance::LeastOf(LeastOf { choices: None, bias: 1000 });
    assert_eq!(balance(policies([unknown, typed(&full)])), Ok(all));
    let peak = PeakEwma { decay_time: Some(wire::duration(Duration::from_secs(3))), default_rtt: None };
    let wanted = Balance::PeakEwma { decay: Duration::from_secs(3), initial: Duration::from_millis(10) };
    assert_eq!(balance(policies([typed(&peak)])), Ok(wanted));
    let inner = policies([typed(&ClientSideWeightedRoundRobin::default())]);
    let outer = wrr_locality::WrrLocality { endpoint_picking_policy: inner };
    let read = of_envoy(|c| c.load_balancing_policy = policies([typed(&outer)])).unwrap();
    assert_eq!(read.balance, Balance::Reported);
    assert_eq!(read.load_reports.as_deref(), Some(&LoadReports::default()));
    let few = LeastRequest { choice_count: uint(1), ..Default::default() };
    assert!(balance(policies([typed(&few)])).unwrap_err().contains("choice_count"));
    let negative = ClientSideWeightedRoundRobin {
        error_utilization_penalty: Some(wire::protobuf::FloatValue { value: -1.0 }),
        ..Default::default()
    };
    assert!(balance(policies([typed(&negative)])).unwrap_err().contains("error_utilization_penalty"));
    let more = LeastRequestLbConfig { choice_count: uint(4), ..Default::default() };
    let read = of_envoy(|c| c.lb_config = Some(LbConfig::LeastRequestLbConfig(more)));
    assert_eq!(read.unwrap().balance, Balance::LeastOf(LeastOf { choices: Some(4), bias: 1000 }));
}

#[test]
fn a_steady_ring_is_an_envoys_to_others_and_comes_back_to_ours() {
    let model = Cluster { balance: Balance::SteadyRing, ..Cluster::new("c") };
    for kind in [ClientKind::Outrigger, ClientKind::Envoy, ClientKind::Grpc] {
        assert_eq!(cluster::encode(&model, kind).lb_policy, LbPolicy::RingHash as i32, "{kind:?}");
    }
    let wire = cluster::encode(&model, ClientKind::Outrigger);
    assert_eq!(cluster::decode(&wire).unwrap().balance, Balance::SteadyRing);
    // Without our word for it, it is the ring that the message describes.
    let foreign = wire::cluster::Cluster { metadata: None, ..wire.clone() };
    let envoys = Balance::RingHash { minimum: 1024, maximum: 262_144 };
    assert_eq!(cluster::decode(&foreign).unwrap().balance, envoys);
    let other = wire::cluster::Cluster { lb_policy: LbPolicy::Maglev as i32, lb_config: None, ..wire };
    let flaw = cluster::decode(&other).unwrap_err();
    assert_eq!(flaw.field, "metadata.filter_metadata[outrigger].ring");
    assert!(flaw.reason.contains("can only be steady"), "{}", flaw.reason);
}

#[test]
fn who_knows_no_typed_policy_is_told_the_next_best() {
    let wire = |balance, kind| cluster::encode(&Cluster { balance, ..Cluster::new("c") }, kind);
    let names = |wire: &wire::cluster::Cluster| -> Vec<String> {
        let policies = wire.load_balancing_policy.iter().flat_map(|list| &list.policies);
        policies.map(|policy| policy.typed_extension_config.as_ref().unwrap().name.clone()).collect()
    };
    let peak = wire(Balance::PEAK_EWMA, ClientKind::Envoy);
    assert_eq!(
        names(&peak),
        ["envoy.load_balancing_policies.peak_ewma", "envoy.load_balancing_policies.least_request"]
    );
    let reported = wire(Balance::Reported, ClientKind::Grpc);
    assert_eq!(names(&reported), ["envoy.load_balancing_policies.wrr_locality"]);
    assert_eq!(reported.lb_policy, LbPolicy::RoundRobin as i32);
    let peak = wire(Balance::PEAK_EWMA, ClientKind::Grpc);
    assert!(names(&peak).is_empty() && peak.lb_policy == LbPolicy::RoundRobin as i32);
    // A warm-up beside Peak EWMA comes back to our own.
    let warmup = Some(Warmup { window: Duration::from_secs(9), ..Warmup::default() });
    let model = Cluster { balance: Balance::PEAK_EWMA, warmup, ..Cluster::new("c") };
    let again = cluster::decode(&cluster::encode(&model, ClientKind::Outrigger)).unwrap();
    assert_eq!((again.balance, again.warmup), (model.balance, model.warmup));
}
