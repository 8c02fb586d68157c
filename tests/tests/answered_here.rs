//! What a sidecar answers itself leaves a span that says why, as what it forwards does.

use std::net::SocketAddr;

use outrigger_control::instance::State;
use outrigger_tests::app::{body, echo, get};
use outrigger_tests::mesh::Mesh;
use outrigger_tests::wait::eventually;
use serde_json::Value;

use crate::BINARY;
use crate::thin_thread::{catalog, web};

/// The tags of the client span that the sidecar of `web` has sent for a path.
async fn span_of(query: SocketAddr, path: &str) -> Value {
    eventually(&format!("a span of {path}"), || async {
        let (_, text) =
            get(query, "/api/traces?lookback=1h&limit=100", "").await.map_err(|e| e.to_string())?;
        let answer: Value = serde_json::from_str(&body(&text)).map_err(|error| format!("{error}: {text}"))?;
        let traces = answer["data"].as_array().cloned().unwrap_or_default();
        let spans = traces.iter().flat_map(|trace| trace["spans"].as_array().cloned().unwrap_or_default());
        let of_path = |span: &Value| {
            let tags = span["tags"].as_array().cloned().unwrap_or_default();
            tags.iter().any(|tag| {
                tag["key"] == "url.full" && tag["value"].as_str().is_some_and(|url| url.ends_with(path))
            })
        };
        spans.into_iter().find(of_path).ok_or(text)
    })
    .await
}

fn tag(span: &Value, key: &str) -> String {
    let tags = span["tags"].as_array().cloned().unwrap_or_default();
    let found = tags.into_iter().find(|tag| tag["key"] == key).unwrap_or_default();
    found["value"].as_str().map_or_else(|| found["value"].to_string(), str::to_owned)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_without_endpoints_an_injected_fault_and_one_without_a_route_have_spans() {
    let mesh = Mesh::start(BINARY).await;
    let catalog = mesh.workload(&catalog("v1", 11)).await;
    let web = mesh.workload(&web(&["catalog:8080"])).await;
    let query = mesh.address(1, 16686);
    echo(catalog.app, "catalog-v1").await;
    assert_eq!(get(web.outbound[0], "/forwarded", "").await.unwrap().0, 200);
    assert_eq!(tag(&span_of(query, "/forwarded").await, "http.response.status_code"), "200");

    mesh.apply(
        "apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: catalog, namespace: shop}
spec:
  hosts: [catalog]
  http:
  - match: [{uri: {prefix: /broken}}]
    fault: {abort: {percentage: {value: 100}, httpStatus: 418}}
    route: [{destination: {host: catalog}}]
  - match: [{uri: {prefix: /known}}]
    route: [{destination: {host: catalog}}]
",
    )
    .await;
    assert_eq!(get(web.outbound[0], "/broken", "").await.unwrap().0, 418);
    let fault = span_of(query, "/broken").await;
    assert_eq!(
        (tag(&fault, "http.response.status_code"), tag(&fault, "response_flags")),
        ("418".into(), "FI".into())
    );
    assert_eq!(tag(&fault, "error"), "true", "a client span is an error from 400 on");

    assert_eq!(get(web.outbound[0], "/unknown", "").await.unwrap().0, 404);
    let unknown = span_of(query, "/unknown").await;
    assert_eq!(
        (tag(&unknown, "http.response.status_code"), tag(&unknown, "response_flags")),
        ("404".into(), "NR".into())
    );

    mesh.client.set_state("catalog-v1", State::Maintenance).await.unwrap();
    eventually("nobody is left", || async {
        let (status, text) =
            get(web.outbound[0], "/known/waiting", "").await.map_err(|error| error.to_string())?;
        if status == 503 { Ok(()) } else { Err(text) }
    })
    .await;
    assert_eq!(get(web.outbound[0], "/known/nobody", "").await.unwrap().0, 503);
    let nobody = span_of(query, "/known/nobody").await;
    assert_eq!(
        (tag(&nobody, "http.response.status_code"), tag(&nobody, "response_flags")),
        ("503".into(), "UH".into())
    );
    assert!(tag(&nobody, "outrigger.error").contains("catalog"), "{nobody}");
    assert_eq!(tag(&nobody, "span.kind"), "client");
}
