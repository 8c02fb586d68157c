//! What the endpoints of a cluster do with a request: whether they take the connection, and whether their policies let it in.

use std::net::SocketAddr;
use std::sync::Arc;

use outrigger_model::cluster::ClientTls;
use outrigger_model::endpoint::Endpoint;
use outrigger_model::global_limit::GlobalLimit;
use outrigger_model::listener::{
    ChainInput, FilterChain, HttpConnection, HttpFilter, Listener, RouteSource, ServerTls, Terminal,
};
use outrigger_model::policy::decide::{Decision, PolicySet, look};
use outrigger_model::policy::{Rbac, RbacAction};
use outrigger_model::rate_limit::RateLimit;
use outrigger_model::request::{ConnectionView, RequestView};
use outrigger_model::resource::{Resource, ResourceKind};
use outrigger_model::route::RouteMatch;
use outrigger_model::route::table::{CompiledMatch, RouteTable};
use outrigger_model::token::{Proven, WithTokens};
use outrigger_rules::intent::MtlsMode;
use outrigger_xds::ClientKind;

use super::body::{InboundBody, Lost};
use super::request::Asked;
use super::{Connected, See, words};
use crate::compile::names;
use crate::instance::{Instance, State};

mod tokens;

/// Instances that one answer names.
const MOST_NAMES: usize = 20;

/// What comes in to an endpoint.
pub(super) struct Arriving<'a> {
    pub(super) see: &'a See<'a>,
    pub(super) connected: &'a Connected,
    /// Who calls.
    pub(super) source: &'a Instance,
    pub(super) tls: &'a ClientTls,
    /// The request as it is sent; absent: bytes.
    pub(super) request: Option<&'a Asked>,
    pub(super) http2: bool,
    /// What the client's proxy answers where no connection comes about; absent: there is none, or nobody to answer.
    pub(super) broken: Option<u16>,
}

/// What the endpoints do, those together that do the same.
pub(super) fn judged<'e>(
    arriving: &Arriving<'_>,
    endpoints: impl Iterator<Item = &'e Endpoint>,
) -> Vec<InboundBody> {
    let mut all: Vec<(InboundBody, Vec<String>, usize)> = Vec::new();
    for endpoint in endpoints {
        let instance = instance_at(arriving, endpoint);
        let name = instance.map_or_else(|| endpoint.address.to_string(), |instance| instance.id.clone());
        let one = judge(arriving, endpoint, instance.map(AsRef::as_ref));
        match all.iter_mut().find(|(known, ..)| *known == one) {
            Some((_, instances, count)) => {
                *count += 1;
                if instances.len() < MOST_NAMES {
                    instances.push(name);
                }
            }
            None => all.push((one, vec![name], 1)),
        }
    }
    all.into_iter().map(|(body, instances, count)| InboundBody { instances, count, ..body }).collect()
}

/// Who is registered at an endpoint. Networks may use the same addresses: there the client meets its own network's.
fn instance_at<'w>(arriving: &Arriving<'w>, endpoint: &Endpoint) -> Option<&'w Arc<Instance>> {
    let is = |instance: &&Arc<Instance>| {
        endpoint.workload.as_ref().is_none_or(|workload| {
            instance.service == workload.service && instance.namespace == workload.namespace
        }) && (instance.port(endpoint.address.port()).is_some() || instance.takes_in(endpoint.address.port()))
            && instance.state != State::Stopped
    };
    let there = || arriving.see.world.instances_at(endpoint.address.ip()).filter(is);
    there().find(|instance| instance.network == arriving.source.network).or_else(|| there().next())
}

