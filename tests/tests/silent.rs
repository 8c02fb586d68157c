//! Five real servers that are there and say nothing any more: each is away after a while, what it said serves on, and it comes back.

use std::net::SocketAddr;
use std::sync::atomic::Ordering::SeqCst;
use std::time::Instant;

use outrigger_control::api::types::{Condition, RegistryBody};
use outrigger_tests::app::echo;
use outrigger_tests::mesh::{Mesh, PORT, Process, free_net};
use outrigger_tests::require;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use crate::BINARY;
use crate::consul::{self, Consul};
use crate::etcd::{Etcd, plain};
use crate::eureka::Eureka;
use crate::nacos::Nacos;
use crate::registries::{answer, row, under_load, until};
use crate::thin_thread::web;
use crate::zookeeper::ZooKeeper;

struct Servers {
    consul: Consul,
    etcd: Etcd,
    keeper: ZooKeeper,
    eureka: Eureka,
    nacos: Nacos,
}

impl Servers {
    async fn start() -> Option<Self> {
        let (consul, etcd) = (require::tool("consul")?, require::tool("etcd")?);
        let (net, there) = (free_net(), free_net());
        let (consul, etcd, keeper, eureka, nacos) = tokio::join!(
            Consul::start(&consul, SocketAddr::from(([127, net[0], net[1], 5], 8500))),
            Etcd::start(&etcd, there),
            ZooKeeper::start(),
            Eureka::start(),
            Nacos::start()
        );
        Some(Self { consul, etcd, keeper: keeper?, eureka: eureka?, nacos: nacos? })
    }

    fn rows(&self) -> Value {
        let none = json!({});
        let mut dc1 = consul::settings(&self.consul);
        dc1["registries"][0]["consul"]["waitSeconds"] = json!(1);
        let others = [
            self.etcd.settings(&none),
            self.keeper.settings(&none),
            self.eureka.settings(&none),
            self.nacos.settings(&none),
        ];
        let rows = [dc1].into_iter().chain(others);
        json!({ "registries": rows.map(|one| one["registries"][0].clone()).collect::<Vec<_>>() })
    }

    fn signal(&self, signal: Signal) {
        let processes: [&Option<Process>; 5] = [
            &self.consul.process,
            &self.etcd.process,
            &self.keeper.process,
            &self.eureka.process,
            &self.nacos.process,
        ];
        for process in processes {
            let id = i32::try_from(process.as_ref().unwrap().id()).unwrap();
            kill_process(Pid::from_raw(id).unwrap(), signal).unwrap();
        }
    }

    /// One service of each.
    async fn fill(&self, mesh: &Mesh) {
        let at = |host| mesh.address(host, PORT);
        for (host, name) in NAMES.iter().enumerate() {
            echo(at(20 + u8::try_from(host).unwrap()), name.1).await;
        }
        self.consul.register("c1", "catalog", at(20)).await;
        self.etcd.put("shop/stock/s1", &plain(at(21)), "0").await;
        let mut cli = self.keeper.cli("cli.log", 30).await;
        let cart = json!({ "name": "cart", "id": "k1", "address": at(22).ip(), "port": PORT });
        for (path, value) in [
            ("/dubbo", ""),
            ("/services", ""),
            ("/services/cart", ""),
            ("/services/cart/k1", &*cart.to_string()),
        ] {
            cli.make("", path, value).await;
        }
        self.eureka.register("p1", "pay", at(23), 600).await;
        self.nacos.register("mail", at(24), 600, "").await;
    }
}

/// The registries' names in the settings, and a service of each.
const NAMES: [(&str, &str); 5] =
    [("dc1", "catalog"), ("kv", "stock"), ("keeper", "cart"), ("spring", "pay"), ("alibaba", "mail")];

const CALLED: &[&str] = &["catalog:8080", "stock:8080", "cart:8080", "pay:8080", "mail:8080"];

#[tokio::test(flavor = "multi_thread")]
async fn registries_that_fall_silent_are_away_and_what_they_said_serves_on() {
    let Some(servers) = Servers::start().await else { return };
    let mesh = Mesh::start_with(BINARY, servers.rows()).await;
    servers.fill(&mesh).await;
    let web = mesh.workload(&web(CALLED)).await;
    for (entry, (_, service)) in web.outbound.iter().zip(NAMES) {
        answer(*entry, &format!("X-App-Name: {service}\r\n")).await;
    }
    let is_well = |row: &RegistryBody| row.state == Condition::Connected && row.instances == 1;
    for (name, _) in NAMES {
        until(&mesh, name, "it is well", is_well).await;
    }
    let (stop, failed, load) = under_load(web.outbound.clone());

    servers.signal(Signal::STOP);
    let begun = Instant::now();
    // Those that tell sooner first.
    for name in ["keeper", "alibaba", "dc1", "spring", "kv"] {
        until(&mesh, name, "its silence is told", |row| row.state == Condition::Away).await;
        let row = row(&mesh, name).await;
        assert_eq!(row.instances, 1, "{row:?}");
        println!("{name} is away after {:?}: {}", begun.elapsed(), row.last_error.unwrap());
    }
    servers.signal(Signal::CONT);
    for (name, _) in NAMES {
        until(&mesh, name, "it is back", is_well).await;
    }
    stop.store(true, SeqCst);
    let served = load.await.unwrap();
    assert_eq!(failed.load(SeqCst), 0, "of {served}");
}
