//! The sidecar's bootstrap as a text in its environment, with names that the kubelet fills in.

use json_patch::merge;
use serde_json::{Value, json};

use super::wishes::Wishes;
use super::{Fields, InjectError, InjectSettings, Mesh, Names, containers};

/// The text. Where settings say something of their own they have the last word.
pub(super) fn text(
    names: &Names,
    probes: &Fields,
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
    if !probes.is_empty() {
        all["probes"] = probes.clone().into();
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
