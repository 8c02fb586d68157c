use outrigger_model::cluster::{ClientTls, Cluster, OutsideTls, PASSTHROUGH};
use outrigger_model::endpoint::{Endpoint, EndpointSet, LocalityEndpoints, NamedAddress};
use outrigger_model::listener::{Direction, FilterChain, HttpConnection, Listener, RouteSource, Terminal};
use outrigger_model::resource::{Barrier, Destination};
use outrigger_model::route::{
    Forward, Route, RouteAction, RouteConfig, RouteMatch, VirtualHost, WeightedCluster,
};

use super::*;

fn key(kind: ResourceKind, name: &str) -> ResourceKey {
    (kind, name.to_owned())
}

/// A destination that somebody asks for.
fn wanted(name: &str) -> ResourceKey {
    key(ResourceKind::Destination, name)
}

fn names(keys: Vec<ResourceKey>) -> Vec<String> {
    keys.into_iter().map(|(_, name)| name).collect()
}

fn destination(name: &str, listener: &str) -> Resource {
    Resource::Destination(Destination { name: name.into(), listener: listener.into() })
}

fn listener(name: &str, routes: &str) -> Resource {
    let http = HttpConnection::new(RouteSource::Named(routes.into()));
    let chain = FilterChain::new("http", Terminal::Http(Box::new(http)));
    Resource::Listener(Listener { chains: vec![chain], ..Listener::new(name, Direction::Outbound) })
}

fn routes(name: &str, clusters: &[&str]) -> Resource {
    let clusters = clusters.iter().map(|c| WeightedCluster::only(*c)).collect();
    let route = Route {
        name: String::new(),
        matches: RouteMatch::any(),
        action: RouteAction::Forward(Forward { clusters, ..Forward::default() }),
        ..Route::default()
    };
    let host = VirtualHost { name: "h".into(), domains: vec!["*".into()], routes: vec![route], retry: None };
    Resource::Routes(RouteConfig { name: name.into(), virtual_hosts: vec![host] })
}

fn cluster(name: &str) -> Resource {
    Resource::Cluster(Cluster::new(name))
}

fn endpoints(name: &str) -> Resource {
    Resource::Endpoints(EndpointSet::new(name, Vec::new()))
}

fn barrier(generation: u64) -> Resource {
    Resource::Barrier(Barrier { name: "barrier".into(), generation })
}

fn feed(state: &mut FeedState, resources: Vec<Resource>, now: Instant) -> Step {
    for resource in resources {
        state.upsert(resource, "v".into(), now);
    }
    state.step(now)
}

fn serving(state: &FeedState) -> Vec<String> {
    state.in_force().map(|((_, name), _)| name.clone()).collect()
}

/// A state in which `d` is served over `l`, `r`, `c` and its endpoints.
fn served(now: Instant) -> FeedState {
    let mut state = FeedState::new([]);
    state.demand(wanted("d"), now);
    state.step(now);
    feed(&mut state, vec![destination("d", "l")], now);
    feed(&mut state, vec![listener("l", "r")], now);
    feed(&mut state, vec![routes("r", &["c"])], now);
    feed(&mut state, vec![cluster("c")], now);
    feed(&mut state, vec![endpoints("c")], now);
    state
}

#[test]
fn a_demand_leads_down_to_endpoints_and_only_then_is_anything_in_force() {
    use ResourceKind::{Cluster, Destination, Endpoints, Listener, Routes};
    let now = Instant::now();
    let mut state = FeedState::new([]);
    state.demand(wanted("d"), now);
    assert_eq!(state.step(now).subscribe, [key(Destination, "d")]);
    assert_eq!(feed(&mut state, vec![destination("d", "l")], now).subscribe, [key(Listener, "l")]);
    assert_eq!(feed(&mut state, vec![listener("l", "r")], now).subscribe, [key(Routes, "r")]);
    assert_eq!(feed(&mut state, vec![routes("r", &["c"])], now).subscribe, [key(Cluster, "c")]);
    let step = feed(&mut state, vec![cluster("c")], now);
    assert_eq!(step.subscribe, [key(Endpoints, "c")]);
    assert!(!step.changed);
    assert!(feed(&mut state, vec![endpoints("c")], now).changed);
    assert_eq!(serving(&state).len(), 5);
}

