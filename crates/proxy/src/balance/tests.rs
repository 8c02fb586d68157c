use std::collections::HashMap;
use std::sync::atomic::AtomicUsize;

use proptest::prelude::*;

use super::*;

fn level(weights: &[u32]) -> Level {
    hashed(weights, Balance::Random)
}

fn hashed(weights: &[u32], policy: Balance) -> Level {
    let member = |(i, weight): (usize, &u32)| {
        let address = format!("10.0.0.{}:80", i + 1).parse().unwrap();
        (Arc::new(EndpointState::plain(address, Default::default())), *weight)
    };
    Level::new(0, weights.iter().enumerate().map(member).collect(), policy)
}

fn shares(policy: Balance, candidates: &Candidates<'_>, rounds: usize) -> HashMap<u8, usize> {
    fastrand::seed(7);
    let cursor = AtomicUsize::new(0);
    let mut counts = HashMap::new();
    for _ in 0..rounds {
        let picked = pick(policy, candidates, &cursor, None).unwrap();
        let IpAddr::V4(ip) = picked.address.ip() else { unreachable!() };
        *counts.entry(ip.octets()[3]).or_default() += 1;
    }
    counts
}

#[test]
fn round_robin_gives_exact_shares_and_spreads_the_heavy_one() {
    let weighted = hashed(&[3, 1], Balance::RoundRobin);
    assert_eq!(shares(Balance::RoundRobin, &Candidates::All(&weighted), 400), [(1, 300), (2, 100)].into());
    assert_eq!(round_robin::turns(&[2, 1, 1]), Turns::Order(vec![0, 1, 2, 0]));
    assert_eq!(round_robin::turns(&[5, 5, 5]), Turns::Equal);
}

/// Found by shares of places: ten endpoints with 90 percent and a thousand with 10 had half each, for none could have less than one of
/// 1,024 turns.
#[test]
fn weights_that_make_a_long_round_are_kept_all_the_same() {
    let weights: Vec<u32> = (0..1_010).map(|i| if i < 10 { 9_000 } else { 10 }).collect();
    assert_eq!(round_robin::turns(&weights), Turns::Spread);
    let members = weights.iter().enumerate().map(|(i, weight)| {
        let address = std::net::SocketAddr::from(([10, 0, 0, 1], i as u16 + 1));
        (Arc::new(EndpointState::plain(address, Default::default())), *weight)
    });
    let level = Level::new(0, members.collect(), Balance::RoundRobin);
    let cursor = AtomicUsize::new(7);
    let port = || pick(Balance::RoundRobin, &Candidates::All(&level), &cursor, None).unwrap().address.port();
    let picked: Vec<u16> = (0..10_000).map(|_| port()).collect();
    let heavy = picked.iter().filter(|port| **port <= 10).count();
    assert!((8_995..=9_005).contains(&heavy), "{heavy} of 10,000");
    for n in 1..=10 {
        let times = picked.iter().filter(|port| **port == n).count();
        assert!((890..=910).contains(&times), "{times} of 900");
        let turns: Vec<usize> = (0..picked.len()).filter(|at| picked[*at] == n).collect();
        let longest = turns.windows(2).map(|pair| pair[1] - pair[0]).max().unwrap();
        assert!(longest <= 34, "one in eleven waits {longest} turns");
    }
}

