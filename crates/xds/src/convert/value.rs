//! Scalars: durations, percentages, ports, statuses; and whether a field is set.

use std::collections::HashMap;
use std::time::Duration;

use super::flaw::{Decoded, Flaw, flaw};
use crate::wire::{protobuf, scalar};

/// Whether a field differs from its protobuf default.
pub(super) trait IsSet {
    fn is_set(&self) -> bool;
}

impl<T> IsSet for Option<T> {
    fn is_set(&self) -> bool {
        self.is_some()
    }
}

impl<T> IsSet for Vec<T> {
    fn is_set(&self) -> bool {
        !self.is_empty()
    }
}

impl<K, V> IsSet for HashMap<K, V> {
    fn is_set(&self) -> bool {
        !self.is_empty()
    }
}

impl IsSet for String {
    fn is_set(&self) -> bool {
        !self.is_empty()
    }
}

impl IsSet for bool {
    fn is_set(&self) -> bool {
        *self
    }
}

impl IsSet for i32 {
    fn is_set(&self) -> bool {
        *self != 0
    }
}

impl IsSet for u32 {
    fn is_set(&self) -> bool {
        *self != 0
    }
}

pub(super) fn duration(wire: &protobuf::Duration) -> Decoded<Duration> {
    match (u64::try_from(wire.seconds), u32::try_from(wire.nanos)) {
        (Ok(seconds), Ok(nanos)) if nanos < 1_000_000_000 && seconds <= 315_576_000_000 => {
            Ok(Duration::new(seconds, nanos))
        }
        _ => Err(Flaw::new(format!(
            "{}s {}ns is no duration from 0 to 10,000 years",
            wire.seconds, wire.nanos
        ))),
    }
}

/// A duration that may be absent.
pub(super) fn duration_at(wire: Option<&protobuf::Duration>, field: &str) -> Decoded<Option<Duration>> {
    wire.map(duration).transpose().map_err(|flaw| flaw.under(field))
}

/// A duration with a default for its absence; zero is allowed.
pub(super) fn duration_or(
    wire: Option<&protobuf::Duration>,
    default: Duration,
    field: &str,
) -> Decoded<Duration> {
    Ok(duration_at(wire, field)?.unwrap_or(default))
}

/// A duration with a default for its absence; zero is an error.
pub(super) fn positive_or(
    wire: Option<&protobuf::Duration>,
    default: Duration,
    field: &str,
) -> Decoded<Duration> {
    match duration_or(wire, default, field)? {
        Duration::ZERO => flaw(field, "must be greater than zero"),
        d => Ok(d),
    }
}

pub(super) fn uint_or(wire: Option<&protobuf::UInt32Value>, default: u32) -> u32 {
    wire.map_or(default, |v| v.value)
}

pub(super) fn port(value: u32, field: &str) -> Decoded<u16> {
    u16::try_from(value).or_else(|_| flaw(field, format!("{value} is no port (0 to 65535)")))
}

/// A status code within bounds.
pub(super) fn status(value: u32, bounds: std::ops::RangeInclusive<u16>, field: &str) -> Decoded<u16> {
    match u16::try_from(value) {
        Ok(status) if bounds.contains(&status) => Ok(status),
        _ => flaw(field, format!("{value} is not within {} to {}", bounds.start(), bounds.end())),
    }
}

/// 0–100, exact to a ten-thousandth: whole percents over a hundred, all else over a million.
pub(super) fn fraction(percent: f64) -> scalar::FractionalPercent {
    use scalar::fractional_percent::DenominatorType;
    let percent = if percent.is_finite() { percent.clamp(0.0, 100.0) } else { 0.0 };
    if percent.fract() == 0.0 {
        return scalar::FractionalPercent {
            numerator: percent as u32,
            denominator: DenominatorType::Hundred as i32,
        };
    }
    scalar::FractionalPercent {
        numerator: (percent * 10_000.0).round() as u32,
        denominator: DenominatorType::Million as i32,
    }
}

pub(super) fn percent_of_fraction(wire: &scalar::FractionalPercent) -> Decoded<f64> {
    use scalar::fractional_percent::DenominatorType;
    let of = match DenominatorType::try_from(wire.denominator) {
        Ok(DenominatorType::Hundred) => 100.0,
        Ok(DenominatorType::TenThousand) => 10_000.0,
        Ok(DenominatorType::Million) => 1_000_000.0,
        Err(_) => return flaw("denominator", format!("{} is unknown", wire.denominator)),
    };
    // Envoy takes more than the whole as the whole.
    Ok((f64::from(wire.numerator) * 100.0 / of).min(100.0))
}

pub(super) fn percent(wire: &scalar::Percent) -> Decoded<f64> {
    if (0.0..=100.0).contains(&wire.value) {
        Ok(wire.value)
    } else {
        flaw("value", format!("{} is not within 0 to 100", wire.value))
    }
}
