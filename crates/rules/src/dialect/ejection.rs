//! Ejection of instances that fail: `outlierDetection` of a DestinationRule, and what `circuitBreaker` of a native page says of it.

use std::time::Duration;

use outrigger_model::cluster::{FailurePercentage, Outlier, SuccessRate};
use serde_json::Value as Json;

use crate::finding::code;
use crate::reader::{At, Fields, Reader, Table};
use crate::schema::{DURATION, any, boolean, described, number, object, text};

pub(super) const OUTLIER: Table = Table::new(
    "outlier detection",
    &[
        "consecutive5xxErrors",
        "consecutiveGatewayErrors",
        "splitExternalLocalOriginErrors",
        "consecutiveLocalOriginFailures",
        "interval",
        "baseEjectionTime",
        "maxEjectionPercent",
        "minHealthPercent",
        "consecutiveErrors",
        "failurePercentageThreshold",
    ],
)
.later(&["outlierDetectionHttpErrorCodes"]);

/// Those fields of a native circuit breaker that eject.
const NATIVE: [&str; 12] = [
    "consecutiveErrors",
    "consecutiveGatewayErrors",
    "consecutiveConnectErrors",
    "interval",
    "ejectionTime",
    "maxEjectionTime",
    "ejectionJitter",
    "maxEjectionPercent",
    "minHealthPercent",
    "successRate",
    "failurePercentage",
    "checkEndsEjection",
];
/// What else a native circuit breaker has.
const BESIDE: [&str; 5] = ["maxConnections", "maxPending", "maxRequests", "maxRetries", "trip"];
/// All fields of a native circuit breaker.
const BREAKER_FIELDS: [&str; BESIDE.len() + NATIVE.len()] = {
    let mut all = [""; BESIDE.len() + NATIVE.len()];
    let mut at = 0;
    while at < all.len() {
        all[at] = if at < BESIDE.len() { BESIDE[at] } else { NATIVE[at - BESIDE.len()] };
        at += 1;
    }
    all
};
/// `circuitBreaker` of a native page.
pub(super) const BREAKER: Table = Table::new("a circuit breaker", &BREAKER_FIELDS);
const RATE: Table =
    Table::new("a rate of success", &["minHosts", "minRequests", "stdevFactor", "enforcePercent"]);
const SHARE: Table =
    Table::new("a percentage of failures", &["threshold", "minHosts", "minRequests", "enforcePercent"]);

/// Times and shares, which both dialects have alike; `base` is what the dialect calls its time.
fn times_and_shares(reader: &mut Reader<'_>, fields: &Fields<'_>, base: &'static str) -> Outlier {
    let default = Outlier::default();
    let base_ejection = reader.positive(fields.get(base)).unwrap_or(default.base_ejection);
    let mut percent = |name| reader.number(fields.get(name), 0..=100);
    // In protobuf 0 is "not set"; natively it is refused.
    let max_ejection_percent = percent("maxEjectionPercent").filter(|percent| *percent > 0);
    let max_ejection_percent = max_ejection_percent.unwrap_or(default.max_ejection_percent);
    let min_health_percent = percent("minHealthPercent").unwrap_or(0);
    Outlier {
        interval: reader.positive(fields.get("interval")).unwrap_or(default.interval),
        base_ejection,
        max_ejection: default.max_ejection.max(base_ejection),
        max_ejection_percent,
        min_health_percent,
        ..default
    }
}

