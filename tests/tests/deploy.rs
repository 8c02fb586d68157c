//! What `deploy/` says is what the programs take: units, bootstrap files, registrations, and the compose file's order of steps.
//! No container is started here.

use std::path::{Path, PathBuf};
use std::process::Command;

use outrigger_control::settings::Settings;
use outrigger_tests::mesh::Mesh;
use serde_json::{Value, json};

use crate::BINARY;

fn deploy(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy").join(name)
}

fn yaml(name: &str) -> Value {
    serde_saphyr::from_str(&std::fs::read_to_string(deploy(name)).unwrap()).unwrap()
}

fn outrigger(words: &[&str]) -> (bool, String) {
    let output = Command::new(BINARY).args(words).output().unwrap();
    let text =
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    (output.status.success(), text)
}

/// A sidecar that stops only at its join file has taken its bootstrap file.
fn takes_bootstrap(name: &str, join: &str) {
    let (_, text) = outrigger(&["proxy", "--bootstrap", &deploy(name).display().to_string()]);
    assert!(text.contains(join) && !text.contains("unknown"), "{name}: {text}");
}

#[test]
fn units_call_the_programs_with_words_that_they_take() {
    let mut called = 0;
    for entry in std::fs::read_dir(deploy("systemd")).unwrap() {
        let text = std::fs::read_to_string(entry.unwrap().path()).unwrap();
        for line in
            text.lines().filter_map(|line| line.strip_prefix("ExecStart=").or(line.strip_prefix("ExecStop=")))
        {
            let words: Vec<&str> = line.split_whitespace().collect();
            called += 1;
            match words.as_slice() {
                ["/usr/local/bin/outrigger-proxy", "intercept", "apply", "$INTERCEPT_FLAGS"] => {
                    let flags =
                        ["--dns", "--dns-servers", "192.0.2.53", "--exclude-outbound-cidrs", "10.9.0.0/16"];
                    let (done, rules) =
                        outrigger(&[&["intercept", "apply", "--dry-run"][..], &flags].concat());
                    assert!(done && rules.contains("192.0.2.53") && rules.contains("10.9.0.0/16"), "{rules}");
                }
                ["/usr/local/bin/outrigger-proxy", "intercept", "remove"] => {
                    assert!(outrigger(&["intercept", "remove", "--help"]).0);
                }
                ["/usr/local/bin/outrigger-proxy", "--bootstrap", "/etc/outrigger/%i.yaml"] => {
                    takes_bootstrap("vm/catalog.yaml", "/etc/outrigger/catalog.join");
                }
                ["/usr/local/bin/outrigger-control", "--config", "/etc/outrigger/control.yaml"] => {}
                other => panic!("nobody has looked at {other:?}"),
            }
        }
    }
    assert_eq!(called, 4);
    let sysusers = std::fs::read_to_string(deploy("systemd/sysusers.conf")).unwrap();
    let (_, help) = outrigger(&["intercept", "apply", "--help"]);
    assert!(
        sysusers.contains("u outrigger 1337 ") && help.contains("[default: 1337]"),
        "one user id everywhere"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn the_compose_files_workloads_are_registered_and_their_files_taken() {
    for service in ["web", "catalog"] {
        takes_bootstrap(&format!("docker/{service}.yaml"), &format!("/join/{service}.join"));
    }
    let more = json!({ "registryFiles": [deploy("docker/instances.yaml")] });
    let mesh = Mesh::start_with(BINARY, more).await;
    let known = mesh.client.instances().await.unwrap();
    let ids: Vec<&str> = known.iter().map(|instance| instance.instance.id.as_str()).collect();
    assert_eq!(ids, ["catalog-1", "web-1"]);
    let settings = Settings::read(&deploy("docker/control.yaml")).unwrap();
    assert_eq!(settings.registry_files, [PathBuf::from("/etc/outrigger/instances.yaml")]);
}

/// In a compose file the order is all: rules before the application, in the sidecar's namespace, by a step that may.
#[test]
fn in_the_compose_file_rules_come_before_the_application() {
    let compose = yaml("docker/compose.yaml");
    let services = compose["services"].as_object().unwrap();
    for (name, service) in services {
        let needs = service["depends_on"].as_object().into_iter().flatten().map(|(name, _)| name);
        for needed in needs.chain(service["networks"].as_object().map(|_| name)) {
            assert!(services.contains_key(needed), "{name} depends on {needed}");
        }
    }
    for workload in ["web", "catalog"] {
        let (application, step) = (&services[workload], &services[&format!("{workload}-intercept")]);
        let sidecar = format!("service:{workload}-sidecar");
        assert_eq!((&application["network_mode"], &step["network_mode"]), (&json!(sidecar), &json!(sidecar)));
        let before = &application["depends_on"][format!("{workload}-intercept")]["condition"];
        assert_eq!(before, "service_completed_successfully");
        assert_eq!(step["cap_add"], json!(["NET_ADMIN"]));
        for unprivileged in [application, &services[&format!("{workload}-sidecar")]] {
            assert!(unprivileged["cap_add"].is_null() && unprivileged["privileged"].is_null());
        }
        let words: Vec<&str> = step["command"].as_array().unwrap().iter().filter_map(Value::as_str).collect();
        let (done, rules) = outrigger(&[&words[..], &["--dry-run", "--dns-servers", "127.0.0.11"]].concat());
        assert!(done && rules.contains("127.0.0.11"), "{rules}");
    }
}

#[test]
fn the_control_plane_of_a_cluster_has_settings_that_it_takes() {
    let text = std::fs::read_to_string(deploy("kubernetes/outrigger.yaml")).unwrap();
    let map = text.split("\n---\n").find(|object| object.contains("kind: ConfigMap")).unwrap();
    let map: Value = serde_saphyr::from_str(map).unwrap();
    let settings: Settings = serde_saphyr::from_str(map["data"]["control.yaml"].as_str().unwrap()).unwrap();
    settings.validate().unwrap();
    // Sidecars look for it by a name of its certificate.
    assert!(settings.replicas.is_some(), "there are several");
    let injector = settings.injector.unwrap();
    let (host, port) = injector.control_plane.rsplit_once(':').unwrap();
    assert!(settings.dns_names.iter().any(|name| name == host), "{host}");
    assert_eq!(port, settings.xds_address.port().to_string());
}

/// The objects of a text, without its comments, by kind and name. `outrigger manifest` also makes the namespace, which Helm does not.
fn objects(text: &str) -> std::collections::BTreeMap<String, Value> {
    let all: Vec<Value> = serde_saphyr::from_multiple(text).unwrap();
    let named = all
        .into_iter()
        .filter(|object| !object.is_null())
        .map(|object| (format!("{} {}", object["kind"], object["metadata"]["name"]), object));
    named.filter(|(id, _)| !id.starts_with("\"Namespace\"")).collect()
}

/// Two control planes, one of which stays, on different nodes where there are some; and what each of them is reached by.
#[test]
fn a_cluster_has_two_control_planes_that_are_not_taken_out_together() {
    let text = std::fs::read_to_string(deploy("kubernetes/outrigger.yaml")).unwrap();
    let all = objects(&text);
    let set = &all[r#""StatefulSet" "outrigger-control""#]["spec"];
    assert_eq!(set["replicas"], 2);
    let pod = &set["template"];
    let spread = pod["spec"]["topologySpreadConstraints"].as_array().unwrap();
    let keys: Vec<&Value> = spread.iter().map(|one| &one["topologyKey"]).collect();
    assert_eq!(keys, ["kubernetes.io/hostname", "topology.kubernetes.io/zone"]);
    assert!(spread.iter().all(|one| one["whenUnsatisfiable"] == "ScheduleAnyway"), "one node is enough");
    let budget = &all[r#""PodDisruptionBudget" "outrigger-control""#]["spec"];
    assert_eq!(budget["maxUnavailable"], 1);
    for labels in spread.iter().map(|one| &one["labelSelector"]).chain([&budget["selector"]]) {
        assert_eq!(labels["matchLabels"]["app"], pod["metadata"]["labels"]["app"]);
    }
    // Where they ask each other.
    let ports = all[r#""Service" "outrigger-control""#]["spec"]["ports"].as_array().unwrap();
    assert!(ports.iter().any(|port| port["name"] == "tls-xds" && port["port"] == 15012), "{ports:?}");
    // Nobody may read or change another Secret.
    let rules = all[r#""Role" "outrigger-control""#]["rules"].as_array().unwrap();
    for rule in rules.iter().filter(|rule| rule["verbs"] != json!(["create"])) {
        assert!(rule["resourceNames"].as_array().is_some_and(|names| !names.is_empty()), "{rule}");
    }
    let cluster = all[r#""ClusterRole" "outrigger-control""#].to_string();
    assert!(!cluster.contains("secrets") && !cluster.contains("leases"), "only in their own namespace");
}

/// Names of objects of the cluster are the same for every installation of a revision, and the authority is that of its namespace.
#[test]
fn what_may_be_a_second_installation_is_warned_about_beside_what_is_printed() {
    for (words, word) in [
        (&["install"][..], ""),
        (&["install", "--set", "replicas=1", "-n", "outrigger-system"], ""),
        (&["install", "--set", "revision=new"], ""),
        (&["install", "--revision", "new"], ""),
        (&["manifest", "-n", "mesh-new"], "in another one than mesh-new,"),
    ] {
        let output = Command::new(BINARY).args(words).output().unwrap();
        assert!(output.status.success(), "{words:?}");
        let (out, said) = [output.stdout, output.stderr].map(|text| String::from_utf8(text).unwrap()).into();
        assert!(!out.contains("warning:") && objects(&out).len() > 10, "{words:?}");
        match word {
            "" => assert_eq!(said, "", "{words:?}"),
            word => assert!(said.contains(word) && said.contains("takes its ClusterRoleBinding"), "{said}"),
        }
    }
}

/// What is printed goes to kubectl; what an operator should have done before is said beside it.
#[test]
fn whoever_takes_it_out_is_told_of_the_sidecars_that_stay() {
    let output = Command::new(BINARY).args(["uninstall"]).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let (out, said) = [output.stdout, output.stderr].map(|text| String::from_utf8(text).unwrap()).into();
    assert!(
        said.contains("kubectl get pods -A -l outrigger.io/rev") && said.contains("Taking it out"),
        "{said}"
    );
    let docs = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/kubernetes.md");
    assert!(std::fs::read_to_string(docs).unwrap().contains("\n## Taking it out\n"), "where it sends people");
    assert!(!out.contains("note:") && objects(&out).len() > 10, "{out}");
}

#[test]
fn the_chart_is_the_manifest() {
    let Some(helm) = outrigger_tests::require::tool("helm") else { return };
    let run = |words: &[&str]| {
        let output =
            Command::new(&helm).args(words).env("HELM_CACHE_HOME", std::env::temp_dir()).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{words:?}: {}{said}", String::from_utf8_lossy(&output.stdout));
        String::from_utf8(output.stdout).unwrap()
    };
    let chart = deploy("helm").display().to_string();
    let linted = run(&["lint", "--strict", &chart]);
    assert!(linted.contains("0 chart(s) failed"), "{linted}");
    for (release, set) in [
        ("1.32.0", &[][..]),
        (
            "1.32.0",
            &["--set", "image=registry/o:2,replicas=3,trustDomain=mesh.test,resources.limits.memory=2Gi"],
        ),
        ("1.32.0", &["--set", "cni.enabled=true"]),
        ("1.29.4", &["--set", "cni.enabled=true"]),
        ("1.32.0", &["--set", "revision=1-2,cni.enabled=true,replicas=1"]),
        (
            "1.32.0",
            &[
                "--set",
                "storage=2Gi,storageClass=fast,clusterDomain=corp.internal,validationFailurePolicy=Fail,injectByAnnotation=true,istioPeers=true,authoritySecret=ca",
            ],
        ),
        (
            "1.33.0",
            &[
                "--set",
                "cni.enabled=true,imagePullSecrets[0].name=registry,nodeSelector.pool=system,tolerations[0].operator=Exists,priorityClassName=high,\
                 affinity.podAntiAffinity.x=y",
            ],
        ),
        (
            "1.30.0",
            &[
                "--set",
                "cni.enabled=true,cni.repair.rules=false,cni.repair.evict=true,cni.repair.label=true,cni.onExit=keep",
            ],
        ),
        (
            "1.28.0",
            &[
                "--set",
                "injector.dns=true,injector.nativeSidecar=false,injector.resources.limits.cpu=500m,injector.bootstrap.drain_timeout=<9s>&",
            ],
        ),
    ] {
        let ours: Vec<String> = set.iter().flat_map(|words| words.split(',')).map(str::to_owned).collect();
        // Ours takes one value at a time.
        let ours = ours.iter().filter(|word| *word != "--set").flat_map(|word| ["--set", word]);
        let ours: Vec<&str> =
            ["manifest", "-n", "mesh", "--kubernetes-version", release].into_iter().chain(ours).collect();
        let output = Command::new(BINARY).args(&ours).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        let ours = String::from_utf8(output.stdout).unwrap();
        let theirs = run(&[
            &["template", "o", &chart, "-n", "mesh", "--include-crds", "--kube-version", release][..],
            set,
        ]
        .concat());
        let (ours, theirs) = (objects(&ours), objects(&theirs));
        assert_eq!(ours.keys().collect::<Vec<_>>(), theirs.keys().collect::<Vec<_>>());
        for (id, object) in &ours {
            assert_eq!(object, &theirs[id], "{id}");
        }
    }
}
