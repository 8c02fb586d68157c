//! What clients may make a worker hold, and who goes when that is used up.
//!
//! A worker's share of the process's limit is handed out in advance: for each stream of HTTP/2, for each head beyond a
//! buffer. A connection that would take too much of it is refused more; where all of it is taken, the connection that holds
//! the most goes, or the idle ones do, and only then is the newcomer refused. Bytes that nobody takes, of bodies and of tunnels,
//! are bounded per connection ([`crate::http::window`]); they are not handed out, since nearly all windows stay empty. So they
//! are only counted, and where the process really comes near its limit those that made most of them go: one that has many, or of many
//! that have few as many as have come since the last look.
//!
//! Cells of one thread; nothing here is shared between workers.

use std::cell::{Cell, RefCell};
use std::cmp::Reverse;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use h2::Reason;
use outrigger_telemetry::metrics::Page;
use slab::Slab;
use tokio::time::Instant;

use crate::alarm::Place;
use crate::http::window;

mod limit;

pub use limit::{Budget, resident};

/// What an open stream of HTTP/2 takes besides its head: its task, the request's state, the connection's record of it, and
/// as much again towards the upstream.
pub const STREAM: usize = 16 * 1024;

/// A field of a head in memory, besides its name and value: in the h2 crate's map, and once more for the upstream.
pub const FIELD: usize = 2 * 120;

/// How often streams wait with bytes that nobody takes before the process's memory is looked at: 8 MiB at most.
const LOOK: u32 = 32;

/// But no sooner than this after a look that found room: a look is a file that is read.
const PAUSE: Duration = Duration::from_millis(5);

/// What was shed, of all workers.
#[derive(Debug, Default)]
pub struct Shed {
    refused: AtomicU64,
    closed: [AtomicU64; 2],
}

impl Shed {
    /// For the metrics page.
    pub fn write(&self, page: &mut Page) {
        let help = "Requests refused because clients held all memory that is handed out.";
        page.counter("outrigger_shed_requests_total", help).sample((), self.refused.load(Relaxed));
        let help = "Connections closed to free memory or descriptors.";
        let mut family = page.counter("outrigger_shed_connections_total", help);
        for (reason, closed) in ["idle", "greedy"].into_iter().zip(&self.closed) {
            family.sample([("reason", reason)], closed.load(Relaxed));
        }
    }
}

/// Why a connection is to go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Told {
    /// It has nothing to do.
    Idle,
    /// It holds the most.
    Greedy,
}

impl Told {
    /// What a peer of HTTP/2 is told.
    pub fn reason(self) -> Reason {
        match self {
            Self::Idle => Reason::NO_ERROR,
            Self::Greedy => Reason::ENHANCE_YOUR_CALM,
        }
    }
}

struct Inner {
    budget: usize,
    most_each: usize,
    /// The process's.
    limit: usize,
    held: Cell<usize>,
    /// Of those that were told to go and are still here.
    leaving: Cell<usize>,
    entries: RefCell<Slab<Rc<Entry>>>,
    parks: Cell<u32>,
    /// Streams with bytes that nobody takes, of all that were not told to go.
    parked: Cell<usize>,
    /// When there was room; nothing where there was none.
    looked: Cell<Option<std::time::Instant>>,
    /// The last look found the process near its limit.
    full: Cell<bool>,
    resident: fn() -> usize,
    shed: Arc<Shed>,
}

/// What a worker's clients hold; a clone is another handle.
#[derive(Clone)]
pub struct Ledger(Rc<Inner>);

struct Entry {
    held: Cell<usize>,
    /// Streams with bytes that nobody takes.
    parked: Cell<usize>,
    idle: Cell<Option<Instant>>,
    told: Cell<Option<Told>>,
    place: Place,
}

impl Entry {
    fn weight(&self) -> usize {
        self.held.get() + self.parked.get() * window::STREAM as usize
    }
}

/// What one connection holds.
pub struct Account {
    inner: Rc<Inner>,
    key: usize,
    entry: Rc<Entry>,
}

/// What is taken of memory that nobody will need soon, never at the cost of another connection; given back when it is dropped, which
/// is before its connection is.
pub struct Spare {
    inner: Rc<Inner>,
    entry: Rc<Entry>,
    bytes: usize,
}

/// A stream that waits with bytes that nobody takes.
pub struct Parked<'a>(&'a Account);

impl Ledger {
    /// For one of the workers that share the process's limit.
    pub fn new(budget: &Budget) -> Self {
        let inner = Inner {
            budget: budget.of_worker(),
            most_each: budget.of_worker() / 2,
            limit: budget.limit,
            held: Cell::new(0),
            leaving: Cell::new(0),
            entries: RefCell::default(),
            parks: Cell::new(0),
            parked: Cell::new(0),
            looked: Cell::new(None),
            full: Cell::new(false),
            resident: budget.resident,
            shed: budget.shed.clone(),
        };
        Self(Rc::new(inner))
    }

