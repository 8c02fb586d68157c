//! The steps of Istio's Bookinfo, one `kubectl apply` after the other, each read back from its status and seen in what is answered.
//!
//! The rules are our own words: for each of Istio's `samples/bookinfo/networking/` that is named here one of the same hosts and the same effect.
//! Istio's files are no part of this repository.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::*;

const SERVICES: [(&str, &[&str]); 4] = [
    ("productpage", &["v1"]),
    ("reviews", &["v1", "v2", "v3"]),
    ("ratings", &["v1", "v2"]),
    ("details", &["v1", "v2"]),
];
const TESTER: &str = "end-user: jason\r\n";

/// `destination-rule-all`: where the versions of each service are.
fn subsets() -> String {
    let rules = SERVICES.map(|(name, versions)| {
        let subsets: Vec<Value> =
            versions.iter().map(|version| json!({"name": version, "labels": {"version": version}})).collect();
        rule("DestinationRule", name, &json!({"host": name, "subsets": subsets})).to_string()
    });
    rules.join("\n---\n")
}

fn rule(kind: &str, name: &str, spec: &Value) -> Value {
    json!({
        "apiVersion": "networking.istio.io/v1", "kind": kind, "metadata": {"name": name, "namespace": "shop"}, "spec": spec,
    })
}

/// A share of requests for each version; one alone has all and says no weight.
fn shares(name: &str, all: &[(&str, u32)]) -> Value {
    let one = |(version, weight): &(&str, u32)| {
        let mut one = json!({"destination": {"host": name, "subset": version}});
        if all.len() > 1 {
            one["weight"] = json!(weight);
        }
        one
    };
    json!({"route": all.iter().map(one).collect::<Vec<_>>()})
}

/// What a tester gets, by his header, then what everybody else gets.
fn routes(name: &str, tester: Option<Value>, others: Value) -> String {
    let tester = tester.map(|mut route| {
        route["match"] = json!([{"headers": {"end-user": {"exact": "jason"}}}]);
        route
    });
    let http: Vec<Value> = tester.into_iter().chain([others]).collect();
    rule("VirtualService", name, &json!({"hosts": [name], "http": http})).to_string()
}

/// As `routes`, where all go to the first version and the tester meets a fault before.
fn faulty(name: &str, fault: &Value) -> String {
    let mut tester = shares(name, &[("v1", 100)]);
    tester["fault"] = fault.clone();
    routes(name, Some(tester), shares(name, &[("v1", 100)]))
}

impl Stage {
    /// Applies a step, and waits until the rule of this kind and name says that every sidecar has just this, and nothing of it is odd.
    async fn step(&self, text: &str, kind: &str, name: &str) {
        self.cluster.apply(text);
        self.until_in_force(kind, name, &[]).await;
    }

    /// Waits until a rule says that every sidecar has it as it is now, with these findings.
    async fn until_in_force(&self, kind: &str, name: &str, findings: &[&str]) {
        eventually(&format!("{kind} {name} is everywhere"), || async {
            let found = self.cluster.kubectl(&["-n", "shop", "get", kind, name, "-o", "json"])?;
            let found: Value = serde_json::from_str(&found).map_err(|error| error.to_string())?;
            let (status, generation) = (&found["status"], &found["metadata"]["generation"]);
            let conditions = status["conditions"].as_array().cloned().unwrap_or_default();
            let reconciled = conditions.iter().find(|one| one["type"] == "Reconciled");
            let said = reconciled.is_some_and(|one| {
                let words = one["message"].as_str().unwrap_or_default();
                one["status"] == "True" && words.starts_with("6 of 6 proxies at generation ")
            });
            let found_in = status["validationMessages"].as_array().into_iter().flatten();
            let codes = found_in.filter_map(|one| one["type"]["code"].as_str());
            let done =
                said && status["observedGeneration"] == *generation && codes.eq(findings.iter().copied());
            if done { Ok(()) } else { Err(format!("{found:#}")) }
        })
        .await;
    }

