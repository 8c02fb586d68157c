//! Certificates that must not pass, on either side, and what is said about them.

use std::sync::Arc;
use std::time::SystemTime;

use rcgen::{BasicConstraints, IsCa};

use crate::testing::*;
use crate::{
    ClientAuth, Credentials, PeerExpectation, TrustBundle, WorkloadCertificate, client_config, server_config,
};

const WEB: &str = "spiffe://mesh.test/ns/shop/sa/web";

/// Presents a certificate as server and as client to peers that trust `bundle`; returns what each said.
async fn presented(ca: &TestCa, bundle: &TrustBundle, make: impl Fn() -> KeyAndChain) -> [String; 2] {
    let good = || certificate(ca.named(&[WEB]), SystemTime::now());
    let own = Credentials::new(Some(Arc::new(good())), Arc::new(bundle.clone()));
    let client = client_config(&own, PeerExpectation::TrustDomain(TD.to_owned()), &[]).unwrap();
    let (_, as_server) = handshake(raw_server(make()), client).await;

    let server = server_config(&own, &[], ClientAuth::Optional).unwrap();
    let (as_client, _) = handshake(server, raw_client(make(), &ca.bundle())).await;
    [problem(as_server), problem(as_client)]
}

async fn refused_on_both_sides(make: impl Fn(&TestCa) -> KeyAndChain, wanted: &[&str]) {
    let ca = TestCa::new();
    for text in presented(&ca, &ca.bundle(), || make(&ca)).await {
        for part in wanted {
            assert!(text.contains(part), "\"{text}\" does not say \"{part}\"");
        }
    }
}

#[tokio::test]
async fn a_certificate_without_a_uri_is_refused() {
    let dns_only = |ca: &TestCa| {
        ca.leaf(|p| p.subject_alt_names = vec![rcgen::SanType::DnsName("web.shop".try_into().unwrap())])
    };
    refused_on_both_sides(dns_only, &["no SPIFFE id"]).await;
    refused_on_both_sides(|ca| ca.leaf(|_| {}), &["no SPIFFE id"]).await;
}

#[tokio::test]
async fn a_certificate_with_two_uris_is_refused() {
    let two = |ca: &TestCa| ca.named(&[WEB, "spiffe://mesh.test/ns/shop/sa/admin"]);
    refused_on_both_sides(two, &["exactly one", "has 2", "sa/web", "sa/admin"]).await;
}

#[tokio::test]
async fn a_uri_that_is_no_spiffe_id_is_refused() {
    refused_on_both_sides(|ca| ca.named(&["https://mesh.test/web"]), &["no workload identity", "https://"])
        .await;
}

#[tokio::test]
async fn an_expired_certificate_is_refused_with_both_times() {
    let expired = |ca: &TestCa| {
        ca.leaf(|p| {
            p.subject_alt_names = vec![uri_san(WEB)];
            p.not_after = (SystemTime::now() - HOUR / 2).into();
        })
    };
    refused_on_both_sides(expired, &[WEB, "expired at", "now is"]).await;
}

#[tokio::test]
async fn a_certificate_of_the_future_is_refused_with_both_times() {
    let early = |ca: &TestCa| {
        ca.leaf(|p| {
            p.subject_alt_names = vec![uri_san(WEB)];
            p.not_before = (SystemTime::now() + HOUR / 2).into();
        })
    };
    refused_on_both_sides(early, &[WEB, "valid from", "clocks"]).await;
}

#[tokio::test]
async fn a_certificate_authority_is_no_workload() {
    let authority = |ca: &TestCa| {
        ca.leaf(|p| {
            p.subject_alt_names = vec![uri_san(WEB)];
            p.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        })
    };
    refused_on_both_sides(authority, &[WEB, "cA=true"]).await;
}

#[tokio::test]
async fn a_foreign_root_is_refused() {
    let (ours, theirs) = (TestCa::new(), TestCa::new());
    let text = presented(&ours, &ours.bundle(), || theirs.named(&[WEB])).await;
    for text in text {
        assert!(text.contains("does not chain to a root") && text.contains("1 known"), "{text}");
    }
}

#[tokio::test]
async fn an_unknown_trust_domain_is_refused_even_under_our_root() {
    let ca = TestCa::new();
    for text in presented(&ca, &ca.bundle(), || ca.named(&["spiffe://other.test/ns/shop/sa/web"])).await {
        assert!(text.contains("\"other.test\"") && text.contains("trusted: mesh.test"), "{text}");
    }
}

#[tokio::test]
async fn one_trust_domains_root_cannot_vouch_for_another() {
    let (ours, theirs) = (TestCa::new(), TestCa::new());
    let bundle = ours.bundle().with_roots("other.test", [theirs.root.clone()]).unwrap();
    for text in presented(&ours, &bundle, || theirs.named(&[WEB])).await {
        assert!(text.contains("does not chain to a root of trust domain \"mesh.test\""), "{text}");
    }
}

