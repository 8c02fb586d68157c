//! What an operator's templates lay over Pods, and that it can be taken back.

use super::annotations::with_annotations;
use super::*;

fn with(templates: Value) -> InjectSettings {
    let settings = InjectSettings { templates: serde_json::from_value(templates).unwrap(), ..settings() };
    settings.validate().unwrap();
    settings
}

const SIDECAR_ALONE: &str = "sidecar";

fn vault() -> Value {
    json!({"vault": {
        "metadata": {"labels": {"vault": "yes", "app": "other"}, "annotations": {"vault.example/role": "r"}},
        "spec": {
            "priorityClassName": "high",
            "tolerations": [{"key": "a"}],
            "hostname": null,
            "volumes": [{"name": "vault", "emptyDir": {"medium": "Memory"}}],
            "initContainers": [{"name": "fetch", "image": "fetch"}],
            "containers": [
                {"name": "outrigger-proxy", "env": [{"name": "VAULT", "value": "1"}], "image": "own"},
                {"name": "app", "env": [{"name": "A", "value": "2"}, {"name": "B", "value": "3"}],
                 "volumeMounts": [{"name": "vault", "mountPath": "/vault"}]},
                {"name": "agent", "image": "agent"},
            ],
        },
    }})
}

fn named() -> Value {
    let mut pod = with_annotations(&["inject.istio.io/templates=sidecar, vault"]);
    pod["metadata"]["labels"] = json!({"app": "a"});
    pod["spec"]["hostname"] = "h".into();
    pod["spec"]["tolerations"] = json!([{"key": "b"}]);
    pod["spec"]["containers"][0]["env"] = json!([{"name": "A", "value": "1"}, {"name": "C", "value": "4"}]);
    pod["spec"]["containers"][0]["readinessProbe"] = json!({"tcpSocket": {"port": 80}});
    pod
}

#[test]
fn a_template_is_laid_over_the_whole_pod_and_taken_back() {
    for native in [NativeSidecar::Yes, NativeSidecar::No] {
        let settings = InjectSettings { native_sidecar: native, ..with(vault()) };
        let pod = named();
        let (after, warnings) = injected(&pod, &settings);
        assert_eq!(warnings, [""; 0]);
        let spec = &after["spec"];
        assert_eq!((&spec["priorityClassName"], spec.get("hostname")), (&json!("high"), None));
        assert_eq!(spec["tolerations"], json!([{"key": "a"}]), "a list without names is one thing");
        assert_eq!(after["metadata"]["labels"]["vault"], "yes");
        assert_eq!(after["metadata"]["labels"]["app"], "other");
        assert_eq!(after["metadata"]["annotations"]["vault.example/role"], "r");
        let app = container(&after, "app");
        let env =
            json!([{"name": "A", "value": "2"}, {"name": "C", "value": "4"}, {"name": "B", "value": "3"}]);
        assert_eq!((&app["env"], &app["image"]), (&env, &json!("app")));
        assert_eq!(app["volumeMounts"][0]["mountPath"], "/vault");
        assert_eq!(container(&after, "agent")["image"], "agent");
        let init = after["spec"]["initContainers"].as_array().unwrap();
        assert_eq!(init.last().unwrap()["name"], "fetch");
        let sidecar = container(&after, SIDECAR);
        assert_eq!((&sidecar["image"], &sidecar["env"][6]["name"]), (&json!("own"), &json!("VAULT")));
        assert_eq!(spec["volumes"][2]["name"], "vault");
        assert_eq!(injected(&after, &settings).0, after, "shown again it is the same");
        assert_eq!(uninject(&after).unwrap(), Some(pod));
    }
}

