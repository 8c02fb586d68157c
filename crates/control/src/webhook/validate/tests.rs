use axum::http::Request as HttpRequest;
use http_body_util::BodyExt;
use outrigger_rules::parse;
use serde_json::json;
use tower::ServiceExt;

use super::*;
use crate::keeper::tests::keeper;

const ROUTE: &str = "
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: catalog, namespace: shop}
spec: {hosts: [catalog], http: [{route: [{destination: {host: catalog, subset: v1}}]}]}
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: catalog, namespace: shop}
spec: {host: catalog, subsets: [{name: v1, labels: {version: v1}}]}
";

/// A validator in a mesh with these rules.
async fn validator(rules: &str) -> (Router, Registry) {
    let (keeper, _) = keeper().await;
    let instance =
        crate::instance::sample("c-1", "catalog", "v1", "127.0.0.5", 8080, crate::instance::Protocol::Http);
    keeper.register(instance, crate::registry::api::Caller::Operator("ann".into())).await.unwrap();
    keeper.apply(parse("", rules).objects, "default", "ann", false).await.unwrap();
    let registry = Registry::new();
    let unjudged = FailurePolicy::Ignore;
    (Validator::new(MeshSettings::default(), unjudged, keeper, &registry).router(), registry)
}

fn review(operation: &str, kind: &str, name: &str, spec: Value, old: Value) -> Value {
    let group = match kind {
        "TrafficRules" => "outrigger.io",
        "HTTPRoute" => "gateway.networking.k8s.io",
        "AuthorizationPolicy" => "security.istio.io",
        _ => "networking.istio.io",
    };
    let object = |spec: Value| match spec {
        Value::Null => Value::Null,
        spec => {
            json!({"apiVersion": format!("{group}/v1"), "kind": kind, "metadata": {"name": name, "namespace": "shop"}, "spec": spec})
        }
    };
    json!({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "request": {
        "uid": "u-1", "kind": {"group": group, "version": "v1", "kind": kind}, "operation": operation, "namespace": "shop",
        "object": object(spec), "oldObject": object(old),
    }})
}

async fn ask(router: &Router, body: String) -> (u16, String) {
    let response =
        router.clone().oneshot(HttpRequest::post("/validate").body(Body::from(body)).unwrap()).await.unwrap();
    let status = response.status().as_u16();
    let body = response.into_body().collect().await.unwrap().to_bytes();
    (status, String::from_utf8(body.to_vec()).unwrap())
}

async fn response(router: &Router, review: Value) -> Value {
    let (status, body) = ask(router, review.to_string()).await;
    assert_eq!(status, 200, "{body}");
    let answer: Value = serde_json::from_str(&body).unwrap();
    assert_eq!(answer["response"]["uid"], "u-1");
    answer["response"].clone()
}

