//! Writing what is registered here to a registry, where its row says `register`: put, kept alive, taken out again.
//!
//! ```text
//! keeper ──wanted──▶ open ──▶ take out what went ──▶ put what is new ──┬─▶ beat, three in a TTL
//!                     ▲                                 ▲── news ──────┤
//!                     └───── pause ◀── failed ──────────┴──────────────┘
//! ```
//!
//! Everything there has a lease or a check of its own, so what we cannot take out any more ends by itself. When we stop, nothing is taken
//! out: the workloads run on, and whoever starts in our place within a TTL goes on with them.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

use super::health::Health;
use super::{ORIGIN, PAUSE, Problem};
use crate::instance::{Instance, Protocol};

/// What is registered here and was not stopped, by id.
pub type Wanted = BTreeMap<String, Arc<Instance>>;

/// Why one is not there.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Unput {
    /// The registry does not take this one; it is put anew at a beat, and the others are there.
    Refused(String),
    /// The connection is good for nothing more.
    Failed(String),
}

impl From<String> for Unput {
    fn from(why: String) -> Self {
        Self::Failed(why)
    }
}

impl Unput {
    pub(super) fn text(self) -> String {
        match self {
            Self::Refused(why) | Self::Failed(why) => why,
        }
    }
}

/// How a registry is written.
pub(super) trait Writer: Send + 'static {
    /// Whether it is one for this registry.
    fn has(&self, instance: &Instance) -> bool;
    /// Connects. What was put before may be there or not.
    fn open(&mut self) -> impl Future<Output = Result<(), String>> + Send;
    /// It is there from now on, like this.
    fn put(&mut self, instance: &Instance) -> impl Future<Output = Result<(), Unput>> + Send;
    /// It is not there any more, as far as we put it.
    fn remove(&mut self, instance: &Instance) -> impl Future<Output = Result<(), String>> + Send;
    /// All that were put live on for a TTL.
    fn beat(&mut self, all: &Wanted) -> impl Future<Output = Result<(), String>> + Send;
    /// The time between two beats.
    fn every(&self) -> Duration;
    /// Of what was put and not refused, so many are there.
    fn written(&self, put: &Wanted) -> usize {
        put.values().filter(|instance| self.has(instance)).count()
    }
    /// What else is wrong, where the connection is good.
    fn trouble(&self) -> Option<&str> {
        None
    }
}

/// As it is written: with who we are.
pub(super) fn marked(instance: &Instance, origin: &str) -> Instance {
    let mut marked = Instance { ttl_seconds: None, ..instance.clone() };
    marked.metadata.insert(ORIGIN.to_owned(), origin.to_owned());
    marked
}

/// What others and we ourselves read of an instance from its metadata there: its labels and metadata, and what means something.
pub(super) fn metadata(instance: &Instance) -> BTreeMap<String, String> {
    let protocol = match instance.ports.first().map(|port| port.protocol) {
        Some(Protocol::Http) => "http",
        Some(Protocol::Http2) => "http2",
        Some(Protocol::Grpc) => "grpc",
        Some(Protocol::Tls) => "tls",
        Some(Protocol::Tcp) => "tcp",
        Some(Protocol::Auto) | None => "",
    };
    let weight = instance.weight.to_string();
    let own = [
        ("version", instance.version.as_deref().unwrap_or_default()),
        ("weight", &weight),
        ("zone", &instance.zone),
        ("region", &instance.region),
        ("serviceAccount", &instance.service_account),
        ("protocol", protocol),
        ("sidecar", if instance.sidecar { "true" } else { "false" }),
    ];
    let own = own.into_iter().filter(|(_, value)| !value.is_empty());
    let own = own.map(|(key, value)| (key.to_owned(), value.to_owned()));
    let free = instance.labels.iter().chain(&instance.metadata);
    free.map(|(key, value)| (key.clone(), value.clone())).chain(own).collect()
}

