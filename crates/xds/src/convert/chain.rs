//! Filter chains: their match, their TLS, the policies of connections, and what happens then.

use std::time::Duration;

use outrigger_model::listener::{ChainMatch, FilterChain, TcpProxy, Terminal, TransportMatch};
use outrigger_model::policy::Rbac;
use outrigger_model::route::WeightedCluster;

use super::extension::{self, HTTP_MANAGER, NETWORK_RBAC, TCP_PROXY, is, unpack};
use super::flaw::{Decoded, Under, each, flaw};
use super::metadata::{decode_origin, origin_value, origins_value, our, ours};
use super::value::{duration_at, duration_or, port};
use super::{filters, forward, http, left_out, note, policy, tls};
use crate::kind::ClientKind;
use crate::wire::core::Metadata;
use crate::wire::hcm::HttpConnectionManager;
use crate::wire::listener::{self, Filter, FilterChainMatch, filter::ConfigType};
use crate::wire::protobuf::{Any, Value};
use crate::wire::tcp_proxy::{self, tcp_proxy as tcp};
use crate::wire::{self, any, network_rbac, uint};

/// The shortest life of a connection that Envoy's message takes.
const SHORTEST: Duration = Duration::from_millis(1);

/// Where the origins of the policies of connections ride: on the chain, for its RBAC messages have no metadata.
const CONNECTION_ORIGINS: &str = "network_rbac_origins";

pub(super) fn encode(chain: &FilterChain, stat_prefix: &str, kind: ClientKind) -> listener::FilterChain {
    let filter = |name: &str, config: Any| Filter {
        name: name.to_owned(),
        config_type: Some(ConfigType::TypedConfig(config)),
    };
    let mut filters: Vec<_> = chain
        .authorization
        .iter()
        .map(|rbac| {
            let config = network_rbac::Rbac {
                rules: Some(policy::encode_for_connections(rbac, kind)),
                stat_prefix: format!("{stat_prefix}."),
                ..Default::default()
            };
            filter(NETWORK_RBAC, any(&config))
        })
        .collect();
    filters.push(match &chain.terminal {
        Terminal::Http(http) => filter(HTTP_MANAGER, any(&http::encode(http, stat_prefix, kind))),
        Terminal::Tcp(proxy) => filter(TCP_PROXY, any(&encode_tcp(proxy, stat_prefix, kind))),
    });
    let connection = origins_value(chain.authorization.iter().map(policy::origins));
    let of_filters = match &chain.terminal {
        Terminal::Http(http) => filters::origins(&http.filters).collect(),
        Terminal::Tcp(_) => Vec::new(),
    };
    let own = ("origin", chain.origin.as_ref().map(origin_value));
    let origins = [own, (CONNECTION_ORIGINS, connection)];
    let origins = origins.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?)));
    listener::FilterChain {
        filter_chain_match: (chain.matches != ChainMatch::default()).then(|| encode_match(&chain.matches)),
        filters,
        metadata: ours(origins.chain(of_filters)),
        transport_socket: chain.tls.as_ref().map(tls::encode_server),
        name: chain.name.clone(),
        ..Default::default()
    }
}

fn encode_match(matches: &ChainMatch) -> FilterChainMatch {
    FilterChainMatch {
        destination_port: matches.destination_port.and_then(|port| uint(u32::from(port))),
        server_names: matches.server_names.clone(),
        transport_protocol: match matches.transport {
            TransportMatch::Any => "",
            TransportMatch::Tls => "tls",
            TransportMatch::Plain => "raw_buffer",
        }
        .to_owned(),
        application_protocols: matches.application_protocols.clone(),
        ..Default::default()
    }
}

fn encode_tcp(proxy: &TcpProxy, stat_prefix: &str, kind: ClientKind) -> tcp_proxy::TcpProxy {
    let specifier = match proxy.clusters.as_slice() {
        [one] if one.weight == 1 => tcp::ClusterSpecifier::Cluster(one.cluster.clone()),
        many => tcp::ClusterSpecifier::WeightedClusters(tcp::WeightedCluster {
            clusters: many
                .iter()
                // Envoy refuses a weight of 0 here.
                .filter(|c| kind == ClientKind::Outrigger || c.weight > 0)
                .map(|c| tcp::weighted_cluster::ClusterWeight {
                    name: c.cluster.clone(),
                    weight: c.weight,
                    metadata_match: None, // parts are for requests
                })
                .collect(),
        }),
    };
    tcp_proxy::TcpProxy {
        stat_prefix: stat_prefix.to_owned(),
        idle_timeout: Some(wire::duration(proxy.idle_timeout)),
        max_downstream_connection_duration: proxy.max_duration.map(wire::duration),
        cluster_specifier: Some(specifier),
        ..Default::default()
    }
}

pub(super) fn decode(wire: &listener::FilterChain) -> Decoded<FilterChain> {
    note!(wire, transport_socket_connect_timeout);
    let (authorization, terminal) = decode_filters(&wire.filters, wire.metadata.as_ref())?;
    Ok(FilterChain {
        name: wire.name.clone(),
        matches: wire
            .filter_chain_match
            .as_ref()
            .map_or(Ok(ChainMatch::default()), decode_match)
            .under("filter_chain_match")?,
        tls: tls::decode_server(wire.transport_socket.as_ref()).under("transport_socket")?,
        authorization,
        terminal,
        origin: decode_origin(wire.metadata.as_ref())?,
    })
}

