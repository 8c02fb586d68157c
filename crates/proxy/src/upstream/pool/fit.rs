//! What a pooled connection was made for: it serves only requests that want the same.

use std::rc::Rc;
use std::sync::Arc;

use outrigger_model::identity::SpiffeId;
use tokio::time::Instant;

use crate::proof::Proof;
use crate::runtime::cluster::ClusterHandle;
use crate::runtime::endpoint::EndpointState;
use crate::upstream::connect::Connected;
use crate::upstream::way::Way;

/// What a connection was made for.
#[derive(Clone)]
pub struct Fit {
    identity: Option<SpiffeId>,
    /// The mesh's mTLS.
    pub(super) mesh: bool,
    /// Who is there, for that.
    pub(super) proof: Option<Rc<Proof>>,
    /// Of the cluster: a changed one may want other TLS.
    pub(super) cluster: Arc<ClusterHandle>,
}

impl Fit {
    pub(super) fn new(connected: &Connected, cluster: &Arc<ClusterHandle>, endpoint: &EndpointState) -> Self {
        Self {
            identity: endpoint.identity.clone(),
            mesh: cluster.uses_mesh(endpoint),
            proof: connected.proof.clone(),
            cluster: cluster.clone(),
        }
    }

    /// Whether a connection that began then has lived as long as its cluster lets one.
    pub(super) fn is_aged(&self, begun: Instant, now: Instant) -> bool {
        let longest = self.cluster.config.max_connection_duration;
        longest.is_some_and(|longest| now.saturating_duration_since(begun) >= longest)
    }

    pub(super) fn suits(&self, way: &Way, cluster: &Arc<ClusterHandle>, endpoint: &EndpointState) -> bool {
        let same_cluster =
            Arc::ptr_eq(&self.cluster, cluster) || self.cluster.config.tls == cluster.config.tls;
        same_cluster
            && self.mesh == cluster.uses_mesh(endpoint)
            && self.identity == endpoint.identity
            && self.proof.as_ref().is_none_or(|proof| proof.generation() == way.credentials.generation())
    }
}
