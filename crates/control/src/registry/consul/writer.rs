//! Our instances at a Consul agent, each with a TTL check of its own.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};

use super::ConsulSettings;
use super::entry::WEIGHT;
use super::http::{Http, escaped};
use crate::instance::{Instance, Protocol, State};
use crate::registry::write::{Unput, Wanted, Writer, marked};

/// Metadata of one service, of which Consul takes 64; bytes of a key, and of a value.
const MOST_META: usize = 48;
const LONGEST: (usize, usize) = (128, 512);
/// The highest weight that Consul takes.
const MOST_WEIGHT: u32 = 65_535;
/// Keys that are Consul's own.
const RESERVED: &str = "consul-";
/// Nobody has said for so long that it is well: it has ended, or has been out. It is registered again when it is well.
const FORGOTTEN: &str = "24h";

/// Writes to one agent.
pub(crate) struct ConsulWriter {
    settings: ConsulSettings,
    origin: Arc<str>,
    http: Option<Http>,
}

impl ConsulWriter {
    pub(crate) fn new(settings: ConsulSettings, origin: Arc<str>) -> Self {
        Self { settings, origin, http: None }
    }

    /// Whether it was there.
    async fn change(&self, path: &str, body: &Value) -> Result<bool, Unput> {
        let http = self.http.as_ref().ok_or_else(|| "there is no connection".to_owned())?;
        http.put(path, body.to_string().into()).await
    }

    async fn change_there(&self, path: &str, body: &Value) -> Result<(), Unput> {
        match self.change(path, body).await? {
            true => Ok(()),
            false => Err(Unput::Failed(format!("Consul knows no {path} any more"))),
        }
    }

    fn service(&self, instance: &Instance) -> Value {
        let instance = marked(instance, &self.origin);
        let passing = (instance.weight / WEIGHT).clamp(1, MOST_WEIGHT);
        json!({
            "ID": id(&instance.id),
            "Name": instance.service,
            "Address": instance.addresses.first(),
            "Port": instance.ports.first().map_or(0, |port| port.number),
            "Tags": instance.tags,
            "Meta": meta(&instance),
            "Weights": { "Passing": passing, "Warning": passing },
            "Check": {
                "CheckID": check(&instance.id),
                "Name": "its sidecar and its lease at Outrigger",
                "TTL": format!("{}s", self.settings.ttl_seconds),
                "Status": status(instance.state),
                "DeregisterCriticalServiceAfter": FORGOTTEN,
            },
        })
    }
}

/// Of an agent's own: what others registered there under our id is theirs.
fn id(id: &str) -> String {
    format!("outrigger:{id}")
}

fn check(id: &str) -> String {
    format!("outrigger-ttl:{id}")
}

fn status(state: State) -> &'static str {
    if state == State::Running { "passing" } else { "critical" }
}

/// What Consul takes of labels, and what of the rest is read back from metadata.
fn meta(instance: &Instance) -> BTreeMap<String, String> {
    let protocol = match instance.ports.first().map(|port| port.protocol) {
        Some(Protocol::Http) => "http",
        Some(Protocol::Http2) => "http2",
        Some(Protocol::Grpc) => "grpc",
        Some(Protocol::Tls) => "tls",
        Some(Protocol::Tcp) => "tcp",
        Some(Protocol::Auto) | None => "",
    };
    let own = [
        ("version", instance.version.as_deref().unwrap_or_default()),
        ("zone", &instance.zone),
        ("region", &instance.region),
        ("serviceAccount", &instance.service_account),
        ("protocol", protocol),
        ("sidecar", if instance.sidecar { "true" } else { "false" }),
    ];
    let token = |key: &str| key.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'));
    let fits = |key: &str, value: &str| {
        token(key)
            && !key.is_empty()
            && !key.starts_with(RESERVED)
            && key.len() <= LONGEST.0
            && value.len() <= LONGEST.1
    };
    let labels = instance.labels.iter().chain(instance.metadata.iter());
    let labels = labels.filter(|(key, value)| fits(key, value)).take(MOST_META);
    let mut all: BTreeMap<String, String> = labels.map(|(key, value)| (key.clone(), value.clone())).collect();
    let origin = instance.metadata.get(crate::registry::ORIGIN).cloned();
    all.extend(origin.map(|origin| (crate::registry::ORIGIN.to_owned(), origin)));
    let own = own.into_iter().filter(|(_, value)| !value.is_empty());
    all.extend(own.map(|(key, value)| (key.to_owned(), value.to_owned())));
    all
}

impl Writer for ConsulWriter {
    /// Consul has no namespaces: its services are those of one of ours.
    fn has(&self, instance: &Instance) -> bool {
        instance.namespace == self.settings.namespace
    }

    async fn open(&mut self) -> Result<(), String> {
        let settings = self.settings.clone();
        let http = tokio::task::spawn_blocking(move || Http::open(&settings)).await;
        self.http = Some(http.map_err(|error| error.to_string())??);
        Ok(())
    }

    async fn put(&mut self, instance: &Instance) -> Result<(), Unput> {
        if !self.has(instance) {
            return Ok(());
        }
        self.change_there("/v1/agent/service/register?replace-existing-checks=true", &self.service(instance))
            .await
    }

    async fn remove(&mut self, instance: &Instance) -> Result<(), String> {
        if !self.has(instance) {
            return Ok(());
        }
        let path = format!("/v1/agent/service/deregister/{}", escaped(&id(&instance.id)));
        // The agent may have been without it already.
        self.change(&path, &Value::Null).await.map(drop).map_err(Unput::text)
    }

    /// Each has a check; who is out needs no beat to stay so. An agent that does not know one has forgotten all.
    async fn beat(&mut self, all: &Wanted) -> Result<(), String> {
        let running = |instance: &&Arc<Instance>| self.has(instance) && instance.state == State::Running;
        for instance in all.values().filter(running) {
            let path = format!("/v1/agent/check/update/{}", escaped(&check(&instance.id)));
            self.change_there(&path, &json!({ "Status": "passing" })).await.map_err(Unput::text)?;
        }
        Ok(())
    }

    fn every(&self) -> Duration {
        Duration::from_secs(self.settings.ttl_seconds.into()) / 3
    }
}
