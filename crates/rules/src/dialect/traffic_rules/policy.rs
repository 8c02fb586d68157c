//! What a native page says of calling instances: balancing, limits, ejection, connections, TLS; for the whole service, its ports and its
//! subsets.

use std::collections::BTreeMap;

use outrigger_model::cluster::{Balance, Breaker, SHORTEST_BREAKER_INTERVAL, is_prime};
use outrigger_model::route::HashOn;

use crate::dialect::destination_rule::policy::{age, cookie, tls, warmup_of};
use crate::dialect::{ejection, nearness};
use crate::finding::code;
use crate::intent::{ConnectionPool, H2Upgrade, LoadBalancing, TrafficPolicy};
use crate::reader::{At, Fields, Reader, Table};

mod tuning;

pub(super) use tuning::schema as tuning_schema;

/// The fields that a page, a port and a subset have alike.
pub(super) const PARTS: [&str; 4] = ["loadBalancing", "circuitBreaker", "connections", "tls"];
pub(super) const PORT: Table =
    Table::new("a port", &["port", "loadBalancing", "circuitBreaker", "connections", "tls"]);
pub(super) const BALANCING: Table = Table::new(
    "load balancing",
    &[
        "policy",
        "hash",
        "size",
        "choices",
        "fullScan",
        "bias",
        "decay",
        "initialLatency",
        "reports",
        "warmup",
        "locality",
    ],
);
pub(super) const HASH: Table = Table::new("what is hashed", &["header", "cookie", "query", "source"]);
pub(super) const TRIP: Table = Table::new(
    "what trips a circuit breaker",
    &["failurePercent", "minRequests", "interval", "consecutiveFailures", "openTime", "probes"],
);
pub(super) const CONNECTIONS: Table = Table::new(
    "connections",
    &[
        "connectTimeout",
        "idleTimeout",
        "tcpIdleTimeout",
        "maxDuration",
        "requestsPerConnection",
        "streamsPerConnection",
        "h2Upgrade",
        "useClientProtocol",
    ],
);
/// How an instance is picked. The last two ask for a hash.
pub(super) const POLICIES: [(&str, Policy); 10] = [
    ("roundRobin", Policy::Plain(Balance::RoundRobin)),
    ("leastRequest", Policy::Plain(Balance::LeastRequest)),
    ("random", Policy::Plain(Balance::Random)),
    ("ROUND_ROBIN", Policy::Plain(Balance::RoundRobin)),
    ("LEAST_REQUEST", Policy::Plain(Balance::LeastRequest)),
    ("RANDOM", Policy::Plain(Balance::Random)),
    ("peakEwma", Policy::Plain(Balance::PEAK_EWMA)),
    ("reportedLoad", Policy::Plain(Balance::Reported)),
    ("ringHash", Policy::Ring),
    ("maglev", Policy::Maglev),
];

#[derive(Clone)]
pub(super) enum Policy {
    Plain(Balance),
    Ring,
    Maglev,
}

/// What these fields say.
pub(super) fn read(reader: &mut Reader<'_>, fields: &Fields<'_>) -> TrafficPolicy {
    let mut policy = TrafficPolicy::default();
    if let Some(at) = fields.get("loadBalancing") {
        balancing(reader, &at, &mut policy);
    }
    if let Some(at) = fields.get("circuitBreaker") {
        breaker(reader, &at, &mut policy);
    }
    if let Some(at) = fields.get("connections") {
        connections(reader, &at, &mut policy);
    }
    policy.tls = fields.get("tls").and_then(|at| tls(reader, &at));
    policy
}

/// What a port leaves out is the page's.
pub(super) fn ports(
    reader: &mut Reader<'_>,
    at: Option<At<'_>>,
    page: &TrafficPolicy,
) -> BTreeMap<u16, TrafficPolicy> {
    let mut ports = BTreeMap::new();
    for item in reader.list(at) {
        let Some(fields) = reader.fields(&item, &PORT) else { continue };
        if !fields.has("port") {
            reader.missing(&fields, "port");
        }
        if PARTS.iter().all(|part| !fields.has(part)) {
            reader.error(&item, format!("{} says nothing: it needs {}", item.path, PARTS.join(", ")));
        }
        let mut own = read(reader, &fields);
        own.connection_pool = own.connection_pool.map(|pool| pool.over(page.connection_pool.as_ref()));
        let policy = own.over(page);
        if let Some(port) = reader.port(fields.get("port"))
            && ports.insert(port, policy).is_some()
        {
            reader.error(&item, format!("{}: the port {port} is there already", item.path));
        }
    }
    ports
}

