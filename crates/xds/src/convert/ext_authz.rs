//! `envoy.extensions.filters.http.ext_authz.v3.ExtAuthz`. What it cannot say here refuses the listener: left out, it would let
//! somebody in.

use outrigger_model::ext_authz::{
    AuthzBody, AuthzService, ExtAuthz, HttpAuthz, MOST_ADDED, MOST_BODY, is_path_prefix,
};
use outrigger_model::listener::HttpFilter;
use outrigger_model::matcher::StringMatch;

use super::extension::{HTTP_RBAC, is, unpack};
use super::flaw::{Decoded, Under, each, flaw};
use super::metadata::policies_value;
use super::row::{Reading, Row, Writing};
use super::shadow::{self, Shadow};
use super::value::{duration_or, status};
use super::{headers, matcher, note, policy, rbac};
use crate::wire::core::grpc_service::{EnvoyGrpc, TargetSpecifier};
use crate::wire::core::http_uri::HttpUpstreamType;
use crate::wire::core::{self, GrpcService, HeaderValue, HttpUri};
use crate::wire::http_authz::ext_authz::Services;
use crate::wire::http_authz::{
    self as wire, AuthorizationRequest, AuthorizationResponse, BufferSettings, HttpService,
};
use crate::wire::matcher::ListStringMatcher;
use crate::wire::protobuf::Value;
use crate::wire::scalar::HttpStatus;
use crate::wire::{any, duration};

pub(super) const ROW: Row = Row {
    is: is::<wire::ExtAuthz>,
    read,
    reads_disabled: false,
    write,
    // It has an RBAC filter of its own before it.
    origins: |filter| match filter {
        HttpFilter::ExtAuthz(authz) => {
            let only = authz.only.as_ref()?;
            Some((rbac::ORIGINS, policies_value(policy::origins(only))))
        }
        _ => None,
    },
};

fn read(reading: &mut Reading<'_>) -> Decoded<Option<HttpFilter>> {
    let wire: wire::ExtAuthz = unpack(reading.config)?;
    let mut authz = decode(&wire, reading.shadows, reading.origins(rbac::ORIGINS))?;
    authz.name.clone_from(&reading.filter.name);
    Ok(Some(HttpFilter::ExtAuthz(Box::new(authz))))
}

fn write(filter: &HttpFilter, out: &mut Writing) {
    let HttpFilter::ExtAuthz(authz) = filter else { return };
    let mut asks = encode(authz);
    if let Some(only) = &authz.only {
        let (rbac, wanted) = shadow::encode(only, out.position, out.kind);
        out.push(HTTP_RBAC, any(&rbac));
        asks.filter_enabled_metadata = Some(wanted);
    }
    out.push(&authz.name, any(&asks));
}

fn encode(authz: &ExtAuthz) -> wire::ExtAuthz {
    let services = match &authz.service {
        AuthzService::Grpc { authority, metadata } => Services::GrpcService(GrpcService {
            timeout: Some(duration(authz.timeout)),
            initial_metadata: metadata.iter().map(pair).collect(),
            target_specifier: Some(TargetSpecifier::EnvoyGrpc(EnvoyGrpc {
                cluster_name: authz.cluster.clone(),
                authority: authority.clone(),
                ..Default::default()
            })),
            ..Default::default()
        }),
        AuthzService::Http(http) => Services::HttpService(encode_http(authz, http)),
    };
    wire::ExtAuthz {
        transport_api_version: core::ApiVersion::V3 as i32,
        failure_mode_allow: authz.failure_mode_allow,
        failure_mode_allow_header_add: authz.failure_mode_allow_header,
        with_request_body: authz.body.map(encode_body),
        clear_route_cache: authz.clear_route_cache,
        status_on_error: Some(HttpStatus { code: i32::from(authz.status_on_error) }),
        allowed_headers: authz.allowed_headers.as_deref().map(list),
        disallowed_headers: some_list(&authz.disallowed_headers),
        services: Some(services),
        ..Default::default()
    }
}

pub(super) fn encode_body(body: AuthzBody) -> BufferSettings {
    BufferSettings {
        max_request_bytes: body.max_bytes,
        allow_partial_message: body.allow_partial,
        pack_as_bytes: body.as_bytes,
    }
}

