//! What a connection to an address is for.

use super::*;

#[test]
fn a_virtual_address_leads_to_the_listener_of_its_service_and_only_on_its_ports() {
    let c = compiled(shop(), "");
    let ask = |name: &str| get(&c, &web(), ResourceKind::Host, name);
    let Some(Resource::Host(host)) = ask("catalog") else { panic!("no host") };
    assert_eq!((host.name.as_str(), host.host.as_str()), ("catalog", "catalog.shop.svc.cluster.local"));
    let [v4, v6] = host.addresses[..] else { panic!("{:?}", host.addresses) };
    assert!(v4.is_ipv4() && v6.is_ipv6());
    for name in ["catalog.shop", "catalog.shop.svc.cluster.local"] {
        let Some(Resource::Host(same)) = ask(name) else { panic!("no host {name}") };
        assert_eq!((same.name.as_str(), &same.addresses), (name, &host.addresses));
    }
    for nobody in ["nobody", "catalog.other", "example.com", "*.shop.svc.cluster.local", "a b", ""] {
        assert_eq!(ask(nobody), None, "{nobody}");
    }
    for address in [v4, v6] {
        let at = |port| get(&c, &web(), ResourceKind::Destination, &destination_of(address, port));
        let Some(Resource::Destination(destination)) = at(8080) else { panic!("no destination") };
        assert_eq!(destination.listener, CATALOG);
        assert_eq!(at(8081), None);
    }
}

#[test]
fn the_name_of_a_headless_service_stands_for_those_who_serve_it() {
    let service = |more: &str| {
        format!(
            "{{apiVersion: v1, kind: Service, metadata: {{name: db, namespace: shop}}, spec: {{ports: [{{port: 80, targetPort: 5432}}], {more}}}}}"
        )
    };
    let member = |id: &str, addresses: [&str; 2], state| {
        let one = sample(id, "db", "v1", addresses[0], 5432, Protocol::Tcp);
        let addresses = addresses.map(|address| address.parse().unwrap()).to_vec();
        Instance { services: Some(vec!["db".into()]), addresses, state, ..one }
    };
    let members = || {
        let ready = member("db-0", ["10.0.0.7", "fd00::7"], State::Running);
        let mut all = vec![ready, member("db-1", ["10.0.0.8", "fd00::8"], State::Unhealthy)];
        all.extend(shop());
        all
    };
    let answer = |instances: Vec<Instance>, more: &str| -> Option<Vec<String>> {
        let c = compiled(instances, &service(more));
        match get(&c, &web(), ResourceKind::Host, "db") {
            Some(Resource::Host(host)) => Some(host.addresses.iter().map(ToString::to_string).collect()),
            _ => None,
        }
    };
    let some = |all: &[&str]| Some(all.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>());
    assert_eq!(answer(members(), "clusterIP: None, ipFamilies: [IPv4]"), some(&["10.0.0.7"]));
    assert_eq!(
        answer(members(), "clusterIP: None, ipFamilies: [IPv6, IPv4]"),
        some(&["10.0.0.7", "fd00::7"])
    );
    let all = "clusterIP: None, publishNotReadyAddresses: true";
    assert_eq!(answer(members(), all), some(&["10.0.0.7", "10.0.0.8", "fd00::7", "fd00::8"]));
    // Nobody is ready: whoever asks is not led anywhere else.
    assert_eq!(answer(shop(), "clusterIP: None"), None);
    // One that has no address yet is another matter.
    let given = answer(members(), "type: ClusterIP").unwrap();
    assert!(given[0].starts_with("240.") && given[1].starts_with("2001:2:"), "{given:?}");
    // A call to one of them is a call to that instance.
    let c = compiled(members(), &service("clusterIP: None"));
    let name = "/10.0.0.7:5432";
    let Some(Resource::Destination(found)) = get(&c, &web(), ResourceKind::Destination, name) else {
        panic!()
    };
    assert_eq!(found.listener, "outbound|5432||10.0.0.7");
}

