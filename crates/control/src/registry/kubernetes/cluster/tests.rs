use outrigger_rules::{ParseOptions, parse_with};
use serde_json::json;

use super::*;
use crate::instance::State;

pub(super) fn named(name: &str) -> Named {
    ("shop".to_owned(), name.to_owned())
}

fn pod(name: &str, labels: serde_json::Value, ready: bool) -> Thing {
    let pod = json!({
        "metadata": {"name": name, "namespace": "shop", "labels": labels},
        "spec": {"nodeName": "n1", "serviceAccountName": "reviews", "containers": [
            {"name": "app", "ports": [{"containerPort": 9080, "name": "web"}]},
        ]},
        "status": {"phase": "Running", "podIP": "10.1.0.7",
            "conditions": [{"type": "Ready", "status": if ready { "True" } else { "False" }}]},
    });
    Thing::Pod(Pod::of(&serde_json::from_value(pod).unwrap()).map(Box::new))
}

pub(super) fn service(name: &str, spec: &str) -> Thing {
    let text =
        format!("apiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: shop}}\nspec: {spec}\n");
    let mut parsed = parse_with("", &text, &ParseOptions::default());
    assert!(!parsed.has_errors(), "{:?}", parsed.findings);
    Thing::Rule(parsed.objects.pop().map(Box::new))
}

/// The instances among the news.
fn instances(said: &[Said]) -> Vec<Arc<Instance>> {
    let instance = |(part, event): &Said| match event {
        Event::Upsert(Item::Instance(instance)) => {
            assert_eq!(*part, POD);
            Some(instance.clone())
        }
        _ => None,
    };
    said.iter().filter_map(instance).collect()
}

#[test]
fn a_node_s_place_is_that_of_the_pods_on_it_and_of_no_others() {
    let mut cluster = Cluster::new(String::new(), false);
    let on = |name: &str, node: &str| {
        let Thing::Pod(Some(mut pod)) = pod(name, json!({"app": "reviews"}), true) else { panic!() };
        pod.node = node.to_owned();
        Thing::Pod(Some(pod))
    };
    let place = |zone: &str| Thing::Node(["eu", zone, ""].map(str::to_owned), None);
    let zones = |said: &[Said]| -> Vec<(String, String)> {
        instances(said).iter().map(|instance| (instance.id.clone(), instance.zone.clone())).collect()
    };
    cluster.put(POD, &named("a"), on("a", "n1"));
    cluster.put(POD, &named("b"), on("b", "n2"));
    let node = ("".to_owned(), "n1".to_owned());
    let told = |id: &str, zone: &str| vec![(id.to_owned(), zone.to_owned())];
    assert_eq!(zones(&cluster.put(NODE, &node, place("z1"))), told("a.shop", "z1"));
    // It is found again where it has come to be, and not where it was.
    assert_eq!(zones(&cluster.put(POD, &named("b"), on("b", "n1"))), told("b.shop", "z1"));
    cluster.put(POD, &named("a"), on("a", "n2"));
    assert_eq!(zones(&cluster.put(NODE, &node, place("z2"))), told("b.shop", "z2"));
    cluster.take(POD, &named("b"));
    cluster.take(POD, &named("a"));
    assert_eq!(zones(&cluster.put(NODE, &node, place("z3"))), []);
    assert!(cluster.on.is_empty());
}

/// Linkerd's word, as whoever annotates a Service means it: clients and servers alike.
#[test]
fn ports_that_a_service_calls_opaque_are_bytes_at_its_pods_too() {
    let spoken = |annotations: &str| {
        let text = format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: reviews, namespace: shop, annotations: {annotations}}}\n\
             spec: {{selector: {{app: reviews}}, ports: [{{port: 80, name: http, targetPort: web}}]}}\n"
        );
        let mut parsed = parse_with("", &text, &ParseOptions::default());
        let mut cluster = Cluster::default();
        cluster.put(SERVICE, &named("reviews"), Thing::Rule(parsed.objects.pop().map(Box::new)));
        let said = cluster.put(POD, &named("a"), pod("a", json!({"app": "reviews"}), true));
        let [instance] = instances(&said).try_into().unwrap();
        instance.port(9080).unwrap().protocol
    };
    assert_eq!(spoken("{config.linkerd.io/opaque-ports: '80'}"), Protocol::Tcp);
    assert_eq!(spoken("{config.linkerd.io/opaque-ports: '9080'}"), Protocol::Http);
}

