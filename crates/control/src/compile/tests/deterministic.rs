//! Compiling is deterministic: of whatever rules come together, two worlds say the same, in whatever order the rules were told.
//!
//! The rules are the examples of `fields.yaml`, some at a time, and of many of them a field has another value.

use std::collections::{BTreeMap, BTreeSet};

use fastrand::Rng;
use outrigger_rules::{Object, parse};
use serde_json::Value;

use super::fields::{Example, examples, file, instances, others, picture, settings};
use super::*;

const SEED: u64 = 0x7374_6561_6479;
const SETS: usize = 40;
/// Examples of one set.
const MOST: usize = 12;

/// Where texts, numbers and booleans stand.
fn leaves(value: &Value, at: &str, found: &mut Vec<String>) {
    match value {
        Value::Object(map) => {
            map.iter().for_each(|(key, value)| leaves(value, &format!("{at}/{key}"), found));
        }
        Value::Array(items) => {
            items.iter().enumerate().for_each(|(n, item)| leaves(item, &format!("{at}/{n}"), found));
        }
        _ => found.push(at.to_owned()),
    }
}

/// The object, or one like it that is accepted, too.
fn varied(rng: &mut Rng, object: &Value) -> Value {
    let mut all = Vec::new();
    leaves(object.get("spec").unwrap_or(&Value::Null), "/spec", &mut all);
    // Names with a slash or a tilde are written otherwise in a pointer, and left alone.
    all.retain(|at| object.pointer(at).is_some());
    for _ in 0..8 {
        let Some(at) = rng.choice(&all) else { break };
        let Some(other) = object.pointer(at).and_then(|value| rng.choice(others(value))) else { continue };
        let mut changed = object.clone();
        if let Some(place) = changed.pointer_mut(at) {
            *place = other;
        }
        if !parse("varied", &changed.to_string()).has_errors() {
            return changed;
        }
    }
    object.clone()
}

/// Rules of some examples, each object once.
fn rules(rng: &mut Rng, examples: &[Example]) -> Vec<Object> {
    let (mut names, mut all) = (BTreeSet::new(), Vec::new());
    for _ in 0..MOST {
        let example = &examples[rng.usize(..examples.len())];
        let object = if rng.bool() { varied(rng, &example.object) } else { example.object.clone() };
        for value in std::iter::once(&object).chain(&example.company) {
            let parsed = parse("set", &value.to_string());
            if !parsed.has_errors() {
                all.extend(parsed.objects.into_iter().filter(|object| names.insert(object.id())));
            }
        }
    }
    all
}

fn said<'o>(objects: impl Iterator<Item = &'o Object>) -> BTreeMap<String, String> {
    let intents: Vec<_> = objects.flat_map(|object| object.intents.clone()).collect();
    picture(&Arc::new(World::new(7, settings(), instances().into_iter().map(Arc::new), intents)))
}

fn assert_alike(one: &BTreeMap<String, String>, other: &BTreeMap<String, String>, what: &str) {
    for name in one.keys().chain(other.keys()) {
        assert_eq!(one.get(name), other.get(name), "{name}, {what}");
    }
}

#[test]
fn the_same_rules_are_compiled_to_the_same_in_whatever_order() {
    let mut rng = Rng::with_seed(SEED);
    let examples = examples(&file());
    let mut together = 0;
    for set in 0..SETS {
        let objects = rules(&mut rng, &examples);
        together += objects.len();
        let names: Vec<String> = objects.iter().map(Object::id).collect();
        let (first, second) = (said(objects.iter()), said(objects.iter()));
        assert_alike(&first, &second, &format!("set {set}, twice: {names:?}"));
        let mut order: Vec<&Object> = objects.iter().collect();
        rng.shuffle(&mut order);
        let shuffled = said(order.into_iter());
        assert_alike(&first, &shuffled, &format!("set {set}, in another order: {names:?}"));
    }
    assert!(together >= SETS * 3, "only {together} objects in {SETS} sets");
}
