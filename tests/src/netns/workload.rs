//! A workload whose host's connections go through its sidecar by rules in the kernel: nothing about it knows of the mesh.

use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};

use outrigger_control::instance::Protocol;
use serde_json::{Value, json};

use super::Host;
use crate::app;
use crate::mesh::{Mesh, NAMESPACE, Process, instance, merge};
use crate::wait::eventually;

/// The sidecar's user, whose connections the rules let pass.
const USER: u32 = 1337;
/// The admin server of every sidecar, on its own host.
const ADMIN: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 15000);

/// What a workload is.
#[derive(Clone, Copy)]
pub struct Workload<'a> {
    /// Service, service account and id.
    pub service: &'a str,
    /// Ports and what they are declared as.
    pub ports: &'a [(u16, Protocol)],
    /// `redirect` or `tproxy`.
    pub mode: &'a str,
    /// Further words for `intercept apply`.
    pub rules: &'a [&'a str],
    /// Limits of open files, the soft and the hard one. Default: the test's own.
    pub open_files: Option<(u32, u32)>,
}

impl Default for Workload<'_> {
    fn default() -> Self {
        Self { service: "", ports: &[], mode: "redirect", rules: &[], open_files: None }
    }
}

/// A workload that has joined.
pub struct Intercepted {
    /// Where it is.
    pub host: Host,
    /// Its service.
    pub service: String,
    process: Option<Process>,
    binary: PathBuf,
    directory: PathBuf,
    open_files: Option<(u32, u32)>,
    keeps_addresses: bool,
}

impl Mesh {
    /// Registers the workload, brings the host's connections to a sidecar and waits until it is ready.
    pub async fn join(&self, host: &Host, workload: &Workload<'_>) -> Intercepted {
        let service = workload.service;
        let registered = instance(service, service, host.addresses().into(), workload.ports);
        self.client.register(&registered).await.expect("the registration is taken");
        let directory = self.directory_for_sidecars().join(service);
        std::fs::create_dir_all(directory.join("state")).expect("a directory of our own");
        self.write_join(service, &directory.join("join")).await;
        let mut bootstrap = json!({
            "node": { "id": service, "workload": service, "namespace": NAMESPACE, "service_account": service,
                      "app": service, "version": "v1" },
            "mode": workload.mode,
            "join": directory.join("join"),
            "state_dir": directory.join("state"),
            "admin": ADMIN,
            "tracing": { "otlp": self.all_collectors() },
            "access_log": { "path": directory.join("access"), "format": "json" },
            "parent_pipe": true,
        });
        merge(&mut bootstrap, &self.bootstrap);
        std::fs::write(directory.join("bootstrap"), bootstrap.to_string()).expect("a file of our own");
        for name in ["", "join", "state", "bootstrap"] {
            chown(directory.join(name), Some(USER), Some(USER)).expect("root may give files away");
        }
        let mut joined = Intercepted {
            host: host.clone(),
            service: service.to_owned(),
            process: None,
            binary: directory.with_file_name("outrigger"),
            directory,
            open_files: workload.open_files,
            keeps_addresses: workload.mode == "tproxy",
        };
        joined.intercept("apply", &[&["--mode", workload.mode], workload.rules].concat());
        joined.start().await;
        joined
    }

    /// A directory that any user may pass through, with the binary in it: neither the mesh's own nor the build's need let
    /// another user in.
    fn directory_for_sidecars(&self) -> PathBuf {
        let directory = self.path("sidecars");
        let binary = directory.join("outrigger");
        if !binary.exists() {
            std::fs::create_dir_all(&directory).expect("a directory of our own");
            let linked = std::fs::hard_link(self.binary(), &binary);
            linked
                .or_else(|_| std::fs::copy(self.binary(), &binary).map(drop))
                .expect("the binary is copied");
            for open in [&self.path(""), &directory] {
                let mode = std::fs::Permissions::from_mode(0o711);
                std::fs::set_permissions(open, mode).expect("a directory of our own");
            }
        }
        directory
    }
}

impl Intercepted {
    /// `outrigger intercept …` on its host; standard output.
    ///
    /// # Panics
    /// When it fails.
    pub fn intercept(&self, verb: &str, args: &[&str]) -> String {
        let args = [&["intercept", verb], args].concat();
        self.host.ask(&self.binary, &args).unwrap_or_else(|error| panic!("{error}"))
    }

    /// Starts the sidecar (again) and waits until it is ready.
    pub async fn start(&mut self) {
        let limit = self.open_files.map(|(soft, hard)| format!("--nofile={soft}:{hard}"));
        let before: Vec<&str> = limit.iter().flat_map(|limit| ["prlimit", limit]).collect();
        let user = USER.to_string();
        let mut setpriv = vec!["--reuid", &user, "--regid", &user, "--clear-groups"];
        if self.keeps_addresses {
            setpriv.extend(["--inh-caps", "+net_admin", "--ambient-caps", "+net_admin"]);
        }
        let mut command = self.host.command_with(&before, &setpriv, &self.binary);
        command.args(["proxy", "--bootstrap"]).arg(self.directory.join("bootstrap"));
        self.process = Some(Process::spawn(command, self.directory.join("log")));
        eventually(&format!("{} is ready", self.service), || self.ready()).await;
    }

    /// Whether the sidecar is ready.
    ///
    /// # Errors
    /// Why not.
    pub async fn ready(&self) -> Result<(), String> {
        match self.host.run(app::get(ADMIN, "/ready", "")).await {
            Ok((200, _)) => Ok(()),
            Ok((_, text)) => Err(text),
            Err(error) => Err(error.to_string()),
        }
    }

    /// SIGKILL for the sidecar; the rules stay.
    pub fn kill(&mut self) {
        if let Some(process) = self.process.take() {
            process.kill();
        }
    }

    /// The sidecar's process id.
    pub fn id(&self) -> u32 {
        self.process.as_ref().expect("the sidecar runs").id()
    }

    /// Open descriptors of the sidecar.
    pub fn descriptors(&self) -> usize {
        let directory = Path::new("/proc").join(self.id().to_string()).join("fd");
        std::fs::read_dir(directory).expect("the sidecar runs").count()
    }

    /// The sidecar's own log so far.
    pub fn log(&self) -> String {
        self.process.as_ref().map(Process::log).unwrap_or_default()
    }

    /// An admin page.
    pub async fn page(&self, path: &'static str) -> String {
        self.host.run(app::get(ADMIN, path, "")).await.expect("the admin page answers").1
    }

    /// Lines of the sidecar's metrics page that begin with this name.
    pub async fn metric(&self, name: &str) -> Vec<(String, f64)> {
        let page = self.page("/stats/prometheus").await;
        let named = |line: &&str| line.strip_prefix(name).is_some_and(|rest| rest.starts_with(['{', ' ']));
        let sample = |line: &str| {
            let (series, value) = line.rsplit_once(' ')?;
            Some((series.to_owned(), value.parse().ok()?))
        };
        page.lines().filter(named).filter_map(sample).collect()
    }

    /// The access log so far.
    pub fn access_log(&self) -> Vec<Value> {
        let text = std::fs::read_to_string(self.directory.join("access")).unwrap_or_default();
        text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
    }
}

impl Drop for Intercepted {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let text = std::fs::read_to_string(self.directory.join("access")).unwrap_or_default();
            eprintln!("--- access log of {}", self.service);
            text.lines().rev().take(4).for_each(|line| eprintln!("{line}"));
        }
    }
}
