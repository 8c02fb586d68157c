//! Weighted round robin over an order made once: the smooth algorithm, so that a heavy endpoint is spread over the round.

use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use super::Candidates;

/// Longest round; larger sums of weights are scaled down to it.
const MAX_ROUND: u64 = 1024;

/// The order of one round; empty if all weights are equal.
pub(super) fn schedule(weights: &[u32]) -> Vec<u32> {
    if weights.windows(2).all(|pair| pair[0] == pair[1]) {
        return Vec::new();
    }
    let divisor = weights.iter().fold(0, |a, b| gcd(a, *b)).max(1);
    let mut shares: Vec<i64> = weights.iter().map(|w| i64::from(w / divisor)).collect();
    let sum = shares.iter().sum::<i64>() as u64;
    let longest = MAX_ROUND.max(weights.len() as u64);
    if sum > longest {
        let scale = longest as f64 / sum as f64;
        for share in &mut shares {
            *share = ((*share as f64 * scale).round() as i64).max(1);
        }
    }
    let sum: i64 = shares.iter().sum();
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
    order
}

fn gcd(a: u32, b: u32) -> u32 {
    if b == 0 { a } else { gcd(b, a % b) }
}

pub(super) fn pick(candidates: &Candidates<'_>, cursor: &AtomicUsize) -> usize {
    let level = candidates.level();
    let at = |step: usize| {
        if level.schedule.is_empty() {
            step % level.members.len()
        } else {
            level.schedule[step % level.schedule.len()] as usize
        }
    };
    let Candidates::Some(_, indices) = candidates else { return at(cursor.fetch_add(1, Relaxed)) };
    if level.schedule.is_empty() {
        // Over the usable ones only: skipping in the full order would give the neighbour of an ejected one its share.
        return indices[cursor.fetch_add(1, Relaxed) % indices.len()] as usize;
    }
    // Every member occurs in the order, so a usable one is found within a round.
    for _ in 0..level.schedule.len() {
        let index = at(cursor.fetch_add(1, Relaxed));
        if indices.contains(&(index as u32)) {
            return index;
        }
    }
    indices[0] as usize
}
