use proptest::prelude::*;

use super::*;
use crate::trace::{b3, extract};

const VALID: &[u8] = b"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

fn from(headers: &[(&'static str, &'static str)]) -> Incoming {
    extract(|name| headers.iter().filter(move |(n, _)| *n == name).map(|(_, value)| value.as_bytes()))
}

fn w3c(value: &'static str) -> Incoming {
    from(&[(TRACEPARENT, value)])
}

#[test]
fn valid_traceparent_reads_back_byte_for_byte() {
    let context = TraceContext::parse(VALID).unwrap();
    assert!(context.sampled());
    assert_eq!(context.parent, [0x00, 0xf0, 0x67, 0xaa, 0x0b, 0xa9, 0x02, 0xb7]);
    assert_eq!(context.format().as_slice(), VALID);
}

#[test]
fn traceparents_that_the_specification_forbids_are_invalid() {
    for bad in [
        "",
        "00",
        "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-0",
        "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-",
        "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-extra",
        "00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01",
        "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
        "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
        "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
        "cc-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01.what",
        "00_4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
        "0g-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
    ] {
        assert_eq!(w3c(bad), Incoming::Invalid(Format::W3c), "{bad}");
    }
}

#[test]
fn higher_version_is_read_as_far_as_version_00_goes() {
    for good in [
        "cc-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
        "cc-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-what-the-future-brings",
        " 01-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-fd\t",
    ] {
        let Incoming::Context { context, sampled, .. } = w3c(good) else { panic!("{good}") };
        assert_eq!(context.format().as_slice(), VALID, "unknown flags are zeroed, the version becomes 00");
        assert_eq!(sampled, Some(true));
    }
}

#[test]
fn two_traceparents_are_invalid() {
    let value = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    assert_eq!(from(&[(TRACEPARENT, value), (TRACEPARENT, value)]), Incoming::Invalid(Format::W3c));
}

#[test]
fn traceparent_wins_over_b3_even_when_invalid() {
    let b3 = "4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-1";
    assert_eq!(from(&[("b3", b3), (TRACEPARENT, "junk")]), Incoming::Invalid(Format::W3c));
    assert!(matches!(
        from(&[("b3", b3)]),
        Incoming::Context { format: Format::B3Single, sampled: Some(true), .. }
    ));
}

#[test]
fn b3_single_header_is_read_in_all_its_forms() {
    let ids = "80f198ee56343ba864fe8b2a57d3eff7-e457b5a2e4d86bd1";
    let parse = |value: String| from(&[("b3", value.leak())]);
    for (tail, want) in [
        ("", None),
        ("-1", Some(true)),
        ("-d", Some(true)),
        ("-0", Some(false)),
        ("-1-05e3ac9a4f6e3b90", Some(true)),
    ] {
        let Incoming::Context { format, context, sampled } = parse(format!("{ids}{tail}")) else {
            panic!("{tail}")
        };
        assert_eq!((format, sampled), (Format::B3Single, want));
        assert_eq!(context.sampled(), want == Some(true));
        assert_eq!(&b3::format_single(&context)[..49], ids.as_bytes());
    }
    assert_eq!(from(&[("b3", "0")]), Incoming::Decision { format: Format::B3Single, sampled: false });
    assert_eq!(from(&[("b3", "d")]), Incoming::Decision { format: Format::B3Single, sampled: true });
    for bad in [
        "",
        "2",
        "-",
        "junk",
        "80f198ee56343ba8-",
        "80f198ee56343ba8-e457b5a2e4d86bd1-x",
        "80f198ee56343ba8-0000000000000000",
    ] {
        assert_eq!(from(&[("b3", bad)]), Incoming::Invalid(Format::B3Single), "{bad}");
    }
    for bad in [format!("{ids}-1-zz"), format!("{ids}-1-05e3ac9a4f6e3b90-1"), format!("{ids}{ids}{ids}")] {
        assert_eq!(parse(bad.clone()), Incoming::Invalid(Format::B3Single), "{bad}");
    }
}

#[test]
fn short_b3_trace_id_is_padded_and_upper_case_accepted() {
    let Incoming::Context { context, .. } = from(&[("b3", "64FE8B2A57D3EFF7-e457b5a2e4d86bd1-1")]) else {
        panic!()
    };
    assert_eq!(&b3::hex_trace_id(&context.trace_id), b"000000000000000064fe8b2a57d3eff7");
    assert_eq!(&b3::hex_span_id(&context.parent), b"e457b5a2e4d86bd1");
}

