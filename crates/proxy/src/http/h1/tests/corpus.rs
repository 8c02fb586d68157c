//! Replays the fuzz corpus and seeded mutations of it, so that every test run keeps what fuzzing has found.

use std::path::Path;

use crate::http::h1::fuzzing::{fuzz_body, fuzz_request, fuzz_response};

fn corpus(target: &str) -> Vec<Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fuzz/corpus").join(target);
    let mut files: Vec<_> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    assert!(files.len() >= 10, "the corpus of {target} is gone");
    files.into_iter().map(|file| std::fs::read(file).unwrap()).collect()
}

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

fn mutate(rng: &mut fastrand::Rng, bytes: &mut Vec<u8>, others: &[Vec<u8>]) {
    for _ in 0..1 + rng.usize(..4) {
        let at = rng.usize(..=bytes.len());
        match rng.u8(..6) {
            0 if at < bytes.len() => bytes[at] = rng.u8(..),
            1 if at < bytes.len() => drop(bytes.remove(at)),
            2 => bytes.truncate(at),
            3 => {
                let other = &others[rng.usize(..others.len())];
                bytes.extend_from_slice(&other[rng.usize(..=other.len())..]);
            }
            4 if at < bytes.len() => {
                let line = bytes[at..].to_vec();
                bytes.splice(at..at, line.into_iter().take(40));
            }
            _ => drop(bytes.splice(at..at, PIECES[rng.usize(..PIECES.len())].iter().copied())),
        }
    }
}

fn replay(target: &str, seed: u64, fuzz: fn(&[u8])) {
    let corpus = corpus(target);
    corpus.iter().for_each(|bytes| fuzz(bytes));
    let mut rng = fastrand::Rng::with_seed(seed);
    for round in 0..15_000 {
        let mut bytes = corpus[round % corpus.len()].clone();
        mutate(&mut rng, &mut bytes, &corpus);
        fuzz(&bytes);
    }
}

#[test]
fn the_request_corpus_and_its_mutations_hold() {
    replay("h1_request", 1, fuzz_request);
}

#[test]
fn the_response_corpus_and_its_mutations_hold() {
    replay("h1_response", 2, fuzz_response);
}

#[test]
fn the_body_corpus_and_its_mutations_hold() {
    replay("h1_body", 3, fuzz_body);
}
