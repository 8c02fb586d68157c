//! The policy of a route for other origins, `envoy.extensions.filters.http.cors.v3.CorsPolicy`. Empty fields of a route are its
//! virtual host's, as Envoy looks at both.

use outrigger_model::route::Cors;

use super::flaw::{Decoded, Under, each, flaw};
use super::value::{fraction, percent_of_fraction};
use super::{matcher, note};
use crate::wire::core::RuntimeFractionalPercent;
use crate::wire::http_cors::CorsPolicy;
use crate::wire::{boolean, protobuf};

pub(super) fn encode(cors: &Cors) -> CorsPolicy {
    CorsPolicy {
        allow_origin_string_match: cors.allow_origins.iter().map(matcher::encode).collect(),
        allow_methods: cors.allow_methods.clone(),
        allow_headers: cors.allow_headers.clone(),
        expose_headers: cors.expose_headers.clone(),
        max_age: cors.max_age.clone(),
        allow_credentials: boolean(cors.allow_credentials),
        filter_enabled: Some(encode_fraction(cors.percentage)),
        allow_private_network_access: boolean(cors.allow_private_network),
        forward_not_matching_preflights: boolean(cors.forward_not_matching),
        ..Default::default()
    }
}

/// Of a route and of its virtual host, whichever there are.
pub(super) fn decode(route: Option<&CorsPolicy>, host: Option<&CorsPolicy>) -> Decoded<Option<Cors>> {
    let (first, second) = match (route, host) {
        (Some(route), host) => (route, host),
        (None, Some(host)) => (host, None),
        (None, None) => return Ok(None),
    };
    note!(first, shadow_enabled);
    let text = |of: fn(&CorsPolicy) -> &String| match of(first) {
        empty if empty.is_empty() => second.map(of).cloned().unwrap_or_default(),
        text => text.clone(),
    };
    let flag = |of: fn(&CorsPolicy) -> &Option<protobuf::BoolValue>, otherwise: bool| {
        of(first).or(second.and_then(|second| *of(second))).map_or(otherwise, |flag| flag.value)
    };
    let origins = match first.allow_origin_string_match.as_slice() {
        [] => second.map_or(&[][..], |second| &second.allow_origin_string_match),
        origins => origins,
    };
    Ok(Some(Cors {
        allow_origins: each(origins, "allow_origin_string_match", matcher::decode)?,
        allow_methods: text(|policy| &policy.allow_methods),
        allow_headers: text(|policy| &policy.allow_headers),
        expose_headers: text(|policy| &policy.expose_headers),
        max_age: text(|policy| &policy.max_age),
        allow_credentials: flag(|policy| &policy.allow_credentials, false),
        allow_private_network: flag(|policy| &policy.allow_private_network_access, false),
        forward_not_matching: flag(|policy| &policy.forward_not_matching_preflights, true),
        percentage: decode_fraction(first.filter_enabled.as_ref()).under("filter_enabled")?,
    }))
}

pub(super) fn encode_fraction(percentage: f64) -> RuntimeFractionalPercent {
    RuntimeFractionalPercent { default_value: Some(fraction(percentage)), ..Default::default() }
}

/// Absent: all. There is no runtime here that could say otherwise by a key.
pub(super) fn decode_fraction(wire: Option<&RuntimeFractionalPercent>) -> Decoded<f64> {
    match wire {
        None => Ok(100.0),
        Some(RuntimeFractionalPercent { default_value: Some(value), .. }) => percent_of_fraction(value),
        Some(_) => flaw("default_value", "is required"),
    }
}
