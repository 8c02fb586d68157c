//! How requests are spread: by weights, places, priorities and warmth within statistical bounds, and by hashes so that keys stay.

use std::collections::BTreeMap;

use outrigger_model::cluster::{Balance, CheckHow, HealthCheck, LeastOf, Outlier, TcpCheck, Warmup};
use outrigger_model::endpoint::{Endpoint, Health as Reported, LocalityEndpoints};

use super::*;

const DRAWS: usize = 40_000;

fn address(n: usize) -> SocketAddr {
    SocketAddr::from(([10, 0, (n / 250) as u8, (n % 250) as u8 + 1], 80))
}

fn endpoint(n: usize, weight: u32) -> Endpoint {
    Endpoint { weight, ..Endpoint::new(address(n)) }
}

/// A place of these endpoints, with a weight of its own or none.
fn place(priority: u32, weight: u32, endpoints: Vec<Endpoint>) -> LocalityEndpoints {
    LocalityEndpoints { priority, weight, endpoints, ..LocalityEndpoints::default() }
}

fn cluster(balance: Balance, places: Vec<LocalityEndpoints>) -> ClusterHandle {
    let config = Cluster { balance, ..Cluster::new("c") };
    let handle = ClusterHandle::new(0, Arc::new(config), None).unwrap();
    handle.update(&EndpointSet::new("c", places));
    handle
}

fn owner(cluster: &ClusterHandle, hash: Option<u64>) -> SocketAddr {
    let original = (SocketAddr::from(([10, 9, 9, 9], 80)), Reach::Network);
    cluster.pick(&PickContext { tried: &[], original, hash }).unwrap().address
}

fn counts(cluster: &ClusterHandle) -> BTreeMap<SocketAddr, usize> {
    fastrand::seed(7);
    let mut counts = BTreeMap::new();
    for _ in 0..DRAWS {
        *counts.entry(owner(cluster, None)).or_default() += 1;
    }
    counts
}

/// So many of all draws, within five standard deviations: once in two million it is chance.
fn is_share(count: usize, share: f64, what: &str) {
    let draws = DRAWS as f64;
    let (mean, deviation) = (draws * share, (draws * share * (1.0 - share)).sqrt());
    let off = (count as f64 - mean).abs();
    assert!(off <= 5.0 * deviation + 1.0, "{what}: {count}, not {mean:.0} ± {:.0}", 5.0 * deviation);
}

const BY_CHANCE: [Balance; 5] = [
    Balance::Random,
    Balance::LeastRequest,
    Balance::LeastOf(LeastOf { choices: Some(4), bias: 1000 }),
    Balance::LeastOf(LeastOf { choices: None, bias: 1000 }),
    Balance::LeastOf(LeastOf { choices: None, bias: 0 }),
];

#[test]
fn weights_are_kept_by_chance_within_bounds_and_in_turn_exactly() {
    let weights = [1, 2, 3, 10, 24];
    let places =
        || vec![place(0, 0, weights.iter().enumerate().map(|(n, weight)| endpoint(n, *weight)).collect())];
    for balance in BY_CHANCE {
        let counts = counts(&cluster(balance, places()));
        for (n, weight) in weights.iter().enumerate() {
            is_share(counts[&address(n)], f64::from(*weight) / 40.0, &format!("{balance:?}, {weight}"));
        }
    }
    for balance in [Balance::RoundRobin, Balance::Reported] {
        let counts = counts(&cluster(balance, places()));
        for (n, weight) in weights.iter().enumerate() {
            assert_eq!(counts[&address(n)], *weight as usize * DRAWS / 40, "{balance:?}, {weight}");
        }
    }
}

#[test]
fn places_have_their_shares_whatever_the_number_of_their_endpoints() {
    // Three quarters for two endpoints of 1 and 3, a quarter for eight.
    let near = || place(0, 75, vec![endpoint(0, 1), endpoint(1, 3)]);
    let far = || place(0, 25, (2..10).map(|n| endpoint(n, 1)).collect());
    for balance in [Balance::Random, Balance::LeastRequest, Balance::RoundRobin] {
        let counts = counts(&cluster(balance, vec![near(), far()]));
        is_share(counts[&address(0)], 0.75 / 4.0, &format!("{balance:?}"));
        is_share(counts[&address(1)], 0.75 * 3.0 / 4.0, &format!("{balance:?}"));
        for n in 2..10 {
            is_share(counts[&address(n)], 0.25 / 8.0, &format!("{balance:?}"));
        }
    }
}

