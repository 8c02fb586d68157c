//! One attempt of a request: pick an endpoint, lease a connection, send the head. What happens until the response head is
//! `exchange`; whether there is another attempt is `retry`.

use std::future::poll_fn;
use std::sync::Arc;
use std::task::{Context, Poll, Waker, ready};

use h2::client::ResponseFuture;
use outrigger_model::cluster::UpstreamProtocol;
use outrigger_model::route::table::CompiledRoute;
use outrigger_model::route::{Forward, RetryPolicy, WeightedCluster};
use outrigger_telemetry::trace::SpanRecord;
use smallvec::SmallVec;
use tokio::time::Instant;

use super::body::{Body, Frame};
use super::convert;
use super::copy::{CopyError, Flow};
use super::exchange;
use super::h1::write::How;
use super::h1::{Asked, Framing, Parsed};
use super::head::{RequestHead, ResponseHead};
use super::introduce;
use super::request::RequestCtx;
use super::respond::says_not_reached;
use super::send::Sender;
use super::trace;
use super::upgrade::Upgrade;
use crate::failure::{Failure, FailureKind, Retry, Stage};
use crate::runtime::cluster::{ClusterHandle, PickContext};
use crate::runtime::endpoint::{EndpointState, InFlight, Outcome};
use crate::upstream::connect::Want;
use crate::upstream::pool::h1::Meta;
use crate::upstream::pool::{H1Conn, H2Lease, Leased};

/// What all attempts of a request have in common.
pub struct Plan<'p> {
    pub route: &'p CompiledRoute,
    pub forward: &'p Forward,
    pub retry: Option<&'p RetryPolicy>,
    pub cluster: &'p Arc<ClusterHandle>,
    pub weighted: &'p WeightedCluster,
    pub upgrade: Upgrade,
    /// For consistent hashing.
    pub hash: Option<u64>,
}

/// Endpoints that earlier attempts used.
pub type Tried = SmallVec<[std::net::SocketAddr; 4]>;

/// An attempt that did not bring a response.
#[derive(Debug)]
pub struct Failed {
    pub failure: Failure,
    /// A pooled connection ended without a byte of response: it may have been closed before the request came.
    pub stale: bool,
}

impl From<Failure> for Failed {
    fn from(failure: Failure) -> Self {
        Self { failure, stale: false }
    }
}

/// The connection of an attempt, without the halves that are in use.
enum Lease {
    H1(Box<Meta>),
    H2(H2Lease),
    /// Given back.
    Returned,
}

/// What the response head comes from; HTTP/1 reads it from where its body comes from.
enum Source {
    H1(Asked),
    H2(ResponseFuture),
    /// The head has come.
    Done,
}

/// An attempt that was sent, and the response that it brought. Large, so it stays where it was made.
pub struct Live {
    pub sender: Sender,
    pub upload: Flow,
    pub endpoint: Arc<EndpointState>,
    /// Absent until it has come.
    pub head: ResponseHead,
    /// Of the response, once its head has come.
    pub body: Body,
    pub framing: Framing,
    source: Source,
    lease: Lease,
    span: Option<Box<SpanRecord>>,
    reused: bool,
    written_before: u64,
    /// The upstream connection can take another request after this one.
    keeps: bool,
    /// Nothing is uploaded before the response says that the tunnel stands.
    hold: bool,
    sent_at: Instant,
    _in_flight: InFlight,
}

/// The attempt of the moment.
pub type Slot = Option<Live>;

/// Runs attempt `number` (from 1) up to its response head, which is then in the slot; after a failure the slot is empty.
pub async fn run(
    ctx: &mut RequestCtx<'_>,
    plan: &Plan<'_>,
    number: u32,
    tried: &mut Tried,
    fresh: bool,
    slot: &mut Slot,
) -> Result<(), Failed> {
    *slot = None;
    let endpoint = pick(ctx, plan, tried)?;
    tried.push(endpoint.address);
    ctx.record.endpoint = Some(endpoint.clone());
    let per_try = plan.retry.and_then(|retry| retry.per_try_timeout).map(|timeout| ctx.now + timeout);
    let result = match lease(ctx, plan, &endpoint, per_try, fresh).await {
        Ok(leased) => {
            let result = attempt(ctx, plan, number, leased, &endpoint, per_try, slot).await;
            if result.is_err() {
                *slot = None;
            }
            result
        }
        Err(failure) => Err(failure.into()),
    };
    report(plan, &endpoint, &result, slot);
    result
}

