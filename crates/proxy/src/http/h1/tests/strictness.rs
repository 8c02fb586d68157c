//! Every rule of `strict`, as a table: what is refused, and as what.

use bytes::BytesMut;

use crate::http::h1::fuzzing::{request_in_pieces, request_of, response_of};
use crate::http::h1::*;

fn refused(text: &[u8]) -> Refusal {
    let whole = request_of(text, Limits::default()).map(|found| found.is_some());
    let bytewise = request_in_pieces(text.chunks(1), Limits::default()).map(|found| found.is_some());
    assert_eq!(whole, bytewise, "byte by byte it is judged otherwise: {}", text.escape_ascii());
    whole.expect_err(&text.escape_ascii().to_string())
}

fn with(lines: &str) -> Vec<u8> {
    format!("POST /a HTTP/1.1\r\nHost: a.example\r\n{lines}\r\n").into_bytes()
}

#[test]
fn ambiguous_framing_is_refused() {
    let long = format!("Content-Length: {}\r\n", "9".repeat(40));
    for (lines, refusal) in [
        ("Content-Length: 5\r\nTransfer-Encoding: chunked\r\n", Refusal::LengthAndChunked),
        ("Transfer-Encoding: chunked\r\nContent-Length: 0\r\n", Refusal::LengthAndChunked),
        ("Content-Length: 5\r\nContent-Length: 6\r\n", Refusal::ContentLengthsDiffer),
        ("Content-Length: 5, 5\r\n", Refusal::ContentLength),
        ("Content-Length: +5\r\n", Refusal::ContentLength),
        ("Content-Length: -5\r\n", Refusal::ContentLength),
        ("Content-Length: 0x5\r\n", Refusal::ContentLength),
        ("Content-Length: 5 5\r\n", Refusal::ContentLength),
        ("Content-Length:\r\n", Refusal::ContentLength),
        ("Content-Length: 18446744073709551616\r\n", Refusal::ContentLength),
        (&long, Refusal::ContentLength),
        ("Transfer-Encoding: chunked, chunked\r\n", Refusal::TransferEncoding),
        ("Transfer-Encoding: chunked, gzip\r\n", Refusal::TransferEncoding),
        ("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n", Refusal::TransferEncoding),
        ("Transfer-Encoding:\r\n", Refusal::TransferEncoding),
        ("Transfer-Encoding: ,chunked\r\n", Refusal::TransferEncoding),
        ("Transfer-Encoding: \"chunked\"\r\n", Refusal::TransferEncoding),
        ("Transfer-Encoding: chunked;a=b\r\n", Refusal::TransferEncoding),
        ("Transfer-Encoding: xchunked\r\n", Refusal::TransferCoding),
        ("Transfer-Encoding: identity\r\n", Refusal::TransferCoding),
        ("Transfer-Encoding: gzip, chunked\r\n", Refusal::TransferCoding),
        ("Transfer_Encoding: chunked\r\n", Refusal::Lookalike),
        ("Content.Length: 5\r\n", Refusal::Lookalike),
    ] {
        assert_eq!(refused(&with(lines)), refusal, "{lines:?}");
    }
    let old = b"POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n";
    assert_eq!(refused(old), Refusal::TransferEncodingIn10);
    for field in ["Content-Length: 0", "Transfer-Encoding: chunked"] {
        let connect = format!("CONNECT a.example:443 HTTP/1.1\r\nHost: a.example:443\r\n{field}\r\n\r\n");
        assert_eq!(refused(connect.as_bytes()), Refusal::ConnectBody, "{field}");
    }
}

