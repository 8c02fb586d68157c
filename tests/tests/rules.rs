//! Rules: what is pushed has its effect; what cannot work is refused by place and reason, and loses nothing.

use outrigger_tests::app::{echo, get};
use outrigger_tests::mesh::Mesh;

use crate::BINARY;
use crate::thin_thread::{catalog, web};

const SUBSETS: &str = "apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: catalog, namespace: shop}
spec:
  host: catalog
  subsets: [{name: v1, labels: {version: v1}}, {name: v2, labels: {version: v2}}]
---
";

fn route(http: &str) -> String {
    format!(
        "{SUBSETS}apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {{name: catalog, namespace: shop}}
spec:
  hosts: [catalog]
  http:
{http}
"
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn rules_are_in_force_everywhere_when_apply_returns() {
    let mesh = Mesh::start(BINARY).await;
    let (v1, v2) = (mesh.workload(&catalog("v1", 11)).await, mesh.workload(&catalog("v2", 12)).await);
    let web = mesh.workload(&web(&["catalog:8080"])).await;
    echo(v1.app, "catalog-v1").await;
    echo(v2.app, "catalog-v2").await;
    let entry = web.outbound[0];
    let call = |headers: &'static str| async move { get(entry, "/item", headers).await.unwrap() };
    for version in ["v2", "v1"] {
        mesh.apply(&route(&format!("  - route: [{{destination: {{host: catalog, subset: {version}}}}}]")))
            .await;
        for _ in 0..20 {
            let (status, text) = call("").await;
            assert!(status == 200 && text.contains(&format!("X-App-Name: catalog-{version}")), "{text}");
        }
    }
    mesh.apply(&route(
        "  - match: [{headers: {end-user: {exact: jason}}}]
    route: [{destination: {host: catalog, subset: v2}}]
  - fault: {abort: {httpStatus: 418, percentage: {value: 100}}}
    route: [{destination: {host: catalog, subset: v1}}]",
    ))
    .await;
    assert!(call("end-user: jason\r\n").await.1.contains("X-App-Name: catalog-v2"));
    let (status, text) = call("").await;
    assert_eq!(status, 418);
    assert!(text.contains("x-outrigger-error: side=local"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_denied_path_is_answered_403_and_the_others_are_served() {
    let mesh = Mesh::start(BINARY).await;
    let catalog = mesh.workload(&catalog("v1", 11)).await;
    let web = mesh.workload(&web(&["catalog:8080"])).await;
    echo(catalog.app, "catalog-v1").await;
    mesh.apply(
        "apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: catalog, namespace: shop}
spec:
  selector: {matchLabels: {app: catalog}}
  action: DENY
  rules:
  - from: [{source: {principals: [cluster.local/ns/shop/sa/web]}}]
    to: [{operation: {paths: [/secret*]}}]
",
    )
    .await;
    let (status, text) = get(web.outbound[0], "/secret/x", "").await.unwrap();
    assert!(status == 403 && text.contains("RBAC: access denied"), "{text}");
    assert_eq!(get(web.outbound[0], "/open", "").await.unwrap().0, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn rules_that_cannot_work_are_refused_by_place_and_the_last_good_ones_stay() {
    let mesh = Mesh::start(BINARY).await;
    let catalog = mesh.workload(&catalog("v1", 11)).await;
    let web = mesh.workload(&web(&["catalog:8080"])).await;
    echo(catalog.app, "catalog-v1").await;
    mesh.apply(&route("  - route: [{destination: {host: catalog, subset: v1}}]")).await;
    for (bad, word) in [
        ("  - route: [{destination: {host: catalog, subset: v4}}]", "v4"),
        ("  - match: [{uri: {regex: \"(\"}}]\n    route: [{destination: {host: catalog}}]", "regex"),
        ("  - rout: [{destination: {host: catalog}}]", "route"),
        (
            "  - route: [{destination: {host: catalog, subset: v1}, weight: 0}, {destination: {host: catalog, subset: v2}, weight: 0}]",
            "weight",
        ),
        ("  - route: [", "line"),
    ] {
        let error = mesh.try_apply(&route(bad)).await.expect_err(bad);
        let text = format!("{error} {:?}", error.findings());
        assert!(text.contains(word), "{bad}: {text}");
        assert!(error.findings().iter().all(|f| f.line > 0), "{text}");
        assert_eq!(get(web.outbound[0], "/", "").await.unwrap().0, 200, "after {bad}");
    }
}
