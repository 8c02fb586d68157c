use std::collections::HashMap;
use std::sync::atomic::AtomicUsize;

use proptest::prelude::*;

use super::*;

fn level(weights: &[u32]) -> Level {
    let member = |(i, weight): (usize, &u32)| {
        let address = format!("10.0.0.{}:80", i + 1).parse().unwrap();
        (Arc::new(EndpointState::plain(address)), *weight)
    };
    Level::new(0, weights.iter().enumerate().map(member).collect())
}

fn shares(policy: Balance, candidates: &Candidates<'_>, rounds: usize) -> HashMap<u8, usize> {
    fastrand::seed(7);
    let cursor = AtomicUsize::new(0);
    let mut counts = HashMap::new();
    for _ in 0..rounds {
        let picked = pick(policy, candidates, &cursor).unwrap();
        let std::net::IpAddr::V4(ip) = picked.address.ip() else { unreachable!() };
        *counts.entry(ip.octets()[3]).or_default() += 1;
    }
    counts
}

#[test]
fn round_robin_gives_exact_shares_and_spreads_the_heavy_one() {
    let weighted = level(&[3, 1]);
    assert_eq!(shares(Balance::RoundRobin, &Candidates::All(&weighted), 400), [(1, 300), (2, 100)].into());
    assert_eq!(round_robin::schedule(&[2, 1, 1]).len(), 4);
    assert_eq!(round_robin::schedule(&[5, 5, 5]), Vec::<u32>::new());
}

#[test]
fn round_robin_over_some_keeps_their_shares_equal() {
    let equal = level(&[1, 1, 1, 1]);
    let counts = shares(Balance::RoundRobin, &Candidates::Some(&equal, &[0, 2, 3]), 300);
    assert_eq!(counts, [(1, 100), (3, 100), (4, 100)].into());
}

#[test]
fn without_load_least_request_follows_the_weights() {
    let weighted = level(&[90, 10]);
    let counts = shares(Balance::LeastRequest, &Candidates::All(&weighted), 10_000);
    assert!((8_800..9_200).contains(&counts[&1]), "{counts:?}");
}

#[test]
fn least_request_avoids_the_loaded_endpoint() {
    let level = level(&[1, 1]);
    let _busy: Vec<_> = (0..5).map(|_| level.members[0].begin()).collect();
    let counts = shares(Balance::LeastRequest, &Candidates::All(&level), 10_000);
    // The loaded one is picked only when both draws hit it.
    assert!((2_200..2_800).contains(&counts[&1]), "{counts:?}");
}

#[test]
fn random_follows_the_weights() {
    let weighted = level(&[1, 3]);
    let counts = shares(Balance::Random, &Candidates::All(&weighted), 10_000);
    assert!((7_300..7_700).contains(&counts[&2]), "{counts:?}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn every_policy_picks_only_candidates(
        weights in prop::collection::vec(1_u32..100_000, 1..12),
        mask in any::<u16>(),
        seed in any::<u64>(),
    ) {
        fastrand::seed(seed);
        let level = level(&weights);
        let indices: Vec<u32> = (0..weights.len() as u32).filter(|i| mask & (1 << i) != 0).collect();
        let cursor = AtomicUsize::new(seed as usize);
        for policy in [Balance::RoundRobin, Balance::LeastRequest, Balance::Random] {
            for _ in 0..20 {
                match pick(policy, &Candidates::Some(&level, &indices), &cursor) {
                    Some(picked) => {
                        let index = level.members.iter().position(|m| Arc::ptr_eq(m, picked)).unwrap();
                        prop_assert!(indices.contains(&(index as u32)));
                    }
                    None => prop_assert!(indices.is_empty()),
                }
                prop_assert!(pick(policy, &Candidates::All(&level), &cursor).is_some());
            }
        }
    }

    #[test]
    fn a_round_gives_each_its_share(weights in prop::collection::vec(1_u32..20, 2..8)) {
        let order = round_robin::schedule(&weights);
        let total: u32 = weights.iter().sum();
        for (i, weight) in weights.iter().enumerate() {
            let times = order.iter().filter(|o| **o as usize == i).count();
            if !order.is_empty() {
                prop_assert_eq!(times as u64 * u64::from(total), u64::from(*weight) * order.len() as u64);
            }
        }
    }
}