#[tokio::test]
async fn a_bad_rule_is_refused_with_its_field_and_a_good_one_is_admitted() {
    let (router, registry) = validator(ROUTE).await;
    let spec =
        |timeout: &str| json!({"service": "catalog", "retry": {"attempts": 1, "perTryTimeout": timeout}});
    let no = response(&router, review("CREATE", "TrafficRules", "page", spec("soon"), Value::Null)).await;
    assert_eq!((&no["allowed"], &no["status"]["reason"]), (&json!(false), &json!("Invalid")), "{no}");
    assert_eq!(no["status"]["details"]["causes"][0]["field"], "spec.retry.perTryTimeout");
    let message = no["status"]["message"].as_str().unwrap();
    assert!(message.starts_with("spec.retry.perTryTimeout must be a duration"), "{message}");
    // It says the same as before, so nobody is kept from changing a label; what is wrong is said.
    let same = response(&router, review("UPDATE", "TrafficRules", "page", spec("soon"), spec("soon"))).await;
    assert!(
        same["allowed"] == true && same["warnings"][0].as_str().unwrap().contains("perTryTimeout"),
        "{same}"
    );
    // The analyzer's word counts as the reader's.
    let nowhere = json!({"hosts": ["catalog"], "http": [{"route": [
        {"destination": {"host": "catalog"}, "weight": 0}, {"destination": {"host": "catalog", "subset": "v1"}, "weight": 0}]}]});
    let no = response(&router, review("UPDATE", "VirtualService", "catalog", nowhere, Value::Null)).await;
    assert!(no["allowed"] == false && no["status"]["message"].as_str().unwrap().contains("OUT0103"), "{no}");
    let yes = json!({"hosts": ["catalog"], "http": [{"route": [{"destination": {"host": "catalog", "subset": "v1"}}]}]});
    let yes = response(&router, review("UPDATE", "VirtualService", "catalog", yes, Value::Null)).await;
    assert_eq!(yes["allowed"], true, "{yes}");
    let page = registry.render();
    assert!(page.contains(r#"outrigger_validations_total{outcome="refused"} 2"#), "{page}");
    assert!(page.contains(r#"outrigger_validations_total{outcome="warned"} 2"#), "{page}");
}

#[tokio::test]
async fn what_another_object_may_mend_and_every_deletion_is_a_warning() {
    let (router, _) = validator(ROUTE).await;
    let spec = json!({"hosts": ["new.shop"], "http": [{"route": [{"destination": {"host": "new.shop"}}]}]});
    let early = response(&router, review("CREATE", "VirtualService", "new", spec, Value::Null)).await;
    assert!(
        early["allowed"] == true
            && early["warnings"][1].as_str().unwrap().starts_with("spec.http[0].route[0].destination: "),
        "{early}"
    );
    let old = json!({"host": "catalog"});
    let gone = response(&router, review("DELETE", "DestinationRule", "catalog", Value::Null, old)).await;
    assert!(gone["allowed"] == true, "{gone}");
    let warning = gone["warnings"][0].as_str().unwrap();
    assert!(warning.starts_with("VirtualService shop/catalog: ") && warning.contains("v1"), "{warning}");
    // A rule of the same name that was applied over the management API goes before.
    let spec = json!({"host": "catalog", "subsets": [{"name": "v1", "labels": {"version": "v1"}}]});
    let twice = response(&router, review("CREATE", "DestinationRule", "catalog", spec, Value::Null)).await;
    assert!(
        twice["allowed"] == true && twice["warnings"][0].as_str().unwrap().contains("management API"),
        "{twice}"
    );
}

#[tokio::test]
async fn a_kind_that_nobody_here_reads_is_stored_with_a_word() {
    let (router, registry) = validator("").await;
    for (group, kind, words) in [
        ("networking.istio.io", "EnvoyFilter", "EnvoyFilter patches Envoy's own configuration"),
        ("extensions.istio.io", "WasmPlugin", "WasmPlugin needs a WebAssembly host"),
        (
            "telemetry.istio.io",
            "Telemetry",
            "Telemetry is not implemented by Outrigger yet: it is stored, and has no effect",
        ),
    ] {
        let mut review = review("CREATE", "VirtualService", "a", json!({}), Value::Null);
        review["request"]["kind"] = json!({"group": group, "version": "v1", "kind": kind});
        let answer = response(&router, review).await;
        assert_eq!(answer["allowed"], true, "{answer}");
        assert!(answer["warnings"][0].as_str().unwrap().starts_with(words), "{answer}");
    }
    assert!(registry.render().contains(r#"outrigger_validations_total{outcome="warned"} 3"#));
    // One of the same name is another's.
    let mut review = review("CREATE", "VirtualService", "a", json!({}), Value::Null);
    review["request"]["kind"] =
        json!({"group": "gateway.networking.k8s.io", "version": "v1", "kind": "Gateway"});
    assert_eq!(ask(&router, review.to_string()).await.0, 400);
}

#[tokio::test]
async fn what_is_no_question_about_a_rule_is_told_so() {
    let (router, _) = validator("").await;
    let of = |change: fn(&mut Value)| {
        let mut review =
            review("CREATE", "TrafficRules", "page", json!({"service": "a", "timeout": "1s"}), Value::Null);
        change(&mut review);
        review.to_string()
    };
    for (body, word) in [
        ("{".to_owned(), "no AdmissionReview"),
        (of(|review| review["request"]["kind"]["kind"] = "Secret".into()), "Secret is no kind of rules"),
        (of(|review| review["request"]["kind"]["group"] = "".into()), "is no kind of rules"),
        (of(|review| review["request"]["object"] = Value::Null), "no object with a name"),
    ] {
        let (status, said) = ask(&router, body).await;
        assert!(status == 400 && said.contains(word), "{status}: {said}");
    }
}

#[tokio::test]
async fn what_is_for_another_controller_alone_is_stored_and_whoever_stores_it_is_told() {
    let (router, _) = validator(ROUTE).await;
    let gateway = json!({"group": "gateway.networking.k8s.io", "kind": "Gateway", "name": "waypoint"});
    let own = json!({"group": "", "kind": "Service", "name": "catalog"});
    let new_field = |parent: &Value| json!({"parentRefs": [parent], "rules": [{"fieldOfTomorrow": 1}]});
    let bound = json!({"targetRefs": [gateway], "rules": [{"somethingNew": 1}]});
    let edge = |gateways: &[&str]| json!({"hosts": ["shop.example"], "gateways": gateways, "http": [{"fieldOfTomorrow": 1}]});
    for (kind, theirs, ours) in [
        ("AuthorizationPolicy", bound, json!({"rules": [{"somethingNew": 1}]})),
        ("HTTPRoute", new_field(&gateway), new_field(&own)),
        ("VirtualService", edge(&["edge"]), edge(&["edge", "mesh"])),
    ] {
        let stored = response(&router, review("CREATE", kind, "edge", theirs, Value::Null)).await;
        assert!(stored["allowed"] == true, "{stored}");
        let warning = stored["warnings"][0].as_str().unwrap();
        assert!(
            warning.starts_with(kind) && warning.ends_with("it is stored, and not in force here"),
            "{warning}"
        );
        let refused = response(&router, review("CREATE", kind, "edge", ours, Value::Null)).await;
        assert!(refused["allowed"] == false, "{refused}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_rule_for_which_there_was_no_time_is_stored_or_not_as_the_policy_says() {
    for (policy, allowed) in [(FailurePolicy::Ignore, true), (FailurePolicy::Fail, false)] {
        let (keeper, _) = keeper().await;
        let registry = Registry::new();
        let validator = Validator::new(MeshSettings::default(), policy, keeper, &registry);
        // Somebody else has the only place, for as long as it takes.
        let _place = validator.analyses.clone().acquire_owned().await.unwrap();
        let spec = json!({"service": "catalog"});
        let answer =
            response(&validator.router(), review("CREATE", "TrafficRules", "page", spec, Value::Null)).await;
        assert_eq!(answer["allowed"], allowed, "{answer}");
        match allowed {
            true => assert!(answer["warnings"][0].as_str().unwrap().contains("had no time"), "{answer}"),
            false => assert_eq!(answer["status"]["code"], 503, "{answer}"),
        }
        assert!(registry.render().contains(r#"outrigger_validations_total{outcome="unjudged"} 1"#));
    }
}
