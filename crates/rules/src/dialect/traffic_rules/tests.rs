use std::time::Duration;

use outrigger_model::cluster::{Balance, Breaker};
use outrigger_model::matcher::StringMatch;
use outrigger_model::route::{FaultStatus, Forward, PathMatch, RetryOn, RetryPolicy};

use crate::intent::HttpRoute;
use crate::testing::{destination, object, objects, one_told, route};

mod whole;

fn page(spec: &str) -> String {
    object("outrigger.io/v1", "TrafficRules", spec)
}

fn forward(route: &HttpRoute) -> &Forward {
    route.forward().unwrap()
}

fn retry(route: &HttpRoute) -> &RetryPolicy {
    forward(route).retry.as_ref().unwrap()
}

#[test]
fn a_whole_page_becomes_a_route_and_a_destination() {
    let text = include_str!("../../../../../config/examples/traffic-rules.yaml");
    let route = route(text);
    let names: Vec<_> = route.http.iter().map(|http| http.route.name.as_str()).collect();
    assert_eq!(names, ["testers", "slow-search", "everybody"]);
    assert_eq!(route.http[0].matches[0].request.headers[0].value, StringMatch::exact("tester"));
    assert_eq!(forward(&route.http[0]).timeout, Some(Duration::from_secs(2)));
    assert_eq!(forward(&route.http[1]).timeout, Some(Duration::from_secs(5)));
    let fault = route.http[1].route.fault.as_ref().unwrap();
    assert_eq!(fault.delay.as_ref().unwrap().percentage, 50.0);
    assert_eq!(fault.abort.as_ref().unwrap().status, FaultStatus::Http(503));
    let weights: Vec<_> =
        route.http[2].targets.iter().map(|t| (t.target.subset.as_deref().unwrap(), t.share.weight)).collect();
    assert_eq!(weights, [("v1", 90), ("v2", 10)]);

    let destination = destination(text);
    assert_eq!(destination.policy.load_balancing, Some(Balance::LeastRequest.into()));
    assert_eq!(destination.subset("v3").unwrap().labels["version"], "v3");
    assert_eq!(destination.policy.connection_pool.unwrap().max_pending_requests, Some(64));
    let outlier = destination.policy.outlier.unwrap();
    assert_eq!((outlier.consecutive_5xx, outlier.base_ejection), (5, Duration::from_secs(15)));
    let budget = destination.policy.retry_budget.unwrap();
    assert_eq!((budget.percent, budget.min_concurrency), (20.0, 3));
}

#[test]
fn a_timeout_alone_is_a_route_for_everything() {
    let text = page("service: reviews\ntimeout: 1s");
    let found = route(&text);
    assert!(found.http[0].is_catch_all());
    assert_eq!(forward(&found.http[0]).timeout, Some(Duration::from_secs(1)));
    assert_eq!(*retry(&found.http[0]), RetryPolicy::default());
    assert_eq!(objects(&text)[0].intents.len(), 1);
}

#[test]
fn a_route_without_targets_goes_to_the_service() {
    let found = route(&page("service: reviews\nroutes:\n- match: {path: /slow}\n  timeout: 9s"));
    assert_eq!(found.http[0].targets[0].target.host.as_str(), "reviews.shop.svc.cluster.local");
    assert_eq!(found.http[0].matches[0].request.path, PathMatch::Exact("/slow".into()));
}

#[test]
fn retry_words_may_be_a_list_or_a_text_and_default_to_what_never_reached_the_app() {
    let both = page("service: a\nretry: {on: [5xx], retryOn: [5xx]}");
    assert!(one_told(&both).contains("the same field"));
    let new = route(&page("service: a\nretry: {retryOn: [5xx]}"));
    assert_eq!(retry(&new.http[0]).on, [RetryOn::FiveXx]);
    for on in ["[5xx, 429]", "5xx,429"] {
        let found = route(&page(&format!(
            "service: a\nretry: {{attempts: 1, on: {}}}",
            if on.starts_with('[') { on.to_owned() } else { format!("'{on}'") }
        )));
        let retry = retry(&found.http[0]);
        assert_eq!((retry.on.clone(), retry.statuses.clone()), (vec![RetryOn::FiveXx], vec![429]));
    }
    let plain = route(&page("service: a\nretry: {attempts: 4}"));
    assert_eq!(*retry(&plain.http[0]), RetryPolicy { attempts: 4, ..RetryPolicy::default() });
}

