//! Both proxies, and the one control plane that both ask.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use outrigger_tests::fake_control::FakeControl;
use outrigger_tests::mesh::{Mesh, NAMESPACE, Sidecar};
use outrigger_tests::protos::Protos;
use outrigger_tests::shelf::{Shelf, Shelves};
use outrigger_tests::wait::eventually;
use serde_json::{Value, json};

use super::apps::Apps;
use super::case::{Group, typed};
use super::play::Side;
use crate::BINARY;
use crate::foreign::{Foreign, run_envoy};
use crate::thin_thread::web;

/// The names of the applications; nobody listens at `dead`.
pub const ENDPOINTS: [&str; 9] = ["a", "b", "c", "d", "e", "f", "m", "n", "dead"];

/// What the sidecar asks for when its application calls.
const DESTINATIONS: &[&str] = &[
    "catalog:8080",
    "limited-1:80",
    "limited-2:80",
    "limited-3:80",
    "gradient-1:80",
    "gradient-2:80",
    "gradient-3:80",
    "aged-1:80",
    "aged-2:80",
];

/// Where connections grow old: one for requests and one for bytes.
pub const AGED: [usize; 2] = [DESTINATIONS.len() - 2, DESTINATIONS.len() - 1];

/// The listener of each, and what it has of limits.
fn listeners() -> [(&'static str, Option<(&'static str, Value)>); DESTINATIONS.len()] {
    let bucket = |tokens: u32| {
        let all = json!({ "default_value": { "numerator": 100, "denominator": "HUNDRED" } });
        json!({ "stat_prefix": "limit", "filter_enabled": all, "filter_enforced": all,
                "token_bucket": { "max_tokens": tokens, "tokens_per_fill": tokens, "fill_interval": "3600s" } })
    };
    let disabled = json!({ "stat_prefix": "limit", "token_bucket": bucket(1)["token_bucket"] });
    let rate = |message| Some(("envoy.extensions.filters.http.local_ratelimit.v3.LocalRateLimit", message));
    // With a minRTT that is never reached, so that the limit is what it may be at most.
    let gradient = |most: u32, more: Value| {
        let mut message = json!({ "gradient_controller_config": {
            "concurrency_limit_params": { "max_concurrency_limit": most, "concurrency_update_interval": "0.1s" },
            "min_rtt_calc_params": { "fixed_value": "30s", "min_concurrency": most },
        } });
        message.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
        Some(("envoy.extensions.filters.http.adaptive_concurrency.v3.AdaptiveConcurrency", message))
    };
    [
        ("differential", None),
        ("limited-1", rate(bucket(3))),
        ("limited-2", rate(bucket(1))),
        ("limited-3", rate(disabled)),
        ("gradient-1", gradient(1, json!({}))),
        ("gradient-2", gradient(2, json!({ "concurrency_limit_exceeded_status": { "code": 429 } }))),
        ("gradient-3", gradient(1, json!({ "enabled": { "default_value": false, "runtime_key": "off" } }))),
        ("aged-1", None),
        ("aged-2", None),
    ]
}

/// The cluster of the client's own service.
const OWN: &str = "own-service";
/// Where the client is.
const REGION: &str = "here";
const ZONE: &str = "x";

/// Half of the client's own are in its zone.
fn own() -> Value {
    super::case::cluster(OWN, &["d~x", "e~y"], json!({}))
}

/// Both, as long as this lives.
pub struct Stage {
    pub apps: Apps,
    pub ours: Side,
    pub theirs: Side,
    shelves: Shelves,
    _envoy: Foreign,
    _web: Sidecar,
    mesh: Mesh,
}

impl Stage {
    pub async fn set(envoy: &std::path::Path, groups: &[&Group]) -> Self {
        let protos = tokio::task::spawn_blocking(Protos::load);
        let mut mesh = Mesh::start(BINARY).await;
        let place = json!({ "region": REGION, "zone": ZONE });
        let node = json!({ "id": "web-v1", "workload": "web-v1", "namespace": NAMESPACE, "service_account": "web",
                           "app": "web", "version": "v1", "locality": place });
        mesh.bootstrap = json!({ "node": node, "local_cluster": OWN });
        let web = mesh.workload(&web(DESTINATIONS)).await;
        let places = ENDPOINTS.iter().zip(40..).map(|(&name, host)| (name, mesh.address(host, 9000)));
        let apps = Apps::start(places.collect::<Vec<_>>()).await;
        let theirs: Vec<_> = (8080..).take(DESTINATIONS.len()).map(|port| mesh.address(31, port)).collect();
        let shelf = shelf(&protos.await.unwrap(), &apps, groups, &theirs);
        let control = FakeControl::usurp(&mut mesh).await;
        let shelves = Shelves::open(control, shelf);
        let envoy =
            run_envoy(envoy, &mesh.path(""), &bootstrap(mesh.address(1, 15012), mesh.address(31, 15000)));
        let ours = Side { name: "ours", addresses: web.outbound.clone() };
        let theirs = Side { name: "theirs", addresses: theirs };
        let stage = Self { apps, ours, theirs, shelves, _envoy: envoy, _web: web, mesh };
        for (side, node) in [(&stage.ours, "web-v1"), (&stage.theirs, "envoy")] {
            stage.ready(side, node).await;
        }
        stage
    }

