//! One stream between the wire and the engine. It is the body of its own answer: whoever sends that polls it, and while the client
//! takes nothing, nothing more is made for it than what waits to be sent, which the flights of each kind bound. So a stream has neither
//! a task nor a queue nor buffers of its own.

use std::marker::PhantomData;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::HeaderMap;
use http_body::Frame;
use outrigger_model::identity::SpiffeId;
use prost::Message;
use tokio::time::Sleep;
use tonic::Status;
use tonic::body::Body;

use super::engine::{Engine, Outgoing};
use super::messages::{Messages, PREFIX};
use super::weight::{Weighed, weighed};
use super::{ClientEvent, Source, View, delta, sotw};
use crate::NodeInfo;
use crate::node::BARRIERS_WITHIN;
use crate::wire::{core, discovery};

/// A client that opens a stream must say who it is within this time.
const FIRST_REQUEST: Duration = Duration::from_secs(30);
/// Requests that are taken before others have their turn.
const AT_ONCE: usize = 32;

/// Reads the peer's proven identity and address from the extensions of a request.
pub type PeerOf = fn(&tonic::Extensions) -> (Option<SpiffeId>, Option<SocketAddr>);

/// The service over a source.
pub struct AdsService<S> {
    pub(super) source: Arc<S>,
    pub(super) peer_of: PeerOf,
}

/// One of the two protocols.
pub(super) trait Protocol: Send + Sync + 'static {
    type Request: Weighed;
    const WHOLE_SETS: bool;
    fn node(request: &Self::Request) -> Option<&core::Node>;
    #[allow(clippy::result_large_err)] // tonic's own type
    fn take(engine: &mut Engine, request: &Self::Request) -> Result<(), Status>;
    /// Appends what is to be said, if it can be said in this form.
    fn say(engine: &mut Engine, outgoing: Outgoing, into: &mut BytesMut);
}

pub(super) struct Delta;

impl Protocol for Delta {
    type Request = discovery::DeltaDiscoveryRequest;
    const WHOLE_SETS: bool = false;
    fn node(request: &Self::Request) -> Option<&core::Node> {
        request.node.as_ref()
    }
    fn take(engine: &mut Engine, request: &Self::Request) -> Result<(), Status> {
        delta::take(engine, request)
    }
    fn say(_: &mut Engine, outgoing: Outgoing, into: &mut BytesMut) {
        let response = delta::Response::new(&outgoing);
        framed(response.encoded_len(), into, |into| response.encode(into));
    }
}

pub(super) struct Sotw;

impl Protocol for Sotw {
    type Request = discovery::DiscoveryRequest;
    const WHOLE_SETS: bool = true;
    fn node(request: &Self::Request) -> Option<&core::Node> {
        request.node.as_ref()
    }
    fn take(engine: &mut Engine, request: &Self::Request) -> Result<(), Status> {
        sotw::take(engine, request)
    }
    fn say(engine: &mut Engine, outgoing: Outgoing, into: &mut BytesMut) {
        if let Some(response) = sotw::response(engine, outgoing) {
            framed(response.encoded_len(), into, |into| response.encode_raw(into));
        }
    }
}

/// A message as gRPC frames it.
fn framed(length: usize, into: &mut BytesMut, message: impl FnOnce(&mut BytesMut)) {
    into.reserve(PREFIX + length);
    into.extend_from_slice(&[0]);
    into.extend_from_slice(&u32::try_from(length).unwrap_or(u32::MAX).to_be_bytes());
    message(into);
}

/// A stream.
pub(super) struct Stream<P, S> {
    requests: Messages,
    stage: Stage<S>,
    protocol: PhantomData<P>,
}

enum Stage<S> {
    /// It is not known who it is.
    Strange(Box<Stranger<S>>),
    Open(Box<Open>),
    /// All has been said, and how it ended.
    Over,
}

struct Stranger<S> {
    source: Arc<S>,
    peer: Option<SpiffeId>,
    remote: Option<SocketAddr>,
    patience: Pin<Box<Sleep>>,
}

struct Open {
    engine: Engine,
    closing: Closing,
}

