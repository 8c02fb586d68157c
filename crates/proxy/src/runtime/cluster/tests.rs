use outrigger_model::cluster::{Balance, CheckHow, HealthCheck, Outlier, TcpCheck, Warmup};
use outrigger_model::endpoint::{Endpoint, Health as Reported, LocalityEndpoints};

use super::*;
use crate::failure::FailureKind;

fn endpoint(last: u8, health: Reported) -> Endpoint {
    let address = SocketAddr::from(([10, 0, 0, last], 80));
    Endpoint { health, ..Endpoint::new(address) }
}

fn set(levels: &[&[Endpoint]]) -> EndpointSet {
    let locality = |(priority, endpoints): (usize, &&[Endpoint])| LocalityEndpoints {
        priority: priority as u32,
        weight: 1,
        endpoints: endpoints.to_vec(),
        ..LocalityEndpoints::default()
    };
    EndpointSet::new("c", levels.iter().enumerate().map(locality).collect())
}

fn cluster(edit: impl FnOnce(&mut Cluster)) -> ClusterHandle {
    let mut config = Cluster { balance: Balance::RoundRobin, ..Cluster::new("c") };
    edit(&mut config);
    ClusterHandle::new(0, Arc::new(config), None).unwrap()
}

fn anywhere(tried: &[SocketAddr]) -> PickContext<'_> {
    PickContext { tried, original: (SocketAddr::from(([10, 9, 9, 9], 80)), Reach::Network), hash: None }
}

fn host(picked: &EndpointState) -> u8 {
    let std::net::IpAddr::V4(ip) = picked.address.ip() else { unreachable!() };
    ip.octets()[3]
}

fn reach(cluster: &ClusterHandle, tried: &[SocketAddr]) -> Vec<u8> {
    let mut hosts: Vec<u8> =
        (0..64).filter_map(|_| cluster.pick(&anywhere(tried)).ok()).map(|e| host(&e)).collect();
    hosts.sort_unstable();
    hosts.dedup();
    hosts
}

use Reported::{Draining, Healthy, Unhealthy};

#[test]
fn late_endpoint_update_keeps_in_flight_load_and_ejection() {
    let cluster = cluster(|c| {
        c.outlier = Some(Outlier { consecutive_5xx: 1, max_ejection_percent: 100, ..Outlier::default() });
    });
    cluster.update(&set(&[&[endpoint(1, Healthy), endpoint(2, Healthy), endpoint(3, Healthy)]]));
    let picked = cluster.endpoints().all[0].clone();
    let _request = picked.begin();
    cluster.report(&picked, Outcome::Status(500), None);
    cluster.update(&set(&[&[endpoint(1, Healthy), endpoint(2, Healthy), endpoint(4, Healthy)]]));
    assert_eq!(cluster.endpoints().all[0].in_flight(), 1);
    assert_eq!(reach(&cluster, &[]), [2, 4]);
}

#[test]
fn a_new_configuration_keeps_counts_and_endpoints() {
    let first = cluster(|c| c.limits.max_requests = 1);
    first.update(&set(&[&[endpoint(1, Healthy)]]));
    let _request = first.limits.try_request().unwrap();
    let mut config = (*first.config).clone();
    config.limits.max_requests = 2;
    let second = ClusterHandle::new(0, Arc::new(config), Some(&first)).unwrap();
    let _another = second.limits.try_request().unwrap();
    assert!(second.limits.try_request().is_err());
    assert_eq!(reach(&second, &[]), [1]);
}

#[test]
fn whoever_was_found_usable_keeps_a_weight_when_another_thread_ejects_it() {
    let cluster = cluster(|c| c.outlier = Some(Outlier { consecutive_5xx: 1, ..Outlier::default() }));
    let mut places = set(&[&[endpoint(1, Healthy), endpoint(2, Healthy)], &[endpoint(3, Healthy)]]);
    places.localities.iter_mut().for_each(|place| place.priority = 0);
    cluster.update(&places);
    let table = cluster.endpoints().clone();
    cluster.report(&table.all[0], Outcome::Status(500), None);
    assert_eq!(reach(&cluster, &[]), [2, 3]);
    let weights = cluster.weights_left(&table.levels[0], &[0], &[]).unwrap();
    assert!(weights[0] > 0 && weights[1..] == [0, 0], "{weights:?}");
}