#[test]
fn what_stood_there_comes_back_unless_it_was_edited_since_and_what_was_added_goes() {
    let settings = with(vault());
    let (mut after, _) = injected(&named(), &settings);
    let app = after["spec"]["containers"].as_array_mut().unwrap();
    let app = app.iter_mut().find(|one| one["name"] == "app").unwrap();
    app["env"].as_array_mut().unwrap().push(json!({"name": "LATE", "value": "5"}));
    app["env"][0]["value"] = "edited".into();
    after["spec"]["priorityClassName"] = "low".into();
    let undone = uninject(&after).unwrap().unwrap();
    let env = json!([{"name": "A", "value": "edited"}, {"name": "C", "value": "4"}, {"name": "LATE", "value": "5"}]);
    assert_eq!(container(&undone, "app")["env"], env);
    assert_eq!(undone["spec"]["hostname"], "h");
    assert_eq!(undone["spec"].get("priorityClassName"), None, "it was added, whatever it says by now");
    // What a template was the first to have.
    let all = json!({"a": {"metadata": {"labels": {"x": "1"}}, "spec": {"imagePullSecrets": [{"name": "s"}], "volumes": [{"name": "v"}]}}});
    let settings_of_all = InjectSettings { default_templates: vec!["a".into()], ..with(all) };
    let (mut first, _) = injected(&pod(), &settings_of_all);
    assert_eq!(first["spec"]["imagePullSecrets"], json!([{"name": "s"}]));
    assert_eq!(uninject(&first).unwrap(), Some(pod()));
    first["metadata"]["labels"]["team"] = "blue".into();
    assert_eq!(uninject(&first).unwrap().unwrap()["metadata"]["labels"], json!({"team": "blue"}));
    // Another webhook's word is kept when the Pod is shown again.
    let (again, _) = injected(&after, &settings);
    assert!(
        container(&again, "app")["env"].as_array().unwrap().contains(&json!({"name": "LATE", "value": "5"}))
    );
}

#[test]
fn those_of_all_hold_for_who_names_none() {
    let both = json!({"a": {"spec": {"hostname": "a", "subdomain": "a"}}, "b": {"spec": {"hostname": "b"}}});
    let settings = InjectSettings { default_templates: vec!["a".into(), "b".into()], ..with(both) };
    let of = |annotations: &[&str]| {
        let (after, _) = injected(&with_annotations(annotations), &settings);
        (after["spec"]["hostname"].clone(), after["spec"]["subdomain"].clone())
    };
    assert_eq!(of(&[]), (json!("b"), json!("a")));
    assert_eq!(of(&["outrigger.io/templates=b,a"]), (json!("a"), json!("a")));
    assert_eq!(of(&["outrigger.io/templates=sidecar"]), (Value::Null, Value::Null));
    // Ours goes before Istio's.
    assert_eq!(of(&["outrigger.io/templates=b", "inject.istio.io/templates=a"]), (json!("b"), Value::Null));
}

#[test]
fn what_is_no_template_is_named() {
    for (template, word) in [
        (json!({"sidecar": {}}), "no name of a template"),
        (json!({"a": {"kind": "Pod"}}), "templates.a.kind: a template has metadata"),
        (json!({"a": {"spec": []}}), "templates.a.spec: is no mapping"),
        (json!({"a": {"metadata": {"name": "x"}}}), "templates.a.metadata.name"),
        (json!({"a": {"metadata": {"labels": {"b": 1}}}}), "templates.a.metadata.labels.b: 1 is no text"),
        (json!({"a": {"metadata": {"annotations": {"outrigger.io/status": "x"}}}}), "is not a template's"),
        (
            json!({"a": {"spec": {"containers": [{"image": "x"}]}}}),
            "templates.a.spec.containers[0]: needs its name",
        ),
        (json!({"a": {"spec": {"initContainers": [{"name": "outrigger-init"}]}}}), "has a privilege"),
        (json!({"a": {"spec": {"volumes": [{"name": "x", "$patch": "delete"}]}}}), "[0].$patch: directives"),
        (json!({"a": {"spec": {"hostname": "x".repeat(65 << 10)}}}), "are more than 65536"),
        (
            json!({"a": {"metadata": {"annotations": {"inject.istio.io/templates": "b"}}}}),
            "templates.a.metadata.annotations.inject.istio.io/templates: names the templates",
        ),
        // Where a sidecar would take everybody's connections, and its rules with it.
        (
            json!({"a": {"spec": {"hostNetwork": true}}}),
            "templates.a.spec: with this there can be no sidecar: it is in the network of its node",
        ),
        (
            json!({"a": {"spec": {"hostNetwork": "true"}}}),
            "templates.a.spec.hostNetwork: \"true\" is neither",
        ),
        (json!({"a": {"spec": {"os": {"name": "windows"}}}}), "no sidecar: it is for Windows"),
        (json!({"a": {"spec": {"nodeSelector": {"kubernetes.io/os": "windows"}}}}), "it is for Windows"),
        // What would take the sidecar out, or have every Pod refused.
        (
            json!({"a": {"spec": {"initContainers": null}}}),
            "templates.a.spec.initContainers: null would take out",
        ),
        (json!({"a": {"spec": {"volumes": null}}}), "templates.a.spec.volumes: null would take out"),
        (json!({"a": {"spec": {"imagePullSecrets": null}}}), "templates.a.spec.imagePullSecrets: null would"),
        (json!({"a": {"spec": {"containers": {}}}}), "templates.a.spec.containers: is no list"),
        (json!({"a": {"spec": {"initContainers": "x"}}}), "templates.a.spec.initContainers: is no list"),
        (json!({"a": {"spec": {"hostAliases": 1}}}), "templates.a.spec.hostAliases: is no list"),
        (
            json!({"a": {"spec": {"containers": [{"name": "x"}, {"name": "app", "env": {"A": "1"}}]}}}),
            "templates.a.spec.containers[1].env: is no list",
        ),
    ] {
        let settings = InjectSettings { templates: serde_json::from_value(template).unwrap(), ..settings() };
        let error = settings.validate().unwrap_err().to_string();
        assert!(error.contains(word), "{word}: {error}");
    }
    let settings = InjectSettings { default_templates: vec!["x".into()], ..settings() };
    assert!(settings.validate().unwrap_err().to_string().contains("no template \"x\""));
    let error = refused(&with_annotations(&["outrigger.io/templates=sidecar,x"]));
    assert!(error.contains("outrigger.io/templates") && error.contains("sidecar (templates"), "{error}");
    // Lists of a container that is not ours may be taken out, and what is called like one elsewhere is none.
    with(json!({"a": {"spec": {
        "hostNetwork": false, "hostAliases": null, "containers": [{"name": "app", "env": null}],
        "volumes": [{"name": "v", "csi": {"driver": "d", "volumeAttributes": {"env": "prod"}}}],
    }}}));
    // A Pod that is none where a template is laid.
    let mut pod = with_annotations(&["outrigger.io/templates=vault"]);
    pod["spec"]["containers"][0]["env"] = "x".into();
    let namespace = Namespace::enabled("shop", None);
    let error = in_namespace(&pod, &namespace, &with(vault())).unwrap_err().to_string();
    assert!(error.contains("spec.containers.app.env is no list"), "{error}");
}

