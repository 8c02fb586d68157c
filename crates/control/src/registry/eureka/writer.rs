//! Our instances at a Eureka, each with a lease of its own.

use std::sync::Arc;
use std::time::Duration;

use http::{Method, StatusCode};
use serde_json::{Value, json};

use super::{ADVICE, EurekaSettings, opened};
use crate::instance::{Instance, State};
use crate::outside::escaped;
use crate::registry::web::Http;
use crate::registry::write::{Unput, Wanted, Writer, marked, metadata};

/// Writes to one of its servers, which tells the others.
pub(crate) struct EurekaWriter {
    settings: Arc<EurekaSettings>,
    origin: Arc<str>,
    first: usize,
    http: Option<Http>,
}

impl EurekaWriter {
    pub(crate) fn new(settings: EurekaSettings, origin: Arc<str>) -> Self {
        Self { settings: Arc::new(settings), origin, first: 0, http: None }
    }

    fn app(&self, instance: &Instance) -> String {
        let there = self.settings.names.iter().find(|(_, here)| **here == instance.service);
        there.map_or_else(|| instance.service.to_uppercase(), |(there, _)| there.clone())
    }

    /// Ours alone: whoever else knows an instance of that id has an entry of its own.
    fn id(&self, instance: &Instance) -> String {
        format!("{}@{}", instance.id, self.origin)
    }

    fn path(&self, instance: &Instance) -> String {
        format!("/apps/{}/{}", escaped(&self.app(instance)), escaped(&self.id(instance)))
    }

    fn value(&self, instance: &Instance) -> Value {
        let (app, id) = (self.app(instance), self.id(instance));
        let address = instance.addresses.first();
        let port = instance.ports.first().map_or(0, |port| port.number);
        let now = jiff::Timestamp::now().as_millisecond().to_string();
        let ttl = self.settings.ttl_seconds;
        json!({ "instance": {
            "instanceId": id, "app": app, "hostName": address, "ipAddr": address, "status": status(instance.state),
            "overriddenstatus": "UNKNOWN", "countryId": 1, "vipAddress": instance.service, "secureVipAddress": instance.service,
            "port": { "$": port, "@enabled": if port > 0 { "true" } else { "false" } },
            "securePort": { "$": 443, "@enabled": "false" },
            "dataCenterInfo": { "@class": "com.netflix.appinfo.InstanceInfo$DefaultDataCenterInfo", "name": "MyOwn" },
            "leaseInfo": { "renewalIntervalInSecs": (ttl / 3).max(1), "durationInSecs": ttl },
            "metadata": metadata(&marked(instance, &self.origin)),
            // The newer of two of the same id holds.
            "lastUpdatedTimestamp": now, "lastDirtyTimestamp": now, "actionType": "ADDED",
        } })
    }

    async fn ask(&mut self, method: &Method, path: &str, body: Option<Value>) -> Result<StatusCode, Unput> {
        let http = self.http.as_mut().ok_or_else(|| "there is no connection".to_owned())?;
        let body = body.map(|body| ("application/json", body.to_string().into()));
        let reply = http.ask(method, path, body).await?;
        match reply.status {
            status if status.is_success() || status == StatusCode::NOT_FOUND => Ok(status),
            // It says so of this one.
            StatusCode::BAD_REQUEST | StatusCode::UNPROCESSABLE_ENTITY => {
                Err(Unput::Refused(http.refused(path, &reply, ADVICE)))
            }
            _ => Err(Unput::Failed(http.refused(path, &reply, ADVICE))),
        }
    }
}

/// Not `OUT_OF_SERVICE`: that is an operator's word there, and who registers anew stays what it was by it (`LeaseExistsRule`).
fn status(state: State) -> &'static str {
    match state {
        State::Running => "UP",
        State::Starting => "STARTING",
        State::Unhealthy | State::Maintenance | State::Stopping | State::Stopped => "DOWN",
    }
}

/// A server that answers.
async fn try_open(settings: &Arc<EurekaSettings>, server: usize) -> Result<Http, String> {
    let mut http = opened(settings, server).await?;
    // Small, and there from the first moment.
    let path = "/apps/delta";
    let reply = http.ask(&Method::GET, path, None).await?;
    match reply.status {
        // It may tell no deltas.
        StatusCode::FORBIDDEN | StatusCode::NOT_FOUND => Ok(http),
        status if status.is_success() => Ok(http),
        _ => Err(http.refused(path, &reply, ADVICE)),
    }
}

impl Writer for EurekaWriter {
    /// Eureka has no namespaces: its applications are the services of one of ours.
    fn has(&self, instance: &Instance) -> bool {
        instance.namespace == self.settings.namespace
    }

    async fn open(&mut self) -> Result<(), String> {
        let servers = self.settings.urls.len();
        // One that was open and failed may be good for no more than what it is asked here.
        if self.http.take().is_some() {
            self.first = (self.first + 1) % servers;
        }
        let mut failures = Vec::new();
        for _ in 0..servers {
            match try_open(&self.settings, self.first).await {
                Ok(http) => {
                    self.http = Some(http);
                    return Ok(());
                }
                Err(why) => failures.push(why),
            }
            self.first = (self.first + 1) % servers;
        }
        Err(failures.join("; "))
    }

    async fn put(&mut self, instance: &Instance) -> Result<(), Unput> {
        if !self.has(instance) {
            return Ok(());
        }
        let path = format!("/apps/{}", escaped(&self.app(instance)));
        let body = self.value(instance);
        match self.ask(&Method::POST, &path, Some(body)).await? {
            StatusCode::NOT_FOUND => {
                let why = format!("Eureka knows no {path}: does the URL end with its base, such as /eureka?");
                Err(Unput::Failed(why))
            }
            _ => Ok(()),
        }
    }

    async fn remove(&mut self, instance: &Instance) -> Result<(), String> {
        if !self.has(instance) {
            return Ok(());
        }
        let path = self.path(instance);
        self.ask(&Method::DELETE, &path, None).await.map(drop).map_err(Unput::text)
    }

    async fn beat(&mut self, all: &Wanted) -> Result<(), String> {
        for instance in all.values() {
            if !self.has(instance) {
                continue;
            }
            let path = self.path(instance);
            if self.ask(&Method::PUT, &path, None).await.map_err(Unput::text)? == StatusCode::NOT_FOUND {
                return Err("Eureka has forgotten what was registered; all is registered anew".to_owned());
            }
        }
        Ok(())
    }

    fn every(&self) -> Duration {
        Duration::from_secs(self.settings.ttl_seconds.into()) / 3
    }
}
