//! `outrigger.v1.RateLimits`, an HTTP filter of ours.

use std::time::Duration;

use outrigger_model::listener::HttpFilter;
use outrigger_model::rate_limit::{Algorithm, By, MOST_LIMITS, RateLimit};
use outrigger_model::resource::Origin;
use outrigger_model::route::RouteMatch;
use prost::Message;

use super::flaw::{Decoded, Flaw, Under, each, flaw};
use super::route;
use super::row::{Row, nothing};
use crate::kind::ClientKind;
use crate::wire::own::{self, by::What, rate_limit::Algorithm as Wire};
use crate::wire::protobuf::Any;
use crate::wire::route::RouteMatch as WireMatch;

const RATE_LIMIT: &str = "outrigger.rate_limit";
const URL: &str = "type.googleapis.com/outrigger.v1.RateLimits";

pub(super) const ROW: Row = Row {
    is: |config| config.type_url == URL,
    read: |reading| decode(reading.config).map(|limits| Some(HttpFilter::RateLimit(limits))),
    reads_disabled: false,
    write: |filter, out| match filter {
        // An Envoy refuses types that it does not know.
        HttpFilter::RateLimit(limits) if out.kind != ClientKind::Envoy => {
            out.push(RATE_LIMIT, encode(limits))
        }
        _ => {}
    },
    origins: nothing,
};

fn encode(limits: &[RateLimit]) -> Any {
    let limits = limits.iter().map(encode_one).collect();
    Any { type_url: URL.to_owned(), value: own::RateLimits { limits }.encode_to_vec() }
}

/// Of all requests nothing is said.
pub(super) fn encode_match(matches: &RouteMatch) -> Vec<u8> {
    match *matches == RouteMatch::any() {
        true => Vec::new(),
        false => route::encode_match(matches, ClientKind::Outrigger).encode_to_vec(),
    }
}

pub(super) fn decode_match(wire: &[u8]) -> Decoded<RouteMatch> {
    if wire.is_empty() {
        return Ok(RouteMatch::any());
    }
    let decoded = WireMatch::decode(wire).map_err(|error| format!("malformed protobuf: {error}"));
    let matches = decoded.map_err(Flaw::new).and_then(|matches| route::decode_match(&matches));
    matches.under("match")
}

fn encode_one(limit: &RateLimit) -> own::RateLimit {
    let origin = |part: fn(&Origin) -> &String| limit.origin.as_ref().map(part).cloned().unwrap_or_default();
    own::RateLimit {
        name: limit.name.clone(),
        r#match: encode_match(&limit.matches),
        by: limit.by.iter().map(encode_by).collect(),
        requests: limit.requests,
        // A day at most.
        per_millis: limit.per.as_millis() as u64,
        algorithm: Some(match limit.algorithm {
            Algorithm::TokenBucket { burst } => Wire::Burst(burst),
            Algorithm::SlidingWindow => Wire::SlidingWindow(true),
        }),
        origin_kind: origin(|o| &o.kind),
        origin_namespace: origin(|o| &o.namespace),
        origin_name: origin(|o| &o.name),
    }
}

pub(super) fn encode_by(by: &By) -> own::By {
    let what = match by {
        By::Caller => What::Caller(true),
        By::Address => What::Address(true),
        By::Path => What::Path(true),
        By::Header(name) => What::Header(name.clone()),
    };
    own::By { what: Some(what) }
}

fn decode(config: &Any) -> Decoded<Vec<RateLimit>> {
    let wire = own::RateLimits::decode(config.value.as_slice())
        .map_err(|error| Flaw::new(format!("malformed protobuf: {error}")))?;
    if wire.limits.len() > MOST_LIMITS {
        return flaw("limits", format!("are {}, and at most {MOST_LIMITS} are taken", wire.limits.len()));
    }
    let limits = each(&wire.limits, "limits", decode_one)?;
    // They are counted by what they are called.
    let twice = |i: &usize| {
        limits[..*i]
            .iter()
            .any(|other| (&other.origin, &other.name) == (&limits[*i].origin, &limits[*i].name))
    };
    match (0..limits.len()).find(twice) {
        Some(i) => flaw(format_args!("limits[{i}].name"), "is that of another limit of the object"),
        None => Ok(limits),
    }
}

fn decode_one(wire: &own::RateLimit) -> Decoded<RateLimit> {
    let matches = decode_match(&wire.r#match)?;
    let limit = RateLimit {
        name: wire.name.clone(),
        matches,
        by: each(&wire.by, "by", decode_by)?,
        requests: wire.requests,
        per: Duration::from_millis(wire.per_millis),
        algorithm: match wire.algorithm {
            Some(Wire::Burst(burst)) => Algorithm::TokenBucket { burst },
            Some(Wire::SlidingWindow(true)) => Algorithm::SlidingWindow,
            _ => return flaw("algorithm", "one of burst and sliding_window is required"),
        },
        origin: decode_origin([&wire.origin_kind, &wire.origin_namespace, &wire.origin_name]),
    };
    match limit.check() {
        Ok(()) => Ok(limit),
        Err((field, reason)) => flaw(field, reason),
    }
}

/// The kind, the namespace and the name, as they are beside each other.
pub(super) fn decode_origin([kind, namespace, name]: [&String; 3]) -> Option<Origin> {
    let origin = || Origin { kind: kind.clone(), namespace: namespace.clone(), name: name.clone() };
    (!kind.is_empty()).then(origin)
}

pub(super) fn decode_by(wire: &own::By) -> Decoded<By> {
    Ok(match &wire.what {
        Some(What::Caller(true)) => By::Caller,
        Some(What::Address(true)) => By::Address,
        Some(What::Path(true)) => By::Path,
        Some(What::Header(name))
            if !name.is_empty() && name.bytes().all(|b| b.is_ascii_graphic() && !b.is_ascii_uppercase()) =>
        {
            By::Header(name.clone())
        }
        Some(What::Header(_)) => return flaw("header", "must be a name in lower case"),
        _ => return flaw("", "one of caller, address, path and header is required"),
    })
}
