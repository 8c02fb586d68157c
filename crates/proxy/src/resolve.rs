//! Clusters of names: what DNS says of them, as endpoint sets that the feed takes like any other.
//!
//! Runs on the control runtime. One task a name, however many clusters have it; what the feed wants is said as a whole, each
//! time that it changes. A name that fails keeps the addresses that it had.
//!
//! ```text
//! feed ──want──▶ names ─▶ task: lookup ─▶ schedule ─▶ sleep ─┐
//!   ▲                       ▲                                │
//!   └── endpoint sets ◀─────┴────────────────────────────────┘
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use outrigger_model::cluster::DnsDiscovery;
use outrigger_model::endpoint::EndpointSet;
use tokio::sync::mpsc;
use tokio::task::AbortHandle;
use tokio::time::Instant;

mod board;
mod endpoints;
mod lookup;
mod schedule;

pub use board::{Board, NameStatus};
pub use lookup::{Addresses, Lookup, Outcome};

use schedule::{Policy, Schedule};

/// Answers on their way to the feed.
const QUEUE: usize = 64;

/// The endpoint sets that are wanted, by their names.
pub type Wanted = BTreeMap<String, DnsDiscovery>;

/// A name as it is asked for: clusters that agree on it share the task.
type Question = (String, Policy);

/// Keeps names resolved.
pub struct Resolver {
    lookup: Arc<Lookup>,
    board: Board,
    wanted: Wanted,
    /// What was said last of each.
    said: BTreeMap<String, EndpointSet>,
    /// What was said before a restart, and not since.
    restored: BTreeSet<String>,
    names: BTreeMap<Question, Name>,
    answers: mpsc::Receiver<Answer>,
    answered: mpsc::Sender<Answer>,
}

struct Answer {
    question: Question,
    outcome: Outcome,
}

struct Name {
    /// Of the last answer that was one; kept through failures.
    addresses: Option<Addresses>,
    /// What went wrong last, if it did.
    trouble: Option<String>,
    task: AbortHandle,
}

impl Drop for Name {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Resolver {
    /// Nothing is wanted yet.
    pub fn new(lookup: Lookup, board: Board) -> Self {
        let (answered, answers) = mpsc::channel(QUEUE);
        let (wanted, said, restored, names) = Default::default();
        Self { lookup: Arc::new(lookup), board, wanted, said, restored, names, answers, answered }
    }

    /// What was said before a restart: it stays said until there is an answer.
    pub fn restore(&mut self, set: &EndpointSet) {
        self.said.insert(set.cluster.clone(), set.clone());
        self.restored.insert(set.cluster.clone());
    }

    /// From now on these sets are wanted, and no others. What is known already is said at once.
    pub fn want(&mut self, wanted: Wanted) -> Vec<EndpointSet> {
        self.wanted = wanted;
        self.said.retain(|name, _| self.wanted.contains_key(name));
        let questions: BTreeSet<Question> = self.wanted.values().flat_map(questions).collect();
        let hosts: BTreeSet<&str> = questions.iter().map(|(host, _)| host.as_str()).collect();
        self.board.retain(|name| hosts.contains(name));
        for question in &questions {
            if !self.names.contains_key(question) {
                // Who is only asked at other times has not moved.
                let mut others = self.names.iter().filter(|((host, _), _)| *host == question.0);
                let addresses = others.find_map(|(_, name)| name.addresses.clone());
                let task = self.start(question.clone(), addresses.clone().unwrap_or_default());
                self.names.insert(question.clone(), Name { addresses, trouble: None, task });
            }
        }
        self.names.retain(|question, _| questions.contains(question));
        self.news(|_| true)
    }

    /// The sets that changed by what DNS said next.
    pub async fn next(&mut self) -> Vec<EndpointSet> {
        // The sender lives in `self`.
        let Some(Answer { question, outcome }) = self.answers.recv().await else {
            return std::future::pending().await;
        };
        let Some(name) = self.names.get_mut(&question) else { return Vec::new() };
        match outcome {
            Outcome::Found(addresses) => {
                name.trouble = addresses.missing.as_ref().map(|(_, why)| why.clone());
                name.addresses = Some(addresses);
            }
            Outcome::Absent(why) => {
                name.addresses = Some(Addresses::default());
                name.trouble = Some(why);
            }
            Outcome::Failed(why) => name.trouble = Some(why),
        }
        self.news(|dns| questions(dns).any(|asked| asked == question))
    }

    /// Those of the wanted sets that are not what was said last.
    fn news(&mut self, concerns: impl Fn(&DnsDiscovery) -> bool) -> Vec<EndpointSet> {
        let mut news = Vec::new();
        for (name, dns) in self.wanted.iter().filter(|(_, dns)| concerns(dns)) {
            let restored = self.restored.contains(name);
            let known = |host: &str| {
                let name = self.names.get(&(host.to_owned(), Policy::of(dns)))?;
                let trouble = name.trouble.as_deref();
                // Before the first answer, whichever it is, nothing can be said; and a failure says nothing against what was
                // true before a restart.
                (name.addresses.is_some() || (trouble.is_some() && !restored))
                    .then_some((name.addresses.as_ref(), trouble))
            };
            let Some(set) = endpoints::resolved(name, dns, known) else { continue };
            self.restored.remove(name);
            if self.said.get(name) != Some(&set) {
                self.said.insert(name.clone(), set.clone());
                news.push(set);
            }
        }
        news
    }

    fn start(&self, question: Question, mut known: Addresses) -> AbortHandle {
        let (lookup, board, answered) = (self.lookup.clone(), self.board.clone(), self.answered.clone());
        let task = async move {
            let (host, policy) = &question;
            let mut schedule = Schedule::new(*policy);
            loop {
                let mut outcome = lookup.look_up(host).await;
                match &mut outcome {
                    Outcome::Found(addresses) => {
                        addresses.complete(&known);
                        known.clone_from(addresses);
                    }
                    Outcome::Absent(_) => known = Addresses::default(),
                    Outcome::Failed(_) => {}
                }
                let pause = schedule.after(&outcome, fastrand::f64());
                board.note(host, &outcome, Instant::now(), pause);
                let answer = Answer { question: question.clone(), outcome };
                if answered.send(answer).await.is_err() {
                    return;
                }
                tokio::time::sleep(pause).await;
            }
        };
        tokio::spawn(task).abort_handle()
    }
}

/// The names that DNS has to be asked about, each once.
fn questions(dns: &DnsDiscovery) -> impl Iterator<Item = Question> + '_ {
    let hosts = dns.endpoints.iter().map(|endpoint| endpoint.address.host.as_str());
    let names: BTreeSet<&str> = hosts.filter(|host| !endpoints::is_address(host)).collect();
    let policy = Policy::of(dns);
    names.into_iter().map(move |host| (host.to_owned(), policy))
}

#[cfg(test)]
mod tests;
