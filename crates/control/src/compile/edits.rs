//! Edits of headers: those of a route, and those for one of its destinations.

use std::mem::take;

use outrigger_model::route::edits::Written;
use outrigger_model::route::{HeaderEdits, Route, RouteAction};

/// Where a route has one destination, the edits for that come after the route's own, as in Istio; of several the route's come last. Of
/// the authority the route's word is the last either way.
pub(super) fn of_the_only_share(route: &mut Route) {
    let RouteAction::Forward(forward) = &mut route.action else { return };
    let [only] = forward.clusters.as_mut_slice() else { return };
    let (mut request, response) = (take(&mut only.request_headers), take(&mut only.response_headers));
    if lists(&mut route.request_headers).into_iter().flatten().any(|(name, _)| is_authority(name)) {
        lists(&mut request).into_iter().for_each(|list| list.retain(|(name, _)| !is_authority(name)));
    }
    route.request_headers = take(&mut route.request_headers).then(&request);
    route.response_headers = take(&mut route.response_headers).then(&response);
}

fn lists(edits: &mut HeaderEdits) -> [&mut Vec<Written>; 4] {
    let HeaderEdits { set, add, set_if_present, add_if_absent, .. } = edits;
    [set, add, set_if_present, add_if_absent]
}

fn is_authority(name: &str) -> bool {
    name == ":authority" || name.eq_ignore_ascii_case("host")
}