#[test]
fn the_most_wanted_priority_with_a_usable_endpoint_serves() {
    let cluster = cluster(|_| {});
    cluster.update(&set(&[&[endpoint(1, Unhealthy), endpoint(2, Draining)], &[endpoint(3, Healthy)]]));
    assert_eq!(reach(&cluster, &[]), [3]);
    cluster.update(&set(&[&[endpoint(1, Healthy), endpoint(2, Draining)], &[endpoint(3, Healthy)]]));
    assert_eq!(reach(&cluster, &[]), [1]);
}

#[test]
fn an_ejected_level_falls_to_the_next() {
    let cluster = cluster(|c| {
        c.outlier = Some(Outlier { consecutive_5xx: 1, max_ejection_percent: 100, ..Outlier::default() });
    });
    cluster.update(&set(&[&[endpoint(1, Healthy)], &[endpoint(2, Healthy)]]));
    cluster.report(&cluster.endpoints().all[0], Outcome::GatewayError, None);
    assert_eq!(reach(&cluster, &[]), [2]);
}

#[test]
fn tried_hosts_are_avoided_while_there_are_others() {
    let cluster = cluster(|_| {});
    cluster.update(&set(&[&[endpoint(1, Healthy), endpoint(2, Healthy)], &[endpoint(3, Healthy)]]));
    let tried: Vec<_> = cluster.endpoints().all.iter().map(|e| e.address).collect();
    assert_eq!(reach(&cluster, &tried[..1]), [2]);
    assert_eq!(reach(&cluster, &tried[..2]), [3], "all of the first have been tried in vain");
    assert_eq!(reach(&cluster, &tried), [1, 2], "and all of the others: once more all of the first");
}

/// Who is picked after each of so many attempts, with priorities that are left after each `every` of them.
fn goes_on(cluster: &ClusterHandle, every: usize, count: usize) -> Vec<u8> {
    let mut attempts = Vec::new();
    for _ in 0..count {
        let context = anywhere(&[]);
        let picked = match attempts.len() < every {
            true => cluster.pick(&context),
            false => cluster.pick_leaving(&context, &Left { attempts: &attempts, every }),
        };
        attempts.push(picked.unwrap().address);
    }
    let hosts = attempts.iter().map(|address| host(&EndpointState::plain(*address, Reach::Network)));
    hosts.collect()
}

#[test]
fn priorities_that_were_tried_are_left_until_there_is_no_other() {
    let cluster = cluster(|_| {});
    cluster.update(&set(&[&[endpoint(1, Healthy)], &[endpoint(2, Unhealthy)], &[endpoint(3, Healthy)]]));
    // The example of Envoy's documentation: of the second nobody is healthy.
    assert_eq!(goes_on(&cluster, 1, 5), [1, 3, 1, 3, 1]);
    assert_eq!(goes_on(&cluster, 2, 7), [1, 1, 3, 3, 1, 1, 3]);
    cluster.update(&set(&[&[endpoint(1, Healthy)]]));
    assert_eq!(goes_on(&cluster, 1, 3), [1, 1, 1], "there is but one");
}

#[test]
fn nothing_to_pick_says_which_nothing() {
    let cluster = cluster(|_| {});
    let kind = |c: &ClusterHandle| c.pick(&anywhere(&[])).unwrap_err();
    assert!(kind(&cluster).detail.contains("not received"));
    cluster.update(&set(&[]));
    assert_eq!(kind(&cluster).kind, FailureKind::NoEndpoints);
    cluster.update(&set(&[&[endpoint(1, Unhealthy)]]));
    assert_eq!(kind(&cluster).kind, FailureKind::NoHealthyUpstream);
}

#[test]
fn the_original_destination_is_an_endpoint_whose_load_is_kept() {
    let cluster = cluster(|c| c.discovery = Discovery::OriginalDestination);
    let first = cluster.pick(&anywhere(&[])).unwrap();
    assert_eq!(host(&first), 9);
    let elsewhere = SocketAddr::from(([127, 0, 0, 5], 9080));
    assert_eq!(
        host(&cluster.pick(&PickContext { original: (elsewhere, Reach::Network), ..anywhere(&[]) }).unwrap()),
        5
    );
    assert!(Arc::ptr_eq(&first, &cluster.pick(&anywhere(&[])).unwrap()));
}

