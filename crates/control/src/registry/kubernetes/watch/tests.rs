use axum::http::StatusCode;
use axum::{Json, Router};
use kube::Config;
use serde_json::{Value, json};

use super::super::cluster::SERVICE;
use super::*;

/// Kinds of a cluster whose API server answers everything so.
async fn answered(status: StatusCode, body: Value) -> Kinds {
    let router = Router::new().fallback(move || {
        let answer = (status, Json(body.clone()));
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
