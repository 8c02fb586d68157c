//! Jaeger's query API, as its own UI and everybody's scripts speak it (`/api/services`, `/api/traces`, …).

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use axum::body::Body;
use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use bytes::Bytes;
use http_body_util::BodyExt;
use serde::Serialize;
use serde_json::{Value, json};

use super::{Filter, Process, Span, Tag, TraceId, TraceStore};

/// Traces in one answer when the query sets no limit.
const DEFAULT_LIMIT: usize = 20;
const MAX_LIMIT: usize = 1500;
/// Bytes of one answer; traces beyond that are left out, and the answer says how many.
const MAX_ANSWER: usize = 8 << 20;
/// For the other answers that are on their way.
const TURN: Duration = Duration::from_secs(10);

/// Jaeger's envelope.
#[derive(Serialize)]
struct Answer<T> {
    data: T,
    total: usize,
    limit: usize,
    offset: usize,
    errors: Option<Vec<Value>>,
}

/// The routes, to be served on their own port and beside the management API.
pub fn router(store: TraceStore) -> Router {
    Router::new()
        .route("/api/services", get(services))
        .route("/api/services/{service}/operations", get(operation_names))
        .route("/api/operations", get(operations))
        .route("/api/traces", get(traces))
        .route("/api/traces/{id}", get(trace))
        .with_state(store)
}

fn answer<T: Serialize>(data: Vec<T>) -> Response {
    let total = data.len();
    Json(Answer { data, total, limit: 0, offset: 0, errors: None }).into_response()
}

fn failure(status: StatusCode, message: String) -> Response {
    let errors = Some(vec![json!({ "code": status.as_u16(), "msg": message })]);
    let body: Answer<Option<()>> = Answer { data: None, total: 0, limit: 0, offset: 0, errors };
    (status, Json(body)).into_response()
}

async fn services(State(store): State<TraceStore>) -> Response {
    answer(store.services().into_iter().collect())
}

async fn operation_names(State(store): State<TraceStore>, Path(service): Path<String>) -> Response {
    let mut names: Vec<String> = store.operations(&service).into_iter().map(|(name, _)| name).collect();
    names.dedup();
    answer(names)
}

async fn operations(
    State(store): State<TraceStore>,
    Query(query): Query<HashMap<String, String>>,
) -> Response {
    let Some(service) = query.get("service") else {
        return failure(StatusCode::BAD_REQUEST, "parameter 'service' is required".to_owned());
    };
    let wanted = query.get("spanKind").filter(|kind| !kind.is_empty());
    let all =
        store.operations(service).into_iter().filter(|(_, kind)| wanted.is_none_or(|wanted| wanted == kind));
    answer(all.map(|(name, kind)| json!({ "name": name, "spanKind": kind })).collect())
}

async fn traces(State(store): State<TraceStore>, Query(query): Query<Vec<(String, String)>>) -> Response {
    let ids: Vec<&str> =
        query.iter().filter(|(key, _)| key == "traceID").map(|(_, id)| id.as_str()).collect();
    if !ids.is_empty() {
        let wanted: BTreeSet<TraceId> = ids.into_iter().filter_map(parse_id).collect();
        let found = wanted.into_iter().filter_map(|id| store.trace(&id)).collect();
        return whole(&store, found).await;
    }
    match filter(&query, SystemTime::now()) {
        Ok(filter) => whole(&store, store.find(&filter)).await,
        Err(message) => failure(StatusCode::BAD_REQUEST, message),
    }
}

/// An answer of whole traces, written as far as it may be long. Its place among the answers is given back with its last byte.
async fn whole(store: &TraceStore, traces: Vec<Vec<Arc<Span>>>) -> Response {
    let turn = tokio::time::timeout(TURN, store.answers.clone().acquire_owned()).await;
    let Ok(Ok(place)) = turn else {
        let text = "other answers are still being read; ask again".to_owned();
        return failure(StatusCode::SERVICE_UNAVAILABLE, text);
    };
    let (body, written) = match write(&traces, MAX_ANSWER) {
        Ok(written) => written,
        Err(error) => return failure(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()),
    };
    if written == 0 && !traces.is_empty() {
        let text = format!("the trace is larger than an answer may be ({MAX_ANSWER} bytes)");
        return failure(StatusCode::PAYLOAD_TOO_LARGE, text);
    }
    // The closure, and with it the place, lives as long as the body.
    let body = http_body_util::Full::new(Bytes::from(body)).map_frame(move |frame| {
        let _ = &place;
        frame
    });
    let json = (CONTENT_TYPE, "application/json");
    ([json], Body::new(body)).into_response()
}

