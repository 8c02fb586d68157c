//! The questions to a Consul: one blocking query for the list of services, and one for each of them.
//!
//! A query that returns is no proof of news, an index that goes backwards begins anew, and none is asked more than ten times a second.
//! The queries share [`ConsulSettings::connections`] (an agent takes 200 of one address): of more services than these each is waited for in
//! turn, so that none is older than `ROUND`.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use serde::de::DeserializeOwned;
use tokio::sync::{Semaphore, mpsc};
use tokio::time::Instant;

use super::ConsulSettings;
use super::entry::Row;
use super::http::{self, Answer, Http};

/// Where there are more services than connections, none is asked later than this.
const ROUND: Duration = Duration::from_secs(10);
/// Between two questions about the same.
const LEAST: Duration = Duration::from_millis(100);
/// After an answer that is none, doubled each time.
const PAUSE: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(30));
/// Consul's own servers register themselves.
const OWN: &str = "consul";

/// What the tasks of one connection find.
pub(super) enum News {
    /// The list was answered, with this index; whether the token does not see all of it.
    Answered {
        index: u64,
        filtered: bool,
    },
    /// The services that there are, as far as the token sees them.
    Services(BTreeSet<String>),
    /// The instances of one; whether the token does not see them all, and whether its index went backwards.
    Service {
        name: String,
        rows: Vec<Row>,
        filtered: bool,
        back: bool,
    },
    /// One cannot be heard of.
    Trouble {
        name: String,
        why: String,
    },
    /// Nothing new.
    Nothing,
    Failed(String),
}

/// What the tasks of one connection share.
#[derive(Clone)]
pub(super) struct Ask {
    http: Arc<Http>,
    news: mpsc::Sender<News>,
    /// Of queries that wait for news.
    places: Arc<Semaphore>,
    /// Of first questions, which never stand behind those.
    first: Arc<Semaphore>,
    /// How many services there are.
    all: Arc<AtomicUsize>,
    settings: Arc<ConsulSettings>,
}

impl Ask {
    pub(super) fn new(http: Http, news: mpsc::Sender<News>, settings: ConsulSettings) -> Self {
        let (first, places) = shares(settings.connections);
        Self {
            http: Arc::new(http),
            news,
            places: Arc::new(Semaphore::new(places)),
            first: Arc::new(Semaphore::new(first)),
            all: Arc::default(),
            settings: Arc::new(settings),
        }
    }

    pub(super) fn count(&self, services: usize) {
        self.all.store(services, Relaxed);
    }

    /// How long a query of a service may hold its connection.
    fn wait(&self) -> Duration {
        let (all, (_, places)) = (self.all.load(Relaxed), shares(self.settings.connections));
        let most = Duration::from_secs(self.settings.wait_seconds);
        if all <= places { most } else { (ROUND * places as u32 / all.max(1) as u32).min(most) }
    }

    /// Asks for the list of services for ever.
    pub(super) async fn services(self) {
        let wait = Duration::from_secs(self.settings.wait_seconds);
        let mut index = Index::default();
        let mut last = None;
        loop {
            index.pace().await;
            let asked = self.http.query("/v1/catalog/services", &[], index.of_last(), wait).await;
            let read = asked
                .and_then(|answer| Ok((read::<BTreeMap<String, Option<Vec<String>>>>(&answer)?, answer)));
            let (services, answer) = match read {
                Ok(read) => read,
                Err(why) => return drop(self.news.send(News::Failed(why)).await),
            };
            index.take(answer.index);
            let wanted = |name: &String, tags: &Option<Vec<String>>| {
                let tagged = |tag: &String| tags.iter().flatten().any(|other| other == tag);
                name != OWN
                    && (self.settings.services.is_empty() || self.settings.services.contains(name))
                    && self.settings.tag.as_ref().is_none_or(tagged)
            };
            let now: BTreeSet<String> = services
                .into_iter()
                .filter(|(name, tags)| wanted(name, tags))
                .map(|(name, _)| name)
                .collect();
            let answered = News::Answered { index: answer.index, filtered: answer.filtered };
            if self.news.send(answered).await.is_err() {
                return;
            }
            // That it shows everything now is news, too: of what is missing.
            let all = (now, answer.filtered);
            if last.as_ref() != Some(&all) {
                let now = all.0.clone();
                last = Some(all);
                if self.news.send(News::Services(now)).await.is_err() {
                    return;
                }
            }
        }
    }

