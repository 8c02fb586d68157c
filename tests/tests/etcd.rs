//! etcd as a registry, the real one, with TLS and a user: what is registered there is called through the mesh, what is registered here
//! appears there and goes, and an outage, an emptied or a restored etcd takes nothing away.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use outrigger_control::api::types::Condition;
use outrigger_control::instance::Protocol;
use outrigger_tests::app::{echo, get};
use outrigger_tests::mesh::{Mesh, PORT, Process, Spec, free_net};
use outrigger_tests::require;
use outrigger_tests::wait::eventually;
use rcgen::{CertificateParams, KeyPair};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::BINARY;
use crate::registries::{answer, leaves, row, stranger, under_load, until};
use crate::thin_thread::web;

const PREFIX: &str = "/services/";
const PASSWORD: &str = "wird nicht verraten";

/// An etcd of one member; its JSON gateway without TLS is the test's.
pub struct Etcd {
    aside: tempfile::TempDir,
    binary: PathBuf,
    /// Without TLS; with it the same port of the next address.
    address: SocketAddr,
    pub process: Option<Process>,
}

impl Etcd {
    pub async fn start(binary: &Path, net: [u8; 2]) -> Self {
        let aside = tempfile::tempdir().unwrap();
        let address = SocketAddr::from(([127, net[0], net[1], 5], 2379));
        let key = KeyPair::generate().unwrap();
        let name = Self::tls_of(address).ip().to_string();
        let certificate = CertificateParams::new(vec![name]).unwrap().self_signed(&key).unwrap();
        std::fs::write(aside.path().join("cert.pem"), certificate.pem()).unwrap();
        std::fs::write(aside.path().join("ca.pem"), certificate.pem()).unwrap();
        std::fs::write(aside.path().join("key.pem"), key.serialize_pem()).unwrap();
        std::fs::write(aside.path().join("password"), PASSWORD).unwrap();
        let mut etcd = Self { aside, binary: binary.to_owned(), address, process: None };
        etcd.begin().await;
        for (path, body) in [
            ("user/add", json!({ "name": "root", "password": PASSWORD })),
            ("role/add", json!({ "name": "root" })),
            ("user/grant", json!({ "user": "root", "role": "root" })),
            ("enable", json!({})),
        ] {
            etcd.call(&format!("/v3/auth/{path}"), &body, "").await.unwrap();
        }
        etcd
    }

    fn tls_of(address: SocketAddr) -> SocketAddr {
        let mut ip = address.ip().to_string().parse::<std::net::Ipv4Addr>().unwrap().octets();
        ip[3] += 1;
        SocketAddr::from((ip, address.port()))
    }

    fn file(&self, name: &str) -> PathBuf {
        self.aside.path().join(name)
    }

    async fn begin(&mut self) {
        let (plain, tls) = (self.address, Self::tls_of(self.address));
        let urls = format!("http://{plain},https://{tls}");
        let peer = SocketAddr::new(plain.ip(), 2380);
        let mut command = Command::new(&self.binary);
        command.args(["--name", "n1", "--log-level", "warn", "--snapshot-count", "100"]);
        command.arg("--data-dir").arg(self.file("data")).arg("--cert-file").arg(self.file("cert.pem"));
        command.arg("--key-file").arg(self.file("key.pem"));
        command.args(["--listen-client-urls", &urls, "--advertise-client-urls", &urls]);
        command.args(["--listen-peer-urls", &format!("http://{peer}")]);
        command.args(["--initial-advertise-peer-urls", &format!("http://{peer}")]);
        command.args(["--initial-cluster", &format!("n1=http://{peer}")]);
        self.process = Some(Process::spawn(command, self.file("etcd.log")));
        eventually("etcd is healthy", || async {
            let (status, text) = get(self.address, "/health", "").await.map_err(|error| error.to_string())?;
            if status == 200 && text.contains("true") { Ok(()) } else { Err(text) }
        })
        .await;
    }

