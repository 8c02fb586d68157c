//! ZooKeeper as a registry, the real one, with TLS and a user: what its own client makes there is called through the mesh, what is
//! registered here appears there and goes, and an outage, an emptied or a restored ZooKeeper takes nothing away.

use std::io::Write;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;

use outrigger_control::api::types::{Condition, RegistryBody};
use outrigger_control::instance::Protocol;
use outrigger_tests::app::echo;
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

const PASSWORD: &str = "wird-nicht-verraten";

/// A ZooKeeper of one server.
pub struct ZooKeeper {
    aside: tempfile::TempDir,
    java: PathBuf,
    jars: PathBuf,
    /// Without TLS, for the test; with it on the next address.
    address: SocketAddr,
    pub process: Option<Process>,
}

/// Its own command line, which has a session as long as it lives.
pub struct Cli {
    child: Child,
    log: PathBuf,
}

impl Drop for Cli {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Cli {
    /// Says a line, and waits until it is told that it was done.
    async fn say(&mut self, line: &str, done: &str) {
        writeln!(self.child.stdin.as_mut().unwrap(), "{line}").unwrap();
        eventually(&format!("{line}: {done}"), || async {
            let log = std::fs::read_to_string(&self.log).unwrap();
            if log.contains(done) { Ok(()) } else { Err(log) }
        })
        .await;
    }

    pub async fn make(&mut self, how: &str, path: &str, value: &str) {
        self.say(&format!("create {how} {path} '{value}' auth::cdrwa"), &format!("Created {path}")).await;
    }

    async fn register(&mut self, id: &str, service: &str, address: SocketAddr) {
        let value = json!({
            "name": service, "id": id, "address": address.ip(), "port": address.port(), "sslPort": null, "serviceType": "DYNAMIC",
            "payload": { "@class": "com.acme.Payload", "metadata": { "version": "v7", "weight": "300", "protocol": "http" } },
        });
        self.make("-e", &format!("/services/{service}/{id}"), &value.to_string()).await;
    }
}

impl ZooKeeper {
    pub async fn start() -> Option<Self> {
        let (java, jars) = require::java("zookeeper")?;
        let net = free_net();
        let aside = tempfile::tempdir().unwrap();
        let address = SocketAddr::from(([127, net[0], net[1], 5], 2181));
        let key = KeyPair::generate().unwrap();
        let tls = Self::tls_of(address).ip().to_string();
        let certificate = CertificateParams::new(vec![tls.clone()]).unwrap().self_signed(&key).unwrap();
        let file = |name: &str| aside.path().join(name);
        std::fs::write(file("ca.pem"), certificate.pem()).unwrap();
        std::fs::write(file("both.pem"), key.serialize_pem() + &certificate.pem()).unwrap();
        std::fs::write(file("password"), PASSWORD).unwrap();
        let settings = format!(
            "tickTime=500\ndataDir={}\nclientPort=2181\nclientPortAddress={}\nsecureClientPort=2281\nsecureClientPortAddress={tls}\n\
             serverCnxnFactory=org.apache.zookeeper.server.NettyServerCnxnFactory\nssl.keyStore.location={}\nssl.keyStore.type=PEM\n\
             ssl.trustStore.location={}\nssl.trustStore.type=PEM\nssl.clientAuth=none\nadmin.enableServer=false\n\
             4lw.commands.whitelist=ruok,dump\nmaxClientCnxns=0\nmaxSessionTimeout=30000\n",
            file("data").display(),
            address.ip(),
            file("both.pem").display(),
            file("ca.pem").display(),
        );
        std::fs::write(file("zoo.cfg"), settings).unwrap();
        let mut keeper = Self { aside, java, jars, address, process: None };
        keeper.begin().await;
        Some(keeper)
    }

    fn tls_of(address: SocketAddr) -> SocketAddr {
        let mut ip = address.ip().to_string().parse::<std::net::Ipv4Addr>().unwrap().octets();
        ip[3] += 1;
        SocketAddr::from((ip, 2281))
    }

    fn file(&self, name: &str) -> PathBuf {
        self.aside.path().join(name)
    }

    fn java(&self) -> Command {
        let mut command = Command::new(&self.java);
        command.args(["-Xmx96m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-cp"]);
        command.arg(format!("{}/*", self.jars.display()));
        command
    }

