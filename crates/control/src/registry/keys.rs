//! What the keys of a store that others write say, such as etcd's, ZooKeeper's nodes and Eureka's rows: an instance each, the parts they come to.
//!
//! Which key said an instance is not kept over a start. So a key that cannot be read then, or is hidden, may be any of those that were
//! known before, as far as its path goes: they stay while it is so.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::Item;
use super::foreign::label;
use super::parts::{Missing, Parts, Said};
use crate::instance::Instance;

/// The services of a namespace are a part.
fn part_of(instance: &Instance) -> String {
    format!("{}/{}", instance.namespace, instance.service)
}

/// An id without what makes it one of the whole mesh (`@SERVICE`), or of those of another (`@ORIGIN`).
fn stem(id: &str) -> &str {
    id.split_once('@').map_or(id, |(stem, _)| stem)
}

/// What each key says, by the part that it says it of.
pub(super) struct Keys {
    pub(super) parts: Parts,
    /// What services are called here, by what they are called there.
    names: BTreeMap<String, String>,
    by_key: BTreeMap<String, String>,
    by_part: BTreeMap<String, BTreeMap<String, Said>>,
    /// What was known before this start and no key has said since.
    recalled: BTreeMap<String, BTreeMap<String, Arc<Instance>>>,
    /// Keys that cannot be read, of which nobody knows what they said.
    unknown: BTreeSet<String>,
    /// Paths below which nothing can be read.
    hidden: BTreeSet<String>,
    /// One of these has changed.
    doubt: bool,
    /// Instances that were said to have gone, by their part, until that is said on.
    ended: BTreeMap<String, BTreeSet<String>>,
}

/// What a part has now.
pub(super) type Left = (String, Vec<Item>);

impl Keys {
    pub(super) fn new(hold: Duration, names: BTreeMap<String, String>) -> Self {
        Self {
            parts: Parts::new(hold),
            names,
            by_key: BTreeMap::new(),
            by_part: BTreeMap::new(),
            recalled: BTreeMap::new(),
            unknown: BTreeSet::new(),
            hidden: BTreeSet::new(),
            doubt: false,
            ended: BTreeMap::new(),
        }
    }

    /// What they said before this start.
    pub(super) fn recall(&mut self, said: &BTreeMap<String, Vec<Item>>) {
        self.parts.recall(said);
        self.doubt = true;
        for (part, items) in said {
            let instances = items.iter().filter_map(|item| match item {
                Item::Instance(instance) => Some((instance.id.clone(), instance.clone())),
                Item::Rule(_) => None,
            });
            self.recalled.insert(part.clone(), instances.collect());
        }
    }

    /// All keys that say something.
    pub(super) fn names(&self) -> impl Iterator<Item = &String> {
        self.by_key.keys()
    }

    /// All parts, also those of which only what is held is left.
    pub(super) fn all_parts(&self) -> BTreeSet<String> {
        self.by_part.keys().chain(self.parts.names()).cloned().collect()
    }

    /// A key has this value, or is gone. Notes whose part that changes.
    pub(super) fn put(&mut self, key: &str, said: Option<Said>, touched: &mut BTreeSet<String>) {
        let old = self.by_key.remove(key);
        let before = old.as_ref().and_then(|part| self.by_part.get_mut(part)?.remove(key));
        let was_unknown = self.unknown.remove(key);
        self.doubt |= was_unknown;
        touched.extend(old.clone());
        let (part, said) = match (said, before) {
            (None | Some(Said::Nobody), _) => return,
            (Some(Said::Instance(id, instance)), _) => {
                let part = part_of(&instance);
                if let Some(ended) = self.ended.get_mut(&part) {
                    ended.remove(&id);
                }
                if let Some(recalled) = self.recalled.get_mut(&part) {
                    recalled.remove(&id);
                }
                (part, Said::Instance(id, instance))
            }
            // Who cannot be read now stays what it was.
            (Some(Said::Wrong(_, why)), before) => {
                let id = match before {
                    Some(Said::Instance(id, _)) => Some(id),
                    Some(Said::Wrong(id, _)) => id,
                    _ => None,
                };
                if was_unknown || id.is_none() {
                    self.unknown.insert(key.to_owned());
                    self.doubt = true;
                }
                let unknown = || key.rsplit('/').nth(1).unwrap_or_default().to_owned();
                (old.unwrap_or_else(unknown), Said::Wrong(Some(id.unwrap_or_default()), why))
            }
        };
        self.by_key.insert(key.to_owned(), part.clone());
        self.by_part.entry(part.clone()).or_default().insert(key.to_owned(), said);
        touched.insert(part);
    }

