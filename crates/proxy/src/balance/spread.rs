//! Which priority gets a request, by the shares that each can bear.

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
