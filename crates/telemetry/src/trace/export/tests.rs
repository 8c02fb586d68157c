use std::borrow::Cow;
use std::convert::Infallible;

use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::service::TowerToHyperService;
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{
    TraceService, TraceServiceServer,
};
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use opentelemetry_proto::tonic::common::v1::any_value::Value as ProtoValue;
use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, Span};
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tokio::time::timeout;
use tonic::{Code, Request, Response, Status};

use super::*;
use crate::metrics::Registry;
use crate::trace::{SpanKind, SpanStatus, TraceContext, Value};

const LONG: Duration = Duration::from_secs(3600);
const SOON: Duration = Duration::from_secs(20);

/// What the collector does with the n-th request, counted from 0.
type Behaviour = fn(usize) -> Option<Code>;

/// A tiny OTLP collector on loopback. `Code::Ok` accepts, another code refuses, `None` never answers.
struct Collector {
    endpoint: String,
    received: mpsc::Receiver<ResourceSpans>,
}

/// Spans that a collector did not get, summed over the endpoints.
fn undelivered(sender: &SpanSender) -> u64 {
    let lost = |endpoint: &Arc<EndpointStats>| endpoint.failed.value() + endpoint.backlog.value();
    sender.shared.stats.endpoints.iter().map(lost).sum()
}

struct Service {
    behaviour: Behaviour,
    requests: AtomicUsize,
    spans: mpsc::Sender<ResourceSpans>,
}

#[tonic::async_trait]
impl TraceService for Service {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        match (self.behaviour)(self.requests.fetch_add(1, Relaxed)) {
            Some(Code::Ok) => {}
            Some(code) => return Err(Status::new(code, "as the test wants")),
            None => std::future::pending().await,
        }
        for spans in request.into_inner().resource_spans {
            self.spans.send(spans).await.unwrap();
        }
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

impl Collector {
    async fn start(behaviour: Behaviour) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let (spans, received) = mpsc::channel(64);
        let service = TraceServiceServer::new(Service { behaviour, requests: AtomicUsize::new(0), spans });
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await?;
                let service = TowerToHyperService::new(service.clone());
                let connection = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
                    .serve_connection(TokioIo::new(stream), service);
                tokio::spawn(connection);
            }
            #[allow(unreachable_code)]
            Ok::<Infallible, std::io::Error>(unreachable!())
        });
        Self { endpoint, received }
    }

    async fn next(&mut self) -> ResourceSpans {
        timeout(SOON, self.received.recv()).await.expect("no spans arrived").unwrap()
    }

    /// Spans until `count` have come.
    async fn spans(&mut self, count: usize) -> Vec<Span> {
        let mut spans = Vec::new();
        while spans.len() < count {
            let batch = self.next().await;
            spans.extend(batch.scope_spans.into_iter().flat_map(|scope| scope.spans));
        }
        spans
    }
}

fn config(endpoints: &[&str]) -> ExportConfig {
    ExportConfig {
        endpoints: endpoints.iter().map(ToString::to_string).collect(),
        resource: vec![
            ("service.name".into(), "reviews.default".into()),
            ("service.namespace".into(), "default".into()),
        ],
        interval: Duration::from_millis(20),
        ..ExportConfig::default()
    }
}

fn span(name: &'static str) -> SpanRecord {
    SpanRecord::begin(&TraceContext::root(true), None, SpanKind::Server, name)
}

/// Spawns the exporter; what comes back stops it and waits for its end.
fn spawn(exporter: Exporter, flush: Duration) -> impl AsyncFnOnce() {
    let (stop, stopped) = oneshot::channel::<()>();
    let stopped = async { drop(stopped.await) };
    let task = tokio::spawn(exporter.run(stopped, flush));
    async move || {
        drop(stop);
        timeout(SOON, task).await.expect("the exporter did not stop").unwrap();
    }
}

async fn until(mut condition: impl FnMut() -> bool) {
    let mut poll = tokio::time::interval(Duration::from_millis(2));
    let wait = async {
        while !condition() {
            poll.tick().await;
        }
    };
    timeout(SOON, wait).await.expect("the condition never held");
}

