//! Load-balancing policies: `lb_policy` with its settings, or a list of typed policies of which the first known one counts.

use outrigger_model::cluster::{
    Balance, LEAST_RING, LeastOf, LoadReports, MAX_CHOICES, MAX_MAGLEV, MAX_RING, USUAL_RING, Warmup,
    is_prime,
};
use outrigger_model::endpoint::ZoneAware;

use super::flaw::{Decoded, Under, flaw};
use super::value::{self, percent};
use super::{left_out, metadata};
use crate::kind::ClientKind;
use crate::wire::cluster::Cluster;
use crate::wire::cluster::cluster::ring_hash_lb_config::HashFunction;
use crate::wire::cluster::cluster::{
    LbConfig, LbPolicy, LeastRequestLbConfig, MaglevLbConfig, RingHashLbConfig, RoundRobinLbConfig,
    SlowStartConfig,
};
use crate::wire::core::RuntimeDouble;
use crate::wire::protobuf::{Duration, UInt32Value, UInt64Value, Value};
use crate::wire::{duration, scalar, uint};

mod typed;

/// Under which an Envoy's runtime may say otherwise; it must have a name.
const AGGRESSION: &str = "outrigger.warmup_aggression";
const BIAS: &str = "outrigger.active_request_bias";
/// A bias that means "not in the least" has no meaning beyond.
const MOST_BIAS: f64 = 1000.0;
/// Of our own metadata, beside `RING_HASH`: which ring it is. Absent: an Envoy's.
pub(super) const RING: &str = "ring";
const STEADY: &str = "steady";
const DEFAULT_MAGLEV: u64 = 65_537;

/// Sets the policy.
pub(super) fn encode(model: &outrigger_model::cluster::Cluster, kind: ClientKind, wire: &mut Cluster) {
    let slow_start = model.warmup.filter(|_| kind != ClientKind::Grpc).map(|warmup| SlowStartConfig {
        slow_start_window: Some(duration(warmup.window)),
        aggression: aggression(warmup),
        min_weight_percent: minimum(warmup),
    });
    let balance = model.balance;
    // gRPC knows a ring, but no table (gRFC A42); both keep keys where they are.
    let balance = match (kind, balance) {
        (ClientKind::Grpc, Balance::Maglev { .. }) => {
            Balance::RingHash { minimum: LEAST_RING, maximum: MAX_RING }
        }
        // Who has no steady ring; ours are told of it beside this.
        (_, Balance::SteadyRing) => Balance::RingHash { minimum: LEAST_RING, maximum: USUAL_RING },
        (
            ClientKind::Grpc,
            Balance::LeastRequest
            | Balance::LeastOf(_)
            | Balance::Random
            | Balance::PeakEwma { .. }
            | Balance::Reported,
        )
        | (_, Balance::Reported) => Balance::RoundRobin,
        // Beside the typed policy, for who does not know that.
        (_, Balance::PeakEwma { .. }) => Balance::LeastRequest,
        (_, balance) => balance,
    };
    let number = |value: u64| Some(UInt64Value { value });
    let (policy, config) = match balance {
        Balance::RoundRobin => {
            let config =
                |slow_start_config| LbConfig::RoundRobinLbConfig(RoundRobinLbConfig { slow_start_config });
            (LbPolicy::RoundRobin, slow_start.map(|slow| config(Some(slow))))
        }
        Balance::LeastRequest | Balance::LeastOf(_) => {
            let of = match balance {
                Balance::LeastOf(of) => of,
                _ => LeastOf::default(),
            };
            let config = LeastRequestLbConfig {
                choice_count: of.choices.filter(|count| *count != 2).and_then(uint),
                active_request_bias: runtime_bias(of.bias),
                slow_start_config: slow_start,
            };
            let says = config != LeastRequestLbConfig::default();
            (LbPolicy::LeastRequest, says.then_some(LbConfig::LeastRequestLbConfig(config)))
        }
        Balance::Random => (LbPolicy::Random, None),
        Balance::RingHash { minimum, maximum } => {
            let config = RingHashLbConfig {
                minimum_ring_size: number(minimum),
                maximum_ring_size: number(maximum),
                hash_function: HashFunction::XxHash as i32,
            };
            (LbPolicy::RingHash, Some(LbConfig::RingHashLbConfig(config)))
        }
        Balance::Maglev { size } => {
            (LbPolicy::Maglev, Some(LbConfig::MaglevLbConfig(MaglevLbConfig { table_size: number(size) })))
        }
        // Said by the typed policy or by our metadata; above is what stands in for them.
        Balance::PeakEwma { .. } | Balance::Reported | Balance::SteadyRing => (LbPolicy::RoundRobin, None),
    };
    wire.load_balancing_policy = typed::encode(model, kind);
    wire.lb_policy = policy as i32;
    wire.lb_config = config;
}

