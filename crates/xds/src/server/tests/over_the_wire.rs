//! The service behind a real transport, with our own client and with bare stubs.

use std::time::Duration;

use envoy_types::pb::envoy::service::discovery::v3::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient;
use outrigger_model::cluster::Outlier;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tonic::transport::Channel;
use tonic::{Code, Streaming};

use super::*;
use crate::client::{self, Client, Event, Events};
use crate::wire::core;

/// Serves one shelf to everybody who proves to be `spiffe://td/ns/a/sa/b`.
struct Office(Arc<Shelf>);

impl Source for Office {
    fn open(
        &self,
        node: &NodeInfo,
        peer: Option<&SpiffeId>,
        remote: Option<SocketAddr>,
    ) -> Result<Arc<dyn View>, tonic::Status> {
        assert!(remote.is_some());
        match peer {
            Some(id) if id.as_str() == "spiffe://td/ns/a/sa/b" && node.id == "n" => Ok(self.0.view()),
            _ => Err(tonic::Status::permission_denied("not you")),
        }
    }
}

async fn serve(shelf: &Arc<Shelf>) -> Channel {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let peer_of = |extensions: &tonic::Extensions| {
        let remote =
            extensions.get::<tonic::transport::server::TcpConnectInfo>().and_then(|i| i.remote_addr());
        (Some(SpiffeId::parse("spiffe://td/ns/a/sa/b").unwrap()), remote)
    };
    let service = AdsService::server(Arc::new(Office(shelf.clone())), peer_of);
    tokio::spawn(
        tonic::transport::Server::builder()
            .add_service(service)
            .serve_with_incoming(TcpListenerStream::new(listener)),
    );
    Channel::from_shared(format!("http://{address}")).unwrap().connect().await.unwrap()
}

async fn join(channel: Channel) -> (Client, Events) {
    let node = NodeInfo { id: "n".into(), ..Default::default() };
    let connect = move || std::future::ready(Ok(channel.clone()));
    let quick = client::Options { backoff_base: Duration::from_millis(1), ..Default::default() };
    let (client, events, run) = client::start(connect, node, quick);
    tokio::spawn(run);
    (client, events)
}

impl Shelf {
    /// Everything that was put becomes the next generation.
    fn publish(&self) -> u64 {
        let generation = self.audience.generation() + 1;
        self.audience.changed(generation, &[(ResourceKind::Barrier, "barrier".into())], [], []);
        generation
    }

    /// Waits until an event of that kind was reported.
    async fn reported(&self, wanted: impl Fn(&ClientEvent) -> bool) -> ClientEvent {
        loop {
            let found = self.events.lock().iter().find(|event| wanted(event)).cloned();
            if let Some(event) = found {
                return event;
            }
            tokio::task::yield_now().await;
        }
    }
}

async fn update(events: &mut Events) -> (ResourceKind, Vec<String>, Vec<String>) {
    loop {
        match events.recv().await.unwrap() {
            Event::Update { kind, upserts, removed } => {
                return (kind, upserts.into_iter().map(|(r, _)| r.name().to_owned()).collect(), removed);
            }
            Event::Connected | Event::Rejected { .. } => {}
            Event::Disconnected { reason } => panic!("{reason}"),
        }
    }
}

#[tokio::test]
async fn a_proxy_learns_a_destination_on_demand_and_confirms_the_barrier() {
    let shelf = Shelf::new(ClientKind::Outrigger);
    shelf.put(cluster("a", 1));
    shelf.publish();
    let (client, mut events) = join(serve(&shelf).await).await;
    client.subscribe(ResourceKind::Destination, "a:80");
    assert_eq!(update(&mut events).await, (ResourceKind::Destination, vec![], vec!["a:80".to_owned()]));
    let destination = outrigger_model::resource::Destination { name: "a:80".into(), listener: "l".into() };
    shelf.put(Resource::Destination(destination));
    shelf.publish();
    assert_eq!(update(&mut events).await, (ResourceKind::Destination, vec!["a:80".to_owned()], vec![]));
    client.subscribe(CDS, "a");
    assert_eq!(update(&mut events).await.1, ["a"]);
    client.subscribe(ResourceKind::Barrier, "barrier");
    assert_eq!(update(&mut events).await.0, ResourceKind::Barrier);
    client.ack_barrier(2);
    shelf.reported(|e| *e == ClientEvent::BarrierAcked { generation: 2 }).await;
    // The next push ends with the next barrier.
    shelf.put(cluster("a", 2));
    shelf.publish();
    assert_eq!(update(&mut events).await.0, CDS);
    assert_eq!(update(&mut events).await.0, ResourceKind::Barrier);
    shelf.take(CDS, "a");
    client.ack_barrier(3);
    shelf.publish();
    assert_eq!(update(&mut events).await, (CDS, vec![], vec!["a".to_owned()]));
}

#[tokio::test]
async fn a_large_push_comes_in_portions_and_ends_with_the_barrier() {
    let shelf = Shelf::new(ClientKind::Outrigger);
    let wide = |n: usize| format!("{n:0>1000}");
    (0..500).for_each(|n| shelf.put(cluster(&wide(n), 1)));
    shelf.publish();
    let (client, mut events) = join(serve(&shelf).await).await;
    client.wildcard(CDS);
    client.subscribe(ResourceKind::Barrier, "barrier");
    let (mut portions, mut names) = (0, Vec::new());
    loop {
        let (kind, upserts, _) = update(&mut events).await;
        if kind == ResourceKind::Barrier {
            break;
        }
        portions += 1;
        assert!(upserts.len() < 200, "{} clusters in one response", upserts.len());
        names.extend(upserts);
    }
    names.sort();
    assert_eq!(names, (0..500).map(wide).collect::<Vec<_>>());
    assert!(portions > 2, "{portions}");
}

