//! The least loaded of some that are drawn by weight, or of all. Load counts per weight; where nothing is in flight, weight alone
//! decides, by chance.

use outrigger_model::cluster::LeastOf;

use super::Candidates;

pub(super) fn pick(of: LeastOf, candidates: &Candidates<'_>, mut random: impl FnMut(u64) -> u64) -> usize {
    let (level, weights) = (candidates.level(), candidates.weights());
    let load = |index: usize| {
        let in_flight = f64::from(level.members[index].in_flight());
        let load = match of.bias {
            1000 => in_flight,
            // Then nothing but weight counts.
            0 => 0.0,
            bias => in_flight.powf(f64::from(bias) / 1000.0),
        };
        load / f64::from(weights[index])
    };
    if let Some(choices) = of.choices {
        let first = candidates.weighted(&mut random);
        let mut best = (load(first), first);
        for _ in 1..choices {
            let other = candidates.weighted(&mut random);
            if load(other) < best.0 {
                best = (load(other), other);
            }
        }
        return best.1;
    }
    // Of those that are alike one by weight: each takes the place of the one before as often as its share is.
    let mut best = (f64::INFINITY, 0, 0_u64);
    for index in candidates.indices() {
        let (own, weight) = (load(index), u64::from(weights[index]));
        if own < best.0 {
            best = (own, index, weight);
        } else if own <= best.0 {
            best.2 += weight;
            if random(best.2) < weight {
                best.1 = index;
            }
        }
    }
    best.1
}
