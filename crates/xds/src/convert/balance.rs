//! Load-balancing policies: `lb_policy` with its settings, or a list of typed policies of which the first known one counts.

use outrigger_model::cluster::{Balance, MAX_MAGLEV, MAX_RING, Warmup, is_prime};

use super::extension::unpack;
use super::flaw::{Decoded, Under, flaw};
use super::value::{self, percent};
use super::{left_out, note};
use crate::kind::ClientKind;
use crate::wire::cluster::Cluster;
use crate::wire::cluster::cluster::ring_hash_lb_config::HashFunction;
use crate::wire::cluster::cluster::{
    LbConfig, LbPolicy, LeastRequestLbConfig, MaglevLbConfig, RingHashLbConfig, RoundRobinLbConfig,
    SlowStartConfig,
};
use crate::wire::core::RuntimeDouble;
use crate::wire::protobuf::{Any, UInt64Value};
use crate::wire::{duration, maglev, ring_hash, scalar};

/// Under which an Envoy's runtime may say otherwise; it must have a name.
const AGGRESSION: &str = "outrigger.warmup_aggression";
const DEFAULT_RING: u64 = 1024;
const DEFAULT_MAGLEV: u64 = 65_537;

/// Sets the policy.
pub(super) fn encode(model: &outrigger_model::cluster::Cluster, kind: ClientKind, wire: &mut Cluster) {
    let slow_start = model.warmup.filter(|_| kind != ClientKind::Grpc).map(|warmup| SlowStartConfig {
        slow_start_window: Some(duration(warmup.window)),
        aggression: (warmup.aggression != 1.0)
            .then(|| RuntimeDouble { default_value: warmup.aggression, runtime_key: AGGRESSION.to_owned() }),
        min_weight_percent: Some(scalar::Percent { value: warmup.minimum_percent }),
    });
    let balance = model.balance;
    // gRPC knows a ring, but no table (gRFC A42); both keep keys where they are.
    let balance = match (kind, balance) {
        (ClientKind::Grpc, Balance::Maglev { .. }) => {
            Balance::RingHash { minimum: DEFAULT_RING, maximum: MAX_RING }
        }
        (ClientKind::Grpc, Balance::LeastRequest | Balance::Random) => Balance::RoundRobin,
        (_, balance) => balance,
    };
    let number = |value: u64| Some(UInt64Value { value });
    let (policy, config) = match balance {
        Balance::RoundRobin => {
            let config =
                |slow_start_config| LbConfig::RoundRobinLbConfig(RoundRobinLbConfig { slow_start_config });
            (LbPolicy::RoundRobin, slow_start.map(|slow| config(Some(slow))))
        }
        Balance::LeastRequest => {
            let config = |slow_start_config| {
                LbConfig::LeastRequestLbConfig(LeastRequestLbConfig {
                    slow_start_config,
                    ..Default::default()
                })
            };
            (LbPolicy::LeastRequest, slow_start.map(|slow| config(Some(slow))))
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
    };
    wire.lb_policy = policy as i32;
    wire.lb_config = config;
}

pub(super) fn decode(wire: &Cluster) -> Decoded<Balance> {
    let typed = wire.load_balancing_policy.iter().flat_map(|p| &p.policies);
    for (i, policy) in typed.enumerate() {
        let config = policy.typed_extension_config.as_ref().and_then(|typed| typed.typed_config.as_ref());
        let field = format!("load_balancing_policy.policies[{i}]");
        if let Some(found) = config.map(decode_typed).transpose().under(field)?.flatten() {
            return Ok(found);
        }
    }
    match LbPolicy::try_from(wire.lb_policy) {
        Ok(LbPolicy::RoundRobin) => Ok(Balance::RoundRobin),
        Ok(LbPolicy::Random) => Ok(Balance::Random),
        Ok(LbPolicy::LeastRequest | LbPolicy::ClusterProvided) => Ok(Balance::LeastRequest),
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

pub(super) fn decode_warmup(wire: &Cluster) -> Decoded<Option<Warmup>> {
    let (slow, field) = match &wire.lb_config {
        Some(LbConfig::RoundRobinLbConfig(config)) => (&config.slow_start_config, "round_robin_lb_config"),
        Some(LbConfig::LeastRequestLbConfig(config)) => {
            note!(config, choice_count, active_request_bias);
            (&config.slow_start_config, "least_request_lb_config")
        }
        _ => return Ok(None),
    };
    slow.as_ref().map(decode_slow_start).transpose().under(format_args!("{field}.slow_start_config"))
}

fn decode_slow_start(wire: &SlowStartConfig) -> Decoded<Warmup> {
    let Some(window) = &wire.slow_start_window else { return flaw("slow_start_window", "is required") };
    let minimum = wire.min_weight_percent.as_ref().map_or(Ok(10.0), percent).under("min_weight_percent")?;
    let aggression = wire.aggression.as_ref().map_or(1.0, |aggression| aggression.default_value);
    if !(aggression > 0.0 && aggression.is_finite()) {
        return flaw("aggression.default_value", format!("must be greater than 0, not {aggression}"));
    }
    let window = value::duration(window).under("slow_start_window")?;
    Ok(Warmup { window, minimum_percent: minimum, aggression })
}

/// A policy that is known.
fn decode_typed(config: &Any) -> Decoded<Option<Balance>> {
    Ok(Some(match config.type_url.rsplit('.').next().unwrap_or_default() {
        "RoundRobin" => Balance::RoundRobin,
        "LeastRequest" => Balance::LeastRequest,
        "Random" => Balance::Random,
        "RingHash" => {
            let config: ring_hash::RingHash = unpack(config)?;
            note!(config, consistent_hashing_lb_config);
            ring(config.minimum_ring_size, config.maximum_ring_size)?
        }
        "Maglev" => {
            let config: maglev::Maglev = unpack(config)?;
            note!(config, consistent_hashing_lb_config);
            table(config.table_size)?
        }
        _ => return Ok(None),
    }))
}

fn ring(minimum: Option<UInt64Value>, maximum: Option<UInt64Value>) -> Decoded<Balance> {
    let maximum = maximum.map_or(MAX_RING, |value| value.value);
    // The default gives way to a lower maximum, as in Envoy.
    let minimum = minimum.map_or(DEFAULT_RING.min(maximum), |value| value.value);
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
