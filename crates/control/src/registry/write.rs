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

/// How a registry is written.
pub(super) trait Writer: Send + 'static {
    /// Connects. What was put before may be there or not.
    fn open(&mut self) -> impl Future<Output = Result<(), String>> + Send;
    /// It is there from now on, like this.
    fn put(&mut self, instance: &Instance) -> impl Future<Output = Result<(), String>> + Send;
    /// It is not there any more, as far as we put it.
    fn remove(&mut self, instance: &Instance) -> impl Future<Output = Result<(), String>> + Send;
    /// All that were put live on for a TTL.
    fn beat(&mut self, all: &Wanted) -> impl Future<Output = Result<(), String>> + Send;
    /// The time between two beats.
    fn every(&self) -> Duration;
    /// Of what was put, so many are there.
    fn written(&self, put: &Wanted) -> usize {
        put.len()
    }
    /// Why one of them is not, where the others are: it is put anew at a beat.
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
        let tell = |writer: &W, put: &Wanted| {
            health.set_written(writer.written(put), writer.trouble().map(|why| of(why.to_owned())));
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

/// One connection. `there` is what may be in the registry by us.
async fn session<W: Writer>(
    writer: &mut W,
    there: &mut Wanted,
    wanted: &mut watch::Receiver<Arc<Wanted>>,
    tell: impl Fn(&W, &Wanted),
) -> Result<(), String> {
    writer.open().await?;
    let mut put = Wanted::new();
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
        }
        for (id, instance) in now.iter() {
            if put.get(id) == Some(instance) {
                continue;
            }
            if Instant::now() >= next {
                writer.beat(&put).await?;
                next = Instant::now() + writer.every();
            }
            there.insert(id.clone(), instance.clone());
            writer.put(instance).await?;
            put.insert(id.clone(), instance.clone());
        }
        tell(writer, &put);
        tokio::select! {
            changed = wanted.changed() => if changed.is_err() { return Ok(()) },
            () = sleep_until(next) => {
                writer.beat(&put).await?;
                next = Instant::now() + writer.every();
            }
        }
    }
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
        async fn open(&mut self) -> Result<(), String> {
            self.say("open".to_owned())
        }
        async fn put(&mut self, instance: &Instance) -> Result<(), String> {
            self.say(format!("put {} {:?}", instance.id, instance.state))
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

    #[tokio::test(start_paused = true)]
    async fn what_is_registered_is_put_once_kept_alive_and_taken_out_also_after_an_outage() {
        let (want, wants) = watch::channel(wanted(&[("a", "web"), ("b", "web")]));
        let (fail, fails) = watch::channel(false);
        let (asked, mut told) = mpsc::channel(64);
        let health = Arc::<Health>::default();
        let task = tokio::spawn(write(Told { asked, fails }, "r".into(), wants, health.clone()));
        let mut next = async |all: &[&str]| {
            for expected in all {
                assert_eq!(told.recv().await.unwrap(), *expected);
            }
        };
        next(&["open", "put a Running", "put b Running", "beat 2"]).await;
        assert_eq!(health.state().written, Some(2));
        want.send_replace(wanted(&[("a", "api"), ("c", "web")]));
        next(&["remove a of web", "remove b of web", "put a Running", "put c Running", "beat 2"]).await;
        fail.send_replace(true);
        next(&["beat 2", "open"]).await;
        assert!(health.problems().iter().any(|problem| problem.to_string() == "register: away"));
        // What went meanwhile is taken out, and the rest put anew: it may be gone there.
        want.send_replace(wanted(&[("c", "web")]));
        fail.send_replace(false);
        next(&["open", "remove a of api", "put c Running", "beat 1"]).await;
        assert!(health.problems().is_empty());
        drop(want);
        task.await.unwrap();
    }
}
