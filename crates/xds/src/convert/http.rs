//! The HTTP connection manager and its filters.

use outrigger_model::listener::{Codec, HttpConnection, HttpFilter, RouteSource, Tracing};
use outrigger_model::route::Fault;

use super::extension::{self, CONCURRENCY, CORS, FAULT, HTTP_RBAC, JWT, ROUTER, SESSION, is, unpack};
use super::flaw::{Decoded, Under, flaw};
use super::metadata::filter_origin;
use super::value::{duration_at, duration_or, percent, uint_or};
use super::{
    concurrency, ext_authz, global_limit, jwt, left_out, local_limit, note, path, policy, rate_limit, retry,
    route, session, shadow, upgrade,
};
use crate::kind::ClientKind;
use crate::wire::hcm::{
    self, HttpConnectionManager, Rds,
    http_connection_manager::{CodecType, RouteSpecifier},
    http_filter::ConfigType,
};
use crate::wire::http_authz::ExtAuthz;
use crate::wire::http_concurrency::AdaptiveConcurrency;
use crate::wire::http_cors::Cors;
use crate::wire::http_fault::HttpFault;
use crate::wire::http_jwt::JwtAuthentication;
use crate::wire::http_local_limit::LocalRateLimit;
use crate::wire::http_rbac::Rbac;
use crate::wire::http_session::StatefulSession;
use crate::wire::protobuf::{Any, Value};
use crate::wire::router::Router;
use crate::wire::{self, ads, any, boolean, scalar, uint};

pub(super) fn encode(http: &HttpConnection, stat_prefix: &str, kind: ClientKind) -> HttpConnectionManager {
    let manager = HttpConnectionManager {
        stat_prefix: stat_prefix.to_owned(),
        http_filters: encode_filters(&http.filters, kind),
        route_specifier: Some(encode_routes(&http.routes, kind)),
        ..Default::default()
    };
    if kind == ClientKind::Grpc {
        return manager;
    }
    let foreign = kind == ClientKind::Envoy;
    HttpConnectionManager {
        codec_type: match http.codec {
            Codec::Auto => CodecType::Auto,
            Codec::Http1 => CodecType::Http1,
            Codec::Http2 => CodecType::Http2,
        } as i32,
        tracing: http.tracing.map(|t| hcm::http_connection_manager::Tracing {
            random_sampling: Some(scalar::Percent { value: t.random_sampling }),
            ..Default::default()
        }),
        max_request_headers_kb: match http.max_request_headers_kb {
            0 => None,
            kb if foreign => uint(kb.min(8192)),
            kb => uint(kb),
        },
        request_headers_timeout: Some(wire::duration(http.request_headers_timeout)),
        stream_idle_timeout: Some(wire::duration(http.stream_idle_timeout)),
        common_http_protocol_options: Some(wire::core::HttpProtocolOptions {
            idle_timeout: Some(wire::duration(http.idle_timeout)),
            max_connection_duration: http.max_connection_duration.map(wire::duration),
            max_stream_duration: http.max_stream_duration.map(wire::duration),
            ..Default::default()
        }),
        upgrade_configs: upgrade::encode(&http.upgrades),
        normalize_path: boolean(http.path.base),
        merge_slashes: http.path.merge_slashes,
        path_with_escaped_slashes_action: path::encode_escaped(http.path.escaped_slashes) as i32,
        ..manager
    }
}

fn encode_routes(routes: &RouteSource, kind: ClientKind) -> RouteSpecifier {
    match routes {
        RouteSource::Named(name) => {
            RouteSpecifier::Rds(Rds { config_source: Some(ads()), route_config_name: name.clone() })
        }
        RouteSource::Inline(config) => {
            let mut config = route::encode(config, kind);
            // Routes in place are refused by Envoy while a cluster is missing, unless told otherwise.
            config.validate_clusters = boolean(false);
            RouteSpecifier::RouteConfig(config)
        }
    }
}

