use std::net::SocketAddr;
use std::time::Duration;

use http::{HeaderMap, Method, StatusCode};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::oneshot;
use tokio::time::timeout;

use super::*;
use crate::drain::Drain;
use crate::logging::{LogFormat, init};
use crate::metrics::Registry;
use crate::ready::Readiness;

const SOON: Duration = Duration::from_secs(20);

struct Server {
    addr: SocketAddr,
    stop: oneshot::Sender<()>,
    task: tokio::task::JoinHandle<()>,
}

impl Server {
    async fn start(table: Table, limits: Limits) -> Self {
        let server = AdminServer::bind("127.0.0.1:0".parse().unwrap(), table).unwrap().with_limits(limits);
        let addr = server.local_addr();
        let (stop, stopped) = oneshot::channel();
        let task = tokio::spawn(server.serve(async { drop(stopped.await) }));
        Self { addr, stop, task }
    }

    async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.addr).await.unwrap()
    }

    /// Sends bytes on a connection of their own and returns everything until the server closes.
    async fn raw(&self, bytes: &[u8]) -> String {
        let mut stream = self.connect().await;
        stream.write_all(bytes).await.unwrap();
        rest(&mut stream).await
    }

    async fn ask(&self, method: &str, target: &str, more: &str) -> String {
        let head =
            format!("{method} {target} HTTP/1.1\r\nhost: {}\r\nconnection: close\r\n{more}\r\n", self.addr);
        self.raw(head.as_bytes()).await
    }

    async fn stop(self) {
        drop(self.stop);
        timeout(SOON, self.task).await.expect("the server did not stop").unwrap();
    }
}

/// Everything until EOF; a reset counts as EOF.
async fn rest(stream: &mut TcpStream) -> String {
    let mut all = Vec::new();
    let read = async {
        let mut chunk = [0; 4096];
        while let Ok(count) = stream.read(&mut chunk).await {
            if count == 0 {
                break;
            }
            all.extend_from_slice(&chunk[..count]);
        }
    };
    timeout(SOON, read).await.expect("the server never closed");
    String::from_utf8(all).unwrap()
}

fn table() -> Table {
    Table::new("test <proxy>")
        .with(Row::get("/echo", "shows ?q=", |request| {
            AdminResponse::text(request.query("q").unwrap_or("nothing").to_owned())
        }))
        .with(Row::new("/sum", &["POST"], "length of the body", async |request: AdminRequest| {
            AdminResponse::json(&serde_json::json!({ "bytes": request.body.len() }))
        }))
        .with(Row::get("/debug/*", "anything below", |request| AdminResponse::text(request.tail)))
        .with(Row::new("/never", &["GET"], "hangs", |_| std::future::pending()))
}

fn request(method: Method, path: &str) -> AdminRequest {
    AdminRequest {
        method,
        path: path.to_owned(),
        tail: String::new(),
        query: Vec::new(),
        headers: HeaderMap::new(),
        body: bytes::Bytes::new(),
        peer: "127.0.0.1:1".parse().unwrap(),
    }
}

#[tokio::test]
async fn rows_are_served_over_a_real_socket() {
    let server = Server::start(table(), Limits::default()).await;
    assert_ne!(server.addr.port(), 0);
    let echo = server.ask("GET", "/echo?x=1&q=a%20b%2Bc+d%zz", "").await;
    assert!(echo.starts_with("HTTP/1.1 200 ") && echo.ends_with("\r\n\r\na b+c d%zz"), "{echo}");
    let sum = server
        .raw(b"POST /sum HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-length: 5\r\n\r\nhello")
        .await;
    assert!(sum.contains("application/json") && sum.contains("\"bytes\": 5"), "{sum}");
    let below = server.ask("GET", "/debug/a/b", "").await;
    assert!(below.ends_with("\r\n\r\na/b"), "{below}");
    let head = server.ask("HEAD", "/echo?q=abc", "").await;
    assert!(head.contains("content-length: 3\r\n") && head.ends_with("\r\n\r\n"), "{head}");
    server.stop().await;
}

#[tokio::test]
async fn keep_alive_serves_several_requests_on_one_connection() {
    let server = Server::start(table(), Limits::default()).await;
    let mut stream = server.connect().await;
    let two = "GET /echo?q=one HTTP/1.1\r\nhost: localhost\r\n\r\nGET /echo?q=two HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n";
    stream.write_all(two.as_bytes()).await.unwrap();
    let both = rest(&mut stream).await;
    assert_eq!(both.matches("HTTP/1.1 200").count(), 2, "{both}");
    server.stop().await;
}

