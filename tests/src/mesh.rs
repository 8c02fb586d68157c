//! A mesh of real processes: one control plane, sidecars, each workload on its own loopback address.

use std::collections::BTreeMap;
use std::fs::File;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use outrigger_control::api::types::{ApplyBody, ApplyQuery, IdentityBody, IdentityRequest, TokenRequest};
use outrigger_control::client::{Client, ClientError};
use outrigger_control::instance::{Instance, Port, Protocol, State};
use serde_json::{Value, json};

use crate::app;
use crate::netns::Host;
use crate::wait::eventually;

/// A mesh; its processes end with it.
pub struct Mesh {
    directory: tempfile::TempDir,
    binary: PathBuf,
    net: [u8; 2],
    settings: Value,
    /// Where the control plane runs; absent: on this machine's loopback addresses.
    place: Option<Host>,
    /// What the control plane is started behind when it is next, such as `prlimit`.
    pub behind: Vec<String>,
    control: Option<Process>,
    /// Where sidecars that are started from now on send their spans, beside the control plane's own store.
    pub collectors: Vec<String>,
    /// More fields of the bootstrap file of sidecars that are started from now on.
    pub bootstrap: Value,
    /// What ports of workloads that are registered from now on let requests switch to.
    pub upgrades: Vec<String>,
    /// The one port of workloads that are registered, and of sidecars that are started, from now on.
    pub port: u16,
    /// Namespace of workloads that are registered from now on.
    pub namespace: String,
    /// Labels of workloads that are registered from now on.
    pub labels: BTreeMap<String, String>,
    /// Region and zone of workloads that are registered from now on.
    pub locality: (String, String),
    /// The management API.
    pub client: Client,
}

/// A process whose standard input is ours: it ends when we do.
pub struct Process {
    child: Child,
    log: PathBuf,
}

/// A workload's sidecar and addresses.
pub struct Sidecar {
    /// The process; `None` after [`Sidecar::kill`].
    process: Option<Process>,
    bootstrap: PathBuf,
    name: String,
    /// What peers connect to.
    pub inbound: SocketAddr,
    /// Where the application listens.
    pub app: SocketAddr,
    /// Where the sidecar stands for each destination, in the order given.
    pub outbound: Vec<SocketAddr>,
    /// Its admin pages.
    pub admin: SocketAddr,
}

/// What a workload is.
pub struct Spec<'a> {
    /// Service and service account.
    pub service: &'a str,
    /// Version label.
    pub version: &'a str,
    /// Last part of its address.
    pub host: u8,
    /// Protocol of its one port.
    pub protocol: Protocol,
    /// Destinations that it calls.
    pub calls: &'a [&'a str],
}

/// Namespace of everything, unless a test chooses another.
pub const NAMESPACE: &str = "shop";
/// Registered port of every workload, unless a test chooses another.
pub const PORT: u16 = 8080;

impl Process {
    fn start(binary: &Path, args: &[&str], log: PathBuf) -> Self {
        let mut command = Command::new(binary);
        command.args(args);
        Self::spawn(command, log)
    }

    /// Starts a program that writes its output to `log`.
    pub fn spawn(mut command: Command, log: PathBuf) -> Self {
        let out = File::create(&log).expect("a log in a directory of our own");
        let err = out.try_clone().expect("a log in a directory of our own");
        let spawned = command.stdin(Stdio::piped()).stdout(out).stderr(err).spawn();
        let child = spawned.unwrap_or_else(|error| panic!("{command:?} does not start: {error}"));
        Self { child, log }
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// What it has written.
    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// SIGKILL.
    pub fn kill(mut self) {
        self.end();
    }

    /// Whether it has ended, and well.
    pub fn ended(&mut self) -> Option<bool> {
        self.child.try_wait().ok().flatten().map(|status| status.success())
    }

    fn end(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.end();
        if std::thread::panicking() {
            let log = self.log();
            let tail: Vec<&str> = log.lines().rev().take(12).collect();
            eprintln!("--- {}", self.log.display());
            tail.iter().rev().for_each(|line| eprintln!("{line}"));
        }
    }
}

impl Mesh {
    /// A control plane of the binary under test.
    pub async fn start(binary: &str) -> Self {
        Self::start_with(binary, json!({})).await
    }

