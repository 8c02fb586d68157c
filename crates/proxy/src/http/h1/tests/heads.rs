//! Reading and editing heads.

use bytes::BytesMut;

use crate::http::h1::fuzzing::{request_of, response_of};
use crate::http::h1::message::TargetForm;
use crate::http::h1::write::How;
use crate::http::h1::*;
use crate::http::head::RequestHead;

pub(super) fn request(text: &str) -> H1Request {
    request_of(text.as_bytes(), Limits::default()).unwrap().expect("a whole head").0
}

pub(super) fn response(text: &str) -> H1Response {
    response_of(text.as_bytes(), Asked::default(), Limits::default()).unwrap().expect("a whole head").0
}

#[test]
fn all_values_of_a_header_are_seen_whatever_their_case() {
    let head = request("GET /a?b HTTP/1.1\r\nHoSt: x:1\r\nX-A: 1\r\nx-a:  2 \r\nCookie: c\r\nX-A:\r\n\r\n");
    assert_eq!((head.method(), head.path(), head.authority(), head.scheme()), ("GET", "/a?b", "x:1", "http"));
    assert_eq!(head.fields.headers("x-a").collect::<Vec<_>>(), [b"1".as_slice(), b"2", b""]);
    assert_eq!(head.fields.first("host"), Some(b"x:1".as_slice()));
    assert_eq!(head.fields.first("cookie"), Some(b"c".as_slice()));
    assert_eq!(head.fields.first("connection"), None);
    assert_eq!(head.fields.first("x-b"), None);
}

#[test]
fn edits_are_seen_by_reads() {
    let mut head = request("GET / HTTP/1.1\r\nHost: x\r\nX-A: long value\r\nX-B: 1\r\nX-A: 2\r\n\r\n");
    head.fields.set("x-a", "short").unwrap();
    assert_eq!(head.fields.headers("x-a").collect::<Vec<_>>(), [b"short".as_slice()]);
    head.fields.set("x-a", "a value longer than the first was").unwrap();
    assert_eq!(head.fields.first("x-a"), Some(b"a value longer than the first was".as_slice()));
    head.fields.append("traceparent", "00-1").unwrap();
    head.fields.set("traceparent", "00-2").unwrap();
    assert_eq!(head.fields.headers("traceparent").collect::<Vec<_>>(), [b"00-2".as_slice()]);
    assert!(head.fields.remove("X-B"));
    assert!(!head.fields.remove("x-b"));
    head.fields.append("x-outrigger-a", "1").unwrap();
    assert!(head.fields.remove_prefix("X-Outrigger-"));
    let names: Vec<_> = head.fields.iter().map(|(name, _)| name.to_vec()).collect();
    assert_eq!(names, [b"Host".to_vec(), b"X-A".to_vec(), b"traceparent".to_vec()]);
    assert_eq!(head.fields.len(), 3);
}

#[test]
fn edits_cannot_smuggle_lines() {
    let mut head = request("GET / HTTP/1.1\r\nHost: x\r\n\r\n");
    assert_eq!(head.fields.set("x", "a\r\nb: c"), Err(EditError::Value));
    assert_eq!(head.fields.append("x", "a\0"), Err(EditError::Value));
    assert_eq!(head.fields.append("x", " a"), Err(EditError::Value));
    assert_eq!(head.fields.append("x y", "a"), Err(EditError::Name));
    assert_eq!(head.fields.append("", "a"), Err(EditError::Name));
    assert_eq!(head.set_path("/a HTTP/1.1\r\n"), Err(EditError::Line));
    assert_eq!(head.set_path("a"), Err(EditError::Line));
    assert_eq!(head.set_authority("a\r\n"), Err(EditError::Line));
    assert_eq!(head.set_method("G T"), Err(EditError::Line));
    assert_eq!(head.fields.append("x", "a".repeat(70_000)), Err(EditError::TooLarge));
}

#[test]
fn absolute_form_wins_over_another_host() {
    for host in ["b.example", "a.example:80", "A.example", ""] {
        let mut head = request(&format!("GET https://a.example/b HTTP/1.1\r\nHost: {host}\r\nX: 1\r\n\r\n"));
        assert_eq!(head.authority(), "a.example", "{host:?}");
        assert_eq!(head.fields.first("host"), Some(b"a.example".as_slice()), "policy sees no other host");
        head.set_scheme("http");
        assert_eq!(head.scheme(), "https", "the target says it");
        let mut out = BytesMut::new();
        RequestHead::H1(head).write_h1(How::framed(Framing::None), &mut out).unwrap();
        assert_eq!(&out[..], b"GET /b HTTP/1.1\r\nHost: a.example\r\nX: 1\r\n\r\n");
    }
}

