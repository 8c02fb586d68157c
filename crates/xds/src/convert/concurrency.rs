//! `envoy.extensions.filters.http.adaptive_concurrency.v3.AdaptiveConcurrency`.

use std::time::Duration;

use outrigger_model::concurrency::{AdaptiveConcurrency, MOST_CONCURRENCY, MinRtt, WINDOWS};
use outrigger_model::listener::HttpFilter;
use outrigger_model::resource::Origin;

use super::extension::{CONCURRENCY, is, unpack};
use super::flaw::{Decoded, Under, flaw};
use super::metadata::{filter_origin, origin_value};
use super::row::Row;
use super::value::{duration_at, percent, uint_or};
use crate::wire::http_concurrency::{
    AdaptiveConcurrency as Wire, GradientControllerConfig,
    adaptive_concurrency::ConcurrencyControllerConfig::GradientControllerConfig as Gradient,
    gradient_controller_config::{ConcurrencyLimitCalculationParams, MinimumRttCalculationParams},
};
use crate::wire::protobuf::Any;
use crate::wire::scalar::{HttpStatus, Percent};
use crate::wire::{any, duration, uint};

/// Envoy takes another where an answer would be no failure.
const LEAST_STATUS: u32 = 400;

/// Under which its origins ride on the chain.
const ORIGINS: &str = "adaptive_concurrency_origins";

pub(super) const ROW: Row = Row {
    is: is::<Wire>,
    read: |reading| {
        let origin = filter_origin(reading.origins(ORIGINS), reading.index);
        let limit = decode(reading.config, origin)?;
        Ok(limit.map(|limit| HttpFilter::Concurrency(Box::new(limit))))
    },
    reads_disabled: false,
    write: |filter, out| {
        if let HttpFilter::Concurrency(limit) = filter {
            out.push(CONCURRENCY, any(&encode(limit)));
        }
    },
    origins: |filter| match filter {
        HttpFilter::Concurrency(limit) => Some((ORIGINS, limit.origin.as_ref().map(origin_value))),
        _ => None,
    },
};

fn encode(model: &AdaptiveConcurrency) -> Wire {
    let part = |value: f64| Some(Percent { value });
    let (mut interval, mut request_count, mut jitter, mut fixed_value) = (None, None, None, None);
    match model.min_rtt {
        MinRtt::Fixed(time) => fixed_value = Some(duration(time)),
        MinRtt::Measured { interval: between, requests, jitter: later } => {
            (interval, request_count, jitter) = (Some(duration(between)), uint(requests), part(later));
        }
    }
    let controller = GradientControllerConfig {
        sample_aggregate_percentile: part(model.percentile),
        concurrency_limit_params: Some(ConcurrencyLimitCalculationParams {
            max_concurrency_limit: uint(model.max_limit),
            concurrency_update_interval: Some(duration(model.update_interval)),
            min_concurrency_limit: model.min_limit.and_then(uint),
        }),
        min_rtt_calc_params: Some(MinimumRttCalculationParams {
            interval,
            fixed_value,
            request_count,
            jitter,
            min_concurrency: uint(model.min_concurrency),
            buffer: part(model.buffer),
        }),
    };
    Wire {
        enabled: None,
        concurrency_limit_exceeded_status: Some(HttpStatus { code: i32::from(model.status) }),
        concurrency_controller_config: Some(Gradient(controller)),
    }
}

/// Nothing where it is not enabled.
fn decode(config: &Any, origin: Option<Origin>) -> Decoded<Option<AdaptiveConcurrency>> {
    let wire: Wire = unpack(config)?;
    let off = wire.enabled.as_ref().and_then(|enabled| enabled.default_value.as_ref());
    if off.is_some_and(|enabled| !enabled.value) {
        return Ok(None);
    }
    let Some(Gradient(controller)) = &wire.concurrency_controller_config else {
        return flaw("gradient_controller_config", "is required");
    };
    let status = wire.concurrency_limit_exceeded_status.map_or(0, |status| status.code.unsigned_abs());
    let (model, paths) = controller_of(controller).under("gradient_controller_config")?;
    let model = AdaptiveConcurrency {
        status: match u16::try_from(status) {
            Ok(status) if (LEAST_STATUS as u16..=599).contains(&status) => status,
            _ => model.status,
        },
        origin,
        ..model
    };
    match model.check() {
        Ok(()) => Ok(Some(model)),
        Err((field, reason)) => {
            let path = paths.iter().find(|(name, _)| *name == field).map_or(field, |(_, path)| path);
            flaw(path, reason).under("gradient_controller_config")
        }
    }
}

