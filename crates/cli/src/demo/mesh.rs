//! The demo's processes: a free 127.x.y.0/24, the control plane, the applications, a sidecar beside each.

use std::collections::BTreeMap;
use std::fs::File;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use outrigger_control::api::types::{ApplyBody, ApplyQuery, TokenRequest};
use outrigger_control::client::Client;
use outrigger_control::instance::{Instance, Port, Protocol, State};
use serde_json::json;
use tokio::process::Child;

use super::hosts::{self, Hosts, Place, User};
use crate::command::traces;

/// The host of the control plane.
pub(super) const CONTROL: u8 = 1;
/// Port of the control plane's xDS.
pub(super) const XDS: u16 = 15012;
const METRICS: u16 = 15014;
const OTLP: u16 = 4317;
const QUERY: u16 = 16686;
const ADMIN: u16 = 15000;
/// The first outbound bind; the next ones follow.
const OUTBOUND: u16 = 15101;
/// What an application's own port is above its registered one.
const APP_SHIFT: u16 = 1000;

/// A workload of the shop.
struct Workload {
    /// Last part of its address.
    host: u8,
    service: &'static str,
    version: &'static str,
    port: Option<(u16, Protocol)>,
    /// Of the region `shop`.
    zone: &'static str,
    /// Flag of the application, and what it calls.
    calls: &'static [(&'static str, &'static str)],
}

const WORKLOADS: [Workload; 10] = [
    Workload {
        host: LOAD,
        service: "load",
        version: "v1",
        port: None,
        zone: "a",
        calls: &[("web", "web.shop:8080")],
    },
    Workload {
        host: 11,
        service: "web",
        version: "v1",
        port: Some((8080, Protocol::Http)),
        zone: "a",
        calls: &[
            ("catalog", "catalog.shop:8080"),
            ("reviews", "reviews.shop:8080"),
            ("stock", "stock.shop:7000"),
        ],
    },
    catalog(21, "v1"),
    catalog(22, "v2"),
    reviews(31, "v1", "a"),
    reviews(32, "v2", "b"),
    reviews(33, "v3", "b"),
    pricing(41, "v1"),
    pricing(42, "v2"),
    Workload {
        host: 51,
        service: "stock",
        version: "v1",
        port: Some((7000, Protocol::Tcp)),
        zone: "a",
        calls: &[],
    },
];

const fn catalog(host: u8, version: &'static str) -> Workload {
    let calls = &[("pricing", "pricing.shop:9090")];
    Workload { host, service: "catalog", version, port: Some((8080, Protocol::Http)), zone: "a", calls }
}

const fn reviews(host: u8, version: &'static str, zone: &'static str) -> Workload {
    Workload { host, service: "reviews", version, port: Some((8080, Protocol::Http)), zone, calls: &[] }
}

const fn pricing(host: u8, version: &'static str) -> Workload {
    Workload { host, service: "pricing", version, port: Some((9090, Protocol::Grpc)), zone: "a", calls: &[] }
}

impl Workload {
    fn id(&self) -> String {
        format!("{}-{}-{}", self.service, self.version, self.host)
    }
}

/// The host of the load.
pub(super) const LOAD: u8 = 10;

/// All hosts, the control plane's first.
pub(super) fn hosts() -> Vec<u8> {
    [CONTROL].into_iter().chain(WORKLOADS.iter().map(|workload| workload.host)).collect()
}

/// The running demo.
pub(super) struct Mesh {
    directory: tempfile::TempDir,
    place: Place,
    /// What is run, where every user may run it.
    binary: PathBuf,
    client: Client,
    children: Vec<(String, Child)>,
    otlp: Vec<String>,
}

impl Mesh {
    /// Starts everything and waits until every sidecar is ready and mTLS is STRICT.
    pub(super) async fn start(otlp: Option<String>, hosts: Option<&Hosts>) -> anyhow::Result<Self> {
        let directory = tempfile::Builder::new().prefix("outrigger-demo-").tempdir()?;
        let client = Client::socket(directory.path().join("control/outrigger.sock"));
        let mut binary = std::env::current_exe()?;
        let place = match hosts {
            Some(hosts) => {
                binary = hosts::share(directory.path(), &binary)?;
                Place::Hosts(hosts.clone())
            }
            None => Place::Loopback(free_net()?),
        };
        let mut mesh = Self { directory, place, binary, client, children: Vec::new(), otlp: Vec::new() };
        mesh.otlp.push(format!("http://{}", mesh.address(CONTROL, OTLP)));
        mesh.otlp.extend(otlp);
        mesh.start_control_plane().await?;
        for workload in &WORKLOADS {
            mesh.register(workload).await?;
        }
        for workload in &WORKLOADS {
            mesh.start_workload(workload).await?;
        }
        mesh.wait_ready().await?;
        mesh.apply(STRICT).await.context("STRICT mTLS")?;
        Ok(mesh)
    }

