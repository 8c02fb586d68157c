//! What leaves for the next hop: lines as they came, without what belongs to one connection, and across HTTP/2.

use bytes::BytesMut;
use http::HeaderMap;

use super::heads::{request, response};
use crate::http::convert::{self, ConvertError};
use crate::http::h1::write::{self, How, Persist, downstream_framing};
use crate::http::h1::*;
use crate::http::head::{RequestHead, ResponseHead, Trailers};

fn written(head: &H1Request, how: How) -> String {
    let mut out = BytesMut::new();
    write::request(head, how, &mut out).unwrap();
    String::from_utf8(out.to_vec()).unwrap()
}

fn forwarded(text: &str) -> String {
    let head = request(text);
    written(&head, How::framed(head.framing()))
}

fn answered(head: &H1Response, how: How) -> String {
    let mut out = BytesMut::new();
    write::response(head, how, &mut out).unwrap();
    String::from_utf8(out.to_vec()).unwrap()
}

#[test]
fn lines_pass_as_they_came() {
    let text = "POST /a?b=c HTTP/1.1\r\nX-Weird-CASE:   spaced  \r\nhOST: x\r\nX-A: 1\r\nx-a: 2\r\nX-Empty:\r\n\
                CONTENT-length: 3\r\n\r\n";
    assert_eq!(forwarded(text), text);
    let chunked = "PUT / HTTP/1.1\r\nHost: x\r\nTRANSFER-Encoding: Chunked\r\nTrailer: X-Sum\r\n\r\n";
    assert_eq!(forwarded(chunked), chunked);
}

#[test]
fn what_belongs_to_one_connection_stays_behind() {
    let text = "GET / HTTP/1.1\r\nHost: x\r\nKeep-Alive: 5\r\nA: 1\r\nX-Named: s\r\nProxy-Connection: a\r\nB: 2\r\n\
                Upgrade: h2c\r\nHTTP2-Settings: AAM\r\nTE: trailers, gzip\r\n\
                Connection: x-named, Upgrade, HTTP2-Settings, host, keep-alive, TE\r\n\r\n";
    let wanted = "GET / HTTP/1.1\r\nHost: x\r\nA: 1\r\nB: 2\r\nTE: trailers\r\nConnection: TE\r\n\r\n";
    assert_eq!(forwarded(text), wanted);
}

#[test]
fn the_peer_cannot_name_away_what_we_add() {
    let mut head =
        request("GET / HTTP/1.1\r\nHost: x\r\nConnection: x-request-id\r\nX-Request-Id: theirs\r\n\r\n");
    head.fields.set("x-request-id", "our-own-longer-id").unwrap();
    assert!(written(&head, How::framed(Framing::None)).contains("X-Request-Id: our-own-longer-id\r\n"));
}

#[test]
fn edits_take_the_place_of_what_they_edit() {
    let mut head =
        request("GET /old HTTP/1.1\r\nA: 1\r\nHost: old\r\nTraceparent: 00-a\r\nB: 2\r\nC: 3\r\n\r\n");
    head.set_path("/new?x").unwrap();
    head.set_method("PUT").unwrap();
    head.fields.set("traceparent", "00-b").unwrap();
    head.fields.remove("b");
    head.fields.append("x-new", "y").unwrap();
    let wanted = "PUT /new?x HTTP/1.1\r\nA: 1\r\nHost: old\r\nTraceparent: 00-b\r\nC: 3\r\nx-new: y\r\n\r\n";
    assert_eq!(written(&head, How::framed(Framing::None)), wanted);
    head.set_authority("new:8080").unwrap();
    assert_eq!(head.authority(), "new:8080");
    assert!(
        written(&head, How::framed(Framing::None))
            .starts_with("PUT /new?x HTTP/1.1\r\nHost: new:8080\r\nA: 1\r\n")
    );
}

