//! What a foreign client cannot enforce is taken out of what it is sent, and said of the rule that wanted it.
//!
//! The last stage of compilation for an Envoy or a gRPC client. A refusal of theirs holds back the whole resource, which for an
//! Envoy's routes is every service of a port: what they may refuse is looked for here, and left out alone.

use outrigger_model::cluster::{Balance, ClientTls, Cluster, Limits, Outlier};
use outrigger_model::matcher::{Pattern, StringMatch};
use outrigger_model::resource::{Origin, Resource};
use outrigger_model::route::{
    Forward, HashOn, HeaderEdits, HeaderMatch, PathMatch, Redirect, RetryOn, RetryPolicy, Rewrite, Route,
    RouteAction, RouteConfig, RouteMatch, Session, SessionBy, StreamLimits,
};
use outrigger_rules::intent::ObjectKind;
use outrigger_xds::ClientKind;

use super::attached::external;
use super::lens::Lens;
use super::names::Outbound;

mod cookies;
mod re2;

/// What a client does not enforce of a rule.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Gap {
    /// The rule, as `VirtualService shop/catalog`.
    pub rule: String,
    /// What, and why.
    pub why: String,
}

impl Gap {
    /// Of the rule behind a resource; what no rule asked for is nobody's gap.
    pub(crate) fn of(origin: Option<&Origin>, why: impl Into<String>) -> Option<Self> {
        let Origin { kind, namespace, name } = origin?;
        Some(Self { rule: format!("{kind} {namespace}/{name}"), why: why.into() })
    }
}

/// What became of a resource.
pub(super) struct Fitted {
    /// The client may have it.
    pub(super) sent: bool,
    /// What was taken out.
    pub(super) gaps: Vec<Gap>,
}

/// Takes out of a resource what the client cannot enforce.
pub(super) fn fit(resource: &mut Resource, lens: &Lens<'_>) -> Fitted {
    match (lens.kind(), resource) {
        (ClientKind::Outrigger, _) => Fitted { sent: true, gaps: Vec::new() },
        (kind, Resource::Routes(config)) => {
            let mut gaps = routes(config, lens);
            if kind == ClientKind::Grpc {
                gaps.extend(bytes(&config.name, lens));
            }
            Fitted { sent: true, gaps }
        }
        (ClientKind::Grpc, Resource::Cluster(cluster)) => grpc_cluster(cluster, lens),
        (ClientKind::Envoy, Resource::Cluster(cluster)) => envoy_cluster(cluster),
        _ => Fitted { sent: true, gaps: Vec::new() },
    }
}

/// Routes of connections: gRPC knows requests only.
fn bytes(name: &str, lens: &Lens<'_>) -> Vec<Gap> {
    let Some(outbound) = Outbound::parse(name) else { return Vec::new() };
    let service = lens.resolve(outbound.host).and_then(|host| lens.service(&host));
    let attached = service.map(|service| lens.attached_to(service, outbound.port)).unwrap_or_default();
    let bytes = attached.iter().filter(|route| route.origin.kind == ObjectKind::TcpRoute);
    let why = "gRPC has no TCP proxy, so routes of connections have no effect";
    bytes.map(|route| Gap { rule: route.origin.to_string(), why: why.to_owned() }).collect()
}

fn routes(config: &mut RouteConfig, lens: &Lens<'_>) -> Vec<Gap> {
    let mut gaps = Vec::new();
    for host in &mut config.virtual_hosts {
        host.routes.retain_mut(|route| {
            let mut left_out = Vec::new();
            let cookies = std::mem::take(&mut route.matches.cookies);
            let odd = cookies.iter().find_map(cookies::flaw);
            route.matches.headers.extend(cookies.into_iter().map(cookies::as_header));
            if external::take(route) {
                let why = "ExternalAuth is for sidecars, so requests are answered with an error";
                left_out.push(why.to_owned());
            }
            match lens.kind() {
                ClientKind::Grpc => grpc_route(route, &mut left_out),
                _ => envoy_route(route, &mut left_out),
            }
            let bad = odd.or_else(|| patterns(route).find_map(|pattern| flaw(pattern, lens)));
            let bad = bad.or_else(|| substitution(route));
            let origin = route.origin.as_ref();
            if !left_out.is_empty() {
                gaps.extend(Gap::of(origin, format!("route {}: {}", route.name, left_out.join(", "))));
            }
            if let Some(why) = &bad {
                gaps.extend(Gap::of(origin, format!("route {} is left out: {why}", route.name)));
            }
            bad.is_none()
        });
    }
    gaps
}

