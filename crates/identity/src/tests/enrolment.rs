//! Enrolment over the wire: a real tonic server with our TLS on port 0, the real client, the real renewal loop.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, SystemTime};

use outrigger_model::identity::SpiffeId;
use parking_lot::Mutex;
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

use crate::csr::client::{KeyAndRequest, read_answer, request_certificate};
use crate::csr::proto::IstioCertificateRequest;
use crate::csr::proto::istio_certificate_service_client::IstioCertificateServiceClient;
use crate::testing::*;
use crate::{
    Caller, CallerPolicy, ControlPeer, ControlPlane, CredentialStore, Denied, Enrollment, RenewalHandle,
    RenewalStatus, Revoked, StateDir, Token, TrustBundle, run_renewal,
};

/// Knows one token, counts how it is used, and can revoke renewals.
#[derive(Default)]
struct Tokens {
    identified: AtomicUsize,
    renewed: AtomicUsize,
    revoked: Mutex<bool>,
    /// What it was spent for.
    spent: Mutex<Vec<String>>,
}

#[tonic::async_trait]
impl CallerPolicy for Tokens {
    async fn identify(&self, caller: &Caller) -> Result<SpiffeId, Denied> {
        self.identified.fetch_add(1, Ordering::SeqCst);
        match caller.bearer.as_deref() {
            Some("web-token") => Ok(id("web")),
            Some(_) => Err(Denied::new("the token is unknown or has expired".to_owned())),
            None => Err(Denied::new("neither a token nor a certificate was shown".to_owned())),
        }
    }

    async fn spend(&self, caller: &Caller) -> Result<(), Denied> {
        self.spent.lock().push(caller.request.clone());
        Ok(())
    }

    fn renew(&self, identity: &SpiffeId) -> Result<(), Denied> {
        self.renewed.fetch_add(1, Ordering::SeqCst);
        if *self.revoked.lock() { Err(Denied::new(format!("{identity} is revoked"))) } else { Ok(()) }
    }
}

struct Sidecar {
    store: CredentialStore,
    handle: RenewalHandle,
    task: JoinHandle<()>,
}

impl Drop for Sidecar {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Sidecar {
    fn start(server: &ControlPlaneServer, change: impl FnOnce(&mut Enrollment, &CredentialStore)) -> Self {
        let store = CredentialStore::new(TrustBundle::clone(&server.authority.bundle()));
        let peer = ControlPeer::outrigger(TD).unwrap();
        let control = ControlPlane::new(&[server.address.to_string()], peer, store.clone()).unwrap();
        let token = Token::Text("web-token".to_owned());
        let mut enrollment = Enrollment { identity: id("web"), control, token, ttl: 24 * HOUR, state: None };
        change(&mut enrollment, &store);
        let handle = RenewalHandle::new();
        let task = tokio::spawn(run_renewal(enrollment, store.clone(), handle.clone()));
        Self { store, handle, task }
    }

