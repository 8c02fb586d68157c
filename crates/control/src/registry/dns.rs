//! DNS as a registry: names of the settings, each a service, by its addresses (A, AAAA) or by SRV.
//!
//! An answer holds for its TTL. A name that fails, that does not exist, or that has nothing any more keeps the last answer: who wrote it into
//! the settings wants it, and takes it out there.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::Duration;

use futures_util::StreamExt;
use serde::{Deserialize, Serialize};
use tokio::time::{Instant, sleep_until};

use super::{Event, Item, MOST_PROBLEMS, Problem, Registry, Voice};
use crate::instance::{Instance, Labels, Port, Protocol, State};

mod ask;

use ask::{Answer, Fault, Found, Resolver};

/// Bounds of a TTL.
const TTL: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(3600));
/// Before a name that failed is asked for again, doubled each time.
const PAUSE: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));
/// Names that are asked for at once.
const AT_ONCE: usize = 32;
/// Names of one registry.
const MOST_NAMES: usize = 10_000;

/// Names of the settings that are services.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct DnsSettings {
    /// Whom to ask, in turn. Default the nameservers of `/etc/resolv.conf`.
    pub servers: Vec<SocketAddr>,
    /// The services.
    pub services: Vec<DnsService>,
}

/// A name that is a service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct DnsService {
    /// The service here.
    pub service: String,
    /// Its namespace. Default `default`.
    #[serde(default = "default_name")]
    pub namespace: String,
    /// The whole name in DNS.
    pub name: String,
    /// The port of its addresses. Absent: SRV says addresses, ports and weights.
    #[serde(default)]
    pub port: Option<u16>,
    /// What it speaks. Default `auto`.
    #[serde(default)]
    pub protocol: Protocol,
    /// Whether its instances have a sidecar. Default false.
    #[serde(default)]
    pub sidecar: bool,
    /// Default the service's name.
    #[serde(default)]
    pub service_account: Option<String>,
}

fn default_name() -> String {
    "default".into()
}

impl DnsSettings {
    /// What cannot work.
    ///
    /// # Errors
    /// Names the field.
    pub fn validate(&self) -> Result<(), String> {
        if self.services.is_empty() || self.services.len() > MOST_NAMES {
            return Err(format!("services: {} are not from 1 to {MOST_NAMES}", self.services.len()));
        }
        let mut parts = BTreeSet::new();
        for (i, service) in self.services.iter().enumerate() {
            if !parts.insert(service.part()) {
                return Err(format!("services[{i}]: {} occurs twice", service.part()));
            }
            if ask::name(&service.name).is_none() {
                return Err(format!("services[{i}].name: {:?} is no name of DNS", service.name));
            }
            if service.port == Some(0) {
                return Err(format!("services[{i}].port: must be 1 to 65535; leave it out for SRV"));
            }
            let probe = Found { at: SocketAddr::from(([10, 0, 0, 1], 80)), weight: 1 };
            service.instance(&probe).validate().map_err(|why| format!("services[{i}]: {why}"))?;
        }
        Ok(())
    }
}

impl DnsService {
    fn part(&self) -> String {
        format!("{}/{}", self.namespace, self.service)
    }

    fn instance(&self, found: &Found) -> Instance {
        let Found { at, weight } = *found;
        let port = Port {
            number: at.port(),
            name: String::new(),
            protocol: self.protocol,
            aliases: Vec::new(),
            upgrades: Vec::new(),
        };
        let instance = Instance {
            id: format!("{at}@{}.{}", self.service, self.namespace),
            service: self.service.clone(),
            namespace: self.namespace.clone(),
            addresses: vec![at.ip()],
            network: String::new(),
            ports: vec![port],
            labels: Labels::default(),
            metadata: BTreeMap::from([("dns-name".to_owned(), self.name.clone())]),
            tags: Vec::new(),
            version: None,
            weight,
            zone: String::new(),
            region: String::new(),
            service_account: self.service_account.clone().unwrap_or_else(|| self.service.clone()),
            state: State::Running,
            sidecar: self.sidecar,
            ttl_seconds: None,
            word: Default::default(),
            services: None,
        };
        instance.normalise()
    }

    /// What an answer makes of it; an address that can be nobody's is left out.
    fn items(&self, found: &[Found]) -> Vec<Item> {
        let instances = found.iter().map(|found| self.instance(found));
        instances.filter(|instance| instance.validate().is_ok()).map(|i| Item::Instance(i.into())).collect()
    }
}

