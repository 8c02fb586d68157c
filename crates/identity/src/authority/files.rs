//! An authority that somebody else keeps, such as several control planes together: everything of it is text, by the name of its file.
//!
//! What a step makes of it is computed from what is kept, so that whoever keeps it can compare and swap; an authority that runs
//! takes what has become of it.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use tokio::sync::watch;

use super::keys::{SigningSet, authority_error};
pub use super::store::Files;
use super::{Authority, AuthorityOptions, Current, store};
use crate::error::IdentityError;
use crate::provider;

/// What becomes of an authority that is kept as [`Files`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// As [`Authority::rotate_root`].
    RotateRoot,
    /// As [`Authority::forget_old_roots`], if the present root is as old as that.
    ForgetOldRoots(Duration),
    /// A new issuer where the present one is in the last fifth of its life.
    RenewIssuer,
}

impl Step {
    /// What the files are after it; the same where there is nothing to do.
    ///
    /// # Errors
    /// They cannot be read, or the crypto library refuses.
    pub fn of(self, files: &Files, place: &Path, options: &AuthorityOptions) -> Result<Files, IdentityError> {
        let keys = store::parsed(files, place)?;
        let after = match self {
            Self::RotateRoot => keys.rotated(options)?,
            Self::ForgetOldRoots(age) => {
                let is_old = SystemTime::now().duration_since(keys.root_made()).is_ok_and(|is| is >= age);
                if !is_old {
                    let why = "certificates under the old roots may be in use yet; wait, or force it";
                    return Err(authority_error(why));
                }
                keys.without_old_roots()?
            }
            Self::RenewIssuer if keys.needs_new_issuer(options) => keys.with_new_issuer(options)?,
            Self::RenewIssuer => return Ok(files.clone()),
        };
        Ok(store::written(&after))
    }
}

/// A new authority.
///
/// # Errors
/// When the crypto library refuses.
pub fn made(options: &AuthorityOptions) -> Result<Files, IdentityError> {
    SigningSet::generate(options).map(|keys| store::written(&keys))
}

/// The authority that was made in a directory, if there is one; one that was provided there is none. Blocks.
///
/// # Errors
/// It is damaged.
pub fn made_in(directory: &Path) -> Result<Option<Files>, IdentityError> {
    store::last(directory)
}

/// Whether an operator has put an authority into a directory. Blocks.
pub fn is_provided(directory: &Path) -> bool {
    store::is_provided(directory)
}

/// SHA-256 of all roots of an authority in hex, the one that signs first.
///
/// # Errors
/// They cannot be read.
pub fn fingerprints(files: &Files, place: &Path) -> Result<Vec<String>, IdentityError> {
    Ok(store::parsed(files, place)?.roots.iter().map(|root| provider::sha256_hex(root)).collect())
}

impl Authority {
    /// One that is kept elsewhere, at a `place` that messages name.
    ///
    /// # Errors
    /// Something of it is missing, cannot be read, or does not fit the rest.
    pub fn of_files(files: &Files, place: &Path, options: AuthorityOptions) -> Result<Self, IdentityError> {
        Self::from_keys(options, None, store::parsed(files, place)?)
    }

    /// Goes on with what has become of it where it is kept. Whether that is something else than before.
    ///
    /// # Errors
    /// It cannot be used; what was before stays.
    pub fn adopt(&self, files: &Files, place: &Path) -> Result<bool, IdentityError> {
        let _rotating = self.rotating.lock();
        let old = self.current.load_full();
        if store::written(&old.keys) == *files {
            return Ok(false);
        }
        let keys = Arc::new(store::parsed(files, place)?);
        let bundle = keys.bundle(&self.options.trust_domain)?.with_revoked(old.bundle.revoked().clone());
        let new = Current { keys, bundle: Arc::new(bundle) };
        self.tried(&new)?;
        self.current.store(Arc::new(new));
        self.changed.send_modify(|count| *count += 1);
        Ok(true)
    }

    /// SHA-256 of all roots in hex, the one that signs first.
    pub fn fingerprints(&self) -> Vec<String> {
        let current = self.current.load();
        current.keys.roots.iter().map(|root| provider::sha256_hex(root)).collect()
    }

    /// Whether these keys work together, before anybody has them.
    fn tried(&self, new: &Current) -> Result<(), IdentityError> {
        let keys = new.keys.clone();
        let bundle = new.bundle.clone();
        let trial = Self {
            options: self.options.clone(),
            directory: None,
            current: ArcSwap::from_pointee(Current { keys, bundle }),
            rotating: Mutex::new(()),
            changed: watch::channel(0).0,
        };
        trial.probe().map_err(|error| authority_error(error.to_string()))
    }
}
