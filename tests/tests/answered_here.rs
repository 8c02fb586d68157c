//! What a sidecar answers itself leaves a span that says why, as what it forwards does.

use std::net::SocketAddr;
use std::sync::atomic::Ordering::SeqCst;

use outrigger_control::instance::State;
use outrigger_tests::app::{body, echo, get};
use outrigger_tests::mesh::Mesh;
use outrigger_tests::wait::eventually;
use serde_json::Value;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use crate::BINARY;
use crate::limits::{Gate, plenty};
use crate::thin_thread::{catalog, web};

/// The tags of the client span that the sidecar of `web` has sent for a path.
async fn span_of(query: SocketAddr, path: &str) -> Value {
    span_with(query, "url.full", path).await
}

/// The tags of a span one of which ends with a path.
async fn span_with(query: SocketAddr, key: &str, path: &str) -> Value {
    eventually(&format!("a span of {path}"), || async {
        let (_, text) =
            get(query, "/api/traces?lookback=1h&limit=100", "").await.map_err(|e| e.to_string())?;
        let answer: Value = serde_json::from_str(&body(&text)).map_err(|error| format!("{error}: {text}"))?;
        let traces = answer["data"].as_array().cloned().unwrap_or_default();
        let spans = traces.iter().flat_map(|trace| trace["spans"].as_array().cloned().unwrap_or_default());
        let of_path = |span: &Value| {
            let tags = span["tags"].as_array().cloned().unwrap_or_default();
            tags.iter()
                .any(|tag| tag["key"] == key && tag["value"].as_str().is_some_and(|url| url.ends_with(path)))
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

/// What is refused before its route, by policy and by a limit.
async fn refusals(query: SocketAddr, to: SocketAddr) {
    // Before a route is looked for, and where it may not be taken.
    for (path, headers, status) in
        [("/%00", "", 400), ("/known/tunnel", "Connection: Upgrade\r\nUpgrade: spice\r\n", 403)]
    {
        assert_eq!(get(to, path, headers).await.unwrap().0, status, "{path}");
        let span = span_of(query, path).await;
        assert_eq!(tag(&span, "http.response.status_code"), status.to_string(), "{span}");
        assert_ne!(tag(&span, "outrigger.error"), "null", "{span}");
    }

    // By policy, at the other sidecar, whose span is the server's.
    assert_eq!(get(to, "/secret", "").await.unwrap().0, 403);
    let denied = span_with(query, "url.path", "/secret").await;
    assert_eq!(tag(&denied, "http.response.status_code"), "403");
    assert!(tag(&denied, "outrigger.error").contains("no-secrets"), "{denied}");

    // By a limit, which one request uses up whose body does not come.
    let mut held = TcpStream::connect(to).await.unwrap();
    held.write_all(b"POST /known/held HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\n\r\n")
        .await
        .unwrap();
    eventually("the limit is reached", || async {
        let (status, text) = get(to, "/known/waiting", "").await.map_err(|error| error.to_string())?;
        if status == 503 { Ok(()) } else { Err(text) }
    })
    .await;
    assert_eq!(get(to, "/known/over", "").await.unwrap().0, 503);
    let over = span_of(query, "/known/over").await;
    assert_eq!(
        (tag(&over, "http.response.status_code"), tag(&over, "response_flags")),
        ("503".into(), "UO".into())
    );
    assert!(tag(&over, "outrigger.error").contains("max_requests"), "{over}");
    drop(held);
}

/// The events of a span, each with its fields.
fn events(span: &Value) -> Vec<Vec<(String, String)>> {
    let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    let fields = |log: &Value| {
        let fields = log["fields"].as_array().cloned().unwrap_or_default();
        fields.iter().map(|field| (text(&field["key"]), text(&field["value"]))).collect()
    };
    span["logs"].as_array().map(|logs| logs.iter().map(fields).collect()).unwrap_or_default()
}

const TRIP: &str = "apiVersion: outrigger.io/v1
kind: TrafficRules
metadata: {name: catalog, namespace: shop}
spec:
  service: catalog
  circuitBreaker: {trip: {consecutiveFailures: 2, openTime: 1s, probes: 1}}
";

#[tokio::test(flavor = "multi_thread")]
async fn what_an_attempt_makes_of_a_circuit_breaker_is_an_event_of_its_span() {
    let mesh = Mesh::start(BINARY).await;
    let catalog = mesh.workload(&catalog("v1", 11)).await;
    let web = mesh.workload(&web(&["catalog:8080"])).await;
    let query = mesh.address(1, 16686);
    let gate = Gate::serve(catalog.app, "v1", 500, plenty()).await;
    mesh.apply(TRIP).await;
    let to = web.outbound[0];
    for path in ["/first", "/second"] {
        assert_eq!(get(to, path, "").await.unwrap().0, 500);
    }
    assert_eq!(events(&span_of(query, "/first").await), [[]; 0]);
    let said = |name: &str, state: &str, why: &[&str]| {
        let mut fields = vec![
            ("event".to_owned(), format!("circuit_breaker.{name}")),
            ("outrigger.circuit_breaker.state".to_owned(), state.to_owned()),
        ];
        fields
            .extend(why.iter().map(|why| ("outrigger.circuit_breaker.reason".to_owned(), (*why).to_owned())));
        fields
    };
    let opened = events(&span_of(query, "/second").await);
    assert_eq!(opened, [said("open", "open", &["2 requests in a row failed"])]);

    gate.status.store(200, SeqCst);
    let number = std::sync::atomic::AtomicU32::new(0);
    let probe = eventually("a probe succeeds", || async {
        let path = format!("/probe-{}", number.fetch_add(1, SeqCst));
        let (status, text) = get(to, &path, "").await.map_err(|error| error.to_string())?;
        if status == 200 { Ok(path) } else { Err(text) }
    })
    .await;
    let closed = events(&span_of(query, &probe).await);
    assert_eq!(closed, [said("half_open", "half_open", &[]), said("closed", "closed", &[])]);
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_a_sidecar_answers_itself_has_a_span_that_says_why() {
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
  - match: [{uri: {prefix: /known}}, {uri: {prefix: /secret}}]
    route: [{destination: {host: catalog}}]
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: catalog, namespace: shop}
spec:
  host: catalog
  trafficPolicy: {connectionPool: {http: {http2MaxRequests: 1}}}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: no-secrets, namespace: shop}
spec:
  selector: {matchLabels: {app: catalog}}
  action: DENY
  rules: [{to: [{operation: {paths: [/secret]}}]}]
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

    refusals(query, web.outbound[0]).await;

    mesh.client.set_state("catalog-v1", State::Maintenance).await.unwrap();
    eventually("nobody is left", || async {
        let (status, text) =
            get(web.outbound[0], "/known/leaving", "").await.map_err(|error| error.to_string())?;
        if status == 503 && text.contains("no_healthy_upstream") { Ok(()) } else { Err(text) }
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
