use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::TraceService;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue};
use opentelemetry_proto::tonic::resource::v1::Resource;
use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, ScopeSpans, Span as Otlp, Status as OtlpStatus};
use serde_json::Value as Json;
use tower::ServiceExt;

use super::*;

fn span(trace: u8, id: u8, start: u64) -> Span {
    Span {
        trace: [trace; 16],
        id: [id; 8],
        parent: None,
        name: format!("span {id}"),
        start,
        end: start + 1_000_000,
        tags: Vec::new(),
        logs: Vec::new(),
        process: Arc::new(Process { service: "web".into(), tags: Vec::new() }),
    }
}

#[test]
fn a_full_store_forgets_whole_traces_the_oldest_first() {
    let store = TraceStore::new(4, 64 << 20);
    store.add(vec![span(1, 1, 10), span(1, 2, 20), span(2, 1, 30), span(2, 2, 40)]);
    store.add(vec![span(3, 1, 50)]);
    assert!(store.trace(&[1; 16]).is_none(), "all of it, not only as much as was needed");
    assert_eq!(store.trace(&[2; 16]).unwrap().len(), 2);
    let counts = store.counts();
    assert_eq!((counts.kept, counts.received, counts.dropped), (3, 5, 2));
}

#[test]
fn one_endless_trace_does_not_push_out_the_others() {
    let store = TraceStore::new(20_000, 64 << 20);
    store.add(vec![span(1, 1, 1)]);
    let endless = (0..10_000_u64).map(|n| Span { id: (n + 1).to_be_bytes(), ..span(2, 0, n) }).collect();
    store.add(endless);
    assert!(store.trace(&[1; 16]).is_some());
    assert_eq!(store.trace(&[2; 16]).unwrap().len(), MOST_PER_TRACE);
}

#[test]
fn a_span_that_is_sent_twice_is_kept_once() {
    let store = TraceStore::new(10, 64 << 20);
    store.add(vec![span(1, 1, 1), span(1, 1, 1)]);
    assert_eq!(store.trace(&[1; 16]).unwrap().len(), 1);
}

#[test]
fn a_filter_takes_what_it_says() {
    let store = TraceStore::new(10, 64 << 20);
    let slow = Span {
        end: 5_000_000_000,
        tags: vec![("http.status_code".into(), Tag::Int(503))],
        ..span(2, 1, 1_000)
    };
    store.add(vec![span(1, 1, 500), slow]);
    let found = |filter: Filter| {
        store.find(&Filter { limit: 10, ..filter }).iter().map(|t| t[0].trace[0]).collect::<Vec<_>>()
    };
    assert_eq!(found(Filter::default()), [2, 1], "the latest first");
    assert_eq!(found(Filter { shortest: 2_000_000_000, ..Filter::default() }), [2]);
    assert_eq!(found(Filter { longest: 2_000_000_000, ..Filter::default() }), [1]);
    assert_eq!(found(Filter { from: 600, ..Filter::default() }), [2]);
    assert_eq!(found(Filter { until: 600, ..Filter::default() }), [1]);
    assert_eq!(
        found(Filter { tags: vec![("http.status_code".into(), "503".into())], ..Filter::default() }),
        [2]
    );
    assert_eq!(found(Filter { service: Some("other".into()), ..Filter::default() }), [0; 0]);
    assert_eq!(store.find(&Filter { limit: 1, ..Filter::default() }).len(), 1);
}

fn attribute(key: &str, value: Value) -> KeyValue {
    KeyValue { key: key.into(), value: Some(AnyValue { value: Some(value) }), ..KeyValue::default() }
}

