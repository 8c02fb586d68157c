//! The engine of one stream: decides what to send next. Pure but for the view that it asks.
//!
//! Make before break, and latest wins: additions and changes go in [`ResourceKind::ALL`]'s order, removals in reverse once
//! no addition is left to answer, and the barrier with the last of them. A kind whose last response is not answered
//! waits, and is compared with the newest state when the answer comes, so a slow client costs one pending state.

use std::collections::BTreeSet;
use std::sync::Arc;

use outrigger_model::resource::ResourceKind;

use super::audience::Seat;
use super::subscription::{Difference, Flight, Subscription};
use super::subscriptions::Subscriptions;
use super::{ClientEvent, LONGEST_NAME, ROOM, Versioned, View};
use crate::wire::rpc;
use crate::{ClientKind, nack};

/// Names that one client may subscribe to per kind.
const MAX_NAMES: usize = 20_000;

/// Encoded bytes after which a response to a sidecar ends; the rest follows when it is answered. What a client takes to
/// read a response stays with its process.
const PORTION: usize = 128 * 1024;

/// The state of one stream.
pub(super) struct Engine {
    pub(super) view: Arc<dyn View>,
    pub(super) seat: Arc<Seat>,
    /// What a barrier last said, or stood for.
    confirmed: u64,
    subscriptions: Subscriptions,
    next_nonce: u64,
    /// Kinds are sent as whole sets, not as differences.
    whole_sets: bool,
    /// The client takes a barrier within the last of several responses.
    within: bool,
}

