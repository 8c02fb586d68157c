//! Endpoints by where they are, in the order in which a client wants them: `localityLbSetting` of its rule.
//!
//! Which is near, the client's own registration says; without a region it has no place, and all are alike to it. Only what a rule
//! distributes gives places weights: everywhere else requests are spread by the endpoints that serve.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::hash::Hash;

use outrigger_model::endpoint::{Endpoint, EndpointSet, Locality, LocalityEndpoints};
use outrigger_rules::intent::{Distribution, Host, Near, Nearness, PlacePattern};

use super::hashes::preference;
use super::lens::Lens;
use super::names::Outbound;
use crate::instance::Instance;

mod zones;

/// What says where something is, in the order of how exactly.
const REGION: &str = "topology.kubernetes.io/region";
const ZONE: &str = "topology.kubernetes.io/zone";
const NODE: &str = "kubernetes.io/hostname";

/// Weights that are given out are this much finer than percent.
const FINER: u128 = 1_000;

type Labels = BTreeMap<String, String>;

/// Where an endpoint is, and how it is labelled.
pub(super) struct Spot<'s> {
    pub(super) locality: Locality,
    pub(super) labels: &'s Labels,
    /// Of a cluster.
    pub(super) node: Option<&'s str>,
}

impl<'s> Spot<'s> {
    pub(super) fn of(instance: &'s Instance) -> Self {
        Self { locality: instance.locality(), labels: &instance.labels, node: instance.node() }
    }
}

/// Endpoints of one cluster, as they are found.
pub(super) struct Places<'a, A> {
    wish: Option<Wish<'a>>,
    found: BTreeMap<(u32, Locality), Place<A>>,
}

/// Endpoints of one place and priority.
struct Place<A> {
    endpoints: Vec<Endpoint<A>>,
    /// The addresses of the first so many: of all that are there when one must not come twice, and of none before.
    seen: (usize, HashSet<A>),
}

impl<A> Default for Place<A> {
    fn default() -> Self {
        Self { endpoints: Vec::new(), seen: (0, HashSet::new()) }
    }
}

impl<A: Clone + Eq + Hash> Place<A> {
    fn has(&mut self, address: &A) -> bool {
        let (so_many, addresses) = &mut self.seen;
        addresses.extend(self.endpoints[*so_many..].iter().map(|endpoint| endpoint.address.clone()));
        *so_many = self.endpoints.len();
        addresses.contains(address)
    }
}

/// What a client wants, and where it is.
struct Wish<'a> {
    nearness: Nearness,
    /// Of zone-aware routing: how many of the client's own service are in each place that has zones.
    peers: zones::Counts,
    own: Option<Locality>,
    labels: Option<&'a Labels>,
    node: Option<&'a str>,
}

impl<'a, A> Places<'a, A> {
    /// For whom all are alike.
    pub(super) fn alike() -> Self {
        Self { wish: None, found: BTreeMap::new() }
    }

    /// Of a host's cluster, for the client that asks.
    pub(super) fn of(lens: &Lens<'a>, host: &Host, outbound: &Outbound<'_>) -> Self {
        let subset = Some(outbound.subset).filter(|subset| !subset.is_empty());
        let rule = lens.destination_for(host);
        let nearness = rule.and_then(|rule| rule.effective(subset, outbound.port).nearness);
        let nearness = match nearness {
            Some(said) => Some(said).filter(|nearness| !nearness.off),
            // Who has no place is near nobody, but to who is on its node.
            None => preference(lens, host, outbound.port).near.and_then(|wanted| {
                let has_place =
                    lens.locality().is_some_and(|own| !own.region.is_empty() || !own.zone.is_empty());
                near(wanted, has_place)
            }),
        };
        let wish = nearness.map(|nearness| {
            // What is not looked at does not tell clients apart.
            let by_labels = !nearness.priority.is_empty();
            let labels = if by_labels { lens.labels() } else { None };
            let by_node = nearness.priority.iter().any(|(key, _)| key == NODE);
            let node = if by_node { lens.node() } else { None };
            let peers = match nearness.zone_aware {
                Some(_) => zones::peers(lens),
                None => zones::Counts::default(),
            };
            Wish { nearness, peers, own: lens.locality(), labels, node }
        });
        Self { wish, found: BTreeMap::new() }
    }

