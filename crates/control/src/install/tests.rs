use super::*;
use crate::inject::InjectSettings;
use crate::settings::Settings;

mod revisions;

/// The settings of the control plane that a manifest has.
fn settings(manifest: &str) -> Settings {
    let map = manifest.split("\n---\n").find(|object| object.contains("\nkind: ConfigMap")).unwrap();
    let map: Value = serde_saphyr::from_str(map).unwrap();
    let settings: Settings = serde_saphyr::from_str(map["data"]["control.yaml"].as_str().unwrap()).unwrap();
    settings.validate().unwrap();
    settings
}

#[test]
fn values_say_what_sidecars_are_like_and_none_is_lost() {
    let mut values = Values::defaults().unwrap();
    let before = manifest(NAMESPACE, &values).unwrap();
    let wanted = InjectSettings {
        image: "outrigger-proxy:0.1.0".into(),
        revision: Some("default".into()),
        ..InjectSettings::default()
    };
    assert_eq!(settings(&before).injector.unwrap(), wanted, "defaults are those of the settings");
    let text = "{nativeSidecar: false, initContainer: false, holdApplicationUntilProxyStarts: true, rewriteProbes: false,
        prometheus: false, mergeMetrics: false, dns: true, imagePullPolicy: Always, resources: {limits: {cpu: '4'}},
        bootstrap: {tracing: {otlp: ['http://otel:4317?a=1&b=<\"it''s\">']}}, sidecar: {terminationMessagePolicy: File},
        templates: {vault: {spec: {priorityClassName: high}}}, defaultTemplates: [vault]}";
    values.merge(&format!("injector: {text}")).unwrap();
    values.set("injector.logLevel=warn,outrigger_proxy=debug").unwrap();
    values.merge("{imagePullSecrets: [{name: registry}], validationFailurePolicy: Fail, clusterDomain: corp.internal}").unwrap();
    let after = manifest(NAMESPACE, &values).unwrap();
    let mut wanted = serde_json::to_value(wanted).unwrap();
    json_patch::merge(&mut wanted, &serde_saphyr::from_str::<Value>(text).unwrap());
    wanted["logLevel"] = "warn,outrigger_proxy=debug".into();
    wanted["imagePullSecrets"] = serde_json::json!([{"name": "registry"}]);
    wanted["validationFailurePolicy"] = "Fail".into();
    assert_eq!(
        (settings(&before).domain.as_str(), settings(&after).domain.as_str()),
        ("cluster.local", "corp.internal")
    );
    assert_eq!(serde_json::to_value(settings(&after).injector).unwrap(), wanted);
    // Whoever reads them at its start starts anew.
    let of = |text: &str| {
        let set = text.split("\n---\n").find(|object| object.contains("\nkind: StatefulSet")).unwrap();
        let set: Value = serde_saphyr::from_str(set).unwrap();
        set["spec"]["template"]["metadata"]["annotations"]["outrigger.io/settings"].clone()
    };
    assert!(of(&before).is_string() && of(&before) != of(&after));
    let wrong = values.set("injector.dsn=true").unwrap_err();
    assert!(
        wrong.contains("there is no value \"injector.dsn\", only bootstrap, defaultTemplates, dns, "),
        "{wrong}"
    );
    assert!(values.merge("cni: {enable: true}").unwrap_err().contains("\"cni.enable\""));
}

#[test]
fn the_files_are_what_the_code_says() {
    let file = include_str!("../../../../deploy/kubernetes/crds.yaml");
    let how = "outrigger manifest --crds only > deploy/kubernetes/crds.yaml";
    assert_eq!(file, definitions().unwrap(), "run `{how}`");
    let file = include_str!("../../../../deploy/kubernetes/outrigger.yaml");
    let how = "outrigger manifest --crds none > deploy/kubernetes/outrigger.yaml";
    assert_eq!(file, manifest(NAMESPACE, &Values::defaults().unwrap()).unwrap(), "run `{how}`");
}

