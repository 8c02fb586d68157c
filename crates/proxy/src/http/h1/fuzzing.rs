//! What must hold for any bytes, as plain functions: called by the fuzzer, and by a test that replays the corpus.
//!
//! Splitting the input never changes the verdict; what we write, we read again as the same message; an accepted head can
//! be said in HTTP/2 and comes back with the same meaning. A broken promise is a failed assertion.

use bytes::BytesMut;

use super::known::HOP_BY_HOP;
use super::write::{self, How};
use super::{
    Asked, BodyDecoder, BodyEncoder, Decoded, Framing, H1Fields, H1Request, H1Response, Known, Limits,
    Parsed, Refusal, RequestParser, ResponseParser,
};
use crate::http::convert;
use crate::http::head::{RequestHead, ResponseHead};

/// Smaller than in production, so that the fuzzer reaches them.
fn limits() -> Limits {
    Limits { head: 2048, start_line: 512, fields: 32, trailers: 256, chunk_line: 64, chunk_extensions: 128 }
}

/// Pieces of `data`, cut where a generator seeded from the data says.
fn pieces(data: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut state = data
        .iter()
        .fold(0x9e37_79b9_7f4a_7c15u64, |sum, &b| (sum ^ u64::from(b)).wrapping_mul(0x100_0000_01b3));
    let mut rest = data;
    std::iter::from_fn(move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        let len = (1 + state as usize % 13).min(rest.len());
        let piece;
        (piece, rest) = rest.split_at(len);
        (len > 0).then_some(piece)
    })
}

/// A head with what was left behind it, or why there is none.
pub type Outcome<H> = Result<Option<(H, BytesMut)>, Refusal>;

/// Parses the first request of `data`, whole.
pub fn request_of(data: &[u8], limits: Limits) -> Outcome<H1Request> {
    let mut buf = BytesMut::from(data);
    match RequestParser::new(limits).parse(&mut buf)? {
        Parsed::NeedMore => Ok(None),
        Parsed::Head(head) => Ok(Some((head, buf))),
    }
}

/// Parses the first request of `data`, fed in `pieces`.
pub fn request_in_pieces<'a>(pieces: impl Iterator<Item = &'a [u8]>, limits: Limits) -> Outcome<H1Request> {
    let (mut parser, mut buf, mut pieces) = (RequestParser::new(limits), BytesMut::new(), pieces);
    while let Some(piece) = pieces.next() {
        buf.extend_from_slice(piece);
        if let Parsed::Head(head) = parser.parse(&mut buf)? {
            pieces.for_each(|piece| buf.extend_from_slice(piece));
            return Ok(Some((head, buf)));
        }
    }
    Ok(None)
}

/// Parses the first response of `data`, whole.
pub fn response_of(data: &[u8], asked: Asked, limits: Limits) -> Outcome<H1Response> {
    response_in_pieces(std::iter::once(data), asked, limits)
}

/// Parses the first response of `data`, fed in `pieces`.
pub fn response_in_pieces<'a>(
    pieces: impl Iterator<Item = &'a [u8]>,
    asked: Asked,
    limits: Limits,
) -> Outcome<H1Response> {
    let (mut parser, mut buf, mut pieces) = (ResponseParser::new(limits), BytesMut::new(), pieces);
    while let Some(piece) = pieces.next() {
        buf.extend_from_slice(piece);
        if let Parsed::Head(head) = parser.parse(&mut buf, asked)? {
            pieces.for_each(|piece| buf.extend_from_slice(piece));
            return Ok(Some((head, buf)));
        }
    }
    Ok(None)
}

/// A decoded body: its bytes, its trailers, and whether its end was seen.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Body {
    pub data: Vec<u8>,
    pub trailers: Vec<(Vec<u8>, Vec<u8>)>,
    pub complete: bool,
}