    /// It is said of a key that it is gone, and what it said last: that is more than that it is missing.
    pub(super) fn end(&mut self, key: &str, last: Said, touched: &mut BTreeSet<String>) {
        let known = self.by_key.get(key).and_then(|part| self.by_part.get(part)?.get(key)).cloned();
        for said in known.into_iter().chain([last]) {
            if let Said::Instance(id, instance) = said {
                let part = part_of(&instance);
                touched.insert(part.clone());
                self.ended.entry(part).or_default().insert(id);
            }
        }
        self.put(key, None, touched);
    }

    /// Below these paths, and only these, nothing can be read.
    pub(super) fn hide(&mut self, paths: &BTreeSet<String>) {
        if self.hidden != *paths {
            self.hidden.clone_from(paths);
            self.doubt = true;
        }
    }

    /// What the parts have now that something of theirs has changed.
    pub(super) fn settle(
        &mut self,
        mut touched: BTreeSet<String>,
        recovering: bool,
        now: Instant,
    ) -> Vec<Left> {
        touched.extend(self.forget());
        let missing = if recovering { Missing::Lost } else { Missing::Gone };
        self.by_part.retain(|_, keys| !keys.is_empty());
        let mut less = Vec::new();
        let (mut gone, ended) = (false, std::mem::take(&mut self.ended));
        for part in touched {
            let keys = self.by_part.get(&part).into_iter().flat_map(BTreeMap::values).cloned();
            let recalled = self.recalled.get(&part).into_iter().flatten();
            let recalled = recalled.map(|(id, instance)| Said::Instance(id.clone(), instance.clone()));
            let mut said = keys.chain(recalled).peekable();
            // All of a service are as likely to be lost.
            if said.peek().is_some() {
                ended.get(&part).into_iter().flatten().for_each(|id| self.parts.end(&part, id));
                less.push((part.clone(), self.parts.part(&part, said, missing, now)));
            } else {
                gone = true;
            }
        }
        if gone {
            let listed = self.by_part.keys().chain(self.recalled.keys()).cloned().collect();
            less.extend(self.parts.list(&listed, false, recovering, now));
        }
        less
    }

    /// Forgets what was known before this start, but for what a key may be that cannot be read. Yields the parts of which it forgot something.
    fn forget(&mut self) -> Vec<String> {
        if !std::mem::take(&mut self.doubt) || self.recalled.is_empty() {
            return Vec::new();
        }
        let stays = self.hinted();
        let mut forgot = Vec::new();
        self.recalled.retain(|part, instances| {
            let before = instances.len();
            let stay = stays.get(part);
            instances.retain(|id, _| stay.is_some_and(|ids| ids.contains(id)));
            if instances.len() < before {
                forgot.push(part.clone());
            }
            !instances.is_empty()
        });
        forgot
    }

    /// Of what was known before, what keys may be that cannot be read, by their paths: the part, and which of it.
    fn hinted(&self) -> BTreeMap<String, BTreeSet<String>> {
        let known = Known::of(&self.recalled);
        let (mut hinted, mut whole) = (BTreeMap::<String, BTreeSet<String>>::new(), BTreeSet::new());
        for path in self.unknown.iter().chain(&self.hidden) {
            let steps: Vec<&str> = path.split('/').filter(|step| !step.is_empty()).collect();
            let last = steps.last().copied().unwrap_or_default();
            let called = |step: &&str| label(self.names.get(*step).map_or(*step, String::as_str));
            let services = steps.iter().filter_map(|step| known.services.get(&called(step)));
            let mut of: Vec<(&str, &String)> = services.flatten().copied().collect();
            // Our own layout says the namespace, too.
            if of.iter().any(|(namespace, _)| steps.contains(namespace)) {
                of.retain(|(namespace, _)| steps.contains(namespace));
            }
            let below = known.namespaces.get(last).filter(|_| self.hidden.contains(path));
            let below = below.into_iter().flatten().copied();
            for part in of.into_iter().map(|(_, part)| part).chain(below) {
                match known.stems.get(&(part.as_str(), stem(last))) {
                    Some(same) => {
                        hinted.entry(part.clone()).or_default().extend(same.iter().map(|id| (*id).clone()));
                    }
                    None => drop(whole.insert(part)),
                }
            }
        }
        for part in whole {
            hinted.insert(part.clone(), self.recalled[part].keys().cloned().collect());
        }
        hinted
    }
}