#[test]
fn values_are_laid_over_the_defaults_and_unknown_ones_are_told() {
    let mut values = Values::defaults().unwrap();
    values.merge("{image: 'registry/outrigger:2', resources: {limits: {cpu: '2'}}}").unwrap();
    values.set("resources.limits.memory=2Gi").unwrap();
    values.set("trustDomain=mesh.test").unwrap();
    let text = manifest("mesh", &values).unwrap();
    for wanted in [
        r#"image: "registry/outrigger:2""#,
        r#"resources: {"limits":{"cpu":"2","memory":"2Gi"},"requests":{"cpu":"100m","memory":"128Mi"}}"#,
        r#"trustDomain: "mesh.test""#,
        "dnsNames: [outrigger-control.mesh.svc, localhost]",
    ] {
        assert!(text.contains(wanted), "{wanted}\n{text}");
    }
    assert!(!text.contains("outrigger-system") && !text.contains("{{ "), "{text}");
    assert!(values.set("images=2").unwrap_err().starts_with(
        "there is no value \"images\", only affinity, authoritySecret, clusterDomain, cni, image, "
    ));
    assert!(
        values.set("image").is_err() && values.set("image.tag=2").is_err() && values.merge("[]").is_err()
    );
    assert!(manifest("Mesh System", &values).is_err());
    // Lists item by item, as Helm takes them.
    values.set("imagePullSecrets[0].name=registry").unwrap();
    values.set("imagePullSecrets[1].name=mirror").unwrap();
    values.set("cni.excludeNamespaces[1]=other").unwrap();
    let text = manifest("mesh", &values).unwrap();
    assert!(text.contains(r#"imagePullSecrets: [{"name":"registry"},{"name":"mirror"}]"#), "{text}");
    for wrong in ["tolerations[x].key=a", "tolerations[99].key=a", "tolerations[0=a", "image[0]=a"] {
        assert!(values.set(wrong).unwrap_err().contains("list"), "{wrong}");
    }
}

#[test]
fn the_cni_plugin_is_there_where_it_is_wanted_and_may_do_what_it_was_told_to() {
    let mut values = Values::defaults().unwrap();
    let without = manifest(NAMESPACE, &values).unwrap();
    assert!(!without.contains("outrigger-cni") && without.contains("      cni: false\n"), "{without}");
    values.set("cni.enabled=true").unwrap();
    let with = manifest(NAMESPACE, &values).unwrap();
    for wanted in [
        "      cni: true\n",
        "\n---\n# The CNI plugin",
        "        - --exclude-namespaces=outrigger-system,kube-system\n",
        "        - --exclude-namespaces=kube-system,kube-public,kube-node-lease\n",
        "        - --repair-rules\n        env:",
        "hostPID: true",
    ] {
        assert!(with.contains(wanted), "{wanted}\n{with}");
    }
    assert!(
        !with.contains("pods/eviction") && !with.contains("verbs: [patch]}\n---\napiVersion: rbac"),
        "{with}"
    );
    values.merge("cni: {repair: {rules: false, evict: true, label: true}}").unwrap();
    let with = manifest(NAMESPACE, &values).unwrap();
    for wanted in [
        "[pods/eviction], verbs: [create]",
        "resources: [pods], verbs: [patch]",
        "--repair-evict",
        "--repair-label",
    ] {
        assert!(with.contains(wanted), "{wanted}\n{with}");
    }
    assert!(with.contains("hostPID: true") && !with.contains("--repair-rules"), "{with}");
    let excluded =
        values.set("cni.excludeNamespaces=kube-system").and_then(|()| manifest(NAMESPACE, &values));
    assert!(excluded.unwrap_err().contains("is no list"));
}

#[test]
fn kinds_that_nobody_reads_are_shown_to_the_webhook_so_that_whoever_stores_one_is_told() {
    let text = manifest(NAMESPACE, &Values::defaults().unwrap()).unwrap();
    let webhooks = text.split("\n---\n").find(|part| part.contains("\nkind: ValidatingWebhookConfiguration"));
    let webhooks: Value = serde_saphyr::from_str(webhooks.unwrap()).unwrap();
    let all = webhooks["webhooks"].as_array().unwrap();
    let others = all.iter().find(|webhook| webhook["name"] == "others.validate.outrigger.io").unwrap();
    assert_eq!(others["failurePolicy"], "Ignore");
    let mut shown: Vec<(String, String)> = Vec::new();
    for rule in others["rules"].as_array().unwrap() {
        let words = |field: &str| -> Vec<String> { serde_json::from_value(rule[field].clone()).unwrap() };
        assert_eq!(words("operations"), ["CREATE", "UPDATE"]);
        for group in words("apiGroups") {
            shown.extend(words("resources").into_iter().map(|resource| (group.clone(), resource)));
        }
    }
    shown.sort();
    let plural = |kind: &str| match kind.to_lowercase().strip_suffix('y') {
        Some(stem) if !stem.ends_with('a') => format!("{stem}ies"),
        _ => format!("{}s", kind.to_lowercase()),
    };
    let known = outrigger_rules::foreign_kinds().map(|(group, kind)| (group.to_owned(), plural(kind)));
    let mut known: Vec<(String, String)> = known.collect();
    known.sort();
    assert_eq!(shown, known);
}

/// None of them is ever refused: while nobody can be asked they need not wait, whatever becomes of rules that are stored.
#[test]
fn deletions_of_rules_pass_while_nobody_judges_them() {
    let mut values = Values::defaults().unwrap();
    values.set("validationFailurePolicy=Fail").unwrap();
    let text = manifest(NAMESPACE, &values).unwrap();
    let webhooks = text.split("\n---\n").find(|part| part.contains("\nkind: ValidatingWebhookConfiguration"));
    let webhooks: Value = serde_saphyr::from_str(webhooks.unwrap()).unwrap();
    let of = |name: &str| {
        let all = webhooks["webhooks"].as_array().unwrap();
        let found = all.iter().find(|webhook| webhook["name"] == name).unwrap();
        let mut rules = found["rules"].clone();
        let shown = rules.as_array_mut().unwrap().iter_mut().map(|rule| rule["operations"].take());
        let shown: Vec<Value> = shown.collect();
        (found["failurePolicy"].clone(), shown, rules)
    };
    let (stored, deleted) = (of("rules.validate.outrigger.io"), of("deletions.validate.outrigger.io"));
    assert_eq!((stored.0, deleted.0), ("Fail".into(), "Ignore".into()));
    assert!(stored.1.iter().all(|one| *one == serde_json::json!(["CREATE", "UPDATE"])), "{:?}", stored.1);
    assert!(deleted.1.iter().all(|one| *one == serde_json::json!(["DELETE"])), "{:?}", deleted.1);
    assert_eq!(stored.2, deleted.2, "of the same kinds");
}

#[test]
fn the_agents_say_that_they_are_unconfined_as_their_cluster_reads_it() {
    let mut values = Values::defaults().unwrap();
    values.set("cni.enabled=true").unwrap();
    let (annotation, field) = (
        "container.apparmor.security.beta.kubernetes.io/cni: unconfined",
        "appArmorProfile: {type: Unconfined}",
    );
    for (release, old) in
        [(None, false), (Some("v1.30.1"), false), (Some("1.29"), true), (Some("1.27"), true)]
    {
        values.render_for(release.map(|text| text.parse().unwrap()));
        // Who does not say it is told what is taken for granted.
        assert_eq!(
            values.hint().is_some_and(|hint| hint.contains("--kubernetes-version")),
            release.is_none()
        );
        let text = manifest(NAMESPACE, &values).unwrap();
        assert_eq!((text.contains(annotation), text.contains(field)), (old, !old), "{release:?}");
    }
}

/// The Pod of a workload.
fn pod_of(text: &str, kind: &str) -> (Value, Value) {
    let found = text.split("\n---\n").find(|object| object.contains(&format!("\nkind: {kind}\n"))).unwrap();
    let found: Value = serde_saphyr::from_str(found).unwrap();
    (found["spec"]["template"]["spec"].clone(), found["spec"].clone())
}

#[test]
fn a_volume_is_claimed_only_where_one_is_asked_for() {
    let mut values = Values::defaults().unwrap();
    let (pod, set) = pod_of(&manifest(NAMESPACE, &values).unwrap(), "StatefulSet");
    assert_eq!(set.get("volumeClaimTemplates"), None, "an empty cluster has nobody who makes volumes");
    assert_eq!(pod["volumes"][1], serde_json::json!({"name": "data", "emptyDir": {}}));
    // An autoscaler of clusters takes it for data that must not be lost, and keeps the node, unless it is told otherwise.
    let is_safe = |set: &Value| {
        set["template"]["metadata"]["annotations"]["cluster-autoscaler.kubernetes.io/safe-to-evict-local-volumes"].clone()
    };
    assert_eq!(is_safe(&set), "data");
    values.set("storage=2Gi").unwrap();
    let (pod, set) = pod_of(&manifest(NAMESPACE, &values).unwrap(), "StatefulSet");
    assert_eq!(is_safe(&set), Value::Null);
    assert_eq!(pod["volumes"].as_array().unwrap().len(), 1);
    let claim = &set["volumeClaimTemplates"][0];
    assert_eq!((&claim["metadata"]["name"], claim["spec"].get("storageClassName")), (&"data".into(), None));
    assert_eq!(claim["spec"]["resources"]["requests"]["storage"], "2Gi");
    values.set("storageClass=fast").unwrap();
    let (_, set) = pod_of(&manifest(NAMESPACE, &values).unwrap(), "StatefulSet");
    assert_eq!(set["volumeClaimTemplates"][0]["spec"]["storageClassName"], "fast");
}

#[test]
fn the_authority_is_one_that_was_brought_along_where_a_secret_says_so() {
    let mut values = Values::defaults().unwrap();
    let text = manifest(NAMESPACE, &values).unwrap();
    assert_eq!(settings(&text).authority_dir, None);
    assert!(!text.contains("secretName"), "{text}");
    values.set("authoritySecret=provided").unwrap();
    let text = manifest(NAMESPACE, &values).unwrap();
    let directory = settings(&text).authority_dir.unwrap();
    let (pod, _) = pod_of(&text, "StatefulSet");
    let by_name = |list: &Value, name: &str| {
        list.as_array().unwrap().iter().find(|one| one["name"] == name).unwrap().clone()
    };
    let mount = by_name(&pod["containers"][0]["volumeMounts"], "authority");
    assert_eq!((mount["mountPath"].as_str(), mount["readOnly"].as_bool()), (directory.to_str(), Some(true)));
    let secret = &by_name(&pod["volumes"], "authority")["secret"];
    assert_eq!(*secret, serde_json::json!({"secretName": "provided", "defaultMode": 0o440}));
    assert_eq!(pod["securityContext"]["fsGroup"], 1337, "who may read it");
}

/// One value is for both: whom we call by mTLS, and who calls us so.
#[test]
fn sidecars_of_istio_are_peers_in_both_directions_or_in_none() {
    let mut values = Values::defaults().unwrap();
    for istio_peers in [false, true] {
        values.set(&format!("istioPeers={istio_peers}")).unwrap();
        let settings = settings(&manifest(NAMESPACE, &values).unwrap());
        assert_eq!(settings.cluster().unwrap().istio_peers, istio_peers);
        assert_eq!(settings.injector.unwrap().istio_peers, istio_peers);
    }
}

#[test]
fn where_replicas_run_and_how_images_are_pulled_are_values() {
    let mut values = Values::defaults().unwrap();
    let fields = ["imagePullSecrets", "tolerations", "affinity", "priorityClassName"];
    values.set("cni.enabled=true").unwrap();
    let (bare, _) = pod_of(&manifest(NAMESPACE, &values).unwrap(), "StatefulSet");
    assert!(fields.iter().all(|field| bare.get(*field).is_none()), "{bare}");
    // Nodes of Windows are not tainted everywhere, and there is no image for them.
    let linux = serde_json::json!({"kubernetes.io/os": "linux"});
    assert_eq!(bare["nodeSelector"], linux);
    assert_eq!(pod_of(&manifest(NAMESPACE, &values).unwrap(), "DaemonSet").0["nodeSelector"], linux);
    let said = "{imagePullSecrets: [{name: registry}], nodeSelector: {pool: system}, tolerations: [{key: dedicated, operator: Exists}],
        affinity: {podAntiAffinity: {}}, priorityClassName: system-cluster-critical}";
    values.merge(said).unwrap();
    let text = manifest(NAMESPACE, &values).unwrap();
    let (pod, _) = pod_of(&text, "StatefulSet");
    let said: Value = serde_saphyr::from_str(said).unwrap();
    for field in fields {
        assert_eq!(pod[field], said[field], "{field}");
    }
    assert_eq!(pod["nodeSelector"], serde_json::json!({"kubernetes.io/os": "linux", "pool": "system"}));
    assert_eq!(pod_of(&text, "DaemonSet").0["imagePullSecrets"], said["imagePullSecrets"]);
    assert_eq!(settings(&text).injector.unwrap().image_pull_secrets[0].name, "registry");
}

#[test]
fn what_is_taken_out_is_everything_that_may_have_been_installed() {
    let identities = |text: &str| -> std::collections::BTreeSet<String> {
        let all = text.split("\n---\n").map(|part| serde_saphyr::from_str::<Value>(part).unwrap());
        let word = |object: &Value, path: &str| {
            object.pointer(path).and_then(Value::as_str).unwrap_or_default().to_owned()
        };
        all.map(|object| {
            ["/kind", "/metadata/namespace", "/metadata/name"].map(|path| word(&object, path)).join(" ")
        })
        .collect()
    };
    let mut values = Values::defaults().unwrap();
    let plain = identities(&uninstalled(NAMESPACE, &values).unwrap());
    values.merge("{cni: {enabled: true, repair: {evict: true, label: true}}, injectByAnnotation: true, storage: 1Gi}").unwrap();
    let made = identities(&installed(NAMESPACE, &values).unwrap());
    assert!(plain.contains("DaemonSet kube-system outrigger-cni"), "{plain:?}");
    assert_eq!(plain, made);
    // The plugin is the default revision's, and stays with it.
    values.set("revision=new").unwrap();
    let other = identities(&uninstalled(NAMESPACE, &values).unwrap());
    assert!(!other.iter().any(|one| one.contains("outrigger-cni")), "{other:?}");
}

/// Whoever cannot be asked is asked by nobody, and who ends may still say so.
#[test]
fn webhooks_are_taken_out_first_and_what_the_others_may_do_last() {
    let text = uninstalled(NAMESPACE, &Values::defaults().unwrap()).unwrap();
    let kinds: Vec<&str> = text.lines().filter_map(|line| line.strip_prefix("kind: ")).collect();
    let place = |kind: &str| kinds.iter().position(|one| *one == kind).unwrap();
    let last = |kind: &str| kinds.iter().rposition(|one| *one == kind).unwrap();
    for workload in ["StatefulSet", "DaemonSet"] {
        for webhook in ["MutatingWebhookConfiguration", "ValidatingWebhookConfiguration"] {
            assert!(last(webhook) < place(workload), "{kinds:?}");
        }
        for right in ["ServiceAccount", "ClusterRole", "ClusterRoleBinding", "Role", "RoleBinding"] {
            assert!(last(workload) < place(right), "{kinds:?}");
        }
    }
    // Nothing is lost by that, nor is anything in two pieces.
    assert_eq!(text.split("\n---\n").count(), kinds.len());
}

#[test]
fn what_is_taken_out_is_neither_the_namespace_nor_a_volume_nor_a_secret() {
    let text = uninstalled(NAMESPACE, &Values::defaults().unwrap()).unwrap();
    let kinds: Vec<&str> = text.lines().filter_map(|line| line.strip_prefix("kind: ")).collect();
    assert!(kinds.contains(&"StatefulSet") && kinds.contains(&"ClusterRole"), "{kinds:?}");
    for kept in ["Namespace", "PersistentVolumeClaim", "Secret", "Lease"] {
        assert!(!kinds.contains(&kept), "{kept} {kinds:?}");
    }
}
