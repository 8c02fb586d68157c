//! How far a measured share may be from the true one: a false alarm must be rarer than one in a million.

/// Two-sided probability of a false alarm.
const ALARM: f64 = 1e-6;

/// The shares that `n` draws of probability `p` yield, but for one case in a million (Chernoff bound: P ≤ exp(-n·KL)).
pub(super) fn interval(p: f64, n: usize) -> (f64, f64) {
    if n == 0 {
        return (0.0, 1.0);
    }
    if p <= 0.0 || p >= 1.0 {
        // A certainty yields nothing but itself.
        return (p, p);
    }
    let limit = (2.0 / ALARM).ln() / n as f64;
    (edge(p, 0.0, limit), edge(p, 1.0, limit))
}

/// Between `p` and `end` the divergence grows; the point at which it reaches the limit.
fn edge(p: f64, end: f64, limit: f64) -> f64 {
    if divergence(end, p) <= limit {
        return end;
    }
    let (mut near, mut far) = (p, end);
    for _ in 0..60 {
        let middle = f64::midpoint(near, far);
        if divergence(middle, p) <= limit { near = middle } else { far = middle }
    }
    far
}

/// Kullback–Leibler divergence of two coins.
fn divergence(q: f64, p: f64) -> f64 {
    let term = |a: f64, b: f64| if a == 0.0 { 0.0 } else { a * (a / b).ln() };
    term(q, p) + term(1.0 - q, 1.0 - p)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn more_draws_make_a_narrower_interval_around_the_share() {
        let (low, high) = interval(0.1, 600);
        assert!(low > 0.03 && low < 0.1 && high > 0.1 && high < 0.2, "{low} {high}");
        let (closer_low, closer_high) = interval(0.1, 6000);
        assert!(closer_low > low && closer_high < high);
    }

    #[test]
    fn certainty_leaves_no_room() {
        assert_eq!(interval(1.0, 100), (1.0, 1.0));
        assert_eq!(interval(0.0, 100), (0.0, 0.0));
        assert_eq!(interval(0.5, 0), (0.0, 1.0));
    }

    #[test]
    fn a_fair_coin_stays_within_its_interval() {
        let mut random = fastrand::Rng::with_seed(7);
        let (low, high) = interval(0.3, 500);
        for _ in 0..2000 {
            let heads = (0..500).filter(|_| random.f64() < 0.3).count() as f64 / 500.0;
            assert!(low <= heads && heads <= high);
        }
    }
}