#[test]
fn a_version_uses_the_subset_that_has_its_label() {
    let text =
        page("service: a\nsubsets: [{name: new, labels: {version: v2}}]\nroutes: [{to: [{version: v2}]}]");
    assert_eq!(route(&text).http[0].targets[0].target.subset.as_deref(), Some("new"));
    assert_eq!(destination(&text).subsets.len(), 1);
    let clash =
        page("service: a\nsubsets: [{name: v2, labels: {track: x}}]\nroutes: [{to: [{version: v2}]}]");
    assert!(one_told(&clash).contains("other labels"));
}

#[test]
fn several_targets_need_weights() {
    let text = page("service: a\nroutes: [{to: [{version: v1}, {version: v2, weight: 1}]}]");
    assert!(one_told(&text).contains("spec.routes[0].to[0].weight is missing"));
}

#[test]
fn an_empty_page_is_an_error() {
    assert!(one_told(&page("service: a")).contains("say nothing about their service"));
}

#[test]
fn unknown_fields_are_told_with_the_nearest() {
    let told = one_told(&page("service: a\ncircuitBraker: {maxRequests: 1}\ntimeout: 1s"));
    assert!(told.starts_with("rules.yaml:7:3 error") && told.ends_with("\"circuitBreaker\"?"), "{told}");
}

#[test]
fn a_page_for_a_wildcard_is_refused() {
    assert!(one_told(&page("service: '*'\ntimeout: 1s")).contains("one host"));
}

#[test]
fn a_page_allows_other_origins_and_mirrors_to_a_version_or_another_service() {
    let text = page(
        "service: a
routes:
- cors: {allowOrigins: ['https://a.test', {suffix: .b.test}], allowMethods: [GET], maxAge: 1m}
  mirror: {version: v2, percent: 10}
- mirror: [{service: b, port: 81}, {subset: v2}]",
    );
    let found = route(&text);
    let cors = found.http[0].route.cors.as_ref().unwrap();
    assert_eq!(cors.allow_origins, [StringMatch::exact("https://a.test"), StringMatch::suffix(".b.test")]);
    assert_eq!((cors.allow_methods.as_str(), cors.max_age.as_str()), ("GET", "60"));
    let [mirror] = found.http[0].mirrors.as_slice() else { panic!("{:?}", found.http[0].mirrors) };
    assert_eq!((mirror.target.subset.as_deref(), mirror.mirror.percentage), (Some("v2"), 10.0));
    let [other, own] = found.http[1].mirrors.as_slice() else { panic!("{:?}", found.http[1].mirrors) };
    assert_eq!((other.target.host.as_str(), other.target.port), ("b.shop.svc.cluster.local", Some(81)));
    assert_eq!((own.target.host.as_str(), own.mirror.percentage), ("a.shop.svc.cluster.local", 100.0));
    assert_eq!(destination(&text).subset("v2").unwrap().labels["version"], "v2");
}

fn tripped(block: &str) -> Breaker {
    let text = page(&format!("service: reviews\ncircuitBreaker:\n  trip: {block}"));
    destination(&text).policy.breaker.unwrap()
}

#[test]
fn a_circuit_breaker_trips_by_share_unless_only_failures_in_a_row_are_said() {
    assert_eq!(tripped("{}"), Breaker::default());
    let row = tripped("{consecutiveFailures: 5}");
    assert_eq!((row.failure_percent, row.consecutive_failures), (0.0, 5));
    let all = tripped(
        "{failurePercent: 12.5, minRequests: 50, interval: 1m, consecutiveFailures: 9, openTime: 5s, probes: 10}",
    );
    let wanted = Breaker {
        failure_percent: 12.5,
        minimum_requests: 50,
        interval: Duration::from_secs(60),
        consecutive_failures: 9,
        open_time: Duration::from_secs(5),
        probes: 10,
    };
    assert_eq!(all, wanted);
    assert_eq!(all.check(), Ok(()));
}

#[test]
fn a_circuit_breaker_that_cannot_be_is_an_error_that_says_why() {
    for (block, wanted) in [
        ("{failurePercent: 0}", "failurePercent must be a percentage above 0, up to 100, not the number 0"),
        ("{failurePercent: 101}", "a percentage above 0, up to 100"),
        ("{interval: 50ms}", "interval: must be at least 100ms"),
        ("{openTime: 0s}", "openTime must be longer than 0"),
        ("{probes: 0}", "probes"),
        ("{minRequests: 0}", "minRequests"),
        ("{halfOpen: 1}", "halfOpen"),
    ] {
        let text = page(&format!("service: reviews\ncircuitBreaker:\n  trip: {block}"));
        let told = one_told(&text);
        assert!(told.contains(wanted), "{block}: {told}");
    }
}