fn attribute<'a>(
    attributes: &'a [opentelemetry_proto::tonic::common::v1::KeyValue],
    key: &str,
) -> &'a ProtoValue {
    let found = attributes.iter().find(|attribute| attribute.key == key).unwrap();
    found.value.as_ref().unwrap().value.as_ref().unwrap()
}

#[tokio::test]
async fn collector_receives_ids_parents_attributes_and_resource() {
    let mut collector = Collector::start(|_| Some(Code::Ok)).await;
    let (sender, exporter) = exporter(config(&[&collector.endpoint])).unwrap();
    let stop = spawn(exporter, SOON);

    let incoming = TraceContext::root(true);
    let mut server = SpanRecord::begin(&incoming, Some(incoming.parent), SpanKind::Server, "GET /reviews/*");
    server.tracestate = Some("congo=t61rcWkgMzE".into());
    server.set("http.response.status_code", 503_u16);
    server.set_text("url.path", "/reviews/7");
    server.set("upstream_cluster", Arc::<str>::from("outbound|9080|v1|reviews"));
    server.set("retried", true);
    server.set("share", 0.25);
    let attributes = vec![("outrigger.circuit_breaker.state", Value::from("open".to_owned()))];
    let event = crate::trace::SpanEvent { name: "circuit_breaker.open", time: server.start + 5, attributes };
    server.add_event(event);
    server.status = SpanStatus::Error(Cow::Borrowed("UF"));
    server.finish();
    let mut client = SpanRecord::begin(&incoming, Some(server.span_id), SpanKind::Client, "GET");
    client.finish();
    let (server_sent, client_sent) = (server.clone(), client.clone());
    assert!(sender.try_send(server) && sender.try_send(client));

    let batch = collector.next().await;
    let resource = batch.resource.unwrap().attributes;
    assert_eq!(attribute(&resource, "service.name"), &ProtoValue::StringValue("reviews.default".into()));
    assert_eq!(attribute(&resource, "service.namespace"), &ProtoValue::StringValue("default".into()));
    assert_eq!(batch.scope_spans[0].scope.as_ref().unwrap().name, "outrigger");
    let spans = &batch.scope_spans[0].spans;
    assert_eq!(spans.len(), 2, "both in one batch");

    let (server, client) = (&spans[0], &spans[1]);
    assert_eq!(server.trace_id, incoming.trace_id);
    assert_eq!(server.span_id, server_sent.span_id);
    assert_eq!(server.parent_span_id, incoming.parent);
    assert_eq!(server.trace_state, "congo=t61rcWkgMzE");
    assert_eq!(server.name, "GET /reviews/*");
    assert_eq!((server.kind, client.kind), (2, 3), "SERVER and CLIENT in OTLP");
    assert_eq!(
        (server.start_time_unix_nano, server.end_time_unix_nano),
        (server_sent.start, server_sent.end)
    );
    assert_eq!(server.status.as_ref().unwrap().code, 2);
    assert_eq!(server.status.as_ref().unwrap().message, "UF");
    assert_eq!(attribute(&server.attributes, "http.response.status_code"), &ProtoValue::IntValue(503));
    assert_eq!(attribute(&server.attributes, "url.path"), &ProtoValue::StringValue("/reviews/7".into()));
    let cluster = ProtoValue::StringValue("outbound|9080|v1|reviews".into());
    assert_eq!(attribute(&server.attributes, "upstream_cluster"), &cluster);
    assert_eq!(attribute(&server.attributes, "retried"), &ProtoValue::BoolValue(true));
    assert_eq!(attribute(&server.attributes, "share"), &ProtoValue::DoubleValue(0.25));
    let [event] = server.events.as_slice() else { panic!("{:?}", server.events) };
    assert_eq!((event.name.as_str(), event.time_unix_nano), ("circuit_breaker.open", server_sent.start + 5));
    let state = attribute(&event.attributes, "outrigger.circuit_breaker.state");
    assert_eq!(state, &ProtoValue::StringValue("open".into()));
    assert!(client.events.is_empty());
    assert_eq!(client.span_id, client_sent.span_id);
    assert_eq!(client.parent_span_id, server.span_id);
    assert_eq!(client.trace_id, server.trace_id);

    stop().await;
    assert_eq!((sender.exported(), undelivered(&sender), sender.overflowed()), (2, 0, 0));
}

