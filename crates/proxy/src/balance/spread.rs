//! How requests are spread over priorities, as Envoy does it: a level takes all as long as enough of it are healthy; what it can
//! no longer bear goes on to the next, little by little, and not all at once when the last has failed.

use smallvec::SmallVec;

/// A level with this part of its endpoints, in percent of them, bears everything: Envoy's overprovisioning factor, 140 %.
const OVERPROVISIONING: u64 = 140;

/// Of a hundred requests, by level.
pub type Shares = SmallVec<[u8; 6]>;

/// Of levels with so many healthy endpoints, of so many; nothing where nobody is healthy.
pub fn shares(levels: impl Iterator<Item = (u32, u32)>) -> Option<Shares> {
    let bears = |(healthy, all): (u32, u32)| match all {
        0 => 0,
        all => (OVERPROVISIONING * u64::from(healthy) / u64::from(all)).min(100),
    };
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

/// What is left of a locality's weight when so many of its endpoints serve: as much as these bear, as in Envoy. Without a weight there
/// is nothing to lose.
pub fn borne(weight: u32, serving: u32, total: u32) -> u32 {
    let bears = (OVERPROVISIONING * u64::from(serving)).checked_div(u64::from(total)).unwrap_or(100).min(100);
    let left = u64::from(weight) * bears / 100;
    u32::try_from(left).unwrap_or(u32::MAX).max(weight.min(1))
}

/// The level for one request.
pub fn draw(shares: &[u8], hash: Option<u64>) -> usize {
    let mut ticket = hash.map_or_else(|| fastrand::u8(..100), |hash| (hash % 100) as u8);
    for (level, share) in shares.iter().enumerate() {
        if ticket < *share {
            return level;
        }
        ticket -= share;
    }
    0
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

    #[test]
    fn a_hash_always_draws_the_same_level_and_chance_draws_by_share() {
        fastrand::seed(7);
        let shares = [70, 0, 30];
        assert_eq!(draw(&shares, Some(169)), 0);
        assert_eq!(draw(&shares, Some(170)), 2);
        let third = (0..10_000).filter(|_| draw(&shares, None) == 2).count();
        // Thirty percent of 10,000, standard deviation 46.
        assert!((2800..3200).contains(&third), "{third}");
    }
}
