//! What the authority issues, keeps on disk, and does when roots rotate.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rcgen::{BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, KeyPair, SanType};
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

use crate::clock::unix_time;
use crate::csr::client::KeyAndRequest;
use crate::testing::*;
use crate::verify::Role;
use crate::{Authority, AuthorityOptions, CredentialStore, keep_server_certificate, verify_peer};

fn names(certificate: &X509Certificate<'_>) -> Vec<String> {
    let san = certificate.subject_alternative_name().unwrap().unwrap();
    san.value
        .general_names
        .iter()
        .map(|name| match name {
            GeneralName::URI(uri) => format!("uri {uri}"),
            GeneralName::DNSName(name) => format!("dns {name}"),
            GeneralName::IPAddress(ip) => format!("ip {ip:?}"),
            other => format!("{other:?}"),
        })
        .collect()
}

fn evil_csr() -> String {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(vec!["control-plane.example".to_owned()]).unwrap();
    params.subject_alt_names.push(uri_san("spiffe://mesh.test/ns/shop/sa/admin"));
    params.subject_alt_names.push(SanType::Rfc822Name("root@example".try_into().unwrap()));
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::CodeSigning, ExtendedKeyUsagePurpose::Any];
    params.serialize_request(&key).unwrap().pem().unwrap()
}

#[test]
fn a_csr_with_evil_names_gets_the_policys_identity_and_nothing_else() {
    let ca = authority();
    let issued = ca.issue_for_csr(&evil_csr(), &id("web"), None).unwrap();
    let (_, leaf) = X509Certificate::from_der(&issued.chain[0]).unwrap();
    assert_eq!(names(&leaf), [format!("uri {}", id("web"))]);
    assert!(
        leaf.subject_alternative_name().unwrap().unwrap().critical,
        "an empty subject makes the SAN critical"
    );
    assert!(!leaf.is_ca());
    let usage = leaf.extended_key_usage().unwrap().unwrap().value;
    assert!(usage.client_auth && usage.server_auth && !usage.any && !usage.code_signing);
    assert!(leaf.subject().iter().next().is_none());
    let got = verify_peer(&issued.bundle, &issued.chain, Role::Client, unix_time(SystemTime::now())).unwrap();
    assert_eq!(got, id("web"));
}

#[test]
fn a_csr_whose_key_the_caller_does_not_hold_is_refused() {
    let ca = authority();
    let csr = KeyAndRequest::generate(&id("web")).unwrap();
    let mut der = pem_body(csr.csr_pem());
    let last = der.len() - 1;
    der[last] ^= 1;
    let forged = crate::pem::encode("CERTIFICATE REQUEST", &der);
    let error = ca.issue_for_csr(&forged, &id("web"), None).unwrap_err().to_string();
    assert!(error.contains("does not hold the private key"), "{error}");
    let error = ca.issue_for_csr("rubbish", &id("web"), None).unwrap_err().to_string();
    assert!(error.contains("PKCS#10"), "{error}");
}

fn pem_body(text: &str) -> Vec<u8> {
    use base64::Engine;
    let body: String = text.lines().filter(|line| !line.starts_with('-')).collect();
    base64::engine::general_purpose::STANDARD.decode(body).unwrap()
}

#[test]
fn validity_is_policy_backdated_and_capped() {
    let mut options = AuthorityOptions::new(TD);
    options.issuer_lifetime = Duration::from_secs(10 * 24 * 3600);
    let ca = Authority::in_memory(options).unwrap();
    let life = |ttl| {
        let own = ca.issue_key_and_certificate(&id("web"), ttl).unwrap().certificate;
        let now = SystemTime::now();
        (now.duration_since(own.not_before()).unwrap().as_secs(), own.remaining(now).as_secs())
    };
    let near = |value: u64, wanted: u64| value.abs_diff(wanted) <= 30;
    let (age, left) = life(None);
    assert!(near(age, 300) && near(left, 24 * 3600), "{age} {left}");
    let (_, left) = life(Some(HOUR));
    assert!(near(left, 3600), "{left}");
    let (_, left) = life(Some(Duration::from_secs(u64::MAX >> 8)));
    assert!(near(left, 10 * 24 * 3600), "capped by the issuer's end: {left}");
}

#[test]
fn serials_are_random_and_other_trust_domains_are_refused() {
    let ca = authority();
    let issue = || ca.issue_key_and_certificate(&id("web"), None).unwrap().certificate;
    let (a, b) = (issue(), issue());
    assert_ne!(a.serial(), b.serial());
    assert_eq!(a.serial().len(), 32);
    let foreign = outrigger_model::identity::SpiffeId::workload("other.test", "shop", "web").unwrap();
    let error = ca.issue_key_and_certificate(&foreign, None).unwrap_err().to_string();
    assert!(error.contains("mesh.test") && error.contains("other.test"), "{error}");
}

#[test]
fn the_control_planes_certificate_has_one_uri_and_its_names() {
    let ca = authority();
    let issued = ca.server_certificate(&["control.example".to_owned()], &[[10, 0, 0, 1].into()]).unwrap();
    let (_, leaf) = X509Certificate::from_der(&issued.certificate.chain()[0]).unwrap();
    let wanted = [
        "uri spiffe://mesh.test/ns/outrigger-system/sa/outrigger-control",
        "dns control.example",
        "ip [10, 0, 0, 1]",
    ];
    assert_eq!(names(&leaf), wanted);
}

