//! What resources say, in words.

use std::time::Duration;

use outrigger_model::cluster::{
    Balance, Breaker, CheckHow, ClientTls, Cluster, HealthCheck, Keepalive, LeastOf, Outlier,
    UpstreamProtocol,
};
use outrigger_model::concurrency::{AdaptiveConcurrency, MinRtt};
use outrigger_model::ext_authz::RouteAuthz;
use outrigger_model::global_limit::{Entry, EntryValue, GlobalLimit};
use outrigger_model::listener::{FilterChain, TcpProxy, TransportMatch};
use outrigger_model::rate_limit::RateLimit;
use outrigger_model::route::{
    AuthorityOf, Fault, FaultStatus, Forward, GrpcTimeout, HeaderEdits, HedgeDelay, HedgePolicy, RetryPolicy,
    Route, RouteAction, Session, SessionBy, StreamLimits,
};
use outrigger_rules::intent::{Distribution, Nearness, PlacePattern};

use super::body::RouteBody;

/// `250ms`, `2s`, `1.5s`.
fn time(time: Duration) -> String {
    match (time.as_secs(), time.subsec_millis()) {
        (0, millis) => format!("{millis}ms"),
        (seconds, 0) => format!("{seconds}s"),
        _ => format!("{}s", time.as_secs_f64()),
    }
}

/// A route, with the retries of its virtual host where it has none of its own.
pub(super) fn route(host: &str, route: &Route, host_retry: Option<&RetryPolicy>) -> RouteBody {
    let forward = match &route.action {
        RouteAction::Forward(forward) => Some(forward),
        RouteAction::Redirect(_) | RouteAction::Direct { .. } => None,
    };
    let timeout = forward.and_then(|forward| forward.timeout).filter(|timeout| !timeout.is_zero());
    RouteBody {
        name: route.name.clone(),
        virtual_host: host.to_owned(),
        origin: route.origin.as_ref().map(ToString::to_string),
        matches: route.matches.to_string(),
        action: action(&route.action),
        timeout: timeout.map(time),
        retry: forward.and_then(|forward| forward.retry.as_ref().or(host_retry)).and_then(retry),
        edits: edits(route),
        more: more(route),
    }
}

/// A chain of connections that nobody looks into.
pub(super) fn connections(chain: &FilterChain, tcp: &TcpProxy) -> RouteBody {
    let forward = Forward { clusters: tcp.clusters.clone(), ..Forward::default() };
    let matches = match (&*chain.matches.server_names, chain.matches.transport) {
        ([], TransportMatch::Tls) => "TLS to any other name".to_owned(),
        ([], _) => "connections of bytes".to_owned(),
        (names, _) => format!("TLS to {}", names.join(", ")),
    };
    RouteBody {
        name: chain.name.clone(),
        origin: chain.origin.as_ref().map(ToString::to_string),
        matches,
        action: action(&RouteAction::Forward(forward)),
        ..RouteBody::default()
    }
}

pub(super) fn action(action: &RouteAction) -> String {
    match action {
        RouteAction::Forward(forward) => {
            let total: u64 = forward.clusters.iter().map(|share| u64::from(share.weight)).sum();
            let share = |weight| {
                if total == u64::from(weight) { String::new() } else { format!(" ({weight} of {total})") }
            };
            let to = forward.clusters.iter().map(|to| format!("{}{}", to.cluster, share(to.weight)));
            format!("forwards to {}", to.collect::<Vec<_>>().join(", "))
        }
        RouteAction::Redirect(redirect) => format!("redirects with {}", redirect.status()),
        RouteAction::Direct { status, body } if body.is_empty() => format!("answers {status}"),
        RouteAction::Direct { status, body } => format!("answers {status} with {} bytes", body.len()),
    }
}

