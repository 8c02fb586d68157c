//! Eureka: everything once from a server, then what has changed lately, until the two come apart or the server fails.
//!
//! ```text
//! /apps ──▶ all ──▶ /apps/delta, every few seconds ──▶ Reset of the part NAMESPACE/SERVICE
//!   ▲                   │ apps__hashcode of all is another, or it was too long ago
//!   └───────────────────┘
//! ```
//!
//! A server keeps nothing on disk: one that has started is empty until everybody has said again who he is. What it does not have
//! then is held. That it has started tells the count of its deltas, which goes backwards; one that was not asked before may have.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use http::{Method, StatusCode};
use serde::{Deserialize, Serialize};
use tokio::time::{Instant, sleep_until};

use super::keys::Keys;
use super::web::{self, Access, Http, Url};
use super::{Event, Item, MOST_PROBLEMS, Registry, Voice};

mod entry;
pub(super) mod writer;

use entry::Applications;

/// After a server has started: so long others may take to register again.
const RECOVERY: Duration = Duration::from_secs(600);
/// A server tells the changes of three minutes.
const DELTAS: Duration = Duration::from_secs(120);
/// Instances of a server.
const MOST: usize = 200_000;
/// What a password is about.
const ADVICE: &str = "; are user and passwordFile (or those of the URL) good?";
/// Of a URL that names none.
const PORTS: (u16, u16) = (8761, 443);

/// A Eureka of the settings.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct EurekaSettings {
    /// Its servers, tried in turn. Default `http://127.0.0.1:8761/eureka`.
    #[serde(serialize_with = "web::without_users")]
    pub urls: Vec<String>,
    /// The namespace that its services get here. Default `default`.
    pub namespace: String,
    /// What services are called here, by what applications are called there.
    pub names: BTreeMap<String, String>,
    /// Whether instances have a sidecar, where their metadata do not say `sidecar`. Default false.
    pub sidecar: bool,
    /// Seconds between two questions. Default 10.
    pub interval_seconds: u32,
    /// A user (basic authentication), with `passwordFile`. Default that of the URL, if it has one.
    pub user: Option<String>,
    /// A file with the user's password, read anew at each connection.
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
    /// Whether what is registered here in `namespace` is registered there. Default false.
    pub register: bool,
    /// Seconds that what we registered outlives us. Default 90.
    pub ttl_seconds: u32,
}

impl Default for EurekaSettings {
    fn default() -> Self {
        Self {
            urls: vec!["http://127.0.0.1:8761/eureka".into()],
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
            ttl_seconds: 90,
        }
    }
}

impl std::fmt::Debug for EurekaSettings {
    /// Without the URLs, which may have a password.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("EurekaSettings").field("namespace", &self.namespace).finish_non_exhaustive()
    }
}

impl EurekaSettings {
    fn access(&self) -> Access<'_> {
        Access {
            what: "Eureka",
            user: self.user.as_ref(),
            password_file: self.password_file.as_ref(),
            ca_file: self.ca_file.as_ref(),
            cert_file: self.cert_file.as_ref(),
            key_file: self.key_file.as_ref(),
            server_name: self.server_name.as_ref(),
        }
    }

    /// What cannot work.
    ///
    /// # Errors
    /// Names the field.
    pub fn validate(&self) -> Result<(), String> {
        self.access().validate(&self.urls, PORTS)?;
        if !(1..=600).contains(&self.interval_seconds) {
            return Err(format!("intervalSeconds: {} is not from 1 to 600", self.interval_seconds));
        }
        if !(5..=86_400).contains(&self.ttl_seconds) {
            return Err(format!("ttlSeconds: {} is not from 5 to 86400", self.ttl_seconds));
        }
        if self.hold_seconds > 31 * 24 * 3600 {
            return Err(format!("holdSeconds: {} is more than 31 days", self.hold_seconds));
        }
        Ok(())
    }

    /// One of its servers. Blocks.
    fn open(&self, index: usize) -> Result<Http, String> {
        let url = self.urls.get(index).map_or("", String::as_str);
        let url = Url::parse(url, PORTS)?;
        let access = self.access();
        access.open(&url)?.with_basic(access.password()?)
    }
}