#[test]
fn locality_weights_share_before_endpoint_weights() {
    let cluster = cluster(|_| {});
    let mut set = set(&[&[endpoint(1, Healthy), endpoint(2, Healthy)], &[endpoint(3, Healthy)]]);
    set.localities[1].priority = 0;
    cluster.update(&set);
    let mut counts = [0; 4];
    for _ in 0..400 {
        counts[usize::from(host(&cluster.pick(&anywhere(&[])).unwrap()))] += 1;
    }
    assert_eq!(counts, [0, 100, 100, 200]);
}

#[test]
fn a_policy_that_changes_finds_the_endpoints_that_are_there() {
    let before = cluster(|_| {});
    before.update(&set(&[&[endpoint(1, Healthy), endpoint(2, Healthy), endpoint(3, Healthy)]]));
    let mut config = (*before.config).clone();
    config.balance = Balance::RingHash { minimum: 64, maximum: 1024 };
    let after = ClusterHandle::new(0, Arc::new(config), Some(&before)).unwrap();
    for key in 0..50_u64 {
        let context = PickContext { hash: Some(key.wrapping_mul(0x9e37_79b9_7f4a_7c15)), ..anywhere(&[]) };
        let first = after.pick(&context).unwrap().address;
        assert!((0..4).all(|_| after.pick(&context).unwrap().address == first));
        // A retry goes elsewhere, and always to the same one.
        let tried = [first];
        let again = PickContext { tried: &tried, ..context };
        let second = after.pick(&again).unwrap().address;
        assert!(second != first && after.pick(&again).unwrap().address == second);
    }
    assert_eq!(reach(&after, &[]), [1, 2, 3], "without a hash any will do");
}

/// Of 2000 picks, how many go to each of the endpoints 1, 2 and 3.
fn shares(cluster: &ClusterHandle) -> [usize; 3] {
    fastrand::seed(11);
    let mut counts = [0; 3];
    (0..2000).for_each(|_| counts[usize::from(host(&cluster.pick(&anywhere(&[])).unwrap()) - 1)] += 1);
    counts
}

#[tokio::test(start_paused = true)]
async fn a_new_endpoint_gets_its_share_little_by_little() {
    for balance in [Balance::RoundRobin, Balance::LeastRequest, Balance::Random] {
        let cluster = cluster(|c| {
            c.balance = balance;
            c.warmup = Some(Warmup { window: Duration::from_secs(100), ..Warmup::default() });
        });
        cluster.update(&set(&[&[endpoint(1, Healthy), endpoint(2, Healthy)]]));
        assert!(shares(&cluster)[..2].iter().all(|n| (700..1300).contains(n)), "all are new: {balance:?}");
        tokio::time::advance(Duration::from_secs(200)).await;
        let three = || set(&[&[endpoint(1, Healthy), endpoint(2, Healthy), endpoint(3, Healthy)]]);
        cluster.update(&three());
        let cold = shares(&cluster)[2];
        tokio::time::advance(Duration::from_secs(50)).await;
        // Another update does not make it new again.
        cluster.update(&three());
        let half = shares(&cluster)[2];
        tokio::time::advance(Duration::from_secs(60)).await;
        let warm = shares(&cluster)[2];
        assert!((30..180).contains(&cold), "{balance:?}: {cold} of 2000, a tenth of its share is 67 to 95");
        assert!((300..520).contains(&half), "{balance:?}: {half} of 2000, half its share is 400");
        assert!((560..780).contains(&warm), "{balance:?}: {warm} of 2000, its share is 667");
    }
}

#[tokio::test(start_paused = true)]
async fn an_endpoint_that_comes_back_to_health_is_new_again() {
    let cluster = cluster(|c| {
        c.warmup =
            Some(Warmup { minimum_percent: 1.0, window: Duration::from_secs(100), ..Warmup::default() })
    });
    cluster.update(&set(&[&[endpoint(1, Healthy), endpoint(2, Healthy), endpoint(3, Unhealthy)]]));
    tokio::time::advance(Duration::from_secs(500)).await;
    cluster.update(&set(&[&[endpoint(1, Healthy), endpoint(2, Healthy), endpoint(3, Healthy)]]));
    assert!(shares(&cluster)[2] < 60);
}

