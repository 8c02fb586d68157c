//! What was injected, kept in an annotation of the Pod, so that it can be taken out again and nothing else.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::probes::{self, Originals};
use super::{
    CANONICAL_NAME, CANONICAL_REVISION, DEFAULT_CONTAINER, Fields, INIT, InjectError, InjectSettings, PLACES,
    REVISION, SECRETS, SIDECAR, STATUS, TLS_MODE, VALIDATION, bootstrap, containers, decision, fields, list,
    scrape, templates,
};

/// What was changed of the Pod's own.
pub(super) struct Changed {
    pub(super) probes: Originals,
    pub(super) templates: Vec<templates::Change>,
}

/// What the Pod's metadata get.
pub(super) struct Marks {
    /// Where there is none of the name.
    pub(super) labels: Vec<(&'static str, String)>,
    /// The same.
    pub(super) annotations: Vec<(&'static str, String)>,
    /// Annotations, whatever stood there.
    pub(super) instead: Vec<(&'static str, String)>,
}

/// Everything that a Pod had not. By name, since a Pod may have been edited since.
#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Status {
    version: String,
    revision: String,
    containers: Vec<String>,
    volumes: Vec<String>,
    labels: Vec<String>,
    annotations: Vec<String>,
    /// Lists and mappings that were not there at all.
    made: Vec<String>,
    /// Probes as they were.
    probes: Originals,
    /// Labels that said something else, as they were.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    replaced: BTreeMap<String, String>,
    /// Annotations of the same kind.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    replaced_annotations: BTreeMap<String, String>,
    /// What the operator's templates have changed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    templates: Vec<templates::Change>,
    /// Secrets by which images are pulled.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pull_secrets: Vec<String>,
}

/// What is put in, by name. The annotation is in the hands of the Pod's author: if it names more, what another webhook has put in
/// (a scanner, a policy's label) could be taken out by it.
const CONTAINERS: [&str; 3] = [INIT, VALIDATION, SIDECAR];
const VOLUMES: [&str; 2] = [containers::STATE_VOLUME, containers::TOKEN_VOLUME];
const LABELS: [&str; 4] = [TLS_MODE, CANONICAL_NAME, CANONICAL_REVISION, REVISION];

impl Status {
    /// What of it can be ours.
    fn read(text: &str) -> Result<Self, serde_json::Error> {
        let mut status: Self = serde_json::from_str(text)?;
        for (said, ours) in [
            (&mut status.containers, &CONTAINERS[..]),
            (&mut status.volumes, &VOLUMES),
            (&mut status.labels, &LABELS),
        ] {
            said.retain(|name| ours.contains(&name.as_str()));
        }
        status.annotations.retain(|name| name == DEFAULT_CONTAINER || scrape::ours(name).is_some());
        status.replaced.retain(|name, _| name == REVISION);
        Ok(status)
    }
}

/// Writes labels and annotations, and says what was done.
pub(super) fn describe(
    pod: &mut Value,
    before: &Value,
    mut marks: Marks,
    changed: Changed,
    settings: &InjectSettings,
) -> Result<(), InjectError> {
    let mut made: Vec<String> = Vec::new();
    if before.get("metadata").is_none() {
        made.push("metadata".to_owned());
    }
    let pull_secrets = secrets(pod, settings)?;
    let has_secrets = pod["spec"].get(SECRETS).is_some();
    let absent =
        |part: &str, field: &str| before[part].get(field).is_none() && (field != SECRETS || has_secrets);
    made.extend(
        PLACES.iter().filter(|(part, field)| absent(part, field)).map(|(_, field)| (*field).to_owned()),
    );
    let metadata = fields(pod, "metadata")?;
    let replaced = result(metadata, settings);
    let replaced_annotations = replace(metadata, &mut marks);
    let status = Status {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        revision: settings.revision().to_owned(),
        containers: containers::first(settings).into_iter().chain([SIDECAR]).map(str::to_owned).collect(),
        volumes: VOLUMES.map(str::to_owned).into(),
        labels: add(metadata, "labels", marks.labels)?,
        annotations: add(metadata, "annotations", marks.annotations)?,
        made,
        probes: changed.probes,
        templates: changed.templates,
        replaced,
        replaced_annotations,
        pull_secrets,
    };
    let text = serde_json::to_string(&status).map_err(|error| InjectError::Written(error.to_string()))?;
    add(metadata, "annotations", vec![(STATUS, text)]).map(drop)
}

/// Whose sidecar it is says who has injected it, whatever stood there: what a Pod asks for it says by another label.
fn result(metadata: &mut Fields, settings: &InjectSettings) -> BTreeMap<String, String> {
    let labels = metadata.get_mut("labels").and_then(Value::as_object_mut);
    let other = labels.and_then(|labels| {
        let other = labels.get(REVISION).filter(|label| **label != settings.revision())?.clone();
        labels.insert(REVISION.to_owned(), settings.revision().into());
        Some(other)
    });
    other.iter().filter_map(Value::as_str).map(|other| (REVISION.to_owned(), other.to_owned())).collect()
}

/// Writes annotations in place of others; those that are not there are added with the rest. Says what stood there.
fn replace(metadata: &mut Fields, marks: &mut Marks) -> BTreeMap<String, String> {
    let mut all = metadata.get_mut("annotations").and_then(Value::as_object_mut);
    let mut replaced = BTreeMap::new();
    for (name, value) in std::mem::take(&mut marks.instead) {
        match all.as_mut().and_then(|all| all.get_mut(name)) {
            Some(Value::String(was)) if *was == value => {}
            Some(Value::String(was)) => drop(replaced.insert(name.to_owned(), std::mem::replace(was, value))),
            _ => marks.annotations.push((name, value)),
        }
    }
    replaced
}

/// Adds those by which the sidecar's image is pulled, behind those of the Pod. Says which were not there.
fn secrets(pod: &mut Value, settings: &InjectSettings) -> Result<Vec<String>, InjectError> {
    let mut added = Vec::new();
    if settings.image_pull_secrets.is_empty() {
        return Ok(added);
    }
    let all = list(fields(pod, "spec")?, SECRETS)?;
    for secret in &settings.image_pull_secrets {
        if !all.iter().any(|own| own["name"] == secret.name.as_str()) {
            all.push(json!({"name": secret.name}));
            added.push(secret.name.clone());
        }
    }
    Ok(added)
}

/// Says which were not there.
fn add(
    metadata: &mut Fields,
    part: &str,
    wanted: Vec<(&'static str, String)>,
) -> Result<Vec<String>, InjectError> {
    let all = metadata.entry(part).or_insert(Value::Null);
    if all.is_null() {
        *all = Fields::new().into();
    }
    let all =
        all.as_object_mut().ok_or_else(|| InjectError::Malformed(format!("metadata.{part}"), "mapping"))?;
    let mut added = Vec::new();
    for (name, value) in wanted {
        if !all.contains_key(name) {
            all.insert(name.to_owned(), value.into());
            added.push(name.to_owned());
        }
    }
    Ok(added)
}

/// A Pod without what was injected.
pub(super) struct Bare {
    pub(super) pod: Value,
    /// What templates have added and others have added to, so that it is there still.
    pub(super) stays: Vec<templates::Change>,
}

impl Bare {
    /// Without what others have put into what templates had added, of which nothing is the Pod's own.
    pub(super) fn own(&self) -> Value {
        let mut own = self.pod.clone();
        templates::undo(&mut own, &self.stays, None);
        own
    }
}

/// A Pod that says that it was injected, as it was before; `None`: it does not say so.
///
/// # Errors
/// Its sidecar is not ours to touch, and why.
pub(super) fn bare(pod: &Value, settings: &InjectSettings, by_hand: bool) -> Result<Option<Bare>, String> {
    let Some(text) = pod["metadata"]["annotations"][STATUS].as_str() else { return Ok(None) };
    // The annotation alone is a claim, and perhaps a copy.
    let is_there = decision::container_names(&pod["spec"]).any(|name| name == SIDECAR);
    match Status::read(text) {
        Ok(status) if is_there && status.revision != settings.revision() => {
            Err(format!("it has been injected already, by revision {}", status.revision))
        }
        Ok(mut status) => {
            let own = if by_hand {
                None
            } else {
                let secrets = &settings.image_pull_secrets;
                status.pull_secrets.retain(|name| secrets.iter().any(|own| own.name == *name));
                let annotations = pod["metadata"]["annotations"].as_object();
                let all = (&settings.templates, &settings.default_templates[..]);
                // A name that is none is said when they are laid.
                Some(templates::chosen(annotations, all).unwrap_or_default())
            };
            without_ours(pod, &status, own.as_deref()).map(Some).map_err(|error| error.to_string())
        }
        Err(error) if is_there => {
            Err(format!("it has been injected already, by whom cannot be read: {error}"))
        }
        Err(_) => {
            let mut pod = pod.clone();
            if let Some(annotations) = pod["metadata"]["annotations"].as_object_mut() {
                annotations.remove(STATUS);
            }
            Ok(Some(Bare { pod, stays: Vec::new() }))
        }
    }
}

/// What is ours stays as others have made it since it was first put in: images from another registry, resources, certificates. Of the
/// sidecar's bootstrap the probes alone are news.
pub(super) fn keep(pod: &mut Value, before: &Value) {
    for list in ["containers", "initContainers", "volumes"] {
        let Some(all) = pod["spec"].get_mut(list).and_then(Value::as_array_mut) else { continue };
        let was = before["spec"][list].as_array().map(Vec::as_slice).unwrap_or_default();
        for item in
            all.iter_mut().filter(|item| CONTAINERS.iter().chain(&VOLUMES).any(|own| item["name"] == *own))
        {
            let Some(was) = was.iter().find(|was| was["name"] == item["name"]) else { continue };
            let now = std::mem::replace(item, was.clone());
            if item["name"] == SIDECAR {
                bootstrap::keep(item, &now);
            }
        }
    }
}

/// A Pod or a template without what was injected, which it says itself and is believed: it is a file of whoever asks. `None`: nothing was.
///
/// # Errors
/// The annotation that says what was injected cannot be read.
pub fn uninject(pod: &Value) -> Result<Option<Value>, InjectError> {
    let Some(text) = pod["metadata"]["annotations"][STATUS].as_str() else { return Ok(None) };
    let status = Status::read(text).map_err(|error| InjectError::Annotation {
        name: STATUS.into(),
        value: text.into(),
        wanted: format!("what `outrigger inject` writes: {error}"),
    })?;
    without_ours(pod, &status, None).map(|bare| Some(bare.pod))
}

/// What [`uninject`] takes back of what templates have changed, by the Pod's own word, a line for each: what it is that its author has the operator
/// do.
pub fn taken_back(pod: &Value) -> Vec<String> {
    let text = pod["metadata"]["annotations"][STATUS].as_str();
    let status = text.and_then(|text| Status::read(text).ok());
    status.map(|status| templates::told(&status.templates)).unwrap_or_default()
}

/// Takes out what was put in; of templates what these have, where there are some.
fn without_ours(pod: &Value, status: &Status, templates: Option<&[&Fields]>) -> Result<Bare, InjectError> {
    let mut pod = pod.clone();
    let metadata = fields(&mut pod, "metadata")?;
    without(metadata, "labels", |name, _| status.labels.iter().any(|own| own == name));
    without(metadata, "annotations", |name, _| {
        name == STATUS || status.annotations.iter().any(|own| own == name)
    });
    if let Some(labels) = metadata.get_mut("labels").and_then(Value::as_object_mut) {
        labels.extend(status.replaced.iter().map(|(name, was)| (name.clone(), was.as_str().into())));
    }
    if let Some(annotations) = metadata.get_mut("annotations").and_then(Value::as_object_mut) {
        for (name, was) in &status.replaced_annotations {
            // What was edited since is somebody's will.
            if let Some(now) =
                annotations.get_mut(name).filter(|now| now.as_str() == scrape::ours(name).as_deref())
            {
                *now = was.as_str().into();
            }
        }
    }
    let stays = templates::undo(&mut pod, &status.templates, templates);
    let spec = fields(&mut pod, "spec")?;
    for (list, names) in [
        ("containers", &status.containers),
        ("initContainers", &status.containers),
        ("volumes", &status.volumes),
        (SECRETS, &status.pull_secrets),
    ] {
        if let Some(Value::Array(all)) = spec.get_mut(list) {
            all.retain(|item| !names.iter().any(|name| item["name"] == name.as_str()));
        }
    }
    for list in ["containers", "initContainers"] {
        for container in spec.get_mut(list).and_then(Value::as_array_mut).into_iter().flatten() {
            let Some(probes) = container["name"].as_str().and_then(|name| status.probes.get(name)) else {
                continue;
            };
            for (place, original) in probes {
                if let Some(probe) = container.pointer_mut(place) {
                    probes::restore(probe, original);
                }
            }
        }
    }
    for (part, field) in PLACES.into_iter().filter(|(_, field)| status.made.iter().any(|made| made == field))
    {
        drop_empty(pod.get_mut(part), field);
    }
    if status.made.iter().any(|made| made == "metadata") {
        drop_empty(Some(&mut pod), "metadata");
    }
    Ok(Bare { pod, stays })
}

fn without(metadata: &mut Fields, part: &str, gone: impl Fn(&str, &Value) -> bool) {
    if let Some(Value::Object(all)) = metadata.get_mut(part) {
        all.retain(|name, value| !gone(name, value));
    }
}

fn drop_empty(of: Option<&mut Value>, field: &str) {
    let Some(Value::Object(of)) = of else { return };
    let empty = match of.get(field) {
        Some(Value::Object(all)) => all.is_empty(),
        Some(Value::Array(all)) => all.is_empty(),
        _ => false,
    };
    if empty {
        of.remove(field);
    }
}
