//! Virtual addresses: each service has one of each family that stands for it where there is only room for an address, first
//! of all in DNS answers. All sidecars agree, because the control plane gives them.
//!
//! They are made from the names alone: the same services have the same addresses after every restart and in every replica,
//! with nothing to store. Only where two names meet at one slot does it matter which others there are.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use aws_lc_rs::digest;
use outrigger_model::resource::{VIRTUAL_V4, VIRTUAL_V6};
use outrigger_rules::intent::Host;

use crate::sorted::Sorted;

/// Blocks of 256 in the IPv4 range; of each the first and the last address stay free, as some software takes them for a network's own.
const V4_BLOCKS: u32 = 1 << 12;
const V4_PER_BLOCK: u32 = 254;
const V4_SLOTS: u32 = V4_BLOCKS * V4_PER_BLOCK;
const V6_MASK: u128 = (1 << 80) - 1;

/// The addresses of one service.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VirtualAddresses {
    /// Unspecified only beyond a million services.
    pub v4: Ipv4Addr,
    /// Always there.
    pub v6: Ipv6Addr,
}

impl Default for VirtualAddresses {
    fn default() -> Self {
        Self { v4: Ipv4Addr::UNSPECIFIED, v6: Ipv6Addr::UNSPECIFIED }
    }
}

impl VirtualAddresses {
    /// Those that there are, IPv4 first.
    pub fn iter(&self) -> impl Iterator<Item = IpAddr> + use<> {
        [IpAddr::V4(self.v4), self.v6.into()].into_iter().filter(|address| !address.is_unspecified())
    }
}

/// Which service has which addresses. A copy costs nothing.
///
/// A place belongs to the first by name of those who come by it, whoever was there before: so it does not matter in which order
/// services came, nor who has been there meanwhile.
#[derive(Debug, Clone, Default)]
pub(crate) struct Given {
    v4: Places<u32>,
    v6: Places<u128>,
}

/// A service whose addresses are others now, or that is gone.
#[derive(Debug)]
pub(crate) struct Moved {
    pub(crate) host: Host,
    before: VirtualAddresses,
    after: VirtualAddresses,
}

impl Moved {
    /// All that mean something else now.
    pub(crate) fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        self.before.iter().chain(self.after.iter())
    }
}

impl Given {
    /// Gives a new service its addresses.
    pub(crate) fn give(&mut self, host: &Host) -> Vec<Moved> {
        let (v4, v6) = (self.v4.put(host, v4_slots), self.v6.put(host, v6_slots));
        self.moved(v4, v6)
    }

    /// Takes those of a service that is gone.
    pub(crate) fn take(&mut self, host: &Host) -> Vec<Moved> {
        let (v4, v6) = (self.v4.take(host, v4_slots), self.v6.take(host, v6_slots));
        self.moved(v4, v6)
    }

    /// The addresses of a service.
    pub(crate) fn of(&self, host: &Host) -> VirtualAddresses {
        VirtualAddresses {
            v4: self.v4.of(host, v4_slots).map_or(Ipv4Addr::UNSPECIFIED, v4),
            v6: self.v6.of(host, v6_slots).map_or(Ipv6Addr::UNSPECIFIED, v6),
        }
    }

    /// The service that has an address.
    pub(crate) fn at(&self, address: IpAddr) -> Option<&Host> {
        match address {
            IpAddr::V4(address) => self.v4.taken.get(&slot_of(address)?),
            IpAddr::V6(address) if address.to_bits() & !V6_MASK == VIRTUAL_V6.to_bits() & !V6_MASK => {
                self.v6.taken.get(&(address.to_bits() & V6_MASK))
            }
            IpAddr::V6(_) => None,
        }
    }

    fn moved(&self, v4s: Vec<Move<u32>>, v6s: Vec<Move<u128>>) -> Vec<Moved> {
        let mut all: Vec<Moved> = Vec::new();
        for (host, from, to) in v4s {
            let now = self.of(&host);
            let at =
                |slot: Option<u32>| VirtualAddresses { v4: slot.map_or(Ipv4Addr::UNSPECIFIED, v4), ..now };
            all.push(Moved { host, before: at(from), after: at(to) });
        }
        for (host, from, to) in v6s {
            let now = self.of(&host);
            let at =
                |slot: Option<u128>| VirtualAddresses { v6: slot.map_or(Ipv6Addr::UNSPECIFIED, v6), ..now };
            all.push(Moved { host, before: at(from), after: at(to) });
        }
        all
    }
}

/// Who moved, from where, to where.
type Move<K> = (Host, Option<K>, Option<K>);

/// Places of one family.
#[derive(Debug, Clone)]
struct Places<K: Ord + Copy> {
    taken: Sorted<K, Host>,
    /// Who came by a place that was another's, and would come back to it.
    passed: Sorted<K, Arc<[Host]>>,
}

impl<K: Ord + Copy> Default for Places<K> {
    fn default() -> Self {
        Self { taken: Sorted::default(), passed: Sorted::default() }
    }
}

