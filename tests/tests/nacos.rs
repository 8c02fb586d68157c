//! Nacos as a registry, a real server of version 2.2, in a network namespace of its own because its gRPC listens on all addresses: what
//! registers there by its HTTP API is called through the mesh, what is registered here appears there and goes, and an outage takes
//! nothing away.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;

use outrigger_control::api::types::{Condition, RegistryBody};
use outrigger_control::instance::{Protocol, State};
use outrigger_tests::app::echo;
use outrigger_tests::mesh::{Mesh, PORT, Process, Spec, free_net};
use outrigger_tests::netns::{Host, Net};
use outrigger_tests::require;
use outrigger_tests::wait::eventually;
use serde_json::{Value, json};
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};

use crate::BINARY;
use crate::registries::{answer, json_over_http, leaves, row, under_load, until};
use crate::thin_thread::web;

/// HTTP, and gRPC beside it.
const PORTS: [u16; 2] = [8848, 9848];

/// A Nacos that keeps all of it in memory.
pub struct Nacos {
    aside: tempfile::TempDir,
    java: PathBuf,
    jars: PathBuf,
    _net: Net,
    host: Host,
    /// HTTP, on this machine's side.
    pub address: SocketAddr,
    pub process: Option<Process>,
}

/// Joins an address of this machine to a port of the host's loopback.
async fn relay(host: Host, at: SocketAddr) {
    let listener = TcpListener::bind(at).await.unwrap();
    tokio::spawn(async move {
        while let Ok((mut here, _)) = listener.accept().await {
            let host = host.clone();
            tokio::spawn(async move {
                let connect = async move { TcpStream::connect(("127.0.0.1", at.port())).await?.into_std() };
                // Nobody there: the connection ends.
                let Ok(there) = host.run(connect).await else { return };
                let Ok(mut there) = TcpStream::from_std(there) else { return };
                let _ = copy_bidirectional(&mut here, &mut there).await;
            });
        }
    });
}

impl Nacos {
    pub async fn start() -> Option<Self> {
        let (java, jars) = require::java("nacos")?;
        if !require::netns() {
            return None;
        }
        let net = Net::new();
        let host = net.host("nacos");
        let loopback = free_net();
        let address = SocketAddr::from(([127, loopback[0], loopback[1], 5], PORTS[0]));
        for port in PORTS {
            relay(host.clone(), SocketAddr::new(address.ip(), port)).await;
        }
        let aside = tempfile::tempdir().unwrap();
        let mut nacos = Self { aside, java, jars, _net: net, host, address, process: None };
        nacos.begin().await;
        Some(nacos)
    }

    async fn begin(&mut self) {
        let home = self.aside.path();
        std::fs::create_dir_all(home.join("conf")).unwrap();
        let mut command = self.host.command(&self.java);
        command.current_dir(home).args(["-Xmx384m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1"]);
        command.args([
            "--add-opens",
            "java.base/java.lang=ALL-UNNAMED",
            "--add-opens",
            "java.base/java.util=ALL-UNNAMED",
        ]);
        command.arg("-Dnacos.standalone=true").arg(format!("-Dnacos.home={}", home.display()));
        command.arg(format!("-Duser.home={}", home.display())).arg("-cp");
        // The one before the others: its pom says why.
        command.arg(format!("{0}/classes:{0}/hessian-4.0.63.jar:{0}/*", self.jars.display()));
        command.arg("testserver.Nacos");
        self.process = Some(Process::spawn(command, home.join("nacos.log")));
        // It starts slowly where others build.
        let asked = async || self.call("GET", "/v1/ns/service/list?pageNo=1&pageSize=1").await;
        for _ in 0..8 {
            let ready = eventually("Nacos answers", || async {
                match asked().await {
                    Ok((200, text)) => Ok(text),
                    other => Err(format!("{other:?}")),
                }
            });
            if tokio::time::timeout(Duration::from_secs(25), ready).await.is_ok() {
                return;
            }
        }
        panic!("Nacos does not start: {:?}", asked().await);
    }

