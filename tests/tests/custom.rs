//! AuthorizationPolicies of action CUSTOM, through real sidecars and the real control plane: who is asked about what, what becomes of
//! the answers, and what holds where nobody can be asked.

use std::time::Duration;

use outrigger_control::instance::Protocol;
use outrigger_tests::app::echo;
use outrigger_tests::mesh::{Mesh, Sidecar, Spec};
use outrigger_tests::recorder::{Received, ask, recorder_on};
use outrigger_tests::wait::eventually;
use serde_json::json;
use tokio::net::TcpListener;

use crate::BINARY;
use crate::ext_authz::grpc_service_on;
use crate::thin_thread::{STRICT, catalog, web};

fn settings() -> serde_json::Value {
    let away = |more: serde_json::Value| {
        let mut away = json!({ "service": "away.shop.svc.cluster.local", "port": 8080, "timeout": "20s" });
        away.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        away
    };
    json!({ "extensionProviders": [
        { "name": "http", "envoyExtAuthzHttp": {
            "service": "shop/guard.shop.svc.cluster.local", "port": 8080, "timeout": "20s",
            "pathPrefix": "/check", "includeRequestHeadersInCheck": ["x-token"],
            "includeAdditionalHeadersInCheck": { "x-key": "k" },
            "includeRequestBodyInCheck": { "maxRequestBytes": 4, "allowPartialMessage": true },
            "headersToUpstreamOnAllow": ["x-user"], "headersToDownstreamOnDeny": ["x-why"],
            "headersToDownstreamOnAllow": ["x-resp"] } },
        { "name": "grpc", "envoyExtAuthzGrpc": {
            "service": "rpc-guard.shop.svc.cluster.local", "port": 8080, "timeout": "20s" } },
        { "name": "closed", "envoyExtAuthzHttp": away(json!({ "statusOnError": "503" })) },
        { "name": "open", "envoyExtAuthzHttp": away(json!({ "failOpen": true })) },
    ] })
}

fn policy(provider: &str, rules: &str) -> String {
    format!(
        "apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {{name: ask, namespace: shop}}
spec:
  selector: {{matchLabels: {{app: catalog}}}}
  action: CUSTOM
  provider: {{name: {provider}}}
  rules: {rules}
"
    )
}

const ADMIN: &str = "[{to: [{operation: {paths: ['/admin*']}}]}]";

/// catalog behind its sidecar, web that calls it, and the services that can be asked; `away` is registered and nobody is there.
struct Shop {
    mesh: Mesh,
    web: Sidecar,
    by_http: Received,
    by_grpc: Received,
    _others: [Sidecar; 3],
}

impl Shop {
    async fn open() -> Self {
        let mesh = Mesh::start_with(BINARY, settings()).await;
        let guard = |service, host, protocol| Spec { service, version: "v1", host, protocol, calls: &[] };
        mesh.register(&guard("away", 14, Protocol::Http)).await;
        let catalog = mesh.workload(&catalog("v1", 11)).await;
        let http = mesh.workload(&guard("guard", 12, Protocol::Http)).await;
        let grpc = mesh.workload(&guard("rpc-guard", 13, Protocol::Grpc)).await;
        let web = mesh.workload(&web(&["catalog:8080"])).await;
        echo(catalog.app, "catalog-v1").await;
        let listener = TcpListener::bind(http.app).await.unwrap();
        let by_http = recorder_on(listener, str::to_owned, |question| {
            match question.split(' ').nth(1).unwrap_or_default() {
                path if path.contains("/allow") => {
                    Some("200 OK\r\nx-user: ann\r\nx-resp: r\r\nx-none: n\r\ncontent-length: 0\r\n\r\n")
                }
                _ => Some("401 Unauthorized\r\nx-why: no\r\nx-none: n\r\ncontent-length: 4\r\n\r\nwho?"),
            }
        });
        let by_grpc = grpc_service_on(TcpListener::bind(grpc.app).await.unwrap());
        mesh.apply(STRICT).await;
        Self { mesh, web, by_http, by_grpc, _others: [catalog, http, grpc] }
    }

    async fn get(&self, request: &str) -> String {
        let answer = tokio::time::timeout(Duration::from_secs(60), ask(self.web.outbound[0], request)).await;
        answer.expect("an answer in time").unwrap().expect("an answer").to_lowercase()
    }
}

