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
    ]);
    let mut injected = 0;
    for (labels, of_pod) in namespaces.iter().flat_map(|labels| pods.iter().map(move |pod| (labels, pod))) {
        // One that says both yes and no is left alone.
        if of_pod.get("sidecar.istio.io/inject").is_some_and(|word| word == "false") && of_pod.len() > 1 {
            continue;
        }
        let namespace = Namespace { name: "shop".into(), labels: labels.clone(), annotations: Labels::new() };
        let pod =
            serde_json::json!({"metadata": {"labels": of_pod}, "spec": {"containers": [{"name": "app"}]}});
        let answers = revisions.each_ref().map(|(webhooks, settings)| {
            let subject = Subject { pod: &pod, namespace: &namespace, workload: None, kubernetes: None };
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
