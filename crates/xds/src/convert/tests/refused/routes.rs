//! Routes that are refused.

use super::*;

pub(super) fn routes() -> wire::route::RouteConfiguration {
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

pub(super) fn first_match(config: &mut wire::route::RouteConfiguration) -> &mut wire::route::RouteMatch {
    first_route(config).r#match.as_mut().unwrap()
}

fn first_action(config: &mut wire::route::RouteConfiguration) -> &mut wire::route::RouteAction {
    match first_route(config).action.as_mut().unwrap() {
        wire::route::route::Action::Route(action) => action,
        _ => unreachable!(),
    }
}

pub(super) fn regex(text: &str) -> m::RegexMatcher {
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
            "virtual_hosts[0].routes[0].match.cookies[0].name" => |c| {
                first_match(c).cookies.push(Default::default())
            },
            "virtual_hosts[0].routes[0].match.cookies[0].string_match" => |c| {
                first_match(c).cookies.push(wire::route::CookieMatcher { name: "x".into(), ..Default::default() })
            },
            "virtual_hosts[0].routes[0].match.query_parameters[0].name" => |c| {
                first_match(c).query_parameters.push(Default::default())
            },
        },
    );
}

#[test]
fn broken_actions_are_refused_at_the_field() {
    each_is_refused(
        ResourceKind::Routes,
        &routes(),
        cases! {
            wire::route::RouteConfiguration;
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
                first_action(c).retry_policy = Some(wire::route::RetryPolicy {
                    retry_on: "retriable-status-codes".into(),
                    retriable_status_codes: vec![7],
                    ..Default::default()
                })
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

#[test]
fn authorization_of_a_place_where_it_can_not_be_had_is_refused() {
    let rbac = || [("x".to_owned(), any(&http_rbac::RbacPerRoute::default()))].into();
    each_is_refused(
        ResourceKind::Routes,
        &routes(),
        cases! { wire::route::RouteConfiguration;
            "typed_per_filter_config[x]" => |c| c.typed_per_filter_config = rbac(),
            "virtual_hosts[0].typed_per_filter_config[x]" => |c| {
                c.virtual_hosts[0].typed_per_filter_config = rbac()
            },
            "virtual_hosts[0].routes[0].typed_per_filter_config[x]" => |c| {
                first_route(c).typed_per_filter_config = rbac()
            },
            "virtual_hosts[0].routes[0].route.weighted_clusters.clusters[0].typed_per_filter_config[x]" => |c| {
                let mut all = weights(&[1]);
                if let wire::route::route_action::ClusterSpecifier::WeightedClusters(all) = &mut all {
                    all.clusters[0].typed_per_filter_config = rbac();
                }
                first_action(c).cluster_specifier = Some(all)
            },
        },
    );
}

#[test]
fn a_priority_that_is_left_after_no_attempt_is_refused_at_the_field() {
    each_is_refused(
        ResourceKind::Routes,
        &routes(),
        cases! { wire::route::RouteConfiguration;
            "virtual_hosts[0].routes[0].route.retry_policy.retry_priority.typed_config.update_frequency" => |c| {
                use wire::route::retry_policy::{RetryPriority, retry_priority::ConfigType::TypedConfig};
                let unsaid = wire::previous_priorities::PreviousPrioritiesConfig::default();
                let config_type = Some(TypedConfig(any(&unsaid)));
                first_action(c).retry_policy = Some(wire::route::RetryPolicy {
                    retry_priority: Some(RetryPriority { name: "it".into(), config_type }),
                    ..Default::default()
                })
            },
        },
    );
}
