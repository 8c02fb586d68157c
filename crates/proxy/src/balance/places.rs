//! The places of a level that have weights of their own, and what is left of these when some of their endpoints do not serve.

use outrigger_model::endpoint::spread::Bearing;
use smallvec::SmallVec;

/// The places of a level, where they have weights.
#[derive(Debug, Clone, Default)]
pub struct Places {
    /// Of each member of the level its place, as an index, and its weight among those of the place.
    members: Vec<(u32, u32)>,
    all: Vec<Place>,
}

#[derive(Debug, Clone, Copy)]
struct Place {
    weight: u32,
    /// How many endpoints are to bear it, with those that cannot.
    total: u32,
}

impl Places {
    /// One more place; members that are added after it are in it.
    pub fn add(&mut self, weight: u32, total: u32) {
        self.all.push(Place { weight, total });
    }

    /// The next member of the level.
    pub fn add_member(&mut self, weight: u32) {
        let place = self.all.len().saturating_sub(1) as u32;
        self.members.push((place, weight.max(1)));
    }

    /// Whether there are several, and weights that share the requests out among them.
    pub fn share(&self) -> bool {
        self.all.len() > 1 && self.all.iter().any(|place| place.weight > 0)
    }

    /// Only these members are left; the places bear what they bore.
    pub fn retain(&mut self, stays: impl Fn(usize) -> bool) {
        let mut at = 0;
        self.members.retain(|_| {
            at += 1;
            stays(at - 1)
        });
    }

    /// Of each member the weight that it has while only these serve; 0 of those that do not. `serves` is asked twice of each, and must say
    /// the same.
    pub fn weights(&self, serves: impl Fn(usize) -> bool) -> SmallVec<[u32; 32]> {
        let mut serving: SmallVec<[(u32, u64); 8]> = self.all.iter().map(|_| (0, 0)).collect();
        for (_, (place, own)) in self.members.iter().enumerate().filter(|(at, _)| serves(*at)) {
            let (count, sum) = &mut serving[*place as usize];
            *count += 1;
            *sum += u64::from(*own);
        }
        let bearing: SmallVec<[Bearing; 8]> = self
            .all
            .iter()
            .zip(serving)
            .map(|(place, (count, sum))| Bearing::with(place.weight, count, place.total, sum))
            .collect();
        let part = |(at, (place, own)): (usize, &(u32, u32))| match serves(at) {
            true => bearing[*place as usize].part(*own),
            false => 0,
        };
        let parts: SmallVec<[u64; 32]> = self.members.iter().enumerate().map(part).collect();
        let most = parts.iter().copied().max().unwrap_or(0);
        parts.into_iter().map(|part| if part == 0 { 0 } else { fitted(part, most) }).collect()
    }
}

/// A weight as a level takes it, where `most` is the greatest: in the same proportion to the others.
pub fn fitted(weight: u64, most: u64) -> u32 {
    let divisor = most / u64::from(u32::MAX) + 1;
    u32::try_from(weight / divisor).unwrap_or(u32::MAX).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Four of weight 1 in a place of 75, one in a place of 25.
    fn places() -> Places {
        let mut places = Places::default();
        places.add(75, 4);
        (0..4).for_each(|_| places.add_member(1));
        places.add(25, 1);
        places.add_member(1);
        places
    }

    /// The part of the first place, in percent.
    fn stays(places: &Places, serves: impl Fn(usize) -> bool) -> f64 {
        let weights = places.weights(&serves);
        let sum = |of: &[u32]| of.iter().map(|weight| f64::from(*weight)).sum::<f64>();
        100.0 * sum(&weights[..weights.len() - 1]) / sum(&weights)
    }

    #[test]
    fn a_place_keeps_its_share_while_five_of_seven_serve() {
        let mut places = places();
        for (down, wanted) in [(0, 75.0), (1, 75.0), (2, 100.0 * 52.0 / 77.0), (3, 100.0 * 26.0 / 51.0)] {
            let found = stays(&places, |at| at >= down);
            assert!((found - wanted).abs() < 0.01, "{down} of 4 do not serve: {found}, not {wanted}");
        }
        assert_eq!(places.weights(|at| at != 4)[4], 0, "who does not serve has nothing");
        // Those that are gone still count among those that were to bear the place.
        places.retain(|at| at > 0);
        assert!((stays(&places, |_| true) - 75.0).abs() < 0.01);
        assert!((stays(&places, |at| at > 1) - 100.0 * 26.0 / 51.0).abs() < 0.01);
    }

    #[test]
    fn weights_too_great_for_a_level_keep_their_proportion() {
        let mut places = Places::default();
        for weight in [u32::MAX, u32::MAX / 4] {
            places.add(weight, 1);
            places.add_member(1);
        }
        let weights = places.weights(|_| true);
        assert!((f64::from(weights[0]) / f64::from(weights[1]) - 4.0).abs() < 0.001, "{weights:?}");
    }
}
