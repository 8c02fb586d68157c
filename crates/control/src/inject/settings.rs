//! What an operator sets about sidecars that are injected: a section of the control plane's settings, or a file of its own.

use std::collections::BTreeMap;
use std::net::{Ipv6Addr, SocketAddr};

use anyhow::bail;
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::{Value, json};

use super::{Fields, Release};

/// The word for what the cluster decides.
const AUTO: &str = "auto";

/// The injector.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct InjectSettings {
    /// Where the webhook listens. Default `[::]:15017`, every address.
    pub address: SocketAddr,
    /// The MutatingWebhookConfiguration whose `caBundle` is kept. Default `outrigger-injector`.
    pub webhook: String,
    /// The ValidatingWebhookConfiguration of which the same holds. Default `outrigger-validator`.
    pub validating_webhook: String,
    /// What becomes of a rule for which there was no time, as that configuration says of those that nobody was asked about: it is stored (`Ignore`),
    /// or not (`Fail`). Default `Ignore`.
    pub validation_failure_policy: FailurePolicy,
    /// The sidecar's image. Required.
    pub image: String,
    /// When it is pulled. Default: as Kubernetes does by the image's tag.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image_pull_policy: Option<String>,
    /// Secrets by which it is pulled, added to those of the Pod: they must be in the Pod's namespace. Default none.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub image_pull_secrets: Vec<PullSecret>,
    /// The control plane as sidecars reach it, `host:port`. Default `outrigger-control.outrigger-system.svc:15012`.
    pub control_plane: String,
    /// Which sidecars are ours to inject. Default: those of whoever names no revision, or `default`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub revision: Option<String>,
    /// As an init container that goes on. Default: where all of the cluster is of Kubernetes 1.29 or newer.
    pub native_sidecar: NativeSidecar,
    /// With a container that installs the rules of interception; false where something else does. Default true.
    pub init_container: bool,
    /// The CNI plugin installs them: in place of that container there is one that has no privilege, and ends well only if they are
    /// there. Default false.
    pub cni: bool,
    /// Without native sidecars: no container starts before the sidecar is ready. Default false.
    pub hold_application_until_proxy_starts: bool,
    /// The application's HTTP, TCP and gRPC probes go through the sidecar. Default true.
    pub rewrite_probes: bool,
    /// The sidecar answers the workload's DNS queries. Default false.
    pub dns: bool,
    /// Annotations by which a Prometheus finds the sidecar's metrics, where a Pod has none of the kind. Default true.
    pub prometheus: bool,
    /// Those of a Pod that has some lead to the sidecar, which answers for the application, too. Default true.
    pub merge_metrics: bool,
    /// Pods have Istio's label for sidecars that speak mTLS: sidecars of Istio have the mesh's roots, too. Default false: they call ours in plain
    /// text.
    pub istio_peers: bool,
    /// The sidecar's log filter. Default `info`.
    pub log_level: String,
    /// `requests` and `limits` of the sidecar. Default 50m and 64Mi, at most 2 and 1Gi.
    pub resources: Value,
    /// Laid over the bootstrap, field by field (RFC 7386), such as `tracing`.
    #[serde(skip_serializing_if = "Fields::is_empty")]
    pub bootstrap: Fields,
    /// Laid over the sidecar's container in the same way.
    #[serde(skip_serializing_if = "Fields::is_empty")]
    pub sidecar: Fields,
    /// Parts of a Pod by name, laid over those Pods that name them.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub templates: BTreeMap<String, Fields>,
    /// Those of Pods that name none.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub default_templates: Vec<String>,
}

/// As Kubernetes calls it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum FailurePolicy {
    /// What nobody has judged passes.
    #[default]
    Ignore,
    /// It does not.
    Fail,
}

/// A Secret by its name, as a Pod has them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PullSecret {
    /// The name.
    pub name: String,
}

/// What kind of container a sidecar is, `auto`, `true` or `false`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum NativeSidecar {
    /// An init container that goes on, unless the cluster is known to be too old.
    #[default]
    Auto,
    /// An init container that goes on.
    Yes,
    /// A container as others.
    No,
}

impl NativeSidecar {
    /// Whether it is one in such a cluster. What is not known is not too old: nobody runs such a cluster for long.
    pub(super) fn is_native(self, kubernetes: Option<Release>) -> bool {
        match self {
            Self::Auto => kubernetes.is_none_or(|release| release >= Release::NATIVE_SIDECARS),
            Self::Yes => true,
            Self::No => false,
        }
    }
}

