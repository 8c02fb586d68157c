//! What an OTLP message will weigh, before it is decoded: an empty span is two bytes on the wire and hundreds in memory.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};

use http::{Request, Response};
use http_body_util::{BodyExt, Full, Limited};
use tonic::Status;
use tonic::body::Body;
use tonic::server::NamedService;
use tower::Service;

/// A batch of an SDK has some hundred KiB, one of a sidecar at most 1 MiB; gRPC's usual limit.
pub const MAX_MESSAGE: usize = 4 << 20;
/// A batch of 8,192 spans with fifteen attributes each, which an OpenTelemetry Collector makes where nobody tells it otherwise, is 278,528,
/// and it goes over that by what came last. One is some 100 bytes of memory at most, and what grows has twice its room.
pub const HEAVIEST: usize = 320_000;
/// Before the message (gRPC over HTTP/2, Length-Prefixed-Message): a flag, and its length.
const PREFIX: usize = 5;

/// A message of OTLP, as far as its parts are messages.
#[derive(Clone, Copy)]
enum Part {
    Request,
    ResourceSpans,
    Resource,
    ScopeSpans,
    Scope,
    Span,
    Event,
    Link,
    KeyValue,
    AnyValue,
    ArrayValue,
    KeyValueList,
    EntityRef,
    /// One of many.
    Text,
}

impl Part {
    /// What a field of it is.
    fn of(self, field: u64) -> Option<Self> {
        Some(match (self, field) {
            (Self::Request, 1) => Self::ResourceSpans,
            (Self::ResourceSpans, 1) => Self::Resource,
            (Self::ResourceSpans, 2) => Self::ScopeSpans,
            (Self::ScopeSpans, 1) => Self::Scope,
            (Self::ScopeSpans, 2) => Self::Span,
            (Self::Span, 11) => Self::Event,
            (Self::Span, 13) => Self::Link,
            (Self::Resource, 1) | (Self::Scope | Self::Event, 3) | (Self::Span, 9) | (Self::Link, 4) => {
                Self::KeyValue
            }
            (Self::KeyValue, 2) | (Self::ArrayValue, 1) => Self::AnyValue,
            (Self::AnyValue, 5) => Self::ArrayValue,
            (Self::AnyValue, 6) => Self::KeyValueList,
            (Self::KeyValueList, 1) => Self::KeyValue,
            (Self::Resource, 3) => Self::EntityRef,
            (Self::EntityRef, 3 | 4) => Self::Text,
            _ => return None,
        })
    }

    /// In memory; that of an attribute and its value are two.
    fn weight(self) -> usize {
        match self {
            Self::Span | Self::ScopeSpans | Self::ResourceSpans => 4,
            Self::Event | Self::Link | Self::EntityRef => 2,
            _ => 1,
        }
    }
}

/// Why a message is not given to the decoder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refused {
    /// It would be too much in memory.
    Heavy,
    /// It cannot be read to its end. A decoder gives up late, when it holds all that came before.
    Unreadable,
}

/// Weighs a message to its last byte.
///
/// # Errors
/// Why the decoder is not to have it.
pub fn weigh(message: &[u8]) -> Result<(), Refused> {
    let mut weight = 0;
    // As deep as it weighs at most.
    let mut open = vec![(Part::Request, message)];
    while let Some((part, rest)) = open.last_mut() {
        if rest.is_empty() {
            open.pop();
            continue;
        }
        let (field, value) = next(rest).ok_or(Refused::Unreadable)?;
        let Some((part, value)) = part.of(field).zip(value) else { continue };
        weight += part.weight();
        if weight > HEAVIEST {
            return Err(Refused::Heavy);
        }
        if !matches!(part, Part::Text) {
            open.push((part, value));
        }
    }
    Ok(())
}

/// Weighs what gRPC carries it in. More than one message is none that OTLP sends, and would be decoded before somebody noticed.
fn weigh_framed(body: &[u8]) -> Result<(), Refused> {
    let Some((&[flag, a, b, c, d], message)) = body.split_first_chunk::<PREFIX>() else {
        return Err(Refused::Unreadable);
    };
    // Compressed: nobody unpacks it here, and the service says so.
    if flag != 0 {
        return Ok(());
    }
    if u32::from_be_bytes([a, b, c, d]) as usize != message.len() {
        return Err(Refused::Unreadable);
    }
    weigh(message)
}

/// The next field, and its bytes where it has a length. Groups are no fields of anything here: what a decoder skips is not read either.
fn next<'m>(rest: &mut &'m [u8]) -> Option<(u64, Option<&'m [u8]>)> {
    let key = varint(rest)?;
    let value = match key & 7 {
        0 => varint(rest).map(|_| None)?,
        1 => take(rest, 8).map(|_| None)?,
        2 => {
            let length = usize::try_from(varint(rest)?).ok()?;
            Some(take(rest, length)?)
        }
        5 => take(rest, 4).map(|_| None)?,
        _ => return None,
    };
    Some((key >> 3, value))
}

fn take<'m>(rest: &mut &'m [u8], count: usize) -> Option<&'m [u8]> {
    let (taken, left) = rest.split_at_checked(count)?;
    *rest = left;
    Some(taken)
}

fn varint(rest: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let (&byte, left) = rest.split_first()?;
        *rest = left;
        value |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return Some(value);
        }
    }
    None
}

/// Weighs what comes before it is given on.
#[derive(Debug, Clone)]
pub struct Weighed<S>(pub S);

impl<S: NamedService> NamedService for Weighed<S> {
    const NAME: &'static str = S::NAME;
}

type Answer = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

impl<S> Service<Request<Body>> for Weighed<S>
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible> + Clone + Send + 'static,
    S::Future: Send,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Answer;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Body>) -> Answer {
        // The clone takes the place of the one that is ready.
        let clone = self.0.clone();
        let mut inner = std::mem::replace(&mut self.0, clone);
        Box::pin(async move {
            let (head, body) = request.into_parts();
            let body = match Limited::new(body, MAX_MESSAGE + PREFIX).collect().await {
                Ok(body) => body.to_bytes(),
                Err(error) => {
                    let why = format!("an export of at most {MAX_MESSAGE} bytes: {error}");
                    return Ok(Status::resource_exhausted(why).into_http());
                }
            };
            let why = match weigh_framed(&body) {
                Ok(()) => return inner.call(Request::from_parts(head, Body::new(Full::new(body)))).await,
                Err(Refused::Heavy) => Status::resource_exhausted(
                    "the export has too many spans and attributes; send smaller batches",
                ),
                Err(Refused::Unreadable) => {
                    Status::invalid_argument("the export is not one whole message of OTLP that can be read")
                }
            };
            Ok(why.into_http())
        })
    }
}

#[cfg(test)]
mod tests;
