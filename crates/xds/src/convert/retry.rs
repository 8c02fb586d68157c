//! Retry policies and injected faults.

use std::time::Duration;

use outrigger_model::listener::HttpFilter;
use outrigger_model::route::{
    Fault, FaultAbort, FaultDelay, FaultStatus, HeaderMatch, RateLimitedBackOff, ResetHeader, RetryOn,
    RetryPolicy,
};

use super::extension::{FAULT, is, unpack};
use super::flaw::{Decoded, Under, each, flaw};
use super::row::{Row, nothing};
use super::value::{duration, duration_at, fraction, percent_of_fraction, positive_or, status, uint_or};
use super::{headers, left_out, matcher, note};
use crate::kind::ClientKind;
use crate::wire::common_fault::{self, fault_delay::FaultDelaySecifier};
use crate::wire::http_fault::{self, HttpFault, fault_abort::ErrorType};
use crate::wire::previous_hosts::PreviousHostsPredicate;
use crate::wire::previous_priorities::PreviousPrioritiesConfig;
use crate::wire::route::{self, HeaderMatcher, retry_policy, retry_policy::ResetHeaderFormat};
use crate::wire::{self, any, scalar, uint};

const PREVIOUS_HOSTS: &str = "envoy.retry_host_predicates.previous_hosts";
const PREVIOUS_PRIORITIES: &str = "envoy.retry_priorities.previous_priorities";

pub(super) fn encode(policy: &RetryPolicy, kind: ClientKind) -> Option<route::RetryPolicy> {
    if kind == ClientKind::Grpc && policy.attempts == 0 {
        return None; // gRPC refuses a policy without retries
    }
    let mut on: Vec<_> = policy.on.iter().map(|on| on.name()).collect();
    // They are looked at only where it is told to.
    let statuses = RetryOn::RetriableStatusCodes;
    if kind != ClientKind::Grpc && !policy.statuses.is_empty() && !policy.on.contains(&statuses) {
        on.push(statuses.name());
    }
    let avoid = policy.avoid_previous_hosts && kind != ClientKind::Grpc;
    // Both clients refuse a back-off of zero; Envoy also one whose longest is below its base.
    let base = policy.backoff_base.max(Duration::from_millis(1));
    let longest = policy.backoff_max.max(base);
    let exact = kind == ClientKind::Outrigger;
    Some(route::RetryPolicy {
        retry_on: on.join(","),
        num_retries: uint(policy.attempts),
        per_try_timeout: policy.per_try_timeout.map(wire::duration),
        retry_host_predicate: Vec::from_iter(avoid.then(|| retry_policy::RetryHostPredicate {
            name: PREVIOUS_HOSTS.to_owned(),
            config_type: Some(retry_policy::retry_host_predicate::ConfigType::TypedConfig(any(
                &PreviousHostsPredicate {},
            ))),
        })),
        retry_priority: (kind != ClientKind::Grpc)
            .then(|| encode_priority(policy.leave_priorities))
            .flatten(),
        host_selection_retry_max_attempts: if avoid { 5 } else { 0 },
        retriable_status_codes: policy.statuses.iter().map(|s| u32::from(*s)).collect(),
        retry_back_off: Some(retry_policy::RetryBackOff {
            base_interval: Some(wire::duration(if exact { policy.backoff_base } else { base })),
            max_interval: Some(wire::duration(if exact { policy.backoff_max } else { longest })),
        }),
        per_try_idle_timeout: policy.per_try_idle.map(wire::duration),
        rate_limited_retry_back_off: policy.rate_limited.as_deref().map(encode_rate_limited),
        retriable_headers: encode_headers(&policy.response_headers, kind),
        retriable_request_headers: encode_headers(&policy.request_headers, kind),
        ..Default::default()
    })
}

fn encode_priority(every: u32) -> Option<retry_policy::RetryPriority> {
    let update_frequency = i32::try_from(every).unwrap_or(i32::MAX);
    (every > 0).then(|| retry_policy::RetryPriority {
        name: PREVIOUS_PRIORITIES.to_owned(),
        config_type: Some(retry_policy::retry_priority::ConfigType::TypedConfig(any(
            &PreviousPrioritiesConfig { update_frequency },
        ))),
    })
}

