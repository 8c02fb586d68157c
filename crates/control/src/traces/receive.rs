//! OTLP/gRPC: from `ExportTraceServiceRequest` to spans.

use std::sync::Arc;

use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{
    TraceService, TraceServiceServer,
};
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTracePartialSuccess, ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue};
use opentelemetry_proto::tonic::trace::v1 as otlp;
use serde_json::Value as Json;
use tonic::{Request, Response, Status};

use super::weigh::{MAX_MESSAGE, Weighed};
use super::{Process, Span, Tag, TraceStore};

/// Attributes of a span, of its maker or of an event; OpenTelemetry's own default.
const MOST_TAGS: usize = 128;
/// Events of a span.
const MOST_EVENTS: usize = 128;
/// Bytes of a name or of the key of an attribute.
const LONGEST_NAME: usize = 256;
/// Bytes of the value of an attribute.
const LONGEST_VALUE: usize = 4096;
/// Bytes of all texts of a span, or of its maker.
const ROOM: usize = 32 * 1024;
/// Says of a span that not all of it was kept.
const CUT: &str = "outrigger.truncated";

/// The receiver.
pub struct Receiver {
    store: TraceStore,
}

impl Receiver {
    /// Puts what it receives into the store.
    pub fn new(store: TraceStore) -> Self {
        Self { store }
    }

    /// As a tonic service.
    pub fn server(store: TraceStore) -> Weighed<TraceServiceServer<Self>> {
        Weighed(TraceServiceServer::new(Self::new(store)).max_decoding_message_size(MAX_MESSAGE))
    }
}

#[tonic::async_trait]
impl TraceService for Receiver {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        let mut spans = Vec::new();
        let mut rejected = 0;
        for group in request.into_inner().resource_spans {
            let attributes = group.resource.map(|resource| resource.attributes).unwrap_or_default();
            let process = Arc::new(process(attributes));
            for wire in group.scope_spans.into_iter().flat_map(|scope| scope.spans) {
                match span(wire, &process) {
                    Some(span) => spans.push(span),
                    None => rejected += 1,
                }
            }
        }
        self.store.add(spans);
        let partial_success = (rejected > 0).then(|| ExportTracePartialSuccess {
            rejected_spans: rejected,
            error_message: "spans need a trace id of 16 and a span id of 8 bytes, not all zero".to_owned(),
        });
        Ok(Response::new(ExportTraceServiceResponse { partial_success }))
    }
}

/// What is left for the texts of one span. What does not fit is cut or left out.
struct Room {
    left: usize,
    cut: bool,
}

impl Room {
    fn new() -> Self {
        Self { left: ROOM, cut: false }
    }

    /// The text, cut at a character; never with the capacity of a longer one.
    fn text(&mut self, mut text: String, most: usize) -> String {
        let most = most.min(self.left);
        if text.len() > most {
            self.cut = true;
            text.truncate(text.floor_char_boundary(most));
        }
        text.shrink_to_fit();
        self.left -= text.len();
        text
    }

    fn tags(&mut self, attributes: Vec<KeyValue>) -> Vec<(String, Tag)> {
        self.cut |= attributes.len() > MOST_TAGS;
        let mut kept = Vec::with_capacity(attributes.len().min(MOST_TAGS));
        for attribute in attributes.into_iter().take(MOST_TAGS) {
            let Some(value) = attribute.value.and_then(|value| value.value) else { continue };
            if self.left < LONGEST_NAME {
                self.cut = true;
                break;
            }
            let key = self.text(attribute.key, LONGEST_NAME);
            let tag = match tag(value) {
                Tag::Text(text) => Tag::Text(self.text(text, LONGEST_VALUE)),
                other => other,
            };
            kept.push((key, tag));
        }
        kept
    }

    fn events(&mut self, events: Vec<otlp::span::Event>) -> Vec<(u64, Vec<(String, Tag)>)> {
        self.cut |= events.len() > MOST_EVENTS;
        let mut kept = Vec::with_capacity(events.len().min(MOST_EVENTS));
        for event in events.into_iter().take(MOST_EVENTS) {
            if self.left < LONGEST_NAME {
                self.cut = true;
                break;
            }
            let name = self.text(event.name, LONGEST_NAME);
            let mut fields = self.tags(event.attributes);
            fields.insert(0, ("event".to_owned(), Tag::Text(name)));
            kept.push((event.time_unix_nano, fields));
        }
        kept
    }
}

