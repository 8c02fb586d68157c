//! How long calls of gRPC may take, where rules say nothing of them.

use outrigger_model::route::{GrpcTimeout, RouteAction};

use super::*;

fn grpc_timeout(yaml: &str) -> (Option<GrpcTimeout>, Option<std::time::Duration>) {
    let compiled = compiled(shop(), yaml);
    let routes = routes_of(get(&compiled, &web(), ResourceKind::Routes, CATALOG));
    let RouteAction::Forward(forward) = &routes[0].action else { panic!("{routes:?}") };
    let limits = forward.limits.as_deref().copied().unwrap_or_default();
    (limits.grpc_timeout, limits.max_duration)
}

#[test]
fn calls_of_grpc_have_their_own_time_within_that_of_the_route() {
    let none = GrpcTimeout::default();
    assert_eq!(grpc_timeout(""), (Some(none), None), "without a rule, too");
    let rule = "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: catalog, namespace: shop}\nspec:\n  hosts: [catalog]\n  \
                http: [{route: [{destination: {host: catalog}}], timeout: 1s}]\n";
    let second = std::time::Duration::from_secs(1);
    assert_eq!(grpc_timeout(rule), (Some(GrpcTimeout { max: second, ..none }), None));
    assert_eq!(grpc_timeout(&rule.replace(", timeout: 1s", "")), (Some(none), None));
    let page = "apiVersion: outrigger.io/v1\nkind: TrafficRules\nmetadata: {name: catalog, namespace: shop}\nspec:\n  service: catalog\n  timeout: 2s\n  \
                streams: {maxDuration: 5s}\n";
    let own = Some(GrpcTimeout { max: 2 * second, ..none });
    assert_eq!(grpc_timeout(page), (own, Some(5 * second)));
}
