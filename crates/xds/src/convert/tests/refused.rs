//! Every refusal names the field: each case takes a good message, breaks one thing, and says where it must be found.

use outrigger_model::resource::{Invalid, Resource, ResourceKind};
use prost::Message;

use crate::wire::{
    self, any, core, hcm, http_fault, http_rbac, matcher as m, network_rbac, own, protobuf, rbac, scalar,
    tcp_proxy, tls, uint,
};
use crate::{ClientKind, decode, type_url};

fn refusal<M: Message>(kind: ResourceKind, message: &M) -> Invalid {
    decode(type_url(kind), &message.encode_to_vec()).unwrap_err()
}

type Break<'a, M> = Box<dyn Fn(&mut M) + 'a>;

/// Breaks `good` in one way after the other; each must be refused at that field, under the resource's name.
fn each_is_refused<M: Message + Clone + Default>(
    kind: ResourceKind,
    good: &M,
    cases: Vec<(&str, Break<'_, M>)>,
) {
    decode(type_url(kind), &good.encode_to_vec()).unwrap();
    for (field, break_it) in cases {
        let mut bad = good.clone();
        break_it(&mut bad);
        let refused = refusal(kind, &bad);
        assert_eq!(refused.field, field, "{refused}");
        assert_eq!(refused.kind, kind);
        assert!(!refused.reason.is_empty());
        if field != "name" && field != "cluster_name" {
            assert_eq!(refused.name, "it", "{refused}");
        }
    }
}

macro_rules! cases {
    ($type:ty; $($field:literal => |$m:ident| $body:expr),+ $(,)?) => {
        vec![$(($field, Box::new(|$m: &mut $type| { $body; }) as Break<'_, $type>)),+]
    };
}

fn address(ip: &str, port: u32) -> core::Address {
    core::Address {
        address: Some(core::address::Address::SocketAddress(core::SocketAddress {
            address: ip.into(),
            port_specifier: Some(core::socket_address::PortSpecifier::PortValue(port)),
            ..Default::default()
        })),
    }
}

fn routes() -> wire::route::RouteConfiguration {
    let forward = wire::route::Route {
        r#match: Some(wire::route::RouteMatch {
            path_specifier: Some(wire::route::route_match::PathSpecifier::Prefix("/".into())),
            ..Default::default()
        }),
        action: Some(wire::route::route::Action::Route(wire::route::RouteAction {
            cluster_specifier: Some(wire::route::route_action::ClusterSpecifier::Cluster("c".into())),
            ..Default::default()
        })),
        ..Default::default()
    };
    wire::route::RouteConfiguration {
        name: "it".into(),
        virtual_hosts: vec![wire::route::VirtualHost {
            name: "h".into(),
            domains: vec!["a".into(), "b".into()],
            routes: vec![forward],
            ..Default::default()
        }],
        ..Default::default()
    }
}

fn first_route(config: &mut wire::route::RouteConfiguration) -> &mut wire::route::Route {
    &mut config.virtual_hosts[0].routes[0]
}

fn first_match(config: &mut wire::route::RouteConfiguration) -> &mut wire::route::RouteMatch {
    first_route(config).r#match.as_mut().unwrap()
}

fn first_action(config: &mut wire::route::RouteConfiguration) -> &mut wire::route::RouteAction {
    match first_route(config).action.as_mut().unwrap() {
        wire::route::route::Action::Route(action) => action,
        _ => unreachable!(),
    }
}

fn regex(text: &str) -> m::RegexMatcher {
    m::RegexMatcher { regex: text.into(), ..Default::default() }
}

fn weights(all: &[u32]) -> wire::route::route_action::ClusterSpecifier {
    wire::route::route_action::ClusterSpecifier::WeightedClusters(wire::route::WeightedCluster {
        clusters: all
            .iter()
            .map(|w| wire::route::weighted_cluster::ClusterWeight {
                name: "c".into(),
                weight: uint(*w),
                ..Default::default()
            })
            .collect(),
        ..Default::default()
    })
}

fn added_header(key: &str, value: &str) -> core::HeaderValueOption {
    core::HeaderValueOption {
        header: Some(core::HeaderValue { key: key.into(), value: value.into(), ..Default::default() }),
        ..Default::default()
    }
}

#[test]
fn broken_routes_are_refused_at_the_field() {
    use wire::route::route_match::PathSpecifier;
    each_is_refused(
        ResourceKind::Routes,
        &routes(),
        cases! { wire::route::RouteConfiguration;
            "name" => |c| c.name.clear(),
            "vhds" => |c| c.vhds = Some(Default::default()),
            "virtual_hosts[0].name" => |c| c.virtual_hosts[0].name.clear(),
            "virtual_hosts[0].domains" => |c| c.virtual_hosts[0].domains.clear(),
            "virtual_hosts[0].domains[1]" => |c| c.virtual_hosts[0].domains[1] = "A".into(),
            "virtual_hosts[0].domains[0]" => |c| c.virtual_hosts[0].domains[0] = "a*b".into(),
            "virtual_hosts[0].require_tls" => |c| c.virtual_hosts[0].require_tls = 1,
            "virtual_hosts[0].routes[0].match" => |c| first_route(c).r#match = None,
            "virtual_hosts[0].routes[0].route" => |c| first_route(c).action = None,
            "virtual_hosts[0].routes[0].match.prefix" => |c| first_match(c).path_specifier = None,
            "virtual_hosts[0].routes[0].match.safe_regex.regex" => |c| {
                first_match(c).path_specifier = Some(PathSpecifier::SafeRegex(regex("(")))
            },
            "virtual_hosts[0].routes[0].match.path_separated_prefix" => |c| {
                first_match(c).path_specifier = Some(PathSpecifier::PathSeparatedPrefix("/a/".into()))
            },
            "virtual_hosts[0].routes[0].match.runtime_fraction" => |c| {
                first_match(c).runtime_fraction = Some(Default::default())
            },
            "virtual_hosts[0].routes[0].match.grpc" => |c| first_match(c).grpc = Some(Default::default()),
            "virtual_hosts[0].routes[0].match.headers[0].name" => |c| {
                first_match(c).headers.push(Default::default())
            },
            "virtual_hosts[0].routes[0].match.headers[0].range_match" => |c| {
                first_match(c).headers.push(wire::route::HeaderMatcher {
                    name: "x".into(),
                    header_match_specifier: Some(
                        wire::route::header_matcher::HeaderMatchSpecifier::RangeMatch(scalar::Int64Range::default()),
                    ),
                    ..Default::default()
                })
            },
            "virtual_hosts[0].routes[0].match.query_parameters[0].name" => |c| {
                first_match(c).query_parameters.push(Default::default())
            },
            "virtual_hosts[0].routes[0].route.cluster" => |c| first_action(c).cluster_specifier = None,
            "virtual_hosts[0].routes[0].route.weighted_clusters.clusters" => |c| {
                first_action(c).cluster_specifier = Some(weights(&[0, 0]))
            },
            "virtual_hosts[0].routes[0].route.weighted_clusters.clusters" => |c| {
                first_action(c).cluster_specifier = Some(weights(&[u32::MAX, 1]))
            },
            "virtual_hosts[0].routes[0].route.cluster_header" => |c| {
                first_action(c).cluster_specifier =
                    Some(wire::route::route_action::ClusterSpecifier::ClusterHeader("x".into()))
            },
            "virtual_hosts[0].routes[0].route.timeout" => |c| {
                first_action(c).timeout = Some(protobuf::Duration { seconds: -1, nanos: 0 })
            },
            "virtual_hosts[0].routes[0].route.prefix_rewrite" => |c| {
                let action = first_action(c);
                action.prefix_rewrite = "/x".into();
                action.regex_rewrite =
                    Some(m::RegexMatchAndSubstitute { pattern: Some(regex("a")), substitution: String::new() });
            },
            "virtual_hosts[0].routes[0].route.path_rewrite" => |c| first_action(c).path_rewrite = "/x".into(),
            "virtual_hosts[0].routes[0].route.hash_policy[0].header.header_name" => |c| {
                use wire::route::route_action::{HashPolicy, hash_policy::PolicySpecifier};
                first_action(c).hash_policy.push(HashPolicy {
                    terminal: false,
                    policy_specifier: Some(PolicySpecifier::Header(Default::default())),
                })
            },
            "virtual_hosts[0].routes[0].route.retry_policy.retriable_status_codes[0]" => |c| {
                first_action(c).retry_policy =
                    Some(wire::route::RetryPolicy { retriable_status_codes: vec![7], ..Default::default() })
            },
            "virtual_hosts[0].retry_policy.retry_back_off.max_interval" => |c| {
                let second = |seconds| Some(protobuf::Duration { seconds, nanos: 0 });
                c.virtual_hosts[0].retry_policy = Some(wire::route::RetryPolicy {
                    retry_back_off: Some(wire::route::retry_policy::RetryBackOff {
                        base_interval: second(2),
                        max_interval: second(1),
                    }),
                    ..Default::default()
                })
            },
            "virtual_hosts[0].routes[0].request_headers_to_add[0].header.key" => |c| {
                first_route(c).request_headers_to_add.push(added_header(":path", "/"))
            },
            "virtual_hosts[0].routes[0].request_headers_to_add[0].header.value" => |c| {
                first_route(c).request_headers_to_add.push(added_header("x", "a\r\nb: c"))
            },
            "virtual_hosts[0].routes[0].response_headers_to_remove[0]" => |c| {
                first_route(c).response_headers_to_remove.push("a b".into())
            },
            "virtual_hosts[0].routes[0].direct_response.status" => |c| {
                first_route(c).action = Some(wire::route::route::Action::DirectResponse(
                    wire::route::DirectResponseAction { status: 99, ..Default::default() },
                ))
            },
            "virtual_hosts[0].routes[0].redirect.port_redirect" => |c| {
                first_route(c).action = Some(wire::route::route::Action::Redirect(
                    wire::route::RedirectAction { port_redirect: 70_000, ..Default::default() },
                ))
            },
            "virtual_hosts[0].routes[0].typed_per_filter_config[rbac]" => |c| {
                first_route(c)
                    .typed_per_filter_config
                    .insert("rbac".into(), any(&http_rbac::RbacPerRoute::default()));
            },
            "virtual_hosts[0].routes[0].metadata.filter_metadata[outrigger].origin" => |c| {
                let fields = [("origin".to_owned(), crate::convert::metadata::text("x"))];
                first_route(c).metadata = crate::convert::metadata::ours(fields)
            },
        },
    );
}

fn tcp(cluster: &str) -> wire::listener::Filter {
    filter(
        "tcp",
        any(&tcp_proxy::TcpProxy {
            cluster_specifier: Some(tcp_proxy::tcp_proxy::ClusterSpecifier::Cluster(cluster.into())),
            ..Default::default()
        }),
    )
}

fn filter(name: &str, config: protobuf::Any) -> wire::listener::Filter {
    wire::listener::Filter {
        name: name.into(),
        config_type: Some(wire::listener::filter::ConfigType::TypedConfig(config)),
    }
}

fn http_filter(name: &str, config: protobuf::Any) -> hcm::HttpFilter {
    hcm::HttpFilter {
        name: name.into(),
        config_type: Some(hcm::http_filter::ConfigType::TypedConfig(config)),
        ..Default::default()
    }
}

fn manager(filters: Vec<hcm::HttpFilter>) -> hcm::HttpConnectionManager {
    hcm::HttpConnectionManager {
        http_filters: filters,
        route_specifier: Some(hcm::http_connection_manager::RouteSpecifier::Rds(hcm::Rds {
            route_config_name: "r".into(),
            ..Default::default()
        })),
        ..Default::default()
    }
}

fn with_manager(listener: &mut wire::listener::Listener, manager: &hcm::HttpConnectionManager) {
    listener.filter_chains[0].filters = vec![filter("http", any(manager))];
}

fn router() -> hcm::HttpFilter {
    http_filter("router", any(&wire::router::Router::default()))
}

fn unheard_of() -> protobuf::Any {
    protobuf::Any { type_url: "type.googleapis.com/unheard.Of".into(), value: vec![] }
}

fn listener() -> wire::listener::Listener {
    wire::listener::Listener {
        name: "it".into(),
        address: Some(address("10.0.0.1", 80)),
        filter_chains: vec![wire::listener::FilterChain { filters: vec![tcp("c")], ..Default::default() }],
        ..Default::default()
    }
}

fn chain_match(listener: &mut wire::listener::Listener) -> &mut wire::listener::FilterChainMatch {
    listener.filter_chains[0].filter_chain_match.get_or_insert_default()
}

fn policy(permission: rbac::permission::Rule, principal: rbac::principal::Identifier) -> network_rbac::Rbac {
    let policy = rbac::Policy {
        permissions: vec![rbac::Permission { rule: Some(permission) }],
        principals: vec![rbac::Principal { identifier: Some(principal) }],
        ..Default::default()
    };
    network_rbac::Rbac {
        rules: Some(rbac::Rbac { policies: [("p".to_owned(), policy)].into(), ..Default::default() }),
        ..Default::default()
    }
}

fn with_policy(
    listener: &mut wire::listener::Listener,
    permission: rbac::permission::Rule,
    principal: rbac::principal::Identifier,
) {
    listener.filter_chains[0].filters.insert(0, filter("rbac", any(&policy(permission, principal))));
}

#[test]
fn broken_listeners_are_refused_at_the_field() {
    each_is_refused(
        ResourceKind::Listener,
        &listener(),
        cases! { wire::listener::Listener;
            "name" => |l| l.name.clear(),
            "address.socket_address.address" => |l| l.address = Some(address("localhost", 80)),
            "address.socket_address.port_value" => |l| l.address = Some(address("::1", 65_536)),
            "additional_addresses[0].address" => |l| l.additional_addresses.push(Default::default()),
            "filter_chains" => |l| l.filter_chains.clear(),
            "filter_chains[1].filter_chain_match" => |l| l.filter_chains.push(l.filter_chains[0].clone()),
            "filter_chains[0].filter_chain_match.prefix_ranges" => |l| {
                chain_match(l).prefix_ranges.push(Default::default())
            },
            "filter_chains[0].filter_chain_match.source_ports" => |l| chain_match(l).source_ports.push(1),
            "filter_chains[0].filter_chain_match.transport_protocol" => |l| {
                chain_match(l).transport_protocol = "quic".into()
            },
            "filter_chains[0].filter_chain_match.server_names[0]" => |l| {
                chain_match(l).server_names.push("a.*".into())
            },
            "filter_chains[0].filter_chain_match.destination_port" => |l| {
                chain_match(l).destination_port = uint(65_536)
            },
            "filter_chains[0].filters" => |l| l.filter_chains[0].filters.clear(),
            "filter_chains[0].filters[0]" => |l| {
                l.filter_chains[0].filters.insert(0, filter("what", unheard_of()))
            },
            "filter_chains[0].filters[1]" => |l| l.filter_chains[0].filters.push(tcp("d")),
            "filter_chains[0].filters[0].typed_config" => |l| {
                let broken = protobuf::Any { value: vec![0xff], ..any(&tcp_proxy::TcpProxy::default()) };
                l.filter_chains[0].filters[0] = filter("tcp", broken)
            },
            "filter_chains[0].filters[0].typed_config.cluster" => |l| l.filter_chains[0].filters[0] = tcp(""),
            "listener_filters[0]" => |l| {
                l.listener_filters.push(wire::listener::ListenerFilter {
                    name: "envoy.filters.listener.proxy_protocol".into(),
                    ..Default::default()
                })
            },
            "udp_listener_config" => |l| l.udp_listener_config = Some(Default::default()),
            "default_filter_chain.filters" => |l| l.default_filter_chain = Some(Default::default()),
            "api_listener.api_listener" => |l| l.api_listener = Some(Default::default()),
            "filter_chains[0].transport_socket" => |l| {
                l.filter_chains[0].transport_socket =
                    Some(core::TransportSocket { name: "what".into(), ..Default::default() })
            },
            "filter_chains[0].transport_socket.typed_config.require_client_certificate" => |l| {
                l.filter_chains[0].transport_socket = Some(core::TransportSocket {
                    name: "tls".into(),
                    config_type: Some(core::transport_socket::ConfigType::TypedConfig(any(
                        &tls::DownstreamTlsContext::default(),
                    ))),
                })
            },
        },
    );
}

#[test]
fn broken_http_connections_are_refused_at_the_field() {
    each_is_refused(
        ResourceKind::Listener,
        &listener(),
        cases! { wire::listener::Listener;
            "filter_chains[0].filters[0].typed_config.http_filters" => |l| with_manager(l, &manager(vec![])),
            "filter_chains[0].filters[0].typed_config.http_filters[1]" => |l| {
                with_manager(l, &manager(vec![router(), router()]))
            },
            "filter_chains[0].filters[0].typed_config.http_filters[0]" => |l| {
                with_manager(l, &manager(vec![http_filter("what", unheard_of()), router()]))
            },
            "filter_chains[0].filters[0].typed_config.http_filters[0].typed_config.matcher" => |l| {
                let rbac = http_rbac::Rbac { matcher: Some(Default::default()), ..Default::default() };
                with_manager(l, &manager(vec![http_filter("rbac", any(&rbac)), router()]))
            },
            "filter_chains[0].filters[0].typed_config.http_filters[0].typed_config.headers" => |l| {
                let fault = http_fault::HttpFault { downstream_nodes: vec!["n".into()], ..Default::default() };
                with_manager(l, &manager(vec![http_filter("fault", any(&fault)), router()]))
            },
            "filter_chains[0].filters[0].typed_config.rds" => |l| {
                with_manager(l, &hcm::HttpConnectionManager { route_specifier: None, ..manager(vec![router()]) })
            },
            "filter_chains[0].filters[0].typed_config.codec_type" => |l| {
                with_manager(l, &hcm::HttpConnectionManager { codec_type: 3, ..manager(vec![router()]) })
            },
            "filter_chains[0].filters[0].typed_config.tracing.random_sampling.value" => |l| {
                let tracing = hcm::http_connection_manager::Tracing {
                    random_sampling: Some(scalar::Percent { value: f64::NAN }),
                    ..Default::default()
                };
                let manager = hcm::HttpConnectionManager { tracing: Some(tracing), ..manager(vec![router()]) };
                with_manager(l, &manager)
            },
            "filter_chains[0].filters[0].typed_config.route_config.virtual_hosts[0].domains" => |l| {
                let mut config = routes();
                config.virtual_hosts[0].domains.clear();
                let routes = hcm::http_connection_manager::RouteSpecifier::RouteConfig(config);
                let manager =
                    hcm::HttpConnectionManager { route_specifier: Some(routes), ..manager(vec![router()]) };
                with_manager(l, &manager)
            },
        },
    );
}

#[test]
fn policies_that_are_not_understood_are_refused_at_the_field() {
    use rbac::permission::Rule;
    use rbac::principal::Identifier;
    let range =
        |prefix: &str, length| core::CidrRange { address_prefix: prefix.into(), prefix_len: uint(length) };
    let any_one = || (Rule::Any(true), Identifier::Any(true));
    each_is_refused(
        ResourceKind::Listener,
        &listener(),
        cases! { wire::listener::Listener;
            "filter_chains[0].filters[0].typed_config.rules.policies[p].permissions[0].any" => |l| {
                with_policy(l, Rule::Any(false), any_one().1)
            },
            "filter_chains[0].filters[0].typed_config.rules.policies[p].permissions[0].and_rules" => |l| {
                with_policy(l, Rule::AndRules(Default::default()), any_one().1)
            },
            "filter_chains[0].filters[0].typed_config.rules.policies[p].permissions[0].destination_port" => |l| {
                with_policy(l, Rule::DestinationPort(65_536), any_one().1)
            },
            "filter_chains[0].filters[0].typed_config.rules.policies[p].permissions[0].destination_port_range" => |l| {
                with_policy(l, Rule::DestinationPortRange(Default::default()), any_one().1)
            },
            "filter_chains[0].filters[0].typed_config.rules.policies[p].permissions[0].url_path.path" => |l| {
                with_policy(l, Rule::UrlPath(Default::default()), any_one().1)
            },
            "filter_chains[0].filters[0].typed_config.rules.policies[p].permissions[0].destination_ip.prefix_len" => |l| {
                with_policy(l, Rule::DestinationIp(range("10.0.0.0", 33)), any_one().1)
            },
            "filter_chains[0].filters[0].typed_config.rules.policies[p].principals[0].direct_remote_ip.address_prefix" => |l| {
                with_policy(l, any_one().0, Identifier::DirectRemoteIp(range("ten", 8)))
            },
            "filter_chains[0].filters[0].typed_config.rules.policies[p].principals[0].remote_ip" => |l| {
                with_policy(l, any_one().0, Identifier::RemoteIp(range("10.0.0.0", 8)))
            },
            "filter_chains[0].filters[0].typed_config.rules.policies[p].principals[0].authenticated.principal_name.safe_regex.regex" => |l| {
                let name = m::StringMatcher {
                    match_pattern: Some(m::string_matcher::MatchPattern::SafeRegex(regex("[" ))),
                    ..Default::default()
                };
                let who = rbac::principal::Authenticated { principal_name: Some(name) };
                with_policy(l, any_one().0, Identifier::Authenticated(who))
            },
            "filter_chains[0].filters[0].typed_config.rules.policies[p].principals[0].not_id" => |l| {
                with_policy(l, any_one().0, Identifier::NotId(Box::default()))
            },
            "filter_chains[0].filters[0].typed_config.rules.action" => |l| {
                let mut config = policy(any_one().0, any_one().1);
                config.rules.as_mut().unwrap().action = 9;
                l.filter_chains[0].filters.insert(0, filter("rbac", any(&config)))
            },
        },
    );
}

fn cluster() -> wire::cluster::Cluster {
    let mut model = outrigger_model::cluster::Cluster::new("it");
    model.tls = outrigger_model::cluster::ClientTls::Mesh {
        server_name: "outbound_.80_._.a".into(),
        identities: vec![outrigger_model::identity::SpiffeId::parse("spiffe://td/ns/a/sa/b").unwrap()],
    };
    model.outlier = Some(Default::default());
    crate::convert::cluster::encode(&model, ClientKind::Outrigger)
}

fn change_tls(c: &mut wire::cluster::Cluster, change: impl Fn(&mut tls::CommonTlsContext)) {
    let socket = c.transport_socket_matches[0].transport_socket.as_mut().unwrap();
    let Some(core::transport_socket::ConfigType::TypedConfig(config)) = &mut socket.config_type else {
        unreachable!()
    };
    let mut context = tls::UpstreamTlsContext::decode(config.value.as_slice()).unwrap();
    change(context.common_tls_context.as_mut().unwrap());
    *config = any(&context);
}

#[test]
fn broken_clusters_are_refused_at_the_field() {
    use wire::cluster::cluster::{ClusterDiscoveryType, DiscoveryType};
    let of_type = |t: DiscoveryType| Some(ClusterDiscoveryType::Type(t as i32));
    each_is_refused(
        ResourceKind::Cluster,
        &cluster(),
        cases! { wire::cluster::Cluster;
            "name" => |c| c.name.clear(),
            "type" => |c| c.cluster_discovery_type = of_type(DiscoveryType::StrictDns),
            "eds_cluster_config" => |c| c.eds_cluster_config = None,
            "load_assignment" => |c| c.cluster_discovery_type = of_type(DiscoveryType::Static),
            "cluster_type" => |c| {
                c.cluster_discovery_type = Some(ClusterDiscoveryType::ClusterType(Default::default()))
            },
            "connect_timeout" => |c| c.connect_timeout = Some(protobuf::Duration { seconds: 0, nanos: -1 }),
            "circuit_breakers.thresholds[0].retry_budget.budget_percent.value" => |c| {
                let threshold = &mut c.circuit_breakers.as_mut().unwrap().thresholds[0];
                threshold.retry_budget.as_mut().unwrap().budget_percent = Some(scalar::Percent { value: 101.0 })
            },
            "outlier_detection.interval" => |c| {
                c.outlier_detection.as_mut().unwrap().interval = Some(Default::default())
            },
            "outlier_detection.max_ejection_percent" => |c| {
                c.outlier_detection.as_mut().unwrap().max_ejection_percent = uint(101)
            },
            "transport_socket_matches[0].transport_socket" => |c| {
                c.transport_socket_matches[0].transport_socket = None
            },
            "transport_socket_matches[0].match" => |c| c.transport_socket_matches[0].r#match = None,
            "transport_socket_matches[1].match" => |c| {
                c.transport_socket_matches[1].r#match = c.transport_socket_matches[0].r#match.clone()
            },
            "transport_socket" => |c| {
                c.transport_socket = c.transport_socket_matches[0].transport_socket.clone()
            },
            "transport_socket_matches[0].transport_socket.typed_config.common_tls_context.tls_certificate_sds_secret_configs" => |c| {
                change_tls(c, |tls| tls.tls_certificate_sds_secret_configs.clear())
            },
            "transport_socket_matches[0].transport_socket.typed_config.common_tls_context.combined_validation_context" => |c| {
                change_tls(c, |tls| tls.validation_context_type = None)
            },
            "transport_socket_matches[0].transport_socket.typed_config.common_tls_context.combined_validation_context.default_validation_context.match_typed_subject_alt_names[0]" => |c| {
                change_tls(c, |tls| {
                    if let Some(tls::common_tls_context::ValidationContextType::CombinedValidationContext(context)) =
                        &mut tls.validation_context_type
                    {
                        let default = context.default_validation_context.as_mut().unwrap();
                        default.match_typed_subject_alt_names[0].san_type = 2;
                    }
                })
            },
            "typed_extension_protocol_options[envoy.extensions.upstreams.http.v3.HttpProtocolOptions]" => |c| {
                c.typed_extension_protocol_options
                    .insert(crate::convert::extension::HTTP_OPTIONS.into(), unheard_of());
            },
            "metadata.filter_metadata[outrigger].origin" => |c| {
                let fields = [("origin".to_owned(), crate::convert::metadata::text("x"))];
                c.metadata = crate::convert::metadata::ours(fields)
            },
        },
    );
}

#[test]
fn broken_endpoints_and_secrets_are_refused_at_the_field() {
    let one = outrigger_model::endpoint::EndpointSet {
        cluster: "it".into(),
        localities: vec![outrigger_model::endpoint::LocalityEndpoints {
            endpoints: vec![outrigger_model::endpoint::Endpoint {
                address: "10.0.0.1:80".parse().unwrap(),
                weight: 1,
                health: Default::default(),
                identity: None,
                mesh_tls: false,
                workload: None,
            }],
            ..Default::default()
        }],
    };
    let good = crate::convert::endpoint::encode(&one, ClientKind::Outrigger);
    each_is_refused(
        ResourceKind::Endpoints,
        &good,
        cases! { wire::endpoint::ClusterLoadAssignment;
            "cluster_name" => |e| e.cluster_name.clear(),
            "endpoints[0].priority" => |e| e.endpoints[0].priority = 129,
            "endpoints[0].lb_endpoints[0].load_balancing_weight" => |e| {
                e.endpoints[0].lb_endpoints[0].load_balancing_weight = uint(0)
            },
            "endpoints[0].lb_endpoints[0].health_status" => |e| e.endpoints[0].lb_endpoints[0].health_status = 77,
            "endpoints[0].lb_endpoints[0].endpoint" => |e| e.endpoints[0].lb_endpoints[0].host_identifier = None,
            "endpoints[0].lb_endpoints[0].metadata.filter_metadata[outrigger].identity" => |e| {
                let fields = [("identity".to_owned(), crate::convert::metadata::text("spiffe://"))];
                e.endpoints[0].lb_endpoints[0].metadata = crate::convert::metadata::ours(fields)
            },
            "endpoints[0].lb_endpoints" => |e| {
                let twin = e.endpoints[0].lb_endpoints[0].clone();
                e.endpoints[0].lb_endpoints.push(twin);
                for endpoint in &mut e.endpoints[0].lb_endpoints {
                    endpoint.load_balancing_weight = uint(u32::MAX)
                }
            },
        },
    );
    let roots = roots();
    each_is_refused(
        ResourceKind::Secret,
        &roots,
        cases! { tls::Secret;
            "name" => |s| s.name.clear(),
            "validation_context" => |s| s.r#type = None,
            "tls_certificate" => |s| s.r#type = Some(tls::secret::Type::TlsCertificate(Default::default())),
            "validation_context.trusted_ca" => |s| {
                s.r#type = Some(tls::secret::Type::ValidationContext(Default::default()))
            },
        },
    );
    let destination = own::Destination { name: "it".into(), listener: "l".into() };
    each_is_refused(
        ResourceKind::Destination,
        &destination,
        cases! { own::Destination; "name" => |d| d.name.clear(), "listener" => |d| d.listener.clear() },
    );
}

fn roots() -> tls::Secret {
    crate::convert::secret::encode(&outrigger_model::resource::TrustBundleSecret {
        name: "it".into(),
        roots_pem: "-----BEGIN CERTIFICATE-----\n-----END CERTIFICATE-----\n".into(),
    })
}

#[test]
fn what_is_no_protobuf_is_refused_as_a_whole() {
    for kind in ResourceKind::ALL {
        let refused = decode(type_url(kind), &[0xff, 0xff, 0xff]).unwrap_err();
        assert_eq!((refused.kind, refused.field.as_str()), (kind, ""));
        assert!(refused.reason.starts_with("malformed protobuf"), "{refused}");
    }
}

#[test]
fn filters_that_mean_nothing_here_are_left_out() {
    let mut listener = listener();
    let mut optional = http_filter("what", unheard_of());
    optional.is_optional = true;
    let mut disabled = http_filter("lua", unheard_of());
    disabled.disabled = true;
    let stats = http_filter("istio.stats", unheard_of());
    with_manager(&mut listener, &manager(vec![optional, disabled, stats, router()]));
    listener.filter_chains[0].filters.insert(0, filter("istio.metadata_exchange", unheard_of()));
    listener.listener_filters.push(wire::listener::ListenerFilter {
        name: "envoy.filters.listener.original_dst".into(),
        ..Default::default()
    });
    let Ok(Resource::Listener(decoded)) = decode(type_url(ResourceKind::Listener), &listener.encode_to_vec())
    else {
        panic!("must be taken")
    };
    let outrigger_model::listener::Terminal::Http(http) = &decoded.chains[0].terminal else {
        panic!("is HTTP")
    };
    assert!(http.filters.is_empty());
}

#[test]
fn a_negated_header_that_must_be_there_becomes_two_conditions() {
    let mut config = routes();
    first_match(&mut config).headers.push(wire::route::HeaderMatcher {
        name: "X-A".into(),
        invert_match: true,
        header_match_specifier: Some(wire::route::header_matcher::HeaderMatchSpecifier::StringMatch(
            m::StringMatcher {
                match_pattern: Some(m::string_matcher::MatchPattern::Exact("1".into())),
                ..Default::default()
            },
        )),
        ..Default::default()
    });
    let Ok(Resource::Routes(decoded)) = decode(type_url(ResourceKind::Routes), &config.encode_to_vec())
    else {
        panic!("must be taken")
    };
    let headers = &decoded.virtual_hosts[0].routes[0].matches.headers;
    assert_eq!(headers.iter().map(|h| h.invert).collect::<Vec<_>>(), [false, true]);
    assert_eq!(headers[0].value, outrigger_model::matcher::StringMatch::present());
    assert_eq!(headers[0].name, "x-a");
}

#[test]
fn what_is_not_said_has_envoys_defaults() {
    use wire::cluster::cluster::{ClusterDiscoveryType, DiscoveryType, EdsClusterConfig};
    let bare = wire::cluster::Cluster {
        name: "it".into(),
        cluster_discovery_type: Some(ClusterDiscoveryType::Type(DiscoveryType::Eds as i32)),
        eds_cluster_config: Some(EdsClusterConfig::default()),
        ..Default::default()
    };
    let Ok(Resource::Cluster(decoded)) = decode(type_url(ResourceKind::Cluster), &bare.encode_to_vec())
    else {
        panic!("must be taken")
    };
    let limits = decoded.limits;
    assert_eq!((limits.max_connections, limits.max_pending), (1024, 1024));
    assert_eq!((limits.max_requests, limits.max_retries, limits.retry_budget), (1024, 3, None));
    assert_eq!(decoded.protocol, outrigger_model::cluster::UpstreamProtocol::Http1);
    let Ok(Resource::Routes(decoded)) = decode(type_url(ResourceKind::Routes), &routes().encode_to_vec())
    else {
        panic!("must be taken")
    };
    let outrigger_model::route::RouteAction::Forward(forward) = &decoded.virtual_hosts[0].routes[0].action
    else {
        panic!("forwards")
    };
    assert_eq!(forward.timeout, Some(std::time::Duration::from_secs(15)));
}
