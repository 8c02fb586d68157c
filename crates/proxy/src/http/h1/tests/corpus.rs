//! Replays the fuzz corpus and seeded mutations of it, so that every test run keeps what fuzzing has found.

use crate::http::h1::fuzzing::{fuzz_body, fuzz_request, fuzz_response};
use crate::testing::replay;

/// Pieces that matter to a parser of HTTP/1.
const PIECES: &[&[u8]] = &[
    b"\r\n",
    b"\n",
    b"\r",
    b"\0",
    b":",
    b" ",
    b"\t",
    b"0",
    b"ffffffff",
    b";",
    b",",
    b"chunked",
    b"Content-Length: 1\r\n",
    b"Transfer-Encoding: chunked\r\n",
    b"Host: a\r\n",
    b"Connection: close\r\n",
    b"HTTP/1.0",
    b"0\r\n\r\n",
    b"\xff",
    b"http://",
    b"Upgrade: h2c\r\n",
    b"1\r\na\r\n",
    b"?",
    b"/",
    b"*",
];

#[test]
fn the_request_corpus_and_its_mutations_hold() {
    replay("h1_request", 1, PIECES, fuzz_request);
}

#[test]
fn the_response_corpus_and_its_mutations_hold() {
    replay("h1_response", 2, PIECES, fuzz_response);
}

#[test]
fn the_body_corpus_and_its_mutations_hold() {
    replay("h1_body", 3, PIECES, fuzz_body);
}
