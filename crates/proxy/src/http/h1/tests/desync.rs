//! The http_desync_guardian crate as an oracle: what it calls severe we refuse, what it calls compliant we take.
//!
//! It judges framing and characters only, so compliant texts here have a Host and a target that our further rules take.

use http_desync_guardian::RequestSafetyTier::{self, Compliant, Severe};
use http_desync_guardian::request_analyzer::HttpRequestData;

use crate::http::h1::Limits;
use crate::http::h1::fuzzing::request_of;

fn tier(text: &[u8]) -> RequestSafetyTier {
    HttpRequestData::analyze_raw_request(text).tier
}

/// Judges one request; returns the oracle's word.
fn judge(text: &[u8]) -> RequestSafetyTier {
    let (tier, ours) = (tier(text), request_of(text, Limits::default()).map(|found| found.is_some()));
    match tier {
        Severe => assert_ne!(ours, Ok(true), "severe, and accepted: {}", text.escape_ascii()),
        Compliant if !is_lenient(text) => {
            assert_eq!(ours, Ok(true), "compliant, and refused: {}", text.escape_ascii());
        }
        _ => {}
    }
    tier
}

/// Where the oracle is more lenient than the RFCs or we: an empty Content-Length is no `1*DIGIT` (RFC 9110, section 8.6);
/// a folded Content-Type is folded (RFC 9112, section 5.2); codings and parameters besides chunked are a 501 or, where
/// chunked is not last, a 400 (sections 6.1, 6.3 and 7.1).
fn is_lenient(text: &[u8]) -> bool {
    let text = text.to_ascii_lowercase();
    let folded = text.windows(3).any(|bytes| bytes == b"\r\n ");
    let mut lines = text.split(|&b| b == b'\n').map(<[u8]>::trim_ascii);
    let odd = |line: &[u8]| match line.strip_prefix(b"transfer-encoding:") {
        Some(codings) => codings.trim_ascii() != b"chunked",
        None => line == b"content-length:",
    };
    folded || lines.any(odd)
}

fn post(lines: &str) -> Vec<u8> {
    format!("POST /foo/bar HTTP/1.1\r\nHost: a.example\r\n{lines}\r\n").into_bytes()
}

const SEVERE: &[&str] = &[
    "Content-Length: 1000\r\nContent-Length: 100\r\n",
    "Content-Length: 1000,1000\r\n",
    "Content-Length: 1000 1000\r\n",
    "Content-Length: 1000.1000\r\n",
    "Content-Length: 10000000000000000000000000\r\n",
    "Content-Length: 10\x11\r\n",
    "Content-Length: +10\r\n",
    "Content-Length: 0x10\r\n",
    "Content-Length: -10\r\n",
    "Content-Length: ten\r\n",
    "Transfer-Encoding: xchunked\r\n",
    "Transfer-Encoding: chunked\x11\r\n",
    "Transfer-Encoding: \x0bchunked\r\n",
    "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
    "Transfer-Encoding: chunked, chunked\r\n",
    "Transfer-Encoding: chunk\r\n",
    "Some-Bad-Header\0: a\r\n",
    "Some-Bad-Header: a\0b\r\n",
    "Some-Bad-Header: a\rb\r\n",
    "Some-Bad-Header\r: b\r\n",
    "\r \nTransfer-Encoding: chunked\r\n",
];

const COMPLIANT: &[&str] = &[
    "",
    "Content-Length: 1000\r\n",
    "Content-Length: 0\r\n",
    "content-length:7\r\n",
    "CONTENT-LENGTH: 18446744073709551615\r\n",
    "Transfer-Encoding: chunked\r\n",
    "TRANSFER-ENCODING:\tChunked \r\n",
    "X-Empty:\r\n",
    "X-Punctuation: !\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~\r\n",
    "Accept: */*\r\nAccept-Encoding: gzip, deflate\r\nConnection: keep-alive\r\n",
    "Cookie: a=b; c=d\r\nCookie: e=f\r\n",
    "X_Under_Score: a\r\n",
    "!#$%&'*+-.^_`|~: a\r\n",
];

