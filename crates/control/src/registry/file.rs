//! The file registry: YAML or JSON files with `instances:`, read again when they change.
//!
//! A file that became bad keeps its last good instances and is reported with file and line. Notifications only say when to
//! look; the scan compares content, so a lost or doubled notification does no harm, and a slow rescan catches what the
//! system does not notify (network file systems).

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use notify::{RecursiveMode, Watcher};
use serde::Deserialize;
use tokio::sync::mpsc;

use super::Event;
use crate::instance::Instance;

/// Notifications come in bursts (write, rename, chmod): wait this long for the last.
const SETTLE: Duration = Duration::from_millis(20);
/// Looked at even without a notification.
const RESCAN: Duration = Duration::from_secs(10);
/// Larger files are refused: they are no registry that somebody wrote.
const MAX_BYTES: u64 = 64 << 20;

/// What is wrong with a registry file.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize, utoipa::ToSchema)]
pub struct Problem {
    /// The file.
    pub file: String,
    /// The line, from 1; 0 when it belongs to none.
    pub line: u64,
    /// What is wrong.
    pub message: String,
}

impl std::fmt::Display for Problem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.line {
            0 => write!(f, "{}: {}", self.file, self.message),
            line => write!(f, "{}:{line}: {}", self.file, self.message),
        }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    instances: Vec<Instance>,
}

/// What changed between two scans.
#[derive(Debug, Default)]
pub struct Changes {
    /// Source (the file's path) and what it has now.
    pub events: Vec<(String, Event)>,
    /// Everything that is wrong now.
    pub problems: Vec<Problem>,
}

/// The files of one control plane.
#[derive(Debug)]
pub struct FileRegistry {
    patterns: Vec<String>,
    /// Last seen content of each file, good or bad.
    seen: BTreeMap<PathBuf, Seen>,
}

#[derive(Debug)]
struct Seen {
    content: String,
    problem: Option<Problem>,
}

impl FileRegistry {
    /// Nothing is read yet.
    pub fn new(patterns: Vec<String>) -> Self {
        Self { patterns, seen: BTreeMap::new() }
    }

    /// Whether there is anything to watch.
    pub fn is_empty(&self) -> bool {
        self.patterns.is_empty()
    }

    /// Reads what changed. Blocks.
    pub fn scan(&mut self) -> Changes {
        let mut changes = Changes::default();
        let mut found = BTreeMap::new();
        for pattern in &self.patterns {
            match expand(pattern) {
                Ok(paths) => found.extend(paths.into_iter().map(|path| (path, ()))),
                Err(message) => changes.problems.push(Problem { file: pattern.clone(), line: 0, message }),
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
        let content = match read(&path) {
            Ok(content) => content,
            Err(message) => {
                changes.problems.push(Problem { file, line: 0, message });
                return;
            }
        };
        if let Some(seen) = self.seen.get(&path).filter(|seen| seen.content == content) {
            changes.problems.extend(seen.problem.clone());
            return;
        }
        let problem = match parse(&file, &content) {
            Ok(instances) => {
                changes.events.push((file, Event::Reset(instances)));
                None
            }
            Err(problem) => Some(problem),
        };
        changes.problems.extend(problem.clone());
        self.seen.insert(path, Seen { content, problem });
    }

    /// Watches for ever, handing each scan with a difference to `tell`; ends when `tell` answers false.
    pub async fn watch<F, Fut>(mut self, mut tell: F)
    where
        F: FnMut(Changes) -> Fut,
        Fut: Future<Output = bool>,
    {
        let (bell, mut rung) = mpsc::channel(1);
        let watcher = notify::recommended_watcher(move |event| {
            if is_news(&event) {
                // Full means that the bell is ringing already.
                let _ = bell.try_send(());
            }
        });
        let mut watcher = match watcher {
            Ok(watcher) => Some(watcher),
            Err(error) => {
                tracing::warn!(%error, "registry files are only looked at every 10 s: the system cannot watch them");
                None
            }
        };
        let mut problems = Vec::new();
        loop {
            if let Some(watcher) = &mut watcher {
                // Again each time: a directory may have appeared or been replaced.
                for pattern in &self.patterns {
                    let _ = watcher.watch(&directory_of(pattern), RecursiveMode::NonRecursive);
                }
            }
            let scanned = tokio::task::spawn_blocking(move || {
                let changes = self.scan();
                (self, changes)
            });
            let Ok((registry, changes)) = scanned.await else { return };
            self = registry;
            if !changes.events.is_empty() || changes.problems != problems {
                for problem in changes.problems.iter().filter(|problem| !problems.contains(*problem)) {
                    tracing::error!("registry file {problem}; its last good content stays in force");
                }
                problems.clone_from(&changes.problems);
                if !tell(changes).await {
                    return;
                }
            }
            if watcher.is_some() {
                if let Ok(Some(())) = tokio::time::timeout(RESCAN, rung.recv()).await {
                    tokio::time::sleep(SETTLE).await;
                    let _ = rung.try_recv();
                }
            } else {
                tokio::time::sleep(RESCAN).await;
            }
        }
    }
}

/// Reading is told as well, ours too: heard as a change, each scan would call for the next.
fn is_news(event: &notify::Result<notify::Event>) -> bool {
    event.as_ref().map_or(true, |event| !event.kind.is_access())
}

fn read(path: &Path) -> Result<String, String> {
    let cannot = |error: std::io::Error| format!("cannot be read: {error}");
    let length = std::fs::metadata(path).map_err(cannot)?.len();
    if length > MAX_BYTES {
        return Err(format!("has {length} bytes; a registry file has at most {MAX_BYTES}"));
    }
    std::fs::read_to_string(path).map_err(cannot)
}

fn parse(file: &str, text: &str) -> Result<Vec<Arc<Instance>>, Problem> {
    if text.trim().is_empty() {
        return Ok(Vec::new());
    }
    // The reader's own bounds are for what is short; what the bytes of a file can hold, it may.
    let all = text.len();
    let options = serde_saphyr::options! {
        budget: serde_saphyr::budget! { max_nodes: all.max(250_000), max_events: (2 * all).max(1_000_000) },
    };
    let document: Document = serde_saphyr::from_str_with_options(text, options).map_err(|error| Problem {
        file: file.to_owned(),
        line: error.location().map_or(0, |at| at.line()),
        message: error.without_snippet().to_string(),
    })?;
    let mut instances: Vec<Arc<Instance>> = Vec::with_capacity(document.instances.len());
    let mut ids = BTreeSet::new();
    for instance in document.instances {
        // serde does not keep positions; the id is where the reader will look.
        let line = || {
            let at = text.lines().position(|line| line.contains("id") && line.contains(instance.id.as_str()));
            at.map_or(0, |at| at as u64 + 1)
        };
        let wrong = |message| Problem { file: file.to_owned(), line: line(), message };
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
        instances.push(Arc::new(instance.normalise()));
    }
    Ok(instances)
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
