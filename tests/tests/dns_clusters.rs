//! Clusters of names: what our resolver makes of the answers of a name server, beside a real Envoy that asks the same one.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use outrigger_model::cluster::{DnsDiscovery, DnsFamilies};
use outrigger_model::endpoint::{Endpoint, EndpointSet, LocalityEndpoints, NamedAddress};
use outrigger_proxy::resolve::{Board, Lookup, Resolver};
use outrigger_tests::app::{body, get};
use outrigger_tests::names::NameServer;
use outrigger_tests::require;
use outrigger_tests::wait::eventually;
use serde_json::{Value, json};

use crate::foreign::run_envoy;

/// A cluster: its name, which name it is of, Envoy's words for its type and families, and ours.
type Case = (&'static str, &'static str, &'static str, &'static str, bool, DnsFamilies);

const CASES: [Case; 6] = [
    ("all", "both.example", "STRICT_DNS", "ALL", false, DnsFamilies::All),
    ("auto", "both.example", "STRICT_DNS", "AUTO", false, DnsFamilies::V6Preferred),
    ("four", "both.example", "STRICT_DNS", "V4_ONLY", false, DnsFamilies::V4Only),
    ("preferred", "both.example", "STRICT_DNS", "V4_PREFERRED", false, DnsFamilies::V4Preferred),
    ("auto-of-four", "four.example", "STRICT_DNS", "AUTO", false, DnsFamilies::V6Preferred),
    ("logical", "four.example", "LOGICAL_DNS", "V4_ONLY", true, DnsFamilies::V4Only),
];

type Sets = BTreeMap<String, BTreeSet<IpAddr>>;

fn envoy_config(admin: SocketAddr, server: SocketAddr) -> Value {
    let resolver = json!({
        "name": "envoy.network.dns_resolver.cares",
        "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.network.dns_resolver.cares.v3.CaresDnsResolverConfig",
            "resolvers": [{ "socket_address": { "address": server.ip(), "port_value": server.port() } }],
            "dns_resolver_options": { "no_default_search_domain": true },
        },
    });
    let cluster = |(name, host, kind, families, ..): &Case| {
        json!({
            "name": name, "type": kind, "dns_lookup_family": families, "dns_refresh_rate": "0.2s",
            "typed_dns_resolver_config": resolver, "connect_timeout": "1s",
            "load_assignment": { "cluster_name": name, "endpoints": [{ "lb_endpoints": [{ "endpoint": {
                "address": { "socket_address": { "address": host, "port_value": 80 } } } }] }] },
        })
    };
    json!({
        "admin": { "address": { "socket_address": { "address": admin.ip(), "port_value": admin.port() } } },
        "static_resources": { "clusters": CASES.iter().map(cluster).collect::<Vec<_>>() },
    })
}

/// What Envoy has, and how often a lookup of any cluster failed.
async fn envoy_sets(admin: SocketAddr) -> Result<(Sets, u64), String> {
    let page = |path: &'static str| async move {
        let (_, text) = get(admin, path, "").await.map_err(|error| error.to_string())?;
        serde_json::from_str::<Value>(&body(&text)).map_err(|error| error.to_string())
    };
    let clusters = page("/clusters?format=json").await?;
    let mut sets = Sets::new();
    for cluster in clusters["cluster_statuses"].as_array().into_iter().flatten() {
        let hosts = cluster["host_statuses"].as_array().into_iter().flatten();
        let address = |host: &Value| host["address"]["socket_address"]["address"].as_str()?.parse().ok();
        let name = cluster["name"].as_str().unwrap_or_default().to_owned();
        sets.insert(name, hosts.filter_map(address).collect());
    }
    let stats = page("/stats?format=json&filter=update_failure").await?;
    let failures = stats["stats"].as_array().into_iter().flatten().filter_map(|stat| stat["value"].as_u64());
    Ok((sets, failures.sum()))
}

