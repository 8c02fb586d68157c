//! What the sidecar's container does not start without, whoever lays something over it.

use anyhow::bail;
use serde_json::Value;

use super::Fields;

/// Whether what is laid over the sidecar leaves it what it cannot start without, and who it is.
pub(super) fn kept(over: &Fields, at: &str) -> anyhow::Result<()> {
    let needed = ["image", "env", "volumeMounts", "securityContext", "restartPolicy"];
    if let Some(field) = needed.iter().find(|field| over.get(**field).is_some_and(Value::is_null)) {
        bail!("{at}.{field}: null would take out what the sidecar needs there; name what is to be laid over");
    }
    let context = over.get("securityContext");
    if context.is_some_and(|context| !context.is_object() || context.get("runAsUser").is_some()) {
        bail!(
            "{at}.securityContext.runAsUser: must stay {}, by which the rules of interception know the sidecar's own connections: as another \
             user it would be brought its own",
            super::UID
        );
    }
    Ok(())
}

/// Whether what is laid over it by RFC 7386, which merges no lists, leaves those that it needs.
pub(super) fn merged(over: &Fields, at: &str) -> anyhow::Result<()> {
    if let Some(list) = ["env", "volumeMounts"].into_iter().find(|list| over.contains_key(*list)) {
        bail!(
            "{at}.{list}: a list would stand in place of what the sidecar needs there; say what comes to it in a template, which is merged \
             entry by entry"
        );
    }
    Ok(())
}
