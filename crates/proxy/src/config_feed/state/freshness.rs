//! How far each subscription is: what version of it serves and since when it is here, and whether the control plane has said something
//! since that does not serve.

use std::sync::Arc;
use std::time::Instant;

use outrigger_model::resource::{Invalid, ResourceKind};
use serde::Serialize;

use super::{FeedState, Held, ResourceKey};

/// Refused resources that are remembered by name.
const MOST_REFUSED: usize = 1024;

/// Whether what serves is what the control plane said last.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Freshness {
    /// It is.
    Current,
    /// What is newer waits for what it refers to.
    Waiting,
    /// What is newer was refused.
    Refused,
    /// It is gone, and serves because something in force refers to it.
    Gone,
    /// It was asked for, and nothing was said of it yet.
    Unanswered,
}

impl Freshness {
    /// Whether what serves is older than what was said.
    pub fn is_stale(self) -> bool {
        matches!(self, Self::Waiting | Self::Refused | Self::Gone)
    }
}

/// One subscription.
#[derive(Debug, Clone, PartialEq)]
pub struct Subscription {
    /// Its type and name.
    pub key: ResourceKey,
    /// Whether what serves is what was said last.
    pub freshness: Freshness,
    /// The version that serves, and when what it says came, which a version before may have said as well.
    pub serving: Option<(String, Instant)>,
    /// The version that does not serve yet, or never will, and when it came; of one without an answer no version, and when it was asked
    /// for.
    pub newer: Option<(String, Instant)>,
}

impl FeedState {
    /// A version could not even be read.
    pub fn reject(&mut self, invalid: &Invalid, version: &str, now: Instant) {
        let key = (invalid.kind, invalid.name.clone());
        if self.unreadable.len() < MOST_REFUSED || self.unreadable.contains_key(&key) {
            self.unreadable.insert(key, (version.to_owned(), now));
        }
    }

    /// All that the control plane is asked for or has sent, each once, but barriers and what is not in the mesh; what nothing is here of
    /// with the time at which it was asked for. A name of several clusters has its endpoint set from DNS, which nobody subscribes to.
    fn all(&self) -> impl Iterator<Item = (&ResourceKey, Option<Instant>)> {
        let is_received = move |key: &ResourceKey| self.received.contains_key(key);
        let left = self.in_force.keys().filter(move |key| !is_received(key));
        let is_new = move |key: &ResourceKey| !is_received(key) && !self.in_force.contains_key(key);
        let asked = self.subscribed.iter().filter(move |(key, _)| is_new(key));
        let here = self.received.keys().chain(left).map(|key| (key, None));
        here.chain(asked.map(|(key, asked)| (key, Some(*asked))))
            .filter(move |(key, _)| key.0 != ResourceKind::Barrier && !self.absent.contains(*key))
    }

    /// How far each of them of a type is, or of all types, in no order.
    pub fn standing(&self, kind: Option<ResourceKind>) -> Vec<Subscription> {
        let wanted = self.all().filter(|(key, _)| kind.is_none_or(|kind| key.0 == kind));
        wanted.map(|(key, asked)| self.standing_of(key, asked)).collect()
    }

    /// The same in short, for who counts.
    pub fn freshness(&self) -> impl Iterator<Item = (ResourceKind, Freshness)> {
        self.all().map(move |(key, _)| (key.0, self.freshness_of(key)))
    }

    fn freshness_of(&self, key: &ResourceKey) -> Freshness {
        let (received, serving) = (self.received.get(key), self.in_force.get(key));
        let same = received.zip(serving).is_some_and(|(new, old)| Arc::ptr_eq(&new.resource, &old.resource));
        match received {
            _ if self.unreadable.contains_key(key) => Freshness::Refused,
            Some(_) if same => Freshness::Current,
            Some(_) if self.refused.contains_key(key) => Freshness::Refused,
            Some(_) => Freshness::Waiting,
            None if serving.is_some() => Freshness::Gone,
            None => Freshness::Unanswered,
        }
    }

