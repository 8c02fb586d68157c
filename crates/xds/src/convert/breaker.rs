//! The circuit breaker of a cluster, which rides in our own metadata: numbers, times in milliseconds.

use std::time::Duration;

use outrigger_model::cluster::Breaker;

use super::flaw::{Decoded, flaw};
use super::metadata;
use crate::wire::core::Metadata;
use crate::wire::protobuf::{Value, value::Kind};

/// The largest whole number that a double has to every digit.
const MOST: f64 = 9_007_199_254_740_991.0;

pub(super) fn encode(breaker: &Breaker) -> Value {
    let number = |value: f64| Value { kind: Some(Kind::NumberValue(value)) };
    // Times of rules are whole milliseconds and far below the limit of a double.
    let millis = |time: Duration| number(time.as_millis() as f64);
    metadata::object([
        ("failurePercent", number(breaker.failure_percent)),
        ("minimumRequests", number(breaker.minimum_requests.into())),
        ("interval", millis(breaker.interval)),
        ("consecutiveFailures", number(breaker.consecutive_failures.into())),
        ("openTime", millis(breaker.open_time)),
        ("probes", number(breaker.probes.into())),
    ])
}

pub(super) fn decode(metadata: Option<&Metadata>) -> Decoded<Option<Breaker>> {
    const FIELD: &str = "metadata.filter_metadata[outrigger].breaker";
    let Some(value) = metadata::our(metadata, "breaker") else { return Ok(None) };
    let Some(fields) = metadata::as_map(value) else { return flaw(FIELD, "must be an object") };
    let number = |name: &str, most: f64| match fields.get(name).and_then(|value| value.kind.as_ref()) {
        Some(Kind::NumberValue(value)) if (0.0..=most).contains(value) => Ok(*value),
        _ => flaw(format_args!("{FIELD}.{name}"), format!("must be a number from 0 to {most}")),
    };
    let count = |name: &str| number(name, f64::from(u32::MAX)).map(|value| value as u32);
    let millis = |name: &str| number(name, MOST).map(|value| Duration::from_millis(value as u64));
    let breaker = Breaker {
        failure_percent: number("failurePercent", 100.0)?,
        minimum_requests: count("minimumRequests")?,
        interval: millis("interval")?,
        consecutive_failures: count("consecutiveFailures")?,
        open_time: millis("openTime")?,
        probes: count("probes")?,
    };
    if let Err((field, reason)) = breaker.check() {
        return flaw(format_args!("{FIELD}.{field}"), reason);
    }
    Ok(Some(breaker))
}
