//! `trafficPolicy`: load balancing, limits, ejection, retry budget, TLS; for all ports, and for single ones.

mod utilization;

use std::collections::BTreeMap;
use std::time::Duration;

use outrigger_model::cluster::{Balance, Keepalive, RetryBudget, Warmup, is_prime};
use outrigger_model::route::HashOn;

use super::Policies;
use crate::dialect::shared::identity;
use crate::dialect::virtual_service::port_selector;
use crate::dialect::{ejection, nearness};
use crate::finding::code;
use crate::intent::{
    ClientTls, ClientTlsMode, ConnectionPool, H2Upgrade, LoadBalancing, Nearness, TrafficPolicy,
};
use crate::reader::{At, Fields, Reader, Table};

const POLICY: Table = Table::new(
    "a traffic policy",
    &["loadBalancer", "connectionPool", "outlierDetection", "tls", "retryBudget", "portLevelSettings"],
)
.later(&["tunnel", "proxyProtocol"]);
const PORT_POLICY: Table = Table::new(
    "a port's traffic policy",
    &["port", "loadBalancer", "connectionPool", "outlierDetection", "tls"],
);
const BALANCER: Table = Table::new(
    "a load balancer",
    &[
        "simple",
        "consistentHash",
        "backendUtilization",
        "warmup",
        "warmupDurationSecs",
        "localityLbSetting",
        "zoneAwareLbSetting",
    ],
);
pub(in crate::dialect) const WARMUP: Table =
    Table::new("a warm-up", &["duration", "minimumPercent", "aggression"]);
const HASH: Table = Table::new(
    "a consistent hash",
    &[
        "httpHeaderName",
        "httpCookie",
        "useSourceIp",
        "httpQueryParameterName",
        "ringHash",
        "maglev",
        "minimumRingSize",
    ],
);
pub(in crate::dialect) const COOKIE: Table =
    Table::new("a cookie", &["name", "path", "ttl"]).later(&["attributes"]);
const RING: Table = Table::new("a ring hash", &["minimumRingSize"]);
const MAGLEV: Table = Table::new("a maglev table", &["tableSize"]);
const POOL: Table = Table::new("a connection pool", &["tcp", "http"]);
const TCP: Table = Table::new(
    "TCP settings",
    &["maxConnections", "connectTimeout", "idleTimeout", "maxConnectionDuration", "tcpKeepalive"],
);
const KEEPALIVE: Table = Table::new("TCP keep-alive", &["probes", "time", "interval"]);
const HTTP: Table = Table::new(
    "HTTP settings",
    &[
        "http1MaxPendingRequests",
        "http2MaxRequests",
        "maxRetries",
        "maxRequestsPerConnection",
        "idleTimeout",
        "maxConcurrentStreams",
        "h2UpgradePolicy",
        "useClientProtocol",
    ],
)
.later(&["http2KeepAlive"]);
const BUDGET: Table = Table::new("a retry budget", &["percent", "minRetryConcurrency", "budgetInterval"]);
pub(in crate::dialect) const TLS: Table = Table::new(
    "client TLS settings",
    &[
        "mode",
        "sni",
        "caCertificates",
        "clientCertificate",
        "privateKey",
        "credentialName",
        "subjectAltNames",
        "insecureSkipVerify",
    ],
)
.later(&["caCrl", "caCertCredentialName"]);

pub(super) fn read(reader: &mut Reader<'_>, at: &At<'_>) -> Policies {
    let Some(fields) = reader.fields(at, &POLICY) else { return Policies::default() };
    let mut ports = BTreeMap::new();
    for item in reader.list(fields.get("portLevelSettings")) {
        let Some(fields) = reader.fields(&item, &PORT_POLICY) else { continue };
        if !fields.has("port") {
            reader.missing(&fields, "port");
        }
        let policy = parts(reader, &fields, None);
        if let Some(port) = port_selector(reader, fields.get("port"))
            && ports.insert(port, policy).is_some()
        {
            reader.error(&item, format!("{}: the port {port} has settings already", item.path));
        }
    }
    let budget = fields.get("retryBudget").and_then(|at| retry_budget(reader, &at));
    let nothing = matches!(&at.node.value, crate::yaml::Value::Map(entries) if entries.is_empty());
    if nothing {
        reader.error(at, format!("{} says nothing: leave it out", at.path));
    }
    (parts(reader, &fields, budget), ports)
}

