//! Our own pair, configured by the real control plane, in explicit mode.

use std::path::Path;

use anyhow::{Context, Result};
use outrigger_control::api::types::TokenRequest;
use outrigger_control::instance::{Instance, Port, Protocol, State};
use outrigger_tests::mesh::NAMESPACE;
use outrigger_tests::wait::eventually;
use serde_json::{Value, json};

use super::{Peer, SIDECAR_CPU, Site, argv, path_text};
use crate::Kind;
use crate::process::Process;

const RULES: &str = "apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: default, namespace: shop}
spec: {mtls: {mode: STRICT}}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: echo, namespace: shop}
spec:
  action: ALLOW
  rules: [{from: [{source: {principals: [cluster.local/ns/shop/sa/load]}}]}]
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: echo, namespace: shop}
spec:
  hosts: [echo]
  http:
  - name: one
    match: [{uri: {prefix: /}}]
    route: [{destination: {host: echo}}]
";

/// Starts it; `wrap` goes before each sidecar's command line.
pub async fn start(site: &Site<'_>, wrap: &[String]) -> Result<Peer> {
    let mesh = site.mesh;
    let (front, middle) = (site.ports(11, 15101), site.ports(12, 8080));
    for (service, host) in [("load", 11), ("echo", 12)] {
        let ports = if service == "echo" {
            middle.all().map(|(kind, at)| port(kind, at.port())).to_vec()
        } else {
            Vec::new()
        };
        mesh.client.register(&instance(service, mesh.address(host, 0).ip(), ports)).await?;
        let request = TokenRequest {
            namespace: NAMESPACE.into(),
            service_account: service.into(),
            services: vec![service.into()],
            ..TokenRequest::default()
        };
        mesh.client.create_token(&request).await?.write(&site.directory.join(format!("{service}.join")))?;
    }
    let inbound: Vec<Value> = middle
        .all()
        .iter()
        .zip(site.app.all())
        .map(|((_, bind), (_, app))| json!({ "bind": bind, "app": app }))
        .collect();
    let outbound: Vec<Value> = front
        .all()
        .iter()
        .zip(middle.all())
        .map(|((_, bind), (_, to))| json!({ "bind": bind, "to": format!("echo:{}", to.port()) }))
        .collect();
    let echo = sidecar(site, "echo", 12, json!({ "inbound": inbound }), wrap)?;
    let load = sidecar(site, "load", 11, json!({ "outbound": outbound }), wrap)?;
    for host in [11, 12] {
        let admin = mesh.address(host, 15000);
        eventually(&format!("the sidecar at {admin} is ready"), || async {
            match outrigger_tests::app::get(admin, "/ready", "").await {
                Ok((200, _)) => Ok(()),
                Ok((_, text)) => Err(text),
                Err(error) => Err(error.to_string()),
            }
        })
        .await;
    }
    mesh.apply(RULES).await;
    Ok(Peer { name: "outrigger", front, sidecars: vec![load, echo] })
}

/// One sidecar that calls so many services.
pub async fn crowded(site: &Site<'_>, services: u16) -> Result<Process> {
    let mesh = site.mesh;
    mesh.client.register(&instance("crowd", mesh.address(41, 0).ip(), Vec::new())).await?;
    let request = TokenRequest {
        namespace: NAMESPACE.into(),
        service_account: "crowd".into(),
        services: vec!["crowd".into()],
        ..TokenRequest::default()
    };
    mesh.client.create_token(&request).await?.write(&site.directory.join("crowd.join"))?;
    let bind =
        |service| json!({ "bind": mesh.address(41, 16000 + service), "to": format!("s{service}.shop:80") });
    let outbound: Vec<Value> = (0..services).map(bind).collect();
    sidecar(site, "crowd", 41, json!({ "outbound": outbound }), &[])
}

fn sidecar(site: &Site<'_>, name: &str, host: u8, binds: Value, wrap: &[String]) -> Result<Process> {
    let mut bootstrap = json!({
        "node": { "id": name, "workload": name, "namespace": NAMESPACE, "service_account": name,
                  "app": name, "version": "v1" },
        "join": site.directory.join(format!("{name}.join")),
        "state_dir": site.directory.join(format!("{name}.state")),
        "workers": 1,
        "admin": site.mesh.address(host, 15000),
        "parent_pipe": true,
    });
    if let (Some(all), Value::Object(binds)) = (bootstrap.as_object_mut(), binds) {
        all.extend(binds);
    }
    let file = site.write(&format!("{name}.json"), &bootstrap.to_string())?;
    let program = program(&site.bin)?;
    let mut words = wrap.iter().map(|word| word.replace("NAME", name)).collect::<Vec<_>>();
    words.extend(argv([&program, "--bootstrap", &file]));
    Process::start(&format!("outrigger-{name}"), SIDECAR_CPU, &words, &site.directory)
}

fn program(bin: &Path) -> Result<String> {
    let path = bin.join("outrigger-proxy");
    path.try_exists().ok().filter(|there| *there).with_context(|| format!("no {}", path.display()))?;
    Ok(path_text(&path))
}

fn port(kind: Kind, number: u16) -> Port {
    let protocol = match kind {
        Kind::H1 | Kind::Connect => Protocol::Http,
        Kind::H2 => Protocol::Http2,
        Kind::Grpc => Protocol::Grpc,
        Kind::Tcp | Kind::Bulk => Protocol::Tcp,
    };
    Port { number, name: String::new(), protocol, aliases: Vec::new(), upgrades: Vec::new() }
}

fn instance(service: &str, address: std::net::IpAddr, ports: Vec<Port>) -> Instance {
    Instance {
        id: service.into(),
        service: service.into(),
        namespace: NAMESPACE.into(),
        addresses: vec![address],
        network: String::new(),
        ports,
        labels: Default::default(),
        metadata: Default::default(),
        tags: Vec::new(),
        version: Some("v1".into()),
        weight: 100,
        zone: String::new(),
        region: String::new(),
        service_account: service.into(),
        state: State::Running,
        sidecar: true,
        ttl_seconds: None,
        word: Default::default(),
        services: None,
    }
}
