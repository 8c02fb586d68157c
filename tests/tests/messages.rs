//! HTTP/1.1 messages through two sidecars, byte by byte: interim and bodyless responses, early ones, tunnels, clients that vanish.

use std::net::SocketAddr;

use outrigger_tests::app::{echo, get};
use outrigger_tests::mesh::{Mesh, Sidecar};
use outrigger_tests::wait::eventually;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;

use crate::BINARY;
use crate::thin_thread::{STRICT, catalog, web};

async fn pair() -> (Mesh, Sidecar, Sidecar) {
    pair_with(&[]).await
}

/// With ports that let requests switch to these.
async fn pair_with(upgrades: &[&str]) -> (Mesh, Sidecar, Sidecar) {
    let mut mesh = Mesh::start(BINARY).await;
    mesh.upgrades = upgrades.iter().map(|upgrade| (*upgrade).to_owned()).collect();
    let catalog = mesh.workload(&catalog("v1", 11)).await;
    let web = mesh.workload(&web(&["catalog:8080"])).await;
    mesh.apply(STRICT).await;
    (mesh, web, catalog)
}

/// Reads until what was read ends with `end`; all of it.
async fn until(stream: &mut TcpStream, end: &str) -> String {
    let mut text = String::new();
    while !text.ends_with(end) {
        let byte = stream.read_u8().await.unwrap_or_else(|error| panic!("{error}, after {text:?}"));
        text.push(char::from(byte));
    }
    text
}

/// An application whose connections run `talk`.
async fn app<A: Future<Output = ()> + Send + 'static>(
    listen: SocketAddr,
    talk: impl Fn(TcpStream) -> A + Send + 'static,
) {
    let listener = TcpListener::bind(listen).await.unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(talk(stream));
        }
    });
}

/// Answers by path.
async fn scripted(mut stream: TcpStream) {
    loop {
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            let Ok(byte) = stream.read_u8().await else { return };
            head.push(char::from(byte));
        }
        let answer = match head.split(' ').nth(1).unwrap() {
            "/head" => "HTTP/1.1 200 OK\r\nContent-Length: 12345\r\n\r\n",
            "/204" => "HTTP/1.1 204 No Content\r\n\r\n",
            "/304" => "HTTP/1.1 304 Not Modified\r\nETag: \"x\"\r\nContent-Length: 99\r\n\r\n",
            "/103" => {
                "HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
            }
            "/close" => "HTTP/1.1 200 OK\r\n\r\nuntil the end",
            "/case" => {
                "HTTP/1.1 200 OK\r\nX-CamelCase: 1\r\nx-lower: 2\r\nX-CamelCase: 3\r\nContent-Length: 0\r\n\r\n"
            }
            "/413" => "HTTP/1.1 413 Content Too Large\r\nContent-Length: 3\r\nConnection: close\r\n\r\nbig",
            "/continue" => {
                stream.write_all(b"HTTP/1.1 100 Continue\r\n\r\n").await.unwrap();
                assert_eq!(until(&mut stream, "body").await, "body");
                "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nthank"
            }
            other => panic!("{other}"),
        };
        stream.write_all(answer.as_bytes()).await.unwrap();
        if head.contains("/close") || head.contains("/413") {
            // The rest of a large upload is not read.
            let _ = stream.shutdown().await;
            return;
        }
    }
}

fn lowered(text: &str) -> String {
    text.to_ascii_lowercase()
}

