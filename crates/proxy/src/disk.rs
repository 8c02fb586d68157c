//! The last good configuration on disk, used at start while the control plane is away.
//!
//! Holds model resources and their versions, never keys. Bound to the node and to a format version, guarded by a checksum,
//! replaced atomically; a file that is damaged or of somebody else is ignored with a reason.

use std::fs;
use std::io::{self, BufWriter, Seek, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use outrigger_model::resource::{Resource, ResourceKind};
use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::{Xxh3, xxh3_128};

/// Raised when the meaning of stored resources changes.
const FORMAT: u32 = 1;

/// Bytes written at once.
const CHUNK: usize = 64 * 1024;

/// A resource and its version.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct Stored {
    /// As the control plane sent it.
    pub version: String,
    /// The resource.
    pub resource: Resource,
}

/// What follows [`Header`].
#[derive(Deserialize)]
struct Contents {
    generation: u64,
    resources: Vec<Stored>,
}

/// As [`Contents`], of what lives elsewhere.
#[derive(Serialize)]
struct Written<'a> {
    format: u32,
    node: &'a str,
    generation: u64,
    resources: Vec<WrittenResource<'a>>,
}

#[derive(Serialize)]
struct WrittenResource<'a> {
    version: &'a str,
    resource: &'a Resource,
}

/// What was read.
#[derive(Debug)]
pub struct LastGood {
    /// Time since it was written.
    pub age: Duration,
    /// The generation of the last barrier.
    pub generation: u64,
    /// The resources that were in force.
    pub resources: Vec<Stored>,
}

/// Why a file is not used.
#[derive(Debug, thiserror::Error)]
pub enum Unusable {
    /// There is none.
    #[error("there is no stored configuration at {0}")]
    Absent(PathBuf),
    /// Not readable.
    #[error("{0}: {1}")]
    Read(PathBuf, io::Error),
    /// The checksum does not fit, or it is not JSON.
    #[error("{0} is damaged ({1}); it is ignored and will be replaced")]
    Damaged(PathBuf, String),
    /// Written by another version.
    #[error("{0} has format {1}, this version reads format {FORMAT}; it is ignored and will be replaced")]
    Format(PathBuf, u32),
    /// Written for another workload.
    #[error("{0} belongs to node \"{1}\", not to \"{2}\"; it is ignored and will be replaced")]
    Foreign(PathBuf, String, String),
}

/// The file in the state directory.
#[derive(Debug, Clone)]
pub struct SnapshotFile {
    path: PathBuf,
    node: String,
}

impl SnapshotFile {
    /// `node` is what the file is bound to: the identity of the workload and its instance id.
    pub fn new(state_dir: &Path, node: impl Into<String>) -> Self {
        Self { path: state_dir.join("snapshot.json"), node: node.into() }
    }

