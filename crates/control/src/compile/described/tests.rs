use outrigger_model::cluster::{ClientTls, Cluster, Discovery, PASSTHROUGH};
use outrigger_model::endpoint::EndpointSet;
use outrigger_model::listener::{ChainInput, Listener, Terminal};
use outrigger_model::resource::{Host, Resource, ResourceKind};
use outrigger_model::route::{RouteAction, RouteConfig};
use outrigger_xds::ClientKind;

use super::super::cache::Compiled;
use super::super::scope::Scope;
use super::super::tests::{compiled, get, scope, shop};
use super::NOBODY;
use crate::instance::{Instance, Protocol, Word, sample};

mod backend_tls;
mod fallbacks;

fn entry(name: &str, spec: &str) -> String {
    let spec: String = spec.lines().map(|line| format!("  {line}\n")).collect();
    format!(
        "---\napiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {{name: {name}, namespace: shop}}\nspec:\n{spec}"
    )
}

fn rule(host: &str, policy: &str) -> String {
    format!(
        "---\napiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {{name: rule, namespace: shop}}\nspec: {{host: \
         '{host}', trafficPolicy: {{{policy}}}}}\n"
    )
}

const WORLD: &str = "hosts: [api.example.com, example.com]
resolution: DNS
ports: [{number: 80, name: http, protocol: HTTP, targetPort: 443}, {number: 443, name: tls, protocol: TLS}]";

fn web() -> Scope {
    scope(ClientKind::Outrigger, "web", "web-1")
}

fn elsewhere() -> Scope {
    Scope { namespace: "other".into(), instance: None, ..web() }
}

macro_rules! one {
    ($function:ident, $kind:ident, $type:ty) => {
        fn $function(compiled: &Compiled, scope: &Scope, name: &str) -> Option<$type> {
            match get(compiled, scope, ResourceKind::$kind, name) {
                Some(Resource::$kind(found)) => Some(found),
                _ => None,
            }
        }
    };
}
one!(cluster, Cluster, Cluster);
one!(endpoints, Endpoints, EndpointSet);
one!(listener, Listener, Listener);
one!(routes, Routes, RouteConfig);
one!(host, Host, Host);

fn destination(compiled: &Compiled, scope: &Scope, name: &str) -> Option<String> {
    match get(compiled, scope, ResourceKind::Destination, name) {
        Some(Resource::Destination(found)) => Some(found.listener),
        _ => None,
    }
}

fn addresses(set: &EndpointSet) -> Vec<String> {
    set.iter().map(|endpoint| endpoint.address.to_string()).collect()
}

#[test]
fn a_host_of_the_world_is_a_cluster_of_its_name() {
    let compiled = compiled(shop(), &entry("api", WORLD));
    let web = web();
    for (name, expected) in [("api.example.com", "api.example.com:443"), ("example.com", "example.com:443")] {
        let listener = destination(&compiled, &web, &format!("{name}:80")).unwrap();
        assert_eq!(listener, format!("outbound|80||{name}"));
        let found = cluster(&compiled, &web, &listener).unwrap();
        let Discovery::Dns(dns) = &found.discovery else { panic!("{found:?}") };
        let names: Vec<String> = dns.endpoints.iter().map(|e| e.address.to_string()).collect();
        assert_eq!((names, dns.respect_ttl, dns.first_only), (vec![expected.to_owned()], true, false));
        assert_eq!(found.tls, ClientTls::None, "outside nobody has the mesh's");
        assert_eq!(found.origin.unwrap().to_string(), "ServiceEntry shop/api");
    }
    let http = listener(&compiled, &web, "outbound|80||api.example.com").unwrap();
    assert!(matches!(http.chains[0].terminal, Terminal::Http(_)));
    let tls = listener(&compiled, &web, "outbound|443||api.example.com").unwrap();
    assert!(matches!(tls.chains[0].terminal, Terminal::Tcp(_)), "the application's own TLS");
    assert_eq!(destination(&compiled, &web, "www.example.com:80"), None);
}

