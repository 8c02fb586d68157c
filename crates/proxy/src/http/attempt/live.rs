//! An attempt that was sent: its head on the wire, its body on the way up, its response head on the way down.

use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use h2::client::ResponseFuture;
use outrigger_identity::CredentialStore;
use outrigger_telemetry::trace::SpanRecord;
use tokio::time::Instant;

use crate::failure::{Failure, FailureKind, Retry, Stage};
use crate::http::attempt::lease::status_of;
use crate::http::body::{Body, Frame};
use crate::http::breakage;
use crate::http::convert;
use crate::http::copy::{CopyError, Flow, parse_status};
use crate::http::h1::write::How;
use crate::http::h1::{Asked, Framing, MAX_INTERIM, Parsed, Refusal};
use crate::http::head::{RequestHead, ResponseHead};
use crate::http::load_report::Awaited;
use crate::http::send::Sender;
use crate::http::upgrade::Upgrade;
use crate::http::wire::BUFFER;
use crate::introduction;
use crate::metrics::{ClusterCells, Shard};
use crate::proof::Proof;
use crate::runtime::cluster::ClusterHandle;
use crate::runtime::endpoint::{EndpointState, InFlight};
use crate::upstream::pool::h1::Meta;
use crate::upstream::pool::{H1Conn, H2Lease, Leased, Pools};

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
    /// What the head says of a call already, before any trailers.
    pub grpc_status: Option<u32>,
    /// Of the response, once its head has come.
    pub body: Body,
    pub framing: Framing,
    source: Source,
    lease: Lease,
    pub(in crate::http) span: Option<Box<SpanRecord>>,
    /// Interim heads so far; of HTTP/1 its parser counts them.
    interim: u8,
    reused: bool,
    written_before: u64,
    /// The upstream connection can take another request after this one.
    keeps: bool,
    /// Nothing is uploaded before the response says that the tunnel stands.
    hold: bool,
    sent_at: Instant,
    /// Who waits for a report of load in the trailers.
    pub(in crate::http) reports: Option<Box<Awaited>>,
    pub(in crate::http) cells: Arc<ClusterCells>,
    _in_flight: InFlight,
}

impl Drop for Live {
    fn drop(&mut self) {
        // Neither recycled nor ended by itself: nobody wants the rest.
        if matches!(self.lease, Lease::H2(_))
            && !matches!((&self.source, &self.body), (Source::Done, Body::Empty))
        {
            self.cancel();
        }
    }
}

/// A request as an attempt sends it.
pub struct Outgoing<'o> {
    pub head: &'o mut RequestHead,
    pub framing: Framing,
    pub upgrade: Upgrade,
    /// No body follows.
    pub empty: bool,
    /// The head says who we are.
    pub introduced: &'o mut bool,
    pub metrics: &'o Shard,
    pub now: Instant,
}

impl Outgoing<'_> {
    /// Says who we are with a request that is the first on its connection to a peer sidecar, and only then.
    #[inline]
    fn introduce(&mut self, first_to_peer: bool) {
        if !first_to_peer {
            // An attempt before this one may have said it, on a connection of its own.
            if std::mem::take(self.introduced) {
                self.head.remove(introduction::HEADER);
            }
            return;
        }
        if let Some(text) = self.metrics.introduction() {
            // A head without room goes on without it.
            *self.introduced = self.head.set(introduction::HEADER, text.as_bytes()).is_ok();
        }
    }
}

/// The attempt of the moment.
pub type Slot = Option<Live>;

