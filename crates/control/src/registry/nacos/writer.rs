//! Our instances at a Nacos, as long as our connection lives. A connection has one word for each service, which says all of its
//! instances there.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};

use super::client::Connection;
use super::entry::{Name, WEIGHT};
use super::{BEAT, GROUP, NacosSettings};
use crate::instance::{Instance, State};
use crate::registry::write::{Unput, Wanted, Writer, marked, metadata};

/// Writes to one of its servers, which tells the others.
pub(crate) struct NacosWriter {
    settings: Arc<NacosSettings>,
    origin: Arc<str>,
    first: usize,
    connection: Option<Connection>,
    /// What was put over the connection, by service.
    there: BTreeMap<String, BTreeMap<String, Value>>,
}

impl NacosWriter {
    pub(crate) fn new(settings: NacosSettings, origin: Arc<str>) -> Self {
        let (settings, there) = (Arc::new(settings), BTreeMap::new());
        Self { settings, origin, first: 0, connection: None, there }
    }

    fn service(&self, instance: &Instance) -> String {
        let there = self.settings.names.iter().find(|(_, here)| **here == instance.service);
        there.map_or_else(|| instance.service.clone(), |(there, _)| there.clone())
    }

    fn value(&self, instance: &Instance) -> Value {
        json!({
            "ip": instance.addresses.first(),
            "port": instance.ports.first().map_or(0, |port| port.number),
            "weight": f64::from(instance.weight) / WEIGHT,
            "healthy": true,
            "enabled": instance.state == State::Running,
            "ephemeral": true,
            "clusterName": self.settings.clusters.first().map_or("DEFAULT", String::as_str),
            "serviceName": self.service(instance),
            "metadata": metadata(&marked(instance, &self.origin)),
        })
    }

    /// Says all that a service has.
    async fn say(&mut self, service: &str, last: Option<Value>) -> Result<(), Unput> {
        let group = self.settings.groups.first().map_or(GROUP, String::as_str);
        let mut ask = self.settings.asked(&Name { group: group.to_owned(), service: service.to_owned() });
        let connection = self.connection.as_ref().ok_or_else(|| "there is no connection".to_owned())?;
        let all: Vec<&Value> = self.there.get(service).into_iter().flat_map(BTreeMap::values).collect();
        if all.is_empty() {
            ask["type"] = "deregisterInstance".into();
            ask["instance"] = last.unwrap_or_default();
            connection.put("InstanceRequest", ask).await
        } else {
            ask["type"] = "batchRegisterInstance".into();
            ask["instances"] = json!(all);
            connection.put("BatchInstanceRequest", ask).await
        }
    }
}

impl Writer for NacosWriter {
    /// Nacos' namespaces are others: its services are those of one of ours.
    fn has(&self, instance: &Instance) -> bool {
        instance.namespace == self.settings.namespace
    }

    async fn open(&mut self) -> Result<(), String> {
        self.connection = None;
        self.there.clear();
        let connection = Connection::open(&self.settings, self.first).await?;
        // The next attempt is at another server: this one may refuse what it is told.
        self.first = (connection.server + 1) % self.settings.urls.len();
        self.connection = Some(connection);
        Ok(())
    }

    async fn put(&mut self, instance: &Instance) -> Result<(), Unput> {
        if !self.has(instance) {
            return Ok(());
        }
        let (service, value) = (self.service(instance), self.value(instance));
        let before = self.there.entry(service.clone()).or_default().insert(instance.id.clone(), value);
        let said = self.say(&service, None).await;
        // The others of the service go with it: without it they are as they were.
        if let Err(Unput::Refused(_)) = said
            && let Some(all) = self.there.get_mut(&service)
        {
            match before {
                Some(before) => drop(all.insert(instance.id.clone(), before)),
                None => drop(all.remove(&instance.id)),
            }
            self.there.retain(|_, all| !all.is_empty());
        }
        said
    }

    async fn remove(&mut self, instance: &Instance) -> Result<(), String> {
        let service = self.service(instance);
        let Some(all) =
            self.there.get_mut(&service).filter(|_| instance.namespace == self.settings.namespace)
        else {
            return Ok(());
        };
        // What was put over a connection of before has gone with it.
        let Some(last) = all.remove(&instance.id) else { return Ok(()) };
        self.say(&service, Some(last)).await.map_err(Unput::text)?;
        self.there.retain(|_, all| !all.is_empty());
        Ok(())
    }

    async fn beat(&mut self, _: &Wanted) -> Result<(), String> {
        let connection = self.connection.as_mut().ok_or_else(|| "there is no connection".to_owned())?;
        // What is pushed to us is answered, or the server ends the connection.
        connection.answer_pushes().await?;
        connection.ask("HealthCheckRequest", json!({})).await?;
        connection.renew(&self.settings).await;
        Ok(())
    }

    fn trouble(&self) -> Option<&str> {
        self.connection.as_ref()?.trouble()
    }

    fn every(&self) -> Duration {
        BEAT
    }
}