fn encode_filters(filters: &[HttpFilter], kind: ClientKind) -> Vec<hcm::HttpFilter> {
    let filter = |name: &str, config: Any| hcm::HttpFilter {
        name: name.to_owned(),
        config_type: Some(ConfigType::TypedConfig(config)),
        ..Default::default()
    };
    let mut all = Vec::with_capacity(filters.len() + 2);
    if kind != ClientKind::Grpc {
        for (i, f) in filters.iter().enumerate() {
            match f {
                HttpFilter::Rbac(rbac) => {
                    let rules = Some(policy::encode(rbac, kind));
                    all.push(filter(HTTP_RBAC, any(&Rbac { rules, ..Default::default() })));
                }
                HttpFilter::Fault(fault) => {
                    all.push(filter(FAULT, any(&retry::encode_fault(fault, kind))));
                }
                HttpFilter::ExtAuthz(authz) => {
                    let mut asks = ext_authz::encode(authz);
                    if let Some(only) = &authz.only {
                        let (rbac, wanted) = shadow::encode(only, i, kind);
                        all.push(filter(HTTP_RBAC, any(&rbac)));
                        asks.filter_enabled_metadata = Some(wanted);
                    }
                    all.push(filter(&authz.name, any(&asks)));
                }
                HttpFilter::Tokens(tokens) => all.push(filter(JWT, any(&jwt::encode(tokens, kind)))),
                // An Envoy refuses types that it does not know.
                HttpFilter::RateLimit(_) | HttpFilter::GlobalLimit(_) if kind == ClientKind::Envoy => {}
                HttpFilter::GlobalLimit(limits) => {
                    all.push(filter(global_limit::GLOBAL_LIMIT, global_limit::encode(limits)))
                }
                HttpFilter::Concurrency(limit) => {
                    all.push(filter(CONCURRENCY, any(&concurrency::encode(limit))));
                }
                HttpFilter::LocalLimit(limits) => {
                    all.push(filter(&limits.name, local_limit::encode(&limits.own, kind)));
                }
                HttpFilter::RateLimit(limits) => {
                    all.push(filter(rate_limit::RATE_LIMIT, rate_limit::encode(limits)))
                }
            }
        }
    }
    // A route's faults need the filter to be there.
    if kind == ClientKind::Envoy && !filters.iter().any(|f| matches!(f, HttpFilter::Fault(_))) {
        all.push(filter(FAULT, any(&retry::encode_fault(&Fault::default(), kind))));
    }
    // So do its sessions.
    if kind == ClientKind::Envoy {
        all.push(filter(SESSION, any(&StatefulSession::default())));
    }
    // And its policy for other origins, which acts last.
    if kind == ClientKind::Envoy {
        all.push(filter(CORS, any(&Cors {})));
    }
    all.push(filter(ROUTER, any(&Router::default())));
    all
}

/// The user objects behind what a filter chain has for requests, which ride on the chain.
#[derive(Clone, Copy, Default)]
pub(super) struct Origins<'a> {
    pub(super) policies: Option<&'a Value>,
    pub(super) tokens: Option<&'a Value>,
    pub(super) concurrency: Option<&'a Value>,
}

