//! Joins the world to the ADS server: who a client is, what it may see, and what it reports.
//!
//! Identity decides, never the node's own words: namespace and service account come from the certificate, and the instance
//! that a node names counts only while it is registered with that very identity. Otherwise the node is a mere client of its
//! namespace.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::SystemTime;

use outrigger_model::identity::SpiffeId;
use outrigger_model::resource::ResourceKind;
use outrigger_xds::server::{ClientEvent, Seat, Source, Version, Versioned, View};
use outrigger_xds::{ClientKind, NodeInfo};
use parking_lot::Mutex;
use tonic::Status;

use crate::compile::cache::Compiled;
use crate::compile::scope::{REGEX_LIMIT, Scope};
use crate::keeper::Keeper;
use crate::metrics::Metrics;
use crate::presence::Presence;
use crate::rejections::Rejections;
use crate::status::{Board, Client, LONGEST_NAME, LONGEST_REASON, Nack, Refusal, cut};

/// What a client without a certificate is told.
pub(crate) const WITHOUT_CERTIFICATE: &str = "xDS takes a client certificate of this mesh: ask for one first (CSR service, or `outrigger identity issue`)";

/// Bytes of each thing that a client says of itself.
const LONGEST_WORD: usize = 512;

/// What every stream shares.
#[derive(Clone)]
pub struct XdsSource {
    keeper: Keeper,
    board: Arc<Board>,
    metrics: Arc<Metrics>,
    rejections: Rejections,
    trust_domain: String,
    /// On the port without TLS: who everybody is there, or nobody, and the node's word is taken.
    plaintext: Option<Option<SpiffeId>>,
    streams: Arc<AtomicU64>,
}

impl XdsSource {
    /// For the TLS port: without a certificate nobody is told anything.
    pub fn new(
        keeper: Keeper,
        board: Arc<Board>,
        metrics: Arc<Metrics>,
        rejections: Rejections,
        trust_domain: &str,
    ) -> Self {
        let trust_domain = trust_domain.to_owned();
        Self { keeper, board, metrics, rejections, trust_domain, plaintext: None, streams: Arc::default() }
    }

    /// The same world for the port without TLS.
    #[must_use]
    pub fn plaintext(&self, identity: Option<SpiffeId>) -> Self {
        Self { plaintext: Some(identity), ..self.clone() }
    }

    #[allow(clippy::result_large_err)] // tonic's own type
    fn identity(&self, node: &NodeInfo, peer: Option<&SpiffeId>) -> Result<SpiffeId, Status> {
        let identity = match (peer, &self.plaintext) {
            (Some(peer), _) => peer.clone(),
            (None, Some(Some(everybody))) => everybody.clone(),
            (None, Some(None)) => {
                let namespace = text(node, "NAMESPACE").unwrap_or("default");
                let account = text(node, "SERVICE_ACCOUNT").unwrap_or("default");
                let claimed = SpiffeId::workload(&self.trust_domain, namespace, account);
                claimed.map_err(|error| Status::invalid_argument(format!("node metadata: {error}")))?
            }
            (None, None) => {
                return Err(Status::unauthenticated(WITHOUT_CERTIFICATE));
            }
        };
        if identity.trust_domain() != self.trust_domain {
            let reason = format!("{identity} is not of trust domain {}", self.trust_domain);
            return Err(Status::permission_denied(reason));
        }
        // A revoked certificate comes no further than the handshake; on the port without TLS there is none.
        if self.keeper.published().revoked.has_identity(&identity) {
            return Err(Status::permission_denied(format!("{identity} is revoked")));
        }
        Ok(identity)
    }
}

impl XdsSource {
    /// Why a sidecar is not what its operator means it to be, with what to do; it is served all the same.
    fn trouble(&self, scope: &Scope, identity: &SpiffeId) -> Option<String> {
        let published = self.keeper.published();
        let world = &published.world;
        let id = scope.instance.as_deref()?;
        match (world.instance(id), scope.own(world)) {
            (None, _) => Some(format!(
                "sidecar \"{id}\" has no registered instance, so nobody is sent to it; register one as {}/{} (POST \
                 /v1/instances)",
                scope.namespace, scope.service_account
            )),
            (Some(other), None) => Some(format!(
                "sidecar \"{id}\" is {identity}, but the instance of that id runs as {}/{}: its join file or its node.id is \
                 another workload's",
                other.namespace, other.service_account
            )),
            (_, Some(_)) => self.board.has_instance(id).then(|| {
                format!(
                    "a second stream for instance \"{id}\": unless its sidecar has just come back, two have that node.id"
                )
            }),
        }
    }
}