fn taken(questions: &Received) -> Vec<String> {
    std::mem::take(&mut questions.lock().unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_provider_is_asked_about_what_a_policy_matches_and_obeyed() {
    let shop = Shop::open().await;
    shop.mesh.apply(&policy("http", ADMIN)).await;
    let answer = shop.get("GET /open/allow").await;
    assert!(answer.starts_with("http/1.1 200") && answer.contains("get /open/allow"), "{answer}");
    assert_eq!(taken(&shop.by_http), Vec::<String>::new(), "nobody is asked about what no rule matches");

    let request =
        "POST /admin/allow?a=b\nx-token: t\nx-other: o\nx-user: forged\nContent-Length: 8\n\n01234567";
    let answer = shop.get(request).await;
    assert!(answer.starts_with("http/1.1 200") && answer.contains("\r\nx-user: ann\r\n"), "{answer}");
    assert!(!answer.contains("forged") && answer.contains("\r\ncontent-length: 8\r\n"), "{answer}");
    let head = answer.split("\r\n\r\n").next().unwrap();
    assert!(head.contains("x-resp: r") && !head.contains("x-none"), "{head}");
    let asked = taken(&shop.by_http);
    let question = asked[0].to_lowercase();
    assert!(asked.len() == 1 && question.starts_with("post /check/admin/allow?a=b http/1.1"), "{asked:?}");
    assert!(question.contains("x-token: t") && question.contains("x-key: k"), "{question}");
    assert!(!question.contains("x-other") && question.ends_with("\r\n\r\n0123"), "{question}");

    let answer = shop.get("GET /admin/no").await;
    assert!(answer.starts_with("http/1.1 401") && answer.ends_with("\r\n\r\nwho?"), "{answer}");
    assert!(answer.contains("x-why: no") && !answer.contains("x-none"), "{answer}");
    // It is the path in its one form that is judged.
    assert!(shop.get("GET //x/../admin/no").await.starts_with("http/1.1 401"));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_asked_about_may_still_be_denied_here() {
    let shop = Shop::open().await;
    let deny = policy("http", "[{to: [{operation: {paths: ['/admin/allow/never']}}]}]")
        .replace("name: ask", "name: never")
        .replace("  action: CUSTOM\n  provider: {name: http}\n", "  action: DENY\n");
    shop.mesh.apply(&format!("{}---\n{deny}", policy("http", ADMIN))).await;
    let answer = shop.get("GET /admin/allow/never").await;
    assert!(answer.starts_with("http/1.1 403") && answer.contains("policy[never]"), "{answer}");
    assert_eq!(taken(&shop.by_http).len(), 1, "CUSTOM goes first");
    let answer = shop.get("GET /admin/no").await;
    assert!(answer.starts_with("http/1.1 401"), "{answer}");
    assert!(shop.get("GET /admin/allow").await.starts_with("http/1.1 200"));
}

#[tokio::test(flavor = "multi_thread")]
async fn where_nobody_can_be_asked_the_provider_says_what_holds() {
    let shop = Shop::open().await;
    shop.mesh.apply(&policy("closed", ADMIN)).await;
    let answer = shop.get("GET /admin/allow").await;
    assert!(
        answer.starts_with("http/1.1 503") && answer.contains("authorizationpolicy shop/ask"),
        "{answer}"
    );
    assert!(shop.get("GET /open").await.starts_with("http/1.1 200"));

    shop.mesh.apply(&policy("open", ADMIN)).await;
    let answer = shop.get("GET /admin/allow").await;
    assert!(answer.starts_with("http/1.1 200") && answer.contains("get /admin/allow"), "{answer}");

    let body = shop.mesh.apply(&policy("htpp", ADMIN)).await;
    let told = body.findings.iter().map(ToString::to_string).collect::<Vec<_>>();
    assert!(
        told.iter().any(|line| line.contains("OUT0111") && line.ends_with("Did you mean \"http\"?")),
        "{told:?}"
    );
    let answer = shop.get("GET /admin/allow").await;
    assert!(
        answer.starts_with("http/1.1 403") && answer.contains("provider[htpp]-cannot-be-asked"),
        "{answer}"
    );
    assert!(shop.get("GET /open").await.starts_with("http/1.1 200"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_grpc_provider_is_asked_through_its_own_sidecar() {
    let shop = Shop::open().await;
    shop.mesh.apply(&policy("grpc", "[{to: [{operation: {methods: [GET], notPaths: ['/open*']}}]}]")).await;
    let answer = shop.get("GET /allow/a\nx-user: forged\nx-secret: s").await;
    assert!(answer.starts_with("http/1.1 200") && answer.contains("\r\nx-user: ann\r\n"), "{answer}");
    assert!(!answer.contains("x-secret") && !answer.contains("forged"), "{answer}");
    let asked = taken(&shop.by_grpc);
    assert!(asked.len() == 1 && asked[0].starts_with("GET /allow/a"), "{asked:?}");
    let answer = shop.get("GET /deny").await;
    assert!(answer.starts_with("http/1.1 401") && answer.ends_with("\r\n\r\nwho?"), "{answer}");
    assert!(answer.contains("x-why: no"), "{answer}");
    assert!(shop.get("GET /error").await.starts_with("http/1.1 403"), "a service that fails permits nothing");
    taken(&shop.by_grpc);
    assert!(shop.get("POST /deny\nContent-Length: 0").await.starts_with("http/1.1 200"));
    assert!(shop.get("GET /open/deny").await.starts_with("http/1.1 200"));
    assert_eq!(taken(&shop.by_grpc), Vec::<String>::new());

    shop.mesh.client.delete("AuthorizationPolicy", "shop", "ask", &Default::default()).await.unwrap();
    eventually("nobody is asked any more", || async {
        let answer = shop.get("GET /deny").await;
        if answer.starts_with("http/1.1 200") { Ok(()) } else { Err(answer) }
    })
    .await;
}
