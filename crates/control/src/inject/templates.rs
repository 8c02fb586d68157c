//! Templates of an operator: parts of a Pod that are laid over those that get a sidecar and name them, or over all. As `kubectl apply` merges:
//! mappings field by field, lists whose items have names item by item, everything else as a whole; null takes a field out.
//!
//! Whatever they change is told in the annotation that says what was injected, so that it can be taken back: what they have added goes, and what
//! they have put in place of something else makes room for it, unless somebody has edited it since.

use std::borrow::Cow;
use std::collections::BTreeMap;

use anyhow::{bail, ensure};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{Fields, INIT, InjectError, PLACES, SIDECAR, STATUS, VALIDATION, fields, impossible, list};

mod told;

pub(super) use told::told;

/// By which a Pod names its own, the first that is there.
pub(super) const NAMED: [&str; 2] = ["outrigger.io/templates", "inject.istio.io/templates"];
/// Istio's name for the sidecar itself, which is always there.
const OWN: &str = "sidecar";
/// Templates, bytes of each, and names in an annotation.
const MOST: usize = 16;
const MOST_BYTES: usize = 64 << 10;
/// How deep a template goes. A Pod is not as deep.
const DEEPEST: usize = 32;

/// Lists whose items are merged, and what these are known by.
const KEYS: [(&str, &str); 10] = [
    ("containers", "name"),
    ("initContainers", "name"),
    ("volumes", "name"),
    ("imagePullSecrets", "name"),
    ("env", "name"),
    ("volumeMounts", "mountPath"),
    ("volumeDevices", "devicePath"),
    ("ports", "containerPort"),
    ("hostAliases", "ip"),
    ("topologySpreadConstraints", "topologyKey"),
];

/// Of those where something of ours stands.
const SHARED: [&str; 4] = ["containers", "initContainers", "volumes", "imagePullSecrets"];

/// One thing that was changed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Change {
    /// Fields, and keys of items, from the top of the Pod.
    at: Vec<String>,
    /// What stood there; none: nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    was: Option<Value>,
    /// What stands there instead; none: nothing, or something that is taken out whatever has become of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    is: Option<Value>,
}

/// What cannot be a template.
///
/// # Errors
/// Names it, and what of it.
pub(super) fn validate(templates: &BTreeMap<String, Fields>, default: &[String]) -> anyhow::Result<()> {
    ensure!(templates.len() <= MOST, "templates: {} are more than {MOST}", templates.len());
    for (name, template) in templates {
        ensure!(
            !name.is_empty() && name != OWN && !name.contains([',', ' ']),
            "templates: \"{name}\" is no name of a template; `{OWN}` is the sidecar itself"
        );
        let bytes = serde_json::to_string(template)?.len();
        ensure!(bytes <= MOST_BYTES, "templates.{name}: {bytes} bytes are more than {MOST_BYTES}");
        for (part, value) in template {
            let at = format!("templates.{name}.{part}");
            match (part.as_str(), value) {
                ("spec", Value::Object(_)) => {
                    is_laid(value, &at, "", 0)?;
                    leaves_room(value, &at)?;
                }
                ("metadata", Value::Object(metadata)) => marks(metadata, &at)?,
                ("spec" | "metadata", _) => bail!("{at}: is no mapping"),
                _ => {
                    bail!("{at}: a template has metadata (labels and annotations) and spec, and nothing else")
                }
            }
        }
    }
    if let Some(unknown) = default.iter().find(|name| *name != OWN && !templates.contains_key(*name)) {
        bail!("defaultTemplates: there is no template \"{unknown}\" in templates");
    }
    Ok(())
}

fn marks(metadata: &Fields, at: &str) -> anyhow::Result<()> {
    for (field, all) in metadata {
        let all = all.as_object().filter(|_| matches!(field.as_str(), "labels" | "annotations"));
        let Some(all) = all else {
            bail!("{at}.{field}: only the mappings labels and annotations can be laid over")
        };
        for (key, value) in all {
            ensure!(value.is_string() || value.is_null(), "{at}.{field}.{key}: {value} is no text");
            ensure!(key != STATUS, "{at}.{field}.{key}: says what was injected, and is not a template's");
            ensure!(
                field != "annotations" || !NAMED.contains(&key.as_str()),
                "{at}.{field}.{key}: names the templates of a Pod, and is its author's"
            );
        }
    }
    Ok(())
}

