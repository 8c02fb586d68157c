//! What becomes of a request, and why: by the code that the proxies run, on the resources that they are sent.
//!
//! Nothing is sent. A decision is one of `model`'s: which chain, which route, which policies. What is left to chance (weights, faults
//! in percent) or to the application has several outcomes. What the proxies know alone is not looked at: ejected endpoints, limits
//! that are reached, connections that fail.
//!
//! ```text
//! who asks ─▶ destination ─▶ listener, chain ─▶ route ─▶ clusters ─▶ endpoints ─▶ their inbound chain and policies
//! ```

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use outrigger_model::cluster::{Cluster, Discovery};
use outrigger_model::endpoint::EndpointSet;
use outrigger_model::grpc::grpc_of_http;
use outrigger_model::listener::{ChainInput, HttpConnection, Listener, RouteSource, Terminal};
use outrigger_model::request::RequestView;
use outrigger_model::resource::{Resource, ResourceKind};
use outrigger_model::route::table::{CompiledRoute, Explanation as Found, Mismatch, RouteTable};
use outrigger_model::route::{RouteAction, RouteConfig, WeightedCluster};
use outrigger_xds::ClientKind;

use crate::compile::scope::{REGEX_LIMIT, Scope};
use crate::compile::{cache, names};
use crate::instance::Instance;
use crate::world::{Service, World};

pub mod body;
pub mod describe;
mod direct;
mod inbound;
mod levels;
mod lost;
mod request;
mod sidecar;
mod source;
mod target;
mod words;

use body::{ExplainRequest, Explanation, ListenerBody, Lost, Outcome, RequestBody, SourceBody};
use request::{Asked, Goal};
use target::{Caller, Reached, Sent};

/// Rules that one answer lists as lost.
const MOST_LOST: usize = 200;

/// What a sidecar does with what the mesh does not have.
const OUTSIDE: &str = "with outbound_policy ALLOW_ANY (the default) the sidecar passes it on unchanged, with REGISTRY_ONLY it refuses it";

/// Why nothing is explained.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Unexplained {
    /// The question makes no sense.
    Invalid(String),
    /// Nobody is there of whom it is asked.
    Unknown(String),
}

/// A client of the xDS server that stands beside an instance.
pub(crate) struct Beside {
    pub(crate) scope: Scope,
    /// It has the newest generation in force.
    pub(crate) in_force: bool,
}

/// By instance.
pub(crate) type Connected = BTreeMap<String, Beside>;

/// A world as one client sees it.
struct See<'a> {
    world: &'a Arc<World>,
    scope: Scope,
}

impl<'a> See<'a> {
    /// As a sidecar of ours beside an instance.
    fn own(world: &'a Arc<World>, instance: &Instance) -> Self {
        let scope = Scope {
            kind: ClientKind::Outrigger,
            namespace: instance.namespace.clone(),
            service_account: instance.service_account.clone(),
            instance: Some(instance.id.clone()),
            bind: None,
            secure: false,
            regex_limit: REGEX_LIMIT,
        };
        Self { world, scope }
    }

    fn namespace(&self) -> &str {
        &self.scope.namespace
    }

    fn resource(&self, kind: ResourceKind, name: &str) -> Option<Resource> {
        cache::once(self.world, &self.scope, kind, name)
    }

    fn listener(&self, name: &str) -> Option<Listener> {
        match self.resource(ResourceKind::Listener, name)? {
            Resource::Listener(listener) => Some(listener),
            _ => None,
        }
    }

    fn routes(&self, http: &HttpConnection) -> Option<RouteConfig> {
        match &http.routes {
            RouteSource::Inline(routes) => Some(routes.clone()),
            RouteSource::Named(name) => match self.resource(ResourceKind::Routes, name)? {
                Resource::Routes(routes) => Some(routes),
                _ => None,
            },
        }
    }

    /// The endpoints of a cluster; `None` where the proxies find them.
    fn endpoints(&self, cluster: &Cluster) -> Option<EndpointSet> {
        match &cluster.discovery {
            Discovery::Static(set) => Some(set.clone()),
            Discovery::Eds { .. } => {
                match self.resource(ResourceKind::Endpoints, &cluster.endpoints_name()?)? {
                    Resource::Endpoints(set) => Some(set),
                    _ => None,
                }
            }
            Discovery::Dns(_) | Discovery::OriginalDestination => None,
        }
    }