/// `outlierDetection`.
pub(super) fn istio(reader: &mut Reader<'_>, at: &At<'_>) -> Option<Outlier> {
    let fields = reader.fields(at, &OUTLIER)?;
    let common = times_and_shares(reader, &fields, "baseEjectionTime");
    let mut count = |name, otherwise| reader.number(fields.get(name), 0..=u32::MAX).unwrap_or(otherwise);
    // The deprecated field meant gateway errors, and 0 switches off.
    let gateway = count("consecutiveErrors", common.consecutive_gateway);
    let outlier = Outlier {
        consecutive_5xx: count("consecutive5xxErrors", common.consecutive_5xx),
        consecutive_gateway: count("consecutiveGatewayErrors", gateway),
        // 0 is "not set" in protobuf.
        consecutive_local: match count("consecutiveLocalOriginFailures", 0) {
            0 => common.consecutive_local,
            failures => failures,
        },
        local_apart: reader.boolean(fields.get("splitExternalLocalOriginErrors")).unwrap_or(false),
        // The same.
        failure_percentage: reader
            .number(fields.get("failurePercentageThreshold"), 0..=100)
            .filter(|threshold| *threshold > 0)
            .map(|threshold| FailurePercentage { threshold, ..FailurePercentage::default() }),
        ..common
    };
    outrun(reader, &fields, &outlier, "consecutive5xxErrors");
    if let Some(at) = fields.get("consecutiveLocalOriginFailures")
        && !outlier.local_apart
        && at.node.to_json() != 0
    {
        let message = format!(
            "{} has no effect without splitExternalLocalOriginErrors: failures of the connection count as 5xx",
            at.path
        );
        reader.error(&at, message);
    }
    Some(outlier)
}

/// What a native circuit breaker says of ejection, if anything.
pub(super) fn native(reader: &mut Reader<'_>, fields: &Fields<'_>) -> Option<Outlier> {
    if NATIVE.into_iter().all(|name| !fields.has(name)) {
        return None;
    }
    let common = times_and_shares(reader, fields, "ejectionTime");
    if let Some(at) = fields.get("maxEjectionPercent").filter(|at| at.node.to_json() == 0) {
        let message = format!("{}: of 0 % nobody is ejected; leave what ejects out", at.path);
        reader.error(&at, message);
    }
    let mut count = |name, otherwise| reader.number(fields.get(name), 0..=u32::MAX).unwrap_or(otherwise);
    let outlier = Outlier {
        consecutive_5xx: count("consecutiveErrors", common.consecutive_5xx),
        consecutive_gateway: count("consecutiveGatewayErrors", common.consecutive_gateway),
        consecutive_local: count("consecutiveConnectErrors", common.consecutive_local),
        local_apart: fields.has("consecutiveConnectErrors"),
        success_rate: fields.get("successRate").and_then(|at| success_rate(reader, &at)),
        failure_percentage: fields.get("failurePercentage").and_then(|at| failure_percentage(reader, &at)),
        max_ejection: longest(reader, fields, &common),
        jitter: reader.duration(fields.get("ejectionJitter")).unwrap_or_default(),
        check_ends_ejection: reader.boolean(fields.get("checkEndsEjection")).unwrap_or(false),
        ..common
    };
    outrun(reader, fields, &outlier, "consecutiveErrors");
    Some(outlier)
}

/// Gateway errors that can not eject, because errors of any kind, which they are too, do before. `any` is what the dialect calls these.
fn outrun(reader: &mut Reader<'_>, fields: &Fields<'_>, outlier: &Outlier, any: &str) {
    let before = outlier.consecutive_5xx;
    if let Some(at) = fields.get("consecutiveGatewayErrors")
        && before > 0
        && outlier.consecutive_gateway > before
    {
        let message = format!(
            "{} has no effect, because {before} errors of any kind in a row eject before; set {any} to 0 or higher",
            at.path
        );
        reader.warn(code::NO_EFFECT, &at, message);
    }
}

fn longest(reader: &mut Reader<'_>, fields: &Fields<'_>, common: &Outlier) -> Duration {
    let Some(at) = fields.get("maxEjectionTime") else { return common.max_ejection };
    let longest = reader.positive(Some(at.clone())).unwrap_or(common.max_ejection);
    if longest < common.base_ejection {
        reader.error(&at, format!("{} must not be shorter than ejectionTime", at.path));
    }
    longest
}

