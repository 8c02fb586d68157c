//! One client's stream: the order in which things are sent, and the loop that sends them.
//!
//! Nothing is queued. A change only marks what may differ; what is sent is computed when the client has answered the
//! last response of the kind and the channel has room. So a slow client costs one pending state and gets the latest.

use std::collections::BTreeMap;
use std::sync::Arc;

use outrigger_model::cluster::Discovery;
use outrigger_model::resource::{Barrier, Resource, ResourceKind};
use tokio::sync::mpsc;
use tonic::{Status, Streaming};

use super::status::{self, BARRIER};
use super::subscription::{ALL, Batch, InFlight, Shape, Subscription};
use super::{ClientEvent, Options, Versioned, View};
use crate::kind::{ClientKind, kind_of};
use crate::wire::rpc;

/// Additions go out in this order and removals in the reverse, so that nothing refers to what is not there.
const ORDER: [ResourceKind; 6] = [
    ResourceKind::Secret,
    ResourceKind::Cluster,
    ResourceKind::Endpoints,
    ResourceKind::Listener,
    ResourceKind::Routes,
    ResourceKind::Destination,
];

/// Longest name of a resource, in bytes.
const LONGEST_NAME: usize = 2048;

/// Delta or state of the world: how requests and batches look on the wire.
pub(super) trait Dialect: Send + 'static {
    type Request: Send + 'static;
    type Response: Send + 'static;
    fn shape(kind: ResourceKind) -> Shape;
    fn node(request: &Self::Request) -> Option<&crate::wire::core::Node>;
    #[allow(clippy::result_large_err)]
    fn take(session: &mut Session, request: Self::Request) -> Result<(), Status>;
    fn response(batch: Batch, nonce: String, session: &Session) -> Self::Response;
}

/// The state of a stream.
pub(super) struct Session {
    pub(super) view: Arc<dyn View>,
    pub(super) options: Options,
    pub(super) generation: u64,
    pub(super) subscriptions: BTreeMap<ResourceKind, Subscription>,
    settled: Option<u64>,
    barrier: Option<u64>,
    nonces: u64,
    /// Something happened since [`Self::next`] last had nothing to send.
    stirred: bool,
    closed: String,
}

impl Drop for Session {
    fn drop(&mut self) {
        let reason = std::mem::take(&mut self.closed);
        self.view.report(ClientEvent::Closed { reason });
    }
}

impl Session {
    pub(super) fn new(view: Arc<dyn View>, options: Options) -> Self {
        Self {
            view,
            options,
            generation: 0,
            subscriptions: BTreeMap::new(),
            settled: None,
            barrier: None,
            nonces: 0,
            stirred: false,
            closed: "the connection was dropped".to_owned(),
        }
    }

    /// The kind that a request is about; `None` if this client cannot be sent it.
    #[allow(clippy::result_large_err)]
    pub(super) fn kind_of(&self, type_url: &str) -> Result<Option<ResourceKind>, Status> {
        if type_url.is_empty() {
            return Err(Status::invalid_argument("type_url: must not be empty on an aggregated stream"));
        }
        let kind = kind_of(type_url).filter(|kind| self.view.kind().takes(*kind));
        if kind.is_none() {
            tracing::debug!(type_url, "a client asks for a type that is not served to it");
        }
        Ok(kind)
    }

    /// Adds a subscription.
    #[allow(clippy::result_large_err)]
    pub(super) fn subscribe(&mut self, kind: ResourceKind, name: String, known: bool) -> Result<(), Status> {
        if name.is_empty() || name.len() > LONGEST_NAME {
            return Err(Status::invalid_argument(format!(
                "a resource name has 1 to {LONGEST_NAME} bytes, this one {}",
                name.len()
            )));
        }
        let count: usize = self.subscriptions.values().map(|s| s.names().len()).sum();
        if count >= self.options.max_subscriptions {
            return Err(Status::resource_exhausted(format!(
                "more than {} subscriptions on one stream",
                self.options.max_subscriptions
            )));
        }
        self.view.report(ClientEvent::Subscribed { kind, name: name.clone() });
        if let Some(subscription) = self.subscriptions.get_mut(&kind) {
            subscription.subscribe(name, known);
        }
        Ok(())
    }

