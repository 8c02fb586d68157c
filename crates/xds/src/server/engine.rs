//! The engine of one stream: decides what to send next. Pure but for the view that it asks.
//!
//! Make before break, and latest wins: additions and changes go in [`ResourceKind::ALL`]'s order, removals in reverse once no
//! client has an addition left to answer, and the barrier when nothing is left at all. A kind whose last response is not
//! answered waits, and is compared with the newest state when the answer comes, so a slow client costs one pending state.

use std::collections::HashMap;
use std::sync::Arc;

use outrigger_model::resource::{Resource, ResourceKind};

use super::subscription::{Difference, Flight, Subscription};
use super::{ClientEvent, View};
use crate::wire::rpc;
use crate::{ClientKind, nack};

/// Names that one client may subscribe to per kind.
const MAX_NAMES: usize = 20_000;

/// The state of one stream.
pub(super) struct Engine {
    pub(super) view: Arc<dyn View>,
    subscriptions: HashMap<ResourceKind, Subscription>,
    next_nonce: u64,
    /// Kinds are sent as whole sets, not as differences.
    whole_sets: bool,
}

/// A response to send.
pub(super) struct Outgoing {
    pub(super) kind: ResourceKind,
    pub(super) nonce: String,
    pub(super) generation: u64,
    pub(super) difference: Difference,
}

/// The answer of a client to a response.
pub(super) enum Answer {
    /// It belongs to the last response and accepts it, or there was none to answer.
    Fine,
    /// It refuses the last response.
    Refused,
    /// It belongs to an older response.
    Stale,
}

impl Engine {
    pub(super) fn new(view: Arc<dyn View>, whole_sets: bool) -> Self {
        Self { view, subscriptions: HashMap::new(), next_nonce: 1, whole_sets }
    }

    /// The subscription of a kind, opened on first use.
    pub(super) fn subscription(&mut self, kind: ResourceKind) -> &mut Subscription {
        self.subscriptions.entry(kind).or_default()
    }

    /// Whether a client may have so many names.
    #[allow(clippy::result_large_err)] // tonic's own type
    pub(super) fn check_limits(&self, kind: ResourceKind) -> Result<(), tonic::Status> {
        let names = self.subscriptions.get(&kind).map_or(0, |s| s.names.len());
        if names > MAX_NAMES {
            return Err(tonic::Status::resource_exhausted(format!(
                "{names} subscriptions to {kind:?}; one client may have {MAX_NAMES}"
            )));
        }
        Ok(())
    }

    /// Takes the answer that a request carries.
    pub(super) fn answer(&mut self, kind: ResourceKind, nonce: &str, error: Option<&rpc::Status>) -> Answer {
        let subscription = self.subscriptions.entry(kind).or_default();
        if nonce.is_empty() {
            return Answer::Fine;
        }
        let Some(flight) = subscription.flight.take_if(|flight| flight.nonce == nonce) else {
            return if subscription.flight.is_some() || error.is_some() {
                Answer::Stale
            } else {
                Answer::Fine
            };
        };
        match error {
            None => {
                self.accepted(kind, &flight);
                Answer::Fine
            }
            Some(status) => {
                self.refused(kind, flight, status);
                Answer::Refused
            }
        }
    }

    fn accepted(&self, kind: ResourceKind, flight: &Flight) {
        let generation = flight.generation;
        self.view.report(if kind == ResourceKind::Barrier {
            ClientEvent::BarrierAcked { generation }
        } else {
            ClientEvent::Acked { kind, generation }
        });
    }

    fn refused(&mut self, kind: ResourceKind, flight: Flight, status: &rpc::Status) {
        let entries = nack::entries(status);
        for entry in &entries {
            self.view.report(ClientEvent::Nacked {
                kind,
                name: entry.name.clone(),
                version: entry.version.clone(),
                field: entry.field.clone(),
                reason: entry.reason.clone(),
            });
        }
        if !entries.is_empty() {
            return;
        }
        if flight.sent.len() > 1 && !self.whole_sets {
            // Envoy does not say which in a form that can be read; each alone tells.
            let subscription = self.subscriptions.entry(kind).or_default();
            for (name, _) in &flight.sent {
                subscription.sent.remove(name);
            }
            subscription.suspects.extend(flight.sent.into_iter().map(|(name, _)| name));
            return;
        }
        let version =
            if let [(_, version)] = flight.sent.as_slice() { version.clone() } else { String::new() };
        let names: Vec<_> = flight.sent.iter().map(|(name, _)| name.as_str()).collect();
        self.view.report(ClientEvent::Nacked {
            kind,
            name: names.join(", "),
            version,
            field: String::new(),
            reason: status.message.clone(),
        });
    }

    /// Everything that can be sent now.
    pub(super) fn next(&mut self, generation: u64) -> Vec<Outgoing> {
        let mut out = Vec::new();
        let mut open_ends = false;
        for kind in ResourceKind::ALL.into_iter().filter(|kind| *kind != ResourceKind::Barrier) {
            let Some(mut difference) = self.difference(kind) else { continue };
            difference.removed.clear();
            let waiting = self.subscription(kind).flight.is_some();
            let answer = self.subscription(kind).answer;
            if waiting {
                open_ends = true;
                // What comes later may refer to what waits here.
                if !difference.upserts.is_empty() {
                    return out;
                }
            } else if answer || !difference.is_empty() {
                open_ends = true;
                out.push(self.outgoing(kind, difference, generation));
            }
        }
        if open_ends {
            return out;
        }
        for kind in ResourceKind::ALL.into_iter().rev().filter(|kind| *kind != ResourceKind::Barrier) {
            if let Some(difference) = self.difference(kind).filter(|d| !d.removed.is_empty()) {
                // One kind at a time: the next waits until this one is answered.
                return vec![self.outgoing(kind, difference, generation)];
            }
        }
        out.extend(self.barrier());
        out
    }

    fn difference(&self, kind: ResourceKind) -> Option<Difference> {
        let subscription = self.subscriptions.get(&kind).filter(|s| s.open)?;
        if !self.view.kind().takes(kind) {
            return Some(Difference::default());
        }
        let mut difference = subscription.difference(kind, &*self.view);
        if let Some(suspect) = subscription.suspects.front() {
            difference.upserts.retain(|versioned| versioned.name == *suspect);
        }
        Some(difference)
    }

    fn outgoing(&mut self, kind: ResourceKind, difference: Difference, generation: u64) -> Outgoing {
        let nonce = self.next_nonce.to_string();
        self.next_nonce += 1;
        let subscription = self.subscriptions.entry(kind).or_default();
        if !difference.upserts.is_empty() || difference.is_empty() {
            subscription.suspects.pop_front();
        }
        subscription.note_sent(&difference, nonce.clone(), generation);
        let resources = difference.upserts.len() + difference.removed.len() + difference.absent.len();
        self.view.report(ClientEvent::Sent { kind, generation, resources });
        Outgoing { kind, nonce, generation, difference }
    }

    /// The barrier carries the generation of the resource itself, which the view and the differences come from.
    fn barrier(&mut self) -> Option<Outgoing> {
        let kind = ResourceKind::Barrier;
        if self.view.kind() != ClientKind::Outrigger {
            return None;
        }
        let subscription = self.subscriptions.get(&kind).filter(|s| s.open && s.flight.is_none())?;
        let difference = subscription.difference(kind, &*self.view);
        let generation = match &*difference.upserts.first()?.resource {
            Resource::Barrier(barrier) => barrier.generation,
            _ => return None,
        };
        Some(self.outgoing(kind, difference, generation))
    }
}