fn retry(policy: &RetryPolicy) -> Option<String> {
    if policy.attempts == 0 || (policy.on.is_empty() && policy.statuses.is_empty()) {
        return None;
    }
    let statuses = policy.statuses.iter().map(u16::to_string);
    let on: Vec<_> = policy.on.iter().map(|on| on.name().to_owned()).chain(statuses).collect();
    let each = policy.per_try_timeout.map_or(String::new(), |limit| format!(", each within {}", time(limit)));
    let (base, max) = (time(policy.backoff_base), time(policy.backoff_max));
    let silent =
        policy.per_try_idle.map_or(String::new(), |limit| format!(", none silent for {}", time(limit)));
    let asked = policy.rate_limited.as_deref().map_or(String::new(), |asked| {
        let headers: Vec<_> = asked.headers.iter().map(|header| header.name.as_str()).collect();
        format!(", or what {} says up to {}", headers.join(" or "), time(asked.max))
    });
    let far = match policy.leave_priorities {
        0 => String::new(),
        every => format!(", after {every} in places of the next priority"),
    };
    let attempts = policy.attempts;
    Some(format!(
        "up to {attempts} times on {}{each}{silent}{far}; back-off {base} to {max}{asked}",
        on.join(", ")
    ))
}

/// What a route changes in requests.
fn edits(route: &Route) -> Vec<String> {
    let mut all = headers(&route.request_headers);
    if let RouteAction::Forward(Forward { rewrite, clusters, .. }) = &route.action {
        if let Some(prefix) = &rewrite.prefix {
            all.push(format!("replaces the matched path by {prefix}"));
        }
        if let Some((pattern, text)) = rewrite.regex.as_ref().filter(|_| rewrite.prefix.is_none()) {
            all.push(format!("replaces {pattern:?} in the path by {text:?}"));
        }
        if let Some(authority) = &rewrite.authority {
            all.push(format!("replaces the authority by {authority}"));
        }
        if rewrite.authority_of == Some(AuthorityOf::Endpoint) {
            all.push("replaces the authority by the name of the endpoint".to_owned());
        }
        for (share, authority) in clusters.iter().filter_map(|share| Some((share, share.authority.as_ref()?)))
        {
            all.push(format!("to {}: replaces the authority by {authority}", share.cluster));
        }
        for share in clusters.iter().filter(|share| !share.request_headers.is_empty()) {
            all.extend(
                headers(&share.request_headers).iter().map(|edit| format!("to {}: {edit}", share.cluster)),
            );
        }
    }
    all.extend(headers(&route.response_headers).iter().map(|edit| format!("in responses: {edit}")));
    all
}

fn headers(edits: &HeaderEdits) -> Vec<String> {
    let removed = edits.remove.iter().map(|name| format!("removes {name}"));
    let set = edits.set.iter().map(|(name, value)| format!("sets {name}: {value}"));
    let added = edits.add.iter().map(|(name, value)| format!("adds {name}: {value}"));
    let replaced = edits.set_if_present.iter().map(|(name, value)| format!("replaces {name} by {value}"));
    let filled = edits.add_if_absent.iter().map(|(name, value)| format!("adds a missing {name}: {value}"));
    removed.chain(set).chain(replaced).chain(filled).chain(added).collect()
}

/// What else a route does.
fn more(route: &Route) -> Vec<String> {
    let mut all: Vec<String> = route.fault.iter().flat_map(fault).collect();
    if let RouteAction::Forward(forward) = &route.action {
        let ordinary = GrpcTimeout { max: forward.timeout.unwrap_or_default(), ..GrpcTimeout::default() };
        all.extend(forward.limits.as_deref().into_iter().flat_map(|own| limits(own, ordinary)));
        all.extend(route.session.as_deref().map(session));
        all.extend(forward.hedge.as_deref().map(hedge));
        let copies = forward.mirrors.iter();
        all.extend(copies.map(|copy| format!("copies {}% to {}", copy.percentage, copy.cluster)));
    }
    if route.authz.values().any(|said| matches!(said, RouteAuthz::Asked(_))) {
        all.push("asks a service first whether a request may pass".to_owned());
    }
    if let Some(cors) = &route.cors {
        let origins: Vec<_> = cors.allow_origins.iter().map(ToString::to_string).collect();
        all.push(format!("lets pages call it whose origin {}", origins.join(" or ")));
    }
    all
}

