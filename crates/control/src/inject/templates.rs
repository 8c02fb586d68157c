//! Templates of an operator: parts of a Pod that are laid over those that get a sidecar and name them, or over all. As `kubectl apply` merges:
//! mappings field by field, lists whose items have names item by item, everything else as a whole; null takes a field out.
//!
//! Whatever they change is told in the annotation that says what was injected, so that it can be taken back; what somebody has edited since stays.

use std::collections::BTreeMap;

use anyhow::{bail, ensure};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{Fields, INIT, InjectError, PLACES, SIDECAR, STATUS, VALIDATION, fields, list};

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
                ("spec", Value::Object(_)) => is_laid(value, &at, "", 0)?,
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
        }
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

/// Lays them over a Pod that has its sidecar. Says what has changed.
pub(super) fn lay(pod: &mut Value, templates: &[&Fields]) -> Result<Vec<Change>, InjectError> {
    let mut changes = Vec::new();
    for template in templates {
        let template = with_sidecar_where_it_is(pod, template);
        make_room(pod, &template)?;
        merge(pod, &template, "", &mut Vec::new(), &mut changes)?;
    }
    // What is ours goes as a whole.
    changes.retain(|change| {
        let of_list = change.at.first().is_some_and(|part| part == "spec");
        !(of_list && change.at.get(2).is_some_and(|item| item == SIDECAR))
    });
    Ok(changes)
}

/// Makes mappings and lists that are not there, and that go again when nothing is left in them: others may put something there, too.
fn make_room(pod: &mut Value, template: &Value) -> Result<(), InjectError> {
    for (part, field) in PLACES {
        match &template[part][field] {
            Value::Object(_) => {
                fields(pod, part)?;
                fields(&mut pod[part], field)?;
            }
            Value::Array(_) => {
                list(fields(pod, part)?, field)?;
            }
            _ => {}
        }
    }
    Ok(())
}

/// The sidecar is one of the init containers, or of the others: where it is, that its template does not know.
fn with_sidecar_where_it_is(pod: &Value, template: &Fields) -> Value {
    let mut template = Value::Object(template.clone());
    let (native, plain) = ("initContainers", "containers");
    let is_it = |one: &Value| one["name"] == SIDECAR;
    let is_native = pod["spec"][native].as_array().is_some_and(|all| all.iter().any(is_it));
    let (from, to) = if is_native { (plain, native) } else { (native, plain) };
    let Some(spec) = template.get_mut("spec").and_then(Value::as_object_mut) else { return template };
    let moved: Vec<Value> = match spec.get_mut(from).and_then(Value::as_array_mut) {
        Some(all) => all.extract_if(.., |one| is_it(one)).collect(),
        None => Vec::new(),
    };
    if !moved.is_empty() {
        let all = spec.entry(to).or_insert_with(|| Value::Array(Vec::new()));
        all.as_array_mut().into_iter().for_each(|all| all.extend(moved.iter().cloned()));
    }
    template
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

fn malformed(at: &[String], wanted: &'static str) -> InjectError {
    InjectError::Malformed(at.join("."), wanted)
}

/// Whether one of these templates changes that: the annotation that says so is in the hands of the Pod's author.
pub(super) fn could_be(change: &Change, templates: &BTreeMap<String, Fields>) -> bool {
    templates.values().any(|template| {
        let Some((first, more)) = change.at.split_first() else { return false };
        let (mut field, mut place) = (first.as_str(), template.get(first));
        for word in more {
            place = match place {
                Some(Value::Object(fields)) => fields.get(word),
                Some(Value::Array(items)) => key_of(field)
                    .and_then(|key| items.iter().find(|item| known_by(item, key).as_deref() == Some(word))),
                _ => None,
            };
            field = word;
        }
        place.is_some()
    })
}

/// Takes back what was changed, the last first.
pub(super) fn undo(pod: &mut Value, changes: &[Change]) {
    for change in changes.iter().rev() {
        let Some((last, above)) = change.at.split_last() else { continue };
        let mut field = "";
        let mut place = Some(&mut *pod);
        for word in above {
            place = place.and_then(|place| below(place, field, word));
            field = word;
        }
        match place {
            Some(Value::Object(fields)) => take_back(fields, last, change),
            Some(Value::Array(items)) => {
                if let (Some(key), None) = (key_of(field), &change.was) {
                    items.retain(|item| known_by(item, key).as_ref() != Some(last));
                }
            }
            _ => {}
        }
    }
}

fn take_back(fields: &mut Fields, name: &str, change: &Change) {
    match (&change.was, &change.is) {
        (None, _) => drop(fields.remove(name)),
        (Some(was), Some(is)) => {
            // What was edited since is somebody's will.
            if let Some(now) = fields.get_mut(name).filter(|now| *now == is) {
                now.clone_from(was);
            }
        }
        (Some(was), None) => drop(fields.entry(name).or_insert_with(|| was.clone())),
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
