//! Settings of the policies by which a native page has instances picked.

use outrigger_model::cluster::{Balance, LeastOf, LoadReports, MAX_CHOICES, SHORTEST_UPDATE};
use serde_json::Value as Json;

use crate::dialect::shared::metrics;
use crate::reader::{At, Fields, Reader, Table};
use crate::schema::{DURATION, any, boolean, described, list, number, object, text};

/// Of which policy each is.
const OF: [(&str, &str); 6] = [
    ("choices", "leastRequest"),
    ("fullScan", "leastRequest"),
    ("bias", "leastRequest"),
    ("decay", "peakEwma"),
    ("initialLatency", "peakEwma"),
    ("reports", "reportedLoad"),
];
pub(super) const FIELDS: [&str; 6] = ["choices", "fullScan", "bias", "decay", "initialLatency", "reports"];
const REPORTS: Table =
    Table::new("reports of load", &["blackout", "expiration", "update", "errorPenalty", "metrics"]);

/// Whether any of them is there.
pub(super) fn is_said(fields: &Fields<'_>) -> bool {
    FIELDS.into_iter().any(|name| fields.has(name))
}

/// None of them is for a hash.
pub(super) fn refuse(reader: &mut Reader<'_>, fields: &Fields<'_>) {
    only(reader, fields, "");
}

/// Refuses those that are for another policy.
fn only(reader: &mut Reader<'_>, fields: &Fields<'_>, policy: &str) {
    for (name, of) in OF.into_iter().filter(|(_, of)| *of != policy) {
        if let Some(at) = fields.get(name) {
            reader.error(&at, format!("{} is for the policy {of}; leave it out", at.path));
        }
    }
}

/// The policy with its settings.
pub(super) fn tuned(reader: &mut Reader<'_>, fields: &Fields<'_>, balance: Balance) -> Balance {
    match balance {
        Balance::LeastRequest => {
            only(reader, fields, "leastRequest");
            least(reader, fields)
        }
        Balance::PeakEwma { decay, initial } => {
            only(reader, fields, "peakEwma");
            let decay = reader.positive(fields.get("decay")).unwrap_or(decay);
            let initial = reader.positive(fields.get("initialLatency")).unwrap_or(initial);
            Balance::PeakEwma { decay, initial }
        }
        Balance::Reported => {
            only(reader, fields, "reportedLoad");
            balance
        }
        other => {
            only(reader, fields, "");
            other
        }
    }
}

fn least(reader: &mut Reader<'_>, fields: &Fields<'_>) -> Balance {
    let all = reader.boolean(fields.get("fullScan")).unwrap_or(false);
    if let Some(at) = fields.get("choices").filter(|_| all) {
        reader.error(&at, format!("{} has no meaning beside fullScan, which looks at all", at.path));
    }
    let choices = reader.number(fields.get("choices"), 2..=MAX_CHOICES);
    let bias =
        reader.decimal(fields.get("bias"), "a number from 0 to 1000", |bias| (0.0..=1000.0).contains(&bias));
    let default = LeastOf::default();
    let of = LeastOf {
        choices: if all { None } else { choices.or(default.choices) },
        bias: bias.map_or(default.bias, |bias| (bias * 1000.0).round() as u32),
    };
    if of == default { Balance::LeastRequest } else { Balance::LeastOf(of) }
}

/// How reports of load are weighed.
pub(super) fn reports(reader: &mut Reader<'_>, at: &At<'_>) -> Option<LoadReports> {
    let fields = reader.fields(at, &REPORTS)?;
    let default = LoadReports::default();
    let update = reader.positive(fields.get("update")).unwrap_or(default.update);
    if let Some(at) = fields.get("update").filter(|_| update < SHORTEST_UPDATE) {
        reader.error(&at, format!("{}: must be at least 100ms", at.path));
    }
    let penalty = reader.decimal(fields.get("errorPenalty"), "a number from 0 to 1000", |penalty| {
        (0.0..=1000.0).contains(&penalty)
    });
    let metrics = metrics(reader, fields.get("metrics"));
    Some(LoadReports {
        blackout: reader.duration(fields.get("blackout")).unwrap_or(default.blackout),
        expiration: reader.positive(fields.get("expiration")).unwrap_or(default.expiration),
        update,
        error_penalty: penalty.unwrap_or(default.error_penalty),
        metrics,
    })
}