fn pick(ctx: &RequestCtx<'_>, plan: &Plan<'_>, tried: &Tried) -> Result<Arc<EndpointState>, Failure> {
    let avoid = plan.retry.is_none_or(|retry| retry.avoid_previous_hosts);
    let info = &ctx.conn.info;
    plan.cluster.pick(&PickContext {
        tried: if avoid { tried } else { &[] },
        original: info.original(),
        hash: plan.hash,
    })
}

/// The protocol to ask for.
fn want(protocol: UpstreamProtocol, head: &RequestHead) -> Want {
    match protocol {
        UpstreamProtocol::Http1 => Want::Http1,
        UpstreamProtocol::Http2 => Want::Http2,
        UpstreamProtocol::Follow if head.is_h2() => Want::Http2,
        UpstreamProtocol::Follow => Want::Http1,
    }
}

async fn lease(
    ctx: &mut RequestCtx<'_>,
    plan: &Plan<'_>,
    endpoint: &Arc<EndpointState>,
    per_try: Option<Instant>,
    fresh: bool,
) -> Result<Leased, Failure> {
    let worker = ctx.conn.worker.clone();
    let want = want(plan.cluster.config.protocol, &ctx.head);
    let upgrade = plan.upgrade == Upgrade::Protocol;
    let now = ctx.now;
    let leasing = async {
        let mut leased = worker.pools.lease(&worker, plan.cluster, endpoint, (want, fresh), now).await?;
        if let Leased::H2(lease) = &mut leased {
            if upgrade && !Box::pin(lease.takes_extended_connect()).await {
                let detail = "the upstream's HTTP/2 takes no extended CONNECT (RFC 8441)";
                return Err(Failure::upstream(
                    Stage::Connect,
                    FailureKind::UpstreamProtocol,
                    Retry::Never,
                    detail,
                ));
            }
            if let Err(error) = poll_fn(|cx| lease.sender.poll_ready(cx)).await {
                lease.condemn();
                let kind = FailureKind::RefusedStream;
                return Err(Failure::upstream(Stage::Forward, kind, Retry::Safe, error.to_string()));
            }
        }
        Ok(leased)
    };
    exchange::guarded(ctx, per_try, leasing).await
}

/// Sends the head and waits for the response head.
async fn attempt(
    ctx: &mut RequestCtx<'_>,
    plan: &Plan<'_>,
    number: u32,
    leased: Leased,
    endpoint: &Arc<EndpointState>,
    per_try: Option<Instant>,
    slot: &mut Slot,
) -> Result<(), Failed> {
    if leased.has_waited() {
        ctx.tick();
    }
    let mut span = None;
    if let Some(recording) = ctx.recording.filter(|_| trace::is_client_side(ctx.conn.info.direction)) {
        let (name, cluster) = (&plan.route.config.name, &plan.cluster.name);
        let local = ctx.conn.worker.metrics.local();
        span = Some(recording.client(&mut ctx.head, name, number, endpoint, cluster, local));
    }
    if plan.retry.is_some() {
        let mut digits = [0_u8; 10];
        let _ = ctx.head.set("x-envoy-attempt-count", decimal(number, &mut digits));
    }
    let sent = match leased {
        Leased::H1(conn) => Ok(Live::send_h1(ctx, plan, conn, endpoint)),
        Leased::H2(lease) => Live::send_h2(ctx, plan, lease, endpoint),
    };
    let live = match sent {
        Ok(live) => slot.insert(live),
        Err(failure) => {
            finish_span(ctx, span, None, Some(&failure));
            return Err(failure.into());
        }
    };
    live.span = span;
    live.upload.count_messages(ctx.record.is_grpc);
    let cells = ctx.conn.worker.metrics.cluster(&plan.cluster.name);
    cells.attempt();
    match exchange::until_head(ctx, live, per_try).await {
        Ok(()) => {
            ctx.tick();
            let time = ctx.now.saturating_duration_since(live.sent_at);
            cells.response(live.head.status(), time);
            ctx.record.upstream_time = Some(time);
            live.begin_response(ctx)
        }
        Err(failure) => {
            if matches!(failure.kind, FailureKind::UpstreamTimeout | FailureKind::PerTryTimeout) {
                cells.timeouts.inc();
            }
            let silent = matches!(failure.kind, FailureKind::UpstreamClosed | FailureKind::UpstreamReset);
            let stale = live.reused && silent && live.is_silent();
            finish_span(ctx, live.span.take(), None, Some(&failure));
            Err(Failed { failure, stale })
        }
    }
}

