//! `Cluster`: discovery, balancing, limits, ejection, TLS, protocol.

use std::time::Duration;

use outrigger_model::cluster::{Cluster, Discovery, Keepalive, Limits, RetryBudget, UpstreamProtocol};
use outrigger_model::endpoint::{EndpointSet, ZoneAware};

use super::extension::{HTTP_OPTIONS, is, unpack};
use super::flaw::{Decoded, Under, flaw};
use super::value::{duration_at, duration_or, percent, uint_or};
use super::{balance, breaker, check, dns, endpoint, left_out, metadata, note, outlier, subsets, tls};
use crate::kind::ClientKind;
use crate::wire::cluster::circuit_breakers::{Thresholds, thresholds};
use crate::wire::cluster::cluster::{
    ClusterDiscoveryType, CommonLbConfig, DiscoveryType, EdsClusterConfig, LbConfig, LbPolicy,
    common_lb_config::{self, LocalityConfigSpecifier},
};
use crate::wire::cluster::{self, CircuitBreakers, UpstreamConnectionOptions};
use crate::wire::core::{Http1ProtocolOptions, Http2ProtocolOptions, TcpKeepalive};
use crate::wire::protobuf::{UInt32Value, UInt64Value, Value, value::Kind};
use crate::wire::upstream_http::{HttpProtocolOptions, http_protocol_options as options};
use crate::wire::{self, ads, any, scalar, uint};

pub(super) fn encode(model: &Cluster, kind: ClientKind) -> cluster::Cluster {
    let foreign = kind != ClientKind::Outrigger;
    let original = model.discovery == Discovery::OriginalDestination;
    let mut wire = cluster::Cluster {
        name: model.name.clone(),
        connect_timeout: Some(wire::duration(match model.connect_timeout {
            // Envoy refuses zero.
            Duration::ZERO if foreign => Duration::from_secs(10),
            timeout => timeout,
        })),
        circuit_breakers: Some(encode_limits(&model.limits)),
        metadata: metadata::ours(encode_ours(model, foreign)),
        lb_subset_config: model.subsets.as_ref().map(|subsets| subsets::encode(subsets)),
        ..Default::default()
    };
    balance::encode(model, kind, &mut wire);
    let of_type = |t: DiscoveryType| Some(ClusterDiscoveryType::Type(t as i32));
    match &model.discovery {
        Discovery::Eds { service_name } => {
            wire.cluster_discovery_type = of_type(DiscoveryType::Eds);
            wire.eds_cluster_config = Some(EdsClusterConfig {
                eds_config: Some(ads()),
                service_name: service_name.clone().unwrap_or_default(),
            });
        }
        Discovery::Static(set) => {
            wire.cluster_discovery_type = of_type(DiscoveryType::Static);
            let mut assignment = endpoint::encode(set, kind);
            if foreign && assignment.cluster_name.is_empty() {
                assignment.cluster_name.clone_from(&model.name);
            }
            wire.load_assignment = Some(assignment);
        }
        Discovery::Dns(names) => dns::encode(names, kind, &mut wire),
        Discovery::OriginalDestination => {
            wire.cluster_discovery_type = of_type(DiscoveryType::OriginalDst);
            if foreign {
                wire.lb_policy = LbPolicy::ClusterProvided as i32;
                (wire.lb_config, wire.load_balancing_policy) = (None, None);
            }
        }
    }
    wire.outlier_detection = model.outlier.as_ref().map(|o| outlier::encode(o, foreign));
    if kind == ClientKind::Grpc {
        wire.transport_socket = tls::encode_for_grpc(&model.tls);
        return wire;
    }
    wire.upstream_connection_options = model.keepalive.map(|keepalive| UpstreamConnectionOptions {
        tcp_keepalive: Some(encode_keepalive(keepalive)),
        ..Default::default()
    });
    wire.health_checks = model.health_check.iter().map(|check| check::encode(check)).collect();
    wire.transport_socket_matches = tls::encode_matches(model);
    wire.transport_socket = tls::encode_for_all(model, kind);
    wire.typed_extension_protocol_options =
        [(HTTP_OPTIONS.to_owned(), any(&encode_protocol(model)))].into_iter().collect();
    let min_health = model.outlier.as_ref().map_or(0, |outlier| outlier.min_health_percent);
    if (foreign && !original) || min_health > 0 || model.zone_aware.is_some() {
        wire.common_lb_config = Some(CommonLbConfig {
            // "Unhealthy takes none" holds also when most are, where a rule does not say otherwise.
            healthy_panic_threshold: Some(scalar::Percent { value: min_health.into() }),
            locality_config_specifier: encode_places(model),
            ..Default::default()
        });
    }
    wire
}

