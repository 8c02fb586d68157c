//! Where a request may be sent: clusters, their endpoints, and what these do with it.

use std::collections::BTreeSet;

use outrigger_model::cluster::{NOWHERE, PASSTHROUGH, UpstreamProtocol};
use outrigger_model::endpoint::{Endpoint, Health};
use outrigger_model::path::PathNormalization;
use outrigger_model::request::RequestView;
use outrigger_model::resource::{Resource, ResourceKind};
use outrigger_model::route::table::CompiledRoute;
use outrigger_model::route::{Forward, WeightedCluster};

use super::body::{InboundBody, Outcome, TargetBody};
use super::inbound::{Arriving, judged};
use super::request::Asked;
use super::{Connected, See, levels, words};
use crate::instance::Instance;

/// Endpoints of a cluster that are looked at; of more, these stand for all.
pub(super) const MOST_JUDGED: usize = 256;

/// Who calls, and what is known of whom.
pub(super) struct Caller<'a> {
    pub(super) see: &'a See<'a>,
    pub(super) connected: &'a Connected,
    pub(super) source: &'a Instance,
}

/// A request that a route forwards.
pub(super) struct Sent<'a> {
    pub(super) route: &'a CompiledRoute,
    pub(super) forward: &'a Forward,
    pub(super) request: &'a Asked,
    pub(super) mode: PathNormalization,
}

/// A target and what may come of it.
pub(super) struct Reached {
    pub(super) target: TargetBody,
    pub(super) outcomes: Vec<Outcome>,
    pub(super) note: Option<String>,
}

impl Caller<'_> {
    /// One share of a route, or of a TCP proxy.
    pub(super) fn reach(&self, share: &WeightedCluster, total: u64, sent: Option<&Sent<'_>>) -> Reached {
        let percent = f64::from(share.weight) * 100.0 / total.max(1) as f64;
        let mut target = TargetBody { cluster: share.cluster.clone(), percent, ..TargetBody::default() };
        let outcome = |kind: &str, status, why: &str| Outcome {
            kind: kind.to_owned(),
            status,
            cluster: Some(share.cluster.clone()),
            why: Some(why.to_owned()),
            ..Outcome::default()
        };
        let done = |target, outcome| Reached { target, outcomes: vec![outcome], note: None };
        let request = match sent.map(|sent| rewritten(sent, share)).transpose() {
            Ok(request) => request,
            Err(why) => return done(target, outcome("failed", Some(400), &why)),
        };
        if let (Some(request), Some(sent)) = (&request, sent)
            && request.path() != sent.request.path()
        {
            target.path = Some(request.path().to_owned());
        }
        if share.cluster == PASSTHROUGH {
            return done(target, outcome("outside", None, super::OUTSIDE));
        }
        let found = self.see.resource(ResourceKind::Cluster, &share.cluster);
        let Some(Resource::Cluster(cluster)) = found else {
            let why = match share.cluster.as_str() {
                NOWHERE => "the backend of this share is not there".to_owned(),
                name => format!("there is no {name}"),
            };
            let status = sent.map(|sent| sent.forward.no_cluster.status());
            return done(target, outcome("failed", status, &why));
        };
        target.origin = cluster.origin.as_ref().map(ToString::to_string);
        target.policy = words::policy(&cluster);
        let Some(set) = self.see.endpoints(&cluster) else {
            return done(target, outcome("forwarded", None, "its endpoints are found by the proxy"));
        };
        let is_healthy = |endpoint: &&Endpoint| endpoint.health == Health::Healthy;
        (target.healthy, target.endpoints) = (set.iter().filter(is_healthy).count(), set.len());
        target.levels = levels::of(&set);
        let idle = target.levels.iter().filter(|level| level.percent == 0);
        let idle: BTreeSet<u32> = idle.map(|level| level.priority).collect();
        let healthy = |idles: bool| {
            let places = set.localities.iter().filter(|place| idle.contains(&place.priority) == idles);
            places.flat_map(|place| &place.endpoints).filter(is_healthy).take(MOST_JUDGED).collect::<Vec<_>>()
        };
        let http2 = cluster.protocol == UpstreamProtocol::Http2;
        let (see, connected, source) = (self.see, self.connected, self.source);
        let (tls, request, broken) = (&cluster.tls, request.as_ref(), sent.map(|_| 503));
        let arriving = Arriving { see, connected, source, tls, request, http2, broken };
        let (first, spare) = (healthy(false), healthy(true));
        let left_out = target.healthy > first.len() + spare.len();
        target.inbound = judged(&arriving, first.into_iter());
        target.spare = judged(&arriving, spare.into_iter());
        let mut outcomes: Vec<_> =
            target.inbound.iter().map(|inbound| of_inbound(&share.cluster, inbound)).collect();
        if outcomes.is_empty() {
            let why = match target.endpoints {
                0 => "it has no endpoint".to_owned(),
                all => format!("none of its {all} endpoints takes requests"),
            };
            outcomes.push(outcome("failed", sent.map(|_| 503), &why));
        }
        let note = left_out
            .then(|| format!("of {} the first {MOST_JUDGED} endpoints were looked at", share.cluster));
        Reached { target, outcomes, note }
    }
}

/// The request as the proxy sends it, edits in its order.
fn rewritten(sent: &Sent<'_>, share: &WeightedCluster) -> Result<Asked, String> {
    let mut request = sent.request.clone();
    request.edit(&share.request_headers);
    request.edit(&sent.route.config.request_headers);
    if let Some(authority) = &share.authority {
        request.set_authority(authority);
    }
    let authority = sent.route.authority(&sent.forward.rewrite, &request).map(|text| text.into_owned());
    if let Some(path) = sent.route.rewritten(&sent.forward.rewrite, request.path()) {
        let path = sent.mode.apply(&path).map_err(|refusal| refusal.to_string())?.unwrap_or(path);
        request.set_path(path);
    }
    if let Some(authority) = &authority {
        request.set_authority(authority);
    }
    Ok(request)
}

pub(super) fn of_inbound(cluster: &str, inbound: &InboundBody) -> Outcome {
    let kind = match inbound.decision.as_str() {
        "allowed" => "forwarded",
        "denied" => "denied",
        "asks" => "asked",
        _ => "failed",
    };
    Outcome {
        kind: kind.to_owned(),
        status: inbound.status,
        cluster: Some(cluster.to_owned()),
        instances: inbound.instances.clone(),
        origin: inbound.origin.clone().filter(|_| kind != "forwarded"),
        why: (kind != "forwarded").then(|| inbound.why.clone()),
    }
}
