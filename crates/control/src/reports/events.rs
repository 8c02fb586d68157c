//! Events: what `kubectl describe` and `kubectl get events` show of a rule that is not in force as it is written. Its status says the same,
//! and for as long as it is so.
//!
//! One is made once the status that says it is written, by whoever writes that and when there is room, and is called after the object and the
//! words: the same again is the same Event for as long as the API server keeps it (an hour, unless it is told otherwise), whoever leads by then.

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
pub(super) const PACE: Duration = Duration::from_secs(10);
/// Bytes of its words, and of a name.
const MOST_NOTE: usize = 1024;
const MOST_NAME: usize = 253;

/// Who makes them.
pub(super) struct Teller {
    room: f64,
    at: Instant,
    /// What was known of each object when that was said last.
    said: HashMap<String, u64>,
    /// Objects for whose Event the API server had no time: they come last.
    late: HashSet<String>,
}

impl Default for Teller {
    fn default() -> Self {
        Self { room: BURST, at: Instant::now(), said: HashMap::new(), late: HashSet::new() }
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
        self.late.retain(|id| ids.contains(id.as_str()));
    }

    /// Whether there is something to be told of this object that was not. Once it has been right it is news again, for which the API server has
    /// an Event still if that was not long ago.
    pub(super) fn is_news(&mut self, told: &Told) -> bool {
        let known = known(told);
        if known.is_none() {
            self.said.remove(&told.id);
            self.late.remove(&told.id);
        }
        known.is_some_and(|known| self.said.get(&told.id) != Some(&known))
    }

    /// Whether there was no time for it the last time.
    pub(super) fn is_late(&self, id: &str) -> bool {
        self.late.contains(id)
    }

    /// Whether there is room for one more, which is taken then.
    pub(super) fn takes(&mut self) -> bool {
        let now = Instant::now();
        let more = (now - self.at).as_secs_f64() / PACE.as_secs_f64();
        (self.room, self.at) = ((self.room + more).min(BURST), now);
        let takes = self.room >= 1.0;
        self.room -= f64::from(u8::from(takes));
        takes
    }

    /// It has been, or cannot be.
    pub(super) fn told(&mut self, told: &Told) {
        self.late.remove(&told.id);
        self.said.extend(known(told).map(|known| (told.id.clone(), known)));
    }

    /// There was no time for it. Whether that is new.
    pub(super) fn failed(&mut self, told: &Told) -> bool {
        self.late.insert(told.id.clone())
    }
}

/// What is known that is to be told, if there is something. Of an object that cannot be read its own words are not, but that they are others.
fn known(told: &Told) -> Option<u64> {
    word(told).map(|word| hash(&(word.hash, &told.lacking)))
}

/// Why, as one word, and how.
pub(super) fn word(told: &Told) -> Option<Word> {
    let of = |reason: &'static str, note: String| Word { reason, hash: hash(&(reason, &note)), note };
    if !told.accepted {
        return Some(of(told.reason, told.message.clone()));
    }
    if !told.lacking.is_empty() {
        return Some(of("NotEnforced", told.lacking.clone()));
    }
    let worth = told.findings.iter().filter(|finding| finding.severity <= Severity::Warning);
    let note = joined(worth.map(Finding::of_field));
    (!note.is_empty()).then(|| of("Findings", note))
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
    // What is cut off ends as a name may before a dot.
    let first = name[..name.floor_char_boundary(MOST_NAME - end.len())].trim_end_matches(['.', '-']);
    json!({
        "apiVersion": "events.k8s.io/v1", "kind": "Event",
        "metadata": {
            "name": format!("{first}{end}"),
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

/// Makes it. One that is there already is enough.
pub(super) async fn tell(client: &Client, word: &Word, object: &DynamicObject) -> Result<(), kube::Error> {
    let resource = ApiResource::from_gvk(&GroupVersionKind::gvk("events.k8s.io", "v1", "Event"));
    let namespace = object.metadata.namespace.as_deref().unwrap_or_default();
    let events: Api<DynamicObject> = Api::namespaced_with(client.clone(), namespace, &resource);
    let event = serde_json::from_value(event(word, object, jiff::Timestamp::now()));
    let event = event.map_err(kube::Error::SerdeError)?;
    let params = PostParams { field_manager: Some(WHO.to_owned()), ..PostParams::default() };
    match events.create(&params, &event).await {
        Err(kube::Error::Api(status)) if status.code == 409 => Ok(()),
        made => made.map(drop),
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

    #[test]
    fn the_same_is_news_until_it_is_told_and_again_when_it_has_been_right_in_between() {
        let mut teller = Teller::default();
        assert!(!teller.is_news(&told("web")), "nothing is wrong");
        let bad = invalid("web", "no host");
        let said = word(&bad).unwrap();
        assert_eq!((said.reason, said.note.as_str()), ("Invalid", "no host"));
        assert!(teller.is_news(&bad) && teller.is_news(&bad), "nobody has told it");
        assert!(teller.failed(&bad) && !teller.failed(&bad) && teller.is_late(&bad.id));
        teller.told(&bad);
        assert!(!teller.is_news(&bad) && !teller.is_late(&bad.id));
        // Whoever cannot be read says something else by the time that it is asked for.
        let other = Told { lacking: "another flaw".to_owned(), ..bad.clone() };
        assert!(teller.is_news(&other));
        let lacking = Told { lacking: "web-1 refuses it".to_owned(), ..told("web") };
        assert_eq!(word(&lacking).unwrap().reason, "NotEnforced");
        assert!(teller.is_news(&lacking));
        teller.told(&lacking);
        // Only another number of proxies.
        assert!(!teller.is_news(&Told { proxies: (3, 4), ..lacking }));
        assert!(!teller.is_news(&told("web")));
        assert!(teller.is_news(&bad));
        teller.told(&bad);
        teller.failed(&invalid("other", "no host"));
        teller.retain(&HashSet::new());
        assert!(teller.said.is_empty() && teller.late.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn there_is_room_for_a_few_at_once_and_for_more_with_time() {
        let mut teller = Teller::default();
        let taken = |teller: &mut Teller| (0..100).filter(|_| teller.takes()).count();
        assert_eq!((taken(&mut teller), taken(&mut teller)), (25, 0));
        advance(3 * PACE).await;
        assert_eq!(taken(&mut teller), 3);
        advance(1000 * PACE).await;
        assert_eq!(taken(&mut teller), 25);
    }

    #[test]
    fn an_event_is_called_after_its_object_and_its_words() {
        let called = |name: &str, note: String| {
            let object: DynamicObject = serde_json::from_value(json!({
                "apiVersion": "outrigger.io/v1", "kind": "TrafficRules",
                "metadata": {"name": name, "namespace": "shop", "uid": "u-1", "resourceVersion": "7"},
            }))
            .unwrap();
            let word = Word { reason: "Invalid", hash: hash(&note), note };
            event(&word, &object, "2026-12-01T00:00:00.5Z".parse().unwrap())
        };
        let of = |note: String| called(&"w".repeat(253), note);
        // One that is cut where no name ends.
        for edge in [".", "-"] {
            let name = "w".repeat(235) + edge + &"w".repeat(17);
            let event = called(&name, "a".into());
            let (first, hash) = event["metadata"]["name"].as_str().unwrap().split_once('.').unwrap();
            assert_eq!((first, hash.len()), ("w".repeat(235).as_str(), 16), "{edge}");
            assert_eq!(event["regarding"]["name"], name);
        }
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