#[test]
fn an_external_name_of_a_service_of_the_mesh_is_that_service() {
    let named = |name: &str, target: &str| {
        format!(
            "---\n{{apiVersion: v1, kind: Service, metadata: {{name: {name}, namespace: shop}}, spec: {{type: ExternalName, externalName: {target}, ports: [{{port: 8080}}]}}}}\n"
        )
    };
    let rules = [
        named("goods", "catalog.shop.svc.cluster.local."),
        named("itself", "itself.shop.svc.cluster.local"),
        named("gone", "nobody.shop.svc.cluster.local"),
        named("world", "api.example.com"),
    ];
    let c = compiled(shop(), &rules.concat());
    let ask = |kind, name: &str| get(&c, &web(), kind, name);
    let cluster = |name: &str| {
        let name = format!("outbound|8080||{name}.shop.svc.cluster.local");
        let Some(Resource::Cluster(cluster)) = ask(ResourceKind::Cluster, &name) else { panic!("no {name}") };
        (cluster.tls, ask(ResourceKind::Endpoints, &name))
    };
    let (ClientTls::Mesh { server_name, identities, .. }, Some(Resource::Endpoints(set))) = cluster("goods")
    else {
        panic!("{:?}", cluster("goods"))
    };
    assert_eq!(server_name, "outbound_.8080_._.catalog.shop.svc.cluster.local");
    assert!(!identities.is_empty() && set.len() == 2, "{identities:?} {set:?}");
    let (Some(Resource::Host(host)), Some(Resource::Host(catalog))) =
        (ask(ResourceKind::Host, "goods"), ask(ResourceKind::Host, "catalog"))
    else {
        panic!("no host")
    };
    assert_eq!((host.host, host.addresses), (catalog.host, catalog.addresses));
    for name in ["goods:8080", "goods.shop:8080", "catalog:8080"] {
        let Some(Resource::Destination(found)) = ask(ResourceKind::Destination, name) else {
            panic!("{name}")
        };
        assert_eq!(found.listener, CATALOG, "{name}");
    }
    // All others are names of the world.
    for name in ["itself", "gone", "world"] {
        assert_eq!(cluster(name).0, ClientTls::None, "{name}");
    }
}

#[test]
fn an_instance_is_called_in_the_family_that_its_service_has() {
    let service = |more: &str| {
        format!(
            "{{apiVersion: v1, kind: Service, metadata: {{name: db, namespace: shop}}, spec: {{ports: [{{port: 80, targetPort: 5432}}], {more}}}}}"
        )
    };
    let one = sample("db-0", "db", "v1", "10.0.0.7", 5432, Protocol::Tcp);
    let addresses = vec!["10.0.0.7".parse().unwrap(), "fd00::7".parse().unwrap()];
    let both = Instance { services: Some(vec!["db".into()]), addresses, ..one };
    for (more, called) in [
        ("clusterIP: 10.96.0.7", "10.0.0.7:5432"),
        ("clusterIP: 'fd00:96::7'", "[fd00::7]:5432"),
        ("clusterIP: 'fd00:96::7', clusterIPs: ['fd00:96::7', 10.96.0.7]", "[fd00::7]:5432"),
        ("clusterIP: None, ipFamilies: [IPv6]", "[fd00::7]:5432"),
        ("type: ClusterIP", "10.0.0.7:5432"),
    ] {
        let c = compiled(vec![both.clone()], &service(more));
        let name = "outbound|80||db.shop.svc.cluster.local";
        let Some(Resource::Endpoints(set)) = get(&c, &web(), ResourceKind::Endpoints, name) else { panic!() };
        let found: Vec<String> = set.iter().map(|endpoint| endpoint.address.to_string()).collect();
        assert_eq!(found, [called], "{more}");
    }
}

#[test]
fn what_somebody_else_writes_down_leads_nobody_to_its_own_host() {
    let entry = |namespace: &str, address: &str| {
        format!(
            "{{apiVersion: networking.istio.io/v1, kind: ServiceEntry, metadata: {{name: near, namespace: {namespace}}}, spec: {{hosts: [near.example], resolution: STATIC, ports: [{{number: 80, protocol: HTTP}}], endpoints: [{{address: '{address}'}}, {{address: 192.0.2.1}}]}}}}"
        )
    };
    for (namespace, address, there) in [
        ("shop", "127.0.0.1", true),
        ("bank", "127.0.0.1", false),
        ("bank", "169.254.169.254", false),
        ("bank", "::1", false),
        ("bank", "fe80::1", false),
        ("bank", "192.0.2.2", true),
        ("outrigger-system", "127.0.0.1", true),
    ] {
        let c = compiled(shop(), &entry(namespace, address));
        let name = "outbound|80||near.example";
        let Some(Resource::Endpoints(set)) = get(&c, &web(), ResourceKind::Endpoints, name) else { panic!() };
        let found: Vec<String> = set.iter().map(|endpoint| endpoint.address.ip().to_string()).collect();
        assert!(found.contains(&"192.0.2.1".to_owned()), "{found:?}");
        assert_eq!(found.contains(&address.to_owned()), there, "{namespace} {address}");
    }
}

fn destination_of(address: std::net::IpAddr, port: u16) -> String {
    format!("/{}", std::net::SocketAddr::new(address, port))
}

