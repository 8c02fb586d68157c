use std::collections::BTreeSet;
use std::net::SocketAddr;

use outrigger_model::cluster::{Discovery, PASSTHROUGH};
use outrigger_model::listener::{Listener, RouteSource, Terminal};
use outrigger_model::resource::{Destination, Resource, ResourceKind};
use outrigger_model::route::RouteAction;
use outrigger_xds::ClientKind;

use crate::compile::cache::Compiled;
use crate::compile::scope::Scope;
use crate::compile::tests::{CATALOG, compiled, get, scope, shop};
use crate::instance::{Instance, Protocol, sample};

fn mesh() -> Vec<Instance> {
    let mut pay = sample("pay-1", "pay", "v1", "127.0.0.21", 8080, Protocol::Http);
    pay.namespace = "bank".into();
    let mut client = sample("client-1", "client", "v1", "127.0.0.22", 8080, Protocol::Http);
    client.namespace = "bank".into();
    shop().into_iter().chain([pay, client]).collect()
}

fn web() -> Scope {
    scope(ClientKind::Outrigger, "web", "web-1")
}

fn bank() -> Scope {
    Scope { namespace: "bank".into(), ..scope(ClientKind::Outrigger, "client", "client-1") }
}

fn sidecar(name: &str, namespace: &str, spec: &str) -> String {
    format!(
        "{{apiVersion: networking.istio.io/v1, kind: Sidecar, metadata: {{name: {name}, namespace: {namespace}}}, spec: {{{spec}}}}}\n---\n"
    )
}

/// The listener that serves a destination.
fn to(compiled: &Compiled, scope: &Scope, name: &str) -> Option<String> {
    match get(compiled, scope, ResourceKind::Destination, name)? {
        Resource::Destination(Destination { listener, .. }) => Some(listener),
        other => panic!("{other:?}"),
    }
}

/// Which of these names a client finds.
fn known<'n>(yaml: &str, scope: &Scope, names: &[&'n str]) -> Vec<&'n str> {
    let compiled = compiled(mesh(), yaml);
    names.iter().copied().filter(|name| to(&compiled, scope, name).is_some()).collect()
}

const ALL: [&str; 4] = ["catalog.shop:8080", "stock.shop:7000", "web.shop:8080", "pay.bank:8080"];

#[test]
fn a_client_finds_what_its_sidecar_names_by_name_and_by_address() {
    let yaml = sidecar("default", "shop", "egress: [{hosts: ['./catalog', 'bank/*']}]");
    assert_eq!(known(&yaml, &web(), &ALL), [ALL[0], ALL[3]]);
    // Of another namespace it is no matter.
    assert_eq!(known(&yaml, &bank(), &ALL), ALL);
    let compiled = compiled(mesh(), &yaml);
    assert!(to(&compiled, &web(), "/127.0.0.11:8080").is_some(), "an address of catalog's");
    assert!(to(&compiled, &web(), "/127.0.0.13:7000").is_none(), "one of stock's");
    let Some(Resource::Host(host)) =
        get(&compiled, &web(), ResourceKind::Host, "catalog.shop.svc.cluster.local")
    else {
        panic!("no addresses")
    };
    assert!(to(&compiled, &web(), &format!("/{}", SocketAddr::new(host.addresses[0], 8080))).is_some());
    let stock = "stock.shop.svc.cluster.local";
    assert!(get(&compiled, &web(), ResourceKind::Host, stock).is_none());
    let Some(Resource::Host(stock)) = get(&compiled, &bank(), ResourceKind::Host, stock) else { panic!() };
    assert!(to(&compiled, &web(), &format!("/{}", SocketAddr::new(stock.addresses[0], 7000))).is_none());
}

#[test]
fn a_listener_with_a_port_says_all_of_that_port() {
    let port = "port: {number: 7000, protocol: TCP, name: a}";
    let yaml = sidecar(
        "default",
        "shop",
        &format!("egress: [{{{port}, hosts: ['./stock']}}, {{hosts: ['bank/*']}}]"),
    );
    assert_eq!(known(&yaml, &web(), &ALL), [ALL[1], ALL[3]]);
    let yaml =
        sidecar("default", "shop", &format!("egress: [{{{port}, hosts: ['bank/*']}}, {{hosts: ['*/*']}}]"));
    assert_eq!(known(&yaml, &web(), &ALL), [ALL[0], ALL[2], ALL[3]]);
}

