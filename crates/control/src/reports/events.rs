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
    /// Objects whose Event could not be made the last time: they come last.
    late: HashSet<String>,
    /// Events of a namespace since there was all room: it has another when the others have had as many.
    spent: HashMap<String, usize>,
}

impl Default for Teller {
    fn default() -> Self {
        let (said, spent) = (HashMap::new(), HashMap::new());
        Self { room: BURST, at: Instant::now(), said, late: HashSet::new(), spent }
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
        let namespaces = ids.iter().filter_map(|id| Some(id.split_once(' ')?.1.split_once('/')?.0));
        let namespaces: HashSet<&str> = namespaces.collect();
        self.spent.retain(|namespace, _| namespaces.contains(namespace.as_str()));
    }

    /// Whether there is something to be told of this object that was not. Once it has been right it is news again, for which the API server has
    /// an Event still if that was not long ago.
    pub(super) fn is_news(&mut self, told: &Told) -> bool {
        if told.word.is_none() {
            self.said.remove(&told.id);
            self.late.remove(&told.id);
        }
        told.word.is_some_and(|word| self.said.get(&told.id) != Some(&word))
    }

    /// News in the order in which they are told: what could not be told comes last, no namespace has a second Event before the others have their
    /// first, and of one namespace those come first whose status is the newest.
    pub(super) fn in_turn<'t>(&self, mut news: Vec<&'t Told>, fresh: &HashSet<&str>) -> Vec<&'t Told> {
        let of = |told: &Told| (self.late.contains(&told.id), !fresh.contains(told.id.as_str()));
        news.sort_by_key(|told| of(told));
        let mut turns: HashMap<&str, usize> = HashMap::new();
        let turned = news.into_iter().map(|told| {
            let spent = || self.spent.get(&told.namespace).copied().unwrap_or_default();
            let turn = turns.entry(&told.namespace).or_insert_with(spent);
            *turn += 1;
            let (is_late, is_old) = of(told);
            ((is_late, *turn, is_old), told)
        });
        let mut turned: Vec<_> = turned.collect();
        turned.sort_by_key(|(turn, _)| *turn);
        turned.into_iter().map(|(_, told)| told).collect()
    }

    /// Whether there is room for one more, which is taken then.
    pub(super) fn takes(&mut self) -> bool {
        let now = Instant::now();
        let more = (now - self.at).as_secs_f64() / PACE.as_secs_f64();
        (self.room, self.at) = ((self.room + more).min(BURST), now);
        if self.room >= BURST {
            self.spent.clear();
        }
        let takes = self.room >= 1.0;
        self.room -= f64::from(u8::from(takes));
        takes
    }

    /// It has been, or cannot be. Where no Event had to be made for that its room is there for another.
    pub(super) fn told(&mut self, told: &Told, is_made: bool) {
        self.late.remove(&told.id);
        self.said.extend(told.word.map(|word| (told.id.clone(), word)));
        match is_made {
            true => *self.spent.entry(told.namespace.clone()).or_default() += 1,
            false => self.give_back(),
        }
    }

    /// There is room for another, since nothing was made.
    pub(super) fn give_back(&mut self) {
        self.room = (self.room + 1.0).min(BURST);
    }

    /// It could not be told now. Whether that is new.
    pub(super) fn failed(&mut self, told: &Told) -> bool {
        self.late.insert(told.id.clone())
    }
}

