//! Bodies, both ways.

use bytes::BytesMut;

use crate::http::h1::fuzzing::{Body, body_of};
use crate::http::h1::*;

fn chunked(text: &str) -> Result<Body, Refusal> {
    let whole = body_of(Framing::Chunked, std::iter::once(text.as_bytes()), Limits::default());
    let bytewise = body_of(Framing::Chunked, text.as_bytes().chunks(1), Limits::default());
    assert_eq!(whole, bytewise, "{text:?}");
    whole
}

#[test]
fn chunks_are_decoded() {
    for (text, data) in [
        ("0\r\n\r\n", ""),
        ("5\r\nhello\r\n0\r\n\r\n", "hello"),
        ("005\r\nhello\r\n000\r\n\r\n", "hello"),
        ("5;a=b\r\nhello\r\n1;c;d=\"e f\"\r\n!\r\n0;x\r\n\r\n", "hello!"),
        ("5 ; a=b\r\nhello\r\n0\r\n\r\n", "hello"),
        ("A\r\n0123456789\r\na\r\n0123456789\r\n0\r\n\r\n", "01234567890123456789"),
    ] {
        let body = chunked(text).unwrap();
        assert_eq!((body.data, body.complete), (data.as_bytes().to_vec(), true), "{text:?}");
    }
    assert!(!chunked("5\r\nhel").unwrap().complete);
}

#[test]
fn malformed_chunks_are_refused() {
    let long = format!("1;{}\r\na\r\n", "a".repeat(2000));
    let many =
        "1;aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa\r\na\r\n".repeat(300);
    for (text, refusal) in [
        ("\r\n", Refusal::ChunkSize),
        ("g\r\n", Refusal::ChunkSize),
        ("-1\r\n", Refusal::ChunkSize),
        ("0x5\r\nhello", Refusal::ChunkLine),
        ("ffffffffffffffff\r\n", Refusal::ChunkSize),
        ("00000000000000005\r\n", Refusal::ChunkSize),
        ("8000000000000000\r\n", Refusal::ChunkSize),
        ("5 \r\nhello\r\n", Refusal::ChunkLine),
        (" 5\r\nhello\r\n", Refusal::ChunkSize),
        ("5\nhello\r\n", Refusal::BareLf),
        ("5;a\nb\r\nhello\r\n", Refusal::BareLf),
        ("5;a\rb\r\nhello\r\n", Refusal::ChunkLine),
        ("5;\r\nhello\r\n", Refusal::ChunkLine),
        ("5;=\r\nhello\r\n", Refusal::ChunkLine),
        ("5,a\r\nhello\r\n", Refusal::ChunkLine),
        ("5\r\nhello6\r\n", Refusal::ChunkEnd),
        ("5\r\nhello\n", Refusal::ChunkEnd),
        ("0\r\nX: a\n\r\n", Refusal::BareLf),
        ("0\r\nX : a\r\n\r\n", Refusal::Trailer),
        ("0\r\n X: a\r\n\r\n", Refusal::Trailer),
        ("0\r\nnocolon\r\n\r\n", Refusal::Trailer),
        (&long, Refusal::ChunkLine),
        (&many, Refusal::ChunkExtensions),
    ] {
        assert_eq!(chunked(text), Err(refusal), "{text:?}");
    }
    let huge = format!("0\r\nX: {}\r\n\r\n", "a".repeat(20_000));
    assert_eq!(chunked(&huge), Err(Refusal::TrailersTooLarge));
    let lines = format!("0\r\n{}\r\n", "X: a\r\n".repeat(101));
    assert_eq!(chunked(&lines), Err(Refusal::TrailersTooLarge));
}

#[test]
fn trailers_come_without_what_they_must_not_say() {
    let text = "1\r\na\r\n0\r\nGrpc-Status: 0\r\nContent-Length: 9\r\nhost: evil\r\nX-Forwarded-For: 1\r\nX-Sum: z\r\n\r\n";
    let wanted = [(b"Grpc-Status".to_vec(), b"0".to_vec()), (b"X-Sum".to_vec(), b"z".to_vec())];
    assert_eq!(chunked(text).unwrap().trailers, wanted);
}

#[test]
fn a_length_is_kept_to_the_byte() {
    let mut buf = BytesMut::from("hello, next");
    let mut decoder = BodyDecoder::new(Framing::Length(5), Limits::default());
    assert_eq!(decoder.remaining(), Some(5));
    assert!(matches!(decoder.poll(&mut buf), Ok(Step::Data(5))));
    decoder.consume(&mut buf, 2);
    assert!(matches!(decoder.poll(&mut buf), Ok(Step::Data(3))));
    decoder.consume(&mut buf, 3);
    assert!(matches!(decoder.poll(&mut buf), Ok(Step::End)));
    assert!(decoder.is_done());
    assert_eq!(buf, ", next");
}

#[test]
fn an_early_end_is_not_an_end() {
    let eof = |framing, text: &str| {
        let (mut decoder, mut buf) = (BodyDecoder::new(framing, Limits::default()), BytesMut::from(text));
        while let Ok(Decoded::Data(_) | Decoded::Trailers(_)) = decoder.decode(&mut buf) {}
        decoder.eof()
    };
    assert_eq!(eof(Framing::Length(5), "hell"), Err(Refusal::UnexpectedEof));
    assert_eq!(eof(Framing::Length(5), "hello"), Ok(()));
    assert_eq!(eof(Framing::Chunked, "5\r\nhello\r\n"), Err(Refusal::UnexpectedEof));
    assert_eq!(eof(Framing::Chunked, "5\r\nhello\r\n0\r\n"), Err(Refusal::UnexpectedEof));
    assert_eq!(eof(Framing::Chunked, "0\r\n\r\n"), Ok(()));
    assert_eq!(eof(Framing::Close, "hello"), Ok(()));
    assert_eq!(eof(Framing::None, ""), Ok(()));
}

#[test]
fn the_encoder_counts() {
    let mut out = BytesMut::new();
    let mut encoder = BodyEncoder::new(Framing::Length(5));
    encoder.encode(b"hell", &mut out).unwrap();
    assert_eq!(encoder.finish(&mut out), Err(EncodeError::TooShort(1)));
    assert_eq!(encoder.encode(b"o, and more", &mut out), Err(EncodeError::TooLong(10)));
    encoder.encode(b"o", &mut out).unwrap();
    encoder.finish(&mut out).unwrap();
    assert_eq!(out, "hello");
    assert_eq!(BodyEncoder::new(Framing::None).encode(b"a", &mut out), Err(EncodeError::TooLong(1)));
}

#[test]
fn chunk_lines_are_hexadecimal_and_empty_chunks_are_left_out() {
    let mut out = BytesMut::new();
    let mut encoder = BodyEncoder::new(Framing::Chunked);
    for len in [1, 15, 16, 255, 256, 65_535] {
        let frame = encoder.frame(len).unwrap();
        assert_eq!(frame.before(), format!("{len:x}\r\n").as_bytes());
        assert_eq!(
            frame.around(b"a").iter().map(|slice| slice.len()).sum::<usize>(),
            frame.before().len() + 3
        );
    }
    encoder.encode(b"", &mut out).unwrap();
    encoder.encode(b"a", &mut out).unwrap();
    encoder.finish_with([(b"X-Sum".as_slice(), b"z".as_slice())].into_iter(), &mut out).unwrap();
    assert_eq!(out, "1\r\na\r\n0\r\nX-Sum: z\r\n\r\n");
}
