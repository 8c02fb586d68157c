use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};

use jiff::Timestamp;

use super::super::records::{Away, Behind, HistoryAction, StoredInstance, StoredRule};
use super::*;
use crate::instance::{Protocol, State, sample};

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
    let store = Arc::new(Embedded::open(&path).unwrap());
    let instance = sample("web-1", "web", "v1", "127.0.0.5", 80, Protocol::Http);
    let incarnations = vec!["new".into(), "old".into()];
    let behind = Behind { said: State::Unhealthy, away: Some(Away::Left) };
    let (instance, at) = (instance.into(), Timestamp::now());
    let stored = StoredInstance { instance, by: None, at, incarnations, behind, word: None };
    let changes =
        vec![put("a", 1), Mutation::PutInstance(Box::new(stored.clone())), Mutation::ReserveGeneration(77)];
    store.commit(changes).await.unwrap();
    let contents = Embedded::open(&path).unwrap().load_blocking().unwrap();
    assert_eq!(contents.rules.len(), 1);
    assert_eq!(contents.rules[0].source, "version: 1\n");
    assert_eq!(contents.instances, [stored]);
    assert_eq!(contents.generation, 77);
    assert_eq!(contents.versions["TrafficRules/shop/a"], 1);
}

#[test]
fn history_holds_every_version_and_the_deletion_newest_first() {
    let dir = tempfile::tempdir().unwrap();
    let store = Embedded::open(&dir.path().join("s.redb")).unwrap();
    let entry = HistoryEntry {
        version: 3,
        action: HistoryAction::Deleted,
        source: String::new(),
        ..HistoryEntry::applied(&rule("a", 2))
    };
    let key = "TrafficRules/shop/a".to_owned();
    let delete = Mutation::DeleteRule { key: key.clone(), entry: Box::new(entry) };
    store.commit_blocking(&[put("a", 1), put("a", 2), put("ab", 9), delete]).unwrap();
    let history = store.history_blocking(&key).unwrap();
    let told: Vec<_> = history.iter().map(|entry| (entry.version, entry.action)).collect();
    assert_eq!(told, [(3, HistoryAction::Deleted), (2, HistoryAction::Applied), (1, HistoryAction::Applied)]);
    let contents = store.load_blocking().unwrap();
    assert_eq!(contents.rules.len(), 1, "only the other rule is in force");
    assert_eq!(contents.versions[&key], 3, "counting goes on after a deletion");
}

#[test]
fn a_store_of_a_newer_release_is_refused_and_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s.redb");
    let store = Embedded::open(&path).unwrap();
    store
        .write(|transaction| {
            transaction.open_table(META)?.insert(FORMAT_KEY, FORMAT + 1)?;
            Ok(())
        })
        .unwrap();
    drop(store);
    for _ in 0..2 {
        let error = Embedded::open(&path).err().unwrap();
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
    let error = Embedded::open(&path).err().unwrap().to_string();
    assert!(error.contains("s.redb") && error.contains("damaged"), "{error}");
    assert_eq!(std::fs::read(&path).unwrap(), garbage);
}

#[test]
fn a_truncated_store_is_refused_with_its_name() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s.redb");
    let store = Embedded::open(&path).unwrap();
    store.commit_blocking(&(1..200).map(|n| put("a", n)).collect::<Vec<_>>()).unwrap();
    drop(store);
    let length = std::fs::metadata(&path).unwrap().len();
    std::fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(length / 2).unwrap();
    let opened = Embedded::open(&path).and_then(|store| store.load_blocking());
    let error = opened.err().unwrap().to_string();
    assert!(error.contains("s.redb"), "{error}");
}

#[test]
fn a_record_that_cannot_be_read_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let store = Embedded::open(&dir.path().join("s.redb")).unwrap();
    store
        .write(|transaction| {
            transaction.open_table(RULES)?.insert("TrafficRules/shop/a", b"{".as_slice())?;
            Ok(())
        })
        .unwrap();
    let error = store.load_blocking().err().unwrap().to_string();
    assert!(error.contains("TrafficRules/shop/a"), "{error}");
}

