use std::time::Instant;

use outrigger_model::endpoint::{Endpoint, EndpointSet, Locality, LocalityEndpoints, ZoneAware};
use outrigger_model::listener::ChainInput;
use outrigger_model::resource;
use outrigger_model::route::{
    Cors, Fault, Forward, Route, RouteAction, RouteMatch, Session, SessionBy, VirtualHost,
};

use super::*;
use crate::config_feed::state::FeedState;
use crate::failure::FailureKind;
use crate::runtime::cluster::PickContext;
use crate::runtime::endpoint::Reach;

fn cluster(name: &str) -> Arc<Resource> {
    Arc::new(Resource::Cluster(Cluster::new(name)))
}

fn endpoints(name: &str, last: u8) -> Arc<Resource> {
    let endpoint = Endpoint::new(([10, 0, 0, last], 80).into());
    let locality = LocalityEndpoints { endpoints: vec![endpoint], ..LocalityEndpoints::default() };
    Arc::new(Resource::Endpoints(EndpointSet::new(name, vec![locality])))
}

fn routes(name: &str, to: &str) -> Arc<Resource> {
    let route = Route {
        name: String::new(),
        matches: RouteMatch::any(),
        action: RouteAction::Forward(Forward {
            clusters: vec![WeightedCluster::only(to)],
            ..Forward::default()
        }),
        ..Route::default()
    };
    let host = VirtualHost { domains: vec!["*".into()], routes: vec![route], ..VirtualHost::default() };
    Arc::new(Resource::Routes(RouteConfig { name: name.into(), virtual_hosts: vec![host] }))
}

fn listener(name: &str, routes: &str) -> Arc<Resource> {
    let http = HttpConnection::new(RouteSource::Named(routes.into()));
    let chain = FilterChain::new("http", Terminal::Http(Box::new(http)));
    Arc::new(Resource::Listener(Listener {
        addresses: vec![([10, 1, 1, 1], 80).into()],
        chains: vec![chain],
        ..Listener::new(name, Direction::Outbound)
    }))
}

fn destination(name: &str, listener: &str) -> Arc<Resource> {
    let destination = resource::Destination { name: name.into(), listener: listener.into() };
    Arc::new(Resource::Destination(destination))
}

fn build(builder: &mut Builder, before: &Snapshot, resources: &[Arc<Resource>]) -> Snapshot {
    let in_force: InForce<'_> = resources.iter().map(|r| ((r.kind(), r.name()), r)).collect();
    let (snapshot, invalid) =
        builder.build(before, &in_force, &[(ResourceKind::Destination, "gone:80".into())]);
    assert_eq!(invalid, []);
    snapshot
}

fn everything() -> Vec<Arc<Resource>> {
    vec![cluster("c"), endpoints("c", 1), routes("r", "c"), listener("l", "r"), destination("shop:80", "l")]
}

#[test]
fn a_destination_leads_to_its_endpoints() {
    let snapshot = build(&mut Builder::default(), &Snapshot::default(), &everything());
    let Some(Destination::Listener(found)) = snapshot.destination("shop:80").map(|known| &known.answer)
    else {
        panic!()
    };
    assert!(Arc::ptr_eq(found, snapshot.listener(Direction::Outbound, ([10, 1, 1, 1], 80).into()).unwrap()));
    let input =
        ChainInput { destination_port: 80, tls: false, server_name: None, application_protocols: &[] };
    let TerminalHandle::Http(http) = &found.select(&input).unwrap().terminal else { panic!() };
    assert_eq!(http.cluster("c").unwrap().endpoints().all.len(), 1);
    assert!(matches!(snapshot.destination("gone:80").unwrap().answer, Destination::NotInMesh));
    assert!(snapshot.destination("unknown:80").is_none());
    assert!(snapshot.http("l", "http").is_some() && snapshot.http("l", "tcp").is_none());
}

