//! What a good handshake yields, which configuration a worker takes, and what rotation does to connections.

use std::sync::Arc;

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::testing::*;
use crate::{
    ClientAuth, CredentialStore, IdentityError, PeerExpectation, Revoked, TrustBundle, WorkerTls,
    client_config, peer_identity, server_config,
};

#[tokio::test]
async fn both_sides_learn_each_others_identity() {
    let ca = authority();
    let server =
        server_config(&credentials(&ca, "catalog"), &[b"istio-h2", b"h2"], ClientAuth::Required).unwrap();
    let expected = PeerExpectation::Exactly(id("catalog"));
    let client = client_config(&credentials(&ca, "web"), expected, &[b"istio-h2", b"istio", b"h2"]).unwrap();
    let (server, client) = handshake(server, client).await;
    let (server, client) = (server.unwrap(), client.unwrap());
    assert_eq!(peer_identity(server.get_ref().1.peer_certificates().unwrap()).unwrap(), id("web"));
    assert_eq!(peer_identity(client.get_ref().1.peer_certificates().unwrap()).unwrap(), id("catalog"));
    assert_eq!(client.get_ref().1.alpn_protocol(), Some(&b"istio-h2"[..]));
    assert_eq!(server.get_ref().1.protocol_version(), Some(rustls::ProtocolVersion::TLSv1_3));
}

#[tokio::test]
async fn no_ticket_is_issued_and_no_session_resumed() {
    let ca = authority();
    let server = server_config(&credentials(&ca, "catalog"), &[], ClientAuth::Required).unwrap();
    let expected = PeerExpectation::Exactly(id("catalog"));
    let client = client_config(&credentials(&ca, "web"), expected, &[]).unwrap();
    for _ in 0..2 {
        let (near, far) = handshake(server.clone(), client.clone()).await;
        let (mut near, mut far) = (near.unwrap(), far.unwrap());
        near.write_all(b"x").await.unwrap();
        near.flush().await.unwrap();
        let mut byte = [0];
        far.read_exact(&mut byte).await.unwrap();
        assert_eq!(far.get_ref().1.tls13_tickets_received(), 0);
        assert_eq!(far.get_ref().1.handshake_kind(), Some(rustls::HandshakeKind::Full));
    }
}

#[tokio::test]
async fn an_expectation_may_be_a_list_or_a_trust_domain_or_an_alias() {
    let ca = authority();
    let server = server_config(&credentials(&ca, "catalog"), &[], ClientAuth::Required).unwrap();
    let mut web = credentials(&ca, "web");
    web.bundle = Arc::new(TrustBundle::clone(&web.bundle).with_alias("old.test", TD).unwrap());
    let aliased = outrigger_model::identity::SpiffeId::workload("old.test", "shop", "catalog").unwrap();
    for expected in [
        PeerExpectation::AnyOf(vec![id("reviews"), id("catalog")]),
        PeerExpectation::TrustDomain(TD.to_owned()),
        PeerExpectation::TrustDomain("old.test".to_owned()),
        PeerExpectation::Exactly(aliased),
    ] {
        let client = client_config(&web, expected.clone(), &[]).unwrap();
        let (near, far) = handshake(server.clone(), client).await;
        assert!(near.is_ok() && far.is_ok(), "{expected}");
    }
}

#[tokio::test]
async fn an_optional_client_may_come_without_a_certificate() {
    let ca = authority();
    let server = server_config(&credentials(&ca, "catalog"), &[], ClientAuth::Optional).unwrap();
    let mut anonymous = credentials(&ca, "web");
    anonymous.certificate = None;
    let client = client_config(&anonymous, PeerExpectation::Exactly(id("catalog")), &[]).unwrap();
    let (near, far) = handshake(server, client).await;
    assert!(far.is_ok());
    assert!(near.unwrap().get_ref().1.peer_certificates().is_none());
}

#[tokio::test]
async fn a_bundle_of_old_and_new_roots_accepts_certificates_of_both() {
    let (old, new) = (authority(), authority());
    let both = Arc::new(old.bundle().union(&new.bundle()));
    assert_eq!(both.roots(TD).len(), 2);
    let with_both = |ca, account| {
        let mut own = credentials(ca, account);
        own.bundle = both.clone();
        own
    };
    for (server_ca, client_ca) in [(&old, &new), (&new, &old)] {
        let server = server_config(&with_both(server_ca, "catalog"), &[], ClientAuth::Required).unwrap();
        let expected = PeerExpectation::Exactly(id("catalog"));
        let client = client_config(&with_both(client_ca, "web"), expected, &[]).unwrap();
        let (near, far) = handshake(server, client).await;
        assert!(near.is_ok() && far.is_ok());
    }
}

