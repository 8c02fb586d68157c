//! Between wire and model: [`decode`] validates what a control plane sent, [`encode`] says it to one kind of client.
//!
//! One file per kind of resource. A field that the model lacks and that changes what a proxy does is logged once at
//! debug; where leaving it out could send traffic to the wrong place or let somebody in, the resource is invalid.

use std::collections::HashSet;

use outrigger_model::resource::{Barrier, Destination, Host, Invalid, Resource, ResourceKind};
use parking_lot::Mutex;
use prost::Message;
#[cfg(feature = "server")]
use xxhash_rust::xxh3::xxh3_128;

use crate::kind::{ClientKind, kind_of, type_url};
use crate::wire::{self, own};

mod address;
mod balance;
mod breaker;
mod chain;
mod check;
mod claim;
mod cluster;
mod concurrency;
mod cors;
mod dns;
mod endpoint;
mod ext_authz;
mod extension;
mod filters;
mod flaw;
mod forward;
mod global_limit;
mod headers;
mod hedge;
mod http;
mod jwt;
mod listener;
mod local_limit;
mod matcher;
mod metadata;
mod mirror;
mod outlier;
mod path;
mod per_filter;
mod policy;
mod rate_limit;
mod rbac;
mod retry;
mod route;
mod row;
mod secret;
mod session;
mod shadow;
mod subsets;
mod tls;
mod upgrade;
mod value;

use flaw::{Decoded, Flaw};

/// A resource as it travels: what `google.protobuf.Any` holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Encoded {
    /// The type URL of its kind.
    pub type_url: &'static str,
    /// The protobuf bytes. Maps make them differ between two encodings of one resource: never hash them.
    pub value: Vec<u8>,
}

/// Encodes a resource for one kind of client.
///
/// Always yields something; what a kind of client cannot take at all ([`ClientKind::takes`]) must not be sent to it.
pub fn encode(resource: &Resource, kind: ClientKind) -> Encoded {
    let value = match resource {
        Resource::Cluster(r) => cluster::encode(r, kind).encode_to_vec(),
        Resource::Endpoints(r) => endpoint::encode(r, kind).encode_to_vec(),
        Resource::Listener(r) => listener::encode(r, kind).encode_to_vec(),
        Resource::Routes(r) => route::encode(r, kind).encode_to_vec(),
        Resource::Secret(r) => secret::encode(r, kind).encode_to_vec(),
        Resource::Destination(r) => {
            own::Destination { name: r.name.clone(), listener: r.listener.clone() }.encode_to_vec()
        }
        Resource::Host(r) => {
            let addresses = r.addresses.iter().map(ToString::to_string).collect();
            let names = r.names.clone();
            own::Host { name: r.name.clone(), host: r.host.clone(), addresses, names }.encode_to_vec()
        }
        Resource::Barrier(r) => {
            own::Barrier { name: r.name.clone(), generation: r.generation }.encode_to_vec()
        }
    };
    Encoded { type_url: type_url(resource.kind()), value }
}

/// Decodes and validates a resource.
///
/// # Errors
/// Names the resource (as far as it could be read), the path of the field and what is wrong with it. For an unknown
/// type URL the `kind` of the error is meaningless; the reason names the type.
pub fn decode(type_url: &str, bytes: &[u8]) -> Result<Resource, Invalid> {
    let Some(kind) = kind_of(type_url) else {
        return Err(Invalid {
            kind: ResourceKind::Cluster,
            name: String::new(),
            field: String::new(),
            reason: format!("unknown resource type \"{type_url}\""),
        });
    };
    match kind {
        ResourceKind::Cluster => {
            read(kind, bytes, |r: &wire::cluster::Cluster| &r.name, cluster::decode).map(Resource::Cluster)
        }
        ResourceKind::Endpoints => read(
            kind,
            bytes,
            |r: &wire::endpoint::ClusterLoadAssignment| &r.cluster_name,
            |r| if r.cluster_name.is_empty() { Err(empty("cluster_name")) } else { endpoint::decode(r) },
        )
        .map(Resource::Endpoints),
        ResourceKind::Listener => read(kind, bytes, |r: &wire::listener::Listener| &r.name, listener::decode)
            .map(Resource::Listener),
        ResourceKind::Routes => read(
            kind,
            bytes,
            |r: &wire::route::RouteConfiguration| &r.name,
            |r| if r.name.is_empty() { Err(empty("name")) } else { route::decode(r) },
        )
        .map(Resource::Routes),
        ResourceKind::Secret => {
            read(kind, bytes, |r: &wire::tls::Secret| &r.name, secret::decode).map(Resource::Secret)
        }
        ResourceKind::Destination => {
            read(kind, bytes, |r: &own::Destination| &r.name, destination).map(Resource::Destination)
        }
        ResourceKind::Host => read(kind, bytes, |r: &own::Host| &r.name, host).map(Resource::Host),
        ResourceKind::Barrier => {
            read(kind, bytes, |r: &own::Barrier| &r.name, barrier).map(Resource::Barrier)
        }
    }
}

