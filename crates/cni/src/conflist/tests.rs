use super::*;

fn ours() -> Value {
    entry(Path::new("/run/outrigger-cni/agent.sock"), &["kube-system".to_owned()])
}

fn directory(files: &[(&str, &str)]) -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    for (name, text) in files {
        std::fs::write(directory.path().join(name), text).unwrap();
    }
    directory
}

const LIST: &str = r#"{"cniVersion": "1.0.0", "name": "pods", "plugins": [{"type": "ptp"}, {"type": "portmap", "capabilities": {"portMappings": true}}]}"#;
const ONE: &str =
    r#"{"cniVersion": "0.4.0", "name": "pods", "type": "flannel", "delegate": {"isDefaultGateway": true}}"#;

fn only(path: &str, text: &str) -> Primary {
    Primary { path: path.into(), network: serde_json::from_str(text).unwrap(), text: text.into() }
}

#[test]
fn the_first_that_can_be_read_as_a_network_counts() {
    for (files, first) in [
        (&[][..], None),
        (&[("README", LIST), ("10-a.conflist~", LIST)][..], None),
        (&[("20-b.conflist", LIST), ("10-a.conf", ONE)][..], Some("10-a.conf")),
        (&[("20-b.conflist", LIST), ("10-a.conf", "{")][..], Some("20-b.conflist")),
        // A list under the name of a single one is none, and the other way round.
        (&[("20-b.conflist", LIST), ("10-a.conf", LIST), ("15-c.conflist", ONE)][..], Some("20-b.conflist")),
        (&[("20-b.json", ONE), ("10-a.conflist", r#"{"plugins": []}"#)][..], Some("20-b.json")),
    ] {
        let directory = directory(files);
        let found = primary(directory.path()).unwrap().map(|found| found.path);
        assert_eq!(found, first.map(|name| directory.path().join(name)), "{files:?}");
    }
    assert!(primary(Path::new("/nowhere")).is_err());
}

#[test]
fn the_entry_goes_to_the_end_once_and_is_put_right_where_it_was_changed() {
    let edit = insert(&only("/d/10-pods.conflist", LIST), &ours()).unwrap().unwrap();
    assert_eq!((edit.path.as_path(), edit.instead_of.as_deref()), (Path::new("/d/10-pods.conflist"), None));
    let made: Value = serde_json::from_str(&edit.text).unwrap();
    let types: Vec<&Value> =
        made["plugins"].as_array().unwrap().iter().map(|plugin| &plugin["type"]).collect();
    assert_eq!(types, ["ptp", "portmap", "outrigger-cni"]);
    assert_eq!(made["plugins"][1]["capabilities"], json!({"portMappings": true}), "others stay as they are");
    let there = only("/d/10-pods.conflist", &edit.text);
    assert_eq!(insert(&there, &ours()), Ok(None), "it is there");
    // Of another version, with somebody behind it.
    let mut old = there.clone();
    let plugins = old.network["plugins"].as_array_mut().unwrap();
    plugins[2]["socket"] = "/elsewhere".into();
    plugins.push(json!({"type": "tuning"}));
    let made: Value = serde_json::from_str(&insert(&old, &ours()).unwrap().unwrap().text).unwrap();
    let types: Vec<&Value> =
        made["plugins"].as_array().unwrap().iter().map(|plugin| &plugin["type"]).collect();
    assert_eq!(types, ["ptp", "portmap", "tuning", "outrigger-cni"]);
    assert_eq!(made["plugins"][3], ours());
}

#[test]
fn a_single_plugin_becomes_a_list_that_takes_its_place() {
    let edit = insert(&only("/d/10-flannel.conf", ONE), &ours()).unwrap().unwrap();
    assert_eq!(edit.path, Path::new("/d/10-flannel.conf.conflist"));
    assert_eq!(edit.instead_of.as_deref(), Some(Path::new("/d/10-flannel.conf")));
    // Between what its owner writes anew and a list that he may have, too.
    let all = directory(&[
        ("10-flannel.conflist", LIST),
        ("10-flannel.conf.conflist", &edit.text),
        ("10-flannel.conf", ONE),
    ]);
    for name in ["10-flannel.conf", "10-flannel.conf.conflist", "10-flannel.conflist"] {
        let path = all.path().join(name);
        assert_eq!(primary(all.path()).unwrap().unwrap().path, path);
        std::fs::remove_file(path).unwrap();
    }
    let made: Value = serde_json::from_str(&edit.text).unwrap();
    let first = json!({"type": "flannel", "delegate": {"isDefaultGateway": true}});
    assert_eq!(made, json!({"cniVersion": "0.4.0", "name": "pods", "plugins": [first, ours()]}));
}

#[test]
fn the_entry_is_taken_out_and_nothing_else() {
    let edit = insert(&only("/d/10-pods.conflist", LIST), &ours()).unwrap().unwrap();
    let gone = remove(&only("/d/10-pods.conflist", &edit.text)).unwrap();
    let (gone, before): (Value, Value) =
        (serde_json::from_str(&gone.text).unwrap(), serde_json::from_str(LIST).unwrap());
    assert_eq!(gone, before);
    assert_eq!(remove(&only("/d/10-pods.conflist", LIST)), None, "it was not there");
}

#[test]
fn alone_it_stands_behind_nobody() {
    let alone = json!({"cniVersion": "1.0.0", "name": "pods", "plugins": [ours()]}).to_string();
    let error = insert(&only("/d/10-pods.conflist", &alone), &ours()).unwrap_err();
    assert!(error.contains("10-pods.conflist") && error.contains("in front"), "{error}");
    assert_eq!(remove(&only("/d/10-pods.conflist", &alone)), None);
}

#[test]
fn where_it_would_refuse_every_pod_it_is_not_put() {
    for version in ["\"0.2.0\"", "\"\"", "null", "\"2.0.0\""] {
        let old = ONE.replace("\"0.4.0\"", version);
        let error = insert(&only("/d/10-flannel.conf", &old), &ours()).unwrap_err();
        assert!(error.contains("/d/10-flannel.conf: cniVersion: ") && error.contains("1.1.0"), "{error}");
    }
}
