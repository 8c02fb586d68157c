//! Interception: workloads on hosts of their own (network namespaces), whose connections the kernel brings to their sidecars, while the
//! programs know of nothing. This file is the stage; what is shown on it is in the modules.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use outrigger_control::instance::Protocol;
use outrigger_tests::mesh::{Mesh, Process};
use outrigger_tests::netns::capture::Capture;
use outrigger_tests::netns::workload::{Intercepted, Workload};
use outrigger_tests::netns::{Host, Net};
use outrigger_tests::require;
use outrigger_tests::wait::eventually;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::Mutex;

use crate::BINARY;
use crate::thin_thread::STRICT;

mod brokers;
mod calls;
mod flood;
mod greeting;
mod half_closed;
mod names;
mod programs;
mod resolvers;
mod rules;
mod sidecars;
mod strangers;
mod tproxy;
mod wire;

/// What the programs say to each other; under mTLS it is never on the wire.
const MARKER: &str = "heave-away-and-haul-em-high";

/// Held by what needs the machine, and by what measures it.
static ALONE: Mutex<()> = Mutex::const_new(());

/// A client and a server, each behind its sidecar, under STRICT.
struct Pair {
    // Ends last: nothing else may still run in its namespaces.
    mesh: Mesh,
    client: Intercepted,
    server: Intercepted,
    net: Net,
}

impl Pair {
    /// `None` where the machine cannot.
    async fn start(ports: &[u16], like: Workload<'_>) -> Option<Self> {
        able()?;
        let net = Net::new();
        let (control, client, server) = (net.host("control"), net.host("client"), net.host("server"));
        let mesh = Mesh::start_on(BINARY, &control).await;
        mesh.apply(STRICT).await;
        let ports: Vec<_> = ports.iter().map(|port| (*port, Protocol::Auto)).collect();
        let server = mesh.join(&server, &Workload { service: "server", ports: &ports, ..like }).await;
        let client = mesh.join(&client, &Workload { service: "client", ..like }).await;
        Some(Self { mesh, client, server, net })
    }

    /// What passes the client's card to and from the server.
    async fn capture(&self) -> Capture {
        let [v4, v6] = self.server.host.addresses();
        self.client.host.capture(&format!("host {v4} or host {v6}")).await
    }

    /// Has `talk` talk to each address of the server, and holds that both sidecars tell of it with the other's identity.
    async fn crosses(&self, what: &str, port: u16, talk: impl AsyncFn(IpAddr)) {
        let (sent, received) = (between(&self.client).await, between(&self.server).await);
        for address in self.server.host.addresses() {
            talk(address).await;
        }
        for (sidecar, before) in [(&self.client, sent), (&self.server, received)] {
            eventually(&format!("{what} in the metrics of {}", sidecar.service), || async {
                let now = between(sidecar).await;
                if now >= before + 2.0 { Ok(()) } else { Err(format!("{before} before, {now} now")) }
            })
            .await;
            for address in self.server.host.addresses() {
                eventually(&format!("{what} in the access log of {}", sidecar.service), || async {
                    if logged(sidecar, SocketAddr::new(address, port)) { Ok(()) } else { Err("no such line") }
                })
                .await;
            }
        }
        println!("{what}: two sidecars, mTLS, IPv4 and IPv6");
    }
}

/// `None` where the machine cannot do what every one of these tests needs.
fn able() -> Option<()> {
    if !require::netns() {
        return None;
    }
    ["nft", "setpriv", "tcpdump", "curl"].into_iter().try_for_each(|tool| require::tool(tool).map(drop))
}

/// Requests and connections between the two workloads by their certificates, as a sidecar counts them.
async fn between(sidecar: &Intercepted) -> f64 {
    let principals = [
        "source_principal=\"spiffe://cluster.local/ns/shop/sa/client\"",
        "destination_principal=\"spiffe://cluster.local/ns/shop/sa/server\"",
    ];
    let security = if sidecar.service == "server" { "mutual_tls" } else { "" };
    let mut sum = 0.0;
    for name in ["istio_requests_total", "istio_tcp_connections_opened_total"] {
        let samples = sidecar.metric(name).await;
        let ours = samples.iter().filter(|(series, _)| {
            principals.iter().all(|principal| series.contains(principal)) && series.contains(security)
        });
        sum += ours.map(|(_, value)| value).sum::<f64>();
    }
    sum
}