#[test]
fn our_framing_replaces_theirs() {
    let head = request("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nA: 1\r\n\r\n");
    let chunked = "POST / HTTP/1.1\r\nHost: x\r\nA: 1\r\ntransfer-encoding: chunked\r\n\r\n";
    assert_eq!(written(&head, How::framed(Framing::Chunked)), chunked);
    let head = request("POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n");
    let length = "POST / HTTP/1.1\r\nHost: x\r\ncontent-length: 1234567890\r\n\r\n";
    assert_eq!(written(&head, How::framed(Framing::Length(1_234_567_890))), length);
    // An edit of the framing fields changes nothing: the framing is decided elsewhere.
    let mut head = request("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 300\r\n\r\n");
    head.fields.set("content-length", "5").unwrap();
    head.fields.append("transfer-encoding", "chunked").unwrap();
    let wanted = "POST / HTTP/1.1\r\nHost: x\r\ncontent-length: 300\r\n\r\n";
    assert_eq!(written(&head, How::framed(head.framing())), wanted);
}

#[test]
fn absolute_form_leaves_in_origin_form_and_http_10_as_11() {
    let text = "GET http://a.example/b?c HTTP/1.1\r\nHost: a.example\r\n\r\n";
    assert_eq!(forwarded(text), "GET /b?c HTTP/1.1\r\nHost: a.example\r\n\r\n");
    let old = "GET http://a.example/b HTTP/1.0\r\nExpect: 100-continue\r\nConnection: keep-alive\r\n\r\n";
    assert_eq!(forwarded(old), "GET /b HTTP/1.1\r\nHost: a.example\r\n\r\n");
    assert_eq!(forwarded("GET / HTTP/1.0\r\n\r\n"), "GET / HTTP/1.1\r\nHost: \r\n\r\n");
    let connect = "CONNECT a.example:443 HTTP/1.1\r\nHost: a.example:443\r\n\r\n";
    assert_eq!(forwarded(connect), connect);
}

#[test]
fn upgrades_pass_when_agreed() {
    let text = "GET /chat HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
                Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
    let how = How { upgrade: true, ..How::framed(Framing::None) };
    let wanted = "GET /chat HTTP/1.1\r\nHost: x\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
                  Upgrade: websocket\r\nConnection: Upgrade\r\n\r\n";
    assert_eq!(written(&request(text), how), wanted);
    assert!(!forwarded(text).contains("pgrade"));
}

#[test]
fn responses_are_framed_for_their_client() {
    let head = response(
        "HTTP/1.1 200 Fine Thanks\r\nServer: a\r\nTransfer-Encoding: chunked\r\nKeep-Alive: 5\r\n\r\n",
    );
    assert_eq!(downstream_framing(head.framing(), 0), Framing::Close);
    let old = How { framing: Framing::Close, persist: Persist::downstream(0, false), upgrade: false };
    assert_eq!(answered(&head, old), "HTTP/1.1 200 Fine Thanks\r\nServer: a\r\nConnection: close\r\n\r\n");
    let until_close = response("HTTP/1.0 200 OK\r\nServer: a\r\n\r\n");
    let framing = downstream_framing(until_close.framing(), 1);
    let wanted = "HTTP/1.1 200 OK\r\nServer: a\r\ntransfer-encoding: chunked\r\n\r\n";
    assert_eq!(answered(&until_close, How::framed(framing)), wanted);
    let keep = How { persist: Persist::downstream(0, true), ..How::framed(Framing::Length(2)) };
    let head = response("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n");
    assert!(answered(&head, keep).ends_with("Content-Length: 2\r\nConnection: keep-alive\r\n\r\n"));
}

