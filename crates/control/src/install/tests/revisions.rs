//! Two revisions in one cluster: what is whose, and who is asked for which Pods.

use std::collections::BTreeMap;

use super::*;
use crate::inject::{Injection, Mesh, Namespace, Subject, inject};

/// By its names.
fn of_revision(revision: &str) -> String {
    let mut values = Values::defaults().unwrap();
    values.set(&format!("revision={revision}")).unwrap();
    manifest(NAMESPACE, &values).unwrap()
}

#[test]
fn a_revision_stands_beside_the_default_one_under_names_of_its_own_and_shares_what_it_has_to() {
    let identities = |text: &str| -> Vec<String> {
        let all = text.split("\n---\n").map(|part| serde_saphyr::from_str::<Value>(part).unwrap());
        let word = |object: &Value, path: &str| {
            object.pointer(path).and_then(Value::as_str).unwrap_or_default().to_owned()
        };
        all.map(|object| format!("{} {}", word(&object, "/kind"), word(&object, "/metadata/name"))).collect()
    };
    let (default, new) = (of_revision("default"), of_revision("1-2"));
    let (default, new_ones) = (identities(&default), identities(&new));
    assert_eq!(default.len(), new_ones.len());
    let shared: Vec<&String> = default.iter().filter(|one| new_ones.contains(one)).collect();
    assert_eq!(shared, [&format!("Namespace {NAMESPACE}")]);
    for wanted in [
        "resourceNames: [outrigger-authority, outrigger-revocations, outrigger-join-tokens]",
        "resourceNames: [outrigger-control, outrigger-control-1-2]",
        "outrigger.io/control-planes: outrigger-control}",
        "controlPlane: outrigger-control-1-2.outrigger-system.svc:15012",
        "resourceNames: [outrigger-injector-1-2]",
    ] {
        assert!(new.contains(wanted), "{wanted}\n{new}");
    }
    let settings = settings(&new);
    let replicas = settings.replicas.unwrap();
    assert_eq!(
        (replicas.service.as_str(), replicas.lease.as_deref()),
        ("outrigger-control-1-2", Some("outrigger-control"))
    );
    let injector = settings.injector.unwrap();
    assert_eq!(
        (injector.webhook.as_str(), injector.validating_webhook.as_str()),
        ("outrigger-injector-1-2", "outrigger-validator-1-2")
    );

    // The plugin is one for all; its check in Pods is each revision's.
    let mut values = Values::defaults().unwrap();
    values.merge("{revision: new, cni: {enabled: true}}").unwrap();
    let text = manifest(NAMESPACE, &values).unwrap();
    assert!(!text.contains("DaemonSet") && text.contains("      cni: true\n"), "{text}");

    for wrong in ["", "1.2", "New", "new-", &"x".repeat(41)] {
        let mut values = Values::defaults().unwrap();
        values.set(&format!("revision={wrong}")).unwrap();
        let error = manifest(NAMESPACE, &values).unwrap_err();
        assert!(error.starts_with("revision: ") && error.contains("such as 1-2"), "{error}");
    }
}

type Labels = BTreeMap<String, String>;

/// Whether a selector takes an object with these labels.
fn selects(selector: &Value, labels: &Labels) -> bool {
    selector["matchExpressions"].as_array().unwrap().iter().all(|one| {
        let value = labels.get(one["key"].as_str().unwrap());
        let among =
            || value.is_some_and(|value| one["values"].as_array().unwrap().iter().any(|one| one == value));
        match one["operator"].as_str().unwrap() {
            "In" => among(),
            "NotIn" => !among(),
            "DoesNotExist" => value.is_none(),
            other => panic!("{other}"),
        }
    })
}

