//! Listeners, HTTP connections and policies that are refused.

use super::*;

fn tcp(cluster: &str) -> wire::listener::Filter {
    filter(
        "tcp",
        any(&tcp_proxy::TcpProxy {
            cluster_specifier: Some(tcp_proxy::tcp_proxy::ClusterSpecifier::Cluster(cluster.into())),
            ..Default::default()
        }),
    )
}

pub(super) fn filter(name: &str, config: protobuf::Any) -> wire::listener::Filter {
    wire::listener::Filter {
        name: name.into(),
        config_type: Some(wire::listener::filter::ConfigType::TypedConfig(config)),
    }
}

pub(super) fn http_filter(name: &str, config: protobuf::Any) -> hcm::HttpFilter {
    hcm::HttpFilter {
        name: name.into(),
        config_type: Some(hcm::http_filter::ConfigType::TypedConfig(config)),
        ..Default::default()
    }
}

pub(super) fn manager(filters: Vec<hcm::HttpFilter>) -> hcm::HttpConnectionManager {
    hcm::HttpConnectionManager {
        http_filters: filters,
        route_specifier: Some(hcm::http_connection_manager::RouteSpecifier::Rds(hcm::Rds {
            route_config_name: "r".into(),
            ..Default::default()
        })),
        ..Default::default()
    }
}

pub(super) fn with_manager(listener: &mut wire::listener::Listener, manager: &hcm::HttpConnectionManager) {
    listener.filter_chains[0].filters = vec![filter("http", any(manager))];
}

pub(super) fn router() -> hcm::HttpFilter {
    http_filter("router", any(&wire::router::Router::default()))
}

pub(super) fn unheard_of() -> protobuf::Any {
    protobuf::Any { type_url: "type.googleapis.com/unheard.Of".into(), value: vec![] }
}

