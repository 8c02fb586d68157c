//! Properties: splits do not matter, and what one side writes the other reads.

use bytes::BytesMut;
use proptest::collection::vec;
use proptest::prelude::*;

use crate::http::h1::fuzzing::{
    body_of, fuzz_request, fuzz_response, request_in_pieces, request_of, response_of,
};
use crate::http::h1::write::{self, How};
use crate::http::h1::*;

fn name() -> impl Strategy<Value = String> {
    "[A-Za-z][A-Za-z0-9!#$%&'*+.^_`|~-]{0,12}".prop_filter("not a field with a meaning of its own", |name| {
        Known::of(name.as_bytes()) == Known::Other
    })
}

fn value() -> impl Strategy<Value = Vec<u8>> {
    vec(prop_oneof![8 => 0x20u8..0x7f, 1 => 0x80u8..=0xff, 1 => Just(b'\t')], 0..40)
        .prop_map(|bytes| bytes.trim_ascii().to_vec())
}

fn target() -> impl Strategy<Value = String> {
    "/[a-zA-Z0-9/._~%!$&'()*+,;=:@-]{0,30}(\\?[a-z0-9=&/?]{0,20})?"
}

#[derive(Debug, Clone)]
enum Edit {
    Set(usize, Vec<u8>),
    Append(String, Vec<u8>),
    Remove(usize),
    Path(String),
    Host(String),
}

fn edit() -> impl Strategy<Value = Edit> {
    prop_oneof![
        (0..8usize, value()).prop_map(|(at, value)| Edit::Set(at, value)),
        (name(), value()).prop_map(|(name, value)| Edit::Append(name, value)),
        (0..8usize).prop_map(Edit::Remove),
        target().prop_map(Edit::Path),
        "[a-z]{1,10}(:[1-9][0-9]{0,3})?".prop_map(Edit::Host),
    ]
}

fn framing() -> impl Strategy<Value = Framing> {
    prop_oneof![Just(Framing::None), Just(Framing::Chunked), any::<u64>().prop_map(Framing::Length)]
}

prop_compose! {
    fn request_text()(
        method in "[A-Z]{3,7}",
        target in target(),
        fields in vec((name(), value()), 0..8),
        framing in framing(),
    ) -> (Vec<u8>, Vec<(String, Vec<u8>)>) {
        let method = if method == "CONNECT" { "GET".to_owned() } else { method };
        let mut text = format!("{method} {target} HTTP/1.1\r\nHost: a.example\r\n").into_bytes();
        for (name, value) in &fields {
            text.extend_from_slice(name.as_bytes());
            text.extend_from_slice(b":  ");
            text.extend_from_slice(value);
            text.extend_from_slice(b"\t\r\n");
        }
        match framing {
            Framing::Length(length) => text.extend_from_slice(format!("Content-Length: {length}\r\n").as_bytes()),
            Framing::Chunked => text.extend_from_slice(b"Transfer-Encoding: chunked\r\n"),
            _ => {}
        }
        text.extend_from_slice(b"\r\n");
        (text, fields)
    }
}

fn lines(fields: &H1Fields) -> Vec<(String, Vec<u8>)> {
    fields.iter().map(|(name, value)| (String::from_utf8(name.to_vec()).unwrap(), value.to_vec())).collect()
}