    /// One more.
    pub(super) fn put(&mut self, spot: Spot<'_>, endpoint: Endpoint<A>) {
        self.place(spot).endpoints.push(endpoint);
    }

    /// One more, unless its address is there already.
    pub(super) fn put_once(&mut self, spot: Spot<'_>, endpoint: Endpoint<A>)
    where
        A: Clone + Eq + Hash,
    {
        let place = self.place(spot);
        if !place.has(&endpoint.address) {
            place.endpoints.push(endpoint);
        }
    }

    fn place(&mut self, spot: Spot<'_>) -> &mut Place<A> {
        let priority = self.wish.as_ref().map_or(0, |wish| wish.priority(&spot));
        self.found.entry((priority, spot.locality)).or_default()
    }

    /// Leaves those that are wanted.
    pub(super) fn retain(&mut self, wanted: impl Fn(&Endpoint<A>) -> bool) {
        for place in self.found.values_mut() {
            place.endpoints.retain(&wanted);
            place.seen = (0, HashSet::new());
        }
    }

    pub(super) fn into_set(self, name: &str) -> EndpointSet<A> {
        let mut localities: Vec<LocalityEndpoints<A>> = self
            .found
            .into_iter()
            .map(|((priority, locality), mut place)| {
                fit(&mut place.endpoints);
                LocalityEndpoints { locality, priority, weight: 0, endpoints: place.endpoints }
            })
            .collect();
        if let Some(wish) = &self.wish {
            wish.distribute(&mut localities);
            if let (Some(rule), Some(own)) = (&wish.nearness.zone_aware, wish.placed()) {
                zones::share(rule, own, &wish.peers, &mut localities, zones::Scope::Region);
            }
        }
        // Priorities without a gap: an Envoy takes no others.
        let priorities: BTreeSet<u32> = localities.iter().map(|place| place.priority).collect();
        let dense: BTreeMap<u32, u32> = priorities.into_iter().zip(0..).collect();
        for place in &mut localities {
            place.priority = dense.get(&place.priority).copied().unwrap_or(0);
        }
        EndpointSet::new(name, localities)
    }
}

impl Wish<'_> {
    /// 0 is the most wanted.
    fn priority(&self, spot: &Spot<'_>) -> u32 {
        match &self.nearness {
            nearness if !nearness.distribute.is_empty() => 0,
            nearness if !nearness.priority.is_empty() => {
                let own = (self.own.as_ref(), self.labels, self.node);
                let other = (Some(&spot.locality), Some(spot.labels), spot.node);
                let by_labels = by_labels(&nearness.priority, own, other);
                match nearness.failover.is_empty() {
                    true => by_labels,
                    // As in Istio: of those that are alike by labels the nearest.
                    false => by_labels * RANKS + self.rank(&spot.locality),
                }
            }
            nearness if !nearness.costs.is_empty() => cost(&nearness.costs, &spot.locality),
            _ => self.rank(&spot.locality),
        }
    }

    /// How near a place is, below [`RANKS`]. To a client without a place all are alike.
    fn rank(&self, place: &Locality) -> u32 {
        let Some(own) = self.placed() else { return 0 };
        let rank = by_place(&self.nearness, own, place);
        match self.nearness.zone_aware {
            Some(_) => zones::region(rank),
            None => rank,
        }
    }

    /// Where the client is; nothing without a region.
    fn placed(&self) -> Option<&Locality> {
        self.own.as_ref().filter(|own| !own.region.is_empty())
    }

    /// Gives the shares of a distribution from where the client is; whoever gets none is left out.
    fn distribute<A>(&self, localities: &mut Vec<LocalityEndpoints<A>>) {
        let Some(own) = self.placed() else { return };
        let from = self.nearness.distribute.iter().find(|from| from.from.takes(own));
        let Some(Distribution { to, .. }) = from else { return };
        // Each place has the share of the most exact pattern that takes it.
        let share = |locality: &Locality| {
            let taking = to.iter().enumerate().filter(|(_, (pattern, _))| pattern.takes(locality));
            taking.max_by_key(|(_, (pattern, _))| pattern.exactness()).map(|(at, _)| at)
        };
        // Of several places of one pattern each has by all of its endpoints: what of these serves, the proxies count.
        let all = |place: &LocalityEndpoints<A>| -> u128 {
            place.endpoints.iter().map(|endpoint| u128::from(endpoint.weight)).sum()
        };
        let mut sums = vec![0_u128; to.len()];
        for place in localities.iter() {
            if let Some(at) = share(&place.locality) {
                sums[at] += all(place);
            }
        }
        localities.retain_mut(|place| {
            let Some(at) = share(&place.locality).filter(|at| to[*at].1 > 0 && sums[*at] > 0) else {
                return false;
            };
            let part = u128::from(to[at].1) * FINER * all(place) / sums[at];
            place.weight = u32::try_from(part.max(1)).unwrap_or(u32::MAX);
            true
        });
    }
}

