//! What differs where a control plane is one of several: the store is theirs, and the authority.

use std::sync::Arc;

use anyhow::Context;
use outrigger_identity::authority::files;
use outrigger_identity::{Authority, AuthorityOptions};

use super::lineage;
use crate::keeper::Keeper;
use crate::replicas::Joining;
use crate::replicas::keys::{Keys, was_carried};
use crate::settings::Settings;
use crate::store::{Contents, Mutation, Store, StoreError};
use crate::webhook;

const LOST: &str = "lost-revocations";

/// What is shared, found before anything is opened; the store goes over that of the data directory.
pub(super) async fn begin(
    settings: &Settings,
    local: Arc<dyn Store>,
) -> anyhow::Result<(Option<Joining>, Arc<dyn Store>)> {
    let Some((replicas, cluster)) = settings.replicas.clone().zip(settings.cluster()) else {
        alone(settings).await?;
        return Ok((None, local));
    };
    let joining = Joining::begin(replicas, &cluster).await?;
    let store = joining.store(local).await?;
    Ok((Some(joining), store))
}

/// One that shares nothing makes an authority where it has none: not where it had been another, whose volume went with its Pod.
async fn alone(settings: &Settings) -> anyhow::Result<()> {
    let directory = settings.authority_path();
    let has_one = tokio::task::spawn_blocking(move || {
        was_carried(&directory)?;
        anyhow::Ok(files::is_provided(&directory) || files::made_in(&directory)?.is_some())
    });
    if has_one.await?? {
        return Ok(());
    }
    let Some((cluster, injector)) = settings.cluster().zip(settings.injector.as_ref()) else { return Ok(()) };
    let client = cluster.client().await.map_err(anyhow::Error::msg)?;
    match webhook::bundle::told(client, &webhook::configurations(injector)).await? {
        None => Ok(()),
        Some(webhook) => anyhow::bail!(
            "there is no authority in {}, but this mesh has had one: {webhook} has its roots. A new one would be trusted by no sidecar. \
             Bring back its root.pem, issuer.pem and issuer.key (the Secret outrigger-authority has them where there were replicas), \
             and give a control plane without `replicas` a volume (`storage` of the chart), or it loses them with its Pod. To begin \
             anew, with sidecars that all start anew, too, delete the webhook configurations and install it again",
            settings.authority_path().display()
        ),
    }
}

/// The authority that replicas share, and what an operator must know of it; none where there are no others, or an operator has provided one,
/// which each of them opens for itself.
pub(super) async fn authority(
    (joining, store): (Option<&Joining>, &Arc<dyn Store>),
    settings: &Settings,
    options: AuthorityOptions,
    contents: &Contents,
) -> anyhow::Result<(Option<(Authority, Keys)>, Option<String>)> {
    let Some(joining) = joining else { return Ok((None, None)) };
    let directory = settings.authority_path();
    let place = directory.clone();
    let provided = tokio::task::spawn_blocking(move || files::is_provided(&place)).await;
    if provided.context("opening the authority")? {
        return Ok((None, lost_revocations(joining, false, store, contents).await?));
    }
    let had = joining.has_authority().await?;
    // Before the authority: whoever finds that finds these.
    let lost = lost_revocations(joining, had, store, contents).await?;
    let told = match (had, &settings.injector) {
        (false, Some(injector)) => {
            webhook::bundle::told(joining.client(), &webhook::configurations(injector)).await?
        }
        _ => None,
    };
    let roots = lineage::known_roots(contents);
    Ok((Some(joining.authority(options, directory, roots, told).await?), lost))
}

/// That a list of who is revoked was lost. It is there again, empty, from then on; so it is written down here until somebody has mended it,
/// which a start is no sign of.
async fn lost_revocations(
    joining: &Joining,
    had_authority: bool,
    store: &Arc<dyn Store>,
    contents: &Contents,
) -> anyhow::Result<Option<String>> {
    let found =
        joining.revocations(had_authority, async |notice: &str| Ok(note(store, notice).await?)).await?;
    let noted = contents.facts.get(LOST).filter(|notice| !notice.is_empty());
    if noted.is_some() && !contents.revoked.is_empty() {
        note(store, "").await?;
        return Ok(None);
    }
    Ok(found.or_else(|| noted.cloned()))
}

/// Once somebody is revoked an operator has seen to it: from the next start on nothing is said any more, even if nobody is revoked then.
pub(super) async fn mended(keeper: Keeper, store: Arc<dyn Store>) {
    let mut generation = keeper.subscribe();
    while keeper.published().revocations.is_empty() {
        if generation.changed().await.is_err() {
            return;
        }
    }
    if let Err(error) = note(&store, "").await {
        tracing::warn!(%error, "that somebody was revoked again is not written down");
    }
}

async fn note(store: &Arc<dyn Store>, lost: &str) -> Result<(), StoreError> {
    store.clone().commit(vec![Mutation::PutFact { name: LOST, value: lost.to_owned() }]).await
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use outrigger_identity::Revocation;

    use super::*;
    use crate::keeper::tests::keeper;

    #[tokio::test]
    async fn that_revocations_were_lost_is_said_until_somebody_is_revoked() {
        let (keeper, memory) = keeper().await;
        let store: Arc<dyn Store> = memory.clone();
        note(&store, "they were lost").await.unwrap();
        let watching = tokio::spawn(mended(keeper.clone(), store));
        for _ in 0..20 {
            tokio::task::yield_now().await;
        }
        assert_eq!(memory.contents().facts[LOST], "they were lost");
        keeper.revoke(Revocation::parse("serial:1").unwrap(), "ann").await.unwrap();
        tokio::time::timeout(Duration::from_secs(20), watching).await.unwrap().unwrap();
        assert_eq!(memory.contents().facts[LOST], "");
    }
}