/// Writes for ever; ends when nobody says any more what is wanted.
pub(super) async fn write<W: Writer>(
    mut writer: W,
    registry: Arc<str>,
    mut wanted: watch::Receiver<Arc<Wanted>>,
    health: Arc<Health>,
) {
    let (mut there, mut pause) = (Wanted::new(), PAUSE.0);
    loop {
        let begun = Instant::now();
        let of =
            |why: String| Problem { registry: registry.to_string(), ..Problem::of_part("register", why) };
        let tell = |writer: &W, put: &Wanted, refused: &Refused| {
            let why = refused.first_key_value().map(|(id, why)| format!("instance \"{id}\": {why}"));
            let why = why.or_else(|| writer.trouble().map(str::to_owned));
            health.set_written(writer.written(&taken(put, refused)), why.map(of));
        };
        let Err(why) = session(&mut writer, &mut there, &mut wanted, tell).await else { return };
        tracing::error!(
            registry = %registry,
            "what is registered here cannot be written: {why}; trying again in {pause:?}"
        );
        health.set_unwritten(Some(of(why)));
        pause = if begun.elapsed() > PAUSE.1 { PAUSE.0 } else { pause };
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(PAUSE.1);
    }
}

/// Those that the registry does not take, and why.
type Refused = BTreeMap<String, String>;

/// One connection. `there` is what may be in the registry by us.
async fn session<W: Writer>(
    writer: &mut W,
    there: &mut Wanted,
    wanted: &mut watch::Receiver<Arc<Wanted>>,
    tell: impl Fn(&W, &Wanted, &Refused),
) -> Result<(), String> {
    writer.open().await?;
    let (mut put, mut refused) = (Wanted::new(), Refused::new());
    let mut next = Instant::now() + writer.every();
    loop {
        let now = wanted.borrow_and_update().clone();
        let moved = |(id, old): &(&String, &Arc<Instance>)| {
            now.get(*id).is_none_or(|new| (&new.namespace, &new.service) != (&old.namespace, &old.service))
        };
        let gone: Vec<Arc<Instance>> = there.iter().filter(moved).map(|(_, old)| old.clone()).collect();
        for old in gone {
            writer.remove(&old).await?;
            there.remove(&old.id);
            put.remove(&old.id);
            refused.remove(&old.id);
        }
        for (id, instance) in now.iter() {
            if put.get(id) == Some(instance) {
                continue;
            }
            if Instant::now() >= next {
                writer.beat(&taken(&put, &refused)).await?;
                next = Instant::now() + writer.every();
            }
            there.insert(id.clone(), instance.clone());
            match writer.put(instance).await {
                Ok(()) => drop(refused.remove(id)),
                Err(Unput::Refused(why)) => drop(refused.insert(id.clone(), why)),
                Err(Unput::Failed(why)) => return Err(why),
            }
            put.insert(id.clone(), instance.clone());
        }
        tell(writer, &put, &refused);
        // Whom everything is refused may be let in with what its files say by now.
        let ours = put.values().filter(|instance| writer.has(instance)).count();
        if ours > 0 && refused.len() >= ours {
            return Err(refused.into_values().next().unwrap_or_default());
        }
        tokio::select! {
            changed = wanted.changed() => if changed.is_err() { return Ok(()) },
            () = sleep_until(next) => {
                writer.beat(&taken(&put, &refused)).await?;
                next = Instant::now() + writer.every();
                // They may be taken by now.
                refused.keys().for_each(|id| drop(put.remove(id)));
            }
        }
    }
}

/// Those of what was put that are there.
fn taken<'p>(put: &'p Wanted, refused: &Refused) -> Cow<'p, Wanted> {
    if refused.is_empty() {
        return Cow::Borrowed(put);
    }
    let taken = put.iter().filter(|(id, _)| !refused.contains_key(*id));
    Cow::Owned(taken.map(|(id, instance)| (id.clone(), instance.clone())).collect())
}

#[cfg(test)]
mod tests {
    use tokio::sync::mpsc;

    use super::*;
    use crate::instance::{Protocol, sample};

    /// Says what it is asked, and fails when it is told to.
    struct Told {
        asked: mpsc::Sender<String>,
        fails: watch::Receiver<bool>,
    }

    impl Told {
        fn say(&self, what: String) -> Result<(), String> {
            self.asked.try_send(what).unwrap();
            if *self.fails.borrow() { Err("away".to_owned()) } else { Ok(()) }
        }
    }

