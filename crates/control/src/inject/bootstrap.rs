//! The sidecar's bootstrap as a text in its environment, with names that the kubelet fills in.

use json_patch::merge;
use serde_json::{Value, json};

use super::wishes::Wishes;
use super::{Fields, InjectError, InjectSettings, Mesh, Names, containers};
use crate::canonical::BOOTSTRAP;

/// What the sidecar asks of the application in others' place.
pub(super) struct Application<'a> {
    pub(super) probes: &'a Fields,
    pub(super) metrics: Option<Value>,
}

/// A sidecar's bootstrap stays but for what it asks of the application, which is as in another's.
pub(super) fn keep(sidecar: &mut Value, other: &Value) {
    let is_it = |variable: &&Value| variable["name"] == BOOTSTRAP;
    let other = other["env"].as_array().into_iter().flatten().find(is_it);
    let Some(text) = other.and_then(|variable| variable["value"].as_str()) else { return };
    let Some(own) = sidecar["env"].as_array_mut() else { return };
    let Some(own) = own.iter_mut().find(|variable| is_it(&&**variable)) else { return };
    let read = |text: &str| serde_json::from_str::<Fields>(text).ok();
    let (Some(mut kept), Some(mut news)) = (own["value"].as_str().and_then(read), read(text)) else {
        own["value"] = text.into();
        return;
    };
    for asked in ["probes", "app_metrics"] {
        match news.remove(asked) {
            Some(how) => drop(kept.insert(asked.to_owned(), how)),
            None => drop(kept.remove(asked)),
        }
    }
    if let Ok(text) = serde_json::to_string_pretty(&kept) {
        own["value"] = text.into();
    }
}

/// The text. Where settings say something of their own they have the last word.
pub(super) fn text(
    names: &Names,
    application: Application<'_>,
    wishes: &Wishes,
    settings: &InjectSettings,
    mesh: &Mesh,
) -> Result<String, InjectError> {
    let mut all = json!({
        "node": {
            // As the control plane calls the instance of this Pod.
            "id": "$(POD_NAME).$(POD_NAMESPACE)",
            "namespace": "$(POD_NAMESPACE)",
            "service_account": "$(SERVICE_ACCOUNT)",
            "address": "$(POD_IP)",
            "workload": names.workload,
            "app": names.app,
            "version": names.version,
        },
        "join": {
            "address": settings.control_plane,
            "trust_domain": mesh.trust_domain,
            "roots": mesh.roots,
            "token_file": format!("{}/{}", containers::TOKEN_PLACE, containers::TOKEN_FILE),
        },
        // Below the volume, which is everybody's: the sidecar closes its own directory to others.
        "state_dir": format!("{}/state", containers::STATE_PLACE),
        "mode": "redirect",
        // Either family: a kubelet asks at the Pod's address, and a Pod may have but one of IPv6.
        "metrics": format!("[::]:{}", containers::METRICS_PORT),
        "health": format!("[::]:{}", containers::HEALTH_PORT),
        "log": {"level": wishes.log_level},
    });
    if !application.probes.is_empty() {
        all["probes"] = application.probes.clone().into();
    }
    if let Some(metrics) = application.metrics {
        all["app_metrics"] = metrics;
    }
    if settings.dns {
        all["dns"] = json!({"domain": mesh.domain});
    }
    for over in [&settings.bootstrap, &wishes.bootstrap] {
        merge(&mut all, &Value::Object(over.clone()));
    }
    // JSON, which is YAML: what a kubelet puts between quotes stays a text, be it a namespace called 404 or null.
    serde_json::to_string_pretty(&all).map_err(|error| InjectError::Written(error.to_string()))
}
