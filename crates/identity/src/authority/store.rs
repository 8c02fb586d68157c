//! The authority's files. Provided ones lie in the directory itself and are only read; our own lie in one
//! subdirectory per generation, made aside and renamed, so that a crash leaves the old or the new generation whole.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use rcgen::KeyPair;
use rustls_pki_types::CertificateDer;

use super::keys::{Root, SigningSet};
use crate::error::IdentityError;
use crate::state_dir::{create_private_dir, write_private};
use crate::{pem, provider};

const ROOT: &str = "root.pem";
const ROOT_KEY: &str = "root.key";
const OLD_ROOTS: &str = "old-roots.pem";
const CROSS: &str = "cross.pem";
const ISSUER: &str = "issuer.pem";
const ISSUER_KEY: &str = "issuer.key";
const GENERATION: &str = "generation-";

/// The authority of a directory, or `None` when there is none yet.
pub(super) fn load(directory: &Path, trust_domain: &str) -> Result<Option<SigningSet>, IdentityError> {
    // A provided directory may be a read-only mount: nothing is made or changed there.
    if directory.join(ROOT).exists() {
        let keys = read_set(directory, false)?;
        tracing::info!(directory = %directory.display(), trust_domain, "using the provided certificate authority");
        return Ok(Some(keys));
    }
    for provided in [ISSUER, ISSUER_KEY] {
        let path = directory.join(provided);
        if path.exists() {
            let reason = "it is there but root.pem is not: a provided authority needs root.pem, issuer.pem and issuer.key";
            return Err(IdentityError::content(path, reason));
        }
    }
    create_private_dir(directory)?;
    match latest_generation(directory)? {
        Some((_, path)) => read_set(&path, true).map(Some),
        None => Ok(None),
    }
}

/// Writes a new generation. The last one before stays for a human who must go back; older ones go.
pub(super) fn save(directory: &Path, keys: &SigningSet) -> Result<(), IdentityError> {
    let last = latest_generation(directory)?.map_or(0, |(number, _)| number);
    let aside = directory.join(format!(".new-{}", std::process::id()));
    if aside.exists() {
        fs::remove_dir_all(&aside).map_err(IdentityError::file(&aside))?;
    }
    create_private_dir(&aside)?;
    let write = |name: &str, text: &str| write_private(&aside.join(name), text.as_bytes());
    let (own, old) = keys.roots.split_at(keys.roots.len().min(1));
    write(ROOT, &pem::encode_certificates(own))?;
    if let Some(root) = &keys.root {
        write(ROOT_KEY, &root.key.serialize_pem())?;
    }
    if !old.is_empty() {
        write(OLD_ROOTS, &pem::encode_certificates(old))?;
    }
    if let Some(cross) = &keys.cross {
        write(CROSS, &pem::encode_certificates([cross]))?;
    }
    write(ISSUER, &pem::encode_certificates(keys.issuer_chain()))?;
    write(ISSUER_KEY, &keys.issuer().key().serialize_pem())?;
    let path = directory.join(format!("{GENERATION}{}", last + 1));
    fs::rename(&aside, &path).map_err(IdentityError::file(&path))?;
    fs::File::open(directory).and_then(|dir| dir.sync_all()).map_err(IdentityError::file(directory))?;
    for number in 1..last {
        let stale = directory.join(format!("{GENERATION}{number}"));
        if stale.exists() {
            fs::remove_dir_all(&stale).map_err(IdentityError::file(&stale))?;
        }
    }
    let fingerprint = own.first().map(|root| provider::sha256_hex(root)).unwrap_or_default();
    tracing::info!(path = %path.display(), root = %fingerprint, "certificate authority written");
    Ok(())
}

fn latest_generation(directory: &Path) -> Result<Option<(u64, PathBuf)>, IdentityError> {
    let entries = fs::read_dir(directory).map_err(IdentityError::file(directory))?;
    let mut latest = None;
    for entry in entries {
        let entry = entry.map_err(IdentityError::file(directory))?;
        let name = entry.file_name();
        let number =
            name.to_str().and_then(|name| name.strip_prefix(GENERATION)).and_then(|n| n.parse::<u64>().ok());
        if let Some(number) = number
            && latest.as_ref().is_none_or(|(best, _)| number > *best)
        {
            latest = Some((number, entry.path()));
        }
    }
    Ok(latest)
}

fn read_set(directory: &Path, ours: bool) -> Result<SigningSet, IdentityError> {
    let mut roots = certificates(&directory.join(ROOT))?;
    let root = match (ours, roots.first()) {
        (true, Some(certificate)) => {
            Some(Root { certificate: certificate.clone(), key: key(&directory.join(ROOT_KEY))? })
        }
        _ => None,
    };
    if ours {
        roots.extend(optional(&directory.join(OLD_ROOTS))?);
    }
    let cross = if ours { optional(&directory.join(CROSS))?.pop() } else { None };
    let issuer_path = directory.join(ISSUER);
    let issuer_chain = certificates(&issuer_path)?;
    let issuer_key = key(&directory.join(ISSUER_KEY))?;
    SigningSet::new(root, roots, cross, issuer_chain, issuer_key)
        .map_err(|error| IdentityError::content(issuer_path, error.to_string()))
}

fn read(path: &Path) -> Result<String, IdentityError> {
    fs::read_to_string(path).map_err(IdentityError::file(path))
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, IdentityError> {
    let found = pem::certificates(&read(path)?).map_err(|reason| IdentityError::content(path, reason))?;
    if found.is_empty() {
        return Err(IdentityError::content(path, "it holds no CERTIFICATE block"));
    }
    Ok(found)
}

fn optional(path: &Path) -> Result<Vec<CertificateDer<'static>>, IdentityError> {
    match fs::metadata(path) {
        Ok(_) => certificates(path),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(IdentityError::File { path: path.to_owned(), source: error }),
    }
}

fn key(path: &Path) -> Result<KeyPair, IdentityError> {
    KeyPair::from_pem(&read(path)?).map_err(|error| {
        IdentityError::content(path, format!("it is not a usable private key (PKCS#8 PEM): {error}"))
    })
}