    async fn begin(&mut self) {
        let mut command = self.java();
        command.arg("org.apache.zookeeper.server.ZooKeeperServerMain").arg(self.file("zoo.cfg"));
        self.process = Some(Process::spawn(command, self.file("server.log")));
        eventually("ZooKeeper is well", || async {
            match self.word("ruok").await?.as_str() {
                "imok" => Ok(()),
                other => Err(other.to_owned()),
            }
        })
        .await;
    }

    /// One of its four letter words.
    async fn word(&self, word: &str) -> Result<String, String> {
        let asked = async {
            let mut stream = TcpStream::connect(self.address).await?;
            stream.write_all(word.as_bytes()).await?;
            let mut text = String::new();
            stream.read_to_string(&mut text).await?;
            Ok::<_, std::io::Error>(text)
        };
        asked.await.map_err(|error| error.to_string())
    }

    /// As our user, with a session that ends so many seconds after it.
    pub async fn cli(&self, name: &str, seconds: u32) -> Cli {
        self.cli_as("mesh", name, seconds).await
    }

    async fn cli_as(&self, user: &str, name: &str, seconds: u32) -> Cli {
        let log = self.file(name);
        let out = std::fs::File::create(&log).unwrap();
        let mut command = self.java();
        command.arg("org.apache.zookeeper.ZooKeeperMain").arg("-timeout").arg((seconds * 1000).to_string());
        command.arg("-server").arg(self.address.to_string());
        command.stdin(Stdio::piped()).stdout(out.try_clone().unwrap()).stderr(out);
        let mut cli = Cli { child: command.spawn().unwrap(), log };
        cli.say(&format!("addauth digest {user}:{PASSWORD}"), "SyncConnected").await;
        cli
    }

