//! Consistent hashing from the rule to the instance, and the caller's name on the other side.

use std::collections::BTreeMap;

use outrigger_tests::app::{echo, exchange, get};
use outrigger_tests::mesh::Mesh;
use outrigger_tests::require;
use outrigger_tests::wait::eventually;

use crate::BINARY;
use crate::foreign::start_envoy;
use crate::thin_thread::{catalog, web};

const RULE: &str = "apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: catalog, namespace: shop}
spec:
  host: catalog
  trafficPolicy: {loadBalancer: {consistentHash: {httpHeaderName: x-user}}}
";

fn app_of(text: &str) -> String {
    let lower = text.to_ascii_lowercase();
    let name = lower.lines().find_map(|line| line.strip_prefix("x-app-name: "));
    name.unwrap_or_else(|| panic!("nobody answered: {text}")).to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_user_keeps_an_instance_and_loses_it_only_with_the_instance() {
    let mesh = Mesh::start(BINARY).await;
    let mut instances = Vec::new();
    for (version, host, name) in [("v1", 11, "c1"), ("v2", 12, "c2"), ("v3", 13, "c3")] {
        let sidecar = mesh.workload(&catalog(version, host)).await;
        echo(sidecar.app, name).await;
        instances.push(sidecar);
    }
    let web = mesh.workload(&web(&["catalog:8080"])).await;
    let applied = mesh.apply(RULE).await;
    assert!(!format!("{applied:?}").contains("not implemented"), "{applied:?}");
    let mut owners = BTreeMap::new();
    for user in 0..24 {
        let header = format!("x-user: user-{user}\r\n");
        for _ in 0..3 {
            let (status, text) = get(web.outbound[0], "/", &header).await.unwrap();
            assert_eq!(status, 200, "{text}");
            let owner = app_of(&text);
            assert_eq!(*owners.entry(user).or_insert_with(|| owner.clone()), owner, "user {user} has moved");
        }
    }
    let mut apps: Vec<_> = owners.values().collect();
    apps.sort();
    apps.dedup();
    assert_eq!(apps.len(), 3, "24 users are spread over all instances: {owners:?}");

    // One instance is gone: its users share the others, and nobody else moves.
    instances[1].kill();
    let mut heirs = BTreeMap::new();
    for (user, owner) in &owners {
        for _ in 0..3 {
            let (status, text) =
                get(web.outbound[0], "/", &format!("x-user: user-{user}\r\n")).await.unwrap();
            assert_eq!(status, 200, "{text}");
            let now = app_of(&text);
            match owner.as_str() {
                "c2" => assert_eq!(*heirs.entry(*user).or_insert_with(|| now.clone()), now, "user {user}"),
                _ => assert_eq!(*owner, now, "user {user} has moved"),
            }
        }
    }
    assert!(!heirs.is_empty() && heirs.values().all(|heir| heir != "c2"), "{heirs:?}");

    // Who calls is known by its workload, not only by its account.
    let page = eventually("the callee counts the calls", || async {
        let page = instances[0].page("/stats/prometheus").await;
        match page.contains("source_workload=\"web-v1\"") {
            true => Ok(page),
            false => Err("not yet"),
        }
    })
    .await;
    assert!(page.contains("destination_service=\"catalog.shop.svc.cluster.local\""), "{page}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_real_envoy_and_our_sidecar_send_a_user_to_the_same_instance() {
    let Some(envoy) = require::tool("envoy") else { return };
    let mesh = Mesh::start(BINARY).await;
    let mut instances = Vec::new();
    for (version, host, name) in [("v1", 11, "c1"), ("v2", 12, "c2"), ("v3", 13, "c3")] {
        let sidecar = mesh.workload(&catalog(version, host)).await;
        echo(sidecar.app, name).await;
        instances.push(sidecar);
    }
    let web = mesh.workload(&web(&["catalog:8080"])).await;
    let _envoy = start_envoy(&mesh, &envoy, "DELTA_GRPC").await;
    let foreign = std::net::SocketAddr::new(mesh.address(30, 0).ip(), 8080);
    for table in ["minimumRingSize: 1024", "maglev: {tableSize: 1009}"] {
        // mTLS with every endpoint, so that this form of the cluster is shown to Envoy too.
        let rule = format!(
            "apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {{name: catalog, namespace: shop}}
spec:
  host: catalog
  trafficPolicy:
    tls: {{mode: ISTIO_MUTUAL}}
    loadBalancer: {{consistentHash: {{httpHeaderName: x-user, {table}}}}}
"
        );
        mesh.apply(&rule).await;
        let mut ours = BTreeMap::new();
        for user in 0..24 {
            let (_, text) = get(web.outbound[0], "/", &format!("x-user: user-{user}\r\n")).await.unwrap();
            ours.insert(user, app_of(&text));
        }
        // Envoy acknowledges before its workers have the cluster.
        eventually(&format!("an Envoy that agrees about {table}"), || async {
            let mut theirs = BTreeMap::new();
            for user in 0..24 {
                let request = format!(
                    "GET / HTTP/1.1\r\nHost: catalog.shop:8080\r\nx-user: user-{user}\r\nConnection: close\r\n\r\n"
                );
                match exchange(foreign, &request).await {
                    Ok((200, text)) => theirs.insert(user, app_of(&text)),
                    Ok((_, text)) => return Err(text),
                    Err(error) => return Err(error.to_string()),
                };
            }
            if theirs == ours { Ok(()) } else { Err(format!("Envoy: {theirs:?}, we: {ours:?}")) }
        })
        .await;
    }
    let (_, stats) = get(mesh.address(30, 15000), "/stats?filter=update_rejected", "").await.unwrap();
    assert!(
        stats.contains("update_rejected")
            && !stats.lines().any(|l| l.contains("rejected") && !l.ends_with(": 0")),
        "{stats}"
    );
    let status = mesh.client.status().await.unwrap();
    assert!(status.proxies.iter().all(|proxy| proxy.refused.is_empty()), "{:?}", status.proxies);
}
