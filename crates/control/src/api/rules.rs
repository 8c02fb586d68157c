//! `/v1/rules`: apply, list, read, history, delete.

use std::time::{Duration, Instant};

use axum::extract::rejection::QueryRejection;
use axum::extract::{Extension, Path, Query, State};
use axum::http::header::CONTENT_TYPE;
use axum::http::{HeaderMap, StatusCode};
use axum::routing::{get, post};
use axum::{Json, Router};
use bytes::Bytes;
use outrigger_rules::intent::ObjectKind;
use outrigger_rules::{Finding, ParseOptions, Parsed, analyze, parse_bytes};

use super::types::{
    ApplyBody, ApplyQuery, DeleteBody, ErrorBody, FILES, FileText, FindingBody, HistoryEntry, InForce,
    RuleBody, RulesQuery,
};
use super::{Api, ApiParts, Problem, operator, route_status, timeout};
use crate::enforced::Unenforced;
use crate::keeper::{Removed, Rule, rules};
use crate::others::Others;
use crate::registry::api::Caller;
use crate::world::World;

pub(super) fn routes() -> Router<Api> {
    Router::new()
        .route("/v1/rules", post(apply).get(list))
        .route("/v1/analysis", get(analysis))
        .route("/v1/rules/{kind}/{namespace}/{name}", get(read).delete(remove))
        .route("/v1/rules/{kind}/{namespace}/{name}/history", get(history))
}

type RulePath = Path<(String, String, String)>;

/// The key of a rule, its kind in any spelling that lists take.
fn key(Path((kind, namespace, name)): &RulePath) -> String {
    let known = ObjectKind::ALL.into_iter().map(ObjectKind::as_str).find(|known| names_kind(kind, known));
    format!("{}/{namespace}/{name}", known.unwrap_or(kind))
}

/// Applies the objects of a YAML or JSON text, or of several, all or none.
#[utoipa::path(post, path = "/v1/rules", params(ApplyQuery), request_body(content(
        (String = "application/yaml"), (Vec<FileText> = "application/vnd.outrigger.files+json"))),
    responses((status = 200, body = ApplyBody), (status = 422, body = ErrorBody, description = "Errors; nothing was applied")))]
pub(super) async fn apply(
    State(api): State<Api>,
    Extension(caller): Extension<Caller>,
    query: Result<Query<ApplyQuery>, QueryRejection>,
    headers: HeaderMap,
    body: Bytes,
) -> Result<Json<ApplyBody>, Problem> {
    let Query(query) = query?;
    let author = author(operator(&caller)?, query.author.as_deref());
    let wait = query.wait.then(|| timeout(query.timeout)).transpose()?;
    let namespace = query.namespace.clone().unwrap_or_else(|| "default".to_owned());
    let options = api.shared.settings.mesh().reading(&namespace);
    let several = headers.get(CONTENT_TYPE).is_some_and(|kind| kind.as_bytes() == FILES.as_bytes());
    let file = query.file.clone().unwrap_or_default();
    // Up to 8 MiB of YAML: not on the runtime's threads.
    let parsed = tokio::task::spawn_blocking(move || match several {
        true => parse_all(&body, &options),
        false => Ok(parse_bytes(&file, &body, &options)),
    });
    let Parsed { objects, findings } = parsed.await.map_err(|error| {
        Problem::new(StatusCode::INTERNAL_SERVER_ERROR, format!("the text cannot be read: {error}"))
    })??;
    let errors = findings.iter().filter(|finding| finding.is_error()).count();
    if errors > 0 {
        api.shared.metrics.validation_failed.inc();
        return Err(Problem::findings(format!("nothing was applied: {errors} error(s)"), findings));
    }
    if objects.is_empty() {
        return Err(Problem::new(
            StatusCode::BAD_REQUEST,
            "the text holds no object; nothing was applied".to_owned(),
        ));
    }
    let begun = Instant::now();
    let applied = api.shared.keeper.apply(objects, &namespace, &author, query.dry_run).await;
    let outcome = if applied.is_ok() {
        &api.shared.metrics.validation_passed
    } else {
        &api.shared.metrics.validation_failed
    };
    outcome.inc();
    let applied = applied?;
    let rules: Vec<String> = applied
        .objects
        .iter()
        .map(|object| format!("{} {}/{}", object.kind, object.namespace, object.name))
        .collect();
    let in_force = match wait {
        Some(wait) if !query.dry_run => Some(in_force(&api.shared, applied.generation, &rules, wait).await),
        _ => None,
    };
    let in_force_millis = in_force.as_ref().map(|_| begun.elapsed().as_secs_f64() * 1000.0);
    let findings = findings.into_iter().chain(applied.findings).collect();
    let (generation, dry_run, objects) = (applied.generation, applied.dry_run, applied.objects);
    Ok(Json(ApplyBody { generation, dry_run, objects, findings, in_force, in_force_millis }))
}

