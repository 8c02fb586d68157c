//! Retries in a native page.

use outrigger_model::cluster::RetryBudget;
use outrigger_model::route::{RateLimitedBackOff, ResetHeader, RetryOn, RetryPolicy};
use serde_json::Value as Json;

use crate::dialect::shared::{Spelling, header_matches, retry_on};
use crate::finding::code;
use crate::reader::{At, Fields, Reader, Table};
use crate::schema::{DURATION, any, boolean, described, list, number, object, one_of, text};
use crate::yaml::Value;

pub(super) const RETRY: Table = Table::new(
    "a retry",
    &[
        "attempts",
        "retryOn",
        "on",
        "retriableHeaders",
        "retriableRequestHeaders",
        "perTryTimeout",
        "perTryIdleTimeout",
        "backoff",
        "rateLimitedBackoff",
        "avoidPreviousHosts",
        "remoteLocalities",
        "budget",
    ],
);
pub(super) const BUDGET: Table = Table::new("a retry budget", &["percent", "minConcurrency"]);

const RATE_LIMITED: Table = Table::new("a back-off that answers ask for", &["headers", "maxInterval"]);
const RESET: Table = Table::new("a header that says when to come again", &["name", "format"]);
const FORMATS: [(&str, bool); 4] =
    [("seconds", false), ("unixTimestamp", true), ("SECONDS", false), ("UNIX_TIMESTAMP", true)];

/// A retry block; what it leaves out has our defaults. And whether it says which endpoints a retry goes to.
pub(super) fn read(reader: &mut Reader<'_>, at: Option<At<'_>>) -> Option<(RetryPolicy, bool)> {
    let fields = reader.fields(&at?, &RETRY)?;
    let mut policy = RetryPolicy::default();
    if let Some(at) = fields.get("on").filter(|_| fields.has("retryOn")) {
        reader.error(&at, format!("{}: on and retryOn are the same field; write retryOn", at.path));
    }
    if let Some(at) = fields.get("retryOn").or(fields.get("on")) {
        (policy.on, policy.statuses) = conditions(reader, &at);
    }
    headers(reader, &fields, &mut policy);
    policy.attempts = reader.number(fields.get("attempts"), 0..=100).unwrap_or(policy.attempts);
    policy.per_try_timeout = reader.positive(fields.get("perTryTimeout"));
    policy.per_try_idle = reader.positive(fields.get("perTryIdleTimeout"));
    policy.rate_limited =
        fields.get("rateLimitedBackoff").and_then(|at| rate_limited(reader, &at)).map(Box::new);
    let avoid = reader.boolean(fields.get("avoidPreviousHosts"));
    policy.avoid_previous_hosts = avoid.unwrap_or(policy.avoid_previous_hosts);
    if reader.boolean(fields.get("remoteLocalities")) == Some(true) {
        policy.leave_priorities = RetryPolicy::ATTEMPTS_OF_PRIORITY;
    }
    // It is the destination's, or has no effect; here it is only looked at.
    fields.get("budget").and_then(|at| budget(reader, &at));
    Some((policy.with_backoff(reader.positive(fields.get("backoff"))), avoid.is_some()))
}

pub(super) fn budget(reader: &mut Reader<'_>, at: &At<'_>) -> Option<RetryBudget> {
    let fields = reader.fields(at, &BUDGET)?;
    let default = RetryBudget::default();
    Some(RetryBudget {
        percent: reader.percent(fields.get("percent")).unwrap_or(default.percent),
        min_concurrency: reader
            .number(fields.get("minConcurrency"), 0..=u32::MAX)
            .unwrap_or(default.min_concurrency),
    })
}

/// A list, or Envoy's comma-separated text; kubectl reads YAML 1.1, where a bare `on` is a boolean.
fn conditions(reader: &mut Reader<'_>, at: &At<'_>) -> (Vec<RetryOn>, Vec<u16>) {
    let words = match at.node.as_text() {
        Some(text) => text.to_owned(),
        None => {
            let items = reader.list(Some(at.clone()));
            let words = items.into_iter().filter_map(|item| match &item.node.value {
                Value::Number(status) => Some(status.clone()),
                _ => reader.text(Some(item)),
            });
            words.collect::<Vec<_>>().join(",")
        }
    };
    retry_on(reader, at, &words)
}

/// What answers and requests must have. The condition for answers need not be written beside its list.
fn headers(reader: &mut Reader<'_>, fields: &Fields<'_>, policy: &mut RetryPolicy) {
    let list_at = fields.get("retriableHeaders");
    policy.response_headers = header_matches(reader, list_at.clone(), Spelling::Native, false);
    policy.request_headers =
        header_matches(reader, fields.get("retriableRequestHeaders"), Spelling::Native, false);
    let asked = policy.on.contains(&RetryOn::RetriableHeaders);
    if !policy.response_headers.is_empty() && !asked {
        policy.on.push(RetryOn::RetriableHeaders);
        policy.on.sort_unstable();
    }
    if let Some(at) = fields.get("retryOn").filter(|_| asked && list_at.is_none()) {
        let message = format!("{}: retriable-headers has no effect without retriableHeaders", at.path);
        reader.warn(code::NO_EFFECT, &at, message);
    }
}