/// Whether a Pod with this can have its sidecar still, and is one.
fn leaves_room(spec: &Value, at: &str) -> anyhow::Result<()> {
    ensure!(
        matches!(spec["hostNetwork"], Value::Null | Value::Bool(_)),
        "{at}.hostNetwork: {} is neither true nor false",
        spec["hostNetwork"]
    );
    if let Some(why) = impossible(spec) {
        bail!("{at}: with this there can be no sidecar: {why}");
    }
    are_lists(spec, at)?;
    for list in ["containers", "initContainers"] {
        for (n, container) in spec[list].as_array().into_iter().flatten().enumerate() {
            let at = format!("{at}.{list}[{n}]");
            are_lists(container, &at)?;
            if let Some(sidecar) = container.as_object().filter(|_| container["name"] == SIDECAR) {
                super::needs::kept(sidecar, &at)?;
            }
        }
    }
    Ok(())
}

/// Whether what has to be a list is one, or is taken out where nothing of ours stands in it.
fn are_lists(of: &Value, at: &str) -> anyhow::Result<()> {
    for (name, value) in of.as_object().into_iter().flatten().filter(|(name, _)| key_of(name).is_some()) {
        let is_shared = SHARED.contains(&name.as_str());
        ensure!(
            !(is_shared && value.is_null()),
            "{at}.{name}: null would take out what the sidecar needs there; name what is to be laid over"
        );
        ensure!(value.is_array() || value.is_null(), "{at}.{name}: is no list");
    }
    Ok(())
}

/// Whether it can be merged.
fn is_laid(value: &Value, at: &str, field: &str, depth: usize) -> anyhow::Result<()> {
    ensure!(depth < DEEPEST, "{at}: is deeper than {DEEPEST}");
    match value {
        Value::Object(fields) => {
            for (name, below) in fields {
                ensure!(
                    !name.starts_with('$'),
                    "{at}.{name}: directives of patches are not known here; null takes a field out"
                );
                is_laid(below, &format!("{at}.{name}"), name, depth + 1)?;
            }
        }
        Value::Array(items) => {
            for (n, item) in items.iter().enumerate() {
                let at = format!("{at}[{n}]");
                if let Some(key) = key_of(field) {
                    let Some(known) = known_by(item, key) else {
                        bail!("{at}: needs its {key}, by which it is known")
                    };
                    let is_ours = field == "containers" || field == "initContainers";
                    ensure!(
                        !(is_ours && [INIT, VALIDATION].contains(&known.as_str())),
                        "{at}: {known} has a privilege, or stands for it, and is not a template's"
                    );
                }
                is_laid(item, &at, "", depth + 1)?;
            }
        }
        _ => {}
    }
    Ok(())
}

/// Those that a Pod names, or else those of all, in their order.
pub(super) fn chosen<'s>(
    annotations: Option<&Fields>,
    (templates, default): (&'s BTreeMap<String, Fields>, &[String]),
) -> Result<Vec<&'s Fields>, InjectError> {
    let named = NAMED.iter().find_map(|key| Some((*key, annotations?.get(*key)?.as_str()?)));
    let Some((key, text)) = named else {
        return Ok(default.iter().filter_map(|name| templates.get(name)).collect());
    };
    let names = text.split(',').map(str::trim).filter(|name| !name.is_empty() && *name != OWN);
    let mut all = Vec::new();
    for name in names {
        let Some(template) = templates.get(name).filter(|_| all.len() < MOST) else {
            let known: Vec<&str> = [OWN].into_iter().chain(templates.keys().map(String::as_str)).collect();
            return Err(InjectError::Annotation {
                name: key.to_owned(),
                value: text.chars().take(256).collect(),
                wanted: format!(
                    "a list of at most {MOST} of {} (templates of the injector's settings)",
                    known.join(", ")
                ),
            });
        };
        all.push(template);
    }
    Ok(all)
}

/// Lays them over a Pod that has its sidecar. Says what has changed, and what stays changed (`undo`).
pub(super) fn lay(
    pod: &mut Value,
    templates: &[&Fields],
    stays: Vec<Change>,
) -> Result<Vec<Change>, InjectError> {
    let mut changes = Vec::new();
    for template in templates {
        let template = with_sidecar_where_it_is(pod, template);
        make_room(pod, &template)?;
        if let Value::Object(pod) = &mut *pod {
            merge_fields(pod, &template, &mut Vec::new(), &mut changes)?;
        }
    }
    changes.retain(|change| {
        let of_list = change.at.first().is_some_and(|part| part == "spec");
        // What is ours goes as a whole, and so does what was added.
        let is_ours = of_list && change.at.get(2).is_some_and(|item| item == SIDECAR);
        !(is_ours || stays.iter().any(|whole| change.at.starts_with(&whole.at)))
    });
    Ok(stays.into_iter().chain(changes).collect())
}

