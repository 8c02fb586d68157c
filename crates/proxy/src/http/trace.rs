//! Spans of a hop: one server span inbound, one client span per attempt outbound, and one for what a sidecar answers itself;
//! and the context that goes on.
//!
//! Decides nothing about sampling (`outrigger_telemetry::trace::sample` does, before anything is allocated). Context that
//! is not recorded or not valid passes byte for byte.

use std::borrow::Cow;
use std::net::SocketAddr;

use outrigger_model::listener::{Direction, HttpConnection};
use outrigger_telemetry::trace::b3;
use outrigger_telemetry::trace::context::{TRACEPARENT, TRACESTATE};
use outrigger_telemetry::trace::{
    Decision, Format, Sampler, SpanKind, SpanRecord, SpanStatus, TraceContext, Value, extract,
};

use super::head::RequestHead;
use super::redact;
use crate::downstream::ConnInfo;
use crate::failure::Failure;
use crate::metrics::Local;
use crate::process::Process;
use crate::runtime::endpoint::EndpointState;

/// What is recorded of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Recording {
    context: TraceContext,
    has_parent: bool,
    format: Format,
}

/// Decides for one request. Announces a new, unrecorded trace in the head so that no later hop draws again.
pub fn decide(process: &Process, config: &HttpConnection, head: &mut RequestHead) -> Option<Recording> {
    process.spans.as_ref()?;
    let percentage = process.sampling.unwrap_or(config.tracing?.random_sampling);
    let incoming = extract(|name| head.headers(name));
    let decision = Sampler::percentage(percentage).decide(&incoming);
    match decision {
        Decision::Pass | Decision::Record { has_parent: true, format: Format::W3c, .. } => {}
        // W3C Trace Context, section 3.3: a tracestate belongs to its traceparent, and this trace has another or none.
        Decision::Announce(_) | Decision::Record { .. } => drop(head.remove(TRACESTATE)),
    }
    match decision {
        Decision::Pass => None,
        Decision::Announce(context) => {
            put(head, &context, Format::W3c);
            None
        }
        Decision::Record { context, has_parent, format } => Some(Recording { context, has_parent, format }),
    }
}

/// Writes the context of the span that is now the parent, in the notation that it came in and in all others that are there:
/// whoever comes next may read another one than we do.
fn put(head: &mut RequestHead, context: &TraceContext, format: Format) {
    if format == Format::W3c {
        // Setting fails only when the head has no room left: then the old parent stays, which is still the right trace.
        let _ = head.set(TRACEPARENT, context.format());
    }
    if format == Format::B3Single || head.has(b3::B3) {
        let _ = head.set(b3::B3, b3::format_single(context));
    }
    if format == Format::B3Multi || head.has_prefix(b3::MULTI_PREFIX) {
        put_b3_multi(head, context);
    }
}

fn put_b3_multi(head: &mut RequestHead, context: &TraceContext) {
    head.remove(b3::PARENT_SPAN_ID);
    head.remove(b3::FLAGS);
    let _ = head
        .set(b3::TRACE_ID, b3::hex_trace_id(&context.trace_id))
        .and_then(|()| head.set(b3::SPAN_ID, b3::hex_span_id(&context.parent)))
        .and_then(|()| head.set(b3::SAMPLED, if context.sampled() { "1" } else { "0" }));
}

impl Recording {
    fn begin(&self, head: &RequestHead, kind: SpanKind, route: &str) -> Box<SpanRecord> {
        let name: Cow<'static, str> =
            if route.is_empty() { head.method().to_owned() } else { format!("{} {route}", head.method()) }
                .into();
        let mut span =
            SpanRecord::begin(&self.context, self.has_parent.then_some(self.context.parent), kind, name);
        span.tracestate = head.first(TRACESTATE).and_then(|s| std::str::from_utf8(s).ok()).map(Into::into);
        span.set_text("http.request.method", head.method());
        if !route.is_empty() {
            span.set_text("http.route", route);
        }
        let version = match head {
            RequestHead::H1(head) if head.minor() == 0 => "1.0",
            RequestHead::H1(_) => "1.1",
            RequestHead::H2(_) => "2",
        };
        span.set("network.protocol.version", version);
        Box::new(span)
    }