/// What Envoy's message cannot say.
/// Beside whatever the load balancer is, which the standard field would stand in place of.
const ORIGINAL_PORT: &str = "original_port";

fn decode_original_port(wire: &cluster::Cluster) -> Decoded<Option<u16>> {
    let port = |text: &str| text.parse().ok().filter(|port: &u16| *port > 0);
    if let Some(value) = metadata::our(wire.metadata.as_ref(), ORIGINAL_PORT) {
        let port = metadata::as_text(value).and_then(port);
        return match port {
            Some(port) => Ok(Some(port)),
            None => flaw("metadata.filter_metadata[outrigger].original_port", "must be the text of a port"),
        };
    }
    let Some(LbConfig::OriginalDstLbConfig(config)) = &wire.lb_config else { return Ok(None) };
    if config.use_http_header || config.metadata_key.is_some() {
        let reason = "a destination that requests name is not supported; it is the client's original one";
        return flaw("original_dst_lb_config", reason);
    }
    match config.upstream_port_override.as_ref().map(|number| u16::try_from(number.value)) {
        None => Ok(None),
        Some(Ok(port)) => Ok(Some(port).filter(|port| *port > 0)),
        Some(Err(_)) => flaw("original_dst_lb_config.upstream_port_override", "must be a port"),
    }
}

/// Why nobody can be called.
const TROUBLE: &str = "trouble";

fn trouble(model: &Cluster) -> Option<&str> {
    match &model.discovery {
        Discovery::Static(set) => set.trouble.as_deref(),
        _ => None,
    }
}

const CAPACITY: &str = "capacity";

fn decode_capacity(wire: &cluster::Cluster) -> Decoded<Option<u32>> {
    let Some(value) = metadata::our(wire.metadata.as_ref(), CAPACITY) else { return Ok(None) };
    match value.kind {
        Some(Kind::NumberValue(number)) if (1.0..=f64::from(u32::MAX)).contains(&number) => {
            Ok(Some(number as u32))
        }
        _ => flaw("metadata.filter_metadata[outrigger].capacity", "must be a number of at least 1"),
    }
}

/// The panic threshold, as far as it is said: Envoy's own default holds for nobody here.
fn decode_panic(wire: &cluster::Cluster) -> Option<u32> {
    let common = wire.common_lb_config.as_ref()?;
    note!(
        common,
        update_merge_window,
        ignore_new_hosts_until_first_hc,
        close_connections_on_host_set_change,
        override_host_status,
        consistent_hashing_lb_config,
    );
    common.healthy_panic_threshold.as_ref().map(|percent| percent.value.clamp(0.0, 100.0).ceil() as u32)
}

fn encode_places(model: &Cluster) -> Option<LocalityConfigSpecifier> {
    use LocalityConfigSpecifier::{LocalityWeightedLbConfig, ZoneAwareLbConfig};
    let Some(zones) = &model.zone_aware else {
        // Without it an Envoy goes by the endpoints alone.
        return model.place_weights.then(|| LocalityWeightedLbConfig(Default::default()));
    };
    Some(ZoneAwareLbConfig(common_lb_config::ZoneAwareLbConfig {
        routing_enabled: Some(scalar::Percent { value: zones.percent.into() }),
        min_cluster_size: Some(UInt64Value { value: zones.min_endpoints.into() }),
        fail_traffic_on_panic: zones.fail_below.is_some(),
    }))
}