#[test]
fn malformed_lines_are_refused() {
    for (lines, refusal) in [
        ("X: a\n", Refusal::BareLf),
        ("X: a\nY: b\r\n", Refusal::BareLf),
        ("X: a\rb\r\n", Refusal::BareCr),
        ("X: a\r\r\n", Refusal::BareCr),
        ("X: a\r\n b\r\n", Refusal::ObsFold),
        ("X: a\r\n\tb: c\r\n", Refusal::ObsFold),
        ("X : a\r\n", Refusal::SpaceBeforeColon),
        ("Content-Length\t: 5\r\n", Refusal::SpaceBeforeColon),
        ("X: a\0b\r\n", Refusal::ControlByte),
        ("X: a\x7fb\r\n", Refusal::ControlByte),
        ("X: a\x0bb\r\n", Refusal::ControlByte),
        ("X\x01: a\r\n", Refusal::ControlByte),
        ("nocolon\r\n", Refusal::FieldName),
        (": a\r\n", Refusal::FieldName),
        ("X(: a\r\n", Refusal::FieldName),
        ("X y: a\r\n", Refusal::FieldName),
        ("H\u{f6}st: a\r\n", Refusal::FieldName),
    ] {
        assert_eq!(refused(&with(lines)), refusal, "{lines:?}");
    }
}

#[test]
fn malformed_start_lines_are_refused() {
    for (line, refusal, status) in [
        ("GET  / HTTP/1.1\r\n", Refusal::RequestLine, 400),
        ("GET / HTTP/1.1 \r\n", Refusal::RequestLine, 400),
        ("GET /a b HTTP/1.1\r\n", Refusal::RequestLine, 400),
        (" GET / HTTP/1.1\r\n", Refusal::RequestLine, 400),
        ("GET\t/ HTTP/1.1\r\n", Refusal::RequestLine, 400),
        ("GET /\r\n", Refusal::RequestLine, 400),
        ("GET\r\n", Refusal::RequestLine, 400),
        ("\r\n\r\nGET / HTTP/1.1\r\n", Refusal::RequestLine, 400),
        ("\nGET / HTTP/1.1\r\n", Refusal::BareLf, 400),
        ("\rGET / HTTP/1.1\r\n", Refusal::BareCr, 400),
        ("GET / HTTP/1.1\n", Refusal::BareLf, 400),
        ("GE\rT / HTTP/1.1\r\n", Refusal::BareCr, 400),
        ("GET /\0 HTTP/1.1\r\n", Refusal::ControlByte, 400),
        ("G(T / HTTP/1.1\r\n", Refusal::Method, 400),
        ("GET /\u{f6} HTTP/1.1\r\n", Refusal::Target, 400),
        ("GET /a#b HTTP/1.1\r\n", Refusal::Target, 400),
        ("GET /a\\b HTTP/1.1\r\n", Refusal::Target, 400),
        ("GET a HTTP/1.1\r\n", Refusal::Target, 400),
        ("GET * HTTP/1.1\r\n", Refusal::Target, 400),
        ("GET ftp://a.example/ HTTP/1.1\r\n", Refusal::Target, 400),
        ("GET a.example:80 HTTP/1.1\r\n", Refusal::Target, 400),
        ("CONNECT a.example HTTP/1.1\r\n", Refusal::Target, 400),
        ("CONNECT /a HTTP/1.1\r\n", Refusal::Target, 400),
        ("GET http:/// HTTP/1.1\r\n", Refusal::HostInvalid, 400),
        ("GET http://u@a.example/ HTTP/1.1\r\n", Refusal::HostInvalid, 400),
        ("GET / HTTP/1.2\r\n", Refusal::Version, 505),
        ("GET / HTTP/2.0\r\n", Refusal::Version, 505),
        ("PRI * HTTP/2.0\r\n", Refusal::Version, 505),
        ("GET / HTTP/0.9\r\n", Refusal::Version, 505),
        ("GET / http/1.1\r\n", Refusal::RequestLine, 400),
        ("GET / ICY/1.1\r\n", Refusal::RequestLine, 400),
    ] {
        let text = format!("{line}Host: a.example\r\n\r\n");
        let refusal_here = refused(text.as_bytes());
        assert_eq!((refusal_here, refusal_here.status()), (refusal, status), "{line:?}");
    }
}