fn encode_http(authz: &ExtAuthz, http: &HttpAuthz) -> HttpService {
    HttpService {
        server_uri: Some(HttpUri {
            uri: format!("http://{}", authz.cluster),
            timeout: Some(duration(authz.timeout)),
            http_upstream_type: Some(HttpUpstreamType::Cluster(authz.cluster.clone())),
        }),
        path_prefix: http.path_prefix.clone(),
        authorization_request: Some(AuthorizationRequest {
            headers_to_add: http.headers_to_add.iter().map(pair).collect(),
            ..Default::default()
        }),
        authorization_response: Some(AuthorizationResponse {
            allowed_upstream_headers: some_list(&http.upstream_headers),
            allowed_upstream_headers_to_append: some_list(&http.upstream_headers_to_append),
            allowed_client_headers: http.client_headers.as_deref().map(list),
            allowed_client_headers_on_success: some_list(&http.client_headers_on_success),
            ..Default::default()
        }),
        ..Default::default()
    }
}

fn pair((key, value): &(String, String)) -> HeaderValue {
    HeaderValue { key: key.clone(), value: value.clone(), ..Default::default() }
}

fn list(matches: &[StringMatch]) -> ListStringMatcher {
    ListStringMatcher { patterns: matches.iter().map(matcher::encode).collect() }
}

fn some_list(matches: &[StringMatch]) -> Option<ListStringMatcher> {
    (!matches.is_empty()).then(|| list(matches))
}

/// `shadows` are the shadow rules before it, `origins` those of the filter chain's HTTP policies.
fn decode(wire: &wire::ExtAuthz, shadows: &[Shadow], origins: Option<&Value>) -> Decoded<ExtAuthz> {
    note!(
        wire,
        stat_prefix,
        include_peer_certificate,
        include_tls_session,
        encode_raw_headers,
        validate_mutations,
        metadata_context_namespaces,
        typed_metadata_context_namespaces,
        route_metadata_context_namespaces,
        route_typed_metadata_context_namespaces,
        bootstrap_metadata_labels_key,
        enable_dynamic_metadata_ingestion,
        filter_metadata,
        max_denied_response_body_bytes,
        enforce_response_header_limits,
    );
    for (field, given) in [
        ("filter_enabled", wire.filter_enabled.is_some()),
        ("deny_at_disable", wire.deny_at_disable.is_some()),
        ("shadow_mode", wire.shadow_mode),
        // Left out, the service could edit what it must not.
        ("decoder_header_mutation_rules", wire.decoder_header_mutation_rules.is_some()),
    ] {
        if given {
            return flaw(field, "is not supported");
        }
    }
    let (service, cluster, timeout) = match &wire.services {
        Some(Services::GrpcService(grpc)) => decode_grpc(grpc).under("grpc_service")?,
        Some(Services::HttpService(http)) => decode_http(http).under("http_service")?,
        None => return flaw("grpc_service", "one of grpc_service and http_service is required"),
    };
    let only = wire.filter_enabled_metadata.as_ref().map(|wanted| shadow::decode(wanted, shadows, origins));
    let default = ExtAuthz::new(service, cluster);
    let timeout = duration_or(timeout, default.timeout, "timeout")?;
    if timeout.is_zero() {
        return flaw("timeout", "must be greater than 0: requests would wait without an end");
    }
    let on_error = wire.status_on_error.as_ref().and_then(|status| u32::try_from(status.code).ok());
    Ok(ExtAuthz {
        timeout,
        failure_mode_allow: wire.failure_mode_allow,
        failure_mode_allow_header: wire.failure_mode_allow_header_add,
        status_on_error: match on_error {
            Some(code) if code > 0 => status(code, 200..=599, "status_on_error")?,
            _ => default.status_on_error,
        },
        body: wire.with_request_body.as_ref().map(decode_body).transpose().under("with_request_body")?,
        allowed_headers: match (&wire.allowed_headers, &wire.services) {
            (Some(allowed), _) => Some(decode_list(Some(allowed)).under("allowed_headers")?),
            (None, Some(Services::HttpService(http))) => {
                let request = http.authorization_request.as_ref();
                #[allow(deprecated)] // older control planes say it here
                let allowed = request.and_then(|request| request.allowed_headers.as_ref());
                allowed.map(|allowed| decode_list(Some(allowed))).transpose().under("allowed_headers")?
            }
            _ => None,
        },
        disallowed_headers: decode_list(wire.disallowed_headers.as_ref()).under("disallowed_headers")?,
        clear_route_cache: wire.clear_route_cache,
        only: only.transpose().under("filter_enabled_metadata")?,
        ..default
    })
}

type Service<'w> = (AuthzService, String, Option<&'w crate::wire::protobuf::Duration>);

fn decode_grpc(wire: &GrpcService) -> Decoded<Service<'_>> {
    let Some(TargetSpecifier::EnvoyGrpc(grpc)) = &wire.target_specifier else {
        return flaw("envoy_grpc", "is required");
    };
    if grpc.cluster_name.is_empty() {
        return flaw("envoy_grpc.cluster_name", "must not be empty");
    }
    let metadata = decode_pairs(&wire.initial_metadata, "initial_metadata")?;
    let service = AuthzService::Grpc { authority: grpc.authority.clone(), metadata };
    Ok((service, grpc.cluster_name.clone(), wire.timeout.as_ref()))
}