#[test]
fn its_names_have_virtual_addresses_and_these_lead_to_it() {
    let compiled = compiled(shop(), &entry("api", WORLD));
    let web = web();
    let found = host(&compiled, &web, "api.example.com").unwrap();
    assert_eq!((found.host.as_str(), found.addresses.len()), ("api.example.com", 2));
    let to = destination(&compiled, &web, &format!("/{}:443", found.addresses[0]));
    assert_eq!(to.as_deref(), Some("outbound|443||api.example.com"));
    assert_eq!(destination(&compiled, &web, &format!("/{}:444", found.addresses[0])), None);
    let two = host(&compiled, &web, "example.com.svc.cluster.local").unwrap();
    assert_eq!(two.host, "example.com", "as a sidecar asks for two labels");
    let outside = host(&compiled, &web, Host::OUTSIDE).unwrap();
    assert_eq!(outside.names, ["api.example.com", "example.com"]);
    assert_eq!(host(&compiled, &web, "www.example.com"), None);
}

#[test]
fn a_rule_of_its_clients_begins_tls() {
    for name in ["api.example.com", "example.com"] {
        let tls = "portLevelSettings: [{port: {number: 80}, tls: {mode: SIMPLE}}]";
        let names = format!("{WORLD}\nsubjectAltNames: [edge.example.com]");
        let compiled = compiled(shop(), &(entry("api", &names) + &rule(name, tls)));
        let found = cluster(&compiled, &web(), &format!("outbound|80||{name}")).unwrap();
        let ClientTls::Outside(tls) = &found.tls else { panic!("{found:?}") };
        assert_eq!(
            (tls.server_name.as_str(), tls.subject_alt_names.as_slice()),
            (name, &["edge.example.com".to_owned()][..])
        );
        assert_eq!(
            cluster(&compiled, &web(), &format!("outbound|443||{name}")).unwrap().tls,
            ClientTls::None
        );
    }
}

#[test]
fn written_endpoints_have_their_ports_places_and_names() {
    let spec = "hosts: [db.example.com]
location: MESH_INTERNAL
resolution: STATIC
ports: [{number: 5432, name: pg, protocol: TCP}]
endpoints:
- {address: 192.0.2.1, ports: {pg: 6432}, locality: eu/eu-1, weight: 3, labels: {version: v1}}
- {address: 192.0.2.2, serviceAccount: db, labels: {version: v2, security.istio.io/tlsMode: istio}}";
    let subsets = "apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {name: db, namespace: shop}\nspec: {host: \
                   db.example.com, subsets: [{name: two, labels: {version: v2}}]}\n";
    let compiled = compiled(shop(), &(subsets.to_owned() + &entry("db", spec)));
    let name = "outbound|5432||db.example.com";
    let set = endpoints(&compiled, &web(), name).unwrap();
    assert_eq!(addresses(&set), ["192.0.2.2:5432", "192.0.2.1:6432"]);
    let second = set.iter().next().unwrap();
    assert!(
        second.mesh_tls && second.identity.as_ref().is_some_and(|id| id.as_str().ends_with("/ns/shop/sa/db"))
    );
    let first = set.iter().nth(1).unwrap();
    assert_eq!((first.weight, first.mesh_tls, &first.identity), (3, false, &None));
    assert_eq!(set.localities[1].locality.zone, "eu-1");
    let two = endpoints(&compiled, &web(), "outbound|5432|two|db.example.com").unwrap();
    assert_eq!(addresses(&two), ["192.0.2.2:5432"]);
    let found = cluster(&compiled, &web(), name).unwrap();
    assert!(matches!(found.tls, ClientTls::Mesh { required: false, .. }), "{found:?}");
}

