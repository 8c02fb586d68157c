use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};

use jiff::Timestamp;

use super::records::HistoryAction;
use super::*;
use crate::instance::{Protocol, sample};

fn rule(name: &str, version: u64) -> StoredRule {
    StoredRule {
        key: format!("TrafficRules/shop/{name}"),
        version,
        generation: version,
        author: "ann".into(),
        at: Timestamp::now(),
        file: None,
        namespace: "shop".into(),
        source: format!("version: {version}\n"),
        json: serde_json::json!({ "version": version }),
    }
}

fn put(name: &str, version: u64) -> Mutation {
    Mutation::PutRule(Box::new(rule(name, version)))
}

#[tokio::test]
async fn what_was_committed_is_there_after_a_reopen() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s.redb");
    let store = Store::open(&path).unwrap();
    let instance = sample("web-1", "web", "v1", "127.0.0.5", 80, Protocol::Http);
    let stored = StoredInstance { instance, by: None, at: Timestamp::now() };
    let changes =
        vec![put("a", 1), Mutation::PutInstance(Box::new(stored.clone())), Mutation::ReserveGeneration(77)];
    store.commit(changes).await.unwrap();
    drop(store);
    let contents = Store::open(&path).unwrap().load().unwrap();
    assert_eq!(contents.rules.len(), 1);
    assert_eq!(contents.rules[0].source, "version: 1\n");
    assert_eq!(contents.instances, [stored]);
    assert_eq!(contents.generation, 77);
    assert_eq!(contents.versions["TrafficRules/shop/a"], 1);
}

#[test]
fn history_holds_every_version_and_the_deletion_newest_first() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(&dir.path().join("s.redb")).unwrap();
    let entry = HistoryEntry {
        version: 3,
        action: HistoryAction::Deleted,
        source: String::new(),
        ..HistoryEntry::applied(&rule("a", 2))
    };
    let key = "TrafficRules/shop/a".to_owned();
    let delete = Mutation::DeleteRule { key: key.clone(), entry: Box::new(entry) };
    store.commit_blocking(&[put("a", 1), put("a", 2), put("ab", 9), delete]).unwrap();
    let history = store.history(&key).unwrap();
    let told: Vec<_> = history.iter().map(|entry| (entry.version, entry.action)).collect();
    assert_eq!(told, [(3, HistoryAction::Deleted), (2, HistoryAction::Applied), (1, HistoryAction::Applied)]);
    let contents = store.load().unwrap();
    assert_eq!(contents.rules.len(), 1, "only the other rule is in force");
    assert_eq!(contents.versions[&key], 3, "counting goes on after a deletion");
}

#[test]
fn a_store_of_a_newer_release_is_refused_and_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s.redb");
    let store = Store::open(&path).unwrap();
    store
        .write(|transaction| {
            transaction.open_table(META)?.insert(FORMAT_KEY, FORMAT + 1)?;
            Ok(())
        })
        .unwrap();
    drop(store);
    for _ in 0..2 {
        let error = Store::open(&path).err().unwrap();
        assert!(matches!(error, StoreError::Newer { found, .. } if found == FORMAT + 1), "{error}");
        assert!(error.to_string().contains("newer release"), "{error}");
    }
}

#[test]
fn a_damaged_file_is_named_and_not_overwritten() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s.redb");
    let garbage = b"this is no database, but it is somebody's file".repeat(500);
    std::fs::write(&path, &garbage).unwrap();
    let error = Store::open(&path).err().unwrap().to_string();
    assert!(error.contains("s.redb") && error.contains("damaged"), "{error}");
    assert_eq!(std::fs::read(&path).unwrap(), garbage);
}

#[test]
fn a_truncated_store_is_refused_with_its_name() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s.redb");
    let store = Store::open(&path).unwrap();
    store.commit_blocking(&(1..200).map(|n| put("a", n)).collect::<Vec<_>>()).unwrap();
    drop(store);
    let length = std::fs::metadata(&path).unwrap().len();
    std::fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(length / 2).unwrap();
    let opened = Store::open(&path).and_then(|store| store.load());
    let error = opened.err().unwrap().to_string();
    assert!(error.contains("s.redb"), "{error}");
}

#[test]
fn a_record_that_cannot_be_read_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(&dir.path().join("s.redb")).unwrap();
    store
        .write(|transaction| {
            transaction.open_table(RULES)?.insert("TrafficRules/shop/a", b"{".as_slice())?;
            Ok(())
        })
        .unwrap();
    let error = store.load().err().unwrap().to_string();
    assert!(error.contains("TrafficRules/shop/a"), "{error}");
}

#[test]
fn a_store_serves_one_process() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s.redb");
    let _open = Store::open(&path).unwrap();
    let error = Store::open(&path).err().unwrap();
    assert!(matches!(error, StoreError::InUse(_)), "{error}");
}

const CHILD: &str = "OUTRIGGER_TEST_STORE_CHILD";

/// Not a test by itself: the process that [`what_was_acknowledged_survives_kill_9`] kills.
#[test]
fn writes_until_it_is_killed_when_asked_to() {
    let Some(path) = std::env::var_os(CHILD) else { return };
    let store = Store::open(Path::new(&path)).unwrap();
    let mut out = std::io::stdout();
    for version in 1.. {
        store.commit_blocking(&[put("a", version)]).unwrap();
        writeln!(out, "\nacknowledged {version}").unwrap();
        out.flush().unwrap();
    }
}

#[test]
fn what_was_acknowledged_survives_kill_9() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s.redb");
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "store::tests::writes_until_it_is_killed_when_asked_to", "--nocapture"])
        .env(CHILD, &path)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut last = 0;
    for line in BufReader::new(child.stdout.take().unwrap()).lines() {
        if let Some(version) = line.unwrap().strip_prefix("acknowledged ") {
            last = version.parse().unwrap();
            if last == 20 {
                child.kill().unwrap();
            }
        }
    }
    child.wait().unwrap();
    assert!(last >= 20, "the child stopped by itself after {last}");
    let contents = Store::open(&path).unwrap().load().unwrap();
    // One more may have been written than was told.
    assert!(
        (last..=last + 1).contains(&contents.rules[0].version),
        "{} of {last}",
        contents.rules[0].version
    );
}
