//! ADS as a gRPC service.

use std::convert::Infallible;
use std::future::{Ready, ready};
use std::sync::Arc;
use std::task::{Context, Poll};

use http::header::CONTENT_TYPE;
use http::{HeaderValue, Request, Response};
use tonic::Status;
use tonic::body::Body;
use tonic::server::NamedService;

use super::Source;
use super::service::{AdsService, Delta, PeerOf, Protocol, Sotw, Stream};

/// Largest message that a client may send: one that reconnects lists all names and versions that it has.
const MAX_REQUEST: usize = 16 << 20;

const SERVICE: &str = "envoy.service.discovery.v3.AggregatedDiscoveryService";
const WHOLE: &str = "/envoy.service.discovery.v3.AggregatedDiscoveryService/StreamAggregatedResources";
const DELTA: &str = "/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources";

/// The tonic service; add it to a `Server`.
pub struct AdsServer<S>(Arc<AdsService<S>>);

impl<S: Source> AdsService<S> {
    /// `peer_of` is how the acceptor left the identity in the request.
    pub fn server(source: Arc<S>, peer_of: PeerOf) -> AdsServer<S> {
        AdsServer(Arc::new(Self { source, peer_of }))
    }
}

impl<S> Clone for AdsServer<S> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<S> NamedService for AdsServer<S> {
    const NAME: &'static str = SERVICE;
}

type Answer = Ready<Result<Response<Body>, Infallible>>;

impl<S: Source> tonic::codegen::Service<Request<Body>> for AdsServer<S> {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Answer;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Answer {
        let encoding = request.headers().get("grpc-encoding");
        ready(Ok(match request.uri().path() {
            _ if encoding.is_some_and(|encoding| encoding != "identity") => {
                let mut refusal = Status::unimplemented("messages must not be compressed").into_http();
                refusal.headers_mut().insert("grpc-accept-encoding", HeaderValue::from_static("identity"));
                refusal
            }
            DELTA => self.stream::<Delta>(request),
            WHOLE => self.stream::<Sotw>(request),
            _ => Status::unimplemented("ADS has no such method").into_http(),
        }))
    }
}

impl<S: Source> AdsServer<S> {
    /// Answers at once: some clients wait for the head of the answer before they say anything.
    fn stream<P: Protocol + Unpin>(&self, request: Request<Body>) -> Response<Body> {
        let (head, body) = request.into_parts();
        let stream = Stream::<P, S>::new(&self.0, &head.extensions, body, MAX_REQUEST);
        let mut response = Response::new(Body::new(stream));
        let is = HeaderValue::from_static("application/grpc");
        response.headers_mut().insert(CONTENT_TYPE, is);
        response
    }
}
