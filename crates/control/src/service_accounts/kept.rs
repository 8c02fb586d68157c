//! The keys of a cluster's tokens over a restart of the control plane: one that starts while the API server is away judges tokens as the one
//! before did.
//!
//! A file of the data directory, so nothing of the cluster need be written for it. What it says ages from when the keys were seen, and is of
//! the cluster alone that was asked, which is known by its API server's address and by whose certificates that proves itself. What cannot be read
//! of it counts as if it was not there.

use std::fs::File;
use std::io::{ErrorKind, Read};
use std::path::{Path, PathBuf};
use std::time::Duration;

use aws_lc_rs::digest::{Context, SHA256};
use jiff::Timestamp;
use outrigger_identity::state_dir::write_private;
use outrigger_model::token::check_keys;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::sync::OnceCell;

use super::offline::{Issuer, Keys};
use crate::registry::kubernetes::KubernetesSettings;

/// In the data directory.
const FILE: &str = "cluster-keys.json";
/// Of the file: a key has some hundred bytes, and there are a few.
const MOST: u64 = 1 << 20;

/// Where they are kept.
pub(super) struct Kept {
    path: PathBuf,
    settings: KubernetesSettings,
    /// As the settings said when they could be read first, and so as the client has it.
    asked: OnceCell<Asked>,
}

/// Which cluster is asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Asked {
    server: String,
    /// The hash of the certificates by which that is known. In a cluster all have the same address.
    authority: Option<String>,
}

impl Asked {
    async fn of(settings: &KubernetesSettings) -> Result<Self, String> {
        let config = settings.config().await?;
        let authority = config.root_cert.map(|certificates| {
            let mut hash = Context::new(&SHA256);
            certificates.iter().for_each(|certificate| hash.update(certificate));
            hash.finish().as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
        });
        Ok(Self { server: config.cluster_url.to_string(), authority })
    }
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
        Self { path: directory.join(FILE), settings: settings.clone(), asked: OnceCell::new() }
    }

    async fn asked(&self) -> Result<&Asked, String> {
        self.asked.get_or_try_init(|| Asked::of(&self.settings)).await
    }

    /// Has an issuer know what was kept.
    pub(super) async fn recall(&self, issuer: &Issuer) {
        // Where it cannot be said who would be asked, whoever asks says so.
        let Ok(asked) = self.asked().await else { return };
        match self.read(asked, Timestamp::now()) {
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
    fn read(&self, asked: &Asked, now: Timestamp) -> Result<Option<(Keys, Duration)>, String> {
        let file = match File::open(&self.path) {
            Ok(file) => file,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error.to_string()),
        };
        let mut text = String::new();
        file.take(MOST).read_to_string(&mut text).map_err(|error| error.to_string())?;
        let record: Record = serde_json::from_str(&text).map_err(|error| error.to_string())?;
        if record.asked != *asked {
            // Another cluster's, whose tokens prove nothing here.
            return Ok(None);
        }
        check_keys(&record.keys.keys).map_err(|why| format!("the JWKS {why}"))?;
        if has_secret(&record.keys.keys) {
            return Err("the JWKS has a secret (oct), and what an API server shows is public".to_owned());
        }
        // By a clock that was set back nobody knows how old they are.
        let age = Duration::try_from(now.duration_since(record.seen))
            .map_err(|_| format!("they were seen at {}, which is yet to come", record.seen))?;
        Ok(Some((record.keys, age)))
    }

    /// Keeps what was seen now.
    pub(super) async fn write(&self, keys: Keys) {
        if let Err(why) = self.put(keys).await {
            tracing::warn!(
                file = %self.path.display(),
                why,
                "the keys of the cluster's tokens are not kept: after a restart without the API server nobody joins"
            );
        }
    }

    async fn put(&self, keys: Keys) -> Result<(), String> {
        let record = Record { asked: self.asked().await?.clone(), seen: Timestamp::now(), keys };
        let path = self.path.clone();
        let written = tokio::task::spawn_blocking(move || {
            let text = serde_json::to_vec(&record).map_err(|error| error.to_string())?;
            write_private(&path, &text).map_err(|error| error.to_string())
        });
        written.await.unwrap_or_else(|error| Err(error.to_string()))
    }
}

/// Whether who knows one of the keys can sign with it, too: nobody but whoever writes here would have put that in.
fn has_secret(keys: &str) -> bool {
    let json: Value = serde_json::from_str(keys).unwrap_or_default();
    let all = json["keys"].as_array().into_iter().flatten();
    all.chain([&json]).any(|key| key["kty"] == "oct")
}

#[cfg(test)]
mod tests {
    use base64::Engine;
    use jiff::SignedDuration;
    use serde_json::json;