/// The answer's text, and how many traces are in it: those that fit into `most` bytes, one after the other.
fn write(traces: &[Vec<Arc<Span>>], most: usize) -> serde_json::Result<(Vec<u8>, usize)> {
    let mut out = b"{\"data\":[".to_vec();
    let mut written = 0;
    for spans in traces {
        let before = out.len();
        if written > 0 {
            out.push(b',');
        }
        if !shape(spans, &mut out, most)? {
            out.truncate(before);
            break;
        }
        written += 1;
    }
    let left = traces.len() - written;
    let errors = (left > 0).then(|| {
        let text =
            format!("{left} more traces match: the answer would be longer than {most} bytes; ask for fewer");
        vec![json!({ "code": 206, "msg": text })]
    });
    out.extend_from_slice(b"],");
    let rest = json!({ "total": written, "limit": 0, "offset": 0, "errors": errors });
    let rest = serde_json::to_vec(&rest)?;
    out.extend_from_slice(rest.get(1..).unwrap_or_default());
    Ok((out, written))
}

async fn trace(State(store): State<TraceStore>, Path(id): Path<String>) -> Response {
    let Some(parsed) = parse_id(&id) else {
        return failure(StatusCode::BAD_REQUEST, format!("\"{id}\" is not a trace id of 1 to 32 hex digits"));
    };
    match store.trace(&parsed) {
        Some(spans) => whole(&store, vec![spans]).await,
        None => failure(StatusCode::NOT_FOUND, "trace not found".to_owned()),
    }
}

/// Leading zeros may be left out, as Jaeger allows.
fn parse_id(text: &str) -> Option<TraceId> {
    let hex = (1..=32).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    hex.then(|| u128::from_str_radix(text, 16).ok()).flatten().map(u128::to_be_bytes)
}