impl<K: Ord + Copy> Places<K> {
    fn put<I: Iterator<Item = K>>(&mut self, host: &Host, slots: impl Fn(&Host) -> I) -> Vec<Move<K>> {
        let mut moves = Vec::new();
        let (mut current, mut from) = (host.clone(), None);
        loop {
            let mut evicted = None;
            let mut all = slots(&current);
            if let Some(from) = from {
                all.by_ref().find(|slot| *slot == from);
            }
            for slot in all {
                match self.taken.get(&slot).cloned() {
                    Some(other) if other < current => self.passes(slot, &current),
                    other => {
                        self.taken.insert(slot, current.clone());
                        moves.push((current.clone(), from, Some(slot)));
                        if let Some(other) = &other {
                            self.passes(slot, other);
                        }
                        evicted = Some(other.map(|other| (other, slot)));
                        break;
                    }
                }
            }
            match evicted {
                Some(Some((other, slot))) => (current, from) = (other, Some(slot)),
                Some(None) => return moves,
                None => {
                    moves.push((current, from, None));
                    return moves;
                }
            }
        }
    }

    fn take<I: Iterator<Item = K>>(&mut self, host: &Host, slots: impl Fn(&Host) -> I) -> Vec<Move<K>> {
        let mut moves = Vec::new();
        let mut free = None;
        for slot in slots(host) {
            if self.taken.get(&slot) == Some(host) {
                free = Some(slot);
                break;
            }
            self.no_longer_passes(slot, host);
        }
        moves.push((host.clone(), free, None));
        while let Some(slot) = free.take() {
            self.taken.remove(&slot);
            let next = self.passed.get(&slot).and_then(|hosts| hosts.iter().min().cloned());
            let Some(next) = next else { break };
            // It gives up what it went on to.
            for later in slots(&next).skip_while(|s| *s != slot) {
                if self.taken.get(&later) == Some(&next) {
                    free = Some(later);
                    break;
                }
                self.no_longer_passes(later, &next);
            }
            self.taken.insert(slot, next.clone());
            moves.push((next, free, Some(slot)));
        }
        moves
    }

    fn of<I: Iterator<Item = K>>(&self, host: &Host, slots: impl Fn(&Host) -> I) -> Option<K> {
        slots(host).find(|slot| self.taken.get(slot) == Some(host))
    }

    fn passes(&mut self, slot: K, host: &Host) {
        let mut hosts = self.passed.get(&slot).map(|hosts| hosts.to_vec()).unwrap_or_default();
        if !hosts.contains(host) {
            hosts.push(host.clone());
        }
        self.passed.insert(slot, hosts.into());
    }

    fn no_longer_passes(&mut self, slot: K, host: &Host) {
        let Some(hosts) = self.passed.get(&slot) else { return };
        let left: Vec<Host> = hosts.iter().filter(|other| *other != host).cloned().collect();
        match left.is_empty() {
            true => drop(self.passed.remove(&slot)),
            false => drop(self.passed.insert(slot, left.into())),
        }
    }
}

/// Places that one name comes by before it goes without: of a tenth of a million services none does.
const MOST_PROBES: usize = 4096;

fn number(host: &Host, from: usize, length: usize) -> u128 {
    let hash = digest::digest(&digest::SHA256, host.as_str().as_bytes());
    hash.as_ref()[from..from + length].iter().fold(0_u128, |sum, byte| sum << 8 | u128::from(*byte))
}

fn v4_slots(host: &Host) -> impl Iterator<Item = u32> + use<> {
    let first = (number(host, 0, 8) % u128::from(V4_SLOTS)) as u32;
    probe(first, number(host, 8, 4) as u32).take(MOST_PROBES)
}

fn v6_slots(host: &Host) -> impl Iterator<Item = u128> + use<> {
    let first = number(host, 16, 10);
    (0..MOST_PROBES as u128).map(move |n| (first + n) & V6_MASK)
}

/// All slots, each once, from `first` on. Each name has a stride of its own, so that those who meet part at once. A stride
/// without a factor in common with the number of slots (2^13 · 127) comes by all of them.
fn probe(first: u32, seed: u32) -> impl Iterator<Item = u32> {
    let odd = u64::from(seed % V4_SLOTS) | 1;
    let stride = if odd.is_multiple_of(127) { odd + 2 } else { odd };
    (0..V4_SLOTS).map(move |n| ((u64::from(first) + u64::from(n) * stride) % u64::from(V4_SLOTS)) as u32)
}

fn v4(slot: u32) -> Ipv4Addr {
    Ipv4Addr::from(VIRTUAL_V4.to_bits() + (slot / V4_PER_BLOCK) * 256 + slot % V4_PER_BLOCK + 1)
}

fn slot_of(address: Ipv4Addr) -> Option<u32> {
    let (block, place) =
        (address.to_bits().checked_sub(VIRTUAL_V4.to_bits())? / 256, address.to_bits() % 256);
    (block < V4_BLOCKS && (1..=V4_PER_BLOCK).contains(&place)).then(|| block * V4_PER_BLOCK + place - 1)
}

fn v6(low: u128) -> Ipv6Addr {
    Ipv6Addr::from(VIRTUAL_V6.to_bits() | low & V6_MASK)
}

#[cfg(test)]
mod tests;
