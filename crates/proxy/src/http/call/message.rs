//! What a call asks, and what comes back.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};

use crate::http::copy::parse_status;
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
    /// What the head says of a call already, before any trailers.
    pub early_status: Option<u32>,
    pub body: BytesMut,
    /// The body was longer than what was kept.
    pub cut: bool,
    pub trailers: Option<Trailers>,
}

impl Answer {
    /// gRPC's status, in its trailers or, where it has none, in its head.
    pub fn grpc_status(&self) -> Option<u32> {
        let trailers = self.trailers.as_ref().and_then(|trailers| trailers.first("grpc-status"));
        trailers.map_or(self.early_status, parse_status)
    }

    /// The one message of an answer of gRPC.
    ///
    /// # Errors
    /// Its status, or that it is no answer.
    pub fn message(&self) -> Result<&[u8], String> {
        match self.grpc_status() {
            Some(0) if self.head.status() == 200 => {}
            status => return Err(format!("HTTP {}, gRPC {status:?}", self.head.status())),
        }
        // A flag of compression, its length.
        match &self.body[..] {
            [0, a, b, c, d, rest @ ..] if rest.len() == u32::from_be_bytes([*a, *b, *c, *d]) as usize => {
                Ok(rest)
            }
            _ => Err("the answer is not one message".into()),
        }
    }
}
