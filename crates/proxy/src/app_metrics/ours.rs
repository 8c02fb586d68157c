//! The names that are the sidecar's, whether there is anything to say under them yet or not: what an application says under one of them
//! first would be it for whoever scrapes, or cost it the page when ours come. Other names of their kind are the application's: it may be an
//! Envoy, or what collects a mesh's metrics.

/// Families of counters and gauges, in the order of their bytes. A test holds that they are all that the code names.
const SINGLE: &[&str] = &[
    "envoy_cluster_circuit_breakers_default_cx_open",
    "envoy_cluster_circuit_breakers_default_rq_open",
    "envoy_cluster_circuit_breakers_default_rq_pending_open",
    "envoy_cluster_health_check_attempt",
    "envoy_cluster_health_check_failure",
    "envoy_cluster_health_check_healthy",
    "envoy_cluster_health_check_network_failure",
    "envoy_cluster_health_check_success",
    "envoy_cluster_membership_healthy",
    "envoy_cluster_membership_total",
    "envoy_cluster_outlier_detection_ejections_active",
    "envoy_cluster_outlier_detection_ejections_detected_consecutive_5xx",
    "envoy_cluster_outlier_detection_ejections_detected_consecutive_gateway_failure",
    "envoy_cluster_outlier_detection_ejections_detected_consecutive_local_origin_failure",
    "envoy_cluster_outlier_detection_ejections_detected_failure_percentage",
    "envoy_cluster_outlier_detection_ejections_detected_local_origin_failure_percentage",
    "envoy_cluster_outlier_detection_ejections_detected_local_origin_success_rate",
    "envoy_cluster_outlier_detection_ejections_detected_success_rate",
    "envoy_cluster_outlier_detection_ejections_enforced_consecutive_5xx",
    "envoy_cluster_outlier_detection_ejections_enforced_consecutive_gateway_failure",
    "envoy_cluster_outlier_detection_ejections_enforced_consecutive_local_origin_failure",
    "envoy_cluster_outlier_detection_ejections_enforced_failure_percentage",
    "envoy_cluster_outlier_detection_ejections_enforced_local_origin_failure_percentage",
    "envoy_cluster_outlier_detection_ejections_enforced_local_origin_success_rate",
    "envoy_cluster_outlier_detection_ejections_enforced_success_rate",
    "envoy_cluster_outlier_detection_ejections_enforced_total",
    "envoy_cluster_outlier_detection_ejections_overflow",
    "envoy_cluster_ratelimit_error",
    "envoy_cluster_ratelimit_failure_mode_allowed",
    "envoy_cluster_ratelimit_ok",
    "envoy_cluster_ratelimit_over_limit",
    "envoy_cluster_upstream_cx_active",
    "envoy_cluster_upstream_cx_connect_fail",
    "envoy_cluster_upstream_cx_total",
    "envoy_cluster_upstream_rq_pending_overflow",
    "envoy_cluster_upstream_rq_retry",
    "envoy_cluster_upstream_rq_retry_backoff_ratelimited",
    "envoy_cluster_upstream_rq_retry_overflow",
    "envoy_cluster_upstream_rq_retry_success",
    "envoy_cluster_upstream_rq_timeout",
    "envoy_cluster_upstream_rq_total",
    "envoy_cluster_upstream_rq_xx",
    "istio_build",
    "istio_request_messages_total",
    "istio_requests_total",
    "istio_response_messages_total",
    "istio_tcp_connections_closed_total",
    "istio_tcp_connections_opened_total",
    "istio_tcp_received_bytes_total",
    "istio_tcp_sent_bytes_total",
    "outrigger_access_log_dropped_total",
    "outrigger_access_log_lines_total",
    "outrigger_app_metrics_scrapes_total",
    "outrigger_app_metrics_up",
    "outrigger_check_failures_total",
    "outrigger_check_passing",
    "outrigger_circuit_breaker_refused_total",
    "outrigger_circuit_breaker_state",
    "outrigger_circuit_breaker_transitions_total",
    "outrigger_concurrency_gradient",
    "outrigger_concurrency_limit",
    "outrigger_concurrency_limited_total",
    "outrigger_concurrency_min_rtt_calculation_active",
    "outrigger_concurrency_min_rtt_milliseconds",
    "outrigger_concurrency_requests",
    "outrigger_concurrency_sample_rtt_milliseconds",
    "outrigger_config_from_disk_seconds",
    "outrigger_config_generation",
    "outrigger_config_unconfirmed_seconds",
    "outrigger_control_plane_connected",
    "outrigger_destinations",
    "outrigger_destinations_forgotten_total",
    "outrigger_dns_lookups_total",
    "outrigger_dns_names",
    "outrigger_dns_names_failing",
    "outrigger_dns_requests_total",
    "outrigger_hedges_total",
    "outrigger_hedges_won_total",
    "outrigger_hosts",
    "outrigger_load_reports_total",
    "outrigger_metrics_left_out",
    "outrigger_mirrored_requests_total",
    "outrigger_process_cpu_seconds_total",
    "outrigger_process_max_fds",
    "outrigger_process_open_fds",
    "outrigger_process_resident_memory_bytes",
    "outrigger_process_start_time_seconds",
    "outrigger_process_threads",
    "outrigger_process_virtual_memory_bytes",
    "outrigger_raced_connections_total",
    "outrigger_rate_limited_total",
    "outrigger_registered",
    "outrigger_retries_unreplayable_total",
    "outrigger_shed_connections_total",
    "outrigger_shed_requests_total",
    "outrigger_spans_dropped_total",
    "outrigger_spans_exported_total",
    "outrigger_worker_tasks",
    "outrigger_xds_heard_seconds",
    "outrigger_xds_stale",
    "outrigger_xds_subscriptions",
    "outrigger_xds_unanswered",
];

