use serde_json::{Value, json};

use super::*;

const ROOTS: &str = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";

fn settings() -> InjectSettings {
    InjectSettings { image: "outrigger-proxy:test".into(), ..InjectSettings::default() }
}

fn mesh() -> Mesh {
    Mesh { trust_domain: "cluster.local".into(), domain: "cluster.local".into(), roots: ROOTS.into() }
}

fn pod() -> Value {
    json!({"metadata": {"name": "web-1"}, "spec": {"containers": [{"name": "app", "image": "app"}]}})
}

fn in_namespace(
    pod: &Value,
    namespace: &Namespace,
    settings: &InjectSettings,
) -> Result<Injection, InjectError> {
    inject(Subject { pod, namespace, workload: None }, settings, &mesh())
}

/// Into a namespace that asks for sidecars.
fn injected(pod: &Value, settings: &InjectSettings) -> (Value, Vec<String>) {
    match in_namespace(pod, &Namespace::enabled("shop", settings.revision.as_deref()), settings).unwrap() {
        Injection::Injected { pod, warnings } => (*pod, warnings),
        Injection::LeftAlone(why) => panic!("{why}"),
    }
}

fn refused(pod: &Value) -> String {
    in_namespace(pod, &Namespace::enabled("shop", None), &settings()).unwrap_err().to_string()
}

/// The container of this name.
fn container<'p>(pod: &'p Value, name: &str) -> &'p Value {
    let all = ["initContainers", "containers"].into_iter().filter_map(|list| pod["spec"][list].as_array());
    all.flatten().find(|container| container["name"] == name).unwrap()
}

fn container_names(pod: &Value, list: &str) -> Vec<String> {
    let all = pod["spec"][list].as_array().into_iter().flatten();
    all.map(|container| container["name"].as_str().unwrap().to_owned()).collect()
}

/// The bootstrap, as it is before the kubelet has filled in names.
fn bootstrap_of(pod: &Value) -> Value {
    let env = container(pod, SIDECAR)["env"].as_array().unwrap();
    let text = env.last().unwrap()["value"].as_str().unwrap();
    serde_saphyr::from_str(text).unwrap()
}

/// `labels` and `annotations` are written `key=value`.
fn words(all: &[&str]) -> BTreeMap<String, String> {
    let pair = |text: &&str| text.split_once('=').map(|(key, value)| (key.to_owned(), value.to_owned()));
    all.iter().filter_map(pair).collect()
}

