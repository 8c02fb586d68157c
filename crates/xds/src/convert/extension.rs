//! Which filters and transport sockets of others are known, known to mean nothing here, or refused.

use prost::{Message, Name};

use super::flaw::{Decoded, Flaw, flaw};
use crate::wire::protobuf::Any;

pub(super) const CONCURRENCY: &str = "envoy.filters.http.adaptive_concurrency";
pub(super) const CORS: &str = "envoy.filters.http.cors";
pub(super) const SESSION: &str = "envoy.filters.http.stateful_session";
pub(super) const FAULT: &str = "envoy.filters.http.fault";
/// The filter, and where policies find what it found.
pub(super) const JWT: &str = "envoy.filters.http.jwt_authn";
pub(super) const HTTP_RBAC: &str = "envoy.filters.http.rbac";
pub(super) const ROUTER: &str = "envoy.filters.http.router";
pub(super) const NETWORK_RBAC: &str = "envoy.filters.network.rbac";
pub(super) const HTTP_MANAGER: &str = "envoy.filters.network.http_connection_manager";
pub(super) const TCP_PROXY: &str = "envoy.filters.network.tcp_proxy";
pub(super) const TLS_INSPECTOR: &str = "envoy.filters.listener.tls_inspector";
pub(super) const HTTP_INSPECTOR: &str = "envoy.filters.listener.http_inspector";
pub(super) const TLS_SOCKET: &str = "envoy.transport_sockets.tls";
pub(super) const RAW_SOCKET: &str = "envoy.transport_sockets.raw_buffer";
pub(super) const HTTP_OPTIONS: &str = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions";

/// Filters that only observe, or whose work is done here in another way; compared with a filter's name.
const MEANINGLESS: [&str; 18] = [
    // Statistics and metadata exchange of Istio: our own telemetry does that.
    "istio.stats",
    "istio.metadata_exchange",
    "istio.alpn",
    "istio_authn",
    "envoy.filters.http.grpc_stats",
    "envoy.filters.http.alpn",
    "envoy.filters.http.metadata_exchange",
    "envoy.filters.http.istio_stats",
    "envoy.filters.network.metadata_exchange",
    "envoy.filters.network.tcp_cluster_rewrite",
    "istio.tcp_stats",
    "waypoint_downstream_peer_metadata",
    "waypoint_upstream_peer_metadata",
    // What the first bytes are and where the connection went is always known here.
    TLS_INSPECTOR,
    HTTP_INSPECTOR,
    "envoy.filters.listener.original_dst",
    "envoy.listener.tls_inspector",
    "envoy.listener.http_inspector",
];

pub(super) fn is_meaningless(name: &str) -> bool {
    MEANINGLESS.contains(&name)
}

/// Types that decide who may do what, which must never be left out.
pub(super) fn decides_access(type_url: &str) -> bool {
    ["rbac", "ext_authz", "jwt_authn", "basic_auth", "api_key_auth", "oauth2", "csrf"]
        .iter()
        .any(|name| type_url.contains(name))
}

/// Unpacks a message of a known type.
pub(super) fn unpack<M: Message + Default + Name>(any: &Any) -> Decoded<M> {
    M::decode(any.value.as_slice()).map_err(|error| Flaw::new(format!("malformed protobuf: {error}")))
}

/// Whether the packed message is of the type.
pub(super) fn is<M: Name>(any: &Any) -> bool {
    any.type_url.rsplit_once('/').is_some_and(|(_, name)| name == M::full_name())
}

pub(super) fn unknown<T>(what: &str, name: &str, any: Option<&Any>) -> Decoded<T> {
    let type_url = any.map_or("without a configuration", |any| any.type_url.as_str());
    flaw("", format!("{what} \"{name}\" ({type_url}) is not supported"))
}