#[test]
fn a_pod_is_where_its_node_is_to_the_sub_zone_unless_it_says_otherwise() {
    let mut cluster = Cluster::default();
    cluster.put(NODE, &(String::new(), "n1".into()), Thing::Node(["eu", "a", "r7"].map(str::to_owned), None));
    let mut place = |labels: serde_json::Value| {
        let place = instances(&cluster.put(POD, &named("a"), pod("a", labels, true)))[0].locality();
        [place.region, place.zone, place.sub_zone]
    };
    assert_eq!(place(json!({"app": "reviews"})), ["eu", "a", "r7"]);
    assert_eq!(place(json!({"app": "reviews", "istio-locality": "us.b.r1"})), ["us", "b", "r1"]);
    assert_eq!(place(json!({"app": "reviews", "istio-locality": "us.b"})), ["us", "b", ""]);
}

/// What a sidecar calls itself in its metrics, and what others call it.
#[test]
fn a_workload_has_one_name_at_both_ends() {
    use crate::inject::{InjectSettings, Injection, Mesh, Namespace, SIDECAR, Subject, inject};
    let settings = InjectSettings { image: "i".into(), ..InjectSettings::default() };
    let text = || "cluster.local".to_owned();
    let mesh = Mesh { trust_domain: text(), domain: text(), roots: String::new() };
    let owner = |kind: &str, name: &str| json!([{"apiVersion": "x/v1", "kind": kind, "name": name, "uid": "1", "controller": true}]);
    for (labels, owners, names) in [
        (json!({}), json!([]), ("pod-1", "pod-1", "latest")),
        (json!({"app": "My_App.x", "version": "V2"}), json!([]), ("pod-1", "my-app-x", "V2")),
        (
            json!({"app.kubernetes.io/name": "shop", "app.kubernetes.io/version": "3.1", "version": "v9", "pod-template-hash": "5d8"}),
            owner("ReplicaSet", "web-5d8"),
            ("web", "shop", "3.1"),
        ),
        (
            json!({"rollouts-pod-template-hash": "5d8"}),
            owner("ReplicaSet", "web-5d8"),
            ("web", "web", "latest"),
        ),
        (json!({}), owner("Job", "backup-29001234"), ("backup", "backup", "latest")),
        (json!({}), owner("StatefulSet", "d.b"), ("d.b", "d-b", "latest")),
    ] {
        let pod = json!({
            "metadata": {"name": "pod-1", "namespace": "shop", "labels": labels, "ownerReferences": owners},
            "spec": {"containers": [{"name": "app"}]},
            "status": {"phase": "Running", "podIP": "10.1.0.7"},
        });
        let namespace = Namespace::enabled("shop", None);
        let subject = Subject {
            pod: &pod,
            namespace: &namespace,
            workload: None,
            kubernetes: None,
            by_hand: false,
            earlier: None,
        };
        let Injection::Injected { pod, .. } = inject(subject, &settings, &mesh).unwrap() else { panic!() };
        let sidecar = &pod["spec"]["initContainers"][1];
        assert_eq!(sidecar["name"], SIDECAR);
        let bootstrap = sidecar["env"].as_array().unwrap().last().unwrap()["value"].as_str().unwrap();
        let bootstrap: serde_json::Value = serde_json::from_str(bootstrap).unwrap();
        let own = |field: &str| bootstrap["node"][field].as_str().unwrap().to_owned();
        let own = (own("workload"), own("app"), own("version"));
        let thing = Thing::Pod(Pod::of(&serde_json::from_value(*pod).unwrap()).map(Box::new));
        let said = Cluster::new(String::new(), false).put(POD, &named("pod-1"), thing);
        let [instance] = instances(&said).try_into().unwrap();
        let seen = crate::compile::endpoints::workload(&instance);
        assert_eq!((seen.name, seen.service, seen.revision), own);
        let (workload, app, version) = &own;
        assert_eq!((workload.as_str(), app.as_str(), version.as_str()), names);
    }
}

