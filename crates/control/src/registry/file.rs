//! The file registry: YAML or JSON files, read again when they change. A file has `instances:`, or rules as they are applied: what a
//! service or a workload is, is said by a rule, too.
//!
//! A file that became bad keeps its last good content and is reported with file and line. Notifications only say when to
//! look; the scan compares content, so a lost or doubled notification does no harm, and a slow rescan catches what the
//! system does not notify (network file systems). A file whose stamp has not changed is not read for it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use aws_lc_rs::digest::{SHA256, digest};
use outrigger_rules::{Finding, ParseOptions, parse_with};
use serde::{Deserialize, Serialize};

use super::{Event, Item, Problem, Registry, Voice};
use crate::bell::Bell;
use crate::instance::Instance;

/// Notifications come in bursts (write, rename, chmod): wait this long for the last.
const SETTLE: Duration = Duration::from_millis(20);
/// The coarsest stamps of file systems count two seconds: content that was read twice so far apart changes with its stamp.
const COARSE: Duration = Duration::from_secs(3);
/// Read even where the stamp has not changed: who writes through a mapping of memory changes it late.
const REREAD: Duration = Duration::from_secs(600);
/// Larger files are refused: they are no registry that somebody wrote. A million instances have some 200 MiB.
const MAX_BYTES: u64 = 1 << 30;

/// What is said of a directory that had files.
const GONE: &str = "cannot be listed: the directory is gone; to take its instances out empty it, or take it from the settings";

/// Files of a row of the settings.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct FileSettings {
    /// Files, directories of `.yaml`, `.yml` and `.json` files, or patterns with `*` in the file name.
    pub paths: Vec<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    instances: Vec<Instance>,
}

/// What changed between two scans.
#[derive(Debug, Default)]
struct Changes {
    /// The file and what it has now.
    events: Vec<(String, Event)>,
    /// Everything that is wrong now.
    problems: Vec<Problem>,
}

/// Files that are followed.
#[derive(Debug)]
pub struct FileRegistry {
    patterns: Vec<String>,
    options: ParseOptions,
    /// Last seen content of each file, good or bad.
    seen: BTreeMap<PathBuf, Seen>,
}

#[derive(Debug)]
struct Seen {
    /// SHA-256 of it.
    content: Vec<u8>,
    problem: Option<Problem>,
    stamp: Stamp,
    /// When it was read first with this content and stamp.
    since: Instant,
    /// When it was read last.
    read: Instant,
}

/// What a file system changes with a file's content.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stamp {
    file: (u64, u64),
    length: u64,
    /// `st_ctime`, which nobody can set.
    changed: (i64, i64),
}

impl Stamp {
    fn of(file: &std::fs::Metadata) -> Self {
        Self {
            file: (file.dev(), file.ino()),
            length: file.len(),
            changed: (file.ctime(), file.ctime_nsec()),
        }
    }
}

impl Seen {
    /// Whether what was read last is what a file with this stamp has.
    fn holds(&self, stamp: Stamp, now: Instant) -> bool {
        let is_sure = self.read.saturating_duration_since(self.since) >= COARSE;
        self.stamp == stamp && is_sure && now.saturating_duration_since(self.read) < REREAD
    }

    /// It was read again, and has the same content.
    fn again(&mut self, stamp: Stamp, now: Instant) {
        if self.stamp != stamp {
            (self.stamp, self.since) = (stamp, now);
        }
        self.read = now;
    }
}

impl FileRegistry {
    /// Nothing is read yet. `options` say how rules are read.
    pub fn new(patterns: Vec<String>, options: ParseOptions) -> Self {
        Self { patterns, options, seen: BTreeMap::new() }
    }

    /// Reads what changed. Blocks.
    fn scan(&mut self) -> Changes {
        let mut changes = Changes::default();
        let mut found = BTreeMap::new();
        for pattern in &self.patterns {
            let path = Path::new(pattern);
            let emptied = || self.seen.keys().any(|seen| seen.parent() == Some(path));
            match if !path.is_dir() && emptied() { Err(GONE.to_owned()) } else { expand(pattern) } {
                Ok(paths) => found.extend(paths.into_iter().map(|path| (path, ()))),
                Err(message) => changes.problems.push(problem(pattern, 0, message)),
            }
        }
        // A directory that cannot be listed is no proof that its files are gone.
        if changes.problems.is_empty() {
            let gone: Vec<PathBuf> =
                self.seen.keys().filter(|path| !found.contains_key(*path)).cloned().collect();
            for path in gone {
                self.seen.remove(&path);
                changes.events.push((path.display().to_string(), Event::Reset(Vec::new())));
            }
        }
        for path in found.into_keys() {
            self.scan_file(path, &mut changes);
        }
        changes
    }