#[tokio::test]
async fn every_endpoint_gets_every_span_and_a_dead_one_holds_nobody_back() {
    let mut first = Collector::start(|_| Some(Code::Ok)).await;
    let mut second = Collector::start(|_| Some(Code::Ok)).await;
    // Bound and closed again: connections there are refused.
    let dead = {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        format!("http://{}", listener.local_addr().unwrap())
    };
    let mut config = config(&[&first.endpoint, &dead, &second.endpoint]);
    config.timeout = Duration::from_millis(300);
    let (sender, exporter) = exporter(config).unwrap();
    let registry = Registry::new();
    registry.register(sender.source());
    let stop = spawn(exporter, SOON);
    for _ in 0..3 {
        assert!(sender.try_send(span("x")));
    }
    assert_eq!((first.spans(3).await.len(), second.spans(3).await.len()), (3, 3));
    until(|| undelivered(&sender) == 3).await;
    stop().await;
    let page = registry.render();
    for line in [
        format!("outrigger_spans_exported_total{{endpoint=\"{}\"}} 3\n", first.endpoint),
        format!("outrigger_spans_exported_total{{endpoint=\"{dead}\"}} 0\n"),
        format!("outrigger_spans_dropped_total{{endpoint=\"{dead}\",reason=\"failed\"}} 3\n"),
        "outrigger_spans_dropped_total{endpoint=\"any\",reason=\"queue_full\"} 0\n".to_owned(),
    ] {
        assert!(page.contains(&line), "{line} is not in\n{page}");
    }
}

#[tokio::test]
async fn busy_collector_is_asked_again_and_refusal_is_final() {
    let mut busy = Collector::start(|n| Some(if n == 0 { Code::Unavailable } else { Code::Ok })).await;
    let refusing = Collector::start(|_| Some(Code::InvalidArgument)).await;
    let (sender, exporter) = exporter(config(&[&busy.endpoint, &refusing.endpoint])).unwrap();
    let stop = spawn(exporter, SOON);
    sender.try_send(span("x"));
    assert_eq!(busy.spans(1).await[0].name, "x");
    until(|| undelivered(&sender) == 1).await;
    stop().await;
    assert_eq!(sender.exported(), 1);
}

#[tokio::test]
async fn full_queue_drops_and_counts_without_waiting() {
    let mut config = config(&["http://127.0.0.1:1"]);
    config.queue = 4;
    let (sender, exporter) = exporter(config).unwrap();
    let sent = (0..10).filter(|_| sender.clone().try_send(span("x"))).count();
    assert_eq!((sent, sender.overflowed()), (4, 6));
    drop(exporter);
    assert!(!sender.try_send(span("x")), "nobody takes spans any more");
    assert_eq!(sender.overflowed(), 7);
}

#[tokio::test]
async fn queue_is_bounded_in_bytes_too() {
    let mut config = config(&["http://127.0.0.1:1"]);
    config.queue = 100_000;
    let (sender, _exporter) = exporter(config).unwrap();
    let mut fat = span("fat");
    for _ in 0..40 {
        fat.set_text("k", &"v".repeat(1000));
    }
    let weight = fat.weight();
    let sent = (0..1000).filter(|_| sender.try_send(fat.clone())).count();
    assert_eq!(sent, MAX_QUEUED_BYTES / weight);
    assert_eq!(sender.overflowed(), 1000 - sent as u64);
}

#[tokio::test]
async fn half_full_queue_does_not_wait_for_the_clock() {
    let mut collector = Collector::start(|_| Some(Code::Ok)).await;
    let mut config = config(&[&collector.endpoint]);
    (config.interval, config.queue) = (LONG, 64);
    let (sender, exporter) = exporter(config).unwrap();
    let stop = spawn(exporter, SOON);
    // The first tick of an interval is immediate: after this span, only the bell can wake the exporter.
    sender.try_send(span("first"));
    collector.spans(1).await;
    for _ in 0..32 {
        assert!(sender.try_send(span("x")));
    }
    assert_eq!(collector.spans(32).await.len(), 32);
    stop().await;
}