#[test]
fn nothing_is_laid_over_the_sidecar_without_which_it_does_not_start() {
    for field in ["image", "env", "volumeMounts", "securityContext", "restartPolicy"] {
        for (list, others, n) in [("containers", 0, 0), ("initContainers", 1, 1)] {
            let mut all = vec![json!({"name": "x", field: null}); others];
            all.push(json!({"name": "outrigger-proxy", field: null}));
            let templates = serde_json::from_value(json!({"a": {"spec": {list: all}}})).unwrap();
            let settings = InjectSettings { templates, ..settings() };
            let error = settings.validate().unwrap_err().to_string();
            let said = format!("templates.a.spec.{list}[{n}].{field}: null would take out");
            assert!(error.starts_with(&said), "{error}");
        }
        let sidecar = serde_json::from_value(json!({"tty": true, field: null})).unwrap();
        let settings = InjectSettings { sidecar, ..settings() };
        let error = settings.validate().unwrap_err().to_string();
        assert!(error.starts_with(&format!("sidecar.{field}: null would take out")), "{error}");
    }
    // Nor with which it brings itself its own connections.
    let other = json!({"name": "outrigger-proxy", "securityContext": {"runAsUser": 7}});
    let templates = serde_json::from_value(json!({"a": {"spec": {"containers": [other]}}})).unwrap();
    let error = InjectSettings { templates, ..settings() }.validate().unwrap_err().to_string();
    let said = "templates.a.spec.containers[0].securityContext.runAsUser: must stay 1337";
    assert!(error.starts_with(said), "{error}");
    // What it starts without may go.
    with(
        json!({"a": {"spec": {"containers": [{"name": "outrigger-proxy", "ports": null, "lifecycle": null}]}}}),
    );
}

#[test]
fn what_no_template_changes_is_not_taken_back_by_an_annotation() {
    let settings = with(vault());
    let (mut pod, _) = injected(&named(), &settings);
    pod["spec"]["containers"].as_array_mut().unwrap().push(json!({"name": "scanner"}));
    pod["spec"]["priorityClassName"] = "high".into();
    let text = pod["metadata"]["annotations"][STATUS].as_str().unwrap();
    let mut status: Value = serde_json::from_str(text).unwrap();
    let forged = [
        json!({"at": ["spec", "containers", "scanner"]}),
        json!({"at": ["spec", "schedulerName"], "was": "theirs", "is": "ours"}),
    ];
    status["templates"].as_array_mut().unwrap().extend(forged);
    pod["metadata"]["annotations"][STATUS] = status.to_string().into();
    let (after, _) = injected(&pod, &settings);
    assert_eq!(container(&after, "scanner"), &json!({"name": "scanner"}));
    // What templates do change is done anew.
    assert_eq!(container(&after, "agent"), &json!({"name": "agent", "image": "agent"}));
}

