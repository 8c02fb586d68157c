//! Puts a sidecar into a Pod, and takes it out again. Pure: the webhook and `outrigger inject` are around it.
//!
//! ```text
//! decision (whether) ─▶ wishes (annotations) ─▶ probes ─▶ bootstrap ─▶ containers ─▶ status (what was done) ─▶ patch
//! ```
//!
//! Works on JSON rather than on typed objects: a Pod may have fields that these types do not know, and they must survive.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};
use serde_saphyr::SerializerOptions;

use crate::canonical;
pub use crate::canonical::{INIT, SIDECAR, VALIDATION};

mod bootstrap;
mod containers;
mod decision;
mod kinds;
mod needs;
mod probes;
mod release;
mod scrape;
mod settings;
mod shared;
mod status;
mod templates;
mod wishes;
pub mod workload;

pub(crate) use decision::MIRROR;
pub use decision::decides_alone;
pub use release::Release;
pub use settings::{FailurePolicy, InjectSettings, NativeSidecar, PullSecret};
pub use status::{taken_back, uninject};

/// The annotation that says what was injected.
pub const STATUS: &str = "outrigger.io/status";
/// The label that says by which revision.
const REVISION: &str = "outrigger.io/rev";
/// The revision of whoever names none.
const DEFAULT_REVISION: &str = "default";

/// Labels and annotations that are added.
const TLS_MODE: &str = "security.istio.io/tlsMode";
const CANONICAL_NAME: &str = "service.istio.io/canonical-name";
const CANONICAL_REVISION: &str = "service.istio.io/canonical-revision";
const DEFAULT_CONTAINER: &str = "kubectl.kubernetes.io/default-container";

/// Lists and mappings that injection may have to make.
const PLACES: [(&str, &str); 5] = [
    ("metadata", "labels"),
    ("metadata", "annotations"),
    ("spec", "initContainers"),
    ("spec", "volumes"),
    ("spec", SECRETS),
];
const SECRETS: &str = "imagePullSecrets";

type Fields = Map<String, Value>;

/// Where a Pod is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Namespace {
    /// Its name.
    pub name: String,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Its annotations: Linkerd asks for sidecars there.
    pub annotations: BTreeMap<String, String>,
}

impl Namespace {
    /// One whose Pods get sidecars unless they say otherwise: for whoever has asked by hand.
    pub fn enabled(name: &str, revision: Option<&str>) -> Self {
        let mut labels = BTreeMap::from([("outrigger.io/inject".to_owned(), "enabled".to_owned())]);
        labels.extend(revision.map(|revision| (REVISION.to_owned(), revision.to_owned())));
        Self { name: name.to_owned(), labels, annotations: BTreeMap::new() }
    }
}

/// What of the mesh a sidecar must know before it has joined.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mesh {
    /// Its trust domain.
    pub trust_domain: String,
    /// DNS domain of services.
    pub domain: String,
    /// Root certificates, PEM.
    pub roots: String,
}

/// Who is to have a sidecar.
#[derive(Debug, Clone, Copy)]
pub struct Subject<'a> {
    /// A Pod, or the template of one.
    pub pod: &'a Value,
    /// Where it is, or will be.
    pub namespace: &'a Namespace,
    /// What makes Pods of the template, by name. A Pod says itself what it was made by.
    pub workload: Option<&'a str>,
    /// The oldest release of Kubernetes that sees it, where that is known.
    pub kubernetes: Option<Release>,
    /// Who asks has written all of it, or answers for it: what it says of an earlier injection is taken at its word. At a webhook others have
    /// changed a Pod since its author wrote that.
    pub by_hand: bool,
    /// The same as it was injected before, where that is known and it does not say so itself: hooks keep their paths.
    pub earlier: Option<&'a Value>,
}

/// What came of it.
#[derive(Debug, Clone, PartialEq)]
pub enum Injection {
    /// Nothing, because.
    LeftAlone(String),
    /// The Pod with its sidecar.
    Injected {
        /// All of it.
        pod: Box<Value>,
        /// What the author of the Pod should know.
        warnings: Vec<String>,
    },
}

