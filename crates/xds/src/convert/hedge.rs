//! Hedging. What Envoy's message has of it, a foreign control plane may send; all of ours rides in our own metadata: numbers, times in
//! milliseconds.

use std::time::Duration;

use outrigger_model::route::{HedgeDelay, HedgePolicy, MOST_HEDGES, RetryPolicy};

use super::flaw::{Decoded, flaw};
use super::metadata;
use super::note;
use crate::wire::core::Metadata;
use crate::wire::protobuf::{Value, value::Kind};
use crate::wire::route;

/// The largest whole number that a double has to every digit.
const MOST: f64 = 9_007_199_254_740_991.0;

pub(super) fn encode_ours(hedge: &HedgePolicy) -> Value {
    let number = |value: f64| Value { kind: Some(Kind::NumberValue(value)) };
    let flag = |value: bool| Value { kind: Some(Kind::BoolValue(value)) };
    let (delay, percent, samples) = match hedge.delay {
        // Times of rules are whole milliseconds and far below the limit of a double.
        Some(HedgeDelay::Fixed(time)) => (time.as_millis() as f64, 0.0, 0),
        Some(HedgeDelay::Percentile { percent, min_samples }) => (0.0, percent, min_samples),
        None => (0.0, 0.0, 0),
    };
    metadata::object([
        ("attempts", number(hedge.attempts.into())),
        ("delay", number(delay)),
        ("percent", number(percent)),
        ("minSamples", number(samples.into())),
        ("onPerTryTimeout", flag(hedge.on_per_try_timeout)),
        ("allMethods", flag(hedge.all_methods)),
    ])
}

/// Envoy's own, as far as it goes.
pub(super) fn encode(hedge: &HedgePolicy) -> Option<route::HedgePolicy> {
    hedge
        .on_per_try_timeout
        .then(|| route::HedgePolicy { hedge_on_per_try_timeout: true, ..Default::default() })
}

/// As Envoy does it: as often as is retried, and whatever the method.
pub(super) fn decode(wire: Option<&route::HedgePolicy>, retry: Option<&RetryPolicy>) -> Option<HedgePolicy> {
    let wire = wire?;
    note!(wire, initial_requests, additional_request_chance);
    let more = retry.map_or(1, |retry| retry.attempts);
    (wire.hedge_on_per_try_timeout && more > 0).then(|| HedgePolicy {
        attempts: more.saturating_add(1).min(MOST_HEDGES),
        delay: None,
        on_per_try_timeout: true,
        all_methods: true,
    })
}

pub(super) fn decode_ours(wire: Option<&Metadata>) -> Decoded<Option<HedgePolicy>> {
    const FIELD: &str = "metadata.filter_metadata[outrigger].hedge";
    let Some(value) = metadata::our(wire, "hedge") else { return Ok(None) };
    let Some(fields) = metadata::as_map(value) else { return flaw(FIELD, "must be an object") };
    let number = |name: &str, most: f64| match fields.get(name).and_then(|value| value.kind.as_ref()) {
        Some(Kind::NumberValue(value)) if (0.0..=most).contains(value) => Ok(*value),
        _ => flaw(format_args!("{FIELD}.{name}"), format!("must be a number from 0 to {most}")),
    };
    let flag = |name: &str| match fields.get(name).and_then(|value| value.kind.as_ref()) {
        Some(Kind::BoolValue(value)) => Ok(*value),
        _ => flaw(format_args!("{FIELD}.{name}"), "must be true or false"),
    };
    let (delay, percent) = (number("delay", MOST)?, number("percent", 100.0)?);
    let min_samples = number("minSamples", f64::from(u32::MAX))? as u32;
    let hedge = HedgePolicy {
        attempts: number("attempts", f64::from(MOST_HEDGES))? as u32,
        delay: match (delay > 0.0, percent > 0.0) {
            (true, _) => Some(HedgeDelay::Fixed(Duration::from_millis(delay as u64))),
            (false, true) => Some(HedgeDelay::Percentile { percent, min_samples }),
            (false, false) => None,
        },
        on_per_try_timeout: flag("onPerTryTimeout")?,
        all_methods: flag("allMethods")?,
    };
    if let Err((field, reason)) = hedge.check() {
        return flaw(format_args!("{FIELD}.{field}"), reason);
    }
    Ok(Some(hedge))
}
