//! The protobuf types, under short names, and the scalars that they wrap. Nothing outside this crate sees them.

use std::time::Duration;

pub(crate) use envoy_types::pb::envoy::config::cluster::v3 as cluster;
pub(crate) use envoy_types::pb::envoy::config::core::v3 as core;
pub(crate) use envoy_types::pb::envoy::config::endpoint::v3 as endpoint;
pub(crate) use envoy_types::pb::envoy::config::listener::v3 as listener;
pub(crate) use envoy_types::pb::envoy::config::rbac::v3 as rbac;
pub(crate) use envoy_types::pb::envoy::config::route::v3 as route;
/// The cluster extension, with the enumeration that it borrows.
pub(crate) mod dns_cluster {
    pub(crate) use envoy_types::pb::envoy::extensions::clusters::common::dns::v3::DnsLookupFamily;
    pub(crate) use envoy_types::pb::envoy::extensions::clusters::dns::v3::DnsCluster;
}

pub(crate) use envoy_types::pb::envoy::extensions::filters::common::fault::v3 as common_fault;
pub(crate) use envoy_types::pb::envoy::extensions::filters::http::adaptive_concurrency::v3 as http_concurrency;
pub(crate) use envoy_types::pb::envoy::extensions::filters::http::cors::v3 as http_cors;
pub(crate) use envoy_types::pb::envoy::extensions::filters::http::ext_authz::v3 as http_authz;
pub(crate) use envoy_types::pb::envoy::extensions::filters::http::fault::v3 as http_fault;
pub(crate) use envoy_types::pb::envoy::extensions::filters::http::jwt_authn::v3 as http_jwt;
pub(crate) use envoy_types::pb::envoy::extensions::filters::http::local_ratelimit::v3 as http_local_limit;
pub(crate) use envoy_types::pb::envoy::extensions::filters::http::rbac::v3 as http_rbac;
pub(crate) use envoy_types::pb::envoy::extensions::filters::http::router::v3 as router;
/// The filter for sessions, with what they are carried by.
pub(crate) mod http_session {
    pub(crate) use envoy_types::pb::envoy::extensions::filters::http::stateful_session::v3::{
        StatefulSession, StatefulSessionPerRoute, stateful_session_per_route::Override,
    };
    pub(crate) use envoy_types::pb::envoy::extensions::http::stateful_session::cookie::v3::CookieBasedSessionState;
    pub(crate) use envoy_types::pb::envoy::extensions::http::stateful_session::header::v3::HeaderBasedSessionState;
    pub(crate) use envoy_types::pb::envoy::r#type::http::v3::{Cookie, CookieAttribute};
}
pub(crate) use envoy_types::pb::envoy::extensions::filters::listener::http_inspector::v3 as http_inspector;
pub(crate) use envoy_types::pb::envoy::extensions::filters::listener::tls_inspector::v3 as tls_inspector;
pub(crate) use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3 as hcm;
pub(crate) use envoy_types::pb::envoy::extensions::filters::network::rbac::v3 as network_rbac;
pub(crate) use envoy_types::pb::envoy::extensions::filters::network::tcp_proxy::v3 as tcp_proxy;
pub(crate) use envoy_types::pb::envoy::extensions::load_balancing_policies::client_side_weighted_round_robin::v3 as reported;
pub(crate) use envoy_types::pb::envoy::extensions::load_balancing_policies::common::v3 as common_balance;
pub(crate) use envoy_types::pb::envoy::extensions::load_balancing_policies::least_request::v3 as least_request;
pub(crate) use envoy_types::pb::envoy::extensions::load_balancing_policies::maglev::v3 as maglev;
pub(crate) use envoy_types::pb::envoy::extensions::load_balancing_policies::random::v3 as random;
pub(crate) use envoy_types::pb::envoy::extensions::load_balancing_policies::ring_hash::v3 as ring_hash;
pub(crate) use envoy_types::pb::envoy::extensions::load_balancing_policies::round_robin::v3 as round_robin;
pub(crate) use envoy_types::pb::envoy::extensions::load_balancing_policies::wrr_locality::v3 as wrr_locality;
pub(crate) use envoy_types::pb::envoy::extensions::retry::host::previous_hosts::v3 as previous_hosts;
pub(crate) use envoy_types::pb::envoy::extensions::retry::priority::previous_priorities::v3 as previous_priorities;
pub(crate) use envoy_types::pb::envoy::extensions::transport_sockets::raw_buffer::v3 as raw_buffer;
pub(crate) use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3 as tls;
pub(crate) use envoy_types::pb::envoy::extensions::upstreams::http::v3 as upstream_http;
#[cfg(feature = "client")]
pub(crate) use envoy_types::pb::envoy::service::auth::v3 as auth;
/// The rate limit service's messages, with the descriptor that they borrow.
#[cfg(feature = "client")]
pub(crate) mod limits {
    pub(crate) use envoy_types::pb::envoy::extensions::common::ratelimit::v3::{
        RateLimitDescriptor, rate_limit_descriptor,
    };
    pub(crate) use envoy_types::pb::envoy::service::ratelimit::v3::{
        RateLimitRequest, RateLimitResponse, rate_limit_response,
    };
}
#[cfg(any(feature = "client", feature = "server"))]
pub(crate) use envoy_types::pb::envoy::service::discovery::v3 as discovery;
pub(crate) use envoy_types::pb::envoy::r#type::matcher::v3 as matcher;
pub(crate) use envoy_types::pb::envoy::r#type::v3 as scalar;
pub(crate) use envoy_types::pb::google::protobuf;
#[cfg(any(feature = "client", feature = "server"))]
pub(crate) use envoy_types::pb::google::rpc;

/// What the crate of Envoy's types lacks, by hand.
pub(crate) mod missing;

/// Generated from `proto/outrigger/v1`.
pub(crate) mod own {
    #![allow(missing_docs, dead_code)] // without client and server nobody refuses anything
    include!(concat!(env!("OUT_DIR"), "/outrigger.v1.rs"));
}

use prost::{Message, Name};

/// Packs a message with its type URL (`type.googleapis.com/…`).
pub(crate) fn any<M: Message + Name>(message: &M) -> protobuf::Any {
    protobuf::Any { type_url: url::<M>(), value: message.encode_to_vec() }
}

/// The type URL of a message; prost's own lacks the host.
pub(crate) fn url<M: Name>() -> String {
    format!("type.googleapis.com/{}", M::full_name())
}

/// A duration, at most Envoy's longest (10,000 years).
pub(crate) fn duration(d: Duration) -> protobuf::Duration {
    const LONGEST: u64 = 315_576_000_000;
    let seconds = d.as_secs().min(LONGEST);
    protobuf::Duration { seconds: seconds as i64, nanos: d.subsec_nanos() as i32 }
}

/// `UInt32Value`.
pub(crate) fn uint(value: u32) -> Option<protobuf::UInt32Value> {
    Some(protobuf::UInt32Value { value })
}

/// `BoolValue`.
pub(crate) fn boolean(value: bool) -> Option<protobuf::BoolValue> {
    Some(protobuf::BoolValue { value })
}

/// Everything over the one ADS stream, xDS v3.
pub(crate) fn ads() -> core::ConfigSource {
    core::ConfigSource {
        resource_api_version: core::ApiVersion::V3 as i32,
        config_source_specifier: Some(core::config_source::ConfigSourceSpecifier::Ads(
            core::AggregatedConfigSource {},
        )),
        ..Default::default()
    }
}
