//! The authority that all replicas share, in a Secret of their namespace.
//!
//! Whoever comes first makes it, and the others read it. An authority that a volume has from before there were replicas is carried over
//! into the Secret, once. No authority ever takes the place of another that sidecars trust: whoever finds that it would does not start,
//! or goes on as it was. So the Secret also says which roots there have been, and a replica that has missed a rotation knows the new ones.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, bail};
use outrigger_identity::authority::files::{self, Files, Step};
use outrigger_identity::state_dir::write_private;
use outrigger_identity::{Authority, AuthorityOptions};

use super::Trouble;
use super::document::{Document, Fields};

/// Of which trust domain it is.
const TRUST_DOMAIN: &str = "trust-domain";
/// SHA-256 of each root that there ever was, the latest last.
const LINEAGE: &str = "lineage";
/// Of them are remembered.
const MOST_ROOTS: usize = 64;
/// In the directory of an authority that is in the Secret now.
const CARRIED: &str = "carried-over";

/// What this replica knows of an authority from before.
pub(super) struct Before {
    /// Where one was made, before there were replicas.
    pub(super) directory: PathBuf,
    /// Roots that sidecars which joined here were given, by the store.
    pub(super) roots: Vec<String>,
    /// Whose roots API servers have been told: there was another control plane.
    pub(super) told: Option<String>,
}

/// The authority as it is shared.
#[derive(Clone)]
pub(crate) struct Keys {
    document: Document,
    options: AuthorityOptions,
}

impl Keys {
    pub(super) fn new(document: Document, options: AuthorityOptions) -> Self {
        Self { document, options }
    }

    /// The shared authority, which is made where there is none.
    pub(super) async fn open(&self, before: Before) -> anyhow::Result<Authority> {
        let place = self.document.place();
        let directory = before.directory.clone();
        let made = tokio::task::spawn_blocking(move || made_in(&directory)).await??;
        if self.document.read().await?.is_none() {
            let files = match &made {
                Some(files) => files.clone(),
                None => self.first(&before)?,
            };
            if self.document.create(&self.fields(&Fields::new(), files)?).await? {
                let how = if made.is_some() { "carried over from the volume" } else { "made" };
                tracing::info!(secret = %place, "the certificate authority was {how}");
            }
        }
        let found = self.document.read().await?.with_context(|| format!("{place} is gone again"))?;
        self.is_ours(&found.fields, &before, made.as_ref())?;
        // Also where nothing was on the volume: whoever starts from it without replicas would make another.
        let note = format!("Its keys are in {place}, where replicas share them.\n");
        let directory = before.directory.clone();
        tokio::task::spawn_blocking(move || noted(&directory, &note)).await??;
        self.step(Step::RenewIssuer).await?;
        let files = files_of(&self.document.latest().fields);
        Ok(Authority::of_files(&files, Path::new(&place), self.options.clone())?)
    }

    /// One where there is none, if there was none.
    fn first(&self, before: &Before) -> anyhow::Result<Files> {
        let place = self.document.place();
        let sign = match (before.roots.first(), &before.told) {
            (Some(root), _) => format!("the volume of this replica knows its root {}", short(root)),
            (None, Some(webhook)) => format!("{webhook} has its roots"),
            (None, None) => return Ok(files::made(&self.options)?),
        };
        bail!(
            "there is no {place}, but this mesh has had an authority: {sign}. A new one would be trusted by no sidecar. Restore the \
             Secret from a backup; after a release without replicas start with one, which carries its authority over. To begin anew, \
             with sidecars that all start anew, too, delete the volumes of the control plane and its webhook configurations, and \
             install it again"
        )
    }

    /// Whether what is shared is what this replica knows.
    fn is_ours(&self, fields: &Fields, before: &Before, made: Option<&Files>) -> anyhow::Result<()> {
        let (place, own) = (self.document.place(), &self.options.trust_domain);
        match fields.get(TRUST_DOMAIN) {
            Some(domain) if domain != own => {
                bail!("{place} is of trust domain \"{domain}\", but trustDomain is \"{own}\"; set it back")
            }
            _ => {}
        }
        let made = made.map(|files| files::fingerprints(files, &before.directory)).transpose()?;
        for known in [made.unwrap_or_default(), before.roots.clone()] {
            if !known.is_empty() && !known.iter().any(|root| has_had(fields, root)) {
                bail!(
                    "the authority in {place} is not the one of this replica's volume (root {}, there {}), which sidecars trust. \
                     One of them is of another mesh: delete the volume if it is this replica's, else restore the Secret",
                    short(&known[0]),
                    fields.get(LINEAGE).and_then(|all| all.lines().last()).map_or("none", short),
                );
            }
        }
        Ok(())
    }

