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
/// A batch of 8,192 spans with fifteen attributes each is some 155,000.
const HEAVIEST: usize = 200_000;
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

    /// In memory, an attribute being one.
    fn weight(self) -> usize {
        match self {
            Self::Span | Self::ScopeSpans | Self::ResourceSpans => 4,
            Self::Event | Self::Link => 2,
            _ => 1,
        }
    }
}

/// Whether a message is none that is too heavy. What is malformed is the decoder's to refuse.
pub fn fits(message: &[u8]) -> bool {
    let mut weight = 0;
    // As deep as it weighs at most.
    let mut open = vec![(Part::Request, message)];
    while let Some((part, rest)) = open.last_mut() {
        let Some((field, value)) = next(rest) else {
            open.pop();
            continue;
        };
        let Some((part, value)) = part.of(field).zip(value) else { continue };
        weight += part.weight();
        if weight > HEAVIEST {
            return false;
        }
        open.push((part, value));
    }
    true
}

/// The next field, and its bytes where it has a length.
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
                    return Ok(refuse(format!("an export of at most {MAX_MESSAGE} bytes: {error}")));
                }
            };
            if !fits(body.get(PREFIX..).unwrap_or_default()) {
                return Ok(refuse(
                    "the export has too many spans and attributes; send smaller batches".to_owned(),
                ));
            }
            inner.call(Request::from_parts(head, Body::new(Full::new(body)))).await
        })
    }
}

fn refuse(why: String) -> Response<Body> {
    Status::resource_exhausted(why).into_http()
}

#[cfg(test)]
mod tests {
    use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
    use opentelemetry_proto::tonic::common::v1::any_value::Value;
    use opentelemetry_proto::tonic::common::v1::{AnyValue, ArrayValue, KeyValue};
    use opentelemetry_proto::tonic::resource::v1::Resource;
    use opentelemetry_proto::tonic::trace::v1::span::{Event, Link};
    use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, ScopeSpans, Span};
    use prost::Message;

    use super::*;

    fn attribute() -> KeyValue {
        let value = Some(AnyValue { value: Some(Value::StringValue("v".into())) });
        KeyValue { key: "k".into(), value, ..KeyValue::default() }
    }

    fn export(spans: Vec<Span>, resource: Vec<KeyValue>) -> Vec<u8> {
        let scope = ScopeSpans { spans, ..ScopeSpans::default() };
        let resource = Some(Resource { attributes: resource, ..Resource::default() });
        let group = ResourceSpans { resource, scope_spans: vec![scope], ..ResourceSpans::default() };
        ExportTraceServiceRequest { resource_spans: vec![group] }.encode_to_vec()
    }

    #[test]
    fn a_large_batch_fits_and_what_would_be_larger_in_memory_does_not() {
        let span = Span { attributes: vec![attribute(); 15], trace_id: vec![1; 16], ..Span::default() };
        // Each attribute has a value, which is a part, too.
        assert!(fits(&export(vec![span; 5_000], Vec::new())));
        let empty = export(vec![Span::default(); 100_000], Vec::new());
        assert!(empty.len() < 1 << 20 && !fits(&empty), "{} bytes", empty.len());
        assert!(!fits(&export(
            vec![Span { events: vec![Event::default(); 200_000], ..Span::default() }],
            Vec::new()
        )));
        assert!(!fits(&export(
            vec![Span { links: vec![Link::default(); 200_000], ..Span::default() }],
            Vec::new()
        )));
        assert!(!fits(&export(Vec::new(), vec![KeyValue::default(); 300_000])));
        let many = ArrayValue { values: vec![AnyValue::default(); 300_000] };
        let value = Some(AnyValue { value: Some(Value::ArrayValue(many)) });
        assert!(!fits(&export(Vec::new(), vec![KeyValue { value, ..KeyValue::default() }])));
    }

    #[tokio::test]
    async fn what_is_too_heavy_is_refused_before_anybody_decodes_it() {
        let reached = |_: Request<Body>| async { Ok::<_, Infallible>(Response::new(Body::default())) };
        let send = async |message: Vec<u8>| {
            let mut body = vec![0; PREFIX];
            body.extend(message);
            let request = Request::new(Body::new(Full::from(body)));
            let answer = Weighed(tower::service_fn(reached)).call(request).await.unwrap();
            answer.headers().get("grpc-status").map(|status| status.to_str().unwrap().to_owned())
        };
        assert_eq!(send(export(vec![Span::default()], Vec::new())).await, None);
        assert_eq!(send(export(vec![Span::default(); 100_000], Vec::new())).await.as_deref(), Some("8"));
        assert_eq!(send(vec![0; MAX_MESSAGE + 1]).await.as_deref(), Some("8"));
    }

    #[test]
    fn what_is_malformed_is_left_to_the_decoder() {
        for bytes in [&[0xff; 20][..], &[0x0a, 0x7f, 1], &[0x0b, 0x0c], &[0x0a], &[]] {
            assert!(fits(bytes), "{bytes:?}");
        }
    }
}
