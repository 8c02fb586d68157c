//! Whether a Pod gets a sidecar: what the Pod and its namespace say, in the words of Istio, of Linkerd, and our own.

use std::collections::BTreeMap;

use serde_json::Value;

use super::{DEFAULT_REVISION, InjectSettings, Namespace, REVISION, impossible};

/// The cluster's own, whatever they say.
const NEVER: [&str; 3] = ["kube-system", "kube-public", "kube-node-lease"];
/// Containers that are sidecars already.
const SIDECARS: [&str; 3] = [super::SIDECAR, "istio-proxy", "linkerd-proxy"];

const OURS: &str = "outrigger.io/inject";
const LINKERD: &str = "linkerd.io/inject";
const INGRESS: &str = "ingress";
const ISTIO_POD: &str = "sidecar.istio.io/inject";
const ISTIO_NAMESPACE: &str = "istio-injection";
/// Of namespaces; of Pods the last alone, for the first says what a Pod has got.
const REVISIONS: [&str; 2] = [REVISION, POD_REVISION];
const POD_REVISION: &str = "istio.io/rev";
/// What an API server shows of a Pod that a kubelet has from a file of its node.
pub(crate) const MIRROR: &str = "kubernetes.io/config.mirror";

/// A wish, and the label or annotation that has it.
struct Word {
    key: &'static str,
    yes: bool,
}

/// Why a Pod gets no sidecar; `None`: it gets one.
pub(super) fn left_alone(pod: &Value, namespace: &Namespace, settings: &InjectSettings) -> Option<String> {
    if NEVER.contains(&namespace.name.as_str()) {
        return Some(format!("namespace {} is the cluster's own", namespace.name));
    }
    cannot(pod).or_else(|| unwanted(pod, namespace, settings))
}

/// Whether a Pod gets a sidecar or not without a word of its namespace.
pub fn decides_alone(pod: &Value, namespace: &str) -> bool {
    NEVER.contains(&namespace) || cannot(pod).is_some() || pod_says(&pod["metadata"]).is_some()
}

fn cannot(pod: &Value) -> Option<String> {
    let spec = &pod["spec"];
    if let Some(why) = impossible(spec) {
        return Some(why);
    }
    if !pod["metadata"]["annotations"][MIRROR].is_null() {
        return Some(format!(
            "its kubelet has it from a file of its node ({MIRROR}) and runs it as it is there; an API server takes no token for it"
        ));
    }
    let sidecar = container_names(spec).find(|name| SIDECARS.contains(name))?;
    Some(format!("it has a sidecar already (container {sidecar})"))
}

/// Of all kinds.
pub(super) fn container_names(spec: &Value) -> impl Iterator<Item = &str> {
    let all = ["containers", "initContainers"].into_iter().filter_map(|list| spec[list].as_array()).flatten();
    all.filter_map(|container| container["name"].as_str())
}

fn unwanted(pod: &Value, namespace: &Namespace, settings: &InjectSettings) -> Option<String> {
    let by_pod = pod_says(&pod["metadata"]);
    if let Some(Word { key, yes: false }) = by_pod {
        return Some(format!("it says no ({key})"));
    }
    let by_namespace = namespace_says(namespace);
    if let Some(Word { key, yes: false }) = by_namespace
        // As where the words come from: with Istio a namespace that says no has said so for all, else the Pod goes before it.
        && (by_pod.is_none() || key == ISTIO_NAMESPACE)
    {
        return Some(format!("its namespace says no ({key})"));
    }
    let of_namespace = REVISIONS.iter().find_map(|key| namespace.labels.get(*key)).map(String::as_str);
    let of_pod = pod["metadata"]["labels"][POD_REVISION].as_str();
    let revision = match by_namespace {
        // Istio's label goes before its revisions, whatever else is said.
        Some(_) if namespace.labels.get(ISTIO_NAMESPACE).is_some_and(|text| !text.is_empty()) => None,
        _ => of_namespace.or(of_pod),
    };
    if by_pod.is_none() && !by_namespace.is_some_and(|word| word.yes) && revision.is_none() {
        return Some("neither it nor its namespace asks for a sidecar".into());
    }
    let revision = revision.unwrap_or(DEFAULT_REVISION);
    (revision != settings.revision())
        .then(|| format!("it asks for revision {revision}, and this is revision {}", settings.revision()))
}

/// Labels go before annotations, which Istio had before it had labels.
fn pod_says(metadata: &Value) -> Option<Word> {
    let places = [("labels", OURS), ("annotations", OURS), ("labels", ISTIO_POD), ("annotations", ISTIO_POD)];
    let places = places.into_iter().chain([("annotations", LINKERD), ("labels", LINKERD)]);
    places.into_iter().find_map(|(place, key)| word(key, metadata[place][key].as_str()?))
}

fn namespace_says(namespace: &Namespace) -> Option<Word> {
    let of = |all: &BTreeMap<String, String>, key: &'static str| word(key, all.get(key)?);
    let no = of(&namespace.labels, ISTIO_NAMESPACE).filter(|word| !word.yes);
    no.or_else(|| of(&namespace.labels, OURS))
        .or_else(|| of(&namespace.labels, ISTIO_NAMESPACE))
        .or_else(|| of(&namespace.annotations, LINKERD))
        .or_else(|| of(&namespace.labels, LINKERD))
}

/// What is no yes is a no, as in Istio; nothing says nothing.
fn word(key: &'static str, text: &str) -> Option<Word> {
    let yes = ["true", "enabled", "yes", "y", "on"].iter().any(|yes| text.eq_ignore_ascii_case(yes));
    (!text.is_empty()).then_some(Word { key, yes: yes || (key == LINKERD && text == INGRESS) })
}

/// The label by which a Pod says what it has got, used for what it wants.
pub(super) fn mistaken(pod: &Value, settings: &InjectSettings) -> Option<String> {
    let said = pod["metadata"]["labels"][REVISION].as_str().filter(|said| *said != settings.revision())?;
    let own = settings.revision();
    Some(format!(
        "label {REVISION}: {said} of a Pod is what it has got, and now says {own}, whose sidecar this is; {POD_REVISION}: {said} asks for another"
    ))
}

/// A sidecar is wanted, and of a kind that there is not.
pub(super) fn ingress(pod: &Value, namespace: &Namespace) -> Option<String> {
    let metadata = &pod["metadata"];
    let of_pod = ["annotations", "labels"].into_iter().find_map(|place| metadata[place][LINKERD].as_str());
    let of_namespace = || namespace.annotations.get(LINKERD).or_else(|| namespace.labels.get(LINKERD));
    let said = of_pod.or_else(|| of_namespace().map(String::as_str));
    (said == Some(INGRESS)).then(|| {
        format!("{LINKERD}: {INGRESS} gives a sidecar like any other here: it goes by the address that is called, not by l5d-dst-override")
    })
}
