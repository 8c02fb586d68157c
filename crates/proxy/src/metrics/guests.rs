//! What peers say of themselves in metrics, and how much of it is believed.
//!
//! A peer that has proved an identity may name its workload, and the host by which it calls us. Both are labels, so an
//! identity may have only few of them at a time; beyond that its series are those of the identity alone.

use std::collections::HashMap;
use std::hash::BuildHasher;
use std::time::Duration;

use smallvec::SmallVec;
use tokio::time::Instant;

use super::SeriesOf;

/// Names of an identity: instances of several versions, during a deployment, behind some hosts.
const NAMES: usize = 16;

/// They are its own for so long; then others may take their place.
const KEPT: Duration = Duration::from_secs(3600);

/// Identities that are remembered. With more, the memory starts over.
const IDENTITIES: usize = 1024;

/// Longer hosts are not shown (RFC 1035, section 2.3.4).
const MAX_HOST: usize = 253;

struct Names {
    since: Instant,
    /// Their hashes.
    known: SmallVec<[u64; 4]>,
}

/// The names that peers have used.
#[derive(Default)]
pub(super) struct Guests {
    by_identity: HashMap<u64, Names>,
    hasher: foldhash::fast::RandomState,
}

impl Guests {
    /// The series as far as it is believed.
    pub fn believed<'s>(&mut self, series: &SeriesOf<'s>) -> SeriesOf<'s> {
        let called = series.called.filter(|host| host.len() <= MAX_HOST);
        let mut believed = SeriesOf { called, ..*series };
        let Some(peer) = series.peer.filter(|_| called.is_some() || series.said.is_some()) else {
            return believed;
        };
        let name = self.hasher.hash_one((called, series.said));
        if !self.admits(self.hasher.hash_one(peer.as_str()), name) {
            (believed.called, believed.said) = (None, None);
        }
        believed
    }

    fn admits(&mut self, identity: u64, name: u64) -> bool {
        let now = Instant::now();
        if self.by_identity.len() >= IDENTITIES && !self.by_identity.contains_key(&identity) {
            self.by_identity.clear();
        }
        let fresh = || Names { since: now, known: SmallVec::new() };
        let names = self.by_identity.entry(identity).or_insert_with(fresh);
        if names.known.contains(&name) {
            return true;
        }
        if now.duration_since(names.since) >= KEPT {
            *names = fresh();
        }
        if names.known.len() >= NAMES {
            return false;
        }
        names.known.push(name);
        true
    }
}
