//! The admin pages of the sidecar: what it was told, what it does with it, how its peers are.
//!
//! Rows only; the server, the index and the rows that every process has are `telemetry`'s.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use http::Method;
use outrigger_identity::RenewalHandle;
use outrigger_model::cluster::{Balance, Discovery};
use outrigger_model::resource::ResourceKind;
use outrigger_telemetry::admin::rows;
use outrigger_telemetry::admin::{AdminResponse, Row, Table};
use outrigger_telemetry::logging::LogControl;
use outrigger_telemetry::metrics::Registry;
use outrigger_telemetry::{Drain, Readiness};
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::app_health;
use crate::app_metrics::{self, Application};
use crate::config_feed::FeedStatus;
use crate::config_feed::state::{FeedState, Subscription};
use crate::process::Process;
use crate::recent::Page;
use crate::registration::Registrar;
use crate::resolve::Board;
use crate::runtime::cluster::ClusterHandle;
use crate::runtime::concurrency::Look;
use crate::runtime::endpoint::EndpointState;
use crate::runtime::reports::Reported;
use crate::runtime::snapshot::{Destination, ListenerHandle, TerminalHandle};
use crate::runtime::verdict::Checked;

/// What the pages look at.
#[derive(Clone)]
pub struct Pages {
    /// The data path.
    pub process: Arc<Process>,
    /// The configuration feed.
    pub feed: Arc<Mutex<FeedStatus>>,
    /// What it has, and asks for.
    pub state: Arc<Mutex<FeedState>>,
    /// Names that clusters consist of.
    pub names: Board,
    /// The renewal loop.
    pub renewal: RenewalHandle,
    /// Whether the process can take traffic.
    pub readiness: Readiness,
    /// Ways to ask the application for its health.
    pub probes: BTreeMap<String, app_health::Entry>,
    /// Where the application's metrics are, if they are to stand beside ours.
    pub application: Option<Arc<Application>>,
    /// Metrics.
    pub registry: Registry,
    /// The log filter.
    pub logs: LogControl,
    /// The workload's registration, if it is ours to make.
    pub registrar: Option<Registrar>,
    /// The end.
    pub drain: Drain,
}

impl Pages {
    /// All pages, for the admin port; `names` are those by which it is asked for.
    pub fn admin(&self, names: &[String]) -> Table {
        let page = |show: fn(&Pages) -> Value| {
            let pages = self.clone();
            move |_| AdminResponse::json(&show(&pages))
        };
        let table = Table::new("outrigger-proxy")
            .known_as(names, "admin_names of the bootstrap file")
            .with(rows::ready("/ready", self.readiness.clone()))
            .with(rows::metrics("/stats/prometheus", self.registry.clone()))
            .with(Row::get(
                "/config_dump",
                "resources in force with their versions, how far each subscription is, refusals, destinations",
                page(config_dump),
            ))
            .with(Row::get(
                "/clusters",
                "endpoints with health, load and ejections, how old their set is; limits and their use",
                page(clusters),
            ))
            .with(requests(self.process.clone()))
            .with(Row::get(
                "/listeners",
                "listeners, the addresses that they serve, limits that follow latency",
                page(listeners),
            ))
            .with(Row::get("/certs", "our certificate, the trust bundle, renewal, clock skew", page(certs)))
            .with(rows::logging(self.logs.clone()))
            .with(rows::quit(self.drain.clone()));
        let own = self.registrar.iter().flat_map(Registrar::rows);
        own.fold(table, Table::with)
    }

    /// For a scraper's port.
    pub fn metrics(&self) -> Table {
        let row = |path| match &self.application {
            Some(application) => app_metrics::row(path, self.registry.clone(), application.clone()),
            None => rows::metrics(path, self.registry.clone()),
        };
        Table::new("outrigger-proxy metrics")
            .with(row("/stats/prometheus").open())
            .with(row("/metrics").open())
    }

    /// For a probe's port.
    pub fn health(&self) -> Table {
        Table::new("outrigger-proxy health")
            .with(rows::ready("/healthz/ready", self.readiness.clone()))
            .with(app_health::row(self.probes.clone()).open())
    }
}

/// So many requests are shown to who asks for none.
const LAST: usize = 50;

/// `/requests`: requests that have ended.
fn requests(process: Arc<Process>) -> Row {
    let help = "requests that have ended, ?id= one of them, by x-request-id; POST ?keep=all keeps those that succeed, too, ?keep=failed no longer";
    Row::new("/requests", &["GET", "POST"], help, move |request| {
        let recent = &process.recent;
        let response = match (request.method == Method::POST, request.query("keep")) {
            (false, None) => AdminResponse::json(&Page {
                node: process.node.id.clone(),
                all: recent.keeps_all(),
                requests: recent.show(request.query("id"), LAST),
            }),
            (false, Some(_)) => AdminResponse::bad_request("Changing what is kept takes POST.\n"),
            (true, Some(keep @ ("all" | "failed"))) => {
                recent.keep_all(keep == "all");
                AdminResponse::text(format!("{keep}\n"))
            }
            (true, _) => AdminResponse::bad_request("Keep which? POST /requests?keep=all or ?keep=failed\n"),
        };
        std::future::ready(response)
    })
}