fn export() -> ExportTraceServiceRequest {
    let parent = Otlp {
        trace_id: vec![0xab; 16],
        span_id: vec![1; 8],
        name: "GET /".into(),
        kind: 2,
        start_time_unix_nano: 1_700_000_000_000_000_000,
        end_time_unix_nano: 1_700_000_000_005_000_000,
        attributes: vec![attribute("http.response.status_code", Value::IntValue(200))],
        ..Otlp::default()
    };
    let child = Otlp {
        span_id: vec![2; 8],
        parent_span_id: vec![1; 8],
        name: "GET /items".into(),
        kind: 3,
        status: Some(OtlpStatus { code: 2, message: "too slow".into() }),
        ..parent.clone()
    };
    let bad = Otlp { span_id: vec![0; 8], ..parent.clone() };
    let resource = Resource {
        attributes: vec![attribute("service.name", Value::StringValue("web.shop".into()))],
        ..Resource::default()
    };
    ExportTraceServiceRequest {
        resource_spans: vec![ResourceSpans {
            resource: Some(resource),
            scope_spans: vec![ScopeSpans { spans: vec![parent, child, bad], ..ScopeSpans::default() }],
            ..ResourceSpans::default()
        }],
    }
}

async fn query(store: &TraceStore, path: &str) -> (u16, Json) {
    let request = http::Request::get(path).body(axum::body::Body::empty()).unwrap();
    let response = query::router(store.clone()).oneshot(request).await.unwrap();
    let status = response.status().as_u16();
    let body = axum::body::to_bytes(response.into_body(), 1 << 20).await.unwrap();
    (status, serde_json::from_slice(&body).unwrap())
}

#[tokio::test]
async fn exported_spans_come_back_in_jaegers_shape() {
    let store = TraceStore::new(100, 64 << 20);
    let receiver = receive::Receiver::new(store.clone());
    let answer = receiver.export(tonic::Request::new(export())).await.unwrap().into_inner();
    assert_eq!(answer.partial_success.unwrap().rejected_spans, 1, "a span without an id is refused");

    let id = "ab".repeat(16);
    let (status, body) = query(&store, &format!("/api/traces/{id}")).await;
    assert_eq!(status, 200);
    let trace = &body["data"][0];
    assert_eq!(trace["traceID"], id.as_str());
    let spans = trace["spans"].as_array().unwrap();
    assert_eq!(spans.len(), 2);
    let child = spans.iter().find(|span| span["operationName"] == "GET /items").unwrap();
    assert_eq!(child["references"][0]["refType"], "CHILD_OF");
    assert_eq!(child["references"][0]["spanID"], "01".repeat(8).as_str());
    assert_eq!(child["startTime"], 1_700_000_000_000_000_u64);
    assert_eq!(child["duration"], 5000);
    let tag =
        |key: &str| child["tags"].as_array().unwrap().iter().find(|tag| tag["key"] == key).cloned().unwrap();
    assert_eq!(tag("span.kind")["value"], "client");
    assert_eq!(tag("error")["value"], true);
    assert_eq!(tag("http.response.status_code")["type"], "int64");
    let process = child["processID"].as_str().unwrap();
    assert_eq!(trace["processes"][process]["serviceName"], "web.shop");

    assert_eq!(query(&store, "/api/services").await.1["data"], serde_json::json!(["web.shop"]));
    let operations = query(&store, "/api/services/web.shop/operations").await.1;
    assert_eq!(operations["data"], serde_json::json!(["GET /", "GET /items"]));
    let found = query(&store, "/api/traces?service=web.shop&limit=5&lookback=custom").await.1;
    assert_eq!(found["data"].as_array().unwrap().len(), 1);
    let none = query(&store, "/api/traces?service=web.shop&minDuration=1s").await.1;
    assert_eq!(none["data"].as_array().unwrap().len(), 0);
}

#[tokio::test]
async fn a_wrong_question_is_answered_with_what_is_wrong() {
    let store = TraceStore::new(100, 64 << 20);
    let (status, body) = query(&store, "/api/traces/zz").await;
    assert_eq!((status, body["errors"][0]["code"].as_u64()), (400, Some(400)));
    assert_eq!(query(&store, &format!("/api/traces/{}", "1".repeat(32))).await.0, 404);
    assert_eq!(query(&store, "/api/traces?limit=x").await.0, 400);
}

