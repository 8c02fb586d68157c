use std::sync::Arc;

use proptest::prelude::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::fuzzing::{fuzz_detect, in_records};
use super::*;

/// A real ClientHello of rustls.
fn client_hello(name: &str, alpn: &[&[u8]]) -> Vec<u8> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(rustls::RootCertStore::empty())
        .with_no_client_auth();
    config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
    let name = rustls::pki_types::ServerName::try_from(name.to_owned()).unwrap();
    let mut client = rustls::ClientConnection::new(Arc::new(config), name).unwrap();
    let mut bytes = Vec::new();
    client.write_tls(&mut bytes).unwrap();
    bytes
}

const SNI: &str = "outbound_.8080_.v1_.catalog.shop.svc.cluster.local";

#[test]
fn a_hello_yields_server_name_and_offered_protocols() {
    let bytes = client_hello(SNI, &[b"istio-h2", b"istio", b"h2"]);
    assert!(bytes.len() > 1400, "post-quantum: larger than a segment");
    let Some(Detected::Tls(hello)) = classify(&bytes, Look::Everything, false) else { panic!() };
    assert_eq!(hello.server_name.as_deref(), Some(SNI));
    assert_eq!(hello.alpn_names(), ["istio-h2", "istio", "h2"]);
    assert!(hello.offers(b"istio") && !hello.offers(b"istio-peer-exchange"));
}

#[test]
fn a_server_name_has_one_form_however_it_is_written() {
    for written in
        ["SECRET.shop.Example", "secret.shop.example", "Secret.Shop.exampl.", "secret.shop.examp.."]
    {
        // The client library writes it in lower case.
        let plain = written.to_ascii_lowercase().replace("exampl.", "examplx").replace("examp..", "examplx");
        let mut bytes = client_hello(&plain, &[]);
        let at = bytes.windows(plain.len()).position(|bytes| bytes == plain.as_bytes()).unwrap();
        bytes[at..at + plain.len()].copy_from_slice(written.as_bytes());
        let Some(Detected::Tls(hello)) = classify(&bytes, Look::Everything, false) else { panic!() };
        let wanted = written.to_ascii_lowercase();
        assert_eq!(hello.server_name.as_deref(), Some(wanted.trim_end_matches('.')));
    }
}

#[test]
fn a_sidecar_is_known_by_its_alpn_or_by_its_server_name() {
    let protocols = |sni: Option<&str>, alpn: &[&str]| -> Vec<Box<str>> {
        let alpn = alpn.iter().map(|name| name.as_bytes().into()).collect();
        Hello { server_name: sni.map(Into::into), alpn }.mesh_protocols()
    };
    let own = |list: &[&str]| list.iter().copied().map(Box::from).collect::<Vec<Box<str>>>();
    assert_eq!(protocols(Some(SNI), &[]), own(&["istio"]));
    assert_eq!(
        protocols(Some(SNI), &["h2", "http/1.1"]),
        own(&["h2", "http/1.1", "istio-h2", "istio-http/1.1", "istio"])
    );
    assert_eq!(protocols(Some(SNI), &["istio-h2", "h2"]), own(&["istio-h2", "h2"]), "it says so itself");
    assert_eq!(protocols(Some("shop.example.com"), &["h2"]), own(&["h2"]), "the application's own");
    assert_eq!(protocols(None, &["h2"]), own(&["h2"]));
    for name in ["outbound_.80_._.a", "outbound_.8080_.v1_.b.c"] {
        assert!(tls::mesh_host(name).is_some(), "{name}");
    }
    for name in [
        "outbound",
        "outbound_.80",
        "outbound_.x_._.a",
        "outbound_.80_._.",
        "outbound_.80_.v1",
        "inbound_.80_._.a",
    ] {
        assert_eq!(tls::mesh_host(name), None, "{name}");
    }
}

#[test]
fn a_hello_in_many_records_is_the_same_hello() {
    let bytes = client_hello(SNI, &[b"istio"]);
    let whole = classify(&bytes, Look::Everything, false);
    assert_eq!(classify(&in_records(&bytes[5..], 100), Look::Everything, false), whole);
    assert_eq!(classify(&in_records(&bytes[5..], 1), Look::Everything, false), whole);
}