/// Makes mappings and lists that are not there, and that go again when nothing is left in them: others may put something there, too.
fn make_room(pod: &mut Value, template: &Fields) -> Result<(), InjectError> {
    for part in template.keys() {
        fields(pod, part)?;
    }
    for (part, field) in PLACES {
        match template.get(part).and_then(|part| part.get(field)) {
            Some(Value::Object(_)) => {
                fields(&mut pod[part], field)?;
            }
            Some(Value::Array(_)) => {
                list(fields(pod, part)?, field)?;
            }
            _ => {}
        }
    }
    Ok(())
}

/// The sidecar is one of the init containers, or of the others: where it is, that its template does not know.
fn with_sidecar_where_it_is<'t>(pod: &Value, template: &'t Fields) -> Cow<'t, Fields> {
    let (native, plain) = ("initContainers", "containers");
    let is_it = |one: &Value| one["name"] == SIDECAR;
    let has = |list: Option<&Value>| list.and_then(Value::as_array).is_some_and(|all| all.iter().any(is_it));
    let (from, to) = if has(pod["spec"].get(native)) { (plain, native) } else { (native, plain) };
    if !has(template.get("spec").and_then(|spec| spec.get(from))) {
        return Cow::Borrowed(template);
    }
    let mut template = template.clone();
    if let Some(spec) = template.get_mut("spec").and_then(Value::as_object_mut) {
        let moved: Vec<Value> = match spec.get_mut(from).and_then(Value::as_array_mut) {
            Some(all) => all.extract_if(.., |one| is_it(one)).collect(),
            None => Vec::new(),
        };
        let all = spec.entry(to).or_insert_with(|| Value::Array(Vec::new()));
        all.as_array_mut().into_iter().for_each(|all| all.extend(moved.iter().cloned()));
    }
    Cow::Owned(template)
}

fn key_of(field: &str) -> Option<&'static str> {
    KEYS.iter().find(|(list, _)| *list == field).map(|(_, key)| *key)
}

fn known_by(item: &Value, key: &str) -> Option<String> {
    match &item[key] {
        Value::String(text) if !text.is_empty() => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        _ => None,
    }
}

fn merge(
    target: &mut Value,
    over: &Value,
    field: &str,
    at: &mut Vec<String>,
    changes: &mut Vec<Change>,
) -> Result<(), InjectError> {
    match (over, key_of(field)) {
        (Value::Object(over), _) => {
            let Value::Object(fields) = target else { return Err(malformed(at, "mapping")) };
            merge_fields(fields, over, at, changes)?;
        }
        (Value::Array(over), Some(key)) => {
            let Value::Array(items) = target else { return Err(malformed(at, "list")) };
            for over in over {
                let Some(known) = known_by(over, key) else { continue };
                at.push(known.clone());
                match items.iter_mut().find(|item| known_by(item, key).as_ref() == Some(&known)) {
                    Some(item) => merge(item, over, "", at, changes)?,
                    None => {
                        items.push(over.clone());
                        changes.push(Change { at: at.clone(), was: None, is: None });
                    }
                }
                at.pop();
            }
        }
        _ if target == over => {}
        _ => {
            let was = std::mem::replace(target, over.clone());
            changes.push(Change { at: at.clone(), was: Some(was), is: Some(over.clone()) });
        }
    }
    Ok(())
}

fn merge_fields(
    fields: &mut Fields,
    over: &Fields,
    at: &mut Vec<String>,
    changes: &mut Vec<Change>,
) -> Result<(), InjectError> {
    for (name, over) in over {
        at.push(name.clone());
        match fields.get_mut(name) {
            _ if over.is_null() => {
                if let Some(was) = fields.remove(name) {
                    changes.push(Change { at: at.clone(), was: Some(was), is: None });
                }
            }
            Some(target) if !target.is_null() => merge(target, over, name, at, changes)?,
            _ => {
                fields.insert(name.clone(), over.clone());
                changes.push(Change { at: at.clone(), was: None, is: None });
            }
        }
        at.pop();
    }
    Ok(())
}

fn malformed(at: &[String], wanted: &'static str) -> InjectError {
    InjectError::Malformed(at.join("."), wanted)
}

