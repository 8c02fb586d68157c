//! Where the demo's processes live: each at loopback addresses of this host, or each on a host of its own, which is a network
//! namespace joined to the others by a bridge.
//!
//! The tour runs on the load's host, so it is this binary again; what made the namespaces waits for it and removes them.
//! Should it be killed, the tour sees its standard input end and removes them instead.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Command as Blocking, ExitCode, Stdio};

use anyhow::{Context, bail};
use tokio::process::Command;

/// The default of `outrigger-proxy intercept apply --uid`.
const SIDECAR: u32 = 1337;
/// Of `nobody`.
const APPLICATION: u32 = 65534;

/// Where processes live.
pub(super) enum Place {
    /// At addresses of this network, 127.x.y.0/24.
    Loopback([u8; 2]),
    /// On hosts of their own.
    Hosts(Hosts),
}

/// As whom a process runs, where that matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum User {
    Operator,
    Sidecar,
    Application,
}

/// Hosts by number; their namespaces have names of this prefix.
#[derive(Debug, Clone)]
pub(super) struct Hosts {
    prefix: String,
}

impl Place {
    /// An address of a host.
    pub(super) fn address(&self, host: u8, port: u16) -> SocketAddr {
        let ip = match self {
            Self::Loopback([a, b]) => Ipv4Addr::new(127, *a, *b, host),
            Self::Hosts(_) => Hosts::ip(host),
        };
        SocketAddr::from((ip, port))
    }

    /// A command on a host.
    pub(super) fn command(&self, host: u8, user: User, binary: &Path) -> Command {
        let Self::Hosts(hosts) = self else { return Command::new(binary) };
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &hosts.name(host)]);
        let id = match user {
            User::Operator => None,
            User::Sidecar => Some(SIDECAR.to_string()),
            User::Application => Some(APPLICATION.to_string()),
        };
        if let Some(id) = id {
            command.args(["setpriv", "--reuid", &id, "--regid", &id, "--clear-groups"]);
        }
        command.arg(binary);
        command
    }

    /// What a person writes before a command to run it on a host.
    pub(super) fn within(&self, host: u8) -> String {
        match self {
            Self::Loopback(_) => String::new(),
            Self::Hosts(hosts) => format!("ip netns exec {} ", hosts.name(host)),
        }
    }
}

impl Hosts {
    /// Those of another process.
    pub(super) fn adopt(prefix: &str) -> Self {
        Self { prefix: prefix.to_owned() }
    }

    fn name(&self, host: u8) -> String {
        format!("{}-{host}", self.prefix)
    }

    fn ip(host: u8) -> Ipv4Addr {
        // Nobody outside of the namespaces sees it.
        Ipv4Addr::new(10, 201, 0, host)
    }

    /// Makes the hosts; the first has the bridge, and is everybody's router and name server.
    fn make(numbers: &[u8]) -> anyhow::Result<Self> {
        let hosts = Self { prefix: format!("outrigger-{}", std::process::id()) };
        let made = hosts.fill(numbers);
        if made.is_err() {
            hosts.remove();
        }
        made.map(|()| hosts)
    }

    fn fill(&self, numbers: &[u8]) -> anyhow::Result<()> {
        let Some((first, others)) = numbers.split_first() else { return Ok(()) };
        let (hub, router) = (self.name(*first), Self::ip(*first));
        for number in numbers {
            let name = self.name(*number);
            ip(&format!("netns add {name}"))?;
            ip(&format!("-n {name} link set lo up"))?;
            let folder = configuration(&name);
            std::fs::create_dir_all(&folder).with_context(|| folder.display().to_string())?;
            std::fs::write(folder.join("resolv.conf"), format!("nameserver {router}\n"))?;
        }
        ip(&format!("-n {hub} link add mesh type bridge"))?;
        ip(&format!("-n {hub} addr add {router}/24 dev mesh"))?;
        ip(&format!("-n {hub} link set mesh up"))?;
        for number in others {
            let (name, address) = (self.name(*number), Self::ip(*number));
            ip(&format!("-n {name} link add eth0 type veth peer name host{number} netns {hub}"))?;
            ip(&format!("-n {hub} link set host{number} master mesh up"))?;
            ip(&format!("-n {name} addr add {address}/24 dev eth0"))?;
            ip(&format!("-n {name} link set eth0 up"))?;
            ip(&format!("-n {name} route add default via {router}"))?;
        }
        Ok(())
    }

    /// Removes the namespaces, whichever are left.
    pub(super) fn remove(&self) {
        let Ok(entries) = std::fs::read_dir("/run/netns") else { return };
        for entry in entries.flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            if name.strip_prefix(&self.prefix).is_some_and(|rest| rest.starts_with('-')) {
                let _ = ip(&format!("netns del {name}"));
                let _ = std::fs::remove_dir_all(configuration(&name));
            }
        }
    }
}

/// Where `ip netns exec` takes files from that stand in place of those in /etc.
fn configuration(name: &str) -> PathBuf {
    Path::new("/etc/netns").join(name)
}

/// Runs the demo again, inside of hosts that are made for it, on host `at`.
pub(super) async fn with_hosts(numbers: &[u8], at: u8) -> anyhow::Result<ExitCode> {
    if std::fs::metadata("/proc/self")?.uid() != 0 {
        bail!("--intercept makes network namespaces and firewall rules in them, which takes root");
    }
    let hosts = Hosts::make(numbers)?;
    let mut command = Command::new("ip");
    command
        .args(["netns", "exec", &hosts.name(at)])
        .arg(std::env::current_exe()?)
        .args(std::env::args_os().skip(1));
    let child = command.args(["--inside", &hosts.prefix]).stdin(Stdio::piped()).spawn();
    let ended = match child {
        Ok(mut child) => {
            // Waiting would close it, and to the tour that means that we are gone.
            let _held = child.stdin.take();
            loop {
                tokio::select! {
                    ended = child.wait() => break ended,
                    // The tour got it too, and ends by itself.
                    _ = tokio::signal::ctrl_c() => {}
                }
            }
        }
        Err(error) => Err(error),
    };
    hosts.remove();
    let code = ended.context("ip netns exec")?.code().and_then(|code| u8::try_from(code).ok());
    Ok(code.map_or(ExitCode::FAILURE, ExitCode::from))
}

/// Makes a folder one that everybody may enter, and puts this program there for everybody to run.
pub(super) fn share(folder: &Path, binary: &Path) -> io::Result<PathBuf> {
    std::fs::set_permissions(folder, PermissionsExt::from_mode(0o755))?;
    let shared = folder.join("outrigger");
    std::fs::copy(binary, &shared)?;
    std::fs::set_permissions(&shared, PermissionsExt::from_mode(0o755))?;
    Ok(shared)
}

/// Gives a file to the sidecars' user.
pub(super) fn hand_over(path: &Path) -> io::Result<()> {
    chown(path, Some(SIDECAR), Some(SIDECAR))
}

/// Makes a folder for the sidecars' user alone.
pub(super) fn hand_over_folder(path: &Path) -> io::Result<()> {
    std::fs::create_dir_all(path)?;
    std::fs::set_permissions(path, PermissionsExt::from_mode(0o700))?;
    hand_over(path)
}

fn ip(words: &str) -> anyhow::Result<()> {
    let output = Blocking::new("ip").args(words.split(' ')).stdin(Stdio::null()).output();
    let output = output.context("ip cannot be run (Debian's package is iproute2)")?;
    if !output.status.success() {
        bail!("ip {words}: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}