/// A response to send.
pub(super) struct Outgoing {
    pub(super) kind: ResourceKind,
    pub(super) nonce: String,
    pub(super) generation: u64,
    pub(super) difference: Difference,
    /// Goes along with it; the same nonce confirms both.
    pub(super) barrier: Option<Arc<Versioned>>,
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
        let seat = view.seat().clone();
        let (subscriptions, within) = (Subscriptions::default(), false);
        Self { view, seat, confirmed: 0, subscriptions, next_nonce: 1, whole_sets, within }
    }

    /// For a client that takes barriers within responses, if it does.
    pub(super) fn taking_barriers_within(mut self, within: bool) -> Self {
        self.within = within;
        self
    }

    /// Marks what others changed; whether the stream shall end.
    pub(super) fn look_up(&mut self) -> bool {
        let stale = self.seat.take();
        for (kind, name) in &stale.names {
            if let Some(subscription) = self.subscriptions.get_mut(*kind) {
                subscription.mark(name);
            }
        }
        if stale.everything {
            self.subscriptions.iter_mut().for_each(Subscription::mark_all);
        }
        stale.closed
    }

    /// The subscription of a kind, opened on first use.
    pub(super) fn subscription(&mut self, kind: ResourceKind) -> &mut Subscription {
        let seat = &self.seat;
        self.subscriptions.of(kind, || Subscription::new(kind, seat.clone()))
    }

    /// Whether a client may have these names more and those less; asked before any of them is held.
    #[allow(clippy::result_large_err)] // tonic's own type
    pub(super) fn check_change<'n>(
        &self,
        kind: ResourceKind,
        more: &'n [String],
        less: &'n [String],
    ) -> Result<(), tonic::Status> {
        let none = BTreeSet::new();
        let known = self.subscriptions.get(kind).map_or(&none, |subscription| &subscription.names);
        let texts = |names: &'n [String]| names.iter().map(String::as_str);
        let less: BTreeSet<&str> = texts(less).filter(|name| known.contains(*name)).collect();
        let more: BTreeSet<&str> =
            texts(more).filter(|name| *name != "*" && !known.contains(*name)).collect();
        self.check_names(kind, more.into_iter(), less.into_iter())
    }

    /// Whether a client may have these names more, and so many less.
    #[allow(clippy::result_large_err)] // tonic's own type
    pub(super) fn check_names<'n>(
        &self,
        kind: ResourceKind,
        more: impl Iterator<Item = &'n str>,
        less: impl Iterator<Item = &'n str>,
    ) -> Result<(), tonic::Status> {
        let refused = |why| Err(tonic::Status::resource_exhausted(why));
        let mut names = self.subscriptions.get(kind).map_or(0, |one| one.names.len());
        let mut bytes: usize = self.subscriptions.iter().map(Subscription::bytes).sum();
        for name in less {
            (names, bytes) = (names.saturating_sub(1), bytes.saturating_sub(name.len()));
        }
        for name in more {
            if name.len() > LONGEST_NAME {
                return refused(format!(
                    "a name of {kind:?} has {} bytes, the most are {LONGEST_NAME}",
                    name.len()
                ));
            }
            (names, bytes) = (names + 1, bytes + name.len());
        }
        if names > MAX_NAMES {
            return refused(format!("{names} subscriptions to {kind:?}; one client may have {MAX_NAMES}"));
        }
        if bytes > ROOM {
            return refused(format!(
                "the names of all subscriptions have {bytes} bytes; one client may have {ROOM}"
            ));
        }
        Ok(())
    }

    /// Takes the answer that a request carries.
    pub(super) fn answer(&mut self, kind: ResourceKind, nonce: &str, error: Option<&rpc::Status>) -> Answer {
        let view = self.view.clone();
        let subscription = self.subscription(kind);
        let flight = subscription.flight.take_if(|flight| flight.nonce == nonce);
        if let (None, Some(status)) = (&flight, error) {
            vetoed(&*view, kind, subscription, status);
        }
        if nonce.is_empty() {
            return Answer::Fine;
        }
        let Some(flight) = flight else {
            return if subscription.flight.is_some() || error.is_some() {
                Answer::Stale
            } else {
                Answer::Fine
            };
        };
        match error {
            None => {
                if kind == ResourceKind::Barrier {
                    self.accept_all(nonce);
                }
                self.accepted(kind, &flight);
                Answer::Fine
            }
            Some(status) => {
                self.refused(kind, flight, status);
                Answer::Refused
            }
        }
    }

    /// What a barrier came with is accepted where it is confirmed.
    fn accept_all(&mut self, nonce: &str) {
        let answered = self.subscriptions.iter_mut().filter_map(|subscription| {
            Some((subscription.kind(), subscription.flight.take_if(|flight| flight.nonce == nonce)?))
        });
        let answered: Vec<_> = answered.collect();
        answered.iter().for_each(|(kind, flight)| self.accepted(*kind, flight));
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
            let subscription = self.subscription(kind);
            for (name, _) in &flight.sent {
                subscription.resend(name);
            }
            subscription.suspects.extend(flight.sent.into_iter().map(|(name, _)| name));
            return;
        }
        let version =
            if let [(_, version)] = flight.sent.as_slice() { version.to_string() } else { String::new() };
        let names: Vec<_> = flight.sent.iter().map(|(name, _)| &**name).collect();
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
        let mut waiting = Vec::new();
        let mut unanswered = false;
        for kind in ResourceKind::ALL.into_iter().filter(|kind| *kind != ResourceKind::Barrier) {
            let Some(mut difference) = self.difference(kind) else { continue };
            difference.removed.clear();
            let subscription = self.subscription(kind);
            let in_flight = subscription.flight.is_some();
            unanswered |= in_flight;
            if !subscription.answer && difference.is_empty() {
                continue;
            }
            if in_flight || waiting.iter().any(|earlier| holds(*earlier, kind)) {
                waiting.push(kind);
                continue;
            }
            unanswered = true;
            if self.view.kind() == ClientKind::Outrigger && !self.whole_sets {
                portion(&mut difference);
            }
            self.warm_anew(&difference);
            out.push(self.outgoing(kind, difference, generation));
        }
        if unanswered || !waiting.is_empty() {
            // Nothing is left to send: the barrier goes along, as the client says itself when all before it is in force.
            let others = |one: &&Subscription| one.kind() != ResourceKind::Barrier;
            let is_sent = |one: &Subscription| !one.open || one.is_sent();
            let sent = self.subscriptions.iter().filter(others).all(is_sent);
            if sent && self.view.kind() == ClientKind::Outrigger && !self.whole_sets {
                let with = out.last().filter(|_| self.within).map(|last| last.nonce.clone());
                match (out.last_mut(), self.barrier(generation, with)) {
                    (Some(last), Some(barrier)) if self.within => {
                        last.barrier = barrier.difference.upserts.into_iter().next()
                    }
                    (_, barrier) => out.extend(barrier),
                }
            }
            return out;
        }
        for kind in ResourceKind::ALL.into_iter().rev().filter(|kind| *kind != ResourceKind::Barrier) {
            if let Some(difference) = self.difference(kind).filter(|d| !d.removed.is_empty()) {
                // One kind at a time: the next waits until this one is answered.
                return vec![self.outgoing(kind, difference, generation)];
            }
        }
        out.extend(self.barrier(generation, None));
        out
    }

    fn difference(&mut self, kind: ResourceKind) -> Option<Difference> {
        let subscription = self.subscriptions.get_mut(kind).filter(|s| s.open)?;
        if !self.view.kind().takes(kind) {
            return Some(Difference::default());
        }
        let mut difference = subscription.difference(&*self.view);
        // A suspect that is gone, or that the client already has again, is none.
        let upserts = &mut difference.upserts;
        while let Some(suspect) = subscription.suspects.front() {
            if upserts.iter().any(|versioned| versioned.name == *suspect) {
                upserts.retain(|versioned| versioned.name == *suspect);
                break;
            }
            subscription.suspects.pop_front();
        }
        Some(difference)
    }

    /// A real Envoy warms a changed cluster anew and waits for its endpoints, though it does not ask for them again.
    fn warm_anew(&mut self, difference: &Difference) {
        if self.view.kind() == ClientKind::Outrigger {
            return;
        }
        let Some(endpoints) = self.subscriptions.get_mut(ResourceKind::Endpoints) else { return };
        for versioned in &difference.upserts {
            if let Some(name) = &versioned.endpoints {
                endpoints.resend(name);
            }
        }
    }

    fn outgoing(&mut self, kind: ResourceKind, difference: Difference, generation: u64) -> Outgoing {
        let nonce = self.next_nonce.to_string();
        self.next_nonce += 1;
        self.outgoing_as(nonce, kind, difference, generation)
    }

    fn outgoing_as(
        &mut self,
        nonce: String,
        kind: ResourceKind,
        difference: Difference,
        generation: u64,
    ) -> Outgoing {
        let whole = self.whole_sets;
        let subscription = self.subscription(kind);
        if !difference.upserts.is_empty() || difference.is_empty() {
            subscription.suspects.pop_front();
        }
        subscription.note_sent(&difference, nonce.clone(), generation, whole);
        let resources = difference.upserts.len() + difference.removed.len() + difference.absent.len();
        self.view.report(ClientEvent::Sent { kind, generation, resources });
        Outgoing { kind, nonce, generation, difference, barrier: None }
    }

    /// The barrier carries the generation that was compared with. Later ones that have nothing for this client it need not know of.
    /// `with`: it goes along with the response of this nonce.
    fn barrier(&mut self, compared: u64, with: Option<String>) -> Option<Outgoing> {
        let kind = ResourceKind::Barrier;
        if self.view.kind() != ClientKind::Outrigger {
            self.view.report(ClientEvent::Settled { generation: compared });
            return None;
        }
        let confirmed = self.confirmed;
        let subscription = self.subscriptions.get_mut(kind).filter(|s| s.open && s.flight.is_none())?;
        let name = subscription
            .names
            .iter()
            .find(|name| !subscription.sent.contains_key(*name) || confirmed < compared)?;
        let barrier = self.seat.barrier(name, compared);
        if subscription.sent.get(name).is_some_and(|known| known.version == Some(barrier.version)) {
            return None;
        }
        self.confirmed = compared;
        let difference = Difference { upserts: vec![barrier], ..Difference::default() };
        Some(match with {
            None => self.outgoing(kind, difference, compared),
            Some(nonce) => self.outgoing_as(nonce, kind, difference, compared),
        })
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        let view = self.view.clone();
        self.subscriptions.iter_mut().for_each(|subscription| subscription.close(&*view));
    }
}