#[test]
fn head_and_304_keep_the_length_that_they_describe_and_204_has_none() {
    let asked = Asked { head: true, ..Asked::default() };
    let text = "HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\n";
    let (head, _) = fuzzing::response_of(text.as_bytes(), asked, Limits::default()).unwrap().unwrap();
    assert_eq!(answered(&head, How::framed(Framing::None)), text);
    let text = "HTTP/1.1 304 Not Modified\r\nContent-Length: 7\r\n\r\n";
    assert_eq!(answered(&response(text), How::framed(Framing::None)), text);
    let empty = response("HTTP/1.1 204 No Content\r\nContent-Length: 0\r\n\r\n");
    assert_eq!(answered(&empty, How::framed(Framing::None)), "HTTP/1.1 204 No Content\r\n\r\n");
    let hints = response("HTTP/1.1 103 Early Hints\r\nLink: a\r\n\r\n");
    assert_eq!(answered(&hints, How::framed(Framing::None)), "HTTP/1.1 103 Early Hints\r\nLink: a\r\n\r\n");
}

#[test]
fn a_response_of_our_own_says_its_length() {
    let mut head = H1Response::new(503, Framing::Length(5));
    head.fields.append("content-type", "text/plain").unwrap();
    let how = How { persist: Persist::Close, ..How::framed(head.framing()) };
    let wanted = "HTTP/1.1 503 Service Unavailable\r\ncontent-type: text/plain\r\ncontent-length: 5\r\nConnection: close\r\n\r\n";
    assert_eq!(answered(&head, how), wanted);
    let own = H1Request::new("GET", "/ready", "a:1").unwrap();
    assert_eq!(written(&own, How::framed(Framing::None)), "GET /ready HTTP/1.1\r\nHost: a:1\r\n\r\n");
}

#[test]
fn a_request_becomes_http2_and_comes_back() {
    let text = "POST /a?b HTTP/1.1\r\nHost: x:1\r\nX-Case: 1\r\nx-case: 2\r\nCookie: a=1\r\nCookie: b=2\r\nTE: trailers\r\n\
                Connection: TE, x-hop\r\nX-Hop: 1\r\nTransfer-Encoding: chunked\r\n\r\n";
    let head = RequestHead::H1(request(text));
    let h2 = convert::request_to_h2(&head, false).unwrap();
    assert_eq!((h2.method().as_str(), h2.uri().to_string().as_str()), ("POST", "http://x:1/a?b"));
    for gone in ["host", "connection", "x-hop", "transfer-encoding"] {
        assert!(!h2.headers().contains_key(gone), "{gone}");
    }
    let back = RequestHead::from_h2(h2.into_parts().0, "http", &Limits::default()).unwrap();
    assert_eq!(
        (back.method(), back.path(), back.authority(), back.scheme()),
        ("POST", "/a?b", "x:1", "http")
    );
    assert_eq!(back.headers("x-case").count(), 2);
    let mut out = BytesMut::new();
    back.write_h1(How::framed(back.framing(false).unwrap()), &mut out).unwrap();
    let wanted = "POST /a?b HTTP/1.1\r\nhost: x:1\r\nx-case: 1\r\nx-case: 2\r\ncookie: a=1; b=2\r\nte: trailers\r\n\
                  transfer-encoding: chunked\r\nConnection: TE\r\n\r\n";
    assert_eq!(std::str::from_utf8(&out).unwrap(), wanted);
}

#[test]
fn http2_needs_an_authority() {
    let head = RequestHead::H1(request("GET / HTTP/1.0\r\n\r\n"));
    assert_eq!(convert::request_to_h2(&head, false).unwrap_err(), ConvertError::NoAuthority);
}

fn h2_request(edit: impl FnOnce(&mut http::request::Parts)) -> http::request::Parts {
    let mut parts = http::Request::get("http://x/a").body(()).unwrap().into_parts().0;
    edit(&mut parts);
    parts
}