#[test]
fn http_is_told_from_everything_else() {
    let cases: [(&[u8], Detected); 41] = [
        (b"GET / HTTP/1.1\r\n", Detected::Http1),
        (b"get / http/1.1\n", Detected::Http1),
        (b"GET\t/\t HTTP/1.0 \r\n", Detected::Http1),
        (b"GET / HTTP/9\r\n", Detected::Http1),
        (b"\r\n\r\nPOST /x HTTP/1.1\r\n", Detected::Http1),
        (b"PURGE /x HTTP/1.1\r\n", Detected::Http1),
        (b"PURGE /x\r\n", Detected::Opaque),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", Detected::Http2),
        (b"PRI * HTTP/2.0\r\nfoo", Detected::Http1),
        (b"*2\r\n$3\r\nGET\r\n", Detected::Opaque),
        (b"\x00\x01\x02", Detected::Opaque),
        (b"SSH-2.0-x\r\n", Detected::Opaque),
        (b"EHLO there\r\n", Detected::Opaque),
        // A method of HTTP decides nothing by itself.
        (b"get key\r\n", Detected::Opaque),
        (b"GET key\r\n", Detected::Opaque),
        (b"delete 1\r\n", Detected::Opaque),
        (b"put 0 0 60 5\r\nhello\r\n", Detected::Opaque),
        (b"OPTIONS rtsp://camera/ RTSP/1.0\r\n", Detected::Opaque),
        (b"OPTIONS sip:a@b SIP/2.0\r\n", Detected::Opaque),
        (b"REQMOD icap://scan/ ICAP/1.0\r\n", Detected::Opaque),
        (b"GET / HTTPS/1.1\r\n", Detected::Opaque),
        (b"GET \r\n", Detected::Opaque),
        // What lenient servers take for a request line, and ours for none: not around policy for requests.
        (b" GET /admin HTTP/1.1\r\n", Detected::Http1),
        (b"\t \r\n \x0cGET /admin HTTP/1.1\r\n", Detected::Http1),
        (b"\xa0\x85GET /admin HTTP/1.1\r\n", Detected::Http1),
        (b"GET\xa0/admin\xa0HTTP/1.1\r\n", Detected::Http1),
        (b"GET\x1c/admin\x1fHTTP/1.1\r\n", Detected::Http1),
        (b"GET\x85/admin HTTP/1.1\xa0\r\n", Detected::Http1),
        (b"GET\r/admin\rHTTP/1.1\n", Detected::Http1),
        (b"\rGET /admin HTTP/1.1\n", Detected::Http1),
        (b" GET /admin\n", Detected::Unclear),
        (b" OPTIONS rtsp://camera/ RTSP/1.0\r\n", Detected::Opaque),
        (b"CONNECT\r\naccept-version:1.2\r\n", Detected::Opaque),
        // LDAP: the length of a bind request is a blank.
        (b"0 \x02\x01\x01\x60", Detected::Opaque),
        (b"0\x1c\x02\x01\x01\x60", Detected::Opaque),
        // A length of one byte, and one of four, that happen to be blanks.
        (b"\x20\x00\x00\x00", Detected::Opaque),
        (b"\x1f\x01login", Detected::Opaque),
        // Whom a lenient server would serve.
        (b"GET /admin\r\n", Detected::Unclear),
        (b"POST /admin\n", Detected::Unclear),
        (b"GET http://a/admin\r\n", Detected::Unclear),
        (b"A-METHOD-THAT-IS-LONGER-THAN-ANY-ONE-KNOWS", Detected::Unclear),
    ];
    for (bytes, expected) in cases {
        assert_eq!(
            classify(bytes, Look::Http, false),
            Some(expected),
            "{:?}",
            bytes.escape_ascii().to_string()
        );
    }
}

#[test]
fn a_known_method_is_no_request_before_its_line_is_whole() {
    let begun = [&b"GET "[..], b"get /", b"GET / HTTP/1.1", b"DELETE 1", b"\r\n\r\nPOST /x", b"PURGE"];
    for bytes in begun.into_iter().chain([&b" "[..], b"\r", b" \xa0GET", b"GET\xa0/adm", b"GET\r"]) {
        assert_eq!(classify(bytes, Look::Http, false), None, "{}", bytes.escape_ascii());
    }
    // A server may take the end for that of the line.
    assert_eq!(classify(b"GET /admin", Look::Http, true), Some(Detected::Unclear));
    assert_eq!(classify(b"GET / HTTP/1.1", Look::Http, true), Some(Detected::Http1));
    assert_eq!(classify(b"get key", Look::Http, true), Some(Detected::Opaque));
    let endless = [b"GET /".to_vec(), vec![b'a'; MAX_PEEK]].concat();
    assert_eq!(classify(&endless, Look::Everything, false), Some(Detected::Unclear));
}