fn parts(reader: &mut Reader<'_>, fields: &Fields<'_>, retry_budget: Option<RetryBudget>) -> TrafficPolicy {
    let balancer_at = fields.get("loadBalancer");
    let balancer_fields = balancer_at.as_ref().and_then(|at| reader.fields(at, &BALANCER));
    let both = balancer_at.as_ref().zip(balancer_fields.as_ref());
    TrafficPolicy {
        load_balancing: both.and_then(|(at, fields)| balancer(reader, at, fields)),
        nearness: both.and_then(|(_, fields)| near(reader, fields)),
        warmup: both.and_then(|(_, fields)| warmup(reader, fields)),
        connection_pool: fields.get("connectionPool").and_then(|at| pool(reader, &at)).map(idle_alike),
        outlier: fields.get("outlierDetection").and_then(|at| ejection::istio(reader, &at)),
        // A field of ours: the native page has it.
        breaker: None,
        health_check: None,
        retry_budget,
        tls: fields.get("tls").and_then(|at| tls(reader, &at)),
    }
}

fn near(reader: &mut Reader<'_>, balancer: &Fields<'_>) -> Option<Nearness> {
    let zones = balancer.get("zoneAwareLbSetting").and_then(|at| nearness::zone_aware(reader, &at));
    let at = balancer.get("localityLbSetting");
    if let Some(at) = at.as_ref().filter(|_| zones.is_some()) {
        reader.error(at, format!("{} cannot hold together with zoneAwareLbSetting", at.path));
    }
    zones.or_else(|| at.and_then(|at| nearness::read(reader, &at, false)))
}

/// `warmup`, or what it was called before.
fn warmup(reader: &mut Reader<'_>, balancer: &Fields<'_>) -> Option<Warmup> {
    let at = balancer.get("warmup").or_else(|| balancer.get("warmupDurationSecs"))?;
    if balancer.has("consistentHash") {
        let message =
            format!("{} has no effect together with consistentHash: a key has its endpoint", at.path);
        reader.warn(code::NO_EFFECT, &at, message);
        return None;
    }
    let default = Warmup::default();
    if !balancer.has("warmup") {
        return Some(Warmup { window: reader.positive(Some(at))?, ..default });
    }
    warmup_of(reader, &at)
}

/// New endpoints get their share little by little.
pub(in crate::dialect) fn warmup_of(reader: &mut Reader<'_>, at: &At<'_>) -> Option<Warmup> {
    let default = Warmup::default();
    let fields = reader.fields(at, &WARMUP)?;
    if !fields.has("duration") {
        reader.missing(&fields, "duration");
    }
    let minimum_percent = reader.percent(fields.get("minimumPercent")).unwrap_or(default.minimum_percent);
    let aggression =
        reader.decimal(fields.get("aggression"), "a number of at least 1", |n| n >= 1.0 && n.is_finite());
    let aggression = aggression.unwrap_or(default.aggression);
    Some(Warmup { window: reader.positive(fields.get("duration"))?, minimum_percent, aggression })
}