/// `ordinary`: what holds of the time that calls of gRPC say themselves, where nothing is said.
fn limits(limits: &StreamLimits, ordinary: GrpcTimeout) -> Vec<String> {
    let ever = |limit: Duration| if limit.is_zero() { "for ever".to_owned() } else { time(limit) };
    let lasts = limits.max_duration.map(|limit| format!("lets a stream last {}", ever(limit)));
    let silent = limits.idle_timeout.map(|limit| format!("lets it be silent {}", ever(limit)));
    let grpc = [
        (limits.grpc_duration, "a stream"),
        (limits.grpc_timeout.filter(|rule| *rule != ordinary), "a request"),
    ];
    let grpc = grpc.into_iter().filter_map(|(rule, what)| {
        let rule = rule?;
        let most =
            if rule.max.is_zero() { String::new() } else { format!(", and at most {}", time(rule.max)) };
        let less = if rule.offset.is_zero() { String::new() } else { format!(" less {}", time(rule.offset)) };
        Some(format!("lets {what} of gRPC last as it says itself{less}{most}"))
    });
    lasts.into_iter().chain(silent).chain(grpc).collect()
}

fn session(session: &Session) -> String {
    let by = match &session.by {
        SessionBy::Cookie { name, .. } => format!("the cookie {name}"),
        SessionBy::Header { name } => format!("the header {name}"),
    };
    let until = session.absolute.map_or(String::new(), |end| format!(", for {}", time(end)));
    let silent = session.idle.map_or(String::new(), |end| format!(", until it is silent for {}", time(end)));
    let strict =
        session.strict.map_or(String::new(), |status| format!("; where that is gone, it answers {status}"));
    format!("keeps a client by {by} at the endpoint that has answered it{until}{silent}{strict}")
}

fn hedge(hedge: &HedgePolicy) -> String {
    let after = match hedge.delay {
        Some(HedgeDelay::Fixed(delay)) => Some(format!("after {}", time(delay))),
        Some(HedgeDelay::Percentile { percent, .. }) => {
            Some(format!("after what {percent}% of first attempts took"))
        }
        None => None,
    };
    let when =
        after.into_iter().chain(hedge.on_per_try_timeout.then(|| "on the time of one attempt".to_owned()));
    let which = if hedge.all_methods { "" } else { ", where the method may be repeated" };
    format!("hedges with up to {} attempts {}{which}", hedge.attempts, when.collect::<Vec<_>>().join(" or "))
}

fn fault(fault: &Fault) -> Vec<String> {
    let delay = fault.delay.iter();
    let delay = delay.map(|delay| format!("delays {}% by {}", delay.percentage, time(delay.duration)));
    let abort = fault.abort.iter().map(|abort| match abort.status {
        FaultStatus::Http(status) => format!("answers {}% with {status}", abort.percentage),
        FaultStatus::Grpc(code) => format!("answers {}% with gRPC status {code}", abort.percentage),
    });
    delay.chain(abort).collect()
}

/// Balancing, TLS, limits and ejection of a cluster.
pub(super) fn policy(cluster: &Cluster) -> Vec<String> {
    let mut all = vec![balance(cluster.balance), tls(&cluster.tls)];
    all.extend(cluster.warmup.map(|warmup| format!("new endpoints warm up over {}", time(warmup.window))));
    match cluster.protocol {
        UpstreamProtocol::Follow => {}
        UpstreamProtocol::Http1 => all.push("HTTP/1.1".to_owned()),
        UpstreamProtocol::Http2 => all.push("HTTP/2".to_owned()),
    }
    let limits = &cluster.limits;
    let bounds = [
        ("connections", limits.max_connections),
        ("pending requests", limits.max_pending),
        ("requests", limits.max_requests),
        ("retries", limits.max_retries),
    ];
    let bounds: Vec<_> = bounds
        .iter()
        .filter(|(_, most)| *most != u32::MAX)
        .map(|(what, most)| format!("{most} {what}"))
        .collect();
    if !bounds.is_empty() {
        all.push(format!("at most {}", bounds.join(", ")));
    }
    let of_one = [
        ("requests", cluster.max_requests_per_connection),
        ("streams at a time", cluster.max_streams_per_connection),
    ];
    for (what, most) in of_one.into_iter().filter(|(_, most)| *most > 0) {
        all.push(format!("at most {most} {what} on one connection"));
    }
    if let Some(longest) = cluster.max_connection_duration {
        all.push(format!("no request on a connection older than {}", time(longest)));
    }
    if let Some(budget) = &limits.retry_budget {
        all.push(format!("retries up to {}% of the requests, or {}", budget.percent, budget.min_concurrency));
    }
    all.extend(cluster.outlier.as_ref().and_then(ejects));
    if let Some(breaker) = &cluster.breaker {
        all.push(opens(breaker));
    }
    if let Some(check) = &cluster.health_check {
        all.push(checks(check));
    }
    all.push(format!("connects within {}", time(cluster.connect_timeout)));
    all.extend(cluster.keepalive.map(probes));
    all
}

