//! The peers: each a pair of sidecars with mTLS in between, on addresses of its own, all up at once.
//!
//! Equal work: TLS 1.3, AES-128-GCM, P-256, certificates on both sides, one route, one authorization rule where the
//! peer has such a thing, metrics on, access log and tracing off, one worker.

pub mod envoy;
mod floor;
mod haproxy;
pub mod outrigger;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use outrigger_tests::mesh::Mesh;

use crate::process::Process;
use crate::{Kind, Ports};

/// The CPU of load, application and control planes.
pub const LOAD_CPU: usize = 0;
/// The CPU of the sidecars.
pub const SIDECAR_CPU: usize = 1;

/// A pair that is up.
pub struct Peer {
    /// Name in the tables.
    pub name: &'static str,
    /// Where clients connect.
    pub front: Ports,
    /// Outbound sidecar, inbound sidecar; none for `direct`.
    pub sidecars: Vec<Process>,
}

impl Peer {
    /// Both pids.
    pub fn pids(&self) -> Vec<u32> {
        self.sidecars.iter().map(Process::pid).collect()
    }
}

/// What every peer is built from.
pub struct Site<'a> {
    /// Control plane, certificates, addresses.
    pub mesh: &'a Mesh,
    /// Working files.
    pub directory: PathBuf,
    /// Our programs.
    pub bin: PathBuf,
    /// The application.
    pub app: Ports,
}

impl<'m> Site<'m> {
    /// Starts the application; it ends with the process that is returned.
    pub fn open(mesh: &'m Mesh, bin: &Path) -> Result<(Self, Process)> {
        let directory = mesh.path("bench");
        std::fs::create_dir_all(&directory)?;
        let exe = path_text(&std::env::current_exe()?);
        let words = argv([&exe, "app", "--ip", &mesh.address(2, 0).ip().to_string()]);
        let mut app = Process::start("app", LOAD_CPU, &words, &directory)?;
        let ports = app.answer()?;
        Ok((Self { mesh, directory, bin: bin.to_owned(), app: ports }, app))
    }

    /// The same five ports on the last part `host` of the mesh's network.
    pub fn ports(&self, host: u8, first: u16) -> Ports {
        let at = |offset| self.mesh.address(host, first + offset);
        Ports { h1: at(0), h2: at(1), grpc: at(2), tcp: at(3), bulk: at(4) }
    }

    /// Writes a file of a peer.
    pub fn write(&self, name: &str, text: &str) -> Result<String> {
        let path = self.directory.join(name);
        std::fs::write(&path, text)?;
        Ok(path.display().to_string())
    }

    /// Key, certificate and roots of both ends as files: `load.*`, `echo.*`, `roots.pem`.
    pub async fn write_pki(&self) -> Result<()> {
        for account in ["load", "echo"] {
            let identity = self.mesh.issue(account).await;
            self.write(&format!("{account}.key"), &identity.key)?;
            self.write(&format!("{account}.pem"), &identity.certificate)?;
            self.write(&format!("{account}.both"), &format!("{}\n{}", identity.certificate, identity.key))?;
            self.write("roots.pem", &identity.roots)?;
        }
        Ok(())
    }
}

/// The names of all peers.
pub const ALL: [&str; 5] = ["direct", "outrigger", "envoy", "haproxy", "floor"];

/// Starts a peer and waits until each of its ports answers.
pub async fn start(name: &str, site: &Site<'_>) -> Result<Peer> {
    let mut peer = match name {
        "direct" => Peer { name: "direct", front: site.app, sidecars: Vec::new() },
        "outrigger" => outrigger::start(site, &[]).await?,
        "envoy" => envoy::start(site)?,
        "haproxy" => haproxy::start(site)?,
        "floor" => floor::start(site)?,
        other => bail!("no peer `{other}`; there are {}", ALL.join(", ")),
    };
    for (_, address) in peer.front.all() {
        wait_for(address, &mut peer.sidecars).with_context(|| format!("{name} at {address}"))?;
    }
    Ok(peer)
}

fn wait_for(address: SocketAddr, sidecars: &mut [Process]) -> Result<()> {
    let deadline = Instant::now() + Duration::from_secs(20);
    while std::net::TcpStream::connect(address).is_err() {
        if let Some(dead) = sidecars.iter_mut().find_map(|sidecar| (!sidecar.alive()).then(|| sidecar.log()))
        {
            bail!("a sidecar ended: {dead}");
        }
        if Instant::now() > deadline {
            bail!("nobody listens: {}", sidecars.iter().map(Process::log).collect::<Vec<_>>().join("\n"));
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

/// Whether a kind is HTTP, and whether HTTP/2.
fn http_version(kind: Kind) -> Option<u8> {
    match kind {
        Kind::H1 | Kind::Connect => Some(1),
        Kind::H2 | Kind::Grpc => Some(2),
        Kind::Tcp | Kind::Bulk => None,
    }
}

/// A tool as text.
fn program(name: &str) -> Result<String> {
    let found =
        outrigger_tests::require::tool(name).with_context(|| format!("{name} is needed for this peer"))?;
    Ok(path_text(&found))
}

fn path_text(path: &Path) -> String {
    path.display().to_string()
}

/// Arguments as text.
fn argv<const N: usize>(words: [&str; N]) -> Vec<String> {
    words.map(str::to_owned).to_vec()
}