fn decode_zones(wire: &cluster::Cluster) -> Decoded<Option<ZoneAware>> {
    let common = wire.common_lb_config.as_ref().and_then(|common| common.locality_config_specifier.as_ref());
    let Some(LocalityConfigSpecifier::ZoneAwareLbConfig(zones)) = common else { return Ok(None) };
    let least = zones.min_cluster_size.as_ref();
    balance::zone_aware(zones.routing_enabled.as_ref(), least, zones.fail_traffic_on_panic)
        .under("common_lb_config.zone_aware_lb_config")
        .map(Some)
}

fn encode_ours(model: &Cluster, foreign: bool) -> impl Iterator<Item = (String, Value)> {
    let origin = model.origin.as_ref().map(|origin| ("origin".to_owned(), metadata::origin_value(origin)));
    // Nobody else has it.
    let ring = balance::encode_ours(model.balance).filter(|_| !foreign);
    origin
        .into_iter()
        .chain(model.breaker.as_ref().map(|breaker| ("breaker".to_owned(), breaker::encode(breaker))))
        .chain(ring.map(|ring| (balance::RING.to_owned(), ring)))
        .chain(trouble(model).map(|why| (TROUBLE.to_owned(), metadata::text(why))))
        .chain(model.capacity.map(|capacity| (CAPACITY.to_owned(), metadata::number(capacity.into()))))
        .chain(model.original_port.map(|port| (ORIGINAL_PORT.to_owned(), metadata::text(&port.to_string()))))
}

fn encode_limits(limits: &Limits) -> CircuitBreakers {
    CircuitBreakers {
        thresholds: vec![Thresholds {
            max_connections: uint(limits.max_connections),
            max_pending_requests: uint(limits.max_pending),
            max_requests: uint(limits.max_requests),
            max_retries: uint(limits.max_retries),
            retry_budget: limits.retry_budget.map(|budget| thresholds::RetryBudget {
                budget_percent: Some(scalar::Percent { value: budget.percent }),
                min_retry_concurrency: uint(budget.min_concurrency),
                ..Default::default()
            }),
            ..Default::default()
        }],
        ..Default::default()
    }
}

fn encode_keepalive(keepalive: Keepalive) -> TcpKeepalive {
    TcpKeepalive {
        keepalive_probes: keepalive.probes.and_then(uint),
        keepalive_time: keepalive.time.and_then(uint),
        keepalive_interval: keepalive.interval.and_then(uint),
    }
}

/// Where a control plane says nothing but that there are probes, they are the proxy's own.
fn decode_keepalive(wire: &UpstreamConnectionOptions) -> Option<Keepalive> {
    note!(wire, set_local_interface_name_on_upstream_connections, happy_eyeballs_config);
    let wire = wire.tcp_keepalive.as_ref()?;
    let said = |field: &Option<UInt32Value>| {
        let number = field.as_ref()?.value;
        if number == 0 {
            left_out("upstream_connection_options.tcp_keepalive: 0; the proxy's own number is used");
        }
        Some(number).filter(|number| *number > 0)
    };
    Some(Keepalive {
        probes: said(&wire.keepalive_probes),
        time: said(&wire.keepalive_time),
        interval: said(&wire.keepalive_interval),
    })
}

/// HTTP/2 can count no more (RFC 9113, section 5.1.1).
const MOST_STREAMS: u32 = i32::MAX as u32;

