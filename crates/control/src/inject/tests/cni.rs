//! Where a CNI plugin makes the rules: a check in place of the container that would.

use super::*;

fn with_plugin() -> InjectSettings {
    InjectSettings { cni: true, dns: true, ..settings() }
}

fn pod() -> Value {
    json!({
        "metadata": {"name": "web-1", "annotations": {"traffic.sidecar.istio.io/excludeOutboundPorts": "3306"}},
        "spec": {"initContainers": [{"name": "migrate"}], "containers": [{"name": "app"}]},
    })
}

#[test]
fn a_check_without_a_privilege_has_the_options_of_the_rules_and_comes_first() {
    let (native, warnings) = injected(&pod(), &with_plugin());
    assert_eq!(container_names(&native, "initContainers"), [VALIDATION, SIDECAR, "migrate"]);
    assert_eq!(warnings, Vec::<String>::new());
    let check = container(&native, VALIDATION);
    assert_eq!(check["args"], json!(["intercept", "check", "--dns", "--exclude-outbound-ports=3306"]));
    let context = &check["securityContext"];
    assert_eq!((&context["runAsUser"], &context["runAsNonRoot"]), (&json!(1337), &json!(true)));
    assert_eq!(context["capabilities"], json!({"drop": ["ALL"]}));
    // The same as without the plugin, but for the verb.
    let (without, _) = injected(&pod(), &InjectSettings { cni: false, ..with_plugin() });
    let mut args = container(&without, INIT)["args"].clone();
    args[1] = "check".into();
    assert_eq!(check["args"], args);
    // Whatever an annotation says of the sidecar's image.
    assert_eq!(check["image"], "outrigger-proxy:test");
    assert_eq!(uninject(&native).unwrap(), Some(pod()));
}

#[test]
fn in_front_of_a_plain_sidecar_init_containers_are_warned_of() {
    let settings = InjectSettings { native_sidecar: NativeSidecar::No, ..with_plugin() };
    let (plain, warnings) = injected(&pod(), &settings);
    assert_eq!(container_names(&plain, "initContainers"), [VALIDATION, "migrate"]);
    assert_eq!(container_names(&plain, "containers"), [SIDECAR, "app"]);
    assert!(
        warnings.iter().any(|text| text.contains("init container migrate") && text.contains("refused")),
        "{warnings:?}"
    );
    let mut bare = pod();
    bare["spec"]["initContainers"] = json!([]);
    assert_eq!(injected(&bare, &settings).1, Vec::<String>::new());
}

#[test]
fn it_goes_before_the_setting_for_others_and_stays_when_the_pod_is_shown_again() {
    let both = InjectSettings { init_container: false, ..with_plugin() };
    let (mut pod, _) = injected(&pod(), &both);
    assert_eq!(container_names(&pod, "initContainers"), [VALIDATION, SIDECAR, "migrate"]);
    pod["spec"]["initContainers"][0]["image"] = "mirror/outrigger-proxy:test".into();
    pod["spec"]["initContainers"].as_array_mut().unwrap().push(json!({"name": "late"}));
    let (again, _) = injected(&pod, &both);
    assert_eq!(container_names(&again, "initContainers"), [VALIDATION, SIDECAR, "migrate", "late"]);
    assert_eq!(container(&again, VALIDATION)["image"], "mirror/outrigger-proxy:test");
}
