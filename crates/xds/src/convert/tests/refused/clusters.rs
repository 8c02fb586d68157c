//! Clusters that are refused.

use super::*;

fn cluster() -> wire::cluster::Cluster {
    let mut model = outrigger_model::cluster::Cluster::new("it");
    model.tls = outrigger_model::cluster::ClientTls::Mesh {
        server_name: "outbound_.80_._.a".into(),
        identities: vec![outrigger_model::identity::SpiffeId::parse("spiffe://td/ns/a/sa/b").unwrap()],
        required: false,
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

fn change_http(
    c: &mut wire::cluster::Cluster,
    change: impl Fn(&mut wire::upstream_http::HttpProtocolOptions),
) {
    let packed = c.typed_extension_protocol_options.values_mut().next().unwrap();
    let mut options = wire::upstream_http::HttpProtocolOptions::decode(packed.value.as_slice()).unwrap();
    change(&mut options);
    *packed = any(&options);
}

fn change_common(c: &mut wire::cluster::Cluster, change: impl Fn(&mut core::HttpProtocolOptions)) {
    change_http(c, |options| change(options.common_http_protocol_options.as_mut().unwrap()));
}

/// No duration.
fn before_now() -> protobuf::Duration {
    protobuf::Duration { seconds: -1, nanos: 0 }
}

fn change_http2(c: &mut wire::cluster::Cluster, streams: u32) {
    use wire::upstream_http::http_protocol_options::UpstreamProtocolOptions::UseDownstreamProtocolConfig;
    change_http(c, |options| {
        let Some(UseDownstreamProtocolConfig(both)) = &mut options.upstream_protocol_options else {
            unreachable!()
        };
        both.http2_protocol_options.as_mut().unwrap().max_concurrent_streams = uint(streams);
    });
}

#[test]
fn broken_clusters_are_refused_at_the_field() {
    use wire::cluster::cluster::{ClusterDiscoveryType, DiscoveryType, LbConfig, OriginalDstLbConfig};
    let of_type = |t: DiscoveryType| Some(ClusterDiscoveryType::Type(t as i32));
    fn original(c: &mut wire::cluster::Cluster, say: fn(&mut OriginalDstLbConfig)) {
        let mut config = OriginalDstLbConfig::default();
        say(&mut config);
        c.lb_config = Some(LbConfig::OriginalDstLbConfig(config));
    }
    each_is_refused(
        ResourceKind::Cluster,
        &cluster(),
        cases! { wire::cluster::Cluster;
            "name" => |c| c.name.clear(),
            "eds_cluster_config" => |c| c.eds_cluster_config = None,
            "load_assignment" => |c| c.cluster_discovery_type = of_type(DiscoveryType::Static),
            "cluster_type" => |c| {
                c.cluster_discovery_type = Some(ClusterDiscoveryType::ClusterType(Default::default()))
            },
            "original_dst_lb_config" => |c| original(c, |config| config.use_http_header = true),
            "original_dst_lb_config" => |c| original(c, |config| config.metadata_key = Some(Default::default())),
            "connect_timeout" => |c| c.connect_timeout = Some(protobuf::Duration { seconds: 0, nanos: -1 }),
            "typed_extension_protocol_options[envoy.extensions.upstreams.http.v3.HttpProtocolOptions].http2_protocol_options.max_concurrent_streams" => |c| {
                change_http2(c, 0)
            },
            "typed_extension_protocol_options[envoy.extensions.upstreams.http.v3.HttpProtocolOptions].http2_protocol_options.max_concurrent_streams" => |c| {
                change_http2(c, 1 << 31)
            },
            "typed_extension_protocol_options[envoy.extensions.upstreams.http.v3.HttpProtocolOptions].max_stream_duration" => |c| {
                change_common(c, |common| common.max_stream_duration = Some(before_now()))
            },
            "typed_extension_protocol_options[envoy.extensions.upstreams.http.v3.HttpProtocolOptions].max_connection_duration" => |c| {
                change_common(c, |common| common.max_connection_duration = Some(before_now()))
            },
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

/// A certificate is looked at for its chain and its names: what asks for more would be trusted without it.
#[test]
fn tls_that_asks_for_more_than_is_looked_at_is_refused() {
    use tls::common_tls_context::ValidationContextType;
    fn peer(c: &mut wire::cluster::Cluster, change: fn(&mut tls::CertificateValidationContext)) {
        let Some(core::transport_socket::ConfigType::TypedConfig(config)) =
            &mut c.transport_socket.as_mut().unwrap().config_type
        else {
            unreachable!()
        };
        let mut context = tls::UpstreamTlsContext::decode(config.value.as_slice()).unwrap();
        let common = context.common_tls_context.as_mut().unwrap();
        let Some(ValidationContextType::ValidationContext(peer)) = &mut common.validation_context_type else {
            unreachable!()
        };
        change(peer);
        *config = any(&context);
    }
    let outside =
        outrigger_model::cluster::OutsideTls { server_name: "a.example".into(), ..Default::default() };
    let mut model = outrigger_model::cluster::Cluster::new("it");
    model.tls = outrigger_model::cluster::ClientTls::Outside(outside);
    each_is_refused(
        ResourceKind::Cluster,
        &crate::convert::cluster::encode(&model, ClientKind::Outrigger),
        cases! { wire::cluster::Cluster;
            "transport_socket.typed_config.common_tls_context.validation_context" => |c| peer(c, |peer| peer.max_verify_depth = uint(2)),
            "transport_socket.typed_config.common_tls_context.validation_context" => |c| peer(c, |peer| peer.only_verify_leaf_cert_crl = true),
            "transport_socket.typed_config.common_tls_context.validation_context" => |c| peer(c, |peer| peer.require_signed_certificate_timestamp = wire::boolean(true)),
            "transport_socket.typed_config.common_tls_context.validation_context" => |c| peer(c, |peer| peer.verify_certificate_hash.push("a".into())),
        },
    );
}

#[test]
#[allow(deprecated)] // see convert::dns
fn broken_clusters_of_names_are_refused_at_the_field() {
    use outrigger_model::cluster::{Discovery, DnsDiscovery};
    use outrigger_model::endpoint::{Endpoint, EndpointSet, LocalityEndpoints, NamedAddress};
    use wire::cluster::cluster::{ClusterDiscoveryType, CustomClusterType, RefreshRate};
    let mut model = outrigger_model::cluster::Cluster::new("it");
    let name = NamedAddress { host: "api.example.com".into(), port: 443 };
    let place = LocalityEndpoints { endpoints: vec![Endpoint::new(name)], ..Default::default() };
    model.discovery = Discovery::Dns(Box::new(DnsDiscovery {
        endpoints: EndpointSet::new("it", vec![place]),
        first_only: true,
        retry: Some((std::time::Duration::from_secs(1), std::time::Duration::from_secs(2))),
        ..DnsDiscovery::default()
    }));
    fn named(c: &mut wire::cluster::Cluster, name: &str) {
        let assignment = c.load_assignment.as_mut().unwrap();
        let Some(wire::endpoint::lb_endpoint::HostIdentifier::Endpoint(endpoint)) =
            &mut assignment.endpoints[0].lb_endpoints[0].host_identifier
        else {
            unreachable!()
        };
        endpoint.address = Some(address(name, 443));
    }
    let retry = |c: &mut wire::cluster::Cluster, base, max| {
        let seconds = |seconds| Some(protobuf::Duration { seconds, nanos: 0 });
        c.dns_failure_refresh_rate =
            Some(RefreshRate { base_interval: seconds(base), max_interval: seconds(max) });
    };
    each_is_refused(
        ResourceKind::Cluster,
        &crate::convert::cluster::encode(&model, ClientKind::Outrigger),
        cases! { wire::cluster::Cluster;
            "load_assignment" => |c| c.load_assignment = None,
            "load_assignment" => |c| c.load_assignment.as_mut().unwrap().endpoints.clear(),
            "load_assignment.endpoints[0].lb_endpoints[0].endpoint.address.socket_address.address" => |c| named(c, "*.example.com"),
            "load_assignment.endpoints[0].lb_endpoints[0].endpoint.address.socket_address.address" => |c| named(c, ""),
            "load_assignment.endpoints[0].lb_endpoints[0].endpoint.address.socket_address.address" => |c| named(c, "a..b"),
            "dns_refresh_rate" => |c| c.dns_refresh_rate = Some(Default::default()),
            "dns_failure_refresh_rate.base_interval" => |c| retry(c, 0, 1),
            "dns_failure_refresh_rate.max_interval" => |c| retry(c, 2, 1),
            "dns_lookup_family" => |c| c.dns_lookup_family = 77,
            "cluster_type" => |c| {
                c.cluster_discovery_type = Some(ClusterDiscoveryType::ClusterType(CustomClusterType {
                    name: "envoy.clusters.redis".into(),
                    typed_config: Some(unheard_of()),
                }))
            },
        },
    );
}

#[test]
fn a_circuit_breaker_that_cannot_be_is_refused_by_its_field() {
    use outrigger_model::cluster::Cluster;
    let number = |value: f64| protobuf::Value { kind: Some(protobuf::value::Kind::NumberValue(value)) };
    let with = |field: &str, value: protobuf::Value| {
        let model = Cluster { breaker: Some(Box::default()), ..Cluster::new("it") };
        let mut wire = crate::convert::cluster::encode(&model, ClientKind::Outrigger);
        let ours = wire.metadata.as_mut().unwrap().filter_metadata.get_mut("outrigger").unwrap();
        let Some(protobuf::value::Kind::StructValue(breaker)) =
            &mut ours.fields.get_mut("breaker").unwrap().kind
        else {
            panic!("no breaker")
        };
        breaker.fields.insert(field.to_owned(), value);
        refusal(ResourceKind::Cluster, &wire).to_string()
    };
    for (field, value, wanted) in [
        ("failurePercent", number(101.0), "breaker.failurePercent"),
        ("failurePercent", number(0.0), "nothing opens it"),
        ("failurePercent", number(f64::NAN), "breaker.failurePercent"),
        ("interval", number(99.0), "at least 100ms"),
        ("openTime", number(0.0), "open_time"),
        ("openTime", number(1e300), "breaker.openTime"),
        ("probes", number(0.0), "probes"),
        ("probes", protobuf::Value { kind: None }, "breaker.probes"),
    ] {
        let told = with(field, value);
        assert!(told.contains(wanted), "{field}: {told}");
    }
}

#[test]
fn a_health_check_that_cannot_be_is_refused_by_its_field() {
    use outrigger_model::cluster::{CheckHow, Cluster, HealthCheck, HttpCheck, TcpCheck};
    use wire::core::health_check::{HealthChecker, HttpHealthCheck, TcpHealthCheck, payload::Payload};
    fn http(cluster: &mut wire::cluster::Cluster) -> &mut HttpHealthCheck {
        match &mut cluster.health_checks[0].health_checker {
            Some(HealthChecker::HttpHealthCheck(http)) => http,
            _ => panic!("is HTTP"),
        }
    }
    fn tcp(cluster: &mut wire::cluster::Cluster) -> &mut TcpHealthCheck {
        match &mut cluster.health_checks[0].health_checker {
            Some(HealthChecker::TcpHealthCheck(tcp)) => tcp,
            _ => panic!("is TCP"),
        }
    }
    let encoded = |how| {
        let model = Cluster { health_check: Some(Box::new(HealthCheck::new(how))), ..Cluster::new("it") };
        crate::convert::cluster::encode(&model, ClientKind::Outrigger)
    };
    each_is_refused(
        ResourceKind::Cluster,
        &encoded(CheckHow::Http(HttpCheck { expected: vec![(200, 299)], ..HttpCheck::of("/") })),
        cases! { wire::cluster::Cluster;
            "health_checks[0].timeout" => |c| c.health_checks[0].timeout = None,
            "health_checks[0].interval" => |c| c.health_checks[0].interval = Some(Default::default()),
            "health_checks[0].no_traffic_interval" => |c| c.health_checks[0].no_traffic_interval = Some(Default::default()),
            "health_checks[0].unhealthy_threshold" => |c| c.health_checks[0].unhealthy_threshold = None,
            "health_checks[0].healthy_threshold" => |c| c.health_checks[0].healthy_threshold = None,
            "health_checks[0].health_checker" => |c| c.health_checks[0].health_checker = None,
            "health_checks[0].http_health_check.path" => |c| http(c).path = "healthz".into(),
            "health_checks[0].http_health_check.method" => |c| http(c).method = 6,
            "health_checks[0].http_health_check.method" => |c| http(c).method = 77,
            "health_checks[0].http_health_check.codec_client_type" => |c| http(c).codec_client_type = 2,
            "health_checks[0].http_health_check.expected_statuses[0]" => |c| http(c).expected_statuses[0].end = 200,
            "health_checks[0].http_health_check.expected_statuses[0]" => |c| http(c).expected_statuses[0].end = 601,
            "health_checks[0].http_health_check.expected_statuses[0]" => |c| http(c).expected_statuses[0].start = -1,
        },
    );
    each_is_refused(
        ResourceKind::Cluster,
        &encoded(CheckHow::Tcp(TcpCheck { send: b"PING".into(), receive: vec![b"PONG".into()] })),
        cases! { wire::cluster::Cluster;
            "health_checks[0].tcp_health_check.send.text" => |c| tcp(c).send.as_mut().unwrap().payload = Some(Payload::Text("0".into())),
            "health_checks[0].tcp_health_check.receive[0].text" => |c| tcp(c).receive[0].payload = Some(Payload::Text("zz".into())),
            "health_checks[0].tcp_health_check.receive[0].payload" => |c| tcp(c).receive[0].payload = None,
        },
    );
}
