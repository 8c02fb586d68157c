//! The containers of a Pod in their order, and its status.
//!
//! ```text
//! init containers, each to its end (a sidecar: to its start) ─▶ containers, each when the one before was started ─▶ sidecars end last
//! waiting ─▶ running ─(ends, or a probe fails)─▶ waiting (back-off) ─▶ running …      or, where nothing restarts it, terminated
//! ```

use std::process::ExitStatus;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use k8s_openapi::api::core::v1::{Container, Pod};
use kube::api::{Patch, PatchParams};
use kube::{Api, ResourceExt};
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::time::Instant;

use super::TICK;
use super::action::{Found, Image};
use super::container::Surroundings;
use super::running::{Health, Running, Turn, terminated};

/// What a container's image makes of words: a program and its own.
pub(super) type Programs<'a> = &'a (dyn Fn(&Container, &[String]) -> Found + Sync);

/// Before a container is started again, at first and at most: a kubelet's are 10 s and 5 min.
const BACK_OFF: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(2));
/// What has run for so long begins with the first again.
const SETTLED: Duration = Duration::from_secs(10);

#[derive(Clone, Copy, PartialEq)]
enum Role {
    /// Runs to its end.
    Init,
    Sidecar,
    Main,
}

/// One container, in all its runs.
struct Unit {
    container: Container,
    role: Role,
    now: State,
    /// How the run before has ended.
    last: Option<Value>,
    restarts: u32,
    pause: Duration,
    /// What comes after it was started.
    over: bool,
}

enum State {
    /// To be started.
    Waiting {
        reason: &'static str,
        until: Instant,
    },
    Running(Box<Running>, Instant),
    /// For good, and well or not.
    Ended(Value, bool),
}

/// What runs in a Pod.
pub(super) struct Contents {
    pub(super) surroundings: Surroundings,
    units: Vec<Unit>,
    policy: String,
    grace: Duration,
    said: Option<Value>,
}

impl Contents {
    pub(super) fn of(pod: &Pod, surroundings: Surroundings) -> Self {
        let spec = pod.spec.clone().unwrap_or_default();
        let first = spec.init_containers.into_iter().flatten().map(|container| {
            let sidecar = container.restart_policy.as_deref() == Some("Always");
            (if sidecar { Role::Sidecar } else { Role::Init }, container)
        });
        let all = first.chain(spec.containers.into_iter().map(|container| (Role::Main, container)));
        let grace = spec.termination_grace_period_seconds.and_then(|grace| u64::try_from(grace).ok());
        Self {
            surroundings,
            units: all.map(|(role, container)| Unit::new(role, container)).collect(),
            policy: spec.restart_policy.unwrap_or_else(|| "Always".to_owned()),
            grace: Duration::from_secs(grace.unwrap_or(30)),
            said: None,
        }
    }

    /// Starts everything in order, then looks after it until all has ended.
    pub(super) async fn work(&mut self, api: &Api<Pod>, images: Programs<'_>) {
        for place in 0..self.units.len() {
            self.start(place, api, images).await;
            loop {
                let unit = &self.units[place];
                let goes_on = match (&unit.now, unit.role) {
                    (State::Ended(_, well), Role::Init) if !well => return,
                    (State::Ended(..), _) | (_, Role::Main) => true,
                    (State::Running(running, _), Role::Sidecar) => running.has_started(),
                    _ => false,
                };
                if goes_on {
                    self.units[place].over = true;
                    break;
                }
                self.look(api, images).await;
                tokio::time::sleep(TICK).await;
            }
        }
        loop {
            self.look(api, images).await;
            let mut mains = self.units.iter().filter(|unit| unit.role == Role::Main);
            if mains.all(|unit| matches!(unit.now, State::Ended(..))) {
                return;
            }
            tokio::time::sleep(TICK).await;
        }
    }

    /// Starts a container, and waits for its hook.
    async fn start(&mut self, place: usize, api: &Api<Pod>, images: Programs<'_>) {
        self.say(api).await;
        let unit = &mut self.units[place];
        let image = |words: &[String]| images(&unit.container, words);
        let image: Image<'_> = &image;
        let running = Running::start(&unit.container, image, &self.surroundings);
        self.surroundings.note(&format!("{}: was started", unit.container.name));
        unit.now = State::Running(Box::new(running), Instant::now());
        let State::Running(running, _) = &mut unit.now else { return };
        if running.after_start(&self.surroundings).await.is_err() {
            running.end(self.grace, None, &self.surroundings).await;
        }
    }

    /// Looks at each container that was started: whether it has ended, whether its probes say that it has to, whether it is to be started again.
    async fn look(&mut self, api: &Api<Pod>, images: Programs<'_>) {
        for place in 0..self.units.len() {
            let unit = &mut self.units[place];
            match &mut unit.now {
                State::Running(running, since) => {
                    let well = since.elapsed();
                    if let Health::Failed(probe) = running.check().await {
                        self.surroundings.note(&format!("{}: {probe} probe has failed", unit.container.name));
                        running.end(self.grace, None, &self.surroundings).await;
                    }
                    if let Some(status) = running.exited() {
                        unit.ended(status, well, &self.policy);
                        self.surroundings.note(&format!("{}: has exited", unit.container.name));
                    }
                }
                State::Waiting { until, .. } if unit.restarts > 0 && *until <= Instant::now() => {
                    self.start(place, api, images).await;
                }
                _ => {}
            }
        }
        self.say(api).await;
    }

