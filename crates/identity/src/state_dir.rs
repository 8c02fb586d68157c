//! Where a sidecar keeps its key, certificate and trust bundle over restarts: a directory of mode 0700, files 0600.
//!
//! Key and chain share one file, so that one rename replaces both and a crash never leaves a key beside somebody
//! else's certificate. What is damaged, foreign or expired is reported and ignored, never fatal.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::SystemTime;

use outrigger_model::identity::SpiffeId;

use crate::bundle::TrustBundle;
use crate::cert::WorkloadCertificate;
use crate::clock::unix_time;
use crate::credentials::{CredentialStore, Credentials};
use crate::error::IdentityError;
use crate::verify::{Role, verify_peer};

/// Private key, then certificate chain, PEM.
const WORKLOAD_FILE: &str = "workload.pem";
/// The trust bundle, JSON.
const BUNDLE_FILE: &str = "bundle.json";

/// Held by the sidecar that uses the directory.
const LOCK_FILE: &str = "lock";

/// A directory for credentials.
#[derive(Debug, Clone)]
pub struct StateDir {
    path: PathBuf,
}

/// A state directory that is ours.
#[derive(Debug)]
pub struct Lock {
    _file: File,
}

/// What was found at start.
#[derive(Debug, Default)]
pub struct Loaded {
    /// The certificate, if it is valid now, the expected workload's, and chains to the bundle.
    pub certificate: Option<Arc<WorkloadCertificate>>,
    /// The bundle as last received.
    pub bundle: Option<TrustBundle>,
    /// What was ignored, and why.
    pub problems: Vec<IdentityError>,
}

impl StateDir {
    /// Opens the directory, making it and its parents when needed, and closes it to others.
    ///
    /// # Errors
    /// When it cannot be made, is no directory, or its mode cannot be set.
    pub fn open(path: impl Into<PathBuf>) -> Result<Self, IdentityError> {
        let path = path.into();
        create_private_dir(&path)?;
        Ok(Self { path })
    }

    /// Takes the directory for this process, until the lock is dropped or the process ends: two sidecars in one directory
    /// overwrite each other's key and configuration.
    ///
    /// # Errors
    /// When another one has it, or the file cannot be made.
    pub fn lock(&self) -> Result<Lock, IdentityError> {
        let path = self.path.join(LOCK_FILE);
        let open =
            || OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(&path);
        let mut file = open().map_err(IdentityError::file(&path))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(fs::TryLockError::WouldBlock) => {
                let mut holder = String::new();
                let _ = file.take(20).read_to_string(&mut holder);
                let holder = holder.trim();
                let reason = format!(
                    "another sidecar (process {}) uses this directory; give each one a state directory of its own",
                    if holder.is_empty() { "unknown" } else { holder }
                );
                return Err(IdentityError::content(path, reason));
            }
            Err(fs::TryLockError::Error(source)) => return Err(IdentityError::File { path, source }),
        }
        // Who holds it, for the one that comes too late.
        let noted =
            file.set_len(0).and_then(|()| file.write_all(format!("{}\n", std::process::id()).as_bytes()));
        noted.map_err(IdentityError::file(&path))?;
        Ok(Lock { _file: file })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Reads what is usable for the workload `expected` at the time `now`.
    pub fn load(&self, expected: &SpiffeId, now: SystemTime) -> Loaded {
        let mut loaded = Loaded::default();
        match self.read(BUNDLE_FILE) {
            Ok(Some(text)) => match TrustBundle::from_json(&text) {
                Ok(bundle) => loaded.bundle = Some(bundle),
                Err(error) => loaded.problems.push(self.ignored(BUNDLE_FILE, &error)),
            },
            Ok(None) => {}
            Err(error) => loaded.problems.push(error),
        }
        match self.read(WORKLOAD_FILE) {
            Ok(Some(text)) => match Self::usable(&text, expected, loaded.bundle.as_ref(), now) {
                Ok(certificate) => loaded.certificate = Some(Arc::new(certificate)),
                Err(error) => loaded.problems.push(self.ignored(WORKLOAD_FILE, &error)),
            },
            Ok(None) => {}
            Err(error) => loaded.problems.push(error),
        }
        loaded
    }

