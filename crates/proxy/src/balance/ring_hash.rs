//! Ring hash (ketama), point for point as Envoy lays it out, so that a key has the same endpoint behind any sidecar.
//!
//! Each endpoint has points in proportion to its weight; a key belongs to the first point at or after its hash. Endpoints
//! that may not be picked are walked past, which is what a ring without their points would give.

use std::fmt::Write as _;
use std::net::SocketAddr;

use xxhash_rust::xxh64::xxh64;

use super::Candidates;

/// Points in order: hash, index of the member.
pub(super) type Ring = Vec<(u64, u32)>;

/// Lays out the ring.
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
