//! Who has a connection to an admin port. Health checkers and scrapers ask here, among whoever else reaches the port: a crowd that
//! says nothing must not keep them out.
//!
//! A connection that waits for a request may be ended for a newcomer: of the source that has most of these, the one that has waited
//! longest. One whose answer is being made stays; who is slow to take a long one waits again. A source has a quarter of all, but for those
//! of this host. Where all are being answered, which can take long (what asks the application in somebody's place), the source that has
//! most loses its youngest to one that has fewer.
//!
//! Of IPv6 whoever has an address may have all of its network of 64 bits, and whoever asks for a Pod's health may be in the Pods' own. So
//! an address is a source within its network, which has three quarters of all and is judged as one source beside others.

use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::Notify;

/// All connections of a port.
pub(super) struct Crowd {
    most: usize,
    state: Mutex<Occupancy>,
}

#[derive(Default)]
struct Occupancy {
    next: u64,
    /// In no order; few.
    all: Vec<Entry>,
}

struct Entry {
    number: u64,
    origin: Origin,
    /// Since when it waits, as a number; absent while it is being answered.
    waits: Option<u64>,
    leave: Arc<Notify>,
}

/// Where a connection comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Origin {
    address: IpAddr,
    /// Of IPv6 its network of 64 bits, else the address.
    network: IpAddr,
}

/// One connection's place; given back when dropped.
pub(super) struct Place {
    crowd: Arc<Crowd>,
    number: u64,
    leave: Arc<Notify>,
}

impl Crowd {
    pub(super) fn new(most: usize) -> Arc<Self> {
        Arc::new(Self { most, state: Mutex::default() })
    }

    /// A place, made where there is none; `None` where all are being answered.
    pub(super) fn admit(self: &Arc<Self>, from: IpAddr) -> Option<Place> {
        let origin = Origin::of(from);
        let share = if origin.address.is_loopback() { self.most } else { (self.most / 4).max(1) };
        let of_network = (self.most * 3 / 4).max(share);
        let mut state = self.state.lock();
        let is_near = |one: &Origin| one.network == origin.network;
        if state.count(|one| one.address == origin.address) >= share {
            state.end_waiting(|one| one.address == origin.address)?;
        } else if state.count(is_near) >= of_network {
            state.end_waiting(is_near).or_else(|| state.end_of_greediest(&origin, is_near))?;
        } else if state.all.len() >= self.most {
            state.end_waiting(|_| true).or_else(|| state.end_of_greediest(&origin, |_| true))?;
        }
        let (number, leave) = (state.tick(), Arc::new(Notify::new()));
        state.all.push(Entry { number, origin, waits: Some(number), leave: leave.clone() });
        Some(Place { crowd: self.clone(), number, leave })
    }
}

impl Origin {
    fn of(from: IpAddr) -> Self {
        let address = from.to_canonical();
        let network = match address {
            IpAddr::V6(v6) if !v6.is_loopback() => {
                Ipv6Addr::from_bits(v6.to_bits() & !u128::from(u64::MAX)).into()
            }
            other => other,
        };
        Self { address, network }
    }
}

impl Occupancy {
    fn tick(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    fn count(&self, is_it: impl Fn(&Origin) -> bool) -> usize {
        self.all.iter().filter(|entry| is_it(&entry.origin)).count()
    }

    fn waiting(&self, is_it: impl Fn(&Origin) -> bool) -> usize {
        self.all.iter().filter(|entry| entry.waits.is_some() && is_it(&entry.origin)).count()
    }

    /// Ends one of these that waits, of the network and the address that have most of those.
    fn end_waiting(&mut self, is_among: impl Fn(&Origin) -> bool) -> Option<()> {
        let among =
            self.all.iter().enumerate().filter(|(_, entry)| entry.waits.is_some() && is_among(&entry.origin));
        let (at, _) = among.max_by_key(|(_, entry)| {
            let near = self.waiting(|one| one.network == entry.origin.network);
            let own = self.waiting(|one| one.address == entry.origin.address);
            (near, own, std::cmp::Reverse(entry.waits))
        })?;
        self.all.swap_remove(at).leave.notify_one();
        Some(())
    }

    /// Ends the youngest of whom has most among these, if the newcomer's would not have as many then: of networks, and within one of
    /// addresses.
    fn end_of_greediest(&mut self, newcomer: &Origin, is_among: impl Fn(&Origin) -> bool) -> Option<()> {
        let near = |whose: &Origin| self.count(|one| one.network == whose.network);
        let own = |whose: &Origin| self.count(|one| one.address == whose.address);
        let among = self.all.iter().enumerate().filter(|(_, entry)| is_among(&entry.origin));
        let (at, entry) =
            among.max_by_key(|(_, entry)| (near(&entry.origin), own(&entry.origin), entry.number))?;
        let has_more = match entry.origin.network == newcomer.network {
            true => own(&entry.origin) > own(newcomer) + 1,
            false => near(&entry.origin) > near(newcomer) + 1,
        };
        has_more.then_some(())?;
        self.all.swap_remove(at).leave.notify_one();
        Some(())
    }
}

impl Place {
    /// Ready when the connection has to go.
    pub(super) async fn lost(&self) {
        self.leave.notified().await;
    }

