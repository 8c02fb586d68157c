//! `/v1/status`: who is connected, what is in force, and waiting for it.

use std::collections::BTreeSet;
use std::time::SystemTime;

use axum::extract::rejection::QueryRejection;
use axum::extract::{Extension, Query, State};
use axum::routing::get;
use axum::{Json, Router};

use super::registries;
use super::types::{
    InForce, Missing, ProxyStatus, ReplicaBody, RuleState, RuleStatusBody, StatusBody, WaitQuery,
};
use super::{Api, ApiParts, Problem, operator, timeout, translated};
use crate::compile::scope::Scope;
use crate::enforced::Unenforced;
use crate::instance::Instance;
use crate::keeper::{Published, Rule};
use crate::others::Others;
use crate::registry::api::Caller;
use crate::registry::lease::service_of;
use crate::replicas::{Replicas, STATUS};

pub(super) fn routes() -> Router<Api> {
    Router::new()
        .route("/v1/status", get(status))
        .route("/v1/status/rules", get(rules))
        .route("/v1/status/wait", get(wait))
}

/// Connected proxies and what is wrong at the moment.
#[utoipa::path(get, path = "/v1/status", responses((status = 200, body = StatusBody)))]
pub(super) async fn status(
    State(api): State<Api>,
    Extension(caller): Extension<Caller>,
) -> Result<Json<StatusBody>, Problem> {
    operator(&caller)?;
    let mut body = body(&api.shared);
    if let Some(replicas) = &api.shared.replicas {
        add(&mut body, replicas).await;
    }
    Ok(Json(body))
}

pub(crate) fn body(shared: &ApiParts) -> StatusBody {
    let published = shared.keeper.published();
    let generation = published.generation();
    let sidecar = |scope: &Scope| scope.sidecar(&published.world).map(|sidecar| sidecar.origin.to_string());
    let proxies = shared.board.proxies_with(generation, sidecar);
    let trouble = shared.store.trouble().map(|why| {
        format!("changes cannot be stored: {why}; nothing is lost, and they are taken again once the disk takes writes")
    });
    let translated = translated::notice(published.compiled.audience(), &published.world);
    StatusBody {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        generation,
        rules: published.rules.len(),
        instances: published.world.instance_count(),
        missing: missing(shared, &published, &proxies),
        replicas: own(shared, proxies.len()),
        proxies,
        held: published.held.to_vec(),
        problems: shared.registries.problems(),
        registries: registries::bodies(&shared.registries, &published),
        rejections: shared
            .rejections
            .list(|ip| published.world.instances().any(|instance| instance.addresses.contains(&ip))),
        notices: shared.notices.iter().cloned().chain(trouble).chain(translated).collect(),
    }
}

