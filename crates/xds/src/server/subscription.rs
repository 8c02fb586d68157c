//! What one client wants of one kind, what it was sent, and what it has not answered yet. Pure.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use outrigger_model::resource::ResourceKind;

use super::audience::{Seat, WILDCARD};
use super::{Version, Versioned, View};

/// One client's subscription to one kind.
pub(super) struct Subscription {
    kind: ResourceKind,
    seat: Arc<Seat>,
    /// The client asked for this kind at least once.
    pub(super) open: bool,
    /// Everything that the view's wildcard has.
    pub(super) wildcard: bool,
    /// By name.
    pub(super) names: BTreeSet<Arc<str>>,
    /// Of these.
    bytes: usize,
    /// What the wildcard had last.
    listed: BTreeSet<Arc<str>>,
    /// What the client has or is about to have. A version that it refused stays here, so it is not sent again.
    pub(super) sent: BTreeMap<Arc<str>, Known>,
    /// Names that the client was told do not exist.
    pub(super) absent: BTreeSet<Arc<str>>,
    /// The response that the client has not answered.
    pub(super) flight: Option<Flight>,
    /// Suspects of a refusal that did not say which, sent one per response to find out.
    pub(super) suspects: VecDeque<Arc<str>>,
    /// Answer even if nothing changed: the first request, or new names in state-of-the-world.
    pub(super) answer: bool,
    stale: Names,
}

/// Names whose difference is not known to be none.
enum Names {
    All,
    Of(BTreeSet<Arc<str>>),
}

/// What a client knows of a name.
#[derive(Clone)]
pub(super) struct Known {
    /// Absent where it is to be sent again, whichever that was.
    pub(super) version: Option<Version>,
    /// Only where whole sets are sent, and absent where the client brought it from an earlier stream.
    pub(super) resource: Option<Arc<Versioned>>,
}

/// A response on its way.
pub(super) struct Flight {
    pub(super) nonce: String,
    pub(super) generation: u64,
    pub(super) sent: Vec<(Arc<str>, Version)>,
}

/// What differs between what there is and what the client has.
#[derive(Default)]
pub(super) struct Difference {
    pub(super) upserts: Vec<Arc<Versioned>>,
    /// Resources that are gone.
    pub(super) removed: Vec<Arc<str>>,
    /// Names that were asked for and do not exist; nothing breaks by saying so at once.
    pub(super) absent: Vec<Arc<str>>,
}

impl Difference {
    pub(super) fn is_empty(&self) -> bool {
        self.upserts.is_empty() && self.removed.is_empty() && self.absent.is_empty()
    }
}

impl Subscription {
    pub(super) fn new(kind: ResourceKind, seat: Arc<Seat>) -> Self {
        Self {
            kind,
            seat,
            open: false,
            wildcard: false,
            names: BTreeSet::new(),
            bytes: 0,
            listed: BTreeSet::new(),
            sent: BTreeMap::new(),
            absent: BTreeSet::new(),
            flight: None,
            suspects: VecDeque::new(),
            answer: false,
            stale: Names::All,
        }
    }

    pub(super) fn kind(&self) -> ResourceKind {
        self.kind
    }

    /// A name is to be compared again, or the wildcard's list.
    pub(super) fn mark(&mut self, name: &Arc<str>) {
        match &mut self.stale {
            Names::All => {}
            Names::Of(_) if **name == *WILDCARD => self.stale = Names::All,
            Names::Of(names) => {
                names.insert(name.clone());
            }
        }
    }

    /// Everything is to be compared again.
    pub(super) fn mark_all(&mut self) {
        self.stale = Names::All;
    }

    /// The difference to what was sent. What differs is looked at again until it was sent.
    pub(super) fn difference(&mut self, view: &dyn View) -> Difference {
        let difference = match &self.stale {
            Names::Of(names) if names.is_empty() => return Difference::default(),
            Names::Of(names) => self.of(names.iter(), view),
            Names::All => self.whole(view),
        };
        let upserts = difference.upserts.iter().map(|versioned| &versioned.name);
        let left = upserts.chain(&difference.removed).chain(&difference.absent).cloned().collect();
        self.stale = Names::Of(left);
        difference
    }

    /// Bytes of the names that it holds.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Whether everything was sent that there is to send; it may not be answered yet.
    pub(super) fn is_sent(&self) -> bool {
        self.suspects.is_empty()
            && !self.answer
            && matches!(&self.stale, Names::Of(names) if names.is_empty())
    }

