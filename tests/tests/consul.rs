//! Consul as a registry, the real one, with TLS and ACLs: what is registered there is called through the mesh, and an outage or an
//! emptied Consul takes nothing away.

use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::Ordering::SeqCst;
use std::time::{Duration, Instant};

use outrigger_control::api::types::{Condition, RegistryBody};
use outrigger_control::instance::{Protocol, State};
use outrigger_tests::app::echo;
use outrigger_tests::mesh::{Mesh, PORT, Process, Spec, free_net};
use outrigger_tests::require;
use outrigger_tests::wait::eventually;
use rcgen::{CertificateParams, KeyPair};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::BINARY;
use crate::registries::{answer, row, stranger, under_load, until};
use crate::thin_thread::web;

/// May do everything at this Consul.
const TOKEN: &str = "4b7d9c7e-6f0a-4c57-9d1c-3a54ad9d7c11";

/// A Consul in memory: it forgets everything when it ends.
pub struct Consul {
    aside: tempfile::TempDir,
    binary: std::path::PathBuf,
    /// Without TLS, for the test.
    address: SocketAddr,
    pub process: Option<Process>,
}

impl Consul {
    pub async fn start(binary: &Path, address: SocketAddr) -> Self {
        let aside = tempfile::tempdir().unwrap();
        let key = KeyPair::generate().unwrap();
        let certificate =
            CertificateParams::new(vec![address.ip().to_string()]).unwrap().self_signed(&key).unwrap();
        let file = |name: &str| aside.path().join(name);
        std::fs::write(file("cert.pem"), certificate.pem()).unwrap();
        std::fs::write(file("ca.pem"), certificate.pem()).unwrap();
        std::fs::write(file("key.pem"), key.serialize_pem()).unwrap();
        std::fs::write(file("token"), TOKEN).unwrap();
        let settings = json!({
            "ports": { "http": address.port(), "https": 8501, "grpc": -1, "grpc_tls": -1 },
            "tls": { "https": { "ca_file": file("cert.pem"), "cert_file": file("cert.pem"), "key_file": file("key.pem") } },
            "acl": { "enabled": true, "default_policy": "deny", "tokens": { "initial_management": TOKEN, "agent": TOKEN } },
            "performance": { "raft_multiplier": 1 },
            "check_update_interval": "0s",
            "disable_update_check": true,
        });
        std::fs::write(file("consul.json"), settings.to_string()).unwrap();
        let mut consul = Self { aside, binary: binary.to_owned(), address, process: None };
        consul.begin().await;
        consul
    }

    async fn begin(&mut self) {
        let mut command = Command::new(&self.binary);
        let ip = self.address.ip().to_string();
        command.args(["agent", "-dev", "-node", "n1", "-log-level", "warn", "-bind", &ip, "-client", &ip]);
        command.arg("-config-file").arg(self.aside.path().join("consul.json"));
        self.process = Some(Process::spawn(command, self.aside.path().join("consul.log")));
        eventually("Consul has a leader", || async {
            let (status, text) = self.call("GET", "/v1/catalog/nodes", Value::Null).await?;
            if status == 200 && text.contains("n1") { Ok(()) } else { Err(text) }
        })
        .await;
    }

    async fn call(&self, method: &str, path: &str, body: Value) -> Result<(u16, String), String> {
        let body = if body.is_null() { String::new() } else { body.to_string() };
        let head = format!(
            "{method} {path} HTTP/1.1\r\nHost: consul\r\nX-Consul-Token: {TOKEN}\r\nConnection: close\r\nContent-Length: {}\r\n\r\n",
            body.len()
        );
        let asked = async {
            let mut stream = TcpStream::connect(self.address).await?;
            stream.write_all((head + &body).as_bytes()).await?;
            let mut text = String::new();
            stream.read_to_string(&mut text).await?;
            Ok::<_, std::io::Error>(text)
        };
        let text = asked.await.map_err(|error| error.to_string())?;
        let status = text.split(' ').nth(1).and_then(|status| status.parse().ok()).ok_or(text.clone())?;
        Ok((status, text))
    }

    pub async fn put(&self, path: &str, body: Value) {
        let (status, text) = self.call("PUT", path, body).await.unwrap();
        assert_eq!(status, 200, "{path}: {text}");
    }

    pub async fn register(&self, id: &str, service: &str, address: SocketAddr) {
        self.put(
            "/v1/agent/service/register",
            json!({
                "ID": id, "Name": service, "Address": address.ip(), "Port": address.port(), "Tags": ["blue", "http"],
                "Meta": { "version": "v7" }, "Weights": { "Passing": 3, "Warning": 1 },
                "Check": { "CheckID": format!("ttl-{id}"), "TTL": "600s", "Status": "passing" },
            }),
        )
        .await;
    }
}

