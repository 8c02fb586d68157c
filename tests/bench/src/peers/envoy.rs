//! Envoy with a static configuration: bare, without what Istio adds to it (its statistics and metadata filters).

use std::net::SocketAddr;

use anyhow::Result;
use serde_json::{Value, json};

use super::{Peer, SIDECAR_CPU, Site, argv, http_version, program};
use crate::process::Process;
use crate::{Ports, crowd};

const TYPE: &str = "type.googleapis.com/envoy.extensions.";

/// Starts it.
pub fn start(site: &Site<'_>) -> Result<Peer> {
    let (front, middle) = (site.ports(21, 15101), site.ports(22, 8080));
    let inbound = end(site, "echo", &middle, &site.app, true)?;
    let outbound = end(site, "load", &front, &middle, false)?;
    Ok(Peer { name: "envoy", front, sidecars: vec![outbound, inbound] })
}

fn end(site: &Site<'_>, name: &str, from: &Ports, to: &Ports, inbound: bool) -> Result<Process> {
    let (mut listeners, mut clusters) = (Vec::new(), Vec::new());
    for ((kind, from), (_, to)) in from.all().into_iter().zip(to.all()) {
        let (label, version) = (format!("{kind:?}"), http_version(kind));
        let network = if version.is_some() { http(&label, inbound) } else { tcp(&label) };
        let mut chain = json!({ "filters": [network] });
        let mut cluster = cluster(&label, to, version);
        let alpn = version.map(|version| if version == 1 { "http/1.1" } else { "h2" });
        let tls = tls(site, name, inbound, alpn);
        if inbound {
            chain["transport_socket"] = tls;
        } else {
            cluster["transport_socket"] = tls;
        }
        listeners.push(json!({ "name": label, "address": address(from), "filter_chains": [chain] }));
        clusters.push(cluster);
    }
    let config = json!({
        "node": { "id": name, "cluster": "bench" },
        "admin": { "address": address(site.mesh.address(if inbound { 22 } else { 21 }, 15000)) },
        "static_resources": { "listeners": listeners, "clusters": clusters },
    });
    let file = site.write(&format!("envoy-{name}.json"), &config.to_string())?;
    let words = argv([
        &program("envoy")?,
        "-c",
        &file,
        "--concurrency",
        "1",
        "--log-level",
        "warn",
        "--disable-hot-restart",
    ]);
    Process::start(&format!("envoy-{name}"), SIDECAR_CPU, &words, &site.directory)
}

/// One Envoy that calls so many services.
pub fn crowded(site: &Site<'_>, services: u16, endpoints: u16) -> Result<Process> {
    let host = |service: u16| format!("s{service}.shop.svc.cluster.local");
    let clusters = (0..services).map(|service| {
        let name = host(service);
        let at = |endpoint| SocketAddr::from((crowd::address(service, endpoint), 80));
        let endpoint = |endpoint| json!({ "endpoint": { "address": address(at(endpoint)) } });
        let mut cluster = cluster(&name, at(0), Some(1));
        cluster["load_assignment"]["endpoints"] =
            json!([{ "lb_endpoints": (0..endpoints).map(endpoint).collect::<Vec<_>>() }]);
        cluster["transport_socket"] = tls(site, "load", false, Some("http/1.1"));
        cluster
    });
    let hosts = (0..services).map(|service| {
        json!({ "name": host(service), "domains": [host(service), format!("s{service}.shop")],
                "routes": [{ "match": { "prefix": "/" }, "route": { "cluster": host(service) } }] })
    });
    let mut network = http("crowd", false);
    network["typed_config"]["route_config"]["virtual_hosts"] = hosts.collect();
    let listener = json!({ "name": "crowd", "address": address(site.mesh.address(42, 16000)),
                           "filter_chains": [{ "filters": [network] }] });
    let config = json!({
        "node": { "id": "crowd", "cluster": "bench" },
        "admin": { "address": address(site.mesh.address(42, 15000)) },
        "static_resources": { "listeners": [listener], "clusters": clusters.collect::<Vec<_>>() },
    });
    let file = site.write("envoy-crowd.json", &config.to_string())?;
    let program = program("envoy")?;
    let words =
        argv([&program, "-c", &file, "--concurrency", "1", "--log-level", "warn", "--disable-hot-restart"]);
    Process::start("envoy-crowd", SIDECAR_CPU, &words, &site.directory)
}

