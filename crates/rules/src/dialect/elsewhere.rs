//! Objects of kinds that we read, and that are for somebody else: an ingress, a gateway, a waypoint. What is wrong with one of these for us is
//! nothing that its owner need care about.

use serde_json::Value;

use crate::intent::GATEWAY_GROUP;

/// What Istio's policies may be bound to instead of workloads: always by a gateway or a waypoint.
const TARGETS: [(&str, &str); 4] = [
    (GATEWAY_GROUP, "Gateway"),
    (GATEWAY_GROUP, "GatewayClass"),
    ("", "Service"),
    ("networking.istio.io", "ServiceEntry"),
];

/// For whom an object of this kind is, in words that stand behind it, where nothing of it is for sidecars. It is then not in force here, whatever it
/// says. `None`: some of it is ours, or it does not say.
pub fn elsewhere(kind: &str, spec: &Value) -> Option<&'static str> {
    match kind {
        "AuthorizationPolicy" | "RequestAuthentication" => is_bound(spec)
            .then_some("is bound to a gateway or a waypoint by targetRefs, which is another controller's"),
        "VirtualService" => {
            let gateways = list(spec, "gateways");
            let is_named = |name: &Value| name.as_str().is_some_and(|name| name != "mesh");
            (!gateways.is_empty() && gateways.iter().all(is_named))
                .then_some("is for gateways, which are another controller's, and not for the mesh")
        }
        "HTTPRoute" | "GRPCRoute" | "TLSRoute" | "TCPRoute" => {
            let parents = list(spec, "parentRefs");
            let is_other = |parent: &Value| {
                parent.is_object() && reference(parent, (GATEWAY_GROUP, "Gateway")) != ("", "Service")
            };
            (!parents.is_empty() && parents.iter().all(is_other))
                .then_some("is attached to no Service, but to what is another controller's")
        }
        _ => None,
    }
}

fn is_bound(spec: &Value) -> bool {
    let one = spec.get("targetRef").filter(|one| !one.is_null());
    let mut all = list(spec, "targetRefs").iter().chain(one).peekable();
    all.peek().is_some() && all.all(|target| TARGETS.contains(&reference(target, ("", ""))))
}

/// Group and kind.
fn reference<'v>(of: &'v Value, (group, kind): (&'v str, &'v str)) -> (&'v str, &'v str) {
    let group = of["group"].as_str().unwrap_or(group);
    (if group == "core" { "" } else { group }, of["kind"].as_str().unwrap_or(kind))
}

fn list<'v>(spec: &'v Value, field: &str) -> &'v [Value] {
    spec[field].as_array().map_or(&[], Vec::as_slice)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn an_object_is_somebody_else_s_where_nothing_of_it_is_for_sidecars() {
        let gateway = json!({"group": GATEWAY_GROUP, "kind": "Gateway", "name": "waypoint"});
        let service = json!({"group": "", "kind": "Service", "name": "catalog"});
        let entry = json!({"group": "networking.istio.io", "kind": "ServiceEntry", "name": "world"});
        for (kind, spec, theirs) in [
            ("AuthorizationPolicy", json!({"targetRefs": [gateway]}), true),
            ("AuthorizationPolicy", json!({"targetRefs": [service, entry]}), true),
            ("RequestAuthentication", json!({"targetRef": gateway}), true),
            (
                "AuthorizationPolicy",
                json!({"targetRefs": [gateway, {"kind": "Deployment", "group": "apps", "name": "x"}]}),
                false,
            ),
            ("AuthorizationPolicy", json!({"targetRefs": []}), false),
            ("AuthorizationPolicy", json!({"targetRefs": [{}], "targetRef": null}), false),
            ("AuthorizationPolicy", json!({"selector": {}}), false),
            ("PeerAuthentication", json!({"targetRefs": [gateway]}), false),
            ("VirtualService", json!({"gateways": ["edge", "istio-system/in"]}), true),
            ("VirtualService", json!({"gateways": ["edge", "mesh"]}), false),
            ("VirtualService", json!({"gateways": []}), false),
            ("VirtualService", json!({"gateways": [7]}), false),
            ("VirtualService", json!({"hosts": ["a"]}), false),
            ("HTTPRoute", json!({"parentRefs": [{"name": "edge"}, gateway]}), true),
            (
                "TCPRoute",
                json!({"parentRefs": [{"name": "all", "kind": "ServiceImport", "group": "x"}]}),
                true,
            ),
            ("HTTPRoute", json!({"parentRefs": [gateway, service]}), false),
            (
                "HTTPRoute",
                json!({"parentRefs": [{"group": "core", "kind": "Service", "name": "catalog"}]}),
                false,
            ),
            ("HTTPRoute", json!({"parentRefs": ["edge"]}), false),
            ("HTTPRoute", json!({}), false),
            ("TrafficRules", json!({"gateways": ["edge"]}), false),
            ("HTTPRoute", json!([]), false),
        ] {
            assert_eq!(elsewhere(kind, &spec).is_some(), theirs, "{kind} {spec}");
        }
    }
}
