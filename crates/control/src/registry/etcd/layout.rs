//! What the value of a key says, in whichever of the layouts that people have.
//!
//! | whose | key under the prefix | value |
//! |---|---|---|
//! | ours | `NAMESPACE/SERVICE/ID` | an instance as in a registry's file |
//! | gRPC naming | `SERVICE/ADDRESS:PORT` | `{"Addr": "10.0.0.1:80", "Metadata": …}` |
//! | go-micro | `SERVICE/ID` | `{"name", "version", "nodes": [{"id", "address", "metadata"}]}` |
//! | go-kratos | `SERVICE/ID` | `{"id", "name", "version", "metadata", "endpoints": ["grpc://10.0.0.1:80"]}` |
//!
//! The fields tell which. In ours, what the value leaves out of id, service and namespace the key says.

use std::sync::Arc;

use serde::Deserialize;
use serde_json::{Map, Value};

use super::EtcdSettings;
use crate::instance::{Instance, Port, Protocol};
use crate::registry::foreign::{self, Foreign, plain, protocol_of, read_as, socket, texts};
use crate::registry::parts::Said;

/// Reads the value of a key. `origin` is who we are: what we wrote is nobody else.
pub(super) fn read(key: &str, value: &[u8], settings: &EtcdSettings, origin: &str) -> Said {
    match instance(key, value, settings) {
        Ok(instance) if foreign::is_by(&instance, origin) => Said::Nobody,
        Ok(instance) => Said::Instance(instance.id.clone(), Arc::new(instance)),
        Err(why) => Said::Wrong(None, format!("key {key:?}: {why}")),
    }
}

fn instance(key: &str, value: &[u8], settings: &EtcdSettings) -> Result<Instance, String> {
    let fields = foreign::fields(value)?;
    let under = key.strip_prefix(&*settings.prefix).unwrap_or(key).trim_matches('/');
    let mut steps = under.rsplit('/');
    let (last, service) = (steps.next().unwrap_or_default(), steps.next());
    let instance = if fields.contains_key("Addr") {
        of_grpc(last, service.unwrap_or_default(), fields, settings)?
    } else if fields.contains_key("nodes") {
        of_micro(fields, settings)?
    } else if fields.get("endpoints").is_some_and(Value::is_array) {
        of_kratos(fields, settings)?
    } else {
        foreign::ours(under, fields)?
    };
    foreign::placed(instance, settings.namespace.as_deref())
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Grpc {
    addr: String,
    #[serde(default)]
    metadata: Value,
}

/// Of go.etcd.io/etcd/client/v3/naming.
fn of_grpc(
    last: &str,
    service: &str,
    fields: Map<String, Value>,
    settings: &EtcdSettings,
) -> Result<Instance, String> {
    let said: Grpc = read_as(fields)?;
    // The prefix may name the service itself.
    let own = || settings.prefix.trim_matches('/').rsplit('/').next().unwrap_or_default().to_owned();
    let service = if service.is_empty() { own() } else { service.to_owned() };
    let (address, port) = socket(&said.addr)?;
    let port = Port { protocol: Protocol::Grpc, ..plain(port) };
    Ok(Foreign {
        id: last.to_owned(),
        service,
        version: None,
        address,
        ports: vec![port],
        metadata: texts(&said.metadata),
    }
    .instance(settings.sidecar))
}

#[derive(Deserialize)]
struct Micro {
    name: String,
    #[serde(default)]
    version: Option<String>,
    nodes: Vec<Node>,
}

#[derive(Deserialize)]
struct Node {
    id: String,
    address: String,
    #[serde(default)]
    metadata: Value,
}

/// Of go-micro: one node to a key.
fn of_micro(fields: Map<String, Value>, settings: &EtcdSettings) -> Result<Instance, String> {
    let Micro { name, version, nodes } = read_as(fields)?;
    let [node] = nodes.as_slice() else { return Err(format!("nodes: {} are not one", nodes.len())) };
    let (address, port) = socket(&node.address)?;
    let metadata = texts(&node.metadata);
    let protocol = metadata.get("protocol").or_else(|| metadata.get("server"));
    let protocol = protocol.and_then(|name| protocol_of(name)).unwrap_or_default();
    let ports = vec![Port { protocol, ..plain(port) }];
    Ok(Foreign { id: node.id.clone(), service: name, version, address, ports, metadata }
        .instance(settings.sidecar))
}

#[derive(Deserialize)]
struct Kratos {
    id: String,
    name: String,
    #[serde(default)]
    version: Option<String>,
    #[serde(default)]
    metadata: Value,
    endpoints: Vec<String>,
}

/// Of go-kratos: an endpoint for each protocol, all of one address.
fn of_kratos(fields: Map<String, Value>, settings: &EtcdSettings) -> Result<Instance, String> {
    let said: Kratos = read_as(fields)?;
    let (mut address, mut ports) = (None, Vec::new());
    for endpoint in &said.endpoints {
        let (scheme, rest) = endpoint.split_once("://").unwrap_or(("", endpoint));
        let (ip, number) = socket(rest.split(['/', '?']).next().unwrap_or_default())?;
        if *address.get_or_insert(ip) != ip {
            return Err(format!("endpoints: {endpoint:?} has another address than the first"));
        }
        ports.push(Port { protocol: protocol_of(scheme).unwrap_or_default(), ..plain(number) });
    }
    let address = address.ok_or("endpoints: there is none")?;
    let Kratos { id, name, version, metadata, .. } = said;
    Ok(Foreign { id, service: name, version, address, ports, metadata: texts(&metadata) }
        .instance(settings.sidecar))
}