fn address(at: SocketAddr) -> Value {
    json!({ "socket_address": { "address": at.ip(), "port_value": at.port() } })
}

fn http(label: &str, inbound: bool) -> Value {
    let retry =
        json!({ "retry_on": "connect-failure,refused-stream,unavailable,cancelled", "num_retries": 2 });
    let mut route = json!({ "cluster": label, "timeout": "0s" });
    let mut filters = Vec::new();
    if inbound {
        let principal = json!({ "authenticated": { "principal_name": {
            "exact": "spiffe://cluster.local/ns/shop/sa/load" } } });
        filters.push(json!({ "name": "rbac", "typed_config": {
            "@type": format!("{TYPE}filters.http.rbac.v3.RBAC"),
            "rules": { "action": "ALLOW", "policies": { "load": {
                "permissions": [{ "any": true }], "principals": [principal] } } },
        }}));
    } else {
        route["retry_policy"] = retry;
    }
    filters.push(json!({ "name": "router", "typed_config": {
        "@type": format!("{TYPE}filters.http.router.v3.Router") } }));
    json!({ "name": "http", "typed_config": {
        "@type": format!("{TYPE}filters.network.http_connection_manager.v3.HttpConnectionManager"),
        "stat_prefix": label,
        "generate_request_id": false,
        "route_config": { "name": label, "virtual_hosts": [{ "name": "any", "domains": ["*"],
            "routes": [{ "match": { "prefix": "/" }, "route": route }] }] },
        "http_filters": filters,
    }})
}

fn tcp(label: &str) -> Value {
    json!({ "name": "tcp", "typed_config": {
        "@type": format!("{TYPE}filters.network.tcp_proxy.v3.TcpProxy"), "stat_prefix": label, "cluster": label } })
}

fn cluster(label: &str, to: SocketAddr, version: Option<u8>) -> Value {
    let endpoint = json!({ "endpoint": { "address": address(to) } });
    let most = u32::MAX;
    let mut cluster = json!({
        "name": label, "type": "STATIC", "connect_timeout": "5s",
        "circuit_breakers": { "thresholds": [{ "max_connections": most, "max_pending_requests": most,
            "max_requests": most, "max_retries": most }] },
        "load_assignment": { "cluster_name": label, "endpoints": [{ "lb_endpoints": [endpoint] }] },
    });
    if let Some(version) = version {
        let option = if version == 1 { "http_protocol_options" } else { "http2_protocol_options" };
        cluster["typed_extension_protocol_options"] = json!({
        "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
            "@type": format!("{TYPE}upstreams.http.v3.HttpProtocolOptions"),
            "explicit_http_config": { option: {} },
        }});
    }
    cluster
}

/// mTLS that also checks the peer's SPIFFE identity.
fn tls(site: &Site<'_>, name: &str, inbound: bool, alpn: Option<&str>) -> Value {
    let peer = if inbound { "load" } else { "echo" };
    let file = |extension: &str| json!({ "filename": site.directory.join(format!("{name}.{extension}")) });
    let context = if inbound { "DownstreamTlsContext" } else { "UpstreamTlsContext" };
    let mut config = json!({
        "@type": format!("{TYPE}transport_sockets.tls.v3.{context}"),
        "common_tls_context": {
            // An Envoy client stops at TLS 1.2 otherwise.
            "tls_params": { "tls_maximum_protocol_version": "TLSv1_3" },
            "tls_certificates": [{ "certificate_chain": file("pem"), "private_key": file("key") }],
            "validation_context": {
                "trusted_ca": { "filename": site.directory.join("roots.pem") },
                "match_typed_subject_alt_names": [{ "san_type": "URI",
                    "matcher": { "exact": format!("spiffe://cluster.local/ns/shop/sa/{peer}") } }],
            },
            "alpn_protocols": alpn.into_iter().collect::<Vec<_>>(),
        },
    });
    if inbound {
        config["require_client_certificate"] = true.into();
    } else {
        config["sni"] = "echo.bench".into();
    }
    json!({ "name": "tls", "typed_config": config })
}