fn balancer(reader: &mut Reader<'_>, at: &At<'_>, fields: &Fields<'_>) -> Option<LoadBalancing> {
    let ways = ["simple", "consistentHash", "backendUtilization"];
    let given: Vec<&'static str> = ways.into_iter().filter(|name| fields.has(name)).collect();
    if given.len() > 1 {
        let message = format!("{} has {}, but only one of them can hold", at.path, given.join(" and "));
        reader.error(at, message);
    }
    if let Some(hash) = fields.get("consistentHash") {
        return consistent_hash(reader, &hash);
    }
    if let Some(at) = fields.get("backendUtilization") {
        return utilization::read(reader, &at);
    }
    let words = [
        ("ROUND_ROBIN", Simple::Is(Balance::RoundRobin)),
        ("LEAST_REQUEST", Simple::Is(Balance::LeastRequest)),
        ("RANDOM", Simple::Is(Balance::Random)),
        ("PASSTHROUGH", Simple::Passthrough),
        ("LEAST_CONN", Simple::Is(Balance::LeastRequest)),
        ("UNSPECIFIED", Simple::Unsaid),
    ];
    match reader.choice(fields.get("simple"), &words)? {
        Simple::Is(balance) => Some(balance.into()),
        Simple::Passthrough => {
            reader.not_implemented(&fields.get("simple")?, "least request is used");
            None
        }
        Simple::Unsaid => None,
    }
}

#[derive(Clone, Copy)]
enum Simple {
    Is(Balance),
    Passthrough,
    Unsaid,
}

fn consistent_hash(reader: &mut Reader<'_>, at: &At<'_>) -> Option<LoadBalancing> {
    let fields = reader.fields(at, &HASH)?;
    let keys = ["httpHeaderName", "httpCookie", "useSourceIp", "httpQueryParameterName"];
    let given: Vec<&'static str> = keys.into_iter().filter(|name| fields.has(name)).collect();
    let key = match given.as_slice() {
        ["httpHeaderName"] => {
            reader.text(fields.get("httpHeaderName")).map(|name| HashOn::Header(name.to_ascii_lowercase()))
        }
        ["httpQueryParameterName"] => reader.text(fields.get("httpQueryParameterName")).map(HashOn::Query),
        ["useSourceIp"] => {
            reader.boolean(fields.get("useSourceIp")).filter(|on| *on).map(|_| HashOn::SourceAddress)
        }
        ["httpCookie"] => fields.get("httpCookie").and_then(|at| cookie(reader, &at)),
        _ => {
            reader.error(at, format!("{} needs exactly one of {}", at.path, keys.join(", ")));
            None
        }
    };
    let maglev = fields.get("maglev").and_then(|at| reader.fields(&at, &MAGLEV)).map(|fields| {
        let size_at = fields.get("tableSize");
        let size = u64::from(reader.number(size_at.clone(), 2..=5_000_011).unwrap_or(65537));
        if let Some(at) = size_at.filter(|_| !is_prime(size)) {
            reader.error(&at, format!("{} must be a prime, such as 65537, not {size}", at.path));
        }
        Balance::Maglev { size }
    });
    let ring = fields.get("ringHash").and_then(|at| reader.fields(&at, &RING));
    let size_at =
        ring.as_ref().map_or_else(|| fields.get("minimumRingSize"), |ring| ring.get("minimumRingSize"));
    let size = reader.number(size_at, 1..=8_388_608);
    if !reader.options.consistent_hash {
        reader.not_implemented(at, "least request is used");
    }
    let ring = Balance::ring(size.map(u64::from));
    Some(LoadBalancing { hash: Some(key?), ..maglev.unwrap_or(ring).into() })
}

pub(in crate::dialect) fn cookie(reader: &mut Reader<'_>, at: &At<'_>) -> Option<HashOn> {
    let fields = reader.fields(at, &COOKIE)?;
    if !fields.has("name") {
        reader.missing(&fields, "name");
    }
    let (path, ttl) = (reader.text(fields.get("path")), reader.duration(fields.get("ttl")));
    if let (Some(at), Some(false)) = (fields.get("path"), path.as_ref().map(|path| path.starts_with('/'))) {
        let message =
            format!("{} has no effect: browsers pass over a path without a slash at its begin", at.path);
        reader.warn(code::NO_EFFECT, &at, message);
    }
    Some(HashOn::Cookie { name: reader.text(fields.get("name"))?, path, ttl })
}

/// What the kernel takes: of probes, and of seconds.
const MOST_PROBES: u32 = 127;
const LONGEST_SILENCE: u64 = 32_767;