#[test]
fn http2_heads_that_http1_would_choke_on_are_refused() {
    type Edit = fn(&mut http::request::Parts);
    let cases: [(Edit, Refusal); 9] = [
        (|p| drop(p.headers.insert("host", "y".parse().unwrap())), Refusal::HostDisagrees),
        (|p| p.uri = "http://u@x/a".parse().unwrap(), Refusal::HostInvalid),
        (|p| p.uri = format!("http://a{}/a", ".".repeat(7_000)).parse().unwrap(), Refusal::HostInvalid),
        (
            |p| {
                p.uri = "/a".parse().unwrap();
                p.headers.insert("host", "a".repeat(254).parse().unwrap());
            },
            Refusal::HostInvalid,
        ),
        (|p| p.uri = "/a".parse().unwrap(), Refusal::HostMissing),
        (
            |p| drop(p.headers.insert("transfer-encoding", "chunked".parse().unwrap())),
            Refusal::TransferEncoding,
        ),
        (|p| drop(p.headers.insert("content_length", "1".parse().unwrap())), Refusal::Lookalike),
        (|p| drop(p.headers.insert("content-length", "+1".parse().unwrap())), Refusal::ContentLength),
        (
            |p| {
                p.headers.append("content-length", "1".parse().unwrap());
                p.headers.append("content-length", "2".parse().unwrap());
            },
            Refusal::ContentLengthsDiffer,
        ),
    ];
    for (edit, refusal) in cases {
        assert_eq!(
            RequestHead::from_h2(h2_request(edit), "http", &Limits::default()).map(|_| ()).unwrap_err(),
            refusal
        );
    }
    assert!(RequestHead::from_h2(h2_request(|_| {}), "http", &Limits::default()).is_ok());
}

#[test]
fn http2_heads_are_edited_like_others() {
    let mut head = RequestHead::from_h2(h2_request(|_| {}), "http", &Limits::default()).unwrap();
    head.set("host", "new:1").unwrap();
    head.set_path("/b?c").unwrap();
    head.set_method("PUT").unwrap();
    head.append("x-a", "1").unwrap();
    head.append("x-a", "2").unwrap();
    assert_eq!(
        (head.authority(), head.path(), head.method(), head.scheme()),
        ("new:1", "/b?c", "PUT", "http")
    );
    assert_eq!(head.headers("x-a").collect::<Vec<_>>(), [b"1".as_slice(), b"2"]);
    assert!(head.remove_prefix("x-"));
    assert!(!head.has("x-a"));
    assert_eq!(head.set("x", "a\r\nb"), Err(EditError::Value));
}

#[test]
fn a_response_becomes_http2_and_comes_back() {
    let text =
        "HTTP/1.1 200 OK\r\nSet-Cookie: a\r\nSet-Cookie: b\r\nKeep-Alive: 5\r\nContent-Length: 2\r\n\r\n";
    let h2 = convert::response_to_h2(&ResponseHead::H1(response(text))).unwrap();
    assert_eq!(h2.headers().get_all("set-cookie").iter().count(), 2);
    assert!(!h2.headers().contains_key("keep-alive"));
    let head = ResponseHead::H2(h2.into_parts().0);
    let mut out = BytesMut::new();
    head.write_h1(How::framed(head.framing(false, false).unwrap()), &mut out).unwrap();
    let wanted = "HTTP/1.1 200 OK\r\nset-cookie: a\r\nset-cookie: b\r\ncontent-length: 2\r\n\r\n";
    assert_eq!(std::str::from_utf8(&out).unwrap(), wanted);
}