    async fn call(&self, path: &str, body: &Value, token: &str) -> Result<Value, String> {
        let body = body.to_string();
        let token = if token.is_empty() { String::new() } else { format!("Authorization: {token}\r\n") };
        let head = format!(
            "POST {path} HTTP/1.1\r\nHost: etcd\r\n{token}Connection: close\r\nContent-Length: {}\r\n\r\n",
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
        let (head, body) = text.split_once("\r\n\r\n").ok_or(text.clone())?;
        if head.starts_with("HTTP/1.1 200") {
            serde_json::from_str(body).map_err(|error| format!("{error}: {text}"))
        } else {
            Err(text)
        }
    }

    /// As its user.
    async fn ask(&self, path: &str, body: Value) -> Value {
        let user = json!({ "name": "root", "password": PASSWORD });
        let token = self.call("/v3/auth/authenticate", &user, "").await.unwrap();
        self.call(path, &body, token["token"].as_str().unwrap()).await.unwrap()
    }

    pub async fn put(&self, key: &str, value: &Value, lease: &str) {
        let (key, value) = (STANDARD.encode(format!("{PREFIX}{key}")), STANDARD.encode(value.to_string()));
        self.ask("/v3/kv/put", json!({ "key": key, "value": value, "lease": lease })).await;
    }

    async fn delete_all(&self) {
        let (key, end) = (STANDARD.encode(PREFIX), STANDARD.encode("/services0"));
        self.ask("/v3/kv/deleterange", json!({ "key": key, "range_end": end })).await;
    }

    /// All keys and values under the prefix.
    async fn all(&self) -> BTreeMap<String, Value> {
        let (key, end) = (STANDARD.encode(PREFIX), STANDARD.encode("/services0"));
        let answer = self.ask("/v3/kv/range", json!({ "key": key, "range_end": end })).await;
        let text = |value: &Value| STANDARD.decode(value.as_str().unwrap_or_default()).unwrap();
        let of = |kv: &Value| {
            let key = String::from_utf8(text(&kv["key"])).unwrap();
            (key, serde_json::from_slice(&text(&kv["value"])).unwrap_or(Value::Null))
        };
        answer["kvs"].as_array().into_iter().flatten().map(of).collect()
    }

    /// Nobody has a lease any more; what had one has gone.
    async fn lose_leases(&self) {
        let all = self.ask("/v3/lease/leases", json!({})).await;
        for lease in all["leases"].as_array().into_iter().flatten() {
            self.ask("/v3/lease/revoke", json!({ "ID": lease["ID"] })).await;
        }
        let left = self.all().await;
        assert!(left.is_empty(), "{left:?}");
    }

    /// Its history up to now is forgotten.
    async fn compact(&self) {
        let header =
            self.ask("/v3/kv/range", json!({ "key": STANDARD.encode(PREFIX) })).await["header"].clone();
        self.ask("/v3/kv/compaction", json!({ "revision": header["revision"] })).await;
    }

    /// A lease of so many seconds that nobody keeps alive.
    pub async fn lease(&self, seconds: u32) -> String {
        let answer = self.ask("/v3/lease/grant", json!({ "TTL": seconds })).await;
        answer["ID"].as_str().unwrap().to_owned()
    }

    pub fn settings(&self, more: &Value) -> Value {
        let mut etcd = json!({
            "endpoints": ["https://127.0.0.1:1", format!("https://{}", Self::tls_of(self.address))],
            "prefix": PREFIX, "caFile": self.file("ca.pem"), "user": "root", "passwordFile": self.file("password"),
        });
        etcd.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        json!({ "registries": [{ "name": "kv", "etcd": etcd }] })
    }
}

pub fn plain(address: SocketAddr) -> Value {
    json!({
        "addresses": [address.ip()], "ports": [{ "number": address.port(), "protocol": "http" }], "sidecar": false,
        "version": "v7", "weight": 300,
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn what_etcd_knows_is_called_and_what_it_loses_serves_on() {
    let Some(binary) = require::tool("etcd") else { return };
    let mut etcd = Etcd::start(&binary, free_net()).await;
    let mesh = Mesh::start_with(BINARY, etcd.settings(&json!({}))).await;
    let (one, two, stock) = (mesh.address(20, PORT), mesh.address(21, PORT), mesh.address(22, PORT));
    echo(one, "one").await;
    echo(two, "two").await;
    echo(stock, "stock").await;
    let all = async |etcd: &Etcd, lease: &str| {
        etcd.put("shop/catalog/c1", &plain(one), lease).await;
        etcd.put("shop/catalog/c2", &plain(two), "0").await;
        let kratos =
            json!({ "id": "s1", "name": "stock", "version": "v1", "endpoints": [format!("http://{stock}")] });
        etcd.put("shop/stock/s1", &kratos, "0").await;
    };
    all(&etcd, "0").await;
    let web = mesh.workload(&web(&["catalog:8080", "stock.default:8080"])).await;
    answer(web.outbound[0], "X-App-Name: two\r\n").await;
    answer(web.outbound[1], "X-App-Name: stock\r\n").await;
    // Who dies leaves with its lease.
    let lease = etcd.lease(2).await;
    etcd.put("shop/catalog/c1", &plain(one), &lease).await;
    leaves(&mesh, "kv", Duration::from_secs(2), |row| row.instances == 2).await;
    let instances = mesh.client.instances().await.unwrap();
    let c2 = &instances.iter().find(|body| body.instance.id == "c2").unwrap();
    let said = (&*c2.registry, c2.instance.weight, c2.instance.version.as_deref(), &*c2.instance.namespace);
    assert_eq!(said, ("kv", 300, Some("v7"), "shop"));
    all(&etcd, "0").await;
    answer(web.outbound[0], "X-App-Name: one\r\n").await;

    // It is killed and comes back, is emptied, and is compacted and begun from an older copy while it is away: under load.
    let (stop, failed, load) = under_load(web.outbound.clone());
    etcd.process.take().unwrap().kill();
    until(&mesh, "kv", "the outage is told", |row| row.state == Condition::Away && row.instances == 3).await;
    assert!(row(&mesh, "kv").await.last_error.unwrap().contains("etcd at"));
    let copy = etcd.file("copy");
    let copied = Command::new("cp").arg("-r").arg(etcd.file("data")).arg(&copy).status().unwrap();
    assert!(copied.success());
    etcd.begin().await;
    until(&mesh, "kv", "it is back", |row| row.state == Condition::Connected && row.instances == 3).await;
    etcd.delete_all().await;
    let held = |row: &outrigger_control::api::types::RegistryBody| {
        row.state == Condition::Degraded && row.instances == 3
    };
    until(&mesh, "kv", "what was emptied is held", held).await;
    all(&etcd, "0").await;
    etcd.put("shop/cart/k1", &plain(stock), "0").await;
    until(&mesh, "kv", "whole", |row| row.state == Condition::Connected && row.instances == 4).await;
    etcd.process.take().unwrap().kill();
    std::fs::remove_dir_all(etcd.file("data")).unwrap();
    std::fs::rename(&copy, etcd.file("data")).unwrap();
    etcd.begin().await;
    until(&mesh, "kv", "what an older copy has not is held", |row| {
        row.state == Condition::Degraded && row.instances == 4
    })
    .await;
    let told = mesh.client.status().await.unwrap().problems;
    assert!(told.iter().any(|p| p.to_string().contains("does not list what it listed before")), "{told:?}");
    etcd.put("shop/cart/k1", &plain(stock), "0").await;
    until(&mesh, "kv", "whole again", |row| row.state == Condition::Connected && row.instances == 4).await;
    stop.store(true, SeqCst);
    assert!(load.await.unwrap() > 50);
    assert_eq!(failed.load(SeqCst), 0);

    // Rubbish is told, a password that ended is told, and neither takes anything.
    etcd.put("shop/catalog/c1", &json!({ "addresses": ["catalog.internal"] }), "0").await;
    etcd.put("shop/catalog/c3", &json!([]), "0").await;
    until(&mesh, "kv", "rubbish", |row| row.state == Condition::Degraded && row.instances == 4).await;
    etcd.process.take().unwrap().kill();
    std::fs::write(etcd.file("password"), "another").unwrap();
    etcd.begin().await;
    let refused = |text: &String| text.contains("logging in") && text.contains("passwordFile");
    until(&mesh, "kv", "the password is told", |row| row.last_error.as_ref().is_some_and(refused)).await;
    // So is a certificate that nobody vouches for.
    std::fs::write(etcd.file("ca.pem"), stranger()).unwrap();
    let unknown = |text: &String| text.contains("invalid peer certificate");
    until(&mesh, "kv", "the certificate is told", |row| row.last_error.as_ref().is_some_and(unknown)).await;
    assert_eq!(row(&mesh, "kv").await.instances, 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_registered_here_appears_in_etcd_once_and_goes() {
    let Some(binary) = require::tool("etcd") else { return };
    let mut etcd = Etcd::start(&binary, free_net()).await;
    let more = json!({ "register": true, "ttlSeconds": 5 });
    let mut mesh = Mesh::start_with(BINARY, etcd.settings(&more)).await;
    let key = "/services/shop/catalog/catalog-v1@";
    let has = async |etcd: &Etcd, is: bool| {
        eventually(&format!("{key} is there: {is}"), || async {
            let all = etcd.all().await;
            if all.keys().any(|one| one.starts_with(key)) == is { Ok(()) } else { Err(format!("{all:?}")) }
        })
        .await;
    };
    mesh.bootstrap = json!({ "register": { "ports": [{ "number": PORT, "protocol": "http" }], "ttl": "1h" }, "grace": "300ms" });
    let spec = Spec { service: "catalog", version: "v1", host: 11, protocol: Protocol::Http, calls: &[] };
    let catalog = mesh.sidecar(&spec).await;
    has(&etcd, true).await;
    let (_, value) = etcd.all().await.into_iter().find(|(one, _)| one.starts_with(key)).unwrap();
    assert_eq!((&value["addresses"][0], &value["version"]), (&json!(mesh.address(11, 0).ip()), &json!("v1")));
    until(&mesh, "kv", "it is counted there, and not a second instance", |row| {
        row.registered == Some(1) && row.instances == 0
    })
    .await;

    // Another control plane has it from there, and a second one of the same mesh directory would not.
    let other = Mesh::start_with(BINARY, etcd.settings(&json!({}))).await;
    until(&other, "kv", "another mesh sees it", |row| row.instances == 1).await;

    // Its lease is lost: it is written anew.
    etcd.lose_leases().await;
    has(&etcd, true).await;

    // etcd away, and ours away for less than the TTL.
    etcd.process.take().unwrap().kill();
    let told = |row: &outrigger_control::api::types::RegistryBody| row.state == Condition::Away;
    until(&mesh, "kv", "the outage is told", told).await;
    etcd.begin().await;
    until(&mesh, "kv", "it is back", |row| row.state == Condition::Connected).await;
    has(&etcd, true).await;
    mesh.kill_control();
    mesh.start_control().await;
    until(&mesh, "kv", "it is written by the next process", |row| row.registered == Some(1)).await;
    assert_eq!(row(&mesh, "kv").await.instances, 0, "also what the last process wrote is ours");

    // Its workload is told to stop.
    catalog.terminate();
    has(&etcd, false).await;
    until(&other, "kv", "it has gone elsewhere, too", |row| {
        row.instances == 0 || row.state == Condition::Degraded
    })
    .await;

    // And what nobody keeps alive ends by itself.
    mesh.register(&spec).await;
    has(&etcd, true).await;
    mesh.kill_control();
    has(&etcd, false).await;
}

/// A signal to the control plane.
fn signal(mesh: &Mesh, signal: rustix::process::Signal) {
    let id = mesh.control_id().and_then(|id| rustix::process::Pid::from_raw(i32::try_from(id).ok()?));
    rustix::process::kill_process(id.unwrap(), signal).unwrap();
}

/// It is stopped, so that it hears nothing of what happens, and asks from where it was.
#[tokio::test(flavor = "multi_thread")]
async fn a_history_that_is_compacted_meanwhile_is_read_anew() {
    let Some(binary) = require::tool("etcd") else { return };
    let mut etcd = Etcd::start(&binary, free_net()).await;
    let mesh = Mesh::start_with(BINARY, etcd.settings(&json!({}))).await;
    let at = |host| plain(mesh.address(host, PORT));
    for (key, host) in [("catalog/c1", 20), ("catalog/c2", 21), ("stock/s1", 22), ("cart/k1", 23)] {
        etcd.put(&format!("shop/{key}"), &at(host), "0").await;
    }
    until(&mesh, "kv", "etcd has all", |row| row.instances == 4).await;
    signal(&mesh, rustix::process::Signal::STOP);
    etcd.process.take().unwrap().kill();
    etcd.begin().await;
    etcd.put("shop/catalog/c3", &at(24), "0").await;
    let key = STANDARD.encode(format!("{PREFIX}shop/cart/k1"));
    etcd.ask("/v3/kv/deleterange", json!({ "key": key })).await;
    etcd.compact().await;
    signal(&mesh, rustix::process::Signal::CONT);
    eventually("what came is there, and what went is not", || async {
        let all = mesh.client.instances().await.map_err(|error| error.to_string())?;
        let ids: Vec<&str> = all.iter().map(|body| &*body.instance.id).collect();
        if ids == ["c1", "c2", "c3", "s1"] { Ok(()) } else { Err(format!("{ids:?}")) }
    })
    .await;
    assert_eq!(row(&mesh, "kv").await.state, Condition::Connected);
}
