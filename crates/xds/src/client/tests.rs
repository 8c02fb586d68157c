//! The client against a control plane that follows a script: the test reads what the client says and says what it wants.

use std::collections::BTreeMap;
use std::sync::Arc;

use envoy_types::pb::envoy::service::discovery::v3::aggregated_discovery_service_server::{
    AggregatedDiscoveryService, AggregatedDiscoveryServiceServer,
};
use outrigger_model::cluster::{ClientTls, Cluster, Outlier, OutsideTls};
use outrigger_model::resource::Barrier;
use tokio::net::TcpListener;
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tonic::{Request, Response, Status, Streaming};

use super::*;
use crate::wire::discovery::{
    self, DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse,
};
use crate::wire::protobuf::Any;
use crate::{ClientKind, encode, nack, type_url};

const CDS: ResourceKind = ResourceKind::Cluster;

/// One stream, as the script holds it. Dropping it ends the stream.
struct Line {
    requests: Streaming<DeltaDiscoveryRequest>,
    responses: mpsc::Sender<Result<DeltaDiscoveryResponse, Status>>,
}

impl Line {
    async fn hear(&mut self) -> DeltaDiscoveryRequest {
        self.requests.message().await.unwrap().unwrap()
    }

    async fn say(
        &self,
        kind: ResourceKind,
        nonce: &str,
        resources: Vec<discovery::Resource>,
        removed: &[&str],
    ) {
        let response = DeltaDiscoveryResponse {
            type_url: type_url(kind).into(),
            nonce: nonce.into(),
            resources,
            removed_resources: removed.iter().map(|s| (*s).to_owned()).collect(),
            ..Default::default()
        };
        self.responses.send(Ok(response)).await.unwrap();
    }
}

struct Script(mpsc::Sender<Line>);

#[tonic::async_trait]
impl AggregatedDiscoveryService for Script {
    type StreamAggregatedResourcesStream = ReceiverStream<Result<DiscoveryResponse, Status>>;
    type DeltaAggregatedResourcesStream = ReceiverStream<Result<DeltaDiscoveryResponse, Status>>;

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
        self.0.send(Line { requests: request.into_inner(), responses }).await.unwrap();
        Ok(Response::new(ReceiverStream::new(receiver)))
    }
}

/// A client with its script; streams arrive on `lines`.
struct Play {
    client: Client,
    events: Events,
    lines: mpsc::Receiver<Line>,
}

impl Play {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (sender, lines) = mpsc::channel(4);
        tokio::spawn(
            tonic::transport::Server::builder()
                .add_service(AggregatedDiscoveryServiceServer::new(Script(sender)))
                .serve_with_incoming(TcpListenerStream::new(listener)),
        );
        let connect = move || async move {
            Channel::from_shared(format!("http://{address}"))
                .map_err(|e| e.to_string())?
                .connect()
                .await
                .map_err(|e| e.to_string())
        };
        let node =
            NodeInfo { id: "n".into(), metadata: serde_json::json!({"A": [1, true]}), ..Default::default() };
        let quick = Options { backoff_base: Duration::from_millis(1), ..Default::default() };
        let (client, events, run) = start(connect, node, quick);
        tokio::spawn(run);
        Self { client, events, lines }
    }

    async fn line(&mut self) -> Line {
        self.lines.recv().await.unwrap()
    }

    /// The next event that is about resources.
    async fn event(&mut self) -> Event {
        loop {
            match self.events.recv().await.unwrap() {
                Event::Connected | Event::Disconnected { .. } => {}
                event => return event,
            }
        }
    }

    async fn update(&mut self) -> (Vec<String>, Vec<String>) {
        match self.event().await {
            Event::Update { upserts, removed, .. } => {
                (upserts.into_iter().map(|(r, v)| format!("{}@{v}", r.name())).collect(), removed)
            }
            other => panic!("{other:?} is no update"),
        }
    }
}