    /// The containers, then the sidecars from the last to the first, each within the grace period.
    pub(super) async fn end(&mut self, grace: Duration) {
        let ended = Arc::new(watch::Sender::new(0));
        let running = |unit: &&mut Unit| matches!(unit.now, State::Running(..));
        let all: Vec<&mut Unit> = self.units.iter_mut().filter(running).collect();
        let others = all.iter().filter(|unit| unit.role != Role::Sidecar).count();
        let mut sidecars = all.len() - others;
        let around = &self.surroundings;
        join_all(all.into_iter().map(|unit| {
            let after = match unit.role {
                Role::Sidecar => {
                    sidecars -= 1;
                    others + sidecars
                }
                _ => 0,
            };
            let turn = Turn { ended: ended.clone(), after };
            async move {
                let State::Running(running, _) = &mut unit.now else { return };
                running.is_ready = false;
                running.end(grace, Some(turn), around).await;
                if let Some(status) = running.exited() {
                    unit.now = State::Ended(terminated(status), status.success());
                }
            }
        }))
        .await;
    }

    /// Nobody is to come any more.
    pub(super) fn not_ready(&mut self) {
        for unit in &mut self.units {
            if let State::Running(running, _) = &mut unit.now {
                running.is_ready = false;
            }
        }
    }

    /// Writes the Pod's status, if it is another than before.
    pub(super) async fn say(&mut self, api: &Api<Pod>) {
        let status = self.status();
        if self.said.as_ref() == Some(&status) {
            return;
        }
        let name = self.surroundings.pod.name_any();
        for _ in 0..100 {
            let said = api.patch_status(&name, &PatchParams::default(), &Patch::Merge(&status)).await;
            match said {
                Err(kube::Error::Api(error)) if error.code == 404 => break,
                Ok(_) => break,
                // The API server is away: it is asked again.
                Err(error) => {
                    self.surroundings.note(&format!("status: {error}"));
                    tokio::time::sleep(TICK * 4).await;
                }
            }
        }
        self.said = Some(status);
    }

    fn status(&self) -> Value {
        let host = &self.surroundings.host;
        let addresses = host.pod_addresses();
        let ips: Vec<Value> = addresses.iter().map(|ip| json!({"ip": ip})).collect();
        let condition =
            |kind: &str, is: bool| json!({"type": kind, "status": if is { "True" } else { "False" }});
        let of = |role: fn(&Role) -> bool| self.units.iter().filter(move |unit| role(&unit.role));
        let initialized = of(|role| *role != Role::Main).all(|unit| unit.over);
        let started = of(|role| *role == Role::Main).all(|unit| unit.restarts > 0 || !unit.is_new());
        // A sidecar that goes on is waited for; how it ends does not count.
        let runs = self.units.iter().any(|unit| matches!(unit.now, State::Running(..)));
        let ended = of(|role| *role == Role::Main).all(|unit| matches!(unit.now, State::Ended(..)));
        let failed = |unit: &Unit| matches!(unit.now, State::Ended(_, false));
        let phase = if !runs && of(|role| *role == Role::Init).any(failed) {
            "Failed"
        } else if !runs && ended {
            if of(|role| *role == Role::Main).any(failed) { "Failed" } else { "Succeeded" }
        } else if initialized && started {
            "Running"
        } else {
            "Pending"
        };
        let ready = phase == "Running" && of(|role| *role != Role::Init).all(Unit::is_ready);
        let statuses = |role: fn(&Role) -> bool| of(role).map(Unit::status).collect::<Vec<Value>>();
        json!({"status": {
            "phase": phase, "podIP": addresses[0], "podIPs": ips, "hostIP": host.v4(),
            "conditions": [
                condition("PodScheduled", true), condition("Initialized", initialized),
                condition("ContainersReady", ready), condition("Ready", ready),
            ],
            "containerStatuses": statuses(|role| *role == Role::Main),
            "initContainerStatuses": statuses(|role| *role != Role::Main),
        }})
    }
}

impl Unit {
    fn new(role: Role, container: Container) -> Self {
        let now = State::Waiting { reason: "PodInitializing", until: Instant::now() };
        Self { container, role, now, last: None, restarts: 0, pause: BACK_OFF.0, over: false }
    }

    /// Whether nothing of it has been started yet.
    fn is_new(&self) -> bool {
        matches!(self.now, State::Waiting { .. })
    }

    fn is_ready(&self) -> bool {
        matches!(&self.now, State::Running(running, _) if running.is_ready)
    }

    /// It has ended: whether it is started again its role and the Pod say.
    fn ended(&mut self, status: ExitStatus, ran: Duration, policy: &str) {
        let (said, well) = (terminated(status), status.success());
        let again = match self.role {
            Role::Sidecar => true,
            Role::Init => !well && policy != "Never",
            Role::Main => policy == "Always" || (!well && policy == "OnFailure"),
        };
        if !again {
            self.now = State::Ended(said, well);
            return;
        }
        self.last = Some(said);
        self.restarts += 1;
        if ran >= SETTLED {
            self.pause = BACK_OFF.0;
        }
        self.now = State::Waiting { reason: "CrashLoopBackOff", until: Instant::now() + self.pause };
        self.pause = (self.pause * 2).min(BACK_OFF.1);
    }

    fn status(&self) -> Value {
        let (now, started) = match &self.now {
            State::Waiting { reason, .. } => (json!({"waiting": {"reason": reason}}), false),
            State::Running(running, _) => (json!({"running": {}}), running.has_started()),
            State::Ended(said, _) => (said.clone(), false),
        };
        let done = self.role == Role::Init && matches!(self.now, State::Ended(_, true));
        json!({
            "name": self.container.name, "image": self.container.image, "imageID": "",
            "restartCount": self.restarts, "ready": done || self.is_ready(), "started": started,
            "state": now, "lastState": self.last.clone().unwrap_or_else(|| json!({})),
        })
    }
}