/// Where each of the model's fields was.
type Paths = [(&'static str, &'static str); 9];

fn controller_of(wire: &GradientControllerConfig) -> Decoded<(AdaptiveConcurrency, Paths)> {
    let default = AdaptiveConcurrency::default();
    let Some(limit) = &wire.concurrency_limit_params else {
        return flaw("concurrency_limit_params", "is required");
    };
    let Some(rtt) = &wire.min_rtt_calc_params else {
        return flaw("min_rtt_calc_params", "is required");
    };
    let part =
        |wire: Option<&Percent>, default: f64, field: &str| wire.map_or(Ok(default), percent).under(field);
    let interval = duration_at(limit.concurrency_update_interval.as_ref(), "concurrency_update_interval")
        .under("concurrency_limit_params")?;
    let Some(update_interval) = interval else {
        return flaw("concurrency_limit_params.concurrency_update_interval", "is required");
    };
    let model = AdaptiveConcurrency {
        percentile: part(
            wire.sample_aggregate_percentile.as_ref(),
            default.percentile,
            "sample_aggregate_percentile",
        )?,
        update_interval: sane(update_interval),
        max_limit: uint_or(limit.max_concurrency_limit.as_ref(), default.max_limit).min(MOST_CONCURRENCY),
        min_limit: limit.min_concurrency_limit.map(|limit| limit.value.min(MOST_CONCURRENCY)),
        min_concurrency: uint_or(rtt.min_concurrency.as_ref(), default.min_concurrency).min(MOST_CONCURRENCY),
        buffer: part(rtt.buffer.as_ref(), default.buffer, "buffer").under("min_rtt_calc_params")?,
        min_rtt: min_rtt(rtt).under("min_rtt_calc_params")?,
        ..default
    };
    let paths = [
        ("percentile", "sample_aggregate_percentile"),
        ("update_interval", "concurrency_limit_params.concurrency_update_interval"),
        ("max_limit", "concurrency_limit_params.max_concurrency_limit"),
        ("min_limit", "concurrency_limit_params.min_concurrency_limit"),
        ("min_concurrency", "min_rtt_calc_params.min_concurrency"),
        ("buffer", "min_rtt_calc_params.buffer"),
        ("fixed_value", "min_rtt_calc_params.fixed_value"),
        ("interval", "min_rtt_calc_params.interval"),
        ("request_count", "min_rtt_calc_params.request_count"),
    ];
    Ok((model, paths))
}

/// An Envoy takes more than anybody means, and no time of nothing.
fn sane(time: Duration) -> Duration {
    if time.is_zero() { time } else { time.clamp(WINDOWS.0, WINDOWS.1) }
}