#[tokio::test]
async fn batches_are_cut_by_count_and_by_size() {
    let mut collector = Collector::start(|_| Some(Code::Ok)).await;
    let mut config = config(&[&collector.endpoint]);
    (config.interval, config.batch) = (LONG, 10);
    let (sender, exporter) = exporter(config).unwrap();
    for _ in 0..25 {
        sender.try_send(span("x"));
    }
    let stop = spawn(exporter, SOON);
    let mut sizes = Vec::new();
    while sizes.iter().sum::<usize>() < 25 {
        sizes.push(collector.next().await.scope_spans[0].spans.len());
    }
    assert_eq!(sizes, [10, 10, 5]);
    stop().await;

    let mut config = self::config(&[&collector.endpoint]);
    config.interval = LONG;
    let (sender, exporter) = self::exporter(config).unwrap();
    for _ in 0..60 {
        let mut fat = span("fat");
        for _ in 0..40 {
            fat.set_text("k", &"v".repeat(1000));
        }
        assert!(sender.try_send(fat));
    }
    let stop = spawn(exporter, SOON);
    let first = collector.next().await.scope_spans[0].spans.len();
    assert!((20..30).contains(&first), "{first} spans of 41 KB make 1 MiB");
    assert_eq!(collector.spans(60 - first).await.len(), 60 - first);
    stop().await;
}

#[tokio::test]
async fn shutdown_flushes_what_is_queued() {
    let mut collector = Collector::start(|_| Some(Code::Ok)).await;
    let mut config = config(&[&collector.endpoint]);
    config.interval = LONG;
    let (sender, exporter) = exporter(config).unwrap();
    let stop = spawn(exporter, SOON);
    sender.try_send(span("first"));
    collector.spans(1).await;
    sender.try_send(span("last"));
    stop().await;
    assert_eq!(collector.spans(1).await[0].name, "last");
    assert_eq!(sender.exported(), 2);
    assert!(!sender.try_send(span("late")));
}

#[tokio::test]
async fn shutdown_gives_up_at_its_deadline_and_counts_what_is_lost() {
    let collector = Collector::start(|_| None).await;
    let (sender, exporter) = exporter(config(&[&collector.endpoint])).unwrap();
    let stop = spawn(exporter, Duration::from_millis(50));
    sender.try_send(span("x"));
    sender.try_send(span("y"));
    stop().await;
    assert_eq!((sender.exported(), undelivered(&sender)), (0, 2));
}

#[tokio::test]
async fn exporter_ends_when_the_last_sender_is_gone() {
    let mut collector = Collector::start(|_| Some(Code::Ok)).await;
    let (sender, exporter) = exporter(config(&[&collector.endpoint])).unwrap();
    let task = tokio::spawn(exporter.run(std::future::pending(), SOON));
    sender.try_send(span("x"));
    drop(sender);
    timeout(SOON, task).await.unwrap().unwrap();
    assert_eq!(collector.spans(1).await.len(), 1);
}

#[test]
fn unusable_endpoint_is_named_with_what_is_wrong() {
    for (endpoint, want) in [
        ("https://collector:4317", "TLS"),
        ("collector:4317", "scheme"),
        ("http://collector", "port"),
        ("not a url", "not a url"),
    ] {
        let error = exporter(config(&[endpoint])).err().unwrap().to_string();
        assert!(error.contains(endpoint) && error.contains(want), "{error}");
    }
    assert!(matches!(exporter(config(&[])), Err(ExportError::NoEndpoint)));
}

#[test]
fn odd_tracestate_is_left_out_and_values_survive() {
    let mut record = span("x");
    record.tracestate = Some("NOT VALID".into());
    record.set("text", Value::copied("ü"));
    let data = otlp::span_data(record);
    assert_eq!(data.span_context.trace_state().header(), "");
    assert_eq!(data.attributes[0].value.as_str(), "ü");
}