/// With roots of their own they refuse our certificates, and in plain text they are reached while their policy takes both.
#[test]
fn a_sidecar_of_istio_is_a_peer_only_where_it_is_said_to_have_our_roots() {
    let with = |names: &[&str]| {
        let containers: Vec<serde_json::Value> = names.iter().map(|name| json!({"name": name})).collect();
        let pod = json!({
            "metadata": {"name": "a", "namespace": "shop"}, "spec": {"containers": containers},
            "status": {"phase": "Running", "podIP": "10.1.0.7"},
        });
        Thing::Pod(Pod::of(&serde_json::from_value(pod).unwrap()).map(Box::new))
    };
    for (containers, istio_peers, sidecar) in [
        (&["app", "istio-proxy"][..], false, false),
        (&["app", "istio-proxy"], true, true),
        (&["app", "outrigger-proxy"], false, true),
        (&["app", "outrigger-proxy"], true, true),
        (&["istio-proxy", "outrigger-proxy"], false, true),
        (&["app"], true, false),
    ] {
        let said = Cluster::new(String::new(), istio_peers).put(POD, &named("a"), with(containers));
        assert_eq!(instances(&said)[0].sidecar, sidecar, "{containers:?} {istio_peers}");
    }
}

#[test]
fn a_service_account_may_have_dots_and_be_long() {
    let mut cluster = Cluster::new(String::new(), false);
    let with = |account: &str| {
        let Thing::Pod(Some(mut pod)) = pod("a", json!({}), true) else { panic!() };
        pod.service_account = account.to_owned();
        Thing::Pod(Some(pod))
    };
    for account in ["ci.deployer", &"a".repeat(253), "0.1-a.b"] {
        let [instance] = instances(&cluster.put(POD, &named("a"), with(account))).try_into().unwrap();
        let wanted = format!("spiffe://cluster.local/ns/shop/sa/{account}");
        assert_eq!(instance.identity("cluster.local").unwrap().as_str(), wanted);
    }
    for account in ["", ".a", "a..b", "a.-b", "A", "a/b", &"a".repeat(254)] {
        cluster.put(POD, &named("a"), with(account));
        let (_, why) = cluster.refused().next().unwrap();
        assert!(why.contains("serviceAccount") && why.contains("parted by dots"), "{why}");
    }
}

/// FTP, TURN and media servers declare a port for each guest.
#[test]
fn a_pod_with_hundreds_of_ports_and_the_longest_name_is_an_endpoint_as_any() {
    let mut cluster = Cluster::default();
    let long = "a".repeat(253);
    let of = |ports: u16| {
        let Thing::Pod(Some(mut pod)) = pod(&long, json!({"app": "ftp"}), true) else { panic!() };
        pod.ports = (0..ports).map(|n| (30_000 + n, format!("passive-{}", 30_000 + n))).collect();
        Thing::Pod(Some(pod))
    };
    let ports = |instance: &Instance| instance.ports.iter().map(|port| port.number).collect::<Vec<_>>();
    let meant: Vec<String> = (0..200).map(|n| format!("{{port: {0}, name: p{0}}}", 30_400 + n)).collect();
    let spec = format!("{{selector: {{app: ftp}}, ports: [{}]}}", meant.join(", "));
    cluster.put(SERVICE, &named("ftp"), service("ftp", &spec));
    let [instance] = instances(&cluster.put(POD, &named(&long), of(700))).try_into().unwrap();
    assert_eq!(cluster.refused().next(), None);
    assert_eq!(instance.serves(), ["ftp"]);
    let wanted: Vec<u16> = (30_000..30_064).chain(30_400..30_600).collect();
    assert_eq!(ports(&instance), wanted, "those that the Service means, and 64 others");
    let [few] = instances(&cluster.put(POD, &named(&long), of(1))).try_into().unwrap();
    assert_eq!(few.ports.len(), 201, "what nobody declares a Service means all the same");
}