#[test]
fn host_must_be_one_valid_and_the_targets() {
    for (head, refusal) in [
        ("GET / HTTP/1.1\r\n", Refusal::HostMissing),
        ("GET http://a.example/ HTTP/1.1\r\n", Refusal::HostMissing),
        ("GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n", Refusal::HostRepeated),
        ("GET / HTTP/1.0\r\nHost: a\r\nHost: b\r\n", Refusal::HostRepeated),
        ("GET / HTTP/1.1\r\nHost: a/b\r\n", Refusal::HostInvalid),
        ("GET / HTTP/1.1\r\nHost: a b\r\n", Refusal::HostInvalid),
        ("GET / HTTP/1.1\r\nHost: a,b\r\nHost: a\r\n", Refusal::HostRepeated),
        ("GET / HTTP/1.1\r\nHost: u@a\r\n", Refusal::HostInvalid),
        ("GET / HTTP/1.1\r\nHost: a:\r\n", Refusal::HostInvalid),
        ("GET / HTTP/1.1\r\nHost: a:65536\r\n", Refusal::HostInvalid),
        ("GET / HTTP/1.1\r\nHost: a:8x\r\n", Refusal::HostInvalid),
        ("GET / HTTP/1.1\r\nHost: [::1\r\n", Refusal::HostInvalid),
        ("GET / HTTP/1.1\r\nHost: [a]\r\n", Refusal::HostInvalid),
        ("GET / HTTP/1.1\r\nHost: ::1\r\n", Refusal::HostInvalid),
        ("GET http://a.example/ HTTP/1.1\r\nHost: a/b\r\n", Refusal::HostInvalid),
        ("CONNECT a.example:1 HTTP/1.1\r\nHost: b.example:1\r\n", Refusal::HostDisagrees),
    ] {
        assert_eq!(refused(format!("{head}\r\n").as_bytes()), refusal, "{head:?}");
    }
}

#[test]
fn a_host_is_no_longer_than_a_name_may_be() {
    let longest = ["a"; 127].join(".");
    assert_eq!(longest.len(), 253);
    for host in [longest.clone(), format!("{longest}."), format!("{longest}.:65535"), "a".repeat(253)] {
        for head in
            [format!("GET / HTTP/1.1\r\nHost: {host}"), format!("GET http://{host}/ HTTP/1.1\r\nHost: a")]
        {
            let text = format!("{head}\r\n\r\n");
            assert!(request_of(text.as_bytes(), Limits::default()).unwrap().is_some(), "{head:?}");
        }
    }
    let dots = ".".repeat(7_000);
    for host in ["a".repeat(254), format!("{longest}.."), format!("a{dots}"), format!("a{dots}:80")] {
        let heads =
            [format!("GET / HTTP/1.1\r\nHost: {host}"), format!("GET http://{host}/ HTTP/1.1\r\nHost: a")];
        for head in heads {
            let refusal = refused(format!("{head}\r\n\r\n").as_bytes());
            assert_eq!((refusal, refusal.status()), (Refusal::HostInvalid, 400), "{} bytes", host.len());
        }
    }
}

/// Each field would be compared with each of them.
#[test]
fn connection_has_so_many_options_and_no_more() {
    let head = |lines: &str| format!("GET / HTTP/1.1\r\nHost: a\r\n{lines}\r\n");
    let most = ["close"; 64].join(",");
    assert!(request_of(head(&format!("Connection: {most}\r\n")).as_bytes(), Limits::default()).is_ok());
    let (one, two) = ("Connection: a\r\n", format!("Connection: {}\r\n", ["b"; 20_000].join(",")));
    for lines in [format!("Connection: {most}\r\n{one}"), format!("Connection: {most},a\r\n"), two.clone()] {
        let refusal = refused(head(&lines).as_bytes());
        assert_eq!((refusal, refusal.status()), (Refusal::ConnectionOptions, 400));
    }
    let response = format!("HTTP/1.1 200 OK\r\n{two}\r\n");
    let refusal = response_of(response.as_bytes(), Asked::default(), Limits::default()).unwrap_err();
    assert_eq!(refusal, Refusal::ConnectionOptions);
}