    async fn call(&self, method: &str, path: &str) -> Result<(u16, String), String> {
        json_over_http(self.address, method, &format!("/nacos{path}"), &Value::Null).await
    }

    /// By its HTTP API; after so many seconds without a heartbeat it goes.
    pub async fn register(&self, service: &str, address: SocketAddr, seconds: u32, more: &str) {
        let ms = seconds * 1000;
        let metadata = format!(
            "%7B%22version%22:%22v7%22,%22protocol%22:%22http%22,%22preserved.heart.beat.interval%22:%22500%22,\
             %22preserved.heart.beat.timeout%22:%22{}%22,%22preserved.ip.delete.timeout%22:%22{ms}%22%7D",
            ms / 2
        );
        let path = format!(
            "/v1/ns/instance?serviceName={service}&ip={}&port={}&weight=3&metadata={metadata}{more}",
            address.ip(),
            address.port()
        );
        let (status, text) = self.call("POST", &path).await.unwrap();
        assert_eq!((status, text.as_str()), (200, "ok"));
    }

    pub fn settings(&self, more: &Value) -> Value {
        let mut nacos = json!({
            "urls": ["http://127.0.0.1:1/nacos", format!("http://{}/nacos", self.address)], "namespace": "shop", "intervalSeconds": 1,
            "groups": ["DEFAULT_GROUP", "other"], "names": { "com.acme:stock": "stock" },
        });
        nacos.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        json!({ "registries": [{ "name": "alibaba", "nacos": nacos }] })
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_nacos_knows_is_called_and_what_it_forgets_serves_on() {
    let Some(mut nacos) = Nacos::start().await else { return };
    let mesh = Mesh::start_with(BINARY, nacos.settings(&json!({}))).await;
    let (one, two, stock) = (mesh.address(20, PORT), mesh.address(21, PORT), mesh.address(22, PORT));
    echo(one, "one").await;
    echo(two, "two").await;
    echo(stock, "stock").await;
    let long = 600;
    nacos.register("catalog", two, long, "").await;
    nacos.register("com.acme:stock", stock, long, "&groupName=other").await;
    nacos.register("catalog", one, 6, "&clusterName=c2").await;
    let web = mesh.workload(&web(&["catalog:8080", "stock:8080"])).await;
    answer(web.outbound[1], "X-App-Name: stock\r\n").await;
    answer(web.outbound[0], "X-App-Name: two\r\n").await;
    let instances = mesh.client.instances().await.unwrap();
    let c2 = instances.iter().find(|body| body.instance.id == format!("{two}@catalog")).unwrap();
    let said = (&*c2.registry, c2.instance.weight, c2.instance.version.as_deref(), &*c2.instance.namespace);
    assert_eq!(said, ("alibaba", 300, Some("v7"), "shop"));
    // Who sends no heartbeat is unhealthy, and then gone.
    leaves(&mesh, "alibaba", Duration::from_secs(6), |row| row.instances == 2).await;
    nacos.register("catalog", one, long, "&clusterName=c2").await;
    answer(web.outbound[0], "X-App-Name: one\r\n").await;
    // It is taken out, which is pushed: subscribers are told of those that are enabled.
    nacos.register("catalog", one, long, "&clusterName=c2&enabled=false").await;
    until(&mesh, "alibaba", "one is out", |row| row.instances == 2).await;
    nacos.register("catalog", one, long, "&clusterName=c2").await;
    until(&mesh, "alibaba", "one is back", |row| row.instances == 3).await;

    // It is killed, and comes back without anything, under load.
    let (stop, failed, load) = under_load(web.outbound.clone());
    nacos.process.take().unwrap().kill();
    until(&mesh, "alibaba", "the outage is told", |row| row.state == Condition::Away && row.instances == 3)
        .await;
    assert!(row(&mesh, "alibaba").await.last_error.unwrap().contains("Nacos at"));
    nacos.begin().await;
    let held = |row: &RegistryBody| row.state == Condition::Degraded && row.instances == 3;
    until(&mesh, "alibaba", "what it forgot is held", held).await;
    let told = mesh.client.status().await.unwrap().problems;
    assert!(told.iter().any(|p| p.to_string().contains("does not list what it listed before")), "{told:?}");
    nacos.register("catalog", one, long, "&clusterName=c2").await;
    nacos.register("com.acme:stock", stock, long, "&groupName=other").await;
    nacos.register("catalog", two, long, "").await;
    until(&mesh, "alibaba", "whole again", |row| row.state == Condition::Connected && row.instances == 3)
        .await;
    stop.store(true, SeqCst);
    assert!(load.await.unwrap() > 50);
    assert_eq!(failed.load(SeqCst), 0);

    // What says farewell has gone; a service whose name is none here is told.
    let at = format!("ip={}&port={}", one.ip(), one.port());
    let path = format!("/v1/ns/instance?serviceName=catalog&{at}&clusterName=c2&ephemeral=true");
    nacos.call("DELETE", &path).await.unwrap();
    until(&mesh, "alibaba", "it has gone", |row| row.instances == 2).await;
    nacos.register("com.acme:orders", stock, long, "").await;
    until(&mesh, "alibaba", "rubbish", |row| row.state == Condition::Degraded && row.instances == 2).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_registered_here_is_enabled_at_nacos_and_goes() {
    let Some(mut nacos) = Nacos::start().await else { return };
    let mut mesh = Mesh::start_with(BINARY, nacos.settings(&json!({ "register": true }))).await;
    mesh.bootstrap = json!({ "register": { "ports": [{ "number": PORT, "protocol": "http" }], "ttl": "1h" }, "grace": "300ms" });
    let spec =
        |version, host| Spec { service: "catalog", version, host, protocol: Protocol::Http, calls: &[] };
    let first = mesh.sidecar(&spec("v1", 11)).await;
    let second = mesh.sidecar(&spec("v2", 12)).await;
    let (one, two) = (mesh.address(11, PORT).ip().to_string(), mesh.address(12, PORT).ip().to_string());
    let is = async |nacos: &Nacos, wanted: &[(&str, bool)]| {
        eventually(&format!("at Nacos are {wanted:?}"), || async {
            let (_, text) = nacos.call("GET", "/v1/ns/instance/list?serviceName=catalog").await?;
            let all: Value = serde_json::from_str(&text).map_err(|error| format!("{error}: {text}"))?;
            let hosts = all["hosts"].as_array().cloned().unwrap_or_default();
            let mut are: Vec<(&str, bool)> =
                hosts.iter().map(|one| (one["ip"].as_str().unwrap(), one["enabled"] == true)).collect();
            are.sort_unstable();
            if are == wanted { Ok(hosts.clone()) } else { Err(text) }
        })
        .await
    };
    let hosts = is(&nacos, &[(&one, true), (&two, true)]).await;
    let said = hosts.iter().find(|host| host["ip"] == one.as_str()).unwrap();
    assert_eq!((&said["port"], &said["weight"]), (&json!(PORT), &json!(1.0)));
    assert_eq!((&said["metadata"]["version"], &said["metadata"]["sidecar"]), (&json!("v1"), &json!("true")));
    until(&mesh, "alibaba", "they are counted there, and not a second time", |row| {
        row.registered == Some(2) && row.instances == 0
    })
    .await;
    // One that is out is no more enabled, or not listed.
    mesh.client.set_state("catalog-v1", State::Maintenance).await.unwrap();
    is(&nacos, &[(&two, true)]).await;
    mesh.client.set_state("catalog-v1", State::Running).await.unwrap();
    is(&nacos, &[(&one, true), (&two, true)]).await;
    // A Nacos that forgot everything is told again.
    nacos.process.take().unwrap().kill();
    nacos.begin().await;
    is(&nacos, &[(&one, true), (&two, true)]).await;
    first.terminate();
    is(&nacos, &[(&two, true)]).await;
    second.terminate();
    is(&nacos, &[]).await;
    mesh.register(&spec("v1", 11)).await;
    is(&nacos, &[(&one, true)]).await;
    mesh.kill_control();
    is(&nacos, &[]).await;
}
