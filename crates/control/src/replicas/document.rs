//! A Secret that all replicas read and write: text by name, compared and swapped under the version that the API server gives it.
//!
//! What one writes the others hear by a watch, and by asking now and then, should the watch be dead without a word. What is known of it is
//! only ever replaced by what is newer; a replica that does not reach the API server hears of that from the others.
//! One that is deleted is written again as it was last known: nobody is reinstated, and no key lost, by
//! that.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::{StreamExt, pin_mut};
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use kube::api::{ObjectMeta, PostParams};
use kube::runtime::utils::Backoff;
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};

use super::Trouble;

/// For one answer.
const PATIENCE: Duration = Duration::from_secs(5);
/// Swaps that others were quicker with, before it is given up.
const TIMES: u32 = 10;
/// Between two of them; up to so much more by chance.
const PAUSE: Duration = Duration::from_millis(50);
/// Between two questions whether the watch has missed something.
const PERIOD: Duration = Duration::from_secs(5);
/// Before a watch that failed is begun again: at first, and at most.
const AGAIN: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(2));
/// Seconds after which the API server ends a watch.
const LIFE: u32 = 60;
/// Bytes of all texts: a Secret takes 1 MiB.
pub(super) const MOST: usize = (1 << 20) - (64 << 10);
/// Whose Secrets these are.
const OURS: (&str, &str) = ("app.kubernetes.io/managed-by", "outrigger-control");

/// Text by name.
pub(super) type Fields = BTreeMap<String, String>;

/// What it was at some time.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Version {
    /// The API server's, which only grows; 0: it is not there yet.
    number: u64,
    pub(super) fields: Fields,
}

impl Version {
    /// No document, but a word beside them that older releases pass over.
    pub(super) fn word(number: u64) -> Self {
        Self { number, fields: Fields::new() }
    }

    /// Of the API server, or the word.
    pub(super) fn number(&self) -> u64 {
        self.number
    }
}

/// One that is followed.
#[derive(Clone)]
pub(super) struct Document {
    api: Api<Secret>,
    name: &'static str,
    namespace: Arc<str>,
    latest: Arc<watch::Sender<Arc<Version>>>,
    /// When the API server said something last.
    heard: Arc<Mutex<Instant>>,
}

impl Document {
    /// Nothing is asked yet.
    pub(super) fn new(client: Client, namespace: &str, name: &'static str) -> Self {
        let (latest, _) = watch::channel(Arc::default());
        let api = Api::namespaced(client, namespace);
        let heard = Arc::new(Mutex::new(Instant::now()));
        Self { api, name, namespace: namespace.into(), latest: Arc::new(latest), heard }
    }