fn success_rate(reader: &mut Reader<'_>, at: &At<'_>) -> Option<SuccessRate> {
    let fields = reader.fields(at, &RATE)?;
    let default = SuccessRate::default();
    let factor = reader.decimal(fields.get("stdevFactor"), "a number from 0.1 to 100", |factor| {
        (0.1..=100.0).contains(&factor)
    });
    let (minimum_hosts, request_volume, enforcing) =
        enough(reader, &fields, (default.minimum_hosts, default.request_volume));
    Some(SuccessRate {
        minimum_hosts,
        request_volume,
        stdev_factor: factor.map_or(default.stdev_factor, |factor| (factor * 1000.0).round() as u32),
        enforcing,
        enforcing_local: enforcing,
    })
}

fn failure_percentage(reader: &mut Reader<'_>, at: &At<'_>) -> Option<FailurePercentage> {
    let fields = reader.fields(at, &SHARE)?;
    let default = FailurePercentage::default();
    let threshold = reader.number(fields.get("threshold"), 1..=100).unwrap_or(default.threshold);
    let (minimum_hosts, request_volume, enforcing) =
        enough(reader, &fields, (default.minimum_hosts, default.request_volume));
    Some(FailurePercentage {
        threshold,
        minimum_hosts,
        request_volume,
        enforcing,
        enforcing_local: enforcing,
    })
}

fn enough(reader: &mut Reader<'_>, fields: &Fields<'_>, (hosts, requests): (u32, u32)) -> (u32, u32, u32) {
    let mut number = |name, range, otherwise| reader.number(fields.get(name), range).unwrap_or(otherwise);
    (
        number("minHosts", 1..=100_000, hosts),
        number("minRequests", 1..=u32::MAX, requests),
        number("enforcePercent", 1..=100, 100),
    )
}