    /// The server span of an inbound request; becomes the parent of what the application does.
    pub fn server(
        &self,
        head: &mut RequestHead,
        route: &str,
        conn: &ConnInfo,
        local: &Local,
    ) -> Box<SpanRecord> {
        let mut span = self.begin(head, SpanKind::Server, route);
        let (path, query) = head.path().split_once('?').unwrap_or((head.path(), ""));
        span.set_text("url.path", path);
        span.set_text("url.scheme", head.scheme());
        if !query.is_empty() {
            span.set_text("url.query", &redact::query(query));
        }
        span.set("client.address", conn.source.ip().to_string());
        span.set_text("server.address", head.authority());
        if let Some(agent) = head.first("user-agent") {
            span.set_text("user_agent.original", &String::from_utf8_lossy(agent));
        }
        if let Some(peer) = &conn.peer {
            span.set_text("source.principal", peer.as_str());
        }
        tags(&mut span, head, local);
        put(head, &span.context(), self.format);
        span
    }

    /// A client span with what was called.
    fn toward(&self, head: &RequestHead, route: &str, port: Option<u16>) -> Box<SpanRecord> {
        let mut span = self.begin(head, SpanKind::Client, route);
        let (host, named) = match head.authority().rsplit_once(':') {
            Some((host, port)) => (host, port.parse().ok()),
            None => (head.authority(), None),
        };
        span.set_text("server.address", host);
        if let Some(port) = named.or(port) {
            span.set("server.port", port);
        }
        span.set(
            "url.full",
            format!("{}://{}{}", head.scheme(), head.authority(), redact::path(head.path())),
        );
        span
    }

    /// The client span of a call that the application's own sidecar answers: there was no attempt to have one.
    #[cold]
    pub fn unsent(
        &self,
        head: &RequestHead,
        route: &str,
        cluster: Option<&std::sync::Arc<str>>,
        local: &Local,
    ) -> Box<SpanRecord> {
        let mut span = self.toward(head, route, None);
        if let Some(cluster) = cluster {
            span.set("upstream_cluster", cluster.clone());
        }
        tags(&mut span, head, local);
        span
    }

    /// The client span of one attempt (from 1); becomes the parent of what the next hop does.
    pub fn client(
        &self,
        head: &mut RequestHead,
        route: &str,
        attempt: u32,
        endpoint: &EndpointState,
        cluster: &std::sync::Arc<str>,
        local: &Local,
    ) -> Box<SpanRecord> {
        let mut span = self.toward(head, route, Some(endpoint.address.port()));
        if attempt > 1 {
            span.set("http.request.resend_count", i64::from(attempt - 1));
        }
        peer(&mut span, endpoint.address);
        span.set("upstream_cluster", cluster.clone());
        if let Some(workload) = &endpoint.workload {
            span.set_text("destination.workload", &workload.name);
        }
        tags(&mut span, head, local);
        put(head, &span.context(), self.format);
        span
    }
}

fn peer(span: &mut SpanRecord, address: SocketAddr) {
    span.set("network.peer.address", address.ip().to_string());
    span.set("network.peer.port", address.port());
}

/// What Istio and Kiali look for.
fn tags(span: &mut SpanRecord, head: &RequestHead, local: &Local) {
    span.set("component", "proxy");
    span.set_text("node_id", &local.node_id);
    span.set_text("istio.canonical_service", &local.workload.service);
    span.set_text("istio.canonical_revision", &local.workload.revision);
    span.set_text("istio.namespace", &local.workload.namespace);
    span.set_text("istio.mesh_id", &local.mesh_id);
    if let Some(id) = head.first("x-request-id") {
        span.set("guid:x-request-id", Value::copied(&String::from_utf8_lossy(id)));
    }
}

/// Ends a client span with what came of the attempt.
pub fn finish_client(mut span: SpanRecord, status: Option<u16>, failure: Option<&Failure>) -> SpanRecord {
    if let Some(status) = status {
        span.set("http.response.status_code", status);
        // A client span is an error from 400 on (semantic conventions for HTTP).
        if status >= 400 {
            span.set("error.type", status.to_string());
            span.status = SpanStatus::Error(Cow::Borrowed(""));
        }
    }
    if let Some(failure) = failure {
        span.set("error.type", failure.kind.name());
        span.set("response_flags", failure.kind.flag());
        span.set("outrigger.error", failure.to_string());
        span.status = SpanStatus::Error(Cow::Borrowed(failure.kind.name()));
    }
    span.finish();
    span
}

/// Whether spans of this direction are per attempt.
pub fn is_client_side(direction: Direction) -> bool {
    direction == Direction::Outbound
}