#[test]
fn a_store_serves_one_process() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s.redb");
    let _open = Embedded::open(&path).unwrap();
    let error = Embedded::open(&path).err().unwrap();
    assert!(matches!(error, StoreError::InUse(_)), "{error}");
}

const CHILD: &str = "OUTRIGGER_TEST_STORE_CHILD";

/// Not a test by itself: the process that [`what_was_acknowledged_survives_kill_9`] kills.
#[test]
fn writes_until_it_is_killed_when_asked_to() {
    let Some(path) = std::env::var_os(CHILD) else { return };
    let store = Embedded::open(Path::new(&path)).unwrap();
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
        .args(["--exact", "store::embedded::tests::writes_until_it_is_killed_when_asked_to", "--nocapture"])
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
    let contents = Embedded::open(&path).unwrap().load_blocking().unwrap();
    // One more may have been written than was told.
    assert!(
        (last..=last + 1).contains(&contents.rules[0].version),
        "{} of {last}",
        contents.rules[0].version
    );
}

/// A disk that can be made to refuse writes, as a full one does.
#[derive(Debug)]
struct Disk {
    file: redb::backends::FileBackend,
    full: Arc<std::sync::atomic::AtomicBool>,
}

impl Disk {
    fn room(&self) -> std::io::Result<()> {
        if self.full.load(std::sync::atomic::Ordering::SeqCst) {
            return Err(std::io::Error::from(std::io::ErrorKind::StorageFull));
        }
        Ok(())
    }
}

impl redb::StorageBackend for Disk {
    fn len(&self) -> std::io::Result<u64> {
        self.file.len()
    }
    fn read(&self, offset: u64, out: &mut [u8]) -> std::io::Result<()> {
        self.file.read(offset, out)
    }
    fn set_len(&self, len: u64) -> std::io::Result<()> {
        self.room()?;
        self.file.set_len(len)
    }
    fn sync_data(&self) -> std::io::Result<()> {
        self.file.sync_data()
    }
    fn write(&self, offset: u64, data: &[u8]) -> std::io::Result<()> {
        self.room()?;
        self.file.write(offset, data)
    }
    fn close(&self) -> std::io::Result<()> {
        self.file.close()
    }
}

#[test]
fn a_disk_that_was_full_costs_no_restart_and_loses_nothing() {
    use std::sync::atomic::{AtomicBool, Ordering};
    let dir = tempfile::tempdir().unwrap();
    let full = Arc::new(AtomicBool::new(false));
    let shared = full.clone();
    let open = move |path: &Path| {
        let file = std::fs::OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path);
        let file = redb::backends::FileBackend::new(file.unwrap())?;
        redb::Builder::new().create_with_backend(Disk { file, full: shared.clone() })
    };
    let store = Embedded::open_by(&dir.path().join("s.redb"), Box::new(open)).unwrap();
    let reserve = |n| store.commit_blocking(&[Mutation::ReserveGeneration(n)]);
    reserve(1).unwrap();
    assert_eq!(store.trouble(), None);

    full.store(true, Ordering::SeqCst);
    for n in 2..5 {
        let error = reserve(n).unwrap_err();
        assert!(matches!(error, StoreError::NotWritten { .. }), "{error}");
        let text = error.to_string();
        assert!(!text.contains("damaged") && !text.contains("move it away"), "{text}");
    }
    assert!(store.retry_blocking().is_err());
    assert!(store.trouble().is_some_and(|why| !why.is_empty()));

    full.store(false, Ordering::SeqCst);
    store.retry_blocking().unwrap();
    assert_eq!(store.trouble(), None);
    assert_eq!(store.load_blocking().unwrap().generation, 1, "what was refused is not there");
    reserve(9).unwrap();
    assert_eq!(store.load_blocking().unwrap().generation, 9);
}
