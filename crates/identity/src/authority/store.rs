//! The authority's files. Provided ones lie in the directory itself and are only read; our own lie in one
//! subdirectory per generation, made aside and renamed, so that a crash leaves the old or the new generation whole.

use std::collections::BTreeMap;
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

/// PEM by the name of its file, as in the directory of an authority.
pub type Files = BTreeMap<String, String>;

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
    for (name, text) in written(keys) {
        write_private(&aside.join(name), text.as_bytes())?;
    }
    let path = directory.join(format!("{GENERATION}{}", last + 1));
    fs::rename(&aside, &path).map_err(IdentityError::file(&path))?;
    fs::File::open(directory).and_then(|dir| dir.sync_all()).map_err(IdentityError::file(directory))?;
    for number in 1..last {
        let stale = directory.join(format!("{GENERATION}{number}"));
        if stale.exists() {
            fs::remove_dir_all(&stale).map_err(IdentityError::file(&stale))?;
        }
    }
    let fingerprint = keys.roots.first().map(|root| provider::sha256_hex(root)).unwrap_or_default();
    tracing::info!(path = %path.display(), root = %fingerprint, "certificate authority written");
    Ok(())
}

/// Everything of an authority of ours as PEM, by the name of its file.
pub(super) fn written(keys: &SigningSet) -> Files {
    let (own, old) = keys.roots.split_at(keys.roots.len().min(1));
    let mut files = Files::new();
    let mut write = |name: &str, text: String| drop(files.insert(name.to_owned(), text));
    write(ROOT, pem::encode_certificates(own));
    if let Some(root) = &keys.root {
        write(ROOT_KEY, root.key.serialize_pem());
    }
    if !old.is_empty() {
        write(OLD_ROOTS, pem::encode_certificates(old));
    }
    if let Some(cross) = &keys.cross {
        write(CROSS, pem::encode_certificates([cross]));
    }
    write(ISSUER, pem::encode_certificates(keys.issuer_chain()));
    write(ISSUER_KEY, keys.issuer().key().serialize_pem());
    files
}

/// The same read again; `place` is where they are kept, for messages.
pub(super) fn parsed(files: &Files, place: &Path) -> Result<SigningSet, IdentityError> {
    set(&|name| Ok(files.get(name).cloned()), place, true)
}

/// Files of the last generation that we made in a directory, if there is one and it was not provided.
pub(super) fn last(directory: &Path) -> Result<Option<Files>, IdentityError> {
    if !directory.exists() || directory.join(ROOT).exists() {
        return Ok(None);
    }
    match latest_generation(directory)? {
        Some((_, path)) => read_set(&path, true).map(|keys| Some(written(&keys))),
        None => Ok(None),
    }
}

/// Whether the authority of a directory was provided by somebody.
pub(super) fn is_provided(directory: &Path) -> bool {
    directory.join(ROOT).exists()
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
    let read = |name: &str| {
        let path = directory.join(name);
        match fs::read_to_string(&path) {
            Ok(text) => Ok(Some(text)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(IdentityError::File { path, source: error }),
        }
    };
    set(&read, directory, ours)
}

/// One authority out of files that are read by name.
fn set(
    read: &dyn Fn(&str) -> Result<Option<String>, IdentityError>,
    place: &Path,
    ours: bool,
) -> Result<SigningSet, IdentityError> {
    let needed = |name: &str| read(name)?.ok_or_else(|| wrong(place, name, "it is not there"));
    let mut roots = certificates(place, ROOT, &needed(ROOT)?)?;
    let root = match (ours, roots.first()) {
        (true, Some(certificate)) => {
            Some(Root { certificate: certificate.clone(), key: key(place, ROOT_KEY, &needed(ROOT_KEY)?)? })
        }
        _ => None,
    };
    let optional = |name: &str| match read(name)? {
        Some(text) => certificates(place, name, &text),
        None => Ok(Vec::new()),
    };
    if ours {
        roots.extend(optional(OLD_ROOTS)?);
    }
    let cross = if ours { optional(CROSS)?.pop() } else { None };
    let issuer_chain = certificates(place, ISSUER, &needed(ISSUER)?)?;
    let issuer_key = key(place, ISSUER_KEY, &needed(ISSUER_KEY)?)?;
    SigningSet::new(root, roots, cross, issuer_chain, issuer_key)
        .map_err(|error| wrong(place, ISSUER, &error.to_string()))
}

fn wrong(place: &Path, name: &str, reason: &str) -> IdentityError {
    IdentityError::content(place.join(name), reason.to_owned())
}

fn certificates(place: &Path, name: &str, text: &str) -> Result<Vec<CertificateDer<'static>>, IdentityError> {
    let found = pem::certificates(text).map_err(|reason| wrong(place, name, &reason))?;
    if found.is_empty() {
        return Err(wrong(place, name, "it holds no CERTIFICATE block"));
    }
    Ok(found)
}

fn key(place: &Path, name: &str, text: &str) -> Result<KeyPair, IdentityError> {
    KeyPair::from_pem(text)
        .map_err(|error| wrong(place, name, &format!("it is not a usable private key (PKCS#8 PEM): {error}")))
}