#[test]
fn one_that_selects_goes_before_one_for_the_namespace_and_that_before_the_mesh_s() {
    let one = |name: &str, namespace: &str, more: &str, host: &str| {
        sidecar(name, namespace, &format!("{more}egress: [{{hosts: ['*/{host}.svc.cluster.local']}}]"))
    };
    let root = one("a", "istio-system", "", "pay.bank");
    assert_eq!(known(&root, &web(), &ALL), [ALL[3]]);
    assert_eq!(known(&root, &bank(), &ALL), [ALL[3]]);
    // One of the root namespace that selects is for that alone.
    let selecting = one("a", "istio-system", "workloadSelector: {labels: {version: v1}}, ", "pay.bank");
    assert_eq!(known(&selecting, &web(), &ALL), ALL);
    let wide = root + &one("b", "shop", "", "stock.shop");
    assert_eq!(known(&wide, &web(), &ALL), [ALL[1]]);
    let narrow = wide + &one("c", "shop", "workloadSelector: {labels: {version: v1}}, ", "catalog.shop");
    assert_eq!(known(&narrow, &web(), &ALL), [ALL[0]]);
    let other = scope(ClientKind::Outrigger, "catalog", "catalog-v2");
    assert_eq!(known(&narrow, &other, &ALL), [ALL[1]]);
    // Of two the older, and without a date the first by name.
    let aged = one("z", "shop", "workloadSelector: {labels: {version: v1}}, ", "web.shop")
        .replace("name: z,", "name: z, creationTimestamp: '2026-01-01T00:00:00Z',");
    assert_eq!(known(&(narrow + &aged), &web(), &ALL), [ALL[2]]);
}

#[test]
fn a_dot_in_the_mesh_s_sidecar_is_the_namespace_of_each_client() {
    let yaml = |hosts: &str| sidecar("default", "istio-system", &format!("egress: [{{hosts: [{hosts}]}}]"));
    // As Istio's documentation has it.
    let wide = yaml("'./*', 'istio-system/*'");
    let one = compiled(mesh(), &wide);
    // What somebody holds is kept, so the second to ask is answered from what the first was.
    let seats = ["web-1", "client-1"].map(|id| one.audience().join(Some(id)));
    for (seat, name) in seats.iter().flat_map(|seat| ALL.map(|name| (seat, name))) {
        seat.hold(ResourceKind::Destination, name);
    }
    for _ in 0..2 {
        let known = |scope: &Scope| ALL.map(|name| to(&one, scope, name).is_some());
        assert_eq!(known(&web()), [true, true, true, false]);
        assert_eq!(known(&bank()), [false, false, false, true]);
    }
    assert!(
        to(&one, &web(), "/127.0.0.11:8080").is_some() && to(&one, &bank(), "/127.0.0.11:8080").is_none()
    );
    assert_eq!(known(&yaml("./pay"), &web(), &ALL), [""; 0]);
    assert_eq!(known(&yaml("./pay"), &bank(), &ALL), [ALL[3]]);
    assert_eq!(known(&yaml("'*/*', ~./pay"), &web(), &ALL), ALL);
    assert_eq!(known(&yaml("'*/*', ~./pay"), &bank(), &ALL), ALL[..3]);
    let envoy = |of: Scope| {
        let of = Scope { kind: ClientKind::Envoy, ..of };
        one.wildcard_names(&of, ResourceKind::Cluster)
            .iter()
            .map(ToString::to_string)
            .collect::<BTreeSet<_>>()
    };
    let theirs = ["client", "pay"].map(|name| format!("outbound|8080||{name}.bank.svc.cluster.local"));
    assert_eq!(envoy(bank()), theirs.into());
    let shop = envoy(web());
    assert!(shop.len() == 3 && shop.iter().all(|name| name.ends_with(".shop.svc.cluster.local")), "{shop:?}");
    let grpc = |of: Scope, name| {
        get(&one, &Scope { kind: ClientKind::Grpc, ..of }, ResourceKind::Listener, name).is_some()
    };
    assert_eq!([grpc(web(), ALL[0]), grpc(web(), ALL[3])], [true, false]);
    assert_eq!([grpc(bank(), ALL[0]), grpc(bank(), ALL[3])], [false, true]);
}