/// Why there can be no sidecar, although one is wanted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InjectError {
    /// No Pod.
    #[error("{0} is no {1}: this is not a Pod")]
    Malformed(String, &'static str),
    /// An annotation that cannot be taken.
    #[error("annotation {name}: \"{value}\" is not {wanted}")]
    Annotation {
        /// Which.
        name: String,
        /// What it says.
        value: String,
        /// What would be right.
        wanted: String,
    },
    /// Templates that leave no place for one.
    #[error("with its templates there can be no sidecar: {0}")]
    Templates(String),
    /// It could not be written.
    #[error("it cannot be written: {0}")]
    Written(String),
}

/// Puts a sidecar into a Pod, if it is to have one. One that it has from us already is put in anew, since somebody may have added
/// containers and probes in between; it stays as others have made it.
///
/// # Errors
/// An annotation cannot be taken, or what was given is no Pod.
pub fn inject(
    subject: Subject<'_>,
    settings: &InjectSettings,
    mesh: &Mesh,
) -> Result<Injection, InjectError> {
    let bare = match status::bare(subject.pod, settings, subject.by_hand) {
        Ok(bare) => bare,
        Err(why) => return Ok(Injection::LeftAlone(why)),
    };
    let before = bare.as_ref().map_or(subject.pod, |bare| &bare.pod);
    if let Some(why) = decision::left_alone(before, subject.namespace, settings) {
        return Ok(Injection::LeftAlone(why));
    }
    let wishes = wishes::read(before, subject.namespace, settings, subject.kubernetes)?;
    let mut warnings = wishes.warnings.clone();
    warnings.extend(kinds::forbidden(subject.namespace, settings));
    warnings.extend(decision::ingress(before, subject.namespace));
    warnings.extend(decision::mistaken(before, settings));
    let own = bare.as_ref().map(status::Bare::own);
    let own = own.as_ref().unwrap_or(subject.pod);
    let mut pod = before.clone();
    let named = names(before, subject.workload);
    let spec = fields(&mut pod, "spec")?;
    list(spec, "containers")?;
    let earlier = bare.is_some().then_some(subject.pod).or(subject.earlier);
    let asked = if wishes.rewrite_probes {
        probes::rewrite(spec, own, earlier, &wishes, &mut warnings)
    } else {
        <_>::default()
    };
    let scrape = scrape::read(own, &wishes, settings, &mut warnings);
    let application = bootstrap::Application { probes: &asked.bootstrap, metrics: scrape.application };
    let text = bootstrap::text(&named, application, &wishes, settings, mesh)?;
    containers::add(spec, &text, &wishes, settings)?;
    let chosen = templates::chosen(
        before["metadata"]["annotations"].as_object(),
        (&settings.templates, &settings.default_templates),
    )?;
    let stays = bare.as_ref().map(|bare| bare.stays.clone()).unwrap_or_default();
    let laid = templates::lay(&mut pod, &chosen, stays)?;
    if let Some(why) = impossible(&pod["spec"]) {
        return Err(InjectError::Templates(why));
    }
    warnings.extend(kinds::warnings(&pod, &wishes, settings, subject.kubernetes));
    warnings.extend(kinds::lost(&pod, settings));
    warnings.extend(passing_by(&pod));
    let mut labels = Vec::new();
    if settings.istio_peers {
        // By it a control plane of Istio has its sidecars speak mTLS to this one, under their own roots.
        labels.push((TLS_MODE, "istio".to_owned()));
    }
    labels.push((CANONICAL_NAME, named.app));
    labels.push((CANONICAL_REVISION, named.version));
    labels.push((REVISION, settings.revision().to_owned()));
    let mut annotations = annotations(before, &wishes);
    annotations.extend(scrape.added);
    let marks = status::Marks { labels, annotations, instead: scrape.replaced };
    let changed = status::Changed { probes: asked.originals, templates: laid };
    status::describe(&mut pod, before, marks, changed, settings)?;
    if bare.is_some() {
        status::keep(&mut pod, subject.pod);
    }
    Ok(Injection::Injected { pod: Box::new(pod), warnings })
}

/// A document as people write it, its fields in alphabetical order.
///
/// # Errors
/// It cannot be written.
pub fn yaml(document: &Value) -> Result<String, InjectError> {
    let mut options = SerializerOptions::default();
    // Only what has lines is written in lines.
    options.folded_wrap_chars = usize::MAX;
    serde_saphyr::to_string_with_options(document, options)
        .map_err(|error| InjectError::Written(error.to_string()))
}