#[test]
fn round_robin_over_some_keeps_their_shares_equal() {
    let equal = hashed(&[1, 1, 1, 1], Balance::RoundRobin);
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

const RING: Balance = Balance::RingHash { minimum: 1024, maximum: 8_388_608 };
const MAGLEV: Balance = Balance::Maglev { size: 1009 };

/// Whom each of 3000 keys gets.
fn owners(policy: Balance, candidates: &Candidates<'_>) -> Vec<std::net::SocketAddr> {
    let cursor = AtomicUsize::new(0);
    let key = |n: u32| Some(xxh64(&n.to_be_bytes(), 0));
    (0..3000).map(|n| pick(policy, candidates, &cursor, key(n)).unwrap().address).collect()
}

/// Where the points do not divide evenly, floating point decides: five by seven are eight to an Envoy.
#[test]
fn an_uneven_ring_has_as_many_points_as_an_envoys() {
    let members = |count: u16| Vec::from_iter((0..count).map(|n| (([127, 0, 0, 1], 9000 + n).into(), 1)));
    for (count, size, points) in [(5, 7, 8), (5, 1021, 1022), (6, 7, 7), (7, 100, 100), (24, 100, 101)] {
        assert_eq!(ring_hash::ring(&members(count), size, size).len(), points, "{count} by {size}");
    }
}

/// The ring of Envoy's own unit test.
#[test]
fn the_ring_is_envoys_point_for_point() {
    let members: Vec<_> =
        (90..96).map(|port| (std::net::SocketAddr::from(([127, 0, 0, 1], port)), 1)).collect();
    let ring = ring_hash::ring(&members, 12, 8_388_608);
    let points: Vec<_> = ring.iter().map(|(point, index)| (90 + index, *point)).collect();
    let envoys = [
        (94, 833_437_586_790_550_860),
        (92, 928_266_305_478_181_108),
        (90, 1_033_482_794_131_418_490),
        (95, 3_551_244_743_356_806_947),
        (93, 3_851_675_632_748_031_481),
        (91, 5_583_722_120_771_150_861),
        (91, 6_311_230_543_546_372_928),
        (93, 7_700_377_290_971_790_572),
        (95, 13_144_177_310_400_110_813),
        (92, 13_444_792_449_719_432_967),
        (94, 15_516_499_411_664_133_160),
        (90, 16_117_243_373_044_804_889),
    ];
    assert_eq!(points, envoys);
}

#[test]
fn a_key_keeps_its_endpoint_and_only_a_lost_endpoints_keys_move() {
    for policy in [RING, Balance::SteadyRing, MAGLEV] {
        let level = hashed(&[1; 5], policy);
        let before = owners(policy, &Candidates::All(&level));
        assert_eq!(before, owners(policy, &Candidates::All(&level)));
        let after = owners(policy, &Candidates::Some(&level, &[0, 1, 3, 4]));
        let gone = level.members[2].address;
        let mut heirs = HashMap::new();
        for (before, after) in before.iter().zip(&after) {
            assert_ne!(*after, gone);
            match *before == gone {
                true => *heirs.entry(*after).or_insert(0) += 1,
                false => assert_eq!(before, after, "{policy:?}: a key of a healthy endpoint has moved"),
            }
        }
        assert_eq!(heirs.len(), 4, "{policy:?}: the others share what it had: {heirs:?}");
    }
}

#[test]
fn keys_spread_by_weight() {
    for policy in [RING, Balance::SteadyRing, MAGLEV] {
        let level = hashed(&[3, 1], policy);
        let owners = owners(policy, &Candidates::All(&level));
        let heavy = owners.iter().filter(|owner| **owner == level.members[0].address).count();
        assert!((2050..2450).contains(&heavy), "{policy:?}: {heavy} of 3000 instead of about 2250");
    }
}

#[test]
fn a_new_endpoint_takes_about_its_share_of_a_ring_and_nothing_else_moves() {
    let (four, five) = (hashed(&[1; 4], RING), hashed(&[1; 5], RING));
    let (before, after) = (owners(RING, &Candidates::All(&four)), owners(RING, &Candidates::All(&five)));
    let moved = before.iter().zip(&after).filter(|(before, after)| before != after).count();
    assert!((300..1000).contains(&moved), "{moved} of 3000 moved; a fifth would be 600");
}

/// So many endpoints with this weight, but for those that are said to have another.
fn weighing(count: usize, weight: u32, others: &[(usize, u32)]) -> Vec<(std::net::SocketAddr, u32)> {
    let of = |n: usize| others.iter().find(|(other, _)| *other == n).map_or(weight, |(_, weight)| *weight);
    let address = |n: usize| std::net::SocketAddr::from(([10, 0, (n / 250) as u8, (n % 250) as u8 + 1], 80));
    (0..count).map(|n| (address(n), of(n))).collect()
}

fn steady(members: &[(std::net::SocketAddr, u32)]) -> Vec<(u64, std::net::SocketAddr)> {
    let ring = ring_hash::steady(members, USUAL_RING);
    ring.into_iter().map(|(point, index)| (point, members[index as usize].0)).collect()
}

/// What part of all hashes belongs to each.
fn parts(ring: &[(u64, std::net::SocketAddr)]) -> HashMap<std::net::SocketAddr, f64> {
    let mut before = ring.last().unwrap().0;
    let mut parts = HashMap::new();
    for (point, owner) in ring {
        *parts.entry(*owner).or_insert(0.0) += point.wrapping_sub(before) as f64 / 2_f64.powi(64);
        before = *point;
    }
    parts
}

/// Who leaves takes its own keys with it and no other: what is left is the same ring without its points, and its share of all keys is one
/// in n, over all who may leave exactly. A single one's share differs from that by 8 % (the root of one by 156 points is the standard
/// deviation): 50 % are six of it.
#[test]
fn of_a_steady_ring_the_others_keep_all_keys_when_one_of_3_to_100_leaves() {
    for n in 3..=100 {
        let members = weighing(n, 10_000, &[]);
        let all = steady(&members);
        let parts = parts(&all);
        assert_eq!(parts.len(), n);
        assert!((parts.values().sum::<f64>() - 1.0).abs() < 1e-9, "all keys leave with somebody");
        for (who, part) in &parts {
            let times = part * n as f64;
            assert!((0.5..1.5).contains(&times), "{who} has {times} times its part of {n}");
        }
        let mut rest = members;
        let (gone, _) = rest.remove(n * 7 % n.min(11));
        let expected: Vec<_> = all.iter().copied().filter(|(_, owner)| *owner != gone).collect();
        assert!(steady(&rest) == expected, "{n}: others' points have moved");
    }
}

#[test]
fn of_a_steady_ring_points_follow_weights_and_have_a_bound() {
    let count = |members: &[(std::net::SocketAddr, u32)]| {
        let mut counts: HashMap<_, usize> = HashMap::new();
        steady(members).iter().for_each(|(_, owner)| *counts.entry(*owner).or_default() += 1);
        move |n: usize| counts[&weighing(n + 1, 1, &[])[n].0]
    };
    let mixed = weighing(5, 100, &[(1, 300), (2, 127), (3, 64)]);
    let points = count(&mixed);
    assert_eq!([0, 1, 2, 3, 4].map(points), [200, 600, 254, 128, 200]);
    // The lightest may go as long as the next is of the same power of two, and the heaviest.
    let all = steady(&mixed);
    for gone in 0..5 {
        let mut rest = mixed.clone();
        let (gone, _) = rest.remove(gone);
        assert!(steady(&rest).iter().eq(all.iter().filter(|(_, owner)| *owner != gone)), "{gone}");
    }
    // Far heavier than another: the points of all are halved until the bound holds them, and nobody is without.
    let points = count(&weighing(3, 1, &[(2, 1_000_000)]));
    assert_eq!([0, 1, 2].map(points), [1, 1, 250_000]);
    let many = steady(&weighing(2_000, 10_000, &[]));
    assert_eq!(many.len(), 2_000 * 78, "half of 156 each");
}

#[test]
fn a_handle_of_the_time_before_the_policy_still_picks() {
    let level = hashed(&[1, 1], Balance::Random);
    assert!(pick(RING, &Candidates::All(&level), &AtomicUsize::new(0), Some(7)).is_some());
    let members = level.weighted().map(|(member, weight)| (member.clone(), weight)).collect();
    let level = Level::new(level.priority, members, RING);
    let same = |_| pick(RING, &Candidates::All(&level), &AtomicUsize::new(0), Some(7)).unwrap().address;
    assert_eq!((0..9).map(same).collect::<std::collections::HashSet<_>>().len(), 1);
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
        let indices: Vec<u32> = (0..weights.len() as u32).filter(|i| mask & (1 << i) != 0).collect();
        let cursor = AtomicUsize::new(seed as usize);
        for policy in
            [Balance::RoundRobin, Balance::LeastRequest, Balance::Random, RING, Balance::SteadyRing, MAGLEV]
        {
            let level = hashed(&weights, policy);
            for _ in 0..20 {
                match pick(policy, &Candidates::Some(&level, &indices), &cursor, Some(fastrand::u64(..))) {
                    Some(picked) => {
                        let index = level.members.iter().position(|m| Arc::ptr_eq(m, picked)).unwrap();
                        prop_assert!(indices.contains(&(index as u32)));
                    }
                    None => prop_assert!(indices.is_empty()),
                }
                prop_assert!(pick(policy, &Candidates::All(&level), &cursor, None).is_some());
            }
        }
    }

    #[test]
    fn a_round_gives_each_its_share(weights in prop::collection::vec(1_u32..20, 2..8)) {
        let total: u32 = weights.iter().sum();
        match round_robin::turns(&weights) {
            Turns::Order(order) => for (i, weight) in weights.iter().enumerate() {
                let times = order.iter().filter(|o| **o as usize == i).count();
                prop_assert_eq!(times as u64 * u64::from(total), u64::from(*weight) * order.len() as u64);
            },
            turns => prop_assert!(turns == Turns::Equal && weights.iter().all(|weight| *weight == weights[0])),
        }
    }
}