#[test]
fn what_is_not_known_is_refused_goes_on_or_goes_through_a_proxy() {
    let egress = "egress: [{hosts: ['./catalog']}]";
    let with = |policy: &str| compiled(mesh(), &sidecar("default", "shop", &format!("{egress}{policy}")));
    let unknown = ["stock.shop:7000", "example.com:443", "/127.0.0.13:7000", "/192.0.2.1:80"];
    let allowed = with(", outboundTrafficPolicy: {mode: ALLOW_ANY}");
    assert!(unknown.iter().all(|name| to(&allowed, &web(), name).is_none()));
    let refused = with(", outboundTrafficPolicy: {mode: REGISTRY_ONLY}");
    for name in unknown {
        let Some(Resource::Destination(destination)) = get(&refused, &web(), ResourceKind::Destination, name)
        else {
            panic!("{name} is unanswered")
        };
        assert_eq!(destination.refused_by(), Some("Sidecar shop/default"), "{name}");
    }
    assert_eq!(to(&refused, &web(), "catalog.shop:8080").as_deref(), Some(CATALOG));
    // What cannot be asked for is no destination.
    for name in ["", "a", "/a:1", "a:x", "/1.2.3.4", "/240.240.0.9:80"] {
        assert_eq!(to(&refused, &web(), name), None, "{name}");
    }
    let proxy = "egressProxy: {host: pay.bank, port: {number: 8080}}";
    let through = with(&format!(", outboundTrafficPolicy: {{mode: ALLOW_ANY, {proxy}}}"));
    let listener = "egress|8080||pay.bank.svc.cluster.local";
    for name in unknown {
        assert_eq!(to(&through, &web(), name).as_deref(), Some(listener), "{name}");
    }
    let Some(Resource::Listener(found)) = get(&through, &web(), ResourceKind::Listener, listener) else {
        panic!()
    };
    assert_eq!(found.chains[0].origin.as_ref().unwrap().to_string(), "Sidecar shop/default");
    let Terminal::Tcp(tcp) = &found.chains[0].terminal else { panic!("{found:?}") };
    assert_eq!(tcp.clusters[0].cluster, "outbound|8080||pay.bank.svc.cluster.local");
    assert!(get(&through, &web(), ResourceKind::Cluster, &tcp.clusters[0].cluster).is_some());
    assert!(get(&through, &bank(), ResourceKind::Listener, listener).is_none(), "it is nobody else's");
}

#[test]
fn an_egress_proxy_does_not_call_itself() {
    let policy =
        "outboundTrafficPolicy: {mode: ALLOW_ANY, egressProxy: {host: pay.bank, port: {number: 8080}}}";
    let described = "{apiVersion: networking.istio.io/v1, kind: ServiceEntry, metadata: {name: a, namespace: shop}, spec: {hosts: [a.example.com], resolution: NONE, ports: [{number: 80, protocol: HTTP}]}}\n---\n";
    let yaml = described.to_owned() + &sidecar("default", "istio-system", policy);
    let compiled = compiled(mesh(), &yaml);
    let proxy = Scope { namespace: "bank".into(), ..scope(ClientKind::Outrigger, "pay", "pay-1") };
    let through = "egress|8080||pay.bank.svc.cluster.local";
    let names = ["example.com:443", "/192.0.2.1:443"];
    let routes = "outbound|80||*";
    // Who asked first must not have answered for all of the namespace.
    let seats = ["web-1", "client-1", "pay-1"].map(|id| compiled.audience().join(Some(id)));
    for seat in &seats {
        names.iter().for_each(|name| drop(seat.hold(ResourceKind::Destination, name)));
        seat.hold(ResourceKind::Listener, through);
        seat.hold(ResourceKind::Routes, routes);
    }
    let other = |scope: &Scope| match get(&compiled, scope, ResourceKind::Routes, routes) {
        Some(Resource::Routes(routes)) => match &routes.virtual_hosts.last().unwrap().routes[0].action {
            RouteAction::Forward(forward) => forward.clusters[0].cluster.clone(),
            other => panic!("{other:?}"),
        },
        other => panic!("{other:?}"),
    };
    for _ in 0..2 {
        for client in [web(), bank()] {
            for name in names {
                assert_eq!(to(&compiled, &client, name).as_deref(), Some(through), "{name}");
            }
            assert!(get(&compiled, &client, ResourceKind::Listener, through).is_some());
            assert_eq!(other(&client), "outbound|8080||pay.bank.svc.cluster.local");
        }
        for name in names {
            assert_eq!(to(&compiled, &proxy, name), None, "{name}");
        }
        assert!(get(&compiled, &proxy, ResourceKind::Listener, through).is_none());
        assert_eq!(other(&proxy), PASSTHROUGH);
    }
}

