//! Whatever a Pod has, what is injected can be taken out again, and the patch says the same.

use super::*;

/// A Pod with some of everything that injection touches.
fn some_pod(random: &mut fastrand::Rng) -> Value {
    let probe = |random: &mut fastrand::Rng| match random.u8(0..4) {
        0 => json!({"httpGet": {"port": "http", "path": "/a"}, "periodSeconds": 3}),
        1 => json!({"tcpSocket": {"port": 80}}),
        2 => json!({"grpc": {"port": 81, "service": "s"}}),
        _ => json!({"exec": {"command": ["x"]}}),
    };
    let one = |name: String, random: &mut fastrand::Rng| {
        let mut one = json!({"name": name, "ports": [{"name": "http", "containerPort": 8080}]});
        for place in ["livenessProbe", "readinessProbe", "startupProbe"] {
            if random.bool() {
                one[place] = probe(random);
            }
        }
        if random.bool() {
            one["lifecycle"] = json!({"preStop": {"httpGet": {"port": 80}}, "postStart": probe(random)});
        }
        if random.bool() {
            one["restartPolicy"] = "Always".into();
        }
        one
    };
    let mut pod = json!({"spec": {}});
    let containers: Vec<Value> = (0..random.u8(1..4)).map(|n| one(format!("c{n}"), random)).collect();
    pod["spec"]["containers"] = containers.into();
    if random.bool() {
        let all: Vec<Value> = (0..random.u8(0..3)).map(|n| one(format!("i{n}"), random)).collect();
        pod["spec"]["initContainers"] = all.into();
    }
    if random.bool() {
        pod["spec"]["volumes"] =
            if random.bool() { json!([]) } else { json!([{"name": "data", "emptyDir": {}}]) };
    }
    if random.bool() {
        pod["spec"]["imagePullSecrets"] =
            if random.bool() { json!([]) } else { json!([{"name": "own"}, {"name": "registry"}]) };
    }
    if random.bool() {
        pod["metadata"] = json!({});
    }
    let labels = [
        json!({}),
        json!({"app": "a", "security.istio.io/tlsMode": "disabled"}),
        json!({"outrigger.io/rev": if random.bool() { "default" } else { "another" }}),
    ];
    let annotations = [
        json!({}),
        json!({"prometheus.io/scrape": "false"}),
        json!({"sidecar.istio.io/proxyCPU": "1"}),
        json!({"prometheus.io/scrape": "true", "prometheus.io/port": "9090", "prometheus.io/scheme": "https"}),
        json!({"prometheus.io/scrape": "true", "prometheus.io/path": "/stats/prometheus", "prometheus.io/port": "80"}),
        json!({"prometheus.io/scrape": "true", "prometheus.io/port": "15020"}),
    ];
    for (field, choices) in [("labels", &labels[..]), ("annotations", &annotations)] {
        if random.bool() {
            pod["metadata"][field] = choices[random.usize(0..choices.len())].clone();
        }
    }
    pod
}

/// One that meets much of what such a Pod has.
fn template() -> Value {
    json!({
        "metadata": {"labels": {"app": "b", "team": "x"}, "annotations": {"prometheus.io/scrape": null, "note": "y"}},
        "spec": {
            "volumes": [{"name": "data", "emptyDir": {"medium": "Memory"}}, {"name": "more", "emptyDir": {}}],
            "imagePullSecrets": [{"name": "registry"}, {"name": "third"}],
            "initContainers": [{"name": "i0", "env": [{"name": "A", "value": "1"}]}, {"name": "late"}],
            "containers": [
                {"name": "c0", "ports": [{"containerPort": 8080, "name": "web"}], "lifecycle": null, "readinessProbe": {"periodSeconds": 9}},
                {"name": "outrigger-proxy", "resources": {"limits": null}},
            ],
            "securityContext": {"fsGroup": 7},
        },
    })
}

#[test]
fn what_was_injected_can_be_taken_out_and_the_patch_says_the_same() {
    let mut random = fastrand::Rng::with_seed(15);
    for round in 0..2000 {
        let before = some_pod(&mut random);
        let settings = InjectSettings {
            native_sidecar: if random.bool() { NativeSidecar::Yes } else { NativeSidecar::No },
            init_container: random.bool(),
            cni: random.bool(),
            prometheus: random.bool(),
            istio_peers: random.bool(),
            templates: serde_json::from_value(json!({"t": template()})).unwrap(),
            default_templates: if random.bool() { vec!["t".into()] } else { Vec::new() },
            image_pull_secrets: if random.bool() {
                vec![PullSecret { name: "registry".into() }, PullSecret { name: "mirror".into() }]
            } else {
                Vec::new()
            },
            ..settings()
        };
        let (after, _) = injected(&before, &settings);
        assert_eq!(uninject(&after).unwrap().as_ref(), Some(&before), "{round}: {before}");
        let mut patched = before.clone();
        json_patch::patch(&mut patched, &json_patch::diff(&before, &after)).unwrap();
        assert_eq!(patched, after, "{round}: {before}");
    }
    assert_eq!(uninject(&pod()), Ok(None));
    let spoiled = json!({"metadata": {"annotations": {STATUS: "{"}}, "spec": {}});
    assert!(uninject(&spoiled).unwrap_err().to_string().contains(STATUS));
}