/// The texts of several files as one set.
fn parse_all(body: &[u8], options: &ParseOptions) -> Result<Parsed, Problem> {
    let files: Vec<FileText> = serde_json::from_slice(body).map_err(|error| {
        Problem::new(StatusCode::BAD_REQUEST, format!("the list of files cannot be read: {error}"))
    })?;
    let mut all = Parsed::default();
    for FileText { file, text } in files {
        let Parsed { objects, findings } = parse_bytes(&file, text.as_bytes(), options);
        all.objects.extend(objects);
        all.findings.extend(findings);
    }
    Ok(all)
}

/// Waits, and says of these rules who refuses them or does not enforce them.
async fn in_force(shared: &ApiParts, generation: u64, rules: &[String], wait: Duration) -> InForce {
    let mut state = shared.board.wait(generation, rules, wait).await;
    // Replicas take no rules here, so there are no others.
    let others = Others::default();
    let unenforced = Unenforced::now(&shared.keeper.published(), &shared.board, &others);
    state.unenforced = rules.iter().flat_map(|rule| unenforced.of(rule)).collect();
    state.proxies = state.proxies.saturating_sub(unenforced.proxies(&shared.board, &others, rules));
    state
}

/// How a change is signed: by who really made it, and by whoever that says it is for.
fn author(caller: &str, claimed: Option<&str>) -> String {
    match claimed {
        Some(claimed) if caller != claimed && caller.split(" (").next() != Some(claimed) => {
            format!("{} via {caller}", &claimed[..claimed.floor_char_boundary(128)])
        }
        _ => caller.to_owned(),
    }
}

fn body(rule: &Rule, world: &World) -> RuleBody {
    let stored = rule.stored();
    let mut parts = stored.key.splitn(3, '/').map(str::to_owned);
    RuleBody {
        kind: parts.next().unwrap_or_default(),
        namespace: parts.next().unwrap_or_default(),
        name: parts.next().unwrap_or_default(),
        version: stored.version,
        generation: stored.generation,
        author: stored.author.clone(),
        at: stored.at,
        source: stored.source.clone(),
        object: stored.json.clone(),
        problem: rule.problem.clone(),
        status: route_status::of(rule, world),
    }
}

/// All rules.
#[utoipa::path(get, path = "/v1/rules", params(RulesQuery), responses((status = 200, body = Vec<RuleBody>)))]
pub(super) async fn list(
    State(api): State<Api>,
    Extension(caller): Extension<Caller>,
    query: Result<Query<RulesQuery>, QueryRejection>,
) -> Result<Json<Vec<RuleBody>>, Problem> {
    operator(&caller)?;
    let Query(query) = query?;
    let published = api.shared.keeper.published();
    let mut all: Vec<RuleBody> = published.rules.values().map(|rule| body(rule, &published.world)).collect();
    all.retain(|rule| {
        query.kind.as_ref().is_none_or(|kind| names_kind(kind, &rule.kind))
            && query.namespace.as_ref().is_none_or(|namespace| rule.namespace == *namespace)
    });
    Ok(Json(all))
}

/// The short names of their CRDs.
const SHORT: [(&str, &str); 8] = [
    ("vs", "VirtualService"),
    ("dr", "DestinationRule"),
    ("pa", "PeerAuthentication"),
    ("ap", "AuthorizationPolicy"),
    ("ra", "RequestAuthentication"),
    ("se", "ServiceEntry"),
    ("we", "WorkloadEntry"),
    ("refgrant", "ReferenceGrant"),
];

/// Whether this is the kind, its plural or its short name, in any case, as kubectl takes them.
fn names_kind(asked: &str, kind: &str) -> bool {
    if SHORT.iter().any(|(short, long)| *long == kind && short.eq_ignore_ascii_case(asked)) {
        return true;
    }
    let singular = match asked.strip_suffix("ies") {
        Some(stem) => format!("{stem}y"),
        None => asked.strip_suffix('s').unwrap_or(asked).to_owned(),
    };
    kind.eq_ignore_ascii_case(asked) || kind.eq_ignore_ascii_case(&singular)
}