#[test]
fn a_full_scan_finds_the_least_loaded_for_its_weight() {
    use outrigger_model::cluster::LeastOf;
    let all = Balance::LeastOf(LeastOf { choices: None, bias: 1000 });
    let level = level(&[1, 1, 1, 4]);
    let mut busy: Vec<_> = (0..3).map(|at| level.members[at].begin()).collect();
    busy.extend((0..3).map(|_| level.members[3].begin()));
    // Three by four is less than one by one.
    assert_eq!(shares(all, &Candidates::All(&level), 100), [(4, 100)].into());
    assert_eq!(shares(all, &Candidates::Some(&level, &[0, 1, 2]), 3000).len(), 3, "those that are alike");
    let unbiased = Balance::LeastOf(LeastOf { choices: None, bias: 0 });
    let counts = shares(unbiased, &Candidates::All(&level), 7000);
    assert!((3800..4200).contains(&counts[&4]), "only weight counts: {counts:?}");
    let eight = Balance::LeastOf(LeastOf { choices: Some(8), bias: 1000 });
    let counts = shares(eight, &Candidates::All(&level), 10_000);
    // Missed only where no draw hits it: three by seven to the eighth.
    assert!(counts[&4] > 9_950, "{counts:?}");
}

#[tokio::test(start_paused = true)]
async fn peak_ewma_goes_where_an_answer_is_expected_sooner() {
    use std::time::Duration;
    let (decay, initial) = (Duration::from_secs(10), Duration::from_millis(10));
    let policy = Balance::PeakEwma { decay, initial };
    let level = level(&[1, 1, 1]);
    let note = |at: usize, millis| {
        level.members[at].load.latency().note(Duration::from_millis(millis), decay, Instant::now());
    };
    note(0, 5);
    note(1, 100);
    // The third is presumed to take 10 ms; the slow one loses against any other that is drawn beside it.
    let counts = shares(policy, &Candidates::All(&level), 9_000);
    assert!(counts.get(&2).copied().unwrap_or(0) < 10, "{counts:?}");
    assert!((5_700..6_300).contains(&counts[&1]), "{counts:?}");
    // With thirty requests under way the quick one is the slower.
    let _busy: Vec<_> = (0..30).map(|_| level.members[0].begin()).collect();
    let counts = shares(policy, &Candidates::Some(&level, &[0, 1]), 1_000);
    assert!(counts[&2] > 990, "{counts:?}");
    // Whom nobody asks is forgotten, and asked again.
    tokio::time::advance(decay * 6).await;
    let counts = shares(policy, &Candidates::Some(&level, &[1, 2]), 1_000);
    assert!(counts[&2] > 990, "{counts:?}");
}
