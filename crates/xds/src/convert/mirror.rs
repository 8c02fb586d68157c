//! Mirrors: `request_mirror_policies` of a route, or of its virtual host or route configuration where the route has none.

use outrigger_model::route::{Mirror, Route, RouteAction};

use super::cors::{decode_fraction, encode_fraction};
use super::flaw::{Decoded, Under, each, flaw};
use super::note;
use crate::wire::route::route_action::RequestMirrorPolicy;

pub(super) fn encode(mirrors: &[Mirror]) -> Vec<RequestMirrorPolicy> {
    let policy = |mirror: &Mirror| RequestMirrorPolicy {
        cluster: mirror.cluster.clone(),
        runtime_fraction: Some(encode_fraction(mirror.percentage)),
        disable_shadow_host_suffix_append: mirror.keep_host,
        ..Default::default()
    };
    mirrors.iter().map(policy).collect()
}

pub(super) fn decode(wire: &[RequestMirrorPolicy]) -> Decoded<Vec<Mirror>> {
    each(wire, "request_mirror_policies", |policy| {
        note!(policy, trace_sampled, request_headers_mutations, host_rewrite_literal);
        if !policy.cluster_header.is_empty() {
            return flaw("cluster_header", "is not supported");
        }
        if policy.cluster.is_empty() {
            return flaw("cluster", "must not be empty");
        }
        Ok(Mirror {
            cluster: policy.cluster.clone(),
            percentage: decode_fraction(policy.runtime_fraction.as_ref()).under("runtime_fraction")?,
            keep_host: policy.disable_shadow_host_suffix_append,
        })
    })
}

/// Routes that say nothing have what is said above them.
pub(super) fn inherit<'r>(routes: impl IntoIterator<Item = &'r mut Route>, above: &[Mirror]) {
    if above.is_empty() {
        return;
    }
    for route in routes {
        if let RouteAction::Forward(forward) = &mut route.action
            && forward.mirrors.is_empty()
        {
            forward.mirrors = above.to_vec();
        }
    }
}
