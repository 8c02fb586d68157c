//! Which attempts a rule asks for.

use outrigger_model::route::{RetryOn, RetryPolicy};

use super::*;
use crate::intent::HttpRoute;
use crate::testing::object;

fn retry(route: &HttpRoute) -> &RetryPolicy {
    route.forward().unwrap().retry.as_ref().unwrap()
}

#[test]
fn retries_have_our_default_when_absent_and_istios_when_only_begun() {
    let absent = route(&http(""));
    assert_eq!(*retry(&absent.http[0]), RetryPolicy::default());
    let begun = route(&http("retries: {attempts: 3}"));
    let istios = [RetryOn::ConnectFailure, RetryOn::RefusedStream, RetryOn::Cancelled, RetryOn::Unavailable];
    assert_eq!(retry(&begun.http[0]).on, istios);
    assert_eq!(retry(&begun.http[0]).attempts, 3);
    assert_eq!(retry(&route(&http("retries: {attempts: 0}")).http[0]).attempts, 0);
}

#[test]
fn all_fields_of_retries_arrive() {
    let text = http(
        "retries: {attempts: 2, perTryTimeout: 1s, retryOn: '5xx, 429', backoff: 10ms, retryIgnorePreviousHosts: false, retryRemoteLocalities: true}",
    );
    let route = route(&text);
    let retry = retry(&route.http[0]);
    assert_eq!(
        (retry.on.as_slice(), retry.statuses.as_slice()),
        ([RetryOn::FiveXx].as_slice(), [429].as_slice())
    );
    assert_eq!(retry.per_try_timeout, Some(Duration::from_secs(1)));
    assert_eq!(
        (retry.backoff_base, retry.backoff_max),
        (Duration::from_millis(10), Duration::from_millis(100))
    );
    assert!(!retry.avoid_previous_hosts);
    assert_eq!(retry.leave_priorities, 2, "as Istio's");
}

#[test]
fn a_wrong_retry_condition_is_told_with_the_right_one() {
    let told = one_told(&http("retries: {attempts: 1, retryOn: 'connect-failur'}"));
    assert!(told.contains("rules.yaml:9:37 error IST0106"), "{told}");
    assert!(told.ends_with("Did you mean \"connect-failure\"?"), "{told}");
}

#[test]
fn statuses_that_are_to_be_retried_and_are_not_there_are_told() {
    let retries = |on: &str| http(&format!("retries: {{attempts: 2, retryOn: '{on}'}}"));
    let told_of = one_told(&retries("5xx,retriable-status-codes"));
    assert!(
        told_of.contains("warning OUT0006") && told_of.contains("without a status beside it"),
        "{told_of}"
    );
    assert!(told(&retries("retriable-status-codes,409")).is_empty());
    let page = "service: reviews\nretry: {retryOn: [retriable-status-codes]}";
    assert!(
        one_told(&object("outrigger.io/v1", "TrafficRules", page)).contains("without a status beside it")
    );
}

#[test]
fn retries_without_attempts_are_off_and_say_so() {
    let text = http("retries: {backoff: 10ms}");
    assert!(one_told(&text).contains("warning OUT0006"));
    assert_eq!(retry(&route(&text).http[0]).attempts, 0);
}

#[test]
fn retries_stay_near_where_nothing_else_is_said() {
    for fields in ["attempts: 1", "attempts: 1, retryRemoteLocalities: false"] {
        let text = http(&format!("retries: {{{fields}}}"));
        assert_eq!(told(&text), Vec::<String>::new(), "{fields}");
        assert_eq!(retry(&route(&text).http[0]).leave_priorities, 0, "{fields}");
    }
}
