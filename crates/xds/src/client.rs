//! ADS client: delta xDS over a channel that somebody else makes, with reconnects that lose nothing.
//!
//! Owns the stream, its nonces and what the client has; knows nothing of what the resources are for. What is wanted
//! lives in shared state, not in a queue: subscribing never blocks and never gets lost between two connections.

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use outrigger_model::resource::{Invalid, Resource, ResourceKind};
use parking_lot::Mutex;
use tokio::sync::{Notify, mpsc};
use tonic::transport::Channel;

use crate::node::{BARRIERS_WITHIN, NodeInfo};

mod backoff;
mod run;
mod stream;
mod subscription;

/// Stands for all resources of a kind.
const ALL: &str = "*";

/// What the client tells its consumer, in order.
#[derive(Debug, Clone, PartialEq)]
#[allow(clippy::large_enum_variant)] // few are ever in flight
pub enum Event {
    /// A stream is open; what changed while there was none follows.
    Connected,
    /// There is no stream; another is tried after a while. Told for every failed attempt.
    Disconnected {
        /// Why.
        reason: String,
    },
    /// A response: validated resources, and names that are gone or do not exist. May be empty.
    Update {
        /// The kind of all of them.
        kind: ResourceKind,
        /// New or changed, with their versions.
        upserts: Vec<(Resource, String)>,
        /// Gone, or not existing (yet).
        removed: Vec<String>,
    },
    /// A resource was refused; the control plane is told. Its last good version stays.
    Rejected {
        /// What is wrong.
        invalid: Invalid,
        /// The refused version.
        version: String,
        /// It is a cluster that asks for TLS with all of its endpoints: its last good version may be plain text.
        wants_tls: bool,
    },
}

/// How the client behaves; all have defaults.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// First bound of the random wait before a reconnect; doubles each time. Default 100 ms.
    pub backoff_base: Duration,
    /// Largest bound of that wait. Default 5 s.
    pub backoff_max: Duration,
    /// Largest response, in bytes. Default 64 MiB.
    pub max_response_bytes: usize,
    /// Events that wait for the consumer; beyond it the control plane waits. Default 64.
    pub queue: usize,
    /// A stream must open within this time. Default 30 s.
    pub open_timeout: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            backoff_base: Duration::from_millis(100),
            backoff_max: Duration::from_secs(5),
            max_response_bytes: 64 << 20,
            queue: 64,
            open_timeout: Duration::from_secs(30),
        }
    }
}

/// Says what is wanted. Cheap to clone; never blocks.
#[derive(Clone)]
pub struct Client {
    shared: Arc<Feed>,
}

struct Feed {
    wanted: Mutex<Wanted>,
    stir: Notify,
}

/// What the client tells, in order; dropped, the client ends.
pub struct Events {
    queue: mpsc::Receiver<Event>,
    shared: Arc<Feed>,
}

impl Events {
    /// The next one; none when the client has ended.
    pub async fn recv(&mut self) -> Option<Event> {
        let event = self.queue.recv().await?;
        if event == Event::Connected {
            self.shared.wanted.lock().followed += 1;
        }
        Some(event)
    }
}

#[derive(Default)]
struct Wanted {
    asks: BTreeMap<ResourceKind, Ask>,
    /// Everything up to this generation is in force. Of the last stream: another control plane counts for itself.
    in_force: Option<u64>,
    /// Streams that were opened, and of how many of them the consumer has heard.
    opened: u64,
    followed: u64,
    vetoes: Vec<Veto>,
    /// Given up since the stream was last told; asked for again in between, they have to be sent again.
    dropped: BTreeSet<(ResourceKind, String)>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Ask {
    wildcard: bool,
    names: BTreeSet<String>,
}

struct Veto {
    kind: ResourceKind,
    name: String,
    version: String,
    invalid: Invalid,
}

/// Dropped names that wait for a stream: more only gather while there is none.
const MOST_DROPPED: usize = 16 * 1024;

/// Vetoes that wait for a stream; more are only logged.
const MOST_VETOES: usize = 1024;

/// Makes a client. `connect` gives a channel for each attempt, with the credentials of that moment; the future is the
/// client itself and must be spawned. It ends when the receiver is dropped.
pub fn start<C, F>(
    connect: C,
    node: NodeInfo,
    options: Options,
) -> (Client, Events, impl Future<Output = ()> + Send + 'static)
where
    C: Fn() -> F + Send + 'static,
    F: Future<Output = Result<Channel, String>> + Send + 'static,
{
    let mut node = node;
    if node.metadata.is_null() {
        node.metadata = serde_json::Map::new().into();
    }
    if let Some(metadata) = node.metadata.as_object_mut() {
        metadata.insert(BARRIERS_WITHIN.to_owned(), true.into());
    }
    let shared = Arc::new(Feed { wanted: Mutex::default(), stir: Notify::new() });
    let (events, queue) = mpsc::channel(options.queue.max(1));
    let client = Client { shared: Arc::clone(&shared) };
    let told = Events { queue, shared: Arc::clone(&shared) };
    (client, told, run::run(connect, node, options, shared, events))
}

impl Client {
    fn ask(&self, change: impl FnOnce(&mut Wanted)) {
        change(&mut self.shared.wanted.lock());
        self.shared.stir.notify_one();
    }

    /// Asks for a resource by name. The answer is an update or, if it does not exist, a removal; later ones follow.
    pub fn subscribe(&self, kind: ResourceKind, name: &str) {
        self.ask(|w| {
            w.asks.entry(kind).or_default().names.insert(name.to_owned());
        });
    }

    /// No longer asks for it.
    pub fn unsubscribe(&self, kind: ResourceKind, name: &str) {
        self.ask(|w| {
            if let Some(ask) = w.asks.get_mut(&kind)
                && ask.names.remove(name)
                && w.dropped.len() < MOST_DROPPED
            {
                w.dropped.insert((kind, name.to_owned()));
            }
        });
    }

    /// Asks for all resources of a kind.
    pub fn wildcard(&self, kind: ResourceKind) {
        self.ask(|w| w.asks.entry(kind).or_default().wildcard = true);
    }

    /// Everything up to this generation is in force: its barrier is acknowledged. Where another stream has begun meanwhile, its
    /// barriers are not meant.
    pub fn ack_barrier(&self, generation: u64) {
        self.ask(|w| {
            if w.followed == w.opened {
                w.in_force = w.in_force.max(Some(generation));
            }
        });
    }

    /// Refuses a resource that was delivered, because it cannot be put in force; the control plane is told.
    pub fn reject(&self, kind: ResourceKind, name: &str, version: &str, invalid: Invalid) {
        self.ask(|w| {
            if w.vetoes.len() < MOST_VETOES {
                let (name, version) = (name.to_owned(), version.to_owned());
                w.vetoes.push(Veto { kind, name, version, invalid });
            } else {
                tracing::warn!(%invalid, "too many refusals wait for the control plane; this one is not reported");
            }
        });
    }
}

#[cfg(test)]
mod tests;
