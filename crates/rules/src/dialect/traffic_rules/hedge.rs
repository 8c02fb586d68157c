//! Hedging in a native page: another attempt beside one that is slow.

use outrigger_model::route::{HedgeDelay, HedgePolicy, MOST_HEDGES};
use serde_json::Value as Json;

use crate::finding::quote;
use crate::reader::{At, Reader, Table};
use crate::schema::{boolean, described, number, object, text};

const HEDGE: Table =
    Table::new("a hedge", &["attempts", "delay", "minSamples", "hedgeOnPerTryTimeout", "allMethods"]);
const SAMPLES: u32 = 100;

pub(super) fn read(reader: &mut Reader<'_>, at: Option<At<'_>>) -> Option<HedgePolicy> {
    let at = at?;
    let fields = reader.fields(&at, &HEDGE)?;
    let default = HedgePolicy::default();
    let min_samples = reader.number(fields.get("minSamples"), 1..=1_000_000);
    let delay_at = fields.get("delay");
    let percentile = delay_at.as_ref().and_then(|at| at.node.as_text()?.strip_prefix('p'));
    let delay = match (percentile, delay_at.clone()) {
        (Some(rest), Some(at)) => percent(reader, &at, rest)
            .map(|percent| HedgeDelay::Percentile { percent, min_samples: min_samples.unwrap_or(SAMPLES) }),
        (_, delay) => reader.positive(delay).map(HedgeDelay::Fixed),
    };
    if let Some(at) = fields.get("minSamples").filter(|_| percentile.is_none()) {
        reader.error(&at, format!("{} is for a delay such as p95; leave it out", at.path));
    }
    let on_per_try_timeout = reader.boolean(fields.get("hedgeOnPerTryTimeout")).unwrap_or(false);
    if delay_at.is_none() && !on_per_try_timeout {
        reader.error(&at, format!("{} needs a delay, or hedgeOnPerTryTimeout: true", at.path));
        return None;
    }
    Some(HedgePolicy {
        attempts: reader.number(fields.get("attempts"), 2..=MOST_HEDGES).unwrap_or(default.attempts),
        delay,
        on_per_try_timeout,
        all_methods: reader.boolean(fields.get("allMethods")).unwrap_or(false),
    })
}

/// `p95`, `p99.9`.
fn percent(reader: &mut Reader<'_>, at: &At<'_>, rest: &str) -> Option<f64> {
    let plain = rest.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.');
    let percent = rest.parse::<f64>().ok().filter(|percent| plain && (50.0..=99.9).contains(percent));
    if percent.is_none() {
        let written = quote(&format!("p{rest}"));
        reader.error(at, format!("{} must be from p50 to p99.9, or a duration, and not {written}", at.path));
    }
    percent
}

pub(super) fn schema() -> Json {
    let schema = object(&HEDGE, &[], |name| match name {
        "attempts" => number("Attempts in all, the first included: 2 to 5."),
        "delay" => text(
            "How long the others are waited for: 50ms, or p95 of what first attempts took in the last minute.",
        ),
        "minSamples" => number("Of so many first attempts at least, for a delay such as p95."),
        "hedgeOnPerTryTimeout" => boolean("When perTryTimeout has passed, which then ends no attempt."),
        "allMethods" => boolean("Not only requests whose method may be repeated."),
        _ => Json::Null,
    });
    described(schema, "Another attempt beside one that is slow; the first good response is taken.")
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::testing::{object as page_of, one_told, route};

    fn page(spec: &str) -> String {
        page_of("outrigger.io/v1", "TrafficRules", &format!("service: reviews\n{spec}"))
    }

    fn hedges(spec: &str) -> Vec<Option<HedgePolicy>> {
        let found = route(&page(spec));
        found.http.iter().map(|http| http.forward().unwrap().hedge.as_deref().cloned()).collect()
    }

    #[test]
    fn a_hedge_is_the_pages_or_the_routes_own() {
        let fixed = HedgePolicy {
            delay: Some(HedgeDelay::Fixed(Duration::from_millis(50))),
            ..HedgePolicy::default()
        };
        assert_eq!(hedges("hedge: {delay: 50ms}"), [Some(fixed.clone())]);
        let found = hedges(
            "hedge: {delay: 50ms}\nroutes:\n- {match: {path: /a}}\n\
             - {hedge: {attempts: 3, delay: p99.9, minSamples: 20, hedgeOnPerTryTimeout: true, allMethods: true}}",
        );
        let own = HedgePolicy {
            attempts: 3,
            delay: Some(HedgeDelay::Percentile { percent: 99.9, min_samples: 20 }),
            on_per_try_timeout: true,
            all_methods: true,
        };
        assert_eq!(found, [Some(fixed), Some(own)]);
        let p95 = hedges("hedge: {delay: p95}").remove(0).unwrap();
        assert_eq!(p95.delay, Some(HedgeDelay::Percentile { percent: 95.0, min_samples: 100 }));
        assert_eq!(hedges("timeout: 1s"), [None]);
    }

    #[test]
    fn the_example_hedges_in_three_ways() {
        let found = route(include_str!("../../../../../config/examples/hedging.yaml"));
        let hedge = |at: usize| found.http[at].forward().unwrap().hedge.clone().unwrap();
        assert!(hedge(0).all_methods && hedge(0).attempts == 3);
        assert!(hedge(1).on_per_try_timeout && hedge(1).delay.is_none());
        assert!(matches!(hedge(2).delay, Some(HedgeDelay::Percentile { min_samples: 100, .. })));
    }

    #[test]
    fn a_hedge_that_cannot_be_is_an_error_that_says_why() {
        for (block, wanted) in [
            ("{}", "needs a delay, or hedgeOnPerTryTimeout: true"),
            ("{hedgeOnPerTryTimeout: false}", "needs a delay"),
            ("{delay: 0s}", "delay"),
            ("{delay: p40}", "from p50 to p99.9"),
            ("{delay: p100}", "from p50 to p99.9"),
            ("{delay: pinf}", "from p50 to p99.9"),
            ("{delay: soon}", "delay"),
            ("{delay: 5ms, attempts: 6}", "attempts"),
            ("{delay: 5ms, attempts: 1}", "attempts"),
            ("{delay: 5ms, minSamples: 5}", "is for a delay such as p95"),
            ("{delay: p95, minSamples: 0}", "minSamples"),
            ("{delay: p95, minDelay: 5ms}", "unknown field"),
        ] {
            let told = one_told(&page(&format!("hedge: {block}")));
            assert!(told.contains(wanted), "{block}: {told}");
        }
    }
}