/// What of the balance our own metadata say.
pub(super) fn encode_ours(balance: Balance) -> Option<Value> {
    (balance == Balance::SteadyRing).then(|| metadata::text(STEADY))
}

fn aggression(warmup: Warmup) -> Option<RuntimeDouble> {
    (warmup.aggression != 1.0)
        .then(|| RuntimeDouble { default_value: warmup.aggression, runtime_key: AGGRESSION.to_owned() })
}

fn minimum(warmup: Warmup) -> Option<scalar::Percent> {
    Some(scalar::Percent { value: warmup.minimum_percent })
}

fn runtime_bias(thousandths: u32) -> Option<RuntimeDouble> {
    (thousandths != 1000).then(|| typed::double(f64::from(thousandths) / 1000.0))
}

/// How a cluster balances.
#[derive(Debug, PartialEq)]
pub(super) struct Balancing {
    pub(super) balance: Balance,
    pub(super) warmup: Option<Warmup>,
    pub(super) load_reports: Option<LoadReports>,
    pub(super) zone_aware: Option<ZoneAware>,
}

impl From<Balance> for Balancing {
    fn from(balance: Balance) -> Self {
        Self { balance, warmup: None, load_reports: None, zone_aware: None }
    }
}

pub(super) fn decode(wire: &Cluster) -> Decoded<Balancing> {
    let typed = wire.load_balancing_policy.as_ref().map(typed::decode).transpose();
    if let Some(found) = typed.under("load_balancing_policy")?.flatten() {
        return Ok(match found.balance {
            // Its message has no place for that.
            Balance::PeakEwma { .. } => Balancing { warmup: decode_warmup(wire)?, ..found },
            _ => found,
        });
    }
    let balance = of_steady_ring(wire, decode_policy(wire)?)?;
    Ok(Balancing { warmup: decode_warmup(wire)?, ..balance.into() })
}

/// The ring that our own metadata mean.
fn of_steady_ring(wire: &Cluster, balance: Balance) -> Decoded<Balance> {
    match (metadata::our(wire.metadata.as_ref(), RING), balance) {
        (None, balance) => Ok(balance),
        (Some(said), Balance::RingHash { .. }) if metadata::as_text(said) == Some(STEADY) => {
            Ok(Balance::SteadyRing)
        }
        (Some(_), _) => flaw(
            format_args!("metadata.filter_metadata[outrigger].{RING}"),
            format!("can only be {STEADY}, of a cluster with the lb_policy RING_HASH"),
        ),
    }
}

fn decode_policy(wire: &Cluster) -> Decoded<Balance> {
    match LbPolicy::try_from(wire.lb_policy) {
        Ok(LbPolicy::RoundRobin) => Ok(Balance::RoundRobin),
        Ok(LbPolicy::Random) => Ok(Balance::Random),
        Ok(LbPolicy::LeastRequest) => match &wire.lb_config {
            Some(LbConfig::LeastRequestLbConfig(config)) => {
                let bias = bias(config.active_request_bias.as_ref()).under("least_request_lb_config")?;
                choices(config.choice_count.as_ref(), bias).under("least_request_lb_config")
            }
            _ => Ok(Balance::LeastRequest),
        },
        Ok(LbPolicy::ClusterProvided) => Ok(Balance::LeastRequest),
        Ok(LbPolicy::RingHash) => {
            let config = match &wire.lb_config {
                Some(LbConfig::RingHashLbConfig(config)) => *config,
                _ => RingHashLbConfig::default(),
            };
            if config.hash_function != HashFunction::XxHash as i32 {
                left_out("ring_hash_lb_config.hash_function other than XX_HASH");
            }
            ring(config.minimum_ring_size, config.maximum_ring_size).under("ring_hash_lb_config")
        }
        Ok(LbPolicy::Maglev) => {
            let size = match &wire.lb_config {
                Some(LbConfig::MaglevLbConfig(config)) => config.table_size,
                _ => None,
            };
            table(size).under("maglev_lb_config")
        }
        _ => {
            left_out("lb_policy other than ROUND_ROBIN, LEAST_REQUEST, RANDOM, RING_HASH and MAGLEV");
            Ok(Balance::LeastRequest)
        }
    }
}