#[test]
fn a_server_of_http_is_known_by_its_first_words() {
    use super::http::Words::{Http, NeedMore, Other};
    let cases: [(&[u8], http::Words); 14] = [
        (&[0, 0, 18, 4, 0, 0, 0, 0, 0, 0, 3], Http),
        (&[0, 0, 0, 4, 0, 0, 0, 0, 0], Http),
        (&[0, 0, 0, 4, 0, 0, 0, 0], NeedMore),
        (&[0, 0, 0, 4, 1], Other),
        (&[0, 0, 7, 4, 0, 0, 0, 0, 0], Other),
        (&[0, 0, 6, 6, 0, 0, 0, 0, 0], Other),
        (&[0, 0, 6, 4, 0, 0, 0, 0, 1], Other),
        (b"HTTP/1.1 400 Bad Request\r\n", Http),
        (b"HTT", NeedMore),
        (b"HELLO", Other),
        (b"220 ready\r\n", Other),
        (b"J\0\0\0\x0a8.4.2", Other),
        (b"SSH-2.0-OpenSSH", Other),
        (b"", NeedMore),
    ];
    for (bytes, expected) in cases {
        assert_eq!(http::classify_server(bytes), expected, "{}", bytes.escape_ascii());
    }
}

#[test]
fn what_is_cut_short_is_opaque() {
    for bytes in [&b""[..], b"GE", b"PRI * HT", b"\x16\x03\x01"] {
        assert_eq!(classify(bytes, Look::Everything, false), None);
        assert_eq!(classify(bytes, Look::Everything, true), Some(Detected::Opaque));
    }
}

#[test]
fn tls_inside_is_not_looked_for_where_it_would_be_the_applications() {
    let bytes = client_hello(SNI, &[]);
    assert_eq!(classify(&bytes, Look::Http, false), Some(Detected::Opaque));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn any_split_yields_the_same_verdict(which in 0_usize..5, cut in any::<prop::sample::Index>()) {
        let bytes = match which {
            0 => client_hello(SNI, &[b"istio-http/1.1", b"istio"]),
            1 => in_records(&client_hello("a.b", &[])[5..], 77),
            2 => b"\r\nPROPFIND /a HTTP/1.1\r\nhost: a\r\n\r\n".to_vec(),
            3 => b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0".to_vec(),
            _ => b"hello, this is opaque\n".to_vec(),
        };
        let whole = classify(&bytes, Look::Everything, true);
        if let Some(early) = classify(&bytes[..cut.index(bytes.len())], Look::Everything, false) {
            prop_assert_eq!(Some(early), whole);
        }
    }

    #[test]
    fn garbage_never_panics(data in prop::collection::vec(any::<u8>(), 0..600)) {
        fuzz_detect(&data);
    }

    #[test]
    fn a_damaged_hello_never_panics(at in any::<prop::sample::Index>(), byte in any::<u8>(), cut in any::<[u8; 2]>()) {
        let mut bytes = [&cut[..], &client_hello(SNI, &[b"istio"])].concat();
        let at = at.index(bytes.len());
        bytes[at] = byte;
        fuzz_detect(&bytes);
    }
}

#[test]
fn the_corpus_and_its_mutations_hold() {
    let pieces: &[&[u8]] = &[b"\x16\x03\x01", b"\x00", b"\r\n", b" ", b"PRI * HTTP/2.0", b"GET /"];
    crate::testing::replay("detect", 5, pieces, fuzz_detect);
}

async fn pair() -> (TcpStream, Unanswered) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    (client, Stream::Tcp(listener.accept().await.unwrap().0).into())
}

fn patience(first: Option<Instant>) -> Patience {
    Patience { first, rest: Duration::from_secs(5) }
}

#[tokio::test]
async fn the_bytes_that_were_looked_at_are_still_there() {
    let (mut client, server) = pair().await;
    let looking = tokio::spawn(async move { detect(server, Look::Everything, patience(None)).await });
    client.write_all(b"PUR").await.unwrap();
    tokio::task::yield_now().await;
    client.write_all(b"GE / HTTP/1.1\r\n\r\n").await.unwrap();
    client.shutdown().await.unwrap();
    let Ok(Ok(Outcome::Decided(Detected::Http1, mut stream))) = looking.await else { panic!() };
    let mut text = String::new();
    stream.read_to_string(&mut text).await.unwrap();
    assert_eq!(text, "PURGE / HTTP/1.1\r\n\r\n");
}

#[tokio::test]
async fn a_silent_client_is_told_from_a_slow_one() {
    let (mut client, server) = pair().await;
    let Ok(Outcome::Silent(server)) = detect(server, Look::Everything, patience(Some(Instant::now()))).await
    else {
        panic!()
    };
    client.write_all(b"\x16\x03").await.unwrap();
    let patience = Patience { first: None, rest: Duration::from_millis(1) };
    let Ok(Outcome::Slow(server)) = detect(server, Look::Everything, patience).await else { panic!() };
    assert_eq!(server.peeked(), b"\x16\x03");
    assert_eq!(too_slow(&server).kind, FailureKind::RequestTimeout);
}