impl Source for XdsSource {
    fn open(
        &self,
        node: &NodeInfo,
        peer: Option<&SpiffeId>,
        remote: Option<SocketAddr>,
    ) -> Result<Arc<dyn View>, Status> {
        let identity = self.identity(node, peer).inspect_err(|status| {
            let from = remote.map_or_else(|| "unknown".to_owned(), |remote| remote.ip().to_string());
            self.rejections.note("xds", &from, status.message());
        })?;
        let (Some(namespace), Some(service_account)) = (identity.namespace(), identity.service_account())
        else {
            let reason =
                format!("{identity} is no workload of this mesh: it has no namespace and service account");
            return Err(Status::permission_denied(reason));
        };
        // Kept for as long as the stream lives, and logged.
        let words = [&node.id, &node.user_agent, &node.version].map(String::len);
        if words.into_iter().max().is_some_and(|longest| longest > LONGEST_WORD) {
            let reason = format!("node: id and user agent may have up to {LONGEST_WORD} bytes");
            return Err(Status::invalid_argument(reason));
        }
        let claimed = text(node, "INSTANCE").unwrap_or(&node.id).to_owned();
        let scope = Scope {
            kind: client_kind(&node.user_agent),
            namespace: namespace.to_owned(),
            service_account: service_account.to_owned(),
            instance: (!claimed.is_empty()).then_some(claimed),
            bind: text(node, "OUTBOUND_BIND").and_then(|ip| ip.parse().ok()),
            secure: node.metadata.get("SECURE").is_some_and(|secure| *secure == true || *secure == "true"),
            regex_limit: number(node, "RE2_MAX_PROGRAM_SIZE").map_or(REGEX_LIMIT, rounded),
        };
        let own = scope.own(&self.keeper.published().world).is_some();
        if scope.kind == ClientKind::Outrigger
            && let Some(trouble) = self.trouble(&scope, &identity)
        {
            tracing::warn!(node = %node.id, %identity, ?remote, "{trouble}");
        }
        let stream = self.streams.fetch_add(1, Ordering::Relaxed);
        let asked = Arc::<Mutex<_>>::default();
        let compiled = self.keeper.published().compiled.clone();
        let seat = Arc::new(compiled.audience().join(scope.instance.as_deref()));
        let client = Client {
            scope: scope.clone(),
            seat: seat.clone(),
            asked: asked.clone(),
            node: node.id.clone(),
            instance: scope.instance.clone().filter(|_| own),
            identity: Some(identity.clone()),
            kind: scope.kind,
            version: format!("{} {}", node.user_agent, node.version).trim().to_owned(),
        };
        tracing::info!(node = %node.id, %identity, kind = ?scope.kind, instance = ?client.instance, ?remote, "xDS client connected");
        self.board.connected(stream, client);
        let beat = |instance| {
            let (board, keeper, scope) = (self.board.clone(), self.keeper.clone(), scope.clone());
            // A sidecar may be here before its instance is registered.
            let told =
                move || board.beside(stream, scope.own(&keeper.published().world).map(|own| own.id.clone()));
            let who = (identity.clone(), text(node, "INCARNATION").map(str::to_owned));
            Presence::of(instance, who, self.keeper.clone(), seat.moves(), told)
        };
        let presence = scope.instance.clone().map(beat);
        let node = node.id.clone();
        let source = self.clone();
        Ok(Arc::new(Subscriber { source, stream, node, scope, compiled, seat, asked, _presence: presence }))
    }
}

/// A string of the node's metadata; one that is longer than any name is none.
fn text<'n>(node: &'n NodeInfo, key: &str) -> Option<&'n str> {
    node.metadata.get(key)?.as_str().filter(|text| !text.is_empty() && text.len() <= LONGEST_WORD)
}

/// A number of the node's metadata, written as one or as text.
fn number(node: &NodeInfo, key: &str) -> Option<u32> {
    let value = node.metadata.get(key)?;
    value.as_str().map_or_else(|| value.as_f64(), |text| text.parse().ok()).map(|number| number as u32)
}

/// Down to the default or a power of two: clients that say the same see the same, and there are few of these.
fn rounded(limit: u32) -> u32 {
    match limit {
        0 => 0,
        REGEX_LIMIT => REGEX_LIMIT,
        other => 1 << other.ilog2(),
    }
}

/// Names that a gRPC client asked for and that are remembered: as many as it may ask for at once.
const MOST_ASKED: usize = 20_000;