/// TCP counts in whole seconds: a part of one is one.
fn keepalive(reader: &mut Reader<'_>, at: &At<'_>) -> Option<Keepalive> {
    let fields = reader.fields(at, &KEEPALIVE)?;
    // In protobuf 0 is "not set".
    let probes = reader.number(fields.get("probes"), 0..=MOST_PROBES).filter(|probes| *probes > 0);
    let mut seconds = |name| {
        let at = fields.get(name)?;
        let seconds = reader.positive(Some(at.clone()))?.as_millis().div_ceil(1000);
        if seconds > u128::from(LONGEST_SILENCE) {
            reader.error(&at, format!("{} must be at most {LONGEST_SILENCE}s", at.path));
            return None;
        }
        u32::try_from(seconds).ok()
    };
    Some(Keepalive { probes, time: seconds("time"), interval: seconds("interval") })
}

/// The shortest life of a connection, as an Envoy takes it.
const SHORTEST_AGE: Duration = Duration::from_millis(1);

/// How old a connection may get.
pub(in crate::dialect) fn age(reader: &mut Reader<'_>, at: Option<At<'_>>) -> Option<Duration> {
    let age = reader.positive(at.clone())?;
    if let Some(at) = at.filter(|_| age < SHORTEST_AGE) {
        reader.error(&at, format!("{} must be at least 1ms", at.path));
        return None;
    }
    Some(age)
}

/// Limits of connections and requests.
pub(in crate::dialect) fn pool(reader: &mut Reader<'_>, at: &At<'_>) -> Option<ConnectionPool> {
    let fields = reader.fields(at, &POOL)?;
    let mut pool = ConnectionPool::default();
    if !fields.has("tcp") && !fields.has("http") {
        reader.error(at, format!("{} says nothing: it needs tcp or http", at.path));
    }
    if let Some(tcp) = fields.get("tcp").and_then(|at| reader.fields(&at, &TCP)) {
        // In protobuf 0 is "not set".
        pool.max_connections =
            reader.number(tcp.get("maxConnections"), 0..=u32::MAX).filter(|limit| *limit > 0);
        pool.connect_timeout = reader.positive(tcp.get("connectTimeout"));
        pool.tcp_idle_timeout = reader.duration(tcp.get("idleTimeout"));
        pool.max_connection_duration = age(reader, tcp.get("maxConnectionDuration"));
        pool.keepalive = tcp.get("tcpKeepalive").and_then(|at| keepalive(reader, &at));
    }
    if let Some(http) = fields.get("http").and_then(|at| reader.fields(&at, &HTTP)) {
        // So it is of these limits.
        let mut limit = |name| reader.number(http.get(name), 0..=u32::MAX).filter(|limit| *limit > 0);
        pool.max_pending_requests = limit("http1MaxPendingRequests");
        pool.max_requests = limit("http2MaxRequests");
        pool.max_retries = limit("maxRetries");
        pool.max_requests_per_connection = limit("maxRequestsPerConnection");
        // HTTP/2 can count no more.
        let streams = reader.number(http.get("maxConcurrentStreams"), 0..=i32::MAX as u32);
        pool.max_streams_per_connection = streams.filter(|limit| *limit > 0);
        pool.http_idle_timeout = reader.duration(http.get("idleTimeout"));
        pool.use_client_protocol = reader.boolean(http.get("useClientProtocol")).unwrap_or(false);
        let words = [
            ("DEFAULT", None),
            ("DO_NOT_UPGRADE", Some(H2Upgrade::Never)),
            ("UPGRADE", Some(H2Upgrade::Always)),
        ];
        pool.h2_upgrade = reader.choice(http.get("h2UpgradePolicy"), &words).flatten();
    }
    Some(pool)
}

/// As in Istio, connections of requests may be idle as long as those of bytes, where nothing is said of them.
fn idle_alike(pool: ConnectionPool) -> ConnectionPool {
    ConnectionPool { http_idle_timeout: pool.http_idle_timeout.or(pool.tcp_idle_timeout), ..pool }
}

