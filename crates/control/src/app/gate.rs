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
//! Members stay; a further one is refused at their limit. Where a certificate makes a member, its identity is what is counted.
//!
//! Of IPv6 whoever has an address may have all of its network of 64 bits; a node's Pods may share one, too. So an address has its
//! share, its network another, and an address of which an instance is known is like one of IPv4.

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use outrigger_model::identity::SpiffeId;
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

impl Limits {
    fn strangers_per_network(&self) -> usize {
        of_network(self.strangers).max(self.strangers_per_source)
    }

    fn members_of(&self, tally: &Tally) -> usize {
        match tally {
            Tally::Ring(Ring::Source(_)) | Tally::Part(..) => self.members_per_source,
            Tally::Ring(Ring::Network(_)) => of_network(self.members).max(self.members_per_source),
            Tally::Identity(_) => (self.members / 2).max(self.members_per_source),
        }
    }
}

/// One network does not fill the port, nor one of its addresses what it has.
fn of_network(all: usize) -> usize {
    all * 3 / 4
}

/// Where connections come from, as far as they are counted together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Source {
    Address(IpAddr),
    /// A user of this host.
    User(u32),
}

impl From<IpAddr> for Source {
    fn from(ip: IpAddr) -> Self {
        Self::Address(ip.to_canonical())
    }
}

/// A source and what it is part of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Ring {
    Source(Source),
    /// The first 64 bits of addresses of which nobody is known.
    Network(u64),
}

/// What a member is counted by.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Tally {
    Ring(Ring),
    Identity(SpiffeId),
    /// What of an identity comes from one source: one Pod that runs wild leaves others of its account their places.
    Part(SpiffeId, Source),
}

/// Where a connection comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Origin {
    source: Source,
    network: Option<u64>,
}

impl Origin {
    fn widest(self) -> Ring {
        self.network.map_or(Ring::Source(self.source), Ring::Network)
    }

    fn tallies(self) -> Vec<Tally> {
        let rings = [Some(Ring::Source(self.source)), self.network.map(Ring::Network)];
        rings.into_iter().flatten().map(Tally::Ring).collect()
    }
}

/// Whether an instance has an address.
pub(super) type Known = dyn Fn(IpAddr) -> bool + Send + Sync;

/// The count of one listener; cheap to clone.
#[derive(Clone)]
pub(super) struct Gate {
    shared: Arc<GateInner>,
}

struct GateInner {
    limits: Limits,
    known: Arc<Known>,
    state: Mutex<Seats>,
}

#[derive(Default)]
struct Seats {
    next: u64,
    /// By origin, the oldest first; an origin without any has no entry.
    strangers: HashMap<Origin, BTreeMap<u64, Arc<Notify>>>,
    /// How many there are of each origin's widest ring.
    crowds: HashMap<Ring, usize>,
    stranger_count: usize,
    members: HashMap<Tally, usize>,
    member_count: usize,
    /// Connections that were ended or refused for want of room.
    shed: u64,
}

/// One connection's place; given back when dropped.
pub(crate) struct Ticket {
    shared: Arc<GateInner>,
    origin: Origin,
    number: u64,
    evicted: Arc<Notify>,
    /// What a member is counted by.
    member: Mutex<Option<Vec<Tally>>>,
}

impl Gate {
    pub(super) fn new(limits: Limits, known: Arc<Known>) -> Self {
        Self { shared: Arc::new(GateInner { limits, known, state: Mutex::default() }) }
    }

    /// A place for a stranger, made where there is none.
    pub(super) fn admit(&self, source: Source) -> Ticket {
        let (limits, origin) = (self.shared.limits, self.origin(source));
        let mut state = self.shared.state.lock();
        let own = state.strangers.get(&origin).map_or(0, BTreeMap::len);
        let ring = origin.widest();
        let near = state.crowds.get(&ring).copied().unwrap_or(0);
        if own >= limits.strangers_per_source {
            state.evict_oldest(origin);
        } else if origin.network.is_some() && near >= limits.strangers_per_network() {
            state.evict(ring);
        } else if state.stranger_count >= limits.strangers {
            let greediest =
                state.greediest().filter(|(_, count)| *count > near).map_or(ring, |(ring, _)| ring);
            state.evict(greediest);
        }
        let number = state.next;
        state.next += 1;
        let evicted = Arc::new(Notify::new());
        state.strangers.entry(origin).or_default().insert(number, evicted.clone());
        *state.crowds.entry(ring).or_default() += 1;
        state.stranger_count += 1;
        Ticket { shared: self.shared.clone(), origin, number, evicted, member: Mutex::default() }
    }