#[test]
fn labels_choose_instances_and_described_workloads_of_the_namespace() {
    let spec = "hosts: [all.example.com]
location: MESH_INTERNAL
resolution: STATIC
workloadSelector: {labels: {app: catalog}}
ports: [{number: 80, name: http, protocol: HTTP, targetPort: 8080}]";
    let vm = "---\napiVersion: networking.istio.io/v1\nkind: WorkloadEntry\nmetadata: {name: vm, namespace: NS, labels: {app: \
              catalog}}\nspec: {address: 192.0.2.9}\n";
    let yaml = entry("all", spec)
        + &vm.replace("NS", "shop")
        + &vm.replace("NS", "other").replace("0.2.9", "0.2.10");
    let called = |id: &str, address: &str, word| {
        let mut one = sample(id, id, "v1", address, 8080, Protocol::Http);
        one.labels.insert("app".into(), "catalog".into());
        Instance { word, ..one }
    };
    let mut all = shop();
    all.push(called("may", "127.0.0.13", Word::Named));
    all.push(called("evil", "127.0.0.66", Word::Own));
    let compiled = compiled(all, &yaml);
    let mut found = addresses(&endpoints(&compiled, &web(), "outbound|80||all.example.com").unwrap());
    found.sort();
    assert_eq!(
        found,
        ["127.0.0.11:8080", "127.0.0.12:8080", "127.0.0.13:8080", "192.0.2.9:8080"],
        "nobody makes itself one"
    );
}

#[test]
fn who_may_not_see_it_does_not() {
    let compiled = compiled(shop(), &entry("api", &format!("{WORLD}\nexportTo: ['.']")));
    let name = "outbound|443||api.example.com";
    for (scope, sees) in [(web(), true), (elsewhere(), false)] {
        assert_eq!(destination(&compiled, &scope, "api.example.com:443").is_some(), sees);
        assert_eq!(cluster(&compiled, &scope, name).is_some(), sees);
        assert_eq!(listener(&compiled, &scope, name).is_some(), sees);
        assert_eq!(host(&compiled, &scope, "api.example.com").is_some(), sees);
        assert_eq!(host(&compiled, &scope, Host::OUTSIDE).unwrap().names.is_empty(), !sees);
        assert_eq!(destination(&compiled, &scope, "/192.0.2.77:443").is_some(), sees);
    }
}

#[test]
fn a_host_without_an_address_is_found_by_what_a_connection_says() {
    let wild = "hosts: ['*.wiki.org']\nports: [{number: 443, protocol: TLS}, {number: 80, protocol: HTTP}]";
    let compiled = compiled(shop(), &(entry("wiki", wild) + &entry("api", WORLD)));
    let web = web();
    assert_eq!(host(&compiled, &web, "en.wiki.org"), None, "its way is its own");
    let name = destination(&compiled, &web, "/198.51.100.7:443").unwrap();
    assert_eq!(name, "outbound|443||*");
    let found = listener(&compiled, &web, &name).unwrap();
    let to = |server_name: Option<&str>| {
        let input = ChainInput {
            destination_port: 443,
            tls: server_name.is_some(),
            server_name,
            application_protocols: &[],
        };
        match &found.select(&input).unwrap().terminal {
            Terminal::Tcp(tcp) => tcp.clusters[0].cluster.clone(),
            Terminal::Http(_) => "HTTP".to_owned(),
        }
    };
    assert_eq!(to(Some("en.wiki.org")), "outbound|443||*.wiki.org");
    assert_eq!(to(Some("api.example.com")), "outbound|443||api.example.com");
    assert_eq!((to(Some("www.example.net")), to(None)), (PASSTHROUGH.to_owned(), PASSTHROUGH.to_owned()));
    let wiki = cluster(&compiled, &web, "outbound|443||*.wiki.org").unwrap();
    assert_eq!(wiki.discovery, Discovery::OriginalDestination);
    let found = routes(&compiled, &web, "outbound|80||*").unwrap();
    let domains: Vec<&str> = found.virtual_hosts.iter().map(|host| host.domains[0].as_str()).collect();
    assert_eq!(domains, ["*.wiki.org", "api.example.com", "example.com", "*"]);
    let RouteAction::Forward(rest) = &found.virtual_hosts[3].routes[0].action else { panic!() };
    assert_eq!(rest.clusters[0].cluster, PASSTHROUGH);
    assert_eq!(destination(&compiled, &web, "/198.51.100.7:22"), None, "nobody's port");
}

