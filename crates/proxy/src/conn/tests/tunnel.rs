//! Bytes: half-close, pending configuration, retries of the connect, who speaks first.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use outrigger_model::cluster::{Cluster, Discovery};
use outrigger_model::listener::{Direction, Terminal, TransportMatch};
use outrigger_model::resource::Resource;
use socket2::SockRef;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::rig::*;
use crate::bootstrap::OutboundPolicy;

/// One plain TCP chain for whatever is sent to `address`.
fn plain(address: SocketAddr) -> [Resource; 2] {
    let chains = vec![chain("tcp", TransportMatch::Any, &[], tcp("app"))];
    [app_cluster(), listener("in", Direction::Inbound, Some(address), chains)]
}

/// A port whose protocol nobody declared, plain text only.
fn undeclared(address: SocketAddr) -> [Resource; 2] {
    let chains = vec![
        chain("web", TransportMatch::Plain, &["http/1.1", "h2c"], tcp("nowhere")),
        chain("tcp", TransportMatch::Plain, &[], tcp("app")),
    ];
    [app_cluster(), listener("in", Direction::Inbound, Some(address), chains)]
}

#[tokio::test]
async fn a_client_that_ends_first_still_gets_the_whole_answer() {
    local(async {
        let mut rig = Rig::new(|_| {});
        let address = rig.inbound(echo("").await);
        rig.apply(plain(address));
        let text = "ping ".repeat(100_000);
        assert_eq!(exchange(address, &text).await.unwrap(), text);
        let line = rig.line().await;
        assert_eq!(
            (line["bytes_received"].as_u64(), line["bytes_sent"].as_u64()),
            (Some(500_000), Some(500_000))
        );
        assert_eq!(line["response_flags"], serde_json::json!("-"));
        assert_eq!(rig.worker.connections.count(), 0);
    })
    .await;
}

#[tokio::test]
async fn a_connection_waits_for_its_configuration() {
    local(async {
        let mut rig = Rig::new(|_| {});
        let address = rig.inbound(echo("").await);
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(b"early").await.unwrap();
        tokio::task::yield_now().await;
        rig.apply(plain(address));
        assert_eq!(read(&mut stream, 5).await, "early");
    })
    .await;
}

#[tokio::test]
async fn configuration_that_never_comes_ends_the_connection_with_a_reason() {
    local(async {
        let mut rig = Rig::new(|process| process.pending_timeout = Duration::from_millis(20));
        let address = rig.inbound(nobody().await);
        assert_eq!(exchange(address, "x").await.unwrap_or_default(), "");
        let line = rig.line().await;
        assert_eq!(line["response_flags"], serde_json::json!("NC"));
        assert!(line["error"].as_str().unwrap().contains("config_pending"), "{line}");
    })
    .await;
}

#[tokio::test]
async fn a_destination_is_asked_for_when_it_is_first_used() {
    local(async {
        let mut rig = Rig::new(|_| {});
        let address = rig.outbound("stock.shop:8080");
        let app = echo("").await;
        let client = tokio::task::spawn_local(exchange(address, "hello"));
        assert_eq!(timeout(LONG, rig.demands.recv()).await.unwrap().unwrap().1, "stock.shop:8080");
        rig.apply(service("stock", cluster("stock", vec![endpoint(app, None)])));
        assert_eq!(client.await.unwrap().unwrap(), "hello");
    })
    .await;
}

#[tokio::test]
async fn a_destination_in_use_is_never_forgotten_and_a_forgotten_one_is_asked_for_anew() {
    local(async {
        let mut rig = Rig::new(|_| {});
        let app = echo("").await;
        rig.apply(service("stock", cluster("stock", vec![endpoint(app, None)])));
        let address = rig.outbound("stock.shop:8080");
        let usage = rig.worker.snapshot().destination("stock.shop:8080").unwrap().usage.clone();
        let mut open = TcpStream::connect(address).await.unwrap();
        open.write_all(b"a").await.unwrap();
        assert_eq!(read(&mut open, 1).await, "a");
        assert!(usage.idle().is_none() && !usage.close());
        // Another configuration is another snapshot, but the same use.
        rig.apply(service("stock", cluster("stock", vec![endpoint(app, None)])));
        assert!(Arc::ptr_eq(&rig.worker.snapshot().destination("stock.shop:8080").unwrap().usage, &usage));
        drop(open);
        rig.line().await;
        while usage.idle().is_none() {
            tokio::task::yield_now().await;
        }
        assert!(usage.close());
        let client = tokio::task::spawn_local(exchange(address, "hello"));
        assert_eq!(timeout(LONG, rig.demands.recv()).await.unwrap().unwrap().1, "stock.shop:8080");
        rig.apply(service("stock", cluster("stock", vec![endpoint(app, None)])));
        assert_eq!(client.await.unwrap().unwrap(), "hello");
    })
    .await;
}