fn sent(name: &str, version: &str, resource: &Resource) -> discovery::Resource {
    let encoded = encode(resource, ClientKind::Outrigger);
    discovery::Resource {
        name: name.into(),
        version: version.into(),
        resource: Some(Any { type_url: encoded.type_url.into(), value: encoded.value }),
        ..Default::default()
    }
}

fn cluster(name: &str, version: &str) -> discovery::Resource {
    sent(name, version, &Resource::Cluster(Cluster::new(name)))
}

fn malformed(name: &str) -> discovery::Resource {
    let mut wire = cluster(name, "1");
    wire.resource.as_mut().unwrap().value = vec![0xff; 9];
    wire
}

fn barrier(generation: u64) -> discovery::Resource {
    let barrier = Resource::Barrier(Barrier { name: "barrier".into(), generation });
    sent("barrier", &generation.to_string(), &barrier)
}

#[tokio::test]
async fn what_was_asked_for_before_the_stream_is_told_with_the_node_once() {
    let mut play = Play::start().await;
    play.client.wildcard(CDS);
    play.client.subscribe(ResourceKind::Destination, "a:80");
    let mut line = play.line().await;
    let mut first = line.hear().await;
    let node = first.node.take().unwrap();
    let metadata = serde_json::json!({"A": [1, true], "BARRIERS_WITHIN": true});
    assert_eq!(NodeInfo::from_wire(&node).metadata, metadata);
    let mut second = line.hear().await;
    assert!(second.node.is_none());
    if first.type_url != type_url(CDS) {
        std::mem::swap(&mut first, &mut second); // asked for while the first was on its way
    }
    assert_eq!(first.type_url, type_url(CDS));
    assert!(first.resource_names_subscribe.is_empty(), "the form of \"all\" that everybody knows");
    assert_eq!(second.resource_names_subscribe, ["a:80"]);
    play.client.unsubscribe(ResourceKind::Destination, "a:80");
    assert_eq!(line.hear().await.resource_names_unsubscribe, ["a:80"]);
}

#[tokio::test]
async fn good_resources_of_a_response_are_delivered_and_bad_ones_named_in_the_nack() {
    let mut play = Play::start().await;
    play.client.wildcard(CDS);
    let mut line = play.line().await;
    line.hear().await;
    let mut misnamed = cluster("c", "1");
    misnamed.name = "d".into();
    let endpoints = sent("e", "1", &Resource::Endpoints(Default::default()));
    let mut invalid = Cluster::new("f");
    invalid.outlier = Some(Outlier { interval: Duration::ZERO, ..Default::default() });
    let invalid = sent("f", "7", &Resource::Cluster(invalid));
    let (twin, other) = (cluster("g", "1"), cluster("g", "2"));
    let all = vec![cluster("a", "1"), malformed("b"), misnamed, endpoints, twin, other, invalid];
    line.say(CDS, "n1", all, &["gone"]).await;
    assert_eq!(play.update().await, (vec!["a@1".to_owned()], vec!["gone".to_owned()]));
    let answer = line.hear().await;
    assert_eq!(answer.response_nonce, "n1");
    let entries = nack::entries(&answer.error_detail.unwrap());
    let named: Vec<_> =
        entries.iter().map(|e| (e.name.as_str(), e.version.as_str(), e.field.as_str())).collect();
    let expected = [
        ("b", "1", ""),
        ("d", "1", ""),
        ("e", "1", ""),
        ("g", "1", ""),
        ("g", "2", ""),
        ("f", "7", "outlier_detection.interval"),
    ];
    assert_eq!(named, expected);
    for (name, version, _) in expected {
        let Event::Rejected { invalid, version: refused, .. } = play.event().await else {
            panic!("no rejection")
        };
        assert_eq!((invalid.name.as_str(), refused.as_str()), (name, version));
    }
    line.say(CDS, "n2", vec![cluster("b", "2")], &[]).await;
    assert_eq!(play.update().await.0, ["b@2"]);
    let answer = line.hear().await;
    assert_eq!((answer.response_nonce.as_str(), answer.error_detail), ("n2", None));
}

