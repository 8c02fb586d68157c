//! Whom a Prometheus asks, and what the sidecar is told of the application's metrics.

use super::annotations::with_annotations;
use super::*;

/// Istio's own job keeps the container ports whose names end so, and asks them for this path. Kubernetes takes 15 characters.
#[test]
fn a_scrape_job_that_was_written_for_istio_finds_the_sidecar_by_its_port() {
    let (pod, _) = injected(&pod(), &settings());
    let ports = container(&pod, SIDECAR)["ports"].as_array().unwrap();
    let found: Vec<&Value> =
        ports.iter().filter(|port| port["name"].as_str().unwrap().ends_with("-envoy-prom")).collect();
    let [port] = found.as_slice() else { panic!("{ports:?}") };
    assert!(port["name"].as_str().unwrap().len() <= 15);
    assert_eq!(bootstrap_of(&pod)["metrics"], format!("[::]:{}", port["containerPort"]));
    assert_eq!(pod["metadata"]["annotations"]["prometheus.io/path"], "/stats/prometheus");
}

fn marks(pod: &Value) -> Value {
    let mut all = pod["metadata"]["annotations"].clone();
    all.as_object_mut().unwrap().retain(|name, _| name.starts_with("prometheus.io/"));
    all
}

fn with_port(annotations: &[&str], ports: &Value) -> Value {
    let mut pod = with_annotations(annotations);
    pod["spec"]["containers"][0]["ports"] = ports.clone();
    pod
}

#[test]
fn an_application_s_metrics_are_asked_for_at_the_sidecar_which_knows_where_they_are() {
    let said = [
        "prometheus.io/scrape=true",
        "prometheus.io/port=9090",
        "prometheus.io/path=m?cost=$5",
        "prometheus.io/scheme=https",
    ];
    let pod = with_annotations(&said);
    let (after, warnings) = injected(&pod, &settings());
    assert_eq!(warnings, [""; 0]);
    assert_eq!(
        marks(&after),
        json!({"prometheus.io/scrape": "true", "prometheus.io/port": "15020",
            "prometheus.io/path": "/stats/prometheus", "prometheus.io/scheme": "http"})
    );
    assert_eq!(
        bootstrap_of(&after)["app_metrics"],
        json!({"address": "$(POD_IP)", "port": 9090, "path": "/m?cost=$$5", "tls": true})
    );
    assert_eq!(injected(&after, &settings()).0, after, "shown again it is the same");
    assert_eq!(uninject(&after).unwrap(), Some(pod.clone()));
    // What somebody has written over ours since is his will.
    let mut edited = after.clone();
    edited["metadata"]["annotations"]["prometheus.io/port"] = "8080".into();
    let undone = uninject(&edited).unwrap().unwrap();
    assert_eq!(undone["metadata"]["annotations"]["prometheus.io/port"], "8080");
    assert_eq!(undone["metadata"]["annotations"]["prometheus.io/scheme"], "https");

    // Another webhook has said it in between.
    let (mut late, _) = injected(&self::pod(), &InjectSettings { prometheus: false, ..settings() });
    for annotation in said {
        let (name, value) = annotation.split_once('=').unwrap();
        late["metadata"]["annotations"][name] = value.into();
    }
    let (late, _) = injected(&late, &settings());
    assert_eq!(bootstrap_of(&late)["app_metrics"]["port"], 9090);
    assert_eq!(marks(&late), marks(&after));
}

#[test]
fn without_a_port_it_is_the_only_one() {
    let only = json!([{"containerPort": 8080}, {"containerPort": 53, "protocol": "UDP"}]);
    let (after, warnings) = injected(&with_port(&["prometheus.io/scrape=true"], &only), &settings());
    assert_eq!(warnings, [""; 0]);
    assert_eq!(bootstrap_of(&after)["app_metrics"]["port"], 8080);
    assert_eq!(bootstrap_of(&after)["app_metrics"]["path"], "/metrics");
    assert_eq!(marks(&after)["prometheus.io/port"], "15020");
    assert_eq!(uninject(&after).unwrap().unwrap(), with_port(&["prometheus.io/scrape=true"], &only));
}

#[test]
fn what_cannot_be_merged_stays_as_it_is_and_says_why() {
    let two = json!([{"containerPort": 8080}, {"containerPort": 9090}]);
    for (more, word) in [
        ("prometheus.io/port=http", "\"http\" is no port"),
        ("prometheus.io/port=0", "\"0\" is no port"),
        ("prometheus.io/port=15000", "15000 is the sidecar's own"),
        ("prometheus.io/port=15021", "15021 is the sidecar's own"),
        ("prometheus.io/other=1", "prometheus.io/port is missing"),
    ] {
        let pod = with_port(&["prometheus.io/scrape=true", more], &two);
        let (after, warnings) = injected(&pod, &settings());
        assert!(warnings.len() == 1 && warnings[0].contains(word), "{more}: {warnings:?}");
        assert_eq!(marks(&after), pod["metadata"]["annotations"], "{more}");
        assert_eq!(bootstrap_of(&after).get("app_metrics"), None, "{more}");
    }
    for more in ["prometheus.io/scheme=ftp", "prometheus.io/path=/a b"] {
        let pod = with_annotations(&["prometheus.io/scrape=true", "prometheus.io/port=9", more]);
        let (after, warnings) = injected(&pod, &settings());
        assert!(warnings.len() == 1 && warnings[0].contains(more.split('=').next().unwrap()), "{warnings:?}");
        assert_eq!(marks(&after), pod["metadata"]["annotations"], "{more}");
    }
}

#[test]
fn who_wants_no_merging_has_none() {
    let own = ["prometheus.io/scrape=true", "prometheus.io/port=9090"];
    let not = [own[0], own[1], "prometheus.istio.io/merge-metrics=false"];
    let by_hand = [own[0], "prometheus.io/port=15020", "prometheus.io/path=/metrics"];
    let not_asked = ["prometheus.io/scrape=false", "prometheus.io/port=9090"];
    let off = InjectSettings { merge_metrics: false, ..settings() };
    let without = InjectSettings { prometheus: false, ..settings() };
    for (said, settings) in [
        (&not[..], settings()),
        (&own, off.clone()),
        (&own, without.clone()),
        (&by_hand, settings()),
        (&not_asked, settings()),
    ] {
        let pod = with_annotations(said);
        let (after, warnings) = injected(&pod, &settings);
        assert_eq!(warnings, [""; 0], "{said:?}");
        assert_eq!(bootstrap_of(&after).get("app_metrics"), None, "{said:?}");
        assert_eq!(marks(&after), marks(&pod), "{said:?}");
    }
    let yes = [own[0], own[1], "prometheus.istio.io/merge-metrics=true"];
    let (after, warnings) = injected(&with_annotations(&yes), &off);
    assert_eq!((&bootstrap_of(&after)["app_metrics"]["port"], warnings.len()), (&json!(9090), 0));
    // Where nobody is to be led to the sidecar who asks for it is told.
    let (after, warnings) = injected(&with_annotations(&yes), &without);
    assert_eq!(bootstrap_of(&after).get("app_metrics"), None);
    assert!(warnings.len() == 1 && warnings[0].contains("merge-metrics: true has no effect"), "{warnings:?}");
}