#[test]
fn a_websocket_crosses_http2_and_back() {
    let text = "GET /chat HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
                Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n";
    let h1 = request(text);
    let h2 = convert::request_to_h2(&RequestHead::H1(h1.clone()), true).unwrap();
    assert_eq!(h2.method(), http::Method::CONNECT);
    assert_eq!(h2.extensions().get::<h2::ext::Protocol>().unwrap().as_str(), "websocket");
    assert_eq!(h2.uri().path(), "/chat");
    let parts = RequestHead::from_h2(h2.into_parts().0, "http", &Limits::default()).unwrap();
    assert_eq!(parts.upgrade(), Some(b"websocket".as_slice()));
    assert!(!parts.is_connect());
    // Routes and policies see what an HTTP/1 server will.
    assert_eq!((parts.method(), parts.first("upgrade")), ("GET", Some(b"websocket".as_slice())));
    let on = convert::request_to_h2(&parts, true).unwrap();
    assert_eq!(on.method(), http::Method::CONNECT);
    assert!(!on.headers().contains_key("upgrade") && !on.headers().contains_key("connection"));
    let mut out = BytesMut::new();
    parts.write_h1(How::framed(Framing::None), &mut out).unwrap();
    let again = request(std::str::from_utf8(&out).unwrap());
    assert_eq!(
        (again.method(), again.path(), again.upgrade()),
        ("GET", "/chat", Some(b"websocket".as_slice()))
    );
    assert_eq!(again.fields.first("sec-websocket-key"), Some(b"dGhlIHNhbXBsZSBub25jZQ==".as_slice()));

    // The server's 101 is a 200 in HTTP/2, and a 101 again for the client; RFC 6455's own example of a key.
    let asked = Asked { upgrade: true, ..Asked::default() };
    let switch = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n\x81";
    let (head, rest) = fuzzing::response_of(switch, asked, Limits::default()).unwrap().unwrap();
    assert_eq!(&rest[..], b"\x81", "bytes behind the 101 belong to the tunnel");
    let h2 = convert::response_to_h2(&ResponseHead::H1(head)).unwrap();
    assert_eq!(h2.status(), 200);
    let back = convert::switching_protocols(&ResponseHead::H2(h2.into_parts().0), &h1);
    let wanted = "HTTP/1.1 101 Switching Protocols\r\nSec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\
                  Upgrade: websocket\r\nConnection: Upgrade\r\n\r\n";
    assert_eq!(answered(&back, How { upgrade: true, ..How::framed(Framing::Tunnel) }), wanted);
}

#[test]
fn an_http2_websocket_gets_the_key_that_http1_needs() {
    let mut parts = h2_request(|p| p.method = http::Method::CONNECT);
    parts.extensions.insert(h2::ext::Protocol::from("websocket"));
    let mut out = BytesMut::new();
    RequestHead::from_h2(parts, "http", &Limits::default())
        .unwrap()
        .write_h1(How::framed(Framing::None), &mut out)
        .unwrap();
    let head = request(std::str::from_utf8(&out).unwrap());
    assert_eq!(head.fields.first("sec-websocket-key").map(<[u8]>::len), Some(24));
    assert_eq!(head.upgrade(), Some(b"websocket".as_slice()));
}

#[test]
fn trailers_cross_both_ways() {
    let mut map = HeaderMap::new();
    map.append("grpc-status", "0".parse().unwrap());
    map.append("x-sum", "a".parse().unwrap());
    map.append("x-sum", "b".parse().unwrap());
    map.append("content-length", "5".parse().unwrap());
    let trailers = Trailers::H2(map);
    let (mut encoder, mut out) = (BodyEncoder::new(Framing::Chunked), BytesMut::new());
    encoder.finish_with(convert::trailer_lines(&trailers), &mut out).unwrap();
    assert_eq!(out, "0\r\ngrpc-status: 0\r\nx-sum: a\r\nx-sum: b\r\n\r\n");
    let mut decoder = BodyDecoder::new(Framing::Chunked, Limits::default());
    let Ok(Step::Trailers(fields)) = decoder.poll(&mut out) else { unreachable!() };
    let back = convert::trailers_to_h2(Trailers::H1(fields));
    assert_eq!(back, convert::trailers_to_h2(trailers));
    assert_eq!(back.get_all("x-sum").iter().count(), 2);
}