fn decode_match(wire: &FilterChainMatch) -> Decoded<ChainMatch> {
    // Leaving out a condition would take connections that are not meant.
    for (field, given) in [
        ("prefix_ranges", !wire.prefix_ranges.is_empty()),
        ("address_suffix", !wire.address_suffix.is_empty()),
        ("direct_source_prefix_ranges", !wire.direct_source_prefix_ranges.is_empty()),
        ("source_type", wire.source_type != 0),
        ("source_prefix_ranges", !wire.source_prefix_ranges.is_empty()),
        ("source_ports", !wire.source_ports.is_empty()),
    ] {
        if given {
            return flaw(field, "is not supported");
        }
    }
    Ok(ChainMatch {
        destination_port: wire
            .destination_port
            .as_ref()
            .map(|v| port(v.value, "destination_port"))
            .transpose()?,
        server_names: each(&wire.server_names, "server_names", |name| server_name(name))?,
        transport: match wire.transport_protocol.as_str() {
            "" => TransportMatch::Any,
            "tls" => TransportMatch::Tls,
            "raw_buffer" => TransportMatch::Plain,
            other => {
                return flaw("transport_protocol", format!("\"{other}\" is neither tls nor raw_buffer"));
            }
        },
        application_protocols: wire.application_protocols.clone(),
    })
}

fn server_name(name: &str) -> Decoded<String> {
    let rest = name.strip_prefix("*.").unwrap_or(name);
    if rest.is_empty() || rest.contains('*') {
        return flaw("", format!("\"{}\" is neither a name nor *.suffix", name.escape_debug()));
    }
    Ok(name.to_owned())
}

/// `metadata` is the chain's.
fn decode_filters(wire: &[Filter], metadata: Option<&Metadata>) -> Decoded<(Vec<Rbac>, Terminal)> {
    let origins = our(metadata, CONNECTION_ORIGINS);
    let mut authorization = Vec::new();
    let mut policies = 0;
    let mut terminal = None;
    for (i, filter) in wire.iter().enumerate() {
        let field = format!("filters[{i}]");
        let typed = format!("{field}.typed_config");
        if terminal.is_some() {
            return flaw(field, "no filter may follow the HTTP connection manager or the TCP proxy");
        }
        let config = match &filter.config_type {
            Some(ConfigType::TypedConfig(config)) => Some(config),
            _ => None,
        };
        match config {
            Some(config) if is::<network_rbac::Rbac>(config) => {
                let rbac: network_rbac::Rbac = unpack(config).under(&typed)?;
                authorization.extend(decode_rbac(&rbac, origins, policies).under(&typed)?);
                policies += 1;
            }
            Some(config) if is::<HttpConnectionManager>(config) => {
                let manager: HttpConnectionManager = unpack(config).under(&typed)?;
                terminal = Some(Terminal::Http(Box::new(http::decode(&manager, metadata).under(&typed)?)));
            }
            Some(config) if is::<tcp_proxy::TcpProxy>(config) => {
                let proxy: tcp_proxy::TcpProxy = unpack(config).under(&typed)?;
                terminal = Some(Terminal::Tcp(decode_tcp(&proxy).under(&typed)?));
            }
            Some(config) if extension::decides_access(&config.type_url) => {
                return extension::unknown("network filter", &filter.name, Some(config)).under(field);
            }
            _ if extension::is_meaningless(&filter.name) => {
                left_out("a network filter that means nothing here");
            }
            other => return extension::unknown("network filter", &filter.name, other).under(field),
        }
    }
    match terminal {
        Some(terminal) => Ok((authorization, terminal)),
        None => flaw("filters", "must end with an HTTP connection manager or a TCP proxy"),
    }
}

fn decode_rbac(wire: &network_rbac::Rbac, origins: Option<&Value>, index: usize) -> Decoded<Option<Rbac>> {
    note!(wire, shadow_rules, shadow_matcher, delay_deny);
    if wire.matcher.is_some() {
        return flaw("matcher", "is not supported; use rules");
    }
    // No rules: nothing is enforced.
    wire.rules.as_ref().map(|rules| policy::decode(rules, origins, index)).transpose().under("rules")
}

fn decode_tcp(wire: &tcp_proxy::TcpProxy) -> Decoded<TcpProxy> {
    note!(
        wire,
        metadata_match,
        hash_policy,
        max_connect_attempts,
        max_downstream_connection_duration_jitter_percentage,
        on_demand,
        backoff_options,
        upstream_connect_mode,
        proxy_protocol_tlvs,
    );
    if wire.tunneling_config.is_some() {
        return flaw("tunneling_config", "is not supported");
    }
    let clusters = match &wire.cluster_specifier {
        Some(tcp::ClusterSpecifier::Cluster(name)) if name.is_empty() => {
            return flaw("cluster", "must not be empty");
        }
        Some(tcp::ClusterSpecifier::Cluster(name)) => vec![WeightedCluster::only(name.as_str())],
        Some(tcp::ClusterSpecifier::WeightedClusters(weighted)) => {
            let clusters = each(&weighted.clusters, "weighted_clusters.clusters", |c| {
                if c.name.is_empty() {
                    return flaw("name", "must not be empty");
                }
                Ok(WeightedCluster::share(c.name.as_str(), c.weight))
            })?;
            forward::check_weights(clusters.iter().map(|c| c.weight)).under("weighted_clusters.clusters")?;
            clusters
        }
        None => return flaw("cluster", "one of cluster and weighted_clusters is required"),
    };
    let default = TcpProxy::new(clusters);
    let field = "max_downstream_connection_duration";
    let longest = duration_at(wire.max_downstream_connection_duration.as_ref(), field)?;
    if longest.is_some_and(|longest| longest < SHORTEST) {
        return flaw(field, "must be at least 1ms");
    }
    Ok(TcpProxy {
        idle_timeout: duration_or(wire.idle_timeout.as_ref(), default.idle_timeout, "idle_timeout")?,
        max_duration: longest,
        ..default
    })
}
