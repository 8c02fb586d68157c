//! The body of the fuzz target, as a plain function: stable tests replay seeded mutations, the fuzzer does the long runs.

use super::{Detected, Look, MAX_PEEK, classify, tls};

/// Classifies arbitrary bytes, cut in two at any place: the first two bytes say where.
///
/// # Panics
/// When a verdict on the first piece is not the verdict on the whole, when the end of the stream leaves no verdict, or when
/// a ClientHello reads differently once it is cut into records of another size.
pub fn fuzz_detect(data: &[u8]) {
    let Some((cut, bytes)) = data.split_first_chunk::<2>() else { return };
    let cut = usize::from(u16::from_be_bytes(*cut)) % (bytes.len() + 1);
    for look in [Look::Everything, Look::Http] {
        let whole = classify(bytes, look, true);
        assert!(whole.is_some(), "the end of the stream leaves no verdict");
        if let Some(early) = classify(&bytes[..cut], look, false) {
            assert_eq!(
                Some(early),
                classify(bytes, look, false),
                "cut at {cut}: more bytes changed the verdict"
            );
        }
        if bytes.len() >= MAX_PEEK {
            assert!(classify(bytes, look, false).is_some(), "undecided beyond the limit");
        }
    }
    if let Some(Detected::Tls(hello)) = classify(bytes, Look::Everything, true) {
        let again = tls::parse(&in_records(&handshake(bytes), 1 + cut % 1500));
        assert_eq!(again, tls::Parsed::Hello(hello), "in records of {} bytes", 1 + cut % 1500);
    }
}

/// The payload of the records; what follows the last whole one is left out.
fn handshake(mut bytes: &[u8]) -> Vec<u8> {
    let mut payload = Vec::new();
    while let Some((header, rest)) = bytes.split_at_checked(5) {
        // The hello may end within a record that is not whole.
        let length = usize::from(u16::from_be_bytes([header[3], header[4]])).min(rest.len());
        payload.extend_from_slice(&rest[..length]);
        bytes = &rest[length..];
    }
    payload
}

/// A handshake in records of at most `size` bytes.
pub fn in_records(handshake: &[u8], size: usize) -> Vec<u8> {
    let mut out = Vec::with_capacity(handshake.len() * 2);
    for piece in handshake.chunks(size) {
        out.extend_from_slice(&[22, 3, 1]);
        out.extend_from_slice(&(piece.len() as u16).to_be_bytes());
        out.extend_from_slice(piece);
    }
    out
}
