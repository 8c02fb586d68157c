//! How many connections a listener has at a time, and whose they are: what keeps a crowd of silent ones from locking
//! everybody out.
//!
//! ```text
//! accepted -> stranger --promote (a certificate, or a request that was let in)--> member
//!                |
//!                +-- ended for a newcomer when there is no room
//! ```
//!
//! A stranger costs its source: when there is no room, the oldest stranger of the source that has most of them goes. So a
//! newcomer from elsewhere always comes in, and whoever needs milliseconds to show a certificate is hardly ever the oldest.
//! Members stay; a further one is refused at their limit.

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::Notify;

/// Connections at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Limits {
    pub(super) members: usize,
    pub(super) members_per_source: usize,
    pub(super) strangers: usize,
    pub(super) strangers_per_source: usize,
}

/// Where connections come from, as far as they are counted together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Source {
    /// An IPv4 address, or an IPv6 network of 64 bits: whoever has one has all of its addresses.
    Address(IpAddr),
    /// A user of this host.
    User(u32),
}

impl From<IpAddr> for Source {
    fn from(ip: IpAddr) -> Self {
        match ip.to_canonical() {
            IpAddr::V6(v6) => {
                let network = v6.to_bits() & !u128::from(u64::MAX);
                Self::Address(Ipv6Addr::from_bits(network).into())
            }
            v4 => Self::Address(v4),
        }
    }
}

/// The count of one listener; cheap to clone.
#[derive(Clone)]
pub(super) struct Gate {
    shared: Arc<GateInner>,
}

struct GateInner {
    limits: Limits,
    state: Mutex<Seats>,
}

#[derive(Default)]
struct Seats {
    next: u64,
    /// By source, the oldest first; a source without any has no entry.
    strangers: HashMap<Source, BTreeMap<u64, Arc<Notify>>>,
    stranger_count: usize,
    members: HashMap<Source, usize>,
    member_count: usize,
    /// Connections that were ended or refused for want of room.
    shed: u64,
}

/// One connection's place; given back when dropped.
pub(crate) struct Ticket {
    shared: Arc<GateInner>,
    source: Source,
    number: u64,
    evicted: Arc<Notify>,
    member: Mutex<bool>,
}

impl Gate {
    pub(super) fn new(limits: Limits) -> Self {
        Self { shared: Arc::new(GateInner { limits, state: Mutex::default() }) }
    }

    /// A place for a stranger, made where there is none.
    pub(super) fn admit(&self, source: Source) -> Ticket {
        let limits = self.shared.limits;
        let mut state = self.shared.state.lock();
        let own = state.strangers.get(&source).map_or(0, BTreeMap::len);
        if own >= limits.strangers_per_source {
            state.evict(source);
        } else if state.stranger_count >= limits.strangers {
            let greediest = state.greediest().filter(|(_, count)| *count > own).map_or(source, |(s, _)| s);
            state.evict(greediest);
        }
        let number = state.next;
        state.next += 1;
        let evicted = Arc::new(Notify::new());
        state.strangers.entry(source).or_default().insert(number, evicted.clone());
        state.stranger_count += 1;
        Ticket { shared: self.shared.clone(), source, number, evicted, member: Mutex::new(false) }
    }

    /// Strangers, members, and how many connections had to go for want of room.
    pub(super) fn counts(&self) -> (usize, usize, u64) {
        let state = self.shared.state.lock();
        (state.stranger_count, state.member_count, state.shed)
    }
}

impl Seats {
    fn greediest(&self) -> Option<(Source, usize)> {
        self.strangers.iter().map(|(source, of)| (*source, of.len())).max_by_key(|(_, count)| *count)
    }

    fn evict(&mut self, source: Source) {
        let oldest = self.strangers.get(&source).and_then(|of| of.keys().next().copied());
        if let Some(notify) = oldest.and_then(|number| self.forget(source, number)) {
            notify.notify_one();
            self.shed += 1;
        }
    }

    fn forget(&mut self, source: Source, number: u64) -> Option<Arc<Notify>> {
        let of = self.strangers.get_mut(&source)?;
        let found = of.remove(&number)?;
        if of.is_empty() {
            self.strangers.remove(&source);
        }
        self.stranger_count -= 1;
        Some(found)
    }
}

impl Ticket {
    /// The connection is of somebody who may: it is not ended for others any more. `false` when there are as many of these
    /// as there may be, or this one had to go already.
    pub(crate) fn promote(&self) -> bool {
        let mut member = self.member.lock();
        if *member {
            return true;
        }
        let limits = self.shared.limits;
        let mut state = self.shared.state.lock();
        let own = state.members.get(&self.source).copied().unwrap_or(0);
        if state.member_count >= limits.members || own >= limits.members_per_source {
            state.shed += 1;
            return false;
        }
        if state.forget(self.source, self.number).is_none() {
            return false;
        }
        *state.members.entry(self.source).or_default() += 1;
        state.member_count += 1;
        *member = true;
        true
    }

    /// Resolves when the connection must go.
    pub(super) async fn evicted(&self) {
        self.evicted.notified().await;
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let mut state = self.shared.state.lock();
        if !*self.member.get_mut() {
            state.forget(self.source, self.number);
            return;
        }
        state.member_count -= 1;
        if let Some(own) = state.members.get_mut(&self.source) {
            *own -= 1;
            if *own == 0 {
                state.members.remove(&self.source);
            }
        }
    }
}