fn select(found: &Listener, server_name: Option<&str>) -> Option<Vec<String>> {
    let (tls, application_protocols) = (server_name.is_some(), &[]);
    let input = ChainInput { destination_port: 443, tls, server_name, application_protocols };
    let Terminal::Tcp(tcp) = &found.select(&input)?.terminal else { return Some(vec!["HTTP".to_owned()]) };
    Some(tcp.clusters.iter().map(|share| format!("{} {}", share.weight, share.cluster)).collect())
}

const BY_NAME: &str =
    "---\napiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: wiki, namespace: shop}
spec:
  hosts: ['*.wiki.org']
  tls:
  - match: [{sniHosts: [en.wiki.org], sourceLabels: {app: nobody}}]
    route: [{destination: {host: api.example.com}}]
  - match: [{sniHosts: [en.wiki.org], port: 443}, {sniHosts: ['*.old.wiki.org']}]
    route: [{destination: {host: catalog, port: {number: 8080}}, weight: 3}, {destination: {host: api.example.com}, weight: 1}]
";

#[test]
fn rules_route_tls_by_its_server_name() {
    let wild = "hosts: ['*.wiki.org']\nports: [{number: 443, protocol: TLS}]";
    let compiled = compiled(shop(), &(entry("wiki", wild) + &entry("api", WORLD) + BY_NAME));
    let found = listener(&compiled, &web(), "outbound|443||*").unwrap();
    let shares = ["3 outbound|8080||catalog.shop.svc.cluster.local", "1 outbound|443||api.example.com"];
    assert_eq!(select(&found, Some("en.wiki.org")).unwrap(), shares);
    assert_eq!(select(&found, Some("a.old.wiki.org")).unwrap(), shares);
    let rest = [format!("1 {PASSTHROUGH}")];
    assert_eq!(select(&found, Some("de.wiki.org")).unwrap(), rest, "is what no rule is about");
}

#[test]
fn a_route_at_a_service_without_an_address_takes_nothing_but_what_asks_for_it() {
    let hidden = "hosts: [hidden.shop.svc.cluster.local]\nports: [{number: 443, protocol: TLS}]";
    let route = |version: &str, names: &str| {
        format!(
            "---\napiVersion: gateway.networking.k8s.io/{version}\nkind: TLSRoute\nmetadata: {{name: r, namespace: shop}}\nspec: {{parentRefs: \
             [{{group: '', kind: Service, name: hidden}}], {names}rules: [{{backendRefs: [{{name: catalog, port: 8080}}]}}]}}\n"
        )
    };
    let selected = |route: &str, name: &str| {
        let compiled = compiled(shop(), &(entry("hidden", hidden) + route));
        select(&listener(&compiled, &web(), "outbound|443||*").unwrap(), Some(name))
    };
    let (own, rest) = ("hidden.shop.svc.cluster.local", Some(vec![format!("1 {PASSTHROUGH}")]));
    let to = Some(vec!["1 outbound|8080||catalog.shop.svc.cluster.local".to_owned()]);
    for route in [
        route("v1", &format!("hostnames: [www.bank.com, '*.org', {own}], ")),
        // No names are any name.
        route("v1alpha2", ""),
    ] {
        assert_eq!(selected(&route, own), to);
        assert_eq!(
            (selected(&route, "www.bank.com"), selected(&route, "a.org")),
            (rest.clone(), rest.clone()),
            "{route}"
        );
    }
    let foreign = route("v1", "hostnames: [www.bank.com], ");
    assert_eq!(selected(&foreign, "www.bank.com"), rest);
    assert_eq!(
        selected(&foreign, own),
        Some(vec!["1 nowhere".to_owned()]),
        "as at every port that has a TLSRoute"
    );
}

