//! `load_balancing_policy`: a list of typed policies, of which the first known one counts.

use outrigger_model::cluster::{
    Balance, Cluster as Model, LONGEST_METRIC, LeastOf, LoadReports, MOST_METRICS, SHORTEST_UPDATE, Warmup,
};

use outrigger_model::endpoint::ZoneAware;

use super::super::extension::unpack;
use super::super::flaw::{Decoded, Under, flaw};
use super::super::value::duration_or;
use super::super::{left_out, note};
use super::{BIAS, Balancing, bias, choices, ring, slow_start, table};
use crate::kind::ClientKind;
use crate::wire::cluster::LoadBalancingPolicy;
use crate::wire::cluster::load_balancing_policy::Policy;
use crate::wire::common_balance::{LocalityLbConfig, SlowStartConfig, locality_lb_config as locality};
use crate::wire::core::{RuntimeDouble, TypedExtensionConfig};
use crate::wire::least_request::{LeastRequest, least_request::SelectionMethod};
use crate::wire::missing::PeakEwma;
use crate::wire::protobuf::{Any, FloatValue};
use crate::wire::{self, any, duration, maglev, random, reported, ring_hash, round_robin, wrr_locality};

/// Policies within policies: more are no policy of anybody.
const DEEPEST: usize = 3;

/// What only a typed policy can say; absent where `lb_policy` does.
pub(super) fn encode(model: &Model, kind: ClientKind) -> Option<LoadBalancingPolicy> {
    let slow = model.warmup.map(|warmup| SlowStartConfig {
        slow_start_window: Some(duration(warmup.window)),
        aggression: super::aggression(warmup),
        min_weight_percent: super::minimum(warmup),
    });
    let slow = slow.filter(|_| kind != ClientKind::Grpc);
    let by_place = model.place_weights && kind == ClientKind::Envoy;
    let places = by_place.then_some(LocalityLbConfig {
        locality_config_specifier: Some(locality::LocalityConfigSpecifier::LocalityWeightedLbConfig(
            locality::LocalityWeightedLbConfig {},
        )),
    });
    let least = |least: LeastOf| LeastRequest {
        active_request_bias: super::runtime_bias(least.bias),
        slow_start_config: slow.clone(),
        locality_lb_config: places,
        selection_method: SelectionMethod::FullScan as i32,
        ..Default::default()
    };
    Some(match (kind, model.balance) {
        (ClientKind::Grpc, Balance::Reported) => {
            let inner = list([of("client_side_weighted_round_robin", &weighted(model, None))]);
            let outer = wrr_locality::WrrLocality { endpoint_picking_policy: Some(inner) };
            list([of("wrr_locality", &outer)])
        }
        (ClientKind::Grpc, _) => return None,
        (_, Balance::LeastOf(of_all @ LeastOf { choices: None, .. })) => {
            list([of("least_request", &least(of_all))])
        }
        (_, Balance::Reported) => {
            let weighted = of("client_side_weighted_round_robin", &weighted(model, slow.clone()));
            // Who does not know it takes turns.
            let turns =
                round_robin::RoundRobin { slow_start_config: slow.clone(), locality_lb_config: places };
            let turns = of("round_robin", &turns);
            match by_place {
                true => {
                    let inner = list([weighted]);
                    let outer = wrr_locality::WrrLocality { endpoint_picking_policy: Some(inner) };
                    list([of("wrr_locality", &outer), turns])
                }
                false => list([weighted, turns]),
            }
        }
        (_, Balance::PeakEwma { decay, initial }) => {
            let peak = PeakEwma { decay_time: Some(duration(decay)), default_rtt: Some(duration(initial)) };
            // A contribution that an Envoy may be built without: the next best then.
            let least = LeastRequest {
                slow_start_config: slow.clone(),
                locality_lb_config: places,
                ..Default::default()
            };
            list([of("peak_ewma", &peak), of("least_request", &least)])
        }
        _ => return None,
    })
}

fn of<M: prost::Message + prost::Name>(name: &str, message: &M) -> Policy {
    let name = format!("envoy.load_balancing_policies.{name}");
    Policy { typed_extension_config: Some(TypedExtensionConfig { name, typed_config: Some(any(message)) }) }
}

fn list<const N: usize>(policies: [Policy; N]) -> LoadBalancingPolicy {
    LoadBalancingPolicy { policies: policies.into() }
}

fn weighted(model: &Model, slow: Option<SlowStartConfig>) -> reported::ClientSideWeightedRoundRobin {
    let reports = model.load_reports.as_deref().cloned().unwrap_or_default();
    reported::ClientSideWeightedRoundRobin {
        blackout_period: Some(duration(reports.blackout)),
        weight_expiration_period: Some(duration(reports.expiration)),
        weight_update_period: Some(duration(reports.update)),
        error_utilization_penalty: Some(FloatValue { value: reports.error_penalty as f32 }),
        metric_names_for_computing_utilization: reports.metrics,
        slow_start_config: slow,
        ..Default::default()
    }
}

pub(super) fn decode(wire: &LoadBalancingPolicy) -> Decoded<Option<Balancing>> {
    within(wire, 0)
}

fn within(wire: &LoadBalancingPolicy, depth: usize) -> Decoded<Option<Balancing>> {
    for (i, policy) in wire.policies.iter().enumerate() {
        let config = policy.typed_extension_config.as_ref().and_then(|typed| typed.typed_config.as_ref());
        let found = config.map(|config| decode_one(config, depth)).transpose();
        if let Some(found) = found.under(format_args!("policies[{i}]"))?.flatten() {
            return Ok(Some(found));
        }
    }
    Ok(None)
}