    /// A request has come, or was answered.
    pub(super) fn is_asked(&self, asked: bool) {
        let mut state = self.crowd.state.lock();
        let now = state.tick();
        if let Some(entry) = state.all.iter_mut().find(|entry| entry.number == self.number) {
            entry.waits = (!asked).then_some(now);
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.crowd.state.lock().all.retain(|entry| entry.number != self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(last: u8) -> IpAddr {
        [192, 0, 2, last].into()
    }

    /// Whether it still has its place.
    fn is_in(place: &Place) -> bool {
        place.crowd.state.lock().all.iter().any(|entry| entry.number == place.number)
    }

    #[test]
    fn a_crowd_of_one_source_has_a_quarter_and_makes_room_for_itself_alone() {
        let crowd = Crowd::new(8);
        let checker = crowd.admit(ip(1)).unwrap();
        let silent: Vec<_> = (0..8).map(|_| crowd.admit(ip(2)).unwrap()).collect();
        assert!(is_in(&checker));
        assert_eq!(
            silent.iter().map(is_in).collect::<Vec<_>>(),
            [[false; 6].as_slice(), &[true; 2]].concat()
        );
    }

    #[test]
    fn a_newcomer_comes_in_whoever_is_silent() {
        let crowd = Crowd::new(8);
        let many: Vec<_> = (0..8).map(|n| crowd.admit(ip(10 + n / 2)).unwrap()).collect();
        many[0].is_asked(true);
        let newcomer = crowd.admit(ip(1)).unwrap();
        assert!(is_in(&newcomer) && is_in(&many[0]), "who is being answered stays");
        assert!(!is_in(&many[2]), "the oldest of a source that has most");
        assert_eq!(crowd.state.lock().all.len(), 8);
        // It waits again, and as the last.
        many[0].is_asked(false);
        crowd.admit(ip(3)).unwrap();
        assert!(is_in(&many[0]) && !is_in(&many[1]));
    }

    #[test]
    fn where_all_are_answered_nobody_comes_in() {
        let crowd = Crowd::new(4);
        let all: Vec<_> = (0..4).map(|n| crowd.admit(ip(n)).unwrap()).collect();
        all.iter().for_each(|place| place.is_asked(true));
        assert!(crowd.admit(ip(9)).is_none());
        drop(all);
        assert!(crowd.admit(ip(9)).is_some());
    }

    #[test]
    fn where_all_are_answered_who_has_most_makes_room() {
        let crowd = Crowd::new(8);
        let many: Vec<_> = (0..8).map(|n| crowd.admit(ip(10 + n / 2)).unwrap()).collect();
        many.iter().for_each(|place| place.is_asked(true));
        let newcomer = crowd.admit(ip(1)).unwrap();
        newcomer.is_asked(true);
        assert!(is_in(&newcomer) && !is_in(&many[7]), "the youngest of a source that has two");
        // One more would be two of the newcomer's, as the others have.
        assert!(crowd.admit(ip(1)).is_none());
        assert_eq!(crowd.state.lock().all.len(), 8);
    }

    #[test]
    fn this_host_may_have_all() {
        let crowd = Crowd::new(4);
        let all: Vec<_> = (0..4).map(|_| crowd.admit([127, 0, 0, 1].into()).unwrap()).collect();
        assert!(all.iter().all(is_in));
    }

    fn six(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn one_address_does_not_fill_its_networks_share_nor_one_network_the_port() {
        assert_eq!(Origin::of(six("::ffff:192.0.2.1")), Origin::of(ip(1)));
        let crowd = Crowd::new(16);
        // A Pod asks what takes long, as often as it may; the kubelet, from the gateway of the same network, comes in all the same.
        let slow: Vec<_> = (0..6).filter_map(|_| admit_asked(&crowd, six("2001:db8::7"))).collect();
        assert_eq!(slow.len(), 4);
        let kubelet = admit_asked(&crowd, six("2001:db8::1")).unwrap();
        // Whoever has all addresses of the network has twelve of sixteen, and costs nobody else.
        let many: Vec<_> =
            (0..20).filter_map(|n| admit_asked(&crowd, six(&format!("2001:db8::1:{n:x}")))).collect();
        assert_eq!(crowd.state.lock().all.len(), 12);
        assert!(is_in(&kubelet) && slow.iter().any(is_in) && many.iter().any(is_in));
        let others: Vec<_> = (0..4).filter_map(|n| admit_asked(&crowd, ip(n))).collect();
        assert_eq!(others.len(), 4);
        let newcomer = admit_asked(&crowd, ip(9)).unwrap();
        assert!(is_in(&newcomer) && others.iter().all(is_in), "the network makes room, as one source");
        // So does one of it that waits, however many wait elsewhere, one for each address.
        let crowd = Crowd::new(16);
        let many: Vec<_> =
            (0..12).map(|n| crowd.admit(six(&format!("2001:db8::1:{n:x}"))).unwrap()).collect();
        let checker: Vec<_> = (0..4).map(|_| crowd.admit(ip(1)).unwrap()).collect();
        let newcomer = crowd.admit(ip(2)).unwrap();
        assert!(is_in(&newcomer) && checker.iter().all(is_in) && !is_in(&many[0]));
    }

    fn admit_asked(crowd: &Arc<Crowd>, from: IpAddr) -> Option<Place> {
        let place = crowd.admit(from)?;
        place.is_asked(true);
        Some(place)
    }
}