/// By the name that programs give themselves: `outrigger`, `envoy`, `gRPC C-core`, `gRPC Go`, `grpc-java`.
fn client_kind(user_agent: &str) -> ClientKind {
    let lower = user_agent.to_ascii_lowercase();
    if lower.starts_with("outrigger") {
        ClientKind::Outrigger
    } else if lower.starts_with("grpc") {
        ClientKind::Grpc
    } else {
        ClientKind::Envoy
    }
}

/// One stream.
struct Subscriber {
    source: XdsSource,
    stream: u64,
    node: String,
    scope: Scope,
    compiled: Arc<Compiled>,
    seat: Arc<Seat>,
    asked: Arc<Mutex<BTreeSet<(ResourceKind, String)>>>,
    /// Renews the lease of the instance that it stands beside.
    _presence: Option<Presence>,
}

impl Subscriber {
    fn nack(&self, kind: ResourceKind, name: String, version: String, field: String, reason: String) {
        let [name, version, field] = [name, version, field].map(|text| cut(text, LONGEST_NAME));
        let reason = cut(reason, LONGEST_REASON);
        tracing::warn!(node = %self.node, ?kind, name, field, reason, "xDS client refused a resource");
        self.source.metrics.rejected(kind);
        // Several names stand in one text when the client did not say which one it meant.
        let refused = name.split(", ").filter_map(|name| self.resource(kind, name));
        let rules = refused.flat_map(|versioned| versioned.origins.to_vec());
        let rules = rules.collect::<BTreeSet<_>>().into_iter().collect();
        self.source.board.nacked(self.stream, kind, Nack { name, version, field, reason, rules });
    }

    /// Whether another version than the refused one has been taken, or the resource is gone.
    fn is_cured(&self, kind: ResourceKind, refusal: &Refusal) -> bool {
        refusal.version.is_empty()
            || self.version(kind, &refusal.name).is_none_or(|current| !current.is(&refusal.version))
    }

    fn converged(&self, generation: u64) {
        let published = self.source.keeper.published();
        // Only the latest: of older ones the time is no longer known, and nobody waits for them.
        if published.generation() == generation
            && let Ok(taken) = SystemTime::now().duration_since(published.at)
        {
            self.source.metrics.convergence.observe(taken.as_secs_f64());
        }
    }
}

impl View for Subscriber {
    fn kind(&self) -> ClientKind {
        self.scope.kind
    }

    fn seat(&self) -> &Arc<Seat> {
        &self.seat
    }

    fn resource(&self, kind: ResourceKind, name: &str) -> Option<Arc<Versioned>> {
        if self.scope.kind == ClientKind::Grpc && matches!(kind, ResourceKind::Routes | ResourceKind::Cluster)
        {
            let mut asked = self.asked.lock();
            if asked.len() < MOST_ASKED {
                asked.insert((kind, name.to_owned()));
            }
        }
        self.compiled.resource(&self.scope, kind, name)
    }

    fn version(&self, kind: ResourceKind, name: &str) -> Option<Version> {
        self.compiled.version(&self.scope, kind, name)
    }

    fn wildcard_names(&self, kind: ResourceKind) -> Arc<[Arc<str>]> {
        self.compiled.wildcard_names(&self.scope, kind)
    }

    fn let_go(&self, kind: ResourceKind, name: &str) {
        self.compiled.let_go(kind, name);
    }

    fn report(&self, event: ClientEvent) {
        let board = &self.source.board;
        match event {
            ClientEvent::Sent { kind, generation, resources } => {
                self.source.metrics.pushed(kind);
                board.sent(self.stream, kind, generation, resources);
            }
            ClientEvent::Acked { kind, .. } => {
                board.acked(self.stream, kind, |refusal| self.is_cured(kind, refusal));
            }
            ClientEvent::Nacked { kind, name, version, field, reason } => {
                self.nack(kind, name, version, field, reason)
            }
            ClientEvent::BarrierAcked { generation } => {
                board.barrier(self.stream, generation);
                self.converged(generation);
            }
            ClientEvent::Settled { generation } => board.settled(self.stream, generation),
            ClientEvent::Closed { reason } => {
                tracing::info!(node = %self.node, reason, "xDS client disconnected");
                board.disconnected(self.stream);
            }
        }
    }
}

impl Drop for Subscriber {
    fn drop(&mut self) {
        if let Some(instance) = &self.scope.instance {
            self.compiled.leave(&self.seat, instance);
        }
    }
}

#[cfg(test)]
mod tests;
