//! Random by weight.

use super::Candidates;

pub(super) fn pick(candidates: &Candidates<'_>, random: impl FnOnce(u64) -> u64) -> usize {
    candidates.weighted(random)
}
