//! What each kind of client is sent, where it differs.

use outrigger_model::cluster::{ClientTls, Cluster, Discovery, UpstreamProtocol};
use outrigger_model::endpoint::{Endpoint, EndpointSet, Locality, LocalityEndpoints};
use outrigger_model::identity::SpiffeId;
use outrigger_model::listener::{
    ChainMatch, Direction, FilterChain, HttpConnection, Listener, RouteSource, Terminal, TransportMatch,
};
use prost::Message;

use super::*;
use crate::wire::{core, hcm, tls};

fn cluster(protocol: UpstreamProtocol) -> Cluster {
    let mut cluster = Cluster::new("outbound|80||a");
    cluster.protocol = protocol;
    cluster.tls = ClientTls::Mesh {
        server_name: "outbound_.80_._.a".into(),
        identities: vec![SpiffeId::parse("spiffe://td/ns/a/sa/b").unwrap()],
        required: false,
    };
    cluster
}

fn context(socket: Option<&core::TransportSocket>) -> tls::UpstreamTlsContext {
    let Some(core::transport_socket::ConfigType::TypedConfig(any)) = &socket.unwrap().config_type else {
        panic!("has no configuration")
    };
    tls::UpstreamTlsContext::decode(any.value.as_slice()).unwrap()
}

#[test]
fn an_envoy_offers_what_it_will_speak_under_tls_1_3() {
    for (protocol, alpn) in [
        (UpstreamProtocol::Http1, "istio-http/1.1"),
        (UpstreamProtocol::Http2, "istio-h2"),
        (UpstreamProtocol::Follow, "istio"),
    ] {
        let wire = cluster::encode(&cluster(protocol), ClientKind::Envoy);
        let [mesh, plain] = wire.transport_socket_matches.as_slice() else { panic!("two matches") };
        assert_eq!((mesh.name.as_str(), plain.name.as_str()), ("tlsMode-istio", "tlsMode-disabled"));
        let context = context(mesh.transport_socket.as_ref());
        assert_eq!(context.sni, "outbound_.80_._.a");
        let common = context.common_tls_context.unwrap();
        assert_eq!(common.alpn_protocols, [alpn]);
        let params = common.tls_params.unwrap();
        assert_eq!((params.tls_minimum_protocol_version, params.tls_maximum_protocol_version), (4, 4));
        assert_eq!(
            common.tls_certificate_sds_secret_configs[0].sds_config, None,
            "a static secret of its own"
        );
        assert!(wire.typed_extension_protocol_options.contains_key(extension::HTTP_OPTIONS));
    }
}

#[test]
fn an_envoy_binds_its_addresses_and_looks_at_first_bytes_only_where_chains_ask() {
    let http = || Terminal::Http(Box::new(HttpConnection::new(RouteSource::Named("r".into()))));
    let chain = |transport| FilterChain {
        matches: ChainMatch { transport, ..Default::default() },
        ..FilterChain::new("", http())
    };
    let mut listener = Listener {
        addresses: vec![
            "10.0.0.1:80".parse::<std::net::SocketAddr>().unwrap(),
            "[fd00::1]:80".parse().unwrap(),
        ],
        chains: vec![chain(TransportMatch::Any)],
        ..Listener::new("l", Direction::Outbound)
    };
    let wire = listener::encode(&listener, ClientKind::Envoy);
    assert!(wire.bind_to_port.unwrap().value);
    assert!(wire.listener_filters.is_empty());
    assert_eq!(wire.additional_addresses.len(), 1);
    listener.chains.push(chain(TransportMatch::Tls));
    listener.chains[1].matches.application_protocols = vec!["istio".into()];
    let wire = listener::encode(&listener, ClientKind::Envoy);
    let names: Vec<_> = wire.listener_filters.iter().map(|f| f.name.as_str()).collect();
    assert_eq!(names, [extension::TLS_INSPECTOR, extension::HTTP_INSPECTOR]);
    assert!(listener::encode(&listener, ClientKind::Outrigger).listener_filters.is_empty());
}

