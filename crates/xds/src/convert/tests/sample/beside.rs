//! What a route has beside its way: faults, policies for other origins, mirrors; and what a cluster has beside its own.

use std::time::Duration;

use outrigger_model::cluster::{
    Balance, Breaker, CHECK_METHODS, CheckHow, Discovery, Enforcing, FailurePercentage, GrpcCheck,
    HealthCheck, HttpCheck, LoadReports, Outlier, SuccessRate, TcpCheck,
};
use outrigger_model::concurrency::{AdaptiveConcurrency, MOST_CONCURRENCY, MinRtt};
use outrigger_model::global_limit::{Entry, EntryValue, GlobalLimit, GlobalLimits};
use outrigger_model::rate_limit::{Algorithm, By, RateLimit};
use outrigger_model::route::{
    Cors, Fault, FaultAbort, FaultDelay, FaultStatus, HedgeDelay, HedgePolicy, MOST_HEDGES, Mirror,
};
use proptest::collection::vec;
use proptest::option::of;
use proptest::prelude::*;

use super::{duration, name, origin, percentage, route_match, string_match};

pub(super) fn mirror() -> impl Strategy<Value = Mirror> {
    (name(), percentage(), any::<bool>()).prop_map(|(cluster, percentage, keep_host)| Mirror {
        cluster,
        percentage,
        keep_host,
    })
}

/// What is off has no percentage.
fn enforced() -> impl Strategy<Value = (u32, u32)> {
    prop_oneof![Just((0, 100)), (1_u32..9, 1_u32..=100)]
}

pub(super) fn outlier() -> impl Strategy<Value = Outlier> {
    let rate = (1_u32..9, 1_u32..9, 1_u32..9000, 1_u32..=100, 0_u32..=100).prop_map(
        |(minimum_hosts, request_volume, stdev_factor, enforcing, enforcing_local)| SuccessRate {
            minimum_hosts,
            request_volume,
            stdev_factor,
            enforcing,
            enforcing_local,
        },
    );
    let share = (0_u32..=100, 1_u32..9, 1_u32..9, 1_u32..=100, 0_u32..=100).prop_map(
        |(threshold, minimum_hosts, request_volume, enforcing, enforcing_local)| FailurePercentage {
            threshold,
            minimum_hosts,
            request_volume,
            enforcing,
            enforcing_local,
        },
    );
    let times = (duration(), duration(), duration(), prop_oneof![Just(Duration::ZERO), duration()]);
    let limits = (0_u32..=100, 0_u32..=100, any::<bool>());
    (enforced(), enforced(), of(enforced()), of(rate), of(share), times, limits).prop_map(
        |(five, gateway, local, success_rate, failure_percentage, times, limits)| Outlier {
            consecutive_5xx: five.0,
            consecutive_gateway: gateway.0,
            local_apart: local.is_some(),
            consecutive_local: local.map_or(5, |local| local.0),
            enforcing: Enforcing {
                consecutive_5xx: five.1,
                consecutive_gateway: gateway.1,
                consecutive_local: local.map_or(100, |local| local.1),
            },
            success_rate,
            failure_percentage,
            interval: times.0,
            base_ejection: times.1,
            max_ejection: times.2,
            jitter: times.3,
            max_ejection_percent: limits.0,
            min_health_percent: limits.1,
            check_ends_ejection: limits.2,
        },
    )
}

pub(super) fn load_reports() -> impl Strategy<Value = LoadReports> {
    let update = duration().prop_map(|time| time + Duration::from_millis(100));
    // The wire has single precision.
    let penalty = (0_u8..200).prop_map(|quarters| f64::from(quarters) / 4.0);
    (duration(), duration(), update, penalty, vec(name(), 0..3)).prop_map(
        |(blackout, expiration, update, error_penalty, metrics)| LoadReports {
            blackout,
            expiration,
            update,
            error_penalty,
            metrics,
        },
    )
}

pub(super) fn hedge() -> impl Strategy<Value = Box<HedgePolicy>> {
    let delay = prop_oneof![
        (1_u64..1 << 40).prop_map(|millis| HedgeDelay::Fixed(Duration::from_millis(millis))),
        (0.1..99.99, any::<u32>())
            .prop_map(|(percent, min_samples)| HedgeDelay::Percentile { percent, min_samples }),
    ];
    (2..=MOST_HEDGES, of(delay), any::<bool>(), any::<bool>()).prop_map(
        |(attempts, delay, on_per_try_timeout, all_methods)| {
            Box::new(HedgePolicy { attempts, delay, on_per_try_timeout, all_methods })
        },
    )
}

pub(super) fn cors() -> impl Strategy<Value = Cors> {
    let texts = vec("[a-zA-Z, *]{0,12}", 4);
    (vec(string_match(), 0..3), texts, any::<[bool; 3]>(), percentage()).prop_map(
        |(allow_origins, texts, [credentials, private, forward], percentage)| Cors {
            allow_origins,
            allow_methods: texts[0].clone(),
            allow_headers: texts[1].clone(),
            expose_headers: texts[2].clone(),
            max_age: texts[3].clone(),
            allow_credentials: credentials,
            allow_private_network: private,
            forward_not_matching: forward,
            percentage,
        },
    )
}

pub(super) fn fault() -> impl Strategy<Value = Fault> {
    let delay =
        (duration(), percentage()).prop_map(|(duration, percentage)| FaultDelay { duration, percentage });
    let status =
        prop_oneof![(200_u16..600).prop_map(FaultStatus::Http), (0_u32..17).prop_map(FaultStatus::Grpc)];
    let abort = (status, percentage()).prop_map(|(status, percentage)| FaultAbort { status, percentage });
    (of(delay), of(abort)).prop_map(|(delay, abort)| Fault { delay, abort })
}

