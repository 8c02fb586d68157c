//! Maglev: a table of prime size in which each endpoint holds slots in proportion to its weight, filled as Envoy fills it.
//!
//! A lookup is one index. When the endpoint found may not be picked, the key is hashed on, which spreads its keys evenly
//! over the others.

use std::net::SocketAddr;

use xxhash_rust::xxh64::xxh64;

use super::Candidates;

/// Slot to index of the member.
pub(super) type Table = Vec<u32>;

/// Lookups of other slots before the rest of the table is walked.
const REHASHES: u64 = 16;

struct Entry {
    offset: u64,
    skip: u64,
    weight: f64,
    target: f64,
    next: u64,
}

/// Fills a table of a prime size.
pub(super) fn table(members: &[(SocketAddr, u32)], size: u64) -> Table {
    const FREE: u32 = u32::MAX;
    let Some(heaviest) = members.iter().map(|(_, weight)| f64::from(*weight)).reduce(f64::max) else {
        return Vec::new();
    };
    let mut entries: Vec<Entry> = members
        .iter()
        .map(|(address, weight)| {
            let name = address.to_string();
            let offset = xxh64(name.as_bytes(), 0) % size;
            let skip = xxh64(name.as_bytes(), 1) % (size - 1) + 1;
            Entry { offset, skip, weight: f64::from(*weight), target: 0.0, next: 0 }
        })
        .collect();
    let mut table = vec![FREE; size as usize];
    let mut filled = 0_u64;
    // In each round an endpoint takes its next free slot; lighter ones sit out in proportion.
    for round in 1_u32.. {
        for (index, entry) in entries.iter_mut().enumerate() {
            if filled == size {
                return table;
            }
            if f64::from(round) * entry.weight < entry.target {
                continue;
            }
            entry.target += heaviest;
            loop {
                let slot = ((entry.offset + entry.skip * entry.next) % size) as usize;
                entry.next += 1;
                // The size is prime and the skip smaller, so every slot comes up once.
                if table[slot] == FREE {
                    table[slot] = index as u32;
                    break;
                }
            }
            filled += 1;
        }
    }
    table
}

pub(super) fn pick(table: &Table, candidates: &Candidates<'_>, hash: u64) -> Option<usize> {
    let size = table.len() as u64;
    let slot = |hash: u64| hash.checked_rem(size).map(|slot| slot as usize);
    let mut found = table[slot(hash)?];
    for attempt in 1..=REHASHES {
        if candidates.takes(found) {
            return Some(found as usize);
        }
        found = table[slot(hash ^ (u64::MAX - attempt + 1))?];
    }
    let start = slot(hash)?;
    let members = table[start..].iter().chain(&table[..start]);
    members.copied().find(|index| candidates.takes(*index)).map(|index| index as usize)
}
