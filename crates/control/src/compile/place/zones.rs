//! Zone-aware routing: the client's own zone takes as much as its endpoints are of all, beside what the client's peers in that zone are of
//! all of them; the rest goes to zones that have more than their peers need. So each endpoint of the region gets about as many requests,
//! and as few as may be leave their zone. As in Envoy, which counts itself; here who compiles knows all.

use std::collections::BTreeMap;

use outrigger_model::endpoint::{Health, Locality, LocalityEndpoints};
use outrigger_rules::intent::ZoneAware;

use super::super::lens::Lens;
use crate::instance::State;

/// Running instances by region and zone.
pub(super) type Counts = BTreeMap<(String, String), u64>;

/// Weights are parts of this.
const WHOLE: f64 = 1_000_000.0;

/// The priority of a region, of the ranks of places: zones of the own one are alike.
pub(super) fn region(rank: u32) -> u32 {
    rank.saturating_sub(2)
}

/// How many of the client's own service run where, the client included.
pub(super) fn peers(lens: &Lens<'_>) -> Counts {
    let mut counts = Counts::default();
    let Some(own) = lens.own() else { return counts };
    let host = lens.host_of(own);
    let Some(service) = lens.service(&host) else { return counts };
    for instance in lens.members(service).filter(|instance| instance.state == State::Running) {
        *counts.entry(zone(&instance.locality())).or_default() += 1;
    }
    counts
}

fn zone(place: &Locality) -> (String, String) {
    (place.region.clone(), place.zone.clone())
}

/// Gives the most wanted places of the client's region their shares; who gets none comes behind those that do.
pub(super) fn share<A>(
    rule: &ZoneAware,
    own: &Locality,
    peers: &Counts,
    localities: &mut [LocalityEndpoints<A>],
) {
    let mut counts = Counts::default();
    let counts_here =
        |place: &LocalityEndpoints<A>| place.priority == 0 && place.locality.region == own.region;
    for place in localities.iter().filter(|place| counts_here(place)) {
        let running = place.endpoints.iter().filter(|e| e.health == Health::Healthy).count() as u64;
        *counts.entry(zone(&place.locality)).or_default() += running;
    }
    let peers = peers.iter().filter(|((region, _), _)| *region == own.region);
    let peers: Counts = peers.map(|(zone, count)| (zone.clone(), *count)).collect();
    let sum = |counts: &Counts| counts.values().sum::<u64>();
    let enough = sum(&counts) >= u64::from(rule.min_endpoints.max(1));
    let here = zone(own);
    let there = |counts: &Counts, zone: &(String, String)| counts.get(zone).copied().unwrap_or(0);
    // Without endpoints here, or without peers that are known, nobody is nearer.
    if !enough || there(&counts, &here) == 0 || there(&peers, &here) == 0 {
        return;
    }
    let part = |counts: &Counts, zone: &(String, String)| there(counts, zone) as f64 / sum(counts) as f64;
    let stays = (part(&counts, &here) / part(&peers, &here)).min(1.0);
    let spare = |zone: &(String, String)| {
        if *zone == here { 0.0 } else { (part(&counts, zone) - part(&peers, zone)).max(0.0) }
    };
    let spares: f64 = counts.keys().map(spare).sum();
    let aware = f64::from(rule.percent.min(100)) / 100.0;
    let wanted = |zone: &(String, String)| {
        let by_zone = match *zone == here {
            true => stays,
            false if spares > 0.0 => (1.0 - stays) * spare(zone) / spares,
            false => 0.0,
        };
        aware * by_zone + (1.0 - aware) * part(&counts, zone)
    };
    for place in localities.iter_mut() {
        let is_here = counts_here(place);
        let of = zone(&place.locality);
        let running = place.endpoints.iter().filter(|e| e.health == Health::Healthy).count() as f64;
        let part = if is_here { wanted(&of) * running / there(&counts, &of).max(1) as f64 } else { 0.0 };
        if part > 0.0 {
            place.weight = ((part * WHOLE).round() as u32).max(1);
        } else {
            // Behind the zones that have a share.
            place.priority += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use outrigger_model::endpoint::Endpoint;

    use super::*;

    fn places(counts: &[(&str, usize)]) -> Vec<LocalityEndpoints> {
        let endpoint = |n: usize| Endpoint::new(SocketAddr::from(([10, 0, 0, 1], n as u16 + 1)));
        let place = |(name, count): &(&str, usize)| {
            let (region, zone) = name.split_once('/').unwrap();
            let locality = Locality { region: region.into(), zone: zone.into(), sub_zone: String::new() };
            let priority = u32::from(region != "eu");
            let endpoints = (0..*count).map(endpoint).collect();
            LocalityEndpoints { locality, priority, weight: 0, endpoints }
        };
        counts.iter().map(place).collect()
    }

    fn shares(rule: &ZoneAware, peers: &[(&str, u64)], endpoints: &[(&str, usize)]) -> Vec<(u32, u32)> {
        let own = Locality { region: "eu".into(), zone: "a".into(), sub_zone: String::new() };
        let count = |(name, count): &(&str, u64)| {
            let (region, zone) = name.split_once('/').unwrap();
            ((region.to_owned(), zone.to_owned()), *count)
        };
        let mut localities = places(endpoints);
        share(rule, &own, &peers.iter().map(count).collect(), &mut localities);
        localities.iter().map(|place| (place.priority, place.weight)).collect()
    }

    #[test]
    fn a_zone_takes_what_it_can_bear_and_the_rest_goes_where_there_is_room() {
        let rule = ZoneAware::default();
        for (peers, endpoints, wanted) in [
            // As many of both: all stays.
            (&[("eu/a", 2), ("eu/b", 2)][..], &[("eu/a", 3), ("eu/b", 3)][..], &[(0, 1_000_000), (1, 0)][..]),
            // Half of the peers and a quarter of the endpoints: half of it goes to the other zone.
            (&[("eu/a", 5), ("eu/b", 5)], &[("eu/a", 2), ("eu/b", 6)], &[(0, 500_000), (0, 500_000)]),
            // Where nobody has room but one.
            (
                &[("eu/a", 4), ("eu/b", 4), ("eu/c", 0)],
                &[("eu/a", 2), ("eu/b", 4), ("eu/c", 2)],
                &[(0, 500_000), (1, 0), (0, 500_000)],
            ),
            // Other regions stay behind, and now behind those zones too.
            (&[("eu/a", 1), ("us/a", 9)], &[("eu/a", 6), ("us/a", 9)], &[(0, 1_000_000), (2, 0)]),
        ] {
            assert_eq!(shares(&rule, peers, endpoints), wanted, "{peers:?} {endpoints:?}");
        }
        let half = ZoneAware { percent: 50, ..rule };
        let found = shares(&half, &[("eu/a", 1), ("eu/b", 1)], &[("eu/a", 3), ("eu/b", 3)]);
        assert_eq!(found, [(0, 750_000), (0, 250_000)]);
    }

    #[test]
    fn where_zones_say_nothing_all_are_alike() {
        let rule = ZoneAware::default();
        let alike = [(0, 0), (0, 0)];
        assert_eq!(shares(&rule, &[("eu/a", 1)], &[("eu/a", 2), ("eu/b", 3)]), alike, "too few");
        assert_eq!(shares(&rule, &[("eu/a", 1)], &[("eu/c", 3), ("eu/b", 3)]), alike, "none here");
        assert_eq!(shares(&rule, &[("eu/b", 1)], &[("eu/a", 3), ("eu/b", 3)]), alike, "nobody known here");
    }
}