#[test]
fn what_is_plain_passes() {
    for head in [
        "GET / HTTP/1.1\r\nHost: a.example\r\n",
        "\r\nGET / HTTP/1.1\r\nHost: a.example\r\n",
        "GET / HTTP/1.1\r\nHost:\r\n",
        "GET / HTTP/1.0\r\n",
        "GET / HTTP/1.1\r\nhOST:\t[::1]:8080 \t\r\n",
        "GET /{a}|b?c=\"d\"^ HTTP/1.1\r\nHost: a_b.example:65535\r\n",
        "OPTIONS * HTTP/1.1\r\nHost: a.example\r\n",
        "GET HTTP://A.example:80/ HTTP/1.1\r\nHost: a.example\r\n",
        "CONNECT a.example:443 HTTP/1.1\r\nHost: a.example\r\n",
        "M-SEARCH /a HTTP/1.1\r\nHost: a.example\r\nX-Empty:\r\nX-Latin: \u{e9}\tb\r\n",
        "POST / HTTP/1.1\r\nHost: a.example\r\nContent-Length: 5\r\nContent-Length: 5\r\n",
        "POST / HTTP/1.1\r\nHost: a.example\r\ntransfer-encoding: ChunKed\r\n",
    ] {
        let text = format!("{head}\r\n");
        assert!(request_of(text.as_bytes(), Limits::default()).unwrap().is_some(), "{head:?}");
    }
}

#[test]
fn sizes_are_limited() {
    let limits = Limits { head: 400, start_line: 100, fields: 5, ..Limits::default() };
    let status = |text: &str| {
        let whole = request_of(text.as_bytes(), limits).map(|_| ()).unwrap_err();
        assert_eq!(whole, request_in_pieces(text.as_bytes().chunks(1), limits).map(|_| ()).unwrap_err());
        (whole, whole.status())
    };
    let head = |lines: &str| format!("GET / HTTP/1.1\r\nHost: a\r\n{lines}\r\n");
    assert_eq!(status(&format!("GET /{} HTTP/1.1\r\n", "a".repeat(100))), (Refusal::StartLineTooLong, 414));
    assert_eq!(status(&"A".repeat(101)), (Refusal::StartLineTooLong, 414));
    assert_eq!(status(&head(&format!("X: {}\r\n", "a".repeat(400)))), (Refusal::HeadTooLarge, 431));
    assert_eq!(status(&head(&"X: a\r\n".repeat(5))), (Refusal::TooManyFields, 431));
    assert!(request_of(head(&"X: a\r\n".repeat(4)).as_bytes(), limits).unwrap().is_some());
    // The largest head that the ranges can address is accepted, with its last header readable.
    let huge = format!("GET / HTTP/1.1\r\nHost: a\r\nX: {}\r\nLast: z\r\n\r\n", "a".repeat(MAX_HEAD - 48));
    let (request, _) = request_of(huge.as_bytes(), Limits::default()).unwrap().unwrap();
    assert_eq!(request.fields.first("last"), Some(b"z".as_slice()));
}

