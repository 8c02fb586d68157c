use serde_json::{Value, json};

mod annotations;
mod cni;
mod kinds;
mod probes;
mod scrape;
mod shared;
mod templates;
mod undone;

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

fn subject<'a>(pod: &'a Value, namespace: &'a Namespace) -> Subject<'a> {
    Subject { pod, namespace, workload: None, kubernetes: None, by_hand: false, earlier: None }
}

fn in_namespace(
    pod: &Value,
    namespace: &Namespace,
    settings: &InjectSettings,
) -> Result<Injection, InjectError> {
    inject(subject(pod, namespace), settings, &mesh())
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
        (None, &["@linkerd.io/inject=ingress"], &[], yes),
        (None, &[], &["@linkerd.io/inject=ingress"], yes),
        (None, &["istio-injection=enabled"], &["outrigger.io/inject=ingress"], "it says no"),
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
        // Istio's label alone counts, where there are both.
        (None, &["istio-injection=enabled", "outrigger.io/inject=enabled", "istio.io/rev=new"], &[], yes),
        (
            None,
            &["istio-injection=disabled", "outrigger.io/inject=enabled"],
            &[],
            "its namespace says no (istio-injection)",
        ),
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
    assert!(with("nodeSelector", json!({"kubernetes.io/os": "windows"})).contains("Windows"));
    // What the API server has of a static Pod: it would take no token for it, and the Pod that runs is the file's.
    let mut mirror = pod();
    mirror["metadata"]["annotations"] = json!({"kubernetes.io/config.mirror": "c0ffee"});
    assert!(left(&mirror, "shop").contains("from a file of its node"));
    assert!(with("initContainers", json!([{"name": "istio-proxy"}])).contains("container istio-proxy"));
    assert!(with("containers", json!([{"name": "a"}, {"name": "linkerd-proxy"}])).contains("linkerd-proxy"));
}

#[test]
fn a_deployment_is_injected_as_it_was_agreed() {
    let before: Value = serde_saphyr::from_str(include_str!("tests/deployment.yaml")).unwrap();
    let mut after = before.clone();
    let namespace = Namespace::enabled("shop", None);
    let subject = Subject { workload: Some("catalog"), ..subject(&before["spec"]["template"], &namespace) };
    let Injection::Injected { pod, warnings } = inject(subject, &settings(), &mesh()).unwrap() else {
        panic!()
    };
    assert_eq!(warnings, [""; 0]);
    after["spec"]["template"] = *pod;
    let text = yaml(&after).unwrap();
    let wanted = include_str!("tests/deployment.injected.yaml");
    assert_eq!(text, wanted, "if this is what is meant, it belongs into deployment.injected.yaml:\n{text}");
}

fn with_a_probe() -> Value {
    let mut pod = pod();
    pod["spec"]["containers"][0]["livenessProbe"] = json!({"tcpSocket": {"port": 80}, "timeoutSeconds": 3});
    pod
}

#[test]
fn injecting_twice_changes_nothing() {
    for before in [pod(), with_a_probe()] {
        let (once, _) = injected(&before, &settings());
        let (twice, _) = injected(&once, &settings());
        assert_eq!(twice, once);
    }
}

#[test]
fn what_others_add_after_us_is_injected_too_and_what_they_made_of_ours_stays() {
    for native in [true, false] {
        let native_sidecar = if native { NativeSidecar::Yes } else { NativeSidecar::No };
        let settings = InjectSettings { native_sidecar, ..settings() };
        let (mut pod, _) = injected(&with_a_probe(), &settings);
        let list = if native { "initContainers" } else { "containers" };
        // Another webhook puts a container of its own first, takes images from a mirror and is patient.
        let late = json!({"name": "late", "readinessProbe": {"httpGet": {"port": 9, "path": "/x"}}});
        pod["spec"]["containers"].as_array_mut().unwrap().insert(0, late);
        let all = pod["spec"][list].as_array_mut().unwrap();
        let sidecar = all.iter_mut().find(|container| container["name"] == SIDECAR).unwrap();
        sidecar["image"] = "mirror/outrigger-proxy:test".into();
        sidecar["env"].as_array_mut().unwrap().insert(0, json!({"name": "HTTP_PROXY", "value": "p"}));
        let app = pod["spec"]["containers"].as_array_mut().unwrap().last_mut().unwrap();
        app["livenessProbe"]["timeoutSeconds"] = 20.into();

        let (again, _) = injected(&pod, &settings);
        let expected: &[&str] = if native { &["late", "app"] } else { &[SIDECAR, "late", "app"] };
        assert_eq!(container_names(&again, "containers"), expected);
        let sidecar = container(&again, SIDECAR);
        assert_eq!(
            (&sidecar["image"], &sidecar["env"][0]["name"]),
            (&json!("mirror/outrigger-proxy:test"), &json!("HTTP_PROXY"))
        );
        assert_eq!(container(&again, "late")["readinessProbe"]["httpGet"]["path"], "/app-health/late/readyz");
        let probes = &bootstrap_of(&again)["probes"];
        assert_eq!(probes["late/readyz"]["http"]["port"], 9);
        assert_eq!(probes["app/livez"]["timeout"], "20s");
        assert_eq!(injected(&again, &settings).0, again);
        // And all of it can be taken out again.
        let undone = uninject(&again).unwrap().unwrap();
        assert_eq!(container_names(&undone, "containers"), ["late", "app"]);
        assert_eq!(
            undone["spec"]["containers"][0]["readinessProbe"],
            json!({"httpGet": {"port": 9, "path": "/x"}})
        );
        assert_eq!(
            undone["spec"]["containers"][1]["livenessProbe"],
            json!({"tcpSocket": {"port": 80}, "timeoutSeconds": 20})
        );
    }
}