/// Whether additions of `later` must wait while those of `earlier` cannot be sent yet.
///
/// Endpoints and secrets never wait for clusters: Envoy acknowledges a cluster only when it has both.
fn holds(earlier: ResourceKind, later: ResourceKind) -> bool {
    use ResourceKind::{Cluster, Destination, Endpoints, Listener, Routes};
    match earlier {
        Cluster | Endpoints => matches!(later, Listener | Routes | Destination),
        Listener => later == Destination,
        _ => false,
    }
}

/// A client takes back an ACK when it finds later that it cannot put a resource in force. Refusals of versions that were
/// replaced since are old news.
fn vetoed(view: &dyn View, kind: ResourceKind, subscription: &Subscription, status: &rpc::Status) {
    for entry in nack::entries(status) {
        let known = subscription.sent.get(entry.name.as_str()).and_then(|known| known.version);
        if known.is_some_and(|version| version.is(&entry.version)) {
            let nack::Entry { name, version, field, reason, .. } = entry;
            view.report(ClientEvent::Nacked { kind, name, version, field, reason });
        }
    }
}

/// Leaves as much as one response carries, at least one resource.
fn portion(difference: &mut Difference) {
    let mut bytes = 0;
    let fit = difference.upserts.iter().take_while(|versioned| {
        let more = bytes < PORTION;
        bytes += versioned.wired().bytes().len();
        more
    });
    let fit = fit.count();
    difference.upserts.truncate(fit);
}