/// For what endpoints are ejected; nothing where for nothing.
fn ejects(outlier: &Outlier) -> Option<String> {
    let mut causes = Vec::new();
    match (outlier.consecutive_5xx, outlier.consecutive_gateway) {
        (0, 0) => {}
        (0, gateway) => causes.push(format!("{gateway} gateway errors in a row")),
        (errors, 0) => causes.push(format!("{errors} errors in a row")),
        (errors, gateway) => causes.push(format!("{errors} errors or {gateway} gateway errors in a row")),
    }
    if outlier.local_apart && outlier.consecutive_local > 0 {
        causes.push(format!("{} times in a row without an answer", outlier.consecutive_local));
    }
    causes.extend(outlier.success_rate.map(|rate| {
        let deviations = f64::from(rate.stdev_factor) / 1000.0;
        format!("a rate of success {deviations} deviations below the others'")
    }));
    causes.extend(outlier.failure_percentage.map(|of| format!("{}% of failures", of.threshold)));
    let few = match outlier.min_health_percent {
        0 => String::new(),
        percent => format!(", as long as {percent}% of all are left"),
    };
    let time = time(outlier.base_ejection);
    (!causes.is_empty()).then(|| format!("ejects for {time} after {}{few}", causes.join(", or ")))
}

fn checks(check: &HealthCheck) -> String {
    let how = match &check.how {
        CheckHow::Http(http) => format!("by {} {}", http.method, http.path),
        CheckHow::Tcp(_) => "by a connection".to_owned(),
        CheckHow::Grpc(grpc) if grpc.service.is_empty() => "by gRPC".to_owned(),
        CheckHow::Grpc(grpc) => format!("by gRPC for {}", grpc.service),
    };
    format!(
        "checks endpoints {how} every {}: away after {} failures in a row, back after {} successes",
        time(check.interval),
        check.unhealthy_threshold,
        check.healthy_threshold
    )
}

/// TCP's probes, as far as a rule says them.
fn probes(of: Keepalive) -> String {
    let seconds = |what: &str, seconds: Option<u32>| seconds.map(|seconds| format!("{what} {seconds}s"));
    let said = [
        seconds("first after", of.time),
        seconds("then every", of.interval),
        of.probes.map(|probes| format!("{probes} times")),
    ];
    let said: Vec<_> = said.into_iter().flatten().collect();
    format!("asks by TCP's keep-alive whether a silent peer is there: {}", said.join(", "))
}

fn opens(breaker: &Breaker) -> String {
    let (percent, least) = (breaker.failure_percent, breaker.minimum_requests);
    let share = format!("{percent}% of at least {least} requests in {}", time(breaker.interval));
    let row = format!("{} in a row", breaker.consecutive_failures);
    let when = match (percent > 0.0, breaker.consecutive_failures > 0) {
        (true, true) => format!("{share}, or {row}"),
        (true, false) => share,
        _ => row,
    };
    format!("sends nothing for {} after failures of {when}", time(breaker.open_time))
}