    /// As [`Mesh::start`], with more settings.
    pub async fn start_with(binary: &str, more: Value) -> Self {
        Self::start_in(binary.into(), free_net(), None, &[], more).await
    }

    /// As [`Mesh::start_with`], with the control plane behind a program that executes its arguments, such as `prlimit`.
    pub async fn start_behind(binary: &str, behind: &[&str], more: Value) -> Self {
        Self::start_in(binary.into(), free_net(), None, behind, more).await
    }

    /// With the control plane on this host; nobody else need reach it, because the management API is a socket file.
    pub async fn start_on(binary: &str, host: &Host) -> Self {
        Self::start_on_with(binary, host, json!({})).await
    }

    /// As [`Mesh::start_on`], with more settings.
    pub async fn start_on_with(binary: &str, host: &Host, more: Value) -> Self {
        let mut settings = json!({ "ips": host.addresses(), "advertise": SocketAddr::new(host.v4(), 15012) });
        merge(&mut settings, &more);
        Self::start_in(binary.into(), [0; 2], Some(host.clone()), &[], settings).await
    }

    async fn start_in(
        binary: PathBuf,
        net: [u8; 2],
        place: Option<Host>,
        behind: &[&str],
        more: Value,
    ) -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let client = Client::socket(directory.path().join("control/outrigger.sock"));
        let mut mesh = Self {
            directory,
            binary,
            net,
            settings: json!({}),
            place,
            behind: behind.iter().map(|&word| word.to_owned()).collect(),
            control: None,
            collectors: Vec::new(),
            bootstrap: json!({}),
            upgrades: Vec::new(),
            port: PORT,
            namespace: NAMESPACE.to_owned(),
            labels: BTreeMap::new(),
            locality: Default::default(),
            client,
        };
        let mut settings = json!({
            "dataDir": mesh.path("control"),
            "xdsAddress": mesh.control_address(15012),
            "metricsAddress": mesh.control_address(15014),
            "otlpAddress": mesh.control_address(4317),
            "queryAddress": mesh.control_address(16686),
            "sampling": 100.0,
            "parentPipe": true,
        });
        merge(&mut settings, &more);
        mesh.settings = settings;
        mesh.start_control().await;
        mesh
    }

    /// Starts the control plane (again).
    pub async fn start_control(&mut self) {
        self.begin_control();
        eventually("the control plane answers", || self.client.status()).await;
    }

    fn spawn_control(&self) -> Process {
        let file = self.path("control.json");
        std::fs::write(&file, self.settings.to_string()).expect("a file in the mesh's own directory");
        let mut command = match (&self.place, self.behind.split_first()) {
            (Some(host), _) => host.command(&self.binary),
            (None, None) => Command::new(&self.binary),
            (None, Some((program, words))) => {
                let mut command = Command::new(program);
                command.args(words).arg(&self.binary);
                command
            }
        };
        command.args(["control-plane", "--config"]).arg(file);
        Process::spawn(command, self.path("control.log"))
    }

    /// The control plane's process, while it runs.
    pub fn control_id(&self) -> Option<u32> {
        self.control.as_ref().map(Process::id)
    }

    /// Tells the control plane's process something.
    pub fn signal_control(&self, signal: rustix::process::Signal) {
        let id = self.control_id().and_then(|id| i32::try_from(id).ok());
        let id = id.and_then(rustix::process::Pid::from_raw).expect("it runs");
        rustix::process::kill_process(id, signal).expect("it is ours");
    }

    /// Has the control plane stop as it does for an operator, and waits until it has.
    pub async fn stop_control(&mut self) {
        self.signal_control(rustix::process::Signal::TERM);
        self.ended_control().await;
    }

    /// Waits until the control plane has ended; what it has logged.
    pub async fn ended_control(&mut self) -> String {
        let control = self.control.as_mut().expect("it runs");
        eventually("the control plane has ended", || {
            let ended = control.child.try_wait();
            std::future::ready(match ended {
                Ok(Some(_)) => Ok(()),
                other => Err(format!("{other:?}")),
            })
        })
        .await;
        self.control.take().map(|control| control.log()).unwrap_or_default()
    }

    /// A setting of the control plane, when it is started next.
    pub fn set(&mut self, name: &str, value: Value) {
        self.settings[name] = value;
    }

