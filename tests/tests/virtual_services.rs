//! What a VirtualService says beside routes of its own: routes that another object has, and routes of TLS that is not ended.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use outrigger_control::api::types::ApplyQuery;
use outrigger_tests::app::{body, echo, get};
use outrigger_tests::mesh::Mesh;
use outrigger_tests::wait::eventually;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, RootCertStore, crypto::aws_lc_rs};

use crate::BINARY;
use crate::services::tls_server;
use crate::thin_thread::{catalog, web};

const ROOT: &str = "apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: catalog, namespace: shop}
spec:
  hosts: [catalog]
  http:
  - match: [{uri: {prefix: /team}}]
    headers: {request: {set: {x-root: 'yes'}}}
    delegate: {name: team, namespace: team}
  - route: [{destination: {host: catalog}}]
";

fn team(answer: &str) -> String {
    format!(
        "apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {{name: team, namespace: team}}
spec:
  http:
  - match: [{{uri: {{exact: /team/answer}}}}]
    directResponse: {{status: 418, body: {{string: {answer}}}}}
  - match: [{{uri: {{prefix: /elsewhere}}}}]
    directResponse: {{status: 500}}
  - match: [{{uri: {{prefix: /team/app}}}}]
    route: [{{destination: {{host: catalog.shop}}}}]
"
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn another_teams_rule_says_what_becomes_of_its_part() {
    let mesh = Mesh::start(BINARY).await;
    let catalog = mesh.workload(&catalog("v1", 11)).await;
    echo(catalog.app, "catalog-v1").await;
    let web = mesh.workload(&web(&["catalog:8080"])).await;
    let entry = web.outbound[0];
    let refused = mesh.try_apply(ROOT).await.unwrap_err();
    assert!(format!("{refused:?}").contains("no such VirtualService"), "{refused:?}");
    mesh.apply(&format!("{ROOT}---\n{}", team("one"))).await;
    let answer = async |path: &str| {
        let (status, text) = get(entry, path, "").await.unwrap();
        (status, text)
    };
    let (status, text) = answer("/team/answer").await;
    assert_eq!((status, body(&text).as_str()), (418, "one"), "{text}");
    let (status, text) = answer("/team/app").await;
    assert!(status == 200 && text.to_ascii_lowercase().contains("x-root: yes\r\n"), "{text}");
    let (status, text) = answer("/other").await;
    assert!(status == 200 && !text.to_ascii_lowercase().contains("x-root"), "{text}");
    // What lies outside of the part is not the team's to say.
    assert_eq!(answer("/elsewhere").await.0, 200);
    // What matches nothing of the team's goes on to the next route.
    assert_eq!(answer("/team/none").await.0, 200);
    // The delegate alone changes, and is not taken away from under the rule that delegates to it.
    mesh.apply(&team("two")).await;
    let (status, text) = answer("/team/answer").await;
    assert_eq!((status, body(&text).as_str()), (418, "two"), "{text}");
    let query = ApplyQuery { wait: true, timeout: Some(20.0), ..ApplyQuery::default() };
    let refused = mesh.client.delete("VirtualService", "team", "team", &query).await.unwrap_err();
    assert!(format!("{refused:?}").contains("no such VirtualService"), "{refused:?}");
    assert_eq!(answer("/team/answer").await.0, 418);
}

/// What the server says that has this certificate, asked for by this name.
pub async fn over_tls(entry: SocketAddr, name: &str, certificate: &Path) -> Result<String, String> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(certificate).unwrap()).unwrap();
    let config = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let stream = TcpStream::connect(entry).await.map_err(|error| error.to_string())?;
    let name = ServerName::try_from(name.to_owned()).unwrap();
    let connected = TlsConnector::from(Arc::new(config)).connect(name, stream).await;
    let mut stream = connected.map_err(|error| error.to_string())?;
    stream.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").await.map_err(|error| error.to_string())?;
    let mut text = String::new();
    stream.read_to_string(&mut text).await.map_err(|error| error.to_string())?;
    Ok(body(&text))
}

#[tokio::test(flavor = "multi_thread")]
async fn tls_that_is_not_ended_goes_by_the_name_that_it_asks_for() {
    let mesh = Mesh::start(BINARY).await;
    let (own, other) = (mesh.path("own.pem"), mesh.path("other.pem"));
    tls_server(mesh.address(40, 8000), "vault.example.com", &own).await;
    tls_server(mesh.address(41, 8000), "vault.example.com", &other).await;
    let described = |name: &str, host: u8| {
        format!(
            "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {{name: {name}, namespace: shop}}\nspec: {{hosts: \
             [{name}.example.com], resolution: STATIC, ports: [{{number: 443, name: tls, protocol: TLS, targetPort: 8000}}], endpoints: \
             [{{address: {}}}]}}\n---\n",
            mesh.address(host, 0).ip()
        )
    };
    let web = mesh.workload(&web(&["vault.example.com:443"])).await;
    let entry = web.outbound[0];
    mesh.apply(&(described("vault", 40) + &described("spare", 41))).await;
    let says = |certificate| over_tls(entry, "vault.example.com", certificate);
    eventually("the server itself", || says(&own)).await;
    let rule = "apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: vault, namespace: shop}
spec:
  hosts: [vault.example.com]
  tls:
  - match: [{sniHosts: [vault.example.com], port: 443}]
    route: [{destination: {host: spare.example.com}}]
";
    mesh.apply(rule).await;
    // The other server's certificate: the sidecar has opened nothing, and sent the whole stream there.
    let said = eventually("the server of the rule", || says(&other)).await;
    assert_eq!(said, "asked for vault.example.com");
    // A name that no route has.
    let refused = over_tls(entry, "www.example.net", &other).await.unwrap_err();
    assert!(!refused.contains("certificate"), "it comes to no server: {refused}");
    assert_eq!(says(&other).await.unwrap(), "asked for vault.example.com");
}