/// Why RE2 would not take a pattern.
fn flaw(pattern: &str, lens: &Lens<'_>) -> Option<String> {
    let shown: String = pattern.chars().take(80).collect();
    match re2::program_size(pattern) {
        Err(why) => Some(format!("{why}, in \"{shown}\"")),
        // gRPC's implementations have no such limit.
        Ok(size) if lens.kind() == ClientKind::Envoy && size > u64::from(lens.regex_limit()) => {
            Some(format!(
                "\"{shown}\" may need {size} instructions of RE2, and this Envoy takes {} (its runtime's \
             re2.max_program_size.error_level; name another limit in the node metadata, RE2_MAX_PROGRAM_SIZE)",
                lens.regex_limit()
            ))
        }
        Ok(_) => None,
    }
}

/// All regular expressions of a route.
fn patterns(route: &Route) -> impl Iterator<Item = &str> {
    fn regex(value: &StringMatch) -> Option<&str> {
        match &value.pattern {
            Pattern::Regex(pattern) => Some(pattern),
            _ => None,
        }
    }
    let path = match &route.matches.path {
        PathMatch::Regex(pattern) => Some(pattern.as_str()),
        _ => None,
    };
    let rewrite = match &route.action {
        RouteAction::Forward(Forward { rewrite: Rewrite { regex: Some((pattern, _)), .. }, .. }) => {
            Some(pattern.as_str())
        }
        RouteAction::Redirect(Redirect { regex: Some((pattern, _)), .. }) => Some(pattern.as_str()),
        _ => None,
    };
    let origins = route.cors.iter().flat_map(|cors| &cors.allow_origins);
    let retry = match &route.action {
        RouteAction::Forward(forward) => forward.retry.as_ref(),
        RouteAction::Redirect(_) | RouteAction::Direct { .. } => None,
    };
    let retry =
        retry.into_iter().flat_map(|retry| retry.response_headers.iter().chain(&retry.request_headers));
    path.into_iter()
        .chain(rewrite)
        .chain(origins.filter_map(regex))
        .chain(route.matches.headers.iter().chain(retry).filter_map(|header| regex(&header.value)))
        .chain(route.matches.query.iter().filter_map(|query| regex(&query.value)))
}

/// RE2 refuses a substitution that names a group which the pattern does not have.
fn substitution(route: &Route) -> Option<String> {
    let (RouteAction::Forward(Forward { rewrite: Rewrite { regex: Some((pattern, text)), .. }, .. })
    | RouteAction::Redirect(Redirect { regex: Some((pattern, text)), .. })) = &route.action
    else {
        return None;
    };
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        if c != '\\' {
            continue;
        }
        match chars.next() {
            Some('\\') => {}
            Some(digit @ '0'..='9') if digit.to_digit(10) <= Some(re2::groups(pattern)) => {}
            other => {
                let named = other.map(String::from).unwrap_or_default();
                return Some(format!("\\{named} names no group of \"{pattern}\""));
            }
        }
    }
    None
}

