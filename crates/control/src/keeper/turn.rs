//! What the commands of one turn add up to: a draft, what to store, and whom to answer when it is done.

use tokio::time::Instant;

use super::draft::Draft;
use super::{Action, Applied, Command, Refused, Reply};
use crate::instance::State;
use crate::registry::lease::Leases;
use crate::store::Mutation;

/// Sends one reply once the turn is over.
type Finish = Box<dyn FnOnce(Result<u64, &Refused>) + Send>;

/// What the commands of one turn add up to.
pub(super) struct KeeperRound {
    pub(super) draft: Draft,
    pub(super) mutations: Vec<Mutation>,
    pub(super) changed: bool,
    pub(super) finish: Vec<Finish>,
    /// Instances that something was said of: their leases begin anew, or end, once it is stored.
    pub(super) heard: Vec<String>,
    /// What the log says once all of it is durable and in force.
    pub(super) said: Vec<Said>,
}

/// A change for the log: who did what.
pub(super) struct Said {
    who: String,
    what: String,
    version: Option<u64>,
}

impl Said {
    pub(super) fn log(&self, generation: u64) {
        let Self { who, what, version } = self;
        tracing::info!(who, what, version, generation, "changed");
    }
}

impl KeeperRound {
    pub(super) fn new(draft: Draft) -> Self {
        Self {
            draft,
            mutations: Vec::new(),
            changed: false,
            finish: Vec::new(),
            heard: Vec::new(),
            said: Vec::new(),
        }
    }

    pub(super) fn take(&mut self, command: Command) {
        match command {
            Command::Apply { objects, namespace, author, dry_run, reply } => {
                let result = self.draft.apply(objects, &namespace, &author, dry_run);
                if let Ok((_, applied)) = &result {
                    self.say_applied(&author, applied);
                }
                self.settle(reply, result, |applied, generation| applied.generation = generation);
            }
            Command::Delete { key, author, force, dry_run, reply } => {
                let result = self.draft.delete(&key, &author, force, dry_run);
                if let (Ok((_, removed)), false) = (&result, dry_run) {
                    self.say(&author, format!("{key} deleted"), Some(removed.version));
                }
                self.settle(reply, result, |removed, generation| removed.generation = generation);
            }
            Command::Register { instance, caller, reply } => {
                let id = instance.id.clone();
                let result = self.draft.register(*instance, &caller);
                if result.as_ref().is_ok_and(|changes| !changes.is_empty()) {
                    self.say(caller.name(), format!("instance {id} registered"), None);
                }
                self.settle_heard(id, reply, result);
            }
            Command::SetState { id, state, caller, reply } => {
                let result = self.draft.set_state(&id, state, &caller);
                if let Ok((changes, now)) = &result
                    && !changes.is_empty()
                {
                    self.say(caller.name(), format!("instance {id} set to {state:?}, is {now:?}"), None);
                }
                let changes = result.map(|(changes, _)| changes);
                match state {
                    // No sign of life: of many that fell silent at once the others are held as before.
                    State::Maintenance => self.settle_number(reply, changes),
                    _ => self.settle_heard(id, reply, changes),
                }
            }
            Command::Heartbeat { id, caller, reply } => {
                let result = self.draft.heartbeat(&id, &caller);
                self.settle_heard(id, reply, result);
            }
            Command::Deregister { id, caller, reply } => {
                let result = self.draft.deregister(&id, &caller);
                if result.is_ok() {
                    self.say(caller.name(), format!("instance {id} deregistered"), None);
                }
                self.settle_heard(id, reply, result);
            }
            Command::Revoke { entry, by, reply } => {
                let result = self.draft.revoke(&entry, by);
                self.settle_number(reply, result);
            }
            Command::Reinstate { entry, reply } => {
                let result = self.draft.reinstate(&entry);
                self.settle_number(reply, result);
            }
            Command::Registry { source, event, reply } => {
                let news = self.draft.registry(&source, event);
                self.settle_heard_of(reply, news);
            }
            Command::Keys { source, keys, reply } => {
                let result = self.draft.learn(source, keys);
                self.settle_number(reply, Ok(result));
            }
            Command::Roots(roots_pem) => {
                if self.draft.roots_pem != roots_pem {
                    self.changed = true;
                    self.draft.trust(roots_pem);
                }
            }
            Command::Share { latest, reply } => {
                let news = latest().is_some_and(|all| self.draft.share(all, &self.mutations));
                self.settle_heard_of(reply, news);
            }
            Command::Stop => {}
        }
    }

    fn say(&mut self, who: &str, what: String, version: Option<u64>) {
        self.said.push(Said { who: who.to_owned(), what, version });
    }

    fn say_applied(&mut self, author: &str, applied: &Applied) {
        for object in applied.objects.iter().filter(|o| !applied.dry_run && o.action != Action::Unchanged) {
            let action = if object.action == Action::Created { "created" } else { "updated" };
            let what = format!("{}/{}/{} {action}", object.kind, object.namespace, object.name);
            self.say(author, what, Some(object.version));
        }
    }

    /// Of what others have said, which nobody stores here.
    fn settle_heard_of(&mut self, reply: Reply<u64>, news: bool) {
        self.changed |= news;
        self.finish.push(Box::new(move |result| {
            let _ = reply.send(result.map_err(Clone::clone));
        }));
    }

    /// Of a command that says something of an instance.
    fn settle_heard(&mut self, id: String, reply: Reply<u64>, result: Result<Vec<Mutation>, Refused>) {
        if result.is_ok() {
            self.heard.push(id);
        }
        self.settle_number(reply, result);
    }

    fn settle_number(&mut self, reply: Reply<u64>, result: Result<Vec<Mutation>, Refused>) {
        self.settle(reply, result.map(|mutations| (mutations, 0)), |number, generation| *number = generation);
    }

    /// Notes the changes of a command; its answer goes out when they are durable and in force, a refusal at once.
    fn settle<T: Send + 'static>(
        &mut self,
        reply: Reply<T>,
        result: Result<(Vec<Mutation>, T), Refused>,
        number: impl FnOnce(&mut T, u64) + Send + 'static,
    ) {
        match result {
            Ok((mutations, mut value)) => {
                self.changed |= !mutations.is_empty();
                self.mutations.extend(mutations);
                self.finish.push(Box::new(move |result| {
                    let answer = result.map_err(Clone::clone).map(|generation| {
                        number(&mut value, generation);
                        value
                    });
                    // The caller may be gone; the change stands.
                    let _ = reply.send(answer);
                }));
            }
            Err(refused) => {
                let _ = reply.send(Err(refused));
            }
        }
    }

    pub(super) fn expire(&mut self, leases: &mut Leases, now: Instant) {
        let draft = &self.draft;
        // A heartbeat of this very turn saves its instance, whatever becomes of the rest.
        self.heard.iter().for_each(|id| leases.beat(id, now));
        let expired = leases.expire(now, |service| draft.members(service));
        for id in expired {
            tracing::warn!(instance = %id, "expired: no heartbeat within its TTL");
            let changes = self.draft.expire(&id);
            self.changed |= !changes.is_empty();
            self.mutations.extend(changes);
        }
    }
}
