//! The one task that owns what changes: rules, registrations, leases. Every change becomes a new immutable world.
//!
//! ```text
//! API, registries --Command--> keeper: decide -> commit to the store -> build World -> swap -> watch<generation> -> reply
//! ```
//!
//! Commands that arrive within 2 ms of the last turn share one commit and one world. A reply is sent only when the change is durable and
//! swapped in. Readers never wait for the keeper: they load [`Published`].

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use outrigger_identity::{Revocation, Revoked};
use outrigger_rules::Object;
use outrigger_rules::intent::KeySource;
use outrigger_xds::server::Audience;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;

use crate::compile::cache::Compiled;
use crate::instance::{Instance, State};
use crate::registry::api::Caller;
use crate::registry::lease::{Held, Leases};
use crate::registry::{Event, Source};
use crate::sorted::Sorted;
use crate::store::records::{StoredInstance, StoredRevocation, StoredRule};
use crate::store::{Contents, Mutation, Store, StoreError};
use crate::world::{Change, Contested, MeshSettings, World};

mod claims;
mod draft;
mod keys;
mod refused;
mod revocations;
pub mod rules;
#[cfg(test)]
pub(crate) mod tests;
mod turn;

pub use claims::Claims;
use draft::Draft;
pub use refused::Refused;
use refused::{INSTANCES, RULES};
pub(crate) use rules::consequences;
pub use rules::{Action, Applied, AppliedObject, Removed, Rule, catalog};
use turn::KeeperRound;

/// Changes that come this close together become one world; the first after a pause waits for no other.
const BURST: Duration = Duration::from_millis(2);
/// Before what a failing store took along is said again.
const AGAIN: Duration = Duration::from_millis(200);
/// Commands that may wait; a sender waits beyond that.
const QUEUE: usize = 1024;
/// Commands per turn.
const TURN: usize = 256;
/// Generations reserved at a time: after a crash counting goes on above them, so none is used twice.
const RESERVE: u64 = 4096;

type Reply<T> = oneshot::Sender<Result<T, Refused>>;

/// Says who is revoked at all replicas, at the moment that it is asked: what was heard while a change waited may be older than the change.
/// Nothing where that cannot be read.
pub(crate) type Latest = Box<dyn Fn() -> Option<Vec<StoredRevocation>> + Send>;

/// One thing to do.
pub(crate) enum Command {
    Apply { objects: Vec<Object>, namespace: String, author: String, dry_run: bool, reply: Reply<Applied> },
    Delete { key: String, author: String, force: bool, dry_run: bool, reply: Reply<Removed> },
    Register { instance: Box<Instance>, caller: Caller, reply: Reply<u64> },
    SetState { id: String, state: State, caller: Caller, reply: Reply<u64> },
    Heartbeat { id: String, caller: Caller, reply: Reply<u64> },
    Deregister { id: String, caller: Caller, reply: Reply<u64> },
    Registry { source: Arc<Source>, event: Event, reply: Reply<u64> },
    Revoke { entry: Revocation, by: String, reply: Reply<u64> },
    Reinstate { entry: Revocation, reply: Reply<u64> },
    Keys { source: KeySource, keys: Arc<str>, reply: Reply<u64> },
    Roots(Arc<str>),
    Share { latest: Latest, reply: Reply<u64> },
    Stop,
}

/// A registered instance and where it comes from.
#[derive(Debug, Clone)]
pub struct Registration {
    /// What was registered.
    pub stored: StoredInstance,
}

/// Registrations over the API, by id. A copy costs nothing.
pub type Registrations = Sorted<String, Registration>;

/// A consistent view of everything that the keeper keeps.
pub struct Published {
    /// What was compiled from the newest world, this one or a later.
    pub compiled: Arc<Compiled>,
    /// The world.
    pub world: Arc<World>,
    /// The rules in force, by `Kind/namespace/name`.
    pub rules: Arc<BTreeMap<String, Arc<Rule>>>,
    /// Who says which rule.
    pub ruled: Claims<Arc<Rule>>,
    /// Who says which instance.
    pub claims: Claims<Arc<Instance>>,
    /// Registrations over the API, by id; the world has those of registries as well.
    pub registrations: Registrations,
    /// Who is revoked, by entry.
    pub revocations: Arc<BTreeMap<String, StoredRevocation>>,
    /// The same, as it is looked up.
    pub revoked: Arc<Revoked>,
    /// Services whose expiries are held.
    pub held: Arc<Vec<Held>>,
    /// When this generation was published.
    pub at: std::time::SystemTime,
}