/// One Eureka, and what it said.
pub struct Eureka {
    settings: Arc<EurekaSettings>,
    origin: Arc<str>,
    /// Which server is tried first.
    first: usize,
    keys: Keys,
    /// Status of each instance that the server has, also of those that are nobody's here.
    statuses: BTreeMap<String, String>,
    /// The count of each server's deltas, where it tells any.
    versions: BTreeMap<usize, Option<u64>>,
    begun_anew: Option<Instant>,
    heard: Option<Instant>,
}

impl Eureka {
    /// Nothing is asked yet. `origin` is who we are: what we wrote there is not read.
    pub fn new(settings: EurekaSettings, origin: Arc<str>) -> Self {
        let keys = Keys::new(Duration::from_secs(settings.hold_seconds), settings.names.clone());
        let (statuses, versions) = (BTreeMap::new(), BTreeMap::new());
        let settings = Arc::new(settings);
        Self { settings, origin, first: 0, keys, statuses, versions, begun_anew: None, heard: None }
    }

    fn is_recovering(&self) -> bool {
        self.begun_anew.is_some_and(|since| since.elapsed() < RECOVERY)
    }

    async fn fetch(&self, http: &mut Http, path: &str) -> Result<Option<Applications>, String> {
        let reply = http.ask(&Method::GET, path, None).await?;
        match reply.status {
            StatusCode::OK => {}
            // It tells no deltas (`eureka.server.disable-delta`).
            StatusCode::FORBIDDEN | StatusCode::NOT_FOUND if path.ends_with("/delta") => return Ok(None),
            _ => return Err(http.refused(path, &reply, ADVICE)),
        }
        let read = entry::read(&reply.body, &self.settings, &self.origin);
        let read = read.map_err(|why| http.failed(&format!("{path}: {why}")))?;
        if read.rows.len() > MOST {
            return Err(http.failed(&format!("it has {} instances, the most are {MOST}", read.rows.len())));
        }
        Ok(Some(read))
    }

    async fn fetch_all(&self, http: &mut Http) -> Result<Applications, String> {
        let all = self.fetch(http, "/apps").await?;
        let all = all.ok_or_else(|| http.failed(&"it tells nothing"))?;
        // Nobody, and yet somebody.
        if all.rows.is_empty() && !all.hash.is_empty() {
            return Err(http.failed(&format!("/apps: nobody is listed, but counted are {:?}", all.hash)));
        }
        Ok(all)
    }

    /// A server has counted so many deltas, if it tells any. One that is asked for the first time since we started may itself have
    /// started since what is known was said.
    fn counts(&mut self, server: usize, version: Option<u64>) {
        let before = self.versions.get(&server).copied();
        self.versions.insert(server, version.or(before.flatten()));
        let begun = match before {
            None => self.keys.parts.names().next().is_some(),
            Some(before) => before.zip(version).is_some_and(|(before, version)| version < before),
        };
        if begun {
            if before.is_some() {
                tracing::warn!(version, "Eureka has started; what it does not have yet is held");
            }
            self.begun_anew = Some(Instant::now());
        }
    }

    /// This is all that there is.
    fn all(&mut self, all: Applications, touched: &mut BTreeSet<String>) {
        self.statuses.clear();
        touched.extend(self.keys.all_parts());
        let mut gone: BTreeSet<String> = self.keys.names().cloned().collect();
        for row in all.rows {
            gone.remove(&row.key);
            self.keys.put(&row.key, Some(row.said), touched);
            self.statuses.insert(row.key, row.status);
        }
        for key in gone {
            self.keys.put(&key, None, touched);
        }
    }