fn judge(arriving: &Arriving<'_>, endpoint: &Endpoint, instance: Option<&Instance>) -> InboundBody {
    let world = arriving.see.world;
    let mtls = match arriving.tls {
        ClientTls::Mesh { required, .. } => *required || endpoint.mesh_tls,
        ClientTls::None | ClientTls::Outside(_) => false,
    };
    let peer = arriving.source.identity(&world.settings.trust_domain).ok();
    let peer = peer.as_ref().filter(|_| mtls);
    let transport = match (peer, arriving.tls) {
        (Some(peer), _) => format!("mTLS as {peer}"),
        (None, ClientTls::Outside(outside)) => format!("TLS to {}", outside.server_name),
        (None, _) => "plain text".to_owned(),
    };
    let said = |decision: &str, status, why: String| InboundBody {
        transport: transport.clone(),
        decision: decision.to_owned(),
        status,
        why,
        ..InboundBody::default()
    };
    let Some(instance) = instance else {
        return said("allowed", None, "nobody of the mesh is there to judge it".to_owned());
    };
    if !instance.sidecar {
        return match mtls {
            true => said("refused", arriving.broken, "mTLS is required, and it has no sidecar".to_owned()),
            false => said("allowed", None, "it has no sidecar, so no policy holds there".to_owned()),
        };
    }
    let (mode, by) = world.mtls_of(instance, endpoint.address.port());
    let by = by.map_or_else(|| "by default".to_owned(), |intent| format!("by {}", intent.origin));
    let mode = format!("{} {by}", mode_name(mode));
    let foreign = match arriving.connected.get(&instance.id).map(|client| client.scope.kind) {
        Some(ClientKind::Envoy) => {
            Some("an Envoy stands before it, whose inbound side is its own configuration's")
        }
        Some(ClientKind::Grpc) => Some("it is a gRPC server, which is given no policy"),
        Some(ClientKind::Outrigger) | None => None,
    };
    if let Some(why) = foreign {
        return InboundBody { mtls: Some(mode), ..said("allowed", None, why.to_owned()) };
    }
    let server = See::own(world, instance);
    let name = names::inbound_listener(endpoint.address);
    // Of a port that nobody has declared it is the one for all others.
    let others = names::inbound_listener(SocketAddr::new(endpoint.address.ip(), names::OTHER_PORTS));
    let found = server.resource(ResourceKind::Listener, &name);
    let found = found.or_else(|| server.resource(ResourceKind::Listener, &others));
    let Some(Resource::Listener(listener)) = found else {
        return said("refused", arriving.broken, format!("its sidecar has no listener {name}"));
    };
    let Some(chain) = chain(arriving, &listener, endpoint.address, mtls) else {
        let why = format!("its sidecar takes no {} here", if mtls { "mTLS" } else { "plain text" });
        return InboundBody { mtls: Some(mode), ..said("refused", arriving.broken, why) };
    };
    if peer.is_none() && matches!(chain.tls, Some(ServerTls::Mesh { .. })) {
        let why = "its sidecar takes all TLS for the mesh's, and no certificate is shown".to_owned();
        return InboundBody { mtls: Some(mode), ..said("refused", arriving.broken, why) };
    }
    let connection = ConnectionView {
        peer: peer.filter(|_| matches!(chain.tls, Some(ServerTls::Mesh { .. }))),
        source: SocketAddr::new(main_address(arriving.source, endpoint.address), 0),
        destination: endpoint.address,
        server_name: server_name(arriving.tls).filter(|_| mtls),
    };
    let own = instance.identity(&world.settings.trust_domain).ok().map(|id| id.to_string());
    let decided = match (&chain.terminal, arriving.request) {
        (Terminal::Http(http), Some(request)) => {
            by_request(http, &connection, request.clone(), own.as_deref())
        }
        _ => by_policies(&chain.authorization.iter().collect::<Vec<_>>(), &connection, None),
    };
    InboundBody {
        mtls: Some(mode),
        origin: decided.origin,
        limits: decided.limits,
        lost: decided.lost,
        ..said(decided.decision, decided.status, decided.why)
    }
}

pub(crate) fn mode_name(mode: MtlsMode) -> &'static str {
    match mode {
        MtlsMode::Strict => "STRICT",
        MtlsMode::Permissive => "PERMISSIVE",
        MtlsMode::Disable => "DISABLE",
    }
}

/// The first address of the family.
fn main_address(source: &Instance, to: SocketAddr) -> std::net::IpAddr {
    let family = source.addresses.iter().find(|address| address.is_ipv4() == to.is_ipv4());
    family.or(source.addresses.first()).copied().unwrap_or(to.ip())
}

fn server_name(tls: &ClientTls) -> Option<&str> {
    match tls {
        ClientTls::Mesh { server_name, .. } => Some(server_name),
        ClientTls::None | ClientTls::Outside(_) => None,
    }
}

/// The chain of a connection, by what the client's sidecar offers.
fn chain<'l>(
    arriving: &Arriving<'_>,
    listener: &'l Listener,
    to: SocketAddr,
    mtls: bool,
) -> Option<&'l FilterChain> {
    let offered: &[&str] = match (mtls, arriving.request, arriving.http2) {
        (true, None, _) => &["istio"],
        (true, Some(_), false) => &["istio-http/1.1", "istio", "http/1.1"],
        (true, Some(_), true) => &["istio-h2", "istio", "h2"],
        (false, None, _) => &[],
        (false, Some(_), false) => &["http/1.1"],
        (false, Some(_), true) => &["h2c"],
    };
    let server_name = server_name(arriving.tls).filter(|_| mtls);
    let tls = mtls || matches!(arriving.tls, ClientTls::Outside(_));
    listener.select(&ChainInput {
        destination_port: to.port(),
        tls,
        server_name,
        application_protocols: offered,
    })
}