#[test]
fn who_gets_a_sidecar() {
    let yes = "";
    // The revision that we are, what the namespace says, what the Pod says, and why it is left alone.
    for (revision, of_namespace, of_pod, why) in [
        (None, &[][..], &[][..], "neither it nor"),
        (None, &["istio-injection=enabled"], &[], yes),
        (None, &["outrigger.io/inject=enabled"], &[], yes),
        (None, &["@linkerd.io/inject=enabled"], &[], yes),
        (
            None,
            &["istio-injection=enabled"],
            &["sidecar.istio.io/inject=false"],
            "it says no (sidecar.istio.io/inject)",
        ),
        (None, &["istio-injection=enabled"], &["@sidecar.istio.io/inject=false"], "it says no"),
        (
            None,
            &["istio-injection=enabled"],
            &["sidecar.istio.io/inject=true", "@sidecar.istio.io/inject=false"],
            yes,
        ),
        (
            None,
            &["istio-injection=enabled"],
            &["outrigger.io/inject=disabled"],
            "it says no (outrigger.io/inject)",
        ),
        (
            None,
            &["istio-injection=enabled"],
            &["@linkerd.io/inject=disabled"],
            "it says no (linkerd.io/inject)",
        ),
        (None, &["istio-injection=enabled"], &["sidecar.istio.io/inject="], yes),
        (None, &["istio-injection=enabled"], &["sidecar.istio.io/inject=perhaps"], "it says no"),
        (None, &[], &["sidecar.istio.io/inject=true"], yes),
        (None, &[], &["@linkerd.io/inject=enabled"], yes),
        (None, &["istio-injection=disabled"], &[], "its namespace says no (istio-injection)"),
        // As with Istio: a namespace that is turned off is off.
        (None, &["istio-injection=disabled"], &["sidecar.istio.io/inject=true"], "its namespace says no"),
        // As with Linkerd: the Pod goes before it.
        (None, &["@linkerd.io/inject=disabled"], &["@linkerd.io/inject=enabled"], yes),
        (None, &["outrigger.io/inject=disabled"], &["outrigger.io/inject=enabled"], yes),
        (None, &["outrigger.io/inject=disabled"], &[], "its namespace says no (outrigger.io/inject)"),
        // Revisions.
        (Some("new"), &["istio.io/rev=new"], &[], yes),
        (Some("new"), &["outrigger.io/rev=new"], &["sidecar.istio.io/inject=false"], "it says no"),
        (None, &["istio.io/rev=new"], &[], "it asks for revision new, and this is revision default"),
        (None, &["istio.io/rev=default"], &[], yes),
        (Some("new"), &["istio-injection=enabled"], &[], "it asks for revision default"),
        (Some("new"), &["istio-injection=enabled", "istio.io/rev=new"], &[], "it asks for revision default"),
        (Some("new"), &["outrigger.io/inject=enabled", "outrigger.io/rev=new"], &[], yes),
        (Some("new"), &[], &["istio.io/rev=new"], yes),
        (Some("new"), &["istio.io/rev=old"], &["istio.io/rev=new"], "it asks for revision old"),
        (Some("new"), &[], &["sidecar.istio.io/inject=true"], "it asks for revision default"),
        (Some("new"), &["istio-injection=disabled"], &["istio.io/rev=new"], "its namespace says no"),
    ] {
        let (annotations, labels): (Vec<&str>, Vec<&str>) =
            of_pod.iter().partition(|word| word.starts_with('@'));
        let annotations: Vec<&str> = annotations.iter().map(|word| &word[1..]).collect();
        let mut pod = pod();
        pod["metadata"]["labels"] = json!(words(&labels));
        pod["metadata"]["annotations"] = json!(words(&annotations));
        let (annotations, labels): (Vec<&str>, Vec<&str>) =
            of_namespace.iter().partition(|word| word.starts_with('@'));
        let annotations: Vec<&str> = annotations.iter().map(|word| &word[1..]).collect();
        let namespace =
            Namespace { name: "shop".into(), labels: words(&labels), annotations: words(&annotations) };
        let settings = InjectSettings { revision: revision.map(str::to_owned), ..settings() };
        let shown = format!("{revision:?} {of_namespace:?} {of_pod:?}");
        match in_namespace(&pod, &namespace, &settings).unwrap() {
            Injection::Injected { .. } => assert_eq!(why, yes, "{shown}"),
            Injection::LeftAlone(said) => assert!(!why.is_empty() && said.contains(why), "{shown}: {said}"),
        }
    }
}

#[test]
fn what_cannot_have_a_sidecar_is_left_alone_whatever_it_says() {
    let left = |pod: &Value, namespace: &str| match in_namespace(
        pod,
        &Namespace::enabled(namespace, None),
        &settings(),
    ) {
        Ok(Injection::LeftAlone(why)) => why,
        other => panic!("{other:?}"),
    };
    for namespace in ["kube-system", "kube-public", "kube-node-lease"] {
        assert!(left(&pod(), namespace).contains(namespace));
    }
    let with = |field: &str, value: Value| {
        let mut pod = pod();
        pod["spec"][field] = value;
        left(&pod, "shop")
    };
    assert!(with("hostNetwork", true.into()).contains("hostNetwork"));
    assert!(with("os", json!({"name": "windows"})).contains("Windows"));
    assert!(with("initContainers", json!([{"name": "istio-proxy"}])).contains("container istio-proxy"));
    assert!(with("containers", json!([{"name": "a"}, {"name": "linkerd-proxy"}])).contains("linkerd-proxy"));
}

#[test]
fn a_deployment_is_injected_as_it_was_agreed() {
    let before: Value = serde_saphyr::from_str(include_str!("tests/deployment.yaml")).unwrap();
    let mut after = before.clone();
    let namespace = Namespace::enabled("shop", None);
    let subject =
        Subject { pod: &before["spec"]["template"], namespace: &namespace, workload: Some("catalog") };
    let Injection::Injected { pod, warnings } = inject(subject, &settings(), &mesh()).unwrap() else {
        panic!()
    };
    assert_eq!(warnings, [""; 0]);
    after["spec"]["template"] = *pod;
    let text = yaml(&after).unwrap();
    let wanted = include_str!("tests/deployment.injected.yaml");
    assert_eq!(text, wanted, "if this is what is meant, it belongs into deployment.injected.yaml:\n{text}");
}

