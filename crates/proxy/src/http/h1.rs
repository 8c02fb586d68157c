//! The HTTP/1 codec: bytes in, heads and body chunks out, and back. Sans-I/O: the connection owns sockets and time.
//!
//! `parse` finds heads, `grammar` and `strict` say what is refused and why, `body` unframes and `encode` frames bodies, `write`
//! puts heads on the wire in one pass. Which upstream gets the request is none of its business.

pub mod body;
pub mod encode;
mod explain;
pub mod fields;
#[cfg(any(test, fuzzing))]
pub mod fuzzing;
pub mod grammar;
pub mod known;
pub mod message;
pub mod names;
pub mod parse;
pub mod strict;
pub mod write;

#[cfg(test)]
mod tests;

pub use body::{BodyDecoder, Decoded, Step};
pub use encode::{BodyEncoder, ChunkHead, EncodeError};
pub use fields::{EditError, H1Fields};
pub use known::Known;
pub use message::{Asked, H1Request, H1Response};
pub use parse::{MAX_INTERIM, Parsed, RequestParser, ResponseParser};
pub use strict::Refusal;

/// Ceiling of every head that an application or an outsider makes: ranges are 16 bits wide, and edits need room behind the
/// bytes that arrived.
pub const MAX_HEAD: usize = 60 * 1024;

/// What the sidecars of a path add to a head, at most, in bytes and in lines: one that was within the limit where it began is
/// nowhere too long for our own headers.
pub const OWN_BYTES: usize = 2 * 1024;
pub const OWN_FIELDS: usize = 16;

/// Ceiling of every head.
pub const CEILING: usize = MAX_HEAD + OWN_BYTES;

/// How much of a head or of chunk framing is read before the message is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of a whole head, start line included; more than [`CEILING`] counts as [`CEILING`].
    pub head: usize,
    /// Bytes of the start line.
    pub start_line: usize,
    /// Header lines; more than [`parse::MAX_FIELDS`] counts as that.
    pub fields: usize,
    /// Bytes of a trailer section.
    pub trailers: usize,
    /// Bytes of one chunk-size line, extensions included.
    pub chunk_line: usize,
    /// Bytes of chunk extensions in one message.
    pub chunk_extensions: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            head: MAX_HEAD,
            start_line: 16 * 1024,
            fields: 100,
            trailers: 16 * 1024,
            chunk_line: 1024,
            chunk_extensions: 16 * 1024,
        }
    }
}

impl Limits {
    /// For heads of at most `bytes`; a peer's have room for what its sidecar added. HTTP/2 has the same limits: a head counts
    /// there as it is written in HTTP/1.
    pub fn heads(bytes: usize, peer: bool) -> Self {
        let (own_bytes, own_fields) = if peer { (OWN_BYTES, OWN_FIELDS) } else { (0, 0) };
        let limits = Self::default();
        Self { head: bytes.min(MAX_HEAD) + own_bytes, fields: limits.fields + own_fields, ..limits }
    }

    /// The header list of HTTP/2 in which every head within these limits has room: it counts 32 bytes for a line
    /// (RFC 9113, section 6.5.2).
    pub fn header_list(&self) -> u32 {
        u32::try_from(self.head + 32 * self.fields).unwrap_or(u32::MAX)
    }
}

/// How the body of a message is delimited (RFC 9112, section 6.3).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Framing {
    /// No body, and no field that says so.
    #[default]
    None,
    /// `Content-Length`.
    Length(u64),
    /// `Transfer-Encoding: chunked`.
    Chunked,
    /// Responses only: until the connection closes.
    Close,
    /// After a 101 or a CONNECT's 2xx: what follows is not HTTP any more.
    Tunnel,
}

impl Framing {
    /// Whether no body byte can follow.
    pub fn is_empty(self) -> bool {
        matches!(self, Self::None | Self::Length(0))
    }
}