fn config_dump(pages: &Pages) -> Value {
    let feed = pages.feed.lock().clone();
    let all = pages.state.lock().standing(None);
    let snapshot = pages.process.snapshot.load();
    let mut versions: BTreeMap<ResourceKind, BTreeMap<String, String>> = BTreeMap::new();
    for one in &all {
        if let Some((version, _)) = &one.serving {
            versions.entry(one.key.0).or_default().insert(one.key.1.clone(), version.clone());
        }
    }
    let versions: BTreeMap<String, _> =
        versions.into_iter().map(|(kind, all)| (format!("{kind:?}"), all)).collect();
    let listeners: BTreeMap<&str, _> = snapshot.listeners().map(|l| (l.name(), &*l.config)).collect();
    let clusters: BTreeMap<&str, _> = snapshot.clusters().map(|c| (&*c.name, &*c.config)).collect();
    let destinations: BTreeMap<&str, _> = snapshot
        .destinations()
        .map(|(name, known)| match &known.answer {
            Destination::Listener(listener) => (name, listener.name().to_owned()),
            Destination::NotInMesh => (name, "not in the mesh".to_owned()),
            Destination::Refused(by) => (name, format!("not known, and by {by} the policy is REGISTRY_ONLY")),
        })
        .collect();
    let hosts: BTreeMap<&str, _> =
        snapshot.hosts().map(|(name, known)| (name, known.answer.as_ref().map(|h| &h.addresses))).collect();
    json!({
        "controlPlane": { "connected": feed.connected, "error": feed.disconnected,
                          "unconfirmedSeconds": feed.unconfirmed().map(|time| time.as_secs()) },
        "generation": feed.generation,
        "snapshot": snapshot.generation,
        "fromDiskSince": feed.from_disk.map(seconds_since),
        "refused": feed.refused,
        "versions": versions,
        "subscriptions": subscriptions(&feed, &all),
        "destinations": destinations,
        "hosts": hosts,
        "listeners": listeners,
        "clusters": clusters,
    })
}

/// By type: when it was last heard of, and how far each name of it is.
fn subscriptions(feed: &FeedStatus, all: &[Subscription]) -> BTreeMap<String, Value> {
    let mut types: BTreeMap<ResourceKind, BTreeMap<&str, Value>> = BTreeMap::new();
    for one in all {
        types.entry(one.key.0).or_default().insert(&one.key.1, standing(one));
    }
    let heard = |kind: ResourceKind| feed.heard.get(&kind).map(|at| at.elapsed().as_secs());
    let shown =
        |(kind, names)| (format!("{kind:?}"), json!({ "heardSecondsAgo": heard(kind), "names": names }));
    types.into_iter().map(shown).collect()
}

/// How far a subscription is.
fn standing(one: &Subscription) -> Value {
    let told = |(version, came): &(String, std::time::Instant)| json!({ "version": version, "seconds": came.elapsed().as_secs() });
    json!({
        "state": one.freshness,
        "serving": one.serving.as_ref().map(told),
        "newer": one.newer.as_ref().map(told),
    })
}

fn seconds_since(time: std::time::SystemTime) -> u64 {
    time.elapsed().map(|age| age.as_secs()).unwrap_or_default()
}

fn clusters(pages: &Pages) -> Value {
    let snapshot = pages.process.snapshot.load();
    let unconfirmed = pages.feed.lock().unconfirmed().map(|time| time.as_secs());
    let sets = pages.state.lock().standing(Some(ResourceKind::Endpoints));
    let sets: HashMap<&str, &Subscription> = sets.iter().map(|one| (one.key.1.as_str(), one)).collect();
    let one = |cluster: &Arc<ClusterHandle>| {
        let mut shown = describe(cluster, &pages.names);
        let name = cluster.config.endpoints_name();
        if let Some(set) = name.and_then(|name| sets.get(&*name)) {
            shown["endpointSet"] = standing(set);
            shown["endpointSet"]["unconfirmedSeconds"] = json!(unconfirmed);
        }
        (cluster.name.to_string(), shown)
    };
    json!(snapshot.clusters().map(one).collect::<BTreeMap<String, Value>>())
}

/// What DNS says of the names of a cluster.
fn names(cluster: &ClusterHandle, board: &Board) -> Option<Value> {
    let Discovery::Dns(dns) = &cluster.config.discovery else { return None };
    let now = Instant::now();
    let hosts: BTreeSet<&str> = dns.endpoints.iter().map(|endpoint| endpoint.address.host.as_str()).collect();
    let status = |host: &&str| {
        let name = board.name(host)?;
        let said = json!({
            "addresses": name.addresses,
            "ttlSeconds": name.ttl.as_secs(),
            "answeredSecondsAgo": name.answered.map(|at| now.saturating_duration_since(at).as_secs()),
            "askedAgainInSeconds": name.next.saturating_duration_since(now).as_secs(),
            "failuresInARow": name.failures,
            "trouble": name.trouble,
        });
        Some(((*host).to_owned(), said))
    };
    Some(json!(hosts.iter().filter_map(status).collect::<BTreeMap<String, Value>>()))
}