#[test]
fn a_barrier_is_acknowledged_only_when_all_before_it_is_in_force() {
    let now = Instant::now();
    let mut state = served(now);
    let step = feed(&mut state, vec![routes("r", &["c", "c2"]), barrier(9)], now);
    assert_eq!((step.barrier, step.changed), (None, false));
    let step = feed(&mut state, vec![cluster("c2")], now);
    assert_eq!(step.barrier, None);
    let step = feed(&mut state, vec![endpoints("c2")], now);
    assert_eq!((step.barrier, step.changed), (Some(9), true));
    assert_eq!(state.acknowledged(), 9);
}

#[test]
fn the_old_routes_serve_until_the_new_cluster_is_warm_or_the_limit_passes() {
    let now = Instant::now();
    let mut state = served(now);
    let step = feed(&mut state, vec![routes("r", &["missing"])], now);
    assert_eq!(step.deadline, Some(now + WARM_LIMIT));
    assert!(!step.changed);
    let step = state.step(now + WARM_LIMIT);
    assert!(step.changed);
    assert_eq!(step.late, [(key(ResourceKind::Routes, "r"), key(ResourceKind::Cluster, "missing"))]);
}

#[test]
fn what_was_removed_serves_while_something_refers_to_it() {
    let now = Instant::now();
    let mut state = served(now);
    state.remove(ResourceKind::Cluster, "c");
    assert!(!state.step(now).changed);
    assert!(serving(&state).contains(&"c".to_owned()));
    let step = feed(&mut state, vec![cluster("c2"), endpoints("c2"), routes("r", &["c2"])], now);
    assert!(step.changed);
    assert!(!serving(&state).contains(&"c".to_owned()));
}

#[test]
fn what_nobody_needs_is_unsubscribed_and_dropped() {
    let now = Instant::now();
    let mut state = served(now);
    state.forget(&wanted("d"));
    let step = state.step(now);
    assert_eq!(step.unsubscribe.len(), 5);
    assert!(step.changed);
    assert!(serving(&state).is_empty());
}

#[test]
fn that_a_destination_is_absent_is_not_kept_where_nobody_asks_for_it() {
    let now = Instant::now();
    let mut state = FeedState::new([]);
    state.remove(ResourceKind::Destination, "never-asked");
    state.demand(wanted("d"), now);
    state.forget(&wanted("d"));
    state.remove(ResourceKind::Destination, "d"); // crossed the unsubscription on its way
    assert!(state.absent().is_empty());
    state.pin("d");
    state.remove(ResourceKind::Destination, "d");
    assert!(state.absent().contains(&wanted("d")));
}

#[test]
fn a_destination_outside_the_mesh_is_remembered_until_it_appears() {
    let now = Instant::now();
    let mut state = FeedState::new([]);
    state.demand(wanted("d"), now);
    state.remove(ResourceKind::Destination, "d");
    state.step(now);
    assert!(state.absent().contains(&wanted("d")));
    feed(&mut state, vec![destination("d", "l")], now);
    assert!(!state.absent().contains(&wanted("d")));
}

#[test]
fn an_equal_resource_changes_nothing() {
    let now = Instant::now();
    let mut state = served(now);
    assert!(!feed(&mut state, vec![cluster("c")], now).changed);
}

#[test]
fn what_was_stored_serves_at_once() {
    let now = Instant::now();
    let stored: Vec<_> =
        served(now).in_force().map(|(_, held)| ((*held.resource).clone(), held.version.clone())).collect();
    let mut state = FeedState::new([]);
    state.demand(wanted("d"), now);
    state.restore(stored, 3, now);
    assert_eq!(serving(&state).len(), 5);
    assert_eq!(state.step(now).subscribe.len(), 5);
    assert_eq!(state.acknowledged(), 3);
}

fn bounds(most: usize, idle: u64) -> Bounds {
    Bounds { most, idle: Duration::from_secs(idle) }
}

#[test]
fn the_longest_unused_go_first_and_what_is_in_use_never() {
    let now = Instant::now();
    let mut state = FeedState::new([]);
    for name in ["a", "b", "c", "d", "waiting"] {
        state.demand(wanted(name), now);
    }
    state.pin("pinned");
    state.demand(wanted("pinned"), now);
    let idle = |name: &str, seconds: u64| (wanted(name), Some(Duration::from_secs(seconds)));
    let used = [idle("a", 5), idle("b", 700), (wanted("c"), None), idle("d", 9), idle("pinned", 9000)];
    let surplus = |most, limit| names(state.surplus(&used, &bounds(most, limit), now));
    assert_eq!(surplus(100, 3600), Vec::<String>::new());
    assert_eq!(surplus(100, 600), ["b"], "idle for too long");
    assert_eq!(surplus(4, 3600), ["b", "d"], "six are known, two of them are too many");
    assert_eq!(surplus(0, 3600), ["b", "d", "a"], "c is in use, one is waited for, one is pinned");
    assert!(!state.is_crowded(&bounds(6, 0)) && state.is_crowded(&bounds(5, 0)));
}