#[tokio::test]
async fn what_is_not_in_the_mesh_is_refused_under_registry_only() {
    local(async {
        let mut rig = Rig::new(|process| process.outbound_policy = OutboundPolicy::RegistryOnly);
        let address = rig.outbound("outside.test:80");
        rig.apply([]);
        assert_eq!(exchange(address, "x").await.unwrap_or_default(), "");
        let line = rig.line().await;
        assert!(line["error"].as_str().unwrap().contains("REGISTRY_ONLY"), "{line}");
    })
    .await;
}

#[tokio::test]
async fn an_http_client_is_told_why_its_call_leads_nowhere() {
    local(async {
        let mut rig = Rig::new(|process| process.outbound_policy = OutboundPolicy::RegistryOnly);
        rig.apply([]);
        let address = rig.outbound("outside.test:80");
        let answer = exchange(address, "GET / HTTP/1.1\r\nHost: outside.test\r\n\r\n").await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 502 "), "{answer}");
        assert!(answer.contains("reason=not_in_mesh") && answer.contains("REGISTRY_ONLY"), "{answer}");
        assert!(answer.to_ascii_lowercase().contains("connection: close"), "{answer}");
        assert_eq!(exchange(address, "neither HTTP nor TLS\n").await.unwrap_or_default(), "");
        let line = rig.line().await;
        assert_eq!(line["response_code_details"], "not_in_mesh", "{line}");
    })
    .await;
}

#[tokio::test]
async fn a_refused_connect_is_tried_on_another_endpoint() {
    local(async {
        let mut rig = Rig::new(|_| {});
        let dead = nobody().await;
        let endpoints = vec![endpoint(dead, None), endpoint(echo("").await, None)];
        rig.apply(service("stock", cluster("stock", endpoints)));
        let address = rig.outbound("stock.shop:8080");
        for _ in 0..8 {
            assert_eq!(exchange(address, "hello").await.unwrap(), "hello");
        }
    })
    .await;
}

#[tokio::test]
async fn when_nobody_answers_the_record_says_who_was_tried() {
    local(async {
        let mut rig = Rig::new(|_| {});
        let dead = nobody().await;
        rig.apply(service("stock", cluster("stock", vec![endpoint(dead, None)])));
        let address = rig.outbound("stock.shop:8080");
        assert_eq!(exchange(address, "x").await.unwrap_or_default(), "");
        let line = rig.line().await;
        assert_eq!(line["response_flags"], serde_json::json!("UF"));
        assert!(line["error"].as_str().unwrap().contains(&dead.to_string()), "{line}");
    })
    .await;
}

#[tokio::test]
async fn a_connection_beyond_the_limit_waits_for_its_turn() {
    local(async {
        let mut rig = Rig::new(|_| {});
        let mut limited = cluster("stock", vec![endpoint(echo("").await, None)]);
        (limited.limits.max_connections, limited.limits.max_pending) = (1, 1);
        rig.apply(service("stock", limited));
        let address = rig.outbound("stock.shop:8080");
        let mut first = TcpStream::connect(address).await.unwrap();
        first.write_all(b"a").await.unwrap();
        assert_eq!(read(&mut first, 1).await, "a");
        let second = tokio::task::spawn_local(exchange(address, "b"));
        let cluster = rig.worker.snapshot().cluster("stock").unwrap().clone();
        while cluster.limits.view().pending == 0 {
            tokio::task::yield_now().await;
        }
        assert_eq!(exchange(address, "c").await.unwrap_or_default(), "", "the queue is full");
        assert_eq!(rig.line().await["response_flags"], serde_json::json!("UO"));
        drop(first);
        assert_eq!(second.await.unwrap().unwrap(), "b");
    })
    .await;
}

