//! Picking one endpoint of a priority level. Each policy is a file and a row in [`pick`].
//!
//! Who may be picked (health, ejection, hosts already tried) is decided by the cluster; a policy only chooses.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;

use outrigger_model::cluster::{Balance, USUAL_RING, Warmup};
use tokio::time::Instant;
use xxhash_rust::xxh64::xxh64;

use crate::runtime::endpoint::EndpointState;

mod least_of;
mod least_request;
mod maglev;
mod peak_ewma;
pub mod places;
mod random;
mod ring_hash;
mod round_robin;
pub mod spread;

use places::Places;
use round_robin::Turns;

/// Where another one is wanted, it is drawn so often: somebody has to take the request.
const DRAWS: usize = 8;

/// The endpoints of one priority that take requests, with their effective weights.
#[derive(Debug)]
pub struct Level {
    /// 0 is the most wanted.
    pub priority: u32,
    /// How many endpoints it has, with those that should take requests and cannot.
    pub total: u32,
    /// The endpoints.
    pub members: Vec<Arc<EndpointState>>,
    weights: Vec<u32>,
    /// Running sums of the weights, for a choice by binary search.
    cumulative: Vec<u64>,
    /// For round robin.
    turns: Turns,
    table: HashTable,
    warming: Option<Warming>,
    /// Where these have weights: in those of the members they are contained as long as all serve.
    places: Option<Box<Places>>,
}

/// Some members came lately and get less than their share.
#[derive(Debug)]
struct Warming {
    rule: Warmup,
    /// Then all are warm.
    until: Instant,
}

/// For consistent hashing, made once per set of endpoints.
#[derive(Debug)]
enum HashTable {
    /// The policy needs none.
    None,
    Ring(ring_hash::Ring),
    Maglev(maglev::Table),
}

/// Those of a level that may be picked now.
pub enum Candidates<'a> {
    /// All of them.
    All(&'a Level),
    /// These indices, in order.
    Some(&'a Level, &'a [u32]),
    /// These, and of all of the level the weights that hold instead of its own.
    Scaled(&'a Level, &'a [u32], &'a [u32]),
}

impl Level {
    /// Of members with weights of at least 1, for this policy.
    pub fn new(priority: u32, members: Vec<(Arc<EndpointState>, u32)>, policy: Balance) -> Self {
        let (members, weights): (Vec<_>, Vec<u32>) = members.into_iter().map(|(m, w)| (m, w.max(1))).unzip();
        let cumulative = weights
            .iter()
            .scan(0, |sum, w| {
                *sum += u64::from(*w);
                Some(*sum)
            })
            .collect();
        let turns = match policy {
            Balance::RoundRobin | Balance::Reported => round_robin::turns(&weights),
            // A handle of the time before the policy takes turns by weight.
            _ => Turns::Spread,
        };
        let keys = || members.iter().map(|m| m.address).zip(weights.iter().copied()).collect::<Vec<_>>();
        let table = match policy {
            Balance::RoundRobin
            | Balance::LeastRequest
            | Balance::LeastOf(_)
            | Balance::Random
            | Balance::PeakEwma { .. }
            | Balance::Reported => HashTable::None,
            Balance::RingHash { minimum, maximum } => {
                HashTable::Ring(ring_hash::ring(&keys(), minimum.max(1), maximum.max(1)))
            }
            Balance::SteadyRing => HashTable::Ring(ring_hash::steady(&keys(), USUAL_RING)),
            Balance::Maglev { size } => HashTable::Maglev(maglev::table(&keys(), size.max(2))),
        };
        let total = members.len() as u32;
        Self { priority, total, members, weights, cumulative, turns, table, warming: None, places: None }
    }

    /// Its members are in places that have weights.
    pub fn in_places(mut self, places: Option<Box<Places>>) -> Self {
        self.places = places;
        self
    }

    /// Its places, where they have weights.
    pub fn places(&self) -> Option<&Places> {
        self.places.as_deref()
    }

    /// Among so many in all.
    pub fn among(mut self, total: u32) -> Self {
        self.total = total;
        self
    }

    /// New members get their share little by little.
    pub fn warming(mut self, rule: Option<Warmup>) -> Self {
        let last = self.members.iter().map(|member| member.since).max();
        self.warming = rule.zip(last).map(|(rule, last)| Warming { rule, until: last + rule.window });
        self
    }

    /// Its members with their weights.
    pub fn weighted(&self) -> impl Iterator<Item = (&Arc<EndpointState>, u32)> {
        self.members.iter().zip(self.weights.iter().copied())
    }

    fn by_ticket(&self, ticket: u64) -> usize {
        self.cumulative.partition_point(|sum| *sum <= ticket).min(self.members.len() - 1)
    }
}

impl<'a> Candidates<'a> {
    fn level(&self) -> &'a Level {
        match self {
            Self::All(level) | Self::Some(level, _) | Self::Scaled(level, ..) => level,
        }
    }

    /// The weights of all of the level, by which those among them are chosen.
    fn weights(&self) -> &'a [u32] {
        match self {
            Self::All(level) | Self::Some(level, _) => &level.weights,
            Self::Scaled(_, _, weights) => weights,
        }
    }

    fn len(&self) -> usize {
        match self {
            Self::All(level) => level.members.len(),
            Self::Some(_, indices) | Self::Scaled(_, indices, _) => indices.len(),
        }
    }

    /// The places of all in the level.
    fn indices(&self) -> impl Iterator<Item = usize> + '_ {
        let some = match self {
            Self::All(_) => &[],
            Self::Some(_, indices) | Self::Scaled(_, indices, _) => *indices,
        };
        let all = match self {
            Self::All(level) => 0..level.members.len(),
            Self::Some(..) | Self::Scaled(..) => 0..0,
        };
        all.chain(some.iter().map(|index| *index as usize))
    }

    /// Whether a member of the level is among them.
    fn takes(&self, index: u32) -> bool {
        match self {
            Self::All(_) => true,
            Self::Some(_, indices) | Self::Scaled(_, indices, _) => indices.binary_search(&index).is_ok(),
        }
    }

    /// One of them at random, by weight; the index in the level.
    fn weighted(&self, random: impl FnOnce(u64) -> u64) -> usize {
        match self {
            Self::All(level) => level.by_ticket(random(level.cumulative.last().copied().unwrap_or(1))),
            Self::Some(_, indices) | Self::Scaled(_, indices, _) => {
                let weights = self.weights();
                let weight = |i: &u32| u64::from(weights[*i as usize]);
                let mut ticket = random(indices.iter().map(weight).sum());
                let found = indices.iter().find(|i| {
                    let taken = ticket < weight(i);
                    ticket = ticket.wrapping_sub(if taken { 0 } else { weight(i) });
                    taken
                });
                found.or(indices.last()).map_or(0, |i| *i as usize)
            }
        }
    }
}

