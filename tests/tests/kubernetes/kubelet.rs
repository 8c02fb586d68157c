//! The kubelet of the tests itself: what scenarios rest on is as in Kubernetes, order, hooks, probes, restarts and what a status says of them.

use super::*;

/// Hooks and probes of every kind, in containers that are ready only when all has been done.
const ORDERLY: &str = r#"{"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "orderly", "namespace": "shop"}, "spec": {
    "nodeName": "node-1", "terminationGracePeriodSeconds": 20,
    "initContainers": [
        {"name": "first", "image": "app", "args": ["end"]},
        {"name": "beside", "image": "app", "args": ["serve", "7001"], "restartPolicy": "Always",
         "startupProbe": {"tcpSocket": {"port": 7001}, "periodSeconds": 1},
         "lifecycle": {"preStop": {"sleep": {"seconds": 1}}}}
    ],
    "containers": [
        {"name": "one", "image": "app", "args": ["serve", "8081"], "ports": [{"name": "web", "containerPort": 8081}],
         "volumeMounts": [{"name": "shared", "mountPath": "/srv/shared"}],
         "env": [{"name": "WORD", "value": "hello"}],
         "securityContext": {"runAsUser": 4321},
         "readinessProbe": {"httpGet": {"path": "/", "port": "web"}, "periodSeconds": 1},
         "livenessProbe": {"exec": {"command": ["test", "-e", "/srv/shared/hello"]}, "periodSeconds": 1},
         "lifecycle": {"postStart": {"exec": {"command": ["sh", "-c", "sleep 1; id -u > /srv/shared/$WORD"]}},
                       "preStop": {"exec": {"command": ["sh", "-c", "sleep 1; rm /srv/shared/hello"]}}}},
        {"name": "two", "image": "app", "args": ["serve", "8082", "1"],
         "readinessProbe": {"tcpSocket": {"port": 8082}, "periodSeconds": 1},
         "lifecycle": {"preStop": {"httpGet": {"path": "/bye", "port": 8082}}}}
    ],
    "volumes": [{"name": "shared", "emptyDir": {}}]
}}"#;

/// One that ends by itself with a failure, and a hook that fails.
const CRASHING: &str = r#"{"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "crashing", "namespace": "shop"}, "spec": {
    "nodeName": "node-1", "containers": [
        {"name": "crashes", "image": "app", "args": ["nonsense"]},
        {"name": "never-starts", "image": "app", "args": ["serve", "8081"],
         "startupProbe": {"httpGet": {"path": "/", "port": 9}, "periodSeconds": 1, "failureThreshold": 1}},
        {"name": "unhooked", "image": "app", "args": ["serve", "8082"], "lifecycle": {"postStart": {"exec": {"command": ["false"]}}}}
    ]
}}"#;

/// One that keeps something, and what it claims for that.
const KEEPING: &str = r#"apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: kept, namespace: shop}
spec: {accessModes: [ReadWriteOnce], resources: {requests: {storage: 1Mi}}}
---
{"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "keeping", "namespace": "shop"}, "spec": {
    "nodeName": "node-1", "containers": [{"name": "one", "image": "app", "args": ["serve", "8081"],
        "volumeMounts": [{"name": "kept", "mountPath": "/srv/kept"}]}],
    "volumes": [{"name": "kept", "persistentVolumeClaim": {"claimName": "kept"}}]
}}
"#;

fn place_of(history: &[String], line: &str) -> usize {
    history.iter().position(|one| one == line).unwrap_or_else(|| panic!("{line}: {history:#?}"))
}

/// Each line stands after the one before.
fn in_order(history: &[String], lines: &[&str]) {
    let places: Vec<usize> = lines.iter().map(|line| place_of(history, line)).collect();
    assert!(places.is_sorted(), "{lines:?}: {history:#?}");
}

