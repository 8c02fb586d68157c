//! Virtual addresses: each service has one of each family that stands for it where there is only room for an address, first
//! of all in DNS answers. All sidecars agree, because the control plane gives them.
//!
//! They are made from the names alone: the same services have the same addresses after every restart and in every replica,
//! with nothing to store. Only where two names meet at one slot does it matter which others there are.

use std::collections::HashSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use aws_lc_rs::digest;
use outrigger_model::resource::{VIRTUAL_V4, VIRTUAL_V6};

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

/// The addresses of services, in their order. Of two that meet the earlier stays where it is, so they come sorted.
pub(crate) fn give<'a>(hosts: impl Iterator<Item = &'a str>) -> Vec<VirtualAddresses> {
    let (mut slots, mut v6_taken) = (HashSet::new(), HashSet::new());
    hosts
        .map(|host| {
            let hash = digest::digest(&digest::SHA256, host.as_bytes());
            let number = |from: usize, length: usize| {
                hash.as_ref()[from..from + length]
                    .iter()
                    .fold(0_u128, |sum, byte| sum << 8 | u128::from(*byte))
            };
            let first = (number(0, 8) % u128::from(V4_SLOTS)) as u32;
            let slot = probe(first, number(8, 4) as u32).find(|slot| slots.insert(*slot));
            let mut low = number(16, 10);
            while !v6_taken.insert(low) {
                low = (low + 1) & V6_MASK;
            }
            VirtualAddresses {
                v4: slot.map_or(Ipv4Addr::UNSPECIFIED, v4),
                v6: Ipv6Addr::from(VIRTUAL_V6.to_bits() | low & V6_MASK),
            }
        })
        .collect()
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

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use super::*;

    fn given(hosts: &BTreeSet<String>) -> BTreeMap<String, VirtualAddresses> {
        hosts.iter().cloned().zip(give(hosts.iter().map(String::as_str))).collect()
    }

    fn hosts(count: usize) -> BTreeSet<String> {
        (0..count).map(|i| format!("service-{i}.ns-{}.svc.cluster.local", i % 97)).collect()
    }

    #[test]
    fn twenty_thousand_services_have_addresses_of_their_own_within_the_ranges() {
        let given = given(&hosts(20_000));
        let mut seen = HashSet::new();
        for (host, addresses) in &given {
            assert!(seen.insert(addresses.v4) && seen.len() <= 20_000, "{host}: {}", addresses.v4);
            let [a, b, _, d] = addresses.v4.octets();
            assert!(a == 240 && b >= 240 && d != 0 && d != 255, "{}", addresses.v4);
            assert_eq!(addresses.v6.segments()[..3], [0x2001, 2, 0], "{}", addresses.v6);
            assert!(addresses.iter().all(outrigger_model::resource::is_virtual));
        }
        assert_eq!(given.values().map(|a| a.v6).collect::<HashSet<_>>().len(), 20_000);
    }

    #[test]
    fn a_new_service_moves_no_other_unless_they_truly_collide() {
        let before = hosts(20_000);
        let old = given(&before);
        let mut moved = 0;
        for i in 0..20 {
            let mut after = before.clone();
            after.insert(format!("a-new-one-{i}.shop.svc.cluster.local")); // before all others: it stays where it is
            let new = given(&after);
            moved += old.iter().filter(|(host, addresses)| new[*host] != **addresses).count();
        }
        // One in fifty hits a taken slot; who has to go from it then hits another as rarely.
        assert!(moved <= 4, "{moved}");
    }

    #[test]
    fn of_two_that_meet_the_first_by_name_stays_and_the_other_goes_on() {
        let hosts = hosts(20_000);
        let alone = |host: &str| give([host].into_iter())[0].v4;
        let mut at: BTreeMap<Ipv4Addr, &str> = BTreeMap::new();
        let mut met = None;
        for host in &hosts {
            if let Some(first) = at.insert(alone(host), host) {
                met = Some((first, host.as_str()));
                break;
            }
        }
        let (first, second) = met.unwrap();
        let both = give([first, second].into_iter());
        assert_eq!(both[0].v4, alone(first));
        assert_ne!(both[1].v4, both[0].v4);
        assert_eq!(give([first, second].into_iter()), both);
    }

    #[test]
    fn the_addresses_of_a_name_are_the_same_in_every_release() {
        let known = give(["catalog.shop.svc.cluster.local"].into_iter())[0];
        assert_eq!(known.v4.to_string(), "240.254.182.65");
        assert_eq!(known.v6.to_string(), "2001:2:0:fed5:2314:faf8:58e1:3b29");
    }

    #[test]
    fn probing_comes_by_every_slot() {
        for seed in [0, 127, 126, 12_345, u32::MAX] {
            assert_eq!(probe(seed % V4_SLOTS, seed).collect::<HashSet<_>>().len(), V4_SLOTS as usize);
        }
    }
}
