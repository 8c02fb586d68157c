use std::net::IpAddr;

use clap::{Args, FromArgMatches};
use outrigger_identity::{Authority, AuthorityOptions};
use outrigger_proxy::bootstrap::Bootstrap;
use outrigger_proxy::bootstrap::join::Join;
use outrigger_proxy::intercept::Options;

use super::*;

fn settings() -> InjectSettings {
    InjectSettings { image: "outrigger-proxy:test".into(), dns: true, ..InjectSettings::default() }
}

fn mesh() -> Mesh {
    let authority = Authority::in_memory(AuthorityOptions::new("cluster.local")).unwrap();
    let roots = authority.bundle().to_pem("cluster.local");
    Mesh { trust_domain: "cluster.local".into(), domain: "cluster.local".into(), roots }
}

/// What a kubelet makes of `$(NAME)` and `$$`.
fn expanded(text: &str) -> String {
    let mut out = String::new();
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        out.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        if let Some(after) = rest.strip_prefix('$') {
            out.push('$');
            rest = after;
        } else if let Some((name, after)) = rest.strip_prefix('(').and_then(|rest| rest.split_once(')')) {
            out.push_str(match name {
                "POD_NAME" => "web-5d8-x2x",
                "POD_NAMESPACE" => "shop",
                "POD_IP" => "fd00::7",
                "SERVICE_ACCOUNT" => "web",
                other => panic!("{other} is not in the environment"),
            });
            rest = after;
        } else {
            out.push('$');
        }
    }
    out + rest
}

/// The two programs' words are each other's: what the injector writes the sidecar takes.
#[test]
fn what_is_injected_the_sidecar_takes() {
    let pod = serde_json::json!({
        "metadata": {"generateName": "web-5d8-", "annotations": {
            "traffic.sidecar.istio.io/includeInboundPorts": "",
            "traffic.sidecar.istio.io/excludeOutboundPorts": "3306,9000-9010",
            "traffic.sidecar.istio.io/includeOutboundIPRanges": "10.0.0.0/8,fd00::/8",
            "proxy.istio.io/config": "{concurrency: 2, terminationDrainDuration: 9s}",
            "sidecar.istio.io/logLevel": "debug",
        }},
        "spec": {"containers": [{"name": "app",
            "livenessProbe": {"httpGet": {"port": 8080, "path": "/a?b=$(c)", "httpHeaders": [{"name": "Host", "value": "x"}]}},
            "readinessProbe": {"tcpSocket": {"port": 80}}, "startupProbe": {"grpc": {"port": 90, "service": "s.S"}}}]},
    });
    let namespace = Namespace::enabled("shop", None);
    let subject = Subject {
        pod: &pod,
        namespace: &namespace,
        workload: None,
        kubernetes: None,
        by_hand: true,
        earlier: None,
    };
    let Injection::Injected { pod, warnings } = inject(subject, &settings(), &mesh()).unwrap() else {
        panic!()
    };
    assert_eq!(warnings, [""; 0]);
    let [init, sidecar] = [0, 1].map(|n| pod["spec"]["initContainers"][n].clone());
    let text = sidecar["env"].as_array().unwrap().last().unwrap()["value"].as_str().unwrap();
    let bootstrap = Bootstrap::parse(Path::new("OUTRIGGER_BOOTSTRAP"), &expanded(text)).unwrap();
    assert_eq!(bootstrap.node.id, "web-5d8-x2x.shop");
    assert_eq!((bootstrap.node.namespace.as_str(), bootstrap.node.service_account.as_str()), ("shop", "web"));
    assert_eq!(bootstrap.node.address, Some("fd00::7".parse::<IpAddr>().unwrap()));
    assert_eq!((bootstrap.node.workload.as_str(), bootstrap.workers), ("web-5d8", Some(2)));
    let Some(Join::Section(join)) = bootstrap.join else { panic!() };
    assert!(TrustBundle::from_pem("cluster.local", &join.roots.unwrap()).is_ok());
    assert_eq!(join.token_file, Path::new("/var/run/secrets/outrigger/token"));
    let probes: Vec<&str> = bootstrap.probes.keys().map(String::as_str).collect();
    assert_eq!(probes, ["app/livez", "app/readyz", "app/startupz"]);
    assert!(format!("{:?}", bootstrap.probes["app/livez"]).contains("/a?b=$(c)"), "{:?}", bootstrap.probes);

    let args: Vec<String> = serde_json::from_value(init["args"].clone()).unwrap();
    assert_eq!(args[..2], ["intercept", "apply"]);
    let command = Options::augment_args(clap::Command::new("apply"));
    let matches =
        command.try_get_matches_from(std::iter::once("apply").chain(args[2..].iter().map(String::as_str)));
    let options = Options::from_arg_matches(&matches.unwrap()).unwrap();
    let shown: Vec<String> = options.exclude_outbound_ports.iter().map(ToString::to_string).collect();
    assert_eq!(shown, ["3306", "9000-9010"]);
    assert!(options.dns && options.include_outbound_cidrs.len() == 2);
    assert_eq!(options.exclude_inbound_ports[0].0, 1..=65535);
}

