//! What the first bytes of a connection are: a value, never a dispatch.
//!
//! `tls` and `http` are pure; here is the reading, bounded in bytes and time. Which chain the value leads to is the
//! listener's business.
//!
//! ```text
//! bytes so far ─> tls::parse ─not TLS─> http::classify ─neither─> Opaque
//!                    │ whole hello         │ request line or preface
//!                    v                     v
//!                   Tls                Http1 / Http2
//! ```

use std::future::poll_fn;
use std::io;
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::task::{Poll, ready};
use std::time::Duration;

use bytes::BytesMut;
use tokio::io::{AsyncRead, ReadBuf};
use tokio::time::{Instant, timeout_at};

use crate::failure::{Failure, FailureKind, Stage};
use crate::stream::{Stream, Unanswered};

#[cfg(any(test, fuzzing))]
pub mod fuzzing;
pub mod http;
pub mod tls;

pub use tls::Hello;

/// More is never looked at.
pub const MAX_PEEK: usize = 32 * 1024;

/// Of one read: most first flights fit.
const READ: usize = 4096;

/// What the first bytes are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Detected {
    /// A TLS ClientHello.
    Tls(Hello),
    /// An HTTP/1 request line.
    Http1,
    /// The HTTP/2 connection preface.
    Http2,
    /// Anything else.
    Opaque,
    /// It ended, or grew too long, before it could be told; or it is what only lenient servers take for a request.
    Unclear,
}

/// What is looked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Look {
    /// TLS and HTTP.
    Everything,
    /// HTTP only: inside TLS, or where TLS would be the application's.
    Http,
}

/// How long to wait.
#[derive(Debug, Clone, Copy)]
pub struct Patience {
    /// For the first byte. `None`: for ever.
    pub first: Option<Instant>,
    /// From the first byte until there is a verdict.
    pub rest: Duration,
}

/// How looking ended.
pub enum Outcome {
    /// With a verdict.
    Decided(Detected, Unanswered),
    /// Not a byte came before [`Patience::first`].
    Silent(Unanswered),
    /// Some came, too few to tell what they are, and then none within [`Patience::rest`].
    Slow(Unanswered),
}

/// The verdict on these bytes; `None`: more are needed. After `eof` and at [`MAX_PEEK`] there always is one.
pub fn classify(bytes: &[u8], look: Look, eof: bool) -> Option<Detected> {
    let bytes = &bytes[..bytes.len().min(MAX_PEEK)];
    let end = eof || bytes.len() == MAX_PEEK;
    if look == Look::Everything {
        match tls::parse(bytes) {
            tls::Parsed::Hello(hello) => return Some(Detected::Tls(hello)),
            tls::Parsed::NeedMore if !end => return None,
            tls::Parsed::NeedMore | tls::Parsed::NotTls => {}
        }
    }
    match http::classify(bytes, eof) {
        http::Verdict::Http1 => Some(Detected::Http1),
        http::Verdict::Http2 => Some(Detected::Http2),
        http::Verdict::NeedMore if !end => None,
        http::Verdict::Unclear => Some(Detected::Unclear),
        // A word that nothing follows asks for nothing.
        http::Verdict::NeedMore if !eof => Some(Detected::Unclear),
        http::Verdict::NeedMore | http::Verdict::Other => Some(Detected::Opaque),
    }
}

/// Reads until there is a verdict.
///
/// # Errors
/// The peer reset the connection.
pub async fn detect(stream: Unanswered, look: Look, patience: Patience) -> Result<Outcome, Failure> {
    let (prefix, mut stream) = stream.split_prefix();
    let mut seen = BytesMut::from(prefix);
    let mut eof = false;
    let mut deadline = if seen.is_empty() { patience.first } else { Some(Instant::now() + patience.rest) };
    loop {
        if (eof || !seen.is_empty())
            && let Some(detected) = classify(&seen, look, eof)
        {
            return Ok(Outcome::Decided(detected, rewind(seen, stream)));
        }
        if !until(deadline, readable(&stream)).await {
            return Ok(silent_or_slow(seen, stream));
        }
        let Some(read) = until_some(deadline, read_more(&mut stream, &mut seen)).await else {
            return Ok(silent_or_slow(seen, stream));
        };
        let first = deadline == patience.first;
        match read {
            Ok(0) => eof = true,
            Ok(_) if first => deadline = Some(Instant::now() + patience.rest),
            Ok(_) => {}
            Err(error) => {
                let kind = FailureKind::DownstreamClosed;
                return Err(Failure::downstream(Stage::Detect, kind, error.to_string()));
            }
        }
    }
}

fn rewind(seen: BytesMut, stream: Unanswered) -> Unanswered {
    Unanswered::rewound(seen.freeze(), stream)
}

fn silent_or_slow(seen: BytesMut, stream: Unanswered) -> Outcome {
    if seen.is_empty() { Outcome::Silent(stream) } else { Outcome::Slow(rewind(seen, stream)) }
}

/// What ends a connection that began and did not go on.
pub fn too_slow(stream: &Unanswered) -> Failure {
    let came = stream.peeked().len();
    let detail = format!("{came} bytes came, too few to tell what they are, and then none in time");
    Failure::downstream(Stage::Detect, FailureKind::RequestTimeout, detail)
}

/// Reads once, through the stack: what is kept is as large as what came, and nothing while nothing comes. Cancelled without
/// loss.
pub async fn read_more(stream: &mut (impl AsyncRead + Unpin), seen: &mut BytesMut) -> io::Result<usize> {
    poll_fn(|cx| {
        let mut room = [const { MaybeUninit::uninit() }; READ];
        let mut read = ReadBuf::uninit(&mut room);
        ready!(Pin::new(&mut *stream).poll_read(cx, &mut read))?;
        seen.extend_from_slice(read.filled());
        Poll::Ready(Ok(read.filled().len()))
    })
    .await
}

/// Without a buffer: an idle connection should not own one.
pub async fn readable(stream: &Unanswered) {
    if let Some(Stream::Tcp(tcp)) = stream.get() {
        // An error shows itself in the read.
        let _ = tcp.readable().await;
    }
}

async fn until(deadline: Option<Instant>, future: impl Future<Output = ()>) -> bool {
    until_some(deadline, future).await.is_some()
}

async fn until_some<T>(deadline: Option<Instant>, future: impl Future<Output = T>) -> Option<T> {
    match deadline {
        Some(deadline) => timeout_at(deadline, future).await.ok(),
        None => Some(future.await),
    }
}

#[cfg(test)]
mod tests;
