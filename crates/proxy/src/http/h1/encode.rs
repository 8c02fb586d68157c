//! Frames a body for the wire (RFC 9112, sections 6 and 7), into a buffer or around the caller's own slices.
//!
//! It counts: more or fewer bytes than `Content-Length` promised is an error here, before the peer can see a second
//! message where there is none.

use std::io::IoSlice;

use bytes::BytesMut;

use super::Framing;

/// The body does not fit the framing that was announced.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum EncodeError {
    #[error("the body is {0} bytes longer than its Content-Length")]
    TooLong(u64),
    #[error("the body ended {0} bytes before its Content-Length")]
    TooShort(u64),
}

/// Encodes one body.
#[derive(Debug)]
pub struct BodyEncoder {
    kind: Kind,
}

#[derive(Debug)]
enum Kind {
    Length(u64),
    Chunked,
    Raw,
}

/// What goes in front of a piece of data: a chunk-size line, or nothing.
#[derive(Debug, Clone, Copy)]
pub struct ChunkHead {
    line: [u8; 18],
    len: u8,
}

impl ChunkHead {
    const EMPTY: Self = Self { line: [0; 18], len: 0 };

    fn new(size: usize) -> Self {
        let mut head = Self::EMPTY;
        let digits = (usize::BITS - size.leading_zeros()).div_ceil(4).max(1) as usize;
        for at in 0..digits {
            let nibble = (size >> ((digits - 1 - at) * 4)) & 0xf;
            head.line[at] = b"0123456789abcdef"[nibble];
        }
        head.line[digits..digits + 2].copy_from_slice(b"\r\n");
        head.len = digits as u8 + 2;
        head
    }

    /// Goes before the data.
    pub fn before(&self) -> &[u8] {
        &self.line[..usize::from(self.len)]
    }

    /// Goes after the data.
    pub fn after(&self) -> &'static [u8] {
        if self.len == 0 { b"" } else { b"\r\n" }
    }

    /// One vectored write: line, data, CRLF.
    pub fn around<'a>(&'a self, data: &'a [u8]) -> [IoSlice<'a>; 3] {
        [IoSlice::new(self.before()), IoSlice::new(data), IoSlice::new(self.after())]
    }
}

impl BodyEncoder {
    /// Whether nothing but the end of the connection says that the body is whole.
    pub fn ends_with_the_connection(&self) -> bool {
        matches!(self.kind, Kind::Raw)
    }

    /// For a message whose head announced this framing.
    pub fn new(framing: Framing) -> Self {
        let kind = match framing {
            Framing::None => Kind::Length(0),
            Framing::Length(length) => Kind::Length(length),
            Framing::Chunked => Kind::Chunked,
            Framing::Close | Framing::Tunnel => Kind::Raw,
        };
        Self { kind }
    }

    /// Accounts for `len` bytes of data that are about to be sent, and says what goes around them.
    ///
    /// # Errors
    /// When this is more than was announced.
    pub fn frame(&mut self, len: usize) -> Result<ChunkHead, EncodeError> {
        match &mut self.kind {
            Kind::Length(left) => match left.checked_sub(len as u64) {
                Some(rest) => *left = rest,
                None => return Err(EncodeError::TooLong(len as u64 - *left)),
            },
            // An empty chunk would end the body.
            Kind::Chunked if len > 0 => return Ok(ChunkHead::new(len)),
            Kind::Chunked | Kind::Raw => {}
        }
        Ok(ChunkHead::EMPTY)
    }

    /// Writes data with its framing behind what is in `out`.
    ///
    /// # Errors
    /// When this is more than was announced.
    pub fn encode(&mut self, data: &[u8], out: &mut BytesMut) -> Result<(), EncodeError> {
        let frame = self.frame(data.len())?;
        out.reserve(frame.before().len() + data.len() + 2);
        out.extend_from_slice(frame.before());
        out.extend_from_slice(data);
        out.extend_from_slice(frame.after());
        Ok(())
    }

    /// Ends the body.
    ///
    /// # Errors
    /// When less was sent than announced: close the connection, or the peer waits for the rest.
    pub fn finish(&mut self, out: &mut BytesMut) -> Result<(), EncodeError> {
        self.finish_with(std::iter::empty(), out)
    }

    /// Ends the body with trailers, which only a chunked body can carry; elsewhere they are dropped.
    ///
    /// # Errors
    /// As `finish`.
    pub fn finish_with<'a>(
        &mut self,
        trailers: impl Iterator<Item = (&'a [u8], &'a [u8])>,
        out: &mut BytesMut,
    ) -> Result<(), EncodeError> {
        match self.kind {
            Kind::Length(0) | Kind::Raw => Ok(()),
            Kind::Length(left) => Err(EncodeError::TooShort(left)),
            Kind::Chunked => {
                out.extend_from_slice(b"0\r\n");
                for (name, value) in trailers {
                    // A line that must not leave is left out, as trailers may be (RFC 9110, section 6.5.1).
                    let _ = super::write::line(name, value, out);
                }
                out.extend_from_slice(b"\r\n");
                self.kind = Kind::Length(0);
                Ok(())
            }
        }
    }
}
