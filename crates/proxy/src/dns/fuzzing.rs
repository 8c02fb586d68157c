//! The body of the fuzz target, as a plain function: stable tests replay seeded mutations, the fuzzer does the long runs.

use hickory_proto::op::{Message, ResponseCode};
use hickory_proto::rr::RecordType;
use outrigger_model::resource::Host;

use super::Transport;
use super::message::{self, Parsed, Query, Reply, question_end};
use super::names::MeshNames;
use super::upstream::{is_answer, returned};

/// Takes arbitrary bytes for a query, and again for an upstream's answer to one.
///
/// # Panics
/// When an answer is answered, when what we write cannot be read, belongs to another query or is longer than the client
/// takes, or when a name is asked for that cannot be a service.
pub fn fuzz_dns(data: &[u8]) {
    match message::parse(data) {
        Parsed::Ignored => {}
        Parsed::Refused(answer) => {
            let code = Message::from_vec(&answer).map(|read| read.response_code);
            assert!(code.as_ref().is_ok_and(|code| *code != ResponseCode::NoError), "{code:?}");
            assert!(data[2] & 0x80 == 0, "an answer is answered");
            assert_eq!(answer[..2], data[..2], "the id");
            assert!(answer.len() <= data.len(), "more goes out than came in");
        }
        Parsed::Query(query) => {
            assert!(data[2] & 0x80 == 0, "an answer is answered");
            fuzz_answers(&query, data);
        }
    }
    fuzz_upstream(data);
}

fn fuzz_answers(query: &Query, data: &[u8]) {
    let names = MeshNames::new("shop", "cluster.local", &["shop.svc.cluster.local".to_owned()]);
    let candidates = query.mesh_name().map(|name| names.candidates(name, |_| false)).unwrap_or_default();
    for candidate in &candidates {
        let service = candidate.host.strip_suffix(".svc.cluster.local").unwrap_or_default();
        assert_eq!(service.split('.').filter(|label| !label.is_empty()).count(), 2, "{candidate:?}");
    }
    let host = Host {
        name: String::new(),
        host: "catalog.shop.svc.cluster.local".into(),
        addresses: vec![[240, 240, 0, 1].into(), [0x2001, 2, 0, 0, 0, 0, 0, 1].into()],
        ..Host::default()
    };
    let zone = names.zone();
    for (reply, whole) in [
        (Reply::host(&host, false, query.kind(), zone), true),
        (Reply::host(&host, true, query.kind(), zone), true),
        (Reply::no_such_name(zone), true),
        (Reply::pointer(&host.host), true),
        (Reply::failure(ResponseCode::ServFail), true),
        (Reply::truncated(ResponseCode::NoError), false),
    ] {
        for transport in [Transport::Udp, Transport::Tcp] {
            let answer = query.write(&reply, transport);
            check(query, data, &answer, transport);
            let truncated = Message::from_vec(&answer).map(|read| read.truncation);
            assert!(truncated.is_ok(), "{reply:?}: {truncated:?}");
            if transport == Transport::Tcp {
                assert_eq!(truncated.ok(), Some(!whole), "{reply:?}");
            }
        }
    }
    let _ = (query.reverse(), query.is_transfer());
}

fn check(query: &Query, data: &[u8], answer: &[u8], transport: Transport) {
    let end = query.question_end();
    assert!(answer.len() <= query.limit(transport), "{} bytes are too many", answer.len());
    assert_eq!(answer[..2], data[..2], "the id");
    assert_eq!(answer[2] & 0x80, 0x80, "it is an answer");
    assert_eq!(question_end(answer), Some(end));
    assert_eq!(answer[12..end], data[12..end], "the question, letter for letter");
}

/// An upstream says `data`, with the right id and question or as it is.
fn fuzz_upstream(data: &[u8]) {
    let asked = b"\x12\x34\x01\0\0\x01\0\0\0\0\0\0\x03wWw\x07example\x03com\0\0\x01\0\x01";
    let Parsed::Query(query) = message::parse(asked) else { return };
    let end = query.question_end();
    for forged in [data.to_vec(), [&asked[..2], data.get(2..).unwrap_or_default()].concat()] {
        if is_answer(asked, end, &forged) {
            for transport in [Transport::Udp, Transport::Tcp] {
                check(&query, asked, &returned(&query, asked, forged.clone(), transport), transport);
            }
        }
    }
    assert_eq!(query.kind(), RecordType::A);
}
