//! How each registry is: connected, when it was last heard, what went wrong. Written by the task that follows it, read by `status` and
//! metrics; the keeper is not asked, so a word without news costs it nothing.

use std::collections::HashSet;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio::time::Instant;

use super::{Problem, Source};
use crate::inject::Release;

/// A failure of a registry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Error {
    /// What, where, what to do.
    pub message: String,
    /// When.
    pub at: Instant,
}

/// How a registry is at a moment.
#[derive(Debug, Clone, Default)]
pub struct RegistryState {
    /// The last attempt has not failed.
    pub connected: bool,
    /// When it last said something, news or not.
    pub heard: Option<Instant>,
    /// The last failure, over or not.
    pub error: Option<Error>,
    /// Failures since the start.
    pub failures: u64,
    /// What is registered here and was written there, where that is asked for.
    pub written: Option<usize>,
    /// Of what it said, what is kept for a start without it; nothing where nothing is.
    pub kept: Option<usize>,
    /// Of a cluster of Kubernetes: the oldest release in it, of API server and nodes.
    pub release: Option<Release>,
    words: u64,
    pub(super) problems: Arc<Vec<Problem>>,
    /// Why what is registered here cannot be written.
    unwritten: Option<Problem>,
}

impl RegistryState {
    fn set(&mut self, mut problems: Vec<Problem>) {
        problems.extend(self.unwritten.clone());
        let before = self.problems.clone();
        let before: HashSet<&Problem> = before.iter().collect();
        if let Some(new) = problems.iter().find(|problem| !before.contains(problem)) {
            self.failures += 1;
            self.error = Some(Error { message: new.to_string(), at: Instant::now() });
        }
        self.problems = Arc::new(problems);
    }
}

/// How a registry is.
#[derive(Debug)]
pub struct Health(watch::Sender<RegistryState>);

impl Default for Health {
    fn default() -> Self {
        Self(watch::Sender::new(RegistryState::default()))
    }
}

impl Health {
    pub(crate) fn heard(&self) {
        self.0.send_modify(|state| {
            (state.connected, state.heard) = (true, Some(Instant::now()));
            state.words += 1;
        });
    }

    /// It answers, without a word of what it has.
    pub(super) fn is_there(&self) {
        self.0.send_modify(|state| (state.connected, state.heard) = (true, Some(Instant::now())));
    }

    /// So much of what it said is kept.
    pub(crate) fn set_kept(&self, count: usize) {
        self.0.send_if_modified(|state| state.kept.replace(count) != Some(count));
    }

    /// The oldest release of the cluster.
    pub(crate) fn set_release(&self, release: Option<Release>) {
        self.0.send_if_modified(|state| std::mem::replace(&mut state.release, release) != release);
    }

    /// The oldest release of the cluster, where it is one and that is known.
    pub fn release(&self) -> Option<Release> {
        self.0.borrow().release
    }

    /// What it said before this start holds.
    pub(super) fn recalled(&self, at: Option<Instant>) {
        self.0.send_modify(|state| state.heard = state.heard.or(at));
    }

    pub(super) fn failed(&self, message: String) {
        self.0.send_modify(|state| {
            state.connected = false;
            state.failures += 1;
            state.error = Some(Error { message, at: Instant::now() });
        });
    }

    /// So much of what is registered here is written there, and why not all of it.
    pub(super) fn set_written(&self, count: usize, why: Option<Problem>) {
        self.0.send_modify(|state| state.written = Some(count));
        self.set_unwritten(why);
    }

    /// Why it cannot be written, beside what cannot be read.
    pub(super) fn set_unwritten(&self, why: Option<Problem>) {
        self.0.send_modify(|state| {
            let before = std::mem::replace(&mut state.unwritten, why);
            let of_reading = state.problems.iter().filter(|problem| Some(*problem) != before.as_ref());
            let of_reading = of_reading.cloned().collect();
            state.set(of_reading);
        });
    }

    pub(crate) fn set_problems(&self, problems: Vec<Problem>) {
        self.0.send_modify(|state| state.set(problems));
    }

    /// Words of what it has, ever.
    pub(super) fn words(&self) -> u64 {
        self.0.borrow().words
    }

    /// What cannot be read at the moment.
    pub fn problems(&self) -> Arc<Vec<Problem>> {
        self.0.borrow().problems.clone()
    }

    /// All of it.
    pub fn state(&self) -> RegistryState {
        self.0.borrow().clone()
    }

    /// Waits until it changes.
    #[cfg(test)]
    pub(crate) fn subscribe(&self) -> watch::Receiver<RegistryState> {
        self.0.subscribe()
    }
}

/// A row of the table.
#[derive(Debug, Clone)]
pub struct Registered {
    /// Its name in the settings.
    pub name: Arc<str>,
    /// What it is.
    pub kind: &'static str,
    /// How it is.
    pub health: Arc<Health>,
}

/// All registries in the order of precedence, the management API first. A copy costs nothing and sees the same.
#[derive(Debug, Clone)]
pub struct Table {
    rows: Arc<[Registered]>,
    /// Of keys that are fetched: no registry, but it is away and fails as they do.
    keys: Arc<Health>,
}

impl Table {
    /// With the management API, which is always heard.
    pub(crate) fn new() -> Self {
        let api = Registered { name: Source::API.into(), kind: Source::API, health: Arc::default() };
        Self { rows: Arc::new([api]), keys: Arc::default() }
    }

    pub(crate) fn add(&mut self, name: &str, kind: &'static str) -> Registered {
        let row = Registered { name: name.into(), kind, health: Arc::default() };
        self.rows = self.rows.iter().cloned().chain([row.clone()]).collect();
        row
    }

    pub(super) fn len(&self) -> usize {
        self.rows.len()
    }

    /// Each with its place.
    pub fn rows(&self) -> impl Iterator<Item = (usize, &Registered)> {
        self.rows.iter().enumerate()
    }

    /// What cannot be read at the moment, of all.
    pub fn problems(&self) -> Vec<Problem> {
        let all = self.rows.iter().map(|row| &row.health).chain([&self.keys]);
        all.flat_map(|health| health.problems().to_vec()).collect()
    }

    /// Keys that cannot be fetched.
    pub(crate) fn set_key_problems(&self, problems: Vec<Problem>) {
        self.keys.set_problems(problems);
    }
}

/// In one word how a registry is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Condition {
    /// All of it is known as it is now.
    Connected,
    /// It is there, and some of it cannot be read: of that, what it said last holds.
    Degraded,
    /// It is not there: what it said last holds.
    Away,
}

impl Registered {
    /// In one word.
    pub fn condition(&self) -> Condition {
        let state = self.health.state();
        match (self.kind == Source::API || state.connected, state.problems.is_empty()) {
            (false, _) => Condition::Away,
            (true, true) => Condition::Connected,
            (true, false) => Condition::Degraded,
        }
    }
}
