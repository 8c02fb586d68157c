//! What is remembered of one stream (a request, or a TCP connection) until it ends: a [`StreamRecord`] is opened with the
//! stream and, when dropped, writes the access log line, counts the metrics and sends the server span, exactly once.
//!
//! It collects; how a line or a label looks is `record/line` and `metrics`.

use std::borrow::Cow;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use outrigger_model::listener::Direction;
use outrigger_telemetry::trace::{SpanKind, SpanRecord, SpanStatus};
use tokio::time::Instant;

use crate::downstream::ConnInfo;
use crate::failure::{Failure, FailureKind, Side};
use crate::flags::Flags;
use crate::http::head::RequestHead;
use crate::http::respond;
use crate::metrics::SeriesOf;
use crate::protocol::Protocol;
use crate::runtime::cluster::ClusterHandle;
use crate::runtime::endpoint::EndpointState;
use crate::worker::Worker;

pub mod began;
mod line;

/// The record of one stream.
pub struct StreamRecord {
    worker: Rc<Worker>,
    pub conn: Rc<ConnInfo>,
    pub started: Instant,
    /// When its last byte left, if that is known when it is dropped.
    pub ended: Option<Instant>,
    pub protocol: Protocol,
    /// HTTP/1.0.
    pub http10: bool,
    /// 0 until there is a response.
    pub status: u16,
    pub grpc_status: Option<u32>,
    pub is_grpc: bool,
    pub flags: Flags,
    /// `%RESPONSE_CODE_DETAILS%`.
    pub details: Cow<'static, str>,
    /// Why it failed, in full.
    pub failure: Option<Box<Failure>>,
    pub received: u64,
    pub sent: u64,
    /// Messages of gRPC, of the request and of the response.
    pub messages: (u64, u64),
    pub route: Option<Box<str>>,
    pub cluster: Option<Arc<ClusterHandle>>,
    pub endpoint: Option<Arc<EndpointState>>,
    pub upstream_local: Option<SocketAddr>,
    /// The path was rewritten here, and `x-envoy-original-path` has the one that came. Else that header is the client's word.
    pub rewritten: bool,
    /// How often it was sent.
    pub attempts: u32,
    /// From the end of our request to the head of the response, `x-envoy-upstream-service-time`.
    pub upstream_time: Option<Duration>,
    /// Inbound, where this request is recorded.
    pub span: Option<Box<SpanRecord>>,
    /// TCP: what was counted already.
    counted: Option<(u64, u64)>,
    finished: bool,
}

impl StreamRecord {
    /// Opens the record of a stream.
    pub fn open(worker: &Rc<Worker>, conn: &Rc<ConnInfo>, protocol: Protocol, now: Instant) -> Self {
        Self {
            worker: worker.clone(),
            conn: conn.clone(),
            started: now,
            ended: None,
            protocol,
            http10: false,
            status: 0,
            grpc_status: None,
            is_grpc: false,
            flags: Flags::default(),
            details: Cow::Borrowed(""),
            failure: None,
            received: 0,
            sent: 0,
            messages: (0, 0),
            route: None,
            cluster: None,
            endpoint: None,
            upstream_local: None,
            rewritten: false,
            attempts: 0,
            upstream_time: None,
            span: None,
            counted: None,
            finished: false,
        }
    }

    /// Whose it is.
    pub fn worker(&self) -> &Rc<Worker> {
        &self.worker
    }

    /// What is spoken, as access logs write it; `None` for TCP.
    pub fn spoken(&self) -> Option<&'static str> {
        match self.protocol {
            Protocol::Http1 if self.http10 => Some("HTTP/1.0"),
            Protocol::Http1 => Some("HTTP/1.1"),
            Protocol::Http2 => Some("HTTP/2"),
            Protocol::Tcp => None,
        }
    }

    /// Notes a failure: its flag, its words, its cause.
    pub fn fail(&mut self, failure: &Failure) {
        self.flags.add(failure.kind.flag());
        if self.details.is_empty() || failure.side != Side::Downstream {
            self.details = details_of(&failure.kind).into();
        }
        self.failure = Some(Box::new(failure.clone()));
    }

    /// TCP: a connection to the upstream stands. Counts it as opened.
    pub fn tcp_opened(&mut self) {
        self.counted = Some((0, 0));
        let series = self.series();
        self.worker.metrics.tcp(&series, |cells| cells.opened.inc());
    }

    /// TCP: counts the bytes of a long-lived connection so far.
    pub fn tcp_progress(&mut self) {
        let Some((received, sent)) = self.counted else { return };
        self.counted = Some((self.received, self.sent));
        let series = self.series();
        self.worker.metrics.tcp(&series, |cells| {
            cells.received.add(self.received - received);
            cells.sent.add(self.sent - sent);
        });
    }

    fn series(&self) -> SeriesOf<'_> {
        let outbound = self.conn.direction == Direction::Outbound;
        let endpoint = self.endpoint.as_deref().filter(|_| outbound);
        SeriesOf {
            direction: self.conn.direction,
            protocol: self.protocol,
            is_grpc: self.is_grpc,
            code: self.status,
            grpc_status: self.grpc_status,
            flags: self.flags,
            mtls: self.conn.mtls,
            peer: self.conn.peer.as_ref(),
            called: self.conn.called(),
            said: self.conn.introduction.peer().map(|said| &**said),
            peer_hash: self.conn.series_hash(&self.worker.metrics),
            cluster: self.cluster.as_ref().map(|cluster| &*cluster.name),
            cluster_id: self.cluster.as_ref().map_or(0, |cluster| cluster.id),
            workload: endpoint.and_then(|endpoint| endpoint.workload.as_ref()),
            endpoint_identity: endpoint.and_then(|endpoint| endpoint.identity.as_ref()),
        }
    }

    fn finish_span(&mut self) {
        let Some(mut span) = self.span.take() else { return };
        if self.status > 0 {
            span.set("http.response.status_code", self.status);
        }
        if let Some(status) = self.grpc_status {
            span.set("rpc.grpc.status_code", status);
        }
        if !self.flags.is_empty() {
            span.set("response_flags", self.flags.to_string());
        }
        if let Some(failure) = &self.failure {
            span.set("error.type", failure.kind.name());
            span.set("outrigger.error", failure.to_string());
        }
        // A server span is an error from 500 on, a client span from 400 on (semantic conventions for HTTP).
        let error = if span.kind == SpanKind::Client { 400 } else { 500 };
        if self.status >= error || (self.status == 0 && self.failure.is_some()) {
            if self.failure.is_none() {
                span.set("error.type", self.status.to_string());
            }
            span.status = SpanStatus::Error(Cow::Borrowed(""));
        }
        span.finish();
        if let Some(spans) = &self.worker.process.spans {
            spans.try_send(*span);
        }
    }
}

