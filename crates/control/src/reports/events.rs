//! Events: what `kubectl describe` and `kubectl get events` show of a rule that is not in force as it is written. Its status says the same,
//! and for as long as it is so.
//!
//! One is made when the status that says it has been written, by whoever writes that, and is called after the object and the words: the same
//! again is the same Event for as long as the API server keeps it (an hour, unless it is told otherwise), whoever leads by then.

use std::collections::{HashMap, HashSet};

use kube::api::{ApiResource, DynamicObject, GroupVersionKind, PostParams};
use kube::{Api, Client};
use outrigger_rules::{Finding, Severity};
use serde_json::{Value, json};
use tokio::time::{Duration, Instant};

use super::told::{Told, joined};
use super::{WHO, hash};
use crate::api::route_status::CONTROLLER;

/// Events at once, and the time in which there is room for one more: a registry of bad rules is no flood.
const BURST: f64 = 25.0;
const PACE: Duration = Duration::from_secs(10);
/// Bytes of its words, and of a name.
const MOST_NOTE: usize = 1024;
const MOST_NAME: usize = 253;

/// Who makes them.
pub(super) struct Teller {
    room: f64,
    at: Instant,
    /// What was said last of each object.
    said: HashMap<String, u64>,
}

impl Default for Teller {
    fn default() -> Self {
        Self { room: BURST, at: Instant::now(), said: HashMap::new() }
    }
}

/// What is to be told of an object.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Word {
    reason: &'static str,
    note: String,
    hash: u64,
}

impl Teller {
    /// Objects that are no rules of ours any more are forgotten.
    pub(super) fn retain(&mut self, ids: &HashSet<&str>) {
        self.said.retain(|id, _| ids.contains(id.as_str()));
    }

    /// What is news of this object, if there is room for it. It counts as told.
    pub(super) fn news(&mut self, told: &Told) -> Option<Word> {
        let Some((reason, note)) = word(told) else {
            // Wrong again it is news again.
            self.said.remove(&told.id);
            return None;
        };
        let hash = hash(&(reason, &note));
        if self.said.get(&told.id) == Some(&hash) {
            return None;
        }
        let now = Instant::now();
        let more = (now - self.at).as_secs_f64() / PACE.as_secs_f64();
        (self.room, self.at) = ((self.room + more).min(BURST), now);
        if self.room < 1.0 {
            return None;
        }
        self.room -= 1.0;
        self.said.insert(told.id.clone(), hash);
        Some(Word { reason, note, hash })
    }
}

/// Why, as one word, and how.
fn word(told: &Told) -> Option<(&'static str, String)> {
    if !told.accepted {
        return Some((told.reason, told.message.clone()));
    }
    if !told.lacking.is_empty() {
        return Some(("NotEnforced", told.lacking.clone()));
    }
    let worth = told.findings.iter().filter(|finding| finding.severity <= Severity::Warning);
    let note = joined(worth.map(Finding::of_field));
    (!note.is_empty()).then_some(("Findings", note))
}

/// The Event.
fn event(word: &Word, object: &DynamicObject, at: jiff::Timestamp) -> Value {
    let metadata = &object.metadata;
    let name = metadata.name.as_deref().unwrap_or_default();
    let uid = metadata.uid.as_deref().unwrap_or_default();
    let end = format!(".{:016x}", hash(&(uid, word.hash)));
    let (api_version, kind) = match &object.types {
        Some(types) => (types.api_version.as_str(), types.kind.as_str()),
        None => ("", ""),
    };
    json!({
        "apiVersion": "events.k8s.io/v1", "kind": "Event",
        "metadata": {
            "name": format!("{}{end}", &name[..name.floor_char_boundary(MOST_NAME - end.len())]),
            "namespace": metadata.namespace,
        },
        "eventTime": format!("{at:.6}"),
        "reportingController": CONTROLLER, "reportingInstance": WHO, "action": "Judged",
        "type": "Warning", "reason": word.reason,
        "note": &word.note[..word.note.floor_char_boundary(MOST_NOTE)],
        "regarding": {
            "apiVersion": api_version, "kind": kind, "namespace": metadata.namespace, "name": name, "uid": uid,
            "resourceVersion": metadata.resource_version,
        },
    })
}