    /// An address of the demo's network.
    pub(super) fn address(&self, host: u8, port: u16) -> SocketAddr {
        self.place.address(host, port)
    }

    /// How many sidecars there are.
    pub(super) fn sidecars(&self) -> usize {
        WORKLOADS.len()
    }

    /// Where the load enters its own sidecar.
    pub(super) fn load_entry(&self) -> String {
        match self.place {
            Place::Loopback(_) => self.address(LOAD, OUTBOUND).to_string(),
            Place::Hosts(_) => "web.shop:8080".into(),
        }
    }

    /// Jaeger's query API of the control plane.
    pub(super) fn query_url(&self) -> String {
        format!("http://{}", self.address(CONTROL, QUERY))
    }

    /// Applies rules and waits until they are in force everywhere.
    pub(super) async fn apply(&self, yaml: &str) -> anyhow::Result<ApplyBody> {
        let query = ApplyQuery {
            wait: true,
            timeout: Some(20.0),
            author: Some("demo".into()),
            ..ApplyQuery::default()
        };
        let body = self.client.apply(yaml, &query).await?;
        let in_force = body.in_force.as_ref().context("the control plane did not say what is in force")?;
        if !in_force.complete {
            bail!(
                "in force on {}/{} proxies only; waiting for {:?}",
                in_force.proxies,
                in_force.of,
                in_force.waiting
            );
        }
        Ok(body)
    }

    /// Deletes what a step applied, and waits.
    pub(super) async fn undo(&self, applied: &ApplyBody) -> anyhow::Result<()> {
        let query = ApplyQuery {
            wait: true,
            timeout: Some(20.0),
            author: Some("demo".into()),
            force: true,
            ..ApplyQuery::default()
        };
        for object in applied.objects.iter().rev() {
            self.client.delete(&object.kind.to_string(), &object.namespace, &object.name, &query).await?;
        }
        Ok(())
    }

    /// Throws the switch of all applications of a service, or of one version.
    pub(super) async fn switch(
        &self,
        service: &str,
        version: Option<&str>,
        setting: &str,
    ) -> anyhow::Result<()> {
        let chosen =
            WORKLOADS.iter().filter(|w| w.service == service && version.is_none_or(|v| v == w.version));
        for workload in chosen {
            self.throw(workload, setting).await?;
        }
        Ok(())
    }

