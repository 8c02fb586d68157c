//! Zone-aware balancing: given the same endpoints and the same peers of the client, both proxies keep the same part of the requests in
//! the client's zone.

use std::collections::BTreeMap;

use outrigger_tests::app::exchange;
use outrigger_tests::wait::eventually;
use serde_json::{Value, json};

use super::apps::RUN;
use super::case::{Group, cluster, to};
use super::play::Side;
use super::stage::Stage;

/// Of each of them.
const REQUESTS: usize = 300;

fn group(name: &str, endpoints: &[&str], zones: Value) -> Group {
    let own = format!("{name}-endpoints");
    let fields = json!({ "lb_policy": "ROUND_ROBIN", "common_lb_config": { "zone_aware_lb_config": zones } });
    Group::new(name, json!([to(json!({ "prefix": "/" }), &own, json!({}))]))
        .cluster(cluster(&own, endpoints, fields))
}

pub fn groups() -> Vec<Group> {
    let few = || json!({ "min_cluster_size": 1 });
    vec![
        group("zones-some", &["a~x", "b~y", "c~y"], few()),
        group("zones-none", &["b~y", "c~z"], few()),
        group(
            "zones-half",
            &["a~x", "b~y", "c~y"],
            json!({ "min_cluster_size": 1, "routing_enabled": { "value": 50 } }),
        ),
        group("zones-few", &["a~x", "b~y", "c~y"], json!({ "min_cluster_size": 4 })),
    ]
}

async fn asked(stage: &Stage, side: &Side, group: &str) -> &'static str {
    let run = format!("{}/{group}/{}", side.name, fastrand::u64(..));
    let request =
        format!("GET / HTTP/1.1\r\nHost: {group}.test\r\n{RUN}: {run}\r\nConnection: close\r\n\r\n");
    exchange(side.addresses[0], &request).await.expect("an answer");
    stage.apps.attempts(&run).first().map_or("nobody", |attempt| attempt.endpoint)
}

async fn shares(stage: &Stage, side: &Side, group: &str) -> BTreeMap<&'static str, usize> {
    let mut shares = BTreeMap::new();
    for _ in 0..REQUESTS {
        *shares.entry(asked(stage, side, group).await).or_default() += 1;
    }
    shares
}

async fn holds(stage: &Stage, side: &Side) {
    // Its half of the other zone's endpoints is what the peers there need: all goes to the third.
    eventually(&format!("{} knows its peers", side.name), || async {
        for _ in 0..20 {
            let endpoint = asked(stage, side, "zones-none").await;
            if endpoint != "c" {
                return Err(format!("{endpoint} got a request"));
            }
        }
        Ok(())
    })
    .await;
    // A third of the endpoints and half of the peers: two of three stay. With half of the requests by zone, and half by endpoints, half of
    // all. Of too few endpoints each has as much. The standard deviation is less than 9.
    for (group, near) in [("zones-some", 200), ("zones-half", 150), ("zones-few", 100)] {
        let shares = shares(stage, side, group).await;
        let found = shares.get("a").copied().unwrap_or(0);
        assert!(found.abs_diff(near) <= 45, "{} {group}: {shares:?}", side.name);
        let others = ["b", "c"].map(|name| shares.get(name).copied().unwrap_or(0));
        assert!(others[0].abs_diff(others[1]) <= 45, "{} {group}: {shares:?}", side.name);
    }
}

pub async fn compare(stage: &Stage) {
    tokio::join!(holds(stage, &stage.ours), holds(stage, &stage.theirs));
}