#[test]
fn what_routes_ask_for_is_a_filter_where_one_does_and_costs_nothing_elsewhere() {
    let filters = |change: fn(&mut Route)| {
        let mut resources = everything();
        let Resource::Routes(table) = Arc::make_mut(&mut resources[2]) else { panic!() };
        change(&mut table.virtual_hosts[0].routes[0]);
        let snapshot = build(&mut Builder::default(), &Snapshot::default(), &resources);
        snapshot.http("l", "http").unwrap().filters.iter().map(|filter| format!("{filter:?}")).collect()
    };
    let none: Vec<String> = filters(|_| ());
    assert_eq!(none, Vec::<String>::new());
    let all: Vec<String> = filters(|route| {
        route.fault = Some(Fault::default());
        route.session = Some(Box::new(Session {
            by: SessionBy::Header { name: "x".into() },
            strict: None,
            absolute: None,
            idle: None,
        }));
        route.cors = Some(Cors::default());
    });
    let kinds: Vec<&str> = all.iter().filter_map(|filter| filter.split('(').next()).collect();
    assert_eq!(kinds, ["Fault", "Session", "Cors"], "in this order, behind the listener's");
}

#[test]
fn an_endpoint_update_changes_neither_cluster_nor_listener_handles() {
    let mut builder = Builder::default();
    let mut resources = everything();
    let first = build(&mut builder, &Snapshot::default(), &resources);
    resources[1] = endpoints("c", 2);
    let second = build(&mut builder, &first, &resources);
    assert!(Arc::ptr_eq(first.cluster("c").unwrap(), second.cluster("c").unwrap()));
    assert!(Arc::ptr_eq(first.listener_named("l").unwrap(), second.listener_named("l").unwrap()));
    assert_eq!(second.cluster("c").unwrap().endpoints().all[0].address, ([10, 0, 0, 2], 80).into());
    assert!(second.generation > first.generation);
}

#[test]
fn a_changed_cluster_reaches_the_routes_and_keeps_its_id() {
    let mut builder = Builder::default();
    let mut resources = everything();
    let first = build(&mut builder, &Snapshot::default(), &resources);
    let mut changed = Cluster::new("c");
    changed.limits.max_requests = 1;
    resources[0] = Arc::new(Resource::Cluster(changed));
    let second = build(&mut builder, &first, &resources);
    let http = second.http("l", "http").unwrap();
    assert_eq!(http.cluster("c").unwrap().config.limits.max_requests, 1);
    assert_eq!(first.cluster("c").unwrap().id, second.cluster("c").unwrap().id);
    assert_eq!(http.cluster("c").unwrap().endpoints().all.len(), 1, "endpoints stay");
}

#[test]
fn what_a_listener_of_the_control_planes_lets_pass_is_blocked_where_only_the_mesh_may_be_reached() {
    let pick = |mut builder: Builder| {
        let resources = [listener("l", "r"), routes("r", PASSTHROUGH)];
        let snapshot = build(&mut builder, &Snapshot::default(), &resources);
        let cluster = snapshot.http("l", "http").unwrap().cluster(PASSTHROUGH).unwrap().clone();
        let original = (([192, 0, 2, 7], 443).into(), Reach::Network);
        cluster.pick(&PickContext { tried: &[], original, hash: None })
    };
    assert_eq!(pick(Builder::default()).unwrap().address, ([192, 0, 2, 7], 443).into());
    let failure = pick(Builder::registry_only()).unwrap_err();
    assert_eq!(failure.kind, FailureKind::Blocked);
    assert!(failure.detail.contains("REGISTRY_ONLY"), "{failure}");
}

#[test]
fn routes_that_did_not_arrive_leave_an_empty_table_that_says_so() {
    let resources = [listener("l", "r")];
    let snapshot = build(&mut Builder::default(), &Snapshot::default(), &resources);
    assert_eq!(snapshot.http("l", "http").unwrap().routes.name(), "r (not received)");
}