    async fn ready(&self, side: &Side, node: &str) {
        eventually(&format!("{} serves", side.name), || async {
            let refused = self.shelves.refused(node);
            assert!(refused.is_empty(), "{}: {refused:#?}", side.name);
            // Those with limits must not be asked before their time; they come with the first.
            for address in &side.addresses {
                tokio::net::TcpStream::connect(address).await.map_err(|error| error.to_string())?;
            }
            match outrigger_tests::app::get(side.addresses[0], "/ready", "").await {
                Ok((_, text)) if text.contains("it is there") => Ok(()),
                other => Err(format!("{other:?}\n{}", self.log())),
            }
        })
        .await;
    }

    /// The last words of the Envoy.
    fn log(&self) -> String {
        let log = std::fs::read_to_string(self.mesh.path("envoy.log")).unwrap_or_default();
        log.lines().rev().take(20).collect::<Vec<_>>().join("\n")
    }
}

fn shelf(protos: &Protos, apps: &Apps, groups: &[&Group], envoy: &[SocketAddr]) -> Shelf {
    let mut shelf = Shelf::default();
    let mut put = |kind: &str, name: &str, json: &Value| shelf.put(kind, name, protos.encode(kind, json));
    let shared: Vec<Value> = shared_clusters().into_iter().chain([own()]).collect();
    for cluster in shared.iter().chain(groups.iter().flat_map(|group| &group.clusters)) {
        let name = cluster["name"].as_str().expect("a cluster has a name");
        put(
            "envoy.config.endpoint.v3.ClusterLoadAssignment",
            name,
            &assignment(apps, name, &cluster["endpoints"]),
        );
        let mut cluster = cluster.clone();
        cluster.as_object_mut().expect("an object").remove("endpoints");
        cluster["type"] = "EDS".into();
        cluster["eds_cluster_config"] = json!({ "eds_config": ads() });
        put("envoy.config.cluster.v3.Cluster", name, &cluster);
    }
    put("envoy.config.route.v3.RouteConfiguration", "routes", &routes(groups));
    let all = listeners();
    for ((name, limit), address) in all.iter().zip(envoy) {
        put("envoy.config.listener.v3.Listener", name, &listener(name, *address, limit.as_ref()));
    }
    // Who serves a destination our sidecar asks by a type of our own; the answer is the same listener.
    let field = |number: u8, text: &str| [&[number << 3 | 2, text.len() as u8], text.as_bytes()].concat();
    for ((listener, _), destination) in all.iter().zip(DESTINATIONS) {
        let message = [field(1, destination), field(2, listener)].concat();
        shelf.put("outrigger.v1.Destination", destination, message);
    }
    shelf
}

fn ads() -> Value {
    json!({ "ads": {}, "resource_api_version": "V3" })
}

fn assignment(apps: &Apps, name: &str, endpoints: &Value) -> Value {
    let endpoints = endpoints.as_array().expect("a cluster has endpoints").iter();
    let mut places: BTreeMap<(u32, &str), Vec<Value>> = BTreeMap::new();
    for endpoint in endpoints {
        // `a*3` has three times the weight of `b`, `a@stage=x` metadata, `a^1` is of the second priority, and `a~y` in a zone.
        let endpoint = endpoint.as_str().expect("an endpoint has a name");
        let (endpoint, labels) = endpoint.split_once('@').unwrap_or((endpoint, ""));
        let (endpoint, zone) = endpoint.split_once('~').unwrap_or((endpoint, ""));
        let (endpoint, priority) = endpoint.split_once('^').unwrap_or((endpoint, "0"));
        let labels: serde_json::Map<String, Value> = labels
            .split(',')
            .filter_map(|pair| pair.split_once('='))
            .map(|(key, value)| (key.to_owned(), value.into()))
            .collect();
        let (name, weight) = endpoint.split_once('*').unwrap_or((endpoint, "1"));
        let weight: u32 = weight.parse().expect("a number");
        let json = json!({ "endpoint": { "address": socket(apps.addresses[name]), "hostname": format!("{name}.app.test") }, "load_balancing_weight": weight,
                    "metadata": { "filter_metadata": { "envoy.lb": labels } } });
        places.entry((priority.parse().expect("a number"), zone)).or_default().push(json);
    }
    let place = |((priority, zone), endpoints): ((u32, &str), Vec<Value>)| {
        let region = if zone.is_empty() { "" } else { REGION };
        json!({ "locality": { "region": region, "zone": zone }, "priority": priority, "lb_endpoints": endpoints })
    };
    let places: Vec<Value> = places.into_iter().map(place).collect();
    json!({ "cluster_name": name, "endpoints": places })
}