    fn origin(&self, source: Source) -> Origin {
        let network = match source {
            Source::Address(IpAddr::V6(v6)) if !(self.shared.known)(v6.into()) => {
                u64::try_from(v6.to_bits() >> 64).ok()
            }
            Source::Address(_) | Source::User(_) => None,
        };
        Origin { source, network }
    }

    /// Strangers, members, and how many connections had to go for want of room.
    pub(super) fn counts(&self) -> (usize, usize, u64) {
        let state = self.shared.state.lock();
        (state.stranger_count, state.member_count, state.shed)
    }
}

impl Seats {
    fn greediest(&self) -> Option<(Ring, usize)> {
        self.crowds.iter().map(|(ring, count)| (*ring, *count)).max_by_key(|(_, count)| *count)
    }

    /// Of whom there are most in this ring, the oldest goes; of several, the oldest of them.
    fn evict(&mut self, ring: Ring) {
        let within = self.strangers.iter().filter(|(origin, _)| origin.widest() == ring);
        let most = within.max_by_key(|(_, of)| (of.len(), Reverse(of.keys().next().copied())));
        if let Some(origin) = most.map(|(origin, _)| *origin) {
            self.evict_oldest(origin);
        }
    }

    fn evict_oldest(&mut self, origin: Origin) {
        let oldest = self.strangers.get(&origin).and_then(|of| of.keys().next().copied());
        if let Some(notify) = oldest.and_then(|number| self.forget(origin, number)) {
            notify.notify_one();
            self.shed += 1;
        }
    }

    fn forget(&mut self, origin: Origin, number: u64) -> Option<Arc<Notify>> {
        let of = self.strangers.get_mut(&origin)?;
        let found = of.remove(&number)?;
        if of.is_empty() {
            self.strangers.remove(&origin);
        }
        self.stranger_count -= 1;
        let ring = origin.widest();
        if let Some(crowd) = self.crowds.get_mut(&ring) {
            *crowd -= 1;
            if *crowd == 0 {
                self.crowds.remove(&ring);
            }
        }
        Some(found)
    }
}

impl Ticket {
    /// The connection is of somebody who may: it is not ended for others any more. `false` when there are as many of these
    /// as there may be, or this one had to go already.
    pub(crate) fn promote(&self) -> bool {
        self.join(self.origin.tallies())
    }

    /// The same of somebody who has proved an identity, wherever it is.
    pub(super) fn promote_as(&self, identity: &SpiffeId) -> bool {
        let part = Tally::Part(identity.clone(), self.origin.source);
        self.join(vec![Tally::Identity(identity.clone()), part])
    }

