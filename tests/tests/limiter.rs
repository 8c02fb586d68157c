//! Rate limits that a service keeps for all instances: Envoy's own, with its Redis, asked by real sidecars through the mesh.

use std::net::SocketAddr;
use std::process::Command;

use outrigger_control::instance::Protocol;
use outrigger_tests::app::{echo, get};
use outrigger_tests::mesh::{Mesh, Process, Sidecar, Spec};
use outrigger_tests::require;
use outrigger_tests::wait::eventually;
use serde_json::json;
use tokio::net::TcpStream;

use crate::BINARY;
use crate::thin_thread::{STRICT, catalog, web};

const LIMITS: &str = "domain: mesh
descriptors:
- {key: client, value: bob, rate_limit: {unit: day, requests_per_unit: 4}}
- {key: client, rate_limit: {unit: day, requests_per_unit: 1000}}
- key: caller
  value: spiffe://cluster.local/ns/shop/sa/web
  descriptors:
  - {key: path, value: /report, rate_limit: {unit: day, requests_per_unit: 2}}
";

const RULES: &str = "apiVersion: outrigger.io/v1
kind: TrafficRules
metadata: {name: catalog, namespace: shop}
spec:
  service: catalog
  loadBalancing: {policy: roundRobin}
  rateLimit:
  - {name: clients, service: SERVICE, descriptor: {header: x-client, key: client}}
  - {name: reports, service: SERVICE, descriptor: [caller, path], match: {path: {prefix: /report}}}
";

/// Envoy's rate limit service and its Redis; the service stands where the application of a workload does.
struct Limiter {
    _redis: Process,
    service: Process,
}

impl Limiter {
    async fn start(mesh: &Mesh, at: SocketAddr) -> Option<Self> {
        let (redis, service) = (require::tool("redis-server")?, require::tool("ratelimit")?);
        let own = mesh.path("limiter");
        std::fs::create_dir_all(own.join("limits/config")).unwrap();
        std::fs::write(own.join("limits/config/mesh.yaml"), LIMITS).unwrap();
        let (ip, store) = (at.ip().to_string(), SocketAddr::new(at.ip(), 6379));
        let mut command = Command::new(redis);
        command.args([
            "--bind",
            &ip,
            "--port",
            "6379",
            "--save",
            "",
            "--appendonly",
            "no",
            "--protected-mode",
            "no",
        ]);
        command.current_dir(&own);
        let redis = Process::spawn(command, own.join("redis.log"));
        listens(store, &redis).await;
        let mut command = Command::new(service);
        command.env_clear().current_dir(&own);
        let root = own.display().to_string();
        for (name, value) in [
            ("USE_STATSD", "false"),
            ("BACKEND_TYPE", "redis"),
            ("REDIS_SOCKET_TYPE", "tcp"),
            ("REDIS_URL", &store.to_string()),
            ("RUNTIME_ROOT", &root),
            ("RUNTIME_SUBDIRECTORY", "limits"),
            ("RUNTIME_WATCH_ROOT", "false"),
            ("HOST", &ip),
            ("GRPC_HOST", &ip),
            ("DEBUG_HOST", &ip),
            ("GRPC_PORT", &at.port().to_string()),
            ("PORT", "8082"),
            ("DEBUG_PORT", "8083"),
            ("LOG_LEVEL", "info"),
        ] {
            command.env(name, value);
        }
        let service = Process::spawn(command, own.join("service.log"));
        listens(at, &service).await;
        Some(Self { _redis: redis, service })
    }
}

