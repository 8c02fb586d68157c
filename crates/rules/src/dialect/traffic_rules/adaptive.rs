//! `adaptiveConcurrency` of a native page: how many requests each instance has under way, as latency allows.

use outrigger_model::concurrency::{AdaptiveConcurrency, MOST_CONCURRENCY, MinRtt, WINDOWS};
use serde_json::Value as Json;

use crate::reader::{At, Fields, Reader, Table};
use crate::schema::{DURATION, any, described, number, object, text};

const LIMIT: Table = Table::new(
    "adaptive concurrency",
    &["percentile", "maxLimit", "minLimit", "updateInterval", "minRtt", "status"],
);
const RTT: Table = Table::new(
    "a minRTT",
    &["interval", "requestCount", "jitterPercent", "minConcurrency", "bufferPercent", "fixedValue"],
);
/// What is said of a measurement.
const MEASURED: [&str; 3] = ["interval", "requestCount", "jitterPercent"];

pub(super) fn read(reader: &mut Reader<'_>, at: Option<At<'_>>) -> Option<AdaptiveConcurrency> {
    let fields = reader.fields(&at?, &LIMIT)?;
    let default = AdaptiveConcurrency::default();
    let percentile_at = fields.get("percentile");
    let percentile = reader
        .decimal(percentile_at, "a percentile above 0, up to 100", |value| 0.0 < value && value <= 100.0);
    let max_limit = reader.number(fields.get("maxLimit"), 1..=MOST_CONCURRENCY).unwrap_or(default.max_limit);
    let min_limit = reader.number(fields.get("minLimit"), 1..=MOST_CONCURRENCY);
    let update_interval = window(reader, &fields, "updateInterval").unwrap_or(default.update_interval);
    let status = reader.number(fields.get("status"), 400..=599).and_then(|status| u16::try_from(status).ok());
    let base = AdaptiveConcurrency {
        percentile: percentile.unwrap_or(default.percentile),
        update_interval,
        max_limit,
        min_limit,
        status: status.unwrap_or(default.status),
        ..default
    };
    let found = match fields.get("minRtt").and_then(|at| reader.fields(&at, &RTT)) {
        Some(rtt) => min_rtt(reader, &rtt, base),
        None => base,
    };
    if let Some(at) = fields.get("minLimit").filter(|_| found.lowest() > max_limit) {
        reader.error(&at, format!("{} is more than maxLimit, which is {max_limit}", at.path));
    }
    if let MinRtt::Measured { interval, .. } = found.min_rtt
        && let Some(at) = fields.get("updateInterval").or_else(|| fields.get("minRtt"))
        && update_interval >= interval
    {
        let message = format!(
            "{}: the minRTT is measured again every {interval:?}, so no window of {update_interval:?} is ever over; \
             updateInterval must be shorter than minRtt.interval",
            at.path
        );
        reader.error(&at, message);
    }
    Some(found)
}

fn min_rtt(reader: &mut Reader<'_>, fields: &Fields<'_>, base: AdaptiveConcurrency) -> AdaptiveConcurrency {
    let MinRtt::Measured { interval, requests, jitter } = base.min_rtt else { return base };
    let interval = window(reader, fields, "interval").unwrap_or(interval);
    let requests = reader.number(fields.get("requestCount"), 1..=1_000_000).unwrap_or(requests);
    let percent = |reader: &mut Reader<'_>, name| {
        reader.decimal(fields.get(name), "a percentage from 0 to 100", |value| (0.0..=100.0).contains(&value))
    };
    let jitter = percent(reader, "jitterPercent").unwrap_or(jitter);
    let buffer = percent(reader, "bufferPercent").unwrap_or(base.buffer);
    let fixed = reader.positive(fields.get("fixedValue"));
    let given = reader.number(fields.get("minConcurrency"), 1..=MOST_CONCURRENCY);
    let min_concurrency = given.unwrap_or(base.min_concurrency);
    if let Some(at) = MEASURED.iter().find_map(|name| fields.get(name)).filter(|_| fields.has("fixedValue")) {
        reader.error(&at, format!("{}: with a fixedValue nothing is measured; leave it out", at.path));
    }
    if let Some(at) = fields.get("minConcurrency").filter(|_| min_concurrency > base.max_limit) {
        let message = format!("{} is more than maxLimit, which is {}", at.path, base.max_limit);
        reader.error(&at, message);
    }
    let measured = MinRtt::Measured { interval, requests, jitter };
    AdaptiveConcurrency { min_rtt: fixed.map_or(measured, MinRtt::Fixed), min_concurrency, buffer, ..base }
}

fn window(reader: &mut Reader<'_>, fields: &Fields<'_>, name: &'static str) -> Option<std::time::Duration> {
    let at = fields.get(name)?;
    let time = reader.duration(Some(at.clone()))?;
    if !(WINDOWS.0..=WINDOWS.1).contains(&time) {
        reader.error(&at, format!("{} must be from 1ms to 24h", at.path));
        return None;
    }
    Some(time)
}