#[tokio::test(flavor = "multi_thread")]
async fn responses_without_a_body_interim_and_early_ones_pass_on_one_connection() {
    let (_mesh, web, catalog) = pair().await;
    app(catalog.app, scripted).await;
    let mut client = TcpStream::connect(web.outbound[0]).await.unwrap();
    let ask = |method: &str, path: &str| format!("{method} {path} HTTP/1.1\r\nHost: catalog\r\n\r\n");
    for (method, path, end, has) in [
        ("HEAD", "/head", "\r\n\r\n", "content-length: 12345"),
        ("GET", "/204", "\r\n\r\n", " 204 "),
        ("GET", "/304", "\r\n\r\n", "etag: \"x\""),
        ("GET", "/case", "\r\n\r\n", "x-camelcase: 3"),
        ("HEAD", "/head", "\r\n\r\n", " 200 "),
        ("GET", "/103", "\r\n\r\nok", "link: </a>"),
    ] {
        client.write_all(ask(method, path).as_bytes()).await.unwrap();
        let text = until(&mut client, end).await;
        let text = if path == "/103" && !text.contains("200 OK") {
            text + &until(&mut client, end).await
        } else {
            text
        };
        assert!(lowered(&text).contains(has), "{path}: {text}");
        if path == "/case" {
            let lines: Vec<&str> = text
                .lines()
                .filter(|line| lowered(line).starts_with("x-") && !line.contains("envoy"))
                .collect();
            assert_eq!(
                lines[..3],
                ["X-CamelCase: 1", "x-lower: 2", "X-CamelCase: 3"],
                "case and order are kept"
            );
        }
    }
    // Two at once: pipelined requests are answered in order.
    client.write_all((ask("GET", "/204") + &ask("GET", "/103")).as_bytes()).await.unwrap();
    let text = until(&mut client, "\r\n\r\nok").await;
    assert!(text.find(" 204 ").unwrap() < text.find(" 103 ").unwrap(), "{text}");
    // A response that only the end of its connection ends.
    client.write_all(ask("GET", "/close").as_bytes()).await.unwrap();
    let text = until(&mut client, "until the end").await;
    assert!(
        lowered(&text).contains("transfer-encoding: chunked") || lowered(&text).contains("connection: close"),
        "{text}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_expects_100_gets_it_from_the_application_and_an_early_413_ends_an_upload() {
    let (_mesh, web, catalog) = pair().await;
    app(catalog.app, scripted).await;
    let mut client = TcpStream::connect(web.outbound[0]).await.unwrap();
    let head =
        "POST /continue HTTP/1.1\r\nHost: catalog\r\nContent-Length: 4\r\nExpect: 100-continue\r\n\r\n";
    client.write_all(head.as_bytes()).await.unwrap();
    assert!(until(&mut client, "\r\n\r\n").await.starts_with("HTTP/1.1 100 "));
    client.write_all(b"body").await.unwrap();
    assert!(until(&mut client, "thank").await.starts_with("HTTP/1.1 200 "));

    let head = format!("POST /413 HTTP/1.1\r\nHost: catalog\r\nContent-Length: {}\r\n\r\n", 64 << 20);
    client.write_all(head.as_bytes()).await.unwrap();
    let (mut from, mut to) = client.into_split();
    let upload = tokio::spawn(async move {
        let piece = vec![b'x'; 64 << 10];
        while to.write_all(&piece).await.is_ok() {}
    });
    let mut text = Vec::new();
    let mut piece = [0; 1024];
    while !text.ends_with(b"\r\n\r\nbig") {
        let read = from.read(&mut piece).await.unwrap();
        assert!(read > 0, "{}", String::from_utf8_lossy(&text));
        text.extend_from_slice(&piece[..read]);
    }
    assert!(text.starts_with(b"HTTP/1.1 413 "), "{}", String::from_utf8_lossy(&text));
    upload.abort();
    let (status, _) = get(web.outbound[0], "/204", "").await.unwrap();
    assert_eq!(status, 204, "the next request is served");
}

const TUNNEL: &str = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";

/// Opens a tunnel, says something in the same segment, then returns what it gets.
async fn tunnel(mut stream: TcpStream) {
    let head = until(&mut stream, "\r\n\r\n").await;
    let answer = if head.starts_with("CONNECT ") {
        "HTTP/1.1 200 OK\r\n\r\nhello".to_owned()
    } else {
        assert!(lowered(&head).contains("upgrade: websocket"), "{head}");
        TUNNEL.to_owned() + "hello"
    };
    stream.write_all(answer.as_bytes()).await.unwrap();
    let (mut from, mut to) = stream.split();
    let _ = tokio::io::copy(&mut from, &mut to).await;
    let _ = to.shutdown().await;
}

const RULE: &str = "apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: catalog, namespace: shop}
spec: {hosts: [catalog], http: [{name: other, timeout: 1s, route: [{destination: {host: catalog}}]}]}
";

#[tokio::test(flavor = "multi_thread")]
async fn tunnels_by_upgrade_and_by_connect_outlive_a_pushed_rule() {
    let (mesh, web, catalog) = pair_with(&["connect"]).await;
    app(catalog.app, tunnel).await;
    let upgrade = "GET /chat HTTP/1.1\r\nHost: catalog\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";
    let connect = "CONNECT catalog:8080 HTTP/1.1\r\nHost: catalog:8080\r\n\r\n";
    let mut open = Vec::new();
    for (head, begins) in [(upgrade, "HTTP/1.1 101 "), (connect, "HTTP/1.1 200 ")] {
        let mut client = TcpStream::connect(web.outbound[0]).await.unwrap();
        // The first bytes of the tunnel right behind the head: they belong to it.
        client.write_all((head.to_owned() + "first").as_bytes()).await.unwrap();
        let text = until(&mut client, "first").await;
        assert!(text.starts_with(begins) && text.ends_with("hellofirst"), "{text}");
        open.push(client);
    }
    mesh.apply(RULE).await;
    for mut client in open {
        client.write_all(&[b'x'; 100_000]).await.unwrap();
        client.shutdown().await.unwrap();
        let mut back = Vec::new();
        client.read_to_end(&mut back).await.unwrap();
        assert_eq!(back.len(), 100_000, "after the push, and after our half was closed");
    }
}

fn upgrades(names: &str) -> String {
    format!(
        "apiVersion: outrigger.io/v1\nkind: TrafficRules\nmetadata: {{name: upgrades, namespace: shop}}\n\
         spec: {{service: catalog, upgrades: [{names}]}}\n"
    )
}

/// Of a service whose ports nobody registered with a word about it, as a Pod's.
#[tokio::test(flavor = "multi_thread")]
async fn a_rule_lets_connect_through_where_no_port_does_and_its_tunnels_end_with_it() {
    let (mesh, web, catalog) = pair().await;
    app(catalog.app, tunnel).await;
    let connect = async || {
        let mut client = TcpStream::connect(web.outbound[0]).await.unwrap();
        client.write_all(b"CONNECT catalog:8080 HTTP/1.1\r\nHost: catalog:8080\r\n\r\n").await.unwrap();
        let head = until(&mut client, "\r\n\r\n").await;
        (client, head)
    };
    assert!(connect().await.1.starts_with("HTTP/1.1 404 "), "no route asks for it");
    mesh.apply(&upgrades("connect")).await;
    let (mut client, head) = connect().await;
    assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
    client.write_all(b"first").await.unwrap();
    assert_eq!(until(&mut client, "first").await, "hellofirst");
    mesh.apply(&upgrades("tcp")).await;
    let mut rest = Vec::new();
    let _ = client.read_to_end(&mut rest).await;
    assert_eq!(rest, b"", "what let it through is gone");
    assert!(connect().await.1.starts_with("HTTP/1.1 404 "));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upgrade_to_h2c_is_not_offered_to_the_application() {
    let (_mesh, web, catalog) = pair().await;
    echo(catalog.app, "catalog-v1").await;
    let headers =
        "Connection: close, Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n";
    let mut client = TcpStream::connect(web.outbound[0]).await.unwrap();
    client.write_all(format!("GET / HTTP/1.1\r\nHost: catalog\r\n{headers}\r\n").as_bytes()).await.unwrap();
    let mut text = String::new();
    client.read_to_string(&mut text).await.unwrap();
    let text = lowered(&text);
    assert!(
        text.starts_with("http/1.1 200 ") && !text.contains("h2c") && !text.contains("http2-settings"),
        "{text}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn the_application_learns_that_its_client_has_gone() {
    let (_mesh, web, catalog) = pair().await;
    let (tell, mut told) = mpsc::channel(4);
    app(catalog.app, move |mut stream| {
        let tell = tell.clone();
        async move {
            until(&mut stream, "\r\n\r\n").await;
            tell.send("asked").await.unwrap();
            // Never answers; what ends is the connection.
            let _ = stream.read_u8().await;
            tell.send("gone").await.unwrap();
        }
    })
    .await;
    let mut client = TcpStream::connect(web.outbound[0]).await.unwrap();
    client.write_all(b"GET / HTTP/1.1\r\nHost: catalog\r\n\r\n").await.unwrap();
    assert_eq!(told.recv().await, Some("asked"));
    drop(client);
    assert_eq!(told.recv().await, Some("gone"));
    eventually("both sidecars record it", || async {
        let page = web.page("/stats/prometheus").await;
        let line =
            page.lines().find(|line| line.starts_with("istio_requests_total") && line.contains("\"DC\""));
        line.map(str::to_owned).ok_or(page)
    })
    .await;
}

/// The application of these tests: one that answers a body's beginning has answered before h2spec's second HEADERS came.
#[tokio::test(flavor = "multi_thread")]
async fn the_echo_answers_a_request_when_all_of_it_is_there() {
    let (_mesh, _web, catalog) = pair().await;
    echo(catalog.app, "catalog-v1").await;
    let requests = "POST /first HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n4\r\ntest\r\n0\r\nX-Trailer: 1\r\n\r\n\
                    GET /second HTTP/1.1\r\nConnection: close\r\n\r\n";
    let mut client = TcpStream::connect(catalog.app).await.unwrap();
    client.write_all(requests.as_bytes()).await.unwrap();
    client.shutdown().await.unwrap();
    let mut answers = String::new();
    client.read_to_string(&mut answers).await.unwrap();
    let answered: Vec<&str> = answers.split("HTTP/1.1 200 OK\r\n").skip(1).collect();
    assert_eq!(answered.len(), 2, "{answers}");
    assert!(answered[1].contains("GET /second "), "{answers}");
}