pub(super) fn breaker() -> impl Strategy<Value = Box<Breaker>> {
    let millis = |from| (from..1_u64 << 40).prop_map(Duration::from_millis);
    (1.0..=100.0, any::<u32>(), millis(100_u64), any::<u32>(), millis(1), 1_u32..).prop_map(
        |(failure_percent, minimum_requests, interval, consecutive_failures, open_time, probes)| {
            Box::new(Breaker {
                failure_percent,
                minimum_requests,
                interval,
                consecutive_failures,
                open_time,
                probes,
            })
        },
    )
}

pub(super) fn health_check() -> impl Strategy<Value = Box<HealthCheck>> {
    let statuses =
        || vec((100_u16..600, 0_u16..500).prop_map(|(from, more)| (from, (from + more).min(599))), 0..3);
    let http = (name(), "/[a-z]{0,8}", 0..CHECK_METHODS.len(), any::<bool>(), statuses(), statuses())
        .prop_map(|(host, path, method, http2, expected, retriable)| {
            let method = CHECK_METHODS[method].to_owned();
            CheckHow::Http(HttpCheck { host, path, method, http2, expected, retriable })
        });
    let bytes = || vec(any::<u8>(), 1..9);
    let tcp = (prop_oneof![Just(Vec::new()), bytes()], vec(bytes(), 0..3))
        .prop_map(|(send, receive)| CheckHow::Tcp(TcpCheck { send, receive }));
    let grpc = ("[a-z.]{0,9}", "[a-z.]{0,9}")
        .prop_map(|(service, authority)| CheckHow::Grpc(GrpcCheck { service, authority }));
    let time = |from: u64| (from..1 << 40).prop_map(Duration::from_millis);
    let times = (time(1), time(1), time(0), time(0), time(1));
    (prop_oneof![http, tcp, grpc], times, any::<u32>(), 1_u32.., 1_u32..).prop_map(
        |(how, times, interval_jitter_percent, unhealthy_threshold, healthy_threshold)| {
            let (timeout, interval, initial_jitter, interval_jitter, no_traffic_interval) = times;
            Box::new(HealthCheck {
                how,
                timeout,
                interval,
                initial_jitter,
                interval_jitter,
                interval_jitter_percent,
                unhealthy_threshold,
                healthy_threshold,
                no_traffic_interval,
            })
        },
    )
}

fn by() -> impl Strategy<Value = By> {
    prop_oneof![
        Just(By::Caller),
        Just(By::Address),
        Just(By::Path),
        "[a-z][a-z0-9-]{0,8}".prop_map(By::Header),
    ]
}

pub(super) fn global_limits() -> impl Strategy<Value = GlobalLimits> {
    let value = prop_oneof![by().prop_map(EntryValue::Of), "[a-z]{1,9}".prop_map(EntryValue::Text)];
    let entry = ("[a-z]{1,9}", value).prop_map(|(key, value)| Entry { key, value });
    let limit = (name(), route_match(), vec(entry, 1..3), of(origin()))
        .prop_map(|(name, matches, descriptor, origin)| GlobalLimit { name, matches, descriptor, origin });
    let timeout = (1_u64..60_000).prop_map(Duration::from_millis);
    (name(), name(), name(), timeout, of(200_u16..600), vec(limit, 1..3)).prop_map(
        |(cluster, authority, domain, timeout, status_on_error, limits)| GlobalLimits {
            cluster,
            authority,
            domain,
            timeout,
            status_on_error,
            limits,
        },
    )
}

pub(super) fn concurrency() -> impl Strategy<Value = AdaptiveConcurrency> {
    let limit = || 1..=MOST_CONCURRENCY;
    let time = || (1_u64..86_400_000).prop_map(Duration::from_millis);
    let percent = || 0.0..=100.0;
    let min_rtt = prop_oneof![
        duration().prop_map(MinRtt::Fixed),
        (time(), 1_u32.., percent()).prop_map(|(interval, requests, jitter)| MinRtt::Measured {
            interval,
            requests,
            jitter
        }),
    ];
    let limits = (limit(), of(limit()), limit());
    (percent(), time(), limits, percent(), min_rtt, 400_u16..600, of(origin())).prop_map(
        |(percentile, update_interval, limits, buffer, min_rtt, status, origin)| AdaptiveConcurrency {
            percentile,
            update_interval,
            max_limit: limits.0,
            min_limit: limits.1,
            min_concurrency: limits.2,
            buffer,
            min_rtt,
            status,
            origin,
        },
    )
}

pub(super) fn rate_limit() -> impl Strategy<Value = RateLimit> {
    let algorithm = prop_oneof![
        (1_u32..=1_000_000).prop_map(|burst| Algorithm::TokenBucket { burst }),
        Just(Algorithm::SlidingWindow),
    ];
    let per = (10_u64..86_400_000).prop_map(Duration::from_millis);
    (name(), route_match(), vec(by(), 0..3), 1_u32..=1_000_000, per, algorithm, of(origin())).prop_map(
        |(name, matches, by, requests, per, algorithm, origin)| RateLimit {
            name,
            matches,
            by,
            requests,
            per,
            algorithm,
            origin,
        },
    )
}

/// The wire has a place for slow start only with these.
pub(super) fn slow_starts(discovery: &Discovery, balance: Balance) -> bool {
    *discovery != Discovery::OriginalDestination && !balance.hashes() && balance != Balance::Random
}
