//! Providers that cannot be asked.

use super::*;

/// With the providers `http` (of `reviews.shop`) and `grpc` (of `stock.shop`), and `lost`, whose service does not exist.
fn provided(text: &str) -> Vec<String> {
    let mut catalog = catalog();
    for (name, service, port) in [("http", "reviews", 80), ("grpc", "stock", 90), ("lost", "gone", 80)] {
        let host = Resolver::default().service(service, "shop");
        let known = CatalogProvider { host, namespace: None, port, grpc: name == "grpc", limiter: false };
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

/// What is told of a policy of `shop` that asks the provider `it`, a service under `host`, beside these descriptions.
fn described(host: &str, namespace: Option<&str>, entries: &[String]) -> Vec<String> {
    let mut catalog = catalog();
    let host = Resolver::default().resolve(host, "shop").unwrap();
    let it = CatalogProvider {
        host,
        namespace: namespace.map(str::to_owned),
        port: 9000,
        grpc: false,
        limiter: false,
    };
    catalog.providers.insert("it".into(), it);
    let text = format!("{}---\n{}", asks("it", "reviews", "[{}]"), entries.join("---\n"));
    let found = analyze(&objects(&text), Some(&catalog)).into_iter();
    found.filter(|finding| finding.code == code::PROVIDER).map(|finding| finding.message).collect()
}

/// A ServiceEntry of a namespace.
fn entry(namespace: &str, host: &str, export_to: &str) -> String {
    let spec = format!(
        "hosts: [{host}]\nresolution: DNS\nports: [{{number: 9000, name: http, protocol: HTTP}}]\nexportTo: ['{export_to}']"
    );
    object("networking.istio.io/v1", "ServiceEntry", &spec)
        .replace("namespace: shop", &format!("namespace: {namespace}"))
}

#[test]
fn a_provider_is_whom_those_see_who_ask() {
    let opa = "opa.example.com";
    let one = |host: &str, namespace: Option<&str>, entries: &[String]| {
        let mut found = described(host, namespace, entries);
        assert_eq!(found.len(), 1, "{found:#?}");
        found.remove(0)
    };
    let silent = |host: &str, namespace: Option<&str>, entries: &[String]| {
        assert_eq!(described(host, namespace, entries), Vec::<String>::new());
    };
    let hidden = "has no port 9000 that is exported to namespace shop";
    for nobody in ["~", ".", "other"] {
        assert!(one(opa, None, &[entry("bank", opa, nobody)]).contains(hidden), "{nobody}");
    }
    silent(opa, Some("bank"), &[entry("bank", opa, "*")]);
    silent(opa, Some("bank"), &[entry("aaa", opa, "."), entry("bank", opa, "shop")]);
    // The asking namespace's own word goes before the first by name.
    let both = [entry("bank", opa, "*"), entry("shop", opa, "*")];
    assert!(one(opa, Some("bank"), &both).contains("is what namespace shop says, not bank"));
    // A name of two labels may be a described one, and not a service of a namespace.
    silent("example.com", Some("bank"), &[entry("bank", "example.com", "*")]);
    // A name of the mesh is its namespace's and the root namespace's to describe, and nobody else's.
    let guard = "guard.bank.svc.cluster.local";
    silent(guard, Some("bank"), &[entry("bank", guard, "*")]);
    assert!(one(guard, None, &[entry("shop", guard, "*")]).contains("there is no service \"guard.bank\""));
    let by_root = [entry("outrigger-system", guard, "*")];
    assert!(one(guard, Some("bank"), &by_root).contains("is what namespace outrigger-system says, not bank"));
    silent(guard, Some("outrigger-system"), &by_root);
    // `.svc.` says nothing below another domain.
    let other = "opa.svc.example.com";
    silent(other, Some("bank"), &[entry("bank", other, "*")]);
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

#[test]
fn a_limit_whose_service_cannot_be_asked_limits_nothing_and_says_so() {
    let told = |service: &str, limiter: &str| {
        let mut catalog = catalog();
        for (name, host, port, limiter) in
            [("limiter", "stock", 90, true), ("lost", "gone", 80, true), ("authorizer", "stock", 90, false)]
        {
            let host = Resolver::default().service(host, "shop");
            let known = CatalogProvider { host, namespace: None, port, grpc: true, limiter };
            catalog.providers.insert(name.into(), known);
        }
        let spec = format!("service: {service}\nrateLimit: {{service: {limiter}, descriptor: caller}}");
        let page = object("outrigger.io/v1", "TrafficRules", &spec);
        analyze(&objects(&page), Some(&catalog)).iter().map(Finding::to_string).collect::<Vec<_>>()
    };
    assert_eq!(told("reviews", "limiter"), Vec::<String>::new());
    for (service, limiter, why) in [
        ("reviews", "limitr", "Did you mean \"limiter\"?"),
        ("reviews", "lost", "there is no service \"gone.shop\""),
        ("reviews", "authorizer", "which is no rate limit service"),
    ] {
        let found = told(service, limiter);
        assert!(found.len() == 1 && found[0].contains("OUT0111") && found[0].contains(why), "{found:#?}");
        assert!(found[0].contains("limits nothing"), "{found:#?}");
    }
    let itself = told("stock", "limiter");
    assert!(itself.iter().any(|found| found.contains("would be asked about")), "{itself:#?}");
    // And the other way round.
    let mut catalog = catalog();
    let host = Resolver::default().service("stock", "shop");
    catalog
        .providers
        .insert("it".into(), CatalogProvider { host, namespace: None, port: 90, grpc: true, limiter: true });
    let found = analyze(&objects(&asks("it", "reviews", "[{}]")), Some(&catalog));
    assert!(found.iter().any(|found| found.message.contains("is a rate limit service")), "{found:?}");
}