#[test]
fn a_priority_gives_on_what_it_cannot_bear() {
    let ill = |n| Endpoint { health: Reported::Unhealthy, ..endpoint(n, 1) };
    // Half of four serve: 70 of 100 stay.
    let first = || place(0, 0, vec![endpoint(0, 1), endpoint(1, 1), ill(2), ill(3)]);
    let second = || place(1, 0, vec![endpoint(4, 1), endpoint(5, 1), endpoint(6, 1)]);
    for balance in [Balance::Random, Balance::RoundRobin] {
        let counts = counts(&cluster(balance, vec![first(), second()]));
        is_share(counts[&address(0)] + counts[&address(1)], 0.7, &format!("{balance:?}"));
        is_share(counts[&address(4)], 0.1, &format!("{balance:?}"));
    }
}

#[tokio::test(start_paused = true)]
async fn a_new_endpoint_gets_its_share_little_by_little() {
    let window = Duration::from_secs(100);
    for (aggression, seconds, part) in
        [(1.0, 0, 0.1), (1.0, 25, 0.25), (1.0, 50, 0.5), (2.0, 25, 0.5), (1.0, 100, 1.0)]
    {
        let warmup = Some(Warmup { window, minimum_percent: 10.0, aggression });
        let config = Cluster { balance: Balance::Random, warmup, ..Cluster::new("c") };
        let cluster = ClusterHandle::new(0, Arc::new(config), None).unwrap();
        let set =
            |count| EndpointSet::new("c", vec![place(0, 0, (0..count).map(|n| endpoint(n, 1)).collect())]);
        cluster.update(&set(2));
        tokio::time::advance(window).await;
        cluster.update(&set(3));
        tokio::time::advance(Duration::from_secs(seconds)).await;
        // Drawn once in three times, and taken for its part.
        let share = part / (2.0 + part);
        is_share(counts(&cluster)[&address(2)], share, &format!("{aggression} after {seconds} s"));
    }
}

const RING: Balance = Balance::RingHash { minimum: 4096, maximum: 8_388_608 };
const MAGLEV: Balance = Balance::Maglev { size: 65_537 };
const KEYS: u64 = 10_000;

/// What part of all keys may move from one of those who stay to another, where one of `n` leaves: of a steady ring none, so that over
/// all who may leave just `(n - 1) / n` of the keys stay. Of Maglev's 65,537 places 0.6 % move at 100 endpoints (by its two hashes alone,
/// without this code). An Envoy's ring gives each of fewer endpoints more points, and those take keys from each other:
/// `(n - 2) / (n (n - 1))` of those who stay.
fn may_stray(balance: Balance, n: usize) -> f64 {
    let of = n as f64;
    match balance {
        Balance::SteadyRing => 0.0,
        Balance::Maglev { .. } if n <= 10 => 0.005,
        Balance::Maglev { .. } => 0.01,
        _ => (of - 2.0) / (of * of) + 0.02,
    }
}

/// Tables are made anew of the endpoints that are left: whoever is gone has no place in them. Its keys go to the others.
#[test]
fn keys_stay_where_they_are_when_an_endpoint_leaves_and_the_tables_are_made_anew() {
    let keys = |cluster: &ClusterHandle| -> Vec<SocketAddr> {
        let hash = |key: u64| xxhash_rust::xxh64::xxh64(&key.to_be_bytes(), 0);
        (0..KEYS).map(|key| owner(cluster, Some(hash(key)))).collect()
    };
    let of_some = [3, 5, 10].map(|n| (RING, n)).into_iter();
    let of_many = [Balance::SteadyRing, MAGLEV];
    let of_many = of_many.into_iter().flat_map(|balance| [3, 4, 5, 10, 33, 100].map(|n| (balance, n)));
    for (balance, n) in of_some.chain(of_many) {
        let all = || place(0, 0, (0..n).map(|at| endpoint(at, 1)).collect());
        let cluster = cluster(balance, vec![all()]);
        let before = keys(&cluster);
        let (mut stay, mut strays) = (0, 0);
        for gone in 0..n {
            let rest: Vec<_> = (0..n).filter(|at| *at != gone).map(|at| endpoint(at, 1)).collect();
            cluster.update(&EndpointSet::new("c", vec![place(0, 0, rest)]));
            assert_eq!(cluster.endpoints().levels[0].members.len(), n - 1, "made anew");
            let after = keys(&cluster);
            assert!(after.iter().all(|owner| *owner != address(gone)));
            let stayed = before.iter().zip(&after).filter(|(before, after)| before == after).count();
            let others = before.iter().filter(|owner| **owner != address(gone)).count();
            (stay, strays) = (stay + stayed, strays + others - stayed);
        }
        // Over all that may leave: who has more keys than another takes more with it.
        let count = (KEYS as usize * n) as f64;
        let (kept, strayed) = (stay as f64 / count, strays as f64 / count);
        let of = n as f64;
        assert!(
            (kept + strayed - (of - 1.0) / of).abs() < 1e-9,
            "each leaves once, and then all of its keys"
        );
        println!("{balance:?}, {n} endpoints: {kept:.4} of all keys stay, {strayed:.4} stray");
        let bound = may_stray(balance, n);
        assert!(strayed <= bound, "{balance:?}, {n}: {strayed} of all keys stray, {kept} stay");
    }
}