/// It breaks off what it has begun to say, or goes without a word.
async fn leave(mut stream: TcpStream, reset: bool) {
    if reset {
        stream.write_all(b"\0\0").await.unwrap();
        SockRef::from(&stream).set_linger(Some(Duration::ZERO)).unwrap();
    }
}

#[tokio::test]
async fn a_client_that_goes_leaves_its_turn_to_the_next() {
    local(async {
        let mut rig = Rig::new(|_| {});
        let mut limited = cluster("stock", vec![endpoint(echo("").await, None)]);
        (limited.limits.max_connections, limited.limits.max_pending) = (1, 2);
        limited.connect_timeout = LONG * 100;
        rig.apply(service("stock", limited));
        let address = rig.outbound("stock.shop:8080");
        let mut first = TcpStream::connect(address).await.unwrap();
        first.write_all(b"a").await.unwrap();
        assert_eq!(read(&mut first, 1).await, "a");
        let cluster = rig.worker.snapshot().cluster("stock").unwrap().clone();
        let waiting = |wanted: u32| {
            let cluster = cluster.clone();
            async move {
                while cluster.limits.view().pending != wanted {
                    tokio::task::yield_now().await;
                }
            }
        };
        // It is gone, too, but has said what it had to say.
        let mut brief = TcpStream::connect(address).await.unwrap();
        brief.write_all(b"bye").await.unwrap();
        timeout(LONG, waiting(1)).await.expect("it waits");
        drop(brief);
        for reset in [true, false] {
            let client = TcpStream::connect(address).await.unwrap();
            timeout(LONG, waiting(2)).await.expect("it waits");
            leave(client, reset).await;
            timeout(LONG, waiting(1)).await.expect("it is found out that the client has gone");
            assert_eq!(rig.line().await["response_flags"], "DC", "reset: {reset}");
        }
        drop(first);
        let mut received = [0; 2];
        for bytes in &mut received {
            *bytes = rig.line().await["bytes_received"].as_u64().unwrap();
        }
        received.sort_unstable();
        assert_eq!(received, [1, 3], "what it had said arrives");
    })
    .await;
}

#[tokio::test]
async fn nobody_is_dialled_for_a_client_that_has_gone() {
    local(async {
        let (app, _queue) = full().await;
        for (declared, reset) in [(true, true), (true, false), (false, true), (false, false)] {
            let mut rig = Rig::new(|_| {});
            let address = rig.inbound(app);
            rig.apply(if declared { plain(address) } else { undeclared(address) });
            let discovery = Discovery::OriginalDestination;
            let patient = Cluster { discovery, connect_timeout: LONG * 100, ..Cluster::new("app") };
            rig.apply([Resource::Cluster(patient)]);
            let client = TcpStream::connect(address).await.unwrap();
            busy(&rig, app, true).await;
            leave(client, reset).await;
            busy(&rig, app, false).await;
            assert_eq!(rig.line().await["response_flags"], "DC", "declared: {declared}, reset: {reset}");
        }
    })
    .await;
}

#[tokio::test]
async fn a_server_may_speak_first_where_no_protocol_is_declared() {
    local(async {
        let mut rig = Rig::new(|_| {});
        let address = rig.inbound(echo("220 ready\n").await);
        rig.apply(undeclared(address));
        let mut stream = TcpStream::connect(address).await.unwrap();
        assert_eq!(read(&mut stream, 10).await, "220 ready\n");
        stream.write_all(b"EHLO\n").await.unwrap();
        assert_eq!(read(&mut stream, 5).await, "EHLO\n");
    })
    .await;
}

type Port = fn(SocketAddr) -> [Resource; 2];

/// As they are, but that no connection gets older than this.
fn aged<const N: usize>(resources: [Resource; N], age: Duration) -> [Resource; N] {
    resources.map(|resource| match resource {
        Resource::Listener(mut listener) => {
            for chain in &mut listener.chains {
                if let Terminal::Tcp(tcp) = &mut chain.terminal {
                    tcp.max_duration = Some(age);
                }
            }
            Resource::Listener(listener)
        }
        other => other,
    })
}