/// A Pod as others have made it before it comes to us, whose author says by an annotation what is to be taken out of it.
fn forged(change: &Value) -> Value {
    let status = json!({
        "version": "", "revision": "default", "containers": ["outrigger-proxy"], "volumes": [], "labels": [],
        "annotations": [], "made": [], "probes": {}, "templates": [change],
    });
    json!({
        "metadata": {"labels": {"team": "blue"}, "annotations": {STATUS: status.to_string()}},
        "spec": {
            "containers": [{"name": "app", "image": "app"}, {"name": "outrigger-proxy"}, {"name": "scanner"}],
            "volumes": [{"name": "scans"}],
            "securityContext": {"runAsNonRoot": true, "fsGroup": 7},
            "priorityClassName": "theirs",
        },
    })
}

#[test]
fn what_others_have_put_in_stays_whatever_an_annotation_says_that_a_template_did() {
    let template = json!({"t": {
        "metadata": {"labels": {"t": "yes"}},
        "spec": {
            "securityContext": {"fsGroup": 7}, "priorityClassName": "high", "volumes": [{"name": "v"}],
            "containers": [{"name": "agent"}],
        },
    }});
    for named in [Vec::new(), vec!["t".to_owned()]] {
        let priority = if named.is_empty() { "theirs" } else { "high" };
        let settings = InjectSettings { default_templates: named, ..with(template.clone()) };
        let containers = forged(&Value::Null)["spec"]["containers"].clone();
        for change in [
            json!({"at": ["spec", "securityContext"]}),
            json!({"at": ["spec", "securityContext"], "was": {}, "is": {"runAsNonRoot": true, "fsGroup": 7}}),
            json!({"at": ["spec", "securityContext", "fsGroup"]}),
            json!({"at": ["spec", "containers"]}),
            json!({"at": ["spec", "containers"], "was": [{"name": "app"}], "is": containers}),
            json!({"at": ["spec", "containers"], "was": [{"name": "app"}]}),
            json!({"at": ["spec", "volumes"]}),
            json!({"at": ["spec", "priorityClassName"]}),
            json!({"at": ["spec", "priorityClassName"], "was": "mine", "is": "theirs"}),
            json!({"at": ["metadata", "labels"]}),
            json!({"at": ["metadata"]}),
            json!({"at": ["spec"]}),
        ] {
            let (after, _) = injected(&forged(&change), &settings);
            let spec = &after["spec"];
            assert_eq!(spec["securityContext"], json!({"runAsNonRoot": true, "fsGroup": 7}), "{change}");
            assert_eq!(container(&after, "scanner"), &json!({"name": "scanner"}), "{change}");
            assert_eq!(container(&after, "app")["image"], "app", "{change}");
            assert!(spec["volumes"].as_array().unwrap().contains(&json!({"name": "scans"})), "{change}");
            assert_eq!(
                (&spec["priorityClassName"], &after["metadata"]["labels"]["team"]),
                (&json!(priority), &json!("blue")),
                "{change}"
            );
        }
    }
}

#[test]
fn what_others_have_put_into_what_a_template_has_added_stays_there() {
    let all = json!({"a": {"spec": {
        "securityContext": {"fsGroup": 7}, "containers": [{"name": "agent", "ports": [{"containerPort": 80}]}],
    }}});
    let settings = InjectSettings { default_templates: vec!["a".into()], ..with(all) };
    let (mut after, _) = injected(&pod(), &settings);
    // A policy, and what an API server says of all that it reads.
    after["spec"]["securityContext"]["runAsNonRoot"] = true.into();
    let agent = after["spec"]["containers"].as_array_mut().unwrap().last_mut().unwrap();
    agent["imagePullPolicy"] = "Always".into();
    agent["ports"][0]["protocol"] = "TCP".into();
    let (again, _) = injected(&after, &settings);
    assert_eq!(again, after, "and it is told as it was");
    assert_eq!(injected(&again, &settings).0, after);
    assert_eq!(uninject(&again).unwrap(), Some(pod()), "what was added goes, whatever has become of it");
}