    /// The service of a host, as the client means it.
    fn service(&self, host: &str) -> Option<&'a Service> {
        let resolver = &self.world.resolver;
        let found = resolver.resolve(host, self.namespace()).ok()?;
        self.world.service(&found).or_else(|| self.world.service(&resolver.bare(&found)?))
    }

    /// The listener that takes a connection.
    fn taking(&self, goal: &Goal) -> Option<Listener> {
        let Goal { host, port, .. } = goal;
        match self.scope.kind {
            ClientKind::Envoy => self.listener(&format!("outbound_{port}")),
            ClientKind::Grpc => self.listener(&format!("{host}:{port}")),
            ClientKind::Outrigger => {
                match self.destination(goal) {
                    Some(found) => self.listener(&found.listener),
                    // A name of the world leads to an address of the world, where only the first bytes say what is meant.
                    _ => self.listener(&names::outbound(*port, "", names::ANY_HOST)),
                }
            }
        }
    }
}

/// What becomes of a request.
///
/// # Errors
/// The question is none, or about nobody.
pub(crate) fn explain(
    world: &Arc<World>,
    connected: &Connected,
    asked: &ExplainRequest,
) -> Result<Explanation, Unexplained> {
    let (mut request, goal) = request::read(asked).map_err(Unexplained::Invalid)?;
    let source = source::instance(world, &asked.from).map_err(Unexplained::Unknown)?;
    let beside = connected.get(&source.id);
    let see = match beside {
        Some(beside) => See { world, scope: beside.scope.clone() },
        None => See::own(world, source),
    };
    let written = request.path().to_owned();
    let is_alone = beside.is_none() && !source.sidecar;
    let identity = source.identity(&world.settings.trust_domain).ok().filter(|_| !is_alone);
    let mut answer = Explanation {
        generation: world.generation,
        in_force: beside.map(|beside| beside.in_force),
        source: SourceBody {
            instance: source.id.clone(),
            service: source::service_of(source),
            identity: identity.map_or(String::new(), |id| id.to_string()),
            client: beside.map(|beside| kind_name(beside.scope.kind).to_owned()),
            sidecar: see.sidecar().filter(|_| !is_alone).map(|sidecar| sidecar.origin.to_string()),
        },
        request: RequestBody {
            method: request.method().to_owned(),
            authority: request.authority().to_owned(),
            path: written.clone(),
            written: None,
        },
        ..Explanation::default()
    };
    match beside.map(|beside| beside.scope.kind) {
        Some(ClientKind::Outrigger) => {}
        Some(other) => {
            answer.notes.push(format!("{} decides itself; this is what it is told", kind_name(other)))
        }
        None if source.sidecar => answer.notes.push(format!("the sidecar of {} is not connected", source.id)),
        None => answer.notes.push(format!("{} has no sidecar: its requests go as it writes them", source.id)),
    }
    let caller = Caller { see: &see, connected, source };
    let is_grpc = request.is_grpc();
    let mut work = Work { caller: &caller, answer: &mut answer };
    if is_alone {
        work.direct(&goal, &request);
    } else {
        request.through_sidecar();
        work.run(&goal, &mut request, &written);
    }
    if is_grpc {
        answer.outcomes.iter_mut().for_each(in_grpc);
    }
    finish(&mut answer);
    Ok(answer)
}

fn kind_name(kind: ClientKind) -> &'static str {
    match kind {
        ClientKind::Outrigger => "outrigger",
        ClientKind::Envoy => "envoy",
        ClientKind::Grpc => "grpc",
    }
}

/// A call of gRPC's is told in its own words, whoever of the sidecars answers it.
fn in_grpc(outcome: &mut Outcome) {
    let Some(status) = outcome.status.filter(|status| *status != 200) else { return };
    outcome.status = Some(200);
    let why = outcome.why.take().map(|why| why + ", ").unwrap_or_default();
    outcome.why = Some(format!("{why}gRPC status {}", grpc_of_http(status)));
}

fn finish(answer: &mut Explanation) {
    answer.lost_count = answer.lost.len();
    answer.lost.truncate(MOST_LOST);
    answer.outcomes.sort();
    answer.outcomes.dedup();
    answer.notes.dedup();
    let said: Vec<String> = answer.outcomes.iter().take(3).map(in_words).collect();
    let more = answer.outcomes.len().saturating_sub(3);
    answer.summary = said.join("; or ");
    if more > 0 {
        answer.summary += &format!("; or {more} more");
    }
}

fn in_words(outcome: &Outcome) -> String {
    let status = outcome.status.map_or(String::new(), |status| format!(" with {status}"));
    let by = outcome.origin.as_ref().map_or(String::new(), |origin| format!(" by {origin}"));
    let cluster = outcome.cluster.as_ref().map_or(String::new(), |cluster| format!(" {cluster}"));
    let why = outcome.why.as_ref().map_or(String::new(), |why| format!(": {why}"));
    match outcome.kind.as_str() {
        "forwarded" if outcome.instances.is_empty() => format!("goes to{cluster}{why}"),
        "forwarded" => format!("goes to{cluster}, {}{why}", among(&outcome.instances)),
        "answered" => format!("is answered{status}{by}{why}"),
        "denied" if outcome.status.is_none() => {
            format!("its connection is denied at {}{by}{why}", among(&outcome.instances))
        }
        "denied" => format!("is denied{status} at {}{by}{why}", among(&outcome.instances)),
        "asked" => format!("reaches {}, where{why}", among(&outcome.instances)),
        "outside" => format!("goes outside of the mesh{why}"),
        _ => format!("fails{status}{cluster}{why}"),
    }
}

