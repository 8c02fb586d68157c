//! Ejection by the rates of an interval: given the same answers of the same endpoints, both proxies find the same one out.

use std::collections::{BTreeMap, BTreeSet};

use outrigger_tests::app::exchange;
use outrigger_tests::wait::eventually;
use serde_json::{Value, json};

use super::apps::RUN;
use super::case::{Group, cluster, to};
use super::play::Side;
use super::stage::Stage;

const USERS: usize = 40;

/// Requests are known by their keys, so that it is known which endpoint each goes to.
fn group(name: &str, rules: Value) -> Group {
    let mut outlier = json!({
        "interval": "1s", "base_ejection_time": "60s", "max_ejection_percent": 100,
        "enforcing_consecutive_5xx": 0, "enforcing_success_rate": 0,
    });
    for (field, value) in rules.as_object().expect("fields") {
        outlier[field] = value.clone();
    }
    let own = format!("{name}-endpoints");
    let hash = json!([{ "header": { "header_name": "x-user" } }]);
    let route = to(json!({ "prefix": "/" }), &own, json!({ "hash_policy": hash }));
    let fields = json!({ "lb_policy": "RING_HASH", "outlier_detection": outlier });
    Group::new(name, json!([route])).cluster(cluster(&own, &["a", "b", "c", "d", "e"], fields))
}

pub fn groups() -> Vec<Group> {
    vec![
        group(
            "rates-success",
            json!({ "enforcing_success_rate": 100, "success_rate_minimum_hosts": 5,
                    "success_rate_request_volume": 5, "success_rate_stdev_factor": 1500 }),
        ),
        group(
            "rates-failure",
            json!({ "enforcing_failure_percentage": 100, "failure_percentage_threshold": 60,
                    "failure_percentage_minimum_hosts": 3, "failure_percentage_request_volume": 5 }),
        ),
        group(
            "rates-apart",
            json!({ "enforcing_failure_percentage_local_origin": 100, "failure_percentage_threshold": 40,
                    "failure_percentage_minimum_hosts": 3, "failure_percentage_request_volume": 5,
                    "split_external_local_origin_errors": true, "enforcing_local_origin_success_rate": 0,
                    "enforcing_consecutive_local_origin_failure": 0 }),
        ),
    ]
}

/// Who gets the request of a user, which is answered so.
async fn asked(stage: &Stage, side: &Side, group: &str, user: usize, answer: &str) -> &'static str {
    let run = format!("{}/{group}/{user}/{}", side.name, fastrand::u64(..));
    let request = format!(
        "GET / HTTP/1.1\r\nHost: {group}.test\r\nx-user: user-{user}\r\nx-answers: {answer}\r\n{RUN}: {run}\r\nConnection: close\r\n\r\n"
    );
    exchange(side.addresses[0], &request).await.expect("an answer");
    stage.apps.attempts(&run).first().map_or("nobody", |attempt| attempt.endpoint)
}

async fn owners(stage: &Stage, side: &Side, group: &str) -> BTreeMap<usize, &'static str> {
    let mut owners = BTreeMap::new();
    for user in 0..USERS {
        owners.insert(user, asked(stage, side, group, user, "200").await);
    }
    owners
}

/// One endpoint fails all of its requests until it gets none.
async fn fail(stage: &Stage, side: &Side, group: &str, victim: &str, answer: &str) {
    let known = tokio::sync::Mutex::new(owners(stage, side, group).await);
    eventually(&format!("{} ejects {victim} of {group}", side.name), || async {
        let mut known = known.lock().await;
        for user in 0..USERS {
            let owner = known[&user];
            let answer = if owner == victim { answer } else { "200" };
            known.insert(user, asked(stage, side, group, user, answer).await);
        }
        if known.values().any(|owner| *owner == victim) { Err(format!("{known:?}")) } else { Ok(()) }
    })
    .await;
}

pub async fn compare(stage: &Stage) {
    for (group, answer) in [("rates-success", "500"), ("rates-failure", "503"), ("rates-apart", "reset")] {
        let before = owners(stage, &stage.ours, group).await;
        assert_eq!(before, owners(stage, &stage.theirs, group).await, "{group}");
        let victim = before[&0];
        tokio::join!(
            fail(stage, &stage.ours, group, victim, answer),
            fail(stage, &stage.theirs, group, victim, answer)
        );
        // Who gets the keys of the ejected one is no matter of rates; docs/differences.md says it.
        let theirs = owners(stage, &stage.theirs, group).await;
        let left = |owners: &BTreeMap<usize, &'static str>| owners.values().copied().collect::<BTreeSet<_>>();
        let after = owners(stage, &stage.ours, group).await;
        assert_eq!(left(&after), left(&theirs), "{group}: who is left");
        for (user, owner) in before {
            assert_eq!(owner == victim, after[&user] != owner, "{group}: user {user} of {owner}");
        }
    }
}
