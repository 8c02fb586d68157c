//! How much a registry of 10,000 instances costs, of each kind, with its real server: docs/control-plane.md has what this printed.
//!
//! Not a test, it takes minutes and shows a table: `OUTRIGGER_FIGURES=target/release/outrigger cargo test --workspace --test scenarios -- --ignored figures::`.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use outrigger_control::instance::{Instance, Protocol};
use outrigger_tests::mesh::{Mesh, free_net};
use outrigger_tests::require;
use serde_json::{Value, json};

use crate::BINARY;
use crate::consul::{self, Consul};
use crate::etcd::Etcd;
use crate::eureka::Eureka;
use crate::nacos::Nacos;
use crate::registries::row;
use crate::zookeeper::ZooKeeper;

const SERVICES: u32 = 1000;
const EACH: u32 = 10;

/// Ticks of a CPU that a process has used; a second has a hundred.
fn ticks(pid: u32) -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
    fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
}

fn resident_mib(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() / 1024
}

fn instance(service: u32, number: u32) -> Instance {
    let n = service * EACH + number;
    let json = json!({
        "id": format!("s{service}-{number}"), "service": format!("s{service}"), "addresses": [format!("10.9.{}.{}", n / 250, n % 250 + 1)],
        "ports": [{ "number": 8080, "protocol": Protocol::Http }], "version": "v1", "serviceAccount": format!("s{service}"),
    });
    serde_json::from_value(json).unwrap()
}

fn only(settings: &Value, more: &Value) -> Value {
    let mut row = settings["registries"][0].clone();
    let (_, kind) = row.as_object_mut().unwrap().iter_mut().find(|(name, _)| *name != "name").unwrap();
    kind.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    row
}

/// From its start to serving all of them, then at rest.
async fn measured(binary: &str, row_of: Value) {
    let name = row_of["name"].as_str().unwrap().to_owned();
    let begun = Instant::now();
    let mesh = Mesh::start_with(binary, json!({ "registries": [row_of] })).await;
    let serving = begun.elapsed();
    let all = (SERVICES * EACH) as usize;
    while row(&mesh, &name).await.instances < all {
        assert!(begun.elapsed() < Duration::from_secs(120), "{:?}", row(&mesh, &name).await);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let whole = begun.elapsed();
    tokio::time::sleep(Duration::from_secs(20)).await;
    let pid = mesh.control_id().unwrap();
    let before = ticks(pid);
    tokio::time::sleep(Duration::from_secs(30)).await;
    let used = ticks(pid) - before;
    println!(
        "{name:<10} serving {:>5.2} s  all {:>5.2} s  {:>4} MiB  at rest {:.1} % of a core",
        serving.as_secs_f64(),
        whole.as_secs_f64(),
        resident_mib(pid),
        used as f64 / 30.0
    );
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "figures"]
async fn registries_of_ten_thousand_instances() {
    let (Some(consul), Some(etcd)) = (require::tool("consul"), require::tool("etcd")) else { return };
    let binary = std::env::var("OUTRIGGER_FIGURES").unwrap_or_else(|_| BINARY.to_owned());
    let (net, there) = (free_net(), free_net());
    let consul = Consul::start(&consul, SocketAddr::from(([127, net[0], net[1], 5], 8500))).await;
    let etcd = Etcd::start(&etcd, there).await;
    let (Some(keeper), Some(eureka), Some(nacos)) =
        (ZooKeeper::start().await, Eureka::start().await, Nacos::start().await)
    else {
        return;
    };
    let none = json!({});
    let all = [
        (consul::settings(&consul), json!({ "namespace": "default" })),
        (etcd.settings(&none), none.clone()),
        (keeper.settings(&none), json!({ "namespace": "default" })),
        (eureka.settings(&none), json!({ "namespace": "default", "intervalSeconds": 30 })),
        (
            nacos.settings(&none),
            json!({ "namespace": "default", "groups": ["DEFAULT_GROUP"], "intervalSeconds": 10 }),
        ),
    ];
    let rows: Vec<Value> = all
        .iter()
        .map(|(settings, more)| {
            let mut more = more.clone();
            more["register"] = json!(true);
            only(settings, &more)
        })
        .collect();
    let names: Vec<String> = rows.iter().map(|row| row["name"].as_str().unwrap().to_owned()).collect();
    // An agent of Consul is for the services of its node, and takes 20 a second when it has thousands.
    for n in 0..SERVICES * EACH {
        let one = instance(n / EACH, n % EACH);
        let service =
            json!({ "ID": one.id, "Service": one.service, "Port": 8080, "Address": one.addresses[0] });
        let node = json!({ "Node": format!("ext{}", n % 50), "Address": "10.8.0.1", "Service": service });
        consul.put("/v1/catalog/register", node).await;
    }
    let writer = Mesh::start_with(&binary, json!({ "registries": &rows[1..] })).await;
    for service in 0..SERVICES {
        for number in 0..EACH {
            writer.client.register(&instance(service, number)).await.unwrap();
        }
    }
    let begun = Instant::now();
    for name in &names[1..] {
        while row(&writer, name).await.registered < Some((SERVICES * EACH) as usize) {
            assert!(begun.elapsed() < Duration::from_secs(300), "{:?}", row(&writer, name).await);
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        println!(
            "{name}: all are written {:.1} s after the last was registered here",
            begun.elapsed().as_secs_f64()
        );
    }
    for (settings, more) in &all {
        measured(&binary, only(settings, more)).await;
    }
}
