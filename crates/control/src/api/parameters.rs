//! Query parameters that an endpoint does not have are an error: a misspelt `dry_run` would apply for real.
//!
//! What an endpoint has is read from the OpenAPI document, so that the check and the description cannot differ.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::LazyLock;

use axum::extract::{MatchedPath, Request};
use axum::http::StatusCode;
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use super::{Problem, openapi};

/// By path template, then by method in lower case.
type Known = BTreeMap<String, BTreeMap<String, BTreeSet<String>>>;

static KNOWN: LazyLock<Known> = LazyLock::new(|| {
    let document = serde_json::to_value(openapi::document()).unwrap_or_default();
    let map = |value: &serde_json::Value| value.as_object().cloned().unwrap_or_default();
    let names = |operation: &serde_json::Value| {
        let parameters = operation["parameters"].as_array().cloned().unwrap_or_default();
        let query = parameters.into_iter().filter(|parameter| parameter["in"] == "query");
        query.filter_map(|parameter| Some(parameter["name"].as_str()?.to_owned())).collect()
    };
    let methods = |item: &serde_json::Value| {
        map(item).iter().map(|(method, operation)| (method.clone(), names(operation))).collect()
    };
    map(&document["paths"]).iter().map(|(path, item)| (path.clone(), methods(item))).collect()
});

/// Answers 400 to a request with a parameter that its endpoint does not have. Paths that the document does not have, such as those
/// of the trace store, are their own business.
pub(super) async fn check(request: Request, next: Next) -> Response {
    match unknown(&request) {
        Some(problem) => problem.into_response(),
        None => next.run(request).await,
    }
}

fn unknown(request: &Request) -> Option<Problem> {
    let path = request.extensions().get::<MatchedPath>()?.as_str();
    let known = KNOWN.get(path)?.get(&request.method().as_str().to_ascii_lowercase())?;
    let query = request.uri().query().filter(|query| !query.is_empty())?;
    let name = query.split('&').map(|pair| pair.split_once('=').map_or(pair, |(name, _)| name));
    let name = name.filter(|name| !name.is_empty()).find(|name| !known.contains(*name))?;
    let shown: String = name.chars().take(100).collect();
    let has = match known.is_empty() {
        true => "it takes none".to_owned(),
        false => format!("it takes {}", known.iter().map(String::as_str).collect::<Vec<_>>().join(", ")),
    };
    let text =
        format!("{} {path} has no query parameter \"{shown}\"; {has}. Nothing was done", request.method());
    Some(Problem::new(StatusCode::BAD_REQUEST, text))
}