impl Place {
    /// What a Pod's status says there.
    fn status(&self, pod: &str) -> Result<Value, String> {
        let found = self.cluster.kubectl(&["-n", "shop", "get", "pod", pod, "-o", "json"])?;
        let found: Value = serde_json::from_str(&found).map_err(|error| error.to_string())?;
        Ok(found["status"].clone())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_kubelet_of_the_tests_keeps_the_order_the_hooks_and_the_restarts_of_kubernetes() {
    let Some(programs) = able() else { return };
    let net = Arc::new(Net::new());
    let master = net.host("master");
    let cluster = Cluster::start(programs, &master).await;
    let client = cluster.client().await;
    let kubelet = master.run(Kubelet::start(NODE, "eu-1", client, net, images(), None, None)).await;
    let place = Place { kubelet, cluster };
    place.cluster.apply(SHOP);
    eventually("Pods can be made", || async { place.cluster.try_apply(KEEPING) }).await;
    place.cluster.apply(ORDERLY);
    eventually("it is ready", || async {
        let status = place.status("orderly")?;
        let ready = |list: &str| {
            status[list].as_array().is_some_and(|all| all.iter().all(|one| one["ready"] == true))
        };
        let all = ready("containerStatuses") && ready("initContainerStatuses");
        if status["phase"] == "Running" && all { Ok(()) } else { Err(format!("{status:#}")) }
    })
    .await;
    let history = place.kubelet.history("shop", "orderly");
    in_order(
        &history,
        &[
            "first: was started",
            "first: has exited",
            "beside: was started",
            "one: was started",
            "one: postStart begins",
            "one: postStart is done",
            "two: was started",
        ],
    );
    // It ran as the container's user, in its file system, with its environment.
    let word = place.kubelet.volume("shop", "orderly", "shared").join("hello");
    assert_eq!(std::fs::read_to_string(&word).unwrap(), "4321\n");
    let status = place.status("orderly").unwrap();
    assert_eq!(status["containerStatuses"][0]["restartCount"], 0, "{status:#}");

    // What its liveness hangs on goes: it is ended, with its hook, and started again.
    std::fs::remove_file(&word).unwrap();
    eventually("the container was restarted", || async {
        let status = place.status("orderly")?;
        let one = &status["containerStatuses"][0];
        let last = &one["lastState"]["terminated"];
        let other = &status["containerStatuses"][1]["restartCount"];
        match one["restartCount"] == 1 && one["ready"] == true && last["exitCode"] == 0 && *other == 0 {
            true => Ok(()),
            false => Err(format!("{status:#}")),
        }
    })
    .await;
    let history = place.kubelet.history("shop", "orderly");
    let again = &history[place_of(&history, "one: liveness probe has failed")..];
    in_order(
        again,
        &[
            "one: liveness probe has failed",
            "one: preStop begins",
            "one: SIGTERM",
            "one: has ended",
            "one: was started",
            "one: postStart is done",
        ],
    );

    keeping(&place).await;
    crashing(&place).await;
    ending(&place).await;
}

/// What claims a volume does not run before there is one: it came first, and others run.
async fn keeping(place: &Place) {
    assert_eq!(place.kubelet.history("shop", "keeping"), [""; 0]);
    assert_eq!(place.status("keeping").unwrap()["phase"], "Pending");
    let bound = ["--subresource=status", "--type=merge", "-p", r#"{"status": {"phase": "Bound"}}"#];
    place.cluster.kubectl(&[&["-n", "shop", "patch", "pvc", "kept"], &bound[..]].concat()).unwrap();
    eventually("it runs once there is one", || async {
        let status = place.status("keeping")?;
        if status["phase"] == "Running" { Ok(()) } else { Err(format!("{status:#}")) }
    })
    .await;
}

/// What ends is started again after a while; what cannot start, too.
async fn crashing(place: &Place) {
    place.cluster.apply(CRASHING);
    eventually("all were started again, and wait", || async {
        let status = place.status("crashing")?;
        let all = status["containerStatuses"].as_array().cloned().unwrap_or_default();
        let again = all.iter().all(|one| one["restartCount"].as_u64().is_some_and(|count| count >= 2));
        let waits = all.iter().any(|one| one["state"]["waiting"]["reason"] == "CrashLoopBackOff");
        if all.len() == 3 && again && waits { Ok(()) } else { Err(format!("{status:#}")) }
    })
    .await;
    let status = place.status("crashing").unwrap();
    assert_eq!(status["containerStatuses"][0]["lastState"]["terminated"]["exitCode"], 1, "{status:#}");
    assert_eq!(status["phase"], "Running", "{status:#}");
    let ready = status["conditions"].as_array().unwrap().iter().find(|one| one["type"] == "Ready").unwrap();
    assert_eq!(ready["status"], "False", "{status:#}");
    let history = place.kubelet.history("shop", "crashing");
    in_order(&history, &["never-starts: startup probe has failed", "never-starts: SIGTERM"]);
    in_order(&history, &["unhooked: postStart has failed", "unhooked: SIGTERM", "unhooked: has ended"]);
}

/// Hooks of all begin at once, containers end when theirs are done, and the sidecar after them.
async fn ending(place: &Place) {
    place.cluster.kubectl(&["-n", "shop", "delete", "pod", "orderly", "--wait=true"]).unwrap();
    let history = place.kubelet.history("shop", "orderly");
    let last = |line: &str| {
        history.iter().rposition(|one| one == line).unwrap_or_else(|| panic!("{line}: {history:#?}"))
    };
    let order = |lines: &[&str]| {
        let places: Vec<usize> = lines.iter().map(|line| last(line)).collect();
        assert!(places.is_sorted(), "{lines:?}: {history:#?}");
    };
    order(&[
        "one: preStop begins",
        "one: preStop is done",
        "one: SIGTERM",
        "one: has ended",
        "beside: SIGTERM",
    ]);
    order(&[
        "two: preStop is done",
        "two: SIGTERM",
        "two: has ended",
        "beside: SIGTERM",
        "beside: has ended",
    ]);
    order(&["beside: preStop begins", "one: preStop is done"]);
    assert!(!history.iter().any(|line| line.ends_with("SIGKILL")), "{history:#?}");
}
