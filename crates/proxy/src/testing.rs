//! What tests of several modules need: connected sockets, and the fuzz corpora with seeded mutations of them, so that every
//! test run keeps what fuzzing has found.

use std::path::Path;

use tokio::net::{TcpListener, TcpStream};

/// Both ends of a connection.
pub(crate) async fn sockets() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    (client, listener.accept().await.unwrap().0)
}

/// Runs a fuzz target's function on its corpus and on mutations of it; `pieces` are what matters to its parser.
pub(crate) fn replay(target: &str, seed: u64, pieces: &[&[u8]], fuzz: fn(&[u8])) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fuzz/corpus").join(target);
    let mut files: Vec<_> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    assert!(files.len() >= 8, "the corpus of {target} is gone");
    let corpus: Vec<Vec<u8>> = files.into_iter().map(|file| std::fs::read(file).unwrap()).collect();
    corpus.iter().for_each(|bytes| fuzz(bytes));
    let mut random = fastrand::Rng::with_seed(seed);
    for round in 0..15_000 {
        let mut bytes = corpus[round % corpus.len()].clone();
        mutate(&mut random, &mut bytes, &corpus, pieces);
        fuzz(&bytes);
    }
}

fn mutate(random: &mut fastrand::Rng, bytes: &mut Vec<u8>, others: &[Vec<u8>], pieces: &[&[u8]]) {
    for _ in 0..1 + random.usize(..4) {
        let at = random.usize(..=bytes.len());
        match random.u8(..6) {
            0 if at < bytes.len() => bytes[at] = random.u8(..),
            1 if at < bytes.len() => drop(bytes.remove(at)),
            2 => bytes.truncate(at),
            3 => {
                let other = &others[random.usize(..others.len())];
                bytes.extend_from_slice(&other[random.usize(..=other.len())..]);
            }
            4 if at < bytes.len() => {
                let line = bytes[at..].to_vec();
                bytes.splice(at..at, line.into_iter().take(40));
            }
            _ => drop(bytes.splice(at..at, pieces[random.usize(..pieces.len())].iter().copied())),
        }
    }
}
