//! Every refusal names the field: each case takes a good message, breaks one thing, and says where it must be found.

mod clusters;
mod listeners;
mod routes;

use outrigger_model::resource::{Invalid, Resource, ResourceKind};
use prost::Message;

use crate::wire::{
    self, any, core, hcm, http_fault, http_rbac, matcher as m, network_rbac, own, protobuf, rbac, scalar,
    tcp_proxy, tls, uint,
};
use crate::{ClientKind, decode, type_url};
use listeners::{filter, http_filter, listener, manager, router, unheard_of, with_manager};
use routes::{first_match, regex, routes};

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
use cases;

fn address(ip: &str, port: u32) -> core::Address {
    core::Address {
        address: Some(core::address::Address::SocketAddress(core::SocketAddress {
            address: ip.into(),
            port_specifier: Some(core::socket_address::PortSpecifier::PortValue(port)),
            ..Default::default()
        })),
    }
}

#[test]
fn broken_endpoints_and_secrets_are_refused_at_the_field() {
    let one = outrigger_model::endpoint::EndpointSet {
        cluster: "it".into(),
        localities: vec![outrigger_model::endpoint::LocalityEndpoints {
            endpoints: vec![outrigger_model::endpoint::Endpoint {
                address: "10.0.0.1:80".parse::<std::net::SocketAddr>().unwrap(),
                weight: 1,
                health: Default::default(),
                identity: None,
                mesh_tls: false,
                workload: None,
                hostname: None,
                labels: None,
            }],
            ..Default::default()
        }],
        ..Default::default()
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
            "validation_context.custom_validator_config" => |s| {
                let Some(tls::secret::Type::ValidationContext(context)) = &mut s.r#type else { return };
                let custom = context.custom_validator_config.as_mut().unwrap();
                custom.typed_config.as_mut().unwrap().type_url.push('x');
            },
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

#[test]
fn a_broken_host_is_refused_at_the_field() {
    let host = own::Host {
        name: "it".into(),
        host: "h".into(),
        addresses: vec!["240.240.0.1".into()],
        names: vec![],
    };
    each_is_refused(
        ResourceKind::Host,
        &host,
        cases! { own::Host;
            "name" => |h| h.name.clear(),
            "host" => |h| h.host.clear(),
            "addresses[1]" => |h| h.addresses.push("there".into()),
        },
    );
}

fn roots() -> tls::Secret {
    let secret = outrigger_model::resource::TrustBundleSecret {
        name: "it".into(),
        roots_pem: "-----BEGIN CERTIFICATE-----\n-----END CERTIFICATE-----\n".into(),
        revoked: vec!["serial:1".into()],
    };
    crate::convert::secret::encode(&secret, ClientKind::Outrigger)
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