/// Tells the endpoint what came of it.
fn report(plan: &Plan<'_>, endpoint: &EndpointState, result: &Result<(), Failed>, slot: &Slot) {
    let head = slot.as_ref().map(|live| &live.head);
    let outcome = match result {
        Ok(()) if head.is_some_and(says_not_reached) && plan.cluster.uses_mesh(endpoint) => {
            Outcome::GatewayError
        }
        Ok(()) => Outcome::Status(head.map_or(0, ResponseHead::status)),
        Err(failed) if failed.stale => return,
        Err(failed) => match (failed.failure.side, &failed.failure.kind) {
            (crate::failure::Side::Upstream, _) => Outcome::GatewayError,
            // Time spent waiting for it is the endpoint's, wherever the clock was.
            (_, FailureKind::PerTryTimeout | FailureKind::UpstreamTimeout) => Outcome::GatewayError,
            _ => Outcome::LocalFailure,
        },
    };
    endpoint.report(plan.cluster, outcome);
}

fn finish_span(
    ctx: &RequestCtx<'_>,
    span: Option<Box<SpanRecord>>,
    status: Option<u16>,
    failure: Option<&Failure>,
) {
    if let (Some(span), Some(spans)) = (span, &ctx.conn.worker.shared.spans) {
        spans.try_send(trace::finish_client(*span, status, failure));
    }
}

/// A number in digits, without an allocation.
pub fn decimal(mut number: u32, digits: &mut [u8; 10]) -> &[u8] {
    let mut at = digits.len();
    loop {
        at -= 1;
        digits[at] = b'0' + (number % 10) as u8;
        number /= 10;
        if number == 0 || at == 0 {
            return &digits[at..];
        }
    }
}

impl Live {
    /// The response in the slot.
    ///
    /// # Errors
    /// Never, after an attempt that brought one.
    pub fn present(slot: &mut Slot) -> Result<&mut Self, Failure> {
        slot.as_mut().ok_or_else(|| {
            Failure::local(Stage::Forward, FailureKind::Internal, "an attempt has left no response")
        })
    }

    /// Nobody wants the response. If its body is short and here already, its connection serves on.
    pub fn discard(&mut self, ctx: &RequestCtx<'_>) {
        let mut cx = Context::from_waker(Waker::noop());
        let mut left = super::wire::BUFFER;
        loop {
            match self.body.poll_chunk(&mut cx) {
                Poll::Ready(Ok(Frame::Data(len))) if len > left => return,
                Poll::Ready(Ok(Frame::Data(len))) => {
                    left -= len;
                    self.body.consume(len);
                }
                Poll::Ready(Ok(Frame::Trailers(_))) => {}
                Poll::Ready(Ok(Frame::End)) => return self.recycle(ctx),
                Poll::Ready(Err(_)) | Poll::Pending => return,
            }
        }
    }

