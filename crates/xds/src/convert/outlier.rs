//! `OutlierDetection`: ejection of endpoints that fail.

use outrigger_model::cluster::{Enforcing, FailurePercentage, Outlier, SuccessRate};

use super::flaw::{Decoded, flaw};
use super::value::{duration_or, positive_or, uint_or};
use super::{left_out, note};
use crate::wire::cluster::OutlierDetection;
use crate::wire::protobuf::{BoolValue, UInt32Value};
use crate::wire::{self, boolean, uint};

pub(super) fn encode(outlier: &Outlier, foreign: bool) -> OutlierDetection {
    let enforced = |threshold: u32, percent: u32| uint(if threshold == 0 { 0 } else { percent });
    let local = if outlier.local_apart { outlier.consecutive_local } else { 0 };
    let mut wire = OutlierDetection {
        consecutive_5xx: uint(outlier.consecutive_5xx),
        enforcing_consecutive_5xx: enforced(outlier.consecutive_5xx, outlier.enforcing.consecutive_5xx),
        consecutive_gateway_failure: uint(outlier.consecutive_gateway),
        enforcing_consecutive_gateway_failure: enforced(
            outlier.consecutive_gateway,
            outlier.enforcing.consecutive_gateway,
        ),
        split_external_local_origin_errors: outlier.local_apart,
        consecutive_local_origin_failure: uint(outlier.consecutive_local).filter(|_| outlier.local_apart),
        enforcing_consecutive_local_origin_failure: outlier
            .local_apart
            .then(|| enforced(local, outlier.enforcing.consecutive_local))
            .flatten(),
        // Ejection by success rate is on by default in Envoy.
        enforcing_success_rate: uint(outlier.success_rate.map_or(0, |rate| rate.enforcing)),
        enforcing_local_origin_success_rate: uint(
            outlier.success_rate.map_or(0, |rate| rate.enforcing_local),
        ),
        interval: Some(wire::duration(outlier.interval)),
        base_ejection_time: Some(wire::duration(outlier.base_ejection)),
        // Envoy refuses a longest below the base.
        max_ejection_time: Some(wire::duration(if foreign {
            outlier.max_ejection.max(outlier.base_ejection)
        } else {
            outlier.max_ejection
        })),
        max_ejection_time_jitter: Some(outlier.jitter).filter(|time| !time.is_zero()).map(wire::duration),
        max_ejection_percent: uint(outlier.max_ejection_percent),
        always_eject_one_host: boolean(true),
        successful_active_health_check_uneject_host: boolean(outlier.check_ends_ejection),
        ..Default::default()
    };
    if let Some(rate) = &outlier.success_rate {
        wire.success_rate_minimum_hosts = uint(rate.minimum_hosts);
        wire.success_rate_request_volume = uint(rate.request_volume);
        wire.success_rate_stdev_factor = uint(rate.stdev_factor);
    }
    if let Some(share) = &outlier.failure_percentage {
        wire.failure_percentage_threshold = uint(share.threshold);
        wire.failure_percentage_minimum_hosts = uint(share.minimum_hosts);
        wire.failure_percentage_request_volume = uint(share.request_volume);
        wire.enforcing_failure_percentage = uint(share.enforcing);
        wire.enforcing_failure_percentage_local_origin = uint(share.enforcing_local);
    }
    wire
}