/// A record without a failure of a connection to this address; on the server's side it came with the mesh's server name.
fn logged(sidecar: &Intercepted, to: SocketAddr) -> bool {
    let (to, sni) = (to.to_string(), format!("outbound_.{}_._.server.shop", to.port()));
    sidecar.access_log().iter().any(|line| {
        let text = |field: &str| line[field].as_str().unwrap_or_default();
        let meshed = sidecar.service != "server" || text("requested_server_name").starts_with(&sni);
        text("downstream_local_address") == to && meshed && line["error"].is_null()
    })
}

/// Starts a server on a host and waits until it listens.
async fn serve(mesh: &Mesh, host: &Host, name: &str, command: Command, port: u16) -> Process {
    let process = Process::spawn(command, mesh.path(&format!("{name}.log")));
    eventually(&format!("{name} listens"), || async {
        let connected = host.run(TcpStream::connect(("127.0.0.1", port))).await;
        connected.map(drop).map_err(|error| format!("{error}; {}", process.log()))
    })
    .await;
    process
}

/// nginx on port 80, over both families, and on 443 with a certificate for [`OWN_NAME`]; tells whom it sees.
async fn nginx(mesh: &Mesh, host: &Host) -> Process {
    let program = require::tool("nginx").expect("the test has asked for it");
    let openssl = require::tool("openssl").expect("the test has asked for it");
    let directory = mesh.path(&format!("nginx-{}", host.name()));
    std::fs::create_dir(&directory).unwrap();
    let own = directory.display().to_string();
    let (key, certificate) = (format!("{own}/key.pem"), format!("{own}/cert.pem"));
    let subject = format!("/CN={OWN_NAME}");
    let names = format!("subjectAltName=DNS:{OWN_NAME}");
    let mut args = vec!["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"];
    args.extend(["-days", "1", "-subj", &subject, "-addext", &names, "-keyout", &key, "-out", &certificate]);
    host.ask(&openssl, &args).unwrap();
    let config = format!(
        "daemon off; master_process off; pid {own}/pid; error_log {own}/error; events {{}}
http {{ access_log off; client_body_temp_path {own}/b; proxy_temp_path {own}/p; fastcgi_temp_path {own}/f;
 uwsgi_temp_path {own}/u; scgi_temp_path {own}/s;
 server {{ listen 80; listen [::]:80; listen 443 ssl; listen [::]:443 ssl;
  ssl_certificate {certificate}; ssl_certificate_key {key};
  location / {{ return 200 \"{MARKER} $request_method $uri for $remote_addr\\n\"; }} }} }}"
    );
    let file = directory.join("nginx.conf");
    std::fs::write(&file, config).unwrap();
    let mut command = host.command(program);
    command.arg("-c").arg(file);
    serve(mesh, host, "nginx", command, 80).await
}

/// Name of an application with TLS of its own.
const OWN_NAME: &str = "the-apps-own.example";

/// Waits for the first words of a server ([`outrigger_tests::app::teller`]), answers, and hears the rest.
async fn hears(host: &Host, to: SocketAddr) -> std::io::Result<String> {
    let talk = async move {
        let mut stream = TcpStream::connect(to).await?;
        let mut said = vec![0; 6];
        stream.read_exact(&mut said).await?;
        stream.write_all(MARKER.as_bytes()).await?;
        stream.shutdown().await?;
        stream.read_to_end(&mut said).await?;
        Ok(String::from_utf8_lossy(&said).into_owned())
    };
    let talk = tokio::time::timeout(Duration::from_secs(20), host.run(talk));
    talk.await.unwrap_or_else(|_| panic!("{to} neither talks nor closes"))
}

/// A URL's host and port.
fn at(address: IpAddr, port: u16) -> String {
    SocketAddr::new(address, port).to_string()
}

/// `curl`, one request: the body.
fn curl(host: &Host, args: &[&str]) -> Result<String, String> {
    let curl = require::tool("curl").expect("the test has asked for it");
    host.ask(&curl, &[&["--silent", "--show-error", "--fail", "--max-time", "10"], args].concat())
}

/// The script with the peers that Python has, and the interpreter that has what it needs.
fn python() -> Option<(PathBuf, PathBuf)> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/interception/peers.py");
    Some((require::tool("python")?, script))
}