/// This one, among replicas.
fn own(shared: &ApiParts, proxies: usize) -> Vec<ReplicaBody> {
    let own = shared.replicas.as_ref().map(|replicas| ReplicaBody {
        name: replicas.name.to_string(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        generation: shared.keeper.published().generation(),
        proxies,
        leads: replicas.leadership.leads(),
        error: None,
    });
    own.into_iter().collect()
}

/// Adds what the others say of themselves.
async fn add(body: &mut StatusBody, replicas: &Replicas) {
    for proxy in &mut body.proxies {
        proxy.replica = Some(replicas.name.to_string());
    }
    let answers = replicas.peers.ask::<StatusBody>(STATUS).await;
    for (name, other) in answers.said {
        body.replicas.extend(other.replicas);
        body.rejections.extend(other.rejections);
        body.notices.extend(other.notices.iter().map(|notice| format!("replica {name}: {notice}")));
        let there = other.proxies.into_iter().map(|mut proxy| {
            proxy.replica = Some(name.clone());
            proxy
        });
        body.proxies.extend(there);
    }
    for (name, why) in answers.silent {
        body.notices.push(format!(
            "replica {name} does not answer, so its proxies are not shown, and may seem to be missing: {why}"
        ));
        let (version, error) = (String::new(), Some(why));
        body.replicas.push(ReplicaBody { name, version, generation: 0, proxies: 0, leads: false, error });
    }
    body.replicas.sort_by(|a, b| a.name.cmp(&b.name));
    body.rejections.sort_by_key(|rejection| rejection.age_seconds);
    body.proxies.sort_by(|a, b| (&a.instance, &a.node).cmp(&(&b.instance, &b.node)));
    let there: BTreeSet<&str> = body.proxies.iter().filter_map(|proxy| proxy.instance.as_deref()).collect();
    body.missing.retain(|missing| !there.contains(missing.instance.as_str()));
}

/// Registered instances that should have a sidecar here and have none.
fn missing(shared: &ApiParts, published: &Published, proxies: &[ProxyStatus]) -> Vec<Missing> {
    let present: BTreeSet<&str> = proxies.iter().filter_map(|proxy| proxy.instance.as_deref()).collect();
    let world = &published.world;
    let absent =
        world.instances().filter(|instance| instance.sidecar && !present.contains(instance.id.as_str()));
    let body = |instance: &std::sync::Arc<Instance>| {
        let left = shared.board.left(&instance.id);
        let registered = published.registrations.get(&instance.id).map(|r| SystemTime::from(r.stored.at));
        let since = left.or(registered.map(|at| at.max(shared.started))).unwrap_or(shared.started);
        Missing {
            instance: instance.id.clone(),
            service: service_of(instance),
            since_seconds: since.elapsed().map_or(0, |age| age.as_secs()),
            seen: left.is_some(),
        }
    };
    absent.map(body).collect()
}

/// Every rule and how far it has come.
#[utoipa::path(get, path = "/v1/status/rules", responses((status = 200, body = Vec<RuleStatusBody>)))]
pub(super) async fn rules(
    State(api): State<Api>,
    Extension(caller): Extension<Caller>,
) -> Result<Json<Vec<RuleStatusBody>>, Problem> {
    operator(&caller)?;
    let published = api.shared.keeper.published();
    let others = match &api.shared.replicas {
        Some(replicas) => replicas.others().await,
        None => Others::default(),
    };
    let unenforced = Unenforced::now(&published, &api.shared.board, &others);
    let status = |rule| rule_status(&api.shared, &unenforced, &others, rule);
    Ok(Json(published.rules.values().map(|rule| status(rule)).collect()))
}

fn rule_status(shared: &ApiParts, unenforced: &Unenforced, others: &Others, rule: &Rule) -> RuleStatusBody {
    let stored = rule.stored();
    let mut parts = stored.key.splitn(3, '/').map(str::to_owned);
    let mut part = || parts.next().unwrap_or_default();
    let (kind, namespace, name) = (part(), part(), part());
    let InForce { proxies, of, mut waiting, .. } = shared.board.in_force(stored.generation);
    let id = format!("{kind} {namespace}/{name}");
    let mut reasons = shared.board.refused_rule(&id);
    reasons.extend(others.refused(&id));
    let object = rule.object.as_ref().and_then(|object| object.json["metadata"]["generation"].as_i64());
    let elsewhere = others.reached(&id, object);
    if elsewhere.0 < elsewhere.1 {
        waiting.push(format!("{} at other replicas", elsewhere.1 - elsewhere.0));
    }
    let (proxies, of) = (proxies + elsewhere.0, of + elsewhere.1);
    let refused = !reasons.is_empty();
    let lacking = unenforced.of(&id);
    let enforced = lacking.is_empty();
    reasons.extend(lacking);
    let proxies = proxies.saturating_sub(unenforced.proxies(&shared.board, others, &[id]));
    let state = match &rule.problem {
        Some(problem) => {
            reasons = vec![problem.clone()];
            RuleState::NotUnderstood
        }
        None if refused => RuleState::Refused,
        None if !waiting.is_empty() => RuleState::Stale,
        None if !enforced => RuleState::NotEnforced,
        None => RuleState::InForce,
    };
    let (version, generation) = (stored.version, stored.generation);
    RuleStatusBody { kind, namespace, name, version, generation, state, proxies, of, waiting, reasons }
}

/// Answers when every connected proxy has a generation in force, or when waiting is pointless.
#[utoipa::path(get, path = "/v1/status/wait", params(WaitQuery), responses((status = 200, body = InForce)))]
pub(super) async fn wait(
    State(api): State<Api>,
    Extension(caller): Extension<Caller>,
    query: Result<Query<WaitQuery>, QueryRejection>,
) -> Result<Json<InForce>, Problem> {
    operator(&caller)?;
    let Query(query) = query?;
    let generation = query.generation.unwrap_or_else(|| api.shared.keeper.published().generation());
    Ok(Json(api.shared.board.wait(generation, &[], timeout(query.timeout)?).await))
}