#[tokio::test]
async fn a_connection_of_bytes_ends_when_it_is_old_whatever_is_on_its_way() {
    local(async {
        for (resources, speaks) in [(plain as Port, true), (undeclared as Port, false)] {
            let mut rig = Rig::new(|_| {});
            let address = rig.inbound(echo("").await);
            rig.apply(aged(resources(address), Duration::from_millis(300)));
            let started = std::time::Instant::now();
            let mut stream = TcpStream::connect(address).await.unwrap();
            if speaks {
                // Never silent.
                let told = async {
                    while stream.write_all(b"ping").await.is_ok()
                        && stream.read_exact(&mut [0; 4]).await.is_ok()
                    {}
                };
                timeout(LONG, told).await.expect("it does not end");
            } else {
                let _ = timeout(LONG, stream.read(&mut [0; 1])).await.expect("it does not end");
            }
            assert!(started.elapsed() >= Duration::from_millis(300), "{:?}", started.elapsed());
            let line = rig.line().await;
            assert_eq!(line["response_flags"], serde_json::json!("DT"), "{line}");
            assert!(line["error"].as_str().unwrap().contains("as long as its listener lets it"), "{line}");
        }
    })
    .await;
}

#[tokio::test]
async fn a_slow_client_of_a_silent_server_is_still_seen_to_speak_http() {
    local(async {
        let mut rig = Rig::new(|_| {});
        let app = echo("").await;
        let address = rig.inbound(app);
        rig.apply(undeclared(address));
        let mut stream = TcpStream::connect(address).await.unwrap();
        // The race has begun once the application is dialled.
        busy(&rig, app, true).await;
        stream.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
        // The chain for HTTP names a cluster that is not there, which proves that it was chosen.
        let mut rest = Vec::new();
        let _ = timeout(LONG, stream.read_to_end(&mut rest)).await.unwrap();
        assert_eq!(rest, b"");
        assert!(rig.line().await["error"].as_str().unwrap().contains("no backend here"));
    })
    .await;
}

/// How often the client, and how often the server won a race.
fn races(rig: &Rig) -> [u64; 2] {
    let registry = outrigger_telemetry::metrics::Registry::new();
    registry.register(rig.worker.process.metrics.clone());
    let page = registry.render();
    ["client", "server"].map(|speaker| {
        let name = format!("outrigger_raced_connections_total{{speaker=\"{speaker}\"}} ");
        page.lines().find_map(|line| line.strip_prefix(&name)).unwrap().parse().unwrap()
    })
}

#[tokio::test]
async fn a_server_that_speaks_first_is_remembered_and_the_memory_decides_nothing() {
    local(async {
        let mut rig = Rig::new(|_| {});
        let address = rig.inbound(echo("220 ready\n").await);
        rig.apply(undeclared(address));
        for n in 1..4 {
            let mut stream = TcpStream::connect(address).await.unwrap();
            assert_eq!(read(&mut stream, 10).await, "220 ready\n");
            assert_eq!(races(&rig), [0, n]);
            drop(stream);
            rig.line().await;
        }
        // Not even a remembered server makes opaque bytes of a request, so no policy for requests is gone around.
        let silent = echo("").await;
        let address = rig.inbound(silent);
        rig.apply(undeclared(address));
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
        let _ = timeout(LONG, stream.read_to_end(&mut Vec::new())).await.unwrap();
        assert!(rig.line().await["error"].as_str().unwrap().contains("no backend here"));
        assert_eq!(races(&rig), [1, 3], "the upstream was dialled at once, and went unused");
    })
    .await;
}

#[tokio::test]
async fn a_servers_first_words_are_held_back_while_the_client_may_begin_tls() {
    local(async {
        let mut rig = Rig::new(|_| {});
        let address = rig.inbound(echo("220 ready\n").await);
        let chains = vec![
            mesh_chain("mtls-tcp", &["istio"], Vec::new()),
            chain("plain-tcp", TransportMatch::Plain, &[], tcp("app")),
        ];
        rig.apply([app_cluster(), listener("in", Direction::Inbound, Some(address), chains)]);
        for _ in 0..2 {
            let begun = std::time::Instant::now();
            let mut stream = TcpStream::connect(address).await.unwrap();
            assert_eq!(read(&mut stream, 10).await, "220 ready\n");
            assert!(begun.elapsed() >= Duration::from_millis(20), "{:?}", begun.elapsed());
        }
        assert_eq!(races(&rig), [0, 2], "the second was remembered, and held back all the same");
    })
    .await;
}