#[test]
fn injecting_twice_changes_nothing() {
    let (once, _) = injected(&pod(), &settings());
    let again = in_namespace(&once, &Namespace::enabled("shop", None), &settings()).unwrap();
    assert!(matches!(again, Injection::LeftAlone(why) if why.contains("already")));
}

#[test]
fn containers_stand_where_they_can_do_their_work() {
    let mut pod = pod();
    pod["spec"]["initContainers"] = json!([{"name": "migrate"}]);
    let (native, _) = injected(&pod, &settings());
    assert_eq!(container_names(&native, "initContainers"), [INIT, SIDECAR, "migrate"]);
    assert_eq!(container_names(&native, "containers"), ["app"]);
    assert_eq!(container(&native, SIDECAR)["restartPolicy"], "Always");

    let plain =
        InjectSettings { native_sidecar: false, hold_application_until_proxy_starts: true, ..settings() };
    let (plain, _) = injected(&pod, &plain);
    // A plain sidecar does not run yet when init containers do.
    assert_eq!(container_names(&plain, "initContainers"), ["migrate", INIT]);
    assert_eq!(container_names(&plain, "containers"), [SIDECAR, "app"]);
    let sidecar = container(&plain, SIDECAR);
    assert_eq!(sidecar.get("restartPolicy"), None);
    assert_eq!(sidecar["lifecycle"]["postStart"]["exec"]["command"], json!(["outrigger-proxy", "wait"]));
    assert_eq!(plain["metadata"]["annotations"]["kubectl.kubernetes.io/default-container"], "app");

    let bare = InjectSettings { init_container: false, ..settings() };
    let (bare, _) = injected(&pod, &bare);
    assert_eq!(container_names(&bare, "initContainers"), [SIDECAR, "migrate"]);
}

#[test]
fn privileges_are_what_is_needed_and_no_more() {
    let (pod, _) = injected(&pod(), &settings());
    let init = &container(&pod, INIT)["securityContext"];
    assert_eq!(init["capabilities"], json!({"drop": ["ALL"], "add": ["NET_ADMIN", "NET_RAW"]}));
    assert_eq!((&init["runAsUser"], &init["privileged"]), (&json!(0), &json!(false)));
    let sidecar = &container(&pod, SIDECAR)["securityContext"];
    assert_eq!(sidecar["capabilities"], json!({"drop": ["ALL"]}));
    assert_eq!((&sidecar["runAsUser"], &sidecar["runAsGroup"]), (&json!(1337), &json!(1337)));
    for context in [init, sidecar] {
        assert_eq!(context["readOnlyRootFilesystem"], true);
        assert_eq!(context["allowPrivilegeEscalation"], false);
    }
}

fn with_annotations(all: &[&str]) -> Value {
    let mut pod = pod();
    pod["metadata"]["annotations"] = json!(words(all));
    pod
}

#[test]
fn annotations_of_istio_and_linkerd_say_what_is_intercepted() {
    for (annotations, flags) in [
        (&["traffic.sidecar.istio.io/includeInboundPorts=*"][..], &[][..]),
        (
            &["traffic.sidecar.istio.io/includeInboundPorts=80,8000-8099"],
            &["--include-inbound-ports=80,8000-8099"],
        ),
        (&["traffic.sidecar.istio.io/includeInboundPorts="], &["--exclude-inbound-ports=1-65535"]),
        (
            &[
                "traffic.sidecar.istio.io/includeInboundPorts=",
                "traffic.sidecar.istio.io/excludeInboundPorts=9",
            ],
            &["--exclude-inbound-ports=1-65535,9"],
        ),
        (
            &[
                "traffic.sidecar.istio.io/excludeOutboundPorts=3306",
                "config.linkerd.io/skip-outbound-ports=25,587",
            ],
            &["--exclude-outbound-ports=3306,25,587"],
        ),
        (&["config.linkerd.io/skip-inbound-ports=4567-4570"], &["--exclude-inbound-ports=4567-4570"]),
        (
            &["traffic.sidecar.istio.io/includeOutboundIPRanges=10.0.0.0/8, fd00::/8"],
            &["--include-outbound-cidrs=10.0.0.0/8,fd00::/8"],
        ),
        (
            &["traffic.sidecar.istio.io/includeOutboundIPRanges="],
            &["--exclude-outbound-cidrs=0.0.0.0/0,::/0"],
        ),
        (
            &["traffic.sidecar.istio.io/excludeOutboundIPRanges=*"],
            &["--exclude-outbound-cidrs=0.0.0.0/0,::/0"],
        ),
    ] {
        let (pod, warnings) = injected(&with_annotations(annotations), &settings());
        let wanted: Vec<&str> = ["intercept", "apply"].iter().chain(flags).copied().collect();
        assert_eq!(container(&pod, INIT)["args"], json!(wanted), "{annotations:?}");
        assert_eq!(warnings, [""; 0], "{annotations:?}");
    }
}

