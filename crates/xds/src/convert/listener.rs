//! `Listener`: addresses, direction, chains; `api_listener` for gRPC.

use std::net::SocketAddr;
use std::time::Duration;

use outrigger_model::listener::{Direction, FilterChain, HttpConnection, Listener, Terminal};

use super::extension::{self, HTTP_INSPECTOR, TLS_INSPECTOR, is, unpack};
use super::flaw::{Decoded, Under, each, flaw};
use super::{address, chain, http, note};
use crate::kind::ClientKind;
use crate::wire::core::TrafficDirection;
use crate::wire::hcm::HttpConnectionManager;
use crate::wire::listener::{self, AdditionalAddress, ApiListener, ListenerFilter, listener_filter};
use crate::wire::protobuf::Any;
use crate::wire::{any, boolean, duration, http_inspector, tls_inspector};

/// How long Envoy waits for the first bytes before it takes the chain that needs none: a server may speak first.
const FIRST_BYTES: Duration = Duration::from_secs(1);

/// Envoy needs an address; a listener without one is not for it.
pub(super) fn encode(model: &Listener, kind: ClientKind) -> listener::Listener {
    if kind == ClientKind::Grpc {
        return encode_for_grpc(model);
    }
    let envoy = kind == ClientKind::Envoy;
    let looks = envoy && model.needs_first_bytes();
    let stat_prefix = model.name.as_str();
    listener::Listener {
        name: model.name.clone(),
        address: model.addresses.first().map(address::encode),
        additional_addresses: model
            .addresses
            .iter()
            .skip(1)
            .map(|a| AdditionalAddress { address: Some(address::encode(a)), ..Default::default() })
            .collect(),
        filter_chains: model.chains.iter().map(|c| chain::encode(c, stat_prefix, kind)).collect(),
        default_filter_chain: model.default_chain.as_ref().map(|c| chain::encode(c, stat_prefix, kind)),
        traffic_direction: match model.direction {
            Direction::Inbound => TrafficDirection::Inbound,
            Direction::Outbound => TrafficDirection::Outbound,
        } as i32,
        listener_filters: if looks { inspectors(model) } else { Vec::new() },
        listener_filters_timeout: looks.then(|| duration(FIRST_BYTES)),
        continue_on_listener_filters_timeout: looks,
        bind_to_port: if envoy { boolean(true) } else { None },
        ..Default::default()
    }
}

fn inspectors(model: &Listener) -> Vec<ListenerFilter> {
    let filter = |name: &str, config: Any| ListenerFilter {
        name: name.to_owned(),
        config_type: Some(listener_filter::ConfigType::TypedConfig(config)),
        ..Default::default()
    };
    let mut filters = vec![filter(TLS_INSPECTOR, any(&tls_inspector::TlsInspector::default()))];
    if model.chains.iter().any(|c| !c.matches.application_protocols.is_empty()) {
        filters.push(filter(HTTP_INSPECTOR, any(&http_inspector::HttpInspector {})));
    }
    filters
}

/// The first HTTP connection manager, without an address; connections that are no HTTP mean nothing to gRPC.
fn encode_for_grpc(model: &Listener) -> listener::Listener {
    let manager = model.chains.iter().chain(&model.default_chain).find_map(|c| match &c.terminal {
        Terminal::Http(http) => Some(any(&http::encode(http, &model.name, ClientKind::Grpc))),
        Terminal::Tcp(_) => None,
    });
    listener::Listener {
        name: model.name.clone(),
        api_listener: Some(ApiListener { api_listener: manager }),
        ..Default::default()
    }
}

pub(super) fn decode(wire: &listener::Listener) -> Decoded<Listener> {
    note!(
        wire,
        per_connection_buffer_limit_bytes,
        socket_options,
        transparent,
        freebind,
        connection_balance_config,
        access_log,
    );
    if wire.name.is_empty() {
        return flaw("name", "must not be empty");
    }
    for (field, given) in [
        ("fcds_config", wire.fcds_config.is_some()),
        ("filter_chain_matcher", wire.filter_chain_matcher.is_some()),
        ("udp_listener_config", wire.udp_listener_config.is_some()),
        ("listener_specifier", wire.listener_specifier.is_some()),
    ] {
        if given {
            return flaw(field, "is not supported");
        }
    }
    check_listener_filters(&wire.listener_filters)?;
    let direction = match TrafficDirection::try_from(wire.traffic_direction) {
        Ok(TrafficDirection::Inbound) => Direction::Inbound,
        Ok(TrafficDirection::Outbound | TrafficDirection::Unspecified) => Direction::Outbound,
        Err(_) => return flaw("traffic_direction", format!("{} is unknown", wire.traffic_direction)),
    };
    if let Some(api) = &wire.api_listener {
        let http = decode_api(api).under("api_listener")?;
        return Ok(Listener {
            name: wire.name.clone(),
            direction,
            addresses: Vec::new(),
            chains: vec![plain_http(http)],
            default_chain: None,
        });
    }
    let mut addresses = Vec::with_capacity(1 + wire.additional_addresses.len());
    if wire.address.is_some() {
        addresses.push(address::decode(wire.address.as_ref()).under("address")?);
    }
    addresses.extend(each(&wire.additional_addresses, "additional_addresses", |a| {
        address::decode::<SocketAddr>(a.address.as_ref()).under("address")
    })?);
    let chains = each(&wire.filter_chains, "filter_chains", chain::decode)?;
    check_matches(&chains)?;
    let default_chain =
        wire.default_filter_chain.as_ref().map(chain::decode).transpose().under("default_filter_chain")?;
    if chains.is_empty() && default_chain.is_none() {
        return flaw("filter_chains", "must not be empty without a default_filter_chain");
    }
    Ok(Listener { name: wire.name.clone(), direction, addresses, chains, default_chain })
}

/// Two chains that take the same connections: which one did the author mean?
fn check_matches(chains: &[FilterChain]) -> Decoded<()> {
    for (i, chain) in chains.iter().enumerate() {
        if let Some(j) = chains[..i].iter().position(|earlier| earlier.matches == chain.matches) {
            return flaw(
                format_args!("filter_chains[{i}].filter_chain_match"),
                format!("is the same as that of filter_chains[{j}]"),
            );
        }
    }
    Ok(())
}

fn check_listener_filters(filters: &[ListenerFilter]) -> Decoded<()> {
    for (i, filter) in filters.iter().enumerate() {
        if !extension::is_meaningless(&filter.name) {
            let config = match &filter.config_type {
                Some(listener_filter::ConfigType::TypedConfig(config)) => Some(config),
                _ => None,
            };
            return extension::unknown("listener filter", &filter.name, config)
                .under(format_args!("listener_filters[{i}]"));
        }
    }
    Ok(())
}

fn decode_api(wire: &ApiListener) -> Decoded<HttpConnection> {
    match &wire.api_listener {
        Some(config) if is::<HttpConnectionManager>(config) => {
            let manager: HttpConnectionManager = unpack(config).under("api_listener")?;
            http::decode(&manager, None).under("api_listener")
        }
        _ => flaw("api_listener", "must be an HTTP connection manager"),
    }
}

fn plain_http(http: HttpConnection) -> FilterChain {
    FilterChain::new("", Terminal::Http(Box::new(http)))
}
