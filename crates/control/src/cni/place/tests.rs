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
    let new = single.with_extension("conflist");
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
    // A list of that name that is there, too, is not ours to write over.
    fs::write(&edit.path, &theirs).unwrap();
    assert!(place.write(&edit, &read).is_err());
    assert_eq!(fs::read_to_string(&edit.path).unwrap(), theirs);
    fs::remove_file(&edit.path).unwrap();
    let newer = r#"{"cniVersion": "1.0.0", "name": "pods", "type": "macvlan"}"#;
    fs::write(&single, newer).unwrap();
    assert!(place.write(&edit, &read).unwrap_err().contains("05-new.conf was written"));
    assert_eq!(fs::read_to_string(&single).unwrap(), newer);
    let left = fs::read_dir(&place.configurations).unwrap().flatten().map(|entry| entry.file_name());
    assert!(left.into_iter().all(|name| !name.to_string_lossy().contains(UNFINISHED)));
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