#[test]
fn annotations_shape_the_sidecar() {
    let (pod, warnings) = injected(
        &with_annotations(&[
            "sidecar.istio.io/proxyMemory=128Mi",
            "sidecar.istio.io/proxyCPULimit=1",
            "sidecar.istio.io/logLevel=warning",
            "sidecar.istio.io/nativeSidecar=false",
            "sidecar.istio.io/proxyImage=mine:1",
            "proxy.istio.io/config={holdApplicationUntilProxyStarts: true, concurrency: 3, terminationDrainDuration: 9s}",
        ]),
        &settings(),
    );
    let sidecar = container(&pod, SIDECAR);
    // As Istio: what they say of resources is all.
    assert_eq!(sidecar["resources"], json!({"requests": {"memory": "128Mi"}, "limits": {"cpu": "1"}}));
    assert_eq!(sidecar["image"], "mine:1");
    assert!(sidecar["lifecycle"]["postStart"].is_object() && sidecar.get("restartPolicy").is_none());
    let bootstrap = bootstrap_of(&pod);
    assert_eq!((&bootstrap["log"]["level"], &bootstrap["workers"]), (&json!("warn"), &json!(3)));
    assert_eq!(bootstrap["drain_timeout"], "9s");
    assert_eq!(warnings, [""; 0]);
}

#[test]
fn what_is_not_known_is_warned_about_by_name() {
    let all = [
        "sidecar.istio.io/componentLogLevel=upstream:debug",
        "config.linkerd.io/opaque-ports=25",
        "proxy.istio.io/config=tracing: {sampling: 5}",
        "sidecar.istio.io/interceptionMode=TPROXY",
        "team.example/anything=1",
    ];
    let (_, warnings) = injected(&with_annotations(&all), &settings());
    let all = warnings.join("\n");
    for word in ["componentLogLevel", "opaque-ports", "tracing", "TPROXY"] {
        assert!(all.contains(word), "{word}: {all}");
    }
    assert_eq!(warnings.len(), 4, "{all}");
    let mut same_user = pod();
    same_user["spec"]["securityContext"] = json!({"runAsUser": 1337});
    let (_, warnings) = injected(&same_user, &settings());
    assert!(warnings[0].contains("\"app\" runs as user 1337"), "{warnings:?}");
}

#[test]
fn an_annotation_that_cannot_be_taken_is_refused_by_name() {
    for (annotation, word) in [
        ("sidecar.istio.io/proxyCPU=much", "quantity"),
        ("config.linkerd.io/skip-outbound-ports=70000", "port"),
        ("traffic.sidecar.istio.io/excludeInboundPorts=80 --dry-run", "port"),
        ("traffic.sidecar.istio.io/excludeOutboundIPRanges=10.0.0.0/33", "block"),
        ("sidecar.istio.io/logLevel=debug\nmode: explicit", "log level"),
        ("sidecar.istio.io/rewriteAppHTTPProbers=perhaps", "true or false"),
        ("proxy.istio.io/config=concurrency: many", "concurrency"),
        ("proxy.istio.io/config=terminationDrainDuration: 1m30s", "terminationDrainDuration"),
        ("proxy.istio.io/config=[", "YAML"),
    ] {
        let error = refused(&with_annotations(&[annotation]));
        let name = annotation.split_once('=').unwrap().0;
        assert!(error.contains(name) && error.contains(word), "{annotation}: {error}");
    }
    for no_pod in [json!([]), json!({"spec": {"containers": {}}}), json!({"spec": []})] {
        assert!(refused(&no_pod).contains("not a Pod"), "{no_pod}");
    }
}

