//! A tar archive (ustar) that is the same whenever it is written: no times, no names of users, entries in the order of their names.

use std::collections::BTreeMap;

use anyhow::{Result, ensure};

/// Bytes of a header, and what contents are filled up to.
const BLOCK: usize = 512;

/// What stands at a place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Of a file; `None`: a folder.
    pub contents: Option<Vec<u8>>,
    /// Permissions.
    pub mode: u32,
    /// User and group.
    pub owner: u32,
}

/// A tree of files by their places, without a slash in front.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tree(BTreeMap<String, Entry>);

impl Tree {
    /// Puts a file of root's, and the folders above it.
    pub fn file(&mut self, place: &str, mode: u32, contents: impl Into<Vec<u8>>) {
        self.put(place, Entry { contents: Some(contents.into()), mode, owner: 0 });
    }

    /// Puts a folder, and those above it.
    pub fn folder(&mut self, place: &str, mode: u32, owner: u32) {
        self.put(place, Entry { contents: None, mode, owner });
    }

    fn put(&mut self, place: &str, entry: Entry) {
        let place = place.trim_start_matches('/');
        for (end, _) in place.match_indices('/') {
            let above = Entry { contents: None, mode: 0o755, owner: 0 };
            self.0.entry(place[..end].to_owned()).or_insert(above);
        }
        self.0.insert(place.to_owned(), entry);
    }

    /// Whether something is there.
    pub fn has(&self, place: &str) -> bool {
        self.0.contains_key(place.trim_start_matches('/'))
    }

    /// The archive.
    pub fn written(&self) -> Result<Vec<u8>> {
        let mut out = Vec::new();
        for (place, entry) in &self.0 {
            let contents = entry.contents.as_deref().unwrap_or_default();
            out.extend_from_slice(&header(place, entry, contents.len())?);
            out.extend_from_slice(contents);
            out.resize(out.len().next_multiple_of(BLOCK), 0);
        }
        // Two empty blocks end it.
        out.resize(out.len() + 2 * BLOCK, 0);
        Ok(out)
    }
}

fn header(place: &str, entry: &Entry, size: usize) -> Result<[u8; BLOCK]> {
    let is_folder = entry.contents.is_none();
    let name = if is_folder { format!("{place}/") } else { place.to_owned() };
    ensure!(name.len() <= 100, "{name}: a name of {} bytes has no room in the archive", name.len());
    let mut header = [0; BLOCK];
    let mut put = |at: usize, bytes: &[u8]| header[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, name.as_bytes());
    put(100, format!("{:07o}", entry.mode).as_bytes());
    put(108, format!("{:07o}", entry.owner).as_bytes());
    put(116, format!("{:07o}", entry.owner).as_bytes());
    put(124, format!("{size:011o}").as_bytes());
    put(136, b"00000000000");
    put(148, b"        ");
    put(156, if is_folder { b"5" } else { b"0" });
    put(257, b"ustar\x0000");
    let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    Ok(header)
}