/// The hash of a peer's address.
pub fn hash_of_ip(ip: IpAddr) -> u64 {
    xxh64(ip.to_string().as_bytes(), 0)
}

/// Picks one; `None` only if there are no candidates. `cursor` belongs to the cluster; `hash` is the request's, without
/// which a consistent hash takes any.
pub fn pick<'a>(
    policy: Balance,
    candidates: &Candidates<'a>,
    cursor: &AtomicUsize,
    hash: Option<u64>,
) -> Option<&'a Arc<EndpointState>> {
    let level = candidates.level();
    let mut index = match candidates.len() {
        0 => return None,
        1 => match candidates {
            Candidates::All(_) => 0,
            Candidates::Some(_, indices) | Candidates::Scaled(_, indices, _) => indices[0] as usize,
        },
        _ => choose(policy, candidates, cursor, hash),
    };
    if let Some(warming) = level.warming.as_ref().filter(|_| candidates.len() > 1) {
        let now = Instant::now();
        let mut draws = 0;
        while now < warming.until && draws < DRAWS && warming.declines(&level.members[index], now) {
            index = choose(policy, candidates, cursor, hash);
            draws += 1;
        }
    }
    level.members.get(index)
}

impl Warming {
    /// Whether a member is passed over this time: as often as its share is not yet its own.
    fn declines(&self, member: &EndpointState, now: Instant) -> bool {
        let age = now.saturating_duration_since(member.since);
        if age >= self.rule.window {
            return false;
        }
        let part = age.as_secs_f64() / self.rule.window.as_secs_f64();
        let part = part.powf(1.0 / self.rule.aggression);
        fastrand::f64() >= part.max(self.rule.minimum_percent / 100.0)
    }
}

/// A number below `n`; where there is none, because nobody has any weight, 0.
fn ticket(n: u64) -> u64 {
    fastrand::u64(..n.max(1))
}

fn choose(policy: Balance, candidates: &Candidates<'_>, cursor: &AtomicUsize, hash: Option<u64>) -> usize {
    let level = candidates.level();
    match policy {
        Balance::RoundRobin | Balance::Reported => round_robin::pick(candidates, cursor),
        Balance::LeastRequest => least_request::pick(candidates, ticket),
        Balance::LeastOf(of) => least_of::pick(of, candidates, ticket),
        Balance::Random => random::pick(candidates, ticket),
        Balance::PeakEwma { decay, initial } => peak_ewma::pick((decay, initial), candidates, ticket),
        Balance::RingHash { .. } | Balance::SteadyRing | Balance::Maglev { .. } => {
            let hash = hash.unwrap_or_else(|| fastrand::u64(..));
            let found = match &level.table {
                HashTable::Ring(ring) => ring_hash::pick(ring, candidates, hash),
                HashTable::Maglev(table) => maglev::pick(table, candidates, hash),
                HashTable::None => None,
            };
            // A handle of the time before the policy: the endpoints are shared, the table is not made for it. Also an
            // endpoint too light for a point of its own.
            found.unwrap_or_else(|| random::pick(candidates, ticket))
        }
    }
}

#[cfg(test)]
mod tests;