/// An Envoy refuses edits of pseudo-headers and of Host; what sets the authority is a rewrite for it.
fn envoy_route(route: &mut Route, left_out: &mut Vec<String>) {
    let mut authority = take_authority(&mut route.request_headers);
    if let Some(session) = &mut route.session {
        let several = matches!(&route.action, RouteAction::Forward(forward) if forward.clusters.len() > 1);
        envoy_session(session, several, left_out);
    }
    if let RouteAction::Forward(forward) = &mut route.action {
        let several = forward.clusters.len() > 1;
        for share in &mut forward.clusters {
            let own = take_authority(&mut share.request_headers);
            // Ours edits for the cluster first, then for the route: the route's word is the last, as an Envoy's.
            match several {
                true => share.authority = share.authority.take().or(own),
                false => authority = authority.or(own),
            }
        }
        forward.rewrite.authority = forward.rewrite.authority.take().or(authority);
        envoy_hedge(forward, &route.matches, left_out);
    }
}

/// An Envoy's sessions end with a permanent cookie, or never; and it looks for their endpoint in the cluster that it has drawn.
fn envoy_session(session: &mut Session, several: bool, left_out: &mut Vec<String>) {
    let permanent = matches!(session.by, SessionBy::Cookie { permanent: true, .. });
    if session.idle.take().is_some() {
        left_out.push("Envoys know no end of a session by silence".to_owned());
    }
    if !permanent && session.absolute.take().is_some() {
        left_out.push("Envoys know no end of a session but that of a permanent cookie".to_owned());
    }
    if several {
        left_out.push("Envoys pick the destination by weight, whatever the session".to_owned());
    }
}

/// An Envoy hedges when the time of an attempt has passed, and whatever the method.
fn envoy_hedge(forward: &mut Forward, matches: &RouteMatch, left_out: &mut Vec<String>) {
    let Some(hedge) = &mut forward.hedge else { return };
    if hedge.delay.take().is_some() {
        left_out.push("Envoys know no hedge after a delay, only on perTryTimeout".to_owned());
    }
    let safe = hedge.all_methods || matches.headers.iter().any(only_repeatable);
    if hedge.on_per_try_timeout && !safe {
        hedge.on_per_try_timeout = false;
        let why = "Envoys would hedge every method; write allMethods, or a match on method";
        left_out.push(why.to_owned());
    }
    if hedge.on_per_try_timeout && forward.retry.as_ref().is_none_or(|retry| retry.attempts == 0) {
        hedge.on_per_try_timeout = false;
        left_out.push("a hedge is one of an Envoy's retries, and the route has none".to_owned());
    }
    if !hedge.on_per_try_timeout {
        forward.hedge = None;
    }
}

/// Whether a condition lets only methods through that may be repeated.
fn only_repeatable(header: &HeaderMatch) -> bool {
    let is = |method: &str| ["GET", "HEAD", "OPTIONS", "TRACE", "PUT", "DELETE"].contains(&method);
    header.name == ":method"
        && !header.invert
        && matches!(&header.value.pattern, Pattern::Exact(method) if is(method))
}

/// An Envoy's circuit breakers are limits; what it has of ours is the ejection of endpoints.
fn envoy_cluster(cluster: &mut Cluster) -> Fitted {
    let breaker = cluster.breaker.take();
    let capacity = cluster.capacity.take();
    let is_peak = matches!(cluster.balance, Balance::PeakEwma { .. });
    let lacks = [
        (breaker.is_some(), "Envoys know no circuit breaker that opens and closes"),
        (capacity.is_some(), "Envoys know no capacity of what is near"),
        (is_peak, "an Envoy without the contribution peak_ewma takes the less loaded of two"),
    ];
    let gaps = lacks.into_iter().filter(|(lacking, _)| *lacking);
    Fitted { sent: true, gaps: gaps.filter_map(|(_, why)| Gap::of(cluster.origin.as_ref(), why)).collect() }
}

fn take_authority(edits: &mut HeaderEdits) -> Option<String> {
    let is = |name: &str| name == ":authority" || name.eq_ignore_ascii_case("host");
    let found = edits
        .set
        .iter()
        .chain(&edits.add)
        .rev()
        .find(|(name, _)| is(name))
        .map(|(_, value)| value.to_string());
    edits.set.retain(|(name, _)| !is(name));
    edits.add.retain(|(name, _)| !is(name));
    edits.remove.retain(|name| !is(name));
    found
}

