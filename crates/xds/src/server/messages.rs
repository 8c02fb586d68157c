//! gRPC's messages in the body of a request: a flag, a length, and so many bytes.
//!
//! Between two messages nothing is kept: a mesh has thousands of streams, and they are silent most of the time.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes, BytesMut};
use http_body::Body as _;
use tonic::Status;
use tonic::body::Body;

/// The flag that says whether it is compressed, and the length.
pub(super) const PREFIX: usize = 5;

/// The messages of one request.
pub(super) struct Messages {
    body: Body,
    /// Of messages up to so many bytes.
    most: usize,
    read: Read,
}

/// What was read and is not taken yet.
enum Read {
    /// As it came: nearly always whole messages.
    Piece(Bytes),
    /// Of a message that comes in several pieces.
    Pieces(BytesMut),
}

impl Messages {
    /// Of up to `most` bytes each.
    pub(super) fn new(body: Body, most: usize) -> Self {
        Self { body, most, read: Read::Piece(Bytes::new()) }
    }

    /// The next message; none when the client has said all that it has to say.
    pub(super) fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, Status>>> {
        loop {
            match self.read.cut(self.most) {
                Ok(None) => {}
                Ok(Some(message)) => return Poll::Ready(Some(Ok(message))),
                Err(status) => return Poll::Ready(Some(Err(status))),
            }
            match ready!(Pin::new(&mut self.body).poll_frame(cx)) {
                Some(Ok(frame)) => {
                    if let Ok(data) = frame.into_data() {
                        self.read.push(data);
                    }
                }
                Some(Err(status)) => return Poll::Ready(Some(Err(status))),
                None if self.read.is_empty() => return Poll::Ready(None),
                None => {
                    let status = Status::invalid_argument("the request ends in the middle of a message");
                    return Poll::Ready(Some(Err(status)));
                }
            }
        }
    }
}

impl Read {
    fn bytes(&self) -> &[u8] {
        match self {
            Self::Piece(bytes) => bytes,
            Self::Pieces(bytes) => bytes,
        }
    }

    fn is_empty(&self) -> bool {
        self.bytes().is_empty()
    }

    fn push(&mut self, more: Bytes) {
        match self {
            Self::Piece(piece) if piece.is_empty() => *piece = more,
            Self::Piece(piece) => {
                let mut pieces = BytesMut::with_capacity(piece.len() + more.len());
                pieces.extend_from_slice(piece);
                pieces.extend_from_slice(&more);
                *self = Self::Pieces(pieces);
            }
            Self::Pieces(pieces) => pieces.extend_from_slice(&more),
        }
    }

    /// Takes the first message, if all of it is here.
    #[allow(clippy::result_large_err)] // tonic's own type
    fn cut(&mut self, most: usize) -> Result<Option<Bytes>, Status> {
        let Some((flag, mut length)) =
            self.bytes().split_at_checked(PREFIX).map(|(prefix, _)| (prefix[0], &prefix[1..]))
        else {
            return Ok(None);
        };
        match flag {
            0 => {}
            1 => return Err(Status::unimplemented("messages must not be compressed")),
            _ => return Err(Status::invalid_argument("the request is none of gRPC")),
        }
        let length = length.get_u32() as usize;
        if length > most {
            let why = format!("a message has {length} bytes, the most are {most}");
            return Err(Status::resource_exhausted(why));
        }
        if self.bytes().len() < PREFIX + length {
            return Ok(None);
        }
        let mut whole = match self {
            Self::Piece(piece) => piece.split_to(PREFIX + length),
            Self::Pieces(pieces) => pieces.split_to(PREFIX + length).freeze(),
        };
        whole.advance(PREFIX);
        if self.is_empty() {
            *self = Self::Piece(Bytes::new());
        }
        Ok(Some(whole))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(text: &str) -> Vec<u8> {
        let mut bytes = vec![0];
        bytes.extend((text.len() as u32).to_be_bytes());
        bytes.extend(text.as_bytes());
        bytes
    }

    #[test]
    fn messages_are_whole_however_the_bytes_come() {
        let all: Vec<u8> = ["one", "", "three"].iter().flat_map(|text| message(text)).collect();
        for size in 1..=all.len() {
            let (mut read, mut found) = (Read::Piece(Bytes::new()), Vec::new());
            for piece in all.chunks(size) {
                read.push(Bytes::copy_from_slice(piece));
                while let Some(message) = read.cut(5).unwrap() {
                    found.push(String::from_utf8(message.to_vec()).unwrap());
                }
            }
            assert_eq!(
                (found, read.is_empty()),
                (vec!["one".into(), String::new(), "three".into()], true),
                "{size}"
            );
            assert!(matches!(read, Read::Piece(_)), "nothing is kept");
        }
    }

    #[test]
    fn what_is_too_long_compressed_or_no_message_is_refused() {
        let cut =
            |bytes: &[u8]| Read::Piece(Bytes::copy_from_slice(bytes)).cut(5).map_err(|status| status.code());
        assert_eq!(cut(&message("sixsix")), Err(tonic::Code::ResourceExhausted));
        assert_eq!(cut(&[1, 0, 0, 0, 1, 7]), Err(tonic::Code::Unimplemented));
        assert_eq!(cut(b"GET / HTTP/1.1"), Err(tonic::Code::InvalidArgument));
        assert_eq!(cut(&[0, 0, 0]), Ok(None));
    }
}
