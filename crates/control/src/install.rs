//! What is installed into a cluster, as YAML: the templates of the Helm chart, rendered here as Helm renders them.
//!
//! They say little: `{{ .Values.a.b }}`, `{{ toJson .Values.a }}`, `{{ join "," .Values.a }}`, `{{ .Release.Namespace }}`, and between
//! `{{- if .Values.a }}` and `{{- end }}` what is there only where that is so (or `eq .Values.a "word"`, or `semverCompare "<1.30-0" .Capabilities.KubeVersion.Version`); `{{ include "outrigger.rev" . }}` is what stands behind
//! the names of a revision. So there is one source, and a test with the real `helm` holds
//! both to the same objects.

use serde_json::Value;

use crate::inject::{InjectError, Release, yaml};

const TEMPLATES: [&str; 2] = [
    include_str!("../../../deploy/helm/templates/outrigger.yaml"),
    include_str!("../../../deploy/helm/templates/cni.yaml"),
];
const VALUES: &str = include_str!("../../../deploy/helm/values.yaml");
/// Values without which some objects are not there.
const OPTIONAL: [&str; 1] = ["cni.enabled"];

/// The revision that stands for itself, without a word behind its names.
const DEFAULT_REVISION: &str = "default";
/// Of a revision: a Pod's host name has 63 characters at most, `outrigger-control` and a number among them.
const LONGEST: usize = 40;

/// Where it is installed unless somebody says otherwise.
pub const NAMESPACE: &str = "outrigger-system";

/// The definitions of our own kinds of rules.
///
/// # Errors
/// They cannot be written.
pub fn definitions() -> Result<String, InjectError> {
    let mut text = "# Our own kinds of rules, as `outrigger manifest --crds only` writes them.\n".to_owned();
    for (i, definition) in outrigger_rules::definitions().iter().enumerate() {
        text.push_str(if i == 0 { "" } else { "---\n" });
        text.push_str(&yaml(definition)?);
    }
    Ok(text)
}

/// What can be said of an installation, and what holds unless it is.
#[derive(Debug, Clone, PartialEq)]
pub struct Values {
    fields: Value,
    /// Of the API server; without one it is newer than anything that is asked for.
    kubernetes: Option<Release>,
}

impl Values {
    /// Those of the chart.
    ///
    /// # Errors
    /// They cannot be read.
    pub fn defaults() -> Result<Self, String> {
        let fields = serde_saphyr::from_str(VALUES).map_err(|error| error.to_string())?;
        Ok(Self { fields, kubernetes: None })
    }

    /// Renders for a cluster whose API server is of this release.
    pub fn render_for(&mut self, kubernetes: Option<Release>) {
        self.kubernetes = kubernetes;
    }

    /// What whoever installs with these should know.
    pub fn hint(&self) -> Option<&'static str> {
        (self.fields["cni"]["enabled"] == true && self.kubernetes.is_none()).then_some(
            "warning: the CNI plugin's agents are written for Kubernetes 1.30 or newer, whose nodes know appArmorProfile; with an older API server say \
             --kubernetes-version, such as 1.29",
        )
    }

    /// Lays a file of values over these.
    ///
    /// # Errors
    /// It is no YAML, or names what does not exist.
    pub fn merge(&mut self, text: &str) -> Result<(), String> {
        let file: Value = serde_saphyr::from_str(text).map_err(|error| error.to_string())?;
        let Value::Object(fields) = file else { return Err("is no mapping".to_owned()) };
        for (name, value) in fields {
            let known = self.known(&name)?;
            let below = value.as_object().into_iter().flat_map(|fields| fields.keys());
            below.map(String::as_str).try_for_each(|field| is_known(&name, known, field))?;
            json_patch::merge(known, &value);
        }
        Ok(())
    }

    /// `resources.limits.memory=2Gi`.
    ///
    /// # Errors
    /// It is no such words, or names what does not exist.
    pub fn set(&mut self, words: &str) -> Result<(), String> {
        let (path, text) = words.split_once('=').ok_or_else(|| format!("\"{words}\" is not NAME=VALUE"))?;
        let mut names = path.split('.');
        let (first, place) = indexed(names.next().unwrap_or_default())?;
        let mut at = item(self.known(first)?, place, path)?;
        for (depth, name) in names.enumerate() {
            let (name, place) = indexed(name)?;
            if depth == 0 {
                is_known(first, at, name)?;
            }
            if at.is_null() {
                *at = serde_json::json!({});
            }
            if !at.is_object() {
                return Err(format!("\"{path}\": there is nothing below it"));
            }
            at = item(&mut at[name], place, path)?;
        }
        *at = match text {
            "true" | "false" => (text == "true").into(),
            _ => text.into(),
        };
        Ok(())
    }

    /// What stands behind the names of a revision that is beside the default one; the chart has it in `_helpers.tpl`.
    fn behind(&self) -> Result<String, String> {
        let revision = self.fields["revision"].as_str().unwrap_or_default();
        let plain = |byte: u8| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-');
        if revision.is_empty()
            || revision.len() > LONGEST
            || !revision.bytes().all(plain)
            || revision.ends_with('-')
        {
            return Err(format!(
                "revision: \"{revision}\" cannot be a part of names: write {LONGEST} lower-case letters, digits or - at most, such as 1-2"
            ));
        }
        Ok(if revision == DEFAULT_REVISION { String::new() } else { format!("-{revision}") })
    }

    fn known(&mut self, name: &str) -> Result<&mut Value, String> {
        let names: Vec<String> =
            self.fields.as_object().into_iter().flat_map(|all| all.keys().cloned()).collect();
        self.fields
            .get_mut(name)
            .ok_or_else(|| format!("there is no value \"{name}\", only {}", names.join(", ")))
    }
}

