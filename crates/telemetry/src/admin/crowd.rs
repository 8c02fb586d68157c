//! Who has a connection to an admin port. Health checkers and scrapers ask here, among whoever else reaches the port: a crowd that
//! says nothing must not keep them out.
//!
//! A connection that waits for a request may be ended for a newcomer: of the source that has most of these, the one that has waited
//! longest. One whose answer is being made stays; who is slow to take a long one waits again. A source has a quarter of all, but for those
//! of this host. Where all are being answered, which can take long (what asks the application in somebody's place), the source that has
//! most loses its youngest to one that has fewer.

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
    source: IpAddr,
    /// Since when it waits, as a number; absent while it is being answered.
    waits: Option<u64>,
    leave: Arc<Notify>,
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
        let source = source(from);
        let share = if source.is_loopback() { self.most } else { (self.most / 4).max(1) };
        let mut state = self.state.lock();
        if state.of(source) >= share {
            state.end_one(Some(source))?;
        } else if state.all.len() >= self.most {
            state.end_one(None).or_else(|| state.end_of_greediest(source))?;
        }
        let (number, leave) = (state.tick(), Arc::new(Notify::new()));
        state.all.push(Entry { number, source, waits: Some(number), leave: leave.clone() });
        Some(Place { crowd: self.clone(), number, leave })
    }
}

impl Occupancy {
    fn tick(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    fn of(&self, source: IpAddr) -> usize {
        self.all.iter().filter(|entry| entry.source == source).count()
    }

    /// Ends one that waits: of this source, or of that which has most of those.
    fn end_one(&mut self, of: Option<IpAddr>) -> Option<()> {
        let waiting = |source: IpAddr| {
            self.all.iter().filter(|entry| entry.source == source && entry.waits.is_some()).count()
        };
        let among = self
            .all
            .iter()
            .enumerate()
            .filter(|(_, entry)| entry.waits.is_some() && of.is_none_or(|source| entry.source == source));
        let (at, _) =
            among.max_by_key(|(_, entry)| (waiting(entry.source), std::cmp::Reverse(entry.waits)))?;
        self.all.swap_remove(at).leave.notify_one();
        Some(())
    }

    /// Ends the youngest of the source that has most, if the newcomer's would not have as many then.
    fn end_of_greediest(&mut self, newcomer: IpAddr) -> Option<()> {
        let all = self.all.iter().enumerate();
        let (at, entry) = all.max_by_key(|(_, entry)| (self.of(entry.source), entry.number))?;
        (self.of(entry.source) > self.of(newcomer) + 1).then_some(())?;
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

/// Who has an IPv6 address has all of its network of 64 bits.
fn source(from: IpAddr) -> IpAddr {
    match from.to_canonical() {
        IpAddr::V6(v6) if !v6.is_loopback() => {
            Ipv6Addr::from_bits(v6.to_bits() & !u128::from(u64::MAX)).into()
        }
        other => other,
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
        assert_eq!(source("2001:db8::1:2:3:4".parse().unwrap()), source("2001:db8::9".parse().unwrap()));
        assert_eq!(source("::ffff:192.0.2.1".parse().unwrap()), ip(1));
    }
}