    fn of<'n>(&self, names: impl Iterator<Item = &'n Arc<str>>, view: &dyn View) -> Difference {
        let mut difference = Difference::default();
        for name in names {
            let named = self.names.contains(name);
            let wanted = named || (self.wildcard && self.listed.contains(name));
            let known = self.sent.get(name);
            let had = known.and_then(|known| known.version).filter(|_| wanted);
            if had.is_some() && view.version(self.kind, name) == had {
                continue;
            }
            let there = if wanted { view.resource(self.kind, name) } else { None };
            match (there, known) {
                (Some(new), Some(known)) if known.version == Some(new.version) => {}
                (Some(new), _) => difference.upserts.push(new),
                (None, Some(_)) => difference.removed.push(name.clone()),
                (None, None) if named && !self.absent.contains(name) => difference.absent.push(name.clone()),
                (None, None) => {}
            }
        }
        difference
    }

    fn whole(&mut self, view: &dyn View) -> Difference {
        if self.wildcard {
            // Held before they are looked at: what changes in between is then marked.
            self.seat.hold(self.kind, WILDCARD);
            self.hold_listed(view);
        }
        let all = self.names.iter().chain(&self.listed).chain(self.sent.keys());
        let all: BTreeSet<Arc<str>> = all.cloned().collect();
        self.of(all.iter(), view)
    }

    fn hold_listed(&mut self, view: &dyn View) {
        let listed: BTreeSet<Arc<str>> = view.wildcard_names(self.kind).iter().cloned().collect();
        for gone in self.listed.difference(&listed).filter(|name| !self.names.contains(*name)) {
            self.let_go(gone, view);
        }
        listed.difference(&self.listed).for_each(|new| drop(self.seat.hold(self.kind, new)));
        self.listed = listed;
    }

    fn let_go(&self, name: &str, view: &dyn View) {
        if self.seat.let_go(self.kind, name) {
            view.let_go(self.kind, name);
        }
    }

    /// Notes what a response carries. `whole`: of a whole set, whose other resources go along again.
    pub(super) fn note_sent(&mut self, difference: &Difference, nonce: String, generation: u64, whole: bool) {
        for versioned in &difference.upserts {
            let known =
                Known { version: Some(versioned.version), resource: whole.then(|| versioned.clone()) };
            self.sent.insert(versioned.name.clone(), known);
            self.absent.remove(&versioned.name);
        }
        for name in &difference.removed {
            self.sent.remove(name);
            if self.names.contains(name) {
                self.absent.insert(name.clone());
            }
        }
        self.absent.extend(difference.absent.iter().cloned());
        if let Names::Of(stale) = &mut self.stale {
            difference.upserts.iter().for_each(|versioned| {
                stale.remove(&versioned.name);
            });
            difference.removed.iter().chain(&difference.absent).for_each(|name| {
                stale.remove(name);
            });
        }
        let sent = difference.upserts.iter().map(|v| (v.name.clone(), v.version)).collect();
        self.flight = Some(Flight { nonce, generation, sent });
        self.answer = false;
    }

    /// Whatever version the client has, it is sent again.
    pub(super) fn resend(&mut self, name: &str) {
        if let Some(known) = self.sent.get_mut(name) {
            known.version = None;
            let name = self.sent.get_key_value(name).map(|(name, _)| name.clone());
            name.iter().for_each(|name| self.mark(name));
        }
    }

    /// The client wants a name; whether it is new.
    pub(super) fn subscribe(&mut self, name: &str) -> bool {
        let known = self.names.get(name).cloned();
        let new = known.is_none();
        let name = known.unwrap_or_else(|| self.seat.hold(self.kind, name));
        self.mark(&name);
        if new {
            self.bytes += name.len();
            self.names.insert(name);
        }
        new
    }

    /// Forgets names that the client does not want any more.
    pub(super) fn unsubscribe(&mut self, name: &str, view: &dyn View) {
        self.absent.remove(name);
        if self.names.remove(name) {
            self.bytes -= name.len();
            if !self.listed.contains(name) {
                self.let_go(name, view);
            }
        }
        if self.wildcard {
            // Asked for again before the difference is taken, it must be sent: the client has dropped it.
            self.resend(name);
        } else {
            self.sent.remove(name);
        }
    }

    /// The client does not want everything any more.
    pub(super) fn unsubscribe_all(&mut self, view: &dyn View) {
        self.wildcard = false;
        self.let_go(WILDCARD, view);
        for name in std::mem::take(&mut self.listed) {
            if !self.names.contains(&name) {
                self.let_go(&name, view);
            }
        }
        let names = &self.names;
        self.sent.retain(|name, _| names.contains(name));
    }

    /// The stream ends.
    pub(super) fn close(&mut self, view: &dyn View) {
        if self.wildcard {
            self.unsubscribe_all(view);
        }
        for name in std::mem::take(&mut self.names) {
            self.let_go(&name, view);
        }
    }
}
