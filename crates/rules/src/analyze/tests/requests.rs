//! What attached routes and rate limits ask of requests is looked at as what routes for hosts do.

use super::*;

fn attached(rule: &str) -> String {
    let spec = format!("parentRefs: [{{group: '', kind: Service, name: reviews}}]\nrules:\n- {rule}");
    object("gateway.networking.k8s.io/v1", "HTTPRoute", &spec)
}

fn matching(path: &str) -> String {
    attached(&format!("matches: [{{path: {{{path}}}}}]\n  backendRefs: [{{name: reviews, port: 80}}]"))
}

fn filtered(filter: &str, backends: &str) -> String {
    attached(&format!("filters: [{{{filter}}}]\n  backendRefs: [{backends}]"))
}

fn limit(asks: &str) -> String {
    let spec = format!("service: reviews\nrateLimit: {{name: few, requests: 5, per: 1s, match: {{{asks}}}}}");
    object("outrigger.io/v1", "TrafficRules", &spec)
}

#[test]
fn paths_of_attached_routes_that_no_request_has_are_told() {
    let told = only(&matching("type: PathPrefix, value: '/api/*/x'"));
    assert!(told.contains("warning OUT0117: HTTPRoute shop/reviews: spec.rules[0].matches[0]"), "{told}");
    let told = only(&matching("type: Exact, value: /%61"));
    assert!(told.contains("warning OUT0107") && told.ends_with("Did you mean \"/a\"?"), "{told}");
    let told = only(&matching("type: RegularExpression, value: 'api/.*'"));
    assert!(told.contains("warning OUT0107") && told.contains("so it never matches"), "{told}");
    for path in
        ["type: PathPrefix, value: /api", "type: Exact, value: /a", "type: RegularExpression, value: '/a.*'"]
    {
        silent(&matching(path));
    }
}

#[test]
fn limits_that_no_request_falls_under_are_told() {
    let told = only(&limit("path: {exact: /orders//new}"));
    assert!(
        told.contains("warning OUT0107: TrafficRules shop/reviews: rate limit \"few\" names the path"),
        "{told}"
    );
    assert!(
        told.contains("so it limits nobody") && told.ends_with("Did you mean \"/orders/new\"?"),
        "{told}"
    );
    let told = only(&limit("method: post"));
    assert!(told.contains("warning OUT0106") && told.contains("so it limits nobody"), "{told}");
    let told = only(&limit("path: {prefix: '/orders/*'}"));
    assert!(told.contains("warning OUT0117") && told.contains("rate limit \"few\" has a *"), "{told}");
    silent(&limit("path: {exact: /orders/new}, method: POST"));
    // Of a limit of a route its route is told.
    let spec = "service: reviews\nroutes:\n- match: {path: {exact: /a//b}, method: post}\n  rateLimit: {requests: 5, per: 1s}";
    let told = found(&object("outrigger.io/v1", "TrafficRules", spec));
    assert_eq!(told.len(), 2, "{told:#?}");
    assert!(told.iter().all(|told| told.contains(": spec.routes[0].match")), "{told:#?}");
}

#[test]
fn what_attached_routes_do_to_who_calls_is_told() {
    let backend = "{name: reviews, port: 80}";
    let cors = |origins: &str| {
        let filter = format!("type: CORS, cors: {{allowOrigins: [{origins}], allowCredentials: true}}");
        filtered(&filter, backend)
    };
    for open in ["'*'", "'https://*'"] {
        assert!(only(&cors(open)).contains("warning OUT0110: HTTPRoute shop/reviews"), "{open}");
    }
    silent(&cors("'https://shop.example'"));
    let redirect = |to: &str| filtered(&format!("type: RequestRedirect, requestRedirect: {{{to}}}"), "");
    assert!(only(&redirect("statusCode: 301")).contains("warning OUT0113"));
    silent(&redirect("scheme: https"));
    let mirror = |to: &str| {
        filtered(&format!("type: RequestMirror, requestMirror: {{backendRef: {{{to}}}}}"), backend)
    };
    assert!(only(&mirror("name: reviews, port: 80")).contains("warning OUT0114"));
    silent(&mirror("name: stock, port: 90"));
}