fn balancing(reader: &mut Reader<'_>, at: &At<'_>, policy: &mut TrafficPolicy) {
    let Some(fields) = reader.fields(at, &BALANCING) else { return };
    if ["policy", "hash", "warmup", "locality"]
        .into_iter()
        .chain(tuning::FIELDS)
        .all(|name| !fields.has(name))
    {
        reader.missing(&fields, "policy");
    }
    let written = reader.choice(fields.get("policy"), &POLICIES);
    let hash_at = fields.get("hash");
    let hash = hash_at.as_ref().and_then(|at| hash(reader, at));
    let hashes = matches!(written, Some(Policy::Ring | Policy::Maglev));
    match &hash_at {
        None if hashes => reader.missing(&fields, "hash"),
        Some(at) if matches!(written, Some(Policy::Plain(_))) => {
            reader.error(at, format!("{} is for the policies ringHash and maglev; leave it out", at.path));
        }
        _ => {}
    }
    if let Some(at) = fields.get("size").filter(|_| hash_at.is_none()) {
        reader.error(&at, format!("{} is for the policies ringHash and maglev; leave it out", at.path));
    }
    let balance = match written {
        Some(Policy::Plain(balance)) => Some(tuning::tuned(reader, &fields, balance)),
        Some(Policy::Maglev) => Some(maglev(reader, &fields)),
        Some(Policy::Ring) => Some(ring(reader, &fields)),
        None if hash_at.is_some() => Some(ring(reader, &fields)),
        None => tuning::is_said(&fields).then(|| tuning::tuned(reader, &fields, Balance::LeastRequest)),
    };
    if balance.is_some_and(Balance::hashes) {
        tuning::refuse(reader, &fields);
    }
    let reports = balance
        .filter(|balance| *balance == Balance::Reported)
        .and_then(|_| fields.get("reports").and_then(|at| tuning::reports(reader, &at)));
    policy.load_balancing = balance.map(|balance| LoadBalancing { balance, hash, reports });
    policy.nearness = fields.get("locality").and_then(|at| nearness::read(reader, &at, true));
    policy.warmup = fields.get("warmup").and_then(|at| warmup_of(reader, &at));
    if let Some(at) = fields.get("warmup").filter(|_| hash_at.is_some()) {
        let message = format!("{} has no effect together with a hash: a key has its endpoint", at.path);
        reader.warn(code::NO_EFFECT, &at, message);
        policy.warmup = None;
    }
}

fn ring(reader: &mut Reader<'_>, fields: &Fields<'_>) -> Balance {
    Balance::ring(reader.number(fields.get("size"), 1..=8_388_608).map(u64::from))
}

fn maglev(reader: &mut Reader<'_>, fields: &Fields<'_>) -> Balance {
    let size_at = fields.get("size");
    let size = u64::from(reader.number(size_at.clone(), 2..=5_000_011).unwrap_or(65537));
    if let Some(at) = size_at.filter(|_| !is_prime(size)) {
        reader.error(&at, format!("{} must be a prime, such as 65537, not {size}", at.path));
    }
    Balance::Maglev { size }
}

fn hash(reader: &mut Reader<'_>, at: &At<'_>) -> Option<HashOn> {
    let fields = reader.fields(at, &HASH)?;
    let given: Vec<&'static str> = HASH.known.iter().copied().filter(|name| fields.has(name)).collect();
    match given.as_slice() {
        ["header"] => {
            let at = fields.get("header")?;
            let name = reader.text(Some(at.clone()))?;
            reader.header_name(&at, &name).map(HashOn::Header)
        }
        ["query"] => reader.text(fields.get("query")).map(HashOn::Query),
        ["cookie"] => fields.get("cookie").and_then(|at| cookie(reader, &at)),
        ["source"] => {
            let at = fields.get("source")?;
            if reader.boolean(Some(at.clone()))? {
                return Some(HashOn::SourceAddress);
            }
            reader.error(&at, format!("{} can only be true; leave it out", at.path));
            None
        }
        _ => {
            reader.error(at, format!("{} needs exactly one of {}", at.path, HASH.known.join(", ")));
            None
        }
    }
}