/// As policies see a request.
type Judged<'a> = WithTokens<'a, Asked>;

/// What policies decide.
struct Decided {
    decision: &'static str,
    status: Option<u16>,
    origin: Option<String>,
    why: String,
    limits: Vec<String>,
    lost: Vec<Lost>,
}

impl Decided {
    fn of(decision: &'static str, status: Option<u16>, why: impl Into<String>) -> Self {
        Self { decision, status, origin: None, why: why.into(), limits: Vec::new(), lost: Vec::new() }
    }
}

/// The path in its one form, then the filters, then the route, as the server's sidecar does.
fn by_request(
    http: &HttpConnection,
    connection: &ConnectionView<'_>,
    mut request: Asked,
    own: Option<&str>,
) -> Decided {
    request.arriving(connection.peer.map(|peer| peer.as_str()), own);
    match http.path.apply(request.path()) {
        Ok(None) => {}
        Ok(Some(path)) => request.set_path(path),
        Err(refusal) => return Decided::of("refused", Some(400), refusal.to_string()),
    }
    let (tokens, filters): (Vec<_>, Vec<_>) =
        http.filters.iter().partition(|filter| matches!(filter, HttpFilter::Tokens(_)));
    let mut proven = Proven::default();
    for filter in tokens {
        match tokens::look(filter, &mut request) {
            Ok(said) => proven.extend(said),
            Err(refused) => return refused,
        }
    }
    let judged = WithTokens { request: &request, tokens: Some(&proven), supposed: None };
    let filters = filtered(&filters, connection, &judged);
    let route = match &http.routes {
        RouteSource::Inline(routes) => {
            RouteTable::compile(routes).ok().is_some_and(|table| table.find(&request).is_some())
        }
        RouteSource::Named(_) => true,
    };
    if route { filters } else { Decided::of("refused", Some(404), "no inbound route takes it") }
}

fn falls_under(matches: &RouteMatch, request: &Judged<'_>) -> bool {
    CompiledMatch::compile(matches).is_ok_and(|matches| matches.mismatch(request).is_none())
}

/// The filters in order; the first that denies decides.
fn filtered(filters: &[&HttpFilter], connection: &ConnectionView<'_>, request: &Judged<'_>) -> Decided {
    let mut asks = None;
    let mut decided = Vec::new();
    let (mut lost, mut limits) = (Vec::new(), Vec::new());
    for filter in filters {
        match filter {
            HttpFilter::Rbac(rbac) => decided.push(rbac),
            HttpFilter::ExtAuthz(authz) => {
                // Only what they match is asked about, whatever their action.
                let only = authz.only.clone().map(|only| Rbac { action: RbacAction::Deny, ..only });
                let set = only.as_ref().and_then(|only| PolicySet::compile([only]).ok());
                match set.as_ref().map(|set| set.decide(connection, Some(request))) {
                    None => asks = asks.or(Some((authz.cluster.clone(), None))),
                    Some(Decision::Deny(denial)) => {
                        asks =
                            asks.or(Some((authz.cluster.clone(), denial.origin().map(ToString::to_string))));
                    }
                    Some(Decision::Allow) => {
                        lost.extend(only.iter().flat_map(|only| unmatched(only, connection, Some(request))))
                    }
                }
            }
            HttpFilter::RateLimit(all) => {
                let counts = |limit: &&RateLimit| falls_under(&limit.matches, request);
                limits.extend(all.iter().filter(counts).map(words::limit));
            }
            HttpFilter::GlobalLimit(global) => {
                let counts = |limit: &&GlobalLimit| falls_under(&limit.matches, request);
                limits.extend(
                    global.limits.iter().filter(counts).map(|l| words::global_limit(l, &global.cluster)),
                );
            }
            HttpFilter::Concurrency(limit) => limits.push(words::concurrency(limit)),
            // Those were looked at before.
            // No rule of ours makes a local limit of that kind.
            HttpFilter::Fault(_) | HttpFilter::Tokens(_) | HttpFilter::LocalLimit(_) => {}
        }
    }
    let mut own = by_policies(&decided, connection, Some(request));
    lost.append(&mut own.lost);
    own.lost = lost;
    // What is denied does not count.
    if own.decision == "allowed" {
        own.limits = limits;
    }
    match asks {
        Some((cluster, origin)) if own.decision == "allowed" => Decided {
            origin,
            ..Decided { decision: "asks", why: format!("{cluster} is asked and decides"), ..own }
        },
        _ => own,
    }
}