    /// Replaces the file. Demands, negative answers and barriers are not written.
    ///
    /// # Errors
    /// When the disk does not take it; the previous file stays.
    pub fn write<'a>(
        &self,
        generation: u64,
        resources: impl Iterator<Item = (&'a Resource, &'a str)>,
    ) -> io::Result<()> {
        let resources = resources
            .filter(|(resource, _)| resource.kind() != ResourceKind::Barrier)
            .map(|(resource, version)| WrittenResource { version, resource })
            .collect();
        let contents = Written { format: FORMAT, node: &self.node, generation, resources };
        let temporary = self.path.with_extension("tmp");
        let mut file =
            fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
        // The place of the checksum. The text is never in memory as a whole: what it took would stay with the process.
        writeln!(file, "{:032x}", 0)?;
        let mut body = Hashed { file: BufWriter::with_capacity(CHUNK, &file), hash: Xxh3::new() };
        serde_json::to_writer(&mut body, &contents)?;
        body.flush()?;
        let checksum = body.hash.digest128();
        drop(body);
        file.rewind()?;
        write!(file, "{checksum:032x}")?;
        file.sync_all()?;
        fs::rename(&temporary, &self.path)
    }

    /// Reads the file.
    ///
    /// # Errors
    /// Why it is not used.
    pub fn read(&self) -> Result<LastGood, Unusable> {
        let damaged = |reason: &str| Unusable::Damaged(self.path.clone(), reason.to_owned());
        let bytes = fs::read(&self.path).map_err(|e| match e.kind() {
            io::ErrorKind::NotFound => Unusable::Absent(self.path.clone()),
            _ => Unusable::Read(self.path.clone(), e),
        })?;
        let end = bytes.iter().position(|b| *b == b'\n').ok_or_else(|| damaged("it has no checksum line"))?;
        let (checksum, body) = (&bytes[..end], &bytes[end + 1..]);
        if checksum != format!("{:032x}", xxh3_128(body)).as_bytes() {
            return Err(damaged("its checksum does not fit"));
        }
        let header: Header = serde_json::from_slice(body).map_err(|e| damaged(&e.to_string()))?;
        if header.format != FORMAT {
            return Err(Unusable::Format(self.path.clone(), header.format));
        }
        if header.node != self.node {
            return Err(Unusable::Foreign(self.path.clone(), header.node, self.node.clone()));
        }
        let contents: Contents = serde_json::from_slice(body).map_err(|e| damaged(&e.to_string()))?;
        let written =
            fs::metadata(&self.path).and_then(|meta| meta.modified()).unwrap_or(SystemTime::UNIX_EPOCH);
        let age = SystemTime::now().duration_since(written).unwrap_or_default();
        Ok(LastGood { age, generation: contents.generation, resources: contents.resources })
    }
}

/// Writes on, and hashes what passes.
struct Hashed<W> {
    file: W,
    hash: Xxh3,
}

impl<W: Write> Write for Hashed<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let n = self.file.write(bytes)?;
        self.hash.update(&bytes[..n]);
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

/// Read first, so that another format is named instead of called damaged.
#[derive(Deserialize)]
struct Header {
    format: u32,
    node: String,
}

#[cfg(test)]
mod tests {
    use outrigger_model::cluster::Cluster;

    use super::*;

    fn written(dir: &Path) -> SnapshotFile {
        let file = SnapshotFile::new(dir, "spiffe://td/ns/a/sa/b web-1");
        let cluster = Resource::Cluster(Cluster::new("c"));
        file.write(7, [(&cluster, "v1")].into_iter()).unwrap();
        file
    }

    #[test]
    fn what_was_written_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let good = written(dir.path()).read().unwrap();
        assert_eq!(good.generation, 7);
        assert_eq!(good.resources[0].resource.name(), "c");
        assert_eq!(good.resources[0].version, "v1");
    }

    #[test]
    fn a_changed_byte_makes_it_unusable() {
        let dir = tempfile::tempdir().unwrap();
        let file = written(dir.path());
        let path = dir.path().join("snapshot.json");
        let good = fs::read(&path).unwrap();
        for position in [0, 40, good.len() - 1] {
            let mut bad = good.clone();
            bad[position] ^= 1;
            fs::write(&path, &bad).unwrap();
            assert!(matches!(file.read(), Err(Unusable::Damaged(..))), "{position}");
        }
        fs::write(&path, &good[..20]).unwrap();
        assert!(matches!(file.read(), Err(Unusable::Damaged(..))));
    }

    #[test]
    fn a_file_of_another_node_is_not_used() {
        let dir = tempfile::tempdir().unwrap();
        written(dir.path());
        let other = SnapshotFile::new(dir.path(), "other");
        assert!(matches!(other.read(), Err(Unusable::Foreign(..))));
    }

    #[test]
    fn no_file_is_said_to_be_absent() {
        let dir = tempfile::tempdir().unwrap();
        assert!(matches!(SnapshotFile::new(dir.path(), "n").read(), Err(Unusable::Absent(_))));
    }
}