    /// How often each version of `reviews` has answered so many requests.
    async fn counted(&self, client: &str, count: u32) -> BTreeMap<&'static str, u32> {
        let (mut counts, address) = (BTreeMap::new(), self.service("reviews", 80));
        for _ in 0..count {
            let (status, text) = self.host(client).run(app::get(address, "/", "")).await.unwrap();
            let version =
                ["v1", "v2", "v3"].into_iter().find(|version| text.contains(&format!("reviews-{version}")));
            *counts.entry(version.unwrap_or_else(|| panic!("{status} {text}"))).or_default() += 1;
        }
        counts
    }

    /// How one request to `ratings` went, and how long that took.
    async fn rated(&self, client: &str, headers: &'static str) -> (u16, Duration) {
        let (address, begun) = (self.service("ratings", 80), Instant::now());
        let (status, _) = self.host(client).run(app::get(address, "/", headers)).await.unwrap();
        (status, begun.elapsed())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn each_step_of_bookinfo_is_in_force_when_its_status_says_so() {
    let Some(istio) = require::folder("istio-crds") else { return };
    let Some(stage) = Stage::start().await else { return };
    define(&stage, &files(&istio));
    stage.cluster.apply(&deployment("productpage", "v1", 1));
    for name in ["v1", "v2", "v3"] {
        stage.cluster.apply(&version(name));
    }
    for name in ["ratings", "details"] {
        stage.cluster.apply(&deployment(name, "v1", 1));
    }
    let [client] = stage.until_ready("productpage", 1).await.try_into().unwrap();
    stage.until_ready("reviews", 3).await;
    for name in ["ratings", "details"] {
        stage.until_ready(name, 1).await;
    }

    let v1 = |name| routes(name, None, shares(name, &[("v1", 100)]));
    stage.cluster.apply(&subsets());
    for (name, _) in SERVICES {
        // In force as it is, and a word about versions of which nothing runs.
        let findings: &[&str] = if ["ratings", "details"].contains(&name) { &["IST0173"] } else { &[] };
        stage.until_in_force("destinationrule", name, findings).await;
    }
    // `virtual-service-all-v1`.
    let all = SERVICES.map(|(name, _)| v1(name)).join("\n---\n");
    stage.cluster.apply(&all);
    for (name, _) in SERVICES {
        stage.until_in_force("virtualservice", name, &[]).await;
    }
    stage.until_only(&client, "everybody is at the first", TESTER, &["v1"]).await;
    stage.until_only(&client, "everybody is at the first", "", &["v1"]).await;
    // `virtual-service-reviews-test-v2`.
    let second = || Some(shares("reviews", &[("v2", 100)]));
    let test = routes("reviews", second(), shares("reviews", &[("v1", 100)]));
    stage.step(&test, "virtualservice", "reviews").await;
    stage.until_only(&client, "a tester is at the second", TESTER, &["v2"]).await;
    stage.until_only(&client, "others are at the first", "", &["v1"]).await;

    faults(&stage, &client).await;

    // `virtual-service-reviews-80-20`, `-90-10` and `-50-v3`. The bounds are eight deviations from what is wanted.
    for [(first, large), (second, small)] in
        [[("v1", 80), ("v2", 20)], [("v1", 90), ("v2", 10)], [("v1", 50), ("v3", 50)]]
    {
        let rule = routes("reviews", None, shares("reviews", &[(first, large), (second, small)]));
        stage.step(&rule, "virtualservice", "reviews").await;
        let counts = stage.counted(&client, 600).await;
        let share = f64::from(small) / 100.0;
        let (wanted, bound) = (600.0 * share, 8.0 * (600.0 * share * (1.0 - share)).sqrt());
        let found = f64::from(counts.get(second).copied().unwrap_or_default());
        assert!((found - wanted).abs() < bound && counts.len() == 2, "{first} {second}: {counts:?}");
        println!("{first} {large}, {second} {small}: {counts:?} of 600");
    }
    // `virtual-service-reviews-v3`.
    let third = || shares("reviews", &[("v3", 100)]);
    stage.step(&routes("reviews", None, third()), "virtualservice", "reviews").await;
    stage.until_only(&client, "everybody is at the third", "", &["v3"]).await;
    // `virtual-service-reviews-jason-v2-v3`.
    stage.step(&routes("reviews", second(), third()), "virtualservice", "reviews").await;
    stage.until_only(&client, "a tester is at the second again", TESTER, &["v2"]).await;
    stage.until_only(&client, "others are at the third", "", &["v3"]).await;
}

/// `virtual-service-ratings-test-delay` and `-abort`.
async fn faults(stage: &Stage, client: &str) {
    let delay = json!({"delay": {"percentage": {"value": 100.0}, "fixedDelay": "2s"}});
    stage.step(&faulty("ratings", &delay), "virtualservice", "ratings").await;
    let (status, took) = stage.rated(client, TESTER).await;
    assert!(status == 200 && took >= Duration::from_secs(2), "{status} after {took:?}");
    let (status, took) = stage.rated(client, "").await;
    assert!(status == 200 && took < Duration::from_secs(2), "{status} after {took:?}");
    let abort = json!({"abort": {"percentage": {"value": 100.0}, "httpStatus": 500}});
    stage.step(&faulty("ratings", &abort), "virtualservice", "ratings").await;
    let (status, took) = stage.rated(client, TESTER).await;
    assert!(status == 500 && took < Duration::from_secs(2), "{status} after {took:?}");
    assert_eq!(stage.rated(client, "").await.0, 200);
}