    impl Writer for Told {
        fn has(&self, instance: &Instance) -> bool {
            instance.namespace != "elsewhere"
        }
        async fn open(&mut self) -> Result<(), String> {
            self.say("open".to_owned())
        }
        async fn put(&mut self, instance: &Instance) -> Result<(), Unput> {
            self.say(format!("put {} {:?}", instance.id, instance.state))?;
            match instance.id.as_str() {
                "odd" => Err(Unput::Refused("too odd".to_owned())),
                _ => Ok(()),
            }
        }
        async fn remove(&mut self, instance: &Instance) -> Result<(), String> {
            self.say(format!("remove {} of {}", instance.id, instance.service))
        }
        async fn beat(&mut self, all: &Wanted) -> Result<(), String> {
            self.say(format!("beat {}", all.len()))
        }
        fn every(&self) -> Duration {
            Duration::from_secs(10)
        }
    }

    fn wanted(ids: &[(&str, &str)]) -> Arc<Wanted> {
        let of = |(id, service): &(&str, &str)| {
            ((*id).to_owned(), Arc::new(sample(id, service, "v1", "127.0.0.5", 80, Protocol::Http)))
        };
        Arc::new(ids.iter().map(of).collect())
    }

    /// Writes what is wanted first; how it is, and what it is asked.
    fn writing(
        wants: watch::Receiver<Arc<Wanted>>,
        fails: watch::Receiver<bool>,
    ) -> (tokio::task::JoinHandle<()>, Arc<Health>, mpsc::Receiver<String>) {
        let (asked, told) = mpsc::channel(64);
        let health = Arc::<Health>::default();
        (tokio::spawn(write(Told { asked, fails }, "r".into(), wants, health.clone())), health, told)
    }

    async fn next(told: &mut mpsc::Receiver<String>, all: &[&str]) {
        for expected in all {
            assert_eq!(told.recv().await.unwrap(), *expected);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_registered_is_put_once_kept_alive_and_taken_out_also_after_an_outage() {
        let (want, wants) = watch::channel(wanted(&[("a", "web"), ("b", "web")]));
        let (fail, fails) = watch::channel(false);
        let (task, health, mut told) = writing(wants, fails);
        next(&mut told, &["open", "put a Running", "put b Running", "beat 2"]).await;
        assert_eq!(health.state().written, Some(2));
        want.send_replace(wanted(&[("a", "api"), ("c", "web")]));
        next(&mut told, &["remove a of web", "remove b of web", "put a Running", "put c Running", "beat 2"])
            .await;
        fail.send_replace(true);
        next(&mut told, &["beat 2", "open"]).await;
        assert!(health.problems().iter().any(|problem| problem.to_string() == "register: away"));
        // What went meanwhile is taken out, and the rest put anew: it may be gone there.
        want.send_replace(wanted(&[("c", "web")]));
        fail.send_replace(false);
        next(&mut told, &["open", "remove a of api", "put c Running", "beat 1"]).await;
        assert!(health.problems().is_empty());
        drop(want);
        task.await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_is_refused_is_told_and_tried_again_and_holds_up_no_other() {
        let (want, wants) = watch::channel(wanted(&[("a", "web"), ("odd", "web"), ("z", "web")]));
        let (_fail, fails) = watch::channel(false);
        let (task, health, mut told) = writing(wants, fails);
        next(&mut told, &["open", "put a Running", "put odd Running", "put z Running", "beat 2"]).await;
        assert_eq!(health.state().written, Some(2));
        let problems = health.problems();
        assert!(
            problems.iter().any(|p| p.to_string() == "register: instance \"odd\": too odd"),
            "{problems:?}"
        );
        next(&mut told, &["put odd Running", "beat 2", "put odd Running"]).await;
        want.send_replace(wanted(&[("a", "web"), ("z", "web")]));
        next(&mut told, &["remove odd of web", "beat 2"]).await;
        assert!(health.problems().is_empty());
        // What is for another registry is not counted.
        let mut elsewhere = (*wanted(&[("a", "web"), ("z", "web")])).clone();
        Arc::make_mut(elsewhere.get_mut("z").unwrap()).namespace = "elsewhere".into();
        want.send_replace(Arc::new(elsewhere));
        next(&mut told, &["remove z of web", "put z Running", "beat 2"]).await;
        assert_eq!(health.state().written, Some(1));
        drop(want);
        task.await.unwrap();
    }
}
