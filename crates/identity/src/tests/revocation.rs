//! Who is revoked: at handshakes of both sides, on open connections, in the bundle's file, and at the CSR service.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, SystemTime};

use outrigger_model::identity::SpiffeId;
use tokio::time::timeout;

use crate::csr::client::request_certificate;
use crate::csr::proto::IstioCertificateRequest;
use crate::csr::proto::istio_certificate_service_client::IstioCertificateServiceClient;
use crate::distrust::distrusted;
use crate::testing::*;
use crate::{
    Caller, CallerPolicy, ClientAuth, ControlPeer, ControlPlane, CredentialStore, Credentials, Denied,
    PeerExpectation, Revoked, TrustBundle, client_config, server_config,
};

const LONG: Duration = Duration::from_secs(60);

fn list(entries: &[&str]) -> Arc<Revoked> {
    Arc::new(Revoked::parse(entries).unwrap())
}

fn trusting(own: &Credentials, revoked: Arc<Revoked>) -> Credentials {
    let bundle = TrustBundle::clone(&own.bundle).with_revoked(revoked);
    Credentials::new(own.certificate.clone(), Arc::new(bundle))
}

#[tokio::test]
async fn a_revoked_peer_is_refused_by_both_sides_by_identity_and_by_serial() {
    let ca = authority();
    let (web, catalog) = (credentials(&ca, "web"), credentials(&ca, "catalog"));
    let serial = |of: &Credentials| format!("serial:{}", of.certificate.as_ref().unwrap().serial());
    let expected = || PeerExpectation::Exactly(id("catalog"));
    for entry in [id("web").to_string(), serial(&web)] {
        let server = server_config(&trusting(&catalog, list(&[&entry])), &[], ClientAuth::Required).unwrap();
        let (server, _) = handshake(server, client_config(&web, expected(), &[]).unwrap()).await;
        let said = problem(server);
        assert!(said.contains("sa/web is revoked") && said.contains(&entry), "{said}");
    }
    for entry in [id("catalog").to_string(), serial(&catalog)] {
        let client = client_config(&trusting(&web, list(&[&entry])), expected(), &[]).unwrap();
        let (_, client) =
            handshake(server_config(&catalog, &[], ClientAuth::Required).unwrap(), client).await;
        assert!(problem(client).contains("sa/catalog is revoked"));
    }
    let others = list(&[id("load").as_str(), "serial:1"]);
    let server = server_config(&trusting(&catalog, others), &[], ClientAuth::Required).unwrap();
    let (server, _) = handshake(server, client_config(&web, expected(), &[]).unwrap()).await;
    server.unwrap();
}

#[tokio::test]
async fn an_open_connection_is_told_when_its_peer_is_revoked_and_not_before() {
    let ca = Arc::new(authority());
    let store = CredentialStore::default();
    store.replace_bundle(ca.bundle());
    let shown = |account: &str| credentials(&ca, account).certificate.unwrap().chain().to_vec();
    let mut web = tokio::spawn(distrusted(store.clone(), shown("web")));
    let mut load = tokio::spawn(distrusted(store.clone(), shown("load")));
    ca.revoke(list(&[id("load").as_str()]));
    store.replace_bundle(ca.bundle());
    let said = timeout(LONG, &mut load).await.unwrap().unwrap().to_string();
    assert!(said.contains("sa/load is revoked"), "{said}");
    assert!(!web.is_finished());
    // A revocation outlives a rotation.
    ca.rotate_root().unwrap();
    assert!(ca.bundle().revoked().has_identity(&id("load")));
    ca.forget_old_roots().unwrap();
    store.replace_bundle(ca.bundle());
    let said = timeout(LONG, &mut web).await.unwrap().unwrap().to_string();
    assert!(said.contains("does not chain to a root"), "{said}");
}