/// What of an upgrade HTTP/2 can say: an extended CONNECT has no body before its tunnel.
pub(super) fn upgrade_over_h2(upgrade: Upgrade, framing: Framing) -> Upgrade {
    if upgrade.follows_body(framing) { Upgrade::None } else { upgrade }
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

    /// The response head has come.
    pub fn note_head(&mut self, now: Instant) -> Duration {
        let time = now.saturating_duration_since(self.sent_at);
        self.cells.response(self.head.status(), time);
        time
    }

    /// How long it has taken so far.
    pub fn taken(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.sent_at)
    }

    /// Whether silence may mean that the connection was closed before the request came: it had served others, and nothing
    /// came on it.
    pub fn is_stale(&self) -> bool {
        self.reused && self.is_silent()
    }

    /// Our address, as the upstream sees it.
    pub fn local(&self) -> Option<SocketAddr> {
        match &self.lease {
            Lease::H1(meta) => meta.local,
            Lease::H2(lease) => Some(lease.state.local),
            Lease::Returned => None,
        }
    }

    /// Who answers, over the mesh's mTLS.
    #[inline]
    pub fn proof(&self) -> Option<&Rc<Proof>> {
        match &self.lease {
            Lease::H1(meta) => meta.proof(),
            Lease::H2(lease) => lease.state.proof(),
            Lease::Returned => None,
        }
    }

    /// Not a byte goes on to, or comes from, whom nobody trusts any more.
    ///
    /// # Errors
    /// It is trusted no longer.
    #[inline]
    pub fn trusted(&self, credentials: &CredentialStore) -> Result<(), Failure> {
        self.proof().map_or(Ok(()), |proof| proof.stands(credentials))
    }

    /// Nobody wants the response. If its body is short and here already, its connection serves on.
    pub fn discard(&mut self, pools: &Pools, now: Instant) {
        let mut cx = Context::from_waker(Waker::noop());
        let mut left = BUFFER;
        loop {
            match self.body.poll_chunk(&mut cx) {
                Poll::Ready(Ok(Frame::Data(len))) if len > left => return,
                Poll::Ready(Ok(Frame::Data(len))) => {
                    left -= len;
                    self.body.consume(len);
                }
                Poll::Ready(Ok(Frame::Trailers(_))) => {}
                Poll::Ready(Ok(Frame::End)) => return self.recycle(pools, now),
                Poll::Ready(Err(_)) | Poll::Pending => return,
            }
        }
    }

    /// Gives an HTTP/2 stream up. The peer is told as quickly as it can take it.
    #[cold]
    pub(super) fn cancel(&mut self) {
        let Lease::H2(lease) = &self.lease else { return };
        let sender = std::mem::replace(&mut self.sender, Sender::h2(None));
        match std::mem::replace(&mut self.source, Source::Done) {
            Source::H2(response) => lease.cancel(Some(response), sender),
            _ if !self.body.is_end() => lease.cancel(None, sender),
            _ => {}
        }
    }

    /// Sends a request's head, or puts it where the next flush does.
    ///
    /// # Errors
    /// It cannot be said, or the connection takes no more.
    #[inline]
    pub fn send(
        out: &mut Outgoing<'_>,
        cluster: &ClusterHandle,
        endpoint: &Arc<EndpointState>,
        leased: Leased,
    ) -> Result<Self, Failure> {
        match leased {
            Leased::H1(conn) => Self::send_h1(out, cluster, endpoint, conn),
            Leased::H2(lease) => Self::send_h2(out, cluster, endpoint, lease),
        }
    }

    fn send_h1(
        out: &mut Outgoing<'_>,
        cluster: &ClusterHandle,
        endpoint: &Arc<EndpointState>,
        mut conn: H1Conn,
    ) -> Result<Self, Failure> {
        out.introduce(conn.meta.requests == 0 && cluster.uses_mesh(endpoint));
        let upgrade = out.upgrade == Upgrade::Protocol;
        // Until the tunnel stands nothing follows the head but a body.
        let framing = if out.framing == Framing::Tunnel { Framing::None } else { out.framing };
        let hold = out.upgrade != Upgrade::None && !out.upgrade.follows_body(out.framing);
        let how = How { upgrade, ..How::framed(framing) };
        out.head.write_h1(how, conn.writer.outgoing.buffer()).map_err(|error| {
            Failure::downstream(Stage::Forward, FailureKind::BadRequest(400), error.to_string())
        })?;
        let mut asked = Asked::method(out.head.method(), upgrade);
        asked.connect &= out.upgrade == Upgrade::Connect;
        let reused = conn.meta.requests > 0;
        conn.meta.requests += 1;
        let written_before = conn.writer.outgoing.written();
        let cells = conn.cells().clone();
        let sender = Sender::h1(conn.writer, framing);
        Ok(Self {
            sender,
            upload: Flow::default(),
            endpoint: endpoint.clone(),
            head: ResponseHead::absent(),
            grpc_status: None,
            body: Body::H1(conn.reader),
            framing: Framing::None,
            source: Source::H1(asked),
            lease: Lease::H1(conn.meta),
            span: None,
            interim: 0,
            reused,
            written_before,
            cells,
            keeps: true,
            hold,
            sent_at: out.now,
            reports: None,
            _in_flight: endpoint.begin(),
        })
    }

    fn send_h2(
        out: &mut Outgoing<'_>,
        cluster: &ClusterHandle,
        endpoint: &Arc<EndpointState>,
        mut lease: H2Lease,
    ) -> Result<Self, Failure> {
        out.introduce(!lease.reused && cluster.uses_mesh(endpoint));
        let upgrade = upgrade_over_h2(out.upgrade, out.framing);
        let request = convert::request_to_h2(out.head, upgrade == Upgrade::Protocol).map_err(|error| {
            Failure::downstream(Stage::Forward, FailureKind::BadRequest(400), error.to_string())
        })?;
        let end = upgrade == Upgrade::None && out.empty;
        let (response, stream) = lease.sender.send_request(request, end).map_err(|error| {
            lease.condemn();
            Failure::upstream(Stage::Forward, FailureKind::RefusedStream, Retry::Safe, error.to_string())
        })?;
        Ok(Self {
            sender: Sender::h2((!end).then_some(stream)),
            upload: Flow::default(),
            endpoint: endpoint.clone(),
            head: ResponseHead::absent(),
            grpc_status: None,
            body: Body::Empty,
            framing: Framing::None,
            source: Source::H2(response),
            reused: lease.reused,
            lease: Lease::H2(lease),
            span: None,
            interim: 0,
            written_before: 0,
            cells: out.metrics.cluster(&cluster.name),
            keeps: true,
            hold: upgrade != Upgrade::None,
            sent_at: out.now,
            reports: None,
            _in_flight: endpoint.begin(),
        })
    }

    /// Moves the request body on. A sink that fails ends the upload, not the request: the response may have come early.
    pub fn poll_upload(&mut self, cx: &mut Context<'_>, body: &mut Body) -> Result<(), Failure> {
        if self.upload.is_over() {
            if !self.upload.is_done() {
                // What is left of it nobody takes any more.
                body.gather(cx);
            }
            return Ok(());
        }
        if self.hold {
            // The head is still to be flushed.
            if let Poll::Ready(Err(_)) = self.sender.poll_flush(cx) {
                self.upload.cut();
            }
            body.gather(cx);
            return Ok(());
        }
        match self.upload.poll(cx, body, &mut self.sender, None) {
            Poll::Ready(Err(CopyError::Read(error))) => Err(breakage::downstream_failure(&error)),
            Poll::Ready(Err(CopyError::Write(_))) => {
                self.upload.cut();
                body.gather(cx);
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
                    Err(refusal) => return Poll::Ready(Err(breakage::protocol_error(refusal.to_string()))),
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
                    self.interim += 1;
                    if self.interim > MAX_INTERIM {
                        return Poll::Ready(Err(breakage::protocol_error(
                            Refusal::TooManyInterim.to_string(),
                        )));
                    }
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
                        Poll::Ready(Err(breakage::h2_failure(&error)))
                    }
                }
            }
            _ => Poll::Ready(Err(breakage::protocol_error("the response has begun before".into()))),
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
    ///
    /// # Errors
    /// It is no response.
    #[inline]
    pub fn begin_response(&mut self, is_head: bool) -> Result<(), Failure> {
        match (&mut self.body, &self.head) {
            (Body::H1(reader), ResponseHead::H1(head)) => {
                self.keeps = head.keeps_alive();
                self.framing = head.framing();
                reader.begin(self.framing);
                self.source = Source::Done;
            }
            (body, ResponseHead::H2(_)) => {
                let framing = self.head.framing(body.is_end(), is_head);
                self.framing = framing.map_err(|refusal| breakage::protocol_error(refusal.to_string()))?;
            }
            _ => return Err(breakage::protocol_error("a response of another protocol".into())),
        }
        self.grpc_status = self.head.first("grpc-status").and_then(parse_status);
        Ok(())
    }

    /// Whether the head may tell of a failure: only then are further words of it looked for.
    pub fn may_be_failure(&self) -> bool {
        self.grpc_status.is_some() || self.head.status() >= 400
    }

    /// The status, as balancing and retries count it.
    pub fn status(&self, is_grpc: bool) -> u16 {
        status_of(&self.head, self.grpc_status.filter(|_| is_grpc))
    }

    /// Whether a body has to go up before a tunnel can stand.
    pub fn owes_body(&self) -> bool {
        !self.hold && !self.upload.is_over()
    }

    /// The tunnel stands: from now on bytes flow both ways.
    pub fn open_tunnel(&mut self) {
        if !std::mem::take(&mut self.hold) && self.upload.is_done() {
            self.upload.reopen();
        }
        self.keeps = false;
        self.sender = match std::mem::replace(&mut self.sender, Sender::h2(None)) {
            Sender::H1(writer) => Sender::h1(writer, Framing::Tunnel),
            h2 => h2,
        };
        self.framing = Framing::Tunnel;
        self.body.make_tunnel();
    }

    /// Gives the connection back, if the exchange ended cleanly on it.
    pub fn recycle(&mut self, pools: &Pools, now: Instant) {
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
            pools.put(H1Conn { reader, writer, meta }, now);
        }
    }
}
