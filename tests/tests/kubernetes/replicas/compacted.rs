//! An API server that knows nothing any more of what was last heard of it: its etcd has forgotten its history, and it has started anew itself. What
//! it says to whoever goes on from there is 410, in words of its own.

use outrigger_control::api::types::Condition;

use super::*;
use crate::registries::json_over_http;

/// A Pod that asks for no sidecar, so that it is made while nobody can be asked about it.
fn plain(name: &str) -> String {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "namespace": "shop", "labels": {"app": name, "sidecar.istio.io/inject": "false"}},
        "spec": {"nodeName": NODE, "terminationGracePeriodSeconds": 1, "containers": [{
            "name": "app", "image": "app", "args": ["serve", "8080"],
            "readinessProbe": {"tcpSocket": {"port": 8080}, "periodSeconds": 1},
        }]},
    })
    .to_string()
}

/// Has etcd forget all that is not so now.
async fn compact(master: &Host) {
    let asked = master.run(async {
        let etcd = SocketAddr::from(([127, 0, 0, 1], 2379));
        // Whatever is read, its answer says the revision.
        let (status, text) = json_over_http(etcd, "POST", "/v3/kv/range", &json!({"key": "AA=="})).await?;
        let answer: Value =
            serde_json::from_str(&text).map_err(|error| format!("{status} {text}: {error}"))?;
        let words = json!({"revision": answer["header"]["revision"], "physical": true});
        json_over_http(etcd, "POST", "/v3/kv/compaction", &words).await
    });
    let (status, text) = asked.await.unwrap();
    assert_eq!(status, 200, "{text}");
}

/// Listings of Pods, which only a watch that cannot go on makes after the first.
fn listings(cluster: &Cluster) -> usize {
    let is_one = |event: &&Value| event["verb"] == "list" && event["objectRef"]["resource"] == "pods";
    cluster.audit("mesh").iter().filter(is_one).count()
}

async fn until_known(pair: &Pair, what: &str, there: &str, gone: Option<&str>) {
    for (which, name) in NAMES.iter().enumerate() {
        eventually(&format!("{name} knows {what}"), || async {
            let all = pair.mesh(which).client.instances().await.map_err(|error| error.to_string())?;
            let ids: Vec<&str> = all.iter().map(|one| one.instance.id.as_str()).collect();
            match ids.contains(&there) && !gone.is_some_and(|gone| ids.contains(&gone)) {
                true => Ok(()),
                false => Err(format!("{ids:?}")),
            }
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_has_changed_before_an_api_server_s_history_begins_is_listed_and_costs_no_request() {
    let Some(mut pair) = Pair::start().await else { return };
    let web = pair.shop().await;
    pair.stage.cluster.apply(&plain("goes"));
    pair.stage.until_ready("goes", 1).await;
    until_known(&pair, "who is there", "goes.shop", None).await;
    let load = Load::start(pair.stage.host(&web), pair.stage.service("catalog", 80));
    let before = listings(&pair.stage.cluster);
    assert!(before >= 2, "{before}");

    // Neither of them hears of what happens now, and when they ask nobody knows it any more.
    pair.ways.iter().for_each(Way::cut);
    pair.stage.cluster.kubectl(&["-n", "shop", "delete", "pod", "goes"]).unwrap();
    pair.stage.cluster.apply(&plain("comes"));
    pair.stage.until_ready("comes", 1).await;
    compact(&pair.stage.master).await;
    pair.stage.cluster.kill_api();
    pair.stage.cluster.start_api().await;
    // The oldest thing that it knows is younger than the youngest that they know.
    pair.stage.cluster.kubectl(&["-n", "shop", "label", "pod", "comes", "seen=late"]).unwrap();
    pair.ways.iter().for_each(Way::mend);
    until_known(&pair, "who has come and who has gone", "comes.shop", Some("goes.shop")).await;
    let after = listings(&pair.stage.cluster);
    assert!(after >= before + 2, "each had to list anew: {before} and {after}");

    pair.until_led().await;
    pair.until_called(&web).await;
    println!("{} requests, none failed", load.none_failed().await);
    for which in 0..2 {
        let connected = |all: &StatusBody| all.registries.iter().all(|row| row.state == Condition::Connected);
        pair.until_status(which, "nothing is in trouble", connected).await;
    }
}
