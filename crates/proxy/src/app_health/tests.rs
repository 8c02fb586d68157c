use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use outrigger_identity::{Authority, AuthorityOptions, ClientAuth, Credentials, server_config};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use super::*;
use crate::bootstrap::Bootstrap;

async fn answering(answer: &'static str) -> SocketAddr {
    serving(move |head| {
        assert!(head.is_empty() || head.starts_with("GET /healthz?full HTTP/1.1\r\n"), "{head}");
        answer.to_owned()
    })
    .await
}

fn probe(address: SocketAddr) -> Probe {
    Probe::Http(Http {
        port: address.port(),
        address: address.ip(),
        path: "/healthz?full".into(),
        host: None,
        tls: false,
    })
}

#[tokio::test]
async fn the_applications_status_is_the_answer() {
    for status in [200, 302, 404, 500] {
        let text = format!("HTTP/1.1 {status} X\r\ncontent-length: 0\r\n\r\n");
        let address = answering(Box::leak(text.into_boxed_str())).await;
        assert_eq!(probe(address).ask(&HeaderMap::new()).await.unwrap().as_u16(), status);
    }
    let address = answering("").await;
    assert!(probe(address).ask(&HeaderMap::new()).await.is_err(), "an end is no answer");
    let tcp = Probe::Tcp(Tcp { port: address.port(), address: address.ip() });
    assert_eq!(tcp.ask(&HeaderMap::new()).await, Ok(StatusCode::OK));
    let nobody = Probe::Tcp(Tcp { port: 1, address: localhost() });
    assert!(nobody.ask(&HeaderMap::new()).await.unwrap_err().starts_with("127.0.0.1:1: "));
}

/// Answers what is made of the head of each request.
async fn serving(answer: impl Fn(&str) -> String + Send + 'static) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut head = [0; 1024];
            let n = stream.read(&mut head).await.unwrap();
            let answer = answer(&String::from_utf8_lossy(&head[..n]));
            stream.write_all(answer.as_bytes()).await.unwrap();
        }
    });
    address
}

#[tokio::test]
async fn a_redirected_probe_goes_where_it_is_sent_on_this_host_and_the_last_answer_counts() {
    let moved = |to: &str| format!("HTTP/1.1 302 Found\r\nlocation: {to}\r\ncontent-length: 0\r\n\r\n");
    // Another port of the same host.
    let login = serving(|head| {
        assert!(head.starts_with("GET /login HTTP/1.1\r\n") && head.contains("x-probe: yes\r\n"), "{head}");
        "HTTP/1.1 500 Oh\r\ncontent-length: 0\r\n\r\n".to_owned()
    })
    .await;
    let asked: HeaderMap =
        [(HeaderName::from_static("x-probe"), HeaderValue::from_static("yes"))].into_iter().collect();
    let first = serving(move |_| moved(&format!("http://{login}/login"))).await;
    assert_eq!(probe(first).ask(&asked).await, Ok(StatusCode::INTERNAL_SERVER_ERROR));
    let elsewhere = serving(move |_| moved("http://shop.example/login")).await;
    assert_eq!(probe(elsewhere).ask(&asked).await, Ok(StatusCode::FOUND), "is not asked, and no failure");

    let count = Arc::new(AtomicUsize::new(0));
    let counted = count.clone();
    let round = serving(move |_| {
        counted.fetch_add(1, Relaxed);
        moved("again")
    })
    .await;
    let why = probe(round).ask(&asked).await.unwrap_err();
    assert!(why.contains("redirected 10 times"), "{why}");
    assert_eq!(count.load(Relaxed), 10);
}