#[test]
fn a_known_host_that_goes_where_it_went_is_not_refused() {
    let described = |name: &str, host: &str| {
        format!(
            "{{apiVersion: networking.istio.io/v1, kind: ServiceEntry, metadata: {{name: {name}, namespace: shop}}, spec: {{hosts: ['{host}'], resolution: NONE, ports: [{{number: 443, protocol: TLS}}]}}}}\n---\n"
        )
    };
    let described = described("a", "api.example.com") + &described("b", "*.example.org");
    let proxy = "ALLOW_ANY, egressProxy: {host: pay.bank, port: {number: 8080}}";
    for (policy, other) in [
        ("REGISTRY_ONLY", "REGISTRY_ONLY|Sidecar shop/default"),
        (proxy, "egress|8080||pay.bank.svc.cluster.local"),
    ] {
        let rules = |hosts: &str| {
            let spec = format!("egress: [{{hosts: [{hosts}]}}], outboundTrafficPolicy: {{mode: {policy}}}");
            compiled(mesh(), &(described.clone() + &sidecar("default", "shop", &spec)))
        };
        let all = rules("./api.example.com, './*.example.org'");
        // By name as by address: it goes on, as far as the sidecar's own policy lets it.
        for name in ["api.example.com:443", "www.example.org:443"] {
            assert_eq!(to(&all, &web(), name), None, "{name} under {policy}");
        }
        assert_eq!(to(&all, &web(), "/192.0.2.1:443").as_deref(), Some("outbound|443||*"));
        for name in ["api.example.com:80", "www.example.com:443", "example.net:443"] {
            assert_eq!(to(&all, &web(), name).as_deref(), Some(other), "{name} under {policy}");
        }
        let none = rules("bank/*");
        for name in ["api.example.com:443", "www.example.org:443"] {
            assert_eq!(to(&none, &web(), name).as_deref(), Some(other), "{name} is not known");
        }
    }
}

#[test]
fn the_first_bytes_choose_among_described_hosts_that_are_known() {
    let described = |name: &str| {
        format!(
            "{{apiVersion: networking.istio.io/v1, kind: ServiceEntry, metadata: {{name: {name}, namespace: shop}}, spec: {{hosts: [{name}.example.com], resolution: DNS, ports: [{{number: 80, protocol: HTTP}}]}}}}\n---\n"
        )
    };
    let both = described("a") + &described("b");
    let rules = |policy: &str| {
        both.clone()
            + &sidecar("default", "shop", &format!("egress: [{{hosts: ['./a.example.com']}}]{policy}"))
    };
    let hosts = |yaml: &str| {
        let compiled = compiled(mesh(), yaml);
        assert!(to(&compiled, &web(), "/192.0.2.1:80").is_some());
        match get(&compiled, &web(), ResourceKind::Routes, "outbound|80||*") {
            Some(Resource::Routes(routes)) => routes.virtual_hosts,
            other => panic!("{other:?}"),
        }
    };
    let names = |yaml: &str| hosts(yaml).iter().map(|host| host.domains[0].clone()).collect::<Vec<_>>();
    assert_eq!(names(&both), ["a.example.com", "b.example.com", "*"]);
    assert_eq!(names(&rules("")), ["a.example.com", "*"]);
    let refused = hosts(&rules(", outboundTrafficPolicy: {mode: REGISTRY_ONLY}"));
    let route = &refused.last().unwrap().routes[0];
    assert!(
        matches!(&route.action, RouteAction::Direct { status: 502, body } if body.contains("Sidecar shop/default"))
    );
    let compiled = compiled(mesh(), &rules(", outboundTrafficPolicy: {mode: REGISTRY_ONLY}"));
    let Some(Resource::Listener(listener)) = get(&compiled, &web(), ResourceKind::Listener, "outbound|80||*")
    else {
        panic!()
    };
    let Terminal::Tcp(rest) = &listener.chains.last().unwrap().terminal else { panic!("{listener:?}") };
    assert_eq!(rest.clusters[0].cluster, "nowhere");
}