/// What was known, by what a path may say of it.
#[derive(Default)]
struct Known<'a> {
    /// Namespace and part.
    services: BTreeMap<String, Vec<(&'a str, &'a String)>>,
    namespaces: BTreeMap<&'a str, Vec<&'a String>>,
    stems: BTreeMap<(&'a str, &'a str), Vec<&'a String>>,
}

impl<'a> Known<'a> {
    fn of(parts: &'a BTreeMap<String, BTreeMap<String, Arc<Instance>>>) -> Self {
        let mut known = Self::default();
        for (part, instances) in parts {
            let (namespace, service) = part.split_once('/').unwrap_or(("", part));
            known.services.entry(service.to_owned()).or_default().push((namespace, part));
            known.namespaces.entry(namespace).or_default().push(part);
            for id in instances.keys() {
                known.stems.entry((part, stem(id))).or_default().push(id);
            }
        }
        known
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::instance::{Protocol, sample};

    fn recalled(parts: &[(&str, &[&str])]) -> Keys {
        let names = BTreeMap::from([("com.acme.Stock".to_owned(), "stock".to_owned())]);
        let mut keys = Keys::new(Duration::from_secs(60), names);
        let of = |part: &str, id: &str| {
            let (namespace, service) = part.split_once('/').unwrap();
            let one = sample(id, service, "v1", "127.0.0.5", 80, Protocol::Http);
            Item::Instance(Arc::new(Instance { namespace: namespace.to_owned(), ..one }))
        };
        let said = parts
            .iter()
            .map(|(part, ids)| ((*part).to_owned(), ids.iter().map(|id| of(part, id)).collect::<Vec<_>>()));
        keys.recall(&said.collect());
        keys
    }

    fn instance(part: &str, id: &str) -> Said {
        let (namespace, service) = part.split_once('/').unwrap();
        let one = sample(id, service, "v1", "127.0.0.5", 80, Protocol::Http);
        Said::Instance(id.to_owned(), Arc::new(Instance { namespace: namespace.to_owned(), ..one }))
    }

    fn ids(left: Vec<Left>) -> BTreeMap<String, Vec<String>> {
        let id = |item: Item| match item {
            Item::Instance(instance) => instance.id.clone(),
            Item::Rule(_) => unreachable!(),
        };
        left.into_iter().map(|(part, items)| (part, items.into_iter().map(id).collect())).collect()
    }

    /// All of it has been listed once: these keys are there, these cannot be read.
    fn listed(keys: &mut Keys, good: &[(&str, &str, &str)], bad: &[&str]) -> BTreeMap<String, Vec<String>> {
        let mut touched = keys.all_parts();
        for (key, part, id) in good {
            keys.put(key, Some(instance(part, id)), &mut touched);
        }
        for key in bad {
            keys.put(key, Some(Said::Wrong(None, "rubbish".into())), &mut touched);
        }
        ids(keys.settle(touched, false, Instant::now()))
    }

    fn all(parts: &[(&str, &[&str])]) -> BTreeMap<String, Vec<String>> {
        let owned = |ids: &[&str]| ids.iter().map(|id| (*id).to_owned()).collect();
        parts.iter().map(|(part, ids)| ((*part).to_owned(), owned(ids))).collect()
    }

    #[tokio::test]
    async fn what_a_bad_key_was_before_the_start_stays_until_it_is_good_or_gone() {
        let before: &[(&str, &[&str])] =
            &[("shop/web", &["w1", "w2", "w3"]), ("test/web", &["w1"]), ("shop/db", &["d1"])];
        let mut keys = recalled(before);
        let good = [("/i/shop/web/w2", "shop/web", "w2"), ("/i/shop/db/d1", "shop/db", "d1")];
        let said = listed(&mut keys, &good, &["/i/shop/web/w1@other"]);
        // w3 has gone, as has all of another namespace.
        let left = all(&[("shop/web", &["w1", "w2"]), ("shop/db", &["d1"]), ("test/web", &[]), ("web", &[])]);
        assert_eq!(said, left);
        assert!(keys.parts.problems().any(|problem| problem.to_string().contains("rubbish")));
        // It is bad in another way, and then good.
        let mut touched = BTreeSet::new();
        keys.put("/i/shop/web/w1@other", Some(Said::Wrong(None, "worse".into())), &mut touched);
        assert_eq!(ids(keys.settle(touched, false, Instant::now())), all(&[("web", &[])]));
        let mut touched = BTreeSet::new();
        keys.put("/i/shop/web/w1@other", Some(instance("shop/web", "w1")), &mut touched);
        let said = ids(keys.settle(touched, false, Instant::now()));
        assert_eq!(said.get("shop/web"), Some(&vec!["w1".to_owned(), "w2".to_owned()]));
        assert!(keys.recalled.is_empty() && keys.unknown.is_empty());
        let mut touched = BTreeSet::new();
        keys.put("/i/shop/web/w1@other", None, &mut touched);
        let said = ids(keys.settle(touched, false, Instant::now()));
        assert_eq!(said, all(&[("shop/web", &["w2"])]), "now it is known who it is");
    }

    #[tokio::test]
    async fn a_bad_key_of_nobody_known_may_be_any_of_its_service_and_a_deleted_one_is_nobody() {
        let mut keys = recalled(&[("default/stock", &["10.0.0.1:80@stock", "10.0.0.2:80@stock"])]);
        let bad = "/dubbo/com.acme.Stock/providers/tri%3A";
        let both: &[&str] = &["10.0.0.1:80@stock", "10.0.0.2:80@stock"];
        let said = listed(&mut keys, &[], &[bad]);
        assert_eq!(said, all(&[("default/stock", both), ("providers", &[])]));
        let mut touched = BTreeSet::new();
        keys.put(bad, None, &mut touched);
        keys.put("/k", Some(instance("default/other", "o1")), &mut touched);
        let said = ids(keys.settle(touched, false, Instant::now()));
        assert_eq!(said.get("default/stock"), Some(&Vec::new()));
        assert_eq!((keys.parts.held_in("default/stock"), keys.recalled.len()), (0, 0));
    }

    #[tokio::test]
    async fn an_application_in_capitals_is_the_service_that_it_is_here() {
        let before: &[(&str, &[&str])] =
            &[("shop/cart-api", &["h1:cart:80@cart-api", "h2:cart:80@cart-api"])];
        let mut keys = recalled(before);
        let said = listed(&mut keys, &[], &["CART_API/h2:cart:80"]);
        assert_eq!(said.get("shop/cart-api"), Some(&vec!["h2:cart:80@cart-api".to_owned()]));
    }

    #[tokio::test]
    async fn what_is_below_a_hidden_path_stays_until_it_is_seen() {
        let mut keys = recalled(&[("shop/web", &["w1"]), ("shop/db", &["d1"]), ("far/api", &["a1"])]);
        let (service, namespace) = ("/services/shop/web".to_owned(), "/services/far".to_owned());
        keys.hide(&BTreeSet::from([service.clone(), namespace]));
        let said = listed(&mut keys, &[("/services/shop/db/d1", "shop/db", "d1")], &[]);
        assert_eq!(said, all(&[("shop/web", &["w1"]), ("shop/db", &["d1"]), ("far/api", &["a1"])]));
        // One may be read again: nothing is there any more.
        keys.hide(&BTreeSet::from([service]));
        assert_eq!(ids(keys.settle(BTreeSet::new(), false, Instant::now())), all(&[("far/api", &[])]));
    }
}