/// A probe that is sent to the sidecar's own page would be asked by it again, and each of those once more.
#[tokio::test]
async fn a_probe_that_is_sent_back_to_the_sidecar_ends_there() {
    let entry = Entry { probe: probe((localhost(), 1).into()), patience: None };
    let table =
        outrigger_telemetry::admin::Table::new("t").with(row(BTreeMap::from([("p".to_owned(), entry)])));
    let answer = table.answer(outrigger_telemetry::admin::AdminRequest {
        method: Method::GET,
        path: "/app-health/p".into(),
        tail: String::new(),
        query: Vec::new(),
        headers: [(redirect::FOLLOWED, HeaderValue::from_static("followed"))].into_iter().collect(),
        body: Bytes::new(),
        peer: (localhost(), 1).into(),
    });
    assert_eq!(answer.await.status, StatusCode::LOOP_DETECTED);
}

#[tokio::test]
async fn headers_of_the_probe_reach_the_application_but_for_those_of_its_connection() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let heard = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut head = vec![0; 4096];
        let n = stream.read(&mut head).await.unwrap();
        stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await.unwrap();
        String::from_utf8_lossy(&head[..n]).to_lowercase()
    });
    let asked = [
        ("x-probe", "yes"),
        ("x-forwarded-proto", "https"),
        ("user-agent", "kube-probe/1.33"),
        ("connection", "x"),
        ("host", "10.1.0.7:15021"),
        ("x-forwarded-client-cert", "URI=spiffe://mesh/ns/shop/sa/admin"),
        ("x.forwarded_client.cert", "URI=spiffe://mesh/ns/shop/sa/admin"),
        ("x-outrigger-peer", "spiffe://mesh"),
        ("x-envoy-peer-metadata", "spiffe://mesh"),
    ];
    let asked = asked.map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value)));
    probe(address).ask(&asked.into_iter().collect()).await.unwrap();
    let head = heard.await.unwrap();
    assert!(head.contains("x-probe: yes\r\n") && head.contains("user-agent: kube-probe/1.33\r\n"), "{head}");
    assert!(head.contains(&format!("host: {address}\r\n")) && head.matches("host:").count() == 1, "{head}");
    assert!(!head.contains("connection: x"), "{head}");
    assert!(head.contains("x-forwarded-proto: https\r\n"), "or it is sent to where that is so: {head}");
    assert!(!head.contains("spiffe"), "a stranger says what only sidecars may: {head}");
}

async fn grpc_server(answer: &'static [u8], status: &'static str) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        let mut connection = h2::server::handshake(listener.accept().await.unwrap().0).await.unwrap();
        while let Some(Ok((request, mut respond))) = connection.accept().await {
            assert_eq!(request.uri().path(), "/grpc.health.v1.Health/Check");
            let mut stream = respond.send_response(http::Response::new(()), false).unwrap();
            stream.send_data(answer.into(), false).unwrap();
            let trailers = [(HeaderName::from_static("grpc-status"), status.parse().unwrap())];
            stream.send_trailers(trailers.into_iter().collect()).unwrap();
        }
    });
    address
}

#[tokio::test]
async fn only_serving_is_healthy() {
    for (answer, status, healthy) in [
        (&[0, 0, 0, 0, 2, 8, 1][..], "0", true),
        (&[0, 0, 0, 0, 2, 8, 2], "0", false),
        (&[0, 0, 0, 0, 0], "0", false),
        (&[], "5", false),
    ] {
        let address = grpc_server(answer, status).await;
        let service = "shop.Pricing".into();
        let probe = Probe::Grpc(Grpc { port: address.port(), address: address.ip(), service });
        assert_eq!(probe.ask(&HeaderMap::new()).await.is_ok(), healthy, "{answer:?} {status}");
    }
}