    fn send_h1(
        ctx: &mut RequestCtx<'_>,
        plan: &Plan<'_>,
        mut conn: H1Conn,
        endpoint: &Arc<EndpointState>,
    ) -> Self {
        introduce::ourselves(ctx, conn.meta.requests == 0 && plan.cluster.uses_mesh(endpoint));
        let upgrade = plan.upgrade == Upgrade::Protocol;
        // Until the tunnel stands nothing follows the head.
        let framing = if plan.upgrade == Upgrade::None { ctx.framing } else { Framing::None };
        ctx.head.write_h1(How { upgrade, ..How::framed(framing) }, conn.writer.outgoing.buffer());
        let mut asked = Asked::method(ctx.head.method(), upgrade);
        asked.connect &= plan.upgrade == Upgrade::Connect;
        let reused = conn.meta.requests > 0;
        conn.meta.requests += 1;
        ctx.record.upstream_local = conn.meta.local;
        let written_before = conn.writer.outgoing.written();
        let sender = Sender::h1(conn.writer, framing);
        Self {
            sender,
            upload: Flow::default(),
            endpoint: endpoint.clone(),
            head: ResponseHead::absent(),
            body: Body::H1(conn.reader),
            framing: Framing::None,
            source: Source::H1(asked),
            lease: Lease::H1(conn.meta),
            span: None,
            reused,
            written_before,
            keeps: true,
            hold: plan.upgrade != Upgrade::None,
            sent_at: ctx.now,
            _in_flight: endpoint.begin(),
        }
    }

    fn send_h2(
        ctx: &mut RequestCtx<'_>,
        plan: &Plan<'_>,
        mut lease: H2Lease,
        endpoint: &Arc<EndpointState>,
    ) -> Result<Self, Failure> {
        introduce::ourselves(ctx, !lease.reused && plan.cluster.uses_mesh(endpoint));
        let request =
            convert::request_to_h2(&ctx.head, plan.upgrade == Upgrade::Protocol).map_err(|error| {
                Failure::downstream(Stage::Forward, FailureKind::BadRequest(400), error.to_string())
            })?;
        let end = plan.upgrade == Upgrade::None && ctx.body.is_end();
        ctx.record.upstream_local = Some(lease.state.local);
        let (response, stream) = lease.sender.send_request(request, end).map_err(|error| {
            lease.condemn();
            Failure::upstream(Stage::Forward, FailureKind::RefusedStream, Retry::Safe, error.to_string())
        })?;
        Ok(Self {
            sender: Sender::h2((!end).then_some(stream)),
            upload: Flow::default(),
            endpoint: endpoint.clone(),
            head: ResponseHead::absent(),
            body: Body::Empty,
            framing: Framing::None,
            source: Source::H2(response),
            reused: lease.reused,
            lease: Lease::H2(lease),
            span: None,
            written_before: 0,
            keeps: true,
            hold: plan.upgrade != Upgrade::None,
            sent_at: ctx.now,
            _in_flight: endpoint.begin(),
        })
    }

