//! What gRPC puts into HTTP, as far as a proxy looks: its content type, how many messages a body carries, and the two messages of its
//! health service (`grpc.health.v1`).

use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};

use super::h1::{EditError, H1Request};
use super::head::RequestHead;

/// The head of a call of one message, for an answer in that time.
///
/// # Errors
/// What cannot be in a head.
pub fn unary(path: &str, authority: &str, timeout: Option<Duration>) -> Result<RequestHead, EditError> {
    let mut head = RequestHead::H1(H1Request::new("POST", path, authority)?);
    head.set("content-type", "application/grpc")?;
    head.set("te", "trailers")?;
    if let Some(timeout) = timeout {
        head.set("grpc-timeout", format!("{}m", timeout.as_millis().clamp(1, 99_999_999)))?;
    }
    Ok(head)
}

/// A message in gRPC's framing: a flag of compression, its length.
pub fn framed(message: &[u8]) -> Bytes {
    let mut framed = BytesMut::with_capacity(message.len() + 5);
    framed.put_u8(0);
    framed.put_u32(u32::try_from(message.len()).unwrap_or(u32::MAX));
    framed.extend_from_slice(message);
    framed.freeze()
}

/// `HealthCheckRequest { service: 1 }` in gRPC's framing.
pub fn check_message(service: &str) -> Bytes {
    let mut field = BytesMut::new();
    if !service.is_empty() {
        field.put_u8(0x0a);
        let mut length = service.len();
        while length >= 0x80 {
            field.put_u8(length as u8 | 0x80);
            length >>= 7;
        }
        field.put_u8(length as u8);
        field.put_slice(service.as_bytes());
    }
    framed(&field)
}

/// `HealthCheckResponse { status: 1 }`, where 1 is SERVING and 0 is not written; `None`: no message.
pub fn serving(answer: &[u8]) -> Option<bool> {
    let message = answer.get(5..)?;
    Some(message == [0x08, 0x01])
}

/// Counts messages of a body by their five-byte headers: a flag and a length. Looks at no message.
#[derive(Debug, Default)]
pub struct Messages {
    /// Whose header was whole.
    pub count: u64,
    /// Of the present header.
    seen: u8,
    length: u32,
    /// Payload bytes of the present message that are still to come.
    left: u32,
}

impl Messages {
    /// Takes the next bytes of the body, cut anywhere.
    pub fn feed(&mut self, mut bytes: &[u8]) {
        while let Some((first, rest)) = bytes.split_first() {
            if self.left > 0 {
                let skipped = bytes.len().min(self.left as usize);
                self.left -= skipped as u32;
                bytes = &bytes[skipped..];
                continue;
            }
            if self.seen > 0 {
                self.length = self.length << 8 | u32::from(*first);
            }
            self.seen += 1;
            if self.seen == 5 {
                self.count += 1;
                (self.left, self.seen, self.length) = (self.length, 0, 0);
            }
            bytes = rest;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_counted_however_the_body_is_cut() {
        let body =
            b"\0\0\0\0\x03abc\x01\0\0\0\0\0\0\0\x01\x2c".iter().copied().chain([7; 300]).collect::<Vec<_>>();
        for size in [1, 2, 5, 7, 64, body.len()] {
            let mut messages = Messages::default();
            body.chunks(size).for_each(|piece| messages.feed(piece));
            assert_eq!((messages.count, messages.left), (3, 0), "in pieces of {size}");
        }
    }

    #[test]
    fn the_health_service_is_asked_in_its_own_words() {
        assert_eq!(check_message("")[..], [0; 5]);
        assert_eq!(check_message("ab")[..], [0, 0, 0, 0, 4, 0x0a, 2, b'a', b'b']);
        assert_eq!(check_message(&"a".repeat(300))[..8], [0, 0, 0, 1, 0x2f, 0x0a, 0xac, 2]);
        assert_eq!(
            [&[][..], &[0, 0, 0, 0, 0], &[0, 0, 0, 0, 2, 8, 1]].map(serving),
            [None, Some(false), Some(true)]
        );
    }
}