#[test]
fn grpc_gets_an_api_listener_with_nothing_but_the_router() {
    let mut http = HttpConnection::new(RouteSource::Named("r".into()));
    http.filters.push(outrigger_model::listener::HttpFilter::Fault(Default::default()));
    let listener = Listener {
        name: "svc:80".into(),
        direction: Direction::Outbound,
        addresses: vec!["10.0.0.1:80".parse::<std::net::SocketAddr>().unwrap()],
        chains: vec![FilterChain::new("", Terminal::Http(Box::new(http)))],
        default_chain: None,
    };
    let wire = listener::encode(&listener, ClientKind::Grpc);
    assert!(wire.address.is_none() && wire.filter_chains.is_empty());
    let any = wire.api_listener.unwrap().api_listener.unwrap();
    assert_eq!(any.type_url, wire::url::<hcm::HttpConnectionManager>());
    let manager = hcm::HttpConnectionManager::decode(any.value.as_slice()).unwrap();
    let names: Vec<_> = manager.http_filters.iter().map(|f| f.name.as_str()).collect();
    assert_eq!(names, [extension::ROUTER]);
}

#[test]
fn grpc_gets_certificates_from_its_provider_and_only_for_the_mesh() {
    let wire = cluster::encode(&cluster(UpstreamProtocol::Http2), ClientKind::Grpc);
    assert!(wire.transport_socket_matches.is_empty() && wire.typed_extension_protocol_options.is_empty());
    let common = context(wire.transport_socket.as_ref()).common_tls_context.unwrap();
    assert_eq!(common.tls_certificate_provider_instance.unwrap().instance_name, "default");
    assert!(common.tls_params.is_none(), "gRPC refuses parameters");
    let plain = cluster::encode(&Cluster::new("c"), ClientKind::Grpc);
    assert!(plain.transport_socket.is_none());
}

#[test]
fn grpc_gets_priorities_without_gaps_and_each_locality_once() {
    let locality = |zone: &str, priority, weight| LocalityEndpoints {
        locality: Locality { zone: zone.into(), ..Default::default() },
        priority,
        weight,
        endpoints: vec![Endpoint {
            address: "10.0.0.1:80".parse::<std::net::SocketAddr>().unwrap(),
            weight: 1,
            health: Default::default(),
            identity: None,
            mesh_tls: true,
            workload: None,
            hostname: None,
            labels: None,
        }],
    };
    let set = EndpointSet::new("c", vec![locality("a", 5, 2), locality("b", 1, 0), locality("a", 5, 3)]);
    let wire = endpoint::encode(&set, ClientKind::Grpc);
    let seen: Vec<_> = wire
        .endpoints
        .iter()
        .map(|l| (l.priority, l.load_balancing_weight.unwrap().value, l.lb_endpoints.len()))
        .collect();
    assert_eq!(seen, [(0, 1, 1), (1, 5, 2)]);
    assert!(wire.endpoints[0].lb_endpoints[0].metadata.is_none());
}

#[test]
fn places_without_weights_are_left_to_their_endpoints() {
    use outrigger_model::endpoint::Health;
    let at = |port: u16| std::net::SocketAddr::from(([10, 0, 0, 1], port));
    let place = |zone: &str, healths: &[Health]| LocalityEndpoints {
        locality: Locality { zone: zone.into(), ..Default::default() },
        endpoints: healths
            .iter()
            .zip(1..)
            .map(|(health, port)| Endpoint { health: *health, weight: 5, ..Endpoint::new(at(port)) })
            .collect(),
        ..Default::default()
    };
    let (up, leaving, down) = (Health::Healthy, Health::Draining, Health::Unhealthy);
    let set = EndpointSet::new(
        "c",
        vec![place("a", &[up, leaving, leaving, leaving]), place("b", &[up, up, down]), place("c", &[down])],
    );
    let weights = |kind| -> Vec<Option<u32>> {
        let wire = endpoint::encode(&set, kind);
        wire.endpoints.iter().map(|l| l.load_balancing_weight.as_ref().map(|weight| weight.value)).collect()
    };
    assert_eq!(
        weights(ClientKind::Grpc),
        [Some(5), Some(10), Some(1)],
        "it takes none without, and none of 0"
    );
    assert_eq!(weights(ClientKind::Outrigger), [None, None, None]);
    assert_eq!(endpoint::decode(&endpoint::encode(&set, ClientKind::Outrigger)).unwrap(), set);
    let goes_by_places = |place_weights| {
        let model = Cluster { place_weights, ..Cluster::new("c") };
        let common = cluster::encode(&model, ClientKind::Envoy).common_lb_config.unwrap();
        common.locality_config_specifier.is_some()
    };
    assert!(goes_by_places(true) && !goes_by_places(false));
}