    /// For a new connection; `place` is rung when it is to go.
    pub fn open(&self, place: Place) -> Account {
        let entry = Rc::new(Entry {
            held: Cell::new(0),
            parked: Cell::new(0),
            idle: Cell::new(None),
            told: Cell::new(None),
            place,
        });
        let key = self.0.entries.borrow_mut().insert(entry.clone());
        Account { inner: self.0.clone(), key, entry }
    }

    /// Bytes that are handed out.
    pub fn held(&self) -> usize {
        self.0.held.get()
    }

    /// Tells up to so many idle connections to go, those that are idle for the longest first.
    pub fn shed_idle(&self, most: usize) -> usize {
        let mut idle: Vec<_> = {
            let entries = self.0.entries.borrow();
            let waits = |entry: &Rc<Entry>| entry.idle.get().filter(|_| entry.told.get().is_none());
            entries.iter().filter_map(|(_, entry)| Some((waits(entry)?, entry.clone()))).collect()
        };
        idle.sort_by_key(|(since, _)| *since);
        idle.truncate(most);
        idle.iter().for_each(|(_, entry)| self.0.tell(entry, Told::Idle));
        idle.len()
    }
}

impl Inner {
    #[inline]
    fn hold(&self, entry: &Entry, bytes: usize) {
        entry.held.set(entry.held.get() + bytes);
        self.held.set(self.held.get() + bytes);
        if entry.told.get().is_some() {
            self.leaving.set(self.leaving.get() + bytes);
        }
    }

    #[inline]
    fn give(&self, entry: &Entry, bytes: usize) {
        entry.held.set(entry.held.get() - bytes);
        self.held.set(self.held.get() - bytes);
        if entry.told.get().is_some() {
            self.leaving.set(self.leaving.get() - bytes);
        }
    }

    fn tell(&self, entry: &Entry, why: Told) {
        entry.told.set(Some(why));
        self.parked.set(self.parked.get() - entry.parked.get());
        self.leaving.set(self.leaving.get() + entry.held.get());
        self.shed.closed[why as usize].fetch_add(1, Relaxed);
        entry.place.ring();
    }

    /// The connection that weighs the most, of those to whom so much was handed out.
    fn greediest(&self, least: usize) -> Option<Rc<Entry>> {
        let entries = self.entries.borrow();
        let staying = entries.iter().map(|(_, entry)| entry).filter(|entry| entry.told.get().is_none());
        staying.filter(|entry| entry.held.get() >= least).max_by_key(|entry| entry.weight()).cloned()
    }

    fn set_parked(&self, entry: &Entry, streams: usize) {
        let before = entry.parked.replace(streams);
        if entry.told.get().is_none() {
            self.parked.set(self.parked.get() - before + streams);
        }
    }

    /// Bytes wait that nobody takes, or more of them do.
    fn wait(&self) {
        self.parks.set(self.parks.get() + 1);
        if self.parks.get() >= LOOK {
            self.look();
        }
    }

    /// Bytes that may always wait, all together: memory does not end by less.
    fn spared(&self) -> usize {
        self.budget / 4
    }

    #[cold]
    fn look(&self) {
        self.parks.set(0);
        if !self.full.get() && !self.is_long_ago() {
            return;
        }
        self.full.set((self.resident)() > self.limit / 5 * 4);
        self.looked.set(Some(std::time::Instant::now()));
        if self.full.get() {
            self.shed_greedy();
        }
    }

    fn is_long_ago(&self) -> bool {
        self.looked.get().is_none_or(|at| at.elapsed() >= PAUSE)
    }

    /// Who has very much goes. Of many that have little, as much goes as may have come since the last look.
    fn shed_greedy(&self) {
        let mut waiting: Vec<Rc<Entry>> = {
            let entries = self.entries.borrow();
            let waits = |entry: &Rc<Entry>| entry.told.get().is_none() && entry.parked.get() > 0;
            entries.iter().map(|(_, entry)| entry).filter(|entry| waits(entry)).cloned().collect()
        };
        waiting.sort_by_key(|entry| Reverse(entry.weight()));
        let all: usize = waiting.iter().map(|entry| entry.weight()).sum();
        let excess = all.saturating_sub(self.spared()).min(LOOK as usize * window::STREAM as usize);
        let mut shed = 0;
        for entry in waiting {
            let has_much = shed == 0 && entry.weight() >= self.limit / 64;
            if shed >= excess && !has_much {
                break;
            }
            shed += entry.weight();
            self.tell(&entry, Told::Greedy);
        }
    }
}

