//! The containers and volumes that a Pod gets, and where they stand.
//!
//! ```text
//! native: outrigger-init, outrigger-proxy (goes on), the Pod's init containers | the Pod's containers
//! plain:                                  the Pod's init containers, outrigger-init | outrigger-proxy, the Pod's containers
//! ```
//!
//! With a CNI plugin outrigger-validation stands first, in place of outrigger-init.
//!
//! A native sidecar serves init containers too. A plain one does not run yet when they do, so what they call must not be brought to it:
//! the rules come last.

use json_patch::merge;
use serde_json::{Value, json};

use super::wishes::Wishes;
use super::{Fields, INIT, InjectError, InjectSettings, SIDECAR, UID, VALIDATION, list};
use crate::canonical::BOOTSTRAP;
use crate::service_accounts::AUDIENCE;

pub(super) const METRICS_PORT: u16 = 15020;
pub(super) const HEALTH_PORT: u16 = 15021;

/// Seconds that a Pod has for its end, unless it says how many.
const GRACE: u64 = 30;
/// Seconds that a sidecar takes for its own: those in which it accepts connections still, and some for what is under way.
const OWN_END: u64 = 10;

pub(super) const STATE_VOLUME: &str = "outrigger-state";
pub(super) const STATE_PLACE: &str = "/var/lib/outrigger";
pub(super) const TOKEN_VOLUME: &str = "outrigger-token";
pub(super) const TOKEN_PLACE: &str = "/var/run/secrets/outrigger";
pub(super) const TOKEN_FILE: &str = "token";

/// Adds them.
pub(super) fn add(
    spec: &mut Fields,
    text: &str,
    wishes: &Wishes,
    settings: &InjectSettings,
) -> Result<(), InjectError> {
    let name = first(settings);
    let init = name.map(|name| init(name, wishes, settings));
    let sidecar = sidecar(text, spec, wishes, settings);
    if wishes.native {
        let before = init.into_iter().chain([sidecar]);
        list(spec, "initContainers")?.splice(0..0, before);
    } else {
        if let Some(init) = init {
            let all = list(spec, "initContainers")?;
            let place = if name == Some(INIT) { all.len() } else { 0 };
            all.insert(place, init);
        }
        list(spec, "containers")?.insert(0, sidecar);
    }
    list(spec, "volumes")?.extend([
        json!({"name": STATE_VOLUME, "emptyDir": {"medium": "Memory"}}),
        json!({"name": TOKEN_VOLUME, "projected": {"sources": [{"serviceAccountToken": {
            "audience": AUDIENCE, "expirationSeconds": 3600, "path": TOKEN_FILE,
        }}]}}),
    ]);
    Ok(())
}

/// What comes before the sidecar, for the sake of the rules.
pub(super) fn first(settings: &InjectSettings) -> Option<&'static str> {
    match (settings.cni, settings.init_container) {
        (true, _) => Some(VALIDATION),
        (false, true) => Some(INIT),
        (false, false) => None,
    }
}

fn container(name: &str, wishes: &Wishes, settings: &InjectSettings) -> Value {
    let mut container = json!({
        "name": name,
        // What has the privilege is the operator's image, whatever a Pod asks for.
        "image": if name == SIDECAR { &wishes.image } else { &settings.image },
        "resources": wishes.resources,
        "terminationMessagePolicy": "FallbackToLogsOnError",
    });
    if let Some(policy) = &settings.image_pull_policy {
        container["imagePullPolicy"] = policy.as_str().into();
    }
    container
}

/// Where Pods may have no other (PodSecurity, restricted), an application often says it of its own containers alone.
fn seccomp() -> Value {
    json!({"type": "RuntimeDefault"})
}

/// For the application to end: what the Pod has for all of it, but for what the sidecar needs then.
fn patience(spec: &Fields) -> u64 {
    let grace = spec.get("terminationGracePeriodSeconds").and_then(Value::as_u64).unwrap_or(GRACE);
    grace.saturating_sub(OWN_END).max(1)
}

