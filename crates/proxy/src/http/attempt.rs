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
use super::h1::{Asked, Framing, Limits, Parsed};
use super::head::{RequestHead, ResponseHead};
use super::introduce;
use super::request::RequestCtx;
use super::send::Sender;
use super::trace;
use super::upgrade::Upgrade;
use super::wire::Incoming;
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
}

/// Where the response comes from.
enum Source {
    H1(Incoming, Asked),
    H2(Box<ResponseFuture>),
    /// The head has come; this is the body.
    Body(Body),
    Taken,
}

/// An attempt that was sent.
pub struct Live {
    pub sender: Sender,
    pub upload: Flow,
    pub endpoint: Arc<EndpointState>,
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

/// A response whose body is still to come.
pub struct Response {
    pub head: ResponseHead,
    pub body: Body,
    pub framing: Framing,
    pub live: Live,
}

/// Runs attempt `number` (from 1) up to its response head.
pub async fn run(
    ctx: &mut RequestCtx<'_>,
    plan: &Plan<'_>,
    number: u32,
    tried: &mut Tried,
    fresh: bool,
) -> Result<Response, Failed> {
    let endpoint = pick(ctx, plan, tried)?;
    tried.push(endpoint.address);
    ctx.record.endpoint = Some(endpoint.clone());
    let per_try = plan.retry.and_then(|retry| retry.per_try_timeout).map(|timeout| Instant::now() + timeout);
    let result = match lease(ctx, plan, &endpoint, per_try, fresh).await {
        Ok(leased) => attempt(ctx, plan, number, leased, &endpoint, per_try).await,
        Err(failure) => Err(failure.into()),
    };
    report(plan, &endpoint, &result);
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
    let leasing = async {
        let mut leased = worker.pools.lease(&worker, plan.cluster, endpoint, want, fresh).await?;
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
) -> Result<Response, Failed> {
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
    let mut live = match sent {
        Ok(live) => live,
        Err(failure) => {
            finish_span(ctx, span, None, Some(&failure));
            return Err(failure.into());
        }
    };
    live.span = span;
    live.upload.count_messages(ctx.record.is_grpc);
    let cells = ctx.conn.worker.metrics.cluster(&plan.cluster.name);
    cells.attempt();
    match exchange::until_head(ctx, &mut live, per_try).await {
        Ok(head) => {
            let time = live.sent_at.elapsed();
            cells.response(head.status(), time);
            ctx.record.upstream_time = Some(time);
            live.into_response(ctx, head)
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
fn report(plan: &Plan<'_>, endpoint: &EndpointState, result: &Result<Response, Failed>) {
    let outcome = match result {
        Ok(response)
            if super::respond::says_not_reached(&response.head) && plan.cluster.uses_mesh(endpoint) =>
        {
            Outcome::GatewayError
        }
        Ok(response) => Outcome::Status(response.head.status()),
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

impl Response {
    /// Nobody wants it. If its body is short and here already, its connection serves on.
    pub fn discard(mut self, ctx: &RequestCtx<'_>) {
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
                Poll::Ready(Ok(Frame::End)) => return self.live.recycle(ctx, self.body),
                Poll::Ready(Err(_)) | Poll::Pending => return,
            }
        }
    }
}

impl Live {
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
        ctx.head.write_h1(How { upgrade, ..How::framed(framing) }, conn.outgoing.buffer());
        let mut asked = Asked::method(ctx.head.method(), upgrade);
        asked.connect &= plan.upgrade == Upgrade::Connect;
        let reused = conn.meta.requests > 0;
        conn.meta.requests += 1;
        ctx.record.upstream_local = conn.meta.local;
        let written_before = conn.outgoing.written();
        let sender = Sender::h1(conn.outgoing, framing);
        let source = Source::H1(conn.incoming, asked);
        Self::new(plan, sender, source, Lease::H1(conn.meta), endpoint, (reused, written_before))
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
        let sender = Sender::h2((!end).then_some(stream));
        let (reused, source) = (lease.reused, Source::H2(Box::new(response)));
        Ok(Self::new(plan, sender, source, Lease::H2(lease), endpoint, (reused, 0)))
    }

    fn new(
        plan: &Plan<'_>,
        sender: Sender,
        source: Source,
        lease: Lease,
        endpoint: &Arc<EndpointState>,
        (reused, written_before): (bool, u64),
    ) -> Self {
        Self {
            sender,
            upload: Flow::default(),
            endpoint: endpoint.clone(),
            source,
            lease,
            span: None,
            reused,
            written_before,
            keeps: true,
            hold: plan.upgrade != Upgrade::None,
            sent_at: Instant::now(),
            _in_flight: endpoint.begin(),
        }
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

    /// The next head of the response, interim ones included.
    pub fn poll_head(&mut self, cx: &mut Context<'_>) -> Poll<Result<ResponseHead, Failure>> {
        match (&mut self.source, &mut self.lease) {
            (Source::H1(incoming, asked), Lease::H1(meta)) => loop {
                match meta.parser.parse(&mut incoming.buf, *asked) {
                    Ok(Parsed::Head(head)) => return Poll::Ready(Ok(ResponseHead::H1(head))),
                    Ok(Parsed::NeedMore) => {}
                    Err(refusal) => return Poll::Ready(Err(protocol_error(refusal.to_string()))),
                }
                match ready!(incoming.poll_fill(cx)) {
                    Ok(0) => return Poll::Ready(Err(self.ended(FailureKind::UpstreamClosed, ""))),
                    Ok(_) => {}
                    Err(error) => {
                        let failure = self.ended(FailureKind::UpstreamReset, &error.to_string());
                        return Poll::Ready(Err(failure));
                    }
                }
            },
            (Source::H2(response), Lease::H2(lease)) => {
                if let Poll::Ready(Some(Ok(interim))) = response.poll_informational(cx) {
                    return Poll::Ready(Ok(ResponseHead::H2(interim.into_parts().0)));
                }
                match ready!(std::pin::Pin::new(&mut **response).poll(cx)) {
                    Ok(answer) => {
                        let (parts, recv) = answer.into_parts();
                        self.source = Source::Body(Body::h2(recv));
                        Poll::Ready(Ok(ResponseHead::H2(parts)))
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
        matches!((&self.source, &self.lease), (Source::H1(incoming, _), Lease::H1(meta))
            if meta.parser.is_idle() && incoming.buf.is_empty())
    }

    /// The connection ended before the response head. Silence proves nothing once a byte was written.
    fn ended(&self, kind: FailureKind, detail: &str) -> Failure {
        let retry = if self.written() == 0 { Retry::Safe } else { Retry::Never };
        Failure::upstream(Stage::Forward, kind, retry, detail.to_owned())
    }

    fn into_response(mut self, ctx: &RequestCtx<'_>, head: ResponseHead) -> Result<Response, Failed> {
        let is_head = ctx.head.method() == "HEAD";
        let (body, framing) = match (std::mem::replace(&mut self.source, Source::Taken), &head) {
            (Source::H1(incoming, _), ResponseHead::H1(h1)) => {
                self.keeps = h1.keeps_alive();
                (Body::h1(incoming, h1.framing(), Limits::default()), h1.framing())
            }
            (Source::Body(body), _) => {
                let framing = head.framing(body.is_end(), is_head);
                (body, framing.map_err(|refusal| protocol_error(refusal.to_string()))?)
            }
            _ => return Err(protocol_error("a response of another protocol".into()).into()),
        };
        finish_span(ctx, self.span.take(), Some(head.status()), None);
        Ok(Response { head, body, framing, live: self })
    }

    /// The tunnel stands: from now on bytes flow both ways.
    pub fn open_tunnel(&mut self) {
        self.hold = false;
        self.keeps = false;
        let closed = Sender::h2(None);
        self.sender = match std::mem::replace(&mut self.sender, closed) {
            Sender::H1(sender) => Sender::h1(sender.outgoing, Framing::Tunnel),
            h2 => h2,
        };
    }

    /// Gives the connection back, if the exchange ended cleanly on it.
    pub fn recycle(self, ctx: &RequestCtx<'_>, body: Body) {
        if let (Lease::H1(meta), Sender::H1(sender), Body::H1(body)) = (self.lease, self.sender, body)
            && self.keeps
            && self.upload.is_done()
            && body.is_done()
        {
            let conn = H1Conn { incoming: body.incoming, outgoing: sender.outgoing, meta };
            ctx.conn.worker.pools.put(conn);
        }
    }
}

fn protocol_error(detail: String) -> Failure {
    Failure::upstream(Stage::Forward, FailureKind::UpstreamProtocol, Retry::Never, detail)
}