/// Families of histograms.
const HISTOGRAMS: &[&str] = &[
    "envoy_cluster_upstream_rq_time",
    "istio_request_bytes",
    "istio_request_duration_milliseconds",
    "istio_response_bytes",
];

/// Whether a sample of this name, or what is said of a family of this name, is ours to say.
pub(super) fn is_ours(name: &str) -> bool {
    let family = ["_bucket", "_sum", "_count"].into_iter().find_map(|end| name.strip_suffix(end));
    SINGLE.binary_search(&name).is_ok()
        || HISTOGRAMS.contains(&name)
        || family.is_some_and(|family| HISTOGRAMS.contains(&family))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::path::Path;

    use outrigger_telemetry::metrics::Registry;

    use super::*;
    use crate::runtime::outlier::Ejections;

    /// Words between quotes that begin as names of metrics do, and are none: labels, and what a name begins with.
    const OTHERS: [&str; 2] = ["envoy_cluster_name", "outrigger_"];

    /// The code below this folder, without tests.
    fn code(folder: &Path, all: &mut Vec<String>) {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_str().unwrap();
            if path.is_dir() && name != "tests" {
                code(&path, all);
            } else if name.ends_with(".rs") && name != "tests.rs" && name != "ours.rs" {
                let text = std::fs::read_to_string(&path).unwrap();
                all.push(text.split("\nmod tests {").next().unwrap().to_owned());
            }
        }
    }

    fn named(code: &str) -> BTreeSet<&str> {
        let is_part = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
        ["\"outrigger_", "\"istio_", "\"envoy_cluster_"]
            .into_iter()
            .flat_map(|begin| code.match_indices(begin))
            .filter_map(|(at, _)| code[at + 1..].split_once('"'))
            .map(|(name, _)| name)
            .filter(|name| name.chars().all(is_part) && !OTHERS.contains(name))
            .collect()
    }

    #[test]
    fn all_that_the_code_names_is_ours_and_nothing_else() {
        let mut all = Vec::new();
        for folder in ["src", "../telemetry/src"] {
            code(&Path::new(env!("CARGO_MANIFEST_DIR")).join(folder), &mut all);
        }
        let mut names: BTreeSet<String> = BTreeSet::new();
        let mut histograms: BTreeSet<String> = BTreeSet::new();
        for code in &all {
            names.extend(named(code).into_iter().map(str::to_owned));
            for of_histogram in code.split("histogram(").skip(1) {
                let name = of_histogram.trim_start().strip_prefix('"').and_then(|rest| rest.split_once('"'));
                histograms.extend(name.map(|(name, _)| name.to_owned()));
            }
        }
        // Those that are put together of parts.
        for (cause, ..) in Ejections::default().counts().each() {
            for what in ["detected", "enforced"] {
                names.insert(format!("envoy_cluster_outlier_detection_ejections_{what}_{cause}"));
            }
        }
        let of_process = Registry::with_process_as("outrigger_", "proxy", "v1").render();
        let types = of_process.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split_once(' '));
        names.extend(types.map(|(name, _)| name.to_owned()));
        let single: Vec<&str> = names.difference(&histograms).map(String::as_str).collect();
        assert_eq!(single, SINGLE, "the list is not what the code names");
        assert!(histograms.iter().map(String::as_str).eq(HISTOGRAMS.iter().copied()), "{histograms:?}");
    }

    #[test]
    fn a_family_has_its_samples_and_no_others() {
        for ours in [
            "istio_requests_total",
            "istio_request_bytes",
            "istio_request_bytes_bucket",
            "istio_request_bytes_sum",
            "istio_request_bytes_count",
            "outrigger_app_metrics_up",
            "outrigger_metrics_left_out",
            "outrigger_process_open_fds",
        ] {
            assert!(is_ours(ours), "{ours}");
        }
        for other in
            ["istio_requests", "istio_requests_total_sum", "istio_agent_pilot_xds", "process_open_fds", ""]
        {
            assert!(!is_ours(other), "{other}");
        }
    }
}
