//! Eureka as a registry, the real one: what registers there by its own wire is called through the mesh, what is registered here appears
//! there and goes, and an outage or a start without memory takes nothing away.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;

use outrigger_control::api::types::{Condition, RegistryBody};
use outrigger_control::instance::{Protocol, State};
use outrigger_tests::app::echo;
use outrigger_tests::mesh::{Mesh, PORT, Process, Spec, free_net};
use outrigger_tests::require;
use outrigger_tests::wait::eventually;
use serde_json::{Value, json};

use crate::BINARY;
use crate::registries::{answer, json_over_http, leaves, row, under_load, until};
use crate::thin_thread::web;

/// A Eureka, all of it in memory.
pub struct Eureka {
    aside: tempfile::TempDir,
    java: PathBuf,
    jars: PathBuf,
    pub address: SocketAddr,
    pub process: Option<Process>,
}

impl Eureka {
    pub async fn start() -> Option<Self> {
        let (java, jars) = require::java("eureka")?;
        let net = free_net();
        let address = SocketAddr::from(([127, net[0], net[1], 5], 8761));
        let aside = tempfile::tempdir().unwrap();
        let mut eureka = Self { aside, java, jars, address, process: None };
        eureka.begin().await;
        Some(eureka)
    }

    async fn begin(&mut self) {
        let mut command = Command::new(&self.java);
        command.args(["-Xmx192m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-jar"]);
        command.arg(self.jars.join("eureka.jar")).arg(format!("--server.address={}", self.address.ip()));
        self.process = Some(Process::spawn(command, self.aside.path().join("eureka.log")));
        // It starts slowly where others build: as often as that takes.
        for last in [false, false, true] {
            let asked = async {
                eventually("Eureka answers", || async {
                    match self.call("GET", "/apps", &Value::Null).await {
                        Ok((200, text)) => Ok(text),
                        other if last => Err(format!("{other:?}")),
                        _ => Err("not yet".to_owned()),
                    }
                })
                .await
            };
            let limit = Duration::from_secs(25);
            if last {
                asked.await;
            } else if tokio::time::timeout(limit, asked).await.is_ok() {
                return;
            }
        }
    }

    async fn call(&self, method: &str, path: &str, body: &Value) -> Result<(u16, String), String> {
        json_over_http(self.address, method, &format!("/eureka{path}"), body).await
    }

    pub async fn register(&self, id: &str, service: &str, address: SocketAddr, seconds: u32) {
        let app = service.to_uppercase();
        let body = json!({ "instance": {
            "instanceId": id, "app": app, "hostName": "h", "ipAddr": address.ip(), "vipAddress": service, "status": "UP",
            "port": { "$": address.port(), "@enabled": "true" }, "securePort": { "$": 443, "@enabled": "false" },
            "dataCenterInfo": { "@class": "com.netflix.appinfo.InstanceInfo$DefaultDataCenterInfo", "name": "MyOwn" },
            "leaseInfo": { "renewalIntervalInSecs": 1, "durationInSecs": seconds },
            "metadata": { "version": "v7", "weight": "300", "protocol": "http", "zone": "z1" },
        } });
        let (status, text) = self.call("POST", &format!("/apps/{app}"), &body).await.unwrap();
        assert_eq!(status, 204, "{text}");
    }