pub fn settings(consul: &Consul) -> Value {
    let file = |name: &str| consul.aside.path().join(name);
    let tls = SocketAddr::new(consul.address.ip(), 8501);
    json!({ "registries": [{ "name": "dc1", "consul": {
        "address": format!("https://{tls}"), "tokenFile": file("token"), "caFile": file("ca.pem"), "namespace": "shop",
    } }] })
}

/// One whose application dies says no more that it is well.
async fn dies(consul: &Consul, mesh: &Mesh) {
    let dies = json!({
        "ID": "c3", "Name": "catalog", "Address": mesh.address(23, PORT).ip(), "Port": PORT,
        "Check": { "CheckID": "ttl-c3", "TTL": "3s", "Status": "passing" },
    });
    consul.put("/v1/agent/service/register", dies).await;
    until(mesh, "dc1", "it is there", |row| row.instances == 4).await;
    let begun = Instant::now();
    eventually("it is called no more", || async {
        let all = mesh.client.instances().await.unwrap();
        let state = all.iter().find(|body| body.instance.id == "c3@n1.dc1").unwrap().instance.state;
        if state == State::Unhealthy { Ok(()) } else { Err(format!("{state:?}")) }
    })
    .await;
    println!("dc1: who died is out after {:.1} s, its check has 3 s", begun.elapsed().as_secs_f64());
    assert!(begun.elapsed() <= Duration::from_secs(13), "{:?}", begun.elapsed());
    consul.put("/v1/agent/service/deregister/c3", Value::Null).await;
    until(mesh, "dc1", "it is gone", |row| row.instances == 3).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_consul_knows_is_called_and_what_it_forgets_serves_on() {
    let Some(binary) = require::tool("consul") else { return };
    let net = free_net();
    let mut consul = Consul::start(&binary, SocketAddr::from(([127, net[0], net[1], 5], 8500))).await;
    let mesh = Mesh::start_with(BINARY, settings(&consul)).await;
    let (one, two, stock) = (mesh.address(20, PORT), mesh.address(21, PORT), mesh.address(22, PORT));
    echo(one, "one").await;
    echo(two, "two").await;
    echo(stock, "stock").await;
    let all = async |consul: &Consul| {
        consul.register("c1", "catalog", one).await;
        consul.register("c2", "catalog", two).await;
        consul.register("s1", "stock", stock).await;
    };
    all(&consul).await;
    let web = mesh.workload(&web(&["catalog:8080", "stock:8080"])).await;
    answer(web.outbound[0], "X-App-Name: one\r\n").await;
    answer(web.outbound[0], "X-App-Name: two\r\n").await;
    answer(web.outbound[1], "X-App-Name: stock\r\n").await;
    let instances = mesh.client.instances().await.unwrap();
    let c1 = instances.iter().find(|body| body.instance.id == "c1@n1.dc1").unwrap();
    let said =
        (&*c1.registry, c1.instance.weight, c1.instance.version.as_deref(), &*c1.instance.labels["version"]);
    assert_eq!(said, ("dc1", 300, Some("v7"), "v7"));
    assert_eq!((c1.instance.tags.len(), &*c1.instance.region), (2, "dc1"));

    dies(&consul, &mesh).await;
    consul.put("/v1/agent/check/fail/ttl-c1", Value::Null).await;
    let state = async || {
        let all = mesh.client.instances().await.unwrap();
        all.iter().find(|body| body.instance.id == "c1@n1.dc1").unwrap().instance.state
    };
    eventually("the check is heard", || async {
        let state = state().await;
        if state == State::Unhealthy { Ok(()) } else { Err(format!("{state:?}")) }
    })
    .await;
    consul.put("/v1/agent/check/pass/ttl-c1", Value::Null).await;
    answer(web.outbound[0], "X-App-Name: one\r\n").await;

    // It is killed, and comes back without anything, under load.
    let (stop, failed, load) = under_load(web.outbound.clone());
    consul.process.take().unwrap().kill();
    until(&mesh, "dc1", "the outage is told", |row| row.state == Condition::Away && row.instances == 3).await;
    assert!(row(&mesh, "dc1").await.last_error.unwrap().contains("Consul at"));
    consul.begin().await;
    until(&mesh, "dc1", "what it forgot is held", |row| {
        row.state == Condition::Degraded && row.instances == 3
    })
    .await;
    let held = mesh.client.status().await.unwrap().problems;
    assert!(
        held.iter().any(|problem| problem.to_string().contains("does not list what it listed before")),
        "{held:?}"
    );
    all(&consul).await;
    until(&mesh, "dc1", "it is whole again", |row| row.state == Condition::Connected && row.instances == 3)
        .await;
    stop.store(true, SeqCst);
    assert!(load.await.unwrap() > 50);
    assert_eq!(failed.load(SeqCst), 0);

    // What is deregistered is gone, and a token that ended is said and takes nothing.
    consul.put("/v1/agent/service/deregister/c1", Value::Null).await;
    until(&mesh, "dc1", "it is gone", |row| row.instances == 2).await;
    // Before it ends: a question with the token before would be asked again at once, and answered after minutes.
    std::fs::write(consul.aside.path().join("token"), "11111111-6f0a-4c57-9d1c-3a54ad9d7c11").unwrap();
    consul.process.take().unwrap().kill();
    consul.begin().await;
    let forbidden = |text: &String| text.contains("403") && text.contains("tokenFile");
    until(&mesh, "dc1", "the token is told", |row| row.last_error.as_ref().is_some_and(forbidden)).await;
    // So is a certificate that nobody vouches for.
    std::fs::write(consul.aside.path().join("ca.pem"), stranger()).unwrap();
    let unknown = |text: &String| text.contains("invalid peer certificate");
    until(&mesh, "dc1", "the certificate is told", |row| row.last_error.as_ref().is_some_and(unknown)).await;
    assert_eq!(row(&mesh, "dc1").await.instances, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_control_plane_that_starts_while_consul_is_away_goes_on_with_what_it_said() {
    let Some(binary) = require::tool("consul") else { return };
    let net = free_net();
    let mut consul = Consul::start(&binary, SocketAddr::from(([127, net[0], net[1], 5], 8500))).await;
    let mut mesh = Mesh::start_with(BINARY, settings(&consul)).await;
    let (one, two) = (mesh.address(20, PORT), mesh.address(21, PORT));
    echo(one, "one").await;
    echo(two, "two").await;
    consul.register("c1", "catalog", one).await;
    consul.register("c2", "catalog", two).await;
    until(&mesh, "dc1", "what it says is kept", |row| row.kept == Some(2)).await;
    consul.process.take().unwrap().kill();
    mesh.kill_control();
    mesh.start_control().await;
    let away =
        |row: &RegistryBody| row.state == Condition::Away && row.instances == 2 && row.last_error.is_some();
    until(&mesh, "dc1", "it is told to be away, with what it had", away).await;
    // Whoever comes now is served as those who were there.
    let web = mesh.workload(&web(&["catalog:8080"])).await;
    answer(web.outbound[0], "X-App-Name: one\r\n").await;
    answer(web.outbound[0], "X-App-Name: two\r\n").await;
    // It comes back without anything, as after an outage that we saw.
    consul.begin().await;
    until(&mesh, "dc1", "what it forgot is held", |row| {
        row.state == Condition::Degraded && row.instances == 2
    })
    .await;
    consul.register("c1", "catalog", one).await;
    consul.register("c2", "catalog", two).await;
    until(&mesh, "dc1", "it is whole again", |row| row.state == Condition::Connected && row.instances == 2)
        .await;
    consul.put("/v1/agent/service/deregister/c1", Value::Null).await;
    until(&mesh, "dc1", "what goes is kept no longer", |row| row.instances == 1 && row.kept == Some(1)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_registered_here_is_well_at_consul_once_and_goes() {
    let Some(binary) = require::tool("consul") else { return };
    let net = free_net();
    let mut consul = Consul::start(&binary, SocketAddr::from(([127, net[0], net[1], 5], 8500))).await;
    let mut settings = settings(&consul);
    let row = settings["registries"][0]["consul"].as_object_mut().unwrap();
    row.extend([("register".to_owned(), json!(true)), ("ttlSeconds".to_owned(), json!(5))]);
    let mut mesh = Mesh::start_with(BINARY, settings).await;
    mesh.bootstrap = json!({ "register": { "ports": [{ "number": PORT, "protocol": "http" }], "ttl": "1h" }, "grace": "300ms" });
    let spec = Spec { service: "catalog", version: "v1", host: 11, protocol: Protocol::Http, calls: &[] };
    let catalog = mesh.sidecar(&spec).await;
    let well = async |consul: &Consul, is: bool| {
        eventually(&format!("catalog is well at Consul: {is}"), || async {
            let (status, text) =
                consul.call("GET", "/v1/health/service/catalog?passing=true", Value::Null).await?;
            if status == 200 && text.contains("outrigger:catalog-v1") == is { Ok(text) } else { Err(text) }
        })
        .await
    };
    let said = well(&consul, true).await;
    assert!(said.contains("\"version\": \"v1\"") && said.contains("\"sidecar\": \"true\""), "{said}");
    until(&mesh, "dc1", "it is counted there, and not a second instance", |row| {
        row.registered == Some(1) && row.instances == 0
    })
    .await;
    // One that is out is not well, and back.
    mesh.client.set_state("catalog-v1", State::Maintenance).await.unwrap();
    well(&consul, false).await;
    mesh.client.set_state("catalog-v1", State::Running).await.unwrap();
    well(&consul, true).await;
    // A Consul that forgot everything is told again.
    consul.process.take().unwrap().kill();
    consul.begin().await;
    well(&consul, true).await;
    catalog.terminate();
    eventually("it has gone", || async {
        let (_, text) = consul.call("GET", "/v1/agent/services", Value::Null).await?;
        if text.contains("outrigger:catalog-v1") { Err(text) } else { Ok(()) }
    })
    .await;
}
