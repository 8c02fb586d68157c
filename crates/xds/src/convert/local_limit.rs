//! `envoy.extensions.filters.http.local_ratelimit.v3.LocalRateLimit`: one token bucket for all requests of a connection manager, a route
//! configuration, a virtual host or a route, as other control planes have it.

use std::fmt::Display;
use std::time::Duration;

use outrigger_model::listener::HttpFilter;
use outrigger_model::local_limit::{Bucket, LocalLimit, LocalLimits};
use outrigger_model::rate_limit::RateLimit;

use super::cors::decode_fraction;
use super::extension::{is, unpack};
use super::flaw::{Decoded, Under, flaw};
use super::row::{Row, nothing};
use super::value::{duration_at, fraction, uint_or};
use super::{headers, note};
use crate::kind::ClientKind;
use crate::wire::core::RuntimeFractionalPercent;
use crate::wire::http_local_limit::LocalRateLimit;
use crate::wire::protobuf::Any;
use crate::wire::scalar::{HttpStatus, TokenBucket};
use crate::wire::{any, duration, uint};

const TOO_MANY_REQUESTS: u16 = 429;

pub(super) const ROW: Row = Row {
    is: is::<LocalRateLimit>,
    read: |reading| {
        let filter = reading.filter;
        let scope = format!("{}|{}", reading.stat_prefix, filter.name);
        let limits = of_listener(reading.config, &filter.name, &scope, filter.disabled)?;
        Ok(Some(HttpFilter::LocalLimit(Box::new(limits))))
    },
    reads_disabled: true,
    write: |filter, out| {
        if let HttpFilter::LocalLimit(limits) = filter {
            out.push(&limits.name, encode(&limits.own, out.kind));
        }
    },
    origins: nothing,
};

/// The filter of a listener; `scope` tells its bucket from others. A disabled one acts where a route has something for it.
fn of_listener(config: &Any, name: &str, scope: &str, disabled: bool) -> Decoded<LocalLimits> {
    let own = if disabled { LocalLimit::off() } else { decode(config, &scope, false)? };
    Ok(LocalLimits { name: name.to_owned(), own })
}

/// What a route, a virtual host or a route configuration has.
pub(super) fn of_place(config: &Any, scope: &dyn Display) -> Decoded<LocalLimit> {
    decode(config, scope, true)
}

/// `needs_bucket`: as of Envoy's places.
fn decode(config: &Any, scope: &dyn Display, needs_bucket: bool) -> Decoded<LocalLimit> {
    let wire: LocalRateLimit = unpack(config)?;
    if needs_bucket && wire.token_bucket.is_none() {
        return flaw("token_bucket", "is required");
    }
    let enabled = percent(wire.filter_enabled.as_ref()).under("filter_enabled")?;
    // What acts on nobody is not looked at: nothing in it can be wrong.
    if enabled <= 0.0 {
        return Ok(LocalLimit::off());
    }
    note!(
        wire,
        descriptors,
        stage,
        local_cluster_rate_limit,
        vh_rate_limits,
        rate_limits,
        enable_x_ratelimit_headers,
        always_consume_default_token_bucket,
    );
    if wire.local_rate_limit_per_downstream_connection {
        let reason = "is not supported; all connections have one bucket";
        return flaw("local_rate_limit_per_downstream_connection", reason);
    }
    let status = wire.status.and_then(|status| u16::try_from(status.code).ok());
    let edits = |add, field| headers::decode(add, &[], field, "");
    Ok(LocalLimit {
        bucket: wire.token_bucket.as_ref().map(|bucket| decode_bucket(bucket, scope)).transpose()?,
        enabled,
        enforced: percent(wire.filter_enforced.as_ref()).under("filter_enforced")?,
        // As in Envoy what is no error is none to answer with.
        status: status.filter(|status| (400..=599).contains(status)).unwrap_or(TOO_MANY_REQUESTS),
        exhausted: wire.rate_limited_as_resource_exhausted,
        response_headers: edits(&wire.response_headers_to_add, headers::RESPONSE)?,
        request_headers: edits(
            &wire.request_headers_to_add_when_not_enforced,
            "request_headers_to_add_when_not_enforced",
        )?,
    })
}

fn decode_bucket(wire: &TokenBucket, scope: &dyn Display) -> Decoded<Bucket> {
    let per = duration_at(wire.fill_interval.as_ref(), "token_bucket.fill_interval")?;
    let bucket = Bucket {
        name: scope.to_string(),
        tokens: uint_or(wire.tokens_per_fill.as_ref(), 1),
        per: per.unwrap_or(Duration::ZERO),
        most: wire.max_tokens,
    };
    let Err((field, reason)) = RateLimit::from(&bucket).check() else { return Ok(bucket) };
    let field = match field {
        "requests" => "tokens_per_fill",
        "burst" => "max_tokens",
        _ => "fill_interval",
    };
    flaw(format_args!("token_bucket.{field}"), reason)
}