/// Rules need the privilege, and only as long as they are made. Where a CNI plugin makes them, it finds their options here.
fn init(name: &str, wishes: &Wishes, settings: &InjectSettings) -> Value {
    let verb = if name == INIT { "apply" } else { "check" };
    let mut args = vec!["intercept".to_owned(), verb.to_owned()];
    args.extend(settings.dns.then(|| "--dns".to_owned()));
    args.extend(wishes.flags.iter().cloned());
    let mut init = container(name, wishes, settings);
    init["args"] = args.into();
    let (user, capabilities) = match name {
        INIT => (0, json!({"drop": ["ALL"], "add": ["NET_ADMIN", "NET_RAW"]})),
        _ => (UID, json!({"drop": ["ALL"]})),
    };
    init["securityContext"] = json!({
        "runAsUser": user, "runAsGroup": user, "runAsNonRoot": user != 0,
        "privileged": false, "allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true,
        "capabilities": capabilities, "seccompProfile": seccomp(),
    });
    init
}

fn sidecar(text: &str, spec: &Fields, wishes: &Wishes, settings: &InjectSettings) -> Value {
    let field =
        |name: &str, path: &str| json!({"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}});
    let ready = json!({"path": "/healthz/ready", "port": HEALTH_PORT});
    let mut sidecar = container(SIDECAR, wishes, settings);
    // What the bootstrap names stands before it: a kubelet expands only what it knows already.
    sidecar["env"] = json!([
        field("POD_NAME", "metadata.name"),
        field("POD_NAMESPACE", "metadata.namespace"),
        field("POD_IP", "status.podIP"),
        field("SERVICE_ACCOUNT", "spec.serviceAccountName"),
        field("NODE_NAME", "spec.nodeName"),
        {"name": BOOTSTRAP, "value": text},
    ]);
    sidecar["ports"] = json!([
        // By the end of this name scrape jobs that were written for Istio's sidecars find them.
        {"name": "http-envoy-prom", "containerPort": METRICS_PORT, "protocol": "TCP"},
        {"name": "mesh-health", "containerPort": HEALTH_PORT, "protocol": "TCP"},
    ]);
    sidecar["securityContext"] = json!({
        "runAsUser": UID, "runAsGroup": UID, "runAsNonRoot": true,
        "privileged": false, "allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true,
        "capabilities": {"drop": ["ALL"]}, "seccompProfile": seccomp(),
    });
    sidecar["startupProbe"] =
        json!({"httpGet": ready, "periodSeconds": 1, "timeoutSeconds": 3, "failureThreshold": 600});
    sidecar["readinessProbe"] =
        json!({"httpGet": ready, "periodSeconds": 15, "timeoutSeconds": 3, "failureThreshold": 4});
    sidecar["volumeMounts"] = json!([
        {"name": STATE_VOLUME, "mountPath": STATE_PLACE},
        {"name": TOKEN_VOLUME, "mountPath": TOKEN_PLACE, "readOnly": true},
    ]);
    if wishes.native {
        sidecar["restartPolicy"] = "Always".into();
    } else {
        // All containers are told to end at once: the application has the sidecar until it has ended.
        let timeout = format!("--timeout={}", patience(spec));
        let wait = json!({"exec": {"command": ["outrigger-proxy", "wait", "--for=alone", timeout]}});
        sidecar["lifecycle"] = json!({"preStop": wait});
        if wishes.hold {
            // Containers are started in turn, and the next waits for this.
            sidecar["lifecycle"]["postStart"] = json!({"exec": {"command": ["outrigger-proxy", "wait"]}});
        }
    }
    merge(&mut sidecar, &Value::Object(settings.sidecar.clone()));
    // It could not be found again under another name.
    sidecar["name"] = SIDECAR.into();
    sidecar
}
