//! How much memory the process may use: the setting, else the cgroup's limit, else the host's memory.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::Shed;

/// A worker can always hold this much.
const LEAST: usize = 8 << 20;

/// What the process may use, and what of it is handed out to clients.
pub struct Budget {
    /// Of the process.
    pub limit: usize,
    /// How much it uses.
    pub resident: fn() -> usize,
    pub shed: Arc<Shed>,
    pub(super) workers: usize,
}

impl Budget {
    /// Of a process with so many workers. `setting` goes before what the system says.
    pub fn new(setting: Option<usize>, workers: usize) -> Self {
        let limit = setting.unwrap_or_else(|| of_system(Path::new("/")));
        Self { limit, resident, shed: Arc::default(), workers: workers.max(1) }
    }

    /// How many workers there are.
    pub fn workers(&self) -> usize {
        self.workers
    }

    /// Half of the limit is handed out, in equal shares; the other half is for configuration, buffers and bodies.
    pub fn of_worker(&self) -> usize {
        (self.limit / 2 / self.workers).max(LEAST)
    }

    /// Connections that a worker takes at once, at 32 KiB each.
    pub fn connections(&self, most: usize) -> usize {
        (self.of_worker() / (32 * 1024)).min(most)
    }
}

/// Resident memory; 0 where the system does not tell.
pub fn resident() -> usize {
    let text = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    line.and_then(kibibytes).unwrap_or(0)
}

fn kibibytes(text: &str) -> Option<usize> {
    Some(text.split_ascii_whitespace().next()?.parse::<usize>().ok()?.saturating_mul(1024))
}

/// The least of what the cgroups of the process say, from its own up to the root; both versions of cgroups.
fn of_system(root: &Path) -> usize {
    let host = std::fs::read_to_string(root.join("proc/meminfo")).ok();
    let host = host.as_deref().and_then(|text| text.lines().find_map(|line| line.strip_prefix("MemTotal:")));
    let host = host.and_then(kibibytes).unwrap_or(usize::MAX);
    let groups = std::fs::read_to_string(root.join("proc/self/cgroup")).unwrap_or_default();
    groups.lines().flat_map(|line| of_group(root, line)).fold(host, usize::min)
}

/// `0::/path` (version 2), `4:memory:/path` (version 1).
fn of_group(root: &Path, line: &str) -> Vec<usize> {
    let mut parts = line.splitn(3, ':');
    let (Some(_), Some(controllers), Some(path)) = (parts.next(), parts.next(), parts.next()) else {
        return Vec::new();
    };
    let (top, file) = match controllers {
        "" => ("sys/fs/cgroup", "memory.max"),
        "memory" => ("sys/fs/cgroup/memory", "memory.limit_in_bytes"),
        _ => return Vec::new(),
    };
    let top = root.join(top);
    let own: PathBuf = top.join(path.trim_start_matches('/'));
    let read = |folder: &Path| std::fs::read_to_string(folder.join(file)).ok()?.trim().parse().ok();
    // "max" is no number; in a container the own group may be seen as the root.
    own.ancestors().take_while(|folder| folder.starts_with(&top)).filter_map(read).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn system(files: &[(&str, &str)]) -> usize {
        let root = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = root.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        of_system(root.path())
    }

    #[test]
    fn the_limit_is_the_least_of_all_cgroups() {
        let host = ("proc/meminfo", "MemTotal:        1048576 kB\n");
        assert_eq!(system(&[host]), 1 << 30);
        let v2 = ("proc/self/cgroup", "0::/pods/a\n");
        let own = ("sys/fs/cgroup/pods/a/memory.max", "max\n");
        let parent = ("sys/fs/cgroup/pods/memory.max", "134217728\n");
        assert_eq!(system(&[host, v2, own, parent]), 128 << 20);
        let v1 = ("proc/self/cgroup", "5:cpu:/x\n4:memory:/docker/a\n");
        let limit = ("sys/fs/cgroup/memory/memory.limit_in_bytes", "268435456\n");
        assert_eq!(system(&[host, v1, limit]), 256 << 20);
        assert_eq!(system(&[]), usize::MAX);
    }

    #[test]
    fn shares_are_equal_and_never_nothing() {
        let budget = Budget::new(Some(256 << 20), 4);
        assert_eq!((budget.of_worker(), budget.connections(32 * 1024)), (32 << 20, 1024));
        assert_eq!(Budget::new(Some(1), 1).of_worker(), LEAST);
        assert_eq!(Budget::new(Some(usize::MAX), 1).connections(7), 7);
    }
}