#[tokio::test(start_paused = true)]
async fn an_answer_has_the_time_that_the_bootstrap_gives_it() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (port, address) = (listener.local_addr().unwrap().port(), localhost());
    // Answers after half a minute.
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut head = [0; 1024];
                let _ = stream.read(&mut head).await;
                tokio::time::sleep(Duration::from_secs(30)).await;
                let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await;
            });
        }
    });
    let probe = Probe::Http(Http { port, address, path: "/".into(), host: None, tls: false });
    for (patience, status) in [(Some(10), 504), (Some(45), 200), (None, 200)] {
        let patience = patience.map(Duration::from_secs);
        let probes = BTreeMap::from([("p".to_owned(), Entry { probe: probe.clone(), patience })]);
        let table = outrigger_telemetry::admin::Table::new("t").with(row(probes));
        let answer = table.answer(outrigger_telemetry::admin::AdminRequest {
            method: Method::GET,
            path: "/app-health/p".into(),
            tail: String::new(),
            query: Vec::new(),
            headers: HeaderMap::new(),
            body: Bytes::new(),
            peer: (address, 1).into(),
        });
        assert_eq!(answer.await.status.as_u16(), status, "{patience:?}");
    }
}

#[test]
fn the_secret_of_a_hook_is_not_listed() {
    let probe = probe((localhost(), 1).into());
    let entry = || Entry { probe: probe.clone(), patience: None };
    let probes = ["app/livez", "app/prestopz/SECRET", "plain"].map(|name| (name.to_owned(), entry()));
    let row = row(probes.into());
    assert_eq!(row.help, "health of the application, by probe: app/livez, plain");
}

#[test]
fn probes_are_written_in_the_bootstrap_file() {
    let read = |probe: &str| {
        let text = format!("node: {{id: a}}\nstate_dir: /s\nprobes:\n  ready: {probe}\n");
        Bootstrap::parse(Path::new("b"), &text)
    };
    let probe =
        Probe::Http(Http { port: 8080, address: localhost(), path: "/ok".into(), host: None, tls: false });
    for (timeout, patience) in [("", Some(10)), (", timeout: 45s", Some(45)), (", timeout: 0s", None)] {
        let patience = patience.map(Duration::from_secs);
        let read = read(&format!("{{http: {{port: 8080, path: /ok}}{timeout}}}")).unwrap();
        assert_eq!(read.probes["ready"], Entry { probe: probe.clone(), patience });
    }
    let probe =
        Probe::Http(Http { port: 8443, address: localhost(), path: "/".into(), host: None, tls: true });
    assert_eq!(read("{http: {port: 8443, tls: true}}").unwrap().probes["ready"].probe, probe);
    assert!(read("{grpc: {port: 9090}}").is_ok());
    for neither in ["{timeout: 1s}", "{tcp: {port: 1}, grpc: {port: 1}}"] {
        assert!(read(neither).unwrap_err().to_string().contains("one of http, tcp and grpc"));
    }
    assert!(read("{exec: {command: ls}}").unwrap_err().to_string().contains("exec"));
}

#[tokio::test]
async fn by_tls_the_application_is_asked_whatever_its_certificate_says() {
    // Of another name, and signed by nobody whom anybody knows.
    let authority = Authority::in_memory(AuthorityOptions::new("mesh.test")).unwrap();
    let issued = authority.server_certificate(&["somebody.else".to_owned()], &[]).unwrap();
    let credentials = Credentials::new(Some(Arc::new(issued.certificate)), issued.bundle);
    let acceptor = TlsAcceptor::from(server_config(&credentials, &[], ClientAuth::Optional).unwrap());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let Ok(mut stream) = acceptor.accept(stream).await else { continue };
            let mut head = [0; 1024];
            let n = stream.read(&mut head).await.unwrap();
            assert!(head[..n].starts_with(b"GET /healthz HTTP/1.1\r\n"));
            stream.write_all(b"HTTP/1.1 204 No Content\r\n\r\n").await.unwrap();
            stream.shutdown().await.unwrap();
        }
    });
    let probe = |tls| {
        Probe::Http(Http {
            port: address.port(),
            address: address.ip(),
            path: "/healthz".into(),
            host: None,
            tls,
        })
    };
    assert_eq!(probe(true).ask(&HeaderMap::new()).await, Ok(StatusCode::NO_CONTENT));
    assert!(probe(false).ask(&HeaderMap::new()).await.is_err());
}
