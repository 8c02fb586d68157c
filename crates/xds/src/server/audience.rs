//! Who holds which name: a change wakes the streams that hold something of it, and no others.
//!
//! A stream's [`Seat`] collects what it has to compare again. Whoever publishes a change marks first and counts the generation
//! after, so that a stream which read the generation before it compared has seen all of it.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::task::Context;
use std::time::Duration;

use futures_util::task::AtomicWaker;
use outrigger_model::resource::{Barrier, Resource, ResourceKind};
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::time::Instant;

use super::Versioned;
use crate::ClientKind;

/// What is compared: a kind, and a name of it.
pub type Name = (ResourceKind, Arc<str>);

/// Stands for the list of names that a wildcard subscription has.
pub const WILDCARD: &str = "*";

/// What telling one stream may cost of the time until streams are woken again: pushing stays below a tenth of a core while
/// changes come without end. The first change after a pause never waits.
const PACE: Duration = Duration::from_micros(200);
/// No change waits longer.
const LONGEST: Duration = Duration::from_millis(100);

/// All streams, by what they hold.
pub struct Audience {
    inner: Mutex<Inner>,
    generation: watch::Sender<u64>,
    /// The last one that was sent, with its generation: most streams are sent the same.
    barrier: Mutex<Option<(u64, Arc<Versioned>)>>,
    own: Weak<Self>,
}

#[derive(Default)]
struct Inner {
    /// In order: nearly always the last that came is the newest, and most names have one or two.
    holders: HashMap<ResourceKind, HashMap<Arc<str>, Vec<u64>>>,
    subjects: HashMap<String, HashSet<u64>>,
    seats: HashMap<u64, Arc<Mark>>,
    next: u64,
    pace: Pace,
    closed: bool,
}

/// Who waits to be woken.
#[derive(Default)]
struct Pace {
    /// Nobody is woken before.
    open: Option<Instant>,
    waiting: HashSet<u64>,
    timer: bool,
}

/// What a stream has to compare again.
#[derive(Default)]
struct Mark {
    stale: Mutex<Stale>,
    /// The last generation that had something for it.
    due: AtomicU64,
    /// There is something to compare again, and it is time.
    rung: AtomicBool,
    waker: AtomicWaker,
    /// Tells when what the stream is about has changed.
    moved: watch::Sender<()>,
}

/// What is to be compared again.
#[derive(Default)]
pub(super) struct Stale {
    pub(super) everything: bool,
    pub(super) names: BTreeSet<Name>,
    pub(super) closed: bool,
}

impl Audience {
    /// Nobody is there.
    pub fn new(generation: u64) -> Arc<Self> {
        let (generation, _) = watch::channel(generation);
        Arc::new_cyclic(|own| Self {
            inner: Mutex::default(),
            generation,
            barrier: Mutex::default(),
            own: own.clone(),
        })
    }

    /// The generation up to which everybody has been marked.
    pub fn generation(&self) -> u64 {
        *self.generation.borrow()
    }

    /// Wakes when everybody has been marked for a further generation.
    pub fn generations(&self) -> watch::Receiver<u64> {
        self.generation.subscribe()
    }

    /// A stream. `subject` is whom it is about, such as the instance that it stands beside.
    pub fn join(&self, subject: Option<&str>) -> Seat {
        let mut inner = self.inner.lock();
        let id = inner.next;
        inner.next += 1;
        let mark = Arc::new(Mark::default());
        mark.due.store(self.generation(), Ordering::Relaxed);
        mark.stale.lock().closed = inner.closed;
        inner.seats.insert(id, mark.clone());
        if let Some(subject) = subject {
            inner.subjects.entry(subject.to_owned()).or_default().insert(id);
        }
        Seat { id, mark, subject: subject.map(str::to_owned), audience: self.own.clone() }
    }

    /// A name as all have it that hold it.
    pub fn name(&self, kind: ResourceKind, name: &str) -> Arc<str> {
        let inner = self.inner.lock();
        let known = inner.holders.get(&kind).and_then(|of| of.get_key_value(name));
        known.map_or_else(|| name.into(), |(name, _)| name.clone())
    }

    /// Whether a stream holds a name.
    pub fn holds(&self, kind: ResourceKind, name: &str) -> bool {
        self.inner.lock().holds(kind, name)
    }

    /// Whether one of the names of a kind that streams hold is such a one, by the name and the streams that hold it. Nobody comes to hold or lets go
    /// of a name meanwhile.
    pub fn any_held(&self, kind: ResourceKind, mut is: impl FnMut(&str, &[u64]) -> bool) -> bool {
        let inner = self.inner.lock();
        inner.holders.get(&kind).is_some_and(|of| of.iter().any(|(name, streams)| is(name, streams)))
    }

