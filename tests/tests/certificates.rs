//! Certificates that must not be believed, on either side: expired, without a name, with two, foreign, somebody else's.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, SystemTime};

use outrigger_control::instance::Protocol;
use outrigger_tests::app::{echo, get};
use outrigger_tests::mesh::{Mesh, Spec};
use outrigger_tests::require;
use outrigger_tests::wait::eventually;
use rcgen::{BasicConstraints, CertificateParams, DistinguishedName, IsCa, Issuer, KeyPair, SanType};

use crate::BINARY;
use crate::foreign::talk;
use crate::thin_thread::{STRICT, catalog, web};

const HOUR: Duration = Duration::from_secs(3600);

/// Key and chain as files.
struct Files {
    key: PathBuf,
    chain: PathBuf,
}

/// The mesh's own issuer, for certificates that its authority would never sign.
struct Forger {
    directory: PathBuf,
    issuer: Issuer<'static, KeyPair>,
    issuer_pem: String,
}

impl Forger {
    fn of(mesh: &Mesh) -> Self {
        let read =
            |name: &str| std::fs::read_to_string(mesh.path("control/ca/generation-1").join(name)).unwrap();
        let (issuer_pem, key) = (read("issuer.pem"), KeyPair::from_pem(&read("issuer.key")).unwrap());
        let issuer = Issuer::from_ca_cert_pem(&issuer_pem, key).unwrap();
        Self { directory: mesh.path(""), issuer, issuer_pem }
    }

    /// A root of its own that looks like the mesh's.
    fn foreign(mesh: &Mesh) -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let issuer_pem = params.self_signed(&key).unwrap().pem();
        Self { directory: mesh.path(""), issuer: Issuer::new(params, key), issuer_pem }
    }

    fn sign(&self, name: &str, uris: &[&str], ends: SystemTime) -> Files {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.not_before = (SystemTime::now() - 3 * HOUR).into();
        params.not_after = ends.into();
        params.subject_alt_names = uris.iter().map(|uri| SanType::URI((*uri).try_into().unwrap())).collect();
        let leaf = params.signed_by(&key, &self.issuer).unwrap().pem();
        let files = Files {
            key: self.directory.join(format!("{name}.key")),
            chain: self.directory.join(format!("{name}.pem")),
        };
        std::fs::write(&files.key, key.serialize_pem()).unwrap();
        std::fs::write(&files.chain, leaf + &self.issuer_pem).unwrap();
        files
    }
}

/// What is presented for an account, and the words by which it is refused (none: it is taken).
fn presented(mesh: &Mesh, account: &str) -> Vec<(Files, Option<&'static str>)> {
    let (ours, foreign) = (Forger::of(mesh), Forger::foreign(mesh));
    let (fresh, past) = (SystemTime::now() + HOUR, SystemTime::now() - HOUR);
    let uri = format!("spiffe://cluster.local/ns/shop/sa/{account}");
    let (other, elsewhere) = ("spiffe://cluster.local/ns/shop/sa/admin", "spiffe://elsewhere/ns/shop/sa/web");
    vec![
        (ours.sign("good", &[&uri], fresh), None),
        (ours.sign("expired", &[&uri], past), Some("expired at")),
        (ours.sign("nameless", &[], fresh), Some("has no SPIFFE id")),
        (ours.sign("two", &[&uri, other], fresh), Some("exactly one URI")),
        (
            ours.sign("elsewhere", &[elsewhere], fresh),
            Some("which is not trusted here (trusted: cluster.local)"),
        ),
        (foreign.sign("foreign", &[&uri], fresh), Some("does not chain to a root")),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_with_a_bad_certificate_is_refused_and_the_log_says_why() {
    let Some(openssl) = require::tool("openssl") else { return };
    let mesh = Mesh::start(BINARY).await;
    let catalog = mesh.workload(&catalog("v1", 11)).await;
    echo(catalog.app, "catalog-v1").await;
    mesh.apply(STRICT).await;
    for (files, refused) in presented(&mesh, "web") {
        let text = talk(&openssl, &catalog, &files.key, &files.chain);
        let Some(reason) = refused else {
            assert!(text.contains("200 OK"), "{text}");
            continue;
        };
        assert!(text.contains("alert") && !text.contains("200 OK"), "{reason}: {text}");
        eventually("the access log says why", || async {
            let log = std::fs::read_to_string(mesh.path("catalog-v1.access")).unwrap_or_default();
            if log.contains(reason) { Ok(()) } else { Err(format!("no {reason:?} in {log}")) }
        })
        .await;
    }
}

/// A server without a sidecar; it ends with this value.
struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn serve(openssl: &Path, address: std::net::SocketAddr, files: &Files) -> Server {
    let mut command = Command::new(openssl);
    command
        .args(["s_server", "-www", "-quiet", "-alpn", "istio-http/1.1,http/1.1", "-accept"])
        .arg(address.to_string());
    command.arg("-key").arg(&files.key).arg("-cert").arg(&files.chain).arg("-cert_chain").arg(&files.chain);
    Server(command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_with_a_bad_certificate_gets_no_request_and_the_client_learns_why() {
    let Some(openssl) = require::tool("openssl") else { return };
    let mesh = Mesh::start(BINARY).await;
    let spec = Spec { service: "catalog", version: "v1", host: 11, protocol: Protocol::Http, calls: &[] };
    mesh.register(&spec).await;
    let web = mesh.workload(&web(&["catalog:8080"])).await;
    let address = mesh.address(11, outrigger_tests::mesh::PORT);
    let mut cases = presented(&mesh, "catalog");
    // The chain is fine, and it is not whom the registry names.
    let other =
        Forger::of(&mesh).sign("other", &["spiffe://cluster.local/ns/shop/sa/web"], SystemTime::now() + HOUR);
    cases.push((other, Some("expected spiffe://cluster.local/ns/shop/sa/catalog, but the peer is")));
    for (files, refused) in cases {
        let server = serve(&openssl, address, &files);
        eventually("the server listens", || async { tokio::net::TcpStream::connect(address).await }).await;
        let (status, text) = get(web.outbound[0], "/", "").await.unwrap();
        drop(server);
        match refused {
            None => assert_eq!(status, 200, "{text}"),
            Some(reason) => {
                assert_eq!(status, 503, "{text}");
                let told =
                    text.lines().find(|line| line.to_ascii_lowercase().starts_with("x-outrigger-error:"));
                assert!(
                    told.is_some_and(|told| told.contains(reason) && told.contains("tls_failed")),
                    "{reason}: {text}"
                );
            }
        }
    }
    // A line is written after its answer.
    eventually("the access log has all refusals", || async {
        let log = std::fs::read_to_string(mesh.path("web-v1.access")).unwrap_or_default();
        let refusals = log.lines().filter(|line| line.contains(" 503 UF")).count();
        if refusals == 6 { Ok(()) } else { Err(format!("{refusals} in {log}")) }
    })
    .await;
}