/// Makes it. One that is there already is enough, and nothing waits for one that cannot be made.
pub(super) async fn tell(client: &Client, word: &Word, object: &DynamicObject) {
    let resource = ApiResource::from_gvk(&GroupVersionKind::gvk("events.k8s.io", "v1", "Event"));
    let namespace = object.metadata.namespace.as_deref().unwrap_or_default();
    let events: Api<DynamicObject> = Api::namespaced_with(client.clone(), namespace, &resource);
    let made = match serde_json::from_value(event(word, object, jiff::Timestamp::now())) {
        Ok(event) => {
            let params = PostParams { field_manager: Some(WHO.to_owned()), ..PostParams::default() };
            events.create(&params, &event).await.map(drop)
        }
        Err(error) => Err(kube::Error::SerdeError(error)),
    };
    match made {
        Ok(()) => {}
        Err(kube::Error::Api(status)) if status.code == 409 => {}
        Err(error) => {
            let name = object.metadata.name.as_deref().unwrap_or_default();
            tracing::info!(namespace, name, %error, "an Event cannot be made of what the rule's status says");
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;

    fn told(name: &str) -> Told {
        Told {
            id: format!("TrafficRules shop/{name}"),
            accepted: true,
            reason: "Accepted",
            ..Told::default()
        }
    }

    fn invalid(name: &str, message: &str) -> Told {
        Told { accepted: false, reason: "Invalid", message: message.to_owned(), ..told(name) }
    }

    #[tokio::test(start_paused = true)]
    async fn the_same_is_told_once_and_again_when_it_has_been_right_in_between() {
        let mut teller = Teller::default();
        assert_eq!(teller.news(&told("web")), None, "nothing is wrong");
        let word = teller.news(&invalid("web", "no host")).unwrap();
        assert_eq!((word.reason, word.note.as_str()), ("Invalid", "no host"));
        assert_eq!(teller.news(&invalid("web", "no host")), None);
        let lacking = Told { lacking: "web-1 refuses it".to_owned(), ..told("web") };
        assert_eq!(teller.news(&lacking).unwrap().reason, "NotEnforced");
        // Only another number of proxies.
        assert_eq!(teller.news(&Told { proxies: (3, 4), ..lacking }), None);
        assert_eq!(teller.news(&told("web")), None);
        assert!(teller.news(&invalid("web", "no host")).is_some());
        teller.retain(&HashSet::new());
        assert!(teller.said.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn many_at_once_are_told_a_few_and_the_rest_with_time() {
        let mut teller = Teller::default();
        let news = |teller: &mut Teller| {
            (0..100).filter(|n| teller.news(&invalid(&n.to_string(), "no host")).is_some()).count()
        };
        assert_eq!((news(&mut teller), news(&mut teller)), (25, 0));
        advance(3 * PACE).await;
        assert_eq!(news(&mut teller), 3);
        advance(1000 * PACE).await;
        assert_eq!(news(&mut teller), 25);
    }

    #[test]
    fn an_event_is_called_after_its_object_and_its_words() {
        let object: DynamicObject = serde_json::from_value(json!({
            "apiVersion": "outrigger.io/v1", "kind": "TrafficRules",
            "metadata": {"name": "w".repeat(253), "namespace": "shop", "uid": "u-1", "resourceVersion": "7"},
        }))
        .unwrap();
        let of = |note: String| {
            let word = Word { reason: "Invalid", hash: hash(&note), note };
            event(&word, &object, "2026-12-01T00:00:00.5Z".parse().unwrap())
        };
        let one = of("\u{fc}".repeat(1000));
        assert_eq!(one["note"].as_str().unwrap().len(), 1024);
        assert_eq!(one["metadata"]["name"].as_str().unwrap().len(), 253);
        assert_eq!(one["eventTime"], "2026-12-01T00:00:00.500000Z");
        assert_eq!(one["regarding"]["kind"], "TrafficRules");
        assert_eq!(one["regarding"]["uid"], "u-1");
        assert_eq!(of("a".into())["metadata"], of("a".into())["metadata"]);
        assert_ne!(of("a".into())["metadata"], of("b".into())["metadata"]);
    }
}
