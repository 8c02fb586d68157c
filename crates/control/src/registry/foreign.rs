//! What the layouts of others have in common: metadata that mean something here, addresses, names.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use serde_json::{Map, Value};

use super::ORIGIN;
use crate::instance::{Instance, MAX_BYTES, Port, Protocol, State};

/// The fields of a value.
pub(super) fn fields(value: &[u8]) -> Result<Map<String, Value>, String> {
    // A third layout may say more than an instance has, but not without end.
    if value.len() > 2 * MAX_BYTES {
        return Err(format!("its value has {} bytes, the most are {}", value.len(), 2 * MAX_BYTES));
    }
    match serde_json::from_slice(value) {
        Ok(Value::Object(fields)) => Ok(fields),
        Ok(_) => Err("its value is no JSON object".to_owned()),
        Err(error) => Err(format!("its value is no JSON: {error}")),
    }
}

/// An instance in our own layout, under `NAMESPACE/SERVICE/ID`.
pub(super) fn ours(under: &str, mut fields: Map<String, Value>) -> Result<Instance, String> {
    let mut steps = under.rsplit('/');
    for field in ["id", "service", "namespace"] {
        let said = steps.next().filter(|said| !said.is_empty() && !fields.contains_key(field));
        fields.extend(said.map(|said| (field.to_owned(), said.into())));
    }
    let instance: Instance = read_as(fields)?;
    // Its place there says how long it is there.
    Ok(Instance { ttl_seconds: None, ..instance })
}

/// In the namespace of the settings, if they say one.
pub(super) fn placed(instance: Instance, namespace: Option<&str>) -> Result<Instance, String> {
    let namespace = namespace.map_or(instance.namespace, str::to_owned);
    let instance = Instance { namespace, ..instance }.normalise();
    instance.validate()?;
    Ok(instance)
}

/// Whether we wrote it: then it is nobody else.
pub(super) fn is_by(instance: &Instance, origin: &str) -> bool {
    let by = instance.metadata.get(ORIGIN).or_else(|| instance.labels.get(ORIGIN));
    by.is_some_and(|by| by == origin)
}

/// Fields as what they are.
pub(super) fn read_as<T: serde::de::DeserializeOwned>(fields: Map<String, Value>) -> Result<T, String> {
    serde_json::from_value(Value::Object(fields))
        .map_err(|error| format!("its value cannot be read: {error}"))
}

/// What the layouts of others say.
pub(super) struct Foreign {
    pub(super) id: String,
    pub(super) service: String,
    pub(super) version: Option<String>,
    pub(super) address: IpAddr,
    pub(super) ports: Vec<Port>,
    pub(super) metadata: BTreeMap<String, String>,
}

impl Foreign {
    /// As it is here; `sidecar`: whether it has one where its metadata do not say.
    pub(super) fn instance(self, sidecar: bool) -> Instance {
        let Self { id, service, version, address, ports, metadata } = self;
        let service = label(&service);
        let said = |key: &str| metadata.get(key).filter(|text| !text.is_empty()).cloned();
        let sidecar = match said("sidecar").as_deref() {
            Some("true") => true,
            Some("false") => false,
            _ => sidecar,
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
            word: Default::default(),
            services: None,
            labels: metadata.into(),
            service,
        }
    }
}

/// A port of which nothing else is known.
pub(super) fn plain(number: u16) -> Port {
    Port { number, name: String::new(), protocol: Protocol::Auto, aliases: Vec::new(), upgrades: Vec::new() }
}

/// An address of its own.
pub(super) fn address(text: &str) -> Result<IpAddr, String> {
    text.parse().map_err(|_| format!("\"{text}\" is no IP address; a ServiceEntry reaches names"))
}

/// An address with a port.
pub(super) fn socket(text: &str) -> Result<(IpAddr, u16), String> {
    let at: SocketAddr = text
        .parse()
        .map_err(|_| format!("\"{text}\" is no IP address with a port; a ServiceEntry reaches names"))?;
    Ok((at.ip(), at.port()))
}

/// Free fields, as far as they are text or a number.
pub(super) fn texts(metadata: &Value) -> BTreeMap<String, String> {
    let text = |value: &Value| match value {
        Value::String(text) => Some(text.clone()),
        Value::Number(_) | Value::Bool(_) => Some(value.to_string()),
        _ => None,
    };
    let fields = metadata.as_object().into_iter().flatten();
    fields.filter_map(|(key, value)| Some((key.clone(), text(value)?))).collect()
}

/// What is spoken, by the names that people have for it.
pub(super) fn protocol_of(name: &str) -> Option<Protocol> {
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
pub(crate) fn label(name: &str) -> String {
    let of = |c: char| if matches!(c, '_' | '.' | ' ' | '/') { '-' } else { c.to_ascii_lowercase() };
    name.chars().map(of).collect()
}