fn encode_protocol(model: &Cluster) -> HttpProtocolOptions {
    use options::{UpstreamProtocolOptions as U, explicit_http_config::ProtocolConfig as P};
    let explicit =
        |config| U::ExplicitHttpConfig(options::ExplicitHttpConfig { protocol_config: Some(config) });
    let http2 = Http2ProtocolOptions {
        max_concurrent_streams: match model.max_streams_per_connection.min(MOST_STREAMS) {
            0 => None,
            n => uint(n),
        },
        ..Default::default()
    };
    HttpProtocolOptions {
        common_http_protocol_options: Some(wire::core::HttpProtocolOptions {
            idle_timeout: Some(wire::duration(model.idle_timeout)),
            max_requests_per_connection: match model.max_requests_per_connection {
                0 => None,
                n => uint(n),
            },
            max_connection_duration: model.max_connection_duration.map(wire::duration),
            max_stream_duration: model.max_stream_duration.map(wire::duration),
            ..Default::default()
        }),
        upstream_protocol_options: Some(match model.protocol {
            UpstreamProtocol::Http1 => explicit(P::HttpProtocolOptions(Http1ProtocolOptions::default())),
            UpstreamProtocol::Http2 => explicit(P::Http2ProtocolOptions(http2)),
            UpstreamProtocol::Follow => U::UseDownstreamProtocolConfig(options::UseDownstreamHttpConfig {
                http_protocol_options: Some(Http1ProtocolOptions::default()),
                http2_protocol_options: Some(http2),
                ..Default::default()
            }),
        }),
        ..Default::default()
    }
}

pub(super) fn decode(wire: &cluster::Cluster) -> Decoded<Cluster> {
    note!(
        wire,
        filters,
        upstream_bind_config,
        per_connection_buffer_limit_bytes,
        preconnect_policy,
        close_connections_on_host_health_failure,
        connection_pool_per_downstream_connection,
        protocol_selection,
        ignore_health_on_host_removal,
        queuing_policies,
        upstream_http_protocol_options,
        upstream_config,
        track_timeout_budgets,
        lrs_server,
    );
    if wire.name.is_empty() {
        return flaw("name", "must not be empty");
    }
    if wire.transport_socket_matcher.is_some() {
        return flaw("transport_socket_matcher", "is not supported; use transport_socket_matches");
    }
    let http = decode_protocol(wire)?;
    let balancing = balance::decode(wire)?;
    let min_health = decode_panic(wire);
    if wire.outlier_detection.is_none() && min_health.is_some_and(|percent| percent > 0) {
        left_out("common_lb_config.healthy_panic_threshold without outlier_detection");
    }
    Ok(Cluster {
        name: wire.name.clone(),
        discovery: decode_discovery(wire)?,
        original_port: decode_original_port(wire)?,
        balance: balancing.balance,
        load_reports: balancing.load_reports.map(Box::new),
        capacity: decode_capacity(wire)?,
        subsets: wire
            .lb_subset_config
            .as_ref()
            .map(subsets::decode)
            .transpose()
            .under("lb_subset_config")?
            .map(Box::new),
        place_weights: false,
        zone_aware: match balancing.zone_aware {
            Some(zones) => Some(zones),
            None => decode_zones(wire)?,
        }
        .map(|zones| ZoneAware {
            fail_below: zones.fail_below.map(|usual| min_health.unwrap_or(usual)),
            ..zones
        }),
        warmup: balancing.warmup,
        connect_timeout: duration_or(
            wire.connect_timeout.as_ref(),
            Duration::from_secs(5),
            "connect_timeout",
        )?,
        limits: decode_limits(wire.circuit_breakers.as_ref()).under("circuit_breakers")?,
        outlier: wire
            .outlier_detection
            .as_ref()
            .map(|detection| outlier::decode(detection, min_health))
            .transpose()
            .under("outlier_detection")?,
        breaker: breaker::decode(wire.metadata.as_ref())?.map(Box::new),
        health_check: check::decode(&wire.health_checks)?,
        tls: tls::decode_cluster(&wire.transport_socket_matches, wire.transport_socket.as_ref())?,
        keepalive: wire.upstream_connection_options.as_ref().and_then(decode_keepalive),
        protocol: http.protocol,
        idle_timeout: http.idle_timeout,
        max_requests_per_connection: http.max_requests,
        max_streams_per_connection: http.max_streams,
        max_connection_duration: http.max_age,
        max_stream_duration: http.max_duration,
        origin: metadata::decode_origin(wire.metadata.as_ref())?,
    })
}