fn socket(address: SocketAddr) -> Value {
    json!({ "socket_address": { "address": address.ip(), "port_value": address.port() } })
}

/// Clusters of one endpoint each, named as it, and one of three.
fn shared_clusters() -> Vec<Value> {
    // Many cases at a time may retry; and what a reused connection means is for a case of its own.
    let fields = || {
        let options = typed(
            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
            json!({
            "common_http_protocol_options": { "max_requests_per_connection": 1 },
            "explicit_http_config": { "http_protocol_options": {} } }),
        );
        json!({ "circuit_breakers": { "thresholds": [{ "max_retries": 1000 }] },
                "typed_extension_protocol_options": { "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": options } })
    };
    let ones = ENDPOINTS.map(|name| super::case::cluster(name, &[name], fields()));
    let three = super::case::cluster("three", &["a", "b", "c"], fields());
    ones.into_iter().chain([three]).collect()
}

fn routes(groups: &[&Group]) -> Value {
    let ready = super::case::says(json!({ "path": "/ready" }), "it is there");
    let mut hosts = vec![json!({ "name": "localhost", "domains": ["localhost"], "routes": [ready] })];
    for group in groups {
        let mut host = group.host.clone();
        host["name"] = group.name.as_str().into();
        if host.get("domains").is_none() {
            host["domains"] = json!([format!("{}.test", group.name), format!("{}.test:8080", group.name)]);
        }
        hosts.push(host);
    }
    json!({ "name": "routes", "virtual_hosts": hosts })
}

fn listener(name: &str, address: SocketAddr, limit: Option<&(&str, Value)>) -> Value {
    let filter = |name: &str, kind: &str, message: Value| json!({ "name": name, "typed_config": typed(kind, message) });
    let limit = limit.map(|(kind, limit)| filter("the-limit", kind, limit.clone()));
    let session = "envoy.extensions.filters.http.stateful_session.v3.StatefulSession";
    let others = [
        filter("envoy.filters.http.stateful_session", session, json!({})),
        filter("envoy.filters.http.cors", "envoy.extensions.filters.http.cors.v3.Cors", json!({})),
        filter("envoy.filters.http.fault", "envoy.extensions.filters.http.fault.v3.HTTPFault", json!({})),
        filter("envoy.filters.http.router", "envoy.extensions.filters.http.router.v3.Router", json!({})),
    ];
    let filters: Vec<Value> = limit.into_iter().chain(others).collect();
    let mut manager = json!({
        "stat_prefix": name,
        "rds": { "route_config_name": "routes", "config_source": ads() },
        "http_filters": filters,
        "normalize_path": true,
        "merge_slashes": true,
    });
    if name == "aged-1" {
        manager["common_http_protocol_options"] = json!({ "max_connection_duration": "2s" });
        manager["drain_timeout"] = "0.5s".into();
    }
    let manager = filter(
        "envoy.filters.network.http_connection_manager",
        "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        manager,
    );
    let bytes = filter(
        "envoy.filters.network.tcp_proxy",
        "envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy",
        json!({ "stat_prefix": name, "cluster": "a", "max_downstream_connection_duration": "2s" }),
    );
    json!({
        "name": name,
        "address": socket(address),
        "traffic_direction": "OUTBOUND",
        "filter_chains": [{ "filters": [if name == "aged-2" { bytes } else { manager }] }],
    })
}

fn bootstrap(xds: SocketAddr, admin: SocketAddr) -> Value {
    let tls = json!({ "common_tls_context": {
        "tls_params": { "tls_minimum_protocol_version": "TLSv1_3", "tls_maximum_protocol_version": "TLSv1_3" },
        "alpn_protocols": ["h2"] } });
    json!({
        "node": { "id": "envoy", "cluster": "web", "locality": { "region": REGION, "zone": ZONE } },
        "cluster_manager": { "local_cluster_name": OWN },
        "admin": { "address": socket(admin) },
        "dynamic_resources": {
            "ads_config": { "api_type": "DELTA_GRPC", "transport_api_version": "V3",
                            "grpc_services": [{ "envoy_grpc": { "cluster_name": "xds" } }] },
            "cds_config": ads(),
            "lds_config": ads(),
        },
        "static_resources": { "clusters": [{
            "name": "xds", "type": "STATIC", "connect_timeout": "5s",
            "typed_extension_protocol_options": { "envoy.extensions.upstreams.http.v3.HttpProtocolOptions":
                typed("envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
                      json!({ "explicit_http_config": { "http2_protocol_options": {} } })) },
            "load_assignment": { "cluster_name": "xds", "endpoints": [{ "lb_endpoints": [{ "endpoint": {
                "address": socket(xds) } }] }] },
            "transport_socket": { "name": "envoy.transport_sockets.tls",
                "typed_config": typed("envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext", tls) },
        },
        // An Envoy takes it from here only.
        { "name": OWN, "type": "EDS", "connect_timeout": "5s", "eds_cluster_config": { "eds_config": ads() } }] },
    })
}