/// Reports the end of the stream however it ends.
struct Closing(Arc<dyn View>, String);

impl Drop for Closing {
    fn drop(&mut self) {
        self.0.report(ClientEvent::Closed { reason: std::mem::take(&mut self.1) });
    }
}

impl<P: Protocol, S: Source> Stream<P, S> {
    pub(super) fn new(
        service: &AdsService<S>,
        extensions: &tonic::Extensions,
        body: Body,
        most: usize,
    ) -> Self {
        let (peer, remote) = (service.peer_of)(extensions);
        let patience = Box::pin(tokio::time::sleep(FIRST_REQUEST));
        let stranger = Stranger { source: service.source.clone(), peer, remote, patience };
        let requests = Messages::new(body, most);
        Self { requests, stage: Stage::Strange(Box::new(stranger)), protocol: PhantomData }
    }

    /// What is to be sent next; the status with which the stream ends.
    fn poll_said(&mut self, cx: &mut Context<'_>) -> Poll<Result<Bytes, Status>> {
        for _ in 0..AT_ONCE {
            let request = match self.requests.poll_next(cx) {
                Poll::Ready(Some(message)) => Some(message.and_then(weighed::<P::Request>)?),
                Poll::Ready(None) => return Poll::Ready(Err(Status::ok("the client has ended the stream"))),
                Poll::Pending => None,
            };
            if let Stage::Strange(stranger) = &mut self.stage {
                let Some(first) = &request else {
                    ready!(stranger.patience.as_mut().poll(cx));
                    let why = format!("an ADS stream begins with a request, within {FIRST_REQUEST:?}");
                    return Poll::Ready(Err(Status::deadline_exceeded(why)));
                };
                self.stage = Stage::Open(Box::new(stranger.known::<P>(first)?));
            }
            let Stage::Open(open) = &mut self.stage else { break };
            match request {
                Some(request) => P::take(&mut open.engine, &request)?,
                None if open.engine.seat.poll_rung(cx) => {}
                None => return Poll::Pending,
            }
            let said = open.pump::<P>()?;
            if !said.is_empty() {
                return Poll::Ready(Ok(said));
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }
}

impl<S: Source> Stranger<S> {
    #[allow(clippy::result_large_err)] // tonic's own type
    fn known<P: Protocol>(&self, first: &P::Request) -> Result<Open, Status> {
        let node = P::node(first).ok_or_else(|| {
            Status::invalid_argument("the first request of an ADS stream must name the node")
        })?;
        let node = NodeInfo::from_wire(node);
        let view = self.source.open(&node, self.peer.as_ref(), self.remote)?;
        let closing = Closing(view.clone(), "the client went away".into());
        let within = node.metadata.get(BARRIERS_WITHIN).is_some_and(|within| *within == true);
        let engine = Engine::new(view, P::WHOLE_SETS).taking_barriers_within(within);
        Ok(Open { engine, closing })
    }
}

impl Open {
    /// All that is to be said now, in one piece.
    #[allow(clippy::result_large_err)] // tonic's own type
    fn pump<P: Protocol>(&mut self) -> Result<Bytes, Status> {
        // Before what was marked is taken: of later changes nothing is claimed.
        let generation = self.engine.seat.generation();
        if self.engine.look_up() {
            return Err(Status::unavailable("the control plane is stopping"));
        }
        let mut said = BytesMut::new();
        for outgoing in self.engine.next(generation) {
            P::say(&mut self.engine, outgoing, &mut said);
        }
        Ok(said.freeze())
    }
}

impl<P: Protocol + Unpin, S: Source> http_body::Body for Stream<P, S> {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        if let Stage::Over = self.stage {
            return Poll::Ready(None);
        }
        let frame = match ready!(self.poll_said(cx)) {
            Ok(said) => Frame::data(said),
            Err(status) => {
                if let Stage::Open(open) = &mut self.stage {
                    open.closing.1 = status.message().to_owned();
                }
                self.stage = Stage::Over;
                let mut trailers = HeaderMap::new();
                status.add_header(&mut trailers)?;
                Frame::trailers(trailers)
            }
        };
        Poll::Ready(Some(Ok(frame)))
    }
}
