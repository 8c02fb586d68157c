//! How requests are spread over priorities and places, as Envoy does it: a priority takes all as long as enough of it is healthy; what
//! it can no longer bear goes on to the next, little by little, and not all at once when the last has failed.

use smallvec::SmallVec;

use super::{Health, LocalityEndpoints};

/// A level with this part of its endpoints, in percent of them, bears everything: Envoy's overprovisioning factor, 140 %.
const OVERPROVISIONING: u64 = 140;

/// Of a hundred requests, by level.
pub type Shares = SmallVec<[u8; 6]>;

/// What a level bears, in percent of everything, with so many healthy endpoints of so many.
fn bears((healthy, all): (u32, u32)) -> u64 {
    match all {
        0 => 0,
        all => (OVERPROVISIONING * u64::from(healthy) / u64::from(all)).min(100),
    }
}

/// Whether levels with so many healthy endpoints, of so many, bear everything together.
pub fn bear_all(levels: impl Iterator<Item = (u32, u32)>) -> bool {
    levels.map(bears).sum::<u64>() >= 100
}

/// Of levels with so many healthy endpoints, of so many; nothing where nobody is healthy.
pub fn shares(levels: impl Iterator<Item = (u32, u32)>) -> Option<Shares> {
    let bears: SmallVec<[u64; 6]> = levels.map(bears).collect();
    let sum = bears.iter().sum::<u64>().min(100);
    if sum == 0 {
        return None;
    }
    let mut left = 100;
    let mut shares: Shares = bears
        .iter()
        .map(|bears| {
            let share = (bears * 100 / sum).min(left);
            left -= share;
            share as u8
        })
        .collect();
    // What rounding has left over is for the first that can.
    if let Some(first) = bears.iter().position(|bears| *bears > 0) {
        shares[first] += left as u8;
    }
    Some(shares)
}

/// What a place can bear of its priority's requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bearing {
    /// Its healthy endpoints.
    pub serving: u32,
    /// Of so many.
    pub total: u32,
    /// The place's weight, as far as those that serve can bear it; 0: it has none, and its endpoints have only their own.
    weight: u32,
    /// The weights of those that serve.
    sum: u64,
    /// Those that drain are not among the total.
    forgives: bool,
}

impl Bearing {
    /// Of a place, by what its endpoints report.
    pub fn of<A>(place: &LocalityEndpoints<A>) -> Self {
        let healthy = place.endpoints.iter().filter(|e| e.health == Health::Healthy);
        let serving = healthy.clone().count() as u32;
        let sum = healthy.map(|e| u64::from(e.weight.max(1))).sum();
        // Some that drain leave, and move nobody elsewhere; where most do, the place is given up.
        let draining = place.endpoints.iter().filter(|e| e.health == Health::Draining).count() as u32;
        let members = place.endpoints.len() as u32;
        let forgives = draining <= serving;
        let total = if forgives { members - draining } else { members };
        Self { forgives, ..Self::with(place.weight, serving, total, sum) }
    }

    /// Of a place with a weight, when so many of its endpoints serve, whose weights make this sum.
    pub fn with(weight: u32, serving: u32, total: u32, sum: u64) -> Self {
        Self { serving, total, weight: borne(weight, serving, total), sum, forgives: false }
    }

    /// Whether those that drain move nobody elsewhere.
    pub fn lets_go(&self) -> bool {
        self.forgives
    }

    /// The part of an endpoint of such a weight that serves, among all of its priority.
    pub fn part(&self, weight: u32) -> u64 {
        part(self.weight, weight.max(1), self.sum)
    }

    /// The part of the place, among all of its priority.
    pub fn whole(&self) -> u64 {
        match (self.sum, self.weight) {
            (0, _) => 0,
            (sum, 0) => sum.saturating_mul(UNIT),
            (_, weight) => u64::from(weight) * UNIT,
        }
    }
}

/// Fine enough for a thousand endpoints of one place.
const UNIT: u64 = 10_000;

fn part(place: u32, weight: u32, sum: u64) -> u64 {
    if place == 0 || sum == 0 {
        return u64::from(weight) * UNIT;
    }
    let scaled = u128::from(place) * u128::from(UNIT) * u128::from(weight) / u128::from(sum);
    u64::try_from(scaled).unwrap_or(u64::MAX).max(1)
}

/// What is left of a locality's weight when so many of its endpoints serve: as much as these bear, as in Envoy. Without a weight there
/// is nothing to lose.
fn borne(weight: u32, serving: u32, total: u32) -> u32 {
    let bears = (OVERPROVISIONING * u64::from(serving)).checked_div(u64::from(total)).unwrap_or(100).min(100);
    let left = u64::from(weight) * bears / 100;
    u32::try_from(left).unwrap_or(u32::MAX).max(weight.min(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_level_that_can_no_longer_bear_everything_gives_on_what_is_over() {
        for (levels, wanted) in [
            // Envoy's own table (load balancing priorities): 100, 72, 71, 50, 25, 25, 5 percent of the first are healthy.
            (vec![(100, 100), (100, 100)], vec![100, 0]),
            (vec![(72, 100), (72, 100)], vec![100, 0]),
            (vec![(71, 100), (71, 100)], vec![99, 1]),
            (vec![(50, 100), (60, 100)], vec![70, 30]),
            (vec![(25, 100), (100, 100)], vec![35, 65]),
            (vec![(25, 100), (25, 100)], vec![50, 50]),
            (vec![(0, 100), (100, 100)], vec![0, 100]),
            (vec![(20, 100), (20, 100), (10, 100)], vec![40, 40, 20]),
            (vec![(1, 3), (1, 1)], vec![46, 54]),
        ] {
            let found = shares(levels.iter().copied()).unwrap();
            assert_eq!(found.to_vec(), wanted, "{levels:?}");
            assert_eq!(found.iter().map(|share| u32::from(*share)).sum::<u32>(), 100);
        }
        assert_eq!(shares([(0, 3), (0, 0)].into_iter()), None);
    }

    #[test]
    fn a_locality_bears_what_its_endpoints_bear() {
        for ((weight, serving, total), left) in [
            ((100, 10, 10), 100),
            ((100, 8, 10), 100),
            ((100, 5, 10), 70),
            ((100, 1, 10), 14),
            ((0, 1, 10), 0),
            ((3, 1, 100), 1),
        ] {
            assert_eq!(borne(weight, serving, total), left, "{serving} of {total}");
        }
    }
}
