//! The body of the fuzz target, as a plain function: stable tests replay seeded input, the fuzzer does the long runs.

use rustls::crypto::cipher::{AeadKey, Iv};
use tokio::io::ReadBuf;

use super::*;

/// Two ends of a session with keys of a test.
pub(super) fn ends() -> Option<(Records, Records)> {
    let secret = |side| Secret::from(&[side as u8; 48][..]);
    let secrets = |side| {
        let (key, iv) = keys(&secret(side), &AES_256_GCM).ok()?;
        Some((0, ConnectionTrafficSecrets::Aes256Gcm { key: AeadKey::from(key), iv: Iv::from(iv) }))
    };
    let end = |side, other| {
        let traffic = TrafficSecrets { client: secret(Side::Client), server: secret(Side::Server) };
        Records::new(ExtractedSecrets { tx: secrets(side)?, rx: secrets(other)? }, traffic, side).ok()
    };
    Some((end(Side::Client, Side::Server)?, end(Side::Server, Side::Client)?))
}

/// Gives an end records with arbitrary insides, rightly sealed: pieces of a byte for the kind, one for the length and what
/// follows. In between come bytes that are no records at all (kind 0).
///
/// # Panics
/// When text that was sent does not come out as it went in, or when more is used up than there was.
pub fn fuzz_records(mut data: &[u8]) {
    let Some((mut near, mut far)) = ends() else { return };
    let (mut sent, mut heard) = (Vec::new(), Vec::new());
    while let [kind, length, rest @ ..] = data {
        let (inside, rest) = rest.split_at(usize::from(*length).min(rest.len()));
        data = rest;
        let mut outgoing = None;
        let region = room_for(&mut outgoing, inside.len() + HEADER + 1 + TAG);
        match kind {
            0 => region.put(inside),
            kind => assert!(near.seal.seal(*kind, inside, region).is_ok(), "there is room"),
        }
        let (whole, mut answer) = (region.filled().len(), None);
        let (mut space, mut plain) = ([0; 100], Vec::new());
        let mut reader = ReadBuf::new(&mut space);
        let reader = (length % 2 == 0).then_some(&mut reader);
        let mut out = Out { reader, plain: &mut plain, outgoing: &mut answer, job: Job::Nothing };
        let (used, turn) = far.turn(region.filled_mut(), &mut out);
        assert!(used <= whole, "{used} of {whole} bytes");
        heard.extend_from_slice(out.reader.map_or(&[][..], |reader| reader.filled()));
        heard.append(&mut plain);
        if turn.is_err() {
            break;
        }
        if *kind == DATA {
            sent.extend_from_slice(inside);
        }
        if far.open.sequence == 0 && near.seal.refresh().is_err() {
            break;
        }
    }
    assert_eq!(heard, sent, "text changed on its way");
}