/// What is known that is to be told, if there is something. Of an object that cannot be read its own words are not, but that they are others.
pub(super) fn known(told: &Told) -> Option<u64> {
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

/// Makes it. One that is there already is enough; whether there was none.
pub(super) async fn tell(client: &Client, word: &Word, object: &DynamicObject) -> Result<bool, kube::Error> {
    let resource = ApiResource::from_gvk(&GroupVersionKind::gvk("events.k8s.io", "v1", "Event"));
    let namespace = object.metadata.namespace.as_deref().unwrap_or_default();
    let events: Api<DynamicObject> = Api::namespaced_with(client.clone(), namespace, &resource);
    let event = serde_json::from_value(event(word, object, jiff::Timestamp::now()));
    let event = event.map_err(kube::Error::SerdeError)?;
    let params = PostParams { field_manager: Some(WHO.to_owned()), ..PostParams::default() };
    match events.create(&params, &event).await {
        Err(kube::Error::Api(status)) if status.code == 409 => Ok(false),
        made => made.map(|_| true),
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;

    fn told(name: &str) -> Told {
        Told {
            id: format!("TrafficRules shop/{name}"),
            namespace: "shop".to_owned(),
            accepted: true,
            reason: "Accepted",
            ..Told::default()
        }
    }

    /// As all that is known of a rule comes to a round.
    fn read(told: Told) -> Told {
        Told { word: known(&told), ..told }
    }

    fn invalid(name: &str, message: &str) -> Told {
        read(Told { accepted: false, reason: "Invalid", message: message.to_owned(), ..told(name) })
    }

    #[test]
    fn the_same_is_news_until_it_is_told_and_again_when_it_has_been_right_in_between() {
        let mut teller = Teller::default();
        assert!(!teller.is_news(&read(told("web"))), "nothing is wrong");
        let bad = invalid("web", "no host");
        let said = word(&bad).unwrap();
        assert_eq!((said.reason, said.note.as_str()), ("Invalid", "no host"));
        assert!(teller.is_news(&bad) && teller.is_news(&bad), "nobody has told it");
        assert!(teller.failed(&bad) && !teller.failed(&bad) && teller.late.contains(&bad.id));
        teller.told(&bad, true);
        assert!(!teller.is_news(&bad) && !teller.late.contains(&bad.id));
        // Whoever cannot be read says something else by the time that it is asked for.
        let other = read(Told { lacking: "another flaw".to_owned(), ..bad.clone() });
        assert!(teller.is_news(&other));
        let lacking = read(Told { lacking: "web-1 refuses it".to_owned(), ..told("web") });
        assert_eq!(word(&lacking).unwrap().reason, "NotEnforced");
        assert!(teller.is_news(&lacking));
        teller.told(&lacking, true);
        // Only another number of proxies.
        assert!(!teller.is_news(&read(Told { proxies: (3, 4), ..lacking })));
        assert!(!teller.is_news(&read(told("web"))));
        assert!(teller.is_news(&bad));
        teller.told(&bad, true);
        teller.failed(&invalid("other", "no host"));
        teller.retain(&HashSet::new());
        assert!(teller.said.is_empty() && teller.late.is_empty() && teller.spent.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn no_namespace_has_the_room_of_the_others() {
        let mut teller = Teller::default();
        let of = |namespace: &str, name: usize| {
            let id = format!("TrafficRules {namespace}/{name}");
            Told { id, namespace: namespace.to_owned(), ..invalid("web", "no host") }
        };
        let shop: Vec<Told> = (0..30).map(|name| of("shop", name)).collect();
        let (bank, desk) = (of("bank", 0), of("desk", 0));
        let all: Vec<&Told> = shop.iter().chain([&bank, &desk]).collect();
        // One that changes its rules all the time, so their statuses are the newest.
        let fresh: HashSet<&str> = shop.iter().map(|told| told.id.as_str()).collect();
        let order = |teller: &Teller| -> Vec<String> {
            let all = teller.in_turn(all.clone(), &fresh).into_iter();
            all.map(|told| told.id.replace("TrafficRules ", "")).take(4).collect()
        };
        assert_eq!(order(&teller), ["shop/0", "bank/0", "desk/0", "shop/1"]);
        for told in &shop[..2] {
            assert!(teller.takes());
            teller.told(told, true);
        }
        assert_eq!(order(&teller)[..3], ["bank/0", "desk/0", "shop/0"], "it has had two");
        teller.failed(&bank);
        assert_eq!(order(&teller)[..2], ["desk/0", "shop/0"], "what failed comes last");
        // When there is all room again nobody has had more than others.
        advance(2 * PACE).await;
        assert!(teller.takes() && teller.spent.is_empty());
        assert_eq!(order(&teller)[..2], ["shop/0", "desk/0"]);
        let ids: HashSet<&str> = [bank.id.as_str()].into();
        teller.told(&bank, true);
        teller.told(&desk, true);
        teller.retain(&ids);
        assert_eq!(teller.spent.keys().collect::<Vec<_>>(), ["bank"]);
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