#[test]
fn a_stream_is_cut_where_yaml_cuts_it() {
    let of = |text| documents(text).into_iter().map(|(line, text)| (line, text.trim())).collect::<Vec<_>>();
    assert_eq!(of("a: 1\n---\n# nothing\n---\nb: |\n  ---\n  x\n"), [(1, "a: 1"), (5, "b: |\n  ---\n  x")]);
    assert_eq!(of("---\na: 1\n...\n---\r\nb: 2\r\n"), [(2, "a: 1"), (5, "b: 2")]);
    assert_eq!(of("--- {a: 1}\n--- # c\nb: 2"), [(1, "{a: 1}"), (2, "# c\nb: 2")]);
    assert_eq!(of("\n# nothing\n"), []);
}

const STREAM: &str = "\
# Whose this is.
apiVersion: v1
kind: Service
metadata: {name: web}   # stays as it is
---
apiVersion: batch/v1
kind: CronJob
metadata: {name: nightly, namespace: shop}
spec: {schedule: '@daily', jobTemplate: {spec: {template: {spec: {containers: [{name: job, image: 'job:1'}]}}}}}
---
apiVersion: v1
kind: List
items:
- {apiVersion: v1, kind: Pod, metadata: {name: a}, spec: {hostNetwork: true, containers: [{name: app}]}}
- {apiVersion: v1, kind: Pod, metadata: {name: b}, spec: {containers: [{name: app, env: [{name: A, value: 'on'}]}]}}
---
apiVersion: v1
kind: Pod
metadata: {name: c, namespace: kube-system}
spec: {containers: [{name: app}]}
";

fn input(diff: bool) -> Input {
    Input { files: Vec::new(), namespace: "default".into(), diff }
}

fn added(
    settings: &InjectSettings,
    mesh: &Mesh,
    pod: &Value,
    place: Place<'_>,
    kubernetes: Option<Release>,
) -> anyhow::Result<Done> {
    let namespace = Namespace::enabled(place.namespace, None);
    let workload = place.workload;
    let subject = Subject { pod, namespace: &namespace, workload, kubernetes, by_hand: true, earlier: None };
    injected(settings, mesh, subject)
}

/// What is printed of a text, and what is said of it.
fn printed(input: &Input, text: &str, change: Change<'_>) -> (String, Vec<String>) {
    let (mut out, mut said) = (String::new(), Vec::new());
    input.file("s.yaml", text, change, &mut out, &mut said).unwrap();
    (out, said)
}

#[test]
fn a_stream_gets_its_sidecars_and_loses_them_again() {
    let (settings, mesh) = (settings(), mesh());
    let add: Change<'_> = &|pod, place| added(&settings, &mesh, pod, place, None);
    let (out, said) = printed(&input(false), STREAM, add);
    let all: Vec<Value> =
        documents(&out).iter().map(|(_, text)| serde_saphyr::from_str(text).unwrap()).collect();
    assert!(out.starts_with("# Whose this is.") && out.contains("# stays as it is"), "{out}");
    let job = &all[1]["spec"]["jobTemplate"]["spec"]["template"];
    assert_eq!(job["spec"]["initContainers"][1]["name"], "outrigger-proxy");
    assert_eq!(job["metadata"]["labels"]["service.istio.io/canonical-name"], "nightly");
    assert_eq!(all[2]["items"][0]["spec"].get("initContainers"), None);
    assert_eq!(all[2]["items"][1]["spec"]["initContainers"][0]["name"], "outrigger-init");
    assert!(
        out.contains("value: \"on\"") || out.contains("value: 'on'"),
        "a text stays one for YAML 1.1: {out}"
    );
    assert!(
        said[0].starts_with("s.yaml:11: Pod a: left alone: ") && said[0].contains("hostNetwork"),
        "{said:?}"
    );
    assert!(said[1].starts_with("s.yaml:17: Pod c: left alone: namespace kube-system"), "{said:?}");
    assert_eq!(said.len(), 2);
    assert_eq!(printed(&input(false), &out, add).0, out, "again is no change");

    let (undone, said) = printed(&input(false), &out, &removed);
    let back: Vec<Value> =
        documents(&undone).iter().map(|(_, text)| serde_saphyr::from_str(text).unwrap()).collect();
    let before: Vec<Value> =
        documents(STREAM).iter().map(|(_, text)| serde_saphyr::from_str(text).unwrap()).collect();
    assert_eq!(back, before);
    assert_eq!(said.len(), 2, "{said:?}");
}