fn decode_http(wire: &HttpService) -> Decoded<Service<'_>> {
    note!(wire, retry_policy);
    let Some(uri) = &wire.server_uri else { return flaw("server_uri", "is required") };
    let cluster = match &uri.http_upstream_type {
        Some(HttpUpstreamType::Cluster(cluster)) if !cluster.is_empty() => cluster.clone(),
        _ => return flaw("server_uri.cluster", "must not be empty"),
    };
    if !wire.path_override.is_empty() {
        return flaw("path_override", "is not supported");
    }
    let prefix = wire.path_prefix.as_str();
    if !is_path_prefix(prefix) {
        return flaw("path_prefix", format!("\"{}\" is no beginning of a path", prefix.escape_debug()));
    }
    let add = wire.authorization_request.as_ref().map_or(&[][..], |request| &request.headers_to_add);
    let response = wire.authorization_response.clone().unwrap_or_default();
    if response.dynamic_metadata_from_headers.is_some() {
        super::left_out("dynamic_metadata_from_headers");
    }
    let http = HttpAuthz {
        path_prefix: wire.path_prefix.clone(),
        headers_to_add: decode_pairs(add, "authorization_request.headers_to_add")?,
        upstream_headers: decode_list(response.allowed_upstream_headers.as_ref())?,
        upstream_headers_to_append: decode_list(response.allowed_upstream_headers_to_append.as_ref())?,
        // None named are all.
        client_headers: match &response.allowed_client_headers {
            Some(list) if !list.patterns.is_empty() => Some(decode_list(Some(list))?),
            _ => None,
        },
        client_headers_on_success: decode_list(response.allowed_client_headers_on_success.as_ref())?,
    };
    Ok((AuthzService::Http(http), cluster, uri.timeout.as_ref()))
}

/// Headers of every question. One that could not be sent would fail, or let pass, every request.
fn decode_pairs(wire: &[HeaderValue], field: &str) -> Decoded<Vec<(String, String)>> {
    let pairs = each(wire, field, headers::literal_pair)?;
    let bytes: usize = pairs.iter().map(|(name, value)| name.len() + value.len()).sum();
    if bytes > MOST_ADDED {
        return flaw(field, format!("{bytes} bytes are more than {MOST_ADDED}"));
    }
    Ok(pairs)
}

pub(super) fn decode_body(wire: &BufferSettings) -> Decoded<AuthzBody> {
    match wire.max_request_bytes {
        0 => flaw("max_request_bytes", "must be greater than 0"),
        bytes if bytes > MOST_BODY => flaw("max_request_bytes", format!("at most {MOST_BODY} are supported")),
        max_bytes => Ok(AuthzBody {
            max_bytes,
            allow_partial: wire.allow_partial_message,
            as_bytes: wire.pack_as_bytes,
        }),
    }
}

fn decode_list(wire: Option<&ListStringMatcher>) -> Decoded<Vec<StringMatch>> {
    wire.map_or(Ok(Vec::new()), |list| each(&list.patterns, "patterns", matcher::decode))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_reads_the_same_and_what_narrows_it_is_refused() {
        let http = HttpAuthz {
            path_prefix: "/check".into(),
            headers_to_add: vec![("x-key".into(), "k".into())],
            upstream_headers: vec![StringMatch::exact("x-user")],
            client_headers: Some(vec![StringMatch::prefix("x-")]),
            ..HttpAuthz::default()
        };
        let body = AuthzBody { max_bytes: 8192, allow_partial: true, as_bytes: false };
        let http = ExtAuthz { body: Some(body), ..ExtAuthz::new(AuthzService::Http(http), "authz") };
        let grpc = AuthzService::Grpc { authority: "authz.shop".into(), metadata: Vec::new() };
        let grpc = ExtAuthz { failure_mode_allow: true, status_on_error: 503, ..ExtAuthz::new(grpc, "g") };
        for authz in [http, grpc] {
            assert_eq!(decode(&encode(&authz), &[], None).ok(), Some(authz));
        }
        let whole = encode(&ExtAuthz::new(AuthzService::Http(HttpAuthz::default()), "authz"));
        let shadow = wire::ExtAuthz { shadow_mode: true, ..whole.clone() };
        assert!(decode(&shadow, &[], None).is_err());
        let bytes = BufferSettings { max_request_bytes: MOST_BODY + 1, ..BufferSettings::default() };
        let large = wire::ExtAuthz { with_request_body: Some(bytes), ..whole };
        assert!(decode(&large, &[], None).is_err());
    }
}
