//! No bytes from anywhere may panic a parser: random ones, and good ones with a few bytes changed.

use std::sync::LazyLock;
use std::time::SystemTime;

use proptest::prelude::*;
use rustls_pki_types::CertificateDer;
use x509_parser::certificate::X509Certificate;
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::prelude::FromDer;

use crate::clock::unix_time;
use crate::csr::client::{KeyAndRequest, read_answer};
use crate::testing::*;
use crate::verify::Role;
use crate::{Authority, JoinFile, TrustBundle, WorkloadCertificate, peer_identity, verify_peer};

struct Good {
    ca: Authority,
    own: WorkloadCertificate,
    csr: String,
    join: String,
}

static GOOD: LazyLock<Good> = LazyLock::new(|| {
    let ca = authority();
    let own = ca.issue_key_and_certificate(&id("web"), None).unwrap().certificate;
    let csr = KeyAndRequest::generate(&id("web")).unwrap().csr_pem().to_owned();
    let join = JoinFile::new("h:1", ca.bundle().to_pem(TD), "t".to_owned(), id("web")).to_json();
    Good { ca, own, csr, join }
});

fn changed(good: &[u8], edits: &[(prop::sample::Index, u8)]) -> Vec<u8> {
    let mut bytes = good.to_vec();
    for (at, byte) in edits {
        let at = at.index(bytes.len());
        bytes[at] = *byte;
    }
    bytes
}

fn every_parser(text: &str) {
    let now = SystemTime::now();
    let _ = WorkloadCertificate::from_pem(text, now);
    let _ = TrustBundle::from_pem(TD, text);
    let _ = TrustBundle::from_json(text);
    let _ = JoinFile::parse(text);
    let _ = GOOD.ca.issue_for_csr(text, &id("web"), None);
    let key = crate::pem::private_keys(&GOOD.own.key_pem()).unwrap().remove(0);
    let _ = read_answer(&[text.to_owned()], Some(1), key.clone_key(), &id("web"), now);
    let _ = read_answer(&[GOOD.own.chain_pem(), text.to_owned()], None, key, &id("web"), now);
}

fn edits() -> impl Strategy<Value = Vec<(prop::sample::Index, u8)>> {
    prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6)
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(128) })]

    #[test]
    fn random_text_never_panics(text in ".{0,400}", label in "CERTIFICATE|PRIVATE KEY|CERTIFICATE REQUEST", body in prop::collection::vec(any::<u8>(), 0..300)) {
        every_parser(&text);
        every_parser(&crate::pem::encode(&label, &body));
    }

    #[test]
    fn changed_good_text_never_panics(edits in edits()) {
        for good in [GOOD.own.chain_pem(), GOOD.own.key_pem() + &GOOD.own.chain_pem(), GOOD.csr.clone(), GOOD.join.clone(), GOOD.ca.bundle().to_json()] {
            every_parser(&String::from_utf8_lossy(&changed(good.as_bytes(), &edits)));
        }
    }

    #[test]
    fn a_changed_certificate_never_passes(edits in edits(), random in prop::collection::vec(any::<u8>(), 0..300)) {
        let mut chain = GOOD.own.chain().to_vec();
        let original = chain[0].clone();
        chain[0] = CertificateDer::from(changed(&original, &edits));
        let verdict = verify_peer(&GOOD.ca.bundle(), &chain, Role::Client, unix_time(SystemTime::now()));
        prop_assert!(verdict.is_err() || chain[0] == original);
        let _ = peer_identity(&[CertificateDer::from(random)]);
    }

    // Bytes outside what the signature covers, such as the outermost tag, may change and mean nothing.
    #[test]
    fn a_changed_request_never_gets_another_key_certified(edits in edits()) {
        let der = der_of(&GOOD.csr);
        let altered = changed(&der, &edits);
        if let Ok(issued) = GOOD.ca.issue_for_csr(&crate::pem::encode("CERTIFICATE REQUEST", &altered), &id("web"), None) {
            prop_assert_eq!(certified_key(&issued.chain[0]), requested_key(&der));
        }
    }
}

fn certified_key(certificate: &[u8]) -> Vec<u8> {
    X509Certificate::from_der(certificate).unwrap().1.public_key().raw.to_vec()
}

fn requested_key(request: &[u8]) -> Vec<u8> {
    let (_, request) = X509CertificationRequest::from_der(request).unwrap();
    request.certification_request_info.subject_pki.raw.to_vec()
}

fn der_of(text: &str) -> Vec<u8> {
    use base64::Engine;
    let body: String = text.lines().filter(|line| !line.starts_with('-')).collect();
    base64::engine::general_purpose::STANDARD.decode(body).unwrap()
}