#[test]
fn what_was_asked_for_and_never_answered_is_forgotten_once_nobody_can_wait_for_it() {
    let now = Instant::now();
    let mut state = FeedState::new([]);
    state.demand(wanted("silent"), now);
    assert!(state.surplus(&[], &bounds(0, 0), now + WAITING).is_empty());
    let later = now + WAITING + Duration::from_secs(1);
    assert_eq!(names(state.surplus(&[], &bounds(0, 3600), later)), ["silent"]);
}

#[test]
fn what_is_outside_the_mesh_is_forgotten_too() {
    let now = Instant::now();
    let mut state = FeedState::new([]);
    state.demand(wanted("d"), now);
    state.remove(ResourceKind::Destination, "d");
    state.step(now);
    state.forget(&wanted("d"));
    let step = state.step(now);
    assert!(step.changed && state.absent().is_empty());
    assert_eq!(step.unsubscribe, [key(ResourceKind::Destination, "d")]);
    state.demand(wanted("d"), now);
    assert_eq!(state.step(now).subscribe, [key(ResourceKind::Destination, "d")]);
}

#[test]
fn a_stored_destination_is_subscribed_although_nobody_asks_for_it() {
    let now = Instant::now();
    let stored: Vec<_> =
        served(now).in_force().map(|(_, held)| ((*held.resource).clone(), held.version.clone())).collect();
    let mut state = FeedState::new([]);
    state.restore(stored, 3, now);
    assert!(state.step(now).subscribe.contains(&key(ResourceKind::Destination, "d")));
}

fn host(name: &str) -> Resource {
    let addresses = vec!["240.240.0.1".parse().unwrap()];
    let (name, host) = (name.to_owned(), name.to_owned());
    Resource::Host(outrigger_model::resource::Host { name, host, addresses, names: Vec::new() })
}

#[test]
fn a_host_is_in_force_as_soon_as_it_is_there_and_lives_as_a_destination_does() {
    use ResourceKind::Host;
    let now = Instant::now();
    let mut state = FeedState::new([]);
    state.demand(key(Host, "a"), now);
    assert_eq!(state.step(now).subscribe, [key(Host, "a")]);
    assert!(feed(&mut state, vec![host("a")], now).changed);
    assert_eq!(serving(&state), ["a"]);
    assert!(state.remove(Host, "a") && !state.remove(Host, "b"), "only what there was is worth storing");
    assert!(state.step(now).changed && serving(&state).is_empty());
    assert!(state.absent().contains(&key(Host, "a")));
    feed(&mut state, vec![host("a")], now);
    assert!(state.absent().is_empty());
    state.forget(&key(Host, "a"));
    assert_eq!(state.step(now).unsubscribe, [key(Host, "a")]);

    let mut again = FeedState::new([]);
    again.restore([(host("stored"), "v".into())], 3, now);
    assert_eq!(again.step(now).subscribe, [key(Host, "stored")]);
}

#[test]
fn names_that_are_looked_up_displace_no_destinations() {
    let now = Instant::now();
    let mut state = FeedState::new([]);
    let mut used = Vec::new();
    for name in ["a", "b", "c"] {
        state.demand(wanted(name), now);
        used.push((wanted(name), Some(Duration::from_secs(100))));
    }
    for name in ["h1", "h2", "h3", "h4"] {
        let host = key(ResourceKind::Host, name);
        state.demand(host.clone(), now);
        used.push((host, Some(Duration::from_secs(1))));
    }
    assert!(state.is_crowded(&bounds(3, 3600)) && !state.is_crowded(&bounds(4, 3600)));
    assert_eq!(names(state.surplus(&used, &bounds(3, 3600), now)), ["h4"]);
    assert_eq!((state.wanted(ResourceKind::Destination), state.wanted(ResourceKind::Host)), (3, 4));
}

fn refused(key: &ResourceKey, field: &str) -> (ResourceKey, Invalid) {
    let (kind, name) = key.clone();
    (key.clone(), Invalid { kind, name, field: field.into(), reason: "no roots".into() })
}