#[test]
fn a_resource_that_cannot_be_compiled_is_named_by_field() {
    let mut bad = Cluster::new("c");
    bad.tls = ClientTls::Mesh { server_name: "no name".into(), identities: Vec::new(), required: false };
    let error = check(&Resource::Cluster(bad)).unwrap_err();
    assert_eq!((error.name.as_str(), error.field.as_str()), ("c", "transport_socket.sni"));
    assert!(check(&everything()[3]).is_ok());
}

#[test]
fn a_barred_cluster_says_why_and_has_its_endpoints_again_once_it_can_be_called() {
    let mut builder = Builder::default();
    let mut resources = everything();
    let first = build(&mut builder, &Snapshot::default(), &resources);
    let good = std::mem::replace(
        &mut resources[0],
        Arc::new(Resource::Cluster(Cluster::new("c").barred("/nowhere: no such file"))),
    );
    let second = build(&mut builder, &first, &resources);
    let original = (([192, 0, 2, 7], 443).into(), Reach::Network);
    let ctx = PickContext { tried: &[], original, hash: None };
    let failure = second.http("l", "http").unwrap().cluster("c").unwrap().pick(&ctx).unwrap_err();
    assert_eq!(failure.kind, FailureKind::NoEndpoints);
    assert!(failure.detail.contains("the TLS that it asks for cannot be set up: /nowhere"), "{failure}");
    // The very endpoints of before.
    resources[0] = good;
    let third = build(&mut builder, &second, &resources);
    let picked = third.http("l", "http").unwrap().cluster("c").unwrap().pick(&ctx).unwrap();
    assert_eq!(picked.address, ([10, 0, 0, 1], 80).into());
}

#[test]
fn what_cannot_be_compiled_leaves_its_last_good_version_serving() {
    let mut builder = Builder::default();
    let mut resources = everything();
    let first = build(&mut builder, &Snapshot::default(), &resources);
    let Resource::Routes(mut bad) = (*resources[2]).clone() else { panic!() };
    bad.virtual_hosts[0].domains.push("*".into());
    resources[2] = Arc::new(Resource::Routes(bad));
    let in_force: InForce<'_> = resources.iter().map(|r| ((r.kind(), r.name()), r)).collect();
    let (second, invalid) = builder.build(&first, &in_force, &[]);
    assert_eq!(invalid[0].name, "r");
    assert_eq!(second.http("l", "http").unwrap().routes.hosts().len(), 1);
    let (third, invalid) = builder.build(&second, &in_force, &[]);
    assert_eq!((invalid.len(), third.http("l", "http").unwrap().routes.hosts().len()), (0, 1), "told once");
}

#[test]
fn a_listener_keeps_its_form_while_what_it_leads_to_is_the_same() {
    let mut builder = Builder::default();
    let mut resources = everything();
    resources.extend([
        cluster("other"),
        routes("others", "other"),
        listener("m", "others"),
        listener("n", "none"),
    ]);
    let mut snapshot = build(&mut builder, &Snapshot::default(), &resources);
    let forms = |snapshot: &Snapshot| ["l", "m", "n"].map(|name| snapshot.by_name[name].clone());
    let mut turned = |change: Arc<Resource>| {
        resources.retain(|one| (one.kind(), one.name()) != (change.kind(), change.name()));
        resources.push(change);
        let next = build(&mut builder, &snapshot, &resources);
        let (before, now) = (forms(&snapshot), forms(&next));
        snapshot = next;
        [0, 1, 2].map(|at| Arc::ptr_eq(&before[at], &now[at]))
    };
    let limited = |name: &str| {
        let mut config = Cluster::new(name);
        config.limits.max_requests = 7;
        Arc::new(Resource::Cluster(config))
    };
    assert_eq!(turned(limited("other")), [true, false, true], "a cluster");
    assert_eq!(turned(limited("strange")), [true; 3], "one that nobody names");
    assert_eq!(turned(routes("r", "other")), [false, true, true], "routes");
    assert_eq!(turned(endpoints("c", 2)), [true; 3], "endpoints");
    assert_eq!(turned(routes("none", "later")), [true, true, false], "routes that come later");
    assert_eq!(turned(cluster("later")), [true, true, false], "and a cluster that does");
}