#[tokio::test]
async fn index_and_help_derive_from_the_table() {
    let table = table();
    let html = table.answer(request(Method::GET, "/")).await;
    let html = String::from_utf8(html.body.to_vec()).unwrap();
    let help = table.answer(request(Method::GET, "/help")).await;
    let help = String::from_utf8(help.body.to_vec()).unwrap();
    for row in table.rows() {
        assert!(html.contains(row.path.as_ref()) && help.contains(row.path.as_ref()), "{}", row.path);
        assert!(help.contains(row.help.as_ref()));
    }
    assert!(html.contains("test &lt;proxy&gt;") && !html.contains("<proxy>"));
    assert!(html.contains("<form method=\"post\" action=\"/sum\">"), "what changes something is no link");
}

#[tokio::test]
async fn wrong_path_and_wrong_method_say_what_exists() {
    let table = table();
    let missing = table.answer(request(Method::GET, "/clusterz")).await;
    assert_eq!(missing.status, StatusCode::NOT_FOUND);
    let text = String::from_utf8(missing.body.to_vec()).unwrap();
    assert!(text.contains("no /clusterz here") && text.contains("/echo"), "{text}");

    let refused = table.answer(request(Method::GET, "/sum")).await;
    assert_eq!(
        (refused.status, &refused.headers["allow"]),
        (StatusCode::METHOD_NOT_ALLOWED, &"POST".parse().unwrap())
    );
    assert!(String::from_utf8(refused.body.to_vec()).unwrap().contains("takes POST, not GET"));
    assert_eq!(table.answer(request(Method::DELETE, "/")).await.status, StatusCode::METHOD_NOT_ALLOWED);
}

#[tokio::test]
async fn a_strangers_web_page_gets_nothing_and_changes_nothing() {
    let table = table()
        .with(Row::get("/open", "for probes", |_| AdminResponse::text("for all")).open())
        .known_as(&["admin.example".to_owned()], "admin_names");
    let server = Server::start(table, Limits::default()).await;
    let own = format!("origin: http://{}\r\n", server.addr);
    for (method, origin, status) in [
        ("POST /sum", "origin: https://evil.example\r\n", 403),
        ("POST /sum", "origin: null\r\n", 403),
        ("GET /echo", "origin: https://evil.example\r\n", 403),
        ("POST /sum", own.as_str(), 200),
        ("GET /echo", own.as_str(), 200),
        ("GET /open", "origin: https://evil.example\r\n", 200),
    ] {
        let (method, target) = method.split_once(' ').unwrap();
        let answer = server.ask(method, target, origin).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{method} {target} {origin}: {answer}");
    }
    for (target, host, status) in [
        ("/echo", "rebound.evil:15000", 403),
        ("/", "rebound.evil", 403),
        ("/open", "rebound.evil", 200),
        ("/echo", "admin.example:15000", 200),
        ("http://rebound.evil/echo", "localhost", 403),
    ] {
        let head = format!("GET {target} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n");
        let answer = server.raw(head.as_bytes()).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{target} {host}: {answer}");
        assert!(status == 200 || answer.contains("into admin_names"), "{answer}");
    }
    server.stop().await;
}

#[tokio::test]
async fn garbage_gets_a_400_or_a_close_and_the_server_lives_on() {
    let server = Server::start(table(), Limits::default()).await;
    for garbage in [
        &b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n"[..],
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"GET\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET /echo HTTP/1.1\r\nhost: localhost\r\nbroken header\r\n\r\n",
        b"POST /sum HTTP/1.1\r\nhost: localhost\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\nhello!",
    ] {
        let answer = server.raw(garbage).await;
        assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 4"), "{garbage:?}: {answer}");
    }
    let endless = vec![b'a'; 512 * 1024];
    let mut stream = server.connect().await;
    let _ = stream.write_all(b"GET /").await;
    let _ = stream.write_all(&endless).await;
    let answer = rest(&mut stream).await;
    assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 4"), "{answer}");
    assert!(server.ask("GET", "/echo", "").await.starts_with("HTTP/1.1 200"));
    server.stop().await;
}