    /// Runs `with` while nobody comes to hold a name that nobody holds now; does nothing when somebody does.
    pub fn unless_held(&self, kind: ResourceKind, name: &str, with: impl FnOnce()) {
        let inner = self.inner.lock();
        if !inner.holds(kind, name) {
            with();
        }
    }

    /// Runs `with` while a name is held and cannot be let go; does nothing when nobody holds it, or when it is only for the streams
    /// about a subject and there is none.
    pub fn while_held(
        &self,
        kind: ResourceKind,
        name: &str,
        only: Option<&str>,
        with: impl FnOnce(&Holders<'_>),
    ) {
        let inner = self.inner.lock();
        if inner.holds(kind, name) && only.is_none_or(|subject| inner.subjects.contains_key(subject)) {
            with(&Holders(&inner));
        }
    }

    /// Runs `with` while no other stream than this one is about its subject, and none can come.
    pub fn while_alone(&self, seat: &Seat, with: impl FnOnce()) {
        let inner = self.inner.lock();
        let others = seat.subject.as_ref().and_then(|subject| inner.subjects.get(subject));
        if others.into_iter().flatten().all(|id| *id == seat.id) {
            with();
        }
    }

    /// Up to `generation` these names changed, these as the streams about a subject see them, and what these subjects are; whoever has
    /// to do with them compares again.
    pub fn changed<'n>(
        &self,
        generation: u64,
        names: impl IntoIterator<Item = &'n Name>,
        own: impl IntoIterator<Item = (&'n Name, &'n str)>,
        subjects: impl IntoIterator<Item = &'n str>,
    ) {
        let mut inner = self.inner.lock();
        let mut woken = HashSet::new();
        for (name, subject) in own {
            let holders = inner.holders.get(&name.0).and_then(|of| of.get(&name.1));
            let about = inner.subjects.get(subject).into_iter().flatten();
            let holds = |id: &u64| holders.is_some_and(|holders| holders.binary_search(id).is_ok());
            for id in about.filter(|id| holds(id)) {
                if let Some(mark) = inner.seats.get(id) {
                    mark.stale.lock().names.insert(name.clone());
                    woken.insert(*id);
                }
            }
        }
        for name in names {
            for id in inner.holders.get(&name.0).and_then(|of| of.get(&name.1)).into_iter().flatten() {
                if let Some(mark) = inner.seats.get(id) {
                    mark.stale.lock().names.insert(name.clone());
                    woken.insert(*id);
                }
            }
        }
        for subject in subjects {
            for id in inner.subjects.get(subject).into_iter().flatten() {
                if let Some(mark) = inner.seats.get(id) {
                    mark.stale.lock().everything = true;
                    mark.moved.send_replace(());
                    woken.insert(*id);
                }
            }
        }
        for mark in woken.iter().filter_map(|id| inner.seats.get(id)) {
            mark.due.store(generation, Ordering::Relaxed);
        }
        inner.pace.waiting.extend(woken);
        self.generation.send_replace(generation);
        self.wake(&mut inner);
    }

    /// Wakes those who wait, now or when it is time.
    fn wake(&self, inner: &mut Inner) {
        let now = Instant::now();
        match inner.pace.open.filter(|open| *open > now) {
            None => {
                let woken = std::mem::take(&mut inner.pace.waiting);
                let pause = PACE.saturating_mul(u32::try_from(woken.len()).unwrap_or(u32::MAX)).min(LONGEST);
                inner.pace.open = Some(now + pause);
                for mark in woken.iter().filter_map(|id| inner.seats.get(id)) {
                    mark.ring();
                }
            }
            Some(open) if !inner.pace.timer && !inner.pace.waiting.is_empty() => {
                let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
                inner.pace.timer = true;
                let own = self.own.clone();
                runtime.spawn(async move {
                    tokio::time::sleep_until(open).await;
                    if let Some(audience) = own.upgrade() {
                        let mut inner = audience.inner.lock();
                        inner.pace.timer = false;
                        audience.wake(&mut inner);
                    }
                });
            }
            Some(_) => {}
        }
    }

    /// Ends every stream.
    pub fn close(&self) {
        let mut inner = self.inner.lock();
        inner.closed = true;
        for mark in inner.seats.values() {
            mark.stale.lock().closed = true;
            mark.ring();
        }
    }
}

/// Who holds what, at one moment.
pub struct Holders<'i>(&'i Inner);