#[test]
fn what_is_sent_again_keeps_its_compiled_form() {
    let (now, mut state) = (Instant::now(), FeedState::new([]));
    state.demand((ResourceKind::Destination, "shop:80".into()), now);
    let (mut builder, mut before) = (Builder::default(), Snapshot::default());
    let mut send = |resources: Vec<Arc<Resource>>, version: &str| {
        for resource in resources {
            state.upsert((*resource).clone(), version.into(), now);
        }
        state.step(now);
        let in_force: InForce<'_> =
            state.in_force().map(|(key, held)| ((key.0, key.1.as_str()), &held.resource)).collect();
        let (next, invalid) = builder.build(&before, &in_force, &[]);
        assert_eq!(invalid, []);
        let routes = next.http("l", "http").unwrap().routes.clone();
        let listener = next.listener_named("l").unwrap().clone();
        before = next;
        (listener, routes)
    };
    let first = send(everything(), "1");
    let again = send(everything(), "2");
    assert!(Arc::ptr_eq(&first.0, &again.0) && Arc::ptr_eq(&first.1, &again.1));
    let mut changed = Cluster::new("c");
    changed.limits.max_requests = 7;
    let other = send(vec![Arc::new(Resource::Cluster(changed))], "3");
    assert!(!Arc::ptr_eq(&again.0, &other.0) && Arc::ptr_eq(&again.1, &other.1));
    let wanted = |kind: ResourceKind| if kind == ResourceKind::Cluster { "3" } else { "2" };
    let versions: Vec<_> = state.in_force().map(|(key, held)| (key.0, held.version.as_str())).collect();
    assert_eq!(versions.len(), 5);
    assert!(versions.iter().all(|(kind, version)| *version == wanted(*kind)), "{versions:?}");
}

fn in_zone(zone: &str) -> Locality {
    Locality { region: "eu".into(), zone: zone.into(), sub_zone: String::new() }
}

/// Endpoints by zone, each with an address of its own, in places of a weight that zones stand in place of.
fn in_zones(name: &str, zones: &[(&str, u8)]) -> Arc<Resource> {
    let mut last = 0;
    let place = |(zone, count): &(&str, u8)| {
        let mut endpoint = || {
            last += 1;
            Endpoint::new(([10, 0, 0, last], 80).into())
        };
        let endpoints = (0..*count).map(|_| endpoint()).collect();
        LocalityEndpoints { locality: in_zone(zone), weight: 9, priority: 0, endpoints }
    };
    Arc::new(Resource::Endpoints(EndpointSet::new(name, zones.iter().map(place).collect())))
}

