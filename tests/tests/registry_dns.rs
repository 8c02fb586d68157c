//! DNS as a registry: what a name server says is called through the mesh, and one that is away or loses its names takes nothing away.

use std::net::SocketAddr;
use std::sync::atomic::Ordering::SeqCst;

use outrigger_control::api::types::Condition;
use outrigger_tests::app::echo;
use outrigger_tests::mesh::{Mesh, PORT, free_net};
use outrigger_tests::names::NameServer;
use serde_json::json;

use crate::BINARY;
use crate::registries::{answer, row, under_load, until};
use crate::thin_thread::web;

#[tokio::test(flavor = "multi_thread")]
async fn what_dns_says_is_called_and_what_it_loses_serves_on() {
    let net = free_net();
    let at = SocketAddr::from(([127, net[0], net[1], 5], 5353));
    let server = NameServer::start(at).await;
    let service = |name: &str| json!({ "service": name, "namespace": "shop", "name": format!("{name}.example"), "port": PORT, "protocol": "http" });
    let services = [service("catalog"), service("stock")];
    let rows =
        json!({ "registries": [{ "name": "names", "dns": { "servers": [at], "services": services } }] });
    let apps = |host: u8| SocketAddr::from(([127, net[0], net[1], host], PORT));
    for (host, name) in [(20, "one"), (21, "two"), (22, "stock")] {
        echo(apps(host), name).await;
    }
    server.has("catalog.example", &[apps(20).ip(), apps(21).ip()]);
    server.has("stock.example", &[apps(22).ip()]);
    let mesh = Mesh::start_with(BINARY, rows).await;
    let web = mesh.workload(&web(&["catalog:8080", "stock:8080"])).await;
    answer(web.outbound[0], "X-App-Name: one\r\n").await;
    answer(web.outbound[0], "X-App-Name: two\r\n").await;
    answer(web.outbound[1], "X-App-Name: stock\r\n").await;

    // One leaves with the time of its answer; then a name is lost, fails, and the server is killed: under load.
    server.has("catalog.example", &[apps(21).ip()]);
    until(&mesh, "names", "one has left", |row| row.instances == 2).await;
    let (stop, failed, load) = under_load(web.outbound.clone());
    server.lacks("stock.example");
    until(&mesh, "names", "a name that is lost is told", |row| {
        row.state == Condition::Degraded && row.instances == 2
    })
    .await;
    server.fails("stock.example");
    let told = async || mesh.client.status().await.unwrap().problems;
    outrigger_tests::wait::eventually("a name that fails is told", || async {
        let told = told().await;
        if told.iter().any(|p| p.to_string().contains("no nameserver answers")) {
            Ok(())
        } else {
            Err(format!("{told:?}"))
        }
    })
    .await;
    drop(server);
    until(&mesh, "names", "the outage is told", |row| row.state == Condition::Away && row.instances == 2)
        .await;
    assert!(row(&mesh, "names").await.last_error.is_some());
    let server = NameServer::start(at).await;
    server.has("catalog.example", &[apps(20).ip(), apps(21).ip()]);
    server.has("stock.example", &[apps(22).ip()]);
    until(&mesh, "names", "it is whole again", |row| row.state == Condition::Connected && row.instances == 3)
        .await;
    answer(web.outbound[0], "X-App-Name: one\r\n").await;
    stop.store(true, SeqCst);
    assert!(load.await.unwrap() > 50);
    assert_eq!(failed.load(SeqCst), 0);
}