#[test]
fn a_pod_is_an_endpoint_of_the_services_that_select_it_at_their_ports() {
    let mut cluster = Cluster::new("net".into(), false);
    let first = cluster.put(POD, &named("reviews-1"), pod("reviews-1", json!({"app": "reviews"}), true));
    let [alone] = instances(&first).try_into().unwrap();
    assert_eq!(
        (alone.id.as_str(), alone.serves().len(), alone.network.as_str()),
        ("reviews-1.shop", 0, "net")
    );

    let spec = "{selector: {app: reviews}, ports: [{port: 80, name: http, targetPort: web}, {port: 81, name: tcp, targetPort: 7000}]}";
    let said = cluster.put(SERVICE, &named("reviews"), service("reviews", spec));
    let (SERVICE, Event::Upsert(Item::Rule(object))) = &said[0] else { panic!("{said:?}") };
    let [Intent::Service(intent)] = object.intents.as_slice() else { panic!("{object:?}") };
    assert!(intent.selector.is_empty(), "Pod by Pod is said who serves it");
    let [now] = instances(&said).try_into().unwrap();
    assert_eq!(now.serves(), ["reviews"]);
    let ports: Vec<_> =
        now.ports.iter().map(|port| (port.number, port.name.as_str(), port.protocol)).collect();
    assert_eq!(ports, [(9080, "web", Protocol::Http), (7000, "", Protocol::Tcp)]);
    assert_eq!(now.validate(), Ok(()));

    // A second one, and none of another namespace or of other labels.
    let all = cluster.put(
        SERVICE,
        &named("all"),
        service("all", "{selector: {app: reviews}, ports: [{port: 9080}]}"),
    );
    assert_eq!(instances(&all)[0].serves(), ["all", "reviews"]);
    let other =
        cluster.put(SERVICE, &named("web"), service("web", "{selector: {app: web}, ports: [{port: 80}]}"));
    assert_eq!(instances(&other), []);
    let none = cluster.put(SERVICE, &named("none"), service("none", "{ports: [{port: 80}]}"));
    assert_eq!(instances(&none), []);

    // It no longer selects it; it is gone.
    let moved =
        cluster.put(SERVICE, &named("all"), service("all", "{selector: {app: web}, ports: [{port: 9080}]}"));
    assert_eq!(instances(&moved)[0].serves(), ["reviews"]);
    let gone = cluster.take(SERVICE, &named("reviews"));
    assert_eq!(gone[0], (SERVICE, Event::Remove(Key::Rule("Service/shop/reviews".into()))));
    assert_eq!(instances(&gone)[0].serves().len(), 0);
}

#[test]
fn a_number_with_several_names_is_the_target_of_services_by_any_of_them() {
    let mut cluster = Cluster::new(String::new(), false);
    let pod = json!({
        "metadata": {"name": "web-1", "namespace": "shop", "labels": {"app": "web"}},
        "spec": {"containers": [{"name": "app", "ports": [
            {"containerPort": 8080, "name": "http"}, {"containerPort": 8080, "name": "metrics"},
        ]}], "initContainers": [
            {"name": "once", "ports": [{"containerPort": 9000, "name": "admin"}]},
            {"name": "beside", "restartPolicy": "Always", "ports": [{"containerPort": 9001, "name": "admin"}]},
        ]},
        "status": {"phase": "Running", "podIP": "10.1.0.7", "conditions": [{"type": "Ready", "status": "True"}]},
    });
    let pod = Thing::Pod(Pod::of(&serde_json::from_value(pod).unwrap()).map(Box::new));
    cluster.put(POD, &named("web-1"), pod);
    let spec = "{selector: {app: web}, ports: [{port: 80, name: http, targetPort: http}, {port: 81, name: more, targetPort: metrics},
        {port: 82, name: admin, targetPort: admin}]}";
    let said = cluster.put(SERVICE, &named("web"), service("web", spec));
    let [one] = instances(&said).try_into().unwrap();
    assert_eq!(one.ports.iter().map(|port| port.number).collect::<Vec<_>>(), [8080, 9001]);
    assert_eq!(one.validate(), Ok(()));
    let (SERVICE, Event::Upsert(Item::Rule(object))) = &said[0] else { panic!("{said:?}") };
    let [Intent::Service(intent)] = object.intents.as_slice() else { panic!("{object:?}") };
    let found = intent.ports.iter().map(|(number, port)| described::target(port, *number, &one));
    assert_eq!(found.collect::<Vec<_>>(), [Some(8080), Some(8080), Some(9001)]);
}

