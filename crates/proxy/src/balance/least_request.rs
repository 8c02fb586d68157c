//! The less loaded of two: both are drawn by weight, and load counts per weight, so that shares follow the weights both
//! when nothing is in flight and under load.

use super::Candidates;

pub(super) fn pick(candidates: &Candidates<'_>, mut random: impl FnMut(u64) -> u64) -> usize {
    let (level, weights) = (candidates.level(), candidates.weights());
    let first = candidates.weighted(&mut random);
    let second = candidates.weighted(&mut random);
    // in_flight / weight, compared without dividing.
    let load = |i: usize, other: usize| u64::from(level.members[i].in_flight()) * u64::from(weights[other]);
    if load(second, first) < load(first, second) { second } else { first }
}
