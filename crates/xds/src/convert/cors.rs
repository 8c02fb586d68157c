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

/// What one place says of the filter.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) enum Said {
    #[default]
    Nothing,
    /// It is off here.
    Off,
    Policy(Box<CorsPolicy>),
}

/// Of a route, its virtual host and its route configuration, whichever there are; the nearest first.
pub(super) fn decode(places: &[&Said]) -> Decoded<Option<Cors>> {
    let mut all = Vec::with_capacity(places.len());
    for said in places {
        match said {
            Said::Nothing => {}
            // A wider place has no say in what is off; a nearer one has.
            Said::Off => break,
            Said::Policy(policy) => all.push(&**policy),
        }
    }
    let Some(first) = all.first() else { return Ok(None) };
    note!(first, shadow_enabled);
    let text = |of: fn(&CorsPolicy) -> &String| {
        all.iter().map(|policy| of(policy)).find(|text| !text.is_empty()).cloned().unwrap_or_default()
    };
    let flag = |of: fn(&CorsPolicy) -> &Option<protobuf::BoolValue>, otherwise: bool| {
        all.iter().find_map(|policy| of(policy).as_ref()).map_or(otherwise, |flag| flag.value)
    };
    let origins = all.iter().map(|policy| &policy.allow_origin_string_match).find(|all| !all.is_empty());
    let origins = origins.map_or(&[][..], Vec::as_slice);
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_near_place_does_not_say_the_wider_say_unless_it_is_off() {
        let said = |methods: &str, headers: &str, credentials: Option<bool>| {
            Said::Policy(Box::new(CorsPolicy {
                allow_methods: methods.into(),
                allow_headers: headers.into(),
                allow_credentials: credentials.and_then(boolean),
                ..Default::default()
            }))
        };
        let (route, host) = (said("GET", "", None), said("PUT", "", Some(true)));
        let config = said("PUT", "x-a", Some(false));
        let whole = decode(&[&route, &host, &config]).unwrap().unwrap();
        assert_eq!((&*whole.allow_methods, &*whole.allow_headers), ("GET", "x-a"));
        assert!(whole.allow_credentials);
        assert_eq!(decode(&[&Said::Off, &host, &config]).unwrap(), None);
        assert_eq!(decode(&[&Said::Nothing, &Said::Off, &config]).unwrap(), None);
        let alone = decode(&[&route, &Said::Off, &config]).unwrap().unwrap();
        assert_eq!((&*alone.allow_methods, &*alone.allow_headers), ("GET", ""));
    }
}