/// Nothing where it is another extension: retries go where requests would.
fn decode_priority(wire: &retry_policy::RetryPriority) -> Decoded<u32> {
    let Some(retry_policy::retry_priority::ConfigType::TypedConfig(config)) = &wire.config_type else {
        return flaw("typed_config", "is required");
    };
    if !is::<PreviousPrioritiesConfig>(config) {
        left_out("a retry_priority that is not previous_priorities");
        return Ok(0);
    }
    let config: PreviousPrioritiesConfig = unpack(config).under("typed_config")?;
    match u32::try_from(config.update_frequency) {
        Ok(every) if every > 0 => Ok(every),
        _ => flaw("typed_config.update_frequency", format!("{} is not above 0", config.update_frequency)),
    }
}

fn encode_headers(headers: &[HeaderMatch], kind: ClientKind) -> Vec<HeaderMatcher> {
    headers.iter().map(|header| matcher::encode_header(header, kind)).collect()
}

fn encode_rate_limited(back_off: &RateLimitedBackOff) -> retry_policy::RateLimitedRetryBackOff {
    let format =
        |unix: bool| if unix { ResetHeaderFormat::UnixTimestamp } else { ResetHeaderFormat::Seconds };
    let header = |header: &ResetHeader| retry_policy::ResetHeader {
        name: header.name.clone(),
        format: format(header.unix_timestamp) as i32,
    };
    retry_policy::RateLimitedRetryBackOff {
        reset_headers: back_off.headers.iter().map(header).collect(),
        max_interval: Some(wire::duration(back_off.max)),
    }
}

pub(super) fn decode(wire: &route::RetryPolicy) -> Decoded<RetryPolicy> {
    note!(wire, retry_options_predicates, refresh_cluster_on_retry);
    let mut on = Vec::new();
    for name in wire.retry_on.split(',').map(str::trim).filter(|name| !name.is_empty()) {
        match RetryOn::parse(name) {
            Some(condition) if !on.contains(&condition) => on.push(condition),
            Some(_) => {}
            None => left_out("retry_on: an unknown condition"), // as Envoy does
        }
    }
    // Without the word they mean nothing, as to an Envoy.
    let told = on.contains(&RetryOn::RetriableStatusCodes);
    let statuses = if told { &*wire.retriable_status_codes } else { &[] };
    on.retain(|on| statuses.is_empty() || *on != RetryOn::RetriableStatusCodes);
    let (backoff_base, backoff_max) = match &wire.retry_back_off {
        None => (Duration::from_millis(25), Duration::from_millis(250)),
        Some(back_off) => decode_back_off(back_off).under("retry_back_off")?,
    };
    Ok(RetryPolicy {
        on,
        statuses: each(statuses, "retriable_status_codes", |code| status(*code, 100..=599, ""))?,
        attempts: uint_or(wire.num_retries.as_ref(), 1),
        per_try_timeout: duration_at(wire.per_try_timeout.as_ref(), "per_try_timeout")?
            .filter(|d| !d.is_zero()),
        backoff_base,
        backoff_max,
        avoid_previous_hosts: wire.retry_host_predicate.iter().any(|p| p.name.ends_with("previous_hosts")),
        leave_priorities: match &wire.retry_priority {
            Some(priority) => decode_priority(priority).under("retry_priority")?,
            None => 0,
        },
        per_try_idle: duration_at(wire.per_try_idle_timeout.as_ref(), "per_try_idle_timeout")?
            .filter(|d| !d.is_zero()),
        rate_limited: wire
            .rate_limited_retry_back_off
            .as_ref()
            .map(decode_rate_limited)
            .transpose()
            .under("rate_limited_retry_back_off")?
            .map(Box::new),
        response_headers: each(&wire.retriable_headers, "retriable_headers", any_header)?,
        request_headers: each(&wire.retriable_request_headers, "retriable_request_headers", any_header)?,
    })
}

/// One of several, any of which will do.
fn any_header(wire: &HeaderMatcher) -> Decoded<HeaderMatch> {
    match <[HeaderMatch; 1]>::try_from(matcher::decode_header(wire)?) {
        Ok([one]) => Ok(one),
        Err(_) => flaw("invert_match", "of a value is supported with treat_missing_header_as_empty only"),
    }
}

fn decode_rate_limited(wire: &retry_policy::RateLimitedRetryBackOff) -> Decoded<RateLimitedBackOff> {
    let headers = each(&wire.reset_headers, "reset_headers", |header| {
        Ok(ResetHeader {
            name: headers::header_name(&header.name).under("name")?,
            unix_timestamp: match ResetHeaderFormat::try_from(header.format) {
                Ok(ResetHeaderFormat::Seconds) => false,
                Ok(ResetHeaderFormat::UnixTimestamp) => true,
                Err(_) => return flaw("format", format!("{} is unknown", header.format)),
            },
        })
    })?;
    if headers.is_empty() || headers.len() > RateLimitedBackOff::MOST_HEADERS {
        let most = RateLimitedBackOff::MOST_HEADERS;
        return flaw("reset_headers", format!("are {}, and must be from 1 to {most}", headers.len()));
    }
    let max = positive_or(wire.max_interval.as_ref(), RateLimitedBackOff::MAX, "max_interval")?;
    Ok(RateLimitedBackOff { headers, max })
}