#[tokio::test]
async fn slow_headers_slow_body_and_idle_connections_are_closed() {
    let short = Duration::from_millis(50);
    let limits =
        Limits { header_timeout: short, body_timeout: short, handler_timeout: short, ..Limits::default() };
    let server = Server::start(table(), limits).await;
    assert_eq!(server.raw(b"").await, "", "idle");
    let slow = server.raw(b"GET /echo HTTP/1.1\r\nhost: localhost\r\nx-slow: ").await;
    assert!(!slow.contains("200"), "{slow}");
    let body = server.raw(b"POST /sum HTTP/1.1\r\nhost: localhost\r\ncontent-length: 100\r\n\r\nhalf").await;
    assert!(body.starts_with("HTTP/1.1 408"), "{body}");
    let handler = server.ask("GET", "/never", "").await;
    assert!(handler.starts_with("HTTP/1.1 504") && handler.contains("/never had no answer"), "{handler}");
    server.stop().await;
}

#[tokio::test]
async fn large_body_is_refused_with_the_limit() {
    let server = Server::start(table(), Limits { body: 10, ..Limits::default() }).await;
    let declared = server
        .raw(b"POST /sum HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-length: 11\r\n\r\n01234567890")
        .await;
    assert!(declared.starts_with("HTTP/1.1 413") && declared.contains("larger than 10 bytes"), "{declared}");
    let chunked = server
        .raw(b"POST /sum HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ntransfer-encoding: chunked\r\n\r\n8\r\n01234567\r\n8\r\n01234567\r\n0\r\n\r\n")
        .await;
    assert!(chunked.starts_with("HTTP/1.1 413"), "{chunked}");
    server.stop().await;
}

#[tokio::test]
async fn connection_beyond_the_limit_is_refused_at_once_and_a_freed_place_is_taken() {
    let (begun, mut begins) = tokio::sync::mpsc::channel(2);
    let hangs = Row::new("/held", &["GET"], "hangs", move |_| {
        let begun = begun.clone();
        async move {
            begun.send(()).await.unwrap();
            std::future::pending().await
        }
    });
    let server = Server::start(table().with(hangs), Limits { connections: 2, ..Limits::default() }).await;
    let mut held = [server.connect().await, server.connect().await];
    for held in &mut held {
        held.write_all(b"GET /held HTTP/1.1\r\nhost: localhost\r\n\r\n").await.unwrap();
        begins.recv().await.unwrap();
    }
    let refused = server.raw(b"").await;
    assert!(refused.starts_with("HTTP/1.1 503") && refused.ends_with("try again later\n"), "{refused}");
    let (head, body) = refused.split_once("\r\n\r\n").unwrap();
    assert!(head.contains(&format!("content-length: {}", body.len())), "{head}");
    drop(held);
    let wait = async {
        while !server.ask("GET", "/echo", "").await.starts_with("HTTP/1.1 200") {
            tokio::task::yield_now().await;
        }
    };
    timeout(SOON, wait).await.expect("the places were never freed");
    server.stop().await;
}

#[tokio::test]
async fn a_crowd_that_says_nothing_keeps_nobody_out() {
    let limits = Limits { connections: 4, header_timeout: 10 * SOON, ..Limits::default() };
    let server = Server::start(table(), limits).await;
    let mut silent = Vec::new();
    for _ in 0..12 {
        silent.push(server.connect().await);
    }
    let answer = server.ask("GET", "/echo?q=in", "").await;
    assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with("in"), "{answer}");
    assert_eq!(timeout(SOON, rest(&mut silent[0])).await.expect("it had to go"), "");
    server.stop().await;
}

#[tokio::test]
async fn a_local_row_answers_this_host_alone() {
    let table = Table::new("t")
        .with(Row::get("/secret", "not for all", |_| AdminResponse::text("told")).open().local())
        .with(Row::get("/public", "for all", |_| AdminResponse::text("told")).open());
    let refused = |path: &str, peer: &str| {
        let asked = AdminRequest { peer: peer.parse().unwrap(), ..request(Method::GET, path) };
        table.refuse(&path.parse().unwrap(), &asked).map(|answer| answer.status)
    };
    assert_eq!(refused("/secret", "192.0.2.1:1"), Some(StatusCode::FORBIDDEN));
    assert_eq!(refused("/public", "192.0.2.1:1"), None);
    for here in ["127.0.0.1:1", "[::1]:1", "[::ffff:127.0.0.1]:1"] {
        assert_eq!(refused("/secret", here), None);
    }
}

#[tokio::test]
async fn old_connection_is_closed_between_requests() {
    let limits = Limits { connection_age: Duration::from_millis(50), ..Limits::default() };
    let server = Server::start(table(), limits).await;
    let answers = server.raw(b"GET /echo HTTP/1.1\r\nhost: localhost\r\n\r\n").await;
    assert_eq!(answers.matches("HTTP/1.1 200").count(), 1, "{answers}");
    server.stop().await;
}