/// Items of a list that is written value by value.
const MOST_ITEMS: usize = 32;

/// `tolerations[0]`, as Helm has it: a name, and a place in its list.
fn indexed(name: &str) -> Result<(&str, Option<usize>), String> {
    let Some((list, place)) = name.split_once('[') else { return Ok((name, None)) };
    let place =
        place.strip_suffix(']').and_then(|place| place.parse().ok()).filter(|place| *place < MOST_ITEMS);
    place
        .map(|place| (list, Some(place)))
        .ok_or_else(|| format!("\"{name}\" is no item of a list, such as {list}[0]"))
}

fn item<'v>(at: &'v mut Value, place: Option<usize>, path: &str) -> Result<&'v mut Value, String> {
    let Some(place) = place else { return Ok(at) };
    if at.is_null() {
        *at = Value::Array(Vec::new());
    }
    let all = at.as_array_mut().ok_or_else(|| format!("\"{path}\": this is no list"))?;
    if all.len() <= place {
        // Something is below it, or it is written now.
        all.resize(place + 1, serde_json::json!({}));
    }
    Ok(&mut all[place])
}

/// What is below these is ours to say, so another word is a mistake; what is below others is the cluster's.
fn is_known(first: &str, at: &Value, name: &str) -> Result<(), String> {
    match at.as_object() {
        Some(known) if matches!(first, "cni" | "injector") && !known.contains_key(name) => {
            let names: Vec<&str> = known.keys().map(String::as_str).collect();
            Err(format!("there is no value \"{first}.{name}\", only {}", names.join(", ")))
        }
        _ => Ok(()),
    }
}

/// The namespace, and everything in it and for it but the definitions.
///
/// # Errors
/// The name is no name of a namespace, or the template asks for what is not there.
pub fn manifest(namespace: &str, values: &Values) -> Result<String, String> {
    let text = format!(
        "# The control plane in a cluster of its own, and its webhooks: `outrigger manifest --crds none`, which is the Helm chart in deploy/helm.\n\
         # docs/kubernetes.md says the rest. Replicas share the authority, revocations and join tokens in Secrets that they make. Sidecars go on without them.\n\
         apiVersion: v1\nkind: Namespace\nmetadata:\n  name: {namespace}\n  labels: {{pod-security.kubernetes.io/enforce: restricted}}\n---\n"
    );
    Ok(text + &installed(namespace, values)?)
}

/// What is to be taken out: everything that there may be, whatever these values say of it now. It may have been installed with others, and what is
/// not there need not be taken out.
///
/// # Errors
/// As [`manifest`].
pub fn uninstalled(namespace: &str, values: &Values) -> Result<String, String> {
    let mut all = values.clone();
    for optional in OPTIONAL {
        all.set(&format!("{optional}=true"))?;
    }
    let text = installed(namespace, &all)?;
    let mut objects: Vec<&str> = text.split("\n---\n").map(str::trim).collect();
    objects.sort_by_key(|object| turn(object));
    Ok(objects.join("\n---\n") + "\n")
}

/// When an object goes: first by whom API servers ask, or they would ask in vain; last what the others may do, for they have last words to say.
fn turn(object: &str) -> u8 {
    let kind = object.lines().find_map(|line| line.strip_prefix("kind: ")).unwrap_or_default();
    match kind {
        "MutatingWebhookConfiguration" | "ValidatingWebhookConfiguration" => 0,
        "ServiceAccount" | "ClusterRole" | "ClusterRoleBinding" | "Role" | "RoleBinding" => 2,
        _ => 1,
    }
}

/// The same without the namespace: what else there is in it is not ours to delete, such as the Secret with the authority's keys.
fn installed(namespace: &str, values: &Values) -> Result<String, String> {
    let plain = |byte: u8| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-');
    if !(1..=63).contains(&namespace.len()) || !namespace.bytes().all(plain) {
        return Err(format!("\"{namespace}\" cannot be the name of a namespace"));
    }
    let all: Result<Vec<String>, String> =
        TEMPLATES.iter().map(|template| rendered(template, namespace, values)).collect();
    Ok(all?.iter().map(|text| format!("{}\n", text.trim_end())).filter(|text| text != "\n").collect())
}

