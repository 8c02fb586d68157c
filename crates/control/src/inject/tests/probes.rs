//! Probes and hooks, asked for at the sidecar.

use super::*;

/// The hooks of container `app`, by field, each with the name that its sidecar knows it by.
fn hooks(bootstrap: &Value) -> [(&'static str, String); 2] {
    let names: Vec<&String> = bootstrap["probes"].as_object().unwrap().keys().collect();
    [("preStop", "app/prestopz/"), ("postStart", "app/poststartz/")].map(|(hook, start)| {
        let mut found = names.iter().filter(|name| name.starts_with(start));
        let (Some(name), None) = (found.next(), found.next()) else { panic!("{names:?}") };
        assert_eq!(name.len(), start.len() + 43, "{name}");
        (hook, (*name).clone())
    })
}

#[test]
fn a_hook_is_asked_for_at_a_path_that_nobody_guesses_and_that_stays() {
    let mut pod = pod();
    pod["spec"]["containers"][0]["lifecycle"] = json!({
        "preStop": {"httpGet": {"port": 8080, "path": "/bye"}},
        "postStart": {"httpGet": {"port": 8080, "path": "/hello"}},
    });
    let secrets = |pod: &Value| hooks(&bootstrap_of(pod)).map(|(_, name)| name);
    let (once, _) = injected(&pod, &settings());
    let (other, _) = injected(&pod, &settings());
    assert!(secrets(&once).iter().all(|secret| !secrets(&other).contains(secret)));
    // A file that is injected anew is not changed by it.
    assert_eq!(injected(&once, &settings()).0, once);
    assert_eq!(uninject(&once).unwrap().unwrap(), pod);
    // Nor is a secret taken that somebody else has chosen, for a Pod that was not injected.
    pod["spec"]["containers"][0]["lifecycle"]["preStop"]["httpGet"]["path"] =
        format!("/app-health/app/prestopz/{}", "a".repeat(43)).into();
    assert!(!secrets(&injected(&pod, &settings()).0)[0].contains("aaaa"));
}

#[test]
fn probes_go_through_the_sidecar_unless_it_cannot_ask_them() {
    let mut pod = pod();
    pod["spec"]["containers"] = json!([{
        "name": "app", "ports": [{"name": "http", "containerPort": 8080}],
        "livenessProbe": {"httpGet": {"port": "http", "scheme": "HTTP"}, "timeoutSeconds": 2},
        "readinessProbe": {"httpGet": {"port": 8443, "scheme": "HTTPS"}},
        "startupProbe": {"exec": {"command": ["true"]}},
        "lifecycle": {
            "preStop": {"httpGet": {"port": 8080, "path": "bye/$(HOSTNAME)"}},
            "postStart": {"httpGet": {"port": "http", "path": "/hello"}},
        },
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
    let asked = hooks(&bootstrap_of(&after));
    let [(_, stop), (_, start)] = &asked;
    assert_eq!(
        bootstrap_of(&after)["probes"],
        json!({
            "app/livez": {"http": {"address": address, "port": 8080, "path": "/"}, "timeout": "2s"},
            "app/readyz": {"http": {"address": address, "port": 8443, "path": "/", "tls": true}},
            // What the author wrote is not for the kubelet to expand.
            stop:
                {"http": {"address": address, "port": 8080, "path": "/bye/$$(HOSTNAME)"}, "timeout": "0s"},
            start: {"http": {"address": address, "port": 8080, "path": "/hello"}, "timeout": "0s"},
            "helper/readyz": {"tcp": {"address": address, "port": 7070}},
            "other/startupz": {"grpc": {"address": address, "port": 9090, "service": ""}},
        })
    );
    let app = container(&after, "app");
    let ours = json!({"httpGet": {"path": "/app-health/app/livez", "port": 15021}, "timeoutSeconds": 2});
    assert_eq!(app["livenessProbe"], ours);
    for (hook, secret) in asked {
        let path = format!("/app-health/{secret}");
        assert_eq!(app["lifecycle"][hook], json!({"httpGet": {"path": path, "port": 15021}}));
    }
    assert_eq!(app["startupProbe"], pod["spec"]["containers"][0]["startupProbe"]);
    assert_eq!(container(&after, "other")["livenessProbe"], pod["spec"]["containers"][1]["livenessProbe"]);
    // By TLS the sidecar asks the application, and the kubelet the sidecar without.
    assert_eq!(app["readinessProbe"], json!({"httpGet": {"path": "/app-health/app/readyz", "port": 15021}}));
    assert_eq!(warnings.len(), 1, "{warnings:?}");
    assert!(warnings[0].contains("container other: readinessProbe"), "{warnings:?}");

    // Nobody waits for a plain sidecar, unless told to.
    let plain = InjectSettings { native_sidecar: NativeSidecar::No, ..settings() };
    let (after, warnings) = injected(&pod, &plain);
    let app = &pod["spec"]["containers"][0];
    assert_eq!(container(&after, "app")["lifecycle"]["postStart"], app["lifecycle"]["postStart"]);
    let warned =
        warnings.iter().any(|warning| warning.starts_with("container app: lifecycle.postStart is left"));
    assert!(warned, "{warnings:?}");
    let waits = InjectSettings { hold_application_until_proxy_starts: true, ..plain };
    let (after, _) = injected(&pod, &waits);
    hooks(&bootstrap_of(&after));

    pod["metadata"]["annotations"] = json!({"sidecar.istio.io/rewriteAppHTTPProbers": "false"});
    let (after, _) = injected(&pod, &settings());
    assert_eq!(after["spec"]["containers"], pod["spec"]["containers"]);
    assert_eq!(bootstrap_of(&after).get("probes"), None);
}
