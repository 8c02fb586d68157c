//! The state directory and the join file: what is written can be read, what is damaged is named and ignored.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::time::SystemTime;

use crate::testing::*;
use crate::{JoinFile, StateDir};

#[test]
fn saved_credentials_come_back_with_closed_modes() {
    let directory = tempfile::tempdir().unwrap();
    let state = StateDir::open(directory.path().join("a/state")).unwrap();
    let own = credentials(&authority(), "web");
    state.save(&own).unwrap();
    state.save(&own).unwrap();
    let loaded = state.load(&id("web"), SystemTime::now());
    assert!(loaded.problems.is_empty(), "{:?}", loaded.problems);
    assert_eq!(loaded.certificate.unwrap().serial(), own.certificate.unwrap().serial());
    assert_eq!(loaded.bundle.unwrap(), *own.bundle);
    let mode = |path: &std::path::Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(state.path()), 0o700);
    let names: Vec<_> = fs::read_dir(state.path()).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert_eq!(names.len(), 2, "{names:?}");
    assert!(names.iter().all(|path| mode(path) == 0o600));
}

#[test]
fn an_empty_state_directory_is_no_problem() {
    let directory = tempfile::tempdir().unwrap();
    let loaded = StateDir::open(directory.path()).unwrap().load(&id("web"), SystemTime::now());
    assert!(loaded.certificate.is_none() && loaded.bundle.is_none() && loaded.problems.is_empty());
}

#[test]
fn damaged_foreign_and_expired_state_is_reported_and_ignored() {
    let directory = tempfile::tempdir().unwrap();
    let state = StateDir::open(directory.path()).unwrap();
    let own = credentials(&authority(), "web");
    let problems = |identity: &str, now| {
        let loaded = state.load(&id(identity), now);
        assert!(loaded.certificate.is_none());
        loaded.problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
    };
    let now = SystemTime::now();
    state.save(&own).unwrap();
    let text = problems("admin", now);
    assert!(text.contains("workload.pem") && text.contains("sa/web") && text.contains("sa/admin"), "{text}");
    let text = problems("web", now + 48 * HOUR);
    assert!(text.contains("expired at"), "{text}");

    let workload = directory.path().join("workload.pem");
    let whole = fs::read_to_string(&workload).unwrap();
    for cut in [1, whole.len() / 3, whole.len() / 2, whole.len() - 30] {
        fs::write(&workload, &whole[..cut]).unwrap();
        let text = problems("web", now);
        assert!(text.contains("workload.pem: ignored"), "{cut}: {text}");
    }
    fs::write(&workload, [0xff, 0xfe]).unwrap();
    assert!(problems("web", now).contains("workload.pem"));

    state.save(&own).unwrap();
    fs::write(directory.path().join("bundle.json"), "{\"version\":1").unwrap();
    let text = problems("web", now);
    assert!(text.contains("bundle.json: ignored") && text.contains("no trust bundle beside it"), "{text}");

    let stranger = authority();
    state.save(&crate::Credentials { bundle: stranger.bundle(), ..own }).unwrap();
    let text = problems("web", now);
    assert!(text.contains("does not chain"), "{text}");
}

fn join() -> JoinFile {
    JoinFile::new("control.example:15012", authority().bundle().to_pem(TD), "s3cret".to_owned(), id("web"))
}

#[test]
fn a_join_file_survives_writing_and_reading() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("web.join");
    let join = join();
    join.write(&path).unwrap();
    assert_eq!(JoinFile::read(&path).unwrap(), join);
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(join.bundle().unwrap().roots(TD).len(), 1);
    assert!(!format!("{join:?}").contains("s3cret"));
}

#[test]
fn a_bad_join_file_is_refused_by_field() {
    let good: serde_json::Value = serde_json::from_str(&join().to_json()).unwrap();
    let error = |change: &dyn Fn(&mut serde_json::Map<String, serde_json::Value>)| {
        let mut json = good.clone();
        change(json.as_object_mut().unwrap());
        JoinFile::parse(&json.to_string()).unwrap_err().to_string()
    };
    let set = |field: &'static str, value: &'static str| {
        error(&move |json| drop(json.insert(field.into(), value.into())))
    };
    assert!(error(&|json| drop(json.remove("token"))).contains("token"));
    assert!(error(&|json| drop(json.insert("version".into(), 2.into()))).contains("version is 2"));
    assert!(error(&|json| drop(json.remove("version"))).contains("\"version\" is missing"));
    assert!(error(&|json| drop(json.insert("tokn".into(), 2.into()))).contains("tokn"));
    for address in ["", "host", "host:", "host:0", "host:70000", "a b:1", "::1:5", "[::1:5"] {
        let text = error(&|json| drop(json.insert("address".into(), address.into())));
        assert!(text.contains("not host:port"), "{address}: {text}");
    }
    assert!(set("token", "").contains("\"token\""));
    assert!(set("token", "a\nb").contains("\"token\""));
    assert!(set("roots", "none").contains("\"roots\""));
    assert!(set("trust_domain", "other.test").contains("is not in \"trust_domain\""));
    assert!(set("identity", "web").contains("not a SPIFFE id"));
    assert!(JoinFile::parse("PK\u{3}").unwrap_err().to_string().contains("not JSON"));
    let missing = JoinFile::read(std::path::Path::new("/nonexistent/join")).unwrap_err().to_string();
    assert!(missing.contains("/nonexistent/join"), "{missing}");
    let mut v6 = join();
    v6.address = "[::1]:15012".to_owned();
    assert!(JoinFile::parse(&v6.to_json()).is_ok());
}

