//! Nacos 2 and 3, by gRPC: which services there are is asked every few seconds, and each is subscribed to; its instances are pushed.
//!
//! ```text
//! ServiceListRequest ──▶ which there are ──▶ SubscribeServiceRequest, each once ──▶ Reset of the part GROUP@@SERVICE
//!                                            NotifySubscriberRequest, whenever it changes ──▲
//! ```
//!
//! Instances live there as long as the connections of those who registered them, and a server keeps nothing of them on disk: after a
//! start it is empty for seconds. So what is missing in the first round of a connection is held.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep_until};

use super::parts::{Missing, Parts, is_mass};
use super::web::{self, Access, Url};
use super::{Event, Item, MOST_PROBLEMS, Problem, Registry, Voice};

mod client;
mod entry;
mod heard;
mod proto;
pub(super) mod writer;

use client::Connection;
use entry::{BETWEEN, Name};
use heard::{Heard, Known};

/// The group that services are in by default.
const GROUP: &str = "DEFAULT_GROUP";
/// After a connection that lacked something: so long others may take to register again.
const RECOVERY: Duration = Duration::from_secs(600);
/// Services of a page.
const PAGE: usize = 500;
/// Services of a row, and pages until all are found.
const MOST_SERVICES: usize = 20_000;
const MOST_PAGES: usize = 400;
/// Instances of a row.
const MOST_INSTANCES: usize = 200_000;
/// Services that are subscribed to at once.
const AT_ONCE: usize = 16;
/// A service is asked for again, though it is pushed: a server whose pushes fail says so to nobody.
const AGAIN: Duration = Duration::from_secs(60);
/// A service that is listed and said to have nobody for so long was taken out: it has been asked for again.
const EMPTY: Duration = Duration::from_secs(90);
/// A server that hears nothing of a connection for 20 s asks whether it is there.
const BEAT: Duration = Duration::from_secs(5);
/// Of a URL that names none.
const PORTS: (u16, u16) = (8848, 8848);

/// A Nacos of the settings.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct NacosSettings {
    /// Its servers, tried in turn. Default `http://127.0.0.1:8848/nacos`.
    #[serde(serialize_with = "web::without_users")]
    pub urls: Vec<String>,
    /// Where gRPC is. Default the URL's port plus 1000.
    pub grpc_port: Option<u16>,
    /// Nacos' namespace, by its id. Default `public`.
    pub namespace_id: String,
    /// Its groups. Default `DEFAULT_GROUP`.
    pub groups: Vec<String>,
    /// Only instances of these of its clusters. Default all.
    pub clusters: Vec<String>,
    /// Only services of these names there. Default all.
    pub services: Vec<String>,
    /// The namespace that its services get here. Default `default`.
    pub namespace: String,
    /// What services are called here, by what they are called there.
    pub names: BTreeMap<String, String>,
    /// Whether instances have a sidecar, where their metadata do not say `sidecar`. Default false.
    pub sidecar: bool,
    /// Seconds between two questions which services there are. Default 10.
    pub interval_seconds: u32,
    /// A user of its own, with `passwordFile`. Default that of the URL, if it has one.
    pub user: Option<String>,
    /// A file with the user's password, read anew at each login.
    pub password_file: Option<PathBuf>,
    /// Whom to trust, PEM. Default the system's roots.
    pub ca_file: Option<PathBuf>,
    /// Our certificate chain, PEM, where it asks for one.
    pub cert_file: Option<PathBuf>,
    /// Its key.
    pub key_file: Option<PathBuf>,
    /// The name in its certificate. Default the URL's host.
    pub server_name: Option<String>,
    /// Seconds of answers that what seems lost is held. Default 3600.
    pub hold_seconds: u64,
    /// Whether what is registered here in `namespace` is registered there, in the first of `groups`. Default false.
    pub register: bool,
}

impl Default for NacosSettings {
    fn default() -> Self {
        Self {
            urls: vec!["http://127.0.0.1:8848/nacos".into()],
            grpc_port: None,
            namespace_id: "public".into(),
            groups: vec![GROUP.into()],
            clusters: Vec::new(),
            services: Vec::new(),
            namespace: "default".into(),
            names: BTreeMap::new(),
            sidecar: false,
            interval_seconds: 10,
            user: None,
            password_file: None,
            ca_file: None,
            cert_file: None,
            key_file: None,
            server_name: None,
            hold_seconds: 3600,
            register: false,
        }
    }
}

impl std::fmt::Debug for NacosSettings {
    /// Without the URLs, which may have a password.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("NacosSettings").field("namespace", &self.namespace).finish_non_exhaustive()
    }
}