#[tokio::test]
async fn an_unknown_type_is_refused_and_the_stream_goes_on() {
    let mut play = Play::start().await;
    play.client.wildcard(CDS);
    let mut line = play.line().await;
    line.hear().await;
    let odd = DeltaDiscoveryResponse { type_url: "odd".into(), nonce: "n1".into(), ..Default::default() };
    line.responses.send(Ok(odd)).await.unwrap();
    let answer = line.hear().await;
    assert_eq!((answer.type_url.as_str(), answer.response_nonce.as_str()), ("odd", "n1"));
    assert!(answer.error_detail.unwrap().message.contains("odd"));
    line.say(CDS, "n2", vec![cluster("a", "1")], &[]).await;
    assert_eq!(play.update().await.0, ["a@1"]);
}

#[tokio::test]
async fn after_a_lost_stream_only_what_is_not_known_needs_to_be_sent() {
    let mut play = Play::start().await;
    play.client.wildcard(CDS);
    play.client.subscribe(ResourceKind::Endpoints, "x");
    let mut line = play.line().await;
    line.hear().await;
    line.say(CDS, "n1", vec![cluster("a", "1"), cluster("b", "1"), malformed("c")], &[]).await;
    play.update().await;
    line.say(CDS, "n2", vec![cluster("a", "2")], &["b"]).await;
    drop(line); // in the middle of a push, before any answer was read
    let Event::Rejected { .. } = play.event().await else { panic!("no rejection") };
    assert_eq!(play.update().await, (vec!["a@2".to_owned()], vec!["b".to_owned()]));
    let mut line = play.line().await;
    // Between two streams too a wish is not lost.
    play.client.subscribe(ResourceKind::Endpoints, "y");
    let mut names = Vec::new();
    let mut node = 0;
    while names.len() < 2 {
        let request = line.hear().await;
        node += usize::from(request.node.is_some());
        if request.type_url == type_url(CDS) {
            let has: Vec<_> = request.initial_resource_versions.into_iter().collect();
            assert_eq!(has, [("a".to_owned(), "2".to_owned())]);
        } else {
            names.extend(request.resource_names_subscribe);
        }
    }
    names.sort();
    assert_eq!((names, node), (vec!["x".to_owned(), "y".to_owned()], 1));
}

#[tokio::test]
async fn a_barrier_is_acknowledged_when_it_is_in_force() {
    let mut play = Play::start().await;
    play.client.wildcard(ResourceKind::Barrier);
    play.client.wildcard(CDS);
    let mut line = play.line().await;
    for _ in 0..2 {
        line.hear().await;
    }
    line.say(ResourceKind::Barrier, "n1", vec![barrier(4)], &[]).await;
    assert_eq!(play.update().await.0, ["barrier@4"]);
    play.client.ack_barrier(3);
    line.say(CDS, "n2", vec![cluster("a", "1")], &[]).await;
    assert_eq!(line.hear().await.response_nonce, "n2", "3 is less than 4: the barrier is still closed");
    play.client.ack_barrier(4);
    assert_eq!(line.hear().await.response_nonce, "n1");
    line.say(ResourceKind::Barrier, "n3", vec![barrier(4)], &[]).await;
    assert_eq!(line.hear().await.response_nonce, "n3", "what is in force already is acknowledged at once");
}

