//! The names of what a connection speaks: wanted, negotiated, detected, recorded.

/// What a stream speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Protocol {
    /// HTTP/1.1, and 1.0.
    Http1,
    Http2,
    /// Bytes.
    Tcp,
}

/// Which HTTP, where it is HTTP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HttpVersion {
    Http1,
    Http2,
}