    /// A credential store for a start: what is usable here, and `roots` (the join file's) trusted as well until the
    /// control plane sends the current bundle. Also says what was ignored.
    pub fn restore(
        &self,
        expected: &SpiffeId,
        roots: &TrustBundle,
        now: SystemTime,
    ) -> (CredentialStore, Vec<IdentityError>) {
        let loaded = self.load(expected, now);
        let bundle = loaded.bundle.map_or_else(|| roots.clone(), |kept| kept.union(roots));
        let store = CredentialStore::new(bundle);
        if let Some(certificate) = loaded.certificate {
            store.replace_certificate(certificate);
        }
        (store, loaded.problems)
    }

    /// Writes the credentials; each file is replaced by a rename, so a reader sees the old or the new one.
    ///
    /// # Errors
    /// When a file cannot be written.
    pub fn save(&self, credentials: &Credentials) -> Result<(), IdentityError> {
        // The bundle first: a certificate without the roots that it chains to would be ignored at the next start.
        write_private(&self.path.join(BUNDLE_FILE), credentials.bundle.to_json().as_bytes())?;
        if let Some(certificate) = &credentials.certificate {
            let text = certificate.key_pem() + &certificate.chain_pem();
            write_private(&self.path.join(WORKLOAD_FILE), text.as_bytes())?;
        }
        Ok(())
    }

    fn usable(
        text: &str,
        expected: &SpiffeId,
        bundle: Option<&TrustBundle>,
        now: SystemTime,
    ) -> Result<WorkloadCertificate, String> {
        let certificate = WorkloadCertificate::from_pem(text, now).map_err(|problem| problem.to_string())?;
        if certificate.id() != expected {
            return Err(format!(
                "it is the certificate of {}, but this workload is {expected}",
                certificate.id()
            ));
        }
        let bundle = bundle.ok_or("there is no trust bundle beside it to check it against")?;
        verify_peer(bundle, certificate.chain(), Role::Client, unix_time(now))
            .map_err(|problem| problem.to_string())?;
        Ok(certificate)
    }

    fn ignored(&self, file: &str, reason: &dyn std::fmt::Display) -> IdentityError {
        IdentityError::content(self.path.join(file), format!("ignored: {reason}"))
    }

    fn read(&self, file: &str) -> Result<Option<String>, IdentityError> {
        let path = self.path.join(file);
        match fs::read_to_string(&path) {
            Ok(text) => Ok(Some(text)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(IdentityError::File { path, source: error }),
        }
    }
}

/// Makes a directory of mode 0700 with its parents; an existing one is closed to others.
///
/// # Errors
/// When the system refuses, or it is somebody else's, who could put keys and configuration of his own there.
pub(crate) fn create_private_dir(path: &Path) -> Result<(), IdentityError> {
    DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(IdentityError::file(path))?;
    let (owner, us) =
        (fs::metadata(path).map_err(IdentityError::file(path))?.uid(), rustix::process::geteuid());
    if owner != us.as_raw() {
        let reason = format!(
            "it belongs to user {owner}, and this process is user {us}: give it to user {us} (chown), or name another directory"
        );
        return Err(IdentityError::content(path, reason));
    }
    fs::set_permissions(path, fs::Permissions::from_mode(0o700)).map_err(IdentityError::file(path))
}

/// Replaces a file by one of mode 0600 with this content: written aside, flushed to disk, renamed.
///
/// # Errors
/// When the system refuses; the old file then still stands.
pub fn write_private(path: &Path, content: &[u8]) -> Result<(), IdentityError> {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let unique = format!(".{}.{}.new", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
    let mut aside = path.as_os_str().to_owned();
    aside.push(unique);
    let aside = PathBuf::from(aside);
    let written = (|| {
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&aside)?;
        file.write_all(content)?;
        file.sync_all()?;
        fs::rename(&aside, path)?;
        // The rename itself must reach the disk, or a power cut undoes it.
        match path.parent().filter(|parent| !parent.as_os_str().is_empty()) {
            Some(parent) => File::open(parent)?.sync_all(),
            None => Ok(()),
        }
    })();
    if written.is_err() {
        let _ = fs::remove_file(&aside);
    }
    written.map_err(IdentityError::file(path))
}
