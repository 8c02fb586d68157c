//! Near endpoints of a Service, as the cluster's own proxy would have them: its controller writes hints into EndpointSlices, which nobody here
//! reads, for what they are taken from (`trafficDistribution`, and where Pods are) says the same.

use std::collections::BTreeSet;

use outrigger_control::explain::body::ExplainRequest;

use super::*;

/// Nodes and their zones. There is a client on each, and an endpoint on the first three.
const NODES: [(&str, &str); 5] = [("n1", "a"), ("n2", "a"), ("n3", "b"), ("n4", "a"), ("n5", "c")];
const SERVING: usize = 3;

fn node(name: &str, zone: &str) -> String {
    let labels = json!({"topology.kubernetes.io/region": "eu", "topology.kubernetes.io/zone": zone});
    json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name, "labels": labels}}).to_string()
}

/// A Pod that runs nowhere: what a kubelet would say of it the test says.
fn made_up(app: &str, node: &str) -> String {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": format!("{app}-{node}"), "namespace": "shop", "labels": {"app": app}},
        "spec": {"nodeName": node, "containers": [
            {"name": "app", "image": "app", "ports": [{"containerPort": 8080}]},
            {"name": "outrigger-proxy", "image": "outrigger/proxy:test"},
        ]},
    })
    .to_string()
}

fn service(distribution: &str) -> String {
    let ports = json!([{"port": 80, "name": "http", "targetPort": 8080}]);
    json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": "catalog", "namespace": "shop"},
        "spec": {"selector": {"app": "catalog"}, "ports": ports, "trafficDistribution": distribution},
    })
    .to_string()
}

/// Says that a Pod runs, and whether it is ready.
fn says(stage: &Stage, pod: &str, address: usize, ready: bool) {
    let address = format!("10.88.0.{address}");
    let ready = json!([{"type": "Ready", "status": if ready { "True" } else { "False" }}]);
    let status = json!({"status": {
        "phase": "Running", "podIP": address, "podIPs": [{"ip": address}], "conditions": ready,
    }});
    let words = ["-n", "shop", "patch", "pod", pod, "--subresource=status", "--type=merge", "-p"];
    stage.cluster.kubectl(&[&words[..], &[status.to_string().as_str()]].concat()).unwrap();
}

/// For the clients of which nodes or zones an endpoint is meant.
fn hinted<'e>(endpoint: &'e Value, hint: &str) -> Vec<&'e str> {
    let all = endpoint["hints"][hint].as_array().into_iter().flatten();
    all.filter_map(|one| one["name"].as_str()).collect()
}

/// The endpoints that are ready, once there are so many, each with the hints that such a distribution asks for.
async fn ready(stage: &Stage, distribution: &str, count: usize) -> Vec<Value> {
    let by_node = distribution == "PreferSameNode";
    eventually(&format!("{count} endpoints have the hints of {distribution}"), || async {
        let selector = "kubernetes.io/service-name=catalog";
        let words = ["-n", "shop", "get", "endpointslices", "-l", selector, "-o", "json"];
        let slices: Value =
            serde_json::from_str(&stage.cluster.kubectl(&words)?).map_err(|error| error.to_string())?;
        let slices = slices["items"].as_array().cloned().unwrap_or_default();
        let all = slices.iter().flat_map(|slice| slice["endpoints"].as_array().into_iter().flatten());
        let ready = all.filter(|endpoint| endpoint["conditions"]["ready"] == true);
        let ready: Vec<Value> = ready.cloned().collect();
        let has = |endpoint: &Value, hint: &str| !hinted(endpoint, hint).is_empty();
        let are_hinted = ready.iter().all(|one| has(one, "forZones") && has(one, "forNodes") == by_node);
        match ready.len() == count && are_hinted {
            true => Ok(ready),
            false => Err(format!("{slices:?}")),
        }
    })
    .await
}

/// Whom kube-proxy gives a client by hints: those for its node, else those for its zone, where there are any; else all.
fn by_hints(ready: &[Value], node: &str, zone: &str) -> BTreeSet<String> {
    let name = |endpoint: &Value| format!("{}.shop", endpoint["targetRef"]["name"].as_str().unwrap());
    for (hint, own) in [("forNodes", node), ("forZones", zone)] {
        let meant = ready.iter().filter(|endpoint| hinted(endpoint, hint).contains(&own));
        let meant: BTreeSet<String> = meant.map(name).collect();
        if !meant.is_empty() && ready.iter().all(|endpoint| !hinted(endpoint, hint).is_empty()) {
            return meant;
        }
    }
    ready.iter().map(name).collect()
}

/// Whom a client's sidecar sends requests to.
async fn sent_to(stage: &Stage, client: &str) -> Result<BTreeSet<String>, String> {
    let asked = ExplainRequest {
        from: client.to_owned(),
        method: "GET".to_owned(),
        url: "http://catalog.shop/".to_owned(),
        headers: Vec::new(),
    };
    let said = stage.mesh.client.explain(&asked).await.map_err(|error| error.to_string())?;
    let [target] = said.targets.as_slice() else { return Err(format!("{said:?}")) };
    Ok(target.inbound.iter().flat_map(|inbound| inbound.instances.clone()).collect())
}

#[tokio::test(flavor = "multi_thread")]
async fn near_endpoints_are_those_that_the_clusters_own_hints_mean() {
    let Some(stage) = Stage::without_injection().await else { return };
    stage.cluster.apply(&NODES.map(|(name, zone)| node(name, zone)).join("\n---\n"));
    let apps = |(place, (node, _)): (usize, &(&'static str, &'static str))| {
        let serves = (place < SERVING).then_some(("catalog", *node, place + 10));
        serves.into_iter().chain([("web", *node, place + 20)])
    };
    let pods: Vec<(&str, &str, usize)> = NODES.iter().enumerate().flat_map(apps).collect();
    let text: Vec<String> = pods.iter().map(|(app, node, _)| made_up(app, node)).collect();
    eventually("Pods can be made", || async { stage.cluster.try_apply(&text.join("\n---\n")) }).await;
    for (app, node, address) in &pods {
        says(&stage, &format!("{app}-{node}"), *address, true);
    }
    for distribution in ["PreferClose", "PreferSameZone", "PreferSameNode"] {
        stage.cluster.apply(&service(distribution));
        // All of them; and none of a whole zone.
        for (count, of_zone) in [(SERVING, true), (1, false)] {
            for (place, (node, _)) in NODES.iter().enumerate().take(2) {
                says(&stage, &format!("catalog-{node}"), place + 10, of_zone);
            }
            let ready = ready(&stage, distribution, count).await;
            for (node, zone) in NODES {
                let meant = by_hints(&ready, node, zone);
                let what = format!("{distribution}: a client on {node} has {meant:?}");
                eventually(&what, || async {
                    let sent = sent_to(&stage, &format!("web-{node}.shop")).await?;
                    if sent == meant { Ok(()) } else { Err(format!("{sent:?}")) }
                })
                .await;
            }
            // It is the hints that are compared with, and they tell clients apart.
            let all = NODES.map(|(node, zone)| by_hints(&ready, node, zone).len());
            let expected = match (distribution, of_zone) {
                (_, false) => [1; 5],
                ("PreferSameNode", true) => [1, 1, 1, 2, 3],
                _ => [2, 2, 1, 2, 3],
            };
            assert_eq!(all, expected, "{distribution} {ready:?}");
        }
    }
}
