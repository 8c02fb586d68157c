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

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use serde::Deserialize;
use serde_json::{Map, Value};

use super::EtcdSettings;
use crate::instance::{Instance, MAX_BYTES, Port, Protocol, State};
use crate::registry::ORIGIN;
use crate::registry::parts::Said;

/// The services of a namespace are a part.
pub(super) fn part_of(instance: &Instance) -> String {
    format!("{}/{}", instance.namespace, instance.service)
}

/// Reads the value of a key. `origin` is who we are: what we wrote is nobody else.
pub(super) fn read(key: &str, value: &[u8], settings: &EtcdSettings, origin: &str) -> Said {
    match instance(key, value, settings) {
        Ok(instance) if instance.metadata.get(ORIGIN).is_some_and(|by| by == origin) => Said::Nobody,
        Ok(instance) => Said::Instance(instance.id.clone(), Arc::new(instance)),
        Err(why) => Said::Wrong(None, format!("key {key:?}: {why}")),
    }
}

fn instance(key: &str, value: &[u8], settings: &EtcdSettings) -> Result<Instance, String> {
    // A third layout may say more than an instance has, but not without end.
    if value.len() > 2 * MAX_BYTES {
        return Err(format!("its value has {} bytes, the most are {}", value.len(), 2 * MAX_BYTES));
    }
    let value: Value =
        serde_json::from_slice(value).map_err(|error| format!("its value is no JSON: {error}"))?;
    let Value::Object(mut fields) = value else { return Err("its value is no JSON object".to_owned()) };
    let under = key.strip_prefix(&*settings.prefix).unwrap_or(key).trim_matches('/');
    let mut steps = under.rsplit('/');
    let (last, service, namespace) = (steps.next().unwrap_or_default(), steps.next(), steps.next());
    let instance = if fields.contains_key("Addr") {
        of_grpc(last, service.unwrap_or_default(), fields, settings)?
    } else if fields.contains_key("nodes") {
        of_micro(fields, settings)?
    } else if fields.get("endpoints").is_some_and(Value::is_array) {
        of_kratos(fields, settings)?
    } else {
        for (field, said) in [("id", Some(last)), ("service", service), ("namespace", namespace)] {
            let said = said.filter(|said| !said.is_empty() && !fields.contains_key(field));
            fields.extend(said.map(|said| (field.to_owned(), said.into())));
        }
        let instance: Instance = read_as(fields)?;
        // The lease of its key says how long it is there.
        Instance { ttl_seconds: None, ..instance }
    };
    let namespace = settings.namespace.clone().unwrap_or(instance.namespace);
    let instance = Instance { namespace, ..instance }.normalise();
    instance.validate()?;
    Ok(instance)
}

fn read_as<T: serde::de::DeserializeOwned>(fields: Map<String, Value>) -> Result<T, String> {
    serde_json::from_value(Value::Object(fields))
        .map_err(|error| format!("its value cannot be read: {error}"))
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
    .instance(settings))
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
    Ok(Foreign { id: node.id.clone(), service: name, version, address, ports, metadata }.instance(settings))
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
    Ok(Foreign { id, service: name, version, address, ports, metadata: texts(&metadata) }.instance(settings))
}

/// What the layouts of others say.
struct Foreign {
    id: String,
    service: String,
    version: Option<String>,
    address: IpAddr,
    ports: Vec<Port>,
    metadata: BTreeMap<String, String>,
}

impl Foreign {
    fn instance(self, settings: &EtcdSettings) -> Instance {
        let Self { id, service, version, address, ports, metadata } = self;
        let service = label(&service);
        let said = |key: &str| metadata.get(key).filter(|text| !text.is_empty()).cloned();
        let sidecar = match said("sidecar").as_deref() {
            Some("true") => true,
            Some("false") => false,
            _ => settings.sidecar,
        };
        Instance {
            // An id is a service's own there, and the mesh's here.
            id: format!("{id}@{service}").replace('/', "_"),
            namespace: "default".into(),
            addresses: vec![address],
            network: String::new(),
            ports,
            metadata: BTreeMap::new(),
            tags: Vec::new(),
            version: version.filter(|version| !version.is_empty()).or_else(|| said("version")),
            weight: said("weight").and_then(|text| text.parse().ok()).unwrap_or(100),
            zone: said("zone").unwrap_or_default(),
            region: said("region").unwrap_or_default(),
            service_account: said("serviceAccount").unwrap_or_else(|| service.clone()),
            state: State::Running,
            sidecar,
            ttl_seconds: None,
            services: None,
            labels: metadata,
            service,
        }
    }
}

fn plain(number: u16) -> Port {
    Port { number, name: String::new(), protocol: Protocol::Auto, upgrades: Vec::new() }
}

fn socket(text: &str) -> Result<(IpAddr, u16), String> {
    let at: SocketAddr = text
        .parse()
        .map_err(|_| format!("\"{text}\" is no IP address with a port; a ServiceEntry reaches names"))?;
    Ok((at.ip(), at.port()))
}

/// Free fields, as far as they are text or a number.
fn texts(metadata: &Value) -> BTreeMap<String, String> {
    let text = |value: &Value| match value {
        Value::String(text) => Some(text.clone()),
        Value::Number(_) | Value::Bool(_) => Some(value.to_string()),
        _ => None,
    };
    let fields = metadata.as_object().into_iter().flatten();
    fields.filter_map(|(key, value)| Some((key.clone(), text(value)?))).collect()
}

fn protocol_of(name: &str) -> Option<Protocol> {
    match name {
        "http" => Some(Protocol::Http),
        "http2" | "h2c" => Some(Protocol::Http2),
        "grpc" => Some(Protocol::Grpc),
        "https" | "grpcs" | "tls" => Some(Protocol::Tls),
        "tcp" => Some(Protocol::Tcp),
        _ => None,
    }
}

/// A name as services have them here.
fn label(name: &str) -> String {
    let of = |c: char| if matches!(c, '_' | '.' | ' ' | '/') { '-' } else { c.to_ascii_lowercase() };
    name.chars().map(of).collect()
}
