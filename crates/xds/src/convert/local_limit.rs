//! `envoy.extensions.filters.http.local_ratelimit.v3.LocalRateLimit`: one token bucket for all requests of a connection manager, as other
//! control planes have it.

use std::time::Duration;

use outrigger_model::listener::HttpFilter;
use outrigger_model::rate_limit::{Algorithm, RateLimit};
use outrigger_model::route::RouteMatch;

use super::cors::decode_fraction;
use super::extension::unpack;
use super::flaw::{Decoded, Under, flaw};
use super::value::{duration_at, uint_or};
use super::{left_out, note};
use crate::wire::core::RuntimeFractionalPercent;
use crate::wire::http_local_limit::LocalRateLimit;
use crate::wire::protobuf::Any;

const TOO_MANY_REQUESTS: i32 = 429;

/// Its limit, if it has one that acts. `name` tells its count from those of others.
pub(super) fn decode(config: &Any, name: &str) -> Decoded<Option<HttpFilter>> {
    let wire: LocalRateLimit = unpack(config)?;
    note!(
        wire,
        request_headers_to_add_when_not_enforced,
        response_headers_to_add,
        descriptors,
        local_cluster_rate_limit,
        vh_rate_limits,
        rate_limits,
        enable_x_ratelimit_headers,
        always_consume_default_token_bucket,
        rate_limited_as_resource_exhausted,
    );
    if wire.status.is_some_and(|status| status.code != TOO_MANY_REQUESTS && status.code >= 400) {
        left_out("a local rate limit's status other than 429");
    }
    let enabled = acts(wire.filter_enabled.as_ref()).under("filter_enabled")?;
    let enforced = acts(wire.filter_enforced.as_ref()).under("filter_enforced")?;
    let Some(bucket) = wire.token_bucket.filter(|_| enabled && enforced) else { return Ok(None) };
    if wire.local_rate_limit_per_downstream_connection {
        let reason = "is not supported; all connections have one bucket";
        return flaw("local_rate_limit_per_downstream_connection", reason);
    }
    let per = duration_at(bucket.fill_interval.as_ref(), "token_bucket.fill_interval")?;
    let limit = RateLimit {
        name: name.to_owned(),
        matches: RouteMatch::any(),
        by: Vec::new(),
        requests: uint_or(bucket.tokens_per_fill.as_ref(), 1),
        per: per.unwrap_or(Duration::ZERO),
        algorithm: Algorithm::TokenBucket { burst: bucket.max_tokens },
        origin: None,
    };
    if let Err((field, reason)) = limit.check() {
        let field = match field {
            "requests" => "token_bucket.tokens_per_fill",
            "burst" => "token_bucket.max_tokens",
            _ => "token_bucket.fill_interval",
        };
        return flaw(field, reason);
    }
    Ok(Some(HttpFilter::RateLimit(vec![limit])))
}

/// Of all requests or of none, as it is where nothing is said.
fn acts(wire: Option<&RuntimeFractionalPercent>) -> Decoded<bool> {
    let Some(wire) = wire else { return Ok(false) };
    match decode_fraction(Some(wire))? {
        0.0 => Ok(false),
        100.0 => Ok(true),
        part => flaw("default_value", format!("{part} % is not supported, only none and all")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::convert::value::fraction;
    use crate::wire::scalar::TokenBucket;
    use crate::wire::{any, duration, uint};

    fn part(percent: f64) -> Option<RuntimeFractionalPercent> {
        Some(RuntimeFractionalPercent { default_value: Some(fraction(percent)), ..Default::default() })
    }

    fn limit(enabled: Option<RuntimeFractionalPercent>, tokens: u32) -> LocalRateLimit {
        LocalRateLimit {
            token_bucket: Some(TokenBucket {
                max_tokens: tokens,
                tokens_per_fill: uint(5),
                fill_interval: Some(duration(Duration::from_secs(60))),
            }),
            filter_enabled: enabled,
            filter_enforced: part(100.0),
            ..Default::default()
        }
    }

    #[test]
    fn a_bucket_that_is_enabled_for_all_is_a_limit() {
        let Some(HttpFilter::RateLimit(limits)) = decode(&any(&limit(part(100.0), 9)), "n").unwrap() else {
            panic!("it acts");
        };
        let [one] = limits.as_slice() else { panic!("one bucket, one limit") };
        assert_eq!((one.requests, one.per, one.name.as_str()), (5, Duration::from_secs(60), "n"));
        assert_eq!(one.algorithm, Algorithm::TokenBucket { burst: 9 });
    }

    #[test]
    fn one_that_is_not_enabled_is_none_and_one_for_a_part_is_refused() {
        for enabled in [None, part(0.0)] {
            assert_eq!(decode(&any(&limit(enabled, 9)), "n").unwrap(), None);
        }
        assert_eq!(decode(&any(&LocalRateLimit::default()), "n").unwrap(), None);
        let field = |wire: &LocalRateLimit| decode(&any(wire), "n").unwrap_err().field;
        assert_eq!(field(&limit(part(50.0), 9)), "filter_enabled.default_value");
        assert_eq!(field(&limit(part(100.0), 0)), "token_bucket.max_tokens");
        let each =
            LocalRateLimit { local_rate_limit_per_downstream_connection: true, ..limit(part(100.0), 9) };
        assert_eq!(field(&each), "local_rate_limit_per_downstream_connection");
    }
}
