//! What zone-aware routing needs to know of a client: the shares themselves are [`outrigger_model::endpoint::zones`]'.

pub(super) use outrigger_model::endpoint::zones::{Counts, Scope, share};

use outrigger_model::endpoint::zones::zone;

use super::super::lens::Lens;
use crate::instance::State;

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
