//! How old connections get: those of clients, for requests and for bytes, and those to servers.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::apps::{RUN, field, read_body, read_head};
use super::case::{Group, cluster, to, typed};
use super::play::Side;
use super::stage::{AGED, Stage};

/// So old connections of clients get.
const AGE: Duration = Duration::from_secs(2);
/// An Envoy counts from when its loop last looked at the clock, which is a little earlier.
const EARLY: Duration = Duration::from_millis(200);

/// What is under way on a connection to a server outlives its age.
pub fn groups() -> Vec<Group> {
    let options = typed(
        "envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
        json!({ "common_http_protocol_options": { "max_connection_duration": "0.1s" },
                "explicit_http_config": { "http_protocol_options": {} } }),
    );
    let fields = json!({ "typed_extension_protocol_options": { "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": options } });
    let route = to(json!({ "prefix": "/" }), "aged-servers", json!({}));
    let aged = Group::new("aged", json!([route])).cluster(cluster("aged-servers", &["a"], fields));
    vec![aged.ask(["GET /\nx-answers: late", "GET /again\nx-answers: late"])]
}

async fn asking(to: SocketAddr, run: &str, answer: &str) -> TcpStream {
    let mut stream = TcpStream::connect(to).await.expect("a connection");
    let request = format!("GET / HTTP/1.1\r\nHost: aged.test\r\nx-answers: {answer}\r\n{RUN}: {run}\r\n\r\n");
    stream.write_all(request.as_bytes()).await.expect("it is taken");
    stream
}

/// Until the proxy ends it, in whatever way.
async fn end(stream: &mut TcpStream) {
    let mut rest = Vec::new();
    let _ = timeout(Duration::from_secs(20), stream.read_to_end(&mut rest)).await.expect("it ends");
}

/// The head of an answer, and its body.
async fn answer(stream: &mut TcpStream) -> (String, Vec<u8>) {
    let read = async {
        let (head, rest) = read_head(stream).await.expect("a head").expect("an answer");
        let body = read_body(stream, &head, rest, true).await.expect("a body");
        (head, body)
    };
    timeout(Duration::from_secs(20), read).await.expect("it comes")
}

/// Bytes are cut when their connection is old, whatever is on its way.
async fn bytes(side: &Side) {
    let begun = Instant::now();
    let run = format!("{}/aged-bytes", side.name);
    let mut stream = asking(side.addresses[AGED[1]], &run, "hang").await;
    end(&mut stream).await;
    assert!(begun.elapsed() >= AGE - EARLY, "{}: after {:?}", side.name, begun.elapsed());
}

/// Requests are not: what is under way is answered, and then the connection ends, as an idle one does.
async fn requests(stage: &Stage, side: &Side) {
    let [held, quick] = ["held", "quick"].map(|name| format!("{}/aged-{name}", side.name));
    let mut older = asking(side.addresses[AGED[0]], &held, "hold").await;
    stage.apps.until(&held, 1).await;
    let begun = Instant::now();
    let mut younger = asking(side.addresses[AGED[0]], &quick, "200").await;
    let (head, _) = answer(&mut younger).await;
    assert!(head.starts_with("HTTP/1.1 200"), "{}: {head}", side.name);
    assert_eq!(field(&head, "connection"), None, "{}: it is young", side.name);
    end(&mut younger).await;
    assert!(begun.elapsed() >= AGE - EARLY, "{}: after {:?}", side.name, begun.elapsed());
    stage.apps.release(&held);
    let (head, body) = answer(&mut older).await;
    assert!(head.starts_with("HTTP/1.1 200"), "{}: {head}", side.name);
    assert_eq!(field(&head, "connection"), Some("close"), "{}: it takes leave", side.name);
    assert!(!body.is_empty(), "{}", side.name);
    end(&mut older).await;
}

pub async fn compare(stage: &Stage) {
    let (ours, theirs) = (&stage.ours, &stage.theirs);
    tokio::join!(bytes(ours), bytes(theirs), requests(stage, ours), requests(stage, theirs));
}