fn retry_budget(reader: &mut Reader<'_>, at: &At<'_>) -> Option<RetryBudget> {
    let fields = reader.fields(at, &BUDGET)?;
    let default = RetryBudget::default();
    reader.not_yet(&fields, &["budgetInterval"], "the requests in flight are counted");
    reader.duration(fields.get("budgetInterval"));
    Some(RetryBudget {
        percent: reader.percent(fields.get("percent")).unwrap_or(default.percent),
        min_concurrency: reader
            .number(fields.get("minRetryConcurrency"), 0..=u32::MAX)
            .unwrap_or(default.min_concurrency),
    })
}

/// Who the server may be. In the mesh these are identities; left out, another name would let in whom it was to keep out.
fn alternative_names(reader: &mut Reader<'_>, at: Option<At<'_>>, mode: ClientTlsMode) -> Vec<String> {
    if let Some(at) = at.as_ref().filter(|_| mode == ClientTlsMode::Disable) {
        reader.warn(code::NO_EFFECT, at, format!("{} has no effect without TLS", at.path));
    }
    let mut names = Vec::new();
    for item in reader.list(at) {
        let Some(name) = reader.text(Some(item.clone())) else { continue };
        if mode == ClientTlsMode::IstioMutual {
            identity(reader, &item, &name);
        }
        names.push(name);
    }
    names
}

pub(in crate::dialect) fn tls(reader: &mut Reader<'_>, at: &At<'_>) -> Option<ClientTls> {
    let fields = reader.fields(at, &TLS)?;
    let words = [
        ("DISABLE", ClientTlsMode::Disable),
        ("SIMPLE", ClientTlsMode::Simple),
        ("MUTUAL", ClientTlsMode::Mutual),
        ("ISTIO_MUTUAL", ClientTlsMode::IstioMutual),
    ];
    let mode = match fields.get("mode") {
        // The zero value of protobuf.
        None => ClientTlsMode::Disable,
        mode => reader.choice(mode, &words)?,
    };
    let by_file = fields.has("clientCertificate") && fields.has("privateKey");
    let outside = matches!(mode, ClientTlsMode::Simple | ClientTlsMode::Mutual);
    if let Some(at) = fields.get("credentialName").filter(|_| outside) {
        match mode {
            // Ignored, it would leave the client without the certificate that the server asks for.
            ClientTlsMode::Mutual if !by_file => reader.error(
                &at,
                format!("{} is not implemented by Outrigger; name files: clientCertificate, privateKey, caCertificates", at.path),
            ),
            _ => reader.not_implemented(&at, "the files, or else the system's public roots, are used"),
        }
    }
    reader.text(fields.get("credentialName"));
    if let Some(at) = fields.get("insecureSkipVerify")
        && reader.boolean(Some(at.clone())) == Some(true)
        && outside
    {
        reader.not_implemented(&at, "the server is verified all the same");
    }
    for name in ["caCertificates", "clientCertificate", "privateKey", "credentialName"] {
        if let Some(at) = fields.get(name).filter(|_| !outside) {
            let message = format!("{} has no effect: only the modes SIMPLE and MUTUAL use it", at.path);
            reader.warn(code::NO_EFFECT, &at, message);
        }
    }
    if mode == ClientTlsMode::Mutual && !by_file && !fields.has("credentialName") {
        reader.error(
            at,
            format!("{}: mode MUTUAL needs clientCertificate and privateKey, or credentialName", at.path),
        );
    }
    Some(ClientTls {
        mode,
        sni: reader.text(fields.get("sni")),
        subject_alt_names: alternative_names(reader, fields.get("subjectAltNames"), mode),
        ca_certificates: reader.text(fields.get("caCertificates")),
        client_certificate: reader.text(fields.get("clientCertificate")),
        private_key: reader.text(fields.get("privateKey")),
        roots_pem: None,
    })
}
