//! Eureka and Nacos by TLS, which an end of it in front of each speaks: what they know is called, and a certificate that nobody vouches for
//! is told and takes nothing.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use outrigger_control::api::types::Condition;
use outrigger_tests::app::echo;
use outrigger_tests::mesh::{Mesh, PORT};
use rcgen::{CertificateParams, KeyPair};
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::crypto::aws_lc_rs;
use tokio_rustls::rustls::pki_types::PrivateKeyDer;

use crate::BINARY;
use crate::eureka::Eureka;
use crate::nacos::Nacos;
use crate::registries::{answer, stranger, until};
use crate::thin_thread::web;

/// Ends TLS for servers of the test.
struct Front {
    acceptor: TlsAcceptor,
}

impl Front {
    /// Its certificate goes to `ca`.
    fn new(ca: &Path) -> Self {
        let key = KeyPair::generate().unwrap();
        let certificate =
            CertificateParams::new(vec!["registry.test".to_owned()]).unwrap().self_signed(&key).unwrap();
        std::fs::write(ca, certificate.pem()).unwrap();
        let config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth();
        let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
        let mut config = config.with_single_cert(vec![certificate.der().clone()], key).unwrap();
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Self { acceptor: TlsAcceptor::from(Arc::new(config)) }
    }

    async fn stands(&self, at: SocketAddr, to: SocketAddr) {
        let (listener, acceptor) = (TcpListener::bind(at).await.unwrap(), self.acceptor.clone());
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let acceptor = acceptor.clone();
                tokio::spawn(async move {
                    // Who does not trust it goes.
                    let Ok(mut here) = acceptor.accept(stream).await else { return };
                    let Ok(mut there) = TcpStream::connect(to).await else { return };
                    let _ = tokio::io::copy_bidirectional(&mut here, &mut there).await;
                });
            }
        });
    }
}

/// A row with TLS instead of what the settings of a server have.
fn by_tls(settings: &Value, kind: &str, url: String, ca: &Path, more: Value) -> Value {
    let mut row = settings["registries"][0].clone();
    let fields = row[kind].as_object_mut().unwrap();
    fields.insert("urls".into(), json!([url]));
    fields.insert("caFile".into(), json!(ca));
    fields.insert("serverName".into(), json!("registry.test"));
    fields.extend(more.as_object().unwrap().clone());
    row
}

#[tokio::test(flavor = "multi_thread")]
async fn eureka_and_nacos_are_followed_by_tls() {
    let (Some(eureka), Some(nacos)) = (Eureka::start().await, Nacos::start().await) else { return };
    let aside = tempfile::tempdir().unwrap();
    let ca = aside.path().join("ca.pem");
    let front = Front::new(&ca);
    let beside = |at: SocketAddr, port: u16| SocketAddr::new(at.ip(), port);
    let (spring, alibaba, grpc) =
        (beside(eureka.address, 8443), beside(nacos.address, 8443), beside(nacos.address, 9443));
    front.stands(spring, eureka.address).await;
    front.stands(alibaba, nacos.address).await;
    front.stands(grpc, beside(nacos.address, 9848)).await;
    let none = json!({});
    let rows = json!({ "registries": [
        by_tls(&eureka.settings(&none), "eureka", format!("https://{spring}/eureka"), &ca, none.clone()),
        by_tls(&nacos.settings(&none), "nacos", format!("https://{alibaba}/nacos"), &ca, json!({ "grpcPort": grpc.port() })),
    ] });
    let mut mesh = Mesh::start_with(BINARY, rows).await;
    let (catalog, stock) = (mesh.address(20, PORT), mesh.address(21, PORT));
    echo(catalog, "catalog").await;
    echo(stock, "stock").await;
    eureka.register("c1", "catalog", catalog, 600).await;
    nacos.register("stock", stock, 600, "").await;
    let web = mesh.workload(&web(&["catalog:8080", "stock:8080"])).await;
    answer(web.outbound[0], "X-App-Name: catalog\r\n").await;
    answer(web.outbound[1], "X-App-Name: stock\r\n").await;

    // A certificate that nobody vouches for: the connections of now are good, the next are not.
    for name in ["spring", "alibaba"] {
        until(&mesh, name, "what it says is kept", |row| row.kept == Some(1)).await;
    }
    std::fs::write(&ca, stranger()).unwrap();
    mesh.kill_control();
    mesh.start_control().await;
    for name in ["spring", "alibaba"] {
        until(&mesh, name, "the certificate is told", |row| {
            let told =
                row.last_error.as_ref().is_some_and(|error| error.contains("invalid peer certificate"));
            row.state == Condition::Away && row.instances == 1 && told
        })
        .await;
    }
    answer(web.outbound[0], "X-App-Name: catalog\r\n").await;
    answer(web.outbound[1], "X-App-Name: stock\r\n").await;
}
