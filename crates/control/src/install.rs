//! What is installed into a cluster, as YAML: the template of the Helm chart, rendered here as Helm renders it.
//!
//! The template says no more than values: `{{ .Values.a.b }}`, `{{ toJson .Values.a }}` and `{{ .Release.Namespace }}`. So there is one source,
//! and a test with the real `helm` holds both to the same objects.

use serde_json::Value;

use crate::inject::{InjectError, yaml};

const TEMPLATE: &str = include_str!("../../../deploy/helm/templates/outrigger.yaml");
const VALUES: &str = include_str!("../../../deploy/helm/values.yaml");

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
pub struct Values(Value);

impl Values {
    /// Those of the chart.
    ///
    /// # Errors
    /// They cannot be read.
    pub fn defaults() -> Result<Self, String> {
        serde_saphyr::from_str(VALUES).map(Self).map_err(|error| error.to_string())
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
        let mut at = self.known(names.next().unwrap_or_default())?;
        for name in names {
            if !at.is_object() {
                return Err(format!("\"{path}\": there is nothing below it"));
            }
            at = &mut at[name];
        }
        *at = text.into();
        Ok(())
    }

    fn known(&mut self, name: &str) -> Result<&mut Value, String> {
        let names: Vec<String> = self.0.as_object().into_iter().flat_map(|all| all.keys().cloned()).collect();
        self.0.get_mut(name).ok_or_else(|| format!("there is no value \"{name}\", only {}", names.join(", ")))
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

/// The same without the namespace: what else there is in it is not ours to delete, such as the Secret with the authority's keys.
///
/// # Errors
/// As [`manifest`].
pub fn installed(namespace: &str, values: &Values) -> Result<String, String> {
    let plain = |byte: u8| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-');
    if !(1..=63).contains(&namespace.len()) || !namespace.bytes().all(plain) {
        return Err(format!("\"{namespace}\" cannot be the name of a namespace"));
    }
    let mut text = String::new();
    let mut rest = TEMPLATE;
    while let Some((before, after)) = rest.split_once("{{") {
        let (expression, after) = after.split_once("}}").ok_or("the template has no end of an expression")?;
        text.push_str(before);
        text.push_str(&written(expression.trim(), namespace, &values.0)?);
        rest = after;
    }
    text.push_str(rest);
    Ok(text)
}

fn written(expression: &str, namespace: &str, values: &Value) -> Result<String, String> {
    if expression == ".Release.Namespace" {
        return Ok(namespace.to_owned());
    }
    let (json, path) = match expression.strip_prefix("toJson ") {
        Some(path) => (true, path.trim()),
        None => (false, expression),
    };
    let path = path.strip_prefix(".Values.").ok_or_else(|| format!("the template says {expression}"))?;
    let value = values.pointer(&format!("/{}", path.replace('.', "/")));
    let value = value.ok_or_else(|| format!("there is no value \"{path}\""))?;
    match value {
        Value::String(text) if !json => Ok(text.clone()),
        value => Ok(value.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_files_are_what_the_code_says() {
        let file = include_str!("../../../deploy/kubernetes/crds.yaml");
        let how = "outrigger manifest --crds only > deploy/kubernetes/crds.yaml";
        assert_eq!(file, definitions().unwrap(), "run `{how}`");
        let file = include_str!("../../../deploy/kubernetes/outrigger.yaml");
        let how = "outrigger manifest --crds none > deploy/kubernetes/outrigger.yaml";
        assert_eq!(file, manifest(NAMESPACE, &Values::defaults().unwrap()).unwrap(), "run `{how}`");
    }

    #[test]
    fn values_are_laid_over_the_defaults_and_unknown_ones_are_told() {
        let mut values = Values::defaults().unwrap();
        values.merge("{image: 'registry/outrigger:2', resources: {limits: {cpu: '2'}}}").unwrap();
        values.set("resources.limits.memory=2Gi").unwrap();
        values.set("trustDomain=mesh.test").unwrap();
        let text = manifest("mesh", &values).unwrap();
        for wanted in [
            r#"image: "registry/outrigger:2""#,
            r#"resources: {"limits":{"cpu":"2","memory":"2Gi"},"requests":{"cpu":"100m","memory":"128Mi"}}"#,
            r#"trustDomain: "mesh.test""#,
            "dnsNames: [outrigger-control.mesh.svc, localhost]",
        ] {
            assert!(text.contains(wanted), "{wanted}\n{text}");
        }
        assert!(!text.contains("outrigger-system") && !text.contains("{{ "), "{text}");
        assert!(
            values.set("images=2").unwrap_err().starts_with("there is no value \"images\", only image, ")
        );
        assert!(
            values.set("image").is_err() && values.set("image.tag=2").is_err() && values.merge("[]").is_err()
        );
        assert!(manifest("Mesh System", &values).is_err());
    }

    #[test]
    fn what_is_taken_out_is_neither_the_namespace_nor_a_volume_nor_a_secret() {
        let text = installed(NAMESPACE, &Values::defaults().unwrap()).unwrap();
        let kinds: Vec<&str> = text.lines().filter_map(|line| line.strip_prefix("kind: ")).collect();
        assert!(kinds.contains(&"StatefulSet") && kinds.contains(&"ClusterRole"), "{kinds:?}");
        for kept in ["Namespace", "PersistentVolumeClaim", "Secret", "Lease"] {
            assert!(!kinds.contains(&kept), "{kept} {kinds:?}");
        }
    }
}