/// What is known of one name.
#[derive(Debug, Clone)]
struct Known {
    /// When it is asked for next.
    next: Instant,
    /// It has been answered for once, if only that there is nobody.
    answered: bool,
    /// In a row.
    failures: u32,
    /// Nobody answers for it.
    silent: bool,
    /// What was said of it last.
    items: Option<Vec<Item>>,
    trouble: Option<String>,
}

/// All names of one row.
pub struct Dns {
    settings: DnsSettings,
    /// As in the settings.
    known: Vec<Known>,
}

impl Dns {
    /// Nothing is asked yet.
    pub fn new(settings: DnsSettings) -> Self {
        let fresh = Known {
            next: Instant::now(),
            answered: false,
            failures: 0,
            silent: false,
            items: None,
            trouble: None,
        };
        let known = vec![fresh; settings.services.len()];
        Self { settings, known }
    }

    /// What came of one question.
    async fn take(
        &mut self,
        index: usize,
        answer: Result<Answer, Fault>,
        voice: &Voice,
    ) -> Result<(), String> {
        let (service, known) = (&self.settings.services[index], &mut self.known[index]);
        let items = answer.and_then(|answer| match service.items(&answer.found) {
            items if items.is_empty() => {
                Err(Fault::None(format!("{} has no address that could be called", service.name)))
            }
            items => Ok((items, answer.ttl, answer.lacking)),
        });
        match items {
            Ok((items, ttl, lacking)) => {
                let same = known.items.as_ref() == Some(&items);
                *known = Known {
                    next: Instant::now() + ttl.clamp(TTL.0, TTL.1),
                    answered: true,
                    failures: 0,
                    silent: false,
                    items: Some(items.clone()),
                    trouble: lacking,
                };
                // An answer that is as before is no news; a start waits for news.
                if same {
                    voice.is_there();
                    return Ok(());
                }
                voice.say(&service.part(), Event::Reset(items)).await
            }
            Err(fault) => {
                let pause = PAUSE.0 * 2u32.saturating_pow(known.failures.min(10));
                known.next = Instant::now() + pause.min(PAUSE.1);
                known.failures += 1;
                known.silent = matches!(fault, Fault::Silent(_));
                known.answered |= !known.silent;
                let (Fault::None(why) | Fault::Silent(why)) = fault;
                known.trouble = Some(why);
                Ok(())
            }
        }
    }

    fn tell(&self, voice: &Voice) {
        let wrong =
            self.settings.services.iter().zip(&self.known).filter_map(|(service, known)| {
                Some(Problem::of_part(&service.part(), known.trouble.clone()?))
            });
        voice.problems(wrong.take(MOST_PROBLEMS).collect());
    }
}

impl Registry for Dns {
    /// All of a name is said with each answer; names that are asked for no longer have gone.
    fn recall(&mut self, said: &mut BTreeMap<String, Vec<Item>>) -> bool {
        said.retain(|part, _| self.settings.services.iter().any(|service| service.part() == *part));
        for (service, known) in self.settings.services.iter().zip(&mut self.known) {
            known.items = said.get(&service.part()).cloned();
        }
        true
    }

    async fn follow(&mut self, voice: &Voice) -> Result<(), String> {
        let servers = self.settings.servers.clone();
        let resolver = tokio::task::spawn_blocking(move || Resolver::open(servers)).await;
        let resolver = resolver.map_err(|error| error.to_string())??;
        let mut whole = false;
        loop {
            let now = Instant::now();
            let due: Vec<usize> = (0..self.known.len()).filter(|i| self.known[*i].next <= now).collect();
            let services = self.settings.services.clone();
            let (resolver, services) = (&resolver, &services);
            let ask = |index: usize| async move {
                let DnsService { name, port, .. } = &services[index];
                (index, resolver.look_up(name, *port).await)
            };
            let mut answers = futures_util::stream::iter(due.into_iter().map(ask)).buffer_unordered(AT_ONCE);
            let mut reached = false;
            while let Some((index, answer)) = answers.next().await {
                reached |= !matches!(answer, Err(Fault::Silent(_)));
                self.take(index, answer, voice).await?;
            }
            // Where nobody answers for any it is the resolver that is away.
            let is_away = self.known.iter().all(|known| known.silent);
            if let Some(why) = self.known.iter().find_map(|known| known.trouble.clone()).filter(|_| is_away) {
                return Err(why);
            }
            if reached {
                voice.is_there();
            }
            self.tell(voice);
            // One of which there is no answer twice, while there is of others, nobody waits for.
            if !whole && self.known.iter().all(|known| known.answered || known.failures >= 2) {
                whole = true;
                voice.whole().await?;
            }
            let next = self.known.iter().map(|known| known.next).min();
            sleep_until(next.unwrap_or(now + TTL.1)).await;
        }
    }
}

#[cfg(test)]
mod tests;
