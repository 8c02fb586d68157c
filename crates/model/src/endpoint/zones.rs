//! Zone-aware routing: the client's own zone takes as much as its endpoints are of all, beside what the client's peers in that zone are of
//! all of them; the rest goes to zones that have more than their peers need. So each endpoint gets about as many requests, and as few as may
//! be leave their zone. As in Envoy.
//!
//! Our control plane knows both, the endpoints and the peers, and works it out for its clients; of another one's clusters the proxy does.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{Health, Locality, LocalityEndpoints, spread};

/// Zone-aware routing, as Envoy's: requests stay in the zone as far as all endpoints still get as many.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ZoneAware {
    /// With fewer endpoints of the service all are alike. Default 6.
    pub min_endpoints: u32,
    /// Of a hundred requests so many; the others go to all. Default 100.
    pub percent: u32,
    /// Nobody is asked while fewer of a priority are healthy, in percent, and all priorities together cannot bear everything
    /// (`fail_traffic_on_panic`). Absent: who is healthy is asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fail_below: Option<u32>,
}

impl Default for ZoneAware {
    fn default() -> Self {
        Self { min_endpoints: 6, percent: 100, fail_below: None }
    }
}

/// How many run where, by region and zone.
pub type Counts = BTreeMap<(String, String), u64>;

/// Which endpoints of the most wanted priority are compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// Those of the client's region, where its zone has any: the other regions come behind.
    Region,
    /// All of them, as by an Envoy.
    All,
}

/// Weights are parts of this.
const WHOLE: f64 = 1_000_000.0;

/// Region and zone of a place.
pub fn zone(place: &Locality) -> (String, String) {
    (place.region.clone(), place.zone.clone())
}

/// The healthy endpoints of a set by where they are, of the most wanted priority.
pub fn counts<A>(localities: &[LocalityEndpoints<A>]) -> Counts {
    let mut counts = Counts::new();
    for place in localities.iter().filter(|place| place.priority == 0) {
        *counts.entry(zone(&place.locality)).or_default() += healthy(place);
    }
    counts
}

fn healthy<A>(place: &LocalityEndpoints<A>) -> u64 {
    place.endpoints.iter().filter(|endpoint| endpoint.health == Health::Healthy).count() as u64
}

/// Takes requests from those that an Envoy would ask for none in a panic: of a priority of which less than so many percent are healthy,
/// where all priorities together cannot bear everything.
pub fn fail_in_panic<A>(localities: &mut [LocalityEndpoints<A>], threshold: u32) {
    let mut levels: BTreeMap<u32, (u32, u32)> = BTreeMap::new();
    for place in localities.iter() {
        let (serving, all) = levels.entry(place.priority).or_default();
        *serving += healthy(place) as u32;
        *all += place.endpoints.len() as u32;
    }
    if spread::bear_all(levels.values().copied()) {
        return;
    }
    let few = |(serving, all): (u32, u32)| u64::from(serving) * 100 < u64::from(all) * u64::from(threshold);
    for place in localities.iter_mut().filter(|place| levels.get(&place.priority).copied().is_some_and(few)) {
        place.endpoints.iter_mut().for_each(|endpoint| endpoint.health = Health::Unhealthy);
    }
}

/// Gives the most wanted places their shares; who gets none comes behind those that do. Where zones say nothing all is left as it is.
pub fn share<A>(
    rule: &ZoneAware,
    own: &Locality,
    peers: &Counts,
    localities: &mut [LocalityEndpoints<A>],
    scope: Scope,
) {
    let in_scope = |region: &str| scope == Scope::All || region == own.region;
    let counts_here = |place: &LocalityEndpoints<A>| place.priority == 0 && in_scope(&place.locality.region);
    let scoped = |counts: &Counts| -> Counts {
        counts
            .iter()
            .filter(|((region, _), _)| in_scope(region))
            .map(|(zone, count)| (zone.clone(), *count))
            .collect()
    };
    let (counts, peers) = (scoped(&counts(localities)), scoped(peers));
    let sum = |counts: &Counts| counts.values().sum::<u64>();
    let enough = sum(&counts) >= u64::from(rule.min_endpoints.max(1));
    let here = zone(own);
    let there = |counts: &Counts, zone: &(String, String)| counts.get(zone).copied().unwrap_or(0);
    // Without peers that are known, nobody is nearer; nor in a region without endpoints here.
    let nobody = scope == Scope::Region && there(&counts, &here) == 0;
    if !enough || nobody || there(&peers, &here) == 0 {
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
        let running = healthy(place) as f64;
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

    use super::*;
    use crate::endpoint::Endpoint;

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
        within(Scope::Region, rule, peers, endpoints)
    }

    fn within(
        scope: Scope,
        rule: &ZoneAware,
        peers: &[(&str, u64)],
        endpoints: &[(&str, usize)],
    ) -> Vec<(u32, u32)> {
        let own = Locality { region: "eu".into(), zone: "a".into(), sub_zone: String::new() };
        let count = |(name, count): &(&str, u64)| {
            let (region, zone) = name.split_once('/').unwrap();
            ((region.to_owned(), zone.to_owned()), *count)
        };
        let mut localities = places(endpoints);
        share(rule, &own, &peers.iter().map(count).collect(), &mut localities, scope);
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
    #[test]
    fn in_a_panic_nobody_is_asked_where_that_is_wanted() {
        // Of each priority so many are healthy, of so many; whether those of the first are asked.
        let asked = |levels: &[(usize, usize)], threshold: u32| {
            let mut localities: Vec<LocalityEndpoints> = Vec::new();
            for (priority, (serving, all)) in levels.iter().enumerate() {
                let [mut place] = <[LocalityEndpoints; 1]>::try_from(places(&[("eu/a", *all)])).unwrap();
                place.priority = priority as u32;
                place.endpoints[*serving..]
                    .iter_mut()
                    .for_each(|endpoint| endpoint.health = Health::Unhealthy);
                localities.push(place);
            }
            fail_in_panic(&mut localities, threshold);
            healthy(&localities[0]) > 0
        };
        assert!(asked(&[(2, 4)], 50), "half of them are enough");
        assert!(!asked(&[(1, 4)], 50));
        assert!(asked(&[(1, 4)], 20) && asked(&[(1, 4)], 0));
        assert!(asked(&[(1, 4), (3, 3)], 50), "the next priority bears what this one cannot");
        assert!(!asked(&[(1, 4), (1, 4)], 50));
    }

    #[test]
    fn an_envoys_zones_are_of_all_regions_and_need_nobody_here() {
        let rule = ZoneAware { min_endpoints: 1, ..ZoneAware::default() };
        let peers = &[("eu/a", 1), ("eu/b", 1)][..];
        let all = |endpoints: &[(&str, usize)]| within(Scope::All, &rule, peers, endpoints);
        // A third of the endpoints and half of the peers: two of three requests stay.
        assert_eq!(all(&[("eu/a", 2), ("eu/b", 4)]), [(0, 666_667), (0, 333_333)]);
        // Nobody here, and half of what there is belongs to the peers of the other zone.
        assert_eq!(all(&[("eu/b", 3), ("eu/c", 3)]), [(1, 0), (0, 1_000_000)]);
        let few = ZoneAware { min_endpoints: 7, ..ZoneAware::default() };
        assert_eq!(within(Scope::All, &few, peers, &[("eu/a", 2), ("eu/b", 4)]), [(0, 0), (0, 0)]);
    }
}
