//! Ring hash (ketama): each endpoint has points in proportion to its weight; a key belongs to the first point at or after its
//! hash. Endpoints that may not be picked are walked past, which is what a ring without their points would give.
//!
//! There are two. That of [`ring`] is an Envoy's, point for point, so that a key has the same endpoint behind any sidecar; it has a
//! number of points in all, so where one of ten leaves each of the others has some more, which take keys from each other. On that of
//! [`steady`] an endpoint's points hang on its own weight alone: without one the ring is the same without its points.

use std::fmt::Write as _;
use std::net::SocketAddr;

use xxhash_rust::xxh64::xxh64;

use super::Candidates;

/// Points in order: hash, index of the member.
pub(super) type Ring = Vec<(u64, u32)>;

/// Points of an endpoint that has the least weight, at least; twice as many at most. Shares then differ by 8 % (the standard
/// deviation), and a thousand endpoints take 2.5 MB.
const STEADY_POINTS: f64 = 128.0;

/// Lays out the ring on which points do not hang on other endpoints, of `maximum` points where weights do not need more.
pub(super) fn steady(members: &[(SocketAddr, u32)], maximum: u64) -> Ring {
    let Some(least) = members.iter().map(|(_, weight)| (*weight).max(1)).min() else { return Vec::new() };
    // By its power of two: as long as the lightest of those who stay is not of another, the others' points are the same. Too many are
    // halved, which takes the latter half of everybody's.
    let mut scale = STEADY_POINTS / f64::from(1_u32 << least.ilog2());
    let total: f64 = members.iter().map(|(_, weight)| f64::from(*weight)).sum();
    while total * scale > maximum as f64 {
        scale /= 2.0;
    }
    let points = |weight: u32| (f64::from(weight) * scale).round().max(1.0) as u64;
    let mut ring = Vec::with_capacity((total * scale) as usize + members.len());
    for (index, (address, weight)) in members.iter().enumerate() {
        let name = address.to_string();
        ring.extend((0..points(*weight)).map(|number| (xxh64(name.as_bytes(), number), index as u32)));
    }
    ring.sort_unstable();
    ring
}

/// Lays out an Envoy's ring.
pub(super) fn ring(members: &[(SocketAddr, u32)], minimum: u64, maximum: u64) -> Ring {
    let total: f64 = members.iter().map(|(_, weight)| f64::from(*weight)).sum();
    let Some(least) = members.iter().map(|(_, weight)| *weight).min() else { return Vec::new() };
    // So many points that even the lightest has a whole number of them, as far as the maximum goes.
    let least = f64::from(least) / total;
    let scale = ((least * minimum as f64).ceil() / least).min(maximum as f64);
    let mut ring = Vec::with_capacity(scale.ceil() as usize);
    let (mut points, mut target) = (0.0, 0.0);
    let mut key = String::with_capacity(64);
    for (index, (address, weight)) in members.iter().enumerate() {
        // In Envoy's order: another rounding would make a point more or less.
        target += scale * (f64::from(*weight) / total);
        let mut number = 0_u64;
        while points < target {
            key.clear();
            // Writing to a String cannot fail.
            let _ = write!(key, "{address}_{number}");
            ring.push((xxh64(key.as_bytes(), 0), index as u32));
            (points, number) = (points + 1.0, number + 1);
        }
    }
    ring.sort_unstable();
    ring
}

pub(super) fn pick(ring: &Ring, candidates: &Candidates<'_>, hash: u64) -> Option<usize> {
    let start = ring.partition_point(|(point, _)| *point < hash);
    let (before, after) = ring.split_at_checked(start)?;
    let members = after.iter().chain(before).map(|(_, index)| *index);
    members.into_iter().find(|index| candidates.takes(*index)).map(|index| index as usize)
}
