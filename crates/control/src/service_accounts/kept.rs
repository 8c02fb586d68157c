//! The keys of a cluster's tokens over a restart of the control plane: one that starts while the API server is away judges tokens as the one
//! before did.
//!
//! A file of the data directory, so nothing of the cluster need be written for it. What it says ages from when the keys were seen, and is of
//! the cluster alone that it was asked of. What cannot be read of it counts as if it was not there.

use std::fs::File;
use std::io::{ErrorKind, Read};
use std::path::{Path, PathBuf};
use std::time::Duration;

use jiff::Timestamp;
use outrigger_identity::state_dir::write_private;
use outrigger_model::token::check_keys;
use serde::{Deserialize, Serialize};

use super::offline::{Issuer, Keys};
use crate::registry::kubernetes::KubernetesSettings;

/// In the data directory.
const FILE: &str = "cluster-keys.json";
/// Of the file: a key has some hundred bytes, and there are a few.
const MOST: u64 = 1 << 20;

/// Where they are kept.
pub(super) struct Kept {
    path: PathBuf,
    asked: Asked,
}

/// Which cluster is asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Asked {
    kubeconfig: Option<PathBuf>,
    context: Option<String>,
}

#[derive(Serialize, Deserialize)]
struct Record {
    asked: Asked,
    seen: Timestamp,
    #[serde(flatten)]
    keys: Keys,
}

impl Kept {
    pub(super) fn new(directory: &Path, settings: &KubernetesSettings) -> Self {
        let asked = Asked { kubeconfig: settings.kubeconfig.clone(), context: settings.context.clone() };
        Self { path: directory.join(FILE), asked }
    }

    /// Has an issuer know what was kept.
    pub(super) fn recall(&self, issuer: &Issuer) {
        match self.read(Timestamp::now()) {
            Ok(Some((keys, age))) => issuer.recall(&keys, age),
            Ok(None) => {}
            Err(why) => tracing::warn!(
                file = %self.path.display(),
                why,
                "the keys of the cluster's tokens that were kept are left out; they are asked for anew"
            ),
        }
    }

    /// The keys, and how long ago they were seen.
    fn read(&self, now: Timestamp) -> Result<Option<(Keys, Duration)>, String> {
        let file = match File::open(&self.path) {
            Ok(file) => file,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error.to_string()),
        };
        let mut text = String::new();
        file.take(MOST).read_to_string(&mut text).map_err(|error| error.to_string())?;
        let record: Record = serde_json::from_str(&text).map_err(|error| error.to_string())?;
        if record.asked != self.asked {
            // Another cluster's, whose tokens prove nothing here.
            return Ok(None);
        }
        check_keys(&record.keys.keys).map_err(|why| format!("the JWKS {why}"))?;
        // By a clock that was set back nobody knows how old they are.
        let age = Duration::try_from(now.duration_since(record.seen))
            .map_err(|_| format!("they were seen at {}, which is yet to come", record.seen))?;
        Ok(Some((record.keys, age)))
    }

    /// Keeps what was seen now.
    pub(super) async fn write(&self, keys: Keys) {
        let record = Record { asked: self.asked.clone(), seen: Timestamp::now(), keys };
        let (path, shown) = (self.path.clone(), self.path.display());
        let written = tokio::task::spawn_blocking(move || {
            let text = serde_json::to_vec(&record).map_err(|error| error.to_string())?;
            write_private(&path, &text).map_err(|error| error.to_string())
        });
        if let Err(why) = written.await.unwrap_or_else(|error| Err(error.to_string())) {
            tracing::warn!(
                file = %shown,
                why,
                "the keys of the cluster's tokens are not kept: after a restart without the API server nobody joins"
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use jiff::SignedDuration;

    use super::*;

    const JWKS: &str = r#"{"keys": [{"kty": "oct", "alg": "HS256", "k": "c2VjcmV0"}]}"#;

    fn keys() -> Keys {
        Keys { issuer: "https://kubernetes.default.svc".to_owned(), keys: JWKS.to_owned() }
    }

    fn of(directory: &Path, kubeconfig: &str) -> Kept {
        let settings = KubernetesSettings { kubeconfig: Some(kubeconfig.into()), ..Default::default() };
        Kept::new(directory, &settings)
    }

    #[tokio::test]
    async fn what_is_kept_is_found_again_with_its_age_and_by_no_other_cluster() {
        let directory = tempfile::tempdir().unwrap();
        let kept = of(directory.path(), "/etc/one");
        assert_eq!(kept.read(Timestamp::now()), Ok(None));
        kept.write(keys()).await;
        let later = Timestamp::now() + SignedDuration::from_hours(23);
        let (found, age) = kept.read(later).unwrap().unwrap();
        assert_eq!(found, keys());
        let hours = Duration::from_secs(23 * 3600);
        assert!(age >= hours && age < hours + Duration::from_secs(60), "{age:?}");
        assert_eq!(of(directory.path(), "/etc/another").read(later), Ok(None));

        // It judges, and for no longer than it would have done without the restart.
        let issuer = Issuer::default();
        kept.recall(&issuer);
        assert!(issuer.is_known());
        let old = Issuer::default();
        old.recall(&keys(), Duration::from_secs(24 * 3600));
        assert!(!old.is_known());
    }

    #[tokio::test]
    async fn what_cannot_be_what_was_kept_is_told_and_left_out() {
        let directory = tempfile::tempdir().unwrap();
        let kept = of(directory.path(), "/etc/one");
        kept.write(keys()).await;
        let before = Timestamp::now() - SignedDuration::from_mins(5);
        assert!(kept.read(before).unwrap_err().contains("yet to come"));
        let text = std::fs::read_to_string(directory.path().join(FILE)).unwrap();
        let without = text.replace("oct", "none");
        assert_ne!(without, text);
        for (text, word) in [("", "EOF"), ("{}", "missing field"), (without.as_str(), "the JWKS has no key")]
        {
            std::fs::write(directory.path().join(FILE), text).unwrap();
            let why = kept.read(Timestamp::now()).unwrap_err();
            assert!(why.contains(word), "{word}: {why}");
            let issuer = Issuer::default();
            kept.recall(&issuer);
            assert!(!issuer.is_known());
        }
    }
}