impl Account {
    /// Takes a part of what is handed out.
    #[inline]
    #[must_use]
    pub fn take(&self, bytes: usize) -> bool {
        let held = self.entry.held.get() + bytes;
        let all = self.inner.held.get() + bytes;
        if (held > self.inner.most_each || all > self.inner.budget) && !self.make_room(held, all) {
            return false;
        }
        self.inner.hold(&self.entry, bytes);
        true
    }

    /// A part of what nobody will need soon, which may grow; nothing yet.
    pub fn spare(&self) -> Spare {
        Spare { inner: self.inner.clone(), entry: self.entry.clone(), bytes: 0 }
    }

    /// Gives it back.
    #[inline]
    pub fn give(&self, bytes: usize) {
        self.inner.give(&self.entry, bytes);
    }

    #[cold]
    fn make_room(&self, held: usize, all: usize) -> bool {
        let inner = &self.inner;
        if held <= inner.most_each && self.entry.told.get().is_none() {
            if all - inner.leaving.get() <= inner.budget {
                return true;
            }
            let least = (inner.budget / 16).max(held + 1);
            if let Some(greediest) = inner.greediest(least).filter(|entry| !Rc::ptr_eq(entry, &self.entry)) {
                inner.tell(&greediest, Told::Greedy);
                return true;
            }
            // Heads that come slowly count as idle.
            if Ledger(inner.clone()).shed_idle(64) > 0 && all - inner.leaving.get() <= inner.budget {
                return true;
            }
        }
        inner.shed.refused.fetch_add(1, Relaxed);
        false
    }

    /// Since when the connection has nothing to do, if it has nothing to do.
    #[inline]
    pub fn rest(&self, since: Option<Instant>) {
        self.entry.idle.set(since);
    }

    /// Whether the connection is to go.
    #[inline]
    pub fn told(&self) -> Option<Told> {
        self.entry.told.get()
    }

    /// Rung when the connection is to go.
    pub fn place(&self) -> &Place {
        &self.entry.place
    }

    /// One of its streams waits with bytes that nobody takes; or its only one.
    pub fn park(&self, alone: bool) -> Parked<'_> {
        if alone {
            self.park_alone(1);
        } else {
            self.inner.set_parked(&self.entry, self.entry.parked.get() + 1);
            self.inner.wait();
        }
        Parked(self)
    }

    /// Its only stream waits so, or so many directions of its tunnel do. Where there is no memory for another such it goes at once:
    /// many may come in one turn of the worker, before those that were told to go have gone.
    pub fn park_alone(&self, streams: usize) {
        let inner = &self.inner;
        let more = self.entry.parked.get() < streams;
        inner.set_parked(&self.entry, streams);
        if !more {
            return;
        }
        inner.wait();
        // What was so a while ago says nothing of now.
        if inner.full.get() && inner.is_long_ago() {
            inner.look();
        }
        let waiting = inner.parked.get() * window::STREAM as usize;
        if inner.full.get() && self.told().is_none() && waiting > inner.spared() {
            inner.tell(&self.entry, Told::Greedy);
        }
    }

    /// More has come to one that waits already.
    pub fn waits(&self) {
        self.inner.wait();
    }
}

impl Spare {
    /// Makes it so many bytes, if it is fewer; whether there are any to spare.
    #[must_use]
    pub fn grow_to(&mut self, bytes: usize) -> bool {
        let more = bytes.saturating_sub(self.bytes);
        let (held, all) = (self.entry.held.get() + more, self.inner.held.get() + more);
        if more > 0 && (held > self.inner.most_each / 2 || all > self.inner.budget / 2) {
            return false;
        }
        self.bytes += more;
        self.inner.hold(&self.entry, more);
        true
    }

    /// Gives all of it back.
    fn release(&mut self) {
        // With its connection all went that this held.
        let bytes = std::mem::take(&mut self.bytes).min(self.entry.held.get());
        self.inner.give(&self.entry, bytes);
    }
}

impl Drop for Spare {
    fn drop(&mut self) {
        self.release();
    }
}

impl Drop for Parked<'_> {
    fn drop(&mut self) {
        let Account { inner, entry, .. } = self.0;
        inner.set_parked(entry, entry.parked.get() - 1);
    }
}

impl Drop for Account {
    fn drop(&mut self) {
        self.give(self.entry.held.get());
        self.inner.set_parked(&self.entry, 0);
        let entry = self.inner.entries.borrow_mut().try_remove(self.key);
        drop(entry);
    }
}

#[cfg(test)]
mod tests;