/// As large as its maker can make it: attributes, events, names, status, trace state.
fn bloated(trace: u32, id: u8) -> Otlp {
    use opentelemetry_proto::tonic::trace::v1::span::Event;
    let text = "ä".repeat(10_000);
    let attributes: Vec<KeyValue> =
        (0..300).map(|n| attribute(&format!("{n}{text}"), Value::StringValue(text.clone()))).collect();
    let mut trace_id = vec![7; 16];
    trace_id[..4].copy_from_slice(&trace.to_be_bytes());
    Otlp {
        trace_id,
        span_id: vec![id; 8],
        name: text.clone(),
        trace_state: text.clone(),
        events: vec![
            Event { name: text.clone(), attributes: attributes[..3].to_vec(), ..Event::default() };
            300
        ],
        attributes,
        status: Some(OtlpStatus { code: 2, message: text }),
        ..Otlp::default()
    }
}

fn of_spans(spans: Vec<Otlp>) -> ExportTraceServiceRequest {
    ExportTraceServiceRequest {
        resource_spans: vec![ResourceSpans {
            scope_spans: vec![ScopeSpans { spans, ..ScopeSpans::default() }],
            ..ResourceSpans::default()
        }],
    }
}

#[tokio::test]
async fn the_store_keeps_its_budget_in_bytes_whatever_it_is_sent() {
    const BUDGET: usize = 4 << 20;
    let store = TraceStore::new(1_000_000, BUDGET);
    let receiver = receive::Receiver::new(store.clone());
    for n in 0..200 {
        receiver.export(tonic::Request::new(of_spans(vec![bloated(n, 1)]))).await.unwrap();
    }
    let counts = store.counts();
    assert!(counts.bytes <= BUDGET && counts.bytes > BUDGET / 2, "{counts:?}");
    assert!(counts.kept >= 100, "a span is cut to some 32 KiB: {counts:?}");
    let newest = store.find(&Filter { limit: 1, ..Filter::default() });
    let span = &newest[0][0];
    assert!(span.bytes() < 48 * 1024, "{}", span.bytes());
    assert!(span.tags.iter().any(|(key, tag)| key == "outrigger.truncated" && *tag == Tag::Bool(true)));
    // One trace of everything has its part, no more.
    for id in 1..=200 {
        receiver.export(tonic::Request::new(of_spans(vec![bloated(u32::MAX, id)]))).await.unwrap();
    }
    let mut id = [7; 16];
    id[..4].copy_from_slice(&[255; 4]);
    let kept: usize = store.trace(&id).unwrap().iter().map(|span| span.bytes()).sum();
    assert!(kept <= BUDGET / PART_PER_TRACE, "{kept}");
}

#[tokio::test]
async fn an_answer_leaves_out_what_would_make_it_too_long_and_says_so() {
    let store = TraceStore::new(1_000_000, 64 << 20);
    let receiver = receive::Receiver::new(store.clone());
    for n in 0..600 {
        receiver.export(tonic::Request::new(of_spans(vec![bloated(n, 1)]))).await.unwrap();
    }
    let request =
        http::Request::get("/api/traces?limit=1500&lookback=custom").body(axum::body::Body::empty()).unwrap();
    let response = query::router(store.clone()).oneshot(request).await.unwrap();
    let body = axum::body::to_bytes(response.into_body(), 16 << 20).await.unwrap();
    assert!(body.len() <= (8 << 20) + 1024, "{}", body.len());
    let answer: Json = serde_json::from_slice(&body).unwrap();
    let got = answer["data"].as_array().unwrap().len();
    assert!(got > 100 && got < 600, "{got}");
    let said = answer["errors"][0]["msg"].as_str().unwrap();
    assert!(said.starts_with(&format!("{} more traces match", 600 - got)), "{said}");
    assert_eq!(store.answers.available_permits(), ANSWERS, "the place is given back with the body");
}