#[test]
fn a_worker_builds_a_configuration_once_per_generation() {
    let ca = authority();
    let store = CredentialStore::default();
    let own = credentials(&ca, "web");
    let mut worker = WorkerTls::new(store.clone());
    let expected = PeerExpectation::Exactly(id("catalog"));
    assert!(matches!(worker.accept(&[b"h2"]), Err(IdentityError::NoCertificate)));
    assert!(matches!(worker.connect(&expected, &[b"h2"]), Err(IdentityError::NoCertificate)));

    store.replace(own.certificate.clone(), own.bundle.clone());
    let (accept, connect) = (worker.accept(&[b"h2"]).unwrap(), worker.connect(&expected, &[b"h2"]).unwrap());
    assert!(Arc::ptr_eq(&accept, &worker.accept(&[b"h2"]).unwrap()));
    assert!(Arc::ptr_eq(&connect, &worker.connect(&expected, &[b"h2"]).unwrap()));
    assert!(!Arc::ptr_eq(&accept, &worker.accept(&[b"istio"]).unwrap()));
    assert!(!Arc::ptr_eq(&connect, &worker.connect(&PeerExpectation::Exactly(id("x")), &[b"h2"]).unwrap()));

    store.replace(own.certificate, own.bundle);
    assert!(!Arc::ptr_eq(&accept, &worker.accept(&[b"h2"]).unwrap()));
    assert!(!Arc::ptr_eq(&connect, &worker.connect(&expected, &[b"h2"]).unwrap()));
}

#[test]
fn a_renewal_is_no_change_of_trust() {
    let ca = authority();
    let store = CredentialStore::default();
    let own = credentials(&ca, "web");
    store.replace(own.certificate, own.bundle.clone());
    assert_eq!((store.generation(), store.trust()), (1, 1));
    let renewed = credentials(&ca, "web").certificate.unwrap();
    store.replace_certificate(renewed.clone());
    // As it is read again, or pushed once more.
    store.replace(Some(renewed), Arc::new(TrustBundle::clone(&own.bundle)));
    assert_eq!((store.generation(), store.trust()), (3, 1));
    let revoked = Revoked::parse([id("load").as_str()]).unwrap();
    store.replace_bundle(Arc::new(TrustBundle::clone(&own.bundle).with_revoked(Arc::new(revoked))));
    assert_eq!((store.generation(), store.trust()), (4, 2));
}

#[tokio::test]
async fn rotation_serves_new_connections_and_leaves_established_ones_alone() {
    let ca = authority();
    let store = CredentialStore::default();
    let first = credentials(&ca, "catalog");
    let first_serial = first.certificate.as_ref().unwrap().serial().to_owned();
    store.replace(first.certificate, first.bundle);
    let mut worker = WorkerTls::new(store.clone());
    let client =
        client_config(&credentials(&ca, "web"), PeerExpectation::Exactly(id("catalog")), &[]).unwrap();
    let serial = |end: &tokio_rustls::client::TlsStream<tokio::io::DuplexStream>| {
        let leaf = &end.get_ref().1.peer_certificates().unwrap()[0];
        crate::provider::hex(webpki::EndEntityCert::try_from(leaf).unwrap().serial())
    };
    let (near, far) = handshake(worker.accept(&[]).unwrap(), client.clone()).await;
    let (mut near, mut far) = (near.unwrap(), far.unwrap());
    assert_eq!(serial(&far), first_serial);

    let second = credentials(&ca, "catalog");
    let second_serial = second.certificate.as_ref().unwrap().serial().to_owned();
    store.replace(second.certificate, second.bundle);
    let (_near, newer) = handshake(worker.accept(&[]).unwrap(), client).await;
    assert_eq!(serial(&newer.unwrap()), second_serial);

    near.write_all(b"still here").await.unwrap();
    near.flush().await.unwrap();
    let mut text = [0; 10];
    far.read_exact(&mut text).await.unwrap();
    assert_eq!(&text, b"still here");
}

#[tokio::test]
async fn a_waiter_wakes_when_the_first_certificate_arrives() {
    let ca = authority();
    let store = CredentialStore::default();
    let waiting = tokio::spawn({
        let store = store.clone();
        async move { store.ready().await }
    });
    let own = credentials(&ca, "web");
    store.replace_bundle(own.bundle.clone());
    store.replace(own.certificate, own.bundle);
    let ready = waiting.await.unwrap();
    assert_eq!(ready.certificate.as_ref().unwrap().id(), &id("web"));
    assert_eq!((ready.generation, store.generation()), (2, 2));
}

#[tokio::test]
async fn an_outside_server_is_trusted_by_its_name_or_by_a_listed_one() {
    use crate::upstream::{UpstreamTls, upstream_client_config};
    let ca = TestCa::new();
    let server = raw_server(ca.leaf(|params| {
        let dns = |name: &str| rcgen::SanType::DnsName(name.try_into().unwrap());
        params.subject_alt_names =
            vec![dns("outbound_.80_._.web.shop"), dns("api.example"), uri_san("spiffe://x/y")];
    }));
    let roots_pem = Some(ca.bundle().to_pem(TD));
    let settings = |names: &[&str]| UpstreamTls {
        roots_pem: roots_pem.clone(),
        subject_alt_names: names.iter().map(|name| (*name).to_owned()).collect(),
        ..UpstreamTls::default()
    };
    for names in [&[][..], &["api.example"], &["spiffe://x/y"], &["other.example", "api.example"]] {
        let client = upstream_client_config(&settings(names)).unwrap();
        let (near, far) = handshake(server.clone(), client).await;
        assert!(near.is_ok() && far.is_ok(), "{names:?}");
    }
    let client = upstream_client_config(&settings(&["evil.example"])).unwrap();
    let (_, far) = handshake(server, client).await;
    let text = far.unwrap_err().to_string();
    assert!(text.contains("expected one of evil.example") && text.contains("api.example"), "{text}");
    let nothing = UpstreamTls { roots_pem: Some("rubbish".to_owned()), ..UpstreamTls::default() };
    assert!(upstream_client_config(&nothing).unwrap_err().to_string().contains("no root certificate"));
}
