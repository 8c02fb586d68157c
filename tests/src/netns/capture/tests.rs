use super::*;

/// An Ethernet frame of a TCP segment between 10.0.0.1:1000 and 10.0.0.2:80.
fn frame(sequence: u32, flags: u8, data: &[u8]) -> Vec<u8> {
    let mut frame = vec![0; 12];
    frame.extend([0x08, 0x00, 0x45, 0]);
    frame.extend((40 + data.len() as u16).to_be_bytes());
    frame.extend([0, 0, 0, 0, 64, 6, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
    frame.extend([3, 0xe8, 0, 80]);
    frame.extend(sequence.to_be_bytes());
    frame.extend([0, 0, 0, 0, 0x50, flags, 0, 0, 0, 0, 0, 0]);
    frame.extend(data);
    frame
}

fn wire(frames: &[Vec<u8>]) -> Wire {
    let mut raw = vec![0; 24];
    for frame in frames {
        raw.extend([0; 8]);
        raw.extend((frame.len() as u32).to_le_bytes());
        raw.extend((frame.len() as u32).to_le_bytes());
        raw.extend(frame);
    }
    Wire::parse(raw)
}

const SYN: u8 = 2;
const ACK: u8 = 16;

#[test]
fn segments_are_put_in_order_across_the_wrap_and_repetitions_are_dropped() {
    let first = u32::MAX - 2;
    let wire = wire(&[
        frame(first, SYN, b""),
        frame(first.wrapping_add(1), ACK, b"ab"),
        frame(first.wrapping_add(5), ACK, b"ef"),
        frame(first.wrapping_add(1), ACK, b"ab"),
        frame(first.wrapping_add(2), ACK, b"bcd"),
    ]);
    assert_eq!(wire.flows.len(), 1);
    assert_eq!(wire.flows[0].bytes, b"abcdef");
    assert!(wire.contains("cde"), "a text is found across segments");
    assert!(!wire.contains("abab"));
}

#[test]
fn a_second_connection_of_the_same_ports_is_a_flow_of_its_own() {
    let wire =
        wire(&[frame(10, SYN, b""), frame(11, ACK, b"one"), frame(900, SYN, b""), frame(901, ACK, b"two")]);
    let bytes: Vec<&[u8]> = wire.of_port(80).map(|flow| &flow.bytes[..]).collect();
    assert_eq!(bytes, [b"one", b"two"]);
}

#[test]
fn whatever_is_not_tls_is_named() {
    let record = |kind: u8| [&[kind, 3, 3, 0, 2][..], b"xy"].concat();
    let tls = [record(22), record(23), record(23)].concat();
    assert_eq!(wire(&[frame(1, SYN, b""), frame(2, ACK, &tls)]).only_tls(80), Ok(2));
    let both = [&tls[..], b"GET / HTTP/1.1"].concat();
    let error = wire(&[frame(1, SYN, b""), frame(2, ACK, &both)]).only_tls(80).unwrap_err();
    assert!(error.contains("GET /"), "{error}");
    assert!(wire(&[frame(1, SYN, b"")]).only_tls(80).is_err(), "silence is no proof");
}