/// Decodes a body fed in `pieces`.
///
/// # Errors
/// When its framing is refused.
pub fn body_of<'a>(
    framing: Framing,
    pieces: impl Iterator<Item = &'a [u8]>,
    limits: Limits,
) -> Result<Body, Refusal> {
    let (mut decoder, mut buf, mut body) =
        (BodyDecoder::new(framing, limits), BytesMut::new(), Body::default());
    let mut pieces = std::iter::once(b"".as_slice()).chain(pieces);
    for piece in &mut pieces {
        buf.extend_from_slice(piece);
        loop {
            match decoder.decode(&mut buf)? {
                Decoded::NeedMore => break,
                Decoded::Data(data) => {
                    assert!(!data.is_empty(), "an empty piece of data would end a chunked body");
                    body.data.extend_from_slice(&data);
                }
                Decoded::Trailers(fields) => body.trailers = pairs(&fields),
                Decoded::End => {
                    body.complete = true;
                    return Ok(body);
                }
            }
        }
    }
    Ok(body)
}

fn pairs(fields: &H1Fields) -> Vec<(Vec<u8>, Vec<u8>)> {
    fields.iter().map(|(name, value)| (name.to_vec(), value.to_vec())).collect()
}

/// The lines that forwarding must not touch.
fn end_to_end(fields: &H1Fields) -> Vec<(Vec<u8>, Vec<u8>)> {
    let own = HOP_BY_HOP | Known::ContentLength.bit() | Known::TransferEncoding.bit() | Known::Expect.bit();
    let kept = write::end_to_end(fields).filter(|(name, _)| Known::of(name).bit() & own == 0);
    kept.map(|(name, value)| (name.to_vec(), value.to_vec())).collect()
}

/// Compares without case and order: what HTTP/2 keeps.
fn folded(mut pairs: Vec<(Vec<u8>, Vec<u8>)>) -> Vec<(Vec<u8>, Vec<u8>)> {
    pairs.retain(|(name, _)| !matches!(Known::of(name), Known::Host | Known::Cookie));
    pairs.iter_mut().for_each(|(name, _)| name.make_ascii_lowercase());
    pairs.sort();
    pairs
}

/// Any bytes, from a client.
pub fn fuzz_request(data: &[u8]) {
    let whole = request_of(data, limits());
    let parts = request_in_pieces(pieces(data), limits());
    let (head, rest) = match (whole, parts) {
        (Ok(None), Ok(None)) => return,
        (Err(a), Err(b)) => return assert_eq!(a, b, "the refusal depends on the split"),
        (Ok(Some(a)), Ok(Some(b))) => {
            assert_eq!(a.0.method(), b.0.method());
            assert_eq!((a.0.path(), a.0.authority()), (b.0.path(), b.0.authority()));
            assert_eq!((pairs(&a.0.fields), a.0.framing(), &a.1), (pairs(&b.0.fields), b.0.framing(), &b.1));
            a
        }
        (a, b) => {
            assert_eq!((a.is_ok(), b.is_ok()), (true, true), "the verdict depends on the split");
            return assert_eq!(a.is_ok_and(|a| a.is_some()), b.is_ok_and(|b| b.is_some()));
        }
    };
    let mut out = BytesMut::new();
    assert_eq!(write::request(&head, How::framed(head.framing()), &mut out), Ok(()));
    let again = accepted(request_of(&out, Limits::default()), &out);
    same_request(&head, &again);
    let mut wanted = end_to_end(&head.fields);
    if !head.fields.has(Known::Host) {
        wanted.insert(0, (b"Host".to_vec(), head.authority().as_bytes().to_vec()));
    }
    assert_eq!(wanted, end_to_end(&again.fields), "case, order and duplicates survive");
    body_round_trip(head.framing(), &rest);
    request_through_h2(head);
}

fn same_request(head: &H1Request, again: &H1Request) {
    assert_eq!((head.method(), head.path()), (again.method(), again.path()));
    assert!(head.authority().is_empty() || !again.authority().is_empty());
    assert_eq!(head.framing(), again.framing());
    assert_eq!(again.minor(), 1);
}

fn accepted<H>(outcome: Outcome<H>, bytes: &[u8]) -> H {
    match outcome {
        Ok(Some((head, rest))) => {
            assert!(rest.is_empty(), "more was written than a head: {}", bytes.escape_ascii());
            head
        }
        Ok(None) => unreachable!("half a head was written: {}", bytes.escape_ascii()),
        Err(refusal) => unreachable!("we refuse what we wrote, {refusal}: {}", bytes.escape_ascii()),
    }
}

