//! Attempts and the time that they have; and whose they are.

use super::*;

/// On the heap, as all here: together they are too large for the stack of a test.
pub(super) fn retry() -> BoxedStrategy<RetryPolicy> {
    let on = btree_set(proptest::sample::select(RetryOn::NAMES.to_vec()), 0..5);
    let times = (of(duration()), of(duration()), duration(), duration(), of(rate_limited()));
    let headers = (vec(header_match(), 0..2), vec(header_match(), 0..2));
    (on, vec(100_u16..600, 0..3), 0_u32..9, times, any::<bool>(), headers)
        .prop_map(
            |(
                on,
                statuses,
                attempts,
                (per_try_timeout, per_try_idle, base, more, rate_limited),
                avoid,
                headers,
            )| {
                let mut on: Vec<RetryOn> = on.into_iter().map(|(_, on)| on).collect();
                // That they count goes without saying.
                on.retain(|on| statuses.is_empty() || *on != RetryOn::RetriableStatusCodes);
                RetryPolicy {
                    on,
                    statuses,
                    attempts,
                    per_try_timeout,
                    per_try_idle,
                    backoff_base: base,
                    backoff_max: base + more,
                    avoid_previous_hosts: avoid,
                    leave_priorities: attempts % 3,
                    rate_limited: rate_limited.map(Box::new),
                    response_headers: headers.0,
                    request_headers: headers.1,
                }
            },
        )
        .boxed()
}

/// What a route makes of path and authority.
pub(super) fn rewrite() -> BoxedStrategy<Rewrite> {
    let of_request = prop_oneof![
        token().prop_map(AuthorityOf::Header),
        "[a-z]{1,8}".prop_map(|text| AuthorityOf::Path("^/([^/]+).*".to_owned(), format!("\\1.{text}"))),
        Just(AuthorityOf::Endpoint),
    ];
    let authority = (of(name()), of(of_request), any::<bool>());
    (0..3, "/[a-z]{0,5}", authority)
        .prop_map(|(which, path, (authority, of_request, forwarded_host))| Rewrite {
            prefix: (which % 4 == 1).then(|| path.clone()),
            regex: (which % 4 == 2).then(|| ("^/(.*)$".to_owned(), format!("{path}/\\1"))),
            authority_of: of_request.filter(|_| authority.is_none()),
            authority,
            forwarded_host,
        })
        .boxed()
}

fn rate_limited() -> impl Strategy<Value = RateLimitedBackOff> {
    let header =
        (token(), any::<bool>()).prop_map(|(name, unix_timestamp)| ResetHeader { name, unix_timestamp });
    (vec(header, 1..4), duration()).prop_map(|(headers, max)| RateLimitedBackOff { headers, max })
}

pub(super) fn limits() -> BoxedStrategy<StreamLimits> {
    let grpc =
        || of((duration_or_off(), duration_or_off()).prop_map(|(max, offset)| GrpcTimeout { max, offset }));
    (of(duration_or_off()), grpc(), grpc(), of(duration_or_off()))
        .prop_map(|(max_duration, grpc_duration, grpc_timeout, idle_timeout)| StreamLimits {
            max_duration,
            grpc_duration,
            grpc_timeout,
            idle_timeout,
        })
        .boxed()
}

pub(super) fn session() -> BoxedStrategy<Session> {
    let attribute = ("[A-Z][a-z]{0,6}", prop_oneof![token(), Just(String::new())]);
    let cookie = (token(), of("/[a-z/]{0,6}"), any::<bool>(), vec(attribute, 0..3)).prop_map(
        |(name, path, permanent, attributes)| SessionBy::Cookie { name, path, permanent, attributes },
    );
    let by = prop_oneof![cookie, token().prop_map(|name| SessionBy::Header { name })];
    let millis = || of((1_u64..1 << 40).prop_map(Duration::from_millis));
    (by, of(200_u16..600), millis(), millis())
        .prop_map(|(mut by, strict, absolute, idle)| {
            if let SessionBy::Cookie { permanent, .. } = &mut by {
                *permanent &= absolute.is_some();
            }
            Session { by, strict, absolute, idle }
        })
        .boxed()
}