impl NacosSettings {
    fn access(&self) -> Access<'_> {
        Access {
            what: "Nacos",
            user: self.user.as_ref(),
            password_file: self.password_file.as_ref(),
            ca_file: self.ca_file.as_ref(),
            cert_file: self.cert_file.as_ref(),
            key_file: self.key_file.as_ref(),
            server_name: self.server_name.as_ref(),
        }
    }

    fn url(&self, index: usize) -> Result<Url, String> {
        Url::parse(self.urls.get(index).map_or("", String::as_str), PORTS)
    }

    /// What a service is called here.
    fn name(&self, there: &str) -> String {
        self.names.get(there).map_or(there, String::as_str).to_owned()
    }

    /// What cannot work.
    ///
    /// # Errors
    /// Names the field.
    pub fn validate(&self) -> Result<(), String> {
        self.access().validate(&self.urls, PORTS)?;
        if self.groups.is_empty()
            || self.groups.iter().any(|group| group.is_empty() || group.contains(BETWEEN))
        {
            return Err(format!("groups: at least one is needed, none of them empty or with {BETWEEN}"));
        }
        if self.namespace_id.is_empty() {
            return Err("namespaceId: must not be empty; leave it out for public".to_owned());
        }
        if !(1..=600).contains(&self.interval_seconds) {
            return Err(format!("intervalSeconds: {} is not from 1 to 600", self.interval_seconds));
        }
        if self.hold_seconds > 31 * 24 * 3600 {
            return Err(format!("holdSeconds: {} is more than 31 days", self.hold_seconds));
        }
        Ok(())
    }

    /// A service and where it is, as every question has them.
    fn asked(&self, name: &Name) -> Value {
        json!({ "namespace": self.namespace_id, "groupName": name.group, "serviceName": name.service })
    }
}

/// One Nacos, and what it said.
pub struct Nacos {
    settings: Arc<NacosSettings>,
    origin: Arc<str>,
    /// Which server is tried first.
    first: usize,
    parts: Parts,
    /// How many instances each part has.
    counts: BTreeMap<String, usize>,
    begun_anew: Option<Instant>,
    heard: Option<Instant>,
}

/// Asks for a service, and to be told when it changes.
async fn subscribed(
    settings: Arc<NacosSettings>,
    connection: &Connection,
    name: Name,
) -> (Result<Value, String>, Name) {
    let mut ask = settings.asked(&name);
    ask["subscribe"] = true.into();
    ask["clusters"] = "".into();
    (connection.ask("SubscribeServiceRequest", ask).await, name)
}

impl Nacos {
    /// Nothing is asked yet. `origin` is who we are: what we wrote there is not read.
    pub fn new(settings: NacosSettings, origin: Arc<str>) -> Self {
        let parts = Parts::new(Duration::from_secs(settings.hold_seconds));
        let (settings, counts) = (Arc::new(settings), BTreeMap::new());
        Self { settings, origin, first: 0, parts, counts, begun_anew: None, heard: None }
    }

    /// A connection begins.
    fn begins(&self) -> Heard {
        Heard { again: self.parts.names().next().is_some(), ..Heard::default() }
    }

    fn is_recovering(&self, heard: &Heard) -> bool {
        (heard.again && !heard.whole) || self.begun_anew.is_some_and(|since| since.elapsed() < RECOVERY)
    }

    /// Whether a service was taken out. All or many of them are more likely to have been lost.
    fn is_taken_out(&self, name: &Name, heard: &Heard) -> bool {
        let has = |name: &Name| self.counts.get(&name.part()).is_some_and(|count| *count > 0);
        let empty =
            heard.subscribed.iter().filter(|(name, known)| known.empty.is_some() && has(name)).count();
        let known = self.counts.values().filter(|count| **count > 0).count();
        let since = heard.subscribed.get(name).and_then(|known| known.empty);
        since.is_some_and(|since| since.elapsed() >= EMPTY) && !is_mass(empty, known)
    }

    fn tell(&self, heard: &Heard, voice: &Voice) {
        let trouble = heard.trouble.iter().map(|(part, why)| Problem::of_part(part, why.clone()));
        let token = heard.token.iter().map(|why| Problem::of_part("token", why.clone()));
        voice.problems(token.chain(trouble).chain(self.parts.problems()).take(MOST_PROBLEMS).collect());
    }

    /// Dubbo's consumers are no services.
    fn wants(&self, name: &Name) -> bool {
        let services = &self.settings.services;
        !name.service.starts_with("consumers:") && (services.is_empty() || services.contains(&name.service))
    }