async fn listens(at: SocketAddr, process: &Process) {
    eventually(&format!("{at} listens"), || async {
        TcpStream::connect(at).await.map(drop).map_err(|error| format!("{error}: {}", process.log()))
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_limit_of_a_service_holds_for_all_instances_together() {
    if require::tool("redis-server").is_none() || require::tool("ratelimit").is_none() {
        return;
    }
    let provider = |name: &str, more: serde_json::Value| {
        let mut service = json!({
            "service": "shop/limiter.shop.svc.cluster.local", "port": 8080, "domain": "mesh", "timeout": "5s",
        });
        service.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        json!({ "name": name, "envoyRateLimitGrpc": service })
    };
    let providers =
        [provider("open", json!({})), provider("closed", json!({ "failOpen": false, "statusOnError": 503 }))];
    let mesh = Mesh::start_with(BINARY, json!({ "extensionProviders": providers })).await;
    let limiter = Spec { service: "limiter", version: "v1", host: 20, protocol: Protocol::Grpc, calls: &[] };
    let limiter = mesh.workload(&limiter).await;
    let Some(service) = Limiter::start(&mesh, limiter.app).await else { return };
    let (v1, v2) = (mesh.workload(&catalog("v1", 11)).await, mesh.workload(&catalog("v2", 12)).await);
    echo(v1.app, "v1").await;
    echo(v2.app, "v2").await;
    let web = mesh.workload(&web(&["catalog:8080"])).await;
    mesh.apply(STRICT).await;
    mesh.apply(&RULES.replace("SERVICE", "open")).await;
    let entry = web.outbound[0];
    let ask =
        |path: &'static str, headers: &'static str| async move { get(entry, path, headers).await.unwrap() };

    // Four of bob's, whoever of the two has them; others have room, and who has no such header is not asked about.
    let mut answered = Vec::new();
    for _ in 0..4 {
        let (status, text) = ask("/", "X-Client: bob\r\n").await;
        assert_eq!(status, 200, "{text}");
        answered.push(text.contains("X-App-Name: v1\r\n"));
    }
    assert!(
        answered.contains(&true) && answered.contains(&false),
        "both instances have answered: {answered:?}"
    );
    for _ in 0..3 {
        let (status, text) = ask("/", "X-Client: bob\r\n").await;
        assert_eq!(status, 429, "{text}");
        let text = text.to_lowercase();
        for part in [
            "retry-after: ",
            "x-ratelimit-limit: 4",
            "x-envoy-ratelimited: true",
            "limit 'clients'",
            "request_rate_limited",
        ] {
            assert!(text.contains(part), "no {part}: {text}");
        }
    }
    assert_eq!(ask("/", "X-Client: ann\r\n").await.0, 200);
    assert_eq!(ask("/", "").await.0, 200);
    // Of two entries both count: the proved caller, and the path without its query.
    let reports = [ask("/report?a", "").await.0, ask("/report?b", "").await.0, ask("/report", "").await.0];
    assert_eq!((reports, ask("/report/other", "").await.0), ([200, 200, 429], 200));

    counted(&mesh, [&v1, &v2], &limiter).await;

    // Nobody answers: requests pass, or do not, as the provider has it.
    service.service.kill();
    assert_eq!(ask("/", "X-Client: bob\r\n").await.0, 200);
    mesh.apply(&RULES.replace("SERVICE", "closed")).await;
    let (status, text) = ask("/", "X-Client: bob\r\n").await;
    assert!(status == 503 && text.contains("reason=rate_limit_error"), "{text}");
    assert_eq!(ask("/", "").await.0, 200, "nobody is asked about it");
    // What asks nobody is told, and limits nothing.
    let body = mesh.try_apply(&RULES.replace("SERVICE", "opn")).await.unwrap();
    let told: Vec<String> = body.findings.iter().map(ToString::to_string).collect();
    assert!(told.iter().any(|one| one.contains("OUT0111") && one.contains("limits nothing")), "{told:?}");
    assert_eq!(ask("/", "X-Client: bob\r\n").await.0, 200);
}

/// In metrics, in the access log, and at the service's own sidecar.
async fn counted(mesh: &Mesh, [v1, v2]: [&Sidecar; 2], limiter: &Sidecar) {
    let (one, other) = (v1.page("/stats/prometheus").await, v2.page("/stats/prometheus").await);
    let sum = |series: &str| {
        let of =
            |page: &str| page.lines().find_map(|line| line.strip_prefix(series)?.trim().parse::<u32>().ok());
        of(&one).unwrap_or(0) + of(&other).unwrap_or(0)
    };
    assert_eq!(
        sum("outrigger_rate_limited_total{rule=\"TrafficRules shop/catalog\",limit=\"clients\"}"),
        3,
        "{one}"
    );
    let asked = "{envoy_cluster_name=\"outbound|8080||limiter.shop.svc.cluster.local\"}";
    assert_eq!(sum(&format!("envoy_cluster_ratelimit_over_limit{asked}")), 4, "{one}");
    assert!(sum(&format!("envoy_cluster_ratelimit_ok{asked}")) >= 7, "{one}");
    let log = std::fs::read_to_string(mesh.path("catalog-v1.access")).unwrap()
        + &std::fs::read_to_string(mesh.path("catalog-v2.access")).unwrap();
    assert!(log.contains(" 429 RL request_rate_limited "), "{log}");
    // The questions are requests of the instances, by mTLS.
    let questions = limiter.page("/stats/prometheus").await;
    let caller = "source_principal=\"spiffe://cluster.local/ns/shop/sa/catalog\"";
    assert!(questions.contains(caller) && questions.contains("mutual_tls"), "{questions}");
}
