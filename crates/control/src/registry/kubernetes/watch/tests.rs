use axum::http::{StatusCode, Uri};
use axum::{Json, Router};
use kube::Config;
use serde_json::{Value, json};

use super::super::cluster::SERVICE;
use super::*;

/// Kinds of a cluster whose API server answers everything so.
async fn answered(status: StatusCode, body: Value) -> Kinds {
    answered_by(move |_| (status, Json(body.clone()))).await
}

async fn answered_by(
    answer: impl Fn(Uri) -> (StatusCode, Json<Value>) + Clone + Send + Sync + 'static,
) -> Kinds {
    let router = Router::new().fallback(move |uri: Uri| {
        let answer = answer(uri);
        async move { answer }
    });
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move { axum::serve(listener, router).await });
    let client = Client::try_from(Config::new(format!("http://{address}").parse().unwrap())).unwrap();
    Kinds::new(client, ParseOptions::default())
}

fn failure(code: u16, details: Value) -> Value {
    json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "message": "no", "reason": "NotFound", "code": code, "details": details})
}

#[tokio::test]
async fn a_kind_has_gone_only_where_the_api_server_says_so_of_its_definition() {
    let named = json!({"name": "trafficrules.outrigger.io", "group": "apiextensions.k8s.io", "kind": "customresourcedefinitions"});
    for (gone, status, body) in [
        (true, StatusCode::NOT_FOUND, failure(404, named.clone())),
        // The paths of definitions are not there yet, or nobody may look.
        (false, StatusCode::NOT_FOUND, failure(404, json!({}))),
        (false, StatusCode::NOT_FOUND, Value::Null),
        (false, StatusCode::FORBIDDEN, failure(403, named)),
        (false, StatusCode::SERVICE_UNAVAILABLE, failure(503, json!({}))),
    ] {
        let kinds = answered(status, body.clone()).await;
        assert_eq!(kinds.is_gone("TrafficRules").await, gone, "{status} {body}");
        assert!(!kinds.is_gone(SERVICE).await && !kinds.is_gone(POD).await);
    }
}

/// Pods of Jobs that are done stay in a cluster for long, and are nobody's endpoints.
#[tokio::test]
async fn pods_that_have_ended_are_not_asked_for_and_one_that_ends_leaves() {
    let pod = |name: &str, phase: &str| {
        json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": "shop", "resourceVersion": "8"},
            "spec": {"containers": [{"name": "app"}]}, "status": {"phase": phase, "podIP": "10.1.0.7"},
        })
    };
    let kinds = answered_by(move |uri| {
        let query = uri.query().unwrap_or_default();
        // An API server tells one that leaves the selection as deleted, as it was before.
        if query.contains("watch=true") {
            return (StatusCode::OK, Json(json!({"type": "DELETED", "object": pod("web", "Running")})));
        }
        let mut pods = vec![pod("web", "Running"), pod("done", "Succeeded"), pod("failed", "Failed")];
        if query.contains("fieldSelector=status.phase%21%3DSucceeded%2Cstatus.phase%21%3DFailed") {
            pods.truncate(1);
        }
        let list = json!({"kind": "PodList", "apiVersion": "v1", "metadata": {"resourceVersion": "7"}, "items": pods});
        (StatusCode::OK, Json(list))
    })
    .await;
    let mut watch = kinds.watch(POD);
    let mut seen = Vec::new();
    while seen.len() < 4 {
        let event = tokio::time::timeout(Duration::from_secs(20), watch.next()).await;
        seen.push(match event.unwrap().unwrap().unwrap() {
            watcher::Event::Init => "init".to_owned(),
            watcher::Event::InitApply(pod) => format!("{} is there", pod.0.1),
            watcher::Event::InitDone => "these are all".to_owned(),
            watcher::Event::Apply(pod) => format!("{} is now", pod.0.1),
            watcher::Event::Delete(pod) => format!("{} has gone", pod.0.1),
        });
    }
    assert_eq!(seen, ["init", "web is there", "these are all", "web has gone"]);
}

#[test]
fn a_status_that_somebody_writes_is_no_news() {
    let object = |version: &str, status: Value| {
        let object = json!({
            "apiVersion": "outrigger.io/v1", "kind": "TrafficRules",
            "metadata": {"name": "web", "namespace": "shop", "generation": 3, "resourceVersion": version},
            "spec": {"service": "web", "timeout": "1s"}, "status": status,
        });
        rule(serde_json::from_value(object).unwrap(), &ParseOptions::default())
    };
    let (named, Thing::Rule(Some(before)), None, _) = object("7", json!({})) else { panic!("it is a rule") };
    assert_eq!(named, ("shop".to_owned(), "web".to_owned()));
    let (_, Thing::Rule(Some(after)), None, _) = object("8", json!({"inForce": "1 of 1"})) else {
        panic!("it is a rule")
    };
    assert_eq!(before, after);
}

#[tokio::test]
async fn a_kind_is_watched_in_the_first_version_that_the_cluster_has() {
    let list = |names: &[&str]| {
        let resources = names.iter().map(
            |name| json!({"name": name, "singularName": "", "namespaced": true, "kind": "", "verbs": []}),
        );
        let resources: Vec<Value> = resources.collect();
        (
            StatusCode::OK,
            Json(
                json!({"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": "", "resources": resources}),
            ),
        )
    };
    let mut kinds = answered_by(move |uri| match uri.path() {
        "/apis/networking.istio.io/v1" => list(&["destinationrules"]),
        "/apis/networking.istio.io/v1beta1" => list(&["destinationrules", "virtualservices"]),
        "/apis/networking.istio.io/v1alpha3" => list(&["virtualservices", "serviceentries"]),
        _ => (StatusCode::NOT_FOUND, Json(failure(404, json!({})))),
    })
    .await;
    let found: HashSet<&str> = kinds.discover().await.unwrap().into_iter().map(|(kind, _)| kind).collect();
    let always = [SERVICE, POD, NODE, SLICE];
    assert_eq!(
        found,
        HashSet::from_iter(always.into_iter().chain(["DestinationRule", "VirtualService", "ServiceEntry"]))
    );
    let versions = ["DestinationRule", "VirtualService", "ServiceEntry"].map(|kind| kinds.watched[kind]);
    assert_eq!(versions, ["v1", "v1beta1", "v1alpha3"]);
    assert!(kinds.discover().await.unwrap().is_empty(), "all are watched");
    kinds.forget("VirtualService");
    assert_eq!(kinds.discover().await.unwrap().len(), 1, "it is looked up anew");
}