    /// Which services there are.
    async fn listed(&self, connection: &Connection) -> Result<BTreeSet<Name>, String> {
        let mut all = BTreeSet::new();
        for group in &self.settings.groups {
            for page in 1..=MOST_PAGES {
                let ask = json!({
                    "namespace": self.settings.namespace_id, "groupName": group, "pageNo": page, "pageSize": PAGE, "selector": "",
                });
                let answer = connection.ask("ServiceListRequest", ask).await?;
                let names = answer["serviceNames"].as_array().map_or(&[][..], Vec::as_slice);
                let count = answer["count"].as_u64().unwrap_or(0);
                if names.is_empty() && count > 0 && page == 1 {
                    return Err(
                        connection.said("listing", &format!("it counts {count} services, and lists none"))
                    );
                }
                let is_last = names.len() < PAGE || count <= (page * PAGE) as u64;
                let names = names.iter().filter_map(Value::as_str).map(|text| Name::of(text, group));
                all.extend(names.filter(|name| self.wants(name)));
                if is_last {
                    break;
                }
                if all.len() > MOST_SERVICES || page == MOST_PAGES {
                    let why = format!(
                        "there are more than {MOST_SERVICES} services; name those that are wanted (services)"
                    );
                    return Err(connection.said("listing", &why));
                }
            }
        }
        Ok(all)
    }

    /// Who is not listed any more, and yet there. A server cuts each page out of an order of its own, which is another when a service comes
    /// or goes: one may be on neither of two pages. So they are asked; only who has nobody has gone.
    async fn unlisted(&self, connection: &Connection, heard: &Heard, listed: &BTreeSet<Name>) -> Vec<Name> {
        let ask = |name: &Name| subscribed(self.settings.clone(), connection, name.clone());
        let missing: Vec<_> =
            heard.subscribed.keys().filter(|name| !listed.contains(*name)).map(ask).collect();
        let mut answers = futures_util::stream::iter(missing).buffer_unordered(AT_ONCE);
        let mut there = Vec::new();
        while let Some((answer, name)) = answers.next().await {
            // Of whom nothing is known nothing has changed.
            let has_any = |answer: Value| {
                answer["serviceInfo"]["hosts"].as_array().is_some_and(|hosts| !hosts.is_empty())
            };
            if answer.map_or(true, has_any) {
                there.push(name);
            }
        }
        there
    }

    /// Asks which services there are, and subscribes to those that are new.
    async fn round(
        &mut self,
        connection: &Connection,
        heard: &mut Heard,
        voice: &Voice,
    ) -> Result<(), String> {
        let mut now = self.listed(connection).await?;
        now.extend(self.unlisted(connection, heard, &now).await);
        let parts: BTreeSet<String> = now.iter().map(Name::part).collect();
        for (part, left) in self.parts.list(&parts, false, self.is_recovering(heard), Instant::now()) {
            self.counts.insert(part.clone(), left.len());
            voice.say(&part, Event::Reset(left)).await?;
        }
        let gone: Vec<Name> = heard.subscribed.keys().filter(|name| !now.contains(*name)).cloned().collect();
        for name in gone {
            let mut ask = self.settings.asked(&name);
            ask["subscribe"] = false.into();
            connection.ask("SubscribeServiceRequest", ask).await?;
            heard.subscribed.remove(&name);
        }
        heard.trouble.retain(|part, _| parts.contains(part));
        let is_fresh =
            |name: &Name| heard.subscribed.get(name).is_some_and(|known| known.asked.elapsed() < AGAIN);
        let due: Vec<Name> = now.into_iter().filter(|name| !is_fresh(name)).collect();
        let settings = self.settings.clone();
        let ask = |name: Name| subscribed(settings.clone(), connection, name);
        let mut answers = futures_util::stream::iter(due.into_iter().map(ask)).buffer_unordered(AT_ONCE);
        while let Some((answer, name)) = answers.next().await {
            let info = answer.map(|answer| answer["serviceInfo"].clone());
            match info.and_then(|info| entry::read(&info, &self.settings, &self.origin)) {
                Ok(service) => {
                    let known = heard.subscribed.entry(name.clone());
                    let known = known.or_insert(Known::new(0));
                    // What was pushed before was taken before: this is newer, whatever the server's clock says by now.
                    (known.asked, known.made) = (Instant::now(), service.made);
                    self.take(&name, service.said, heard, voice).await?;
                }
                // Asked again with the next list.
                Err(why) => drop(heard.trouble.insert(name.part(), why)),
            }
        }
        drop(answers);
        if !std::mem::replace(&mut heard.whole, true) {
            // What the first round lacked may be on its way.
            self.begun_anew = self.parts.is_holding().then(Instant::now);
            voice.whole().await?;
        }
        if !self.parts.is_holding() {
            self.begun_anew = None;
        }
        self.heard = Some(Instant::now());
        voice.is_there();
        self.tell(heard, voice);
        Ok(())
    }