/// What a sidecar and the mesh's metrics call a workload.
struct Names {
    workload: String,
    app: String,
    version: String,
}

/// As the registry has them of the Pod.
fn names(pod: &Value, workload: Option<&str>) -> Names {
    let label = |key: &str| pod["metadata"]["labels"][key].as_str();
    let workload = workload.map(str::to_owned).unwrap_or_else(|| owner(pod));
    Names {
        app: canonical::plain(canonical::name(label).unwrap_or(&workload)),
        version: canonical::version(label).unwrap_or("latest").to_owned(),
        workload,
    }
}

/// What made it. A Pod may have no name yet.
pub fn owner(pod: &Value) -> String {
    let metadata = &pod["metadata"];
    let owners = metadata["ownerReferences"].as_array().map(Vec::as_slice).unwrap_or_default();
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    match owners.iter().find(|owner| owner["controller"] == true) {
        Some(owner) => {
            let label = |key: &str| metadata["labels"][key].as_str();
            let of = |field: &str| owner[field].as_str().unwrap_or_default();
            canonical::maker(of("kind"), of("name"), label).to_owned()
        }
        // One of many alike has a name of its own, which it may not have yet.
        None => match metadata["generateName"].as_str().filter(|name| !name.is_empty()) {
            Some(name) => name.trim_end_matches('-').to_owned(),
            None => text(&metadata["name"]),
        },
    }
}

/// Containers whose connections the rules take for the sidecar's own.
fn passing_by(pod: &Value) -> Option<String> {
    let spec = &pod["spec"];
    let of = |value: &Value| value["securityContext"]["runAsUser"].as_u64();
    let all = ["containers", "initContainers"].into_iter().filter_map(|list| spec[list].as_array()).flatten();
    let all = all.filter(|container| ![SIDECAR, VALIDATION].iter().any(|own| container["name"] == *own));
    let mut own = all.filter(|container| of(container).or(of(spec)) == Some(UID));
    own.next().map(|container| {
        format!(
            "container {} runs as user {UID}, which is the sidecar's: what it sends is not intercepted; give it another runAsUser",
            container["name"]
        )
    })
}

/// The sidecar's user and group, whose connections the rules let pass.
const UID: u64 = 1337;

/// Why what has this can have no sidecar, whoever asks for one: a Pod, or what is laid over one.
fn impossible(spec: &Value) -> Option<String> {
    if spec["hostNetwork"] == true {
        return Some("it is in the network of its node (hostNetwork), where a sidecar would take everybody's connections".into());
    }
    if spec["os"]["name"] == "windows" || spec["nodeSelector"]["kubernetes.io/os"] == "windows" {
        return Some("it is for Windows".into());
    }
    None
}

/// What is added to the annotations, where they do not say it themselves.
fn annotations(pod: &Value, wishes: &wishes::Wishes) -> Vec<(&'static str, String)> {
    let mut added = Vec::new();
    if !wishes.native
        && let Some(first) = pod["spec"]["containers"][0]["name"].as_str()
    {
        // kubectl would take the sidecar, which stands first.
        added.push((DEFAULT_CONTAINER, first.to_owned()));
    }
    added
}

/// The mapping below `key`, made where there is none.
fn fields<'v>(value: &'v mut Value, key: &str) -> Result<&'v mut Fields, InjectError> {
    let Value::Object(all) = value else {
        return Err(InjectError::Malformed("the document".into(), "mapping"));
    };
    let child = all.entry(key).or_insert(Value::Null);
    if child.is_null() {
        *child = json!({});
    }
    child.as_object_mut().ok_or_else(|| InjectError::Malformed(key.to_owned(), "mapping"))
}

/// The list below `key`, made where there is none.
fn list<'v>(all: &'v mut Fields, key: &str) -> Result<&'v mut Vec<Value>, InjectError> {
    let child = all.entry(key).or_insert(Value::Null);
    if child.is_null() {
        *child = json!([]);
    }
    child.as_array_mut().ok_or_else(|| InjectError::Malformed(format!("spec.{key}"), "list"))
}

#[cfg(test)]
mod tests;
