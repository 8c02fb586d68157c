//! Consistent hashing from the rule to the instance, and the caller's name on the other side.

use std::collections::BTreeMap;

use outrigger_tests::app::{echo, get};
use outrigger_tests::mesh::Mesh;
use outrigger_tests::wait::eventually;

use crate::BINARY;
use crate::thin_thread::{catalog, web};

const RULE: &str = "apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: catalog, namespace: shop}
spec:
  host: catalog
  trafficPolicy: {loadBalancer: {consistentHash: {httpHeaderName: x-user}}}
";

fn app_of(text: &str) -> String {
    let name = text.lines().find_map(|line| line.strip_prefix("X-App-Name: "));
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