#[test]
fn probes_go_through_the_sidecar_unless_it_cannot_ask_them() {
    let mut pod = pod();
    pod["spec"]["containers"] = json!([{
        "name": "app", "ports": [{"name": "http", "containerPort": 8080}],
        "livenessProbe": {"httpGet": {"port": "http", "scheme": "HTTP"}, "timeoutSeconds": 2},
        "readinessProbe": {"httpGet": {"port": 8443, "scheme": "HTTPS"}},
        "startupProbe": {"exec": {"command": ["true"]}},
        "lifecycle": {"preStop": {"httpGet": {"port": 8080, "path": "bye/$(HOSTNAME)"}}},
    }, {
        "name": "other",
        "livenessProbe": {"httpGet": {"host": "example.com", "port": 80}},
        "readinessProbe": {"tcpSocket": {"port": "nobody"}},
        "startupProbe": {"grpc": {"port": 9090}},
    }]);
    pod["spec"]["initContainers"] = json!([
        {"name": "helper", "restartPolicy": "Always", "readinessProbe": {"tcpSocket": {"port": "7070"}}},
    ]);
    let (after, warnings) = injected(&pod, &settings());
    let address = "$(POD_IP)";
    assert_eq!(
        bootstrap_of(&after)["probes"],
        json!({
            "app/livez": {"http": {"address": address, "port": 8080, "path": "/"}},
            // What the author wrote is not for the kubelet to expand.
            "app/prestopz": {"http": {"address": address, "port": 8080, "path": "/bye/$$(HOSTNAME)"}},
            "helper/readyz": {"tcp": {"address": address, "port": 7070}},
            "other/startupz": {"grpc": {"address": address, "port": 9090, "service": ""}},
        })
    );
    let app = container(&after, "app");
    let ours = json!({"httpGet": {"path": "/app-health/app/livez", "port": 15021}, "timeoutSeconds": 2});
    assert_eq!(app["livenessProbe"], ours);
    assert_eq!(app["lifecycle"]["preStop"]["httpGet"]["path"], "/app-health/app/prestopz");
    assert_eq!(app["startupProbe"], pod["spec"]["containers"][0]["startupProbe"]);
    assert_eq!(container(&after, "other")["livenessProbe"], pod["spec"]["containers"][1]["livenessProbe"]);
    assert_eq!(warnings.len(), 2, "{warnings:?}");
    assert!(warnings[0].contains("container app: readinessProbe") && warnings[0].contains("HTTPS"));
    assert!(warnings[1].contains("container other: readinessProbe"), "{warnings:?}");

    pod["metadata"]["annotations"] = json!({"sidecar.istio.io/rewriteAppHTTPProbers": "false"});
    let (after, _) = injected(&pod, &settings());
    assert_eq!(after["spec"]["containers"], pod["spec"]["containers"]);
    assert_eq!(bootstrap_of(&after).get("probes"), None);
}

#[test]
fn a_workload_is_called_as_its_labels_say_or_what_made_it() {
    let node = |change: fn(&mut Value)| {
        let mut pod = pod();
        change(&mut pod);
        let (after, _) = injected(&pod, &settings());
        let node = bootstrap_of(&after)["node"].clone();
        assert_eq!(node["app"], after["metadata"]["labels"]["service.istio.io/canonical-name"]);
        (node["workload"].clone(), node["app"].clone(), node["version"].clone())
    };
    assert_eq!(node(|_| {}), (json!("web-1"), json!("web-1"), json!("latest")));
    let of_replica_set = node(|pod| {
        pod["metadata"] = json!({"generateName": "web-5d8-", "ownerReferences": [
            {"kind": "ReplicaSet", "name": "web-5d8", "controller": true},
        ]});
    });
    assert_eq!(of_replica_set, (json!("web"), json!("web"), json!("latest")));
    let labelled = node(|pod| {
        pod["metadata"]["labels"] =
            json!({"app": "a", "app.kubernetes.io/name": "shop-web", "version": "v2"});
        pod["metadata"]["ownerReferences"] =
            json!([{"kind": "StatefulSet", "name": "web", "controller": true}]);
    });
    assert_eq!(labelled, (json!("web"), json!("shop-web"), json!("v2")));
}