/// Without headers it is `retry-after`.
fn rate_limited(reader: &mut Reader<'_>, at: &At<'_>) -> Option<RateLimitedBackOff> {
    let fields = reader.fields(at, &RATE_LIMITED)?;
    let items = reader.list(fields.get("headers"));
    let mut headers = Vec::new();
    for item in &items {
        let Some(fields) = reader.fields(item, &RESET) else { continue };
        if !fields.has("name") {
            reader.missing(&fields, "name");
        }
        let unix_timestamp = reader.choice(fields.get("format"), &FORMATS).unwrap_or(false);
        if let Some(at) = fields.get("name")
            && let Some(name) = reader.text(Some(at.clone()))
            && let Some(name) = reader.header_name(&at, &name)
        {
            headers.push(ResetHeader { name, unix_timestamp });
        }
    }
    if headers.len() > RateLimitedBackOff::MOST_HEADERS {
        let most = RateLimitedBackOff::MOST_HEADERS;
        reader.error(at, format!("{}.headers are {}, and may be {most}", at.path, headers.len()));
    }
    if items.is_empty() {
        headers.push(ResetHeader { name: "retry-after".to_owned(), unix_timestamp: false });
    }
    let max = reader.positive(fields.get("maxInterval")).unwrap_or(RateLimitedBackOff::MAX);
    Some(RateLimitedBackOff { headers, max })
}

pub(super) fn schema() -> Json {
    let schema = object(&RETRY, &[], |name| match name {
        "attempts" => number("Retries after the first attempt."),
        "retryOn" => {
            any("What is retried: a list of Envoy's words and statuses, or a text of them with commas.")
        }
        "on" => any("The same; kubectl takes it only in quotes, as a bare on is a boolean to it."),
        "retriableHeaders" => any("Answers with any of these headers are retried, too: matches by name."),
        "retriableRequestHeaders" => {
            any("Only requests with any of these headers are retried: matches by name.")
        }
        "perTryTimeout" => text(&format!("For one attempt, {DURATION}")),
        "perTryIdleTimeout" => text(&format!("For one attempt without a byte of its answer, {DURATION}")),
        "backoff" => text(&format!("Before the first retry, {DURATION}")),
        "rateLimitedBackoff" => rate_limited_schema(),
        "avoidPreviousHosts" => {
            boolean("Whether a retry goes to another instance; it does unless this says false.")
        }
        "remoteLocalities" => {
            boolean("Whether retries go on to places of the next priority after two attempts in one.")
        }
        "budget" => object(&BUDGET, &[], |name| match name {
            "percent" => any("Retries in percent of the requests under way."),
            "minConcurrency" => number("So many are always allowed."),
            _ => Json::Null,
        }),
        _ => Json::Null,
    });
    described(schema, "What is tried again.")
}

fn rate_limited_schema() -> Json {
    let header = object(&RESET, &["name"], |name| match name {
        "name" => text("Its name."),
        "format" => {
            one_of(&FORMATS.map(|(word, _)| word), "Seconds from now, or since 1970; seconds without it.")
        }
        _ => Json::Null,
    });
    let schema = object(&RATE_LIMITED, &[], |name| match name {
        "headers" => list(header.clone(), "Where an answer says when to come again; retry-after without it."),
        "maxInterval" => text("A longer time does not count; 5m without it."),
        _ => Json::Null,
    });
    described(schema, "A retry waits as long as the answer asks for, in place of the back-off.")
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use outrigger_model::matcher::StringMatch;

    use super::*;
    use crate::testing::{object as page_of, one_told, route};

    fn page(retry: &str) -> String {
        page_of("outrigger.io/v1", "TrafficRules", &format!("service: reviews\nretry: {retry}"))
    }

    fn policy(retry: &str) -> RetryPolicy {
        route(&page(retry)).http[0].forward().unwrap().retry.clone().unwrap()
    }

    #[test]
    fn a_retry_may_wait_as_long_as_answers_ask_for() {
        let header = |name: &str, unix_timestamp| ResetHeader { name: name.to_owned(), unix_timestamp };
        let plain = policy("{retryOn: [429], rateLimitedBackoff: {}}").rate_limited.unwrap();
        assert_eq!(plain.headers, [header("retry-after", false)]);
        assert_eq!(plain.max, Duration::from_secs(300));
        let own = policy(
            "{rateLimitedBackoff: {maxInterval: 5s, headers: [{name: X-Reset, format: unixTimestamp}, {name: b}]}}",
        );
        let own = own.rate_limited.unwrap();
        assert_eq!(own.headers, [header("x-reset", true), header("b", false)]);
        assert_eq!(own.max, Duration::from_secs(5));
        let silent = policy("{perTryIdleTimeout: 2s}");
        assert_eq!((silent.per_try_idle, silent.per_try_timeout), (Some(Duration::from_secs(2)), None));
    }

    #[test]
    fn headers_of_answers_need_no_condition_beside_them() {
        let found =
            policy("{retryOn: 5xx, retriableHeaders: {x-again: yes1}, retriableRequestHeaders: {x-may: {}}}");
        assert_eq!(found.on, [RetryOn::FiveXx, RetryOn::RetriableHeaders]);
        assert_eq!(found.response_headers[0].value, StringMatch::exact("yes1"));
        assert_eq!(found.request_headers[0].value, StringMatch::present());
    }

    #[test]
    fn what_cannot_be_or_does_nothing_is_told() {
        for (retry, wanted) in [
            ("{retryOn: retriable-headers}", "has no effect without retriableHeaders"),
            ("{rateLimitedBackoff: {headers: [{format: seconds}]}}", "name"),
            ("{rateLimitedBackoff: {headers: [{name: 'a b'}]}}", "is not a header name"),
            ("{rateLimitedBackoff: {headers: [{name: a, format: minutes}]}}", "format"),
            ("{rateLimitedBackoff: {maxInterval: 0s}}", "longer than 0"),
            ("{perTryIdleTimeout: 0s}", "longer than 0"),
        ] {
            let told = one_told(&page(retry));
            assert!(told.contains(wanted), "{retry}: {told}");
        }
    }
}