    /// What the control plane has logged since it was started last.
    pub fn control_log(&self) -> String {
        self.control.as_ref().map(Process::log).unwrap_or_default()
    }

    /// Starts the control plane without waiting for it.
    pub fn begin_control(&mut self) {
        self.control = Some(self.spawn_control());
    }

    /// Kills the control plane at once.
    pub fn kill_control(&mut self) {
        if let Some(control) = self.control.take() {
            control.kill();
        }
    }

    /// An address of the control plane.
    fn control_address(&self, port: u16) -> SocketAddr {
        self.place.as_ref().map_or_else(|| self.address(1, port), |host| SocketAddr::new(host.v4(), port))
    }

    /// The binary under test.
    pub fn binary(&self) -> &Path {
        &self.binary
    }

    /// An address of this mesh's network.
    pub fn address(&self, host: u8, port: u16) -> SocketAddr {
        SocketAddr::from((Ipv4Addr::new(127, self.net[0], self.net[1], host), port))
    }

    /// A file of this mesh.
    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Applies rules and waits until they are in force.
    pub async fn apply(&self, yaml: &str) -> ApplyBody {
        let body = self.try_apply(yaml).await.expect("the rules are taken");
        let in_force = body.in_force.as_ref().expect("the answer says what is in force");
        assert!(in_force.complete, "{in_force:?}");
        body
    }

    /// Applies rules.
    pub async fn try_apply(&self, yaml: &str) -> Result<ApplyBody, ClientError> {
        let query = ApplyQuery { wait: true, timeout: Some(120.0), ..ApplyQuery::default() };
        self.client.apply(yaml, &query).await
    }

    /// Key, certificate and roots for a client without a sidecar.
    pub async fn issue(&self, account: &str) -> IdentityBody {
        let request = IdentityRequest {
            namespace: NAMESPACE.into(),
            service_account: account.into(),
            ttl_seconds: None,
        };
        self.client.issue_identity(&request).await.expect("an identity is issued")
    }

    /// Registers a workload, starts its sidecar and waits until it is ready.
    pub async fn workload(&self, spec: &Spec<'_>) -> Sidecar {
        self.register(spec).await;
        self.sidecar(spec).await
    }

    /// Starts a workload's sidecar and waits until it is ready; who registers it is the caller's business.
    pub async fn sidecar(&self, spec: &Spec<'_>) -> Sidecar {
        let id = format!("{}-{}", spec.service, spec.version);
        let join = self.path(&format!("{id}.join"));
        self.write_join(spec.service, &join).await;
        let outbound: Vec<SocketAddr> =
            (0..spec.calls.len()).map(|i| self.address(spec.host, 15101 + i as u16)).collect();
        let (inbound, app) = (self.address(spec.host, self.port), self.address(spec.host, self.port + 1000));
        let admin = self.address(spec.host, 15000);
        let binds = outbound.iter().zip(spec.calls).map(|(bind, to)| json!({ "bind": bind, "to": to }));
        let mut bootstrap = json!({
            "node": { "id": id, "workload": id, "namespace": self.namespace, "service_account": spec.service,
                      "app": spec.service, "version": spec.version },
            "join": join,
            "state_dir": self.path(&format!("{id}.state")),
            "workers": 1,
            "admin": admin,
            "inbound": [{ "bind": inbound, "app": app }],
            "outbound": binds.collect::<Vec<_>>(),
            "tracing": { "otlp": self.all_collectors(), "flush_ms": 50 },
            "access_log": { "path": self.path(&format!("{id}.access")) },
            "parent_pipe": true,
        });
        merge(&mut bootstrap, &self.bootstrap);
        let file = self.path(&format!("{id}.json"));
        std::fs::write(&file, bootstrap.to_string()).expect("a file in the mesh's own directory");
        let mut sidecar = Sidecar { process: None, bootstrap: file, name: id, inbound, app, outbound, admin };
        sidecar.start(self).await;
        sidecar
    }

    /// Where spans go: to the control plane's own store and to the others.
    pub(crate) fn all_collectors(&self) -> Vec<String> {
        let own = format!("http://{}", self.control_address(4317));
        std::iter::once(own).chain(self.collectors.iter().cloned()).collect()
    }