#[test]
fn an_envoy_is_sent_what_it_knows_and_what_routes_of_that_lead_to() {
    let envoy = scope(ClientKind::Envoy, "web", "web-1");
    let route = "{apiVersion: networking.istio.io/v1, kind: VirtualService, metadata: {name: catalog, namespace: shop}, spec: {hosts: [catalog], http: [{route: [{destination: {host: pay.bank}}]}]}}\n---\n";
    let listed = |yaml: &str, kind| {
        let names = compiled(mesh(), yaml).wildcard_names(&envoy, kind);
        names.iter().map(ToString::to_string).collect::<BTreeSet<_>>()
    };
    let only = sidecar("default", "shop", "egress: [{hosts: ['./catalog']}]");
    assert_eq!(listed("", ResourceKind::Cluster).len(), 5);
    assert_eq!(listed(&only, ResourceKind::Cluster), [CATALOG.to_owned()].into());
    let pay = "outbound|8080||pay.bank.svc.cluster.local";
    let with = listed(&(route.to_owned() + &only), ResourceKind::Cluster);
    assert_eq!(with, [CATALOG.to_owned(), pay.to_owned()].into());
    let compiled = compiled(mesh(), &only);
    let Some(Resource::Routes(routes)) = get(&compiled, &envoy, ResourceKind::Routes, "8080") else {
        panic!()
    };
    assert_eq!(routes.virtual_hosts.len(), 1);
    // What it is not sent an Envoy decides about itself, and that is said.
    let more = only.replace("egress:", "inboundConnectionPool: {tcp: {maxConnections: 1}}, outboundTrafficPolicy: {mode: REGISTRY_ONLY}, egress:");
    let gaps = super::super::tests::compiled(mesh(), &more).gaps(&envoy, &BTreeSet::new());
    assert_eq!(gaps.iter().filter(|gap| gap.rule == "Sidecar shop/default").count(), 1, "{gaps:?}");
    let grpc = scope(ClientKind::Grpc, "web", "web-1");
    assert!(get(&compiled, &grpc, ResourceKind::Listener, "catalog.shop:8080").is_some());
    assert!(get(&compiled, &grpc, ResourceKind::Listener, "pay.bank:8080").is_none());
}

#[test]
fn rules_of_namespaces_that_are_not_known_do_not_hold() {
    let rule = "{apiVersion: networking.istio.io/v1, kind: VirtualService, metadata: {name: theirs, namespace: bank}, spec: {hosts: [catalog.shop.svc.cluster.local], http: [{name: theirs, route: [{destination: {host: pay}}]}]}}\n---\n";
    let route = |yaml: &str| match get(&compiled(mesh(), yaml), &web(), ResourceKind::Routes, CATALOG) {
        Some(Resource::Routes(routes)) => routes.virtual_hosts[0].routes[0].name.clone(),
        other => panic!("{other:?}"),
    };
    assert_eq!(route(rule), "theirs");
    assert_eq!(
        route(&(rule.to_owned() + &sidecar("default", "shop", "egress: [{hosts: ['./*']}]"))),
        "default"
    );
    assert_eq!(
        route(&(rule.to_owned() + &sidecar("default", "shop", "egress: [{hosts: ['*/*']}]"))),
        "theirs"
    );
}

fn inbound(compiled: &Compiled) -> BTreeSet<String> {
    compiled.wildcard_names(&web(), ResourceKind::Listener).iter().map(ToString::to_string).collect()
}

fn listener(compiled: &Compiled, name: &str) -> Listener {
    match get(compiled, &web(), ResourceKind::Listener, name) {
        Some(Resource::Listener(listener)) => listener,
        other => panic!("{name}: {other:?}"),
    }
}

#[test]
fn what_comes_in_is_what_the_sidecar_says_and_goes_where_it_says() {
    let listeners = "ingress: [{port: {number: 9080, protocol: HTTP, name: a}, defaultEndpoint: '127.0.0.1:8081', connectionPool: {http: {http2MaxRequests: 7}}},
        {port: {number: 9081, protocol: TCP, name: b}, defaultEndpoint: '0.0.0.0:8082'}, {port: {number: 9082, protocol: TCP, name: c}, bind: 127.0.0.99}],
        inboundConnectionPool: {tcp: {maxConnections: 5}}";
    let compiled = compiled(mesh(), &sidecar("default", "shop", listeners));
    let names = [9080, 9081, 9082, 0].map(|port| format!("inbound|127.0.0.10:{port}"));
    assert_eq!(inbound(&compiled), names.clone().into());
    let web_chain = listener(&compiled, &names[0]);
    assert!(web_chain.chains.iter().any(|chain| matches!(chain.terminal, Terminal::Http(_))));
    let bytes = listener(&compiled, &names[1]);
    assert!(bytes.chains.iter().all(|chain| matches!(chain.terminal, Terminal::Tcp(_))));
    // What is registered and not named is a port like any other.
    assert!(get(&compiled, &web(), ResourceKind::Listener, "inbound|127.0.0.10:8080").is_none());
    let cluster =
        |port: u16| match get(&compiled, &web(), ResourceKind::Cluster, &format!("inbound|{port}||")) {
            Some(Resource::Cluster(cluster)) => cluster,
            other => panic!("{other:?}"),
        };
    let address = |port: u16| match cluster(port).discovery {
        Discovery::Static(set) => set.iter().next().map(|endpoint| endpoint.address.to_string()),
        Discovery::OriginalDestination => cluster(port).original_port.map(|port| format!("its own:{port}")),
        other => panic!("{other:?}"),
    };
    assert_eq!(address(9080).as_deref(), Some("127.0.0.1:8081"));
    assert_eq!(address(9081).as_deref(), Some("its own:8082"));
    assert_eq!((address(9082), address(0)), (None, None));
    let limits = |port| (cluster(port).limits.max_requests, cluster(port).limits.max_connections);
    assert_eq!([limits(9080), limits(9081)], [(7, u32::MAX), (u32::MAX, 5)]);
    assert_eq!(cluster(9080).origin.unwrap().to_string(), "Sidecar shop/default");
}