/// Whether a cluster that may not be decoded as a whole asks for TLS with all of its endpoints.
pub(crate) fn wants_tls(cluster: &[u8]) -> bool {
    wire::cluster::Cluster::decode(cluster)
        .is_ok_and(|cluster| cluster.transport_socket.as_ref().is_some_and(tls::is_tls))
}

/// A hash of the model value, whose maps are ordered, never of encoded bytes.
///
/// Equal for equal resources in every process of the same release.
#[cfg(feature = "server")]
pub(crate) fn hash_of(resource: &Resource) -> u128 {
    // Serializing to memory fails only for maps with keys that are no strings; the model has none.
    let canonical = serde_json::to_vec(resource).unwrap_or_default();
    xxh3_128(&canonical)
}

fn read<M, R>(
    kind: ResourceKind,
    bytes: &[u8],
    name: impl Fn(&M) -> &String,
    decode: impl Fn(&M) -> Decoded<R>,
) -> Result<R, Invalid>
where
    M: Message + Default,
{
    let message = M::decode(bytes).map_err(|error| Invalid {
        kind,
        name: String::new(),
        field: String::new(),
        reason: format!("malformed protobuf: {error}"),
    })?;
    decode(&message).map_err(|flaw| flaw.of(kind, name(&message)))
}

fn empty(field: &'static str) -> Flaw {
    Flaw::new("must not be empty").under(field)
}

fn destination(wire: &own::Destination) -> Decoded<Destination> {
    match (wire.name.is_empty(), wire.listener.is_empty()) {
        (true, _) => Err(empty("name")),
        (_, true) => Err(empty("listener")),
        _ => Ok(Destination { name: wire.name.clone(), listener: wire.listener.clone() }),
    }
}

fn host(wire: &own::Host) -> Decoded<Host> {
    match (wire.name.is_empty(), wire.host.is_empty()) {
        (true, _) => return Err(empty("name")),
        (_, true) => return Err(empty("host")),
        _ => {}
    }
    let mut addresses = Vec::with_capacity(wire.addresses.len());
    for (i, text) in wire.addresses.iter().enumerate() {
        let flaw = || Flaw::new(format!("\"{text}\" is not an IP address")).under(format!("addresses[{i}]"));
        addresses.push(text.parse().map_err(|_| flaw())?);
    }
    let mut names = wire.names.clone();
    names.sort_unstable();
    Ok(Host { name: wire.name.clone(), host: wire.host.clone(), addresses, names })
}

fn barrier(wire: &own::Barrier) -> Decoded<Barrier> {
    if wire.name.is_empty() {
        return Err(empty("name"));
    }
    Ok(Barrier { name: wire.name.clone(), generation: wire.generation })
}

/// Says once per process that a field which we do not have was left out.
fn left_out(field: &'static str) {
    static SEEN: Mutex<Option<HashSet<&'static str>>> = Mutex::new(None);
    if SEEN.lock().get_or_insert_with(HashSet::new).insert(field) {
        tracing::debug!(field, "the control plane sent a field that has no meaning here; it is left out");
    }
}

/// `left_out` for each of the named fields that is set, those of old among them.
macro_rules! note {
    ($message:expr, $($field:ident),+ $(,)?) => {
        #[allow(deprecated)]
        {
            $(if $crate::convert::value::IsSet::is_set(&$message.$field) {
                $crate::convert::left_out(stringify!($field));
            })+
        }
    };
}
use note;

#[cfg(test)]
pub(crate) mod tests;