/// Takes back what was changed, the last first. The annotation that says what that was is in the hands of the Pod's author: where others have
/// changed the Pod since, only that is taken back which these templates will lay again, whatever was said. What they have added to, and others too,
/// stays with what is the others'; it is handed back, for it is not the Pod's own.
pub(super) fn undo(pod: &mut Value, changes: &[Change], templates: Option<&[&Fields]>) -> Vec<Change> {
    let mut stays = Vec::new();
    let mut turns: BTreeMap<&[String], usize> = BTreeMap::new();
    for change in changes.iter().rev() {
        let Some(templates) = templates else {
            undo_one(pod, change, None);
            continue;
        };
        let turn = turns.entry(&change.at).or_default();
        *turn += 1;
        // Each of them changes a thing once: what says more has us work for nothing.
        if *turn > templates.len() {
            continue;
        }
        let mut rests = false;
        for over in templates.iter().filter_map(|template| laid(template, change)) {
            rests = undo_one(pod, change, Some(over));
        }
        if rests {
            stays.push(Change { at: change.at.clone(), was: None, is: None });
        }
    }
    stays.sort_by(|one, other| one.at.cmp(&other.at));
    stays.dedup();
    stays
}

/// What a template lays there, if it makes such a change.
fn laid<'t>(template: &'t Fields, change: &Change) -> Option<&'t Value> {
    let (first, more) = change.at.split_first()?;
    // These are made without being told: they go when they are empty.
    let is_told = match more {
        [] => false,
        [field] => {
            let place = (first.as_str(), field.as_str());
            place != ("spec", "containers") && !PLACES.contains(&place)
        }
        _ => true,
    };
    let (mut field, mut over) = (first.as_str(), template.get(first).filter(|_| is_told)?);
    for word in more {
        over = match over {
            Value::Object(fields) => fields.get(word)?,
            Value::Array(items) => {
                let key = key_of(field)?;
                items.iter().find(|item| known_by(item, key).as_deref() == Some(word))?
            }
            _ => return None,
        };
        field = word;
    }
    let is_whole = !(over.is_object() || over.is_array() && key_of(field).is_some());
    let is_such = match (&change.was, &change.is) {
        (Some(_), Some(is)) => is_whole && is == over,
        (Some(_), None) => over.is_null(),
        (None, _) => !over.is_null(),
    };
    is_such.then_some(over)
}

/// Takes back one change: all that was added, or what of it a template has. Whether something of that is left.
fn undo_one(pod: &mut Value, change: &Change, over: Option<&Value>) -> bool {
    let Some((last, above)) = change.at.split_last() else { return false };
    let mut field = "";
    let mut place = Some(pod);
    for word in above {
        place = place.and_then(|place| below(place, field, word));
        field = word;
    }
    match place {
        Some(Value::Object(fields)) => take_back(fields, last, change, over),
        Some(Value::Array(items)) => {
            let (Some(key), None) = (key_of(field), &change.was) else { return false };
            let is_it = |item: &Value| known_by(item, key).as_ref() == Some(last);
            items.retain_mut(|item| {
                !(is_it(item) && over.is_none_or(|over| strip(item, over, "", Some(key))))
            });
            items.iter().any(is_it)
        }
        _ => false,
    }
}

fn take_back(fields: &mut Fields, name: &str, change: &Change, over: Option<&Value>) -> bool {
    match (&change.was, &change.is) {
        (None, _) => {
            let Some(now) = fields.get_mut(name) else { return false };
            let rests = over.is_some_and(|over| !strip(now, over, name, None));
            if !rests {
                fields.remove(name);
            }
            return rests;
        }
        (Some(was), Some(is)) => {
            // What was edited since is somebody's will.
            if let Some(now) = fields.get_mut(name).filter(|now| *now == is) {
                now.clone_from(was);
            }
        }
        (Some(was), None) => drop(fields.entry(name).or_insert_with(|| was.clone())),
    }
    false
}

/// Takes out of a value what a template has laid there, but for the key by which it is known. Whether nothing else is left.
fn strip(now: &mut Value, over: &Value, field: &str, known: Option<&str>) -> bool {
    match (now, over, key_of(field)) {
        (Value::Object(now), Value::Object(over), _) => {
            for (name, over) in over.iter().filter(|(name, _)| known != Some(name.as_str())) {
                if now.get_mut(name).is_some_and(|now| strip(now, over, name, None)) {
                    now.remove(name);
                }
            }
            now.keys().all(|name| known == Some(name.as_str()))
        }
        (Value::Array(now), Value::Array(over), Some(key)) => {
            for over in over {
                let Some(it) = known_by(over, key) else { continue };
                now.retain_mut(|item| {
                    known_by(item, key).as_ref() != Some(&it) || !strip(item, over, "", Some(key))
                });
            }
            now.is_empty()
        }
        (now, over, _) => *now == *over,
    }
}

fn below<'v>(place: &'v mut Value, field: &str, word: &str) -> Option<&'v mut Value> {
    match place {
        Value::Object(fields) => fields.get_mut(word),
        Value::Array(items) => {
            let key = key_of(field)?;
            items.iter_mut().find(|item| known_by(item, key).as_deref() == Some(word))
        }
        _ => None,
    }
}