    fn scan_file(&mut self, path: PathBuf, changes: &mut Changes) {
        let file = path.display().to_string();
        let now = Instant::now();
        let holds = |stamp| self.seen.get(&path).is_some_and(|seen| seen.holds(stamp, now));
        let (stamp, content) = match read(&path, holds) {
            Ok((stamp, Some(content))) => (stamp, content),
            Ok((_, None)) => {
                changes.problems.extend(self.seen.get(&path).and_then(|seen| seen.problem.clone()));
                return;
            }
            Err(message) => {
                changes.problems.push(problem(&file, 0, message));
                return;
            }
        };
        let hash = digest(&SHA256, content.as_bytes()).as_ref().to_vec();
        if let Some(seen) = self.seen.get_mut(&path).filter(|seen| seen.content == hash) {
            seen.again(stamp, now);
            changes.problems.extend(seen.problem.clone());
            return;
        }
        let problem = match parse(&file, &content, &self.options) {
            Ok(items) => {
                changes.events.push((file, Event::Reset(items)));
                None
            }
            Err(problem) => Some(problem),
        };
        changes.problems.extend(problem.clone());
        self.seen.insert(path, Seen { content: hash, problem, stamp, since: now, read: now });
    }

    /// Reads what changed, off the runtime's threads.
    async fn scanned(&mut self) -> Result<Changes, String> {
        // Where reading ends in a panic, everything is read anew.
        let new = Self::new(self.patterns.clone(), self.options.clone());
        let mut own = std::mem::replace(self, new);
        let scanned = tokio::task::spawn_blocking(move || {
            let changes = own.scan();
            (own, changes)
        });
        let (own, changes) = scanned.await.map_err(|error| format!("reading the files: {error}"))?;
        *self = own;
        Ok(changes)
    }
}

impl Registry for FileRegistry {
    async fn follow(&mut self, voice: &Voice) -> Result<(), String> {
        let mut bell = Bell::new("registry files", SETTLE);
        let mut first = true;
        loop {
            for pattern in &self.patterns {
                bell.watch(&directory_of(pattern));
            }
            let Changes { events, problems } = self.scanned().await?;
            voice.problems(problems);
            for (file, event) in events {
                voice.say(&file, event).await?;
            }
            match std::mem::take(&mut first) {
                true => voice.whole().await?,
                false => voice.heard(),
            }
            bell.rings().await;
        }
    }
}

fn problem(file: &str, line: u64, message: String) -> Problem {
    Problem { registry: String::new(), file: file.to_owned(), line, message }
}

/// The stamp of a file, and its content unless what is known by that `holds`. Opened first: a network file system asks its server then.
fn read(path: &Path, holds: impl FnOnce(Stamp) -> bool) -> Result<(Stamp, Option<String>), String> {
    let cannot = |error: std::io::Error| format!("cannot be read: {error}");
    let mut file = File::open(path).map_err(cannot)?;
    let metadata = file.metadata().map_err(cannot)?;
    let (stamp, length) = (Stamp::of(&metadata), metadata.len());
    if length > MAX_BYTES {
        return Err(format!("has {length} bytes; a registry file has at most {MAX_BYTES}"));
    }
    if holds(stamp) {
        return Ok((stamp, None));
    }
    let mut content = String::with_capacity(length as usize);
    file.read_to_string(&mut content).map_err(cannot)?;
    Ok((stamp, Some(content)))
}

fn parse(file: &str, text: &str, options: &ParseOptions) -> Result<Vec<Item>, Problem> {
    if text.trim().is_empty() {
        return Ok(Vec::new());
    }
    match has_rules(text) {
        true => rules(file, text, options),
        false => instances(file, text),
    }
}

/// Every rule says its `apiVersion`, and a registration has no such field.
fn has_rules(text: &str) -> bool {
    let json = || {
        let json = text.trim_start().starts_with('{') && text.contains("\"apiVersion\"");
        json && serde_json::from_str::<serde_json::Value>(text)
            .is_ok_and(|value| value.get("apiVersion").is_some())
    };
    text.lines().any(|line| line.starts_with("apiVersion:")) || json()
}

