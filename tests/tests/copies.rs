//! Other origins and mirrors by rule, from `apply` to two sidecars: a preflight is answered by the caller's side, and copies arrive where
//! the rule says, on a version of the same service too.

use outrigger_tests::app::{echo, exchange, get};
use outrigger_tests::mesh::Mesh;
use outrigger_tests::wait::eventually;

use crate::BINARY;
use crate::thin_thread::{STRICT, catalog, web};

const RULES: &str = "apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: catalog, namespace: shop}
spec:
  host: catalog
  subsets: [{name: v1, labels: {version: v1}}, {name: v2, labels: {version: v2}}]
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: catalog, namespace: shop}
spec:
  hosts: [catalog]
  http:
  - corsPolicy:
      allowOrigins: [{exact: 'https://a.test'}]
      allowMethods: [GET, PUT]
      maxAge: 1h
      unmatchedPreflights: IGNORE
    mirror: {host: catalog, subset: v2}
    route: [{destination: {host: catalog, subset: v1}}]
";

#[tokio::test(flavor = "multi_thread")]
async fn preflights_are_answered_and_copies_reach_the_other_version() {
    let mesh = Mesh::start(BINARY).await;
    let (one, two) = (mesh.workload(&catalog("v1", 11)).await, mesh.workload(&catalog("v2", 12)).await);
    let web = mesh.workload(&web(&["catalog:8080"])).await;
    echo(one.app, "catalog-v1").await;
    echo(two.app, "catalog-v2").await;
    mesh.apply(STRICT).await;
    mesh.apply(RULES).await;

    let preflight = |origin: &str| {
        format!(
            "OPTIONS /item HTTP/1.1\r\nHost: catalog\r\nOrigin: {origin}\r\nAccess-Control-Request-Method: PUT\r\nConnection: close\r\n\r\n"
        )
    };
    let (status, text) = exchange(web.outbound[0], &preflight("https://a.test")).await.unwrap();
    let text = text.to_ascii_lowercase();
    assert_eq!(status, 200, "{text}");
    for line in [
        "access-control-allow-origin: https://a.test\r\n",
        "access-control-allow-methods: get,put\r\n",
        "access-control-max-age: 3600\r\n",
    ] {
        assert!(text.contains(line), "no {line:?}: {text}");
    }
    assert!(!text.contains("x-app-name"), "the service was not asked: {text}");
    let (_, text) = exchange(web.outbound[0], &preflight("https://b.test")).await.unwrap();
    let text = text.to_ascii_lowercase();
    assert!(!text.contains("access-control-allow-origin") && !text.contains("x-app-name"), "{text}");

    let (status, text) = get(web.outbound[0], "/mirrored", "Origin: https://a.test\r\n").await.unwrap();
    assert_eq!(status, 200, "{text}");
    assert!(text.contains("X-App-Name: catalog-v1\r\n"), "the copy's answer is nobody's: {text}");
    assert!(text.to_ascii_lowercase().contains("access-control-allow-origin: https://a.test\r\n"), "{text}");
    eventually("the copy in the log of catalog-v2", || async {
        let log = std::fs::read_to_string(mesh.path("catalog-v2.access")).unwrap_or_default();
        let copy =
            log.lines().any(|line| line.contains("GET /mirrored") && line.contains("\"localhost-shadow\""));
        if copy { Ok(()) } else { Err(log) }
    })
    .await;
}
