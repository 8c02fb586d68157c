//! The demo's processes: a free 127.x.y.0/24, the control plane, the applications, a sidecar beside each.

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
use tokio::process::{Child, Command};

use crate::command::traces;

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
    /// Flag of the application, and what it calls.
    calls: &'static [(&'static str, &'static str)],
}

const WORKLOADS: [Workload; 10] = [
    Workload { host: 10, service: "load", version: "v1", port: None, calls: &[("web", "web.shop:8080")] },
    Workload {
        host: 11,
        service: "web",
        version: "v1",
        port: Some((8080, Protocol::Http)),
        calls: &[
            ("catalog", "catalog.shop:8080"),
            ("reviews", "reviews.shop:8080"),
            ("stock", "stock.shop:7000"),
        ],
    },
    catalog(21, "v1"),
    catalog(22, "v2"),
    reviews(31, "v1"),
    reviews(32, "v2"),
    reviews(33, "v3"),
    pricing(41, "v1"),
    pricing(42, "v2"),
    Workload { host: 51, service: "stock", version: "v1", port: Some((7000, Protocol::Tcp)), calls: &[] },
];

const fn catalog(host: u8, version: &'static str) -> Workload {
    let calls = &[("pricing", "pricing.shop:9090")];
    Workload { host, service: "catalog", version, port: Some((8080, Protocol::Http)), calls }
}

const fn reviews(host: u8, version: &'static str) -> Workload {
    Workload { host, service: "reviews", version, port: Some((8080, Protocol::Http)), calls: &[] }
}

const fn pricing(host: u8, version: &'static str) -> Workload {
    Workload { host, service: "pricing", version, port: Some((9090, Protocol::Grpc)), calls: &[] }
}

impl Workload {
    fn id(&self) -> String {
        format!("{}-{}-{}", self.service, self.version, self.host)
    }
}

/// The running demo.
pub(super) struct Mesh {
    directory: tempfile::TempDir,
    net: [u8; 2],
    client: Client,
    children: Vec<(String, Child)>,
    otlp: Vec<String>,
}

impl Mesh {
    /// Starts everything and waits until every sidecar is ready and mTLS is STRICT.
    pub(super) async fn start(otlp: Option<String>) -> anyhow::Result<Self> {
        let directory = tempfile::Builder::new().prefix("outrigger-demo-").tempdir()?;
        let net = free_net()?;
        let client = Client::socket(directory.path().join("control/outrigger.sock"));
        let mut mesh = Self { directory, net, client, children: Vec::new(), otlp: Vec::new() };
        mesh.otlp.push(format!("http://{}", mesh.address(1, OTLP)));
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
        SocketAddr::from((Ipv4Addr::new(127, self.net[0], self.net[1], host), port))
    }

    /// How many sidecars there are.
    pub(super) fn sidecars(&self) -> usize {
        WORKLOADS.len()
    }

    /// Where the load enters its own sidecar.
    pub(super) fn load_entry(&self) -> SocketAddr {
        self.address(10, OUTBOUND)
    }

    /// Jaeger's query API of the control plane.
    pub(super) fn query_url(&self) -> String {
        format!("http://{}", self.address(1, QUERY))
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
            let (port, _) = workload.port.context("it has no port")?;
            post(self.address(workload.host, port + APP_SHIFT), &format!("/__switch?{setting}")).await?;
        }
        Ok(())
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
        println!("  metrics     http://{}/metrics", self.address(1, METRICS));
        println!("  a sidecar   http://{}/", self.address(11, ADMIN));
        println!("  the shop    curl http://{}/product/1", self.load_entry());
        println!(
            "  rules       outrigger get --server unix:{}",
            self.path("control/outrigger.sock").display()
        );
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    async fn start_control_plane(&mut self) -> anyhow::Result<()> {
        let address = |port| self.address(1, port).to_string();
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
        self.spawn("control-plane", &["control-plane".as_ref(), "--config".as_ref(), file.as_os_str()])?;
        let deadline = Instant::now() + Duration::from_secs(20);
        while self.client.status().await.is_err() {
            self.check(deadline, "the control plane does not answer")?;
            tokio::time::sleep(Duration::from_millis(30)).await;
        }
        Ok(())
    }

    async fn register(&self, workload: &Workload) -> anyhow::Result<()> {
        let ports = workload.port.map(|(number, protocol)| Port { number, name: String::new(), protocol });
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
            zone: String::new(),
            region: String::new(),
            service_account: workload.service.into(),
            state: State::Running,
            sidecar: true,
            ttl_seconds: None,
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
        self.spawn(
            &format!("sidecar {id}"),
            &["proxy".as_ref(), "--bootstrap".as_ref(), bootstrap.as_os_str()],
        )?;
        let Some((port, _)) = workload.port else { return Ok(()) };
        let mut args = vec!["demo-app".to_owned(), workload.service.to_owned()];
        let listen = self.address(workload.host, port + APP_SHIFT).to_string();
        args.extend(["--version".into(), workload.version.into(), "--listen".into(), listen]);
        for (i, (flag, _)) in workload.calls.iter().enumerate() {
            args.extend([format!("--{flag}"), self.address(workload.host, OUTBOUND + i as u16).to_string()]);
        }
        let args: Vec<&std::ffi::OsStr> = args.iter().map(AsRef::as_ref).collect();
        self.spawn(&id, &args)
    }

    fn bootstrap(&self, workload: &Workload, join: &Path) -> serde_json::Value {
        let inbound = workload.port.map(|(port, _)| {
            let (bind, app) =
                (self.address(workload.host, port), self.address(workload.host, port + APP_SHIFT));
            json!({ "bind": bind, "app": app })
        });
        let outbound = workload.calls.iter().enumerate().map(
            |(i, (_, to))| json!({ "bind": self.address(workload.host, OUTBOUND + i as u16), "to": to }),
        );
        json!({
            "node": {
                "id": workload.id(),
                "workload": format!("{}-{}", workload.service, workload.version),
                "namespace": "shop",
                "service_account": workload.service,
                "app": workload.service,
                "version": workload.version,
            },
            "join": join,
            "state_dir": self.path(&format!("{}.state", workload.id())),
            "workers": 1,
            "admin": self.address(workload.host, ADMIN),
            "inbound": inbound.into_iter().collect::<Vec<_>>(),
            "outbound": outbound.collect::<Vec<_>>(),
            "tracing": { "otlp": self.otlp, "flush_ms": 200 },
            "parent_pipe": true,
            "grace": "0s",
        })
    }

    /// This binary again. Its standard input is ours to hold; its output goes to a log.
    fn spawn(&mut self, name: &str, args: &[&std::ffi::OsStr]) -> anyhow::Result<()> {
        let log = File::create(self.path(&format!("{}.log", name.replace(' ', "-"))))?;
        let child = Command::new(std::env::current_exe()?)
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

/// A POST without a body.
async fn post(address: SocketAddr, path: &str) -> anyhow::Result<()> {
    use hyper_util::rt::TokioIo;
    let tcp = tokio::net::TcpStream::connect(address).await.with_context(|| address.to_string())?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(tcp)).await?;
    let connection = tokio::spawn(connection);
    let request = hyper::Request::post(path)
        .header(hyper::header::HOST, address.to_string())
        .body(http_body_util::Empty::<bytes::Bytes>::new())?;
    let status = sender.send_request(request).await?.status();
    connection.abort();
    anyhow::ensure!(status.is_success(), "{address}{path}: {status}");
    Ok(())
}