    pub fn settings(&self, more: &Value) -> Value {
        let mut eureka = json!({
            "urls": ["http://127.0.0.1:1/eureka", format!("http://{}/eureka/", self.address)], "namespace": "shop", "intervalSeconds": 1,
        });
        eureka.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        json!({ "registries": [{ "name": "spring", "eureka": eureka }] })
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_eureka_knows_is_called_and_what_it_forgets_serves_on() {
    let Some(mut eureka) = Eureka::start().await else { return };
    let mesh = Mesh::start_with(BINARY, eureka.settings(&json!({}))).await;
    let (one, two, stock) = (mesh.address(20, PORT), mesh.address(21, PORT), mesh.address(22, PORT));
    echo(one, "one").await;
    echo(two, "two").await;
    echo(stock, "stock").await;
    // Who dies: nobody renews it.
    eureka.register("c1", "catalog", one, 5).await;
    eureka.register("c2", "catalog", two, 600).await;
    eureka.register("s1", "stock", stock, 600).await;
    let web = mesh.workload(&web(&["catalog:8080", "stock:8080"])).await;
    answer(web.outbound[1], "X-App-Name: stock\r\n").await;
    answer(web.outbound[0], "X-App-Name: two\r\n").await;
    let instances = mesh.client.instances().await.unwrap();
    let c2 = instances.iter().find(|body| body.instance.id == "c2@catalog").unwrap();
    let said = (&*c2.registry, c2.instance.weight, c2.instance.version.as_deref(), &*c2.instance.namespace);
    assert_eq!(said, ("spring", 300, Some("v7"), "shop"));
    assert_eq!((&*c2.instance.zone, c2.instance.state), ("z1", State::Running));
    // The lease runs for twice its duration (as Eureka counts it), and is looked at once a second.
    leaves(&mesh, "spring", Duration::from_secs(11), |row| row.instances == 2).await;
    eureka.register("c1", "catalog", one, 600).await;
    answer(web.outbound[0], "X-App-Name: one\r\n").await;
    // An operator takes it out there, and in again.
    let state = async |wanted: State| {
        eventually(&format!("c1 is {wanted:?}"), || async {
            let all = mesh.client.instances().await.unwrap();
            let state = all.iter().find(|body| body.instance.id == "c1@catalog").unwrap().instance.state;
            if state == wanted { Ok(()) } else { Err(format!("{state:?}")) }
        })
        .await;
    };
    eureka.call("PUT", "/apps/CATALOG/c1/status?value=OUT_OF_SERVICE", &Value::Null).await.unwrap();
    state(State::Maintenance).await;
    eureka.call("DELETE", "/apps/CATALOG/c1/status?value=UP", &Value::Null).await.unwrap();
    state(State::Running).await;

    // It is killed, and comes back without anything, under load.
    let (stop, failed, load) = under_load(web.outbound.clone());
    eureka.process.take().unwrap().kill();
    until(&mesh, "spring", "the outage is told", |row| row.state == Condition::Away && row.instances == 3)
        .await;
    assert!(row(&mesh, "spring").await.last_error.unwrap().contains("Eureka at"));
    eureka.begin().await;
    let held = |row: &RegistryBody| row.state == Condition::Degraded && row.instances == 3;
    until(&mesh, "spring", "what it forgot is held", held).await;
    let told = mesh.client.status().await.unwrap().problems;
    assert!(told.iter().any(|p| p.to_string().contains("does not list what it listed before")), "{told:?}");
    eureka.register("c1", "catalog", one, 600).await;
    eureka.register("s1", "stock", stock, 600).await;
    eureka.register("c2", "catalog", two, 600).await;
    until(&mesh, "spring", "whole again", |row| row.state == Condition::Connected && row.instances == 3)
        .await;
    stop.store(true, SeqCst);
    assert!(load.await.unwrap() > 50);
    assert_eq!(failed.load(SeqCst), 0);

    // What says farewell has gone; rubbish is told, and takes nothing.
    eureka.call("DELETE", "/apps/CATALOG/c1", &Value::Null).await.unwrap();
    until(&mesh, "spring", "it has gone", |row| row.instances == 2).await;
    let nowhere = json!({ "instance": {
        "instanceId": "c9", "app": "CATALOG", "hostName": "catalog.internal", "ipAddr": "catalog.internal", "status": "UP",
        "dataCenterInfo": { "@class": "com.netflix.appinfo.InstanceInfo$DefaultDataCenterInfo", "name": "MyOwn" },
    } });
    eureka.call("POST", "/apps/CATALOG", &nowhere).await.unwrap();
    until(&mesh, "spring", "rubbish", |row| row.state == Condition::Degraded && row.instances == 2).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_registered_here_is_up_at_eureka_and_goes() {
    let Some(mut eureka) = Eureka::start().await else { return };
    let more = json!({ "register": true, "ttlSeconds": 6 });
    let mut mesh = Mesh::start_with(BINARY, eureka.settings(&more)).await;
    mesh.bootstrap = json!({ "register": { "ports": [{ "number": PORT, "protocol": "http" }], "ttl": "1h" }, "grace": "300ms" });
    let spec = Spec { service: "catalog", version: "v1", host: 11, protocol: Protocol::Http, calls: &[] };
    let catalog = mesh.sidecar(&spec).await;
    let is = async |eureka: &Eureka, wanted: Option<&str>| {
        eventually(&format!("catalog is {wanted:?} at Eureka"), || async {
            let (_, text) = eureka.call("GET", "/apps/CATALOG", &Value::Null).await?;
            let answer: Value = serde_json::from_str(&text).unwrap_or_default();
            let all = answer["application"]["instance"].as_array().cloned().unwrap_or_default();
            let id = |one: &&Value| one["instanceId"].as_str().unwrap().starts_with("catalog-v1@");
            let one = all.iter().find(id).cloned();
            let status = one.as_ref().and_then(|one| one["status"].as_str());
            if status == wanted { Ok(one) } else { Err(text) }
        })
        .await
    };
    let one = is(&eureka, Some("UP")).await.unwrap();
    assert_eq!((&one["ipAddr"], &one["port"]["$"]), (&json!(mesh.address(11, 0).ip()), &json!(PORT)));
    assert_eq!((&one["metadata"]["version"], &one["metadata"]["sidecar"]), (&json!("v1"), &json!("true")));
    until(&mesh, "spring", "it is counted there, and not a second instance", |row| {
        row.registered == Some(1) && row.instances == 0
    })
    .await;
    mesh.client.set_state("catalog-v1", State::Maintenance).await.unwrap();
    is(&eureka, Some("DOWN")).await;
    mesh.client.set_state("catalog-v1", State::Running).await.unwrap();
    is(&eureka, Some("UP")).await;
    // A Eureka that forgot everything is told again; one that hears nothing of it any more lets it go.
    eureka.process.take().unwrap().kill();
    eureka.begin().await;
    is(&eureka, Some("UP")).await;
    catalog.terminate();
    is(&eureka, None).await;
    mesh.register(&spec).await;
    is(&eureka, Some("UP")).await;
    mesh.kill_control();
    is(&eureka, None).await;
}