fn filter(query: &[(String, String)], now: SystemTime) -> Result<Filter, String> {
    let value = |name: &str| {
        query
            .iter()
            .find(|(key, _)| key == name)
            .map(|(_, value)| value.as_str())
            .filter(|value| !value.is_empty())
    };
    let micros = |name: &str| match value(name) {
        None => Ok(0),
        Some(text) => match text.parse::<u64>() {
            Ok(micros) => Ok(micros.saturating_mul(1000)),
            Err(_) => Err(format!("parameter '{name}': \"{text}\" is not a number of microseconds")),
        },
    };
    let span = |name: &str| match value(name) {
        None => Ok(None),
        Some(text) => duration(text)
            .map(Some)
            .ok_or_else(|| format!("parameter '{name}': \"{text}\" is not a duration such as 1h or 20ms")),
    };
    let mut filter = Filter {
        service: value("service").map(str::to_owned),
        operation: value("operation").filter(|name| *name != "all").map(str::to_owned),
        from: micros("start")?,
        until: micros("end")?,
        shortest: span("minDuration")?.map_or(0, nanos),
        longest: span("maxDuration")?.map_or(0, nanos),
        limit: DEFAULT_LIMIT,
        tags: Vec::new(),
    };
    if filter.from == 0 && value("lookback") != Some("custom") {
        let since = span("lookback")?.and_then(|back| now.duration_since(UNIX_EPOCH).ok()?.checked_sub(back));
        filter.from = since.map_or(0, nanos);
    }
    if let Some(limit) = value("limit") {
        let parsed: usize =
            limit.parse().map_err(|_| format!("parameter 'limit': \"{limit}\" is not a number"))?;
        filter.limit = parsed.clamp(1, MAX_LIMIT);
    }
    if let Some(tags) = value("tags") {
        let tags: HashMap<String, String> = serde_json::from_str(tags)
            .map_err(|error| format!("parameter 'tags': not a JSON object of texts: {error}"))?;
        filter.tags.extend(tags);
    }
    for (_, tag) in query.iter().filter(|(key, _)| key == "tag") {
        let (key, value) =
            tag.split_once(':').ok_or_else(|| format!("parameter 'tag': \"{tag}\" is not key:value"))?;
        filter.tags.push((key.to_owned(), value.to_owned()));
    }
    Ok(filter)
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// Go's notation, one unit: `1.5h`, `20ms`, `100us`.
fn duration(text: &str) -> Option<Duration> {
    let split = text.find(|c: char| !c.is_ascii_digit() && c != '.')?;
    let (number, unit) = text.split_at(split);
    let scale = match unit {
        "ns" => 1e-9,
        "us" | "µs" => 1e-6,
        "ms" => 1e-3,
        "s" => 1.0,
        "m" => 60.0,
        "h" => 3600.0,
        "d" => 86400.0,
        _ => return None,
    };
    Duration::try_from_secs_f64(number.parse::<f64>().ok()? * scale).ok()
}

/// One trace as Jaeger writes it, span by span; `false` when it does not fit.
fn shape(spans: &[Arc<Span>], out: &mut Vec<u8>, most: usize) -> serde_json::Result<bool> {
    let mut processes: Vec<Arc<Process>> = Vec::new();
    let id = spans.first().map(|span| hex(&span.trace)).unwrap_or_default();
    out.extend_from_slice(format!("{{\"traceID\":\"{id}\",\"spans\":[").as_bytes());
    for (n, span) in spans.iter().enumerate() {
        let known = processes.iter().position(|process| process == &span.process);
        let number = known.unwrap_or_else(|| {
            processes.push(span.process.clone());
            processes.len() - 1
        });
        if n > 0 {
            out.push(b',');
        }
        serde_json::to_writer(&mut *out, &shape_span(span, &format!("p{}", number + 1)))?;
        if out.len() > most {
            return Ok(false);
        }
    }
    let processes: serde_json::Map<String, Value> = processes
        .iter()
        .enumerate()
        .map(|(i, process)| {
            (
                format!("p{}", i + 1),
                json!({ "serviceName": process.service, "tags": shape_tags(&process.tags) }),
            )
        })
        .collect();
    out.extend_from_slice(b"],\"processes\":");
    serde_json::to_writer(&mut *out, &processes)?;
    out.extend_from_slice(b",\"warnings\":null}");
    Ok(out.len() <= most)
}

fn shape_span(span: &Span, process: &str) -> Value {
    let trace = hex(&span.trace);
    let reference =
        |parent: super::SpanId| json!({ "refType": "CHILD_OF", "traceID": trace, "spanID": hex(&parent) });
    let log = |(at, fields): &(u64, Vec<(String, Tag)>)| json!({ "timestamp": at / 1000, "fields": shape_tags(fields) });
    json!({
        "traceID": trace,
        "spanID": hex(&span.id),
        "flags": 1,
        "operationName": span.name,
        "references": span.parent.map(reference).into_iter().collect::<Vec<_>>(),
        "startTime": span.start / 1000,
        "duration": (span.end - span.start) / 1000,
        "tags": shape_tags(&span.tags),
        "logs": span.logs.iter().map(log).collect::<Vec<_>>(),
        "processID": process,
        "warnings": null,
    })
}

fn shape_tags(tags: &[(String, Tag)]) -> Vec<Value> {
    let shape = |(key, tag): &(String, Tag)| match tag {
        Tag::Text(text) => json!({ "key": key, "type": "string", "value": text }),
        Tag::Bool(value) => json!({ "key": key, "type": "bool", "value": value }),
        Tag::Int(value) => json!({ "key": key, "type": "int64", "value": value }),
        Tag::Float(value) => json!({ "key": key, "type": "float64", "value": value }),
    };
    tags.iter().map(shape).collect()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_read_as_go_writes_them() {
        for (text, expected) in [
            ("1h", 3_600_000_000),
            ("20ms", 20_000),
            ("1.5s", 1_500_000),
            ("100us", 100),
            ("2d", 172_800_000_000),
        ] {
            assert_eq!(duration(text).unwrap().as_micros(), expected, "{text}");
        }
        for bad in ["", "5", "h", "-1s", "1x", "1..5s"] {
            assert_eq!(duration(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_short_trace_id_has_leading_zeros() {
        assert_eq!(parse_id("1"), Some(1_u128.to_be_bytes()));
        for bad in ["", "xyz", "+1", &"0".repeat(33)] {
            assert_eq!(parse_id(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_bad_parameter_is_named() {
        let bad =
            |key: &str, value: &str| filter(&[(key.into(), value.into())], SystemTime::now()).unwrap_err();
        assert!(bad("start", "x").contains("start"));
        assert!(bad("minDuration", "5").contains("minDuration"));
        assert!(bad("limit", "x").contains("limit"));
        assert!(bad("tags", "[").contains("tags"));
    }
}
