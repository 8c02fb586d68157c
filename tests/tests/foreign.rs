//! Foreign programs: peers of our sidecar and clients of our control plane.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use outrigger_control::instance::Protocol;
use outrigger_tests::app::{echo, get};
use outrigger_tests::mesh::{Mesh, Sidecar, Spec};
use outrigger_tests::require;
use outrigger_tests::wait::eventually;
use serde_json::json;

use crate::BINARY;
use crate::thin_thread::{STRICT, catalog, web};

/// A foreign process that ends with the test.
pub(crate) struct Foreign(Child);

impl Drop for Foreign {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn write(path: &Path, text: &str) -> PathBuf {
    std::fs::write(path, text).unwrap();
    path.to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn curl_reaches_nginx_through_two_sidecars() {
    let (Some(nginx), Some(curl)) = (require::tool("nginx"), require::tool("curl")) else { return };
    let mesh = Mesh::start(BINARY).await;
    let catalog = mesh.workload(&catalog("v1", 11)).await;
    let web = mesh.workload(&web(&["catalog:8080"])).await;
    mesh.apply(STRICT).await;
    let config = format!(
        "daemon off; master_process off; pid {0}/nginx.pid; error_log {0}/nginx.error; events {{}}
http {{ access_log off; client_body_temp_path {0}/b; proxy_temp_path {0}/p; fastcgi_temp_path {0}/f; uwsgi_temp_path {0}/u; scgi_temp_path {0}/s;
 server {{ listen {1}; location / {{ return 200 \"nginx says $request_method $uri\\n\"; }} }} }}",
        mesh.path("").display(),
        catalog.app
    );
    let config = write(&mesh.path("nginx.conf"), &config);
    let child = Command::new(nginx).arg("-c").arg(config).stdin(Stdio::null()).spawn().unwrap();
    let _nginx = Foreign(child);
    eventually("nginx behind its sidecar", || async {
        let output = Command::new(&curl)
            .args([
                "--silent",
                "--max-time",
                "5",
                "--data",
                "body",
                &format!("http://{}/hello", web.outbound[0]),
            ])
            .output()
            .map_err(|e| e.to_string())?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        if text == "nginx says POST /hello\n" { Ok(()) } else { Err(text) }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn h2spec_finds_http2_as_the_rfcs_have_it() {
    let Some(h2spec) = require::tool("h2spec") else { return };
    let mesh = Mesh::start(BINARY).await;
    let catalog = mesh.workload(&catalog("v1", 11)).await;
    echo(catalog.app, "catalog-v1").await;
    let web = mesh.workload(&web(&["catalog:8080"])).await;
    mesh.apply(STRICT).await;
    let entry = web.outbound[0];
    eventually("the way to the application", || async {
        get(entry, "/", "").await.map_err(|error| error.to_string()).map(|_| ())
    })
    .await;
    let output = Command::new("timeout")
        .args(["--kill-after=1", "120"])
        .arg(h2spec)
        .args(["-h", &entry.ip().to_string(), "-p", &entry.port().to_string(), "-o", "5"])
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let failed: Vec<&str> = text.lines().filter(|line| line.contains('×')).map(str::trim).collect();
    // The port speaks HTTP/1.1, too, and answers what is not HTTP/2 in that: the failure is told in its place and again at
    // the end.
    let known = failed.iter().all(|line| line.ends_with("Sends invalid connection preface"));
    assert!(known && text.contains("145 tests, 144 passed, 0 skipped, 1 failed"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn certificates_that_the_mesh_did_not_issue_are_refused() {
    let Some(openssl) = require::tool("openssl") else { return };
    let mesh = Mesh::start(BINARY).await;
    let catalog = mesh.workload(&catalog("v1", 11)).await;
    echo(catalog.app, "catalog-v1").await;
    mesh.apply(STRICT).await;
    let ours = mesh.issue("web").await;
    let key = write(&mesh.path("ours.key"), &ours.key);
    let certificate = write(&mesh.path("ours.pem"), &ours.certificate);
    let foreign_key = mesh.path("foreign.key");
    let foreign = mesh.path("foreign.pem");
    let made = Command::new(&openssl)
        .args([
            "req",
            "-x509",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:P-256",
            "-nodes",
            "-days",
            "1",
            "-subj",
            "/CN=x",
        ])
        .args(["-addext", "subjectAltName=URI:spiffe://cluster.local/ns/shop/sa/web"])
        .arg("-keyout")
        .arg(&foreign_key)
        .arg("-out")
        .arg(&foreign)
        .output()
        .unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let call = |key: &Path, certificate: &Path| talk(&openssl, &catalog, key, certificate);
    let text = call(&key, &certificate);
    assert!(text.contains("200 OK"), "our own certificate is taken: {text}");
    let text = call(&foreign_key, &foreign);
    assert!(!text.contains("200 OK"), "a foreign certificate with our name must be refused: {text}");
    assert!(text.contains("alert"), "{text}");
}

/// One request over `openssl s_client`; everything that it printed. A client that hangs is ended after ten seconds.
pub(crate) fn talk(openssl: &Path, to: &Sidecar, key: &Path, certificate: &Path) -> String {
    use std::io::Write;
    let mut child = Command::new("timeout")
        .args(["--kill-after=1", "10"])
        .arg(openssl)
        .args([
            "s_client",
            "-connect",
            &to.inbound.to_string(),
            "-alpn",
            "istio-http/1.1",
            "-ign_eof",
            "-quiet",
        ])
        .arg("-key")
        .arg(key)
        .arg("-cert")
        .arg(certificate)
        .arg("-cert_chain")
        .arg(certificate)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let request = b"GET / HTTP/1.1\r\nHost: catalog\r\nConnection: close\r\n\r\n";
    // A refused client may be gone before it reads this.
    let _ = child.stdin.as_mut().unwrap().write_all(request);
    let output = child.wait_with_output().unwrap();
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_real_envoy_joins_over_state_of_the_world() {
    envoy_joins("GRPC").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_real_envoy_joins_over_delta() {
    envoy_joins("DELTA_GRPC").await;
}

async fn envoy_joins(api_type: &str) {
    let Some(envoy) = require::tool("envoy") else { return };
    let mesh = Mesh::start(BINARY).await;
    let catalog = mesh.workload(&catalog("v1", 11)).await;
    echo(catalog.app, "catalog-v1").await;
    mesh.apply(STRICT).await;
    let (bind, admin) = (mesh.address(30, 0).ip(), mesh.address(30, 15000));
    let _envoy = start_envoy(&mesh, &envoy, api_type).await;
    let entry = std::net::SocketAddr::new(bind, 8080);
    let text = eventually("a request through Envoy and our sidecar", || async {
        let request = "GET /from-envoy HTTP/1.1\r\nHost: catalog.shop:8080\r\nConnection: close\r\n\r\n";
        match outrigger_tests::app::exchange(entry, request).await {
            Ok((200, text)) => Ok(text),
            Ok((_, text)) => Err(text),
            Err(error) => Err(format!(
                "{error}; {}",
                std::fs::read_to_string(mesh.path("envoy.log")).unwrap_or_default()
            )),
        }
    })
    .await;
    assert!(text.contains("X-App-Name: catalog-v1") || text.contains("x-app-name: catalog-v1"), "{text}");
    let (_, stats) = get(admin, "/stats?filter=update_rejected", "").await.unwrap();
    let rejected: Vec<&str> =
        stats.lines().filter(|l| l.contains("update_rejected") && !l.ends_with(": 0")).collect();
    assert!(rejected.is_empty() && stats.contains("update_rejected"), "{rejected:?}");
    let status = mesh.client.status().await.unwrap();
    let seen =
        status.proxies.iter().find(|p| p.client == "envoy").expect("the control plane knows the Envoy");
    assert!(seen.refused.is_empty(), "{:?}", seen.refused);
}

/// A real Envoy as the sidecar of `web`: at host 30 it stands for every service, at the port of the service.
pub(crate) async fn start_envoy(mesh: &Mesh, envoy: &Path, api_type: &str) -> Foreign {
    run_envoy(envoy, &mesh.path(""), &envoy_bootstrap(mesh, api_type).await)
}

/// An Envoy with a configuration; that and its log are in `directory`.
pub(crate) fn run_envoy(envoy: &Path, directory: &Path, config: &serde_json::Value) -> Foreign {
    let config = write(&directory.join("envoy.json"), &config.to_string());
    let log = std::fs::File::create(directory.join("envoy.log")).unwrap();
    let child = Command::new(envoy)
        .args(["--use-dynamic-base-id", "--concurrency", "1", "--log-level", "warning", "-c"])
        .arg(config)
        .stdin(Stdio::null())
        .stdout(log.try_clone().unwrap())
        .stderr(log)
        .spawn()
        .unwrap();
    Foreign(child)
}

async fn envoy_bootstrap(mesh: &Mesh, api_type: &str) -> serde_json::Value {
    let identity = mesh.issue("web").await;
    let file = |name: &str, text: &str| write(&mesh.path(name), text).display().to_string();
    let (key, certificate) = (file("envoy.key", &identity.key), file("envoy.pem", &identity.certificate));
    let roots = file("envoy.roots", &identity.roots);
    let own = json!({ "certificate_chain": { "filename": certificate }, "private_key": { "filename": key } });
    let xds = mesh.address(1, 15012);
    let control_id = "spiffe://cluster.local/ns/outrigger-system/sa/outrigger-control";
    json!({
        "node": { "id": "envoy-1", "cluster": "web", "metadata": { "OUTBOUND_BIND": mesh.address(30, 0).ip() } },
        "admin": { "address": { "socket_address": { "address": mesh.address(30, 0).ip(), "port_value": 15000 } } },
        "dynamic_resources": {
            "ads_config": { "api_type": api_type, "transport_api_version": "V3",
                            "grpc_services": [{ "envoy_grpc": { "cluster_name": "xds" } }] },
            "cds_config": { "resource_api_version": "V3", "ads": {} },
            "lds_config": { "resource_api_version": "V3", "ads": {} },
        },
        "static_resources": {
            "secrets": [{ "name": "default", "tls_certificate": own }],
            "clusters": [{
                "name": "xds", "type": "STATIC", "connect_timeout": "5s",
                "typed_extension_protocol_options": { "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                    "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
                    "explicit_http_config": { "http2_protocol_options": {} } } },
                "load_assignment": { "cluster_name": "xds", "endpoints": [{ "lb_endpoints": [{ "endpoint": {
                    "address": { "socket_address": { "address": xds.ip(), "port_value": xds.port() } } } }] }] },
                "transport_socket": { "name": "envoy.transport_sockets.tls", "typed_config": {
                    "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext",
                    "common_tls_context": {
                        "tls_params": { "tls_minimum_protocol_version": "TLSv1_3", "tls_maximum_protocol_version": "TLSv1_3" },
                        "tls_certificates": [own],
                        "validation_context": { "trusted_ca": { "filename": roots },
                            "match_typed_subject_alt_names": [{ "san_type": "URI", "matcher": { "exact": control_id } }] },
                        "alpn_protocols": ["h2"] } } },
            }],
        },
    })
}

/// A bootstrap file for gRPC, as docs/control-plane.md has it.
async fn grpc_bootstrap(mesh: &Mesh) -> PathBuf {
    let identity = mesh.issue("web").await;
    let file = |name: &str, text: &str| write(&mesh.path(name), text).display().to_string();
    let tls = json!({
        "certificate_file": file("grpc.pem", &identity.certificate), "private_key_file": file("grpc.key", &identity.key),
        "ca_certificate_file": file("grpc.roots", &identity.roots), "refresh_interval": "600s",
    });
    let bootstrap = json!({
        "xds_servers": [{ "server_uri": mesh.address(1, 15012).to_string(), "server_features": ["xds_v3"],
                          "channel_creds": [{ "type": "tls", "config": tls }] }],
        "certificate_providers": { "default": { "plugin_name": "file_watcher", "config": tls } },
        "node": { "id": "grpc-1", "metadata": { "SECURE": "true" } },
    });
    write(&mesh.path("grpc.json"), &bootstrap.to_string())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_python_grpc_client_without_a_proxy_speaks_mtls_to_the_control_plane_and_to_sidecars() {
    let Some(python) = require::tool("python") else { return };
    let mesh = Mesh::start(BINARY).await;
    let grpc = |version, host| Spec { protocol: Protocol::Grpc, ..catalog(version, host) };
    let (v1, v2) = (mesh.workload(&grpc("v1", 11)).await, mesh.workload(&grpc("v2", 12)).await);
    mesh.apply(STRICT).await;
    let bootstrap = grpc_bootstrap(&mesh).await;
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/xds_grpc.py");
    let output = Command::new("timeout")
        .args(["--kill-after=1", "60"])
        .arg(python)
        .arg(script)
        .args(["xds:///catalog.shop:8080", "100", &format!("v1={}", v1.app), &format!("v2={}", v2.app)])
        .env("GRPC_XDS_BOOTSTRAP", bootstrap)
        .env("GRPC_CREDENTIALS", "xds")
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    let both = output.status.success() && said.contains("v1=") && said.contains("v2=");
    assert!(both, "{said}{}", String::from_utf8_lossy(&output.stderr));
    let metrics = v1.page("/stats/prometheus").await;
    let known = "source_principal=\"spiffe://cluster.local/ns/shop/sa/web\"";
    assert!(metrics.contains(known) && metrics.contains("mutual_tls"), "{metrics}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_python_grpc_client_without_a_proxy_honours_weights() {
    let Some(python) = require::tool("python") else { return };
    // grpcio without certificates of its own speaks plain xDS, so the mesh stays PERMISSIVE here.
    let probe = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let plain = probe.local_addr().unwrap();
    drop(probe);
    let identity = "spiffe://cluster.local/ns/shop/sa/web";
    let mesh =
        Mesh::start_with(BINARY, json!({ "plaintextXds": { "address": plain, "identity": identity } })).await;
    let grpc = |version, host| Spec { protocol: Protocol::Grpc, ..catalog(version, host) };
    let (v1, v2) = (mesh.workload(&grpc("v1", 11)).await, mesh.workload(&grpc("v2", 12)).await);
    mesh.apply(
        "apiVersion: outrigger.io/v1
kind: TrafficRules
metadata: {name: catalog, namespace: shop}
spec:
  service: catalog
  routes: [{to: [{version: v1, weight: 90}, {version: v2, weight: 10}]}]
",
    )
    .await;
    let bootstrap = json!({
        "xds_servers": [{ "server_uri": plain.to_string(), "channel_creds": [{ "type": "insecure" }],
                          "server_features": ["xds_v3"] }],
        "node": { "id": "grpc-1", "locality": { "zone": "z" } },
    });
    let bootstrap = write(&mesh.path("grpc.json"), &bootstrap.to_string());
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/xds_grpc.py");
    let output = Command::new("timeout")
        .args(["--kill-after=1", "60"])
        .arg(python)
        .arg(script)
        .args(["xds:///catalog.shop:8080", "1000", &format!("v1={}", v1.app), &format!("v2={}", v2.app)])
        .env("GRPC_XDS_BOOTSTRAP", bootstrap)
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let count = |name: &str| text.split_whitespace().find_map(|w| w.strip_prefix(name)?.parse::<u32>().ok());
    let (v1, v2) = (count("v1="), count("v2="));
    println!("{text}");
    // 1,000 draws of one in ten: 48 to 165 but for one run in a million (Chernoff).
    let fair = v2.is_some_and(|v2| (48..=165).contains(&v2)) && v1.unwrap_or(0) + v2.unwrap_or(0) == 1000;
    assert!(fair, "{text}{}", String::from_utf8_lossy(&output.stderr));
}
