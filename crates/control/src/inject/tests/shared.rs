//! Resources of a Pod as a whole.

use super::*;

fn with_resources(resources: Value) -> Value {
    let mut pod = pod();
    pod["spec"]["resources"] = resources;
    pod
}

/// Of each container an API server compares limits with the Pod's, and of all requests.
#[test]
fn what_a_pod_has_for_all_of_its_containers_the_sidecar_does_not_ask_for_itself() {
    let defaults = settings().resources;
    for (of_pod, requests, limits, workers, memory) in [
        (
            json!({"limits": {"cpu": "1", "memory": "512Mi"}}),
            json!({}),
            json!({}),
            json!(1),
            json!(512 << 20),
        ),
        (
            json!({"requests": {"cpu": "100m"}}),
            json!({"memory": "64Mi"}),
            json!({"memory": "1Gi"}),
            json!(2),
            Value::Null,
        ),
        (
            json!({"requests": {"memory": "2Gi"}, "limits": {"memory": "4Gi"}}),
            json!({"cpu": "50m"}),
            json!({"cpu": "2"}),
            Value::Null,
            json!(1 << 30),
        ),
        (json!({"limits": {"cpu": 8, "memory": "1G"}}), json!({}), json!({}), json!(2), json!(1_000_000_000)),
        (
            json!({"limits": {"hugepages-2Mi": "4Mi"}}),
            defaults["requests"].clone(),
            defaults["limits"].clone(),
            Value::Null,
            Value::Null,
        ),
    ] {
        let (pod, warnings) = injected(&with_resources(of_pod.clone()), &settings());
        for name in [INIT, SIDECAR] {
            let resources = &container(&pod, name)["resources"];
            assert_eq!(
                (&resources["requests"], &resources["limits"]),
                (&requests, &limits),
                "{of_pod} {name}"
            );
        }
        let bootstrap = bootstrap_of(&pod);
        assert_eq!((&bootstrap["workers"], &bootstrap["memory_limit"]), (&workers, &memory), "{of_pod}");
        let is_told = warnings.iter().any(|text| text.contains("spec.resources"));
        assert_eq!(is_told, limits != defaults["limits"], "{of_pod}: {warnings:?}");
    }
}

#[test]
fn who_says_what_the_sidecar_of_such_a_pod_has_is_taken_at_his_word() {
    let mut pod = with_resources(json!({"limits": {"cpu": "1", "memory": "1Gi"}}));
    pod["metadata"]["annotations"] = json!({"sidecar.istio.io/proxyCPULimit": "500m"});
    let (own, warnings) = injected(&pod, &settings());
    assert_eq!(container(&own, SIDECAR)["resources"], json!({"limits": {"cpu": "500m"}}));
    assert_eq!((bootstrap_of(&own).get("workers"), warnings.len()), (None, 0), "{warnings:?}");
    // So is an operator, and the annotation about threads.
    let of_operator = serde_json::from_value(json!({"workers": 3, "memory_limit": "100Mi"})).unwrap();
    let settings = InjectSettings { bootstrap: of_operator, ..settings() };
    pod["metadata"]["annotations"] = json!({});
    let bootstrap = bootstrap_of(&injected(&pod, &settings).0);
    assert_eq!((&bootstrap["workers"], &bootstrap["memory_limit"]), (&json!(3), &json!("100Mi")));
    pod["metadata"]["annotations"] = json!({"proxy.istio.io/config": "concurrency: 4"});
    assert_eq!(bootstrap_of(&injected(&pod, &settings).0)["workers"], 4);
}