pub(super) fn decode(wire: &HttpConnectionManager, origins: Origins<'_>) -> Decoded<HttpConnection> {
    note!(
        wire,
        add_user_agent,
        local_reply_config,
        strip_matching_host_port,
        early_header_mutation_extensions,
        original_ip_detection_extensions,
        request_timeout,
        access_log,
        use_remote_address,
        xff_num_trusted_hops,
        skip_xff_append,
        via,
        forward_client_cert_details,
        set_current_client_cert_details,
        path_normalization_options,
        scheme_header_transformation,
        typed_header_validation_config,
        append_x_forwarded_port,
        always_set_request_id_in_response,
        http1_safe_max_connection_duration,
    );
    let routes = match &wire.route_specifier {
        Some(RouteSpecifier::Rds(rds)) if rds.route_config_name.is_empty() => {
            return flaw("rds.route_config_name", "must not be empty");
        }
        Some(RouteSpecifier::Rds(rds)) => RouteSource::Named(rds.route_config_name.clone()),
        Some(RouteSpecifier::RouteConfig(config)) => {
            RouteSource::Inline(route::decode(config).under("route_config")?)
        }
        Some(RouteSpecifier::ScopedRoutes(_)) => return flaw("scoped_routes", "is not supported"),
        None => return flaw("rds", "one of rds and route_config is required"),
    };
    let default = HttpConnection::new(RouteSource::Named(String::new()));
    let common = wire.common_http_protocol_options.as_ref();
    if let Some(common) = common {
        note!(common, max_connection_duration_jitter, max_headers_count, max_requests_per_connection);
    }
    let idle = common.and_then(|c| c.idle_timeout.as_ref());
    let oldest = common.and_then(|c| c.max_connection_duration.as_ref());
    let oldest = duration_at(oldest, "common_http_protocol_options.max_connection_duration")?;
    let longest = common.and_then(|c| c.max_stream_duration.as_ref());
    let longest = duration_at(longest, "common_http_protocol_options.max_stream_duration")?;
    Ok(HttpConnection {
        routes,
        filters: decode_filters(&wire.http_filters, &wire.stat_prefix, origins)?,
        codec: match CodecType::try_from(wire.codec_type) {
            Ok(CodecType::Auto) => Codec::Auto,
            Ok(CodecType::Http1) => Codec::Http1,
            Ok(CodecType::Http2) => Codec::Http2,
            _ => return flaw("codec_type", "only AUTO, HTTP1 and HTTP2 are supported"),
        },
        tracing: wire.tracing.as_ref().map(decode_tracing).transpose().under("tracing")?,
        max_request_headers_kb: uint_or(wire.max_request_headers_kb.as_ref(), default.max_request_headers_kb),
        request_headers_timeout: duration_or(
            wire.request_headers_timeout.as_ref(),
            default.request_headers_timeout,
            "request_headers_timeout",
        )?,
        stream_idle_timeout: duration_or(
            wire.stream_idle_timeout.as_ref(),
            default.stream_idle_timeout,
            "stream_idle_timeout",
        )?,
        max_stream_duration: longest.filter(|longest| !longest.is_zero()),
        idle_timeout: duration_or(idle, default.idle_timeout, "common_http_protocol_options.idle_timeout")?,
        max_connection_duration: oldest.filter(|oldest| !oldest.is_zero()),
        path: path::decode(wire)?,
        upgrades: upgrade::decode(&wire.upgrade_configs)?,
    })
}

fn decode_tracing(wire: &hcm::http_connection_manager::Tracing) -> Decoded<Tracing> {
    note!(wire, custom_tags, overall_sampling);
    let random_sampling =
        wire.random_sampling.as_ref().map_or(Ok(100.0), percent).under("random_sampling")?;
    Ok(Tracing { random_sampling })
}

/// A filter that neither other filters nor rules of ours have to do with; nothing where it is none of these.
fn decode_alone(
    config: &Any,
    filter: &hcm::HttpFilter,
    stat_prefix: &str,
) -> Option<Decoded<Option<HttpFilter>>> {
    if is::<LocalRateLimit>(config) {
        let scope = format!("{stat_prefix}|{}", filter.name);
        let limits = local_limit::of_listener(config, &filter.name, &scope, filter.disabled);
        return Some(limits.map(|limits| Some(HttpFilter::LocalLimit(Box::new(limits)))));
    }
    if filter.disabled {
        return None;
    }
    Some(if global_limit::is(config) {
        global_limit::decode(config).map(|limits| Some(HttpFilter::GlobalLimit(Box::new(limits))))
    } else if rate_limit::is(config) {
        rate_limit::decode(config).map(|limits| Some(HttpFilter::RateLimit(limits)))
    } else if is::<HttpFault>(config) {
        let fault = unpack(config).and_then(|fault: HttpFault| retry::decode_fault(&fault));
        fault.map(|fault| Some(HttpFilter::Fault(fault)))
    } else {
        return None;
    })
}