    async fn until(&self, what: &str, wanted: impl FnMut(&RenewalStatus) -> bool) -> RenewalStatus {
        let mut status = self.handle.status();
        let waiting = tokio::time::timeout(Duration::from_secs(20), status.wait_for(wanted)).await;
        match waiting {
            Ok(status) => status.unwrap().clone(),
            Err(_) => panic!("never {what}: {:?}", self.handle.status().borrow().clone()),
        }
    }
}

#[tokio::test]
async fn a_token_buys_the_first_certificate_and_that_buys_the_next() {
    let directory = tempfile::tempdir().unwrap();
    let state = StateDir::open(directory.path()).unwrap();
    let policy = Arc::new(Tokens::default());
    let server = ControlPlaneServer::start(authority(), policy.clone()).await;
    let sidecar = Sidecar::start(&server, |enrollment, _| enrollment.state = Some(state.clone()));
    let first = sidecar.until("enrolled", |status| status.renewals == 1).await;
    assert_eq!(sidecar.store.load().certificate.as_ref().unwrap().id(), &id("web"));
    assert_eq!((policy.identified.load(Ordering::SeqCst), policy.renewed.load(Ordering::SeqCst)), (1, 0));
    assert!(first.skew_millis.unwrap().abs() < 5_000, "{first:?}");
    assert_eq!(first.bundle_fingerprints, server.authority.bundle().fingerprints());

    sidecar.handle.renew_now();
    let second = sidecar.until("renewed", |status| status.renewals == 2).await;
    assert_ne!(first.serial, second.serial);
    assert_eq!((policy.identified.load(Ordering::SeqCst), policy.renewed.load(Ordering::SeqCst)), (1, 1));
    let kept = state.load(&id("web"), SystemTime::now());
    assert_eq!(kept.certificate.unwrap().serial(), second.serial.unwrap());
    assert_eq!(kept.bundle.unwrap(), *server.authority.bundle());
}

/// A token that may be used once was used for it all the same.
#[tokio::test]
async fn an_answer_that_is_of_no_use_is_asked_for_again_with_the_same_request() {
    let policy = Arc::new(Tokens::default());
    let server = ControlPlaneServer::start(authority(), policy.clone()).await;
    let good = server.authority.bundle();
    let sidecar = Sidecar::start(&server, |_, store| {
        let revoked = Revoked::parse([id("web").as_str()]).unwrap();
        store.replace_bundle(Arc::new(TrustBundle::clone(&good).with_revoked(Arc::new(revoked))));
    });
    sidecar.until("refused", |status| status.failures > 0).await;
    sidecar.store.replace_bundle(good);
    sidecar.handle.renew_now();
    sidecar.until("enrolled", |status| status.renewals == 1).await;
    let spent = policy.spent.lock().clone();
    assert!(spent.len() > 1 && spent.iter().all(|one| *one == spent[0]), "{spent:?}");
}

#[tokio::test]
async fn a_sidecar_restarted_with_its_state_needs_no_token() {
    let policy = Arc::new(Tokens::default());
    let server = ControlPlaneServer::start(authority(), policy.clone()).await;
    let own = credentials(&server.authority, "web");
    let sidecar = Sidecar::start(&server, |enrollment, store| {
        enrollment.token = Token::None;
        store.replace(own.certificate.clone(), own.bundle.clone());
    });
    sidecar.handle.renew_now();
    sidecar.until("renewed", |status| status.renewals == 1).await;
    assert_eq!(policy.identified.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn a_short_lived_certificate_is_renewed_before_it_ends() {
    let server = ControlPlaneServer::start(authority(), Arc::new(Tokens::default())).await;
    let sidecar = Sidecar::start(&server, |enrollment, _| enrollment.ttl = Duration::from_secs(2));
    sidecar.until("renewed by itself", |status| status.renewals == 2).await;
    assert!(sidecar.store.load().valid_certificate(SystemTime::now()).is_some());
}

#[tokio::test]
async fn a_refused_token_is_reported_in_the_servers_words() {
    let server = ControlPlaneServer::start(authority(), Arc::new(Tokens::default())).await;
    let sidecar = Sidecar::start(&server, |enrollment, _| enrollment.token = Token::Text("guess".to_owned()));
    let status = sidecar.until("refused", |status| status.failures > 0).await;
    let error = status.last_error.unwrap();
    assert!(error.contains("the token is unknown or has expired"), "{error}");
    assert!(status.skew_millis.is_some(), "a refusal tells the time too");
    assert!(sidecar.store.load().certificate.is_none());
}

#[tokio::test]
async fn a_token_of_a_file_is_read_anew_each_time_it_is_shown() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("token");
    std::fs::write(&path, "\n").unwrap();
    let policy = Arc::new(Tokens::default());
    let server = ControlPlaneServer::start(authority(), policy.clone()).await;
    let sidecar = Sidecar::start(&server, |enrollment, _| enrollment.token = Token::File(path.clone()));
    let said = |status: &RenewalStatus| status.last_error.clone().unwrap_or_default();
    sidecar.until("without a token", |status| said(status).contains("there is no token")).await;
    std::fs::write(&path, "expired\n").unwrap();
    sidecar.handle.renew_now();
    sidecar.until("refused", |status| said(status).contains("has expired")).await;
    std::fs::write(&path, "web-token\n").unwrap();
    sidecar.handle.renew_now();
    sidecar.until("enrolled", |status| status.renewals == 1).await;
    sidecar.handle.renew_now();
    sidecar.until("renewed by the file, too", |status| status.renewals == 2).await;
    assert_eq!(policy.renewed.load(Ordering::SeqCst), 0, "what says that the Pod is there goes first");
    // Who writes it is away, so it ends.
    std::fs::write(&path, "expired\n").unwrap();
    sidecar.handle.renew_now();
    sidecar.until("renewed by certificate", |status| status.renewals == 3).await;
    std::fs::remove_file(&path).unwrap();
    sidecar.handle.renew_now();
    sidecar.until("renewed by certificate once more", |status| status.renewals == 4).await;
    assert_eq!(policy.renewed.load(Ordering::SeqCst), 2);
    std::fs::write(&path, "expired\n").unwrap();
    *policy.revoked.lock() = true;
    sidecar.handle.renew_now();
    let status = sidecar.until("refused either way", |status| status.failures > 0).await;
    let why = said(&status);
    assert!(why.contains("by token: ") && why.contains("; by certificate: "), "{why}");
}

#[tokio::test]
async fn without_any_proof_the_message_says_what_to_make() {
    let server = ControlPlaneServer::start(authority(), Arc::new(Tokens::default())).await;
    let sidecar = Sidecar::start(&server, |enrollment, _| enrollment.token = Token::None);
    let status = sidecar.until("refused", |status| status.failures > 0).await;
    assert!(status.last_error.unwrap().contains("outrigger token create"));
}

#[tokio::test]
async fn a_revoked_certificate_falls_back_to_the_token_and_keeps_the_old_one_if_that_fails() {
    let policy = Arc::new(Tokens::default());
    let server = ControlPlaneServer::start(authority(), policy.clone()).await;
    *policy.revoked.lock() = true;
    let own = credentials(&server.authority, "web");
    let sidecar = Sidecar::start(&server, |enrollment, store| {
        enrollment.token = Token::None;
        store.replace(own.certificate.clone(), own.bundle.clone());
    });
    sidecar.handle.renew_now();
    let status = sidecar.until("refused", |status| status.failures > 0).await;
    assert!(status.last_error.unwrap().contains("is revoked"));
    let kept = sidecar.store.load().certificate.as_ref().unwrap().serial().to_owned();
    assert_eq!(kept, own.certificate.unwrap().serial());

    let own = credentials(&server.authority, "web");
    let with_token = Sidecar::start(&server, |_, store| {
        store.replace(own.certificate.clone(), own.bundle.clone());
    });
    with_token.handle.renew_now();
    with_token.until("renewed by token", |status| status.renewals == 1).await;
}

#[tokio::test]
async fn a_sidecar_with_the_state_of_a_former_authority_joins_anew_by_token() {
    let directory = tempfile::tempdir().unwrap();
    let state = StateDir::open(directory.path()).unwrap();
    state.save(&credentials(&authority(), "web")).unwrap();
    let server = ControlPlaneServer::start(authority(), Arc::new(Tokens::default())).await;
    let (store, problems) = state.restore(&id("web"), &server.authority.bundle(), SystemTime::now());
    assert!(problems.is_empty() && store.load().certificate.is_some());
    let start = |token: Token| {
        let peer = ControlPeer::outrigger(TD).unwrap();
        let control = ControlPlane::new(&[server.address.to_string()], peer, store.clone()).unwrap();
        let state = Some(state.clone());
        let enrollment = Enrollment { identity: id("web"), control, token, ttl: HOUR, state };
        let handle = RenewalHandle::new();
        let task = tokio::spawn(run_renewal(enrollment, store.clone(), handle.clone()));
        handle.renew_now();
        Sidecar { store: store.clone(), handle, task }
    };
    let refused = start(Token::None);
    refused.until("refused", |status| status.failures > 0).await;
    drop(refused);
    let joined = start(Token::Text("web-token".to_owned()));
    let status = joined.until("joined", |status| status.renewals == 1).await;
    assert_eq!(status.bundle_fingerprints, server.authority.bundle().fingerprints(), "the old root is gone");
}

#[tokio::test]
async fn somebody_else_in_the_mesh_cannot_play_the_control_plane() {
    let ca = Arc::new(authority());
    let store = CredentialStore::default();
    let own = credentials(&ca, "mallory");
    store.replace(own.certificate, own.bundle);
    let server = ControlPlaneServer::start_as(ca, Arc::new(Tokens::default()), store).await;
    let sidecar = Sidecar::start(&server, |_, _| {});
    let error = sidecar.until("refused", |status| status.failures > 0).await.last_error.unwrap();
    assert!(error.contains("sa/outrigger-control") && error.contains("sa/mallory"), "{error}");
}

#[tokio::test]
async fn an_unreachable_control_plane_is_named_by_address_and_the_next_one_is_tried() {
    let server = ControlPlaneServer::start(authority(), Arc::new(Tokens::default())).await;
    let closed = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().to_string();
    let lonely = Sidecar::start(&server, |enrollment, store| {
        let peer = ControlPeer::outrigger(TD).unwrap();
        enrollment.control = ControlPlane::new(&[&closed], peer, store.clone()).unwrap();
    });
    let error = lonely.until("failed", |status| status.failures > 0).await.last_error.unwrap();
    assert!(error.contains(&closed), "{error}");
    let both = Sidecar::start(&server, |enrollment, store| {
        let addresses = [closed.clone(), server.address.to_string()];
        let peer = ControlPeer::outrigger(TD).unwrap();
        enrollment.control = ControlPlane::new(&addresses, peer, store.clone()).unwrap();
    });
    both.until("enrolled", |status| status.renewals == 1).await;
}

#[tokio::test]
async fn a_rotated_root_arrives_with_the_next_certificate() {
    let server = ControlPlaneServer::start(authority(), Arc::new(Tokens::default())).await;
    let sidecar = Sidecar::start(&server, |_, _| {});
    sidecar.until("enrolled", |status| status.renewals == 1).await;
    server.authority.rotate_root().unwrap();
    sidecar.handle.renew_now();
    let status = sidecar.until("renewed", |status| status.renewals == 2).await;
    assert_eq!(status.bundle_fingerprints, server.authority.bundle().fingerprints());
    assert_eq!(status.bundle_fingerprints.len(), 2);
    server.authority.forget_old_roots().unwrap();
    let own = server.authority.server_certificate(&[], &[]).unwrap();
    server.store.replace(Some(Arc::new(own.certificate)), own.bundle);
    sidecar.handle.renew_now();
    let status = sidecar.until("renewed again", |status| status.renewals == 3).await;
    assert_eq!(status.bundle_fingerprints.len(), 1);
}

#[tokio::test]
async fn the_listener_survives_garbage_half_closes_and_silence() {
    let server = ControlPlaneServer::start(authority(), Arc::new(Tokens::default())).await;
    let _silent = TcpStream::connect(server.address).await.unwrap();
    let mut garbage = TcpStream::connect(server.address).await.unwrap();
    garbage.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
    TcpStream::connect(server.address).await.unwrap().shutdown().await.unwrap();
    let sidecar = Sidecar::start(&server, |_, _| {});
    sidecar.until("enrolled", |status| status.renewals == 1).await;
}

#[tokio::test]
async fn a_hostile_request_gets_a_refusal_and_not_a_certificate() {
    let server = ControlPlaneServer::start(authority(), Arc::new(Tokens::default())).await;
    let store = CredentialStore::new(TrustBundle::clone(&server.authority.bundle()));
    let peer = ControlPeer::outrigger(TD).unwrap();
    let control = ControlPlane::new(&[server.address.to_string()], peer, store).unwrap();
    let mut client = IstioCertificateServiceClient::new(control.channel());
    for (csr, wanted) in
        [(String::new(), "PKCS#10"), ("A".repeat(70 << 10), "64 KiB"), ("A".repeat(300 << 10), "")]
    {
        let mut request =
            tonic::Request::new(IstioCertificateRequest { csr, validity_duration: -5, metadata: None });
        request.metadata_mut().insert("authorization", "bearer web-token".parse().unwrap());
        let status = client.create_certificate(request).await.unwrap_err();
        assert!(status.message().contains(wanted), "{status:?}");
    }
    // What the caller is decides, not what it asks for.
    let asked = request_certificate(control.channel(), &id("admin"), HOUR, Some("web-token")).await;
    let error = asked.unwrap_err().error.to_string();
    assert!(error.contains("sa/web") && error.contains("sa/admin"), "{error}");
}

#[test]
fn an_answer_of_istios_shape_is_understood() {
    let ca = authority();
    let bundle = ca.bundle();
    let now = SystemTime::now();
    let made = || ca.issue_key_and_certificate(&id("web"), None).unwrap().certificate;
    let key = |own: &crate::WorkloadCertificate| crate::pem::private_keys(&own.key_pem()).unwrap().remove(0);
    let own = made();
    let pem = |der| crate::pem::encode_certificates([der]);
    let [leaf, issuer] = [pem(&own.chain()[0]), pem(&own.chain()[1])];
    let root = bundle.to_pem(TD);
    // Each certificate an element of its own, or several in one: both occur.
    for shape in
        [vec![leaf.clone(), issuer.clone(), root.clone()], vec![leaf.clone() + &issuer, root.clone()]]
    {
        let (certificate, roots) = read_answer(&shape, None, key(&own), &id("web"), now).unwrap();
        assert_eq!((certificate.chain().len(), roots.as_slice()), (2, bundle.roots(TD)));
    }
    // A root that another one has signed does not name itself; the last element counts as the root all the same.
    let (certificate, roots) =
        read_answer(&[leaf.clone(), issuer], None, key(&own), &id("web"), now).unwrap();
    assert_eq!((certificate.chain().len(), roots.len()), (1, 1));
    let error = |shape: &[String], own: &crate::WorkloadCertificate| {
        read_answer(shape, None, key(own), &id("web"), now).unwrap_err().to_string()
    };
    assert!(error(&[], &own).contains("at least one root"));
    assert!(error(std::slice::from_ref(&leaf), &own).contains("at least one root"));
    assert!(error(&[leaf, root], &made()).contains("does not belong"));
    assert!(
        KeyAndRequest::generate(&id("web")).unwrap().csr_pem().starts_with("-----BEGIN CERTIFICATE REQUEST")
    );
}
