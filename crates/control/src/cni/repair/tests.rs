use serde_json::Value;

use super::*;

const UID: &str = "0f1e2d3c-0000-4000-8000-00000000abcd";

#[test]
fn a_pods_processes_are_known_by_the_group_that_its_kubelet_made() {
    let dashed = UID.replace('-', "_");
    for line in [
        format!(
            "0::/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{dashed}.slice/cri-containerd-ab.scope"
        ),
        format!("0::/kubepods.slice/kubepods-pod{dashed}.slice/crio-ab.scope"),
        format!("11:memory:/kubepods/besteffort/pod{UID}/ab"),
        format!("1:name=systemd:/kubelet/kubepods/pod{UID}/ab"),
    ] {
        assert!(is_of(&line, UID), "{line}");
        assert!(!is_of(&line, "0f1e2d3c-0000-4000-8000-00000000abce"), "{line}");
    }
    for line in [
        "0::/system.slice/kubelet.service".to_owned(),
        format!("0::/user.slice/{UID}"),
        // What a container of another Pod has made.
        format!("0::/kubepods/pod00000000-0000-4000-8000-000000000000/ab/pod{UID}"),
        String::new(),
    ] {
        assert!(!is_of(&line, UID), "{line}");
    }
    assert!(!is_of("0::/kubepods/pod/ab", ""));
}

#[test]
fn the_namespace_is_that_of_a_process() {
    let directory = tempfile::tempdir().unwrap();
    for (name, line) in [("self", UID), ("12", "elsewhere"), ("34", UID)] {
        std::fs::create_dir_all(directory.path().join(name).join("ns")).unwrap();
        std::fs::write(directory.path().join(name).join("ns/net"), name).unwrap();
        std::fs::write(directory.path().join(name).join("cgroup"), format!("0::/kubepods/pod{line}/x\n"))
            .unwrap();
    }
    let held = namespace_of(directory.path(), UID).unwrap();
    std::fs::remove_dir_all(directory.path().join("34")).unwrap();
    assert_eq!(std::io::read_to_string(held).unwrap(), "34", "also when the process has ended");
    assert!(namespace_of(directory.path(), "00000000-0000-4000-8000-000000000000").is_none());
    assert!(namespace_of(Path::new("/nowhere"), UID).is_none());
}

fn pod(phase: &str, check: Value) -> Pod {
    let status = json!({"phase": phase, "initContainerStatuses": [
        {"name": VALIDATION, "image": "", "imageID": "", "ready": false, "restartCount": 1, "state": check["now"], "lastState": check["last"]}
    ]});
    serde_json::from_value(json!({"metadata": {}, "status": status})).unwrap()
}

#[test]
fn broken_is_whose_check_has_failed_and_not_succeeded_since() {
    let ended = |code: i32| json!({"terminated": {"exitCode": code}});
    let waiting = json!({"waiting": {"reason": "CrashLoopBackOff"}});
    for (broken, phase, now, last) in [
        (true, "Pending", ended(1), json!({})),
        (true, "Pending", waiting.clone(), ended(1)),
        (true, "Pending", json!({"running": {}}), ended(1)),
        (false, "Pending", json!({"running": {}}), json!({})),
        (false, "Pending", json!({"waiting": {"reason": "PodInitializing"}}), json!({})),
        (false, "Pending", ended(0), ended(1)),
        (false, "Failed", ended(1), json!({})),
    ] {
        let pod = pod(phase, json!({"now": now, "last": last}));
        assert_eq!(is_broken(&pod), broken, "{phase} {now} {last}");
        assert_eq!(is_checked(&pod), now.get("running").is_some(), "{now}");
        assert_eq!(has_passed(&pod), now == ended(0), "{now}");
    }
    let mut ends = pod("Pending", json!({"now": ended(1), "last": {}}));
    ends.metadata.deletion_timestamp = Some(serde_json::from_value(json!("2026-01-01T00:00:00Z")).unwrap());
    assert!(!is_broken(&ends));
}