/// A cluster whose TLS is not the mesh's.
fn outside(name: &str) -> Resource {
    let tls = OutsideTls { server_name: "a.example".into(), ..OutsideTls::default() };
    let discovery = Discovery::OriginalDestination;
    Resource::Cluster(Cluster { tls: ClientTls::Outside(tls), discovery, ..Cluster::new(name) })
}

/// Why nobody can be called there; `None`: somebody can.
fn trouble(state: &FeedState, name: &str) -> Option<String> {
    let (_, held) = state.in_force().find(|(key, _)| key.1 == name).unwrap();
    let Resource::Cluster(cluster) = &*held.resource else { panic!() };
    match &cluster.discovery {
        Discovery::Static(set) => set.trouble.clone(),
        _ => None,
    }
}

/// One cluster in plain text, in force.
fn plain(now: Instant) -> (FeedState, ResourceKey) {
    let mut state = FeedState::new([]);
    let discovery = Discovery::OriginalDestination;
    let cluster = Resource::Cluster(Cluster { discovery, ..Cluster::new("a") });
    assert!(feed(&mut state, vec![cluster], now).changed);
    assert!(!state.settle(&[], now));
    (state, key(ResourceKind::Cluster, "a"))
}

#[test]
fn where_tls_cannot_be_built_nobody_is_called_and_never_as_before() {
    let now = Instant::now();
    let (mut state, a) = plain(now);
    assert!(feed(&mut state, vec![outside("a")], now).changed);
    assert!(state.settle(&[refused(&a, "transport_socket")], now), "there is something to bring in force");
    assert!(trouble(&state, "a").unwrap().contains("cannot be set up: no roots"));
    assert!(!state.step(now).changed && state.step(now).subscribe.is_empty(), "it is not tried again");
    assert!(feed(&mut state, vec![outside("a")], now).changed, "until there is another version");
    assert!(!state.settle(&[], now));
    assert_eq!(trouble(&state, "a"), None);
}

#[test]
fn tls_that_could_not_be_set_up_is_tried_again_by_itself() {
    let now = Instant::now();
    let (mut state, a) = plain(now);
    feed(&mut state, vec![outside("a")], now);
    let failed = [refused(&a, "transport_socket")];
    assert!(state.settle(&failed, now));
    let mut at = now;
    for wait in [10, 20, 40] {
        let wait = Duration::from_secs(wait);
        let step = state.step(at);
        assert_eq!((step.changed, step.deadline), (false, Some(at + wait)));
        at += wait;
        assert!(state.step(at).changed, "as if it had just come");
        assert_eq!(trouble(&state, "a"), None);
        assert!(state.settle(&failed, at));
    }
    assert!(state.step(at + SELDOM).changed && !state.settle(&[], at + SELDOM), "the file is there");
    assert_eq!(state.step(at + SELDOM).deadline, None);
}

#[test]
fn a_cluster_that_cannot_be_read_goes_on_only_where_that_is_no_plain_text_instead_of_tls() {
    let now = Instant::now();
    let (_, why) = refused(&key(ResourceKind::Cluster, "a"), "lb_policy");
    let (mut state, a) = plain(now);
    assert!(state.bar(&why, "2", now) && state.step(now).changed);
    assert!(trouble(&state, "a").unwrap().contains("lb_policy: no roots"));
    assert_eq!(state.version(a.0, "a").as_deref(), Some("2"));
    // What was TLS before goes on, but not where it is TLS that is wrong with it.
    let (mut state, a) = plain(now);
    feed(&mut state, vec![outside("a")], now);
    state.settle(&[], now);
    assert!(!state.bar(&why, "3", now) && !state.step(now).changed);
    assert!(state.bar(&refused(&a, "transport_socket.sni").1, "3", now) && state.step(now).changed);
    assert!(trouble(&state, "a").is_some());
    // One that there was not is none, and one that cannot be called.
    let new = refused(&key(ResourceKind::Cluster, "b"), "transport_socket").1;
    assert!(state.bar(&new, "1", now) && state.step(now).changed);
    assert!(trouble(&state, "b").is_some());
}