    pub(super) fn unsubscribe(&mut self, kind: ResourceKind, name: &str) {
        let known = self.subscriptions.get_mut(&kind).is_some_and(|s| s.unsubscribe(name));
        if known {
            self.view.report(ClientEvent::Unsubscribed { kind, name: name.to_owned() });
        }
    }

    /// An ACK or a NACK. One of a response that is not the last of its kind is ignored, unless it names resources in
    /// our own way: so a client takes back an ACK when it finds later that it cannot put a resource in force.
    pub(super) fn answer(
        &mut self,
        kind: ResourceKind,
        nonce: &str,
        error: Option<&rpc::Status>,
        singles_out: bool,
    ) {
        let Some(subscription) = self.subscriptions.get_mut(&kind) else { return };
        let Some(answered) = subscription.in_flight.take_if(|waiting| waiting.nonce == nonce) else {
            if let Some(error) = error {
                status::vetoed(&*self.view, kind, subscription, error);
            }
            return;
        };
        match error {
            None => status::acked(&*self.view, kind, answered),
            Some(error) => {
                status::nacked(&*self.view, kind, subscription, answered, error, singles_out);
            }
        }
    }

    fn wake(&mut self, generation: u64) {
        self.generation = generation;
        self.subscriptions.values_mut().for_each(Subscription::stir);
    }

    /// What to send next, if anything may be sent now.
    pub(super) fn next(&mut self) -> Option<(Batch, String)> {
        let view = Arc::clone(&self.view);
        let mut waiting = Vec::new();
        for kind in ORDER {
            let Some(subscription) = self.subscriptions.get_mut(&kind) else { continue };
            let held = waiting.iter().any(|earlier| holds(*earlier, kind));
            if held || subscription.in_flight.is_some() {
                if subscription.has_additions(&*view) {
                    waiting.push(kind);
                }
                continue;
            }
            if let Some(batch) = subscription.additions(&*view, self.options.max_response_bytes) {
                self.after(&batch);
                return Some(self.sent(batch));
            }
        }
        // Removals wait for the answers: a refused route may still need its cluster.
        let quiet =
            self.subscriptions.iter().all(|(k, s)| *k == ResourceKind::Barrier || s.in_flight.is_none());
        if !waiting.is_empty() || !quiet {
            return None;
        }
        for kind in ORDER.into_iter().rev() {
            if let Some(batch) = self.subscriptions.get_mut(&kind).and_then(|s| s.removals(&*view)) {
                return Some(self.sent(batch));
            }
        }
        if self.settled != Some(self.generation) && !self.subscriptions.is_empty() {
            self.settled = Some(self.generation);
            view.report(ClientEvent::Settled { generation: self.generation });
        }
        self.next_barrier().map(|batch| self.sent(batch))
    }

    fn next_barrier(&mut self) -> Option<Batch> {
        let subscription = self.subscriptions.get(&ResourceKind::Barrier)?;
        if subscription.in_flight.is_some()
            || self.barrier == Some(self.generation)
            || !subscription.asks_for_anything()
        {
            return None;
        }
        self.barrier = Some(self.generation);
        let barrier = Barrier { name: BARRIER.to_owned(), generation: self.generation };
        let mut versioned = Versioned::new(Resource::Barrier(barrier));
        versioned.version = self.generation.to_string();
        Some(Batch {
            kind: ResourceKind::Barrier,
            resources: vec![Arc::new(versioned)],
            removed: Vec::new(),
            version: self.generation.to_string(),
        })
    }

