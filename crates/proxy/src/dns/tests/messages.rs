//! What is no query, and that nothing that arrives breaks anything.

use proptest::prelude::*;

use super::fuzzing::fuzz_dns;
use super::*;

fn refusal(bytes: &[u8]) -> ResponseCode {
    let Parsed::Refused(answer) = message::parse(bytes) else { panic!("not refused: {bytes:?}") };
    let answer = Message::from_vec(&answer).unwrap();
    assert_eq!((answer.id, answer.message_type), (0x1234, MessageType::Response));
    answer.response_code
}

#[test]
fn an_answer_and_less_than_a_header_are_never_answered() {
    let good = query("catalog", RecordType::A);
    assert!(matches!(message::parse(&good), Parsed::Query(_)));
    let mut answer = good.clone();
    answer[2] |= 0x80;
    assert!(matches!(message::parse(&answer), Parsed::Ignored));
    assert!(matches!(message::parse(&good[..11]), Parsed::Ignored));
    assert!(matches!(message::parse(b""), Parsed::Ignored));
}

#[test]
fn what_is_malformed_is_refused_by_code() {
    let good = query("catalog", RecordType::A);
    assert_eq!(refusal(&good[..good.len() - 1]), ResponseCode::FormErr);
    assert_eq!(refusal(&good[..12]), ResponseCode::FormErr);
    let with = |at: usize, byte: u8| {
        let mut bytes = good.clone();
        bytes[at] = byte;
        bytes
    };
    assert_eq!(refusal(&with(2, 0x28)), ResponseCode::NotImp, "an update");
    assert_eq!(refusal(&with(5, 0)), ResponseCode::FormErr, "no question");
    assert_eq!(refusal(&with(5, 2)), ResponseCode::FormErr, "two questions, one of them missing");
    assert_eq!(refusal(&with(12, 0xc0)), ResponseCode::FormErr, "a name that points elsewhere");
    assert_eq!(refusal(&with(11, 1)), ResponseCode::FormErr, "a record that is not there");
    let mut two = question("catalog", RecordType::A);
    two.add_query(two.queries[0].clone());
    assert_eq!(refusal(&two.to_vec().unwrap()), ResponseCode::FormErr);
    let mut newer = question("catalog", RecordType::A);
    newer.set_edns(Edns::new().set_version(1).clone());
    // BADVERS and BADSIG are one number.
    assert_eq!(u16::from(refusal(&newer.to_vec().unwrap())), 16);
}

#[test]
fn a_name_with_other_bytes_than_letters_is_nobody_in_the_mesh() {
    let mut bytes = query("catalog", RecordType::A);
    // A dot within a label, and a byte beyond ASCII: neither may turn into another name.
    for byte in [b'.', 0xfc, 0, b' '] {
        bytes[15] = byte;
        let Parsed::Query(query) = message::parse(&bytes) else { panic!() };
        assert_eq!(query.mesh_name(), None, "{byte}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn garbage_never_panics(data in prop::collection::vec(any::<u8>(), 0..600)) {
        fuzz_dns(&data);
    }

    #[test]
    fn any_name_of_any_type_is_answered_within_the_client_s_limit(
        labels in prop::collection::vec("[a-zA-Z0-9_-]{1,30}", 1..7),
        kind in any::<u16>(),
        payload in prop::option::of(any::<u16>()),
    ) {
        let mut message = question(&labels.join("."), kind.into());
        if let Some(payload) = payload {
            message.set_edns(Edns::new().set_max_payload(payload).clone());
        }
        fuzz_dns(&message.to_vec().unwrap());
    }
}

#[test]
fn the_corpus_and_its_mutations_hold() {
    let pieces: &[&[u8]] = &[b"\xc0\x0c", b"\x00\x01", b"\x29", b"\x3f"];
    crate::testing::replay("dns", 5, pieces, fuzz_dns);
}
