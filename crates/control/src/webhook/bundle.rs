//! Keeps the API server's idea of whom to trust at a webhook: `caBundle` of its configuration is our roots.
//!
//! Set at start, when the roots change, and looked at every minute: an installation that is applied anew takes it away.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use kube::api::{ApiResource, DynamicObject, GroupVersionKind, Patch, PatchParams};
use kube::{Api, Client};
use outrigger_identity::Authority;
use serde_json::{Value, json};

use crate::registry::kubernetes::KubernetesSettings;
use crate::replicas::leader::{Leadership, WRITE};

/// Between two looks.
const PERIOD: Duration = Duration::from_secs(60);
/// After a failure.
const RETRY: Duration = Duration::from_secs(5);
/// Whose change this is.
const WHO: &str = "outrigger-control";

/// Keeps it, for ever: the kind of the configuration, and its name.
pub(crate) async fn keep(
    cluster: KubernetesSettings,
    (kind, webhook): (&'static str, String),
    authority: Arc<Authority>,
    leadership: Leadership,
) {
    let mut roots = authority.subscribe();
    let mut told: Option<String> = None;
    loop {
        leadership.lead().await;
        roots.mark_unchanged();
        let pem = authority.bundle().to_pem(authority.trust_domain());
        let outcome =
            match tokio::time::timeout(WRITE, once(&cluster, kind, &webhook, &pem, &leadership)).await {
                Ok(outcome) => outcome,
                Err(_) => Err(format!("the API server did not answer within {WRITE:?}")),
            };
        let pause = match &outcome {
            Ok(changed) => {
                if *changed || told.is_some() {
                    tracing::info!(kind, webhook, "the webhook configuration has our roots");
                }
                told = None;
                PERIOD
            }
            Err(error) => {
                // Once for each reason: an installation without a webhook is no emergency.
                if told.as_ref() != Some(error) {
                    tracing::warn!(kind, webhook, %error, "the caBundle of the webhook configuration cannot be kept");
                }
                told = Some(error.clone());
                RETRY
            }
        };
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            changed = roots.changed() => if changed.is_err() { return },
        }
    }
}

/// Says whether anything had to be changed.
async fn once(
    cluster: &KubernetesSettings,
    kind: &str,
    name: &str,
    roots: &str,
    leadership: &Leadership,
) -> Result<bool, String> {
    let client: Client = cluster.client().await?;
    let all = configurations(client, kind);
    let now = all.get(name).await.map_err(|error| error.to_string())?;
    let Some(mut patch) = patch(&now.data, roots) else { return Ok(false) };
    // Whoever has changed it meanwhile is not overwritten, and what he has taken out does not come back.
    patch["metadata"] = json!({"resourceVersion": now.metadata.resource_version});
    if !leadership.leads() {
        return Ok(false);
    }
    let params = PatchParams { field_manager: Some(WHO.to_owned()), ..PatchParams::default() };
    let changed = all.patch(name, &params, &Patch::Strategic(patch)).await;
    changed.map(|_| true).map_err(|error| error.to_string())
}

fn configurations(client: Client, kind: &str) -> Api<DynamicObject> {
    let resource = ApiResource::from_gvk(&GroupVersionKind::gvk("admissionregistration.k8s.io", "v1", kind));
    Api::all_with(client, &resource)
}

/// Which of these configurations trusts somebody already.
///
/// # Errors
/// Nobody says.
pub(crate) async fn told(client: Client, all: &[(&'static str, String)]) -> anyhow::Result<Option<String>> {
    for (kind, name) in all {
        let asked = tokio::time::timeout(WRITE, configurations(client.clone(), kind).get_opt(name)).await;
        let found = asked.with_context(|| format!("whether {kind} {name} trusts somebody"))??;
        let Some(found) = found else { continue };
        let webhooks = found.data["webhooks"].as_array().into_iter().flatten();
        let mut bundles = webhooks.map(|webhook| &webhook["clientConfig"]["caBundle"]);
        if bundles.any(|bundle| bundle.as_str().is_some_and(|text| !text.is_empty())) {
            return Ok(Some(format!("{kind} {name}")));
        }
    }
    Ok(None)
}

/// Webhooks are merged by name, so nothing else of them is touched.
fn patch(now: &Value, roots: &str) -> Option<Value> {
    let roots = STANDARD.encode(roots);
    let all = now["webhooks"].as_array().into_iter().flatten();
    let stale = all.filter(|webhook| webhook["clientConfig"]["caBundle"] != roots.as_str());
    let webhooks: Vec<Value> =
        stale.map(|webhook| json!({"name": webhook["name"], "clientConfig": {"caBundle": &roots}})).collect();
    (!webhooks.is_empty()).then(|| json!({"webhooks": webhooks}))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_stale_is_changed() {
        let config = |bundles: [Option<&str>; 2]| {
            let webhook = |(n, bundle): (usize, &Option<&str>)| {
                let bundle = bundle.map(|text| STANDARD.encode(text));
                json!({"name": format!("w{n}.outrigger.io"), "clientConfig": {"caBundle": bundle}})
            };
            json!({"webhooks": bundles.iter().enumerate().map(webhook).collect::<Vec<Value>>()})
        };
        assert_eq!(patch(&config([Some("roots"), Some("roots")]), "roots"), None);
        let patch = patch(&config([Some("roots"), None]), "roots").unwrap();
        assert_eq!(
            patch,
            json!({"webhooks": [{"name": "w1.outrigger.io", "clientConfig": {"caBundle": "cm9vdHM="}}]})
        );
    }
}