/// Which endpoints go first.
pub(super) fn nearness(rule: &Nearness) -> String {
    if !rule.distribute.is_empty() {
        let to = |(place, percent): &(PlacePattern, u32)| format!("{percent}% to {place}");
        let from = |one: &Distribution| {
            format!("{} from {}", one.to.iter().map(to).collect::<Vec<_>>().join(", "), one.from)
        };
        return format!(
            "shares by place: {}",
            rule.distribute.iter().map(from).collect::<Vec<_>>().join("; ")
        );
    }
    let over = |(from, to): &(String, String)| format!("; from {from} to {to} before other regions");
    let failover: String = rule.failover.iter().map(over).collect();
    let order = if !rule.priority.is_empty() {
        let label = |(key, value): &(String, Option<String>)| match value {
            Some(value) => format!("{key}={value}"),
            None => format!("the client's {key}"),
        };
        let labels: Vec<_> = rule.priority.iter().map(label).collect();
        let nearest = if failover.is_empty() { "" } else { ", and of those that are alike the nearest" };
        let labels = labels.join(", ");
        format!(
            "first the endpoints with {labels}: the more of these, from the first, the sooner{nearest}{failover}"
        )
    } else if !rule.costs.is_empty() {
        let cost = |(place, cost): &(PlacePattern, u32)| format!("{place} for {cost}");
        let costs: Vec<_> = rule.costs.iter().map(cost).collect();
        format!("the cheapest places first: {}; who has no cost last", costs.join(", "))
    } else if rule.zone_aware.is_some() {
        format!("the client's region first, then all others{failover}")
    } else {
        format!("the nearest endpoints first: the client's zone, its region, all others{failover}")
    };
    let zones = rule.zone_aware.iter().map(|zones| {
        let (percent, least) = (zones.percent, zones.min_endpoints);
        format!("; of {percent}% of requests its zone takes what its part of the service bears, from {least} endpoints on")
    });
    let full = rule.capacity.iter().map(|full| format!("; {full} requests under way for each fill a place"));
    std::iter::once(order).chain(zones).chain(full).collect()
}

/// How many requests may be under way.
pub(super) fn concurrency(limit: &AdaptiveConcurrency) -> String {
    let by = limit.origin.as_ref().map_or(String::new(), |origin| format!(" ({origin})"));
    let min_rtt = match &limit.min_rtt {
        MinRtt::Fixed(fixed) => format!("is {}", time(*fixed)),
        MinRtt::Measured { interval, requests, .. } => {
            format!("is measured every {} by {requests} requests", time(*interval))
        }
    };
    format!(
        "adaptive concurrency{by}: {} to {} requests under way, by p{} of {}; the minRTT {min_rtt}",
        limit.lowest(),
        limit.max_limit,
        limit.percentile,
        time(limit.update_interval)
    )
}

/// How many requests a limit lets through.
pub(super) fn limit(limit: &RateLimit) -> String {
    let each = if limit.by.is_empty() { "" } else { " each" };
    let by = limit.origin.as_ref().map_or(String::new(), |origin| format!(" ({origin})"));
    format!("{}{by}: {} requests in {}{each}", limit.name, limit.requests, time(limit.per))
}

/// Whom it asks, and what about.
pub(super) fn global_limit(limit: &GlobalLimit, asked: &str) -> String {
    let by = limit.origin.as_ref().map_or(String::new(), |origin| format!(" ({origin})"));
    let entry = |entry: &Entry| match &entry.value {
        EntryValue::Text(text) => format!("{}={text}", entry.key),
        EntryValue::Of(_) => entry.key.clone(),
    };
    let entries: Vec<String> = limit.descriptor.iter().map(entry).collect();
    format!("{}{by}: {asked} is asked about {}", limit.name, entries.join(", "))
}

fn balance(balance: Balance) -> String {
    match balance {
        Balance::RoundRobin => "round robin",
        Balance::LeastRequest => "least request",
        Balance::Random => "random",
        Balance::RingHash { .. } => "ring hash, as an Envoy's",
        Balance::SteadyRing => "ring hash",
        Balance::Maglev { .. } => "Maglev",
        Balance::LeastOf(LeastOf { choices: None, .. }) => "least request of all",
        Balance::LeastOf(LeastOf { choices: Some(choices), .. }) => {
            return format!("least request of {choices}");
        }
        Balance::PeakEwma { decay, .. } => return format!("peak EWMA over {}", time(decay)),
        Balance::Reported => "weights by reported load",
    }
    .to_owned()
}

fn tls(tls: &ClientTls) -> String {
    match tls {
        ClientTls::None => "plain text".to_owned(),
        ClientTls::Mesh { required: true, .. } => "mTLS, required".to_owned(),
        ClientTls::Mesh { .. } => "mTLS where there is a sidecar".to_owned(),
        ClientTls::Outside(outside) => format!("TLS to {}", outside.server_name),
    }
}
