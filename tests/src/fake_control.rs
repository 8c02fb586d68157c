//! A control plane that says what a test tells it to: scripted delta ADS, behind the TLS of the mesh's own authority.

use std::pin::Pin;
use std::sync::Arc;

use envoy_types::pb::envoy::service::discovery::v3::aggregated_discovery_service_server::{
    AggregatedDiscoveryService, AggregatedDiscoveryServiceServer,
};
use envoy_types::pb::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse, Resource,
};
use envoy_types::pb::google::protobuf::Any;
use outrigger_identity::accept::ClientAuth;
use outrigger_identity::{Authority, AuthorityOptions, CredentialStore, TlsListener, TrustBundle};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use crate::mesh::Mesh;

/// The server; it ends with this value.
pub struct FakeControl {
    lines: mpsc::Receiver<Line>,
    task: tokio::task::JoinHandle<()>,
}

/// One stream of one sidecar.
pub struct Line {
    requests: Streaming<DeltaDiscoveryRequest>,
    responses: mpsc::Sender<Result<DeltaDiscoveryResponse, Status>>,
}

struct Script(mpsc::Sender<Line>);

type Answers<T> = Pin<Box<dyn tokio_stream::Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl AggregatedDiscoveryService for Script {
    type StreamAggregatedResourcesStream = Answers<DiscoveryResponse>;
    type DeltaAggregatedResourcesStream = Answers<DeltaDiscoveryResponse>;

    async fn stream_aggregated_resources(
        &self,
        _: Request<Streaming<DiscoveryRequest>>,
    ) -> Result<Response<Self::StreamAggregatedResourcesStream>, Status> {
        Err(Status::unimplemented("delta only"))
    }

    async fn delta_aggregated_resources(
        &self,
        request: Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<Response<Self::DeltaAggregatedResourcesStream>, Status> {
        let (responses, receiver) = mpsc::channel(8);
        let line = Line { requests: request.into_inner(), responses };
        self.0.send(line).await.map_err(|_| Status::unavailable("the test has ended"))?;
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }
}

impl FakeControl {
    /// Takes the place of a mesh's control plane, which is killed.
    pub async fn usurp(mesh: &mut Mesh) -> Self {
        mesh.kill_control();
        let address = mesh.address(1, 15012);
        let options = AuthorityOptions::new("cluster.local");
        let authority = Authority::open(&mesh.path("control/ca"), options).expect("the mesh's own authority");
        let issued = authority.server_certificate(&[], &[address.ip()]).expect("a certificate");
        let store = CredentialStore::new(TrustBundle::clone(&issued.bundle));
        store.replace(Some(Arc::new(issued.certificate)), issued.bundle);
        let tcp = TcpListener::bind(address).await.expect("the control plane has gone");
        let tls = TlsListener::from_store(tcp, store, &[b"h2"], ClientAuth::Optional);
        let (sender, lines) = mpsc::channel(4);
        let service = AggregatedDiscoveryServiceServer::new(Script(sender));
        let serve = tonic::transport::Server::builder().add_service(service).serve_with_incoming(tls);
        let task = tokio::spawn(async move {
            serve.await.expect("it serves until it is ended");
        });
        Self { lines, task }
    }

    /// The next stream that a sidecar opens.
    pub async fn line(&mut self) -> Line {
        self.lines.recv().await.expect("the server lives")
    }
}

impl Drop for FakeControl {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// A response of one type; the nonce is the caller's.
pub fn response(
    nonce: &str,
    type_url: &str,
    resources: Vec<Resource>,
    removed: &[&str],
) -> DeltaDiscoveryResponse {
    DeltaDiscoveryResponse {
        nonce: nonce.to_owned(),
        type_url: type_url.to_owned(),
        resources,
        removed_resources: removed.iter().map(|&name| name.to_owned()).collect(),
        ..Default::default()
    }
}

/// A resource of any bytes.
pub fn resource(name: &str, type_url: &str, value: Vec<u8>) -> Resource {
    Resource {
        name: name.to_owned(),
        version: "forged".to_owned(),
        resource: Some(Any { type_url: type_url.to_owned(), value }),
        ..Default::default()
    }
}

impl Line {
    /// Its two directions.
    pub(crate) fn split(self) -> crate::shelf::Ends {
        (self.requests, self.responses)
    }

    /// Says something; the sidecar may have gone.
    pub async fn say(&self, response: DeltaDiscoveryResponse) {
        let _ = self.responses.send(Ok(response)).await;
    }

    /// What the sidecar answers to a nonce: `None` for an ACK, else the text of its NACK.
    pub async fn answer(&mut self, nonce: &str) -> Option<String> {
        loop {
            let request =
                self.requests.message().await.expect("the stream stands").expect("the sidecar goes on");
            if request.response_nonce == nonce {
                return request.error_detail.map(|status| status.message);
            }
        }
    }

    /// The id of the sidecar's node, from the first request.
    pub async fn node(&mut self) -> String {
        let first = self.requests.message().await.expect("the stream stands").expect("a first request");
        first.node.map(|node| node.id).unwrap_or_default()
    }

    /// Breaks the stream off.
    pub async fn drop_it(self) {
        let _ = self.responses.send(Err(Status::unavailable("broken off in mid-push"))).await;
    }
}