impl Drop for StreamRecord {
    fn drop(&mut self) {
        self.finish(None);
    }
}

impl StreamRecord {
    /// Counts and writes what came of the stream; `request` as it was forwarded, edits included. Only once.
    pub fn finish(&mut self, request: Option<&RequestHead>) {
        if std::mem::replace(&mut self.finished, true) {
            return;
        }
        let ended = self.ended.unwrap_or_else(Instant::now);
        let elapsed = ended.saturating_duration_since(self.started);
        // A change of policy or trust closes connections under their streams.
        let cut = self.failure.as_ref().map_or(self.status == 0, |f| f.kind == FailureKind::DownstreamClosed);
        let conn = self.conn.clone();
        if let Some(failure) = conn.closed_by.get().filter(|_| cut) {
            self.fail(failure);
        }
        if self.protocol == Protocol::Tcp {
            if self.counted.is_some() {
                self.tcp_progress();
                let series = self.series();
                self.worker.metrics.tcp(&series, |cells| cells.closed.inc());
            }
        } else {
            let series = self.series();
            let millis = elapsed.as_secs_f64() * 1000.0;
            let messages = self.is_grpc.then_some(self.messages);
            self.worker.metrics.request(&series, millis, (self.received, self.sent), messages);
        }
        self.finish_span();
        let log = &self.worker.process.access_log;
        if log.is_on() {
            log.write(line::of(self, request, elapsed, log.format()));
        }
    }
}

/// `%RESPONSE_CODE_DETAILS%` in Envoy's words, where Envoy has some.
pub(crate) fn details_of(kind: &FailureKind) -> &'static str {
    match kind {
        FailureKind::NoRoute => "route_not_found",
        FailureKind::NoCluster(_) => "cluster_not_found",
        FailureKind::NoEndpoints
        | FailureKind::NoHealthyUpstream
        | FailureKind::AllEjected
        | FailureKind::SessionLost(_) => "no_healthy_upstream",
        FailureKind::Denied => "rbac_access_denied",
        FailureKind::FaultAbort(_) => "fault_filter_abort",
        FailureKind::AuthzUnavailable(_) => "ext_authz_error",
        FailureKind::RateLimited { global, .. } => respond::limited_by(*global),
        FailureKind::LocalLimited { .. } => respond::limited_by(false),
        FailureKind::LimiterUnavailable(_) => "rate_limiter_error",
        FailureKind::ConcurrencyLimit { .. } => "reached_concurrency_limit",
        FailureKind::UpstreamTimeout => "response_timeout",
        FailureKind::PerTryTimeout => "upstream_per_try_timeout",
        FailureKind::StreamDuration(_) => "max_duration_timeout",
        FailureKind::UpstreamDuration(_) => "upstream_max_stream_duration_reached",
        FailureKind::ConnectFailed
        | FailureKind::ConnectRefused
        | FailureKind::ConnectTimeout
        | FailureKind::TlsFailed => "upstream_reset_before_response_started{connection_failure}",
        FailureKind::UpstreamReset | FailureKind::RefusedStream => {
            "upstream_reset_before_response_started{remote_reset}"
        }
        FailureKind::UpstreamClosed => "upstream_reset_before_response_started{connection_termination}",
        FailureKind::UpstreamProtocol => "upstream_reset_before_response_started{protocol_error}",
        FailureKind::Overflow { .. } => "upstream_reset_before_response_started{overflow}",
        FailureKind::DownstreamClosed => "downstream_remote_disconnect",
        FailureKind::RequestTimeout => "request_header_timeout",
        FailureKind::IdleTimeout(_) => "stream_idle_timeout",
        kind => kind.name(),
    }
}