#[test]
fn an_address_means_the_workload_in_the_client_s_own_network() {
    let mut instances = shop();
    // The address of catalog-v1, in another network.
    let mut far = sample("orders-1", "orders", "v1", "127.0.0.11", 8080, Protocol::Tcp);
    far.network = "east".into();
    let mut near = sample("east-web", "web", "v1", "127.0.0.20", 8080, Protocol::Http);
    near.network = "east".into();
    instances.extend([far, near]);
    let c = compiled(instances, "");
    let east = scope(ClientKind::Outrigger, "web", "east-web");
    let served = |scope: &Scope| {
        let name = "outbound|8080||127.0.0.11";
        let Some(Resource::Destination(d)) = get(&c, scope, ResourceKind::Destination, "/127.0.0.11:8080")
        else {
            panic!("no destination")
        };
        assert_eq!(d.listener, name);
        let Some(Resource::Listener(listener)) = get(&c, scope, ResourceKind::Listener, name) else {
            panic!("no listener")
        };
        let Some(Resource::Endpoints(set)) = get(&c, scope, ResourceKind::Endpoints, name) else {
            panic!("no endpoints")
        };
        let Some(Resource::Cluster(cluster)) = get(&c, scope, ResourceKind::Cluster, name) else {
            panic!("no cluster")
        };
        let ClientTls::Mesh { server_name, .. } = cluster.tls else { panic!("no mesh TLS") };
        assert_eq!(set.len(), 1);
        (matches!(listener.chains[0].terminal, Terminal::Tcp(_)), server_name)
    };
    assert_eq!(served(&web()), (false, "outbound_.8080_._.catalog.shop.svc.cluster.local".into()));
    assert_eq!(served(&east), (true, "outbound_.8080_._.orders.shop.svc.cluster.local".into()));
    assert!(get(&c, &web(), ResourceKind::Destination, "/127.0.0.20:8080").is_none());
    assert!(get(&c, &web(), ResourceKind::Destination, "east/127.0.0.20:8080").is_none());
    assert!(get(&c, &east, ResourceKind::Destination, "east/127.0.0.20:8080").is_some());
}

#[test]
fn a_port_of_a_pod_that_nobody_has_declared_is_the_mesh_s_where_its_sidecar_takes_it() {
    let pod = |inbound: Option<&str>, sidecar| {
        let mut all = shop();
        let kept = inbound.map(|kept| (crate::canonical::INBOUND.to_owned(), kept.to_owned()));
        all[1].metadata.extend(kept);
        all[1].sidecar = sidecar;
        all
    };
    let at = |all: Vec<Instance>, port: u16| {
        let c = compiled(all, "");
        let found = get(&c, &web(), ResourceKind::Destination, &format!("/127.0.0.11:{port}"));
        let Some(Resource::Destination(found)) = found else { return None };
        let name = found.listener.as_str();
        assert_eq!(name, format!("outbound|{port}||127.0.0.11"));
        let ask = |kind| get(&c, &web(), kind, name);
        let (
            Some(Resource::Cluster(cluster)),
            Some(Resource::Endpoints(set)),
            Some(Resource::Listener(listener)),
        ) = (ask(ResourceKind::Cluster), ask(ResourceKind::Endpoints), ask(ResourceKind::Listener))
        else {
            panic!("{name}")
        };
        let ClientTls::Mesh { identities, .. } = cluster.tls else { panic!("{cluster:?}") };
        assert!(
            set.iter()
                .all(|endpoint| endpoint.mesh_tls && identities == [endpoint.identity.clone().unwrap()])
        );
        Some(listener.chains.iter().map(|chain| chain.name.to_string()).collect::<Vec<_>>())
    };
    assert_eq!(at(pod(Some("*"), true), 8080).unwrap(), ["http"], "declared");
    assert_eq!(at(pod(Some("*"), true), 7946).unwrap(), ["tcp"]);
    for (inbound, sidecar, port) in [
        (Some("*"), true, 15020),
        (Some("*"), true, 22),
        (Some("*!7000-7999"), true, 7946),
        (Some("8080"), true, 7946),
        (Some("*"), false, 7946),
        (None, true, 7946),
    ] {
        assert_eq!(at(pod(inbound, sidecar), port), None, "{inbound:?} {sidecar} {port}");
    }
    // Somebody's own word of the address goes before.
    let entry = "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {name: gossip, namespace: shop}\nspec: {hosts: \
                 [gossip.example.com], addresses: [127.0.0.11], resolution: STATIC, ports: [{number: 7946, name: tcp, protocol: TCP}], \
                 endpoints: [{address: 192.0.2.1}]}\n";
    let c = compiled(pod(Some("*"), true), entry);
    let found = get(&c, &web(), ResourceKind::Destination, "/127.0.0.11:7946");
    let Some(Resource::Destination(found)) = found else { panic!() };
    assert_eq!(found.listener, "outbound|7946||gossip.example.com");
}
