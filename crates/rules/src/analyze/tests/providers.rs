//! Providers that cannot be asked.

use super::*;

/// With the providers `http` (of `reviews.shop`) and `grpc` (of `stock.shop`), and `lost`, whose service does not exist.
fn provided(text: &str) -> Vec<String> {
    let mut catalog = catalog();
    for (name, service, port) in [("http", "reviews", 80), ("grpc", "stock", 90), ("lost", "gone", 80)] {
        let host = Resolver::default().service(service, "shop");
        let known = CatalogProvider { host, namespace: None, port, grpc: name == "grpc" };
        catalog
            .providers
            .insert("theirs".into(), CatalogProvider { namespace: Some("bank".into()), ..known.clone() });
        catalog.providers.insert(name.into(), known);
    }
    let theirs = catalog.providers.get_mut("theirs").unwrap();
    (theirs.host, theirs.port) = (Resolver::default().service("reviews", "shop"), 80);
    analyze(&objects(text), Some(&catalog)).iter().map(Finding::to_string).collect()
}

fn asks(provider: &str, app: &str, rules: &str) -> String {
    let spec = format!(
        "selector: {{matchLabels: {{app: {app}}}}}\naction: CUSTOM\nprovider: {{name: {provider}}}\nrules: {rules}"
    );
    object("security.istio.io/v1", "AuthorizationPolicy", &spec)
}

#[test]
fn a_provider_that_cannot_be_asked_is_told() {
    let one = |text: &str| {
        let mut found = provided(text);
        assert_eq!(found.len(), 1, "{found:#?}");
        found.remove(0)
    };
    let unknown = one(&asks("htp", "stock", "[{}]"));
    assert!(unknown.contains("warning OUT0111") && unknown.contains("is denied"), "{unknown}");
    assert!(unknown.ends_with("Did you mean \"http\"?"), "{unknown}");
    assert!(one(&asks("lost", "reviews", "[{}]")).contains("there is no service \"gone.shop\""));
    let exempt = "[{to: [{operation: {notPorts: ['80']}}]}]";
    assert!(one(&asks("theirs", "reviews", exempt)).contains("is what namespace shop says, not bank"));
    assert_eq!(provided(&asks("grpc", "reviews", "[{}]")), Vec::<String>::new());
    assert_eq!(
        analyze(&objects(&asks("htp", "stock", "[{}]")), None),
        [],
        "offline nobody knows the settings"
    );
}

#[test]
fn a_provider_that_would_be_asked_about_itself_is_told() {
    let found = provided(&asks("http", "reviews", "[{}]"));
    assert!(found.len() == 1 && found[0].contains("which is \"http\" itself"), "{found:?}");
    let exempt = "[{to: [{operation: {notPorts: ['80']}}]}]";
    assert_eq!(provided(&asks("http", "reviews", exempt)), Vec::<String>::new());
}

#[test]
fn a_provider_for_a_tcp_port_is_told() {
    let grpc = provided(&asks("grpc", "stock", "[{to: [{operation: {ports: ['90'], methods: [GET]}}]}]"));
    assert!(
        grpc.iter()
            .any(|line| line.contains("OUT0105") && line.contains("port 90") && line.contains("denied"))
    );
    let found = provided(&asks("http", "stock", "[{}]"));
    assert!(found.len() == 1 && found[0].contains("OUT0105"), "{found:?}");
    assert!(found[0].contains("connections to port 90 pass without a question"), "{found:?}");
    assert_eq!(
        provided(&asks("http", "stock", "[{to: [{operation: {ports: ['80']}}]}]")),
        Vec::<String>::new()
    );
}