#[test]
fn an_envoy_is_told_an_original_destination_in_its_own_way() {
    use crate::wire::cluster::cluster::LbPolicy;
    let mut cluster = Cluster::new("passthrough");
    cluster.discovery = Discovery::OriginalDestination;
    let wire = cluster::encode(&cluster, ClientKind::Envoy);
    assert_eq!(wire.lb_policy, LbPolicy::ClusterProvided as i32);
    assert!(wire.common_lb_config.is_none());
}

#[test]
fn an_envoy_is_spared_what_it_would_refuse() {
    use outrigger_model::matcher::StringMatch;
    use outrigger_model::policy::{Permission, Principal, Rbac, RbacAction, RbacPolicy};
    use std::time::Duration;
    let mut cluster = Cluster::new("c");
    cluster.outlier = Some(outrigger_model::cluster::Outlier {
        base_ejection: Duration::from_secs(400),
        ..Default::default()
    });
    let outlier = cluster::encode(&cluster, ClientKind::Envoy).outlier_detection.unwrap();
    assert_eq!(outlier.max_ejection_time, outlier.base_ejection_time, "a longest below the base");
    // Conditions on requests never hold on connections; Envoy's network filter wants to see none.
    let path = Permission::Path(StringMatch::exact("/"));
    let policy = RbacPolicy {
        permissions: vec![Permission::Or(vec![path])],
        principals: vec![Principal::Any],
        origin: None,
    };
    let filter = Rbac { action: RbacAction::Deny, policies: [("p".to_owned(), policy)].into() };
    let wire = policy::encode_for_connections(&filter, ClientKind::Envoy);
    let told = policy::decode(&wire, None, 0).unwrap();
    let never = Permission::Not(Box::new(Permission::Any));
    assert_eq!(told.policies["p"].permissions, [Permission::Or(vec![never])]);
    assert_eq!(
        policy::encode_for_connections(&filter, ClientKind::Outrigger),
        policy::encode(&filter, ClientKind::Outrigger)
    );
}

#[test]
fn grpc_gets_a_ring_where_others_get_a_table() {
    use crate::wire::cluster::cluster::LbPolicy;
    use outrigger_model::cluster::Balance;
    let mut cluster = Cluster::new("c");
    cluster.balance = Balance::Maglev { size: 65_537 };
    let policy = |kind| cluster::encode(&cluster, kind).lb_policy;
    assert_eq!(policy(ClientKind::Grpc), LbPolicy::RingHash as i32);
    assert_eq!(policy(ClientKind::Envoy), LbPolicy::Maglev as i32);
}

#[test]
fn only_sidecars_of_ours_are_told_who_is_revoked() {
    let secret = outrigger_model::resource::TrustBundleSecret {
        name: "ROOTCA".into(),
        roots_pem: "-----BEGIN CERTIFICATE-----\n-----END CERTIFICATE-----\n".into(),
        revoked: vec!["serial:1".into()],
    };
    for (kind, told) in [(ClientKind::Outrigger, true), (ClientKind::Envoy, false), (ClientKind::Grpc, false)]
    {
        let wire = secret::encode(&secret, kind);
        let Some(tls::secret::Type::ValidationContext(context)) = wire.r#type else { panic!("no context") };
        assert_eq!(context.custom_validator_config.is_some(), told, "{kind:?}");
    }
    assert_ne!(
        hash_of(&Resource::Secret(secret.clone())),
        hash_of(&Resource::Secret(outrigger_model::resource::TrustBundleSecret {
            revoked: Vec::new(),
            ..secret
        })),
    );
}

