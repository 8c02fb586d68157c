//! What is installed into a cluster, as YAML: the templates of the Helm chart, rendered here as Helm renders them.
//!
//! They say little: `{{ .Values.a.b }}`, `{{ toJson .Values.a }}`, `{{ join "," .Values.a }}`, `{{ .Release.Namespace }}`, and between
//! `{{- if .Values.a }}` and `{{- end }}` what is there only where that is so (or `semverCompare "<1.30-0" .Capabilities.KubeVersion.Version`). So there is one source, and a test with the real `helm` holds
//! both to the same objects.

use serde_json::Value;

use crate::inject::{InjectError, Release, yaml};

const TEMPLATES: [&str; 2] = [
    include_str!("../../../deploy/helm/templates/outrigger.yaml"),
    include_str!("../../../deploy/helm/templates/cni.yaml"),
];
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
        let first = names.next().unwrap_or_default();
        let mut at = self.known(first)?;
        for (depth, name) in names.enumerate() {
            if depth == 0 {
                is_known(first, at, name)?;
            }
            if !at.is_object() {
                return Err(format!("\"{path}\": there is nothing below it"));
            }
            at = &mut at[name];
        }
        *at = match text {
            "true" | "false" => (text == "true").into(),
            _ => text.into(),
        };
        Ok(())
    }

    /// Whose Pods the injector takes.
    pub fn revision(&self) -> Option<&str> {
        self.fields["revision"].as_str()
    }

    fn known(&mut self, name: &str) -> Result<&mut Value, String> {
        let names: Vec<String> =
            self.fields.as_object().into_iter().flat_map(|all| all.keys().cloned()).collect();
        self.fields
            .get_mut(name)
            .ok_or_else(|| format!("there is no value \"{name}\", only {}", names.join(", ")))
    }
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