fn request_through_h2(head: H1Request) {
    let head = RequestHead::H1(head);
    let Ok(request) = convert::request_to_h2(&head, false) else { return };
    let RequestHead::H1(h1) = head else { return };
    let crossed = match RequestHead::from_h2(request.into_parts().0, "http", &Limits::default()) {
        Ok(crossed) => crossed,
        Err(refusal) => unreachable!("what we sent over HTTP/2 is refused there: {refusal}"),
    };
    let mut out = BytesMut::new();
    assert_eq!(crossed.write_h1(How::framed(h1.framing()), &mut out), Ok(()));
    // Lower-case names and ours take no more room, a written-out space does.
    let again = accepted(request_of(&out, Limits::default()), &out);
    same_request(&h1, &again);
    assert_eq!(folded(end_to_end(&h1.fields)), folded(end_to_end(&again.fields)));
}

/// Any bytes, from a server; the first byte says what it was asked.
pub fn fuzz_response(data: &[u8]) {
    let Some((&first, data)) = data.split_first() else { return };
    let asked = Asked { head: first & 7 == 1, connect: first & 7 == 2, upgrade: first & 7 == 3 };
    let whole = response_of(data, asked, limits());
    let parts = response_in_pieces(pieces(data), asked, limits());
    let (head, rest) = match (whole, parts) {
        (Ok(None), Ok(None)) => return,
        (Err(a), Err(b)) => return assert_eq!(a, b, "the refusal depends on the split"),
        (Ok(Some(a)), Ok(Some(b))) => {
            assert_eq!(
                (a.0.status(), a.0.reason(), a.0.framing()),
                (b.0.status(), b.0.reason(), b.0.framing())
            );
            assert_eq!((pairs(&a.0.fields), &a.1), (pairs(&b.0.fields), &b.1));
            a
        }
        (a, b) => {
            assert_eq!((a.is_ok(), b.is_ok()), (true, true), "the verdict depends on the split");
            return assert_eq!(a.is_ok_and(|a| a.is_some()), b.is_ok_and(|b| b.is_some()));
        }
    };
    let mut out = BytesMut::new();
    assert_eq!(write::response(&head, How::framed(head.framing()), &mut out), Ok(()));
    let again = accepted(response_of(&out, asked, Limits::default()), &out);
    assert_eq!(
        (head.status(), head.reason(), head.framing()),
        (again.status(), again.reason(), again.framing())
    );
    assert_eq!(end_to_end(&head.fields), end_to_end(&again.fields));
    body_round_trip(head.framing(), &rest);

    let (status, framing, wanted) = (head.status(), head.framing(), folded(end_to_end(&head.fields)));
    if let Ok(response) = convert::response_to_h2(&ResponseHead::H1(head))
        && framing != Framing::Tunnel
    {
        let mut out = BytesMut::new();
        let written = ResponseHead::H2(response.into_parts().0).write_h1(How::framed(framing), &mut out);
        assert_eq!(written, Ok(()));
        let again = accepted(response_of(&out, asked, Limits::default()), &out);
        assert_eq!((status, framing), (again.status(), again.framing()));
        assert_eq!(wanted, folded(end_to_end(&again.fields)));
    }
}

/// Any bytes, as a chunked body.
pub fn fuzz_body(data: &[u8]) {
    body_round_trip(Framing::Chunked, data);
}

/// A body decodes the same however it is split, and what is encoded from it decodes to it again.
fn body_round_trip(framing: Framing, data: &[u8]) {
    let whole = body_of(framing, std::iter::once(data), limits());
    assert_eq!(whole, body_of(framing, pieces(data), limits()), "the body depends on the split");
    let Ok(body) = whole else { return };
    if !body.complete {
        return;
    }
    let (mut encoder, mut out) = (BodyEncoder::new(framing), BytesMut::new());
    for piece in pieces(&body.data) {
        assert_eq!(encoder.encode(piece, &mut out), Ok(()));
    }
    let trailers = body.trailers.iter().map(|(name, value)| (name.as_slice(), value.as_slice()));
    assert_eq!(encoder.finish_with(trailers, &mut out), Ok(()));
    let limits = Limits { trailers: 4096, ..limits() };
    assert_eq!(Ok(body), body_of(framing, std::iter::once(out.as_ref()), limits));
}