fn decode_back_off(wire: &retry_policy::RetryBackOff) -> Decoded<(Duration, Duration)> {
    let Some(base) = &wire.base_interval else { return flaw("base_interval", "is required") };
    let base = duration(base).under("base_interval")?;
    let longest =
        duration_at(wire.max_interval.as_ref(), "max_interval")?.unwrap_or_else(|| base.saturating_mul(10));
    if longest < base {
        return flaw("max_interval", "must not be less than base_interval");
    }
    Ok((base, longest))
}

pub(super) const FAULT_ROW: Row = Row {
    is: is::<HttpFault>,
    read: |reading| {
        let fault: HttpFault = unpack(reading.config)?;
        Ok(Some(HttpFilter::Fault(decode_fault(&fault)?)))
    },
    reads_disabled: false,
    write: |filter, out| {
        if let HttpFilter::Fault(fault) = filter {
            out.push(FAULT, any(&encode_fault(fault, out.kind)));
        }
    },
    origins: nothing,
};

pub(super) fn encode_fault(fault: &Fault, kind: ClientKind) -> HttpFault {
    // Envoy refuses a delay of zero.
    let kept = |delay: &&FaultDelay| kind == ClientKind::Outrigger || !delay.duration.is_zero();
    HttpFault {
        delay: fault.delay.as_ref().filter(kept).map(|delay| common_fault::FaultDelay {
            percentage: Some(fraction(delay.percentage)),
            fault_delay_secifier: Some(FaultDelaySecifier::FixedDelay(wire::duration(delay.duration))),
        }),
        abort: fault.abort.as_ref().map(|abort| http_fault::FaultAbort {
            percentage: Some(fraction(abort.percentage)),
            error_type: Some(match abort.status {
                FaultStatus::Http(status) => ErrorType::HttpStatus(u32::from(status)),
                FaultStatus::Grpc(status) => ErrorType::GrpcStatus(status),
            }),
            ..Default::default()
        }),
        ..Default::default()
    }
}

pub(super) fn decode_fault(wire: &HttpFault) -> Decoded<Fault> {
    note!(wire, max_active_faults, response_rate_limit);
    // Each of these narrows the fault; without it all requests would be hit.
    if !wire.headers.is_empty() || !wire.downstream_nodes.is_empty() || !wire.upstream_cluster.is_empty() {
        return flaw("headers", "faults for some headers, nodes or clusters only are not supported");
    }
    Ok(Fault {
        delay: wire.delay.as_ref().map(decode_delay).transpose().under("delay")?,
        abort: wire.abort.as_ref().map(decode_abort).transpose().under("abort")?,
    })
}

fn percentage(wire: Option<&scalar::FractionalPercent>) -> Decoded<f64> {
    wire.map_or(Ok(0.0), percent_of_fraction).under("percentage")
}

fn decode_delay(wire: &common_fault::FaultDelay) -> Decoded<FaultDelay> {
    let percentage = percentage(wire.percentage.as_ref())?;
    match &wire.fault_delay_secifier {
        Some(FaultDelaySecifier::FixedDelay(d)) => {
            Ok(FaultDelay { duration: duration(d).under("fixed_delay")?, percentage })
        }
        Some(FaultDelaySecifier::HeaderDelay(_)) => flaw("header_delay", "is not supported"),
        None => flaw("fixed_delay", "is required"),
    }
}

fn decode_abort(wire: &http_fault::FaultAbort) -> Decoded<FaultAbort> {
    let percentage = percentage(wire.percentage.as_ref())?;
    let status = match &wire.error_type {
        Some(ErrorType::HttpStatus(code)) => FaultStatus::Http(status(*code, 200..=599, "http_status")?),
        Some(ErrorType::GrpcStatus(code)) => FaultStatus::Grpc(*code),
        Some(ErrorType::HeaderAbort(_)) => return flaw("header_abort", "is not supported"),
        None => return flaw("http_status", "one of http_status and grpc_status is required"),
    };
    Ok(FaultAbort { status, percentage })
}