/// No client takes a place whose weights are more than 32 bits together: they keep their proportion, as far as whole numbers go.
fn fit<A>(endpoints: &mut [Endpoint<A>]) {
    let most = u64::from(u32::MAX);
    let sum: u64 = endpoints.iter().map(|endpoint| u64::from(endpoint.weight)).sum();
    if sum <= most {
        return;
    }
    // What is rounded up to 1 must fit as well.
    let room = most - (endpoints.len() as u64).min(most - 1);
    for endpoint in endpoints {
        let part = u128::from(endpoint.weight) * u128::from(room) / u128::from(sum);
        endpoint.weight = u32::try_from(part).unwrap_or(u32::MAX).max(1);
    }
}

/// What the most exact that takes a place says; who has none is the dearest.
fn cost(costs: &[(PlacePattern, u32)], place: &Locality) -> u32 {
    let taking = costs.iter().filter(|(pattern, _)| pattern.takes(place));
    taking.max_by_key(|(pattern, _)| pattern.exactness()).map_or(u32::MAX, |(_, cost)| *cost)
}

/// So many ranks there are by place.
const RANKS: u32 = 5;

/// As Istio ranks them: the same sub-zone, zone, region; the region that fails over to; all others.
fn by_place(nearness: &Nearness, own: &Locality, other: &Locality) -> u32 {
    if own.region != other.region {
        let to = nearness.failover.iter().find(|(from, _)| *from == own.region).map(|(_, to)| to);
        return if to.is_none_or(|to| *to == other.region) { 3 } else { 4 };
    }
    match (own.zone == other.zone, own.sub_zone == other.sub_zone) {
        (true, true) => 0,
        (true, false) => 1,
        (false, _) => 2,
    }
}

/// A place, labels and node of a client or an endpoint.
type Marks<'m> = (Option<&'m Locality>, Option<&'m Labels>, Option<&'m str>);

/// By how many of the labels, from the first, an endpoint has the client's value, or the one that is written. What neither has is
/// alike, as in Istio.
fn by_labels(wanted: &[(String, Option<String>)], own: Marks<'_>, other: Marks<'_>) -> u32 {
    let agrees = |(key, value): &&(String, Option<String>)| match value {
        Some(value) => mark(other, key) == Some(value.as_str()),
        None => mark(own, key) == mark(other, key),
    };
    (wanted.len() - wanted.iter().take_while(agrees).count()) as u32
}

/// The value of a label; those of topology say where something is, unless it has them as labels.
fn mark<'m>((place, labels, node): Marks<'m>, key: &str) -> Option<&'m str> {
    let of_place = || match key {
        REGION => Some(&*place?.region),
        ZONE => Some(&*place?.zone),
        "topology.istio.io/subzone" => Some(&*place?.sub_zone),
        NODE => node,
        _ => None,
    };
    let written = labels.and_then(|labels| labels.get(key)).map(String::as_str);
    written.or_else(of_place).filter(|value| !value.is_empty())
}

/// What is near, as a Service of a cluster says it.
fn near(near: Near, has_place: bool) -> Option<Nearness> {
    let keys: &[&str] = match (near, has_place) {
        (Near::Zone, true) => &[REGION, ZONE],
        (Near::Node, true) => &[REGION, ZONE, NODE],
        (Near::Node, false) => &[NODE],
        (Near::Zone, false) => return None,
    };
    let priority = keys.iter().map(|key| ((*key).to_owned(), None)).collect();
    Some(Nearness { priority, ..Nearness::default() })
}

#[cfg(test)]
mod tests;