#[test]
fn responses_obey_the_same_rules() {
    let plain = Asked::default();
    for (text, asked, refusal) in [
        (
            "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n",
            plain,
            Refusal::LengthAndChunked,
        ),
        (
            "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n",
            plain,
            Refusal::ContentLengthsDiffer,
        ),
        ("HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n", plain, Refusal::TransferEncodingIn10),
        ("HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n", plain, Refusal::TransferCoding),
        ("HTTP/1.1 200 OK\r\nX : a\r\n", plain, Refusal::SpaceBeforeColon),
        ("HTTP/1.1 200 OK\r\nX: a\r\n b\r\n", plain, Refusal::ObsFold),
        ("HTTP/1.1 200 O\rK\r\n", plain, Refusal::BareCr),
        ("HTTP/1.1 200 OK\n", plain, Refusal::BareLf),
        ("HTTP/1.1 20 OK\r\n", plain, Refusal::StatusLine),
        ("HTTP/1.1 099 OK\r\n", plain, Refusal::StatusLine),
        ("HTTP/1.1  200 OK\r\n", plain, Refusal::StatusLine),
        ("HTTP/2.0 200 OK\r\n", plain, Refusal::Version),
        ("ICY 200 OK\r\n", plain, Refusal::StatusLine),
        ("\r\nHTTP/1.1 200 OK\r\n", plain, Refusal::StatusLine),
        ("HTTP/1.1 100 Continue\r\nTransfer-Encoding: chunked\r\n", plain, Refusal::BodylessFraming),
        ("HTTP/1.1 101 Switching Protocols\r\nUpgrade: a\r\n", plain, Refusal::UnaskedSwitch),
    ] {
        let found = response_of(format!("{text}\r\n").as_bytes(), asked, Limits::default());
        assert_eq!(found.map(|_| ()).unwrap_err(), refusal, "{text:?}");
    }
}

#[test]
fn response_bodies_follow_method_and_status() {
    let (head, connect, upgrade) = (
        Asked { head: true, ..Asked::default() },
        Asked { connect: true, ..Asked::default() },
        Asked { upgrade: true, ..Asked::default() },
    );
    let plain = Asked::default();
    for (text, asked, framing) in [
        ("200 OK\r\nContent-Length: 7", plain, Framing::Length(7)),
        ("200 OK\r\nTransfer-Encoding: chunked", plain, Framing::Chunked),
        ("200 OK\r\nServer: a", plain, Framing::Close),
        ("200 OK\r\nContent-Length: 7", head, Framing::None),
        ("200 OK\r\nTransfer-Encoding: chunked", head, Framing::None),
        ("304 Not Modified\r\nContent-Length: 7", plain, Framing::None),
        ("204 No Content\r\nContent-Length: 0", plain, Framing::None),
        ("204 No Content\r\nContent-Length: 7", plain, Framing::None),
        ("204 No Content\r\nTransfer-Encoding: chunked", plain, Framing::None),
        ("103 Early Hints\r\nLink: a", plain, Framing::None),
        ("200 OK\r\nContent-Length: 7", connect, Framing::Tunnel),
        ("407 No\r\nContent-Length: 7", connect, Framing::Length(7)),
        ("101 Switching Protocols\r\nUpgrade: a", upgrade, Framing::Tunnel),
        ("200 OK\r\nContent-Length: 7", upgrade, Framing::Length(7)),
    ] {
        let bytes = format!("HTTP/1.1 {text}\r\n\r\nrest");
        let (found, rest) = response_of(bytes.as_bytes(), asked, Limits::default()).unwrap().unwrap();
        assert_eq!(found.framing(), framing, "{text:?}");
        assert_eq!(rest, "rest", "bytes behind the head stay in the buffer");
    }
}

#[test]
fn endless_interim_responses_are_refused() {
    let mut buf = BytesMut::from("HTTP/1.1 103 Early Hints\r\n\r\n".repeat(40).as_bytes());
    let mut parser = ResponseParser::new(Limits::default());
    let refusal = loop {
        match parser.parse(&mut buf, Asked::default()) {
            Ok(Parsed::Head(head)) => assert!(head.is_interim()),
            Ok(Parsed::NeedMore) => unreachable!("all forty were let through"),
            Err(refusal) => break refusal,
        }
    };
    assert_eq!(refusal, Refusal::TooManyInterim);
}