#[tokio::test]
async fn a_refusal_of_one_of_three_arrives_with_name_version_field_and_reason() {
    let shelf = Shelf::new(ClientKind::Outrigger);
    for name in ["a", "c"] {
        shelf.put(cluster(name, 1));
    }
    let mut bad = Cluster::new("b");
    bad.outlier = Some(Outlier { interval: Duration::ZERO, ..Default::default() });
    shelf.put(Resource::Cluster(bad));
    shelf.publish();
    let version = shelf.version(CDS, "b");
    let (client, mut events) = join(serve(&shelf).await).await;
    client.wildcard(CDS);
    assert_eq!(update(&mut events).await.1, ["a", "c"]);
    let nacked = shelf.reported(|e| matches!(e, ClientEvent::Nacked { .. })).await;
    let reason = "must be greater than zero".to_owned();
    let field = "outlier_detection.interval".to_owned();
    assert_eq!(nacked, ClientEvent::Nacked { kind: CDS, name: "b".into(), version, field, reason });
    // The refused version does not come again; a better one does.
    shelf.put(cluster("a", 2));
    shelf.publish();
    assert_eq!(update(&mut events).await.1, ["a"]);
    shelf.put(cluster("b", 1));
    shelf.publish();
    assert_eq!(update(&mut events).await.1, ["b"]);
}

#[tokio::test]
async fn a_slow_client_is_told_only_the_latest() {
    let shelf = Shelf::new(ClientKind::Outrigger);
    shelf.put(cluster("a", 0));
    shelf.publish();
    let channel = serve(&shelf).await;
    let (requests, mut responses) = stub(channel).await;
    requests.send(first(delta(CDS, &["*"], ""))).await.unwrap();
    let nonce = responses.message().await.unwrap().unwrap().nonce;
    for requests in 1..=50 {
        shelf.put(cluster("a", requests));
        shelf.publish();
        tokio::task::yield_now().await;
    }
    requests.send(delta(CDS, &[], &nonce)).await.unwrap();
    let next = responses.message().await.unwrap().unwrap();
    assert_eq!(next.resources[0].version, shelf.version(CDS, "a"));
}

async fn stub(
    channel: Channel,
) -> (mpsc::Sender<discovery::DeltaDiscoveryRequest>, Streaming<discovery::DeltaDiscoveryResponse>) {
    let (sender, receiver) = mpsc::channel(4);
    let responses = AggregatedDiscoveryServiceClient::new(channel)
        .delta_aggregated_resources(ReceiverStream::new(receiver))
        .await
        .unwrap();
    (sender, responses.into_inner())
}

fn first(mut request: discovery::DeltaDiscoveryRequest) -> discovery::DeltaDiscoveryRequest {
    request.node = Some(core::Node { id: "n".into(), ..Default::default() });
    request
}

#[tokio::test]
async fn a_stream_without_a_node_or_a_right_to_it_ends_with_a_status_that_says_so() {
    let shelf = Shelf::new(ClientKind::Outrigger);
    let channel = serve(&shelf).await;
    let (requests, mut responses) = stub(channel.clone()).await;
    requests.send(delta(CDS, &["*"], "")).await.unwrap();
    assert_eq!(responses.message().await.unwrap_err().code(), Code::InvalidArgument);
    let (requests, mut responses) = stub(channel).await;
    let mut other = first(delta(CDS, &["*"], ""));
    other.node.as_mut().unwrap().id = "somebody else".into();
    requests.send(other).await.unwrap();
    assert_eq!(responses.message().await.unwrap_err().code(), Code::PermissionDenied);
}

#[tokio::test]
async fn the_end_of_a_stream_is_reported() {
    let shelf = Shelf::new(ClientKind::Outrigger);
    let (requests, mut responses) = stub(serve(&shelf).await).await;
    requests.send(first(delta(CDS, &["*"], ""))).await.unwrap();
    responses.message().await.unwrap();
    drop((requests, responses));
    shelf.reported(|e| matches!(e, ClientEvent::Closed { .. })).await;
}

#[tokio::test]
async fn an_envoy_of_the_old_dialect_gets_whole_sets() {
    let shelf = Shelf::new(ClientKind::Envoy);
    shelf.put(cluster("a", 1));
    shelf.put(cluster("b", 1));
    shelf.publish();
    let (sender, receiver) = mpsc::channel(4);
    let mut responses = AggregatedDiscoveryServiceClient::new(serve(&shelf).await)
        .stream_aggregated_resources(ReceiverStream::new(receiver))
        .await
        .unwrap()
        .into_inner();
    let mut request = sotw(CDS, &[], "");
    request.node = first(delta(CDS, &[], "")).node;
    sender.send(request).await.unwrap();
    let one = responses.message().await.unwrap().unwrap();
    assert_eq!(one.resources.len(), 2);
    sender.send(sotw(CDS, &[], &one.nonce)).await.unwrap();
    shelf.reported(|e| matches!(e, ClientEvent::Acked { .. })).await;
    shelf.put(cluster("b", 2));
    shelf.publish();
    let two = responses.message().await.unwrap().unwrap();
    assert_eq!(two.resources.len(), 2, "always everything");
    assert_ne!(one.version_info, two.version_info);
}