#[test]
fn absolute_form_is_taken_apart() {
    for (target, path) in
        [("http://a.example/b?c", "/b?c"), ("http://a.example", "/"), ("http://a.example?c=d", "/?c=d")]
    {
        let head = request(&format!("GET {target} HTTP/1.1\r\nHost: a.example\r\n\r\n"));
        assert_eq!((head.path(), head.authority(), head.form()), (path, "a.example", TargetForm::Absolute));
    }
    let head = request("OPTIONS https://a.example HTTP/1.1\r\nHost: a.example\r\n\r\n");
    assert_eq!((head.path(), head.scheme()), ("*", "https"));
}

#[test]
fn connect_has_an_authority_and_no_path() {
    let head = request("CONNECT a.example:443 HTTP/1.1\r\nHost: a.example:443\r\n\r\n");
    assert_eq!((head.path(), head.authority(), head.form()), ("", "a.example:443", TargetForm::Authority));
}

#[test]
fn equal_lengths_collapse_into_one() {
    let head = request("PUT / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nContent-Length: 5\r\n\r\n");
    assert_eq!(head.framing(), Framing::Length(5));
    assert_eq!(head.fields.headers("content-length").count(), 1);
}

#[test]
fn connections_persist_by_version_and_option() {
    for (version, line, keeps) in [
        (1, "", true),
        (1, "Connection: close\r\n", false),
        (1, "Connection: keep-alive\r\nConnection: foo , CLOSE\r\n", false),
        (0, "", false),
        (0, "Connection: Keep-Alive\r\n", true),
        (0, "Connection: keep-alive, close\r\n", false),
        (0, "Proxy-Connection: keep-alive\r\n", false),
    ] {
        let head = request(&format!("GET / HTTP/1.{version}\r\nHost: x\r\n{line}\r\n"));
        assert_eq!(head.keeps_alive(), keeps, "1.{version} {line:?}");
    }
    assert!(!response("HTTP/1.1 200 OK\r\n\r\n").keeps_alive(), "a body until close ends the connection");
    assert!(response("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").keeps_alive());
}

#[test]
fn upgrades_need_connection_and_are_never_h2c() {
    let upgrade = |lines: &str| {
        request(&format!("GET / HTTP/1.1\r\nHost: x\r\n{lines}\r\n")).upgrade().map(<[u8]>::to_vec)
    };
    let websocket = Some(b"websocket".to_vec());
    assert_eq!(upgrade("Upgrade: websocket\r\nConnection: keep-alive, Upgrade\r\n"), websocket);
    assert_eq!(upgrade("Upgrade: websocket\r\n"), None);
    assert_eq!(upgrade("Upgrade: h2c\r\nConnection: Upgrade, HTTP2-Settings\r\n"), None);
    assert_eq!(upgrade("Upgrade: websocket, H2C\r\nConnection: Upgrade\r\n"), None);
}

#[test]
fn a_head_alone_in_the_buffer_moves_out_without_a_copy() {
    let mut buf = BytesMut::from("GET / HTTP/1.1\r\nHost: x\r\n\r\n");
    let at = buf.as_ptr();
    let Ok(Parsed::Head(mut head)) = RequestParser::new(Limits::default()).parse(&mut buf) else {
        unreachable!()
    };
    assert_eq!(head.fields.take_buffer().as_ptr(), at);
    assert_eq!(buf.capacity(), 0);
}

#[test]
fn pipelined_requests_come_out_one_by_one() {
    let mut buf =
        BytesMut::from("GET /1 HTTP/1.1\r\nHost: x\r\n\r\nGET /2 HTTP/1.1\r\nHost: x\r\n\r\nGET /3");
    let mut parser = RequestParser::new(Limits::default());
    for path in ["/1", "/2"] {
        let Ok(Parsed::Head(head)) = parser.parse(&mut buf) else { unreachable!() };
        assert_eq!(head.path(), path);
        assert!(parser.is_idle());
    }
    assert!(matches!(parser.parse(&mut buf), Ok(Parsed::NeedMore)));
    assert!(!parser.is_idle());
}

#[test]
fn byte_by_byte_delivery_scans_each_byte_once() {
    // Quadratic scanning of 60 KB would look at 1.8 billion bytes: seconds in a debug build, where this takes few ms.
    let head = format!("GET / HTTP/1.1\r\nHost: x\r\nX: {}\r\n\r\n", "a".repeat(60_000));
    let start = std::time::Instant::now();
    let found = fuzzing::request_in_pieces(head.as_bytes().chunks(1), Limits::default()).unwrap();
    assert!(found.is_some());
    assert!(start.elapsed() < std::time::Duration::from_secs(2), "took {:?}", start.elapsed());
}