#[tokio::test]
async fn a_barrier_within_a_response_is_confirmed_with_it_or_else_after_it() {
    let mut play = Play::start().await;
    play.client.wildcard(ResourceKind::Barrier);
    play.client.wildcard(CDS);
    let mut line = play.line().await;
    for _ in 0..2 {
        line.hear().await;
    }
    let answered = |request: DeltaDiscoveryRequest| (request.type_url, request.response_nonce);
    let answer = |kind, nonce: &str| (type_url(kind).to_owned(), nonce.to_owned());
    line.say(CDS, "n1", vec![cluster("a", "1"), barrier(4)], &[]).await;
    assert_eq!(play.update().await.0, ["a@1"]);
    assert_eq!(play.update().await.0, ["barrier@4"]);
    assert_eq!(answered(line.hear().await), answer(CDS, "n1"), "not in force yet, and the next may come");
    play.client.ack_barrier(4);
    assert_eq!(answered(line.hear().await), answer(ResourceKind::Barrier, "n1"));
    line.say(CDS, "n2", vec![cluster("a", "2"), barrier(4)], &[]).await;
    assert_eq!(answered(line.hear().await), answer(ResourceKind::Barrier, "n2"), "one answer to both");
    line.say(CDS, "n3", vec![cluster("a", "3")], &[]).await;
    assert_eq!(answered(line.hear().await), answer(CDS, "n3"));
}

#[tokio::test]
async fn generations_of_another_control_plane_are_acknowledged_for_themselves() {
    let mut play = Play::start().await;
    play.client.wildcard(ResourceKind::Barrier);
    play.client.wildcard(CDS);
    let mut line = play.line().await;
    for _ in 0..2 {
        line.hear().await;
    }
    line.say(ResourceKind::Barrier, "n1", vec![barrier(9)], &[]).await;
    assert_eq!(play.update().await.0, ["barrier@9"]);
    play.client.ack_barrier(9);
    assert_eq!(line.hear().await.response_nonce, "n1");
    drop(line);

    let mut line = play.line().await;
    for _ in 0..2 {
        line.hear().await;
    }
    // Of the stream before, by a consumer that has not heard of the new one.
    play.client.ack_barrier(9);
    for (nonce, generation) in [("m1", 4), ("m2", 9)] {
        line.say(ResourceKind::Barrier, nonce, vec![barrier(generation)], &[]).await;
        line.say(CDS, &format!("{nonce}-"), vec![cluster("a", nonce)], &[]).await;
        assert_eq!(
            line.hear().await.response_nonce,
            format!("{nonce}-"),
            "{generation} is not in force here"
        );
        assert_eq!(play.update().await.0, [format!("barrier@{generation}")]);
        play.update().await;
        play.client.ack_barrier(generation);
        assert_eq!(line.hear().await.response_nonce, nonce);
    }
}

#[tokio::test]
async fn what_is_refused_is_asked_about_again_and_said_to_want_tls_or_not() {
    let mut play = Play::start().await;
    play.client.wildcard(CDS);
    let mut line = play.line().await;
    line.hear().await;
    line.say(CDS, "n1", vec![cluster("a", "1"), cluster("b", "1"), cluster("c", "1")], &[]).await;
    play.update().await;
    line.hear().await;
    // A name that TLS cannot ask for: for all endpoints, or for those of the mesh alone.
    let outside = ClientTls::Outside(OutsideTls::default());
    let bad = |name: &str, tls: ClientTls| {
        let outlier = Outlier { interval: Duration::ZERO, ..Outlier::default() };
        sent(name, "2", &Resource::Cluster(Cluster { tls, outlier: Some(outlier), ..Cluster::new(name) }))
    };
    let mesh = ClientTls::Mesh { server_name: "x".into(), identities: Vec::new(), required: false };
    line.say(CDS, "n2", vec![bad("a", outside), bad("b", mesh)], &[]).await;
    assert_eq!(play.update().await, (Vec::new(), Vec::new()));
    for wanted in [("a", true), ("b", false)] {
        let Event::Rejected { invalid, wants_tls, .. } = play.event().await else { panic!("no rejection") };
        assert_eq!((invalid.name.as_str(), wants_tls), wanted);
    }
    assert!(line.hear().await.error_detail.is_some());
    drop(line);
    let has = play.line().await.hear().await.initial_resource_versions;
    let has: BTreeMap<_, _> = has.iter().map(|(name, version)| (name.as_str(), version.as_str())).collect();
    let wanted = BTreeMap::from([("a", ""), ("b", ""), ("c", "1")]);
    assert_eq!(has, wanted, "the version before would not be sent again, and may not be in force");
}