/// As a template's own the first time, so they are no Pod's own the second.
#[test]
fn what_others_have_put_into_what_a_template_has_added_is_read_as_nobody_s_wish() {
    let probe = |how: Value| json!({"periodSeconds": 5, "httpGet": how});
    let all = json!({"a": {"spec": {
        "initContainers": [{"name": "fetch"}],
        "containers": [
            {"name": "agent", "ports": [{"containerPort": 9000}], "readinessProbe": probe(json!({"path": "/", "port": 9000})),
             "livenessProbe": {"grpc": {"port": 9000}}},
            {"name": "app", "startupProbe": probe(json!({"path": "/", "port": 8080}))},
        ],
    }}});
    let settings = InjectSettings {
        native_sidecar: NativeSidecar::No,
        cni: true,
        default_templates: vec!["a".into()],
        ..with(all)
    };
    let mut pod = with_annotations(&["prometheus.io/scrape=true"]);
    pod["spec"]["containers"][0]["ports"] = json!([{"containerPort": 8080}]);
    let (mut after, warned) = injected(&pod, &settings);
    assert!(warned.len() == 1 && warned[0].contains("init container fetch starts before"), "{warned:?}");
    assert_eq!(bootstrap_of(&after)["app_metrics"]["port"], 8080);
    // What an API server says of all that it reads, and what a policy does.
    for container in after["spec"]["containers"].as_array_mut().unwrap() {
        for (kind, how, field, value) in [
            ("readinessProbe", "httpGet", "scheme", json!("HTTP")),
            ("startupProbe", "httpGet", "scheme", json!("HTTP")),
            ("livenessProbe", "grpc", "service", json!("")),
        ] {
            if container.get(kind).is_some() && container["name"] != SIDECAR {
                container[kind][how][field] = value;
                container[kind]["timeoutSeconds"] = 1.into();
            }
        }
        if container["name"] == "agent" {
            container["ports"][0]["protocol"] = "TCP".into();
            container["readinessProbe"]["httpGet"]["port"] = 9001.into();
        }
    }
    after["spec"]["initContainers"].as_array_mut().unwrap().last_mut().unwrap()["tty"] = true.into();
    let (again, warnings) = injected(&after, &settings);
    assert_eq!(warnings, warned);
    assert_eq!(bootstrap_of(&again), bootstrap_of(&after), "nobody asks the application for it");
    // A template lays its own again.
    after["spec"]["containers"].as_array_mut().unwrap().last_mut().unwrap()["readinessProbe"]["httpGet"]["port"] =
        9000.into();
    assert_eq!(again["spec"], after["spec"]);
}

#[test]
fn who_asks_by_hand_changes_a_pod_s_templates_and_has_those_of_before_taken_back() {
    let settings = with(vault());
    let (mut after, _) = injected(&named(), &settings);
    after["metadata"]["annotations"]["inject.istio.io/templates"] = SIDECAR_ALONE.into();
    let mut pod = named();
    pod["metadata"]["annotations"]["inject.istio.io/templates"] = SIDECAR_ALONE.into();
    let namespace = Namespace::enabled("shop", None);
    let by_hand = Subject { by_hand: true, ..subject(&after, &namespace) };
    let Injection::Injected { pod: again, .. } = inject(by_hand, &settings, &mesh()).unwrap() else {
        panic!()
    };
    assert_eq!(uninject(&again).unwrap(), Some(pod));
    assert_eq!(again["spec"].get("priorityClassName"), None);
}

#[test]
fn a_template_makes_no_pod_that_can_have_no_sidecar_whoever_has_looked_at_it_before() {
    let mut settings = with(vault());
    settings.templates.get_mut("vault").unwrap()["spec"]["hostNetwork"] = true.into();
    let error = in_namespace(&named(), &Namespace::enabled("shop", None), &settings).unwrap_err().to_string();
    assert!(
        error.starts_with("with its templates there can be no sidecar: it is in the network of"),
        "{error}"
    );
    // What it warns of is what comes of it.
    let lost = with(json!({"lost": {"spec": {"dnsPolicy": "Default", "containers": [
        {"name": "agent", "securityContext": {"runAsUser": 1337}},
    ]}}}));
    let (_, warnings) = injected(&with_annotations(&["outrigger.io/templates=lost"]), &lost);
    assert_eq!(warnings.len(), 2, "{warnings:?}");
    assert!(
        warnings[0].contains("dnsPolicy") && warnings[1].contains("\"agent\" runs as user 1337"),
        "{warnings:?}"
    );
}
