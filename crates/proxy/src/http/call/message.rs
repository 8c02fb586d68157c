//! What a call asks, and what comes back.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};

use crate::http::copy::parse_status;
use crate::http::h1::{EditError, Framing, H1Request};
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

impl Call {
    /// A unary call of gRPC. It may be sent once more, and of its answer nothing is kept until that is said.
    ///
    /// # Errors
    /// What cannot be in a head.
    pub fn grpc(
        cluster: &Arc<ClusterHandle>,
        path: &str,
        authority: &str,
        message: &[u8],
        timeout: Duration,
    ) -> Result<Self, EditError> {
        let mut head = RequestHead::H1(H1Request::new("POST", path, authority)?);
        head.set("content-type", "application/grpc")?;
        head.set("te", "trailers")?;
        head.set("grpc-timeout", format!("{}m", timeout.as_millis().clamp(1, 99_999_999)))?;
        let mut body = BytesMut::with_capacity(message.len() + 5);
        body.put_u8(0);
        body.put_u32(u32::try_from(message.len()).unwrap_or(u32::MAX));
        body.extend_from_slice(message);
        Ok(Self {
            cluster: cluster.clone(),
            head,
            framing: Framing::Length(body.len() as u64),
            body: body.freeze(),
            trailers: None,
            original: (SocketAddr::from(([0, 0, 0, 0], 0)), Reach::Network),
            hash: None,
            timeout,
            again: true,
            most: 0,
        })
    }

    /// For clusters of kind original destination.
    #[must_use]
    pub fn towards(self, original: SocketAddr) -> Self {
        Self { original: (original, Reach::Network), ..self }
    }

    /// So many bytes of the answer are kept.
    #[must_use]
    pub fn keeping(self, most: usize) -> Self {
        Self { most, ..self }
    }
}

/// What came back.
pub struct Answer {
    pub head: ResponseHead,
    pub body: BytesMut,
    /// The body was longer than what was kept.
    pub cut: bool,
    pub trailers: Option<Trailers>,
}

impl Answer {
    /// The one message of an answer of gRPC.
    ///
    /// # Errors
    /// Its status, or that it is no answer.
    pub fn message(&self) -> Result<&[u8], String> {
        let trailers = self.trailers.as_ref().and_then(|trailers| trailers.first("grpc-status"));
        let status = trailers.or_else(|| self.head.first("grpc-status")).and_then(parse_status);
        match status {
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