#[test]
fn what_was_edited_since_stays_when_the_sidecar_goes() {
    let (mut after, _) = injected(&pod(), &settings());
    after["spec"]["containers"].as_array_mut().unwrap().push(json!({"name": "late"}));
    after["metadata"]["labels"]["team"] = "blue".into();
    let undone = uninject(&after).unwrap().unwrap();
    assert_eq!(container_names(&undone, "containers"), ["app", "late"]);
    assert_eq!(undone["metadata"]["labels"], json!({"team": "blue"}));
    assert_eq!(undone["spec"].get("initContainers"), None);
}

#[test]
fn secrets_for_images_are_added_to_the_pod_s_and_whose_sidecar_it_is_is_said_whatever_stood_there() {
    let settings = InjectSettings {
        image_pull_secrets: vec![PullSecret { name: "own".into() }, PullSecret { name: "registry".into() }],
        ..settings()
    };
    let mut before = pod();
    before["spec"]["imagePullSecrets"] = json!([{"name": "own"}]);
    before["metadata"]["labels"] = json!({"outrigger.io/rev": "another"});
    let (after, warnings) = injected(&before, &settings);
    assert_eq!(after["spec"]["imagePullSecrets"], json!([{"name": "own"}, {"name": "registry"}]));
    assert_eq!(after["metadata"]["labels"]["outrigger.io/rev"], "default");
    assert!(
        warnings.len() == 1 && warnings[0].contains("istio.io/rev: another asks for another"),
        "{warnings:?}"
    );
    assert_eq!(injected(&after, &settings).0, after);
    assert_eq!(uninject(&after).unwrap(), Some(before));
}

#[test]
fn what_a_pod_has_got_is_not_what_it_asks_for() {
    for (revision, of_namespace, of_pod, gets) in [
        ("new", &[][..], &["outrigger.io/rev=new"][..], false),
        ("default", &["outrigger.io/inject=enabled"], &["outrigger.io/rev=new"], true),
        ("new", &["outrigger.io/inject=enabled"], &["outrigger.io/rev=new"], false),
        ("new", &[], &["outrigger.io/rev=default", "istio.io/rev=new"], true),
        ("default", &[], &["outrigger.io/rev=default", "istio.io/rev=new"], false),
    ] {
        let mut pod = pod();
        pod["metadata"]["labels"] = json!(words(of_pod));
        let namespace =
            Namespace { name: "shop".into(), labels: words(of_namespace), ..Namespace::default() };
        let settings = InjectSettings { revision: Some(revision.into()), ..settings() };
        let done = in_namespace(&pod, &namespace, &settings).unwrap();
        assert_eq!(
            matches!(done, Injection::Injected { .. }),
            gets,
            "{revision} {of_namespace:?} {of_pod:?}"
        );
    }
}

#[test]
fn what_another_webhook_has_put_in_is_not_taken_out_by_an_annotation() {
    let (mut pod, _) = injected(&pod(), &settings());
    pod["spec"]["containers"].as_array_mut().unwrap().push(json!({"name": "scanner"}));
    pod["spec"]["volumes"].as_array_mut().unwrap().push(json!({"name": "scans"}));
    pod["metadata"]["labels"]["scanned"] = "yes".into();
    pod["metadata"]["annotations"]["scanner/level"] = "all".into();
    let text = pod["metadata"]["annotations"][STATUS].as_str().unwrap();
    let mut status: Value = serde_json::from_str(text).unwrap();
    for (list, name) in [
        ("containers", "scanner"),
        ("volumes", "scans"),
        ("labels", "scanned"),
        ("annotations", "scanner/level"),
    ] {
        status[list].as_array_mut().unwrap().push(name.into());
    }
    status["replaced"] = json!({"scanned": "no"});
    status["pullSecrets"] = json!(["corp"]);
    pod["spec"]["imagePullSecrets"] = json!([{"name": "corp"}]);
    pod["metadata"]["annotations"][STATUS] = status.to_string().into();
    let (after, _) = injected(&pod, &settings());
    assert_eq!(after["spec"]["imagePullSecrets"], json!([{"name": "corp"}]));
    for after in [injected(&pod, &settings()).0, uninject(&pod).unwrap().unwrap()] {
        assert_eq!(container_names(&after, "containers"), ["app", "scanner"]);
        assert!(after["spec"]["volumes"].as_array().unwrap().contains(&json!({"name": "scans"})));
        let metadata = &after["metadata"];
        assert_eq!(
            (&metadata["labels"]["scanned"], &metadata["annotations"]["scanner/level"]),
            (&json!("yes"), &json!("all"))
        );
    }
}
