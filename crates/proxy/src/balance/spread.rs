//! Which priority gets a request: by the shares that each can bear, and by the room that it has.

use outrigger_model::endpoint::spread::Shares;

use super::Level;
use crate::runtime::endpoint::EndpointState;

/// How requests are spread over the levels of a cluster.
#[derive(Debug)]
pub struct Spread {
    pub shares: Shares,
    /// So many requests in flight for each endpoint fill a level.
    pub capacity: Option<u32>,
}

impl Spread {
    /// The level for one request whose endpoints are all usable.
    pub fn level(&self, levels: &[Level], hash: Option<u64>) -> usize {
        let drawn = draw(&self.shares, hash);
        let Some(capacity) = self.capacity else { return drawn };
        let is_full = |at: usize| levels.get(at).is_none_or(|level| is_full(level, capacity, |_| true));
        if !is_full(drawn) {
            return drawn;
        }
        // Where all are full, it is as if none were.
        (0..levels.len()).find(|at| !is_full(*at)).unwrap_or(drawn)
    }
}

/// Whether a level has no room, of those that are usable.
pub fn is_full(level: &Level, capacity: u32, usable: impl Fn(&EndpointState) -> bool) -> bool {
    let (mut in_flight, mut room) = (0_u64, 0_u64);
    for member in level.members.iter().filter(|member| usable(member)) {
        in_flight += u64::from(member.in_flight());
        room += u64::from(capacity);
    }
    in_flight >= room
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