fn decode_discovery(wire: &cluster::Cluster) -> Decoded<Discovery> {
    let given = match &wire.cluster_discovery_type {
        Some(ClusterDiscoveryType::Type(t)) => DiscoveryType::try_from(*t),
        Some(ClusterDiscoveryType::ClusterType(custom)) => {
            return dns::decode_extension(wire, custom).under("cluster_type");
        }
        None => Ok(DiscoveryType::Static),
    };
    match given {
        Ok(DiscoveryType::Eds) => {
            let Some(eds) = &wire.eds_cluster_config else {
                return flaw("eds_cluster_config", "is required for EDS");
            };
            let service_name = (!eds.service_name.is_empty()).then(|| eds.service_name.clone());
            Ok(Discovery::Eds { service_name })
        }
        Ok(DiscoveryType::Static) => {
            let Some(assignment) = &wire.load_assignment else {
                return flaw("load_assignment", "is required for STATIC");
            };
            let why = metadata::our(wire.metadata.as_ref(), TROUBLE).and_then(metadata::as_text);
            let set = endpoint::decode(assignment).under("load_assignment")?;
            Ok(Discovery::Static(EndpointSet { trouble: why.map(str::to_owned), ..set }))
        }
        Ok(DiscoveryType::OriginalDst) => {
            if wire.load_assignment.is_some() {
                return flaw("load_assignment", "must not be given for ORIGINAL_DST");
            }
            Ok(Discovery::OriginalDestination)
        }
        Ok(DiscoveryType::StrictDns) => dns::decode(wire, false),
        Ok(DiscoveryType::LogicalDns) => dns::decode(wire, true),
        Err(_) => flaw("type", "is unknown"),
    }
}

fn decode_limits(wire: Option<&CircuitBreakers>) -> Decoded<Limits> {
    let default_priority = wire.and_then(|w| w.thresholds.iter().enumerate().find(|(_, t)| t.priority == 0));
    let empty = Thresholds::default();
    if let Some(wire) = wire {
        note!(wire, per_host_thresholds);
    }
    let (i, t) = default_priority.unwrap_or((0, &empty));
    // What is absent has Envoy's defaults.
    Ok(Limits {
        max_connections: uint_or(t.max_connections.as_ref(), 1024),
        max_pending: uint_or(t.max_pending_requests.as_ref(), 1024),
        max_requests: uint_or(t.max_requests.as_ref(), 1024),
        max_retries: uint_or(t.max_retries.as_ref(), 3),
        retry_budget: t
            .retry_budget
            .as_ref()
            .map(decode_budget)
            .transpose()
            .under(format_args!("thresholds[{i}].retry_budget"))?,
    })
}

fn decode_budget(wire: &thresholds::RetryBudget) -> Decoded<RetryBudget> {
    let default = RetryBudget::default();
    Ok(RetryBudget {
        percent: wire.budget_percent.as_ref().map_or(Ok(default.percent), percent).under("budget_percent")?,
        min_concurrency: uint_or(wire.min_retry_concurrency.as_ref(), default.min_concurrency),
    })
}

struct Protocol {
    protocol: UpstreamProtocol,
    idle_timeout: Duration,
    max_requests: u32,
    max_streams: u32,
    max_age: Option<Duration>,
    max_duration: Option<Duration>,
}