fn files(directory: &Path) -> Vec<(String, u32)> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        found.push((path.display().to_string(), fs::metadata(&path).unwrap().permissions().mode() & 0o777));
        if path.is_dir() {
            found.extend(files(&path));
        }
    }
    found
}

#[test]
fn a_restarted_authority_keeps_its_root_and_closes_its_files() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("ca");
    let first = Authority::open(&path, AuthorityOptions::new(TD)).unwrap();
    // What a crash in the middle of a rotation leaves behind.
    fs::create_dir(path.join(".new-1")).unwrap();
    let again = Authority::open(&path, AuthorityOptions::new(TD)).unwrap();
    assert_eq!(first.bundle(), again.bundle());
    fs::remove_dir(path.join(".new-1")).unwrap();
    for (name, mode) in files(&path) {
        let wanted = if Path::new(&name).is_dir() { 0o700 } else { 0o600 };
        assert_eq!(mode, wanted, "{name}");
    }
}

#[test]
fn an_issuer_near_its_end_is_renewed_at_start_under_the_same_root() {
    let directory = tempfile::tempdir().unwrap();
    let mut options = AuthorityOptions::new(TD);
    options.issuer_lifetime = HOUR;
    let old = Authority::open(directory.path(), options.clone()).unwrap();
    options.issuer_lifetime = 10 * HOUR;
    let renewed = Authority::open(directory.path(), options).unwrap();
    assert_eq!(old.bundle(), renewed.bundle());
    let left = renewed.issue_key_and_certificate(&id("web"), Some(9 * HOUR)).unwrap();
    assert!(left.certificate.remaining(SystemTime::now()) > 8 * HOUR);
}

#[test]
fn a_provided_authority_is_used_and_cannot_be_rotated_by_us() {
    let source = tempfile::tempdir().unwrap();
    let made = Authority::open(source.path(), AuthorityOptions::new(TD)).unwrap();
    let generation = source.path().join("generation-1");
    let provided = tempfile::tempdir().unwrap();
    for name in ["root.pem", "issuer.pem", "issuer.key"] {
        fs::copy(generation.join(name), provided.path().join(name)).unwrap();
    }
    let used = Authority::open(provided.path(), AuthorityOptions::new(TD)).unwrap();
    assert_eq!(used.bundle(), made.bundle());
    let error = used.rotate_root().unwrap_err().to_string();
    assert!(error.contains("root.pem"), "{error}");

    fs::remove_file(provided.path().join("issuer.key")).unwrap();
    let error = Authority::open(provided.path(), AuthorityOptions::new(TD)).err().unwrap().to_string();
    assert!(error.contains("issuer.key"), "{error}");
    fs::write(provided.path().join("issuer.key"), KeyPair::generate().unwrap().serialize_pem()).unwrap();
    let error = Authority::open(provided.path(), AuthorityOptions::new(TD)).err().unwrap().to_string();
    assert!(error.contains("do not fit together"), "{error}");
    fs::remove_file(provided.path().join("root.pem")).unwrap();
    let error = Authority::open(provided.path(), AuthorityOptions::new(TD)).err().unwrap().to_string();
    assert!(error.contains("root.pem is not"), "{error}");
}

#[test]
fn a_rotated_root_is_believed_by_peers_that_know_only_the_old_one() {
    let directory = tempfile::tempdir().unwrap();
    let ca = Authority::open(directory.path(), AuthorityOptions::new(TD)).unwrap();
    let old_bundle = ca.bundle();
    let old_leaf = ca.issue_key_and_certificate(&id("web"), None).unwrap().certificate;
    ca.rotate_root().unwrap();
    let new_leaf = ca.issue_key_and_certificate(&id("web"), None).unwrap().certificate;
    let now = unix_time(SystemTime::now());
    let check = |bundle: &crate::TrustBundle, own: &crate::WorkloadCertificate| {
        verify_peer(bundle, own.chain(), Role::Client, now).is_ok()
    };
    assert_eq!(ca.bundle().roots(TD).len(), 2);
    assert!(check(&old_bundle, &new_leaf), "the old root vouches for the new one");
    assert!(check(&ca.bundle(), &old_leaf) && check(&ca.bundle(), &new_leaf));

    let restarted = Authority::open(directory.path(), AuthorityOptions::new(TD)).unwrap();
    assert_eq!(restarted.bundle(), ca.bundle());
    let leaf = restarted.issue_key_and_certificate(&id("web"), None).unwrap().certificate;
    assert!(check(&old_bundle, &leaf));

    ca.forget_old_roots().unwrap();
    assert_eq!(ca.bundle().roots(TD).len(), 1);
    let last = ca.issue_key_and_certificate(&id("web"), None).unwrap().certificate;
    assert!(!check(&ca.bundle(), &old_leaf) && !check(&old_bundle, &last) && check(&ca.bundle(), &new_leaf));
}

#[tokio::test]
async fn the_control_planes_own_certificate_follows_a_rotation() {
    let ca = Arc::new(authority());
    let store = CredentialStore::default();
    let keeping = tokio::spawn(keep_server_certificate(ca.clone(), store.clone(), vec![], vec![]));
    let first = store.ready().await;
    assert_eq!(first.bundle.roots(TD).len(), 1);
    let mut changed = store.subscribe();
    changed.mark_unchanged();
    ca.rotate_root().unwrap();
    while store.load().bundle.roots(TD).len() != 2 {
        changed.changed().await.unwrap();
    }
    keeping.abort();
}