#[test]
fn of_a_service_that_rules_route_by_server_name_other_names_are_refused() {
    let mut instances = shop();
    instances.push(sample("vault-1", "vault", "v1", "127.0.0.20", 443, Protocol::Tls));
    instances.push(sample("stock-1", "stock", "v1", "127.0.0.21", 443, Protocol::Auto));
    let rule = |host: &str| {
        format!(
            "---\napiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {{name: {host}, namespace: shop}}\nspec: {{hosts: \
             [{host}], tls: [{{match: [{{sniHosts: [{host}]}}], route: [{{destination: {{host: vault, subset: v1}}}}]}}]}}\n"
        )
    };
    let compiled = compiled(instances, &(rule("vault") + &rule("stock")));
    let to = ["1 outbound|443|v1|vault.shop.svc.cluster.local"];
    let found = listener(&compiled, &web(), "outbound|443||vault.shop.svc.cluster.local").unwrap();
    assert_eq!(select(&found, Some("vault")).unwrap(), to);
    assert_eq!((select(&found, Some("other")), select(&found, None)), (None, None));
    let found = listener(&compiled, &web(), "outbound|443||stock.shop.svc.cluster.local").unwrap();
    assert_eq!(select(&found, Some("stock")).unwrap(), to);
    let rest = ["1 outbound|443||stock.shop.svc.cluster.local"];
    assert_eq!(select(&found, Some("other")).unwrap(), rest, "whoever did not say TLS may mean anything");
}

#[test]
fn a_described_address_or_block_leads_to_its_service() {
    let spec = "hosts: [db.example.com]\naddresses: [192.0.2.1, 198.51.100.0/24]\nports: [{number: 5432, protocol: TCP}]";
    let compiled = compiled(shop(), &entry("db", spec));
    for address in ["192.0.2.1", "198.51.100.9"] {
        let to = destination(&compiled, &web(), &format!("/{address}:5432"));
        assert_eq!(to.as_deref(), Some("outbound|5432||db.example.com"), "{address}");
    }
    assert_eq!(destination(&compiled, &web(), "/203.0.113.9:5432"), None);
    let found = host(&compiled, &web(), "db.example.com").unwrap();
    assert_eq!(found.addresses, ["192.0.2.1".parse::<std::net::IpAddr>().unwrap()]);
}

#[test]
fn a_registered_service_can_be_described_and_keeps_its_instances() {
    let spec = "hosts: [catalog.shop.svc.cluster.local]
location: MESH_INTERNAL
resolution: STATIC
ports: [{number: 8080, name: http, protocol: HTTP}]
endpoints: [{address: 192.0.2.50}]";
    let compiled = compiled(shop(), &entry("catalog", spec));
    let set = endpoints(&compiled, &web(), "outbound|8080||catalog.shop.svc.cluster.local").unwrap();
    let mut found = addresses(&set);
    found.sort();
    assert_eq!(found, ["127.0.0.11:8080", "127.0.0.12:8080", "192.0.2.50:8080"]);
}

#[test]
fn a_route_of_rules_may_lead_outside() {
    let route = "---\napiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: c, namespace: shop}\nspec: {hosts: \
                 [catalog], http: [{route: [{destination: {host: example.com, port: {number: 80}}}]}]}\n";
    let compiled = compiled(shop(), &(entry("api", WORLD) + route));
    let found = routes(&compiled, &web(), "outbound|8080||catalog.shop.svc.cluster.local").unwrap();
    let RouteAction::Forward(forward) = &found.virtual_hosts[0].routes[0].action else { panic!() };
    let found = cluster(&compiled, &web(), &forward.clusters[0].cluster).unwrap();
    let Discovery::Dns(dns) = &found.discovery else { panic!("{found:?}") };
    assert_eq!(dns.endpoints.iter().next().unwrap().address.host, "example.com");
}

