//! The only place that knows the OpenTelemetry crates: records become the SDK's `SpanData`, and the OTLP exporter
//! sends them. The SDK's tracer, processors and global state are not used.

use std::str::FromStr;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, UNIX_EPOCH};

use opentelemetry::trace::{
    Event, SpanContext, SpanId, SpanKind as OtelKind, Status, TraceFlags, TraceId, TraceState,
};
use opentelemetry::{InstrumentationScope, KeyValue, StringValue, Value as OtelValue};
use opentelemetry_otlp::{RetryPolicy, SpanExporter, WithExportConfig, WithTonicConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::{SpanData, SpanEvents, SpanExporter as _, SpanLinks};

use super::super::span::{SpanEvent, SpanKind, SpanRecord, SpanStatus, Value};
use super::ExportError;

pub(super) fn check_endpoint(endpoint: &str) -> Result<(), ExportError> {
    let refuse =
        |reason: &str| ExportError::Endpoint { endpoint: endpoint.to_owned(), reason: reason.to_owned() };
    let uri = endpoint.parse::<http::Uri>().map_err(|error| refuse(&error.to_string()))?;
    match uri.scheme_str() {
        Some("http") => {}
        Some("https") => return Err(refuse("TLS to the collector is not supported")),
        _ => return Err(refuse("the scheme is missing")),
    }
    if uri.authority().is_none_or(|authority| authority.port_u16().is_none()) {
        return Err(refuse("the port is missing"));
    }
    Ok(())
}

pub(super) fn resource(attributes: impl Iterator<Item = (String, String)>) -> Resource {
    Resource::builder_empty()
        .with_attributes(attributes.map(|(key, value)| KeyValue::new(key, value)))
        .build()
}

pub(super) struct Client(SpanExporter);

/// Connects lazily; must be called inside the runtime.
pub(super) fn client(endpoint: &str, resource: &Resource, limit: Duration) -> Result<Client, ExportError> {
    let retry = RetryPolicy::default()
        .with_max_retries(6)
        .with_initial_delay(Duration::from_millis(200))
        .with_max_delay(Duration::from_secs(4));
    let built = SpanExporter::builder()
        .with_tonic()
        .with_endpoint(endpoint)
        .with_timeout(limit)
        .with_retry_policy(retry)
        .build();
    let mut exporter = built.map_err(|error| ExportError::Endpoint {
        endpoint: endpoint.to_owned(),
        reason: error.to_string(),
    })?;
    exporter.set_resource(resource);
    Ok(Client(exporter))
}

impl Client {
    pub(super) async fn send(&self, batch: Arc<Vec<SpanData>>) -> Result<(), String> {
        // With one endpoint the batch is ours alone and moves; with several all but the last copy it.
        self.0.export(Arc::unwrap_or_clone(batch)).await.map_err(|error| error.to_string())
    }
}

fn scope() -> InstrumentationScope {
    static SCOPE: OnceLock<InstrumentationScope> = OnceLock::new();
    let build = || InstrumentationScope::builder("outrigger").with_version(env!("CARGO_PKG_VERSION")).build();
    SCOPE.get_or_init(build).clone()
}

pub(super) fn span_data(span: SpanRecord) -> SpanData {
    let state =
        span.tracestate.as_deref().and_then(|state| TraceState::from_str(state).ok()).unwrap_or_default();
    let span_context = SpanContext::new(
        TraceId::from_bytes(span.trace_id),
        SpanId::from_bytes(span.span_id),
        TraceFlags::new(span.flags),
        false,
        state,
    );
    SpanData {
        span_context,
        parent_span_id: SpanId::from_bytes(span.parent.unwrap_or_default()),
        parent_span_is_remote: span.parent_is_remote,
        span_kind: match span.kind {
            SpanKind::Server => OtelKind::Server,
            SpanKind::Client => OtelKind::Client,
            SpanKind::Internal => OtelKind::Internal,
        },
        name: span.name,
        start_time: UNIX_EPOCH + Duration::from_nanos(span.start),
        end_time: UNIX_EPOCH + Duration::from_nanos(span.end),
        attributes: span
            .attributes
            .into_iter()
            .map(|(key, value)| KeyValue::new(key, otel_value(value)))
            .collect(),
        dropped_attributes_count: span.dropped_attributes,
        events: events(span.events),
        links: SpanLinks::default(),
        status: match span.status {
            SpanStatus::Unset => Status::Unset,
            SpanStatus::Ok => Status::Ok,
            SpanStatus::Error(reason) => Status::error(reason),
        },
        instrumentation_scope: scope(),
    }
}

fn events(events: Vec<SpanEvent>) -> SpanEvents {
    let event = |event: SpanEvent| {
        let time = UNIX_EPOCH + Duration::from_nanos(event.time);
        let attributes = event.attributes.into_iter();
        let attributes = attributes.map(|(key, value)| KeyValue::new(key, otel_value(value))).collect();
        Event::new(event.name, time, attributes, 0)
    };
    let mut all = SpanEvents::default();
    all.events = events.into_iter().map(event).collect();
    all
}

fn otel_value(value: Value) -> OtelValue {
    match value {
        Value::Text(text) => OtelValue::String(text.into()),
        Value::Shared(text) => OtelValue::String(StringValue::from(text)),
        Value::Int(number) => OtelValue::I64(number),
        Value::Float(number) => OtelValue::F64(number),
        Value::Bool(truth) => OtelValue::Bool(truth),
    }
}