#[test]
fn what_changes_nothing_for_the_mesh_is_no_news() {
    let mut cluster = Cluster::default();
    let labels = || json!({"app": "reviews"});
    assert_eq!(cluster.put(POD, &named("a"), pod("a", labels(), true)).len(), 1);
    assert_eq!(cluster.put(POD, &named("a"), pod("a", labels(), true)), []);
    let unready = cluster.put(POD, &named("a"), pod("a", labels(), false));
    assert_eq!(instances(&unready)[0].state, State::Unhealthy);
    let place = || Thing::Node(["eu", "eu-1", ""].map(str::to_owned), None);
    let placed = cluster.put(NODE, &(String::new(), "n1".into()), place());
    assert_eq!(instances(&placed)[0].zone, "eu-1");
    assert_eq!(cluster.put(NODE, &(String::new(), "n1".into()), place()), []);
    assert_eq!(cluster.take(POD, &named("a")), [(POD, Event::Remove(Key::Instance("a.shop".into())))]);
    assert_eq!(cluster.take(POD, &named("a")), []);
    assert_eq!(cluster.put(POD, &named("b"), Thing::Pod(None)), []);
}

#[test]
fn a_rule_that_became_bad_keeps_what_it_said() {
    let mut cluster = Cluster::default();
    let good = || service("web", "{selector: {app: web}, ports: [{port: 80}]}");
    assert_eq!(cluster.put(SERVICE, &named("web"), good()).len(), 1);
    assert_eq!(cluster.put(SERVICE, &named("web"), Thing::Rule(None)), []);
    assert_eq!(cluster.put(SERVICE, &named("web"), good()), []);
    let all = cluster.all();
    let [(SERVICE, Event::Reset(items))] = all.as_slice() else { panic!("{all:?}") };
    assert_eq!(items.len(), 1);
}

#[test]
fn endpoints_that_somebody_wrote_are_instances_and_go_one_by_one() {
    let mut cluster = Cluster::default();
    let one = |address: &str| Instance {
        id: format!("ext.shop:{address}"),
        ..crate::instance::sample("x", "ext", "v1", address, 5432, Protocol::Tcp)
    };
    let slice = |addresses: &[&str]| Thing::Slice(addresses.iter().map(|address| one(address)).collect());
    assert_eq!(cluster.put(SLICE, &named("ext"), slice(&["10.0.0.1", "10.0.0.2"])).len(), 2);
    let less = cluster.put(SLICE, &named("ext"), slice(&["10.0.0.2"]));
    assert_eq!(less, [(SLICE, Event::Remove(Key::Instance("ext.shop:10.0.0.1".into())))]);
    // Another whose name begins alike is another.
    assert_eq!(cluster.put(SLICE, &named("ex"), slice(&[])), []);
    assert_eq!(cluster.take(SLICE, &named("ext")).len(), 1);
}

/// Clients of a zone go by its region first: without one, what somebody wrote down for it would be as far as the other end of the world.
#[test]
fn endpoints_that_somebody_wrote_are_in_the_region_of_their_node_or_of_their_zone() {
    let mut cluster = Cluster::default();
    let one = |address: &str, node: &str, zone: &str| {
        let mut one = crate::instance::sample("x", "ext", "v1", address, 5432, Protocol::Tcp);
        one.id = format!("ext.shop:{address}");
        one.metadata = BTreeMap::from([("node".to_owned(), node.to_owned())]);
        (one.region, one.zone) = (String::new(), zone.to_owned());
        one
    };
    let written = vec![one("10.0.0.1", "n1", ""), one("10.0.0.2", "", "z2"), one("10.0.0.3", "", "")];
    cluster.put(SLICE, &named("ext"), Thing::Slice(written));
    let places = |said: &[Said]| -> Vec<[String; 3]> {
        let place = |(part, event): &Said| match event {
            Event::Upsert(Item::Instance(one)) if *part == SLICE => {
                [one.addresses[0].to_string(), one.region.clone(), one.zone.clone()]
            }
            other => panic!("{other:?}"),
        };
        said.iter().map(place).collect()
    };
    let mut node = |name: &str, place: Option<(&str, &str)>| {
        let named = (String::new(), name.to_owned());
        let said = match place {
            Some((region, zone)) => {
                cluster.put(NODE, &named, Thing::Node([region, zone, ""].map(str::to_owned), None))
            }
            None => cluster.take(NODE, &named),
        };
        places(&said)
    };
    let told = |address: &str, region: &str, zone: &str| [address, region, zone].map(str::to_owned);
    assert_eq!(node("n1", Some(("eu", "z1"))), [told("10.0.0.1", "eu", "z1")]);
    assert_eq!(node("n2", Some(("eu", "z2"))), [told("10.0.0.2", "eu", "z2")]);
    assert_eq!(node("n3", Some(("eu", "z2"))), [[""; 3]; 0], "which was known");
    // Two regions have a zone of this name: whose it is nobody can say.
    assert_eq!(node("n4", Some(("us", "z2"))), [told("10.0.0.2", "", "z2")]);
    assert_eq!(node("n4", None), [told("10.0.0.2", "eu", "z2")]);
    assert_eq!(node("n2", None), [[""; 3]; 0], "another is there still");
    assert_eq!(node("n3", None), [told("10.0.0.2", "", "z2")]);
    assert_eq!(node("n1", Some(("eu", "z9"))), [told("10.0.0.1", "eu", "z9")]);
    assert_eq!(node("n1", None), [told("10.0.0.1", "", "")]);
}