#[tokio::test(start_paused = true)]
async fn an_aggressive_warm_up_gives_most_of_the_share_soon() {
    let warmup = Warmup { window: Duration::from_secs(100), aggression: 4.0, ..Warmup::default() };
    let cluster = cluster(|c| {
        c.balance = Balance::RoundRobin;
        c.warmup = Some(warmup);
    });
    cluster.update(&set(&[&[endpoint(1, Healthy), endpoint(2, Healthy)]]));
    tokio::time::advance(Duration::from_secs(200)).await;
    cluster.update(&set(&[&[endpoint(1, Healthy), endpoint(2, Healthy), endpoint(3, Healthy)]]));
    tokio::time::advance(Duration::from_secs(6)).await;
    let early = shares(&cluster)[2];
    // The fourth root of 0.06 is 0.49; evenly it would still have its least part, 67 to 95.
    assert!((290..520).contains(&early), "{early} of 2000, half its share is 400");
}

/// Of a thousand requests, those to hosts from 100 on.
fn to_the_second(cluster: &ClusterHandle) -> usize {
    (0..1_000).filter(|_| host(&cluster.pick(&anywhere(&[])).unwrap()) >= 100).count()
}

#[tokio::test(start_paused = true)]
async fn what_a_priority_can_no_longer_bear_goes_on_to_the_next() {
    fastrand::seed(7);
    let rules = Outlier { consecutive_5xx: 1, max_ejection_percent: 100, ..Outlier::default() };
    let cluster = cluster(|c| c.outlier = Some(rules));
    let of_four = |healthy: usize| {
        let health = |n: usize| if n <= healthy { Healthy } else { Unhealthy };
        let first: Vec<Endpoint> = (1..=4).map(|n| endpoint(n as u8, health(n))).collect();
        set(&[&first, &[endpoint(100, Healthy), endpoint(101, Healthy)]])
    };
    for (healthy, wanted) in [
        (4, 0..=0),
        // 140 % of three of four is more than all.
        (3, 0..=0),
        // Two of four bear 70 of a hundred. Standard deviation 14.
        (2, 240..=360),
        (1, 590..=710),
        (0, 1_000..=1_000),
    ] {
        cluster.update(&of_four(healthy));
        let found = to_the_second(&cluster);
        assert!(wanted.contains(&found), "{healthy} of 4: {found}");
    }
    cluster.update(&of_four(3));
    let first = cluster.endpoints().all[0].clone();
    cluster.report(&first, Outcome::GatewayError, None);
    let found = to_the_second(&cluster);
    assert!((240..=360).contains(&found), "an ejected one bears nothing: {found}");
}

/// Zones with equal weights, of which one has one of ten left: it gets what one bears, not the share of ten.
#[test]
fn a_zone_that_has_lost_most_gets_less() {
    fastrand::seed(7);
    let zone = |from: u8, healthy: u8| LocalityEndpoints {
        weight: 1_000,
        endpoints: (0..10)
            .map(|n| endpoint(from + n, if n < healthy { Healthy } else { Unhealthy }))
            .collect(),
        ..LocalityEndpoints::default()
    };
    let cluster = cluster(|c| c.balance = Balance::Random);
    cluster.update(&EndpointSet::new("c", vec![zone(1, 1), zone(100, 10)]));
    let first = 1_000 - to_the_second(&cluster);
    // 140 of 1,140: 123 of a thousand, standard deviation 10.
    assert!((80..=165).contains(&first), "{first}");
}

/// Found by two localities with shares of 75 and 25 percent: both were more than a weight could be, and so they were alike.
#[test]
fn large_weights_keep_their_proportion() {
    fastrand::seed(7);
    let place = |n, weight| LocalityEndpoints {
        weight,
        endpoints: vec![Endpoint { weight: 1_000_000, ..endpoint(n, Healthy) }],
        ..LocalityEndpoints::default()
    };
    let cluster = cluster(|_| {});
    cluster.update(&EndpointSet::new("c", vec![place(1, 3_000_000_000), place(100, 1_000_000_000)]));
    let found = to_the_second(&cluster);
    assert!((245..=255).contains(&found), "{found} of 1000");
}

fn check(unhealthy_threshold: u32) -> Option<Box<HealthCheck>> {
    let check = HealthCheck::new(CheckHow::Tcp(TcpCheck::default()));
    Some(Box::new(HealthCheck { unhealthy_threshold, healthy_threshold: 2, ..check }))
}