/// The native fields as a schema.
pub(super) fn schema(name: &str) -> Json {
    let hosts = || number("Of so many instances with enough requests at least.");
    let requests = || number("Enough requests in an interval.");
    let enforce = || number("In so many of a hundred cases an outlier is ejected; in all without it.");
    match name {
        "consecutiveErrors" => number("Errors in a row that eject an instance."),
        "consecutiveGatewayErrors" => number("The same of 502, 503 and 504, and of connections."),
        "consecutiveConnectErrors" => number(
            "The same of what brings no answer, which then counts for itself and not as an error of the others.",
        ),
        "interval" => text(&format!("Between two looks at instances, {DURATION}")),
        "ejectionTime" => text(&format!("For how long an instance is ejected at first, {DURATION}")),
        "maxEjectionTime" => text(&format!("For how long at most, {DURATION}")),
        "ejectionJitter" => text(&format!("Up to so much longer by chance, {DURATION}")),
        "maxEjectionPercent" => number("How much of the service may be ejected."),
        "minHealthPercent" => number("How much of the service is left at least."),
        "successRate" => described(
            object(&RATE, &[], |name| match name {
                "minHosts" => hosts(),
                "minRequests" => requests(),
                "stdevFactor" => any("So many standard deviations below the average; 1.9 without it."),
                "enforcePercent" => enforce(),
                _ => Json::Null,
            }),
            "Ejects who succeeds much less often than the others.",
        ),
        "failurePercentage" => described(
            object(&SHARE, &[], |name| match name {
                "threshold" => number("At least so many failures of a hundred requests; 85 without it."),
                "minHosts" => hosts(),
                "minRequests" => requests(),
                "enforcePercent" => enforce(),
                _ => Json::Null,
            }),
            "Ejects who fails too often.",
        ),
        "checkEndsEjection" => boolean("Whether a health check that passes ends an ejection."),
        _ => Json::Null,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{destination, object as page_of, one_told};

    fn page(breaker: &str) -> String {
        page_of("outrigger.io/v1", "TrafficRules", &format!("service: reviews\ncircuitBreaker: {breaker}"))
    }

    fn rule(detection: &str) -> String {
        let spec = format!("host: reviews\ntrafficPolicy: {{outlierDetection: {detection}}}");
        page_of("networking.istio.io/v1", "DestinationRule", &spec)
    }

    fn outlier(text: &str) -> Outlier {
        destination(text).policy.outlier.unwrap()
    }

    #[test]
    fn a_page_says_all_that_an_envoy_could_be_told() {
        let seconds = Duration::from_secs;
        let found = outlier(&page(
            "{consecutiveErrors: 7, consecutiveGatewayErrors: 3, consecutiveConnectErrors: 2, interval: 3s, ejectionTime: 4s, \
             maxEjectionTime: 40s, ejectionJitter: 500ms, maxEjectionPercent: 60, minHealthPercent: 30, checkEndsEjection: true, \
             successRate: {minHosts: 4, minRequests: 20, stdevFactor: 1.5, enforcePercent: 50}, \
             failurePercentage: {threshold: 70, minHosts: 2, minRequests: 9, enforcePercent: 80}}",
        ));
        let rate = SuccessRate {
            minimum_hosts: 4,
            request_volume: 20,
            stdev_factor: 1500,
            enforcing: 50,
            enforcing_local: 50,
        };
        let share = FailurePercentage {
            threshold: 70,
            minimum_hosts: 2,
            request_volume: 9,
            enforcing: 80,
            enforcing_local: 80,
        };
        let wanted = Outlier {
            consecutive_5xx: 7,
            consecutive_gateway: 3,
            local_apart: true,
            consecutive_local: 2,
            success_rate: Some(rate),
            failure_percentage: Some(share),
            interval: seconds(3),
            base_ejection: seconds(4),
            max_ejection: seconds(40),
            jitter: Duration::from_millis(500),
            max_ejection_percent: 60,
            min_health_percent: 30,
            check_ends_ejection: true,
            ..Outlier::default()
        };
        assert_eq!(found, wanted);
        let defaults = outlier(&page("{successRate: {}, failurePercentage: {}}"));
        assert_eq!(defaults.success_rate, Some(SuccessRate::default()));
        assert_eq!(defaults.failure_percentage, Some(FailurePercentage::default()));
        assert!(!defaults.local_apart);
    }

    #[test]
    fn a_destination_rule_keeps_failures_of_connections_apart() {
        let text =
            "{splitExternalLocalOriginErrors: true, consecutiveLocalOriginFailures: 3, minHealthPercent: 40}";
        let found = outlier(&rule(text));
        assert_eq!((found.local_apart, found.consecutive_local, found.min_health_percent), (true, 3, 40));
        assert_eq!(
            outlier(&rule("{maxEjectionPercent: 0}")).max_ejection_percent,
            10,
            "as where it is not said"
        );
        let told = one_told(&rule("{consecutive5xxErrors: 3, consecutiveGatewayErrors: 4}"));
        assert!(told.contains("set consecutive5xxErrors to 0 or higher"), "{told}");
        let told = one_told(&rule("{consecutiveLocalOriginFailures: 3}"));
        assert!(
            told.contains("error") && told.contains("has no effect without splitExternalLocalOriginErrors"),
            "{told}"
        );
        for unset in ["", ", splitExternalLocalOriginErrors: true"] {
            let found = outlier(&rule(&format!("{{consecutiveLocalOriginFailures: 0{unset}}}")));
            assert_eq!(found.consecutive_local, 5, "protobuf's 0 is none");
        }
    }

    #[test]
    fn what_cannot_be_is_an_error_that_says_why() {
        for (breaker, wanted) in [
            ("{ejectionTime: 10s, maxEjectionTime: 9s}", "must not be shorter than ejectionTime"),
            ("{successRate: {stdevFactor: 0}}", "a number from 0.1 to 100"),
            ("{successRate: {minHosts: 0}}", "minHosts"),
            ("{failurePercentage: {threshold: 101}}", "threshold"),
            ("{failurePercentage: {enforcePercent: 0}}", "enforcePercent"),
            ("{minHealthPercent: 101}", "minHealthPercent"),
            ("{maxEjectionPercent: 0}", "nobody is ejected"),
            ("{consecutiveErrors: 3, consecutiveGatewayErrors: 4}", "set consecutiveErrors to 0 or higher"),
        ] {
            let told = one_told(&page(breaker));
            assert!(told.contains(wanted), "{breaker}: {told}");
        }
    }
}