    /// Asks for the instances of a service for ever. One that fails is asked less and less, and holds up nobody else.
    pub(super) async fn service(self, name: String) {
        let path = format!("/v1/health/service/{}", http::escaped(&name));
        let tag = self.settings.tag.clone();
        let more: Vec<(&str, &str)> = tag.iter().map(|tag| ("tag", tag.as_str())).collect();
        let mut index = Index::default();
        let (mut last, mut pause) = (None, PAUSE.0);
        loop {
            index.pace().await;
            let places = if index.of_last().is_some() { &self.places } else { &self.first };
            let Ok(place) = places.acquire().await else { return };
            let asked = self.http.query(&path, &more, index.of_last(), self.wait()).await;
            drop(place);
            if asked.is_err() && index.failed() {
                continue;
            }
            let news = match asked.and_then(|answer| Ok((rows(&answer)?, answer))) {
                Err(why) => News::Trouble { name: name.clone(), why },
                Ok((rows, answer)) => {
                    let back = index.take(answer.index);
                    pause = PAUSE.0;
                    let now = (rows, answer.filtered);
                    if last.as_ref() == Some(&now) && !back {
                        News::Nothing
                    } else {
                        last = Some(now.clone());
                        News::Service { name: name.clone(), rows: now.0, filtered: now.1, back }
                    }
                }
            };
            let failed = matches!(news, News::Trouble { .. });
            if self.news.send(news).await.is_err() {
                return;
            }
            if failed {
                // What it says next is news, so that the trouble is over.
                last = None;
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(PAUSE.1);
            }
        }
    }
}

/// Connections of first questions, and of those that wait; one is the list's.
fn shares(connections: usize) -> (usize, usize) {
    let first = (connections / 10).max(1);
    (first, connections.saturating_sub(first + 1).max(1))
}

/// Each row by itself: whoever may write one must not hold up the others.
fn rows(answer: &Answer) -> Result<Vec<Row>, String> {
    Ok(read::<Vec<serde_json::Value>>(answer)?.into_iter().map(Row::of).collect())
}

fn read<T: DeserializeOwned>(answer: &Answer) -> Result<T, String> {
    serde_json::from_slice(&answer.body)
        .map_err(|error| format!("Consul's answer to {} cannot be read: {error}", answer.path))
}

/// The index of one query, and its pace.
#[derive(Default)]
struct Index {
    last: u64,
    /// What there is now is wanted, whatever the index.
    anew: bool,
    asked: Option<Instant>,
}

impl Index {
    /// The one to wait beyond; nothing: what there is now is wanted.
    fn of_last(&self) -> Option<u64> {
        (self.last > 0 && !self.anew).then_some(self.last)
    }

    /// One that goes backwards is of another history (a restore, a new leader): then what there is is asked for anew. Zero would
    /// not wait at all. Says whether it went backwards.
    fn take(&mut self, index: u64) -> bool {
        let index = index.max(1);
        let back = index < self.last;
        (self.last, self.anew) = (index, back);
        back
    }

    /// A Consul that answers again may have another history, of which an index of before is the future: it is asked at once, and not
    /// waited for. Says whether there is more to ask now.
    fn failed(&mut self) -> bool {
        let waited = self.of_last().is_some();
        self.anew = true;
        waited
    }

    async fn pace(&mut self) {
        if let Some(asked) = self.asked {
            tokio::time::sleep_until(asked + LEAST).await;
        }
        self.asked = Some(Instant::now());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_index_that_goes_backwards_begins_anew_and_zero_does_not_spin() {
        let mut index = Index::default();
        assert_eq!(index.of_last(), None);
        for (got, next) in [(7, Some(7)), (7, Some(7)), (3, None), (3, Some(3)), (0, None), (0, Some(1))] {
            index.take(got);
            assert_eq!(index.of_last(), next, "after {got}");
        }
        index.take(9);
        assert!(index.failed() && !index.failed());
        assert_eq!(index.of_last(), None);
        assert!(index.take(4), "another history");
    }

    #[test]
    fn many_services_share_the_connections_and_none_waits_longer_than_a_round() {
        let settings = ConsulSettings { connections: 12, ..ConsulSettings::default() };
        let http = Http::open(&settings).unwrap();
        let (news, _) = mpsc::channel(1);
        let ask = Ask::new(http, news, settings);
        for (services, wait) in [(10, 60_000), (20, 5000), (1000, 100)] {
            ask.count(services);
            assert_eq!(ask.wait().as_millis(), wait, "{services}");
        }
        // A first question has places of its own, however many wait for news.
        assert_eq!((ask.first.available_permits(), ask.places.available_permits()), (1, 10));
    }
}