impl Published {
    /// The number of the world.
    pub fn generation(&self) -> u64 {
        self.world.generation
    }

    /// Who is said to be where another identity is, and who says so.
    pub fn contested(&self) -> Vec<(&Source, Contested<'_>)> {
        let said = |one: Contested<'_>| self.claims.owner(&one.claimant.id).map(|(source, _)| &**source);
        self.world.contested().into_iter().filter_map(|one| Some((said(one)?, one))).collect()
    }
}

/// The handle on the keeper; cheap to clone.
#[derive(Clone)]
pub struct Keeper {
    commands: mpsc::Sender<Command>,
    published: Arc<ArcSwap<Published>>,
    generation: watch::Receiver<u64>,
    /// There are others like this one, with the same rules and instances.
    replicated: bool,
}

/// What the keeper starts from.
pub struct Start {
    /// Where changes go.
    pub store: Arc<dyn Store>,
    /// What the store held.
    pub contents: Contents,
    /// Mesh-wide settings.
    pub settings: MeshSettings,
    /// What the registries said at first.
    pub said: Vec<(Arc<Source>, Event)>,
    /// The roots that proxies trust, PEM.
    pub roots_pem: Arc<str>,
}

impl Keeper {
    /// Builds the first world, with everything that was stored and registered, and starts the task. It ends when every
    /// handle is gone.
    ///
    /// # Errors
    /// When the store cannot be written.
    pub async fn start(start: Start) -> Result<Self, StoreError> {
        let mut draft = Draft::load(start.contents, start.settings, start.roots_pem);
        for (source, event) in start.said {
            draft.registry(&source, event);
        }
        // Counting goes on above everything that was ever shown, so a proxy never sees a generation twice.
        let generation = draft.reserved + 1;
        draft.generation = generation;
        draft.reserved = generation + RESERVE;
        start.store.clone().commit(vec![Mutation::ReserveGeneration(draft.reserved)]).await?;
        let mut leases = Leases::default();
        let now = Instant::now();
        draft.all_leased().for_each(|instance| leases.renew(instance, now));
        let world = draft.world();
        let (roots, revoked) = (draft.roots_pem.clone(), draft.revocations.list().clone());
        let compiled = Arc::new(Compiled::new(world.clone(), roots, revoked));
        // Nobody was here before.
        draft.change = Change::default();
        let first = draft.publish(&compiled, &world, leases.held());
        let published = Arc::new(ArcSwap::from_pointee(first));
        let (generation, watched) = watch::channel(generation);
        let (commands, queue) = mpsc::channel(QUEUE);
        let task = Task {
            store: start.store,
            draft,
            leases,
            compiled,
            world,
            published: published.clone(),
            generation,
        };
        tokio::spawn(task.run(queue));
        Ok(Self { commands, published, generation: watched, replicated: false })
    }

    /// One of several, which share neither rules that are applied to one of them nor registrations.
    pub(crate) fn among_replicas(self) -> Self {
        Self { replicated: true, ..self }
    }

    fn alone(&self, what: Refused) -> Result<(), Refused> {
        if self.replicated { Err(what) } else { Ok(()) }
    }

    /// What is in force now.
    pub fn published(&self) -> Arc<Published> {
        self.published.load_full()
    }

    /// Wakes at every new generation.
    pub fn subscribe(&self) -> watch::Receiver<u64> {
        self.generation.clone()
    }

    async fn ask<T>(&self, command: impl FnOnce(Reply<T>) -> Command) -> Result<T, Refused> {
        let (reply, answer) = oneshot::channel();
        self.commands.send(command(reply)).await.map_err(|_| Refused::Stopping)?;
        answer.await.map_err(|_| Refused::Stopping)?
    }

    /// Applies objects, all or none; a dry run only says what would happen. `namespace` is the one for objects whose text
    /// names none.
    ///
    /// # Errors
    /// The findings, when the objects have errors together with those that are there.
    pub async fn apply(
        &self,
        objects: Vec<Object>,
        namespace: &str,
        author: &str,
        dry_run: bool,
    ) -> Result<Applied, Refused> {
        if !dry_run {
            self.alone(RULES)?;
        }
        let (namespace, author) = (namespace.to_owned(), author.to_owned());
        self.ask(|reply| Command::Apply { objects, namespace, author, dry_run, reply }).await
    }