/// Of no request where nothing is said.
fn percent(wire: Option<&RuntimeFractionalPercent>) -> Decoded<f64> {
    wire.map_or(Ok(0.0), |wire| decode_fraction(Some(wire)))
}

pub(super) fn encode(limit: &LocalLimit, kind: ClientKind) -> Any {
    let part = |percent: f64| RuntimeFractionalPercent {
        default_value: Some(fraction(percent)),
        ..Default::default()
    };
    let bucket = |bucket: &Bucket| TokenBucket {
        max_tokens: bucket.most,
        tokens_per_fill: uint(bucket.tokens),
        fill_interval: Some(duration(bucket.per)),
    };
    any(&LocalRateLimit {
        stat_prefix: "http_local_rate_limiter".to_owned(),
        status: Some(HttpStatus { code: limit.status.into() }),
        token_bucket: limit.bucket.as_ref().map(bucket),
        filter_enabled: Some(part(limit.enabled)),
        filter_enforced: Some(part(limit.enforced)),
        rate_limited_as_resource_exhausted: limit.exhausted,
        response_headers_to_add: headers::encode(&limit.response_headers, kind).0,
        request_headers_to_add_when_not_enforced: headers::encode(&limit.request_headers, kind).0,
        ..Default::default()
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::core::{HeaderValue, HeaderValueOption};

    fn part(percent: f64) -> Option<RuntimeFractionalPercent> {
        Some(RuntimeFractionalPercent { default_value: Some(fraction(percent)), ..Default::default() })
    }

    fn limit(tokens: u32) -> LocalRateLimit {
        LocalRateLimit {
            token_bucket: Some(TokenBucket {
                max_tokens: tokens,
                tokens_per_fill: uint(5),
                fill_interval: Some(duration(Duration::from_secs(60))),
            }),
            filter_enabled: part(50.0),
            filter_enforced: part(100.0),
            ..Default::default()
        }
    }

    fn header(name: &str) -> Vec<HeaderValueOption> {
        let header = HeaderValue { key: name.into(), value: "v".into(), ..Default::default() };
        vec![HeaderValueOption { header: Some(header), ..Default::default() }]
    }

    #[test]
    fn what_acts_on_nobody_is_not_looked_at() {
        let mut odd = limit(2_000_000);
        odd.local_rate_limit_per_downstream_connection = true;
        decode(&any(&odd), &"s", false).unwrap_err();
        assert_eq!(of_listener(&any(&odd), "f", "s", true).unwrap().own, LocalLimit::off());
        for enabled in [None, part(0.0)] {
            odd.filter_enabled = enabled;
            assert_eq!(of_listener(&any(&odd), "f", "s", false).unwrap().own, LocalLimit::off());
        }
    }

    #[test]
    fn everything_of_a_bucket_is_read_and_written_again() {
        let wire = LocalRateLimit {
            status: Some(HttpStatus { code: 503 }),
            rate_limited_as_resource_exhausted: true,
            response_headers_to_add: header("x-a"),
            request_headers_to_add_when_not_enforced: header("x-b"),
            ..limit(9)
        };
        let read = of_place(&any(&wire), &"n").unwrap();
        let bucket = read.bucket.as_ref().unwrap();
        assert_eq!((bucket.tokens, bucket.per, bucket.name.as_str()), (5, Duration::from_secs(60), "n"));
        assert_eq!(bucket.most, 9);
        assert_eq!((read.enabled, read.enforced, read.status, read.exhausted), (50.0, 100.0, 503, true));
        assert_eq!((&*read.response_headers.add[0].0, &*read.request_headers.add[0].0), ("x-a", "x-b"));
        assert_eq!(of_place(&encode(&read, ClientKind::Outrigger), &"n").unwrap(), read);
    }

    #[test]
    fn a_place_needs_a_bucket_and_what_is_no_error_is_not_answered() {
        let none = LocalRateLimit { token_bucket: None, ..limit(9) };
        let listener =
            |wire: &LocalRateLimit, disabled| of_listener(&any(wire), "f", "s", disabled).unwrap().own;
        assert_eq!(listener(&none, false).bucket, None);
        assert_eq!(listener(&limit(9), true), LocalLimit::off());
        assert_eq!(listener(&LocalRateLimit::default(), false), LocalLimit::off());
        let ok = LocalRateLimit { status: Some(HttpStatus { code: 200 }), ..limit(9) };
        assert_eq!(listener(&ok, false).status, 429);
        let field = |wire: &LocalRateLimit| of_place(&any(wire), &"n").unwrap_err().field;
        assert_eq!(field(&none), "token_bucket");
        assert_eq!(field(&limit(0)), "token_bucket.max_tokens");
        let each = LocalRateLimit { local_rate_limit_per_downstream_connection: true, ..limit(9) };
        assert_eq!(field(&each), "local_rate_limit_per_downstream_connection");
        let bad = LocalRateLimit { response_headers_to_add: header("x a"), ..limit(9) };
        assert_eq!(field(&bad), "response_headers_to_add[0].header.key");
    }
}