/// The same without the namespace: what else there is in it is not ours to delete, such as the Secret with the authority's keys.
///
/// # Errors
/// As [`manifest`].
pub fn installed(namespace: &str, values: &Values) -> Result<String, String> {
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
                    let written = written(expression, namespace, &values.fields)?;
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

/// Whether a value is there, or the API server is of such a release: `semverCompare "<1.30-0" .Capabilities.KubeVersion.Version`.
fn holds(what: &str, values: &Values) -> Result<bool, String> {
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

fn written(expression: &str, namespace: &str, values: &Value) -> Result<String, String> {
    if expression == ".Release.Namespace" {
        return Ok(namespace.to_owned());
    }
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
mod tests {
    use super::*;
    use crate::inject::InjectSettings;
    use crate::settings::Settings;

    /// The settings of the control plane that a manifest has.
    fn settings(manifest: &str) -> Settings {
        let map = manifest.split("\n---\n").find(|object| object.contains("\nkind: ConfigMap")).unwrap();
        let map: Value = serde_saphyr::from_str(map).unwrap();
        let settings: Settings =
            serde_saphyr::from_str(map["data"]["control.yaml"].as_str().unwrap()).unwrap();
        settings.validate().unwrap();
        settings
    }

    #[test]
    fn values_say_what_sidecars_are_like_and_none_is_lost() {
        let mut values = Values::defaults().unwrap();
        let before = manifest(NAMESPACE, &values).unwrap();
        let wanted = InjectSettings {
            image: "outrigger-proxy:0.1.0".into(),
            revision: Some("default".into()),
            ..InjectSettings::default()
        };
        assert_eq!(settings(&before).injector.unwrap(), wanted, "defaults are those of the settings");
        let text = "{nativeSidecar: false, initContainer: false, holdApplicationUntilProxyStarts: true, rewriteProbes: false,
            prometheus: false, dns: true, imagePullPolicy: Always, resources: {limits: {cpu: '4'}},
            bootstrap: {tracing: {otlp: ['http://otel:4317?a=1&b=<\"it''s\">']}}, sidecar: {terminationMessagePolicy: File}}";
        values.merge(&format!("injector: {text}")).unwrap();
        values.set("injector.logLevel=warn,outrigger_proxy=debug").unwrap();
        let after = manifest(NAMESPACE, &values).unwrap();
        let mut wanted = serde_json::to_value(wanted).unwrap();
        json_patch::merge(&mut wanted, &serde_saphyr::from_str::<Value>(text).unwrap());
        wanted["logLevel"] = "warn,outrigger_proxy=debug".into();
        assert_eq!(serde_json::to_value(settings(&after).injector).unwrap(), wanted);
        // Whoever reads them at its start starts anew.
        let of = |text: &str| {
            let set = text.split("\n---\n").find(|object| object.contains("\nkind: StatefulSet")).unwrap();
            let set: Value = serde_saphyr::from_str(set).unwrap();
            set["spec"]["template"]["metadata"]["annotations"]["outrigger.io/settings"].clone()
        };
        assert!(of(&before).is_string() && of(&before) != of(&after));
        let wrong = values.set("injector.dsn=true").unwrap_err();
        assert!(wrong.contains("there is no value \"injector.dsn\", only bootstrap, dns, "), "{wrong}");
        assert!(values.merge("cni: {enable: true}").unwrap_err().contains("\"cni.enable\""));
    }

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
            values
                .set("images=2")
                .unwrap_err()
                .starts_with("there is no value \"images\", only cni, image, ")
        );
        assert!(
            values.set("image").is_err() && values.set("image.tag=2").is_err() && values.merge("[]").is_err()
        );
        assert!(manifest("Mesh System", &values).is_err());
    }

    #[test]
    fn the_cni_plugin_is_there_where_it_is_wanted_and_may_do_what_it_was_told_to() {
        let mut values = Values::defaults().unwrap();
        let without = manifest(NAMESPACE, &values).unwrap();
        assert!(!without.contains("outrigger-cni") && without.contains("      cni: false\n"), "{without}");
        values.set("cni.enabled=true").unwrap();
        let with = manifest(NAMESPACE, &values).unwrap();
        for wanted in [
            "      cni: true\n",
            "\n---\n# The CNI plugin",
            "        - --exclude-namespaces=outrigger-system,kube-system\n",
            "        - --exclude-namespaces=kube-system,kube-public,kube-node-lease\n",
            "        - --repair-rules\n        env:",
            "hostPID: true",
        ] {
            assert!(with.contains(wanted), "{wanted}\n{with}");
        }
        assert!(
            !with.contains("pods/eviction") && !with.contains("verbs: [patch]}\n---\napiVersion: rbac"),
            "{with}"
        );
        values.merge("cni: {repair: {rules: false, evict: true, label: true}}").unwrap();
        let with = manifest(NAMESPACE, &values).unwrap();
        for wanted in [
            "[pods/eviction], verbs: [create]",
            "resources: [pods], verbs: [patch]",
            "--repair-evict",
            "--repair-label",
        ] {
            assert!(with.contains(wanted), "{wanted}\n{with}");
        }
        assert!(with.contains("hostPID: true") && !with.contains("--repair-rules"), "{with}");
        let excluded =
            values.set("cni.excludeNamespaces=kube-system").and_then(|()| manifest(NAMESPACE, &values));
        assert!(excluded.unwrap_err().contains("is no list"));
    }

    #[test]
    fn kinds_that_nobody_reads_are_shown_to_the_webhook_so_that_whoever_stores_one_is_told() {
        let text = manifest(NAMESPACE, &Values::defaults().unwrap()).unwrap();
        let webhooks =
            text.split("\n---\n").find(|part| part.contains("\nkind: ValidatingWebhookConfiguration"));
        let webhooks: Value = serde_saphyr::from_str(webhooks.unwrap()).unwrap();
        let all = webhooks["webhooks"].as_array().unwrap();
        let others = all.iter().find(|webhook| webhook["name"] == "others.validate.outrigger.io").unwrap();
        assert_eq!(others["failurePolicy"], "Ignore");
        let mut shown: Vec<(String, String)> = Vec::new();
        for rule in others["rules"].as_array().unwrap() {
            let words = |field: &str| -> Vec<String> { serde_json::from_value(rule[field].clone()).unwrap() };
            assert_eq!(words("operations"), ["CREATE", "UPDATE"]);
            for group in words("apiGroups") {
                shown.extend(words("resources").into_iter().map(|resource| (group.clone(), resource)));
            }
        }
        shown.sort();
        let plural = |kind: &str| match kind.to_lowercase().strip_suffix('y') {
            Some(stem) if !stem.ends_with('a') => format!("{stem}ies"),
            _ => format!("{}s", kind.to_lowercase()),
        };
        let known = outrigger_rules::foreign_kinds().map(|(group, kind)| (group.to_owned(), plural(kind)));
        let mut known: Vec<(String, String)> = known.collect();
        known.sort();
        assert_eq!(shown, known);
    }

    #[test]
    fn the_agents_say_that_they_are_unconfined_as_their_cluster_reads_it() {
        let mut values = Values::defaults().unwrap();
        values.set("cni.enabled=true").unwrap();
        let (annotation, field) = (
            "container.apparmor.security.beta.kubernetes.io/cni: unconfined",
            "appArmorProfile: {type: Unconfined}",
        );
        for (release, old) in
            [(None, false), (Some("v1.30.1"), false), (Some("1.29"), true), (Some("1.27"), true)]
        {
            values.render_for(release.map(|text| text.parse().unwrap()));
            let text = manifest(NAMESPACE, &values).unwrap();
            assert_eq!((text.contains(annotation), text.contains(field)), (old, !old), "{release:?}");
        }
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