/// Nobody judges a Service when it is written, nor has it a status of ours.
#[test]
fn what_of_a_service_has_no_effect_is_told_and_of_rules_others_tell_it() {
    let idle = |version: &str, kind: &str, annotation: &str, spec: Value| {
        let object = json!({
            "apiVersion": version, "kind": kind, "spec": spec,
            "metadata": {"name": "web", "namespace": "shop", "annotations": {annotation: "Auto"}},
        });
        let (_, Thing::Rule(Some(_)), None, idle) =
            rule(serde_json::from_value(object).unwrap(), &ParseOptions::default())
        else {
            panic!("it is a rule")
        };
        idle
    };
    let spec =
        json!({"ports": [{"port": 80}], "trafficDistribution": "PreferFar", "selector": {"app": "web"}});
    let said = idle("v1", SERVICE, "service.kubernetes.io/topology-mode", spec);
    assert_eq!(said.len(), 2, "{said:?}");
    assert!(said[0].contains("topology-mode") && said[1].contains("PreferFar"), "{said:?}");
    let plain = idle("v1", SERVICE, "team.example/word", json!({"ports": [{"port": 80}]}));
    assert_eq!(plain, [""; 0]);
    let page = json!({"service": "web", "timeout": "1s"});
    let suppressed = "galley.istio.io/analyze-suppress";
    assert_eq!(idle("outrigger.io/v1", "TrafficRules", suppressed, page), [""; 0]);
}

/// As kube-proxy reads them.
#[test]
fn what_is_anothers_by_now_holds_no_more_though_it_cannot_be_read() {
    let policy = |spec: Value| json!({"apiVersion": "security.istio.io/v1", "kind": "AuthorizationPolicy", "metadata": {"name": "a", "namespace": "shop"}, "spec": spec});
    let seen = |spec: Value| rule(serde_json::from_value(policy(spec)).unwrap(), &ParseOptions::default());
    let ours = seen(json!({"selector": {"matchLabels": {"app": "web"}}, "action": "DENY"}));
    assert!(matches!(ours.1, Thing::Rule(Some(_))) && ours.2.is_none());
    let unread = seen(json!({"action": "DENI"}));
    assert!(matches!(unread.1, Thing::Rule(None)) && unread.2.is_some(), "what it said before holds");
    let gateways = json!([{"group": "gateway.networking.k8s.io", "kind": "Gateway", "name": "edge"}]);
    let theirs = seen(json!({"targetRefs": gateways, "action": "DENY"}));
    assert!(matches!(theirs.1, Thing::Theirs) && theirs.2.is_some());
}

#[test]
fn conditions_of_written_endpoints_say_who_takes_requests() {
    let state = |conditions: Value| {
        let slice = json!({
            "metadata": {"name": "db-1", "namespace": "shop", "labels": {"kubernetes.io/service-name": "db"}},
            "addressType": "IPv4", "ports": [{"port": 5432}],
            "endpoints": [{"addresses": ["192.0.2.7"], "conditions": conditions}],
        });
        let named = ("shop".to_owned(), "db-1".to_owned());
        written_down(&named, &serde_json::from_value(slice).unwrap())[0].state
    };
    for (conditions, wanted) in [
        (json!({}), State::Running),
        (json!({"ready": true}), State::Running),
        (json!({"ready": true, "serving": true, "terminating": true}), State::Running),
        (json!({"ready": false}), State::Unhealthy),
        (json!({"ready": false, "serving": true, "terminating": false}), State::Unhealthy),
        (json!({"ready": false, "serving": true, "terminating": true}), State::Stopping),
        (json!({"ready": false, "terminating": true}), State::Stopping),
        (json!({"ready": false, "serving": false, "terminating": true}), State::Unhealthy),
        (json!({"serving": false, "terminating": true}), State::Unhealthy),
    ] {
        assert_eq!(state(conditions.clone()), wanted, "{conditions}");
    }
}

#[test]
fn a_slice_says_for_whose_clients_an_endpoint_is_meant() {
    let object = json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "addressType": "IPv4", "metadata": {"name": "db-1", "namespace": "shop", "labels": {"kubernetes.io/service-name": "db"}},
        "endpoints": [
            {"addresses": ["10.0.0.1"], "nodeName": "n1", "hints": {"forZones": [{"name": "a"}, {"name": "b"}], "forNodes": [{"name": "n1"}]}},
            {"addresses": ["10.0.0.2"], "hints": {"forZones": []}},
        ],
    });
    let (_, Thing::Slice(instances), None, _) = slice(serde_json::from_value(object).unwrap()) else {
        panic!()
    };
    let said: Vec<_> =
        instances.into_iter().map(|one| one.metadata.into_iter().collect::<Vec<_>>()).collect();
    let text = |key: &str, value: &str| (key.to_owned(), value.to_owned());
    assert_eq!(
        said,
        [vec![text("for-nodes/db", "n1"), text("for-zones/db", "a,b"), text("node", "n1")], vec![]]
    );
}