    /// Moves the request body on. A sink that fails ends the upload, not the request: the response may have come early.
    pub fn poll_upload(&mut self, cx: &mut Context<'_>, body: &mut Body) -> Result<(), Failure> {
        if self.upload.is_over() {
            return Ok(());
        }
        if self.hold {
            // The head is still to be flushed.
            if let Poll::Ready(Err(_)) = self.sender.poll_flush(cx) {
                self.upload.cut();
            }
            return Ok(());
        }
        match self.upload.poll(cx, body, &mut self.sender) {
            Poll::Ready(Err(CopyError::Read(error))) => Err(exchange::downstream_failure(&error)),
            Poll::Ready(Err(CopyError::Write(_))) => {
                self.upload.cut();
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// Ready when the next head of the response is there, interim ones included.
    pub fn poll_head(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Failure>> {
        match (&mut self.source, &mut self.lease, &mut self.body) {
            (Source::H1(asked), Lease::H1(meta), Body::H1(reader)) => loop {
                match meta.parser.parse(&mut reader.incoming.buf, *asked) {
                    Ok(Parsed::Head(head)) => {
                        self.head = ResponseHead::H1(head);
                        return Poll::Ready(Ok(()));
                    }
                    Ok(Parsed::NeedMore) => {}
                    Err(refusal) => return Poll::Ready(Err(protocol_error(refusal.to_string()))),
                }
                match ready!(reader.incoming.poll_fill(cx)) {
                    Ok(0) => return Poll::Ready(Err(self.ended(FailureKind::UpstreamClosed, ""))),
                    Ok(_) => {}
                    Err(error) => {
                        let failure = self.ended(FailureKind::UpstreamReset, &error.to_string());
                        return Poll::Ready(Err(failure));
                    }
                }
            },
            (Source::H2(response), Lease::H2(lease), _) => {
                if let Poll::Ready(Some(Ok(interim))) = response.poll_informational(cx) {
                    self.head = ResponseHead::H2(interim.into_parts().0);
                    return Poll::Ready(Ok(()));
                }
                match ready!(std::pin::Pin::new(response).poll(cx)) {
                    Ok(answer) => {
                        let (parts, recv) = answer.into_parts();
                        self.body = Body::h2(recv);
                        self.source = Source::Done;
                        self.head = ResponseHead::H2(parts);
                        Poll::Ready(Ok(()))
                    }
                    Err(error) => {
                        if error.is_go_away() || error.is_io() {
                            lease.condemn();
                        }
                        Poll::Ready(Err(exchange::h2_failure(&error)))
                    }
                }
            }
            _ => Poll::Ready(Err(protocol_error("the response has begun before".into()))),
        }
    }

    /// Bytes of this request that the connection has taken.
    fn written(&self) -> u64 {
        match &self.sender {
            Sender::H1(sender) => sender.outgoing.written() - self.written_before,
            // h2 tells by its errors instead.
            Sender::H2(_) => u64::MAX,
        }
    }

    /// Whether no byte of a response has come (HTTP/1).
    fn is_silent(&self) -> bool {
        matches!((&self.source, &self.lease, &self.body), (Source::H1(_), Lease::H1(meta), Body::H1(reader))
            if meta.parser.is_idle() && reader.incoming.buf.is_empty())
    }

    /// The connection ended before the response head. Silence proves nothing once a byte was written.
    fn ended(&self, kind: FailureKind, detail: &str) -> Failure {
        let retry = if self.written() == 0 { Retry::Safe } else { Retry::Never };
        Failure::upstream(Stage::Forward, kind, retry, detail.to_owned())
    }

    /// The final head has come: the body follows.
    fn begin_response(&mut self, ctx: &RequestCtx<'_>) -> Result<(), Failed> {
        match (&mut self.body, &self.head) {
            (Body::H1(reader), ResponseHead::H1(head)) => {
                self.keeps = head.keeps_alive();
                self.framing = head.framing();
                reader.begin(self.framing);
                self.source = Source::Done;
            }
            (body, ResponseHead::H2(_)) => {
                let framing = self.head.framing(body.is_end(), ctx.head.method() == "HEAD");
                self.framing = framing.map_err(|refusal| protocol_error(refusal.to_string()))?;
            }
            _ => return Err(protocol_error("a response of another protocol".into()).into()),
        }
        finish_span(ctx, self.span.take(), Some(self.head.status()), None);
        Ok(())
    }

    /// The tunnel stands: from now on bytes flow both ways.
    pub fn open_tunnel(&mut self) {
        self.hold = false;
        self.keeps = false;
        self.sender = match std::mem::replace(&mut self.sender, Sender::h2(None)) {
            Sender::H1(writer) => Sender::h1(writer, Framing::Tunnel),
            h2 => h2,
        };
        self.framing = Framing::Tunnel;
        exchange::make_tunnel(&mut self.body);
    }

    /// Gives the connection back, if the exchange ended cleanly on it.
    pub fn recycle(&mut self, ctx: &RequestCtx<'_>) {
        if let Lease::H2(lease) = &self.lease {
            if self.upload.is_done() && self.body.is_end() {
                let sender = std::mem::replace(&mut self.sender, Sender::h2(None));
                lease.bury(std::mem::replace(&mut self.body, Body::Empty), sender);
            }
            return;
        }
        if !(self.keeps && self.upload.is_done() && matches!(&self.body, Body::H1(body) if body.is_done())) {
            return;
        }
        let lease = std::mem::replace(&mut self.lease, Lease::Returned);
        let sender = std::mem::replace(&mut self.sender, Sender::h2(None));
        let body = std::mem::replace(&mut self.body, Body::Empty);
        if let (Lease::H1(meta), Sender::H1(writer), Body::H1(reader)) = (lease, sender, body) {
            ctx.conn.worker.pools.put(H1Conn { reader, writer, meta }, ctx.now);
        }
    }
}

fn protocol_error(detail: String) -> Failure {
    Failure::upstream(Stage::Forward, FailureKind::UpstreamProtocol, Retry::Never, detail)
}