#[test]
fn zones_of_another_control_planes_cluster_follow_the_peers_of_the_client() {
    let zone_aware = Some(ZoneAware { min_endpoints: 1, ..ZoneAware::default() });
    let shop = Arc::new(Resource::Cluster(Cluster { zone_aware, ..Cluster::new("shop") }));
    let mut resources = vec![
        shop,
        in_zones("shop", &[("a", 1), ("b", 2)]),
        cluster("own"),
        in_zones("own", &[("a", 1), ("b", 1)]),
    ];
    // In thousandths of the requests, by the priority of the level.
    let parts = |snapshot: &Snapshot| -> Vec<(u32, Vec<u64>)> {
        let shop = snapshot.cluster("shop").unwrap().endpoints();
        let of_level = |level: &crate::balance::Level| {
            let weights: Vec<u64> = level.weighted().map(|(_, weight)| u64::from(weight)).collect();
            let sum: u64 = weights.iter().sum();
            (level.priority, weights.iter().map(|weight| (weight * 1000 + sum / 2) / sum).collect())
        };
        shop.levels.iter().map(of_level).collect()
    };
    let mut builder = Builder::default().with_zones(Zones::new(Some("own".into()), in_zone("a")));
    let first = build(&mut builder, &Snapshot::default(), &resources);
    assert_eq!(parts(&first), [(0, vec![667, 167, 167])]);
    // The peers alone are others: all of the client's own are here, and each endpoint gets as many.
    resources[3] = in_zones("own", &[("a", 2)]);
    let second = build(&mut builder, &first, &resources);
    assert_eq!(parts(&second), [(0, vec![333, 333, 333])]);
    // Enough here for all: the other zone is next.
    resources[1] = in_zones("shop", &[("a", 2), ("b", 1)]);
    resources[3] = in_zones("own", &[("a", 1), ("b", 1)]);
    let third = build(&mut builder, &second, &resources);
    assert_eq!(parts(&third), [(0, vec![500, 500]), (1, vec![1000])]);
    // Nobody knows where the client's own service is.
    resources.truncate(2);
    let fourth = build(&mut builder, &third, &resources);
    assert_eq!(parts(&fourth), [(0, vec![333, 333, 333])]);
    let zone_aware = Some(ZoneAware { fail_below: Some(50), ..ZoneAware::default() });
    resources[0] = Arc::new(Resource::Cluster(Cluster { zone_aware, ..Cluster::new("shop") }));
    let Resource::Endpoints(all) = &*resources[1] else { panic!() };
    let mut few = all.clone();
    let most = few.localities.iter_mut().flat_map(|place| &mut place.endpoints).take(2);
    most.for_each(|endpoint| endpoint.health = outrigger_model::endpoint::Health::Unhealthy);
    let panics = [resources[0].clone(), Arc::new(Resource::Endpoints(few))];
    let panicking = build(&mut builder, &fourth, &panics);
    assert_eq!(parts(&panicking), [], "in a panic nobody is asked");
    resources[0] = cluster("shop");
    let plain = build(&mut builder, &fourth, &resources);
    assert_eq!(parts(&plain), [(0, vec![250, 250, 500])], "without zones the weights of places hold");
}

#[test]
fn zones_of_a_cluster_that_has_its_endpoints_are_shared_where_something_changes_and_only_there() {
    let zones = Zones::new(Some("own".into()), in_zone("a"));
    let of = |max_requests, zones: &[(&str, u8)]| {
        let Resource::Endpoints(set) = &*in_zones("shop", zones) else { panic!() };
        let zone_aware = Some(ZoneAware { min_endpoints: 1, ..ZoneAware::default() });
        let mut shop =
            Cluster { zone_aware, discovery: Discovery::Static(set.clone()), ..Cluster::new("shop") };
        shop.limits.max_requests = max_requests;
        Arc::new(Resource::Cluster(shop))
    };
    let mut resources =
        vec![of(1, &[("a", 2), ("b", 1)]), cluster("own"), in_zones("own", &[("a", 1), ("b", 1)])];
    let mut builder = Builder::default().with_zones(zones);
    let table = |snapshot: &Snapshot| snapshot.cluster("shop").unwrap().endpoints().clone();
    let levels = |snapshot: &Snapshot| {
        table(snapshot).levels.iter().map(|level| level.members.len()).collect::<Vec<_>>()
    };
    let first = build(&mut builder, &Snapshot::default(), &resources);
    assert_eq!(levels(&first), [2, 1], "enough here for all");
    let same = build(&mut builder, &first, &resources);
    assert!(Arc::ptr_eq(&table(&first), &table(&same)), "nothing has changed");
    resources[2] = in_zones("own", &[("a", 2)]);
    let moved = build(&mut builder, &same, &resources);
    assert_eq!(levels(&moved), [3], "the peers are all here");
    resources[0] = of(2, &[("a", 1), ("b", 1)]);
    let other = build(&mut builder, &moved, &resources);
    assert_eq!(levels(&other), [2]);
}
