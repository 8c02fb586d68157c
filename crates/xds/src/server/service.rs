//! The gRPC service: one task per stream between the wire and the engine.

use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use envoy_types::pb::envoy::service::discovery::v3::aggregated_discovery_service_server::AggregatedDiscoveryService;
use futures_util::Stream;
use outrigger_model::identity::SpiffeId;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use super::engine::{Engine, Outgoing};
use super::{ClientEvent, Source, View, delta, sotw};
use crate::NodeInfo;
use crate::wire::{core, discovery};

/// A client that opens a stream must say who it is within this time.
const FIRST_REQUEST: Duration = Duration::from_secs(30);
/// Responses between the engine and a slow stream.
const BACKLOG: usize = 8;

/// Reads the peer's proven identity and address from the extensions of a request.
pub type PeerOf = fn(&tonic::Extensions) -> (Option<SpiffeId>, Option<SocketAddr>);

/// The service over a source.
pub struct AdsService<S> {
    source: Arc<S>,
    peer_of: PeerOf,
}

impl<S: Source> AdsService<S> {
    pub(super) fn new(source: Arc<S>, peer_of: PeerOf) -> Self {
        Self { source, peer_of }
    }
}

type Responses<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl<S: Source> AggregatedDiscoveryService for AdsService<S> {
    type StreamAggregatedResourcesStream = Responses<discovery::DiscoveryResponse>;

    async fn stream_aggregated_resources(
        &self,
        request: Request<Streaming<discovery::DiscoveryRequest>>,
    ) -> Result<Response<Self::StreamAggregatedResourcesStream>, Status> {
        Ok(self.start::<Sotw>(request))
    }

    type DeltaAggregatedResourcesStream = Responses<discovery::DeltaDiscoveryResponse>;

    async fn delta_aggregated_resources(
        &self,
        request: Request<Streaming<discovery::DeltaDiscoveryRequest>>,
    ) -> Result<Response<Self::DeltaAggregatedResourcesStream>, Status> {
        Ok(self.start::<Delta>(request))
    }
}

/// One of the two protocols.
trait Protocol: Send + 'static {
    type Request: Send + 'static;
    type Response: Send + 'static;
    const WHOLE_SETS: bool;
    fn node(request: &Self::Request) -> Option<&core::Node>;
    #[allow(clippy::result_large_err)] // tonic's own type
    fn take(engine: &mut Engine, request: &Self::Request) -> Result<(), Status>;
    fn response(engine: &mut Engine, outgoing: Outgoing) -> Option<Self::Response>;
}

struct Delta;

impl Protocol for Delta {
    type Request = discovery::DeltaDiscoveryRequest;
    type Response = discovery::DeltaDiscoveryResponse;
    const WHOLE_SETS: bool = false;
    fn node(request: &Self::Request) -> Option<&core::Node> {
        request.node.as_ref()
    }
    fn take(engine: &mut Engine, request: &Self::Request) -> Result<(), Status> {
        delta::take(engine, request)
    }
    fn response(_: &mut Engine, outgoing: Outgoing) -> Option<Self::Response> {
        Some(delta::response(outgoing))
    }
}

struct Sotw;

impl Protocol for Sotw {
    type Request = discovery::DiscoveryRequest;
    type Response = discovery::DiscoveryResponse;
    const WHOLE_SETS: bool = true;
    fn node(request: &Self::Request) -> Option<&core::Node> {
        request.node.as_ref()
    }
    fn take(engine: &mut Engine, request: &Self::Request) -> Result<(), Status> {
        sotw::take(engine, request)
    }
    fn response(engine: &mut Engine, outgoing: Outgoing) -> Option<Self::Response> {
        sotw::response(engine, outgoing)
    }
}

impl<S: Source> AdsService<S> {
    fn start<P: Protocol>(
        &self,
        request: Request<Streaming<P::Request>>,
    ) -> Response<Responses<P::Response>> {
        let (peer, remote) = (self.peer_of)(request.extensions());
        let source = self.source.clone();
        let (sender, receiver) = mpsc::channel(BACKLOG);
        let requests = request.into_inner();
        tokio::spawn(async move {
            let closed = sender.clone();
            tokio::select! {
                () = run::<P, S>(&source, peer, remote, requests, sender) => {}
                // The client went away while a response waited for it.
                () = closed.closed() => {}
            }
        });
        Response::new(Box::pin(ReceiverStream::new(receiver)))
    }
}

/// Reports the end of the stream however the task ends.
struct Closing(Arc<dyn View>, String);

impl Drop for Closing {
    fn drop(&mut self) {
        self.0.report(ClientEvent::Closed { reason: std::mem::take(&mut self.1) });
    }
}

async fn run<P: Protocol, S: Source>(
    source: &Arc<S>,
    peer: Option<SpiffeId>,
    remote: Option<SocketAddr>,
    mut requests: Streaming<P::Request>,
    sender: mpsc::Sender<Result<P::Response, Status>>,
) {
    let Ok(Ok(Some(first))) = tokio::time::timeout(FIRST_REQUEST, requests.message()).await else { return };
    let opened = P::node(&first)
        .ok_or_else(|| Status::invalid_argument("the first request of an ADS stream must name the node"))
        .and_then(|node| source.open(&NodeInfo::from_wire(node), peer.as_ref(), remote));
    let view = match opened {
        Ok(view) => view,
        Err(status) => {
            let _ = sender.send(Err(status)).await;
            return;
        }
    };
    let mut closing = Closing(view.clone(), "the client went away".into());
    let mut engine = Engine::new(view, P::WHOLE_SETS);
    let seat = engine.seat.clone();
    let mut request = Some(first);
    loop {
        if let Some(request) = request.take()
            && let Err(status) = P::take(&mut engine, &request)
        {
            closing.1 = status.message().to_owned();
            let _ = sender.send(Err(status)).await;
            return;
        }
        // Before what was marked is taken: of later changes nothing is claimed.
        let generation = engine.seat.generation();
        if engine.look_up() {
            closing.1 = "the control plane is stopping".into();
            let _ = sender.send(Err(Status::unavailable("the control plane is stopping"))).await;
            return;
        }
        if pump::<P>(&mut engine, generation, &sender).await.is_err() {
            return;
        }
        tokio::select! {
            message = requests.message() => match message {
                Ok(Some(next)) => request = Some(next),
                Ok(None) => return,
                Err(status) => {
                    closing.1 = status.message().to_owned();
                    return;
                }
            },
            () = seat.woken() => {}
        }
    }
}

async fn pump<P: Protocol>(
    engine: &mut Engine,
    generation: u64,
    sender: &mpsc::Sender<Result<P::Response, Status>>,
) -> Result<(), ()> {
    for outgoing in engine.next(generation) {
        if let Some(response) = P::response(engine, outgoing) {
            sender.send(Ok(response)).await.map_err(|_| ())?;
        }
    }
    Ok(())
}