/// The fields as a schema.
pub(in crate::dialect::traffic_rules) fn schema(name: &str) -> Json {
    match name {
        "choices" => number("For leastRequest: the least loaded of so many by chance; 2 without it."),
        "fullScan" => boolean("For leastRequest: the least loaded of all."),
        "bias" => {
            any("For leastRequest: how much load counts against weight; 1 without it, 0 is not at all.")
        }
        "decay" => text(&format!("For peakEwma: how soon what was is forgotten, {DURATION}")),
        "initialLatency" => text(&format!("For peakEwma: what is presumed of a new instance, {DURATION}")),
        "reports" => described(
            object(&REPORTS, &[], |name| match name {
                "blackout" => text(&format!("So long reports must have come before they count, {DURATION}")),
                "expiration" => text(&format!("After so long without one they do not, {DURATION}")),
                "update" => text(&format!("How often weights are made, {DURATION}")),
                "errorPenalty" => any("How much the share of errors adds to the utilization; 1 without it."),
                "metrics" => {
                    list(text(""), "Of which the greatest is the utilization, as named_metrics.KEY.")
                }
                _ => Json::Null,
            }),
            "For reportedLoad: how what instances report with their answers (ORCA) makes weights.",
        ),
        _ => Json::Null,
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::testing::{destination, object as page_of, one_told};

    fn page(balancing: &str) -> String {
        page_of("outrigger.io/v1", "TrafficRules", &format!("service: reviews\nloadBalancing: {balancing}"))
    }

    #[test]
    fn policies_have_their_settings() {
        let seconds = Duration::from_secs;
        let least = |choices, bias| Balance::LeastOf(LeastOf { choices, bias });
        for (text, wanted) in [
            ("{policy: leastRequest}", Balance::LeastRequest),
            ("{policy: leastRequest, choices: 2}", Balance::LeastRequest),
            ("{choices: 5}", least(Some(5), 1000)),
            ("{policy: leastRequest, fullScan: true, bias: 0.5}", least(None, 500)),
            ("{policy: peakEwma}", Balance::PEAK_EWMA),
            (
                "{policy: peakEwma, decay: 3s, initialLatency: 1s}",
                Balance::PeakEwma { decay: seconds(3), initial: seconds(1) },
            ),
            ("{policy: reportedLoad}", Balance::Reported),
        ] {
            let found = destination(&page(text)).policy.load_balancing.unwrap();
            assert_eq!((found.balance, found.reports), (wanted, None), "{text}");
        }
        let text = "{policy: reportedLoad, reports: {blackout: 0s, expiration: 1m, update: 100ms, errorPenalty: 2.5, metrics: [named_metrics.q]}}";
        let wanted = LoadReports {
            blackout: Duration::ZERO,
            expiration: seconds(60),
            update: Duration::from_millis(100),
            error_penalty: 2.5,
            metrics: vec!["named_metrics.q".to_owned()],
        };
        assert_eq!(destination(&page(text)).policy.load_balancing.unwrap().reports, Some(wanted));
    }

    #[test]
    fn a_setting_of_another_policy_is_an_error() {
        for (text, wanted) in [
            ("{policy: random, choices: 3}", "is for the policy leastRequest"),
            ("{policy: leastRequest, decay: 3s}", "is for the policy peakEwma"),
            ("{policy: peakEwma, reports: {}}", "is for the policy reportedLoad"),
            ("{policy: maglev, hash: {source: true}, fullScan: true}", "is for the policy leastRequest"),
            ("{fullScan: true, choices: 3}", "no meaning beside fullScan"),
            ("{choices: 1}", "choices"),
            ("{bias: -1}", "a number from 0 to 1000"),
            ("{policy: reportedLoad, reports: {update: 99ms}}", "at least 100ms"),
            ("{policy: reportedLoad, reports: {metrics: [speed]}}", "must be cpu_utilization"),
            (
                &format!(
                    "{{policy: reportedLoad, reports: {{metrics: [named_metrics.{}]}}}}",
                    "a".repeat(243)
                ),
                "more than 256 characters",
            ),
            ("{policy: reportedLoad, reports: {errorPenalty: -1}}", "a number from 0 to 1000"),
        ] {
            let told = one_told(&page(text));
            assert!(told.contains(wanted), "{text}: {told}");
        }
    }
}
