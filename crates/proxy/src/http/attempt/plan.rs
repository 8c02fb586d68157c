//! What attempts are made of, and what is left of those that failed.

use std::net::SocketAddr;
use std::sync::Arc;

use outrigger_model::route::table::CompiledRoute;
use outrigger_model::route::{AuthorityOf, Forward, RetryPolicy, WeightedCluster};
use smallvec::SmallVec;

use crate::failure::Failure;
use crate::http::upgrade::Upgrade;
use crate::runtime::cluster::ClusterHandle;

/// What all attempts of a request have in common.
pub struct Plan<'p> {
    pub route: &'p CompiledRoute,
    pub forward: &'p Forward,
    pub retry: Option<&'p RetryPolicy>,
    pub cluster: &'p Arc<ClusterHandle>,
    pub weighted: &'p WeightedCluster,
    pub upgrade: Upgrade,
    /// For consistent hashing.
    pub hash: Option<u64>,
}

impl Plan<'_> {
    /// Whether the authority of each attempt is the name of its endpoint.
    #[inline]
    pub fn names_endpoint(&self) -> bool {
        matches!(self.forward.rewrite.authority_of, Some(AuthorityOf::Endpoint))
    }
}

/// Endpoints that earlier attempts used.
pub type Tried = SmallVec<[SocketAddr; 1]>;

/// An attempt that did not bring a response.
#[derive(Debug)]
pub struct Failed {
    pub failure: Failure,
    /// A pooled connection ended without a byte of response: it may have been closed before the request came.
    pub stale: bool,
}

impl From<Failure> for Failed {
    fn from(failure: Failure) -> Self {
        Self { failure, stale: false }
    }
}