/// Tells what a check said of a host.
fn said(cluster: &ClusterHandle, of: u8, passes: bool) -> Option<Flip> {
    let failed = || Failed { why: "it does not answer".into(), at_once: false, network: true };
    let endpoint = cluster.endpoints().all.iter().find(|one| host(one) == of).unwrap().clone();
    cluster.judge(&endpoint, passes.then_some(()).ok_or_else(failed))
}

fn again(before: &ClusterHandle, edit: impl FnOnce(&mut Cluster)) -> ClusterHandle {
    let mut config = (*before.config).clone();
    edit(&mut config);
    ClusterHandle::new(0, Arc::new(config), Some(before)).unwrap()
}

#[tokio::test(start_paused = true)]
async fn who_fails_its_checks_gets_nothing_until_it_passes_again() {
    let cluster = cluster(|c| c.health_check = check(2));
    cluster.update(&set(&[&[endpoint(1, Healthy), endpoint(2, Healthy), endpoint(3, Unhealthy)]]));
    assert_eq!(reach(&cluster, &[]), [1, 2], "nothing is known of them yet");
    assert_eq!(said(&cluster, 1, false), None);
    let since = cluster.endpoints().all[0].since;
    tokio::time::advance(Duration::from_secs(1)).await;
    assert!(said(&cluster, 1, false).is_some());
    assert_eq!((reach(&cluster, &[]), cluster.membership()), (vec![2], (1, 3)));
    said(&cluster, 1, true);
    assert_eq!(reach(&cluster, &[]), [2], "once is not enough");
    said(&cluster, 1, true);
    assert_eq!(reach(&cluster, &[]), [1, 2]);
    assert!(cluster.endpoints().all[0].since > since, "it warms up as a new one does");
    assert_eq!(cluster.checks().all(), [2, 2, 2]);
}

#[test]
fn where_all_fail_nobody_is_taken_and_the_reason_is_said() {
    let cluster = cluster(|c| c.health_check = check(1));
    cluster.update(&set(&[&[endpoint(1, Healthy)], &[endpoint(2, Healthy)]]));
    said(&cluster, 1, false);
    assert_eq!(reach(&cluster, &[]), [2], "the next priority");
    said(&cluster, 2, false);
    let failure = cluster.pick(&anywhere(&[])).unwrap_err();
    assert_eq!(failure.kind, FailureKind::NoHealthyUpstream);
    let wanted = "none of 2 endpoints is healthy, health checks of 2 fail: 10.0.0.1:80: it does not answer";
    assert!(failure.detail.contains(wanted), "{failure}");
}

#[test]
fn who_comes_later_waits_for_its_first_success_unless_nobody_else_is_left() {
    let cluster = cluster(|c| c.health_check = check(1));
    cluster.update(&set(&[&[endpoint(1, Healthy)]]));
    said(&cluster, 1, true);
    cluster.update(&set(&[&[endpoint(1, Healthy), endpoint(2, Healthy)]]));
    assert_eq!(reach(&cluster, &[]), [1]);
    said(&cluster, 2, true);
    assert_eq!(reach(&cluster, &[]), [1, 2], "the first success is enough");
    cluster.update(&set(&[&[endpoint(3, Healthy), endpoint(4, Healthy)]]));
    assert_eq!(reach(&cluster, &[]), [3, 4], "all are others now");
    said(&cluster, 3, false);
    assert_eq!(reach(&cluster, &[]), [4], "one is known to fail");
    said(&cluster, 4, true);
    assert_eq!(reach(&cluster, &[]), [4]);
}

#[test]
fn verdicts_outlive_pushes_and_end_with_the_checks() {
    let first = cluster(|c| c.health_check = check(1));
    let both = set(&[&[endpoint(1, Healthy), endpoint(2, Healthy)]]);
    first.update(&both);
    said(&first, 1, false);
    first.update(&both);
    let second = again(&first, |c| c.balance = Balance::Maglev { size: 101 });
    assert_eq!(reach(&second, &[]), [2], "another policy, the same endpoints");
    let third = again(&second, |c| c.health_check = check(7));
    assert_eq!(reach(&third, &[]), [2], "another question, and no answer yet");
    said(&third, 1, true);
    assert_eq!(reach(&third, &[]), [1, 2], "the first answer to it counts");
    for _ in 0..7 {
        said(&third, 2, false);
    }
    assert_eq!(reach(&third, &[]), [1]);
    let fourth = again(&third, |c| c.health_check = None);
    assert_eq!(reach(&fourth, &[]), [1, 2]);
    assert_eq!(said(&fourth, 1, false), None);
    let fifth = again(&fourth, |c| c.health_check = check(1));
    assert_eq!(reach(&fifth, &[]), [1, 2], "forgotten");
}