fn describe(cluster: &ClusterHandle, board: &Board) -> Value {
    let now = Instant::now();
    let used = cluster.limits.view();
    let limit = |value: u32| if value == u32::MAX { json!("unlimited") } else { json!(value) };
    let endpoints = cluster.endpoints();
    let endpoint = |endpoint: &Arc<EndpointState>| {
        let ejection = cluster.ejections().ejection(&endpoint.load.health, now);
        let (requests, errors) = endpoint.totals();
        json!({
            "address": endpoint.address,
            "identity": endpoint.identity,
            "mtls": endpoint.mesh_tls,
            "workload": endpoint.workload.as_deref(),
            "health": endpoint.reported,
            "inFlight": endpoint.in_flight(),
            "requests": requests,
            "errors": errors,
            "healthCheck": endpoint.load.checked().filter(|_| cluster.config.health_check.is_some()).map(|checked| check(checked, now)),
            "successRate": rates(endpoint.load.health.success_rates()),
            "latencyMillis": latency(cluster, endpoint, now),
            "loadReport": endpoint.load.reported().filter(|_| cluster.config.balance == Balance::Reported).map(|said| report(said, now)),
            "ejected": ejection.map(|(cause, left)| json!({ "cause": cause, "secondsLeft": left.as_secs_f64() })),
        })
    };
    json!({
        "origin": cluster.origin.as_ref().map(ToString::to_string),
        "balance": cluster.config.balance,
        "limits": {
            "connections": { "used": used.connections, "max": limit(used.limits.max_connections), "refused": used.connection_overflows },
            "pending": { "used": used.pending, "max": limit(used.limits.max_pending), "refused": used.pending_overflows },
            "requests": { "used": used.requests, "max": limit(used.limits.max_requests), "refused": used.request_overflows },
            "retries": { "used": used.retries, "max": limit(used.limits.max_retries), "budget": used.limits.retry_budget, "refused": used.retry_overflows },
        },
        "circuitBreaker": cluster.breaker.as_ref().map(|breaker| breaker.look()),
        "ejections": cluster.ejections().total(),
        "outliers": outliers(cluster),
        "dns": names(cluster, board),
        "endpoints": endpoints.all.iter().map(endpoint).collect::<Vec<_>>(),
    })
}

/// Of answers, and of connections where they count apart, in percent.
fn rates([answers, connections]: [Option<f64>; 2]) -> Value {
    json!({ "answers": answers, "connections": connections })
}

/// What the endpoints of the last interval were measured by.
fn outliers(cluster: &ClusterHandle) -> Option<Value> {
    cluster.config.outlier.as_ref().filter(|rules| rules.needs_rates())?;
    let [answers, connections] = cluster.ejections().rates();
    Some(json!({ "answers": answers, "connections": connections }))
}

/// How long an answer is expected to take, where the policy goes by it.
fn latency(cluster: &ClusterHandle, endpoint: &EndpointState, now: Instant) -> Option<f64> {
    let Balance::PeakEwma { decay, .. } = cluster.config.balance else { return None };
    endpoint.load.latency().estimate(decay, now).map(|time| time.as_secs_f64() * 1000.0)
}

/// What an endpoint reports of its load.
fn report(said: &Reported, now: Instant) -> Value {
    let (weight, seconds) = said.last(now);
    json!({ "weight": weight, "secondsSince": seconds })
}

/// What active checks say of an endpoint, since when, and why.
fn check(checked: &Checked, now: Instant) -> Value {
    let look = checked.look();
    let ago = |at: Instant| now.saturating_duration_since(at).as_secs_f64();
    json!({
        "verdict": look.verdict,
        "secondsSince": ago(look.since),
        "failuresInARow": look.failures,
        "why": look.why,
        "askedSecondsAgo": look.asked.map(ago),
    })
}

fn listeners(pages: &Pages) -> Value {
    let snapshot = pages.process.snapshot.load();
    let all: BTreeMap<&str, Value> = snapshot
        .listeners()
        .map(|listener| {
            let chains: Vec<&str> = listener.chains.iter().map(|chain| chain.name.as_str()).collect();
            let config = &listener.config;
            let mut shown =
                json!({ "direction": config.direction, "addresses": config.addresses, "chains": chains });
            let limits = concurrency(listener);
            if !limits.is_empty() {
                shown["adaptiveConcurrency"] = json!(limits);
            }
            (listener.name(), shown)
        })
        .collect();
    json!(all)
}

/// Limits that follow latency, by the rule or the place.
fn concurrency(listener: &ListenerHandle) -> BTreeMap<String, Look> {
    let http = listener.chains.iter().filter_map(|chain| match &chain.terminal {
        TerminalHandle::Http(http) => Some(http),
        TerminalHandle::Tcp(_) => None,
    });
    http.flat_map(|http| http.controllers()).map(|one| (one.scope(), one.look())).collect()
}

fn certs(pages: &Pages) -> Value {
    json!(*pages.renewal.status().borrow())
}