fn process(attributes: Vec<KeyValue>) -> Process {
    let mut process = Process { service: "unknown_service".to_owned(), tags: Vec::new() };
    for (key, tag) in Room::new().tags(attributes) {
        match (key.as_str(), &tag) {
            ("service.name", Tag::Text(name)) => {
                process.service = name[..name.floor_char_boundary(LONGEST_NAME)].to_owned();
            }
            _ => process.tags.push((key, tag)),
        }
    }
    process
}

fn span(wire: otlp::Span, process: &Arc<Process>) -> Option<Span> {
    let trace: [u8; 16] = wire.trace_id.as_slice().try_into().ok().filter(|id| *id != [0; 16])?;
    let id: [u8; 8] = wire.span_id.as_slice().try_into().ok().filter(|id| *id != [0; 8])?;
    let parent = wire.parent_span_id.as_slice().try_into().ok().filter(|id| *id != [0; 8]);
    let kind = match otlp::span::SpanKind::try_from(wire.kind) {
        Ok(otlp::span::SpanKind::Server) => Some("server"),
        Ok(otlp::span::SpanKind::Client) => Some("client"),
        Ok(otlp::span::SpanKind::Producer) => Some("producer"),
        Ok(otlp::span::SpanKind::Consumer) => Some("consumer"),
        Ok(otlp::span::SpanKind::Internal) => Some("internal"),
        _ => None,
    };
    let mut room = Room::new();
    let name = room.text(wire.name, LONGEST_NAME);
    let mut all = room.tags(wire.attributes);
    all.extend(kind.map(|kind| ("span.kind".to_owned(), Tag::Text(kind.to_owned()))));
    if !wire.trace_state.is_empty() {
        // Longer ones are dropped by everybody on the way (W3C Trace Context, section 3.3.1.5).
        all.push(("w3c.tracestate".to_owned(), Tag::Text(room.text(wire.trace_state, 512))));
    }
    // As the OpenTelemetry specification maps a status to Jaeger.
    if let Some(status) = wire.status {
        if status.code == otlp::status::StatusCode::Error as i32 {
            all.push(("error".to_owned(), Tag::Bool(true)));
            all.push(("otel.status_code".to_owned(), Tag::Text("ERROR".to_owned())));
        } else if status.code == otlp::status::StatusCode::Ok as i32 {
            all.push(("otel.status_code".to_owned(), Tag::Text("OK".to_owned())));
        }
        if !status.message.is_empty() {
            let message = room.text(status.message, LONGEST_VALUE);
            all.push(("otel.status_description".to_owned(), Tag::Text(message)));
        }
    }
    let logs = room.events(wire.events);
    if room.cut {
        all.push((CUT.to_owned(), Tag::Bool(true)));
    }
    Some(Span {
        trace,
        id,
        parent,
        name,
        start: wire.start_time_unix_nano,
        end: wire.end_time_unix_nano.max(wire.start_time_unix_nano),
        tags: all,
        logs,
        process: process.clone(),
    })
}

fn tag(value: Value) -> Tag {
    match value {
        Value::StringValue(text) => Tag::Text(text),
        Value::BoolValue(value) => Tag::Bool(value),
        Value::IntValue(value) => Tag::Int(value),
        Value::DoubleValue(value) => Tag::Float(value),
        other => Tag::Text(json(other).to_string()),
    }
}

// Depth is bounded by prost's own limit on nested messages.
fn json(value: Value) -> Json {
    let inner = |value: AnyValue| value.value.map_or(Json::Null, json);
    match value {
        Value::StringValue(text) => Json::String(text),
        Value::BoolValue(value) => Json::Bool(value),
        Value::IntValue(value) => value.into(),
        Value::DoubleValue(value) => value.into(),
        Value::ArrayValue(list) => Json::Array(list.values.into_iter().map(inner).collect()),
        Value::KvlistValue(map) => {
            let pair = |pair: KeyValue| (pair.key, pair.value.map_or(Json::Null, inner));
            Json::Object(map.values.into_iter().map(pair).collect())
        }
        Value::BytesValue(bytes) => Json::String(bytes.iter().map(|byte| format!("{byte:02x}")).collect()),
        _ => Json::Null,
    }
}