impl Holders<'_> {
    /// Whether more than one stream holds a name.
    pub fn are_several(&self, (kind, name): &Name) -> bool {
        self.0.holders.get(kind).and_then(|of| of.get(name)).is_some_and(|ids| ids.len() > 1)
    }
}

impl Mark {
    fn ring(&self) {
        self.rung.store(true, Ordering::Release);
        self.waker.wake();
    }
}

impl Inner {
    fn holds(&self, kind: ResourceKind, name: &str) -> bool {
        self.holders.get(&kind).is_some_and(|of| of.contains_key(name))
    }
}

/// The place of one stream. What it holds it lets go of itself, name by name.
pub struct Seat {
    id: u64,
    mark: Arc<Mark>,
    subject: Option<String>,
    audience: Weak<Audience>,
}

impl Seat {
    /// The last generation that had something for this stream.
    pub fn due(&self) -> u64 {
        self.mark.due.load(Ordering::Relaxed)
    }

    /// The generation up to which it has been marked.
    pub(super) fn generation(&self) -> u64 {
        self.audience.upgrade().map_or(0, |audience| audience.generation())
    }

    /// Whether there is something to compare again, since the last call; whoever asks is woken when there is.
    pub(super) fn poll_rung(&self, cx: &mut Context<'_>) -> bool {
        self.mark.waker.register(cx.waker());
        self.mark.rung.swap(false, Ordering::Acquire)
    }

    /// What is to be compared again since the last call.
    pub(super) fn take(&self) -> Stale {
        let mut stale = self.mark.stale.lock();
        let closed = stale.closed;
        let taken = std::mem::take(&mut *stale);
        stale.closed = closed;
        taken
    }

    /// What was marked since the last call: everything, or these names. For whoever looks again without a stream, as tests do.
    pub fn marked(&self) -> (bool, BTreeSet<Name>) {
        let Stale { everything, names, .. } = self.take();
        (everything, names)
    }

    /// Wakes when what the stream is about has changed.
    pub fn moves(&self) -> watch::Receiver<()> {
        self.mark.moved.subscribe()
    }

    /// Holds a name: from now on its changes are marked here. What it is must be looked at after this. Yields the name, as all have it
    /// that hold it.
    pub fn hold(&self, kind: ResourceKind, name: &str) -> Arc<str> {
        let Some(audience) = self.audience.upgrade() else { return name.into() };
        let mut inner = audience.inner.lock();
        let of = inner.holders.entry(kind).or_default();
        let name = of.get_key_value(name).map_or_else(|| name.into(), |(name, _)| name.clone());
        let ids = of.entry(name.clone()).or_insert_with(|| Vec::with_capacity(1));
        if let Err(place) = ids.binary_search(&self.id) {
            ids.insert(place, self.id);
        }
        name
    }

    /// The barrier of a generation, as sidecars read it.
    pub(super) fn barrier(&self, name: &Arc<str>, generation: u64) -> Arc<Versioned> {
        let make = || {
            let barrier = Barrier { name: name.to_string(), generation };
            Arc::new(Versioned::named(name, Resource::Barrier(barrier), ClientKind::Outrigger))
        };
        let Some(audience) = self.audience.upgrade() else { return make() };
        let mut last = audience.barrier.lock();
        if let Some((of, barrier)) = &*last
            && *of == generation
            && barrier.name == *name
        {
            return barrier.clone();
        }
        let barrier = make();
        *last = Some((generation, barrier.clone()));
        barrier
    }

    /// Lets go of a name. Yields whether nobody holds it any more.
    pub fn let_go(&self, kind: ResourceKind, name: &str) -> bool {
        let Some(audience) = self.audience.upgrade() else { return false };
        let mut inner = audience.inner.lock();
        let Some(of) = inner.holders.get_mut(&kind) else { return false };
        let Some(ids) = of.get_mut(name) else { return false };
        if let Ok(place) = ids.binary_search(&self.id) {
            ids.remove(place);
        }
        let is_last = ids.is_empty();
        if is_last {
            of.remove(name);
        }
        is_last
    }
}

impl fmt::Debug for Seat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Seat").field("id", &self.id).field("subject", &self.subject).finish_non_exhaustive()
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let Some(audience) = self.audience.upgrade() else { return };
        let mut inner = audience.inner.lock();
        inner.seats.remove(&self.id);
        if let Some(subject) = &self.subject
            && let Some(of) = inner.subjects.get_mut(subject)
        {
            of.remove(&self.id);
            if of.is_empty() {
                inner.subjects.remove(subject);
            }
        }
    }
}