    /// This has changed lately, perhaps before what is known. Whether what is known then is what the server has.
    fn changed(&mut self, changes: Applications, touched: &mut BTreeSet<String>) -> bool {
        for row in changes.rows {
            if row.deleted {
                self.keys.end(&row.key, row.said, touched);
                self.statuses.remove(&row.key);
            } else {
                self.keys.put(&row.key, Some(row.said), touched);
                self.statuses.insert(row.key, row.status);
            }
        }
        entry::hash(self.statuses.values()) == changes.hash
    }

    async fn say(&mut self, touched: BTreeSet<String>, voice: &Voice) -> Result<(), String> {
        if touched.is_empty() {
            voice.heard();
        }
        for (part, items) in self.keys.settle(touched, self.is_recovering(), Instant::now()) {
            voice.say(&part, Event::Reset(items)).await?;
        }
        // All of it is back: from now on what goes has gone.
        if !self.keys.parts.is_holding() {
            self.begun_anew = None;
        }
        voice.problems(self.keys.parts.problems().take(MOST_PROBLEMS).collect());
        Ok(())
    }

    /// Asks once, for everything (`anew`) or for what has changed, and says it. Whether everything is to be asked for next.
    async fn round(
        &mut self,
        server: usize,
        http: &mut Http,
        anew: bool,
        voice: &Voice,
    ) -> Result<bool, String> {
        let mut touched = BTreeSet::new();
        if anew {
            let all = self.fetch_all(http).await?;
            self.all(all, &mut touched);
        }
        let next = match self.fetch(http, "/apps/delta").await? {
            None => {
                self.counts(server, None);
                true
            }
            Some(changes) => {
                self.counts(server, Some(changes.version));
                let fits = self.changed(changes, &mut touched);
                if !fits && !anew {
                    let all = self.fetch_all(http).await?;
                    self.all(all, &mut touched);
                }
                !fits && anew
            }
        };
        self.heard = Some(Instant::now());
        self.say(touched, voice).await?;
        Ok(next)
    }

    /// Follows one server until it fails.
    async fn follow_one(&mut self, server: usize, http: &mut Http, voice: &Voice) -> Result<(), String> {
        let pause = Duration::from_secs(self.settings.interval_seconds.into());
        if let Some(before) = self.heard {
            self.keys.parts.pause(before.elapsed());
        }
        let (mut whole, mut anew) = (false, true);
        loop {
            let begun = Instant::now();
            anew = self.round(server, http, anew, voice).await?;
            if !std::mem::replace(&mut whole, true) {
                voice.whole().await?;
            }
            let next = Instant::now() + pause;
            if let Some(ends) = self.keys.parts.hold_ends().filter(|ends| *ends < next) {
                sleep_until(ends).await;
                for (part, left) in self.keys.parts.let_go(Instant::now()) {
                    tracing::warn!(
                        service = part,
                        "Eureka has been without it for too long; what was held goes"
                    );
                    voice.say(&part, Event::Reset(left)).await?;
                }
            }
            sleep_until(next).await;
            anew |= begun.elapsed() > DELTAS;
        }
    }
}

/// Opens a server of the settings.
async fn opened(settings: &Arc<EurekaSettings>, server: usize) -> Result<Http, String> {
    let settings = settings.clone();
    let http = tokio::task::spawn_blocking(move || settings.open(server)).await;
    http.map_err(|error| error.to_string())?
}

impl Registry for Eureka {
    fn recall(&mut self, said: &mut BTreeMap<String, Vec<Item>>) -> bool {
        self.keys.recall(said);
        true
    }

    async fn follow(&mut self, voice: &Voice) -> Result<(), String> {
        let mut failures = Vec::new();
        for _ in 0..self.settings.urls.len() {
            let server = self.first;
            self.first = (server + 1) % self.settings.urls.len();
            let heard = self.heard;
            let followed = match opened(&self.settings, server).await {
                Ok(mut http) => self.follow_one(server, &mut http, voice).await,
                Err(why) => Err(why),
            };
            let Err(why) = followed else { continue };
            failures.push(why);
            // One that has answered is not the others' failure.
            if self.heard != heard {
                break;
            }
        }
        Err(failures.join("; "))
    }
}

#[cfg(test)]
mod tests;