    fn standing_of(&self, key: &ResourceKey, asked: Option<Instant>) -> Subscription {
        let told = |held: &Held| (held.version.clone(), held.came);
        let freshness = self.freshness_of(key);
        let newer = match freshness {
            Freshness::Refused | Freshness::Waiting => {
                self.unreadable.get(key).cloned().or_else(|| self.received.get(key).map(told))
            }
            Freshness::Unanswered => asked.map(|asked| (String::new(), asked)),
            Freshness::Current | Freshness::Gone => None,
        };
        Subscription { key: key.clone(), freshness, serving: self.in_force.get(key).map(told), newer }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use outrigger_model::cluster::Cluster;
    use outrigger_model::endpoint::EndpointSet;
    use outrigger_model::resource::Resource;

    use super::*;

    const SET: &str = "c";

    fn set() -> Resource {
        Resource::Endpoints(EndpointSet { cluster: SET.into(), ..EndpointSet::default() })
    }

    fn of(state: &FeedState, kind: ResourceKind) -> Option<Subscription> {
        state.standing(Some(kind)).pop()
    }

    fn invalid(kind: ResourceKind) -> Invalid {
        Invalid { kind, name: SET.into(), field: "f".into(), reason: "bad".into() }
    }

    #[test]
    fn an_endpoint_set_is_unanswered_then_current_and_stale_while_what_is_newer_cannot_be_read() {
        let (start, second) = (Instant::now(), Duration::from_secs(1));
        let mut state = FeedState::new([]);
        state.upsert(Resource::Cluster(Cluster::new(SET)), "1".into(), start);
        state.step(start);
        let found = of(&state, ResourceKind::Endpoints).unwrap();
        assert_eq!((found.freshness, found.serving), (Freshness::Unanswered, None));
        assert_eq!(found.newer, Some((String::new(), start)), "since it was asked for");
        assert_eq!(of(&state, ResourceKind::Cluster).unwrap().freshness, Freshness::Waiting);

        state.upsert(set(), "1".into(), start + second);
        state.step(start + second);
        let found = of(&state, ResourceKind::Endpoints).unwrap();
        assert_eq!((found.freshness, found.newer), (Freshness::Current, None));
        assert_eq!(found.serving, Some(("1".into(), start + second)));
        assert_eq!(of(&state, ResourceKind::Cluster).unwrap().freshness, Freshness::Current);

        state.reject(&invalid(ResourceKind::Endpoints), "2", start + 2 * second);
        let found = of(&state, ResourceKind::Endpoints).unwrap();
        assert!(found.freshness.is_stale());
        assert_eq!(found.serving.unwrap().0, "1");
        assert_eq!(found.newer, Some(("2".into(), start + 2 * second)));

        state.upsert(set(), "3".into(), start + 3 * second);
        state.step(start + 3 * second);
        let found = of(&state, ResourceKind::Endpoints).unwrap();
        assert_eq!((found.freshness, found.serving.unwrap().0), (Freshness::Current, "3".to_owned()));
    }

    #[test]
    fn what_was_built_in_vain_is_refused_and_what_serves_is_the_version_before() {
        let now = Instant::now();
        let mut state = FeedState::new([]);
        for (version, seconds) in [("1", 1), ("2", 2)] {
            let connect_timeout = Duration::from_secs(seconds);
            let cluster = Cluster { connect_timeout, ..Cluster::new(SET) };
            state.upsert(Resource::Cluster(cluster), version.into(), now);
            state.upsert(set(), version.into(), now);
            state.step(now);
            if version == "2" {
                let key = (ResourceKind::Cluster, SET.to_owned());
                state.settle(&[(key, invalid(ResourceKind::Cluster))], now);
            } else {
                state.settle(&[], now);
            }
        }
        let found = of(&state, ResourceKind::Cluster).unwrap();
        assert_eq!(found.freshness, Freshness::Refused);
        assert_eq!((found.serving.unwrap().0, found.newer.unwrap().0), ("1".to_owned(), "2".to_owned()));
    }

    #[test]
    fn a_set_that_is_gone_while_its_cluster_serves_is_said_to_be() {
        let now = Instant::now();
        let mut state = FeedState::new([]);
        state.upsert(Resource::Cluster(Cluster::new(SET)), "1".into(), now);
        state.upsert(set(), "1".into(), now);
        state.step(now);
        state.remove(ResourceKind::Endpoints, SET);
        state.step(now);
        assert_eq!(state.standing(None).len(), 2, "each once");
        let found = of(&state, ResourceKind::Endpoints).unwrap();
        assert_eq!((found.freshness, found.serving.unwrap().0), (Freshness::Gone, "1".to_owned()));
        state.remove(ResourceKind::Cluster, SET);
        state.step(now);
        assert_eq!((state.standing(None), state.freshness().count()), (Vec::new(), 0), "nobody wants it");
    }

    #[test]
    fn refusals_of_names_without_end_are_not_all_kept() {
        let mut state = FeedState::new([]);
        for i in 0..MOST_REFUSED + 10 {
            let invalid = Invalid { name: format!("n{i}"), ..invalid(ResourceKind::Cluster) };
            state.reject(&invalid, "1", Instant::now());
        }
        assert_eq!(state.unreadable.len(), MOST_REFUSED);
    }
}