/// How many of these labels there can be, none of each among them.
fn combinations(all: &[(&str, &[&str])]) -> Vec<Labels> {
    let mut found = vec![Labels::new()];
    for (key, values) in all {
        let with = |labels: &Labels, value: &&str| {
            let mut labels = labels.clone();
            labels.insert((*key).to_owned(), (*value).to_owned());
            labels
        };
        let more: Vec<Labels> =
            found.iter().flat_map(|labels| values.iter().map(move |value| with(labels, value))).collect();
        found.extend(more);
    }
    found
}

#[test]
fn whoever_would_inject_a_pod_is_asked_and_nobody_else() {
    let webhooks = |revision: &str| -> Vec<Value> {
        let text = of_revision(revision);
        let part = text.split("\n---\n").find(|part| part.contains("\nkind: MutatingWebhookConfiguration"));
        let part: Value = serde_saphyr::from_str(part.unwrap()).unwrap();
        part["webhooks"].as_array().unwrap().clone()
    };
    let revisions = ["default", "new"].map(|revision| {
        let settings = InjectSettings {
            image: "proxy".into(),
            revision: Some(revision.to_owned()),
            ..InjectSettings::default()
        };
        (webhooks(revision), settings)
    });
    let mesh =
        Mesh { trust_domain: "cluster.local".into(), domain: "cluster.local".into(), roots: "roots".into() };
    let says = ["enabled", "disabled"];
    let named = ["default", "new"];
    let namespaces = combinations(&[
        ("istio-injection", &says),
        ("outrigger.io/inject", &says),
        ("istio.io/rev", &named),
        ("outrigger.io/rev", &named),
    ]);
    let pods = combinations(&[
        ("sidecar.istio.io/inject", &["true", "false"]),
        ("outrigger.io/inject", &["enabled"]),
        ("istio.io/rev", &named),
        // What it has got, from whoever injected what it is a copy of.
        ("outrigger.io/rev", &named),
    ]);
    let mut injected = 0;
    for (labels, of_pod) in namespaces.iter().flat_map(|labels| pods.iter().map(move |pod| (labels, pod))) {
        // One that says both yes and no is left alone.
        let asks = ["outrigger.io/inject", "istio.io/rev"].iter().any(|key| of_pod.contains_key(*key));
        if of_pod.get("sidecar.istio.io/inject").is_some_and(|word| word == "false") && asks {
            continue;
        }
        let namespace = Namespace { name: "shop".into(), labels: labels.clone(), annotations: Labels::new() };
        let pod =
            serde_json::json!({"metadata": {"labels": of_pod}, "spec": {"containers": [{"name": "app"}]}});
        let answers = revisions.each_ref().map(|(webhooks, settings)| {
            let subject = Subject {
                pod: &pod,
                namespace: &namespace,
                workload: None,
                kubernetes: None,
                by_hand: false,
                earlier: None,
            };
            let is_injected = matches!(inject(subject, settings, &mesh).unwrap(), Injection::Injected { .. });
            let mut named = labels.clone();
            named.insert("kubernetes.io/metadata.name".to_owned(), "shop".to_owned());
            let asked = webhooks.iter().filter(|webhook| {
                selects(&webhook["namespaceSelector"], &named) && selects(&webhook["objectSelector"], of_pod)
            });
            (is_injected, asked.count())
        });
        let shown = format!("{labels:?} {of_pod:?}: {answers:?}");
        let wanted = answers.iter().filter(|(is_injected, _)| *is_injected).count();
        assert!(wanted <= 1, "{shown}");
        injected += wanted;
        for (is_injected, asked) in answers {
            match is_injected {
                true => assert_eq!(asked, 1, "{shown}"),
                false => assert!(asked == 0 || wanted == 0, "{shown}"),
            }
        }
    }
    assert!(injected > 100, "{injected}");
}