#[tokio::test]
async fn a_patient_row_outlives_the_handler_s_time_and_the_connection_s_age_and_ends_with_the_asker() {
    let (begun, mut begins) = tokio::sync::mpsc::channel(2);
    let (gate, opened) = tokio::sync::watch::channel(false);
    struct Gone(tokio::sync::mpsc::Sender<&'static str>);
    impl Drop for Gone {
        fn drop(&mut self) {
            let _ = self.0.try_send("gone");
        }
    }
    let late = move |_| {
        let (begun, mut opened) = (begun.clone(), opened.clone());
        async move {
            begun.send("begun").await.unwrap();
            let _gone = Gone(begun);
            opened.wait_for(|open| *open).await.unwrap();
            AdminResponse::text("late")
        }
    };
    let short = Duration::from_millis(20);
    let limits = Limits { handler_timeout: short, connection_age: short, ..Limits::default() };
    let table = Table::new("t")
        .with(Row::new("/late", &["GET"], "when it may", late).patient())
        .with(Row::new("/never", &["GET"], "hangs", |_| std::future::pending()));
    let server = Server::start(table, limits).await;
    let asked = b"GET /late HTTP/1.1\r\nhost: localhost\r\n\r\n";

    let mut leaves = server.connect().await;
    leaves.write_all(asked).await.unwrap();
    assert_eq!(begins.recv().await, Some("begun"));
    drop(leaves);
    assert_eq!(timeout(SOON, begins.recv()).await.expect("it goes on for nobody"), Some("gone"));

    let mut stays = server.connect().await;
    stays.write_all(asked).await.unwrap();
    assert_eq!(begins.recv().await, Some("begun"));
    // A request that is not patient, asked later, has been ended by both times.
    assert!(server.ask("GET", "/never", "").await.starts_with("HTTP/1.1 504"));
    gate.send(true).unwrap();
    let answer = rest(&mut stays).await;
    assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with("late"), "{answer}");
    server.stop().await;
}

#[tokio::test]
async fn occupied_address_is_named() {
    let server = Server::start(table(), Limits::default()).await;
    let error = AdminServer::bind(server.addr, table()).err().unwrap().to_string();
    assert!(error.contains(&server.addr.to_string()) && error.contains("choose another"), "{error}");
    server.stop().await;
}

#[tokio::test]
async fn standard_rows_tell_readiness_metrics_log_filter_and_begin_the_drain() {
    let (readiness, drain) = (Readiness::new(), Drain::new());
    let workers = readiness.register("workers");
    readiness.fail_when_draining(&drain);
    let table = Table::new("proxy")
        .with(rows::ready("/ready", readiness))
        .with(rows::metrics("/stats/prometheus", Registry::with_process("proxy", "1.2.3")))
        .with(rows::logging(init(LogFormat::Text, Some("warn")).unwrap()))
        .with(rows::quit(drain.clone()));
    let server = Server::start(table, Limits::default()).await;

    let not_yet = server.ask("GET", "/ready", "").await;
    assert!(
        not_yet.starts_with("HTTP/1.1 503") && not_yet.contains("workers: has not reported yet"),
        "{not_yet}"
    );
    workers.set_ready();
    let ready = server.ask("GET", "/ready", "").await;
    assert!(ready.starts_with("HTTP/1.1 200") && ready.ends_with("\r\n\r\nLIVE\n"), "{ready}");

    let metrics = server.ask("GET", "/stats/prometheus", "").await;
    assert!(metrics.contains("content-type: text/plain; version=0.0.4"), "{metrics}");
    assert!(metrics.contains("\nistio_build{component=\"proxy\",tag=\"1.2.3\"} 1\n"), "{metrics}");

    assert!(server.ask("GET", "/logging", "").await.starts_with("HTTP/1.1 200"));
    assert!(server.ask("POST", "/logging", "").await.contains("Which filter?"));
    let bad = server.ask("POST", "/logging?level=a%3Dloud", "").await;
    assert!(bad.starts_with("HTTP/1.1 400") && bad.contains("a=loud"), "{bad}");

    assert!(server.ask("GET", "/quitquitquit", "").await.starts_with("HTTP/1.1 405"));
    assert!(!drain.is_draining());
    assert!(server.ask("POST", "/quitquitquit", "").await.ends_with("draining, then exiting\n"));
    drain.draining().await;
    assert!(server.ask("GET", "/ready", "").await.contains("drain: draining"));
    server.stop().await;
}