#[test]
fn what_is_like_what_is_applied_keeps_the_secret_paths_of_its_hooks() {
    let (settings, mesh) = (settings(), mesh());
    let text = "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: web}\nspec: {template: {spec: {containers: [{name: app, lifecycle: \
                {preStop: {httpGet: {port: 80, path: /bye}}}}]}}}\n";
    let add: Change<'_> = &|pod, place| added(&settings, &mesh, pod, place, None);
    let (first, _) = printed(&input(false), text, add);
    assert!(first.contains("/app-health/app/prestopz/"), "{first}");
    assert_ne!(printed(&input(false), text, add).0, first, "nobody knows what it was before");
    let again = |applied: &str| {
        let applied = input(false).applied("applied.yaml", applied).unwrap();
        let add: Change<'_> = &|pod, place| {
            let namespace = Namespace::enabled(place.namespace, None);
            let (workload, kubernetes) = (place.workload, None);
            let subject =
                Subject { pod, namespace: &namespace, workload, kubernetes, by_hand: true, earlier: None };
            injected_like(Some(&applied), place, (&settings, &mesh), subject)
        };
        printed(&input(false), text, add)
    };
    assert_eq!(again(&first), (first.clone(), Vec::new()));
    // Nothing is applied yet, or what is has another name or stands in another namespace.
    for other in [
        "",
        &first.replace("\n  name: web\n", "\n  name: other\n"),
        &first.replace("\n  name: web\n", "\n  name: web\n  namespace: shop\n"),
    ] {
        let (out, said) = again(other);
        assert_ne!(out, first, "{other}");
        let word = "s.yaml:1: Deployment web: --like has nothing of it in namespace default";
        assert!(said.len() == 1 && said[0].starts_with(word), "{said:?}");
    }
    // As `kubectl get` prints what a file names.
    let mut applied: Value = serde_saphyr::from_str(&first).unwrap();
    applied["metadata"]["namespace"] = "default".into();
    let list = serde_json::json!({"apiVersion": "v1", "kind": "List", "items": [applied]});
    assert_eq!(again(&list.to_string()), (first, Vec::new()));
}

#[test]
fn what_an_author_says_of_templates_is_told_when_it_is_taken_back() {
    let status = serde_json::json!({
        "version": "", "revision": "default", "containers": [], "volumes": [], "labels": [], "annotations": [], "made": [],
        "probes": {}, "templates": [
            {"at": ["spec", "hostPID"], "was": true},
            {"at": ["spec", "priorityClassName"], "was": "low", "is": "high"},
            {"at": ["spec", "containers", "agent"]},
        ],
    });
    let pod = serde_json::json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": "b", "annotations": {"outrigger.io/status": status.to_string()}},
        "spec": {"priorityClassName": "high", "containers": [{"name": "app"}, {"name": "agent"}]},
    });
    let (out, said) = printed(&input(false), &pod.to_string(), &removed);
    let after: Value = serde_saphyr::from_str(&out).unwrap();
    let spec =
        serde_json::json!({"hostPID": true, "priorityClassName": "low", "containers": [{"name": "app"}]});
    assert_eq!(after["spec"], spec);
    assert_eq!(
        said,
        [
            "s.yaml:1: Pod b: spec.containers.agent goes, which a template is said to have added",
            "s.yaml:1: Pod b: spec.priorityClassName is \"low\" again, as before a template, unless it has been edited since",
            "s.yaml:1: Pod b: spec.hostPID is true again, as before a template",
        ]
    );
}

#[test]
fn an_old_cluster_that_is_named_gets_plain_sidecars() {
    let (settings, mesh) = (settings(), mesh());
    let add: Change<'_> = &|pod, place| added(&settings, &mesh, pod, place, Some("v1.28.4".parse().unwrap()));
    let text = "apiVersion: v1\nkind: Pod\nmetadata: {name: b}\nspec: {containers: [{name: app}]}\n";
    let (out, said) = printed(&input(false), text, add);
    let pod: Value = serde_saphyr::from_str(&out).unwrap();
    assert_eq!(pod["spec"]["containers"][0]["name"], "outrigger-proxy");
    assert!(said[0].contains("there is Kubernetes 1.28 in the cluster"), "{said:?}");
}

#[test]
fn a_difference_shows_what_would_come() {
    let (settings, mesh) = (settings(), mesh());
    let add: Change<'_> = &|pod, place| added(&settings, &mesh, pod, place, None);
    let (out, _) = printed(&input(true), STREAM, add);
    assert!(out.starts_with("--- s.yaml:6 CronJob nightly\n") && out.contains("--- s.yaml:11 List"), "{out}");
    assert!(
        out.contains("\n+          initContainers:\n") && out.contains("\n           containers:\n"),
        "{out}"
    );
    assert!(!out.contains("Service"), "{out}");
}

#[test]
fn what_cannot_be_read_is_named_by_file_line_and_object() {
    let (settings, mesh) = (settings(), mesh());
    let add: Change<'_> = &|pod, place| added(&settings, &mesh, pod, place, None);
    for (text, parts) in [
        ("a: 1\n---\nb: [\n", &["s.yaml:3"][..]),
        (
            "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: web}\n",
            &["s.yaml:1", "Deployment web", "/spec/template"],
        ),
        (
            "apiVersion: v1\nkind: Pod\nmetadata: {name: a, annotations: {sidecar.istio.io/proxyCPU: much}}\nspec: {containers: []}\n",
            &["s.yaml:1", "Pod a", "proxyCPU"],
        ),
    ] {
        let error = input(false).file("s.yaml", text, add, &mut String::new(), &mut Vec::new()).unwrap_err();
        let error = format!("{error:#}");
        assert!(parts.iter().all(|part| error.contains(part)), "{error}");
    }
}