const GRPC_RETRIES: [RetryOn; 5] = [
    RetryOn::Cancelled,
    RetryOn::DeadlineExceeded,
    RetryOn::Internal,
    RetryOn::ResourceExhausted,
    RetryOn::Unavailable,
];
/// gRPC repeats these by itself, where nothing was sent.
const GRPC_BY_ITSELF: [RetryOn; 3] =
    [RetryOn::ConnectFailure, RetryOn::RefusedStream, RetryOn::ResetBeforeRequest];

/// What gRPC's libraries read of a route: gRFC A28 (matches, weights), A31 (timeouts), A42 (hash of a header), A44 (retries).
fn grpc_route(route: &mut Route, left_out: &mut Vec<String>) {
    let mut without = |what: &str, there: bool| {
        if there {
            left_out.push(format!("gRPC clients know no {what}"));
        }
    };
    without("faults", route.fault.take().is_some());
    without("policies for other origins", route.cors.take().is_some());
    without("sessions", route.session.take().is_some());
    without(
        "edits of headers",
        take_edits(&mut route.request_headers) | take_edits(&mut route.response_headers),
    );
    match &mut route.action {
        RouteAction::Redirect(_) => without("redirects, so such a call fails", true),
        RouteAction::Direct { .. } => without("direct responses, so such a call fails", true),
        RouteAction::Forward(forward) => {
            let mut edited = false;
            for share in &mut forward.clusters {
                edited |= take_edits(&mut share.request_headers) | take_edits(&mut share.response_headers);
                edited |= share.authority.take().is_some();
            }
            without("edits of headers for a share", edited);
            without("mirrors", !std::mem::take(&mut forward.mirrors).is_empty());
            without("hedges", forward.hedge.take().is_some());
            let limits = forward.limits.take().map_or_else(StreamLimits::default, |limits| *limits);
            // Its calls end by the time that they say, whatever a proxy is told of that.
            let others = StreamLimits { grpc_timeout: None, ..limits };
            without("limits of streams", others != StreamLimits::default());
            without("rewrites", std::mem::take(&mut forward.rewrite) != Rewrite::default());
            let before = forward.hash.len();
            forward.hash.retain(|hash| matches!(hash, HashOn::Header(_)));
            without("hash but of a header", forward.hash.len() < before);
            if let Some(retry) = &mut forward.retry {
                without("retries for these conditions", grpc_retries(retry));
                let times = retry.per_try_timeout.take().is_some() | retry.per_try_idle.take().is_some();
                without("timeout of one attempt", times);
                without(
                    "retries in places of another priority",
                    std::mem::take(&mut retry.leave_priorities) > 0,
                );
                without("waits that answers ask for", retry.rate_limited.take().is_some());
                if retry.on.is_empty() {
                    forward.retry = None;
                }
            }
        }
    }
}

fn take_edits(edits: &mut HeaderEdits) -> bool {
    !std::mem::take(edits).is_empty()
}

/// Leaves the conditions that gRPC knows; whether others were wanted.
fn grpc_retries(retry: &mut RetryPolicy) -> bool {
    let lacks = retry.attempts > 0
        && (!retry.statuses.is_empty()
            || !retry.request_headers.is_empty()
            || retry.on.iter().any(|on| !GRPC_RETRIES.contains(on) && !GRPC_BY_ITSELF.contains(on)));
    retry.on.retain(|on| GRPC_RETRIES.contains(on));
    retry.statuses.clear();
    retry.response_headers.clear();
    retry.request_headers.clear();
    lacks
}

/// Who is picked by what this client sees of endpoints, in ways that not all clients have.
fn by_load(balance: Balance) -> bool {
    matches!(balance, Balance::LeastOf(_) | Balance::PeakEwma { .. })
}