    /// Deletes a rule by `Kind/namespace/name`; a dry run only says what would happen.
    ///
    /// # Errors
    /// `Unknown` when there is none; the findings, when others need it and there is no `force`.
    pub async fn delete(
        &self,
        key: &str,
        author: &str,
        force: bool,
        dry_run: bool,
    ) -> Result<Removed, Refused> {
        if !dry_run {
            self.alone(RULES)?;
        }
        let (key, author) = (key.to_owned(), author.to_owned());
        self.ask(|reply| Command::Delete { key, author, force, dry_run, reply }).await
    }

    /// Registers an instance, or replaces a registration.
    ///
    /// # Errors
    /// When it is not valid, belongs to somebody else, or the caller may not.
    pub async fn register(&self, instance: Instance, caller: Caller) -> Result<u64, Refused> {
        self.alone(INSTANCES)?;
        let instance = Box::new(instance);
        self.ask(|reply| Command::Register { instance, caller, reply }).await
    }

    /// Changes the state of a registered instance.
    ///
    /// # Errors
    /// As [`Keeper::register`].
    pub async fn set_state(&self, id: &str, state: State, caller: Caller) -> Result<u64, Refused> {
        let id = id.to_owned();
        self.ask(|reply| Command::SetState { id, state, caller, reply }).await
    }

    /// Renews a lease.
    ///
    /// # Errors
    /// `Unknown` when it is not registered (any more): register it again.
    pub async fn heartbeat(&self, id: &str, caller: Caller) -> Result<u64, Refused> {
        let id = id.to_owned();
        self.ask(|reply| Command::Heartbeat { id, caller, reply }).await
    }

    /// Ends a registration.
    ///
    /// # Errors
    /// `Unknown` when there is none.
    pub async fn deregister(&self, id: &str, caller: Caller) -> Result<u64, Refused> {
        let id = id.to_owned();
        self.ask(|reply| Command::Deregister { id, caller, reply }).await
    }

    /// Cuts off an identity or a certificate: it gets no certificate, no configuration and no peers from then on.
    ///
    /// # Errors
    /// When it is the control plane's own, or there are too many.
    pub async fn revoke(&self, entry: Revocation, by: &str) -> Result<u64, Refused> {
        let by = by.to_owned();
        self.ask(|reply| Command::Revoke { entry, by, reply }).await
    }

    /// Takes a revocation back.
    ///
    /// # Errors
    /// `Unknown` when there is none.
    pub async fn reinstate(&self, entry: Revocation) -> Result<u64, Refused> {
        self.ask(|reply| Command::Reinstate { entry, reply }).await
    }

    /// What a registry other than the API says; returns once it is in force.
    ///
    /// # Errors
    /// `Stopping`, or `Store` where another change of the same turn could not be stored: then it has not happened.
    pub async fn registry(&self, source: Arc<Source>, event: Event) -> Result<u64, Refused> {
        self.ask(|reply| Command::Registry { source, event, reply }).await
    }

    /// What registries say, in order: of much that is said at once each need not wait for the one before it.
    ///
    /// What shares a turn with a change that cannot be stored has not happened, and no registry says a thing twice: it is said again
    /// here until it has. All of it in order is the same as the rest of it.
    ///
    /// # Errors
    /// Only when the keeper is gone.
    pub async fn registries(&self, said: Vec<(Arc<Source>, Event)>) -> Result<(), Refused> {
        while let Err(refused) = self.say(&said).await {
            if refused == Refused::Stopping {
                return Err(refused);
            }
            tokio::time::sleep(AGAIN).await;
        }
        Ok(())
    }

    async fn say(&self, said: &[(Arc<Source>, Event)]) -> Result<(), Refused> {
        let mut answers = Vec::with_capacity(said.len());
        for (source, event) in said.iter().cloned() {
            let (reply, answer) = oneshot::channel();
            let command = Command::Registry { source, event, reply };
            self.commands.send(command).await.map_err(|_| Refused::Stopping)?;
            answers.push(answer);
        }
        for answer in answers {
            answer.await.map_err(|_| Refused::Stopping)??;
        }
        Ok(())
    }

    /// Others may have changed who is revoked; returns once it is in force here.
    ///
    /// # Errors
    /// `Stopping`, or `Store` where another change of the same turn could not be stored: then it has not happened.
    pub(crate) async fn share(&self, latest: Latest) -> Result<u64, Refused> {
        self.ask(|reply| Command::Share { latest, reply }).await
    }

    /// Ends the task, and with it every stream that waits for generations. Changes are refused from then on.
    pub async fn stop(&self) {
        let _ = self.commands.send(Command::Stop).await;
    }