#[test]
fn an_annotation_without_a_sidecar_is_no_injection() {
    let (injected_once, _) = injected(&pod(), &settings());
    let status = injected_once["metadata"]["annotations"][STATUS].clone();
    for claim in [status, json!("{}"), json!("yes")] {
        let mut claims = pod();
        claims["metadata"]["annotations"] = json!({STATUS: claim});
        let (after, _) = injected(&claims, &settings());
        assert_eq!(container(&after, SIDECAR)["image"], "outrigger-proxy:test");
        assert_eq!(uninject(&after).unwrap().unwrap()["spec"], pod()["spec"]);
    }
    // What another revision has put in, or nobody knows who, is not ours.
    let left = |pod: &Value| match in_namespace(pod, &Namespace::enabled("shop", None), &settings()).unwrap()
    {
        Injection::LeftAlone(why) => why,
        Injection::Injected { .. } => panic!("{pod}"),
    };
    let new = InjectSettings { revision: Some("new".into()), ..settings() };
    assert!(left(&injected(&pod(), &new).0).contains("already, by revision new"));
    let mut spoiled = injected_once;
    spoiled["metadata"]["annotations"][STATUS] = "{".into();
    assert!(left(&spoiled).contains("already"));
}

#[test]
fn containers_stand_where_they_can_do_their_work() {
    let mut pod = pod();
    pod["spec"]["initContainers"] = json!([{"name": "migrate"}]);
    let (native, _) = injected(&pod, &settings());
    assert_eq!(container_names(&native, "initContainers"), [INIT, SIDECAR, "migrate"]);
    assert_eq!(container_names(&native, "containers"), ["app"]);
    assert_eq!(container(&native, SIDECAR)["restartPolicy"], "Always");

    let plain = InjectSettings {
        native_sidecar: NativeSidecar::No,
        hold_application_until_proxy_starts: true,
        ..settings()
    };
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
    let (checked, _) = injected(&self::pod(), &InjectSettings { cni: true, ..settings() });
    let validation = &container(&checked, VALIDATION)["securityContext"];
    for context in [init, sidecar, validation] {
        // A Pod may have no profile of its own, where each container must have one.
        assert_eq!(context["seccompProfile"], json!({"type": "RuntimeDefault"}));
        assert_eq!(context["readOnlyRootFilesystem"], true);
        assert_eq!(context["allowPrivilegeEscalation"], false);
    }
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
        pod["metadata"] = json!({"generateName": "web-5d8-", "labels": {"pod-template-hash": "5d8"},
            "ownerReferences": [{"kind": "ReplicaSet", "name": "web-5d8", "controller": true}]});
    });
    assert_eq!(of_replica_set, (json!("web"), json!("web"), json!("latest")));
    let labelled = node(|pod| {
        pod["metadata"]["labels"] =
            json!({"app": "a", "app.kubernetes.io/name": "shop-web", "version": "v2"});
        pod["metadata"]["ownerReferences"] =
            json!([{"kind": "StatefulSet", "name": "web", "controller": true}]);
    });
    assert_eq!(labelled, (json!("web"), json!("shop-web"), json!("v2")));
    let run = node(|pod| {
        pod["metadata"] = json!({"generateName": "backup-29001234-",
            "ownerReferences": [{"kind": "Job", "name": "backup-29001234", "controller": true}]});
    });
    assert_eq!(run, (json!("backup"), json!("backup"), json!("latest")));
}

/// A control plane of Istio has its sidecars speak mTLS to whoever has the label; only where they have our roots is that taken.
#[test]
fn sidecars_of_istio_are_told_to_speak_mtls_only_where_they_have_our_roots() {
    let label = |pod: &Value| pod["metadata"]["labels"].get(TLS_MODE).cloned();
    let (alone, _) = injected(&pod(), &settings());
    assert_eq!(label(&alone), None);
    let shared = InjectSettings { istio_peers: true, ..settings() };
    let (peer, _) = injected(&pod(), &shared);
    assert_eq!(label(&peer), Some(json!("istio")));
    assert_eq!(uninject(&peer).unwrap(), Some(pod()));
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
    let with_field = |field: &str, value: Value| {
        let sidecar = Fields::from_iter([(field.to_owned(), value)]);
        InjectSettings { sidecar, ..settings.clone() }
    };
    let with_context = |context: Value| with_field("securityContext", context);
    with_context(json!({"runAsGroup": 7})).validate().unwrap();
    for (broken, word) in [
        (InjectSettings { image: " ".into(), ..settings.clone() }, "image"),
        (InjectSettings { control_plane: "control".into(), ..settings.clone() }, "controlPlane"),
        (InjectSettings { revision: Some("a b".into()), ..settings.clone() }, "revision"),
        (InjectSettings { log_level: "loud".into(), ..settings.clone() }, "logLevel"),
        (InjectSettings { image_pull_policy: Some("Often".into()), ..settings.clone() }, "imagePullPolicy"),
        (InjectSettings { resources: json!(1), ..settings.clone() }, "resources"),
        (with_context(json!({"runAsUser": 7})), "sidecar.securityContext.runAsUser"),
        (with_context(json!({"runAsUser": null})), "sidecar.securityContext.runAsUser"),
        (with_context(Value::Null), "sidecar.securityContext: null"),
        (with_field("env", json!([{"name": "A", "value": "1"}])), "sidecar.env: a list"),
        (with_field("volumeMounts", json!([])), "sidecar.volumeMounts: a list"),
        (
            InjectSettings {
                image_pull_secrets: vec![PullSecret { name: String::new() }],
                ..settings.clone()
            },
            "imagePullSecrets",
        ),
    ] {
        assert!(broken.validate().unwrap_err().to_string().starts_with(word));
    }
    settings.validate().unwrap();
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