    /// What is written of these files, over what there was.
    fn fields(&self, before: &Fields, files: Files) -> Result<Fields, Trouble> {
        let roots = files::fingerprints(&files, Path::new(&self.document.place()));
        let mut lineage: Vec<String> =
            before.get(LINEAGE).into_iter().flat_map(|all| all.lines()).map(str::to_owned).collect();
        for root in roots.map_err(|error| Trouble::Wrong(error.to_string()))?.into_iter().rev() {
            if !lineage.contains(&root) {
                lineage.push(root);
            }
        }
        lineage.drain(..lineage.len().saturating_sub(MOST_ROOTS));
        let mut fields = Fields::from_iter(files);
        fields.insert(TRUST_DOMAIN.to_owned(), self.options.trust_domain.clone());
        fields.insert(LINEAGE.to_owned(), lineage.join("\n"));
        Ok(fields)
    }

    /// Takes a step with it, for all replicas.
    pub(crate) async fn step(&self, step: Step) -> Result<(), Trouble> {
        let place = self.document.place();
        self.document
            .change(|fields| {
                let files = files_of(fields);
                let after = step.of(&files, Path::new(&place), &self.options);
                let after = after.map_err(|error| Trouble::Wrong(error.to_string()))?;
                if after != files {
                    *fields = self.fields(fields, after)?;
                }
                Ok(())
            })
            .await
    }

    /// Goes on with what others have made of it.
    pub(super) async fn follow(self, authority: Arc<Authority>) {
        let mut changes = self.document.subscribe();
        loop {
            let latest = changes.borrow_and_update().clone();
            if let Err(why) = self.adopt(&latest.fields, &authority) {
                tracing::error!(secret = %self.document.place(), %why, "what has become of the authority is not taken; the one before goes on signing");
            }
            if changes.changed().await.is_err() {
                return;
            }
        }
    }

    /// Has it in force here now: whoever asked for a step is answered by what it made.
    pub(crate) fn take(&self, authority: &Authority) -> Result<(), String> {
        self.adopt(&self.document.latest().fields, authority)
    }

    fn adopt(&self, fields: &Fields, authority: &Authority) -> Result<(), String> {
        let place = self.document.place();
        let present = authority.fingerprints();
        if !present.iter().any(|root| has_had(fields, root)) {
            return Err(
                "none of the roots that sidecars trust is or was in it: restore it from a backup".to_owned()
            );
        }
        let adopted = authority.adopt(&files_of(fields), Path::new(&place));
        if adopted.map_err(|error| error.to_string())? {
            tracing::info!(secret = %place, roots = ?authority.fingerprints(), "the certificate authority is another");
        }
        Ok(())
    }
}

/// Refuses a directory whose authority is elsewhere now. Blocks.
pub(crate) fn was_carried(directory: &Path) -> anyhow::Result<()> {
    let note = directory.join(CARRIED);
    if let Ok(text) = std::fs::read_to_string(&note) {
        bail!(
            "the authority in {} is not up to date: {} Keep `replicas` in the settings. To go on with one control plane alone, put the \
             Secret's root.pem, issuer.pem and issuer.key there (its root cannot be rotated then), remove {}, and revoke anew who is in the \
             Secret of revocations before any sidecar asks it: those, and join tokens, are not on this volume either",
            directory.display(),
            text.trim(),
            note.display()
        );
    }
    Ok(())
}

/// Writes down where the authority is now. Blocks.
fn noted(directory: &Path, note: &str) -> anyhow::Result<()> {
    if directory.join(CARRIED).exists() {
        return Ok(());
    }
    std::fs::create_dir_all(directory).with_context(|| directory.display().to_string())?;
    Ok(write_private(&directory.join(CARRIED), note.as_bytes())?)
}

/// An authority of before there were replicas, which is in no Secret yet. Blocks.
fn made_in(directory: &Path) -> anyhow::Result<Option<Files>> {
    if directory.join(CARRIED).exists() { Ok(None) } else { Ok(files::made_in(directory)?) }
}

fn files_of(fields: &Fields) -> Files {
    let own = |name: &String| name != TRUST_DOMAIN && name != LINEAGE;
    fields.iter().filter(|(name, _)| own(name)).map(|(name, text)| (name.clone(), text.clone())).collect()
}

fn has_had(fields: &Fields, root: &str) -> bool {
    fields.get(LINEAGE).is_some_and(|all| all.lines().any(|known| known == root))
}

fn short(fingerprint: &str) -> &str {
    fingerprint.get(..16).unwrap_or(fingerprint)
}