/// Our resolver with the same clusters, kept going.
struct Ours {
    sets: tokio::sync::watch::Receiver<Sets>,
    board: Board,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Ours {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn ours(server: SocketAddr) -> Ours {
    let board = Board::default();
    let lookup = Lookup::new(vec![server], Vec::new(), PathBuf::new());
    let mut resolver = Resolver::new(lookup, board.clone());
    let wanted = CASES.iter().map(|&(name, host, _, _, first_only, families)| {
        let address = NamedAddress { host: host.to_owned(), port: 80 };
        let place = LocalityEndpoints { endpoints: vec![Endpoint::new(address)], ..Default::default() };
        let endpoints = EndpointSet::new(name, vec![place]);
        let refresh = Duration::from_millis(200);
        (
            name.to_owned(),
            DnsDiscovery { endpoints, first_only, refresh, families, ..DnsDiscovery::default() },
        )
    });
    let wanted = wanted.collect();
    let (said, sets) = tokio::sync::watch::channel(Sets::new());
    let task = tokio::spawn(async move {
        resolver.want(wanted);
        loop {
            for set in resolver.next().await {
                let addresses = set.iter().map(|endpoint| endpoint.address.ip()).collect();
                said.send_modify(|sets| drop(sets.insert(set.cluster.clone(), addresses)));
            }
        }
    });
    Ours { sets, board, task }
}

/// Until both have the same, and that is what is expected of the cluster `all`.
async fn agree(admin: SocketAddr, ours: &Ours, all: &[IpAddr], what: &str) {
    let expected: BTreeSet<IpAddr> = all.iter().copied().collect();
    eventually(what, || async {
        let (envoy, _) = envoy_sets(admin).await?;
        let we = ours.sets.borrow().clone();
        match envoy == we && we.get("all") == Some(&expected) {
            true => Ok(()),
            false => Err(format!("Envoy has {envoy:?}, we have {we:?}")),
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn names_have_the_addresses_that_they_have_for_a_real_envoy() {
    let Some(envoy) = require::tool("envoy") else { return };
    let server = NameServer::start("127.0.0.1:0".parse().unwrap()).await;
    let address = |text: &str| text.parse::<IpAddr>().unwrap();
    // Loopback: this host has a way to both kinds.
    let (four, other, six) = (address("127.0.0.21"), address("127.0.0.22"), address("::1"));
    server.has("both.example", &[other, four, six]);
    server.has("four.example", &[other, four]);
    let directory = tempfile::tempdir().unwrap();
    let admin = {
        let probe = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        probe.local_addr().unwrap()
    };
    let _envoy = run_envoy(&envoy, directory.path(), &envoy_config(admin, server.address));
    let ours = ours(server.address);
    agree(admin, &ours, &[four, other, six], "all addresses").await;
    assert_eq!(ours.sets.borrow()["logical"], BTreeSet::from([other]), "the first of the answer");

    server.has("both.example", &[four]);
    server.has("four.example", &[four]);
    agree(admin, &ours, &[four], "the change of an answer").await;

    let before = envoy_sets(admin).await.unwrap().1;
    server.fails("both.example");
    server.fails("four.example");
    eventually("failures on both sides", || async {
        let (_, failures) = envoy_sets(admin).await?;
        let we = ours.board.name("both.example").map_or(0, |name| name.failures);
        if failures > before && we > 1 { Ok(()) } else { Err(format!("Envoy {failures}, we {we}")) }
    })
    .await;
    agree(admin, &ours, &[four], "the last addresses in spite of failures").await;

    server.has("both.example", &[other]);
    server.has("four.example", &[other]);
    agree(admin, &ours, &[other], "recovery").await;

    server.lacks("both.example");
    eventually("a name that is gone", || async {
        let (envoy, _) = envoy_sets(admin).await?;
        let we = ours.sets.borrow().clone();
        let gone =
            |sets: &Sets| sets["all"].is_empty() && sets["auto"].is_empty() && !sets["logical"].is_empty();
        if gone(&envoy) && gone(&we) { Ok(()) } else { Err(format!("Envoy has {envoy:?}, we have {we:?}")) }
    })
    .await;
}