    pub fn settings(&self, more: &Value) -> Value {
        let mut keeper = json!({
            "endpoints": ["tls://127.0.0.1:1", format!("tls://{}", Self::tls_of(self.address))], "dubbo": "/dubbo",
            "names": { "com.acme.Stock": "stock" }, "caFile": self.file("ca.pem"), "user": "mesh",
            "passwordFile": self.file("password"), "namespace": "shop",
        });
        keeper.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        json!({ "registries": [{ "name": "keeper", "zookeeper": keeper }] })
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_zookeeper_knows_is_called_and_what_it_loses_serves_on() {
    let Some(mut keeper) = ZooKeeper::start().await else { return };
    let mesh = Mesh::start_with(BINARY, keeper.settings(&json!({}))).await;
    let (one, two, stock) = (mesh.address(20, PORT), mesh.address(21, PORT), mesh.address(22, PORT));
    echo(one, "one").await;
    echo(two, "two").await;
    echo(stock, "stock").await;
    let provider = format!("rest%3A%2F%2F{}%3A{PORT}%2Fcom.acme.Stock%3Fapplication%3Dstock", stock.ip());
    let provider = format!("/dubbo/com.acme.Stock/providers/{provider}");
    let parents = [
        "/services",
        "/services/catalog",
        "/dubbo",
        "/dubbo/com.acme.Stock",
        "/dubbo/com.acme.Stock/providers",
    ];
    let mut stays = keeper.cli("stays.log", 30).await;
    for path in parents {
        stays.make("", path, "127.0.0.1").await;
    }
    let mut dies = keeper.cli("dies.log", 2).await;
    dies.register("c1", "catalog", one).await;
    stays.register("c2", "catalog", two).await;
    stays.make("-e", &provider, "").await;
    let web = mesh.workload(&web(&["catalog:8080", "stock:8080"])).await;
    answer(web.outbound[0], "X-App-Name: one\r\n").await;
    answer(web.outbound[0], "X-App-Name: two\r\n").await;
    answer(web.outbound[1], "X-App-Name: stock\r\n").await;
    let instances = mesh.client.instances().await.unwrap();
    let c2 = instances.iter().find(|body| body.instance.id == "c2@catalog").unwrap();
    let said = (&*c2.registry, c2.instance.weight, c2.instance.version.as_deref(), &*c2.instance.namespace);
    assert_eq!(said, ("keeper", 300, Some("v7"), "shop"));
    // Who is killed leaves with its session.
    drop(dies);
    leaves(&mesh, "keeper", Duration::from_secs(2), |row| row.instances == 2).await;
    stays.register("c1", "catalog", one).await;
    until(&mesh, "keeper", "it is back", |row| row.instances == 3).await;

    // It is killed and comes back, and then comes back without anything: under load.
    let (stop, failed, load) = under_load(web.outbound.clone());
    keeper.process.take().unwrap().kill();
    until(&mesh, "keeper", "the outage is told", |row| row.state == Condition::Away && row.instances == 3)
        .await;
    assert!(row(&mesh, "keeper").await.last_error.unwrap().contains("ZooKeeper at"));
    keeper.begin().await;
    until(&mesh, "keeper", "it is back", |row| row.state == Condition::Connected && row.instances == 3).await;
    keeper.process.take().unwrap().kill();
    std::fs::remove_dir_all(keeper.file("data")).unwrap();
    keeper.begin().await;
    let held = |row: &RegistryBody| row.state == Condition::Degraded && row.instances == 3;
    until(&mesh, "keeper", "what it lost is held", held).await;
    let told = mesh.client.status().await.unwrap().problems;
    assert!(told.iter().any(|p| p.to_string().contains("does not list what it listed before")), "{told:?}");
    drop(stays);
    let mut again = keeper.cli("again.log", 30).await;
    for path in parents {
        again.make("", path, "127.0.0.1").await;
    }
    again.register("c1", "catalog", one).await;
    again.register("c2", "catalog", two).await;
    again.make("-e", &provider, "").await;
    until(&mesh, "keeper", "whole again", |row| row.state == Condition::Connected && row.instances == 3)
        .await;
    stop.store(true, SeqCst);
    assert!(load.await.unwrap() > 50);
    assert_eq!(failed.load(SeqCst), 0);

    // Rubbish is told, a password that ended is told, and neither takes anything.
    again.say("set /services/catalog/c1 '{\"name\": \"catalog\"}'", "").await;
    until(&mesh, "keeper", "rubbish", |row| row.state == Condition::Degraded && row.instances == 3).await;
    std::fs::write(keeper.file("password"), "another").unwrap();
    keeper.process.take().unwrap().kill();
    keeper.begin().await;
    let refused = |text: &String| text.contains("not permitted") && text.contains("passwordFile");
    until(&mesh, "keeper", "the password is told", |row| row.last_error.as_ref().is_some_and(refused)).await;
    // So is a certificate that nobody vouches for.
    std::fs::write(keeper.file("ca.pem"), stranger()).unwrap();
    let unknown = |text: &String| text.contains("invalid peer certificate");
    until(&mesh, "keeper", "the certificate is told", |row| row.last_error.as_ref().is_some_and(unknown))
        .await;
    assert_eq!(row(&mesh, "keeper").await.instances, 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_registered_here_appears_in_zookeeper_and_goes() {
    let Some(mut keeper) = ZooKeeper::start().await else { return };
    let more = json!({ "register": true, "ttlSeconds": 6, "dubbo": null });
    let mut mesh = Mesh::start_with(BINARY, keeper.settings(&more)).await;
    let has = async |keeper: &ZooKeeper, is: bool| {
        eventually(&format!("its node is there: {is}"), || async {
            let all = keeper.word("dump").await?;
            if all.contains("/services/catalog/catalog-v1@") == is { Ok(()) } else { Err(all) }
        })
        .await;
    };
    mesh.bootstrap = json!({ "register": { "ports": [{ "number": PORT, "protocol": "http" }], "ttl": "1h" }, "grace": "300ms" });
    let spec = Spec { service: "catalog", version: "v1", host: 11, protocol: Protocol::Http, calls: &[] };
    let catalog = mesh.sidecar(&spec).await;
    has(&keeper, true).await;
    until(&mesh, "keeper", "it is counted there, and not a second instance", |row| {
        row.registered == Some(1) && row.instances == 0
    })
    .await;
    // Another control plane has it from there, with what it is.
    let other =
        Mesh::start_with(BINARY, keeper.settings(&json!({ "namespace": "far", "dubbo": null }))).await;
    until(&other, "keeper", "another mesh sees it", |row| row.instances == 1).await;
    let there = other.client.instances().await.unwrap().remove(0).instance;
    assert_eq!(
        (&*there.service, &*there.namespace, there.version.as_deref()),
        ("catalog", "far", Some("v1"))
    );
    assert_eq!((there.addresses, there.sidecar), (vec![mesh.address(11, 0).ip()], true));
    assert_eq!((there.ports[0].number, there.ports[0].protocol), (PORT, Protocol::Http));

    // It is away, with the session living on; ours is, for less than the session: the next process takes the nodes over.
    keeper.process.take().unwrap().kill();
    until(&mesh, "keeper", "the outage is told", |row| row.state == Condition::Away).await;
    keeper.begin().await;
    until(&mesh, "keeper", "it is back", |row| {
        row.state == Condition::Connected && row.registered == Some(1)
    })
    .await;
    has(&keeper, true).await;
    mesh.kill_control();
    mesh.start_control().await;
    until(&mesh, "keeper", "it is written by the next process", |row| row.registered == Some(1)).await;
    until(&other, "keeper", "and nobody has lost it", |row| {
        row.instances == 1 && row.state == Condition::Connected
    })
    .await;
    // Its workload is told to stop.
    catalog.terminate();
    has(&keeper, false).await;
    // And what nobody keeps alive ends by itself.
    mesh.register(&spec).await;
    has(&keeper, true).await;
    mesh.kill_control();
    has(&keeper, false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn others_use_the_same_zookeeper_with_users_and_services_of_their_own() {
    let Some(keeper) = ZooKeeper::start().await else { return };
    // We are the first to come, and make the nodes that all have theirs below.
    let more = json!({ "register": true, "ttlSeconds": 6, "dubbo": null });
    let mesh = Mesh::start_with(BINARY, keeper.settings(&more)).await;
    let spec = |service, host| Spec { service, version: "v1", host, protocol: Protocol::Http, calls: &[] };
    mesh.register(&spec("catalog", 11)).await;
    until(&mesh, "keeper", "it is written", |row| row.registered == Some(1)).await;
    let mut other = keeper.cli_as("other", "other.log", 30).await;
    let open = "world:anyone:cdrwa";
    let value = |name: &str, host: u8| json!({ "name": name, "id": "c9", "address": mesh.address(host, 0).ip(), "port": PORT });
    let create = |how: &str, path: &str, value: &str| format!("create {how} {path} '{value}' {open}");
    let line = create("-e", "/services/catalog/c9", &value("catalog", 20).to_string());
    other.say(&line, "Created /services/catalog/c9").await;
    until(&mesh, "keeper", "another's instance of our service", |row| row.instances == 1).await;
    // In our layout, below what Curator makes.
    let ours = json!({ "addresses": [mesh.address(21, 0).ip()], "ports": [{ "number": PORT }] });
    for (how, path, value) in [
        ("-c", "/services/shop", "x"),
        ("-c", "/services/shop/stock", "x"),
        ("-e", "/services/shop/stock/s1", &ours.to_string()),
    ] {
        other.say(&create(how, path, value), &format!("Created {path}")).await;
    }
    until(&mesh, "keeper", "one below a container", |row| {
        row.instances == 2 && row.state == Condition::Connected
    })
    .await;
    // Whoever may write there is no other service.
    let line = create("-e", "/services/catalog/evil", &value("payments", 22).to_string());
    other.say(&line, "Created /services/catalog/evil").await;
    let told = |word: &'static str| {
        let mesh = &mesh;
        eventually(word, move || async move {
            let problems = mesh.client.status().await.unwrap().problems;
            let is = problems.iter().any(|problem| problem.to_string().contains(word));
            if is { Ok(()) } else { Err(format!("{problems:?}")) }
        })
    };
    told("\"payments\" is not \"catalog\", which its path says").await;
    assert_eq!(row(&mesh, "keeper").await.instances, 2);
    other.say("delete /services/catalog/evil", "").await;
    until(&mesh, "keeper", "it has gone", |row| row.state == Condition::Connected).await;
    // Our node is ours, and so is the word of who may what with those above.
    let dump = keeper.word("dump").await.unwrap();
    let node =
        dump.lines().map(str::trim).find(|line| line.contains("/services/catalog/catalog-v1@")).unwrap();
    other.say(&format!("set {node} x"), &format!("Insufficient permission : {node}")).await;
    other.say(&format!("setAcl /services {open}"), "Insufficient permission : /services").await;

    // It goes, and another's node is in its place, which cannot be exchanged: it is told, and the others are written.
    mesh.client.deregister("catalog-v1").await.unwrap();
    until(&mesh, "keeper", "it is taken out", |row| row.registered == Some(0)).await;
    let below = format!("{node}/below");
    for path in [node, &below] {
        other.say(&create("", path, "x"), &format!("Created {path}")).await;
    }
    mesh.register(&spec("catalog", 11)).await;
    mesh.register(&spec("web", 12)).await;
    told("the node has children").await;
    until(&mesh, "keeper", "the others are written", |row| row.registered == Some(1)).await;
    other.say(&format!("deleteall {node}"), "").await;
    until(&mesh, "keeper", "then it is, too", |row| {
        row.registered == Some(2) && row.state == Condition::Connected
    })
    .await;
}
