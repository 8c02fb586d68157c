//! What Nacos says of one service (`com.alibaba.nacos.api.naming.pojo.ServiceInfo`), and the instances that they are here.

use std::sync::Arc;

use serde::Deserialize;
use serde_json::Value;

use super::{GROUP, NacosSettings};
use crate::instance::{Instance, Port, State};
use crate::registry::foreign::{self, Foreign, address, plain, protocol_of, texts};
use crate::registry::parts::Said;

/// Our weights are relative to 100, Nacos' to 1.
pub(super) const WEIGHT: f64 = 100.0;
/// Of Nacos' weights.
const MOST_WEIGHT: f64 = 10_000.0;
/// What stands between a group and a service.
pub(super) const BETWEEN: &str = "@@";

/// A service as it is called there.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Name {
    pub(super) group: String,
    pub(super) service: String,
}

impl Name {
    /// Of `GROUP@@SERVICE`, or of a service of this group.
    pub(super) fn of(text: &str, group: &str) -> Self {
        let (group, service) = text.split_once(BETWEEN).unwrap_or((group, text));
        Self { group: group.to_owned(), service: service.to_owned() }
    }

    /// The part that it is.
    pub(super) fn part(&self) -> String {
        format!("{}{BETWEEN}{}", self.group, self.service)
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Host {
    ip: String,
    port: u16,
    #[serde(default = "one")]
    weight: f64,
    #[serde(default = "yes")]
    healthy: bool,
    #[serde(default = "yes")]
    enabled: bool,
    #[serde(default)]
    metadata: Value,
}

fn one() -> f64 {
    1.0
}

fn yes() -> bool {
    true
}

/// What an answer or a push says of a service.
pub(super) struct Service {
    pub(super) name: Name,
    /// When the server made it; one that is older says nothing.
    pub(super) made: i64,
    pub(super) said: Vec<Said>,
}

/// Reads it. `origin` is who we are: what we wrote is nobody else.
pub(super) fn read(info: &Value, settings: &NacosSettings, origin: &str) -> Result<Service, String> {
    let text = |field: &str| info[field].as_str().unwrap_or_default();
    let group = if text("groupName").is_empty() { GROUP } else { text("groupName") };
    let name = Name::of(text("name"), group);
    if name.service.is_empty() {
        return Err("it names no service".to_owned());
    }
    let hosts = match &info["hosts"] {
        Value::Array(hosts) => hosts.as_slice(),
        Value::Null => &[],
        _ => return Err(format!("{}: hosts is no list", name.part())),
    };
    let said = hosts.iter().map(|host| said(&name, host, settings, origin)).collect();
    Ok(Service { made: info["lastRefTime"].as_i64().unwrap_or(0), said, name })
}

/// What is not what everybody has.
fn is_other(text: &&str) -> bool {
    !text.is_empty() && *text != "DEFAULT" && *text != GROUP
}

/// What an instance is called among those of its service.
fn id(name: &Name, ip: &str, port: u64, cluster: &str) -> String {
    let more = [cluster, &name.group].into_iter().filter(is_other).map(|text| format!("+{text}"));
    format!("{ip}:{port}{}", more.collect::<String>())
}

/// Each instance by itself: whoever may write one must not hold up the others.
fn said(name: &Name, host: &Value, settings: &NacosSettings, origin: &str) -> Said {
    let text = |field: &str| host[field].as_str().unwrap_or_default();
    let cluster = text("clusterName");
    if !settings.clusters.is_empty() && !settings.clusters.iter().any(|wanted| wanted == cluster) {
        return Said::Nobody;
    }
    let id = id(name, text("ip"), host["port"].as_u64().unwrap_or(0), cluster);
    let service = foreign::label(&settings.name(&name.service));
    let whole = format!("{id}@{service}").replace('/', "_");
    let read =
        serde_json::from_value::<Host>(host.clone()).map_err(|error| format!("it cannot be read: {error}"));
    match read.and_then(|host| instance(id, name, host, cluster, settings)) {
        Ok(instance) if foreign::is_by(&instance, origin) => Said::Nobody,
        Ok(instance) => Said::Instance(instance.id.clone(), Arc::new(instance)),
        Err(why) => Said::Wrong(Some(whole.clone()), format!("instance \"{whole}\": {why}")),
    }
}

fn instance(
    id: String,
    name: &Name,
    host: Host,
    cluster: &str,
    settings: &NacosSettings,
) -> Result<Instance, String> {
    let address = address(&host.ip)?;
    let mut metadata = texts(&host.metadata);
    // The instance's own weight is another field.
    metadata.remove("weight");
    let protocol = metadata.get("protocol").and_then(|name| protocol_of(name)).unwrap_or_default();
    let ports = (host.port > 0).then(|| Port { protocol, ..plain(host.port) }).into_iter().collect();
    let mut service =
        Foreign { id, service: settings.name(&name.service), version: None, address, ports, metadata }
            .instance(settings.sidecar);
    if !host.weight.is_finite() || host.weight < 0.0 {
        return Err(format!("weight: {} is none", host.weight));
    }
    service.state = match (host.enabled && host.weight > 0.0, host.healthy) {
        (false, _) => State::Maintenance,
        (true, false) => State::Unhealthy,
        (true, true) => State::Running,
    };
    service.weight = (host.weight.min(MOST_WEIGHT) * WEIGHT).round().max(1.0) as u32;
    service.tags = [cluster, &name.group].into_iter().filter(is_other).map(str::to_owned).collect();
    if !cluster.is_empty() {
        service.labels.entry("nacos-cluster".to_owned()).or_insert_with(|| cluster.to_owned());
    }
    foreign::placed(service, Some(&settings.namespace))
}