    /// A real Envoy warms a changed cluster anew and wants its endpoints again, though it does not ask again.
    fn after(&mut self, batch: &Batch) {
        if batch.kind != ResourceKind::Cluster || self.view.kind() == ClientKind::Outrigger {
            return;
        }
        let Some(endpoints) = self.subscriptions.get_mut(&ResourceKind::Endpoints) else { return };
        for v in &batch.resources {
            if let Resource::Cluster(cluster) = &*v.resource
                && let Discovery::Eds { service_name } = &cluster.discovery
            {
                endpoints.resend(service_name.as_ref().unwrap_or(&cluster.name));
            }
        }
    }

    fn sent(&mut self, batch: Batch) -> (Batch, String) {
        self.nonces += 1;
        let nonce = self.nonces.to_string();
        let (kind, generation) = (batch.kind, self.generation);
        let mut items = Vec::with_capacity(batch.resources.len());
        for v in &batch.resources {
            items.push((v.name.clone(), v.version.clone()));
            let (name, version) = (v.name.clone(), v.version.clone());
            self.view.report(ClientEvent::Sent { kind, name, version, generation });
        }
        for name in &batch.removed {
            self.view.report(ClientEvent::Removed { kind, name: name.clone() });
        }
        if let Some(subscription) = self.subscriptions.get_mut(&kind) {
            subscription.last_nonce.clone_from(&nonce);
            subscription.in_flight = Some(InFlight { nonce: nonce.clone(), items });
        }
        (batch, nonce)
    }

    /// The state of a kind, made on the first request about it; whether this is the first.
    pub(super) fn touch(&mut self, kind: ResourceKind, shape: Shape) -> bool {
        let mut first = false;
        self.subscriptions.entry(kind).or_insert_with(|| {
            first = true;
            Subscription::new(kind, shape)
        });
        first
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

/// Whether a first request without names means "all": so it was before `*`, for these two.
pub(super) fn empty_means_all(kind: ResourceKind) -> bool {
    matches!(kind, ResourceKind::Cluster | ResourceKind::Listener)
}

/// [`ALL`] if the name is that, for a barrier too: there is only one.
pub(super) fn wildcard_of(kind: ResourceKind, name: String) -> String {
    if kind == ResourceKind::Barrier { ALL.to_owned() } else { name }
}

/// Serves the stream until either side ends it.
pub(super) async fn serve<D: Dialect>(
    mut session: Session,
    first: D::Request,
    mut inbound: Streaming<D::Request>,
    outbound: mpsc::Sender<Result<D::Response, Status>>,
) {
    let mut changes = session.view.changes();
    session.generation = *changes.borrow_and_update();
    let end = match D::take(&mut session, first) {
        Err(status) => Some(status),
        Ok(()) => {
            session.stirred = true;
            loop {
                let stirred = session.stirred;
                let step = tokio::select! {
                    message = inbound.message() => match message {
                        Ok(Some(request)) => D::take(&mut session, request),
                        Ok(None) => { session.closed = "the client closed the stream".to_owned(); break None }
                        Err(status) => { session.closed = status.to_string(); break None }
                    },
                    changed = changes.changed() => match changed {
                        Ok(()) => {
                            let generation = *changes.borrow_and_update();
                            session.wake(generation);
                            Ok(())
                        }
                        Err(_) => Err(Status::unavailable("the control plane is going away")),
                    },
                    room = outbound.reserve(), if stirred => {
                        let Ok(room) = room else { break None };
                        match session.next() {
                            Some((batch, nonce)) => room.send(Ok(D::response(batch, nonce, &session))),
                            None => session.stirred = false,
                        }
                        continue;
                    }
                };
                match step {
                    Ok(()) => session.stirred = true,
                    Err(status) => break Some(status),
                }
            }
        }
    };
    if let Some(status) = end {
        tracing::debug!(%status, "an xDS stream was closed");
        session.closed = status.to_string();
        // A client that reads nothing any more learns it from the end of the stream.
        let _ = outbound.try_send(Err(status));
    }
}
