//! Sessions: a client that carries the address of an endpoint goes there again, as long as that is an endpoint of the route's clusters and
//! takes requests. What it carries is the filter's to read and write (`http/filter/session.rs`).

use std::net::SocketAddr;
use std::sync::Arc;

use outrigger_model::route::table::CompiledRoute;
use outrigger_model::route::{Forward, WeightedCluster};

use super::attempt::{Plan, Tried};
use super::conn::RequestConfig;
use super::context::Extras;
use crate::failure::{Failure, FailureKind, Stage};
use crate::runtime::endpoint::EndpointState;

/// The share of a route that a session belongs to: weights are for clients that have none.
#[cold]
pub fn share<'f>(
    extras: &Extras,
    view: &RequestConfig,
    route: &CompiledRoute,
    forward: &'f Forward,
) -> Option<(usize, &'f WeightedCluster)> {
    let has = |address: SocketAddr, share: &WeightedCluster| {
        let cluster = view.http.cluster_of(share);
        share.weight > 0 && cluster.is_some_and(|cluster| cluster.serving_at(address).is_some())
    };
    let token = extras.session().filter(|_| forward.clusters.len() > 1);
    let kept = token
        .and_then(|token| forward.clusters.iter().enumerate().find(|(_, share)| has(token.address, share)));
    kept.or_else(|| route.pick_cluster(forward, fastrand::u64(..)))
}

/// The endpoint of a session, where its first attempt goes; `None`: any will do.
///
/// # Errors
/// It takes no requests any more, and no other will do.
#[cold]
pub fn endpoint(
    extras: &Extras,
    plan: &Plan<'_>,
    tried: &Tried,
) -> Option<Result<Arc<EndpointState>, Failure>> {
    let token = extras.session().filter(|_| tried.is_empty())?;
    if let Some(endpoint) = plan.cluster.serving_at(token.address) {
        return Some(Ok(endpoint));
    }
    let status = plan.route.config.session.as_ref()?.strict?;
    let detail = format!("the session's endpoint {} takes no requests any more", token.address);
    let failure = Failure::local(Stage::Pick, FailureKind::SessionLost(status), detail);
    Some(Err(failure.because_of(plan.cluster.origin.clone())))
}