/// A place of four with three quarters of all requests, and a place of one.
fn of_four_and_of_one() -> Vec<LocalityEndpoints> {
    vec![place(0, 75, (0..4).map(|n| endpoint(n, 1)).collect()), place(0, 25, vec![endpoint(4, 1)])]
}

/// How many of four are down, and what then stays in their place: all of its weight while 5 of 7 serve, then 1.4 times the part that does.
const STAYS: [(usize, f64); 3] = [(1, 0.75), (2, 52.5 / 77.5), (3, 26.25 / 51.25)];

#[tokio::test(start_paused = true)]
async fn a_place_keeps_its_share_while_ejections_leave_enough_of_it() {
    for balance in [Balance::Random, Balance::LeastRequest, Balance::RoundRobin, BY_CHANCE[3]] {
        for (down, stays) in STAYS {
            let outlier =
                Some(Outlier { consecutive_5xx: 1, max_ejection_percent: 100, ..Outlier::default() });
            let config = Cluster { balance, outlier, ..Cluster::new("c") };
            let cluster = ClusterHandle::new(0, Arc::new(config), None).unwrap();
            cluster.update(&EndpointSet::new("c", of_four_and_of_one()));
            for endpoint in cluster.endpoints().all.iter().take(down) {
                cluster.report(endpoint, Outcome::Status(500), None);
                assert!(cluster.ejection(endpoint).is_some());
            }
            let counts = counts(&cluster);
            let what = format!("{balance:?}, {down} of 4 ejected");
            assert_eq!(counts.len(), 5 - down, "{what}");
            is_share(DRAWS - counts[&address(4)], stays, &what);
            is_share(counts[&address(3)], stays / (4 - down) as f64, &what);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_place_keeps_its_share_while_checks_leave_enough_of_it() {
    let check =
        HealthCheck { unhealthy_threshold: 1, ..HealthCheck::new(CheckHow::Tcp(TcpCheck::default())) };
    for balance in [Balance::Random, Balance::LeastRequest, Balance::RoundRobin] {
        for (down, stays) in STAYS {
            let config =
                Cluster { balance, health_check: Some(Box::new(check.clone())), ..Cluster::new("c") };
            let cluster = ClusterHandle::new(0, Arc::new(config), None).unwrap();
            cluster.update(&EndpointSet::new("c", of_four_and_of_one()));
            let all = cluster.endpoints().all.clone();
            for (at, endpoint) in all.iter().enumerate() {
                let failed = || Failed { why: "it does not answer".into(), at_once: false, network: true };
                cluster.judge(endpoint, if at < down { Err(failed()) } else { Ok(()) });
            }
            let counts = counts(&cluster);
            let what = format!("{balance:?}, {down} of 4 fail");
            assert_eq!(counts.len(), 5 - down, "{what}");
            is_share(DRAWS - counts[&address(4)], stays, &what);
            is_share(counts[&address(3)], stays / (4 - down) as f64, &what);
        }
    }
}

/// A retry goes by the same weights, among those that were not tried.
#[tokio::test(start_paused = true)]
async fn who_was_tried_takes_nothing_from_the_weight_of_its_place() {
    let outlier = Some(Outlier { consecutive_5xx: 1, max_ejection_percent: 100, ..Outlier::default() });
    let config = Cluster { balance: Balance::Random, outlier, ..Cluster::new("c") };
    let cluster = ClusterHandle::new(0, Arc::new(config), None).unwrap();
    cluster.update(&EndpointSet::new("c", of_four_and_of_one()));
    cluster.report(&cluster.endpoints().all[0], Outcome::Status(500), None);
    let original = (SocketAddr::from(([10, 9, 9, 9], 80)), Reach::Network);
    let tried = [address(1)];
    fastrand::seed(7);
    let mut far = 0;
    for _ in 0..DRAWS {
        let picked = cluster.pick(&PickContext { tried: &tried, original, hash: None }).unwrap().address;
        assert!(picked != address(0) && picked != address(1));
        far += usize::from(picked == address(4));
    }
    // Two of the three that serve are left of the place's 75.
    is_share(far, 25.0 / 75.0, "the other place");
}