/// How the descriptors of the process are shared out, so that no listener can take what another needs.
#[derive(Debug, Clone, Copy)]
pub(super) struct Shares {
    pub(super) xds: Limits,
    pub(super) management: Limits,
    pub(super) injector: Limits,
    pub(super) socket: Limits,
    pub(super) otlp: Limits,
    pub(super) query: Limits,
}

/// The store, the authority, registry files and their watches, listeners, the runtime; and the metrics port, which limits
/// itself to 64.
const OWN: u64 = 128;

impl Shares {
    /// For a process that may have so many descriptors. Of sixteen parts sidecars have seven, those that are about to be
    /// three, the socket two, and one each of the others; with as many as are wanted the rest is spare.
    pub(super) fn of(descriptors: u64) -> Self {
        let part = usize::try_from(descriptors.saturating_sub(OWN) / 16).unwrap_or(usize::MAX).max(4);
        let limits = |members: usize, strangers: usize| Limits {
            members,
            members_per_source: (members / 4).max(4),
            strangers,
            strangers_per_source: (strangers / 4).max(2),
        };
        let small = |parts: usize| {
            let all = (parts * part).min(256);
            limits(all / 2, all - all / 2)
        };
        let socket = small(2);
        Self {
            xds: limits((7 * part).min(20_000), (3 * part).min(512)),
            management: small(1),
            injector: small(1),
            // One user has all of it: whoever can open it is an operator.
            socket: Limits {
                members_per_source: socket.members,
                strangers_per_source: socket.strangers,
                ..socket
            },
            otlp: small(1),
            query: small(1),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits =
        Limits { members: 4, members_per_source: 2, strangers: 6, strangers_per_source: 5 };

    fn from(n: u8) -> Source {
        IpAddr::from([10, 0, 0, n]).into()
    }

    fn all(shares: &Shares) -> [Limits; 6] {
        [shares.xds, shares.management, shares.injector, shares.socket, shares.otlp, shares.query]
    }

    fn gone(ticket: &Ticket) -> bool {
        use std::task::{Context, Poll, Waker};
        let mut evicted = std::pin::pin!(ticket.evicted());
        evicted.as_mut().poll(&mut Context::from_waker(Waker::noop())) == Poll::Ready(())
    }

    #[test]
    fn a_newcomer_takes_the_place_of_the_oldest_stranger_of_the_greediest_source() {
        let gate = Gate::new(LIMITS);
        let crowd: Vec<Ticket> = (0..5).map(|_| gate.admit(from(1))).collect();
        let honest = gate.admit(from(2));
        assert!(!crowd.iter().any(gone), "there was room");
        let late = gate.admit(from(3));
        assert_eq!(crowd.iter().map(gone).collect::<Vec<_>>(), [true, false, false, false, false]);
        assert!(!gone(&honest) && !gone(&late));
        assert_eq!(gate.counts(), (6, 0, 1));
        drop((crowd, honest, late));
        assert_eq!(gate.counts(), (0, 0, 1), "every place is given back once");
    }

    #[test]
    fn a_source_at_its_own_limit_costs_nobody_else() {
        let gate = Gate::new(LIMITS);
        let honest = gate.admit(from(2));
        let crowd: Vec<Ticket> = (0..50).map(|_| gate.admit(from(1))).collect();
        assert!(!gone(&honest));
        assert_eq!(crowd.iter().filter(|ticket| gone(ticket)).count(), 45);
        assert!(!gone(&crowd[49]), "the last one in is the last one to go");
    }

    #[test]
    fn a_member_is_never_ended_and_members_have_limits_of_their_own() {
        let gate = Gate::new(LIMITS);
        let members: Vec<Ticket> = (0..2).map(|_| gate.admit(from(1))).collect();
        assert!(members.iter().all(Ticket::promote) && members[0].promote(), "again is no harm");
        let third = gate.admit(from(1));
        assert!(!third.promote(), "two of one source");
        let others: Vec<Ticket> = [2, 2, 3].into_iter().map(|n| gate.admit(from(n))).collect();
        assert_eq!(others.iter().map(Ticket::promote).collect::<Vec<_>>(), [true, true, false]);
        let crowd: Vec<Ticket> = (0..50).map(|_| gate.admit(from(1))).collect();
        assert!(!members.iter().any(gone));
        assert!(!crowd[0].promote(), "one that had to go is nobody's any more");
        drop(members);
        assert!(third.promote() || gone(&third));
    }

    #[test]
    fn addresses_of_one_network_of_ipv6_are_one_source() {
        let source = |text: &str| Source::from(text.parse::<IpAddr>().unwrap());
        assert_eq!(source("2001:db8::1"), source("2001:db8::ffff:1"));
        assert_ne!(source("2001:db8::1"), source("2001:db8:0:1::1"));
        assert_eq!(source("::ffff:10.0.0.1"), source("10.0.0.1"));
    }

    #[test]
    fn all_listeners_together_leave_descriptors_for_the_process_itself() {
        for descriptors in [256, 512, 1024, 4096, 1 << 20] {
            let shares = Shares::of(descriptors);
            let sum: usize = all(&shares).iter().map(|limits| limits.members + limits.strangers).sum();
            assert!(sum as u64 + OWN <= descriptors, "{descriptors}: {shares:?}");
            for limits in all(&shares) {
                assert!(limits.members >= limits.members_per_source && limits.members_per_source >= 2);
                assert!(limits.strangers >= limits.strangers_per_source && limits.strangers_per_source >= 2);
            }
        }
    }
}