    /// Makes a join file for a service whose account is called like it.
    pub(crate) async fn write_join(&self, service: &str, file: &Path) {
        let request = TokenRequest {
            namespace: self.namespace.clone(),
            service_account: service.into(),
            services: vec![service.into()],
            ..TokenRequest::default()
        };
        let token = self.client.create_token(&request).await.expect("a token is made");
        token.write(file).expect("a file in the mesh's own directory");
    }

    /// Registers a workload; its id. Whatever listens there need not be a sidecar of ours.
    pub async fn register(&self, spec: &Spec<'_>) -> String {
        let id = format!("{}-{}", spec.service, spec.version);
        let addresses = vec![self.address(spec.host, 0).ip()];
        let mut instance = instance(&id, spec.service, addresses, &[(self.port, spec.protocol)]);
        instance.version = Some(spec.version.into());
        instance.ports[0].upgrades.clone_from(&self.upgrades);
        instance.namespace.clone_from(&self.namespace);
        instance.labels = self.labels.clone().into();
        (instance.region, instance.zone) = self.locality.clone();
        self.client.register(&instance).await.expect("the registration is taken");
        id
    }
}

/// A running instance with a sidecar, whose account is called like its service.
pub(crate) fn instance(
    id: &str,
    service: &str,
    addresses: Vec<IpAddr>,
    ports: &[(u16, Protocol)],
) -> Instance {
    let port = |(number, protocol): &(u16, Protocol)| Port {
        number: *number,
        name: String::new(),
        protocol: *protocol,
        aliases: Vec::new(),
        upgrades: Vec::new(),
    };
    Instance {
        id: id.to_owned(),
        service: service.into(),
        namespace: NAMESPACE.into(),
        addresses,
        network: String::new(),
        ports: ports.iter().map(port).collect(),
        labels: Default::default(),
        metadata: Default::default(),
        tags: Vec::new(),
        version: None,
        weight: 100,
        zone: String::new(),
        region: String::new(),
        service_account: service.into(),
        state: State::Running,
        sidecar: true,
        ttl_seconds: None,
        word: Default::default(),
        services: None,
    }
}

impl Sidecar {
    /// Starts the process (again) and waits until it is ready.
    pub async fn start(&mut self, mesh: &Mesh) {
        let args = ["proxy", "--bootstrap", &self.bootstrap.display().to_string()];
        self.process = Some(Process::start(&mesh.binary, &args, mesh.path(&format!("{}.log", self.name))));
        eventually(&format!("{} is ready", self.name), || async {
            match app::get(self.admin, "/ready", "").await {
                Ok((200, _)) => Ok(()),
                Ok((_, text)) => Err(text),
                Err(error) => Err(error.to_string()),
            }
        })
        .await;
    }

    /// The id of its process, while it runs.
    pub fn id(&self) -> Option<u32> {
        self.process.as_ref().map(Process::id)
    }

    /// SIGTERM.
    pub fn terminate(&self) {
        let id = self.id().and_then(|id| i32::try_from(id).ok());
        let id = id.and_then(rustix::process::Pid::from_raw).expect("it runs");
        rustix::process::kill_process(id, rustix::process::Signal::TERM).expect("it is ours");
    }

    /// What it has logged.
    pub fn log(&self) -> String {
        self.process.as_ref().map(Process::log).unwrap_or_default()
    }

    /// Kills the process at once.
    pub fn kill(&mut self) {
        if let Some(process) = self.process.take() {
            process.kill();
        }
    }

    /// An admin page.
    pub async fn page(&self, path: &str) -> String {
        app::get(self.admin, path, "").await.expect("the admin page answers").1
    }
}

/// Lays fields over those of a mapping.
pub fn merge(all: &mut Value, more: &Value) {
    if let (Some(all), Some(more)) = (all.as_object_mut(), more.as_object()) {
        all.extend(more.clone());
    }
}

/// A 127.x.y.0/24 whose control-plane port is free.
pub fn free_net() -> [u8; 2] {
    for _ in 0..1000 {
        let net = [fastrand::u8(1..255), fastrand::u8(0..255)];
        let address = SocketAddr::from((Ipv4Addr::new(127, net[0], net[1], 1), 15012));
        if TcpListener::bind(address).is_ok() {
            return net;
        }
    }
    panic!("no free 127.x.y.0/24")
}
