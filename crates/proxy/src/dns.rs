//! The workload's resolver: answers for the mesh's names out of the configuration, passes everything else on as it came.
//!
//! Runs on the control runtime. What is in the mesh only the control plane says (`config_feed`); here a name that it has not
//! answered for is waited for, a bounded time. Nothing is cached but that: others' answers belong to their own resolvers.
//!
//! ```text
//! udp, tcp ─▶ message::Query ─▶ names ─▶ snapshot or feed ─▶ in the mesh: answer
//!                                                        └─▶ not: upstream, bytes as they came
//! ```

use std::sync::Arc;
use std::time::Duration;

use hickory_proto::op::ResponseCode;
use outrigger_model::resource::{self, Host};
use parking_lot::Mutex;
use tokio::time::{Instant, timeout_at};

use crate::config_feed::FeedStatus;
use crate::process::Process;

mod counters;
#[cfg(any(test, fuzzing))]
pub mod fuzzing;
pub(crate) mod message;
mod names;
pub(crate) mod resolv_conf;
mod start;
mod tcp;
mod udp;
pub(crate) mod upstream;

pub use counters::Counters;
pub use start::{BindError, Sockets, bind, resolvers, start};

use counters::Source;
use message::{Parsed, Query, Reply, Transport};
use names::{Candidate, MeshNames};
use upstream::Upstreams;

/// How long a name waits for the control plane; from the beginning of an outage on nobody waits longer than this either.
const PATIENCE: Duration = Duration::from_secs(2);

/// The resolver.
pub struct Dns {
    process: Arc<Process>,
    feed: Arc<Mutex<FeedStatus>>,
    names: MeshNames,
    upstreams: Upstreams,
    counters: Arc<Counters>,
}

/// What is known of the names that a query may mean.
enum Lookup {
    /// One of them is in the mesh; the query meant it by an alias.
    Found(Arc<Host>, bool),
    /// None is, as far as anybody can say now.
    Absent,
    /// The control plane is there and does not say, and the name can be nobody else's: to ask others would get a wrong no.
    Silent,
}

impl Dns {
    /// The answer to a message; none to what must not be answered.
    async fn answer(&self, bytes: &[u8], transport: Transport) -> Option<Vec<u8>> {
        let query = match message::parse(bytes) {
            Parsed::Query(query) => query,
            Parsed::Refused(answer) => {
                self.counters.count(Source::Failed, None);
                return Some(answer);
            }
            Parsed::Ignored => return None,
        };
        let (answer, source) = match self.decide(&query).await {
            Some((reply, source)) => (query.write(&reply, transport), source),
            None => match self.upstreams.forward(&query, bytes, transport).await {
                Some(answer) => (answer, Source::Forward),
                None => (query.write(&Reply::failure(ResponseCode::ServFail), transport), Source::Failed),
            },
        };
        self.counters.count(source, Some(query.kind()));
        Some(answer)
    }

    /// What we say ourselves; `None` is for the upstream.
    async fn decide(&self, query: &Query) -> Option<(Reply, Source)> {
        if query.is_transfer() {
            return Some((Reply::failure(ResponseCode::Refused), Source::Failed));
        }
        if let Some(address) = query.reverse().filter(|address| resource::is_virtual(*address)) {
            let snapshot = self.process.snapshot.load();
            let mut known = snapshot.hosts().filter_map(|(_, known)| known.answer.as_ref());
            return Some(match known.find(|host| host.addresses.contains(&address)) {
                Some(host) => (Reply::pointer(&host.host), Source::Mesh),
                None => (Reply::no_such_name(self.names.zone()), Source::Negative),
            });
        }
        let candidates = query.mesh_name().map(|name| self.candidates(name)).unwrap_or_default();
        match self.look_up(&candidates).await {
            Lookup::Found(host, alias) => {
                let reply = Reply::host(&host, alias, query.kind(), self.names.zone());
                let source = if reply.has_records() { Source::Mesh } else { Source::Negative };
                Some((reply, source))
            }
            Lookup::Silent => Some((Reply::failure(ResponseCode::ServFail), Source::Failed)),
            Lookup::Absent if !self.upstreams.is_empty() => None,
            // In an outage nobody can say that.
            Lookup::Absent if self.feed.lock().connected && self.is_own(query) => {
                Some((Reply::no_such_name(self.names.zone()), Source::Negative))
            }
            Lookup::Absent => Some((Reply::failure(ResponseCode::Refused), Source::Failed)),
        }
    }

    fn candidates(&self, name: &str) -> Vec<Candidate> {
        let snapshot = self.process.snapshot.load();
        let outside = snapshot.host(Host::OUTSIDE).and_then(|known| known.answer.as_ref());
        self.names.candidates(name, |name| outside.is_some_and(|outside| outside.covers(name)))
    }

    fn is_own(&self, query: &Query) -> bool {
        query.mesh_name().is_some_and(|name| self.names.owns(name))
    }

    /// All are asked for before the first is waited for.
    async fn look_up(&self, candidates: &[Candidate]) -> Lookup {
        let demand = &self.process.demand;
        {
            let snapshot = self.process.snapshot.load();
            let unknown = candidates.iter().filter(|candidate| snapshot.host(&candidate.host).is_none());
            unknown.for_each(|candidate| demand.ask_host(&candidate.host));
        }
        let patience = self.patience();
        let mut silent = false;
        for Candidate { host, alias, sure } in candidates {
            let found = self.process.search(
                || demand.ask_host(host),
                |snapshot| {
                    let known = snapshot.host(host)?;
                    // One that was just forgotten is asked for anew.
                    let _use = known.usage.begin()?;
                    Some(known.answer.clone())
                },
            );
            match timeout_at(patience, found).await {
                Ok(Some(found)) => return Lookup::Found(found, *alias),
                Ok(None) => {}
                Err(_) => silent |= sure & self.feed.lock().connected,
            }
        }
        if silent { Lookup::Silent } else { Lookup::Absent }
    }

    fn patience(&self) -> Instant {
        let limit = Instant::now() + PATIENCE;
        match self.feed.lock().disconnected_since {
            Some(since) => limit.min(Instant::from_std(since) + PATIENCE),
            None => limit,
        }
    }
}

#[cfg(test)]
mod tests;