#[test]
fn b3_multiple_headers_are_read_and_half_a_context_is_invalid() {
    let (trace, span) =
        ((b3::TRACE_ID, "80f198ee56343ba864fe8b2a57d3eff7"), (b3::SPAN_ID, "e457b5a2e4d86bd1"));
    let sampled_of = |headers: &[_]| match from(headers) {
        Incoming::Context { format: Format::B3Multi, sampled, .. } => sampled,
        other => panic!("{other:?}"),
    };
    assert_eq!(sampled_of(&[trace, span]), None);
    assert_eq!(sampled_of(&[trace, span, (b3::SAMPLED, "1")]), Some(true));
    assert_eq!(sampled_of(&[trace, span, (b3::SAMPLED, "false")]), Some(false));
    assert_eq!(sampled_of(&[trace, span, (b3::SAMPLED, "0"), (b3::FLAGS, "1")]), Some(true));
    assert_eq!(from(&[(b3::SAMPLED, "0")]), Incoming::Decision { format: Format::B3Multi, sampled: false });
    assert_eq!(from(&[trace]), Incoming::Invalid(Format::B3Multi));
    assert_eq!(from(&[trace, span, (b3::SAMPLED, "maybe")]), Incoming::Invalid(Format::B3Multi));
    assert_eq!(from(&[]), Incoming::Absent);
}

#[test]
fn tracestate_members_are_listed_and_bad_ones_refused() {
    let members: Vec<_> = tracestate(b"rojo=00f067aa0ba902b7, congo=t61rcWkgMzE,,t@v=x ").unwrap().collect();
    assert_eq!(members, [("rojo", "00f067aa0ba902b7"), ("congo", "t61rcWkgMzE"), ("t@v", "x")]);
    assert_eq!(tracestate(b"").unwrap().count(), 0);
    for bad in [&b"novalue"[..], b"Upper=1", b"a=b=c", b"=x", b"k=", b"\xff\xfe", b"a=\x01"] {
        assert!(tracestate(bad).is_none(), "{bad:?}");
    }
    let too_many = vec!["k=v"; 33].join(",");
    assert!(tracestate(too_many.as_bytes()).is_none());
}

#[test]
fn generated_ids_are_distinct_and_never_zero() {
    let ids: std::collections::HashSet<_> = (0..1000).map(|_| (new_trace_id(), new_span_id())).collect();
    assert_eq!(ids.len(), 1000);
    assert!(ids.iter().all(|(trace, span)| *trace != [0; 16] && *span != [0; 8]));
    assert!(TraceContext::root(true).sampled() && !TraceContext::root(false).sampled());
}

proptest! {
    #[test]
    fn what_is_formatted_parses_the_same(trace_id: [u8; 16], parent: [u8; 8], flags in 0_u8..4) {
        prop_assume!(trace_id != [0; 16] && parent != [0; 8]);
        let context = TraceContext { trace_id, parent, flags };
        prop_assert_eq!(TraceContext::parse(&context.format()), Some(context));
        let single = b3::format_single(&context);
        let incoming = b3::extract(|name| (name == b3::B3).then_some(&single[..]).into_iter());
        let back = Incoming::Context {
            format: Format::B3Single,
            context: TraceContext { flags: flags & 1, ..context },
            sampled: Some(context.sampled()),
        };
        prop_assert_eq!(incoming, back);
    }

    #[test]
    fn any_bytes_are_parsed_without_panic_and_what_parses_is_valid(bytes: Vec<u8>, cut in 0_usize..60, at in 0_usize..55, byte: u8) {
        let _ = TraceContext::parse(&bytes);
        let _ = tracestate(&bytes).map(Iterator::count);
        let one = |name: &str, wanted: &str| (name == wanted).then_some(&bytes[..]).into_iter();
        for wanted in [TRACEPARENT, b3::B3, b3::TRACE_ID, b3::SPAN_ID, b3::SAMPLED] {
            let _ = extract(|name| one(name, wanted));
        }
        // Near misses of a valid value are more telling than noise.
        let mut near = VALID.to_vec();
        near[at] = byte;
        near.truncate(cut);
        if let Some(context) = TraceContext::parse(&near) {
            prop_assert!(context.trace_id != [0; 16] && context.parent != [0; 8]);
            prop_assert_eq!(&context.format()[3..52], &near[3..52]);
        }
    }
}