    /// How many requests each version of a service was sent so far.
    pub(super) async fn asked(&self, service: &str) -> anyhow::Result<BTreeMap<&'static str, u64>> {
        let mut asked = BTreeMap::new();
        for workload in WORKLOADS.iter().filter(|w| w.service == service) {
            *asked.entry(workload.version).or_default() += self.throw(workload, "").await?;
        }
        Ok(asked)
    }

    /// Throws the switch of one application; how many requests it was sent so far.
    async fn throw(&self, workload: &Workload, setting: &str) -> anyhow::Result<u64> {
        let address = self.app_address(workload).context("it has no port")?;
        let args = ["demo-switch".to_owned(), address.to_string(), setting.to_owned()];
        let mut command = self.place.command(workload.host, User::Application, &self.binary);
        let output = command.args(args).output().await?;
        let said = String::from_utf8_lossy(&output.stderr);
        anyhow::ensure!(output.status.success(), "{}: {said}", workload.id());
        let asked = String::from_utf8_lossy(&output.stdout);
        asked.trim().parse().with_context(|| format!("{} said {asked:?}", workload.id()))
    }

    /// A child that has ended.
    pub(super) fn first_dead_child(&mut self) -> Option<String> {
        self.children.iter_mut().find_map(|(name, child)| {
            child.try_wait().ok().flatten().map(|status| format!("{name} ({status})"))
        })
    }

    /// Where to look.
    pub(super) fn print_places(&self) {
        println!("  traces      {}/api/traces?service=web.shop", self.query_url());
        println!("  metrics     http://{}/metrics", self.address(CONTROL, METRICS));
        println!("  a sidecar   http://{}/", self.address(11, ADMIN));
        let within = self.place.within(LOAD);
        println!("  the shop    {within}curl http://{}/product/1", self.load_entry());
        println!(
            "  rules       outrigger get --server unix:{}",
            self.path("control/outrigger.sock").display()
        );
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    async fn start_control_plane(&mut self) -> anyhow::Result<()> {
        let address = |port| self.address(CONTROL, port).to_string();
        let settings = json!({
            "dataDir": self.path("control"),
            "xdsAddress": address(XDS),
            "metricsAddress": address(METRICS),
            "otlpAddress": address(OTLP),
            "queryAddress": address(QUERY),
            "sampling": 100.0,
            "parentPipe": true,
        });
        let file = self.path("control.json");
        std::fs::write(&file, settings.to_string())?;
        let args = ["control-plane".as_ref(), "--config".as_ref(), file.as_os_str()];
        self.spawn("control-plane", CONTROL, User::Operator, &args)?;
        let deadline = Instant::now() + Duration::from_secs(20);
        while self.client.status().await.is_err() {
            self.check(deadline, "the control plane does not answer")?;
            tokio::time::sleep(Duration::from_millis(30)).await;
        }
        Ok(())
    }

    async fn register(&self, workload: &Workload) -> anyhow::Result<()> {
        let ports = workload.port.map(|(number, protocol)| Port {
            number,
            name: String::new(),
            protocol,
            aliases: Vec::new(),
            upgrades: Vec::new(),
        });
        let instance = Instance {
            id: workload.id(),
            service: workload.service.into(),
            namespace: "shop".into(),
            addresses: vec![self.address(workload.host, 0).ip()],
            network: String::new(),
            ports: ports.into_iter().collect(),
            labels: [("app".to_owned(), workload.service.to_owned())].into_iter().collect(),
            metadata: Default::default(),
            tags: Vec::new(),
            version: Some(workload.version.into()),
            weight: 100,
            zone: workload.zone.into(),
            region: "shop".into(),
            service_account: workload.service.into(),
            state: State::Running,
            sidecar: true,
            ttl_seconds: None,
            word: Default::default(),
            services: None,
        };
        self.client.register(&instance).await.with_context(|| workload.id())?;
        Ok(())
    }

    async fn start_workload(&mut self, workload: &Workload) -> anyhow::Result<()> {
        let id = workload.id();
        let request = TokenRequest {
            namespace: "shop".into(),
            service_account: workload.service.into(),
            services: vec![workload.service.into()],
            ..TokenRequest::default()
        };
        let join = self.path(&format!("{id}.join"));
        self.client.create_token(&request).await?.write(&join)?;
        let bootstrap = self.path(&format!("{id}.json"));
        std::fs::write(&bootstrap, self.bootstrap(workload, &join).to_string())?;
        if let Place::Hosts(_) = self.place {
            hosts::hand_over(&join)?;
            hosts::hand_over_folder(&self.state_dir(workload))?;
        }
        let args = ["proxy".as_ref(), "--bootstrap".as_ref(), bootstrap.as_os_str()];
        self.spawn(&format!("sidecar {id}"), workload.host, User::Sidecar, &args)?;
        self.intercept(workload).await?;
        let Some(listen) = self.app_address(workload) else { return Ok(()) };
        let mut args = vec!["demo-app".to_owned(), workload.service.to_owned()];
        args.extend(["--version".into(), workload.version.into(), "--listen".into(), listen.to_string()]);
        for (i, (flag, to)) in workload.calls.iter().enumerate() {
            let to = match self.place {
                Place::Loopback(_) => self.address(workload.host, OUTBOUND + i as u16).to_string(),
                Place::Hosts(_) => (*to).to_owned(),
            };
            args.extend([format!("--{flag}"), to]);
        }
        let args: Vec<&std::ffi::OsStr> = args.iter().map(AsRef::as_ref).collect();
        self.spawn(&id, workload.host, User::Application, &args)
    }

    /// Where the application listens: beside the registered address, or at it where connections are intercepted.
    fn app_address(&self, workload: &Workload) -> Option<SocketAddr> {
        let (port, _) = workload.port?;
        Some(match self.place {
            Place::Loopback(_) => self.address(workload.host, port + APP_SHIFT),
            Place::Hosts(_) => self.address(workload.host, port),
        })
    }

    fn state_dir(&self, workload: &Workload) -> PathBuf {
        self.path(&format!("{}.state", workload.id()))
    }

    async fn intercept(&self, workload: &Workload) -> anyhow::Result<()> {
        if let Place::Loopback(_) = self.place {
            return Ok(());
        }
        let mut command = self.place.command(workload.host, User::Operator, &self.binary);
        command.args(["intercept", "apply", "--dns"]);
        if workload.host == LOAD {
            // This tour lives there too, and looks at all pages.
            command.args(["--exclude-outbound-ports", &format!("{ADMIN},{QUERY}")]);
        }
        let output = command.output().await?;
        let said = String::from_utf8_lossy(&output.stderr);
        anyhow::ensure!(output.status.success(), "interception for {}: {said}", workload.id());
        Ok(())
    }

    fn bootstrap(&self, workload: &Workload, join: &Path) -> serde_json::Value {
        let mut bootstrap = json!({
            "node": {
                "id": workload.id(),
                "workload": format!("{}-{}", workload.service, workload.version),
                "namespace": "shop",
                "service_account": workload.service,
                "app": workload.service,
                "version": workload.version,
            },
            "join": join,
            "state_dir": self.state_dir(workload),
            "workers": 1,
            "admin": self.address(workload.host, ADMIN),
            "tracing": { "otlp": self.otlp, "flush_ms": 200 },
            "parent_pipe": true,
            "grace": "0s",
        });
        let places = match self.place {
            Place::Hosts(_) => json!({ "mode": "redirect", "dns": {} }),
            Place::Loopback(_) => {
                let inbound = self
                    .app_address(workload)
                    .zip(workload.port)
                    .map(|(app, (port, _))| json!({ "bind": self.address(workload.host, port), "app": app }));
                let bind = |i: usize| self.address(workload.host, OUTBOUND + i as u16);
                let calls = workload.calls.iter().enumerate();
                let outbound = calls.map(|(i, (_, to))| json!({ "bind": bind(i), "to": to }));
                json!({
                    "inbound": inbound.into_iter().collect::<Vec<_>>(),
                    "outbound": outbound.collect::<Vec<_>>(),
                })
            }
        };
        if let (Some(all), serde_json::Value::Object(places)) = (bootstrap.as_object_mut(), places) {
            all.extend(places);
        }
        bootstrap
    }

    /// This binary again. Its standard input is ours to hold; its output goes to a log.
    fn spawn(&mut self, name: &str, host: u8, user: User, args: &[&std::ffi::OsStr]) -> anyhow::Result<()> {
        let log = File::create(self.path(&format!("{}.log", name.replace(' ', "-"))))?;
        let child = self
            .place
            .command(host, user, &self.binary)
            .args(args)
            .stdin(Stdio::piped())
            .stdout(log.try_clone()?)
            .stderr(log)
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("{name} cannot be started"))?;
        self.children.push((name.to_owned(), child));
        Ok(())
    }

    async fn wait_ready(&mut self) -> anyhow::Result<()> {
        let deadline = Instant::now() + Duration::from_secs(40);
        for workload in &WORKLOADS {
            let url = format!("http://{}", self.address(workload.host, ADMIN));
            while let Err(error) = traces::get(&url, "/ready").await {
                self.check(deadline, &format!("{} is not ready: {error:#}", workload.id()))?;
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
        Ok(())
    }

    /// Fails when the time is over or a child has ended, with the end of that child's log.
    fn check(&mut self, deadline: Instant, what: &str) -> anyhow::Result<()> {
        let dead = self.first_dead_child();
        if dead.is_none() && Instant::now() < deadline {
            return Ok(());
        }
        let name = dead.as_deref().and_then(|d| d.split(" (").next()).unwrap_or("control-plane");
        let log = std::fs::read_to_string(self.path(&format!("{}.log", name.replace(' ', "-"))))
            .unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        let tail = lines[lines.len().saturating_sub(15)..].join("\n");
        match dead {
            Some(dead) => bail!("{dead} has ended; its last words:\n{tail}"),
            None => bail!("{what}; the control plane's last words:\n{tail}"),
        }
    }
}

const STRICT: &str = "apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: default, namespace: shop}
spec: {mtls: {mode: STRICT}}
";

/// A network whose first addresses nobody listens on.
fn free_net() -> anyhow::Result<[u8; 2]> {
    for _ in 0..100 {
        let net = [fastrand::u8(1..255), fastrand::u8(0..255)];
        let free = |host: u8, port: u16| {
            TcpListener::bind(SocketAddr::from((Ipv4Addr::new(127, net[0], net[1], host), port))).is_ok()
        };
        if free(1, XDS) && free(10, ADMIN) && free(11, 8080) && free(11, OUTBOUND) {
            return Ok(net);
        }
    }
    bail!("no free 127.x.y.0/24 was found; does this machine let processes bind addresses in 127.0.0.0/8?")
}