#[test]
fn what_the_oracle_calls_severe_is_refused() {
    for lines in SEVERE {
        assert_eq!(judge(&post(lines)), Severe, "the oracle thinks otherwise of {lines:?}");
    }
    for head in [
        "PO(ST /a HTTP/1.1\r\nHost: a\r\n\r\n",
        "POST\0 /a HTTP/1.1\r\nHost: a\r\n\r\n",
        "POST /a HTTP/1.10\r\nHost: a\r\n\r\n",
        "POST /a HTTP/1.x\r\nHost: a\r\n\r\n",
        "POST /a HTTP/1,1\r\nHost: a\r\n\r\n",
        "POST /a\0 HTTP/1.1\r\nHost: a\r\n\r\n",
    ] {
        assert_eq!(judge(head.as_bytes()), Severe, "the oracle thinks otherwise of {head:?}");
    }
}

#[test]
fn what_the_oracle_calls_compliant_passes() {
    for lines in COMPLIANT {
        assert_eq!(judge(&post(lines)), Compliant, "the oracle thinks otherwise of {lines:?}");
    }
    for head in [
        "GET / HTTP/1.1\r\nHost: a\r\n\r\n",
        "GET /a?b=c&d=%20 HTTP/1.0\r\n\r\n",
        "OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n",
        "M-SEARCH /a HTTP/1.1\r\nHost: a\r\n\r\n",
    ] {
        assert_eq!(judge(head.as_bytes()), Compliant, "the oracle thinks otherwise of {head:?}");
    }
}

/// What lines are made of: enough to hit every trick that the oracle knows.
const NAMES: &[&str] = &[
    "Content-Length",
    "content-length",
    "CONTENT-LENGTH",
    "Transfer-Encoding",
    "transfer-encoding",
    "Content_Length",
    "Transfer_Encoding",
    "Content-Length ",
    " Transfer-Encoding",
    "Transfer-Encoding\t",
    "Content Length",
    "X-A",
    "Connection",
    "Accept",
    "X\0A",
    "X\rA",
    "",
    "\u{ff}",
    "Content-Type",
];
const VALUES: &[&str] = &[
    "1",
    "0",
    "10",
    "010",
    "+1",
    "-1",
    "1,1",
    "1 1",
    "0x1",
    "18446744073709551616",
    "chunked",
    "Chunked",
    "chunked, chunked",
    "gzip",
    "gzip, chunked",
    "chunked, gzip",
    "xchunked",
    "identity",
    "chunked;q=1",
    "\"chunked\"",
    "chunked\0",
    "\x0bchunked",
    "1\r2",
    "a",
    "",
    "a\tb",
    "\u{e9}",
    "close",
    "a\r\n b",
    "a\n b",
];
const BEFORE: &[&str] = &[": ", ":", ":\t", " : ", "", ":  ", ":\x0b"];
const ENDS: &[&str] = &["\r\n", "\r\n", "\r\n", "\r\n", "\n", "\r", " \r\n", "\r\r\n", "\r\n\r\n"];
const STARTS: &[&str] = &[
    "POST /a HTTP/1.1\r\n",
    "GET /a HTTP/1.1\r\n",
    "PUT /a?b HTTP/1.0\r\n",
    "POST  /a HTTP/1.1\r\n",
    "POST /a HTTP/1.1 \r\n",
    "POST /a HTTP/1.2\r\n",
    "POST /a HTTP/11\r\n",
    "POST /a\r\n",
    "POST /a b HTTP/1.1\r\n",
    "P\0ST /a HTTP/1.1\r\n",
    "POST /a HTTP/1.1\n",
    "\r\nPOST /a HTTP/1.1\r\n",
];

#[test]
fn generated_requests_are_judged_alike() {
    let mut rng = fastrand::Rng::with_seed(42);
    let (mut severe, mut compliant) = (0, 0);
    for _ in 0..40_000 {
        let start = if rng.u8(..) < 200 { 0 } else { rng.usize(..STARTS.len()) };
        let mut text = STARTS[start].to_owned() + "Host: a.example\r\n";
        for _ in 0..rng.usize(..4) {
            let mut pick = |list: &[&'static str], plain: u8| match rng.u8(..) < plain {
                true => list[0],
                false => list[rng.usize(..list.len())],
            };
            let line = [pick(NAMES, 0), pick(BEFORE, 180), pick(VALUES, 0), pick(ENDS, 200)].concat();
            text.push_str(&line);
        }
        text.push_str("\r\n");
        match judge(text.as_bytes()) {
            Severe => severe += 1,
            Compliant => compliant += 1,
            _ => {}
        }
    }
    assert!(severe > 4_000 && compliant > 4_000, "too few of a kind: {severe} severe, {compliant} compliant");
}
