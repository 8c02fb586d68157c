use std::sync::Arc;

use bytes::Bytes;
use http::{Request, StatusCode};
use http_body_util::{BodyExt, Empty};
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use outrigger_identity::{ControlPeer, ControlPlane as To, CredentialStore, IssuedIdentity};
use outrigger_model::identity::SpiffeId;

use crate::instance::{Protocol, sample};
use crate::others::Report;
use crate::replicas::{LOAD, REPORT, SHARED, STATUS};
use crate::{ControlPlane, Running, Settings};

/// Asks at the xDS port with this certificate.
async fn ask(running: &Running, who: IssuedIdentity, path: &str) -> (StatusCode, Bytes) {
    let store = CredentialStore::new((*who.bundle).clone());
    store.replace_certificate(Arc::new(who.certificate));
    let address = running.addresses.xds.to_string();
    let to = To::new(&[&address], ControlPeer::outrigger("cluster.local").unwrap(), store).unwrap();
    let io = TokioIo::new(to.connect().await.unwrap());
    let (mut send, connection) = http2::handshake(TokioExecutor::new(), io).await.unwrap();
    tokio::spawn(connection);
    let request = Request::get(format!("https://{address}{path}")).body(Empty::<Bytes>::new()).unwrap();
    let response = send.send_request(request).await.unwrap();
    (response.status(), response.into_body().collect().await.unwrap().to_bytes())
}

#[tokio::test]
async fn only_another_control_plane_is_told_of_the_proxies_here() {
    let dir = tempfile::tempdir().unwrap();
    let running = ControlPlane::start(Settings::ephemeral(dir.path())).await.unwrap();
    running
        .client()
        .register(&sample("web-1", "web", "v1", "127.0.0.10", 8080, Protocol::Http))
        .await
        .unwrap();
    let authority = running.authority();
    for (namespace, account) in [("shop", "web"), ("outrigger-system", "outrigger-admin")] {
        let other = SpiffeId::workload("cluster.local", namespace, account).unwrap();
        for path in [REPORT, SHARED, STATUS, LOAD] {
            let issued = authority.issue_key_and_certificate(&other, None).unwrap();
            assert_eq!(ask(&running, issued, path).await.0, StatusCode::FORBIDDEN, "{other} {path}");
        }
    }
    let own = || authority.server_certificate(&[], &[]).unwrap();
    let (status, body) = ask(&running, own(), REPORT).await;
    assert_eq!(status, StatusCode::OK);
    assert_eq!(serde_json::from_slice::<Report>(&body).unwrap(), Report::default());
    assert_eq!(ask(&running, own(), STATUS).await.0, StatusCode::OK);
    running.stop().await;
}