fn cut<'a>(text: &'a [u8], cuts: &[prop::sample::Index]) -> Vec<&'a [u8]> {
    let mut at: Vec<usize> = cuts.iter().map(|cut| cut.index(text.len() + 1)).collect();
    at.sort_unstable();
    let starts = std::iter::once(0).chain(at.iter().copied());
    starts
        .zip(at.iter().copied().chain(std::iter::once(text.len())))
        .map(|(from, to)| &text[from..to])
        .collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_split_of_a_request_parses_the_same(
        (text, _) in request_text(),
        behind in vec(any::<u8>(), 0..20),
        cuts in vec(any::<prop::sample::Index>(), 0..8),
    ) {
        let bytes = [text, behind.clone()].concat();
        let (whole, rest) = request_of(&bytes, Limits::default()).unwrap().expect("a whole head");
        let (parts, rest_too) =
            request_in_pieces(cut(&bytes, &cuts).into_iter(), Limits::default()).unwrap().expect("a whole head");
        prop_assert_eq!(&rest, &behind);
        prop_assert_eq!(rest, rest_too);
        prop_assert_eq!((whole.method(), whole.path(), whole.framing()), (parts.method(), parts.path(), parts.framing()));
        prop_assert_eq!(lines(&whole.fields), lines(&parts.fields));
    }

    #[test]
    fn the_upstream_reads_the_request_that_was_edited((text, fields) in request_text(), edits in vec(edit(), 0..12)) {
        let (mut head, _) = request_of(&text, Limits::default()).unwrap().expect("a whole head");
        for edit in edits {
            match edit {
                Edit::Set(at, value) => {
                    if let Some((name, _)) = fields.get(at) {
                        head.fields.set(name, &value).unwrap();
                        let now: Vec<_> = head.fields.headers(name).collect();
                        prop_assert_eq!(now, [value]);
                    }
                }
                Edit::Append(name, value) => head.fields.append(&name, value).unwrap(),
                Edit::Remove(at) => {
                    if let Some((name, _)) = fields.get(at) {
                        head.fields.remove(name);
                        prop_assert!(head.fields.first(name).is_none());
                    }
                }
                Edit::Path(path) => head.set_path(&path).unwrap(),
                Edit::Host(host) => head.set_authority(&host).unwrap(),
            }
        }
        let mut out = BytesMut::new();
        write::request(&head, How::framed(head.framing()), &mut out).unwrap();
        let (again, rest) = request_of(&out, Limits::default()).unwrap().expect("a whole head");
        prop_assert!(rest.is_empty());
        prop_assert_eq!((again.method(), again.path(), again.framing()), (head.method(), head.path(), head.framing()));
        prop_assert_eq!(again.authority(), head.authority());
        let plain = |fields: &H1Fields| {
            let mut lines = lines(fields);
            lines.retain(|(name, _)| Known::of(name.as_bytes()) == Known::Other);
            lines
        };
        prop_assert_eq!(plain(&again.fields), plain(&head.fields));
    }

    #[test]
    fn the_client_reads_the_response_that_was_sent(
        status in 200u16..600,
        reason in "[ -~]{0,20}",
        fields in vec((name(), value()), 0..8),
        length in any::<u32>(),
    ) {
        let mut text = format!("HTTP/1.1 {status} {reason}\r\nContent-Length: {length}\r\n").into_bytes();
        for (name, value) in &fields {
            text.extend([name.as_bytes(), b": ", value, b"\r\n"].concat());
        }
        text.extend_from_slice(b"\r\n");
        let Ok(Some((head, _))) = response_of(&text, Asked::default(), Limits::default()) else {
            prop_assert!(status == 204 && length > 0);
            return Ok(());
        };
        prop_assert_eq!((head.status(), head.reason()), (status, reason.as_bytes()));
        let mut out = BytesMut::new();
        write::response(&head, How::framed(head.framing()), &mut out).unwrap();
        let (again, _) = response_of(&out, Asked::default(), Limits::default()).unwrap().expect("a whole head");
        prop_assert_eq!((again.status(), again.reason(), again.framing()), (status, reason.as_bytes(), head.framing()));
        let kept = usize::from(status != 204);
        prop_assert_eq!(lines(&again.fields)[kept..].to_vec(), fields);
    }

    #[test]
    fn what_was_framed_is_unframed(
        pieces in vec(vec(any::<u8>(), 0..50), 0..8),
        trailers in vec(("x-[a-z]{1,8}", value()), 0..3),
        chunked in any::<bool>(),
        cuts in vec(any::<prop::sample::Index>(), 0..8),
    ) {
        let data = pieces.concat();
        let framing = if chunked { Framing::Chunked } else { Framing::Length(data.len() as u64) };
        let (mut encoder, mut out) = (BodyEncoder::new(framing), BytesMut::new());
        for piece in &pieces {
            encoder.encode(piece, &mut out).unwrap();
        }
        encoder.finish_with(trailers.iter().map(|(n, v)| (n.as_bytes(), v.as_slice())), &mut out).unwrap();
        let body = body_of(framing, cut(&out, &cuts).into_iter(), Limits::default()).unwrap();
        prop_assert!(body.complete);
        prop_assert_eq!(body.data, data);
        let trailers: Vec<_> = trailers.into_iter().map(|(name, value)| (name.into_bytes(), value)).collect();
        prop_assert_eq!(body.trailers, if chunked { trailers } else { Vec::new() });
    }

    #[test]
    fn the_fuzz_promises_hold_for_well_formed_heads((text, _) in request_text(), behind in vec(any::<u8>(), 0..20)) {
        fuzz_request(&[text, behind].concat());
    }

    #[test]
    fn the_fuzz_promises_hold_for_noise(bytes in vec(prop_oneof![any::<u8>(), Just(b'\r'), Just(b'\n')], 0..200)) {
        fuzz_request(&bytes);
        fuzz_response(&bytes);
        fuzzing::fuzz_body(&bytes);
    }
}
