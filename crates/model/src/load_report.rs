//! What an endpoint reports of its load with a response (`xds.data.orca.v3.OrcaLoadReport`), and the weight that this makes.

use std::collections::BTreeMap;

use crate::cluster::LoadReports;

/// A report. What was not said is 0.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct LoadReport {
    /// Of its processors.
    pub cpu: f64,
    /// Of its memory.
    pub memory: f64,
    /// As the application measures it.
    pub application: f64,
    /// Requests a second.
    pub rps: f64,
    /// Errors a second.
    pub eps: f64,
    /// More, by names such as `named_metrics.queue`.
    pub more: BTreeMap<String, f64>,
}

impl LoadReport {
    /// A metric by its name.
    pub fn metric(&self, name: &str) -> Option<f64> {
        match name {
            "cpu_utilization" => Some(self.cpu),
            "mem_utilization" => Some(self.memory),
            "application_utilization" => Some(self.application),
            "rps_fractional" => Some(self.rps),
            "eps" => Some(self.eps),
            _ => self.more.get(name).copied(),
        }
    }

    /// Sets a metric by its name; false: there is no such metric.
    pub fn set(&mut self, name: &str, value: f64) -> bool {
        match name {
            "cpu_utilization" => self.cpu = value,
            "mem_utilization" => self.memory = value,
            "application_utilization" => self.application = value,
            "rps_fractional" => self.rps = value,
            "eps" => self.eps = value,
            _ if ["named_metrics.", "utilization.", "request_cost."]
                .into_iter()
                .any(|map| name.len() > map.len() && name.starts_with(map)) =>
            {
                self.more.insert(name.to_owned(), value);
            }
            _ => return false,
        }
        true
    }

    /// How much it is used: what is named, or else as the application says, or else its processors.
    fn utilization(&self, metrics: &[String]) -> f64 {
        let named = metrics.iter().filter_map(|name| self.metric(name)).fold(0.0, f64::max);
        [named, self.application, self.cpu].into_iter().find(|value| *value > 0.0).unwrap_or(0.0)
    }

    /// Requests a second by how much it is used, errors included.
    ///
    /// # Errors
    /// What is lacking.
    pub fn weight(&self, rules: &LoadReports) -> Result<f64, &'static str> {
        let positive = |value: f64| value > 0.0 && value.is_finite();
        if !positive(self.rps) {
            return Err("rps_fractional is not above 0");
        }
        let errors = if positive(self.eps) { self.eps / self.rps * rules.error_penalty } else { 0.0 };
        let utilization = self.utilization(&rules.metrics) + errors;
        let weight = self.rps / utilization;
        if !positive(utilization) || !positive(weight) {
            return Err("no utilization is above 0");
        }
        Ok(weight)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_weight_is_requests_by_utilization_and_errors_count_as_utilization() {
        let report = |text: &str| {
            let mut report = LoadReport::default();
            for pair in text.split_whitespace() {
                let (name, value) = pair.split_once('=').unwrap();
                assert!(report.set(name, value.parse().unwrap()), "{name}");
            }
            report
        };
        let rules = |metrics: &[&str], error_penalty| LoadReports {
            metrics: metrics.iter().map(|name| (*name).to_owned()).collect(),
            error_penalty,
            ..LoadReports::default()
        };
        for (text, metrics, penalty, wanted) in [
            ("rps_fractional=100 cpu_utilization=0.5", &[][..], 1.0, Some(200.0)),
            ("rps_fractional=100 cpu_utilization=0.5 application_utilization=0.25", &[], 1.0, Some(400.0)),
            ("rps_fractional=100 cpu_utilization=0.5 eps=50", &[], 1.0, Some(100.0)),
            ("rps_fractional=100 cpu_utilization=0.5 eps=50", &[], 0.0, Some(200.0)),
            (
                "rps_fractional=10 application_utilization=1 named_metrics.q=2 utilization.d=4",
                &["named_metrics.q", "utilization.d", "named_metrics.none"],
                1.0,
                Some(2.5),
            ),
            ("rps_fractional=10 application_utilization=0.5", &["named_metrics.q"], 1.0, Some(20.0)),
            ("cpu_utilization=0.5", &[], 1.0, None),
            ("rps_fractional=10", &[], 1.0, None),
            ("rps_fractional=-10 cpu_utilization=-1", &[], 1.0, None),
        ] {
            assert_eq!(report(text).weight(&rules(metrics, penalty)).ok(), wanted, "{text}");
        }
        assert!(!LoadReport::default().set("named_metrics.", 1.0) && !LoadReport::default().set("x", 1.0));
    }
}