fn by_policies(filters: &[&Rbac], connection: &ConnectionView<'_>, request: Option<&Judged<'_>>) -> Decided {
    let set = match PolicySet::compile(filters.iter().copied()) {
        Ok(set) => set,
        Err(flaw) => return Decided::of("refused", Some(503), flaw.reason.clone()),
    };
    let lost: Vec<Lost> = filters.iter().flat_map(|rbac| unmatched(rbac, connection, request)).collect();
    let decision = match request {
        Some(request) => set.decide(connection, Some(request)),
        None => set.decide_connection(connection),
    };
    match decision {
        Decision::Allow => {
            let (origin, why) = permitted(filters, connection, request);
            Decided { origin, lost, ..Decided::of("allowed", None, why) }
        }
        Decision::Deny(denial) => {
            let origin = denial.origin().map(ToString::to_string);
            let status = request.map(|_| 403);
            Decided { origin, lost, ..Decided::of("denied", status, denial.to_string()) }
        }
    }
}

/// Which ALLOW policy lets it in.
fn permitted(
    filters: &[&Rbac],
    connection: &ConnectionView<'_>,
    request: Option<&Judged<'_>>,
) -> (Option<String>, String) {
    let allow = filters.iter().rev().find(|rbac| rbac.action == RbacAction::Allow);
    let matching = allow
        .and_then(|rbac| look(rbac, connection, request).ok()?.into_iter().find(|one| one.unmet.is_none()));
    match matching {
        Some(one) => (one.origin.map(ToString::to_string), format!("{} matches", one.name)),
        None => (None, "no policy forbids it".to_owned()),
    }
}

fn unmatched(rbac: &Rbac, connection: &ConnectionView<'_>, request: Option<&Judged<'_>>) -> Vec<Lost> {
    let looked = look(rbac, connection, request).unwrap_or_default();
    let unmet = looked.into_iter().filter_map(|one| {
        let why = format!("it does not hold that {}", one.unmet?);
        Some(Lost { rule: one.name.to_owned(), origin: one.origin.map(ToString::to_string), why })
    });
    unmet.collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::explain::tests::{GUARDED, asked, only, shop};
    use crate::instance::{Protocol, sample};
    use crate::world::sample::world;

    const LIMIT: &str = "---
apiVersion: outrigger.io/v1
kind: TrafficRules
metadata: {name: catalog, namespace: shop}
spec: {service: catalog, rateLimit: [{name: all, requests: 10, per: 1s}]}
";

    #[test]
    fn what_is_denied_does_not_count_against_a_limit() {
        let world = Arc::new(world(shop(), &format!("{GUARDED}{LIMIT}")));
        let answer = asked(&world, "web", "GET http://catalog:8080/secret/1");
        let limits = |decision: &str| {
            let one = answer.targets[0].inbound.iter().find(|one| one.decision == decision).unwrap();
            one.limits.len()
        };
        assert_eq!((limits("allowed"), limits("denied")), (1, 0));
    }

    #[test]
    fn adaptive_concurrency_is_said_with_its_bounds() {
        let limit = LIMIT.replace(
            "rateLimit: [{name: all, requests: 10, per: 1s}]",
            "adaptiveConcurrency: {maxLimit: 50}",
        );
        let world = Arc::new(world(shop(), &format!("{GUARDED}{limit}")));
        let answer = asked(&world, "web", "GET http://catalog:8080/secret/1");
        let one = answer.targets[0].inbound.iter().find(|one| one.decision == "allowed").unwrap();
        let wanted = "adaptive concurrency (TrafficRules shop/catalog): 3 to 50 requests under way, by p50 of 100ms; the minRTT is measured every 60s by 50 requests";
        assert_eq!(one.limits, [wanted]);
    }

    #[test]
    fn who_is_at_an_address_is_of_the_clients_network_and_still_there() {
        let at = |id: &str, version: &str| sample(id, "twin", version, "127.0.0.30", 8080, Protocol::Http);
        let gone = Instance { state: State::Stopped, ..at("a-gone", "v2") };
        let other = Instance { network: "other".into(), ..at("b-other", "v2") };
        let mut instances = shop();
        instances.extend([gone, other.clone(), at("c-own", "v1")]);
        let ask = |instances: Vec<Instance>, request: &str| {
            asked(&Arc::new(world(instances, GUARDED)), "web", request)
        };
        let request = "GET http://127.0.0.30:8080/secret/1";
        assert_eq!(only(&ask(instances, request)), ("forwarded", None, vec!["c-own"]));
        // An address that only another network has may still be reached.
        let request = "GET http://twin:8080/secret/1";
        let apart = ask([shop(), vec![other]].concat(), request);
        assert_eq!(only(&apart), ("denied", Some(403), vec!["b-other"]));
    }
}