#[test]
fn a_port_of_an_application_s_own_tls_can_be_registered() {
    let mut instances = shop();
    instances.push(sample("vault-1", "vault", "v1", "127.0.0.20", 8200, Protocol::Tls));
    let compiled = compiled(instances, "");
    let found = listener(&compiled, &web(), "outbound|8200||vault.shop.svc.cluster.local").unwrap();
    assert!(matches!(found.chains[0].terminal, Terminal::Tcp(_)));
    let own = scope(ClientKind::Outrigger, "vault", "vault-1");
    let inbound = listener(&compiled, &own, "inbound|127.0.0.20:8200").unwrap();
    assert!(inbound.chains.iter().all(|chain| matches!(chain.terminal, Terminal::Tcp(_))));
}

fn of(namespace: &str, name: &str, spec: &str) -> String {
    entry(name, spec).replace("namespace: shop", &format!("namespace: {namespace}"))
}

const CATALOG: &str = "outbound|8080||catalog.shop.svc.cluster.local";

#[test]
fn nobody_says_what_a_service_of_another_namespace_is() {
    let spec = "hosts: [catalog.shop.svc.cluster.local]
addresses: [192.0.2.66]
ports: [{number: 8080, protocol: HTTP}]
resolution: DNS
endpoints: [{address: x.evil}]";
    let plain = compiled(shop(), "");
    let world = compiled(shop(), &of("evil", "theirs", spec));
    assert_eq!(cluster(&world, &web(), CATALOG), cluster(&plain, &web(), CATALOG));
    assert_eq!(endpoints(&world, &web(), CATALOG), endpoints(&plain, &web(), CATALOG));
    assert_eq!(host(&world, &web(), "catalog"), host(&plain, &web(), "catalog"));
    assert_eq!(destination(&world, &web(), "/192.0.2.66:8080"), None);
    // The mesh's own administrators do.
    let root = compiled(
        shop(),
        &of("outrigger-system", "ours", &spec.replace("DNS", "STATIC").replace("x.evil", "192.0.2.7")),
    );
    assert_eq!(endpoints(&root, &web(), CATALOG).unwrap().iter().count(), 3);
}

#[test]
fn who_has_registered_keeps_mtls_whatever_is_said_of_others() {
    let spec = "hosts: [catalog.shop.svc.cluster.local]\nports: [{number: 8080, protocol: HTTP}]\nresolution: STATIC\nendpoints: [{address: 192.0.2.50}]";
    let world = compiled(shop(), &entry("vm", spec));
    let found = cluster(&world, &web(), CATALOG).unwrap();
    assert!(matches!(found.tls, ClientTls::Mesh { required: false, .. }), "{:?}", found.tls);
    let set = endpoints(&world, &web(), CATALOG).unwrap();
    let secure: Vec<bool> = set.iter().map(|endpoint| endpoint.mesh_tls).collect();
    assert_eq!(secure.iter().filter(|secure| **secure).count(), 2, "{set:?}");
    // By name there would be nobody but the names.
    let named =
        compiled(shop(), &entry("vm", &spec.replace("STATIC", "DNS").replace("192.0.2.50", "vm.example")));
    let found = cluster(&named, &web(), CATALOG).unwrap();
    assert!(matches!(found.discovery, Discovery::Eds { .. }), "{:?}", found.discovery);
    assert_eq!(endpoints(&named, &web(), CATALOG).unwrap().iter().count(), 2);
}

fn db(more: &str) -> String {
    entry("db", &format!("hosts: [db.example.com]\nports: [{{number: 80}}]\nresolution: STATIC\n{more}"))
}

const DB: &str = "outbound|80||db.example.com";