/// A policy that is known.
fn decode_one(config: &Any, depth: usize) -> Decoded<Option<Balancing>> {
    Ok(Some(match config.type_url.rsplit('.').next().unwrap_or_default() {
        "RoundRobin" => {
            let config: round_robin::RoundRobin = unpack(config)?;
            Balancing {
                warmup: warmup(config.slow_start_config.as_ref())?,
                zone_aware: zones(config.locality_lb_config)?,
                ..Balance::RoundRobin.into()
            }
        }
        "LeastRequest" => {
            let config: LeastRequest = unpack(config)?;
            Balancing {
                warmup: warmup(config.slow_start_config.as_ref())?,
                zone_aware: zones(config.locality_lb_config)?,
                ..least(&config)?.into()
            }
        }
        "Random" => {
            let config: random::Random = unpack(config)?;
            Balancing { zone_aware: zones(config.locality_lb_config)?, ..Balance::Random.into() }
        }
        "RingHash" => {
            let config: ring_hash::RingHash = unpack(config)?;
            note!(config, consistent_hashing_lb_config);
            ring(config.minimum_ring_size, config.maximum_ring_size)?.into()
        }
        "Maglev" => {
            let config: maglev::Maglev = unpack(config)?;
            note!(config, consistent_hashing_lb_config);
            table(config.table_size)?.into()
        }
        "PeakEwma" => {
            let config: PeakEwma = unpack(config)?;
            let Balance::PeakEwma { decay, initial } = Balance::PEAK_EWMA else { return Ok(None) };
            let decay = duration_or(config.decay_time.as_ref(), decay, "decay_time")?;
            let initial = duration_or(config.default_rtt.as_ref(), initial, "default_rtt")?;
            Balance::PeakEwma { decay, initial }.into()
        }
        "ClientSideWeightedRoundRobin" => {
            let config: reported::ClientSideWeightedRoundRobin = unpack(config)?;
            Balancing {
                warmup: warmup(config.slow_start_config.as_ref())?,
                load_reports: Some(reports(&config)?),
                ..Balance::Reported.into()
            }
        }
        "WrrLocality" if depth < DEEPEST => {
            let config: wrr_locality::WrrLocality = unpack(config)?;
            let Some(inner) = &config.endpoint_picking_policy else {
                return flaw("endpoint_picking_policy", "is required");
            };
            return within(inner, depth + 1).under("endpoint_picking_policy");
        }
        _ => return Ok(None),
    }))
}

fn least(config: &LeastRequest) -> Decoded<Balance> {
    #[allow(deprecated)] // what the selection method replaced is still sent
    let all = config.selection_method == SelectionMethod::FullScan as i32
        || config.enable_full_scan.is_some_and(|full| full.value);
    let bias = bias(config.active_request_bias.as_ref())?;
    Ok(match all {
        true => Balance::LeastOf(LeastOf { choices: None, bias }),
        false => choices(config.choice_count.as_ref(), bias)?,
    })
}

/// Weights of places are taken as they are sent.
fn zones(config: Option<LocalityLbConfig>) -> Decoded<Option<ZoneAware>> {
    let Some(locality::LocalityConfigSpecifier::ZoneAwareLbConfig(zones)) =
        config.and_then(|config| config.locality_config_specifier)
    else {
        return Ok(None);
    };
    note!(zones, force_locality_direct_routing, force_local_zone, locality_basis);
    let least = zones.min_cluster_size.as_ref();
    super::zone_aware(zones.routing_enabled.as_ref(), least, zones.fail_traffic_on_panic)
        .under("locality_lb_config.zone_aware_lb_config")
        .map(Some)
}

fn warmup(wire: Option<&SlowStartConfig>) -> Decoded<Option<Warmup>> {
    let decode = |slow: &SlowStartConfig| {
        slow_start(
            slow.slow_start_window.as_ref(),
            slow.min_weight_percent.as_ref(),
            slow.aggression.as_ref(),
        )
    };
    wire.map(decode).transpose().under("slow_start_config")
}

fn reports(wire: &reported::ClientSideWeightedRoundRobin) -> Decoded<LoadReports> {
    if wire.enable_oob_load_report.is_some_and(|enabled| enabled.value) {
        left_out("enable_oob_load_report; reports of responses are used");
    }
    let default = LoadReports::default();
    let penalty = wire.error_utilization_penalty.map_or(default.error_penalty, |value| value.value.into());
    if !(penalty >= 0.0 && f64::is_finite(penalty)) {
        return flaw("error_utilization_penalty", format!("must be at least 0, not {penalty}"));
    }
    let metrics = &wire.metric_names_for_computing_utilization;
    if metrics.len() > MOST_METRICS || metrics.iter().any(|name| name.len() > LONGEST_METRIC) {
        let reason = format!("at most {MOST_METRICS} metrics of {LONGEST_METRIC} characters are looked at");
        return flaw("metric_names_for_computing_utilization", reason);
    }
    note!(wire, oob_reporting_period);
    let time = |time: Option<&wire::protobuf::Duration>, default, field| duration_or(time, default, field);
    Ok(LoadReports {
        blackout: time(wire.blackout_period.as_ref(), default.blackout, "blackout_period")?,
        expiration: time(
            wire.weight_expiration_period.as_ref(),
            default.expiration,
            "weight_expiration_period",
        )?,
        update: time(wire.weight_update_period.as_ref(), default.update, "weight_update_period")?
            .max(SHORTEST_UPDATE),
        error_penalty: penalty,
        metrics: metrics.clone(),
    })
}

/// As an Envoy wants it, whose runtime may say otherwise.
pub(super) fn double(value: f64) -> RuntimeDouble {
    RuntimeDouble { default_value: value, runtime_key: BIAS.to_owned() }
}
