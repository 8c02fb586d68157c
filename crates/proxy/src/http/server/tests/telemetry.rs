//! What a request leaves behind: a log line, metrics, trace context; and configuration that changes under it.

use std::collections::HashMap;
use std::io::{self, Write};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use outrigger_model::identity::SpiffeId;
use outrigger_model::listener::{Direction, Tracing};
use outrigger_telemetry::metrics::Registry;

use super::rig::*;
use super::world;
use crate::access_log::{Format, Sink};
use crate::protocol::HttpVersion::Http1;

const PARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

struct Pipe(Sender<String>);

impl Write for Pipe {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.send(String::from_utf8_lossy(bytes).into_owned()).map_err(io::Error::other)?;
        Ok(bytes.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

pub(super) fn log(format: Format) -> (Sink, Receiver<String>) {
    let (sender, lines) = channel();
    (Sink::writer(Box::new(Pipe(sender)), format).unwrap(), lines)
}

pub(super) fn next(lines: &Receiver<String>) -> String {
    lines.recv_timeout(Duration::from_secs(20)).expect("no line was logged")
}

async fn app() -> std::net::SocketAddr {
    upstream(|_, mut wire| async move {
        loop {
            wire.head().await;
            wire.send(&ok("hello")).await;
        }
    })
    .await
}

#[tokio::test]
async fn where_all_memory_is_handed_out_a_newcomer_gets_a_503_with_its_flag() {
    run(async {
        let (sink, lines) = log(Format::Json);
        let mut setup = Setup::to(&[app().await]);
        (setup.log, setup.memory) = (Some(sink), 16 << 20);
        let rig = proxy(setup, Http1).await;
        let worker = &rig.worker;
        // Twenty clients hold all of it: none of them much more than the others, and none is idle.
        let held: Vec<_> = std::iter::repeat_with(|| {
            let account = worker.ledger.open(worker.alarm.place(&worker.process.drain));
            assert!(account.take((8 << 20) / 20));
            account
        })
        .take(20)
        .collect();
        let large = format!("GET / HTTP/1.1\r\nHost: a\r\nX-Large: {}\r\n\r\n", "x".repeat(40 << 10));
        let mut client = Wire::connect(rig.address).await;
        client.send(&large).await;
        let answer = client.rest().await;
        assert!(answer.starts_with("HTTP/1.1 503 "), "{answer}");
        let line: serde_json::Value = serde_json::from_str(&next(&lines)).unwrap();
        assert_eq!((&line["response_flags"], &line["response_code"]), (&"OM".into(), &503.into()), "{line}");
        drop(held);
        let mut client = Wire::connect(rig.address).await;
        client.send(&large).await;
        assert!(client.head().await.starts_with("HTTP/1.1 200 "));
    })
    .await;
}

#[tokio::test]
async fn text_line_is_istios() {
    run(async {
        let (sink, lines) = log(Format::Text);
        let address = app().await;
        let mut setup = Setup::to(&[address]);
        setup.log = Some(sink);
        let rig = proxy(setup, Http1).await;
        let mut client = Wire::connect(rig.address).await;
        client
            .send("GET /a?b HTTP/1.1\r\nHost: shop\r\nUser-Agent: \"evil\"\r\nX-Request-Id: id-7\r\n\r\n")
            .await;
        client.head().await;
        client.bytes(5).await;
        let line = next(&lines);
        let rest = line.split_once("] ").unwrap().1;
        assert!(rest.starts_with("\"GET /a?b HTTP/1.1\" 200 - via_upstream - \"-\" 0 5 "), "{line}");
        let tail = format!("\"-\" \"\\x22evil\\x22\" \"id-7\" \"shop\" \"{address}\" c 127.0.0.1:");
        assert!(rest.contains(&tail), "{tail} in {line}");
        assert!(line.ends_with(" - r\n"), "{line}");
        assert!(line.starts_with("[20") && line[1..].split(']').next().unwrap().ends_with('Z'), "{line}");
    })
    .await;
}

/// What stands in the log is what was judged, whatever a client claims that it was before.
#[tokio::test]
async fn the_logged_path_is_the_one_that_came_and_not_what_the_client_says_of_it() {
    run(async {
        for (rewrite, wanted) in [(None, "/admin?x"), (Some("/inner"), "/admin?x")] {
            let (sink, lines) = log(Format::Json);
            let mut setup = Setup::to(&[app().await]);
            setup.log = Some(sink);
            setup.route.matches.path = outrigger_model::route::PathMatch::Prefix("/admin".into());
            setup.forward().rewrite.prefix = rewrite.map(str::to_owned);
            let rig = proxy(setup, Http1).await;
            let mut client = Wire::connect(rig.address).await;
            client
                .send("GET /admin?x HTTP/1.1\r\nHost: shop\r\nX-Envoy-Original-Path: /innocent\r\n\r\n")
                .await;
            client.head().await;
            client.bytes(5).await;
            let line: serde_json::Value = serde_json::from_str(&next(&lines)).unwrap();
            assert_eq!(line["path"], wanted, "{line}");
        }
    })
    .await;
}

#[tokio::test]
async fn refusals_are_logged_once_too() {
    run(async {
        let (sink, lines) = log(Format::Json);
        let mut setup = Setup::to(&[nobody().await]);
        setup.log = Some(sink);
        let rig = proxy(setup, Http1).await;
        let mut client = Wire::connect(rig.address).await;
        client.send("GET /x HTTP/1.1\r\nHost: a\r\n\r\n").await;
        client.head().await;
        let line = next(&lines);
        let line: serde_json::Value = serde_json::from_str(&line).unwrap();
        assert_eq!(line["response_code"], 503);
        assert_eq!(line["response_flags"], "UF");
        assert_eq!(line["upstream_cluster"], "c");
        assert!(line["error"].as_str().unwrap().contains("connect_failed"), "{line}");
        let mut client = Wire::connect(rig.address).await;
        client.send("BROKEN\r\n\r\n").await;
        client.rest().await;
        let line: serde_json::Value = serde_json::from_str(&next(&lines)).unwrap();
        assert_eq!((&line["response_code"], &line["response_flags"]), (&400.into(), &"DPE".into()));
        assert_eq!(
            line["protocol"], "HTTP/1.1",
            "what the client spoke, although its head could not be read"
        );
        assert_eq!((&line["method"], &line["path"]), (&serde_json::Value::Null, &serde_json::Value::Null));
        assert!(lines.recv_timeout(Duration::from_millis(50)).is_err(), "a second line");
    })
    .await;
}

#[tokio::test]
async fn requests_are_counted_by_code() {
    run(async {
        let rig = proxy(Setup::to(&[app().await]), Http1).await;
        let mut client = Wire::connect(rig.address).await;
        for _ in 0..3 {
            client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
            client.head().await;
            client.bytes(5).await;
        }
        // The record closes when the connection looks for the next request.
        client.send("GET / HTTP/1.0\r\n\r\n").await;
        client.rest().await;
        let registry = Registry::new();
        registry.register(rig.worker.process.metrics.clone());
        let page = registry.render();
        let line = page.lines().find(|l| l.starts_with("istio_requests_total{")).unwrap();
        assert!(line.contains("response_code=\"200\"") && line.ends_with("} 4"), "{line}");
        assert!(page.contains("destination_workload=\"app-v1\""), "{page}");
    })
    .await;
}

/// Sends one request with these trace headers; the traceparent that the application got.
async fn traced(sampling: Option<f64>, direction: Direction, headers_sent: &str) -> (Option<String>, Rig) {
    let (mut got, rig) = traced_headers(sampling, direction, headers_sent).await;
    (got.remove("traceparent"), rig)
}

/// Sends one request with these trace headers; all that the application got.
async fn traced_headers(
    sampling: Option<f64>,
    direction: Direction,
    headers_sent: &str,
) -> (HashMap<String, String>, Rig) {
    let (seen, got) = channel();
    let app = upstream(move |_, mut wire| {
        let seen = seen.clone();
        async move {
            let head = wire.head().await;
            seen.send(headers(&head)).unwrap();
            wire.send(&ok("")).await;
        }
    })
    .await;
    let mut setup = Setup::to(&[app]);
    setup.direction = direction;
    setup.http.tracing = sampling.map(|random_sampling| Tracing { random_sampling });
    let rig = proxy(setup, Http1).await;
    let mut client = Wire::connect(rig.address).await;
    client.send(&format!("GET / HTTP/1.1\r\nHost: a\r\n{headers_sent}\r\n")).await;
    client.head().await;
    (got.recv().unwrap(), rig)
}

#[tokio::test]
async fn recorded_span_becomes_the_parent() {
    run(async {
        for direction in [Direction::Inbound, Direction::Outbound] {
            let sent = format!("traceparent: {PARENT}\r\n");
            let (got, _rig) = traced(Some(0.0), direction, &sent).await;
            let got = got.unwrap();
            assert_eq!(got[..36], PARENT[..36], "the trace goes on");
            assert_ne!(got[36..52], PARENT[36..52], "with our span as parent");
            assert!(got.ends_with("-01"), "{got}");
        }
    })
    .await;
}

#[tokio::test]
async fn a_trace_that_begins_here_has_no_tracestate_of_another() {
    run(async {
        for (sampling, sent) in [(100.0, ""), (1e-9, ""), (100.0, "b3: 1\r\n")] {
            let sent = format!("{sent}tracestate: vendor=1\r\n");
            let (got, _rig) = traced_headers(Some(sampling), Direction::Outbound, &sent).await;
            assert!(!got.contains_key("tracestate"), "{got:?}");
            assert!(got.contains_key("traceparent") || got["b3"].len() > 1, "a trace begins: {got:?}");
        }
        let sent = format!("traceparent: {PARENT}\r\ntracestate: vendor=1\r\n");
        let (got, _rig) = traced_headers(Some(100.0), Direction::Outbound, &sent).await;
        assert_eq!(got["tracestate"], "vendor=1");
    })
    .await;
}

#[tokio::test]
async fn of_several_trace_formats_none_goes_stale() {
    const B3: &str = "b3: 80f198ee56343ba864fe8b2a57d3eff7-e457b5a2e4d86bd1-0\r\n";
    const MULTI: &str = "X-B3-TraceId: 80f198ee56343ba864fe8b2a57d3eff7\r\nX-B3-SpanId: e457b5a2e4d86bd1\r\n\
                         X-B3-ParentSpanId: 05e3ac9a4f6e3b90\r\nX-B3-Sampled: 1\r\nX-B3-Flags: 1\r\n";
    let w3c = format!("traceparent: {PARENT}\r\n");
    run(async {
        let cases = [
            format!("{w3c}{B3}{MULTI}"),
            format!("{w3c}{B3}"),
            format!("{w3c}{MULTI}"),
            format!("{}{MULTI}", B3.replace("-0\r", "-1\r")),
        ];
        for sent in &cases {
            let (got, _rig) = traced_headers(Some(100.0), Direction::Inbound, sent).await;
            let of = |name: &str| got.get(name).map(String::as_str);
            let traceparent = of("traceparent").map(|value| (&value[3..35], &value[36..52]));
            let single = of("b3").map(|value| (&value[..32], &value[33..49]));
            let multi = of("x-b3-traceid").map(|trace| (trace, &*got["x-b3-spanid"]));
            let said: Vec<_> = [traceparent, single, multi].into_iter().flatten().collect();
            let names = ["traceparent:", "b3:", "X-B3-TraceId:"];
            let sent_as = names.iter().filter(|name| sent.lines().any(|line| line.starts_with(**name)));
            assert_eq!(said.len(), sent_as.count(), "each is still there: {got:?}");
            assert!(said.iter().all(|position| *position == said[0]), "all name the same span: {got:?}");
            assert_ne!(said[0].1, "e457b5a2e4d86bd1", "which is ours");
            assert!(of("b3").is_none_or(|value| value.ends_with("-1")), "{got:?}");
            assert!(of("x-b3-parentspanid").is_none() && of("x-b3-flags").is_none(), "{got:?}");
        }
    })
    .await;
}

#[tokio::test]
async fn context_that_is_not_recorded_passes_byte_for_byte() {
    run(async {
        let unsampled = PARENT.replace("-01", "-00");
        for (sampling, header) in
            [(Some(100.0), unsampled.as_str()), (Some(100.0), "00-zz-not-a-context"), (None, PARENT)]
        {
            let (got, _rig) =
                traced(sampling, Direction::Outbound, &format!("traceparent: {header}\r\n")).await;
            assert_eq!(got.as_deref(), Some(header));
        }
        let (got, _rig) = traced(Some(100.0), Direction::Outbound, "").await;
        assert!(got.unwrap().ends_with("-03"), "a new trace, sampled and random");
    })
    .await;
}

#[tokio::test]
async fn proved_peer_is_told_to_the_application() {
    run(async {
        let app = upstream(|_, mut wire| async move {
            let head = wire.head().await;
            let client = &headers(&head)["x-forwarded-client-cert"];
            assert_eq!(client, "By=spiffe://td/ns/shop/sa/web;URI=spiffe://td/ns/shop/sa/cart");
            assert_eq!(headers(&head)["x-forwarded-proto"], "https");
            wire.send(&ok("")).await;
        })
        .await;
        let mut setup = Setup::to(&[app]);
        setup.direction = Direction::Inbound;
        setup.peer = Some(SpiffeId::parse("spiffe://td/ns/shop/sa/cart").unwrap());
        let rig = proxy(setup, Http1).await;
        let mut client = Wire::connect(rig.address).await;
        client
            .send("GET / HTTP/1.1\r\nHost: a\r\nX-Forwarded-Client-Cert: URI=spiffe://td/admin\r\n\r\n")
            .await;
        assert!(client.head().await.starts_with("HTTP/1.1 200"));
    })
    .await;
}

#[tokio::test]
async fn open_connection_follows_a_new_configuration() {
    run(async {
        let (old, new) = (
            app().await,
            upstream(|_, mut wire| async move {
                wire.head().await;
                wire.send(&ok("fresh")).await;
            })
            .await,
        );
        let rig = proxy(Setup::to(&[old]), Http1).await;
        let mut client = Wire::connect(rig.address).await;
        for body in ["hello", "fresh"] {
            client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
            client.head().await;
            assert_eq!(client.bytes(5).await, body);
            let next = world::snapshot(Setup::to(&[new]), &rig.worker.process.snapshot.load());
            rig.worker.process.swap(next);
        }
    })
    .await;
}

#[tokio::test]
async fn a_response_says_how_long_the_upstream_took() {
    run(async {
        let upstream = upstream(|_, mut wire| async move {
            wire.head().await;
            wire.send(
                "HTTP/1.1 200 OK\r\nX-Envoy-Upstream-Service-Time: 123456\r\nContent-Length: 0\r\n\r\n",
            )
            .await;
            wire.rest().await;
        })
        .await;
        let rig = proxy(Setup::to(&[upstream]), Http1).await;
        let mut client = Wire::connect(rig.address).await;
        client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
        let head = client.head().await;
        assert_eq!(head.to_ascii_lowercase().matches("x-envoy-upstream-service-time").count(), 1, "{head}");
        let millis: u32 = headers(&head)["x-envoy-upstream-service-time"].parse().unwrap();
        assert!(millis < 100_000, "our own measure, not the one that the application made up");
    })
    .await;
}

#[tokio::test]
async fn messages_of_grpc_are_counted_both_ways() {
    run(async {
        let message = "\0\0\0\0\x01a";
        let upstream = upstream(move |_, mut wire| async move {
            wire.head().await;
            wire.bytes(3 * message.len()).await;
            let body = message.repeat(2);
            wire.send(&format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len())).await;
            wire.rest().await;
        })
        .await;
        let rig = proxy(Setup::to(&[upstream]), Http1).await;
        let mut client = Wire::connect(rig.address).await;
        let body = message.repeat(3);
        let length = body.len();
        client.send(&format!("POST /a.B/C HTTP/1.1\r\nHost: a\r\nContent-Type: application/grpc+proto\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}")).await;
        client.rest().await;
        let registry = Registry::new();
        registry.register(rig.worker.process.metrics.clone());
        let page = registry.render();
        for (name, count) in [("istio_request_messages_total{", " 3"), ("istio_response_messages_total{", " 2")] {
            let line = page.lines().find(|line| line.starts_with(name)).unwrap();
            assert!(line.ends_with(count), "{line}");
        }
    })
    .await;
}

#[tokio::test]
async fn a_peer_that_introduces_itself_is_named_and_the_application_never_sees_it() {
    run(async {
        let mut setup = Setup::to(&[app().await]);
        setup.direction = Direction::Inbound;
        setup.peer = Some(SpiffeId::parse("spiffe://td/ns/shop/sa/cart").unwrap());
        let seen = std::rc::Rc::new(std::cell::RefCell::new(Vec::new()));
        let heads = seen.clone();
        let address = upstream(move |_, mut wire| {
            let heads = heads.clone();
            async move {
                for _ in 0..3 {
                    let head = wire.head().await;
                    heads.borrow_mut().push(head);
                    wire.send(&ok("hello")).await;
                }
            }
        })
        .await;
        let endpoint = Setup::to(&[address]).cluster;
        setup.cluster = endpoint;
        let rig = proxy(setup, Http1).await;
        let mut client = Wire::connect(rig.address).await;
        let first = "X-Outrigger-Peer: 1;cart-v2;shop;cart;v2;east\r\nX-Envoy-Peer-Metadata-Id: a\r\nX-Envoy-Peer-Metadata: b\r\n";
        let later = "X-Outrigger-Peer: 1;evil;shop;evil;v1;west\r\nX-Envoy-Peer-Metadata: b\r\n";
        for headers in [first, later, ""] {
            client.send(&format!("GET / HTTP/1.1\r\nHost: a\r\n{headers}\r\n")).await;
            client.head().await;
            client.bytes(5).await;
        }
        drop(client);
        for head in seen.borrow().iter() {
            let head = head.to_ascii_lowercase();
            assert!(!head.contains("x-outrigger-peer") && !head.contains("peer-metadata"), "{head}");
        }
        let registry = Registry::new();
        registry.register(rig.worker.process.metrics.clone());
        let mut page = registry.render();
        while !page.contains("source_workload=\"cart-v2\"") || !page.contains("} 3") {
            tokio::task::yield_now().await;
            page = registry.render();
        }
        let lines: Vec<_> = page.lines().filter(|line| line.starts_with("istio_requests_total{")).collect();
        let [line] = lines.as_slice() else { panic!("one series: {lines:?}") };
        for label in ["source_app=\"cart\"", "source_version=\"v2\"", "source_cluster=\"east\"", "source_workload_namespace=\"shop\""] {
            assert!(line.contains(label), "{label} in {line}");
        }
    })
    .await;
}