#[test]
fn a_state_directory_serves_one_sidecar_at_a_time() {
    let directory = tempfile::tempdir().unwrap();
    let state = StateDir::open(directory.path()).unwrap();
    let held = state.lock().unwrap();
    let said = StateDir::open(directory.path()).unwrap().lock().unwrap_err().to_string();
    assert!(
        said.contains(&format!("process {}", std::process::id())) && said.contains("of its own"),
        "{said}"
    );
    assert!(said.contains(&directory.path().display().to_string()), "{said}");
    drop(held);
    state.lock().unwrap();
}

/// Two authorities of one mesh, whose keys somebody keeps for both.
#[test]
fn an_authority_that_is_kept_elsewhere_goes_on_with_what_becomes_of_it() {
    use crate::authority::files::{self, Step};
    use crate::{Authority, AuthorityOptions};
    let (options, place) = (AuthorityOptions::new(TD), std::path::Path::new("Secret mesh/authority"));
    let made = files::made(&options).unwrap();
    let [one, two] = [0; 2].map(|_| Authority::of_files(&made, place, options.clone()).unwrap());
    let web = one.issue_key_and_certificate(&id("web"), None).unwrap();
    let verify = |by: &Authority, chain: &[_]| {
        let now = crate::clock::unix_time(SystemTime::now());
        crate::verify_peer(&by.bundle(), chain, crate::verify::Role::Client, now).is_ok()
    };
    assert!(verify(&two, web.certificate.chain()));

    assert_eq!(Step::RenewIssuer.of(&made, place, &options).unwrap(), made, "it is young");
    let rotated = Step::RotateRoot.of(&made, place, &options).unwrap();
    let mut changes = two.subscribe();
    assert!(two.adopt(&rotated, place).unwrap() && changes.has_changed().unwrap());
    changes.mark_unchanged();
    assert!(!two.adopt(&rotated, place).unwrap() && !changes.has_changed().unwrap(), "nothing is new");
    assert_eq!(two.fingerprints(), files::fingerprints(&rotated, place).unwrap());
    // Who has not heard of it trusts what it signs, and the other way round.
    let new = two.issue_key_and_certificate(&id("web"), None).unwrap();
    assert!(verify(&one, new.certificate.chain()) && verify(&two, web.certificate.chain()));
    let hour = std::time::Duration::from_secs(3600);
    assert!(
        Step::ForgetOldRoots(hour).of(&rotated, place, &options).is_err(),
        "the present one is not that old"
    );
    let forgotten = Step::ForgetOldRoots(std::time::Duration::ZERO).of(&rotated, place, &options).unwrap();
    two.adopt(&forgotten, place).unwrap();
    assert!(!verify(&two, web.certificate.chain()));

    // What does not fit together is not taken, nor what lacks something.
    let mut mixed = forgotten.clone();
    mixed.insert("issuer.key".into(), made["issuer.key"].clone());
    assert!(two.adopt(&mixed, place).is_err());
    mixed.remove("issuer.key");
    let lacking = two.adopt(&mixed, place).unwrap_err().to_string();
    assert!(lacking.contains("Secret mesh/authority/issuer.key"), "{lacking}");
    assert_eq!(two.fingerprints(), files::fingerprints(&forgotten, place).unwrap());

    // In a directory of before it is found, once it is ours.
    let directory = tempfile::tempdir().unwrap();
    assert_eq!(files::made_in(directory.path()).unwrap(), None);
    let kept = Authority::open(directory.path(), options.clone()).unwrap();
    let found = files::made_in(directory.path()).unwrap().unwrap();
    assert_eq!(files::fingerprints(&found, directory.path()).unwrap(), kept.fingerprints());
    assert!(!files::is_provided(directory.path()));
}

#[test]
fn a_directory_of_somebody_else_is_not_used() {
    let directory = tempfile::tempdir().unwrap();
    let place = directory.path().join("theirs");
    fs::create_dir(&place).unwrap();
    // Only root gives away; for anybody else the directory of root is somebody else's.
    let (place, owner) = match std::os::unix::fs::chown(&place, Some(65534), None) {
        Ok(()) => (place, 65534),
        Err(_) => ("/".into(), 0),
    };
    let said = StateDir::open(&place).unwrap_err().to_string();
    assert!(said.contains(&format!("belongs to user {owner}")) && said.contains("chown"), "{said}");
}
