//! Two sidecars: mTLS between them, secure naming, PERMISSIVE and STRICT.

use std::net::SocketAddr;

use outrigger_model::listener::{Direction, TransportMatch};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use super::rig::*;

/// The sidecar of `stock`, STRICT or PERMISSIVE; its address.
async fn server(authority: &outrigger_identity::Authority, strict: bool) -> (Rig, SocketAddr) {
    let store = credentials(authority, "stock");
    let mut rig = Rig::new(|shared| shared.credentials = store);
    let address = rig.inbound(echo("").await);
    let mut chains = vec![mesh_chain("mtls-tcp", if strict { &[] } else { &["istio"] }, Vec::new())];
    if !strict {
        chains.push(chain("plain-tcp", TransportMatch::Plain, &[], tcp("app")));
    }
    rig.apply([app_cluster(), listener("in", Direction::Inbound, Some(address), chains)]);
    (rig, address)
}

/// The sidecar of `web`, which expects `account` at `address`; where `web` connects to.
fn client(
    authority: &outrigger_identity::Authority,
    address: SocketAddr,
    account: &str,
) -> (Rig, SocketAddr) {
    let store = credentials(authority, "web");
    let mut rig = Rig::new(|shared| shared.credentials = store);
    rig.apply(service("stock", cluster("stock", vec![endpoint(address, Some(id(account)))])));
    let outbound = rig.outbound("stock.shop:8080");
    (rig, outbound)
}

#[tokio::test]
async fn bytes_cross_two_sidecars_over_mtls() {
    local(async {
        let authority = authority();
        let (mut inbound, address) = server(&authority, true).await;
        let (_outbound, entry) = client(&authority, address, "stock");
        let text = "0123456789".repeat(50_000);
        assert_eq!(exchange(entry, &text).await.unwrap(), text);
        let line = inbound.line().await;
        assert_eq!(line["requested_server_name"], "outbound_.8080_._.stock.shop.svc.cluster.local");
    })
    .await;
}

#[tokio::test]
async fn an_endpoint_with_another_identity_is_refused_by_name() {
    local(async {
        let authority = authority();
        let (_inbound, address) = server(&authority, true).await;
        let (mut outbound, entry) = client(&authority, address, "billing");
        assert_eq!(exchange(entry, "secret").await.unwrap_or_default(), "");
        let line = outbound.line().await;
        let error = line["error"].as_str().unwrap();
        assert!(error.contains("sa/billing") && error.contains("sa/stock"), "{error}");
        assert_eq!(line["response_flags"], "UF");
    })
    .await;
}

#[tokio::test]
async fn a_client_of_a_foreign_authority_is_refused() {
    local(async {
        let (ours, theirs) = (authority(), authority());
        let (mut inbound, address) = server(&ours, true).await;
        let (_outbound, entry) = client(&theirs, address, "stock");
        assert_eq!(exchange(entry, "x").await.unwrap_or_default(), "");
        assert!(inbound.line().await["error"].as_str().unwrap().contains("tls_failed"));
    })
    .await;
}

#[tokio::test]
async fn plain_text_is_served_when_permissive_and_refused_when_strict() {
    local(async {
        let authority = authority();
        let (_permissive, address) = server(&authority, false).await;
        assert_eq!(exchange(address, "plain").await.unwrap(), "plain");
        let (_outbound, entry) = client(&authority, address, "stock");
        assert_eq!(exchange(entry, "both at once").await.unwrap(), "both at once");

        let (mut strict, address) = server(&authority, true).await;
        assert_eq!(exchange(address, "plain").await.unwrap_or_default(), "");
        assert!(strict.line().await["error"].as_str().unwrap().contains("STRICT"));
    })
    .await;
}

#[tokio::test]
async fn a_new_certificate_is_used_without_cutting_what_is_open() {
    local(async {
        let authority = authority();
        let (inbound, address) = server(&authority, true).await;
        let (outbound, entry) = client(&authority, address, "stock");
        let mut open = TcpStream::connect(entry).await.unwrap();
        open.write_all(b"a").await.unwrap();
        assert_eq!(read(&mut open, 1).await, "a");
        for (rig, account) in [(&inbound, "stock"), (&outbound, "web")] {
            let fresh = credentials(&authority, account).load();
            let certificate = fresh.certificate.clone().unwrap();
            rig.worker.shared.credentials.replace_certificate(certificate);
        }
        assert_eq!(exchange(entry, "new").await.unwrap(), "new");
        open.write_all(b"b").await.unwrap();
        assert_eq!(read(&mut open, 1).await, "b");
    })
    .await;
}
