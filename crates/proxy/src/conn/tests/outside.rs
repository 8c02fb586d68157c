//! TLS that a rule asks for: to servers outside the mesh, and the mesh's own where nothing else will do.

use std::net::SocketAddr;
use std::path::Path;

use outrigger_identity::{Authority, ClientAuth, server_config};
use outrigger_model::cluster::{ClientTls, Cluster, OutsideTls};
use outrigger_model::resource::Resource;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::task::spawn_local;
use tokio_rustls::TlsAcceptor;

use super::rig::*;
use crate::runtime::build::check;

/// A TLS server of its own authority, which answers "hello " and what it received.
async fn server(authority: &Authority, mutual: bool) -> SocketAddr {
    let own = credentials(authority, "billing").load();
    let config = match mutual {
        true => server_config(&own, &[], ClientAuth::Required),
        false => server_config(&own, &[], ClientAuth::Optional),
    };
    let acceptor = TlsAcceptor::from(config.unwrap());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    spawn_local(async move {
        while let Ok((tcp, _)) = listener.accept().await {
            let acceptor = acceptor.clone();
            spawn_local(async move {
                let Ok(mut tls) = acceptor.accept(tcp).await else { return };
                let mut text = Vec::new();
                if tls.read_to_end(&mut text).await.is_ok() {
                    let _ = tls.write_all(&[b"hello ", &*text].concat()).await;
                    let _ = tls.shutdown().await;
                }
            });
        }
    });
    address
}

fn write(directory: &Path, name: &str, text: &str) -> String {
    let path = directory.join(name);
    std::fs::write(&path, text).unwrap();
    path.to_str().unwrap().to_owned()
}

fn settings(directory: &Path, authority: &Authority) -> OutsideTls {
    let roots = credentials(authority, "billing").load().bundle.to_pem(TRUST_DOMAIN);
    OutsideTls {
        server_name: "billing.example.com".into(),
        subject_alt_names: vec![id("billing").to_string()],
        roots_file: Some(write(directory, "roots.pem", &roots)),
        roots_pem: None,
        client_files: None,
    }
}

fn reaching(address: SocketAddr, tls: ClientTls) -> Cluster {
    Cluster { tls, ..cluster("billing", vec![endpoint(address, None)]) }
}

/// What a client behind a sidecar with this cluster gets.
async fn say_hi(cluster: Cluster) -> (String, serde_json::Value) {
    let mut rig = Rig::new(|_| {});
    rig.apply(service("billing", cluster));
    let entry = rig.outbound("billing.shop:8080");
    let answer = exchange(entry, "hi").await.unwrap_or_default();
    (answer, rig.line().await)
}

#[tokio::test]
async fn simple_reaches_a_server_that_proves_one_of_its_names() {
    local(async {
        let (authority, directory) = (authority(), tempfile::tempdir().unwrap());
        let address = server(&authority, false).await;
        let tls = settings(directory.path(), &authority);
        let (answer, _) = say_hi(reaching(address, ClientTls::Outside(tls.clone()))).await;
        assert_eq!(answer, "hello hi");

        let other = OutsideTls { subject_alt_names: vec!["other.example.com".into()], ..tls };
        let (answer, line) = say_hi(reaching(address, ClientTls::Outside(other))).await;
        assert_eq!((answer.as_str(), &line["response_flags"]), ("", &"UF".into()));
        assert!(line["error"].as_str().unwrap().contains("expected one of other.example.com"), "{line}");
    })
    .await;
}

#[tokio::test]
async fn simple_trusts_only_the_roots_it_was_given() {
    local(async {
        let (ours, theirs, directory) = (authority(), authority(), tempfile::tempdir().unwrap());
        let address = server(&theirs, false).await;
        let tls = settings(directory.path(), &ours);
        let (answer, line) = say_hi(reaching(address, ClientTls::Outside(tls))).await;
        assert_eq!((answer.as_str(), &line["response_flags"]), ("", &"UF".into()));
    })
    .await;
}

#[tokio::test]
async fn mutual_shows_the_certificate_from_its_files() {
    local(async {
        let (authority, directory) = (authority(), tempfile::tempdir().unwrap());
        let address = server(&authority, true).await;
        let simple = settings(directory.path(), &authority);
        let (answer, _) = say_hi(reaching(address, ClientTls::Outside(simple.clone()))).await;
        assert_eq!(answer, "", "the server asks for a certificate");

        let own = credentials(&authority, "web").load().certificate.clone().unwrap();
        let chain = write(directory.path(), "chain.pem", &own.chain_pem());
        let key = write(directory.path(), "key.pem", &own.key_pem());
        let mutual = OutsideTls { client_files: Some((chain, key)), ..simple };
        let (answer, _) = say_hi(reaching(address, ClientTls::Outside(mutual))).await;
        assert_eq!(answer, "hello hi");
    })
    .await;
}

#[tokio::test]
async fn a_file_that_cannot_be_read_is_a_refused_cluster() {
    let (authority, directory) = (authority(), tempfile::tempdir().unwrap());
    let good = settings(directory.path(), &authority);
    let missing = OutsideTls { roots_file: Some("/nowhere/roots.pem".into()), ..good.clone() };
    let empty = OutsideTls { roots_file: Some(write(directory.path(), "empty.pem", "")), ..good.clone() };
    for (tls, reason) in [(missing, "/nowhere/roots.pem"), (empty, "no root certificate")] {
        let refused =
            check(&Resource::Cluster(reaching(([127, 0, 0, 1], 1).into(), ClientTls::Outside(tls))));
        let refused = refused.unwrap_err();
        assert!(refused.field == "transport_socket" && refused.reason.contains(reason), "{refused}");
    }
    assert!(
        check(&Resource::Cluster(reaching(([127, 0, 0, 1], 1).into(), ClientTls::Outside(good)))).is_ok()
    );
}

#[tokio::test]
async fn where_the_meshs_tls_is_required_no_plain_text_leaves() {
    local(async {
        let authority = authority();
        let store = credentials(&authority, "web");
        let mut rig = Rig::new(|process| process.credentials = store);
        let plain = echo("").await;
        let mut cluster = cluster("billing", vec![endpoint(plain, None)]);
        let ClientTls::Mesh { required, .. } = &mut cluster.tls else { panic!() };
        *required = true;
        rig.apply(service("billing", cluster));
        let entry = rig.outbound("billing.shop:8080");
        assert_eq!(exchange(entry, "secret").await.unwrap_or_default(), "");
        assert_eq!(rig.line().await["response_flags"], "UF");
    })
    .await;
}
