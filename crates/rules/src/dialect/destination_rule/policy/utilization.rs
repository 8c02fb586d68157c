//! `backendUtilization`: more for those that report less load (ORCA), as `reportedLoad` of a native page.

use outrigger_model::cluster::{Balance, LoadReports, SHORTEST_UPDATE};

use crate::dialect::shared::metrics;
use crate::intent::LoadBalancing;
use crate::reader::{At, Reader, Table};

const UTILIZATION: Table = Table::new(
    "a backend utilization",
    &[
        "weightStabilizationPeriod",
        "weightExpirationPeriod",
        "weightUpdatePeriod",
        "errorUtilizationPenaltyPercent",
        "metricNamesForComputingUtilization",
    ],
);

pub(super) fn read(reader: &mut Reader<'_>, at: &At<'_>) -> Option<LoadBalancing> {
    let fields = reader.fields(at, &UTILIZATION)?;
    let default = LoadReports::default();
    let update_at = fields.get("weightUpdatePeriod");
    let update = reader.positive(update_at.clone()).unwrap_or(default.update);
    if let Some(at) = update_at.filter(|_| update < SHORTEST_UPDATE) {
        reader.error(&at, format!("{}: must be at least 100ms", at.path));
    }
    let penalty = reader.number(fields.get("errorUtilizationPenaltyPercent"), 0..=100_000);
    let reports = LoadReports {
        blackout: reader.duration(fields.get("weightStabilizationPeriod")).unwrap_or(default.blackout),
        expiration: reader.positive(fields.get("weightExpirationPeriod")).unwrap_or(default.expiration),
        update,
        error_penalty: penalty.map_or(default.error_penalty, |percent| f64::from(percent) / 100.0),
        metrics: metrics(reader, fields.get("metricNamesForComputingUtilization")),
    };
    Some(LoadBalancing { reports: Some(reports), ..Balance::Reported.into() })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::testing::{destination, object, one_told};

    fn rule(balancer: &str) -> String {
        let spec = format!("host: reviews\ntrafficPolicy: {{loadBalancer: {{{balancer}}}}}");
        object("networking.istio.io/v1", "DestinationRule", &spec)
    }

    #[test]
    fn reports_of_load_are_weighed_as_the_rule_says() {
        let of = |fields: &str| {
            let policy = destination(&rule(&format!("backendUtilization: {{{fields}}}"))).policy;
            let found = policy.load_balancing.unwrap();
            assert_eq!(found.balance, Balance::Reported);
            found.reports.unwrap()
        };
        assert_eq!(of(""), LoadReports::default());
        let all = "weightStabilizationPeriod: 3s, weightExpirationPeriod: 9s, weightUpdatePeriod: 2s, errorUtilizationPenaltyPercent: \
                   150, metricNamesForComputingUtilization: [named_metrics.queue]";
        let expected = LoadReports {
            blackout: Duration::from_secs(3),
            expiration: Duration::from_secs(9),
            update: Duration::from_secs(2),
            error_penalty: 1.5,
            metrics: vec!["named_metrics.queue".into()],
        };
        assert_eq!(of(all), expected);
    }

    #[test]
    fn what_cannot_be_weighed_is_refused() {
        for (balancer, why) in [
            ("backendUtilization: {weightUpdatePeriod: 1ms}", "must be at least 100ms"),
            ("backendUtilization: {metricNamesForComputingUtilization: [queue]}", "must be cpu_utilization"),
            (
                "simple: RANDOM, backendUtilization: {}",
                "has simple and backendUtilization, but only one of them can hold",
            ),
        ] {
            assert!(one_told(&rule(balancer)).contains(why), "{balancer}");
        }
    }
}
