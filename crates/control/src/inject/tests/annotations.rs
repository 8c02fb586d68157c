//! What annotations of Istio, Linkerd and ours make of a sidecar.

use super::*;

pub(super) fn with_annotations(all: &[&str]) -> Value {
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
        (&["traffic.sidecar.istio.io/includeOutboundIPRanges="], &["--include-outbound-cidrs=none"]),
        // As Istio: these ports alone when no range is included, else beside the ranges.
        (
            &[
                "traffic.sidecar.istio.io/includeOutboundIPRanges=",
                "traffic.sidecar.istio.io/includeOutboundPorts=5432, 9443",
            ],
            &["--also-outbound-ports=5432,9443", "--include-outbound-cidrs=none"],
        ),
        (&["traffic.sidecar.istio.io/includeOutboundPorts=*"], &["--also-outbound-ports=1-65535"]),
        (&["traffic.sidecar.istio.io/includeOutboundPorts="], &[]),
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
fn a_namespace_s_words_of_linkerd_hold_for_pods_that_say_nothing_else() {
    let annotations = [
        "linkerd.io/inject=ingress",
        "config.linkerd.io/proxy-cpu-request=200m",
        "config.linkerd.io/skip-outbound-ports=3306",
        "config.beta.linkerd.io/proxy-enable-native-sidecar=true",
        // Not a namespace's to say.
        "sidecar.istio.io/proxyMemory=1Gi",
    ];
    let namespace =
        Namespace { name: "shop".into(), annotations: words(&annotations), ..Namespace::default() };
    let pod = with_annotations(&["config.linkerd.io/skip-outbound-ports=25"]);
    let Injection::Injected { pod, warnings } = in_namespace(&pod, &namespace, &settings()).unwrap() else {
        panic!()
    };
    assert_eq!(container(&pod, SIDECAR)["resources"], json!({"requests": {"cpu": "200m"}}));
    assert_eq!(container(&pod, INIT)["args"], json!(["intercept", "apply", "--exclude-outbound-ports=25"]));
    assert_eq!(warnings.len(), 2, "{warnings:?}");
    assert!(warnings[0].contains("config.beta.linkerd.io/proxy-enable-native-sidecar"), "{warnings:?}");
    assert!(warnings[1].contains("linkerd.io/inject: ingress"), "{warnings:?}");
    assert_eq!(pod["metadata"]["annotations"].get("config.linkerd.io/proxy-cpu-request"), None);
}

#[test]
fn what_is_not_known_is_warned_about_by_name() {
    let all = [
        "sidecar.istio.io/componentLogLevel=upstream:debug",
        "config.linkerd.io/opaque-ports=25",
        "config.alpha.linkerd.io/proxy-wait-before-exit-seconds=9",
        "proxy.istio.io/config=tracing: {sampling: 5}",
        "sidecar.istio.io/interceptionMode=TPROXY",
        "inject.istio.io/template=gateway",
        "retry.linkerd.io/http=5xx",
        "timeout.linkerd.io/request=9s",
        "balancer.linkerd.io/failure-accrual=consecutive",
        "prometheus.istio.io/merge-port=9",
        "status.sidecar.istio.io/port=0",
        "readiness.status.sidecar.istio.io/periodSeconds=9",
        "config.linkerd.io/default-inbound-policy=audit",
        "team.example/anything=1",
    ];
    let (_, warnings) = injected(&with_annotations(&all), &settings());
    let all = warnings.join("\n");
    for word in ["componentLogLevel", "counts at the Service", "wait-before-exit", "tracing", "TPROXY"] {
        assert!(all.contains(word), "{word}: {all}");
    }
    for word in
        ["io/template has", "retry.linkerd.io/http", "timeout.linkerd.io/request", "failure-accrual has"]
    {
        assert!(all.contains(word), "{word}: {all}");
    }
    for word in ["merge-port", "istio.io/port", "periodSeconds", "default-inbound-policy: audit"] {
        assert!(all.contains(word), "{word}: {all}");
    }
    assert_eq!(warnings.len(), 13, "{all}");
    let as_it_is = [
        "prometheus.istio.io/merge-metrics=false",
        "config.linkerd.io/default-inbound-policy=all-unauthenticated",
    ];
    assert_eq!(injected(&with_annotations(&as_it_is), &settings()).1, [""; 0]);
    let mut same_user = pod();
    same_user["spec"]["securityContext"] = json!({"runAsUser": 1337});
    let (_, warnings) = injected(&same_user, &settings());
    assert!(warnings[0].contains("\"app\" runs as user 1337"), "{warnings:?}");
    let mut first = pod();
    first["spec"]["initContainers"] = json!([{"name": "fetch", "securityContext": {"runAsUser": 1337}}]);
    let (_, warnings) = injected(&first, &settings());
    assert!(warnings[0].contains("\"fetch\" runs as user 1337"), "{warnings:?}");
}

#[test]
fn durations_are_read_as_go_writes_them() {
    for (said, taken) in
        [("9s", "9s"), ("1m30s", "90000ms"), ("1.5h", "1.5h"), ("1h0m0.5s", "3600500ms"), ("1500us", "2ms")]
    {
        let (pod, _) = injected(
            &with_annotations(&[&format!("proxy.istio.io/config=terminationDrainDuration: {said}")]),
            &settings(),
        );
        assert_eq!(bootstrap_of(&pod)["drain_timeout"], taken, "{said}");
    }
}

#[test]
fn a_namespace_s_word_that_would_be_lost_refuses_its_pods() {
    let annotations =
        words(&["linkerd.io/inject=enabled", "config.linkerd.io/default-inbound-policy=all-authenticated"]);
    let namespace = Namespace { name: "shop".into(), annotations, ..Namespace::default() };
    let error = in_namespace(&pod(), &namespace, &settings()).unwrap_err().to_string();
    assert!(error.contains("default-inbound-policy") && error.contains("from the namespace, too"), "{error}");
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
        ("proxy.istio.io/config=terminationDrainDuration: 1m30", "terminationDrainDuration"),
        ("proxy.istio.io/config=terminationDrainDuration: '-5s'", "terminationDrainDuration"),
        ("config.linkerd.io/default-inbound-policy=deny", "AuthorizationPolicy"),
        ("config.linkerd.io/default-inbound-policy=cluster-authenticated", "AuthorizationPolicy"),
        ("proxy.istio.io/config=[", "YAML"),
        ("prometheus.istio.io/merge-metrics=never", "true or false"),
        ("inject.istio.io/templates=gateway", "a list of at most 16 of sidecar (templates"),
    ] {
        let error = refused(&with_annotations(&[annotation]));
        let name = annotation.split_once('=').unwrap().0;
        assert!(error.contains(name) && error.contains(word), "{annotation}: {error}");
    }
    for no_pod in [json!([]), json!({"spec": {"containers": {}}}), json!({"spec": []})] {
        assert!(refused(&no_pod).contains("not a Pod"), "{no_pod}");
    }
}