/// What is wrong with the rules that are there, against the services and workloads that are there.
#[utoipa::path(get, path = "/v1/analysis", responses((status = 200, body = Vec<FindingBody>)))]
pub(super) async fn analysis(
    State(api): State<Api>,
    Extension(caller): Extension<Caller>,
) -> Result<Json<Vec<Finding>>, Problem> {
    operator(&caller)?;
    let published = api.shared.keeper.published();
    // Seconds for tens of thousands of rules: not on the runtime's threads.
    let found = tokio::task::spawn_blocking(move || {
        let objects: Vec<_> = published.rules.values().filter_map(|rule| rule.object.clone()).collect();
        analyze(&objects, Some(&rules::catalog(&published.world)))
    });
    Ok(Json(found.await.map_err(|error| Problem::new(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()))?))
}

/// One rule.
#[utoipa::path(get, path = "/v1/rules/{kind}/{namespace}/{name}",
    params(("kind" = String, Path), ("namespace" = String, Path), ("name" = String, Path)),
    responses((status = 200, body = RuleBody), (status = 404, body = ErrorBody)))]
pub(super) async fn read(
    State(api): State<Api>,
    Extension(caller): Extension<Caller>,
    path: RulePath,
) -> Result<Json<RuleBody>, Problem> {
    operator(&caller)?;
    let key = key(&path);
    let published = api.shared.keeper.published();
    let rule = published.rules.get(&key).ok_or_else(|| missing(&key))?;
    Ok(Json(body(rule, &published.world)))
}

fn missing(key: &str) -> Problem {
    Problem::new(
        StatusCode::NOT_FOUND,
        format!("there is no rule {key}; GET /v1/rules lists those that exist"),
    )
}

/// All versions of a rule, the newest first; deletions too.
#[utoipa::path(get, path = "/v1/rules/{kind}/{namespace}/{name}/history",
    params(("kind" = String, Path), ("namespace" = String, Path), ("name" = String, Path)),
    responses((status = 200, body = Vec<HistoryEntry>), (status = 404, body = ErrorBody)))]
pub(super) async fn history(
    State(api): State<Api>,
    Extension(caller): Extension<Caller>,
    path: RulePath,
) -> Result<Json<Vec<HistoryEntry>>, Problem> {
    operator(&caller)?;
    let key = key(&path);
    let entries = api.shared.store.clone().history(key.clone()).await?;
    if entries.is_empty() { Err(missing(&key)) } else { Ok(Json(entries)) }
}

/// Deletes a rule. One that others need is not deleted without `force`.
#[utoipa::path(delete, path = "/v1/rules/{kind}/{namespace}/{name}",
    params(("kind" = String, Path), ("namespace" = String, Path), ("name" = String, Path), ApplyQuery),
    responses((status = 200, body = DeleteBody), (status = 404, body = ErrorBody),
        (status = 422, body = ErrorBody, description = "Others need it; nothing was deleted")))]
pub(super) async fn remove(
    State(api): State<Api>,
    Extension(caller): Extension<Caller>,
    path: RulePath,
    query: Result<Query<ApplyQuery>, QueryRejection>,
) -> Result<Json<DeleteBody>, Problem> {
    let Query(query) = query?;
    let author = author(operator(&caller)?, query.author.as_deref());
    let wait = query.wait.then(|| timeout(query.timeout)).transpose()?;
    let begun = Instant::now();
    let removed = api.shared.keeper.delete(&key(&path), &author, query.force, query.dry_run).await?;
    let in_force = match wait {
        Some(wait) if !query.dry_run => Some(in_force(&api.shared, removed.generation, &[], wait).await),
        _ => None,
    };
    let in_force_millis = in_force.as_ref().map(|_| begun.elapsed().as_secs_f64() * 1000.0);
    let Removed { version, generation, findings } = removed;
    Ok(Json(DeleteBody { version, generation, dry_run: query.dry_run, findings, in_force, in_force_millis }))
}

#[cfg(test)]
mod tests {
    use super::names_kind;

    #[test]
    fn a_kind_may_be_named_in_the_plural_and_in_any_case() {
        for (asked, kind) in [
            ("virtualservices", "VirtualService"),
            ("AuthorizationPolicies", "AuthorizationPolicy"),
            ("TrafficRules", "TrafficRules"),
            ("destinationrule", "DestinationRule"),
            ("httproutes", "HTTPRoute"),
            ("GRPCRoute", "GRPCRoute"),
            ("refgrant", "ReferenceGrant"),
            ("vs", "VirtualService"),
        ] {
            assert!(names_kind(asked, kind), "{asked}");
        }
        assert!(!names_kind("virtual", "VirtualService") && !names_kind("trafficrule", "TrafficRules"));
    }
}