fn breaker(reader: &mut Reader<'_>, at: &At<'_>, policy: &mut TrafficPolicy) {
    let Some(fields) = reader.fields(at, &ejection::BREAKER) else { return };
    // Without connections every request would wait for one, and fail.
    let max_connections = reader.number(fields.get("maxConnections"), 1..=u32::MAX);
    let mut limit = |name| reader.number(fields.get(name), 0..=u32::MAX);
    let pool = ConnectionPool {
        max_connections,
        max_pending_requests: limit("maxPending"),
        max_requests: limit("maxRequests"),
        max_retries: limit("maxRetries"),
        ..ConnectionPool::default()
    };
    if pool != ConnectionPool::default() {
        policy.connection_pool = Some(pool);
    }
    policy.breaker = fields.get("trip").and_then(|at| trip(reader, &at));
    policy.outlier = ejection::native(reader, &fields);
}

/// When nothing more is sent to the service as a whole. Where only failures in a row are said, only they open it.
fn trip(reader: &mut Reader<'_>, at: &At<'_>) -> Option<Breaker> {
    let fields = reader.fields(at, &TRIP)?;
    let default = Breaker::default();
    let consecutive_failures = reader.number(fields.get("consecutiveFailures"), 1..=1_000_000);
    let unsaid = if consecutive_failures.is_some() { 0.0 } else { default.failure_percent };
    let percent = |value: f64| 0.0 < value && value <= 100.0;
    let failure_percent =
        reader.decimal(fields.get("failurePercent"), "a percentage above 0, up to 100", percent);
    let interval = reader.positive(fields.get("interval")).unwrap_or(default.interval);
    if let Some(at) = fields.get("interval").filter(|_| interval < SHORTEST_BREAKER_INTERVAL) {
        reader.error(&at, format!("{}: must be at least 100ms", at.path));
    }
    Some(Breaker {
        failure_percent: failure_percent.unwrap_or(unsaid),
        minimum_requests: reader
            .number(fields.get("minRequests"), 1..=1_000_000)
            .unwrap_or(default.minimum_requests),
        interval,
        consecutive_failures: consecutive_failures.unwrap_or(0),
        open_time: reader.positive(fields.get("openTime")).unwrap_or(default.open_time),
        probes: reader.number(fields.get("probes"), 1..=1_000).unwrap_or(default.probes),
    })
}

fn connections(reader: &mut Reader<'_>, at: &At<'_>, policy: &mut TrafficPolicy) {
    let Some(fields) = reader.fields(at, &CONNECTIONS) else { return };
    if CONNECTIONS.known.iter().all(|name| !fields.has(name)) {
        reader.error(at, format!("{} says nothing: it needs {}", at.path, CONNECTIONS.known.join(", ")));
    }
    let upgrade = reader.boolean(fields.get("h2Upgrade"));
    let limits = policy.connection_pool.take().unwrap_or_default();
    policy.connection_pool = Some(ConnectionPool {
        connect_timeout: reader.positive(fields.get("connectTimeout")),
        http_idle_timeout: reader.duration(fields.get("idleTimeout")),
        tcp_idle_timeout: reader.duration(fields.get("tcpIdleTimeout")),
        max_connection_duration: age(reader, fields.get("maxDuration")),
        max_requests_per_connection: reader.number(fields.get("requestsPerConnection"), 1..=u32::MAX),
        max_streams_per_connection: reader.number(fields.get("streamsPerConnection"), 1..=i32::MAX as u32),
        h2_upgrade: upgrade.map(|on| if on { H2Upgrade::Always } else { H2Upgrade::Never }),
        use_client_protocol: reader.boolean(fields.get("useClientProtocol")).unwrap_or(false),
        ..limits
    });
}