impl Serialize for NativeSidecar {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Auto => to.serialize_str(AUTO),
            Self::Yes => to.serialize_bool(true),
            Self::No => to.serialize_bool(false),
        }
    }
}

impl<'de> Deserialize<'de> for NativeSidecar {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        match Value::deserialize(from)? {
            Value::Bool(true) => Ok(Self::Yes),
            Value::Bool(false) => Ok(Self::No),
            Value::String(word) if word == AUTO => Ok(Self::Auto),
            other => Err(D::Error::custom(format!("nativeSidecar: {other} is not auto, true or false"))),
        }
    }
}

impl Default for InjectSettings {
    fn default() -> Self {
        Self {
            address: SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), 15017),
            webhook: "outrigger-injector".to_owned(),
            validating_webhook: "outrigger-validator".to_owned(),
            validation_failure_policy: FailurePolicy::Ignore,
            image: String::new(),
            image_pull_policy: None,
            image_pull_secrets: Vec::new(),
            control_plane: "outrigger-control.outrigger-system.svc:15012".to_owned(),
            revision: None,
            native_sidecar: NativeSidecar::Auto,
            init_container: true,
            cni: false,
            hold_application_until_proxy_starts: false,
            rewrite_probes: true,
            dns: false,
            prometheus: true,
            merge_metrics: true,
            istio_peers: false,
            log_level: "info".to_owned(),
            // Without a limit of CPU a sidecar would have a worker for each CPU of its node.
            resources: json!({
                "requests": {"cpu": "50m", "memory": "64Mi"},
                "limits": {"cpu": "2", "memory": "1Gi"},
            }),
            bootstrap: Fields::new(),
            sidecar: Fields::new(),
            templates: BTreeMap::new(),
            default_templates: Vec::new(),
        }
    }
}

impl InjectSettings {
    /// What cannot work.
    ///
    /// # Errors
    /// Names the setting.
    pub fn validate(&self) -> anyhow::Result<()> {
        if self.image.trim().is_empty() {
            bail!("image: the sidecar's image must be named");
        }
        let policies = ["Always", "IfNotPresent", "Never"];
        if let Some(policy) = self.image_pull_policy.as_deref().filter(|policy| !policies.contains(policy)) {
            bail!("imagePullPolicy: \"{policy}\" is none of {}", policies.join(", "));
        }
        if self.image_pull_secrets.iter().any(|secret| secret.name.is_empty()) {
            bail!("imagePullSecrets: each is the name of a Secret, such as [{{name: registry}}]");
        }
        let port = self
            .control_plane
            .rsplit_once(':')
            .and_then(|(host, port)| port.parse::<u16>().ok().filter(|port| *port > 0 && !host.is_empty()));
        if port.is_none() {
            bail!("controlPlane: \"{}\" is not host:port", self.control_plane);
        }
        let label = |text: &str| {
            let edge = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphanumeric());
            text.len() <= 63
                && edge(text.chars().next())
                && edge(text.chars().last())
                && text.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'))
        };
        if let Some(revision) = self.revision.as_deref().filter(|revision| !label(revision)) {
            bail!("revision: \"{revision}\" cannot be the value of a label");
        }
        if !is_log_filter(&self.log_level) {
            bail!("logLevel: \"{}\" is not a filter such as info,outrigger_proxy=debug", self.log_level);
        }
        super::templates::validate(&self.templates, &self.default_templates)?;
        super::needs::kept(&self.sidecar, "sidecar")?;
        super::needs::merged(&self.sidecar, "sidecar")?;
        if !self.resources.is_object() {
            bail!("resources: is not a mapping with requests and limits");
        }
        Ok(())
    }

    /// The revision that this is.
    pub(super) fn revision(&self) -> &str {
        self.revision.as_deref().unwrap_or(super::DEFAULT_REVISION)
    }
}

/// What a filter is made of; the sidecar must not fail to start over it.
pub(super) fn is_log_filter(text: &str) -> bool {
    let level = |text: &str| {
        ["trace", "debug", "info", "warn", "error", "off"]
            .iter()
            .any(|level| text.eq_ignore_ascii_case(level))
    };
    let target = |text: &str| {
        !text.is_empty() && text.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | ':' | '-'))
    };
    text.split(',').all(|part| match part.split_once('=') {
        Some((name, of)) => target(name) && level(of),
        None => level(part),
    })
}