    use super::*;

    const JWKS: &str =
        r#"{"keys": [{"kty": "OKP", "crv": "Ed25519", "x": "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}]}"#;

    fn keys() -> Keys {
        Keys { issuer: "https://kubernetes.default.svc".to_owned(), keys: JWKS.to_owned() }
    }

    /// With a kubeconfig in the directory that leads to this API server, known by an authority.
    fn of(directory: &Path, name: &str, (server, authority): (&str, &str)) -> Kept {
        let certificate = format!("-----BEGIN CERTIFICATE-----\n{authority}\n-----END CERTIFICATE-----\n");
        let cluster = json!({
            "server": server,
            "certificate-authority-data": base64::engine::general_purpose::STANDARD.encode(certificate),
        });
        let file = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "kind-kind",
            "clusters": [{"name": "kind-kind", "cluster": cluster}],
            "contexts": [{"name": "kind-kind", "context": {"cluster": "kind-kind", "user": "a"}}],
            "users": [{"name": "a", "user": {}}],
        });
        let path = directory.join(name);
        std::fs::write(&path, file.to_string()).unwrap();
        Kept::new(directory, &KubernetesSettings { kubeconfig: Some(path), ..Default::default() })
    }

    async fn read(kept: &Kept, now: Timestamp) -> Result<Option<(Keys, Duration)>, String> {
        kept.read(kept.asked().await.unwrap(), now)
    }

    const ONE: (&str, &str) = ("https://127.0.0.1:6443", "AAAA");

    #[tokio::test]
    async fn what_is_kept_is_found_again_with_its_age_and_by_no_other_cluster() {
        let directory = tempfile::tempdir().unwrap();
        let kept = of(directory.path(), "config", ONE);
        assert_eq!(read(&kept, Timestamp::now()).await, Ok(None));
        kept.write(keys()).await;
        let later = Timestamp::now() + SignedDuration::from_hours(23);
        let (found, age) = read(&kept, later).await.unwrap().unwrap();
        assert_eq!(found, keys());
        let hours = Duration::from_secs(23 * 3600);
        assert!(age >= hours && age < hours + Duration::from_secs(60), "{age:?}");

        // Clusters are not told apart by the name of a file or of a context, which the next may have.
        let moved = of(directory.path(), "elsewhere", ONE);
        assert_eq!(read(&moved, later).await.unwrap().unwrap().0, keys());
        for another in [("https://127.0.0.1:6444", "AAAA"), ("https://127.0.0.1:6443", "BBBB")] {
            let another = of(directory.path(), "config", another);
            assert_eq!(read(&another, later).await, Ok(None));
        }
        let nowhere = KubernetesSettings { kubeconfig: Some("/nowhere".into()), ..Default::default() };
        let issuer = Issuer::default();
        Kept::new(directory.path(), &nowhere).recall(&issuer).await;
        assert!(!issuer.is_known());

        // It judges, and for no longer than it would have done without the restart.
        kept.recall(&issuer).await;
        assert!(issuer.is_known());
        let old = Issuer::default();
        old.recall(&keys(), Duration::from_secs(24 * 3600));
        assert!(!old.is_known());
    }

    #[tokio::test]
    async fn what_cannot_be_what_was_kept_is_told_and_left_out() {
        let directory = tempfile::tempdir().unwrap();
        let kept = of(directory.path(), "config", ONE);
        kept.write(keys()).await;
        let before = Timestamp::now() - SignedDuration::from_mins(5);
        assert!(read(&kept, before).await.unwrap_err().contains("yet to come"));
        let text = std::fs::read_to_string(directory.path().join(FILE)).unwrap();
        let without = text.replace("OKP", "none");
        assert_ne!(without, text);
        // By a secret whoever wrote it could make any token.
        let mut secret: Value = serde_json::from_str(&text).unwrap();
        let oct = json!({"kty": "oct", "alg": "HS256", "k": "c2VjcmV0"});
        let mut both: Value = serde_json::from_str(JWKS).unwrap();
        both["keys"].as_array_mut().unwrap().push(oct);
        secret["keys"] = both.to_string().into();
        let secret = secret.to_string();
        for (text, word) in [
            ("", "EOF"),
            ("{}", "missing field"),
            (without.as_str(), "the JWKS has no key"),
            (secret.as_str(), "the JWKS has a secret"),
        ] {
            std::fs::write(directory.path().join(FILE), text).unwrap();
            let why = read(&kept, Timestamp::now()).await.unwrap_err();
            assert!(why.contains(word), "{word}: {why}");
            let issuer = Issuer::default();
            kept.recall(&issuer).await;
            assert!(!issuer.is_known());
        }
    }
}