    fn join(&self, tallies: Vec<Tally>) -> bool {
        let mut member = self.member.lock();
        if member.is_some() {
            return true;
        }
        let limits = self.shared.limits;
        let mut state = self.shared.state.lock();
        let is_taken =
            |tally: &Tally| state.members.get(tally).is_some_and(|own| *own >= limits.members_of(tally));
        if state.member_count >= limits.members || tallies.iter().any(is_taken) {
            state.shed += 1;
            return false;
        }
        if state.forget(self.origin, self.number).is_none() {
            return false;
        }
        for tally in &tallies {
            *state.members.entry(tally.clone()).or_default() += 1;
        }
        state.member_count += 1;
        *member = Some(tallies);
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
        let Some(tallies) = self.member.get_mut().take() else {
            state.forget(self.origin, self.number);
            return;
        };
        state.member_count -= 1;
        for tally in tallies {
            if let Some(own) = state.members.get_mut(&tally) {
                *own -= 1;
                if *own == 0 {
                    state.members.remove(&tally);
                }
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

    fn gate(limits: Limits) -> Gate {
        Gate::new(limits, Arc::new(|_| false))
    }

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
        let gate = gate(LIMITS);
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
        let gate = gate(LIMITS);
        let honest = gate.admit(from(2));
        let crowd: Vec<Ticket> = (0..50).map(|_| gate.admit(from(1))).collect();
        assert!(!gone(&honest));
        assert_eq!(crowd.iter().filter(|ticket| gone(ticket)).count(), 45);
        assert!(!gone(&crowd[49]), "the last one in is the last one to go");
    }

    #[test]
    fn a_member_is_never_ended_and_members_have_limits_of_their_own() {
        let gate = gate(LIMITS);
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

    fn six(text: &str) -> Source {
        text.parse::<IpAddr>().unwrap().into()
    }

    #[test]
    fn one_address_does_not_fill_its_networks_share_nor_one_network_the_port() {
        assert_eq!(six("::ffff:10.0.0.1"), Source::from(IpAddr::from([10, 0, 0, 1])));
        let limits = Limits { strangers: 16, strangers_per_source: 4, members: 16, members_per_source: 4 };
        let gate = gate(limits);
        let neighbour = gate.admit(six("2001:db8::1"));
        let elsewhere: Vec<Ticket> = (0..4).map(|n| gate.admit(from(n))).collect();
        let crowd: Vec<Ticket> = (0..50).map(|_| gate.admit(six("2001:db8::2"))).collect();
        assert_eq!(crowd.iter().filter(|ticket| !gone(ticket)).count(), 4);
        assert!(!gone(&neighbour), "of the same /64");
        // Whoever has all addresses of a network has twelve of sixteen places, and of these the one that has most goes first.
        let many: Vec<Ticket> = (0..50).map(|n| gate.admit(six(&format!("2001:db8::1:{n:x}")))).collect();
        assert_eq!(gate.shared.state.lock().crowds[&Ring::Network(0x2001_0db8_0000_0000)], 12);
        assert!(!elsewhere.iter().any(gone));
        let others: Vec<Ticket> = (10..20).map(|n| gate.admit(from(n))).collect();
        assert!(!others.iter().any(gone) && !elsewhere.iter().any(gone), "the network makes room for them");
        assert!(!gone(&many[49]), "of those that have as many the last one in is the last one to go");

        // Members, where nobody proves an identity: as many.
        let gate = self::gate(limits);
        let let_in = |source: Source| {
            let ticket = gate.admit(source);
            ticket.promote().then_some(ticket)
        };
        let one: Vec<Ticket> = (0..6).filter_map(|_| let_in(six("2001:db8::2"))).collect();
        let all: Vec<Ticket> = (0..20).filter_map(|n| let_in(six(&format!("2001:db8::1:{n:x}")))).collect();
        let rest: Vec<Ticket> = (0..20).filter_map(|n| let_in(from(n))).collect();
        assert_eq!((one.len(), all.len(), rest.len()), (4, 8, 4));
        drop((one, all, rest));
        let state = gate.shared.state.lock();
        assert!(state.members.is_empty() && state.crowds.is_empty());
    }

    #[test]
    fn pods_that_are_known_are_sources_of_their_own_whatever_network_they_share() {
        let node = |n: u32| six(&format!("2001:db8::{n:x}"));
        let pods = |ip: IpAddr| matches!(ip, IpAddr::V6(v6) if v6.segments()[7] < 0x100);
        let gate = Gate::new(Shares::of(1 << 20).xds, Arc::new(pods));
        // After a restart of the control plane all of them come at once, and a crowd of the same network before them.
        let crowd: Vec<Ticket> = (0..600).map(|n| gate.admit(node(0x100 + n))).collect();
        let all: Vec<Ticket> = (0..0x100).map(|n| gate.admit(node(n))).collect();
        assert!(!all.iter().any(gone), "the crowd makes room");
        assert_eq!(crowd.iter().filter(|ticket| !gone(ticket)).count(), 512 - 0x100);
    }

    #[test]
    fn members_are_counted_by_what_they_have_proved_wherever_they_are() {
        let gate = gate(Shares::of(1 << 20).xds);
        let identity =
            |n: usize| SpiffeId::workload("cluster.local", "shop", &format!("account-{n}")).unwrap();
        let join = |n: usize, account: usize| {
            let ticket = gate.admit(six(&format!("2001:db8::{n:x}")));
            ticket.promote_as(&identity(account)).then_some(ticket)
        };
        let members: Vec<Ticket> = (0..6_000).filter_map(|n| join(n, n % 8)).collect();
        assert_eq!(members.len(), 6_000, "of one /64");
        let host: Vec<Ticket> = (0..20_000).map_while(|_| join(0xffff, 98)).collect();
        assert_eq!(host.len(), 5_000, "a source of it a quarter");
        drop(host);
        let wild: Vec<Ticket> = (0..20_000).map_while(|n| join(n, 99)).collect();
        assert_eq!(wild.len(), 10_000, "one identity has a half");
        assert!(join(7, 7).is_some() && members[0].promote_as(&identity(0)), "again is no harm");
        drop(wild);
        assert_eq!(gate.counts().1, 6_000);
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
