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
    let (named, Thing::Rule(Some(before)), None) = object("7", json!({})) else { panic!("it is a rule") };
    assert_eq!(named, ("shop".to_owned(), "web".to_owned()));
    let (_, Thing::Rule(Some(after)), None) = object("8", json!({"inForce": "1 of 1"})) else {
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
