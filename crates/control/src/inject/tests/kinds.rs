//! Native or plain, by the settings, the Pod and the cluster.

use super::*;

fn with_release(pod: &Value, settings: &InjectSettings, kubernetes: Option<&str>) -> (Value, Vec<String>) {
    let namespace = Namespace::enabled("shop", None);
    let kubernetes = kubernetes.map(|text| text.parse().unwrap());
    let subject =
        Subject { pod, namespace: &namespace, workload: None, kubernetes, by_hand: false, earlier: None };
    match inject(subject, settings, &mesh()).unwrap() {
        Injection::Injected { pod, warnings } => (*pod, warnings),
        Injection::LeftAlone(why) => panic!("{why}"),
    }
}

#[test]
fn the_cluster_the_setting_or_the_pod_say_what_kind_a_sidecar_is() {
    use NativeSidecar::{Auto, No, Yes};
    for (setting, annotation, kubernetes, native, warned) in [
        (Auto, None, None, true, None),
        (Auto, None, Some("1.29"), true, None),
        (Auto, None, Some("1.33"), true, None),
        (Auto, None, Some("1.28"), false, Some("is a plain container, since there is Kubernetes 1.28")),
        (Yes, None, Some("1.28"), true, Some("which knows none: the Pod will not get beyond it")),
        (No, None, Some("1.33"), false, None),
        (No, None, Some("1.28"), false, None),
        (Auto, Some("true"), Some("1.28"), true, Some("which knows none")),
        (No, Some("true"), Some("1.30"), true, None),
        (Auto, Some("false"), Some("1.33"), false, None),
        // It was asked for, so nobody wonders.
        (Auto, Some("false"), Some("1.28"), false, None),
    ] {
        let mut pod = pod();
        if let Some(word) = annotation {
            pod["metadata"]["annotations"] = json!({"sidecar.istio.io/nativeSidecar": word});
        }
        let settings = InjectSettings { native_sidecar: setting, ..settings() };
        let (after, warnings) = with_release(&pod, &settings, kubernetes);
        let list = if native { "initContainers" } else { "containers" };
        let shown = format!("{setting:?} {annotation:?} {kubernetes:?}: {warnings:?}");
        assert!(container_names(&after, list).iter().any(|name| name == SIDECAR), "{shown}");
        assert_eq!(container(&after, SIDECAR)["restartPolicy"] == "Always", native, "{shown}");
        match warned {
            Some(words) => assert!(warnings.len() == 1 && warnings[0].contains(words), "{shown}"),
            None => assert_eq!(warnings, [""; 0], "{shown}"),
        }
    }
}

#[test]
fn a_plain_sidecar_ends_after_the_application_and_a_pod_that_is_to_end_is_warned_of() {
    let plain = InjectSettings { native_sidecar: NativeSidecar::No, ..settings() };
    let stop = |grace: Option<u64>| {
        let mut pod = pod();
        if let Some(grace) = grace {
            pod["spec"]["terminationGracePeriodSeconds"] = grace.into();
        }
        let (after, _) = injected(&pod, &plain);
        container(&after, SIDECAR)["lifecycle"]["preStop"]["exec"]["command"].clone()
    };
    let command = |seconds: u64| {
        let timeout = format!("--timeout={seconds}");
        json!(["outrigger-proxy", "wait", "--for=alone", timeout])
    };
    assert_eq!(stop(None), command(20));
    assert_eq!(stop(Some(120)), command(110));
    assert_eq!(stop(Some(4)), command(1));
    let (native, _) = injected(&pod(), &settings());
    assert_eq!(container(&native, SIDECAR).get("lifecycle"), None);

    let mut job = pod();
    for (policy, warned) in [("Never", true), ("OnFailure", true), ("Always", false)] {
        job["spec"]["restartPolicy"] = policy.into();
        let (_, warnings) = injected(&job, &plain);
        assert_eq!(
            warnings.iter().any(|words| words.contains("/quitquitquit")),
            warned,
            "{policy}: {warnings:?}"
        );
        assert_eq!(injected(&job, &settings()).1, [""; 0]);
    }
}

#[test]
fn the_setting_is_auto_true_or_false() {
    for (text, wanted) in
        [("auto", NativeSidecar::Auto), ("true", NativeSidecar::Yes), ("false", NativeSidecar::No)]
    {
        let read: InjectSettings = serde_saphyr::from_str(&format!("nativeSidecar: {text}")).unwrap();
        assert_eq!(read.native_sidecar, wanted);
        let written = serde_json::to_value(&read).unwrap();
        assert_eq!(serde_json::from_value::<InjectSettings>(written).unwrap(), read);
    }
    for wrong in ["plain", "1", "[]"] {
        let error = serde_saphyr::from_str::<InjectSettings>(&format!("nativeSidecar: {wrong}")).unwrap_err();
        assert!(error.to_string().contains("is not auto, true or false"), "{error}");
    }
    assert_eq!(InjectSettings::default().native_sidecar, NativeSidecar::Auto);
}

#[test]
fn what_keeps_a_pod_from_starting_is_told() {
    let in_a = |level: &str, settings: &InjectSettings| {
        let mut namespace = Namespace::enabled("shop", None);
        namespace.labels.insert("pod-security.kubernetes.io/enforce".into(), level.into());
        match in_namespace(&pod(), &namespace, settings).unwrap() {
            Injection::Injected { warnings, .. } => warnings,
            Injection::LeftAlone(why) => panic!("{why}"),
        }
    };
    let with_plugin = InjectSettings { cni: true, ..settings() };
    for level in ["baseline", "restricted"] {
        let warnings = in_a(level, &settings());
        assert!(warnings.len() == 1 && warnings[0].contains("needs NET_ADMIN"), "{warnings:?}");
        assert_eq!(in_a(level, &with_plugin), [""; 0]);
    }
    assert_eq!(in_a("privileged", &settings()), [""; 0]);

    let named = |spec: Value, settings: &InjectSettings| {
        let mut pod = pod();
        json_patch::merge(&mut pod["spec"], &spec);
        injected(&pod, settings).1
    };
    let by_address = InjectSettings { control_plane: "[fd00::7]:15012".into(), ..settings() };
    for policy in ["Default", "None"] {
        let warnings = named(json!({"dnsPolicy": policy}), &settings());
        assert!(
            warnings.len() == 1 && warnings[0].contains("outrigger-control.outrigger-system.svc"),
            "{warnings:?}"
        );
        assert_eq!(named(json!({"dnsPolicy": policy}), &by_address), [""; 0]);
    }
    let of_the_cluster =
        json!({"nameservers": ["10.96.0.10"], "searches": ["svc.cluster.local", "cluster.local"]});
    assert_eq!(named(json!({"dnsPolicy": "None", "dnsConfig": of_the_cluster}), &settings()), [""; 0]);
    assert_eq!(named(json!({"dnsPolicy": "ClusterFirst"}), &settings()), [""; 0]);
}