#[tokio::test]
async fn a_veto_after_the_ack_reaches_the_control_plane_and_is_asked_about_again() {
    let mut play = Play::start().await;
    play.client.wildcard(CDS);
    let mut line = play.line().await;
    line.hear().await;
    line.say(CDS, "n1", vec![cluster("a", "1")], &[]).await;
    play.update().await;
    assert_eq!(line.hear().await.error_detail, None);
    let invalid = Invalid { kind: CDS, name: "a".into(), field: "x".into(), reason: "cannot".into() };
    play.client.reject(CDS, "a", "1", invalid);
    let veto = line.hear().await;
    let entries = nack::entries(&veto.error_detail.unwrap());
    assert_eq!((entries[0].name.as_str(), entries[0].field.as_str()), ("a", "x"));
    drop(line);
    let mut line = play.line().await;
    let has = line.hear().await.initial_resource_versions;
    assert_eq!(has.get("a").map(String::as_str), Some(""), "known, but to be sent again");
}

#[tokio::test]
async fn names_that_nobody_wants_any_more_are_not_delivered() {
    let mut play = Play::start().await;
    play.client.subscribe(CDS, "a");
    let mut line = play.line().await;
    line.hear().await;
    line.say(CDS, "n1", vec![cluster("a", "1"), cluster("b", "1")], &[]).await;
    assert_eq!(play.update().await.0, ["a@1"]);
}

#[tokio::test]
async fn what_was_dropped_and_is_wanted_again_is_asked_for_again() {
    let mut play = Play::start().await;
    play.client.subscribe(CDS, "a");
    let mut line = play.line().await;
    line.hear().await;
    line.say(CDS, "n1", vec![cluster("a", "1")], &[]).await;
    assert_eq!(play.update().await.0, ["a@1"]);
    line.hear().await;
    // The stream hears of neither before both have happened: this runtime has one thread.
    play.client.unsubscribe(CDS, "a");
    play.client.subscribe(CDS, "a");
    let again = line.hear().await;
    assert_eq!(
        (again.resource_names_subscribe, again.resource_names_unsubscribe),
        (vec!["a".to_owned()], vec![])
    );
    drop(line);
    let mut line = play.line().await;
    assert!(line.hear().await.initial_resource_versions.is_empty(), "the consumer has it no longer");
}

#[tokio::test]
async fn a_control_plane_that_cannot_be_reached_is_told_of_and_tried_again() {
    let attempts = Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let count = attempts.clone();
    let connect = move || {
        count.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        async { Err("nobody is there".to_owned()) }
    };
    let quick = Options { backoff_base: Duration::from_millis(1), ..Default::default() };
    let (_client, mut events, run) = start(connect, NodeInfo::default(), quick);
    let run = tokio::spawn(run);
    for _ in 0..3 {
        let reason = "nobody is there".to_owned();
        assert_eq!(events.recv().await, Some(Event::Disconnected { reason }));
    }
    assert!(attempts.load(std::sync::atomic::Ordering::Relaxed) >= 3);
    drop(events);
    run.await.unwrap();
}

#[tokio::test]
async fn a_server_that_answers_and_ends_every_stream_at_once_is_asked_less_and_less_often() {
    fastrand::seed(7); // of this thread, which runs client and server
    let mut play = Play::start().await;
    play.client.wildcard(CDS);
    let begun = tokio::time::Instant::now();
    for _ in 0..10 {
        let mut line = play.line().await;
        line.hear().await;
        line.say(CDS, "1", Vec::new(), &[]).await;
        assert!(matches!(play.event().await, Event::Update { .. }));
    }
    // Bounds of 1, 2, 4, … 256 ms; it was 1 ms each time.
    assert!(begun.elapsed() > Duration::from_millis(100), "{:?}", begun.elapsed());
}
