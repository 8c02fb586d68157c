//! The DaemonSet of the chart, with a cluster's own controller: the Pod that it makes is the node's agent, real but for the container. It puts
//! the plugin into the node's configuration, and Pods that start then are intercepted, none of whose containers may do that. An upgrade leaves
//! the plugin in its place, and `outrigger uninstall` takes it out.

use std::os::unix::fs::MetadataExt;

use outrigger_tests::cluster::INSTALLED_CNI;
use outrigger_tests::kubelet::network::Node;

use super::super::installed::{Installed, taken_out};
use super::*;

const AGENTS: [&str; 2] = ["-n", "kube-system"];

/// Waits until the node has one agent, another than before, and the controller says that it is ready: its name.
async fn agent(installed: &Installed, before: &str) -> String {
    let place = &installed.place;
    let kubectl = |words: &[&str]| place.cluster.kubectl(&[&AGENTS[..], words].concat());
    eventually("the node has an agent", || async {
        let pods = kubectl(&["get", "pods", "-l", "app=outrigger-cni", "-o", "json"])?;
        let pods: Value = serde_json::from_str(&pods).map_err(|error| error.to_string())?;
        let all = pods["items"].as_array().cloned().unwrap_or_default();
        let [pod] = all.as_slice() else { return Err(pods.to_string()) };
        let name = pod["metadata"]["name"].as_str().unwrap_or_default();
        assert_eq!(pod["metadata"]["ownerReferences"][0]["kind"], "DaemonSet", "{pod}");
        let numbers = "jsonpath={.status.updatedNumberScheduled} {.status.numberReady}";
        let numbers = kubectl(&["get", "daemonset", "outrigger-cni", "-o", numbers])?;
        match numbers == "1 1" && name != before {
            true => Ok(name.to_owned()),
            false => {
                let log = place.kubelet.log("kube-system", name, "cni");
                Err(format!("{numbers:?} {}\n{log}", pod["status"]))
            }
        }
    })
    .await
}

/// A Pod of it, which the node has intercepted, and nothing in the Pod.
fn is_intercepted(place: &Place, pod: &str) {
    let spec = place.cluster.kubectl(&["-n", "shop", "get", "pod", pod, "-o", "json"]).unwrap();
    let spec = serde_json::from_str::<Value>(&spec).unwrap()["spec"].clone();
    let names = spec["initContainers"].as_array().unwrap().iter().map(|one| one["name"].clone());
    assert_eq!(names.collect::<Vec<_>>(), ["outrigger-validation", "outrigger-proxy"]);
    assert!(!spec.to_string().contains("NET_ADMIN"), "{spec}");
    let rules = place.host(pod).ruleset();
    assert!(rules.contains("table inet outrigger"), "{rules}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_set_that_a_controller_runs_intercepts_pods_until_it_is_taken_out() {
    let files = Files::new();
    std::fs::create_dir(files.path("run")).unwrap();
    let folders = [("cni.cniBinDir", "bin"), ("cni.cniConfDir", "net.d")];
    let folders = folders.map(|(value, name)| format!("{value}={}", files.path(name).display()));
    let words = ["--set", "cni.enabled=true", "--set", &folders[0], "--set", &folders[1]];
    let network = |master: &Host| {
        let node = Node { host: master.clone(), run: files.path("run") };
        Some(Network { node: Some(node), ..files.network() })
    };
    let Some(installed) = Installed::start_as(&[], "", &words, network).await else { return };
    let place = &installed.place;
    let first = agent(&installed, "").await;
    assert_eq!(files.plugins(), [HOST, "outrigger-cni"]);
    installed.serves().await;
    place.cluster.apply(SHOP);
    eventually("the webhook is trusted", || async { place.cluster.try_apply(&deployment("web", "v1", 1)) })
        .await;
    place.cluster.apply(&deployment("catalog", "v1", 1));
    let [web] = place.until_ready("web", 1).await.try_into().unwrap();
    let [catalog] = place.until_ready("catalog", 1).await.try_into().unwrap();
    is_intercepted(place, &web);
    is_intercepted(place, &catalog);
    let crosses = async |service: &str| {
        let address = place.service(service, 80);
        eventually(&format!("web reaches {service} as who it is"), || async {
            match place.ask(&web, address).await {
                Ok((200, text)) if text.contains("spiffe://cluster.local/ns/shop/sa/web") => Ok(()),
                other => Err(format!("{other:?}\n{}", place.logs(&web))),
            }
        })
        .await;
    };
    crosses("catalog").await;

    // An upgrade: the plugin stays, so that no Pod starts without its rules meanwhile, and is answered by the new agent. Whoever writes the
    // configuration makes another file of it: that it is the same one says that nobody has taken the plugin out and put it in again.
    let file = || std::fs::metadata(files.path("net.d/10-pods.conflist")).unwrap().ino();
    let before = file();
    place.cluster.kubectl(&["-n", "kube-system", "rollout", "restart", "daemonset/outrigger-cni"]).unwrap();
    place.cluster.apply(&deployment("late", "v1", 1));
    agent(&installed, &first).await;
    assert_eq!((files.plugins(), file()), (vec![HOST.to_owned(), "outrigger-cni".to_owned()], before));
    let [late] = place.until_ready("late", 1).await.try_into().unwrap();
    is_intercepted(place, &late);
    crosses("late").await;

    // All that it may, and nothing else.
    let all = ["get daemonsets", "get pods", "list pods", "watch pods"];
    assert_eq!(asked(&place.cluster, INSTALLED_CNI), all);
    taken_out(&installed).await;
    eventually("the plugin is out of the configuration", || async {
        if files.plugins() == [HOST] { Ok(()) } else { Err(format!("{:?}", files.plugins())) }
    })
    .await;
}