#[test]
fn a_version_that_cannot_be_used_gives_way_to_the_last_good_one() {
    let (mut state, now) = (FeedState::new([]), Instant::now());
    let version = |state: &FeedState| -> Vec<String> {
        state.in_force().map(|(key, held)| format!("{} {}", key.1, held.version)).collect()
    };
    let (good, new) = (key(ResourceKind::Cluster, "a"), key(ResourceKind::Cluster, "b"));
    let sized = |name: &str, max_requests_per_connection| {
        let discovery = Discovery::OriginalDestination;
        Resource::Cluster(Cluster { discovery, max_requests_per_connection, ..Cluster::new(name) })
    };
    let bad = |name: &str| sized(name, 7);
    state.upsert(sized("a", 0), "1".into(), now);
    state.step(now);
    state.settle(&[], now);
    state.upsert(bad("a"), "2".into(), now);
    state.upsert(bad("b"), "2".into(), now);
    assert!(state.step(now).changed);
    state.settle(&[refused(&good, "lb_policy"), refused(&new, "lb_policy")], now);
    assert_eq!(version(&state), ["a 1"], "this is what a restart would find on disk");
    assert!(!state.step(now).changed, "it is not tried again");
    state.upsert(routes("r", &["b"]), "2".into(), now);
    assert!(state.step(now).changed, "nobody waits for what cannot be used");
    state.upsert(bad("a"), "3".into(), now);
    state.step(now);
    state.settle(&[], now);
    assert_eq!(state.version(ResourceKind::Cluster, "a").as_deref(), Some("3"));
    assert!(version(&state).contains(&"a 3".to_owned()));
}

#[test]
fn sending_again_does_not_put_off_the_end_of_waiting() {
    let (mut state, start) = (FeedState::new([]), Instant::now());
    state.upsert(routes("r", &["missing"]), "1".into(), start);
    for second in 1..WARM_LIMIT.as_secs() {
        let now = start + Duration::from_secs(second);
        state.upsert(routes("r", &["missing"]), second.to_string(), now);
        assert!(state.step(now).late.is_empty());
    }
    assert_eq!(state.step(start + WARM_LIMIT).late.len(), 1);
}

/// A cluster of one name.
fn of_name(name: &str, host: &str) -> (Resource, String) {
    let place = LocalityEndpoints {
        endpoints: vec![Endpoint::new(NamedAddress { host: host.into(), port: 443 })],
        ..LocalityEndpoints::default()
    };
    let dns = DnsDiscovery { endpoints: EndpointSet::new(name, vec![place]), ..DnsDiscovery::default() };
    let cluster = Cluster { discovery: Discovery::Dns(Box::new(dns)), ..Cluster::new(name) };
    let set = cluster.endpoints_name().unwrap().into_owned();
    (Resource::Cluster(cluster), set)
}

#[test]
fn a_cluster_of_names_waits_for_dns_and_the_control_plane_is_not_asked() {
    let (mut state, now) = (served(Instant::now()), Instant::now());
    state.settle(&[], now);
    let (first, set) = of_name("c", "a.example");
    let step = feed(&mut state, vec![first], now);
    let asked: Vec<String> = step.resolve.unwrap().into_keys().collect();
    assert_eq!((asked, step.subscribe), (vec![set.clone()], Vec::new()));
    assert!(!step.changed, "what was there serves until there is an answer");
    let step = feed(&mut state, vec![endpoints(&set)], now);
    assert!(step.changed);
    assert_eq!(names(step.unsubscribe.clone()), ["c"], "nobody needs its EDS endpoints any more");
    assert_eq!(step.resolve, None, "nothing new is asked for");
    // Another name: the answer of the first does not stand for it.
    let (second, other) = of_name("c", "b.example");
    let step = feed(&mut state, vec![second], now);
    assert_eq!(step.resolve.unwrap().len(), 2, "both, as the first one serves");
    assert!(!step.changed && serving(&state).contains(&set));
    assert!(feed(&mut state, vec![endpoints(&other)], now).changed);
    let step = state.step(now);
    assert!(serving(&state).contains(&other) && !serving(&state).contains(&set), "{step:?}");
}

#[test]
fn nobody_waits_for_the_cluster_that_is_always_there() {
    let (mut state, now) = (FeedState::new([]), Instant::now());
    let step = feed(&mut state, vec![routes("r", &[PASSTHROUGH])], now);
    assert_eq!((step.subscribe, step.changed), (Vec::new(), true));
}

#[test]
fn what_dns_said_before_a_restart_serves_until_it_says_more() {
    let now = Instant::now();
    let (cluster, set) = of_name("c", "a.example");
    let mut state = FeedState::new([]);
    state.restore([(cluster, "1".into()), (endpoints(&set), "dns".into())], 7, now);
    let step = state.step(now);
    assert_eq!(step.resolve.unwrap().into_keys().collect::<Vec<_>>(), std::slice::from_ref(&set));
    assert_eq!(serving(&state), ["c".to_owned(), set]);
}
