//! Routes of the Gateway API with a Service as parent: applied through the command line, obeyed by real sidecars.

use std::collections::BTreeMap;

use outrigger_control::instance::Protocol;
use outrigger_tests::app::{echo, get};
use outrigger_tests::mesh::{Mesh, Spec};
use outrigger_tests::recorder::{ask, recorder_on};
use tokio::net::TcpListener;

use crate::BINARY;
use crate::thin_thread::web;

fn service(service: &'static str, host: u8) -> Spec<'static> {
    Spec { service, version: "v1", host, protocol: Protocol::Http, calls: &[] }
}

/// Applies a file as a user does, and returns what was printed.
pub async fn apply(mesh: &Mesh, yaml: &str) -> String {
    let file = mesh.path("route.yaml");
    std::fs::write(&file, yaml).unwrap();
    run(mesh, &["apply", "--wait", "--timeout", "120", "-f", file.to_str().unwrap()]).await
}

pub async fn run(mesh: &Mesh, words: &[&str]) -> String {
    let mut command = tokio::process::Command::new(BINARY);
    command.args(words).arg("--server").arg(mesh.path("control/outrigger.sock"));
    let output = command.output().await.unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(output.status.success(), "{words:?}: {}", text(&output.stderr));
    text(&output.stdout) + &text(&output.stderr)
}

/// Who answered how often; another status than 200 stands for itself.
async fn answers(entry: std::net::SocketAddr, path: &str, count: usize) -> BTreeMap<String, usize> {
    let mut found = BTreeMap::new();
    for _ in 0..count {
        let (status, text) = get(entry, path, "").await.unwrap();
        let name = text.lines().find_map(|line| line.strip_prefix("X-App-Name: "));
        let who = if status == 200 { name.unwrap_or("?").to_owned() } else { status.to_string() };
        *found.entry(who).or_default() += 1;
    }
    found
}

const SPLIT: &str = "apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: catalog, namespace: shop}
spec:
  parentRefs: [{group: '', kind: Service, name: catalog}]
  rules:
  - matches: [{path: {value: /split}}]
    backendRefs: [{name: old, port: 8080, weight: 90}, {name: new, port: 8080, weight: 10}]
  - matches: [{path: {value: /lost}}]
    backendRefs: [{name: old, port: 8080}, {name: nobody, port: 8080}]
  - matches: [{path: {value: /nowhere}}]
    backendRefs: [{name: old, port: 8080, weight: 0}]
";

#[tokio::test(flavor = "multi_thread")]
async fn an_http_route_splits_the_requests_of_a_service_and_loses_the_share_of_what_is_not_there() {
    let mesh = Mesh::start(BINARY).await;
    let catalog = mesh.workload(&service("catalog", 11)).await;
    let old = mesh.workload(&service("old", 12)).await;
    let new = mesh.workload(&service("new", 13)).await;
    let web = mesh.workload(&web(&["catalog:8080"])).await;
    for (app, name) in [(catalog.app, "catalog"), (old.app, "old"), (new.app, "new")] {
        echo(app, name).await;
    }
    let entry = web.outbound[0];
    assert_eq!(answers(entry, "/", 1).await, BTreeMap::from([("catalog".to_owned(), 1)]));
    let told = apply(&mesh, SPLIT).await;
    assert!(told.contains("warning OUT0109") && told.contains("no service nobody.shop"), "{told}");
    let get_yaml = ["get", "httproute", "catalog", "-n", "shop", "-o", "yaml"];
    let shown = run(&mesh, &get_yaml).await;
    for line in [
        "type: \"ResolvedRefs\"\n",
        "reason: \"BackendNotFound\"\n",
        "reason: \"Accepted\"\n",
        "backendRefs: [{name: old",
    ] {
        assert!(shown.contains(line), "no {line:?} in {shown}");
    }
    // What is shown is taken back.
    assert!(apply(&mesh, &shown).await.contains("HTTPRoute shop/catalog version 2"));

    // 300 requests, 10 %: below 6 or above 66 once in a billion runs (Chernoff).
    let found = answers(entry, "/split/x", 300).await;
    let (old, new) = (found.get("old").copied().unwrap_or(0), found.get("new").copied().unwrap_or(0));
    assert!(old + new == 300 && (6..=66).contains(&new), "{found:?}");
    // The backend that does not exist keeps its half.
    let found = answers(entry, "/lost", 100).await;
    let (old, lost) = (found.get("old").copied().unwrap_or(0), found.get("500").copied().unwrap_or(0));
    assert!(old + lost == 100 && (18..=82).contains(&lost), "{found:?}");
    assert_eq!(answers(entry, "/nowhere", 3).await, BTreeMap::from([("500".to_owned(), 3)]));
    // A service that has a route has only the route's traffic.
    assert_eq!(answers(entry, "/splitted", 3).await, BTreeMap::from([("404".to_owned(), 3)]));

    // A backend that comes is a backend at once.
    let nobody = mesh.workload(&service("nobody", 14)).await;
    echo(nobody.app, "nobody").await;
    outrigger_tests::wait::eventually("the new backend", || async {
        let found = answers(entry, "/lost", 20).await;
        if found.contains_key("nobody") && !found.contains_key("500") {
            Ok(())
        } else {
            Err(format!("{found:?}"))
        }
    })
    .await;
    let shown = run(&mesh, &get_yaml).await;
    assert!(!shown.contains("BackendNotFound"), "{shown}");
    run(&mesh, &["delete", "httproutes", "catalog", "-n", "shop", "--wait"]).await;
    assert_eq!(answers(entry, "/splitted", 3).await, BTreeMap::from([("catalog".to_owned(), 3)]));
}

const ASKED: &str = "apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: catalog, namespace: shop}
spec:
  parentRefs: [{group: '', kind: Service, name: catalog}]
  rules:
  - matches: [{path: {value: /asked}}]
    filters:
    - type: ExternalAuth
      externalAuth:
        protocol: HTTP
        backendRef: {name: guard, port: 8080}
        http: {path: /check, allowedHeaders: [x-token], allowedResponseHeaders: [x-user]}
        forwardBody: {maxSize: 8}
    backendRefs: [{name: catalog, port: 8080}]
  - backendRefs: [{name: catalog, port: 8080}]
";

#[tokio::test(flavor = "multi_thread")]
async fn a_service_is_asked_about_the_requests_of_a_rule_and_obeyed() {
    let mesh = Mesh::start(BINARY).await;
    let catalog = mesh.workload(&service("catalog", 11)).await;
    let guard = mesh.workload(&service("guard", 12)).await;
    let web = mesh.workload(&web(&["catalog:8080"])).await;
    echo(catalog.app, "catalog").await;
    let questions = recorder_on(TcpListener::bind(guard.app).await.unwrap(), str::to_owned, |question| {
        match question.split(' ').nth(1).unwrap_or_default() {
            path if path.contains("/allow") => {
                Some("200 OK\r\nx-user: ann\r\nx-none: n\r\ncontent-length: 0\r\n\r\n")
            }
            _ => Some("401 Unauthorized\r\nx-why: no\r\ncontent-length: 4\r\n\r\nwho?"),
        }
    });
    apply(&mesh, ASKED).await;
    let get = async |request: &str| -> String {
        ask(web.outbound[0], request).await.unwrap().expect("an answer").to_lowercase()
    };
    let taken = || std::mem::take(&mut *questions.lock().unwrap());
    assert!(get("GET /open").await.starts_with("http/1.1 200"));
    assert_eq!(taken(), Vec::<String>::new(), "nobody is asked about the other rule");

    let post = "POST /asked/allow\nx-token: t\nx-other: o\nx-user: forged\nContent-Length: 8\n\n01234567";
    let answer = get(post).await;
    assert!(answer.starts_with("http/1.1 200") && answer.contains("\r\nx-user: ann\r\n"), "{answer}");
    assert!(!answer.contains("forged") && !answer.contains("x-none"), "{answer}");
    let asked = taken();
    let question = asked[0].to_lowercase();
    assert!(asked.len() == 1 && question.starts_with("post /check/asked/allow http/1.1"), "{asked:?}");
    assert!(question.contains("x-token: t") && !question.contains("x-other"), "{question}");
    assert!(question.ends_with("\r\n\r\n01234567"), "{question}");

    let long = post.replace("Length: 8", "Length: 9") + "8";
    assert!(get(&long).await.starts_with("http/1.1 413"), "more than goes along");
    let answer = get("GET /asked/no").await;
    assert!(answer.starts_with("http/1.1 401") && answer.ends_with("\r\n\r\nwho?"), "{answer}");
    assert_eq!(taken().len(), 1, "only about the last");
    let none = ASKED.replace("name: guard", "name: nobody");
    let told = apply(&mesh, &none).await;
    assert!(told.contains("no service nobody.shop"), "{told}");
    assert!(get("GET /asked/allow").await.starts_with("http/1.1 500"));
    assert!(get("GET /open").await.starts_with("http/1.1 200"));
}