pub(super) fn schema() -> Json {
    let schema = object(&LIMIT, &[], |name| match name {
        "percentile" => any("Which of the latencies of a window stands for all; 50 without it."),
        "maxLimit" => number("The limit is never higher; 1000 without it."),
        "minLimit" => number("The lowest that is calculated; minRtt.minConcurrency without it."),
        "updateInterval" => text("After which the limit is calculated anew; 100ms without it."),
        "minRtt" => object(&RTT, &[], |name| match name {
            "interval" => text(&format!("After which it is measured again, {DURATION}")),
            "requestCount" => number("By so many requests; 50 without it."),
            "jitterPercent" => any("Later by up to this part of the interval; 15 without it."),
            "minConcurrency" => number("The limit while it is measured; 3 without it."),
            "bufferPercent" => any("How much slower answers may be before the limit falls; 25 without it."),
            "fixedValue" => text("So long it is, and nothing is measured."),
            _ => Json::Null,
        }),
        "status" => number("What is answered beyond the limit, 400 to 599; 503 without it."),
        _ => Json::Null,
    });
    described(schema, "How many requests each instance has under way, as its latency allows.")
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::testing::{limits, object as page_of, one_told};

    fn page(block: &str) -> String {
        page_of("outrigger.io/v1", "TrafficRules", &format!("service: reviews\nadaptiveConcurrency: {block}"))
    }

    #[test]
    fn what_is_not_said_is_as_in_an_envoy() {
        let found = limits(&page("{}"));
        assert_eq!(found.host.as_str(), "reviews.shop.svc.cluster.local");
        assert_eq!(found.concurrency, Some(AdaptiveConcurrency::default()));
        assert_eq!(found.count(), 1);
    }

    #[test]
    fn everything_can_be_said() {
        let found = limits(&page(
            "{percentile: 95, maxLimit: 200, minLimit: 10, updateInterval: 250ms, status: 429, \
              minRtt: {interval: 30s, requestCount: 20, jitterPercent: 10, bufferPercent: 50}}",
        ));
        let wanted = AdaptiveConcurrency {
            percentile: 95.0,
            update_interval: Duration::from_millis(250),
            max_limit: 200,
            min_limit: Some(10),
            min_concurrency: 3,
            buffer: 50.0,
            min_rtt: MinRtt::Measured { interval: Duration::from_secs(30), requests: 20, jitter: 10.0 },
            status: 429,
            origin: None,
        };
        assert_eq!(found.concurrency, Some(wanted));
        let fixed = limits(&page("{minRtt: {fixedValue: 8ms, minConcurrency: 5}}")).concurrency.unwrap();
        assert_eq!((fixed.min_rtt, fixed.min_concurrency), (MinRtt::Fixed(Duration::from_millis(8)), 5));
    }

    #[test]
    fn the_example_follows_the_ninetieth_percentile() {
        let found = limits(include_str!("../../../../../config/examples/adaptive-concurrency.yaml"));
        let limit = found.concurrency.unwrap();
        assert_eq!((limit.percentile, limit.max_limit, limit.status), (90.0, 200, 503));
        assert!(limit.check().is_ok());
    }

    #[test]
    fn a_limit_that_cannot_be_is_an_error_that_says_why() {
        for (block, wanted) in [
            ("{percentile: 0}", "percentile above 0"),
            ("{percentile: 101}", "percentile above 0"),
            ("{maxLimit: 0}", "from 1 to 1000000"),
            ("{minLimit: 20, maxLimit: 10}", "more than maxLimit, which is 10"),
            ("{maxLimit: 10, minRtt: {minConcurrency: 11}}", "more than maxLimit, which is 10"),
            ("{updateInterval: 0s}", "from 1ms to 24h"),
            ("{updateInterval: 60s}", "no window of 60s is ever over"),
            ("{minRtt: {interval: 50ms}}", "no window of 100ms is ever over"),
            ("{status: 200}", "from 400 to 599"),
            ("{minRtt: {fixedValue: 0s}}", "longer than 0"),
            ("{minRtt: {fixedValue: 5ms, interval: 1m}}", "nothing is measured"),
            ("{minRtt: {fixedValue: 5ms, jitterPercent: 1}}", "nothing is measured"),
            ("{minRtt: {requestCount: 0}}", "requestCount"),
            ("{minRtt: {jitterPercent: 101}}", "a percentage from 0 to 100"),
            ("{minRtt: {bufferPercent: -1}}", "a percentage from 0 to 100"),
            ("{maxConcurrencyLimit: 5}", "unknown field"),
        ] {
            let told = one_told(&page(block));
            assert!(told.contains(wanted), "{block}: {told}");
        }
    }
}