fn among(instances: &[String]) -> String {
    match instances {
        [] => "nobody".to_owned(),
        [only] => only.clone(),
        [first, rest @ ..] => format!("{first} or {} more", rest.len()),
    }
}

/// An answer in the making.
struct Work<'a> {
    caller: &'a Caller<'a>,
    answer: &'a mut Explanation,
}

impl Work<'_> {
    fn run(&mut self, goal: &Goal, request: &mut Asked, written: &str) {
        let see = self.caller.see;
        let Some(listener) = see.taking(goal) else { return self.outside(goal) };
        if let Some(service) = see.service(&goal.host) {
            self.answer.lost = lost::rules(see, service, goal.port);
        }
        let offered: &[&str] = match (goal.tls, request.is_grpc()) {
            (true, _) => &["h2", "http/1.1"],
            (false, true) => &["h2c"],
            (false, false) => &["http/1.1"],
        };
        let input = ChainInput {
            destination_port: goal.port,
            tls: goal.tls,
            server_name: Some(goal.host.as_str()).filter(|_| goal.tls),
            application_protocols: offered,
        };
        let Some(chain) = listener.select(&input) else {
            let why = format!("{} has no chain for such a connection", listener.name);
            return self.outcome("failed", None, None, &why);
        };
        let protocol = if matches!(chain.terminal, Terminal::Http(_)) { "http" } else { "tcp" };
        self.answer.listener = Some(ListenerBody {
            name: listener.name.clone(),
            chain: chain.name.clone(),
            protocol: protocol.to_owned(),
        });
        match &chain.terminal {
            Terminal::Tcp(tcp) => {
                let what = if goal.tls { "TLS that is not ended here" } else { "bytes" };
                self.answer.notes.push(format!("the sidecar sees {what}: no route looks at requests"));
                self.answer.route = chain.origin.is_some().then(|| words::connections(chain, tcp));
                self.shares(&tcp.clusters, None);
            }
            Terminal::Http(http) => self.http(http, request, written),
        }
    }

    fn outcome(&mut self, kind: &str, status: Option<u16>, origin: Option<String>, why: &str) {
        let (kind, why) = (kind.to_owned(), Some(why.to_owned()));
        self.answer.outcomes.push(Outcome { kind, status, origin, why, ..Outcome::default() });
    }

    /// What the mesh does not have.
    fn missing(&mut self, goal: &Goal) {
        let see = self.caller.see;
        if self.is_unknown(goal) {
            return;
        }
        if let Some(service) = see.service(&goal.host).filter(|service| !service.ports.is_empty()) {
            let ports = service.ports.keys().map(u16::to_string).collect::<Vec<_>>();
            let (host, ports) = (&service.host, source::listed(ports.into_iter()));
            self.answer
                .notes
                .push(format!("{host} is in the mesh with port {ports}, and not with {}", goal.port));
        } else if goal.host.parse::<IpAddr>().is_err() {
            self.answer.notes.push(format!("no service {} is registered or described", goal.host));
        }
    }

    fn http(&mut self, http: &HttpConnection, request: &mut Asked, written: &str) {
        match http.path.apply(written) {
            Ok(None) => {}
            Ok(Some(path)) => {
                self.answer.request.path.clone_from(&path);
                self.answer.request.written = Some(written.to_owned());
                request.set_path(path);
            }
            Err(refusal) => return self.outcome("answered", Some(400), None, &refusal.to_string()),
        }
        let Some(routes) = self.caller.see.routes(http) else {
            return self.outcome("failed", None, None, "its routes are not there");
        };
        let table = match RouteTable::compile(&routes) {
            Ok(table) => table,
            Err(invalid) => {
                return self.outcome("failed", None, None, &format!("its routes cannot be taken: {invalid}"));
            }
        };
        let found = table.explain(request);
        self.losers(&found);
        let (Some(host), Some(route)) = (found.host, found.route) else {
            let why = match found.host {
                Some(host) => format!("no route of {} takes it", host.name),
                None => {
                    format!("no virtual host of {} has the authority {}", table.name(), request.authority())
                }
            };
            return self.outcome("answered", Some(404), None, &why);
        };
        self.answer.route = Some(words::route(&host.name, &route.config, host.retry.as_ref()));
        self.act(http, request, route);
    }

    fn losers(&mut self, found: &Found<'_>) {
        let lost = |route: &CompiledRoute, why: String| Lost {
            rule: route.config.name.clone(),
            origin: route.config.origin.as_ref().map(ToString::to_string),
            why,
        };
        for (route, why) in &found.rejected {
            self.answer.lost.push(lost(route, unmet(route, why)));
        }
        for (route, why) in &found.behind {
            let why = match why {
                Some(why) => format!("{}, and it is behind the one that matches", unmet(route, why)),
                None => "it matches, but an earlier one does, too".to_owned(),
            };
            self.answer.lost.push(lost(route, why));
        }
    }

    /// What the route does, in the order of the proxy: upgrades, faults, other origins, the action.
    fn act(&mut self, http: &HttpConnection, request: &Asked, route: &CompiledRoute) {
        let origin = route.config.origin.as_ref().map(ToString::to_string);
        if let RouteAction::Forward(forward) = &route.config.action
            && let Some(protocol) =
                request.upgrades().find(|protocol| !forward.allows_upgrade(protocol, &http.upgrades))
        {
            let why = format!("an upgrade to {protocol} is not allowed here");
            return self.outcome("answered", Some(403), origin, &why);
        }
        if let Some(abort) = route.config.fault.as_ref().and_then(|fault| fault.abort.as_ref()) {
            let status = abort.status.answered(request.is_grpc());
            if abort.percentage > 0.0 {
                let why = format!("injected in {}% of the requests", abort.percentage);
                self.outcome("answered", Some(status), origin.clone(), &why);
            }
            if abort.percentage >= 100.0 {
                return;
            }
        }
        let preflights = self.preflights(request, route);
        if preflights > 0.0 {
            let often = if preflights < 100.0 { format!(", {preflights}% of them") } else { String::new() };
            let why = format!("a preflight, by the route's corsPolicy{often}");
            self.outcome("answered", Some(200), origin.clone(), &why);
        }
        if preflights >= 100.0 {
            return;
        }
        match &route.config.action {
            RouteAction::Forward(forward) => {
                let sent = Sent { route, forward, request, mode: http.path };
                self.shares(&forward.clusters, Some(&sent));
            }
            RouteAction::Redirect(redirect) => {
                let why = format!("to {}", route.location(redirect, request));
                self.outcome("answered", Some(request.answered(redirect.status())), origin, &why);
            }
            RouteAction::Direct { status, .. } => {
                self.outcome("answered", Some(request.answered(*status)), origin, "the route's own response");
            }
        }
    }

    /// Of a hundred such requests so many are answered as a preflight is.
    fn preflights(&mut self, request: &Asked, route: &CompiledRoute) -> f64 {
        let Some(cors) = &route.config.cors else { return 0.0 };
        let Some(origin) = request.first("origin").filter(|origin| !origin.is_empty()) else { return 0.0 };
        let allowed = route.allows_origin(origin.as_bytes());
        let word = if allowed { "may" } else { "may not" };
        self.answer
            .notes
            .push(format!("pages of {origin} {word} read the answer, by the route's corsPolicy"));
        let asked = request.first("access-control-request-method").is_some_and(|method| !method.is_empty());
        let answered = asked && request.method() == "OPTIONS" && (allowed || !cors.forward_not_matching);
        if answered { cors.percentage } else { 0.0 }
    }

    fn shares(&mut self, shares: &[WeightedCluster], sent: Option<&Sent<'_>>) {
        let total = shares.iter().map(|share| u64::from(share.weight)).sum();
        for share in shares.iter().filter(|share| share.weight > 0) {
            let Reached { target, outcomes, note } = self.caller.reach(share, total, sent);
            self.answer.targets.push(target);
            self.answer.outcomes.extend(outcomes);
            self.answer.notes.extend(note);
        }
    }
}

/// The condition that does not hold, in words.
fn unmet(route: &CompiledRoute, why: &Mismatch<'_>) -> String {
    let matches = &route.config.matches;
    let wanted = match why {
        Mismatch::Path => Some(matches.path.to_string()),
        Mismatch::Header(name) => {
            let of = matches.headers.iter().filter(|header| header.name == *name).map(ToString::to_string);
            Some(of.collect::<Vec<_>>().join(" and "))
        }
        Mismatch::Query(name) => {
            matches.query.iter().find(|query| query.name == *name).map(ToString::to_string)
        }
        Mismatch::Cookie(name) => {
            matches.cookies.iter().find(|cookie| cookie.name == *name).map(ToString::to_string)
        }
    };
    wanted.map_or_else(|| why.to_string(), |wanted| format!("it does not hold that {wanted}"))
}

#[cfg(test)]
mod tests;
