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

#[tokio::test(flavor = "multi_thread")]
async fn the_authority_of_a_request_can_be_set_like_a_header() {
    let mesh = Mesh::start(BINARY).await;
    let v1 = mesh.workload(&catalog("v1", 11)).await;
    let web = mesh.workload(&web(&["catalog:8080"])).await;
    echo(v1.app, "catalog-v1").await;
    let fields = [
        "headers: {request: {set: {':authority': other.test}}}\n    route: [{destination: {host: catalog}}]",
        "headers: {request: {set: {Host: other.test}}}\n    route: [{destination: {host: catalog}}]",
        "route: [{destination: {host: catalog}, headers: {request: {set: {':authority': other.test}}}}]",
    ];
    for fields in fields {
        mesh.apply(&route(&format!("  - {fields}"))).await;
        let (status, text) = get(web.outbound[0], "/item", "").await.unwrap();
        assert_eq!(status, 200, "{fields}: {text}");
        let hosts: Vec<&str> =
            text.lines().filter(|line| line.to_ascii_lowercase().starts_with("host:")).collect();
        assert!(
            hosts.len() == 1 && hosts[0].to_ascii_lowercase().contains("host: other.test"),
            "{fields}: {text}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn apply_says_which_sidecar_refuses_a_rule_and_why_and_ends() {
    let mesh = Mesh::start(BINARY).await;
    let v1 = mesh.workload(&catalog("v1", 11)).await;
    let web = mesh.workload(&web(&["catalog:8080"])).await;
    echo(v1.app, "catalog-v1").await;
    assert_eq!(get(web.outbound[0], "/item", "").await.unwrap().0, 200);
    let file = mesh.path("tls.yaml");
    let rule = "apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {name: catalog, namespace: shop}\n\
                spec: {host: catalog, trafficPolicy: {tls: {mode: SIMPLE, caCertificates: /nowhere/ca.pem}}}\n";
    std::fs::write(&file, rule).unwrap();
    // Twice: what was refused once is not in force the second time.
    for _ in 0..2 {
        let mut command = tokio::process::Command::new(BINARY);
        command
            .args(["apply", "--wait", "--timeout", "120", "-f"])
            .arg(&file)
            .arg("--server")
            .arg(mesh.path("control/outrigger.sock"));
        let ended = tokio::time::timeout(std::time::Duration::from_secs(60), command.output()).await;
        let output = ended.expect("it ends before its own time is over").unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success(), "{stderr}");
        assert!(stderr.contains("refused by web") && stderr.contains("/nowhere/ca.pem"), "{stderr}");
        assert!(!stderr.contains("waiting for"), "{stderr}");
    }
    // The one before had no such TLS, so it is not in force any more.
    let (status, text) = get(web.outbound[0], "/item", "").await.unwrap();
    assert!(status == 503 && text.contains("cannot be set up: /nowhere/ca.pem"), "{text}");
}
