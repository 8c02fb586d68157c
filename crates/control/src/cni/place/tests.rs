use super::*;
use outrigger_telemetry::ready::Readiness;
use serde_json::json;

const LIST: &str = r#"{"cniVersion": "1.0.0", "name": "pods", "plugins": [{"type": "ptp"}]}"#;

fn place(directory: &Path) -> Place {
    for name in ["net.d", "bin"] {
        fs::create_dir(directory.join(name)).unwrap();
    }
    fs::write(directory.join("built"), "a program").unwrap();
    Place {
        configurations: directory.join("net.d"),
        plugins: directory.join("bin"),
        binary: directory.join("built"),
        entry: json!({"type": "outrigger-cni"}),
    }
}

fn types(path: &Path) -> Vec<String> {
    let list: Value = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
    let all = list["plugins"].as_array().unwrap().iter();
    all.map(|plugin| plugin["type"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn all_is_put_there_once_and_taken_out_again_but_for_the_binary() {
    let directory = tempfile::tempdir().unwrap();
    let place = place(directory.path());
    let error = place.put().unwrap_err();
    assert!(error.contains("no network configuration yet"), "{error}");
    let installed = place.plugins.join("outrigger-cni");
    assert_eq!(fs::read(&installed).unwrap(), b"a program");
    assert_eq!(installed.metadata().unwrap().permissions().mode() & 0o777, 0o755);

    let list = place.configurations.join("10-pods.conflist");
    fs::write(&list, LIST).unwrap();
    fs::set_permissions(&list, fs::Permissions::from_mode(0o600)).unwrap();
    assert_eq!(place.put(), Ok(list.clone()));
    assert_eq!(types(&list), ["ptp", "outrigger-cni"]);
    assert_eq!(list.metadata().unwrap().permissions().mode() & 0o777, 0o600, "secrets may be in it");
    let before = list.metadata().unwrap().modified().unwrap();
    assert_eq!(place.put(), Ok(list.clone()));
    assert_eq!(list.metadata().unwrap().modified().unwrap(), before, "nothing is written twice");

    // A new release.
    fs::write(&place.binary, "another program").unwrap();
    place.put().unwrap();
    assert_eq!(fs::read(&installed).unwrap(), b"another program");

    // A new primary one, of a single plugin; the other still has us.
    let single = place.configurations.join("05-new.conf");
    fs::write(&single, r#"{"cniVersion": "1.0.0", "name": "pods", "type": "bridge"}"#).unwrap();
    let new = place.configurations.join("05-new.conf.conflist");
    assert_eq!(place.put(), Ok(new.clone()));
    assert!(!single.exists());
    assert_eq!(types(&new), ["bridge", "outrigger-cni"]);
    place.take_out().unwrap();
    assert_eq!((types(&new), types(&list)), (vec!["bridge".to_owned()], vec!["ptp".to_owned()]));
    assert!(installed.exists());
    let left = fs::read_dir(&place.configurations).unwrap().count();
    assert_eq!(left, 2, "nothing unfinished is left");
}

/// Who writes between our look and our word loses nothing, in one file or in the one that takes its place.
#[test]
fn what_somebody_else_writes_meanwhile_is_kept() {
    let directory = tempfile::tempdir().unwrap();
    let place = place(directory.path());
    let list = place.configurations.join("10-pods.conflist");
    fs::write(&list, LIST).unwrap();
    let read = conflist::primary(&place.configurations).unwrap().unwrap();
    let edit = conflist::insert(&read, &place.entry).unwrap().unwrap();
    let theirs = LIST.replace("ptp", "bridge");
    fs::write(&list, &theirs).unwrap();
    let why = place.write(&edit, &read).unwrap_err();
    assert!(why.contains("was written by somebody else"), "{why}");
    assert_eq!(fs::read_to_string(&list).unwrap(), theirs);
    place.put().unwrap();
    assert_eq!(types(&list), ["bridge", "outrigger-cni"]);

    let single = place.configurations.join("05-new.conf");
    fs::write(&single, r#"{"cniVersion": "1.0.0", "name": "pods", "type": "ptp"}"#).unwrap();
    let read = conflist::primary(&place.configurations).unwrap().unwrap();
    let edit = conflist::insert(&read, &place.entry).unwrap().unwrap();
    let newer = r#"{"cniVersion": "1.0.0", "name": "pods", "type": "macvlan"}"#;
    fs::write(&single, newer).unwrap();
    assert!(place.write(&edit, &read).unwrap_err().contains("05-new.conf was written"));
    assert_eq!(fs::read_to_string(&single).unwrap(), newer);
    let left = fs::read_dir(&place.configurations).unwrap().flatten().map(|entry| entry.file_name());
    assert!(left.into_iter().all(|name| !name.to_string_lossy().contains(UNFINISHED)));
}

/// As its owner does when he starts again, whatever we have made of it before. A list of his that is there, too, is his.
#[test]
fn a_single_plugin_that_its_owner_writes_anew_is_taken_in_again() {
    let directory = tempfile::tempdir().unwrap();
    let place = place(directory.path());
    let his = place.configurations.join("05-new.conflist");
    fs::write(&his, LIST).unwrap();
    let single = place.configurations.join("05-new.conf");
    let ours = place.configurations.join("05-new.conf.conflist");
    for of in ["ptp", "bridge", "bridge"] {
        fs::write(&single, format!(r#"{{"cniVersion": "1.0.0", "name": "pods", "type": "{of}"}}"#)).unwrap();
        assert_eq!(place.put(), Ok(ours.clone()));
        assert_eq!((types(&ours), single.exists()), (vec![of.to_owned(), "outrigger-cni".to_owned()], false));
    }
    // And after the plugin was taken out.
    place.take_out().unwrap();
    fs::write(&single, r#"{"cniVersion": "1.0.0", "name": "pods", "type": "macvlan"}"#).unwrap();
    assert_eq!(place.put(), Ok(ours.clone()));
    assert_eq!(types(&ours), ["macvlan", "outrigger-cni"]);
    assert_eq!(fs::read_to_string(&his).unwrap(), LIST);
    assert_eq!(fs::read_dir(&place.configurations).unwrap().count(), 2);
}

/// A look that fails says so, and waits for news: its own files are none.
#[tokio::test]
async fn what_cannot_be_put_in_place_is_not_tried_without_end() {
    let directory = tempfile::tempdir().unwrap();
    let place = place(directory.path());
    fs::write(place.configurations.join("10-pods.conflist"), LIST).unwrap();
    // Nothing takes the place of a directory that has something in it.
    fs::create_dir_all(place.plugins.join("outrigger-cni/there")).unwrap();
    let readiness = Readiness::new();
    let plugins = place.plugins.clone();
    let (heard, mut written) = tokio::sync::mpsc::channel(16);
    let mut watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
        if event.is_ok_and(|event| event.kind.is_create()) {
            let _ = heard.try_send(());
        }
    })
    .unwrap();
    notify::Watcher::watch(&mut watcher, &plugins, notify::RecursiveMode::NonRecursive).unwrap();
    let kept = tokio::spawn(place.keep(readiness.register("place")));
    let patience = Duration::from_secs(20);
    tokio::time::timeout(patience, written.recv()).await.unwrap().unwrap();
    // Ten times as long as it waits after news.
    let again = tokio::time::timeout(SETTLE * 10, written.recv()).await;
    assert!(again.is_err(), "it tries again without news");
    kept.abort();
}

/// What was set aside a moment ago is not what somebody has left, however old its text is.
#[test]
fn what_is_swept_away_has_been_unfinished_for_long() {
    let directory = tempfile::tempdir().unwrap();
    let aside = Unfinished::named(directory.path());
    let old = SystemTime::now() - 2 * LEFT;
    let file = File::create(&aside.0).unwrap();
    file.set_modified(old).unwrap();
    sweep(directory.path());
    assert!(aside.0.exists());
}

#[tokio::test]
async fn whoever_writes_the_configuration_anew_has_it_put_back() {
    let directory = tempfile::tempdir().unwrap();
    let place = place(directory.path());
    let list = place.configurations.join("10-pods.conflist");
    let readiness = Readiness::new();
    let mut bell = Bell::new("the test's directory", Duration::ZERO);
    bell.watch(&place.configurations);
    let kept = tokio::spawn(place.keep(readiness.register("place")));
    let mut until = async |wanted: &[&str]| {
        let seen = async {
            while !list.exists() || types(&list) != wanted {
                bell.rings().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), seen).await.unwrap();
    };
    assert!(!readiness.report().await.is_ready());
    for text in [LIST, &LIST.replace("ptp", "bridge"), LIST] {
        let unfinished = list.with_extension("tmp");
        fs::write(&unfinished, text).unwrap();
        fs::rename(&unfinished, &list).unwrap();
        until(&[if text.contains("ptp") { "ptp" } else { "bridge" }, "outrigger-cni"]).await;
    }
    tokio::time::timeout(Duration::from_secs(20), async {
        while !readiness.report().await.is_ready() {
            tokio::task::yield_now().await;
        }
    })
    .await
    .unwrap();
    kept.abort();
}