#[test]
fn a_large_cookie_is_sent_in_crumbs() {
    let cookie = (0..1000).map(|n| format!("name{n}=value{n}")).collect::<Vec<_>>().join("; ");
    let head = RequestHead::H1(request(&format!("GET / HTTP/1.1\r\nHost: x\r\nCookie: {cookie}\r\n\r\n")));
    let h2 = convert::request_to_h2(&head, false).unwrap();
    assert_eq!(h2.headers().get_all("cookie").iter().count(), 1000);
    let mut out = BytesMut::new();
    RequestHead::H2(h2.into_parts().0).write_h1(How::framed(Framing::None), &mut out).unwrap();
    assert_eq!(request(std::str::from_utf8(&out).unwrap()).fields.first("cookie"), Some(cookie.as_bytes()));
}

#[test]
fn no_writer_of_heads_lets_a_control_byte_through() {
    let mut parts = h2_request(|p| p.method = http::Method::CONNECT);
    let smuggled =
        "websocket\r\n\r\nGET /admin HTTP/1.1\r\nHost: x\r\nX-Forwarded-Client-Cert: URI=spiffe://a";
    parts.extensions.insert(h2::ext::Protocol::from(smuggled));
    assert_eq!(
        RequestHead::from_h2(parts.clone(), "http", &Limits::default()).unwrap_err(),
        Refusal::Protocol
    );
    // Had it come by another way, it would not leave either.
    let mut out = BytesMut::from("before");
    assert!(RequestHead::H2(parts).write_h1(How::framed(Framing::None), &mut out).is_err());
    assert_eq!(out, "before");
    for text in [&b"a\r\nb"[..], b"a\nb", b"a\0", b"\x7f", b"\x1b"] {
        assert!(write::line(b"x", text, &mut out).is_err() && write::line(text, b"x", &mut out).is_err());
        assert!(write::request_line(text, b"/", &mut out).is_err());
        assert!(write::request_line(b"GET", text, &mut out).is_err());
        assert!(write::status_line(200, text, &mut out).is_err());
    }
    assert!(write::request_line(b"GET", b"/ HTTP/1.1", &mut out).is_err());
    assert_eq!(out, "before");
    assert!(write::line(b"x", "\u{fc} and\ttab".as_bytes(), &mut out).is_ok());
}

#[test]
fn a_plain_connect_has_a_port_and_no_length_and_only_options_asks_about_all() {
    use http::Method;
    let judged = |method: Method, uri: &str, length: bool| {
        let mut parts = h2_request(|p| p.uri = uri.parse().unwrap());
        parts.method = method;
        if length {
            parts.headers.insert("content-length", "5".parse().unwrap());
        }
        RequestHead::from_h2(parts, "http", &Limits::default()).map(|_| ())
    };
    assert_eq!(judged(Method::CONNECT, "shop:443", false), Ok(()));
    assert_eq!(judged(Method::CONNECT, "shop", false), Err(Refusal::Target));
    assert_eq!(judged(Method::CONNECT, "shop:443", true), Err(Refusal::ConnectBody));
    for (method, answer) in [(Method::OPTIONS, Ok(())), (Method::GET, Err(Refusal::Target))] {
        let mut parts = h2_request(|p| p.method = method);
        let mut uri = parts.uri.clone().into_parts();
        uri.path_and_query = Some("*".parse().unwrap());
        parts.uri = http::Uri::from_parts(uri).unwrap();
        assert_eq!(RequestHead::from_h2(parts, "http", &Limits::default()).map(|_| ()), answer);
    }
}

#[test]
fn the_protocol_of_an_extended_connect_is_a_token() {
    let judged = |protocol: &'static str| {
        let mut parts = h2_request(|p| p.method = http::Method::CONNECT);
        parts.extensions.insert(h2::ext::Protocol::from(protocol));
        RequestHead::from_h2(parts, "http", &Limits::default()).map(|_| ())
    };
    for protocol in ["websocket", "SPDY/3.1", "connect-udp"] {
        assert_eq!(judged(protocol), Ok(()), "{protocol}");
    }
    for protocol in ["", "a b", "a,b", "a/", "/a", "a\tb", "a/b/c", "\u{fc}"] {
        assert_eq!(judged(protocol), Err(Refusal::Protocol), "{protocol:?}");
    }
}