#[tokio::test]
async fn the_wrong_identity_is_refused_by_both_names() {
    let ca = authority();
    let server = server_config(&credentials(&ca, "reviews"), &[], ClientAuth::Required).unwrap();
    let expected = PeerExpectation::Exactly(id("catalog"));
    let client = client_config(&credentials(&ca, "web"), expected, &[]).unwrap();
    let (_, refused) = handshake(server, client).await;
    assert_eq!(problem(refused), format!("expected {}, but the peer is {}", id("catalog"), id("reviews")));
}

#[tokio::test]
async fn a_client_without_a_certificate_is_refused_where_one_is_required() {
    let ca = authority();
    let server = server_config(&credentials(&ca, "catalog"), &[], ClientAuth::Required).unwrap();
    let mut anonymous = credentials(&ca, "web");
    anonymous.certificate = None;
    let client = client_config(&anonymous, PeerExpectation::Exactly(id("catalog")), &[]).unwrap();
    let (refused, _) = handshake(server, client).await;
    assert!(refused.unwrap_err().to_string().contains("peer sent no certificates"));
}

#[tokio::test]
async fn tls_1_2_is_refused() {
    let ca = TestCa::new();
    let own = Credentials::new(
        Some(Arc::new(certificate(ca.named(&[WEB]), SystemTime::now()))),
        Arc::new(ca.bundle()),
    );
    let (key, chain) = ca.named(&[WEB]);
    let mut roots = rustls::RootCertStore::empty();
    roots.add(ca.root.clone()).unwrap();
    let old = rustls::ClientConfig::builder_with_provider(crate::provider::provider())
        .with_protocol_versions(&[&rustls::version::TLS12])
        .unwrap()
        .with_root_certificates(roots)
        .with_client_auth_cert(chain, key)
        .unwrap();
    let (refused, _) =
        handshake(server_config(&own, &[], ClientAuth::Required).unwrap(), Arc::new(old)).await;
    assert!(refused.unwrap_err().to_string().contains("peer is incompatible"));
}

fn parse_error(key: &str, chain: &str) -> String {
    WorkloadCertificate::from_key_and_chain(key, chain, SystemTime::now()).unwrap_err().to_string()
}

#[test]
fn what_is_wrong_with_a_pem_file_is_named() {
    let ca = TestCa::new();
    let good = certificate(ca.named(&[WEB]), SystemTime::now());
    let other = certificate(ca.named(&[WEB]), SystemTime::now());
    let (key, chain) = (good.key_pem(), good.chain_pem());
    assert!(WorkloadCertificate::from_pem(&format!("{chain}{key}"), SystemTime::now()).is_ok());
    assert!(parse_error(&key, "").contains("no certificate"));
    assert!(parse_error("", &chain).contains("no private key"));
    assert!(parse_error(&key.repeat(2), &chain).contains("2 private keys"));
    assert!(
        parse_error(&other.key_pem(), &chain).contains("does not belong to the certificate of spiffe://")
    );
    let pem = |(_, chain): KeyAndChain| crate::pem::encode_certificates(&chain);
    assert!(parse_error(&key, &pem(ca.named(&[]))).contains("no SPIFFE id"));
    assert!(parse_error(&key, &pem(ca.named(&[WEB, WEB]))).contains("has 2"));
    let rubbish = crate::pem::encode("CERTIFICATE", b"rubbish");
    assert!(parse_error(&key, &rubbish).contains("unreadable"));
    let later = SystemTime::now() + 2 * HOUR;
    let expired = WorkloadCertificate::from_key_and_chain(&key, &chain, later).unwrap_err().to_string();
    assert!(expired.contains("expired at"), "{expired}");
}

#[test]
fn a_bundle_takes_only_roots() {
    let ca = TestCa::new();
    let leaf = crate::pem::encode_certificates(&ca.named(&[WEB]).1);
    let error = |text: &str| TrustBundle::from_pem(TD, text).unwrap_err().to_string();
    assert!(error(&leaf).contains("not a certificate authority"));
    assert!(error("").contains("no CERTIFICATE block"));
    assert!(
        TrustBundle::from_pem("Mesh", &ca.bundle().to_pem(TD)).unwrap_err().to_string().contains("\"Mesh\"")
    );
    assert!(ca.bundle().with_alias(TD, "other.test").is_err());
}

#[test]
fn a_key_never_shows_in_debug_output() {
    let own = certificate(TestCa::new().named(&[WEB]), SystemTime::now());
    let debug = format!("{own:?}");
    assert!(debug.contains(WEB) && !debug.contains("key"), "{debug}");
}