#[test]
fn who_fails_its_checks_is_not_counted_among_those_that_are_left() {
    let outlier = Outlier { consecutive_5xx: 1, max_ejection_percent: 100, ..Outlier::default() };
    let cluster = cluster(|c| (c.health_check, c.outlier) = (check(1), Some(outlier)));
    cluster.update(&set(&[&[endpoint(1, Healthy), endpoint(2, Healthy)]]));
    said(&cluster, 1, false);
    let last = cluster.pick(&anywhere(&[])).unwrap();
    cluster.report(&last, Outcome::Status(500), None);
    assert_eq!(reach(&cluster, &[]), [2], "the last endpoint is never ejected");
}

#[test]
fn an_ejected_endpoint_serves_again_when_it_becomes_the_last() {
    let outlier = Outlier { consecutive_5xx: 1, max_ejection_percent: 100, ..Outlier::default() };
    let checked = cluster(|c| (c.health_check, c.outlier) = (check(1), Some(outlier.clone())));
    checked.update(&set(&[&[endpoint(1, Healthy), endpoint(2, Healthy)]]));
    checked.report(&checked.endpoints().all[0], Outcome::Status(500), None);
    assert_eq!(reach(&checked, &[]), [2]);
    said(&checked, 2, false);
    assert_eq!(reach(&checked, &[]), [1], "the other fails its checks");
    assert!(checked.ejection(&checked.endpoints().all[0]).is_none());

    let pushed = cluster(|c| c.outlier = Some(outlier));
    pushed.update(&set(&[&[endpoint(1, Healthy), endpoint(2, Healthy), endpoint(3, Healthy)]]));
    for ejected in [0, 1] {
        pushed.report(&pushed.endpoints().all[ejected], Outcome::Status(500), None);
    }
    pushed.update(&set(&[&[endpoint(1, Healthy), endpoint(2, Healthy)]]));
    assert_eq!(reach(&pushed, &[]).len(), 1, "the other is gone: one of the two, and no more");
}

#[test]
fn a_full_priority_is_passed_over_while_another_has_room() {
    let cluster = cluster(|c| c.capacity = Some(2));
    let far = [endpoint(3, Healthy)];
    cluster.update(&set(&[&[endpoint(1, Healthy), endpoint(2, Healthy)], &far]));
    let members: Vec<_> = cluster.endpoints().all.clone();
    let mut near: Vec<_> = (0..3).map(|at| members[at % 2].begin()).collect();
    assert_eq!(reach(&cluster, &[]), [1, 2], "there is room for one more");
    near.push(members[1].begin());
    assert_eq!(reach(&cluster, &[]), [3]);
    let tried = [members[2].address];
    assert_eq!(reach(&cluster, &tried), [1, 2], "who was tried is not tried again for room");
    let more: Vec<_> = (0..2).map(|_| members[2].begin()).collect();
    assert_eq!(reach(&cluster, &[]), [1, 2], "all are full");
    drop((near, more));
    assert_eq!(reach(&cluster, &[]), [1, 2]);
}

#[test]
fn a_check_that_passes_ends_an_ejection_where_the_rules_say_so() {
    for (ends, wanted) in [(true, vec![1, 2]), (false, vec![2])] {
        let outlier = Outlier {
            consecutive_5xx: 1,
            max_ejection_percent: 100,
            check_ends_ejection: ends,
            ..Outlier::default()
        };
        let cluster = cluster(|c| {
            c.outlier = Some(outlier);
            c.health_check = check(2);
        });
        cluster.update(&set(&[&[endpoint(1, Healthy), endpoint(2, Healthy)]]));
        for of in [1, 2] {
            said(&cluster, of, true);
        }
        let first = cluster.endpoints().all[0].clone();
        cluster.report(&first, Outcome::Status(500), None);
        assert_eq!(reach(&cluster, &[]), [2]);
        said(&cluster, 1, true);
        assert_eq!(reach(&cluster, &[]), wanted, "{ends}");
    }
}