/// It is measured, or given; an Envoy refuses what says both or neither.
fn min_rtt(wire: &MinimumRttCalculationParams) -> Decoded<MinRtt> {
    let interval = duration_at(wire.interval.as_ref(), "interval")?;
    let fixed = duration_at(wire.fixed_value.as_ref(), "fixed_value")?;
    let jitter = wire.jitter.as_ref().map_or(Ok(15.0), percent).under("jitter")?;
    match (interval, fixed) {
        (Some(interval), None) => {
            let interval = sane(interval);
            Ok(MinRtt::Measured { interval, requests: uint_or(wire.request_count.as_ref(), 50), jitter })
        }
        (None, Some(time)) => Ok(MinRtt::Fixed(time)),
        (Some(_), Some(_)) => flaw("fixed_value", "and interval must not both be set"),
        (None, None) => flaw("interval", "or fixed_value is required"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::core::RuntimeFeatureFlag;
    use crate::wire::protobuf::BoolValue;

    fn wire(change: impl FnOnce(&mut GradientControllerConfig)) -> Wire {
        let mut controller = GradientControllerConfig {
            concurrency_limit_params: Some(ConcurrencyLimitCalculationParams {
                concurrency_update_interval: Some(duration(Duration::from_millis(100))),
                ..Default::default()
            }),
            min_rtt_calc_params: Some(MinimumRttCalculationParams {
                interval: Some(duration(Duration::from_secs(60))),
                ..Default::default()
            }),
            ..Default::default()
        };
        change(&mut controller);
        Wire { concurrency_controller_config: Some(Gradient(controller)), ..Default::default() }
    }

    #[test]
    fn what_is_not_said_is_as_in_an_envoy() {
        let found = decode(&any(&wire(|_| {})), None).unwrap();
        assert_eq!(found, Some(AdaptiveConcurrency::default()));
        let fixed = wire(|controller| {
            controller.min_rtt_calc_params = Some(MinimumRttCalculationParams {
                fixed_value: Some(duration(Duration::from_millis(5))),
                ..Default::default()
            });
        });
        let min_rtt = decode(&any(&fixed), None).unwrap().unwrap().min_rtt;
        assert_eq!(min_rtt, MinRtt::Fixed(Duration::from_millis(5)));
        for (given, taken) in [(429, 429), (200, 503), (0, 503), (-1, 503), (i32::MIN, 503), (600, 503)] {
            let status = Some(HttpStatus { code: given });
            let wire = Wire { concurrency_limit_exceeded_status: status, ..wire(|_| {}) };
            assert_eq!(decode(&any(&wire), None).unwrap().unwrap().status, taken, "{given}");
        }
    }

    #[test]
    fn one_that_is_not_enabled_is_none() {
        let enabled = |value| {
            let default_value = Some(BoolValue { value });
            let enabled = Some(RuntimeFeatureFlag { default_value, ..Default::default() });
            decode(&any(&Wire { enabled, ..wire(|_| {}) }), None).unwrap().is_some()
        };
        assert_eq!((enabled(true), enabled(false)), (true, false));
    }

    #[test]
    fn what_an_envoy_refuses_is_refused_at_the_field() {
        fn limit(controller: &mut GradientControllerConfig) -> &mut ConcurrencyLimitCalculationParams {
            controller.concurrency_limit_params.as_mut().unwrap()
        }
        fn rtt(controller: &mut GradientControllerConfig) -> &mut MinimumRttCalculationParams {
            controller.min_rtt_calc_params.as_mut().unwrap()
        }
        let zero = || Some(duration(Duration::ZERO));
        let field = |change: &dyn Fn(&mut GradientControllerConfig)| {
            let refused = decode(&any(&wire(|controller| change(controller))), None).unwrap_err();
            let field = refused.field.strip_prefix("gradient_controller_config.");
            field.unwrap_or_else(|| panic!("{refused:?}")).to_owned()
        };
        assert_eq!(field(&|c| c.concurrency_limit_params = None), "concurrency_limit_params");
        assert_eq!(field(&|c| c.min_rtt_calc_params = None), "min_rtt_calc_params");
        let percent = |value| Some(Percent { value });
        assert_eq!(
            field(&|c| c.sample_aggregate_percentile = percent(101.0)),
            "sample_aggregate_percentile.value"
        );
        for (wanted, change) in [
            ("concurrency_update_interval", (|c| limit(c).concurrency_update_interval = None) as fn(&mut _)),
            ("max_concurrency_limit", |c| limit(c).max_concurrency_limit = uint(0)),
            ("min_concurrency_limit", |c| limit(c).min_concurrency_limit = uint(0)),
        ] {
            assert_eq!(field(&change), format!("concurrency_limit_params.{wanted}"));
        }
        assert_eq!(
            field(&|c| limit(c).concurrency_update_interval = zero()),
            "concurrency_limit_params.concurrency_update_interval"
        );
        assert_eq!(field(&|c| rtt(c).interval = zero()), "min_rtt_calc_params.interval");
        assert_eq!(field(&|c| rtt(c).fixed_value = zero()), "min_rtt_calc_params.fixed_value");
        assert_eq!(field(&|c| rtt(c).interval = None), "min_rtt_calc_params.interval");
        for (wanted, change) in [
            ("min_concurrency", (|c| rtt(c).min_concurrency = uint(0)) as fn(&mut _)),
            ("request_count", |c| rtt(c).request_count = uint(0)),
            ("jitter.value", |c| rtt(c).jitter = Some(Percent { value: -1.0 })),
            ("buffer.value", |c| rtt(c).buffer = Some(Percent { value: f64::NAN })),
        ] {
            assert_eq!(field(&change), format!("min_rtt_calc_params.{wanted}"));
        }
        let none = Wire { concurrency_controller_config: None, ..Default::default() };
        assert_eq!(decode(&any(&none), None).unwrap_err().field, "gradient_controller_config");
    }
}