#[allow(deprecated)] // the fields that HttpProtocolOptions replaced are still sent
fn decode_protocol(wire: &cluster::Cluster) -> Decoded<Protocol> {
    use options::{UpstreamProtocolOptions as U, explicit_http_config::ProtocolConfig as P};
    let field = format!("typed_extension_protocol_options[{HTTP_OPTIONS}]");
    let packed = wire.typed_extension_protocol_options.get(HTTP_OPTIONS);
    let http: Option<HttpProtocolOptions> = match packed {
        Some(config) if is::<HttpProtocolOptions>(config) => Some(unpack(config).under(&field)?),
        Some(config) => return flaw(&field, format!("{} is not HttpProtocolOptions", config.type_url)),
        None => None,
    };
    let protocol = match http.as_ref().and_then(|h| h.upstream_protocol_options.as_ref()) {
        Some(U::UseDownstreamProtocolConfig(_) | U::AutoConfig(_)) => UpstreamProtocol::Follow,
        Some(U::ExplicitHttpConfig(explicit)) => match &explicit.protocol_config {
            Some(P::HttpProtocolOptions(_)) => UpstreamProtocol::Http1,
            Some(P::Http2ProtocolOptions(_)) => UpstreamProtocol::Http2,
            Some(P::Http3ProtocolOptions(_)) => {
                return flaw(format_args!("{field}.explicit_http_config"), "HTTP/3 is not supported");
            }
            None => return flaw(format_args!("{field}.explicit_http_config"), "a protocol is required"),
        },
        None if wire.http2_protocol_options.is_some() => UpstreamProtocol::Http2,
        None => UpstreamProtocol::Http1,
    };
    let http2 = match http.as_ref().and_then(|h| h.upstream_protocol_options.as_ref()) {
        Some(U::UseDownstreamProtocolConfig(both)) => both.http2_protocol_options.as_ref(),
        Some(U::AutoConfig(both)) => both.http2_protocol_options.as_ref(),
        Some(U::ExplicitHttpConfig(options::ExplicitHttpConfig {
            protocol_config: Some(P::Http2ProtocolOptions(http2)),
        })) => Some(http2),
        Some(U::ExplicitHttpConfig(_)) => None,
        None => wire.http2_protocol_options.as_ref(),
    };
    let common = http
        .as_ref()
        .and_then(|h| h.common_http_protocol_options.as_ref())
        .or(wire.common_http_protocol_options.as_ref());
    if let Some(common) = common {
        note!(common, max_connection_duration_jitter, max_headers_count);
    }
    let idle = common.and_then(|c| c.idle_timeout.as_ref());
    let oldest = common.and_then(|c| c.max_connection_duration.as_ref());
    let longest = common.and_then(|c| c.max_stream_duration.as_ref());
    Ok(Protocol {
        protocol,
        idle_timeout: duration_or(idle, Duration::from_secs(3600), "idle_timeout").under(&field)?,
        max_requests: common
            .and_then(|c| c.max_requests_per_connection.as_ref())
            .or(wire.max_requests_per_connection.as_ref())
            .map_or(0, |v| v.value),
        max_streams: decode_streams(http2).under(&field)?,
        // As an Envoy's, 0 is off.
        max_age: duration_at(oldest, "max_connection_duration")
            .under(&field)?
            .filter(|oldest| !oldest.is_zero()),
        max_duration: duration_at(longest, "max_stream_duration")
            .under(&field)?
            .filter(|longest| !longest.is_zero()),
    })
}

fn decode_streams(http2: Option<&Http2ProtocolOptions>) -> Decoded<u32> {
    match http2.and_then(|http2| http2.max_concurrent_streams.as_ref()).map(|most| most.value) {
        None => Ok(0),
        Some(most @ 1..=MOST_STREAMS) => Ok(most),
        Some(most) => {
            let reason = format!("must be from 1 to {MOST_STREAMS}, not {most}");
            flaw("http2_protocol_options.max_concurrent_streams", reason)
        }
    }
}