/// An Envoy's panic threshold, where a cluster says no other.
const PANIC: u32 = 50;

/// Of either message that there is for it.
pub(super) fn zone_aware(
    enabled: Option<&scalar::Percent>,
    least: Option<&UInt64Value>,
    fails_in_panic: bool,
) -> Decoded<ZoneAware> {
    let default = ZoneAware::default();
    let percent = enabled.map_or(Ok(f64::from(default.percent)), percent).under("routing_enabled")?;
    let least = least.map(|least| u32::try_from(least.value).unwrap_or(u32::MAX));
    // An Envoy rounds, too.
    Ok(ZoneAware {
        min_endpoints: least.unwrap_or(default.min_endpoints),
        percent: percent.round() as u32,
        fail_below: fails_in_panic.then_some(PANIC),
    })
}

fn decode_warmup(wire: &Cluster) -> Decoded<Option<Warmup>> {
    let (slow, field) = match &wire.lb_config {
        Some(LbConfig::RoundRobinLbConfig(config)) => (&config.slow_start_config, "round_robin_lb_config"),
        Some(LbConfig::LeastRequestLbConfig(config)) => {
            (&config.slow_start_config, "least_request_lb_config")
        }
        _ => return Ok(None),
    };
    let decode = |slow: &SlowStartConfig| {
        slow_start(
            slow.slow_start_window.as_ref(),
            slow.min_weight_percent.as_ref(),
            slow.aggression.as_ref(),
        )
    };
    slow.as_ref().map(decode).transpose().under(format_args!("{field}.slow_start_config"))
}

fn slow_start(
    window: Option<&Duration>,
    minimum: Option<&scalar::Percent>,
    aggression: Option<&RuntimeDouble>,
) -> Decoded<Warmup> {
    let Some(window) = window else { return flaw("slow_start_window", "is required") };
    let minimum_percent = minimum.map_or(Ok(10.0), percent).under("min_weight_percent")?;
    let aggression = aggression.map_or(1.0, |aggression| aggression.default_value);
    if !(aggression > 0.0 && aggression.is_finite()) {
        return flaw("aggression.default_value", format!("must be greater than 0, not {aggression}"));
    }
    let window = value::duration(window).under("slow_start_window")?;
    Ok(Warmup { window, minimum_percent, aggression })
}

/// In thousandths.
fn bias(wire: Option<&RuntimeDouble>) -> Decoded<u32> {
    let bias = wire.map_or(1.0, |bias| bias.default_value);
    if !(bias >= 0.0 && bias.is_finite()) {
        return flaw("active_request_bias.default_value", format!("must be at least 0, not {bias}"));
    }
    Ok((bias.min(MOST_BIAS) * 1000.0).round() as u32)
}

fn choices(count: Option<&UInt32Value>, bias: u32) -> Decoded<Balance> {
    let count = count.map_or(2, |count| count.value);
    if count < 2 {
        return flaw("choice_count", format!("must be at least 2, not {count}"));
    }
    if count > MAX_CHOICES {
        left_out("choice_count above 1024");
    }
    let of = LeastOf { choices: Some(count.min(MAX_CHOICES)), bias };
    Ok(if of == LeastOf::default() { Balance::LeastRequest } else { Balance::LeastOf(of) })
}

fn ring(minimum: Option<UInt64Value>, maximum: Option<UInt64Value>) -> Decoded<Balance> {
    let maximum = maximum.map_or(MAX_RING, |value| value.value);
    // The default gives way to a lower maximum, as in Envoy.
    let minimum = minimum.map_or(LEAST_RING.min(maximum), |value| value.value);
    if !(1..=MAX_RING).contains(&maximum) {
        return flaw("maximum_ring_size", format!("{maximum} is not in 1..={MAX_RING}"));
    }
    if !(1..=maximum).contains(&minimum) {
        return flaw(
            "minimum_ring_size",
            format!("{minimum} is not in 1..={maximum}, the maximum_ring_size"),
        );
    }
    Ok(Balance::RingHash { minimum, maximum })
}

fn table(size: Option<UInt64Value>) -> Decoded<Balance> {
    let size = size.map_or(DEFAULT_MAGLEV, |value| value.value);
    if size > MAX_MAGLEV || !is_prime(size) {
        return flaw("table_size", format!("{size} is not a prime up to {MAX_MAGLEV}"));
    }
    Ok(Balance::Maglev { size })
}
