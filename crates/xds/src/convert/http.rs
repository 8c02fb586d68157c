//! The HTTP connection manager and its filters.

use outrigger_model::listener::{Codec, HttpConnection, RouteSource, Tracing};

use super::flaw::{Decoded, Under, flaw};
use super::value::{duration_at, duration_or, percent, uint_or};
use super::{filters, note, path, route, upgrade};
use crate::kind::ClientKind;
use crate::wire::core::Metadata;
use crate::wire::hcm::{
    self, HttpConnectionManager, Rds,
    http_connection_manager::{CodecType, RouteSpecifier},
};
use crate::wire::{self, ads, boolean, scalar, uint};

pub(super) fn encode(http: &HttpConnection, stat_prefix: &str, kind: ClientKind) -> HttpConnectionManager {
    let manager = HttpConnectionManager {
        stat_prefix: stat_prefix.to_owned(),
        http_filters: filters::encode(&http.filters, kind),
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

/// `metadata` is the filter chain's.
pub(super) fn decode(wire: &HttpConnectionManager, metadata: Option<&Metadata>) -> Decoded<HttpConnection> {
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
        filters: filters::decode(&wire.http_filters, &wire.stat_prefix, metadata)?,
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
