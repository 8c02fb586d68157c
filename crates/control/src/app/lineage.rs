//! Whose data directory this is: its trust domain, and the roots that the sidecars which joined here know.
//!
//! Another trust domain makes everything in it worthless, so the control plane refuses to start. A lost authority cannot be
//! mended here, but nobody should have to find out from sidecars that fall silent one by one.

use std::path::Path;
use std::sync::Arc;

use anyhow::bail;
use outrigger_identity::Authority;

use crate::settings::Settings;
use crate::store::{Contents, Mutation, Store, StoreError};

const TRUST_DOMAIN: &str = "trust-domain";
const ROOTS: &str = "roots";
const ORIGIN: &str = "origin";

/// Refuses a data directory of another trust domain.
pub(super) fn check(settings: &Settings, contents: &Contents) -> anyhow::Result<()> {
    // Before this was written down, tokens and registrations were the only ones to know.
    let by_token = || contents.tokens.first().map(|token| token.identity.trust_domain().to_owned());
    let by_instance =
        || contents.instances.iter().find_map(|stored| Some(stored.by.as_ref()?.trust_domain().to_owned()));
    let known = contents.facts.get(TRUST_DOMAIN).cloned().or_else(by_token).or_else(by_instance);
    match known {
        Some(known) if known != settings.trust_domain => bail!(
            "the data directory {} is of trust domain \"{known}\", but trustDomain is \"{}\": no sidecar, token or \
             certificate of the one is good in the other. Set trustDomain back, or start with another data directory",
            settings.data_dir.display(),
            settings.trust_domain
        ),
        _ => Ok(()),
    }
}

/// What an operator must hear when none of the roots that sidecars know is there any more.
pub(super) fn lost_authority(contents: &Contents, authority: &Authority, directory: &Path) -> Option<String> {
    let known = contents.facts.get(ROOTS)?;
    let now = roots(authority);
    if known.split(',').any(|root| now.split(',').any(|of_now| of_now == root)) {
        return None;
    }
    let notice = format!(
        "the certificate authority in {} is not the one that the sidecars of this data directory trust (root {}, now {}): \
         they will refuse this control plane and each other's new certificates. Restore the old authority from a backup \
         and restart, or let every workload join again with a new token",
        directory.display(),
        short(known),
        short(&now),
    );
    tracing::error!("{notice}");
    Some(notice)
}

/// Who this control plane is in the registries that it writes to: a random word, the same for ever.
pub(super) async fn origin(store: &Arc<dyn Store>, contents: &Contents) -> Result<Arc<str>, StoreError> {
    if let Some(known) = contents.facts.get(ORIGIN) {
        return Ok(known.as_str().into());
    }
    let value = format!("{:016x}", fastrand::u64(..));
    store.clone().commit(vec![Mutation::PutFact { name: ORIGIN, value: value.clone() }]).await?;
    Ok(value.into())
}

/// Writes down whose data directory this is from now on.
pub(super) async fn record(store: &Arc<dyn Store>, authority: &Authority) -> Result<(), StoreError> {
    let facts = vec![
        Mutation::PutFact { name: TRUST_DOMAIN, value: authority.trust_domain().to_owned() },
        Mutation::PutFact { name: ROOTS, value: roots(authority) },
    ];
    store.clone().commit(facts).await
}

/// The same when the roots have changed.
pub(super) async fn record_roots(store: &Arc<dyn Store>, authority: &Arc<Authority>) {
    let fact = Mutation::PutFact { name: ROOTS, value: roots(authority) };
    if let Err(error) = store.clone().commit(vec![fact]).await {
        tracing::error!(%error, "the new roots could not be written down");
    }
}

/// Fingerprints of all roots, SHA-256, with commas.
fn roots(authority: &Authority) -> String {
    authority.fingerprints().join(",")
}

/// Those that are written down.
pub(super) fn known_roots(contents: &Contents) -> Vec<String> {
    let known = contents.facts.get(ROOTS).map(String::as_str).unwrap_or_default();
    known.split(',').filter(|root| !root.is_empty()).map(str::to_owned).collect()
}

fn short(fingerprints: &str) -> &str {
    fingerprints.get(..16).unwrap_or(fingerprints)
}