pub(super) fn listener() -> wire::listener::Listener {
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
            "filter_chains[0].filters[0].typed_config.max_downstream_connection_duration" => |l| {
                let proxy = tcp_proxy::TcpProxy {
                    cluster_specifier: Some(tcp_proxy::tcp_proxy::ClusterSpecifier::Cluster("c".into())),
                    max_downstream_connection_duration: Some(Default::default()),
                    ..Default::default()
                };
                l.filter_chains[0].filters[0] = filter("tcp", any(&proxy))
            },
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

#[test]
fn filters_that_decide_access_are_not_passed_over() {
    let typed = "filter_chains[0].filters[0].typed_config.http_filters[0]";
    let authz = || wire::http_authz::ExtAuthz {
        services: Some(wire::http_authz::ext_authz::Services::GrpcService(core::GrpcService {
            target_specifier: Some(core::grpc_service::TargetSpecifier::EnvoyGrpc(
                core::grpc_service::EnvoyGrpc { cluster_name: "c".into(), ..Default::default() },
            )),
            ..Default::default()
        })),
        ..Default::default()
    };
    let of = |config: protobuf::Any, disabled, is_optional| {
        let filter = hcm::HttpFilter { disabled, is_optional, ..http_filter("istio.stats", config) };
        let mut it = listener();
        with_manager(&mut it, &manager(vec![filter, router()]));
        decode(type_url(ResourceKind::Listener), &it.encode_to_vec())
    };
    assert!(of(any(&authz()), false, false).is_ok());
    let basic = protobuf::Any {
        type_url: "type.googleapis.com/envoy.extensions.filters.http.basic_auth.v3.BasicAuth".into(),
        value: vec![],
    };
    for (config, disabled, is_optional, field) in [
        (any(&authz()), true, false, ".disabled"),
        (any(&http_rbac::Rbac::default()), true, false, ".disabled"),
        (basic.clone(), true, false, ".disabled"),
        (basic.clone(), false, true, ""),
        (basic.clone(), false, false, ""),
    ] {
        let refused = of(config, disabled, is_optional).unwrap_err();
        assert_eq!(refused.field, format!("{typed}{field}"), "{refused}");
    }
    let rules =
        wire::http_authz::ExtAuthz { decoder_header_mutation_rules: Some(Default::default()), ..authz() };
    let refused = of(any(&rules), false, false).unwrap_err();
    assert_eq!(refused.field, format!("{typed}.typed_config.decoder_header_mutation_rules"));
    let endless = |authz: &mut wire::http_authz::ExtAuthz| match &mut authz.services {
        Some(wire::http_authz::ext_authz::Services::GrpcService(grpc)) => {
            grpc.timeout = Some(protobuf::Duration::default());
        }
        _ => panic!("no gRPC"),
    };
    let mut timeless = authz();
    endless(&mut timeless);
    assert_eq!(of(any(&timeless), false, false).unwrap_err().field, format!("{typed}.typed_config.timeout"));
    for (key, value) in [("a b", "v"), (":path", "v"), ("content-length", "1"), ("x", "a\nb")] {
        let mut forged = authz();
        let Some(wire::http_authz::ext_authz::Services::GrpcService(grpc)) = &mut forged.services else {
            panic!("no gRPC")
        };
        grpc.initial_metadata =
            vec![core::HeaderValue { key: key.into(), value: value.into(), ..Default::default() }];
        let refused = of(any(&forged), false, false).unwrap_err();
        assert!(refused.field.contains("grpc_service.initial_metadata[0]."), "{refused}");
    }
}

#[test]
fn a_rate_limit_that_cannot_be_is_refused_by_its_field() {
    use crate::wire::own::{self, by::What, rate_limit::Algorithm};
    let whole = || own::RateLimit {
        name: "l".into(),
        requests: 5,
        per_millis: 1000,
        algorithm: Some(Algorithm::Burst(5)),
        ..Default::default()
    };
    let told = |limit: own::RateLimit| {
        let value = own::RateLimits { limits: vec![limit] }.encode_to_vec();
        let config = protobuf::Any { type_url: "type.googleapis.com/outrigger.v1.RateLimits".into(), value };
        let mut wire = listener();
        with_manager(&mut wire, &manager(vec![http_filter("limits", config), router()]));
        decode(type_url(ResourceKind::Listener), &wire.encode_to_vec()).map_err(|invalid| invalid.to_string())
    };
    told(whole()).unwrap();
    let by = |what| vec![own::By { what }];
    for (limit, wanted) in [
        (own::RateLimit { requests: 0, ..whole() }, "limits[0].requests"),
        (own::RateLimit { per_millis: 9, ..whole() }, "limits[0].per"),
        (own::RateLimit { per_millis: u64::MAX, ..whole() }, "limits[0].per"),
        (own::RateLimit { algorithm: None, ..whole() }, "limits[0].algorithm"),
        (own::RateLimit { algorithm: Some(Algorithm::Burst(0)), ..whole() }, "limits[0].burst"),
        (own::RateLimit { r#match: vec![255], ..whole() }, "limits[0].match"),
        (own::RateLimit { by: by(None), ..whole() }, "limits[0].by[0]"),
        (own::RateLimit { by: by(Some(What::Header("X-A".into()))), ..whole() }, "limits[0].by[0].header"),
    ] {
        let told = told(limit).unwrap_err();
        assert!(told.contains(wanted), "{told}");
    }
}

#[test]
fn a_limit_of_a_service_that_cannot_be_is_refused_by_its_field() {
    use crate::wire::own::{self, entry::Value};
    let entry = |key: &str, value| own::Entry { key: key.into(), value };
    let limit = |descriptor| own::GlobalLimit { name: "l".into(), descriptor, ..Default::default() };
    let good = || limit(vec![entry("k", Some(Value::Text("v".into())))]);
    let whole = || own::GlobalLimits {
        cluster: "c".into(),
        timeout_millis: 20,
        limits: vec![good()],
        ..Default::default()
    };
    let told = |limits: own::GlobalLimits| {
        let type_url = "type.googleapis.com/outrigger.v1.GlobalLimits".into();
        let config = protobuf::Any { type_url, value: limits.encode_to_vec() };
        let mut wire = listener();
        with_manager(&mut wire, &manager(vec![http_filter("limits", config), router()]));
        decode(type_url_of_listeners(), &wire.encode_to_vec()).map_err(|invalid| invalid.to_string())
    };
    told(whole()).unwrap();
    let with = |limit| own::GlobalLimits { limits: vec![limit], ..whole() };
    for (limits, wanted) in [
        (own::GlobalLimits { cluster: String::new(), ..whole() }, "cluster"),
        (own::GlobalLimits { timeout_millis: 0, ..whole() }, "timeout_millis"),
        (own::GlobalLimits { timeout_millis: 60_001, ..whole() }, "timeout_millis"),
        (own::GlobalLimits { status_on_error: 99, ..whole() }, "status_on_error"),
        (own::GlobalLimits { limits: Vec::new(), ..whole() }, "limits"),
        (own::GlobalLimits { limits: vec![good(); 33], ..whole() }, "limits"),
        (with(limit(Vec::new())), "limits[0].descriptor"),
        (with(limit(vec![entry("k", None)])), "limits[0].descriptor[0]"),
        (with(limit(vec![entry("", Some(Value::Text("v".into())))])), "limits[0].descriptor"),
        (with(own::GlobalLimit { r#match: vec![255], ..good() }), "limits[0].match"),
    ] {
        let told = told(limits).unwrap_err();
        assert!(told.contains(wanted), "{told}");
    }
}

fn type_url_of_listeners() -> &'static str {
    type_url(ResourceKind::Listener)
}

#[test]
fn what_would_let_in_others_than_is_said_is_refused() {
    use wire::http_jwt::{JwtAuthentication, JwtProvider, JwtRequirement, jwt_provider, jwt_requirement};

    let keys = |text: &str| {
        Some(jwt_provider::JwksSourceSpecifier::LocalJwks(core::DataSource {
            specifier: Some(core::data_source::Specifier::InlineString(text.into())),
            ..Default::default()
        }))
    };
    let good = || JwtProvider { jwks_source_specifier: keys("{}"), ..Default::default() };
    let refused = |provider: JwtProvider| {
        let whole = JwtAuthentication { providers: [("p".into(), provider)].into(), ..Default::default() };
        let refused = super::super::super::jwt::decode(&whole, None, 0).unwrap_err();
        refused.field.strip_prefix("providers[p].").map(str::to_owned)
    };
    let remote = Some(jwt_provider::JwksSourceSpecifier::RemoteJwks(Default::default()));
    for (provider, field) in [
        (JwtProvider { jwks_source_specifier: None, ..good() }, "local_jwks"),
        (JwtProvider { jwks_source_specifier: remote, ..good() }, "remote_jwks"),
        (JwtProvider { subjects: Some(Default::default()), ..good() }, "subjects"),
        (JwtProvider { max_lifetime: Some(Default::default()), ..good() }, "max_lifetime"),
        (JwtProvider { forward_payload_header: "a b".into(), ..good() }, "forward_payload_header"),
        (JwtProvider { forward_payload_header: "Content-Length".into(), ..good() }, "forward_payload_header"),
        (JwtProvider { from_headers: vec![Default::default()], ..good() }, "from_headers[0].name"),
    ] {
        assert_eq!(refused(provider).as_deref(), Some(field));
    }
    // Requirements inside each other have an end.
    let mut deep = JwtRequirement::default();
    for _ in 0..20 {
        let all = wire::http_jwt::JwtRequirementOrList { requirements: vec![deep.clone(), deep] };
        deep = JwtRequirement { requires_type: Some(jwt_requirement::RequiresType::RequiresAny(all)) };
        if deep.encoded_len() > 4096 {
            break;
        }
    }
    let rule = wire::http_jwt::RequirementRule {
        r#match: Some(Default::default()),
        requirement_type: Some(wire::http_jwt::requirement_rule::RequirementType::Requires(deep)),
    };
    let whole = JwtAuthentication { rules: vec![rule], ..Default::default() };
    let refused = super::super::super::jwt::decode(&whole, None, 0).unwrap_err();
    assert!(refused.reason.contains("more than 8 deep"), "{refused:?}");
}