#[test]
fn an_envoy_judges_the_same_path_and_takes_the_same_upgrades() {
    use crate::wire::hcm::http_connection_manager::PathWithEscapedSlashesAction as Slashes;
    use outrigger_model::path::{EscapedSlashes, PathNormalization};
    let mut http = HttpConnection::new(RouteSource::Named("r".into()));
    for kind in [ClientKind::Envoy, ClientKind::Outrigger] {
        let wire = http::encode(&http, "p", kind);
        assert_eq!((wire.normalize_path.map(|v| v.value), wire.merge_slashes), (Some(true), true));
        assert_eq!(wire.path_with_escaped_slashes_action, Slashes::KeepUnchanged as i32);
        assert_eq!(wire.upgrade_configs.len(), 1);
        assert_eq!(wire.upgrade_configs[0].upgrade_type, "websocket");
    }
    http.path = PathNormalization { escaped_slashes: EscapedSlashes::Decode, ..PathNormalization::BASE };
    let wire = http::encode(&http, "p", ClientKind::Envoy);
    assert_eq!((wire.normalize_path.map(|v| v.value), wire.merge_slashes), (Some(true), false));
    assert_eq!(wire.path_with_escaped_slashes_action, Slashes::UnescapeAndForward as i32);
    // Who says nothing gets our default; who says so, nothing.
    let mut silent = hcm::HttpConnectionManager { normalize_path: None, upgrade_configs: Vec::new(), ..wire };
    silent.path_with_escaped_slashes_action = 0;
    let told = http::decode(&silent, None).unwrap();
    assert_eq!((told.path, told.upgrades), (PathNormalization::MERGE_SLASHES, vec!["websocket".to_owned()]));
    silent.normalize_path = wire::boolean(false);
    assert_eq!(http::decode(&silent, None).unwrap().path, PathNormalization::NONE);
    silent.path_with_escaped_slashes_action = Slashes::UnescapeAndRedirect as i32;
    assert_eq!(http::decode(&silent, None).unwrap_err().field, "path_with_escaped_slashes_action");
}

#[test]
fn an_envoy_is_told_that_a_route_takes_connect_and_to_compare_hosts_as_we_do() {
    use crate::wire::matcher::string_matcher::MatchPattern;
    use outrigger_model::matcher::{Pattern, StringMatch};
    use outrigger_model::route::{Forward, HeaderMatch, WeightedCluster};
    let forward = Forward { clusters: vec![WeightedCluster::only("c")], ..Forward::default() };
    let types = |connect| {
        let wire = forward::encode(&forward, connect, ClientKind::Envoy);
        wire.upgrade_configs.into_iter().map(|config| config.upgrade_type).collect::<Vec<_>>()
    };
    assert_eq!((types(true), types(false)), (vec!["CONNECT".to_owned()], vec![]));
    let header = |name: &str, pattern| HeaderMatch {
        name: name.into(),
        value: StringMatch { pattern, ignore_case: true },
        invert: false,
    };
    let regex = |header: &HeaderMatch, kind| match matcher::encode_header(header, kind).header_match_specifier
    {
        Some(wire::route::header_matcher::HeaderMatchSpecifier::StringMatch(m)) => match m.match_pattern {
            Some(MatchPattern::SafeRegex(regex)) => Some(regex.regex),
            _ => None,
        },
        _ => None,
    };
    let exact = header(":authority", Pattern::Exact("a.shop".into()));
    let wanted = "(?i)a\\.shop\\.*(:[0-9]+)?";
    assert_eq!(regex(&exact, ClientKind::Envoy).as_deref(), Some(wanted));
    assert_eq!(regex(&exact, ClientKind::Outrigger), None);
    for (name, pattern) in
        [(":authority", Pattern::Exact("a.shop:80".into())), ("x-host", Pattern::Exact("a.shop".into()))]
    {
        assert_eq!(regex(&header(name, pattern), ClientKind::Envoy), None, "{name}");
    }
}
