//! What one client wants of one kind, what it was sent, and what it has not answered yet. Pure.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use outrigger_model::resource::ResourceKind;

use super::{Versioned, View};

/// One client's subscription to one kind.
#[derive(Default)]
pub(super) struct Subscription {
    /// The client asked for this kind at least once.
    pub(super) open: bool,
    /// Everything that the view's wildcard has.
    pub(super) wildcard: bool,
    /// By name.
    pub(super) names: BTreeSet<String>,
    /// What the client has or is about to have. A version that it refused stays here, so it is not sent again.
    pub(super) sent: BTreeMap<String, Known>,
    /// Names that the client was told do not exist.
    pub(super) absent: BTreeSet<String>,
    /// The response that the client has not answered.
    pub(super) flight: Option<Flight>,
    /// Suspects of a refusal that did not say which, sent one per response to find out.
    pub(super) suspects: VecDeque<String>,
    /// Answer even if nothing changed: the first request, or new names in state-of-the-world.
    pub(super) answer: bool,
}

/// What a client knows of a name.
#[derive(Clone)]
pub(super) struct Known {
    pub(super) version: String,
    /// Absent where the client brought it from an earlier stream.
    pub(super) resource: Option<Arc<Versioned>>,
}

/// A response on its way.
pub(super) struct Flight {
    pub(super) nonce: String,
    pub(super) generation: u64,
    pub(super) sent: Vec<(String, String)>,
}

/// What differs between what there is and what the client has.
#[derive(Default)]
pub(super) struct Difference {
    pub(super) upserts: Vec<Arc<Versioned>>,
    /// Resources that are gone.
    pub(super) removed: Vec<String>,
    /// Names that were asked for and do not exist; nothing breaks by saying so at once.
    pub(super) absent: Vec<String>,
}

impl Difference {
    pub(super) fn is_empty(&self) -> bool {
        self.upserts.is_empty() && self.removed.is_empty() && self.absent.is_empty()
    }
}

impl Subscription {
    /// Everything that the client should have now.
    pub(super) fn desired(&self, kind: ResourceKind, view: &dyn View) -> BTreeMap<String, Arc<Versioned>> {
        let mut desired = BTreeMap::new();
        if self.wildcard {
            desired.extend(view.wildcard(kind).into_iter().map(|v| (v.name.clone(), v)));
        }
        for name in &self.names {
            if !desired.contains_key(name)
                && let Some(versioned) = view.resource(kind, name)
            {
                desired.insert(name.clone(), versioned);
            }
        }
        desired
    }

    /// The difference to what was sent.
    pub(super) fn difference(&self, kind: ResourceKind, view: &dyn View) -> Difference {
        let desired = self.desired(kind, view);
        let changed =
            |v: &&Arc<Versioned>| self.sent.get(&v.name).is_none_or(|known| known.version != v.version);
        let removed = self.sent.keys().filter(|name| !desired.contains_key(*name)).cloned().collect();
        let absent = self.names.iter().filter(|name| {
            !desired.contains_key(*name) && !self.sent.contains_key(*name) && !self.absent.contains(*name)
        });
        let absent = absent.cloned().collect();
        Difference { upserts: desired.values().filter(changed).cloned().collect(), removed, absent }
    }

    /// Notes what a response carries.
    pub(super) fn note_sent(&mut self, difference: &Difference, nonce: String, generation: u64) {
        for versioned in &difference.upserts {
            let known = Known { version: versioned.version.clone(), resource: Some(versioned.clone()) };
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
        let sent = difference.upserts.iter().map(|v| (v.name.clone(), v.version.clone())).collect();
        self.flight = Some(Flight { nonce, generation, sent });
        self.answer = false;
    }

    /// Whatever version the client has, it is sent again.
    pub(super) fn resend(&mut self, name: &str) {
        if let Some(known) = self.sent.get_mut(name) {
            known.version.clear();
        }
    }

    /// Forgets names that the client does not want any more.
    pub(super) fn unsubscribe(&mut self, name: &str) {
        self.names.remove(name);
        self.absent.remove(name);
        if self.wildcard {
            // Asked for again before the difference is taken, it must be sent: the client has dropped it.
            self.resend(name);
        } else {
            self.sent.remove(name);
        }
    }
}
