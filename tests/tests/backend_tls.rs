//! TLS towards backends as the Gateway API has it: a server outside the mesh that its policy says how to verify, and never plain text instead.

use std::path::Path;

use outrigger_tests::app::{body, echo, get};
use outrigger_tests::mesh::Mesh;
use outrigger_tests::wait::eventually;

use crate::BINARY;
use crate::gateway_api::{apply, run};
use crate::services::tls_server;
use crate::thin_thread::web;

fn described(mesh: &Mesh) -> String {
    format!(
        "apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {{name: billing, namespace: shop}}
spec:
  hosts: [billing.shop.svc.cluster.local]
  location: MESH_EXTERNAL
  resolution: STATIC
  ports: [{{number: 8080, name: http-web, protocol: HTTP, targetPort: 8000}}]
  endpoints: [{{address: {}}}]
",
        mesh.address(40, 0).ip()
    )
}

fn roots(file: &Path) -> String {
    let pem = std::fs::read_to_string(file).unwrap();
    let lines: String = pem.lines().map(|line| format!("    {line}\n")).collect();
    format!(
        "apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: billing-ca, namespace: shop}}\ndata:\n  ca.crt: |\n{lines}"
    )
}

fn policy(hostname: &str) -> String {
    format!(
        "apiVersion: gateway.networking.k8s.io/v1
kind: BackendTLSPolicy
metadata: {{name: billing, namespace: shop}}
spec:
  targetRefs: [{{group: '', kind: Service, name: billing, sectionName: http-web}}]
  validation:
    hostname: {hostname}
    caCertificateRefs: [{{group: '', kind: ConfigMap, name: billing-ca}}]
"
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn a_policy_says_how_a_backend_is_verified_and_nobody_is_called_in_plain_text_instead() {
    let mesh = Mesh::start(BINARY).await;
    let certificate = mesh.path("billing.pem");
    tls_server(mesh.address(40, 8000), "billing.example.com", &certificate).await;
    let web = mesh.workload(&web(&["billing:8080"])).await;
    mesh.apply(&described(&mesh)).await;
    let entry = web.outbound[0];
    let until = async |what: &str, status: u16, words: &str| {
        eventually(what, || async {
            let (got, text) = get(entry, "/", "").await.map_err(|error| error.to_string())?;
            let said = if got == 200 { body(&text) } else { text.clone() };
            if got == status && said.contains(words) { Ok(()) } else { Err(text) }
        })
        .await;
    };
    until("plain text means nothing to it", 503, "").await;

    // The certificates are not there yet.
    let told = apply(&mesh, &policy("billing.example.com")).await;
    assert!(told.contains("warning OUT0109") && told.contains("NoValidCACertificate"), "{told}");
    until("nobody is called", 503, "reason=no_endpoints").await;
    let shown = run(&mesh, &["get", "backendtlspolicy", "billing", "-n", "shop", "-o", "yaml"]).await;
    for line in ["ancestors:", "reason: \"NoValidCACertificate\"", "reason: \"InvalidCACertificateRef\""] {
        assert!(shown.contains(line), "no {line:?} in {shown}");
    }
    apply(&mesh, &roots(&certificate)).await;
    until("an answer over TLS", 200, "asked for billing.example.com").await;
    let shown = run(&mesh, &["get", "backendtlspolicy", "billing", "-n", "shop", "-o", "yaml"]).await;
    assert!(shown.contains("reason: \"Accepted\"") && shown.contains("reason: \"ResolvedRefs\""), "{shown}");
    assert!(!shown.contains("status: \"False\""), "{shown}");
    let described = run(&mesh, &["describe", "service", "billing.shop"]).await;
    assert!(described.contains("TLS to billing.example.com"), "{described}");

    // A good certificate of somebody else.
    apply(&mesh, &policy("www.example.net")).await;
    until("the wrong name is refused", 503, "certificate").await;
    let wanted = "validation:\n    subjectAltNames: [{type: Hostname, hostname: billing.example.com}]";
    apply(&mesh, &policy("www.example.net").replace("validation:", wanted)).await;
    until("only names that are wanted count", 200, "asked for www.example.net").await;

    run(&mesh, &["delete", "configmap", "billing-ca", "-n", "shop", "--wait"]).await;
    until("without certificates nobody is called", 503, "reason=no_endpoints").await;
}

fn rule(tls: &str) -> String {
    format!(
        "apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {{name: billing, namespace: shop}}
spec: {{host: billing, trafficPolicy: {{tls: {tls}}}}}
"
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn where_plain_text_was_spoken_nobody_is_called_once_tls_is_wanted_that_a_sidecar_cannot_have() {
    let mesh = Mesh::start(BINARY).await;
    echo(mesh.address(40, 8000), "plain").await;
    let web = mesh.workload(&web(&["billing:8080"])).await;
    mesh.apply(&described(&mesh)).await;
    let entry = web.outbound[0];
    let until = async |what: &str, status: u16, words: &str| {
        eventually(what, || async {
            let (got, text) = get(entry, "/", "").await.map_err(|error| error.to_string())?;
            if got == status && text.contains(words) { Ok(()) } else { Err(text) }
        })
        .await;
    };
    until("plain text", 200, "X-App-Name: plain").await;
    let missing = rule("{mode: SIMPLE, caCertificates: /nowhere/ca.pem}");
    mesh.try_apply(&missing).await.ok();
    until("the file is not there", 503, "cannot be set up: /nowhere/ca.pem").await;
    let state = web.page("/config_dump").await;
    assert!(state.contains("transport_socket: /nowhere/ca.pem: "), "it is refused all the same: {state}");
    // Without the rule it is as it was, and again not with a name that nobody can ask for.
    run(&mesh, &["delete", "destinationrule", "billing", "-n", "shop", "--wait"]).await;
    until("plain text again", 200, "X-App-Name: plain").await;
    let label = "a".repeat(64);
    mesh.apply(&rule(&format!("{{mode: SIMPLE, sni: {label}.example.com}}"))).await;
    until("no name to ask for", 503, "cannot be asked for as a server name").await;
}

/// By which public roots a server is verified where a policy says `System`: a sidecar has none but those of its image.
#[test]
fn every_image_with_a_sidecar_has_the_public_roots() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/docker/Dockerfile");
    let text = std::fs::read_to_string(path).unwrap();
    let (_, images) = text.split_once("\nFROM debian").unwrap();
    let installed = images.lines().find(|line| line.contains("apt-get install")).unwrap();
    assert!(installed.split_whitespace().any(|word| word == "ca-certificates"), "{installed}");
    assert!(!images.contains("\nFROM debian"), "another base has to be looked at, too");
}