fn decode_filters(
    wire: &[hcm::HttpFilter],
    stat_prefix: &str,
    origins: Origins<'_>,
) -> Decoded<Vec<HttpFilter>> {
    let mut filters = Vec::with_capacity(wire.len());
    let (mut policies, mut known, mut gradients) = (0, 0, 0);
    let mut shadows = Vec::new();
    let mut routed = false;
    for (i, filter) in wire.iter().enumerate() {
        let field = format!("http_filters[{i}]");
        if routed {
            return flaw(field, "no filter may follow the router");
        }
        let config = match &filter.config_type {
            Some(ConfigType::TypedConfig(config)) => Some(config),
            _ => None,
        };
        let alone = config.and_then(|config| decode_alone(config, filter, stat_prefix));
        if let Some(decoded) = alone {
            filters.extend(decoded.under(format_args!("{field}.typed_config"))?);
            continue;
        }
        match config {
            // A route may enable it; an optional one may be left out only where nobody relies on it.
            Some(config) if filter.disabled && extension::decides_access(&config.type_url) => {
                return flaw(
                    format_args!("{field}.disabled"),
                    "a filter that decides access must not be disabled",
                );
            }
            _ if filter.disabled => left_out("a disabled HTTP filter"),
            Some(config) if is::<Router>(config) => routed = true,
            Some(config) if is::<Rbac>(config) => {
                let rbac: Rbac = unpack(config).under(format_args!("{field}.typed_config"))?;
                let rules = decode_rbac(&rbac, origins.policies, policies);
                filters.extend(rules.under(format_args!("{field}.typed_config"))?.map(HttpFilter::Rbac));
                shadows.extend(shadow::of(&rbac, policies));
                policies += 1;
            }
            // The policy is the route's, and acts where there is one; so is a session.
            Some(config) if is::<Cors>(config) => {}
            Some(config) if is::<StatefulSession>(config) => session::of_listener(config).under(field)?,
            Some(config) if is::<ExtAuthz>(config) => {
                let authz: ExtAuthz = unpack(config).under(format_args!("{field}.typed_config"))?;
                let authz = ext_authz::decode(&authz, &shadows, origins.policies);
                let mut authz = authz.under(format_args!("{field}.typed_config"))?;
                authz.name.clone_from(&filter.name);
                filters.push(HttpFilter::ExtAuthz(Box::new(authz)));
            }
            Some(config) if is::<JwtAuthentication>(config) => {
                let tokens: JwtAuthentication = unpack(config).under(format_args!("{field}.typed_config"))?;
                let tokens = jwt::decode(&tokens, origins.tokens, known);
                known += 1;
                let tokens = tokens.under(format_args!("{field}.typed_config"))?;
                filters.push(HttpFilter::Tokens(Box::new(tokens)));
            }
            Some(config) if is::<AdaptiveConcurrency>(config) => {
                let limit = concurrency::decode(config, filter_origin(origins.concurrency, gradients));
                gradients += 1;
                let limit = limit.under(format_args!("{field}.typed_config"))?;
                filters.extend(limit.map(|limit| HttpFilter::Concurrency(Box::new(limit))));
            }
            Some(config) if extension::decides_access(&config.type_url) => {
                return extension::unknown("HTTP filter", &filter.name, Some(config)).under(field);
            }
            _ if filter.is_optional => left_out("an unknown optional HTTP filter"),
            _ if extension::is_meaningless(&filter.name) => {
                left_out("an HTTP filter that means nothing here")
            }
            other => return extension::unknown("HTTP filter", &filter.name, other).under(field),
        }
    }
    let asks = |filter: &HttpFilter| matches!(filter, HttpFilter::ExtAuthz(authz) if authz.only.is_some());
    if filters.iter().filter(|filter| asks(filter)).count() < shadows.len() {
        left_out("shadow_rules");
    }
    if !routed {
        return flaw("http_filters", "must end with the router, envoy.filters.http.router");
    }
    Ok(filters)
}

fn decode_rbac(
    wire: &Rbac,
    origins: Option<&Value>,
    index: usize,
) -> Decoded<Option<outrigger_model::policy::Rbac>> {
    note!(wire, shadow_matcher);
    if wire.matcher.is_some() {
        return flaw("matcher", "is not supported; use rules");
    }
    // No rules: nothing is enforced.
    wire.rules.as_ref().map(|rules| policy::decode(rules, origins, index)).transpose().under("rules")
}