fn rendered(template: &str, namespace: &str, values: &Values) -> Result<String, String> {
    let mut text = String::new();
    // Whether what is between `if` and `end` is there, from the outermost in.
    let mut open: Vec<bool> = Vec::new();
    let mut rest = template;
    while let Some((before, after)) = rest.split_once("{{") {
        let (expression, after) = after.split_once("}}").ok_or("the template has no end of an expression")?;
        let (expression, before) = match expression.strip_prefix('-') {
            Some(expression) => (expression, before.trim_end()),
            None => (expression, before),
        };
        rest = after;
        if open.iter().all(|is| *is) {
            text.push_str(before);
        }
        match expression.trim() {
            "end" => drop(open.pop().ok_or("the template has an end of nothing")?),
            // Also where it is not there: what it names must exist.
            expression => match expression.strip_prefix("if ") {
                Some(what) => open.push(holds(what.trim(), values)?),
                None => {
                    let written = written(expression, namespace, values)?;
                    if open.iter().all(|is| *is) {
                        text.push_str(&written);
                    }
                }
            },
        }
    }
    text.push_str(rest);
    if open.is_empty() { Ok(text) } else { Err("the template has no end of an if".to_owned()) }
}

/// Whether a value is there, or is a word or is not, or the API server is of such a release.
fn holds(what: &str, values: &Values) -> Result<bool, String> {
    for (operator, wanted) in [("eq ", true), ("ne ", false)] {
        let Some((path, word)) = what.strip_prefix(operator).and_then(|words| words.split_once(' ')) else {
            continue;
        };
        let word = word.strip_prefix('"').and_then(|word| word.strip_suffix('"'));
        let word = word.ok_or_else(|| format!("the template says {what}"))?;
        return Ok((value(path, &values.fields)?.as_str() == Some(word)) == wanted);
    }
    let Some(compared) = what.strip_prefix("semverCompare ") else {
        return Ok(is_so(value(what, &values.fields)?));
    };
    let wrong = || format!("the template says {what}");
    let wanted = compared.strip_suffix(" .Capabilities.KubeVersion.Version").ok_or_else(wrong)?;
    let wanted = wanted.strip_prefix('"').and_then(|wanted| wanted.strip_suffix("-0\"")).ok_or_else(wrong)?;
    match (wanted.strip_prefix(">="), wanted.strip_prefix('<')) {
        (Some(since), _) => {
            let since: Release = since.parse()?;
            Ok(values.kubernetes.is_none_or(|release| release >= since))
        }
        (None, Some(until)) => {
            let until: Release = until.parse()?;
            Ok(values.kubernetes.is_some_and(|release| release < until))
        }
        (None, None) => Err(wrong()),
    }
}

/// As Go's templates see it.
fn is_so(value: &Value) -> bool {
    match value {
        Value::Null => false,
        Value::Bool(is) => *is,
        Value::Number(number) => number.as_f64() != Some(0.0),
        Value::String(text) => !text.is_empty(),
        Value::Array(all) => !all.is_empty(),
        Value::Object(all) => !all.is_empty(),
    }
}

fn value<'v>(path: &str, values: &'v Value) -> Result<&'v Value, String> {
    let path = path.strip_prefix(".Values.").ok_or_else(|| format!("the template says {path}"))?;
    let found = values.pointer(&format!("/{}", path.replace('.', "/")));
    found.ok_or_else(|| format!("there is no value \"{path}\""))
}

fn written(expression: &str, namespace: &str, values: &Values) -> Result<String, String> {
    match expression {
        ".Release.Namespace" => return Ok(namespace.to_owned()),
        r#"include "outrigger.rev" ."# => return values.behind(),
        _ => {}
    }
    let values = &values.fields;
    if let Some(path) = expression.strip_prefix("join \",\" ") {
        let all = value(path.trim(), values)?;
        let all = all.as_array().ok_or_else(|| format!("\"{}\" is no list", path.trim()))?;
        let words: Vec<String> =
            all.iter().map(|one| one.as_str().map_or_else(|| one.to_string(), str::to_owned)).collect();
        return Ok(words.join(","));
    }
    if let Some(path) = expression.strip_prefix("toJson ") {
        return Ok(json(value(path.trim(), values)?));
    }
    Ok(match value(expression, values)? {
        Value::String(text) => text.clone(),
        value => value.to_string(),
    })
}

/// As Go writes it.
fn json(value: &Value) -> String {
    let text = value.to_string();
    text.replace('&', "\\u0026").replace('<', "\\u003c").replace('>', "\\u003e")
}

#[cfg(test)]
mod tests;
