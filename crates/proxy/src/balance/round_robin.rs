//! Weighted round robin. Where a round is short it has an order, made once: the smooth algorithm, so that a heavy endpoint is spread over
//! the round. Where weights would make it long, each turn is drawn by weight from a sequence that fills the round evenly.

use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use super::Candidates;

/// Longest round that has an order: making it costs its length for each endpoint.
const MAX_ROUND: u64 = 1024;

/// How turns are taken.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Turns {
    /// One after the other: all weights are equal.
    Equal,
    /// In this order.
    Order(Vec<u32>),
    /// By weight.
    Spread,
}

/// For these weights, exactly.
pub(super) fn turns(weights: &[u32]) -> Turns {
    if weights.windows(2).all(|pair| pair[0] == pair[1]) {
        return Turns::Equal;
    }
    let divisor = weights.iter().fold(0, |a, b| gcd(a, *b)).max(1);
    let shares: Vec<i64> = weights.iter().map(|w| i64::from(w / divisor)).collect();
    let sum: i64 = shares.iter().sum();
    if sum as u64 > MAX_ROUND {
        return Turns::Spread;
    }
    let mut current = vec![0_i64; shares.len()];
    let mut order = Vec::with_capacity(sum as usize);
    for _ in 0..sum {
        let mut best = 0;
        for i in 0..shares.len() {
            current[i] += shares[i];
            if current[i] > current[best] {
                best = i;
            }
        }
        current[best] -= sum;
        order.push(best as u32);
    }
    Turns::Order(order)
}

/// The ticket of a step, of so many: multiples of the golden ratio leave no gap that is much larger than another.
fn ticket(step: usize, of: u64) -> u64 {
    let turn = (step as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    ((u128::from(turn) * u128::from(of)) >> 64) as u64
}

fn gcd(a: u32, b: u32) -> u32 {
    if b == 0 { a } else { gcd(b, a % b) }
}

pub(super) fn pick(candidates: &Candidates<'_>, cursor: &AtomicUsize) -> usize {
    let level = candidates.level();
    let step = || cursor.fetch_add(1, Relaxed);
    match (&level.turns, candidates) {
        // The order is made of other weights.
        (_, Candidates::Scaled(..)) => candidates.weighted(|of| ticket(step(), of)),
        (Turns::Equal, Candidates::All(level)) => step() % level.members.len(),
        // Over the usable ones only: skipping in the full order would give the neighbour of an ejected one its share.
        (Turns::Equal, Candidates::Some(_, indices)) => indices[step() % indices.len()] as usize,
        (Turns::Order(order), Candidates::All(_)) => order[step() % order.len()] as usize,
        (Turns::Order(order), Candidates::Some(_, indices)) => {
            // Every member occurs in the order, so a usable one is found within a round.
            let mut round = order.iter().map(|_| order[step() % order.len()]);
            round.find(|index| candidates.takes(*index)).unwrap_or(indices[0]) as usize
        }
        (Turns::Spread, _) => candidates.weighted(|of| ticket(step(), of)),
    }
}