/// The same of a cluster, whose default such clients have not, either: where a rule asks for it, that is told.
fn asks_for_load(cluster: &Cluster, lens: &Lens<'_>) -> bool {
    let written = || {
        let outbound = Outbound::parse(&cluster.name)?;
        let rule = lens.destination_for(&lens.resolve(outbound.host)?)?;
        let subset = Some(outbound.subset).filter(|subset| !subset.is_empty());
        rule.effective(subset, outbound.port).load_balancing
    };
    by_load(cluster.balance) || cluster.balance == Balance::LeastRequest && written().is_some()
}

/// Leaves of ejection what gRPC knows (A50): rates, and not what comes in a row. Whether that is all that was wanted.
fn grpc_outlier(outlier: &mut Option<Outlier>) -> bool {
    let Some(rules) = outlier else { return true };
    let all = rules.consecutive_5xx == 0 && rules.consecutive_gateway == 0 && !rules.local_apart;
    (rules.consecutive_5xx, rules.consecutive_gateway, rules.local_apart) = (0, 0, false);
    if !rules.needs_rates() {
        *outlier = None;
    }
    all
}

/// What gRPC's libraries read of a cluster: gRFC A27, A32 (requests in flight), A42 (ring hash), A50 (outlier detection), A58 (weights by
/// reported load).
fn grpc_cluster(cluster: &mut Cluster, lens: &Lens<'_>) -> Fitted {
    if !lens.is_secure() && matches!(cluster.tls, ClientTls::Mesh { required: true, .. }) {
        // Never in plain text: without a cluster its calls fail.
        let why = "mTLS is required and this gRPC client has no certificates (SECURE in its node metadata), so its calls fail";
        return Fitted { sent: false, gaps: Gap::of(cluster.origin.as_ref(), why).into_iter().collect() };
    }
    let plain = Cluster::new("");
    let limits = Limits { max_requests: cluster.limits.max_requests, ..Limits::default() };
    let mut without = Vec::new();
    let mut lacks = |what: &'static str, there: bool| {
        if there {
            without.push(what);
        }
    };
    lacks("outlier detection but by rates", !grpc_outlier(&mut cluster.outlier));
    lacks("circuit breaker that opens and closes", cluster.breaker.take().is_some());
    lacks("health checks of endpoints by a rule", cluster.health_check.take().is_some());
    lacks("warm-up", cluster.warmup.take().is_some());
    lacks("random choice (they take turns)", cluster.balance == Balance::Random);
    lacks("choice by load or latency (they take turns)", asks_for_load(cluster, lens));
    lacks("capacity of what is near", cluster.capacity.take().is_some());
    lacks("limits but of requests in flight", std::mem::replace(&mut cluster.limits, limits) != limits);
    lacks("connect timeout of the rule's", cluster.connect_timeout != plain.connect_timeout);
    let ages = cluster.max_connection_duration.take().is_some();
    lacks(
        "limits of a connection's age",
        cluster.idle_timeout != plain.idle_timeout || cluster.max_requests_per_connection > 0 || ages,
    );
    lacks("TCP keep-alive of a rule's", cluster.keepalive.take().is_some());
    let streams = std::mem::take(&mut cluster.max_streams_per_connection);
    lacks("limit of a connection's streams but the server's", streams > 0);
    lacks("roots but the mesh's, so calls fail", matches!(cluster.tls, ClientTls::Outside(_)));
    (cluster.connect_timeout, cluster.idle_timeout) = (plain.connect_timeout, plain.idle_timeout);
    cluster.max_requests_per_connection = 0;
    let why = format!("gRPC clients know no {}", without.join(", no "));
    let gap = Gap::of(cluster.origin.as_ref(), why).filter(|_| !without.is_empty());
    Fitted { sent: true, gaps: gap.into_iter().collect() }
}

#[cfg(test)]
mod tests;