#[test]
fn settings_have_the_last_word() {
    let settings = InjectSettings {
        dns: true,
        revision: Some("new".into()),
        bootstrap: serde_json::from_value(json!({"tracing": {"otlp": ["http://otel:4317"]}, "health": null}))
            .unwrap(),
        sidecar: serde_json::from_value(json!({"resources": {"limits": null}, "name": "x", "tty": true}))
            .unwrap(),
        ..settings()
    };
    let (pod, _) = injected(&pod(), &settings);
    let bootstrap = bootstrap_of(&pod);
    assert_eq!(bootstrap["tracing"]["otlp"][0], "http://otel:4317");
    assert_eq!((bootstrap.get("health"), &bootstrap["dns"]["domain"]), (None, &json!("cluster.local")));
    assert_eq!(bootstrap["join"]["roots"], ROOTS);
    assert_eq!(container(&pod, INIT)["args"], json!(["intercept", "apply", "--dns"]));
    let sidecar = container(&pod, SIDECAR);
    assert_eq!((&sidecar["tty"], sidecar["resources"].get("limits")), (&json!(true), None));
    assert_eq!(pod["metadata"]["labels"]["outrigger.io/rev"], "new");
    for (broken, word) in [
        (InjectSettings { image: " ".into(), ..settings.clone() }, "image"),
        (InjectSettings { control_plane: "control".into(), ..settings.clone() }, "controlPlane"),
        (InjectSettings { revision: Some("a b".into()), ..settings.clone() }, "revision"),
        (InjectSettings { log_level: "loud".into(), ..settings.clone() }, "logLevel"),
        (InjectSettings { image_pull_policy: Some("Often".into()), ..settings.clone() }, "imagePullPolicy"),
        (InjectSettings { resources: json!(1), ..settings.clone() }, "resources"),
    ] {
        assert!(broken.validate().unwrap_err().to_string().starts_with(word));
    }
    settings.validate().unwrap();
}

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
            one["lifecycle"] = json!({"preStop": {"httpGet": {"port": 80}}, "postStart": {"exec": {}}});
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
        pod["metadata"] = json!({});
    }
    let labels = [
        json!({}),
        json!({"app": "a", "security.istio.io/tlsMode": "disabled"}),
        json!({"outrigger.io/rev": "default"}),
    ];
    let annotations =
        [json!({}), json!({"prometheus.io/scrape": "false"}), json!({"sidecar.istio.io/proxyCPU": "1"})];
    for (field, choices) in [("labels", labels), ("annotations", annotations)] {
        if random.bool() {
            pod["metadata"][field] = choices[random.usize(0..3)].clone();
        }
    }
    pod
}

#[test]
fn what_was_injected_can_be_taken_out_and_the_patch_says_the_same() {
    let mut random = fastrand::Rng::with_seed(15);
    for round in 0..2000 {
        let before = some_pod(&mut random);
        let settings = InjectSettings {
            native_sidecar: random.bool(),
            init_container: random.bool(),
            prometheus: random.bool(),
            ..settings()
        };
        let (after, _) = injected(&before, &settings);
        assert_eq!(uninject(&after).unwrap().as_ref(), Some(&before), "{round}: {before}");
        let mut patched = before.clone();
        let patch: json_patch::Patch = serde_json::from_value(diff(&before, &after).into()).unwrap();
        json_patch::patch(&mut patched, &patch).unwrap();
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
fn a_patch_names_what_has_changed_and_nothing_else() {
    let before = json!({"a/b": 1, "list": [{"name": "x", "v": 1}, {"name": "y"}], "gone": true, "same": {"deep": [1]}});
    let after = json!({"a/b": 2, "list": [{"name": "new"}, {"name": "x", "v": 2}, {"name": "y"}], "same": {"deep": [1]}});
    let operations = diff(&before, &after);
    assert_eq!(
        json!(operations),
        json!([
            {"op": "remove", "path": "/gone"},
            {"op": "replace", "path": "/a~1b", "value": 2},
            {"op": "add", "path": "/list/0", "value": {"name": "new"}},
            {"op": "replace", "path": "/list/1/v", "value": 2},
        ])
    );
}

#[test]
fn documents_with_pods_are_known_by_group_and_kind() {
    use workload::{Kind, kind};
    let of = |version: &str, name: &str| kind(&json!({"apiVersion": version, "kind": name, "items": []}));
    assert_eq!(of("v1", "Pod"), Kind::Pod);
    assert_eq!(of("apps/v1", "Deployment"), Kind::Template("/spec/template"));
    assert_eq!(of("batch/v1", "CronJob"), Kind::Template("/spec/jobTemplate/spec/template"));
    assert_eq!(of("v1", "List"), Kind::List);
    assert_eq!(of("apps/v1", "DeploymentList"), Kind::List);
    for (version, name) in [("v1", "Service"), ("example.com/v1", "Deployment"), ("", "")] {
        assert_eq!(of(version, name), Kind::Other);
    }
}