    /// New roots.
    pub async fn roots(&self, roots_pem: Arc<str>) {
        let _ = self.commands.send(Command::Roots(roots_pem)).await;
    }
}

struct Task {
    store: Arc<dyn Store>,
    draft: Draft,
    leases: Leases,
    compiled: Arc<Compiled>,
    world: Arc<World>,
    published: Arc<ArcSwap<Published>>,
    generation: watch::Sender<u64>,
}

/// Ends every stream when it goes.
struct Closing(Arc<Audience>);

impl Drop for Closing {
    fn drop(&mut self) {
        self.0.close();
    }
}

impl Task {
    async fn run(mut self, queue: mpsc::Receiver<Command>) {
        // Also where this panics: streams that nobody tells anything must not look alive.
        let _closing = Closing(self.compiled.audience().clone());
        self.take(queue).await;
    }

    async fn take(&mut self, mut queue: mpsc::Receiver<Command>) {
        let mut batch = Vec::with_capacity(TURN);
        let mut last = Instant::now();
        loop {
            let deadline = self.leases.next_deadline();
            let deadline = deadline.unwrap_or_else(|| Instant::now() + Duration::from_secs(3600));
            tokio::select! {
                received = queue.recv_many(&mut batch, TURN) => {
                    if received == 0 {
                        return;
                    }
                    let end = last + BURST;
                    while batch.len() < TURN && Instant::now() < end {
                        match tokio::time::timeout_at(end, queue.recv()).await {
                            Ok(Some(command)) => batch.push(command),
                            _ => break,
                        }
                    }
                }
                () = tokio::time::sleep_until(deadline) => {}
            }
            let stop = batch.iter().any(|command| matches!(command, Command::Stop));
            self.turn(&mut batch).await;
            last = Instant::now();
            if stop {
                return;
            }
        }
    }

    async fn turn(&mut self, batch: &mut Vec<Command>) {
        let mut turn = KeeperRound::new(self.draft.next());
        batch.drain(..).for_each(|command| turn.take(command));
        turn.expire(&mut self.leases, Instant::now());
        if turn.changed && turn.draft.generation > turn.draft.reserved {
            turn.draft.reserved = turn.draft.generation + RESERVE;
            turn.mutations.push(Mutation::ReserveGeneration(turn.draft.reserved));
        }
        if !turn.mutations.is_empty()
            && let Err(error) = self.store.clone().commit(turn.mutations).await
        {
            tracing::error!(%error, "a change could not be stored and was refused");
            let refused = Refused::from(error);
            turn.finish.into_iter().for_each(|finish| finish(Err(&refused)));
            self.lease_again();
            return;
        }
        let now = Instant::now();
        let mut stale = None;
        if turn.changed {
            self.draft = turn.draft;
            self.world = self.draft.world();
            let (roots, revoked) = (self.draft.roots_pem.clone(), self.draft.revocations.list().clone());
            let change = std::mem::take(&mut self.draft.change);
            stale = Some((self.compiled.advance(self.world.clone(), roots, revoked, &change), change));
        }
        for id in &turn.heard {
            match self.draft.leased(id) {
                Some(instance) => self.leases.renew(instance, now),
                None => self.leases.forget(id),
            }
        }
        if turn.changed || !Arc::ptr_eq(&self.published.load().held, self.leases.held()) {
            let published = self.draft.publish(&self.compiled, &self.world, self.leases.held());
            self.published.store(Arc::new(published));
        }
        if turn.changed {
            self.generation.send_replace(self.draft.generation);
        }
        let generation = self.draft.generation;
        turn.said.iter().for_each(|said| said.log(generation));
        turn.finish.into_iter().for_each(|finish| finish(Ok(generation)));
        // Whoever asked has the answer; what it takes to find out who has to be told is nobody's wait. The answers go out before
        // streams are woken: behind a thousand of them they would wait for as many pushes.
        if let Some((stale, change)) = stale {
            tokio::task::yield_now().await;
            self.compiled.settle(generation, stale, &change);
        }
    }

    /// What had expired is still registered when the store refused: it gets a new lease.
    fn lease_again(&mut self) {
        let now = Instant::now();
        for instance in self.draft.all_leased() {
            if !self.leases.has(&instance.id) {
                self.leases.renew(instance, now);
            }
        }
    }
}

/// A rule as it is stored, for [`Published`].
impl Rule {
    /// What the store holds of it.
    pub fn stored(&self) -> &StoredRule {
        &self.stored
    }
}