#[test]
fn a_bundle_keeps_who_is_revoked_in_its_file_and_through_changes_of_roots() {
    let ca = authority();
    let bundle = TrustBundle::clone(&ca.bundle()).with_revoked(list(&[id("web").as_str(), "serial:a1b"]));
    let read = TrustBundle::from_json(&bundle.to_json()).unwrap();
    assert_eq!(read, bundle);
    assert_ne!(read, *ca.bundle(), "trust has changed though no root has");
    let other = authority();
    let replaced = read.replacing(TD, other.bundle().roots(TD).to_vec()).unwrap();
    assert_eq!(replaced.revoked(), bundle.revoked());
    assert_eq!(other.bundle().union(&bundle).revoked(), bundle.revoked());
}

/// One token that may be used once.
#[derive(Default)]
struct OneUse(AtomicUsize);

#[tonic::async_trait]
impl CallerPolicy for OneUse {
    async fn identify(&self, caller: &Caller) -> Result<SpiffeId, Denied> {
        match (caller.bearer.as_deref(), self.0.load(Ordering::SeqCst)) {
            (Some("web-token"), 0) => Ok(id("web")),
            _ => Err(Denied::new("used up".to_owned())),
        }
    }

    async fn spend(&self, _: &Caller) -> Result<(), Denied> {
        match self.0.fetch_add(1, Ordering::SeqCst) {
            0 => Ok(()),
            _ => Err(Denied::new("used up".to_owned())),
        }
    }

    fn renew(&self, _: &SpiffeId) -> Result<(), Denied> {
        Ok(())
    }
}

fn control(server: &ControlPlaneServer) -> ControlPlane {
    let store = CredentialStore::new(TrustBundle::clone(&server.authority.bundle()));
    ControlPlane::new(&[server.address.to_string()], ControlPeer::outrigger(TD).unwrap(), store).unwrap()
}

#[tokio::test]
async fn only_a_good_request_uses_a_token_up() {
    let policy = Arc::new(OneUse::default());
    let server = ControlPlaneServer::start(authority(), policy.clone()).await;
    let control = control(&server);
    for csr in ["", "-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n-----END CERTIFICATE REQUEST-----\n"] {
        let mut request =
            tonic::Request::new(IstioCertificateRequest { csr: csr.to_owned(), ..Default::default() });
        request.metadata_mut().insert("authorization", "Bearer web-token".parse().unwrap());
        let mut client = IstioCertificateServiceClient::new(control.channel());
        let refused = client.create_certificate(request).await.unwrap_err();
        assert_eq!(refused.code(), tonic::Code::InvalidArgument, "{refused}");
    }
    let web = id("web");
    let ask = || request_certificate(control.channel(), &web, Duration::ZERO, Some("web-token"));
    assert!(ask().await.is_ok(), "the bad requests cost nothing");
    assert!(ask().await.is_err());
}

#[tokio::test]
async fn a_request_gets_no_longer_life_than_the_settings_give() {
    let mut options = crate::AuthorityOptions::new(TD);
    options.default_ttl = HOUR;
    let authority = crate::Authority::in_memory(options).unwrap();
    let server = ControlPlaneServer::start(authority, Arc::new(OneUse::default())).await;
    let month = 30 * 24 * HOUR;
    let issued =
        request_certificate(control(&server).channel(), &id("web"), month, Some("web-token")).await.unwrap();
    assert!(issued.certificate.remaining(SystemTime::now()) <= HOUR);
    let by_operator = server.authority.issue_key_and_certificate(&id("web"), Some(month)).unwrap();
    assert!(by_operator.certificate.remaining(SystemTime::now()) > 29 * 24 * HOUR, "an operator may");
}

#[tokio::test]
async fn a_revoked_identity_gets_no_certificate_by_any_proof() {
    let server = ControlPlaneServer::start(authority(), Arc::new(OneUse::default())).await;
    server.authority.revoke(list(&[id("web").as_str()]));
    let by_token = request_certificate(control(&server).channel(), &id("web"), HOUR, Some("web-token")).await;
    let said = by_token.unwrap_err().error.to_string();
    assert!(said.contains("sa/web is revoked"), "{said}");
    server.authority.revoke(list(&[]));
    let again = request_certificate(control(&server).channel(), &id("web"), HOUR, Some("web-token")).await;
    assert!(again.is_ok(), "reinstated, and the token was not used up meanwhile");
}