    /// By which its API server knows it.
    pub(super) fn name(&self) -> &'static str {
        self.name
    }

    /// How long the API server has said nothing.
    pub(super) fn silence(&self) -> Duration {
        self.heard.lock().elapsed()
    }

    /// Another replica knows this version of it. Whether that is news.
    pub(super) fn hear(&self, version: Version) -> bool {
        self.know(&Arc::new(version))
    }

    /// As messages call it.
    pub(super) fn place(&self) -> String {
        format!("Secret {}/{}", self.namespace, self.name)
    }

    /// Wakes when it has changed.
    pub(super) fn subscribe(&self) -> watch::Receiver<Arc<Version>> {
        self.latest.subscribe()
    }

    /// As it was last known.
    pub(super) fn latest(&self) -> Arc<Version> {
        self.latest.borrow().clone()
    }

    /// What it is now, if it is there.
    pub(super) async fn read(&self) -> Result<Option<Arc<Version>>, Trouble> {
        let found = self.asked(self.api.get_opt(self.name)).await?;
        found.map(|secret| self.learn(secret)).transpose()
    }

    /// Makes it. Whether it was not there: else another was quicker, and [`Document::read`] says what it is.
    pub(super) async fn create(&self, fields: &Fields) -> Result<bool, Trouble> {
        self.fits(fields)?;
        let labels = BTreeMap::from([(OURS.0.to_owned(), OURS.1.to_owned())]);
        let metadata = ObjectMeta {
            name: Some(self.name.to_owned()),
            namespace: Some(self.namespace.to_string()),
            labels: Some(labels),
            ..ObjectMeta::default()
        };
        let secret = Secret { metadata, data: Some(data(fields)), ..Secret::default() };
        match self.asked(self.api.create(&PostParams::default(), &secret)).await {
            Ok(made) => self.learn(made).map(|_| true),
            Err(Trouble::Refused(409, _)) => Ok(false),
            Err(trouble) => Err(trouble),
        }
    }

    /// Changes it, from what it is at this moment. What `edit` returns comes back once that is written.
    pub(super) async fn change<T>(
        &self,
        edit: impl Fn(&mut Fields) -> Result<T, Trouble>,
    ) -> Result<T, Trouble> {
        for _ in 0..TIMES {
            let found = self.asked(self.api.get_opt(self.name)).await?;
            let Some(mut secret) = found else {
                // It was deleted, or nobody has needed it yet.
                let mut fields = self.latest().fields.clone();
                let done = edit(&mut fields)?;
                if self.create(&fields).await? {
                    return Ok(done);
                }
                continue;
            };
            let mut fields = self.learn(secret.clone())?.fields.clone();
            let done = edit(&mut fields)?;
            self.fits(&fields)?;
            let data = data(&fields);
            if secret.data.as_ref() == Some(&data) {
                return Ok(done);
            }
            secret.data = Some(data);
            // With the version that was read: whoever was quicker is not overwritten.
            match self.asked(self.api.replace(self.name, &PostParams::default(), &secret)).await {
                Ok(written) => {
                    self.learn(written)?;
                    return Ok(done);
                }
                Err(Trouble::Refused(409 | 404, _)) => sleep(PAUSE + PAUSE.mul_f64(fastrand::f64())).await,
                Err(trouble) => return Err(trouble),
            }
        }
        Err(Trouble::Away(format!("others have changed it {TIMES} times in a row; try again")))
    }

    /// Hears of changes, for ever.
    pub(super) async fn follow(self) {
        let mut complained = None;
        let config = watcher::Config::default().timeout(LIFE).fields(&format!("metadata.name={}", self.name));
        let events = watcher(self.api.clone(), config).backoff(Pause::default());
        pin_mut!(events);
        // Whether a listing is under way that has not shown it.
        let mut unseen = false;
        loop {
            let event = timeout(PERIOD, events.next()).await;
            // `Init` comes before anybody was asked.
            if matches!(&event, Ok(Some(Ok(event))) if !matches!(event, watcher::Event::Init)) {
                *self.heard.lock() = Instant::now();
            }
            let outcome = match event {
                Err(_) => self.read().await.map(|found| found.is_none()),
                Ok(None) => return,
                Ok(Some(Err(error))) => Err(Trouble::from(error)),
                Ok(Some(Ok(watcher::Event::Init))) => {
                    unseen = true;
                    Ok(false)
                }
                Ok(Some(Ok(watcher::Event::Apply(secret) | watcher::Event::InitApply(secret)))) => {
                    unseen = false;
                    self.learn(secret).map(|_| false)
                }
                Ok(Some(Ok(watcher::Event::InitDone))) => Ok(std::mem::take(&mut unseen)),
                Ok(Some(Ok(watcher::Event::Delete(_)))) => Ok(true),
            };
            let outcome = match outcome {
                Ok(true) => self.restore().await,
                Ok(false) => Ok(()),
                Err(trouble) => Err(trouble),
            };
            let trouble = outcome.err().map(|trouble| trouble.to_string());
            if let Some(why) = trouble.as_ref().filter(|why| complained.as_ref() != Some(*why)) {
                tracing::warn!(secret = %self.place(), %why, "what replicas share cannot be followed; what is known of it holds");
            }
            complained = trouble;
        }
    }

    /// It is not there: it becomes what it was, if it was ever there.
    async fn restore(&self) -> Result<(), Trouble> {
        let known = self.latest();
        if known.number == 0 || self.read().await?.is_some() {
            return Ok(());
        }
        if self.create(&known.fields).await? {
            tracing::error!(secret = %self.place(), "it was deleted, and is written again as it was");
        }
        Ok(())
    }

    fn learn(&self, secret: Secret) -> Result<Arc<Version>, Trouble> {
        let number = secret.metadata.resource_version.as_deref().and_then(|text| text.parse().ok());
        let Some(number) = number else {
            return Err(Trouble::Away("its API server gives it no version that can be compared".to_owned()));
        };
        let mut fields = Fields::new();
        for (name, ByteString(bytes)) in secret.data.unwrap_or_default() {
            let text = String::from_utf8(bytes);
            fields.insert(name.clone(), text.map_err(|_| Trouble::Wrong(format!("{name} is no text")))?);
        }
        let version = Arc::new(Version { number, fields });
        self.know(&version);
        Ok(version)
    }

    fn know(&self, version: &Arc<Version>) -> bool {
        self.latest.send_if_modified(|known| {
            let is_news = version.number > known.number;
            if is_news {
                *known = version.clone();
            }
            is_news
        })
    }

    fn fits(&self, fields: &Fields) -> Result<(), Trouble> {
        let bytes: usize = fields.iter().map(|(name, text)| name.len() + text.len()).sum();
        if bytes > MOST {
            let place = self.place();
            return Err(Trouble::Wrong(format!(
                "{bytes} bytes are more than the {MOST} that {place} may have; take out what nobody needs any more"
            )));
        }
        Ok(())
    }

    async fn asked<T>(&self, asked: impl Future<Output = Result<T, kube::Error>>) -> Result<T, Trouble> {
        match timeout(PATIENCE, asked).await {
            Ok(answer) => {
                if is_heard(&answer) {
                    *self.heard.lock() = Instant::now();
                }
                answer.map_err(Trouble::from)
            }
            Err(_) => Err(Trouble::Away(format!("the API server did not answer within {PATIENCE:?}"))),
        }
    }
}

/// Whether an answer is one of a server that has what it is asked about: not that it is overloaded, has lost its etcd, or lets nobody in.
fn is_heard<T>(answer: &Result<T, kube::Error>) -> bool {
    match answer {
        Ok(_) => true,
        Err(kube::Error::Api(status)) => {
            (400..500).contains(&status.code) && ![401, 403, 429].contains(&status.code)
        }
        Err(_) => false,
    }
}

fn data(fields: &Fields) -> BTreeMap<String, ByteString> {
    fields.iter().map(|(name, text)| (name.clone(), ByteString(text.clone().into_bytes()))).collect()
}

/// Doubles, up to a bound, until something is heard.
struct Pause(Duration);

impl Default for Pause {
    fn default() -> Self {
        Self(AGAIN.0)
    }
}

impl Iterator for Pause {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        let now = self.0;
        self.0 = (now * 2).min(AGAIN.1);
        Some(now)
    }
}

impl Backoff for Pause {
    fn reset(&mut self) {
        self.0 = AGAIN.0;
    }
}