#[test]
fn whom_an_account_names_is_whom_it_must_be() {
    let mesh = |world: &Compiled| match cluster(world, &web(), DB).unwrap().tls {
        ClientTls::Mesh { identities, required, .. } => {
            (identities.iter().map(ToString::to_string).collect::<Vec<_>>(), required)
        }
        other => panic!("{other:?}"),
    };
    let id = |account: &str| format!("spiffe://cluster.local/ns/shop/sa/{account}");
    // Without Istio's label, an account says that there is a sidecar.
    let world = compiled(
        shop(),
        &db("location: MESH_INTERNAL\nendpoints: [{address: 192.0.2.1, serviceAccount: db}]"),
    );
    assert!(endpoints(&world, &web(), DB).unwrap().iter().next().unwrap().mesh_tls);
    assert_eq!(mesh(&world), (vec![id("db")], false));
    // Where a rule demands mTLS, it is that identity's, inside or outside.
    let outside = db("endpoints: [{address: 192.0.2.1, serviceAccount: db}]")
        + &rule("db.example.com", "tls: {mode: ISTIO_MUTUAL}");
    assert_eq!(mesh(&compiled(shop(), &outside)), (vec![id("db")], true));
    let by_name = outside.replace("STATIC", "DNS").replace("192.0.2.1", "vm.example");
    assert_eq!(mesh(&compiled(shop(), &by_name)), (vec![id("db")], true));
    // A rule's names go before the description's, and whoever is none of them is not dialled.
    let names = format!("location: MESH_INTERNAL\nsubjectAltNames: ['{}']\n", id("other"));
    let two = db(&(names.clone()
        + "endpoints: [{address: 192.0.2.1, serviceAccount: db}, {address: 192.0.2.2, serviceAccount: b}]"));
    assert_eq!(mesh(&compiled(shop(), &two)).0, [id("b"), id("db"), id("other")]);
    let ruled = two
        + &rule("db.example.com", &format!("tls: {{mode: ISTIO_MUTUAL, subjectAltNames: ['{}']}}", id("b")));
    let world = compiled(shop(), &ruled);
    assert_eq!(mesh(&world), (vec![id("b")], true));
    assert_eq!(addresses(&endpoints(&world, &web(), DB).unwrap()), ["192.0.2.2:80"]);
    // Names that no identity can have let nobody in.
    let foreign = db("subjectAltNames: [db.example.com]\nendpoints: [{address: 192.0.2.1}]")
        + &rule("db.example.com", "tls: {mode: ISTIO_MUTUAL}");
    assert_eq!(mesh(&compiled(shop(), &foreign)).0, [NOBODY]);
}

#[test]
fn a_description_that_says_nothing_of_a_port_leaves_it_to_others() {
    let block = "hosts: [db.example.com]\naddresses: [127.0.0.0/8]\nports: [{number: 5432, protocol: TCP}]";
    let world = compiled(shop(), &entry("db", block));
    let registered = destination(&world, &web(), "/127.0.0.11:8080").unwrap();
    assert_eq!(registered, "outbound|8080||127.0.0.11", "who has registered goes before a block");
    assert_eq!(destination(&world, &web(), "/127.0.0.77:5432").unwrap(), "outbound|5432||db.example.com");
    let private = "hosts: [api.example.com]\nexportTo: ['.']\nports: [{number: 80, protocol: HTTP}]";
    let wild = "hosts: ['*.example.com']\nresolution: DNS\nports: [{number: 80, protocol: HTTP}]\nendpoints: [{address: x.example}]";
    let world = compiled(shop(), &(entry("a", private) + &of("bank", "wild", wild)));
    assert_eq!(
        destination(&world, &elsewhere(), "api.example.com:80").unwrap(),
        "outbound|80||*.example.com"
    );
}

#[test]
fn an_envoy_is_given_each_domain_once() {
    let short = "hosts: [catalog.shop]\nresolution: DNS\nports: [{number: 8080, protocol: HTTP}]";
    let world = compiled(shop(), &entry("short", short));
    let envoy = scope(ClientKind::Envoy, "web", "envoy");
    let found = routes(&world, &envoy, "8080").unwrap();
    let mut domains: Vec<&String> = found.virtual_hosts.iter().flat_map(|host| &host.domains).collect();
    let count = domains.len();
    domains.sort();
    domains.dedup();
    assert_eq!(domains.len(), count, "{:#?}", found.virtual_hosts);
    assert!(routes(&world, &envoy, "08080").is_none() && routes(&world, &envoy, "+8080").is_none());
}
