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
