//! What a call asks, and what comes back.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};

use crate::http::h1::Framing;
use crate::http::head::{RequestHead, ResponseHead, Trailers};
use crate::runtime::cluster::ClusterHandle;
use crate::runtime::endpoint::Reach;

/// What is to be sent, where, and what is wanted of it.
pub struct Call {
    pub cluster: Arc<ClusterHandle>,
    pub head: RequestHead,
    pub framing: Framing,
    pub body: Bytes,
    pub trailers: Option<Trailers>,
    /// For clusters of kind original destination.
    pub original: (SocketAddr, Reach),
    /// For consistent hashing.
    pub hash: Option<u64>,
    /// For the whole answer.
    pub timeout: Duration,
    /// It may be sent once more though it may have arrived.
    pub again: bool,
    /// So many bytes of the answer's body are kept; more are read and dropped.
    pub most: usize,
}

/// What came back.
pub struct Answer {
    pub head: ResponseHead,
    pub body: BytesMut,
    /// The body was longer than what was kept.
    pub cut: bool,
    pub trailers: Option<Trailers>,
}