fn rules(file: &str, text: &str, options: &ParseOptions) -> Result<Vec<Item>, Problem> {
    let parsed = parse_with(file, text, options);
    let errors = parsed.findings.iter().filter(|finding| finding.is_error());
    if let Some(first) = errors.clone().next() {
        let more = match errors.count() - 1 {
            0 => String::new(),
            more => format!(" (and {more} more)"),
        };
        return Err(problem(file, first.line.into(), format!("{}: {}{more}", first.code, first.message)));
    }
    parsed.findings.iter().for_each(|finding: &Finding| tracing::warn!("{finding}"));
    let mut known = BTreeSet::new();
    for object in &parsed.objects {
        if !known.insert(object.id()) {
            let line = object.origin.line.into();
            return Err(problem(file, line, format!("{} occurs twice", object.id())));
        }
    }
    Ok(parsed.objects.into_iter().map(|object| Item::Rule(Box::new(object))).collect())
}

fn instances(file: &str, text: &str) -> Result<Vec<Item>, Problem> {
    // The reader's own bounds are for what is short; what the bytes of a file can hold, it may.
    let all = text.len();
    let options = serde_saphyr::options! {
        budget: serde_saphyr::budget! { max_nodes: all.max(250_000), max_events: (2 * all).max(1_000_000) },
    };
    let document: Document = serde_saphyr::from_str_with_options(text, options).map_err(|error| {
        problem(file, error.location().map_or(0, |at| at.line()), error.without_snippet().to_string())
    })?;
    let mut items = Vec::with_capacity(document.instances.len());
    let mut ids = BTreeSet::new();
    for instance in document.instances {
        // serde does not keep positions; the id is where the reader will look.
        let line = || {
            let at = text.lines().position(|line| line.contains("id") && line.contains(instance.id.as_str()));
            at.map_or(0, |at| at as u64 + 1)
        };
        let wrong = |message| problem(file, line(), message);
        instance.validate().map_err(wrong)?;
        if !ids.insert(instance.id.clone()) {
            return Err(wrong(format!("instance \"{}\" occurs twice", instance.id)));
        }
        if instance.ttl_seconds.is_some() {
            return Err(wrong(format!(
                "instance \"{}\": ttlSeconds: nobody sends heartbeats for a file; leave it out",
                instance.id
            )));
        }
        items.push(Item::Instance(Arc::new(instance.normalise())));
    }
    Ok(items)
}

/// The files of a pattern: itself, the files of a directory, or what matches one `*` pattern in the last component.
fn expand(pattern: &str) -> Result<Vec<PathBuf>, String> {
    let path = Path::new(pattern);
    let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let globbed = name.contains('*');
    if !globbed && !path.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let directory = directory_of(pattern);
    let listed = std::fs::read_dir(&directory)
        .map_err(|error| format!("{} cannot be listed: {error}", directory.display()))?;
    let mut paths = Vec::new();
    for entry in listed {
        let entry = entry.map_err(|error| format!("{} cannot be listed: {error}", directory.display()))?;
        let file = entry.file_name().to_string_lossy().into_owned();
        // Hidden files are editors' and renames' temporaries.
        let wanted = if globbed {
            matches(&name, &file)
        } else {
            [".yaml", ".yml", ".json"].iter().any(|e| file.ends_with(e))
        };
        if wanted && !file.starts_with('.') && entry.path().is_file() {
            paths.push(entry.path());
        }
    }
    paths.sort();
    Ok(paths)
}

fn directory_of(pattern: &str) -> PathBuf {
    let path = Path::new(pattern);
    if path.is_dir() {
        return path.to_owned();
    }
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
        _ => PathBuf::from("."),
    }
}

/// `*` stands for any characters.
fn matches(pattern: &str, name: &str) -> bool {
    let mut parts = pattern.split('*');
    let first = parts.next().unwrap_or_default();
    let Some(mut rest) = name.strip_prefix(first) else { return false };
    let mut parts: Vec<&str> = parts.collect();
    let Some(last) = parts.pop() else { return rest.is_empty() };
    for part in parts {
        match rest.find(part) {
            Some(at) => rest = &rest[at + part.len()..],
            None => return false,
        }
    }
    rest.ends_with(last)
}

#[cfg(test)]
mod tests;