    /// A service has these.
    async fn take(
        &mut self,
        name: &Name,
        said: Vec<super::parts::Said>,
        heard: &mut Heard,
        voice: &Voice,
    ) -> Result<(), String> {
        let (part, recovering) = (name.part(), self.is_recovering(heard));
        if let Some(known) = heard.subscribed.get_mut(name) {
            let since = known.empty.unwrap_or_else(Instant::now);
            known.empty = (said.is_empty() && !recovering).then_some(since);
        }
        if self.is_taken_out(name, heard) {
            self.parts.clear(&part);
        }
        let missing = match (recovering, said.is_empty()) {
            (true, _) => Missing::Lost,
            (false, true) => Missing::Emptied,
            (false, false) => Missing::Gone,
        };
        let others: usize =
            self.counts.iter().filter(|(other, _)| **other != part).map(|(_, count)| count).sum();
        if others + said.len() > MOST_INSTANCES {
            let why = format!("with it there are more than {MOST_INSTANCES} instances; it stays what it was");
            heard.trouble.insert(part, why);
            return Ok(());
        }
        heard.trouble.remove(&part);
        let items = self.parts.part(&part, said, missing, Instant::now());
        self.counts.insert(part.clone(), items.len());
        voice.say(&part, Event::Reset(items)).await
    }

    /// Something was pushed.
    async fn pushed(&mut self, body: &Value, heard: &mut Heard, voice: &Voice) -> Result<(), String> {
        match entry::read(&body["serviceInfo"], &self.settings, &self.origin) {
            Ok(service) => {
                // What is older than what is known, or was let go of, is no news.
                let known =
                    heard.subscribed.get_mut(&service.name).filter(|known| known.made <= service.made);
                if let Some(known) = known {
                    known.made = service.made;
                    self.take(&service.name, service.said, heard, voice).await?;
                }
            }
            Err(why) => drop(heard.trouble.insert("pushed".to_owned(), why)),
        }
        if !self.parts.is_holding() {
            self.begun_anew = None;
        }
        self.tell(heard, voice);
        Ok(())
    }
}

impl Registry for Nacos {
    fn recall(&mut self, said: &mut BTreeMap<String, Vec<Item>>) -> bool {
        let before = said.len();
        said.retain(|part, _| self.wants(&Name::of(part, GROUP)));
        // Of other services than before nothing has been said yet.
        if said.is_empty() && before > 0 {
            return false;
        }
        self.counts = said.iter().map(|(part, items)| (part.clone(), items.len())).collect();
        self.parts.recall(said);
        true
    }

    async fn follow(&mut self, voice: &Voice) -> Result<(), String> {
        let settings = self.settings.clone();
        let mut connection = Connection::open(&settings, self.first).await?;
        // The next attempt is at another server.
        self.first = (connection.server + 1) % settings.urls.len();
        if let Some(before) = self.heard {
            self.parts.pause(before.elapsed());
        }
        let mut heard = self.begins();
        let interval = Duration::from_secs(settings.interval_seconds.into());
        let (mut list, mut beat) = (Instant::now(), Instant::now() + BEAT);
        loop {
            let ends = self.parts.hold_ends().filter(|_| heard.whole);
            tokio::select! {
                pushed = connection.pushed() => {
                    if let Some(body) = connection.take(&pushed?).await? {
                        self.pushed(&body, &mut heard, voice).await?;
                    }
                    voice.is_there();
                }
                () = sleep_until(list) => {
                    self.round(&connection, &mut heard, voice).await?;
                    list = Instant::now() + interval;
                }
                () = sleep_until(beat) => {
                    connection.ask("HealthCheckRequest", json!({})).await?;
                    self.heard = Some(Instant::now());
                    voice.is_there();
                    connection.renew(&settings).await;
                    if heard.token.as_deref() != connection.trouble() {
                        heard.token = connection.trouble().map(str::to_owned);
                        self.tell(&heard, voice);
                    }
                    beat = Instant::now() + BEAT;
                }
                () = async { sleep_until(ends.unwrap_or_else(Instant::now)).await }, if ends.is_some() => {
                    for (part, left) in self.parts.let_go(Instant::now()) {
                        tracing::warn!(service = part, "Nacos has been without it for too long; what was held goes");
                        voice.say(&part, Event::Reset(left)).await?;
                    }
                    self.tell(&heard, voice);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests;