#[test]
fn a_port_that_is_bound_to_one_address_is_as_without_the_sidecar_at_the_others() {
    let rules = "
{apiVersion: security.istio.io/v1, kind: PeerAuthentication, metadata: {name: web, namespace: shop}, spec: {selector: {matchLabels: {app: web}}, portLevelMtls: {8080: {mode: STRICT}, 9090: {mode: STRICT}}}}
---
{apiVersion: security.istio.io/v1, kind: RequestAuthentication, metadata: {name: web, namespace: shop}, spec: {jwtRules: [{issuer: 'https://a'}]}}
---
{apiVersion: outrigger.io/v1, kind: TrafficRules, metadata: {name: web, namespace: shop}, spec: {service: web, rateLimit: {requests: 5, per: 1s}}}
---
";
    let ingress = |bind: &str| {
        let port = |port: u16| {
            format!(
                "{{port: {{number: {port}, protocol: HTTP, name: a}}, bind: '{bind}', defaultEndpoint: '127.0.0.1:8081'}}"
            )
        };
        sidecar("default", "shop", &format!("ingress: [{}, {}]", port(8080), port(9090)))
    };
    let mut instances = mesh();
    instances[0].addresses.push("fd00::7".parse().unwrap());
    let with = |bind: &str| compiled(instances.clone(), &(rules.to_owned() + &ingress(bind)));
    // What is there, and to which cluster the first chain leads.
    let at = |compiled: &Compiled, address: &str| {
        let name = format!("inbound|{address}");
        assert!(inbound(compiled).contains(&name), "{name} is not told");
        let listener = listener(compiled, &name);
        assert!(listener.chains.iter().all(|chain| chain.tls.is_some()), "{name} takes plain text");
        match &listener.chains[0].terminal {
            Terminal::Http(http) => {
                let RouteSource::Inline(routes) = &http.routes else { panic!("{http:?}") };
                let cluster = routes.clusters().next().map(str::to_owned);
                (http.filters.len(), cluster.unwrap())
            }
            Terminal::Tcp(tcp) => (0, tcp.clusters[0].cluster.clone()),
        }
    };
    let bound = with("127.0.0.10");
    assert_eq!(at(&bound, "127.0.0.10:8080"), (2, "inbound|8080||".to_owned()));
    assert_eq!(at(&bound, "127.0.0.10:9090"), (2, "inbound|9090||".to_owned()));
    // Tokens and limits hold where HTTP is registered; what is not registered is bytes.
    assert_eq!(at(&bound, "[fd00::7]:8080"), (2, "inbound|0||".to_owned()));
    assert_eq!(at(&bound, "[fd00::7]:9090"), (0, "inbound|0||".to_owned()));
    // A slip of the pen is bound to nothing.
    let nobody = with("127.0.0.99");
    for address in ["127.0.0.10:8080", "[fd00::7]:8080"] {
        assert_eq!(at(&nobody, address), (2, "inbound|0||".to_owned()), "{address}");
    }
}

#[test]
fn without_a_word_of_what_comes_in_the_registered_ports_are() {
    let plain = inbound(&compiled(mesh(), ""));
    let with = compiled(mesh(), &sidecar("default", "shop", "egress: [{hosts: ['~/*']}]"));
    assert_eq!(inbound(&with), plain);
    assert!(plain.contains("inbound|127.0.0.10:8080"));
}
