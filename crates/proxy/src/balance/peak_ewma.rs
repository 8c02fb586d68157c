//! Of two that are drawn by weight, the one where an answer is expected sooner: how long answers take, times the requests in flight
//! and this one, as Finagle and Linkerd do it.

use std::time::Duration;

use tokio::time::Instant;

use super::{Candidates, DRAWS};

pub(super) fn pick(
    (decay, initial): (Duration, Duration),
    candidates: &Candidates<'_>,
    mut random: impl FnMut(u64) -> u64,
) -> usize {
    let level = candidates.level();
    let first = candidates.weighted(&mut random);
    // Another one; where one has nearly all of the weight there may be none.
    let mut others = (0..DRAWS).map(|_| candidates.weighted(&mut random));
    let Some(second) = others.find(|other| *other != first) else { return first };
    let now = Instant::now();
    let cost = |index: usize| {
        let member = &level.members[index];
        let time = member.load.latency().estimate(decay, now).unwrap_or(initial);
        time.as_secs_f64() * (f64::from(member.in_flight()) + 1.0)
    };
    if cost(second) < cost(first) { second } else { first }
}
