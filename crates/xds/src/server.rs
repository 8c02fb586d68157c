//! The ADS server: delta and state-of-the-world over one engine, for Outrigger, Envoy and gRPC clients.
//!
//! Owns what each subscriber was sent and what it acknowledged. What there is to send comes from a [`Source`]; nothing here
//! knows registries or rules.

use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};

use outrigger_model::cluster::Discovery;
use outrigger_model::identity::SpiffeId;
use outrigger_model::resource::{Resource, ResourceKind};
use parking_lot::Mutex;

use wired::Wired;

use crate::{ClientKind, NodeInfo, encode};

mod audience;
mod delta;
mod door;
mod engine;
mod messages;
mod service;
mod sotw;
mod subscription;
mod subscriptions;
mod version;
mod weight;
mod wired;

#[cfg(test)]
mod tests;

pub use audience::{Audience, Holders, Name, Seat, WILDCARD};
pub use door::AdsServer;
pub use service::AdsService;
pub use version::Version;

/// Bytes of a name that a client asks for.
const LONGEST_NAME: usize = 512;
/// Bytes of all names that the client of a stream holds: as many as it may have of the longest kinds that a mesh makes.
const ROOM: usize = 8 << 20;

/// A resource with its version, as one kind of client sees it; from when it is first sent on only as bytes, which take less room.
#[derive(Debug)]
pub struct Versioned {
    /// Its name.
    pub name: Arc<str>,
    /// From its content.
    pub version: Version,
    /// The rules that it was made from, as `VirtualService shop/catalog`.
    pub origins: Box<[String]>,
    /// Of a cluster whose endpoints are another resource the name of that.
    endpoints: Option<Box<str>>,
    kind: ClientKind,
    unsent: Mutex<Option<Box<Resource>>>,
    wired: OnceLock<Wired>,
}

impl Versioned {
    /// Computes the version.
    pub fn new(resource: Resource, kind: ClientKind) -> Self {
        Self::named(&resource.name().into(), resource, kind)
    }

    /// The same; a name that is known already is shared with whoever has it.
    pub fn named(known: &Arc<str>, resource: Resource, kind: ClientKind) -> Self {
        let name = if **known == *resource.name() { known.clone() } else { resource.name().into() };
        let version = Version::of(&resource);
        let endpoints = match &resource {
            Resource::Cluster(cluster) => match &cluster.discovery {
                Discovery::Eds { service_name } => {
                    service_name.clone().or_else(|| Some(cluster.name.clone()))
                }
                _ => None,
            },
            _ => None,
        };
        let endpoints = endpoints.map(String::into_boxed_str);
        let origins = resource.origins().into_iter().map(ToString::to_string).collect();
        Self {
            name,
            version,
            origins,
            endpoints,
            kind,
            unsent: Mutex::new(Some(Box::new(resource))),
            wired: OnceLock::new(),
        }
    }

    /// As its kind of client reads it.
    fn wired(&self) -> &Wired {
        self.wired.get_or_init(|| {
            // Only this takes it, and only once.
            let resource = self.unsent.lock().take();
            resource
                .map(|resource| Wired::new(&self.name, self.version, &encode(&resource, self.kind)))
                .unwrap_or_default()
        })
    }

    /// The resource, as long as it was sent to nobody.
    pub fn resource(&self) -> Option<Resource> {
        self.unsent.lock().as_deref().cloned()
    }
}

/// Where resources come from.
pub trait Source: Send + Sync + 'static {
    /// A client opened a stream. `peer` is the identity that its certificate proved.
    ///
    /// # Errors
    /// The status with which the stream is refused.
    #[allow(clippy::result_large_err)] // tonic's own type
    fn open(
        &self,
        node: &NodeInfo,
        peer: Option<&SpiffeId>,
        remote: Option<SocketAddr>,
    ) -> Result<Arc<dyn View>, tonic::Status>;
}

/// What one client may see.
pub trait View: Send + Sync + 'static {
    /// How resources are encoded for it.
    fn kind(&self) -> ClientKind;
    /// The stream's place in the audience, where its source marks what changed for it.
    fn seat(&self) -> &Arc<Seat>;
    /// A resource by name.
    fn resource(&self, kind: ResourceKind, name: &str) -> Option<Arc<Versioned>>;
    /// Its version: all that matters to those who have it.
    fn version(&self, kind: ResourceKind, name: &str) -> Option<Version>;
    /// The names of all that a wildcard subscription gets; some of them may not be there.
    fn wildcard_names(&self, kind: ResourceKind) -> Arc<[Arc<str>]>;
    /// Nobody holds this name any more; somebody may again when this is called.
    fn let_go(&self, kind: ResourceKind, name: &str);
    /// Something happened on the stream.
    fn report(&self, event: ClientEvent);
}

/// What happens on the stream of a client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ClientEvent {
    /// A response of a kind was sent.
    Sent {
        /// The kind.
        kind: ResourceKind,
        /// The generation that it brings.
        generation: u64,
        /// Number of resources in it, removals included.
        resources: usize,
    },
    /// The client accepted everything of a kind up to a generation.
    Acked {
        /// The kind.
        kind: ResourceKind,
        /// The generation.
        generation: u64,
    },
    /// The client refused a resource.
    Nacked {
        /// The kind.
        kind: ResourceKind,
        /// The resource; several names joined with `, ` where the client does not say which of them.
        name: String,
        /// The refused version; empty where several are meant.
        version: String,
        /// Path of the field; empty where the client does not say.
        field: String,
        /// The client's words.
        reason: String,
    },
    /// The client has everything up to a generation in force.
    BarrierAcked {
        /// The generation.
        generation: u64,
    },
    /// A client without barriers was sent everything up to a generation, and has answered all of it.
    Settled {
        /// The generation.
        generation: u64,
    },
    /// The stream ended.
    Closed {
        /// Why.
        reason: String,
    },
}
