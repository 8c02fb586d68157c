//! What Eureka says of one instance (`com.netflix.appinfo.InstanceInfo`), and the instance that it is here.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::Deserialize;
use serde_json::Value;

use super::EurekaSettings;
use crate::instance::{Instance, Port, Protocol, State};
use crate::registry::foreign::{self, Foreign, address, plain, protocol_of, texts};
use crate::registry::parts::Said;

/// What an answer has: everything, or what has changed lately.
pub(super) struct Applications {
    /// Counts deltas since the server started.
    pub(super) version: u64,
    /// Of the statuses of all instances that there are.
    pub(super) hash: String,
    pub(super) rows: Vec<Row>,
}

/// One instance.
pub(super) struct Row {
    /// `APP/ID`.
    pub(super) key: String,
    pub(super) status: String,
    pub(super) deleted: bool,
    pub(super) said: Said,
}

#[derive(Deserialize)]
struct Answer {
    applications: Listed,
}

#[derive(Deserialize)]
struct Listed {
    #[serde(default, rename = "versions__delta")]
    version: Value,
    #[serde(default, rename = "apps__hashcode")]
    hash: String,
    #[serde(default)]
    application: Many<Application>,
}

#[derive(Deserialize)]
struct Application {
    name: String,
    #[serde(default)]
    instance: Many<Value>,
}

/// One that stands alone is no list, before Eureka 1.5.
#[derive(Deserialize)]
#[serde(untagged)]
enum Many<T> {
    All(Vec<T>),
    One(T),
    None(()),
}

impl<T> Default for Many<T> {
    fn default() -> Self {
        Self::All(Vec::new())
    }
}

impl<T> Many<T> {
    fn into_vec(self) -> Vec<T> {
        match self {
            Self::All(all) => all,
            Self::One(one) => vec![one],
            Self::None(()) => Vec::new(),
        }
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Info {
    #[serde(default)]
    host_name: String,
    #[serde(default)]
    ip_addr: String,
    #[serde(default)]
    port: Option<Door>,
    #[serde(default)]
    secure_port: Option<Door>,
    #[serde(default)]
    data_center_info: Value,
    #[serde(default)]
    metadata: Value,
    #[serde(default)]
    is_coordinating_discovery_server: Value,
}

/// A port: `{"$": 8080, "@enabled": "true"}`.
#[derive(Deserialize)]
struct Door {
    #[serde(rename = "$")]
    number: Value,
    #[serde(default, rename = "@enabled")]
    enabled: Value,
}

fn is_true(value: &Value) -> bool {
    value == &Value::Bool(true) || value.as_str() == Some("true")
}

impl Door {
    /// Its number, where it is open.
    fn open(&self) -> Result<Option<u16>, String> {
        if !is_true(&self.enabled) {
            return Ok(None);
        }
        let number = self.number.as_u64().or_else(|| self.number.as_str()?.parse().ok());
        let number = number.and_then(|number| u16::try_from(number).ok());
        number.map(Some).ok_or_else(|| format!("port: {} is none", self.number))
    }
}

/// Reads an answer. Each instance by itself: whoever may write one must not hold up the others.
pub(super) fn read(body: &[u8], settings: &EurekaSettings, origin: &str) -> Result<Applications, String> {
    let answer: Answer =
        serde_json::from_slice(body).map_err(|error| format!("its answer cannot be read: {error}"))?;
    let Listed { version, hash, application } = answer.applications;
    let version = version.as_u64().or_else(|| version.as_str()?.parse().ok()).unwrap_or(0);
    let mut rows = Vec::new();
    for Application { name, instance } in application.into_vec() {
        rows.extend(instance.into_vec().into_iter().map(|value| row(&name, value, settings, origin)));
    }
    Ok(Applications { version, hash, rows })
}

fn row(app: &str, value: Value, settings: &EurekaSettings, origin: &str) -> Row {
    let text = |field: &str| value.get(field).and_then(Value::as_str).unwrap_or_default().to_owned();
    let (id, status) = (text("instanceId"), text("status"));
    // Before there were ids, hosts were.
    let id = if id.is_empty() { text("hostName") } else { id };
    let deleted = text("actionType") == "DELETED";
    let key = format!("{app}/{id}");
    let said = match instance(app, &id, &status, value, settings) {
        Ok(None) => Said::Nobody,
        Ok(Some(instance)) if foreign::is_by(&instance, origin) => Said::Nobody,
        Ok(Some(instance)) => Said::Instance(instance.id.clone(), Arc::new(instance)),
        Err(why) => Said::Wrong(None, format!("instance \"{key}\": {why}")),
    };
    Row { key, status, deleted, said }
}

fn instance(
    app: &str,
    id: &str,
    status: &str,
    value: Value,
    settings: &EurekaSettings,
) -> Result<Option<Instance>, String> {
    let info: Info = serde_json::from_value(value).map_err(|error| format!("it cannot be read: {error}"))?;
    // Eureka's own servers.
    if is_true(&info.is_coordinating_discovery_server) {
        return Ok(None);
    }
    let mut metadata = texts(&info.metadata);
    metadata.retain(|key, _| !key.starts_with('@'));
    let state = match status {
        "UP" => State::Running,
        "STARTING" => State::Starting,
        "OUT_OF_SERVICE" => State::Maintenance,
        "DOWN" | "UNKNOWN" => State::Unhealthy,
        other => return Err(format!("status: \"{other}\" is none")),
    };
    let address = match address(&info.ip_addr) {
        Ok(address) => address,
        Err(why) => info.host_name.parse().map_err(|_| why)?,
    };
    let open = |door: Option<&Door>| Ok::<_, String>(door.map(Door::open).transpose()?.flatten());
    let (clear, secure) = (open(info.port.as_ref())?, open(info.secure_port.as_ref())?);
    let mut ports = Vec::new();
    // Spring Cloud says the one port of a server as both where `secure-port-enabled` is all that is set: TLS is spoken there.
    if let Some(number) = clear.filter(|_| clear != secure) {
        let protocol = metadata.get("protocol").and_then(|name| protocol_of(name)).unwrap_or_default();
        ports.push(Port { protocol, ..plain(number) });
    }
    if let Some(number) = secure {
        ports.push(Port { protocol: Protocol::Tls, ..plain(number) });
    }
    let service = settings.names.get(app).cloned().unwrap_or_else(|| app.to_owned());
    let zone = info.data_center_info.get("metadata").and_then(|of| of.get("availability-zone")?.as_str());
    let foreign = Foreign { id: id.to_owned(), service, version: None, address, ports, metadata };
    let mut instance = foreign.instance(settings.sidecar);
    if instance.zone.is_empty() {
        instance.zone = zone.unwrap_or_default().to_owned();
    }
    foreign::placed(Instance { state, ..instance }, Some(&settings.namespace)).map(Some)
}

/// What `apps__hashcode` is for these statuses: each with how many there are, in order.
pub(super) fn hash<'a>(statuses: impl Iterator<Item = &'a String>) -> String {
    let mut counts = BTreeMap::<&String, usize>::new();
    statuses.for_each(|status| *counts.entry(status).or_default() += 1);
    counts.into_iter().map(|(status, count)| format!("{status}_{count}_")).collect()
}
