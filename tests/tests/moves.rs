//! A service that moves from one registry to another, a real Consul and a real etcd, both watched: without a failed request.

use std::net::SocketAddr;
use std::sync::atomic::Ordering::SeqCst;

use outrigger_control::api::types::{ApplyQuery, Condition};
use outrigger_tests::app::{echo, get};
use outrigger_tests::mesh::{Mesh, PORT, free_net};
use outrigger_tests::require;
use outrigger_tests::wait::eventually;
use serde_json::{Value, json};

use crate::BINARY;
use crate::consul::{self, Consul};
use crate::etcd::{Etcd, plain};
use crate::registries::{answer, under_load, until};
use crate::thin_thread::web;

/// Both rows; instances of each are told apart by a label.
fn rows(consul: &Consul, etcd: &Etcd) -> Value {
    let mut rows = Vec::new();
    for (from, settings) in [("consul", consul::settings(consul)), ("etcd", etcd.settings(&json!({})))] {
        let mut row = settings["registries"][0].clone();
        row["labels"] = json!({ "from": from });
        rows.push(row);
    }
    json!({ "registries": rows })
}

/// So many of a hundred go to the new registry.
fn shares(new: u32) -> String {
    let old = 100 - new;
    format!(
        "apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {{name: stock, namespace: shop}}
spec:
  host: stock
  subsets:
  - {{name: old, labels: {{from: consul}}}}
  - {{name: new, labels: {{from: etcd}}}}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {{name: stock, namespace: shop}}
spec:
  hosts: [stock]
  http:
  - route:
    - {{destination: {{host: stock, subset: old}}, weight: {old}}}
    - {{destination: {{host: stock, subset: new}}, weight: {new}}}
"
    )
}

/// How many of 200 requests the new ones answer.
async fn asked(entry: SocketAddr) -> u32 {
    let mut new = 0;
    for _ in 0..200 {
        let (status, text) = get(entry, "/", "").await.unwrap();
        assert_eq!(status, 200, "{text}");
        new += u32::from(text.contains("X-App-Name: new\r\n"));
    }
    new
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_moves_from_consul_to_etcd_without_a_failed_request() {
    let (Some(consul), Some(etcd)) = (require::tool("consul"), require::tool("etcd")) else { return };
    let (net, there) = (free_net(), free_net());
    let (mut consul, etcd) = tokio::join!(
        Consul::start(&consul, SocketAddr::from(([127, net[0], net[1], 5], 8500))),
        Etcd::start(&etcd, there)
    );
    let mesh = Mesh::start_with(BINARY, rows(&consul, &etcd)).await;
    let at = |host| mesh.address(host, PORT);
    for (host, name) in [(20, "old"), (21, "old"), (22, "new"), (23, "new"), (24, "stays"), (25, "catalog")] {
        echo(at(host), name).await;
    }
    for (id, host) in [("s1", 20), ("s2", 21), ("s3", 24)] {
        consul.register(id, "stock", at(host)).await;
    }
    consul.register("c1", "catalog", at(25)).await;
    until(&mesh, "dc1", "Consul has all", |row| row.instances == 4).await;
    let web = mesh.workload(&web(&["stock:8080"])).await;
    let entry = web.outbound[0];
    answer(entry, "X-App-Name: old\r\n").await;
    let (stop, failed, load) = under_load(web.outbound.clone());

    // While both are watched the old ones have all; then less and less. Whose it is is told.
    mesh.apply(&shares(0)).await;
    for (id, host) in [("n1", 22), ("n2", 23), ("n3", 24)] {
        etcd.put(&format!("shop/stock/{id}"), &plain(at(host)), "0").await;
    }
    until(&mesh, "kv", "etcd has all", |row| row.instances == 3).await;
    let services = mesh.client.services().await.unwrap();
    let stock = services.iter().find(|service| service.name == "stock").unwrap();
    assert_eq!(stock.registries.iter().map(String::as_str).collect::<Vec<_>>(), ["dc1", "kv"]);
    // Two of three of the new are asked by name, the third is in both: 200 requests at 30 % have 40 of them, at 100 % 133.
    for (new, fits) in [(0, 0..=0), (30, 15..=75), (100, 100..=165)] {
        mesh.apply(&shares(new)).await;
        let got = asked(entry).await;
        assert!(fits.contains(&got), "{got} of 200 at {new} %");
    }
    // The workload that is in both is one endpoint of the whole service.
    let waiting = ApplyQuery { wait: true, timeout: Some(120.0), ..ApplyQuery::default() };
    for kind in ["VirtualService", "DestinationRule"] {
        mesh.client.delete(kind, "shop", "stock", &waiting).await.unwrap();
    }
    eventually("five endpoints", || async {
        let page = web.page("/clusters").await;
        let body: Value = serde_json::from_str(page.split_once("\r\n\r\n").unwrap().1).unwrap();
        let text = body.to_string();
        let of = |host| text.matches(&format!("\"{}\"", at(host))).count();
        let all: Vec<usize> = (20..=24).map(of).collect();
        if all == [1; 5] { Ok(()) } else { Err(format!("{all:?}: {text}")) }
    })
    .await;

    // The old registry lets go of it, of the workload that stays as well, and ends.
    for id in ["s1", "s2", "s3"] {
        consul.put(&format!("/v1/agent/service/deregister/{id}"), Value::Null).await;
    }
    until(&mesh, "dc1", "it has gone from Consul", |row| row.instances == 1).await;
    answer(entry, "X-App-Name: stays\r\n").await;
    eventually("only the new ones answer", || async {
        let (status, text) = get(entry, "/", "").await.map_err(|error| error.to_string())?;
        if status == 200 && !text.contains("X-App-Name: old\r\n") { Ok(()) } else { Err(text) }
    })
    .await;
    consul.process.take().unwrap().kill();
    until(&mesh, "dc1", "Consul is away", |row| row.state == Condition::Away).await;
    assert!(asked(entry).await > 0);
    stop.store(true, SeqCst);
    let served = load.await.unwrap();
    assert_eq!(failed.load(SeqCst), 0, "of {served}");
    println!("{served} requests under way, none failed");
}