#[test]
fn a_pod_that_a_slice_of_its_namespace_names_serves_the_service_and_no_other_pod_does() {
    let mut cluster = Cluster::default();
    cluster.put(POD, &named("db-0"), pod("db-0", json!({"app": "db"}), true));
    let written = |namespace: &str| {
        let address = "10.1.0.7";
        let mut one = crate::instance::sample("x", "leader", "v1", address, 5432, Protocol::Tcp);
        one.id = format!("leader.{namespace}:{address}");
        one.namespace = namespace.to_owned();
        one.metadata = BTreeMap::from([
            ("for-zones/leader".to_owned(), "a".to_owned()),
            ("node".to_owned(), "n7".to_owned()),
        ]);
        Thing::Slice(vec![one])
    };
    // Whoever leads is written down by the members themselves.
    let said = cluster.put(SLICE, &named("leader"), written("shop"));
    let [leader] = instances(&said).try_into().unwrap();
    assert_eq!((leader.id.as_str(), leader.serves()), ("db-0.shop", &["leader".to_owned()][..]));
    assert!(leader.port(5432).is_some() && leader.port(9080).is_some());
    assert_eq!((leader.metadata["for-zones/leader"].as_str(), leader.node() == Some("n7")), ("a", false));
    // Another namespace's word is an endpoint of its own Service, and nothing about the Pod.
    let other = ("evil".to_owned(), "leader".to_owned());
    let said = cluster.put(SLICE, &other, written("evil"));
    let [(SLICE, Event::Upsert(Item::Instance(one)))] = said.as_slice() else { panic!("{said:?}") };
    assert_eq!(one.id, "leader.evil:10.1.0.7");
    // The Pod goes: what is written is an address again, and then nothing.
    let said = cluster.take(POD, &named("db-0"));
    assert_eq!(said[0], (POD, Event::Remove(Key::Instance("db-0.shop".into()))));
    assert!(matches!(&said[1..], [(SLICE, Event::Upsert(_))]), "{said:?}");
    let back = cluster.put(POD, &named("db-0"), pod("db-0", json!({"app": "db"}), true));
    assert_eq!(instances(&back[..1])[0].serves(), ["leader"]);
    assert!(matches!(&back[1..], [(SLICE, Event::Remove(_))]), "{back:?}");
    let gone = cluster.take(SLICE, &named("leader"));
    assert_eq!(instances(&gone)[0].serves().len(), 0);
}

#[test]
fn ports_of_a_service_without_a_selector_are_known_by_their_own_names() {
    let mut cluster = Cluster::default();
    let said = cluster.put(
        SERVICE,
        &named("ext"),
        service("ext", "{ports: [{port: 80}, {port: 81, name: tcp, targetPort: 7}]}"),
    );
    let (SERVICE, Event::Upsert(Item::Rule(object))) = &said[0] else { panic!("{said:?}") };
    let [Intent::Service(intent)] = object.intents.as_slice() else { panic!("{object:?}") };
    let ports: Vec<_> = intent.ports.values().map(|port| (port.target, port.target_name.as_str())).collect();
    assert_eq!(ports, [(Some(80), UNNAMED), (Some(7), "tcp")]);
}