#[test]
fn where_annotations_count_too_whoever_says_nothing_by_a_label_is_shown_as_well_and_nobody_twice() {
    let webhooks = |by_annotation: &str, revision: &str| -> Vec<Value> {
        let mut values = Values::defaults().unwrap();
        values.set(&format!("injectByAnnotation={by_annotation}")).unwrap();
        values.set(&format!("revision={revision}")).unwrap();
        let text = manifest(NAMESPACE, &values).unwrap();
        let part = text.split("\n---\n").find(|part| part.contains("\nkind: MutatingWebhookConfiguration"));
        let part: Value = serde_saphyr::from_str(part.unwrap()).unwrap();
        part["webhooks"].as_array().unwrap().clone()
    };
    let (without, with) = (webhooks("false", "default"), webhooks("true", "default"));
    assert_eq!(with.len(), without.len() + 1);
    assert_eq!(webhooks("true", "new").len(), webhooks("false", "new").len(), "nobody names one so");
    let words = |more: &[(&str, &str)]| -> Labels {
        more.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    };
    let asked = |all: &[Value], namespace: &[(&str, &str)], pod: &[(&str, &str)]| {
        let (mut namespace, pod) = (words(namespace), words(pod));
        namespace.entry("kubernetes.io/metadata.name".to_owned()).or_insert_with(|| "shop".to_owned());
        let is = |webhook: &&Value| {
            selects(&webhook["namespaceSelector"], &namespace) && selects(&webhook["objectSelector"], &pod)
        };
        all.iter().filter(is).count()
    };
    assert_eq!((asked(&without, &[], &[]), asked(&with, &[], &[])), (0, 1));
    // What labels say is asked about as it was.
    for (namespace, pod, wanted) in [
        (&[("istio-injection", "enabled")][..], &[][..], 1),
        (&[("outrigger.io/inject", "enabled")], &[], 1),
        (&[], &[("sidecar.istio.io/inject", "true")], 1),
        (&[], &[("outrigger.io/inject", "enabled")], 1),
        (&[], &[("sidecar.istio.io/inject", "false")], 0),
        (&[("istio-injection", "disabled")], &[], 0),
        (&[("istio.io/rev", "new")], &[], 0),
        (&[("kubernetes.io/metadata.name", "kube-system")], &[], 0),
    ] {
        assert_eq!(
            (asked(&with, namespace, pod), asked(&without, namespace, pod)),
            (wanted, wanted),
            "{namespace:?} {pod:?}"
        );
    }
}

/// Who applies a Deployment into a namespace of ours is told what its Pods will not hear.
#[test]
fn what_makes_pods_is_shown_to_the_revision_of_its_namespace() {
    let shown = |revision: &str, namespace: &[(&str, &str)]| {
        let text = of_revision(revision);
        let part = text.split("\n---\n").find(|part| part.contains("\nkind: ValidatingWebhookConfiguration"));
        let part: Value = serde_saphyr::from_str(part.unwrap()).unwrap();
        let mut labels = Labels::from([("kubernetes.io/metadata.name".to_owned(), "shop".to_owned())]);
        labels.extend(namespace.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())));
        let all = part["webhooks"].as_array().unwrap().iter();
        let all = all.filter(|one| one["clientConfig"]["service"]["path"] == "/inject/warnings");
        all.filter(|one| {
            assert_eq!((&one["failurePolicy"], &one["timeoutSeconds"]), (&"Ignore".into(), &2.into()));
            selects(&one["namespaceSelector"], &labels)
        })
        .count()
    };
    for (namespace, default, new) in [
        (&[][..], 0, 0),
        (&[("istio-injection", "enabled")], 1, 0),
        (&[("istio-injection", "enabled"), ("istio.io/rev", "new")], 1, 0),
        (&[("outrigger.io/inject", "enabled")], 1, 0),
        (&[("outrigger.io/inject", "enabled"), ("outrigger.io/rev", "new")], 0, 1),
        (&[("istio.io/rev", "new")], 0, 1),
        (&[("outrigger.io/rev", "default"), ("istio.io/rev", "new")], 1, 0),
        (&[("istio-injection", "disabled")], 0, 0),
    ] {
        assert_eq!((shown("default", namespace), shown("new", namespace)), (default, new), "{namespace:?}");
    }
}