/// `min_health`: the panic threshold that the cluster gives in so many words.
pub(super) fn decode(wire: &OutlierDetection, min_health: Option<u32>) -> Decoded<Outlier> {
    note!(wire, monitors, detect_degraded_hosts);
    let always_one = yes_or(wire.always_eject_one_host.as_ref(), false);
    if !always_one && uint_or(wire.max_ejection_percent.as_ref(), 10) > 0 {
        left_out(
            "outlier_detection without always_eject_one_host: of few endpoints one may be ejected all the same",
        );
    }
    let default = Outlier::default();
    let within =
        |value: &Option<UInt32Value>, default: u32, field: &str| match uint_or(value.as_ref(), default) {
            percent @ 0..=100 => Ok(percent),
            more => flaw(field, format!("{more} is greater than 100")),
        };
    macro_rules! percent {
        ($field:ident, $default:expr) => {
            within(&wire.$field, $default, stringify!($field))?
        };
    }
    let local_apart = wire.split_external_local_origin_errors;
    // What has no consequences is off.
    let on = |percent: u32, count: &Option<UInt32Value>| match percent {
        0 => (0, 100),
        percent => (uint_or(count.as_ref(), 5), percent),
    };
    let (consecutive_5xx, five) = on(percent!(enforcing_consecutive_5xx, 100), &wire.consecutive_5xx);
    let (consecutive_gateway, gateway) =
        on(percent!(enforcing_consecutive_gateway_failure, 0), &wire.consecutive_gateway_failure);
    let (consecutive_local, local) =
        on(percent!(enforcing_consecutive_local_origin_failure, 100), &wire.consecutive_local_origin_failure);
    let rate = SuccessRate {
        minimum_hosts: uint_or(wire.success_rate_minimum_hosts.as_ref(), 5),
        request_volume: uint_or(wire.success_rate_request_volume.as_ref(), 100),
        stdev_factor: uint_or(wire.success_rate_stdev_factor.as_ref(), 1900),
        enforcing: percent!(enforcing_success_rate, 100),
        enforcing_local: percent!(enforcing_local_origin_success_rate, 100),
    };
    let share = FailurePercentage {
        threshold: percent!(failure_percentage_threshold, 85),
        minimum_hosts: uint_or(wire.failure_percentage_minimum_hosts.as_ref(), 5),
        request_volume: uint_or(wire.failure_percentage_request_volume.as_ref(), 50),
        enforcing: percent!(enforcing_failure_percentage, 0),
        enforcing_local: percent!(enforcing_failure_percentage_local_origin, 0),
    };
    let acts = |enforcing: u32, enforcing_local: u32| enforcing > 0 || (local_apart && enforcing_local > 0);
    let base_ejection =
        positive_or(wire.base_ejection_time.as_ref(), default.base_ejection, "base_ejection_time")?;
    let max_ejection_percent = percent!(max_ejection_percent, 10);
    let outlier = Outlier {
        consecutive_5xx,
        consecutive_gateway,
        local_apart,
        consecutive_local: if local_apart { consecutive_local } else { default.consecutive_local },
        enforcing: Enforcing {
            consecutive_5xx: five,
            consecutive_gateway: gateway,
            consecutive_local: if local_apart { local } else { 100 },
        },
        success_rate: acts(rate.enforcing, rate.enforcing_local).then_some(rate),
        failure_percentage: acts(share.enforcing, share.enforcing_local).then_some(share),
        interval: positive_or(wire.interval.as_ref(), default.interval, "interval")?,
        base_ejection,
        max_ejection: positive_or(
            wire.max_ejection_time.as_ref(),
            default.max_ejection.max(base_ejection),
            "max_ejection_time",
        )?,
        jitter: duration_or(
            wire.max_ejection_time_jitter.as_ref(),
            default.jitter,
            "max_ejection_time_jitter",
        )?,
        max_ejection_percent,
        min_health_percent: min_health.unwrap_or(0),
        check_ends_ejection: yes_or(wire.successful_active_health_check_uneject_host.as_ref(), true),
    };
    Ok(if max_ejection_percent == 0 && !always_one { ejecting_nobody(outlier) } else { outlier })
}

/// Where none may be ejected, not one is: nothing that is found has consequences.
fn ejecting_nobody(outlier: Outlier) -> Outlier {
    Outlier {
        consecutive_5xx: 0,
        consecutive_gateway: 0,
        consecutive_local: 0,
        success_rate: None,
        failure_percentage: None,
        ..outlier
    }
}

fn yes_or(wire: Option<&BoolValue>, otherwise: bool) -> bool {
    wire.map_or(otherwise, |value| value.value)
}
