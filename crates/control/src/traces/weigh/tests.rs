use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::common::v1::{
    AnyValue, ArrayValue, EntityRef, InstrumentationScope, KeyValue, KeyValueList,
};
use opentelemetry_proto::tonic::resource::v1::Resource;
use opentelemetry_proto::tonic::trace::v1::span::{Event, Link};
use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, ScopeSpans, Span};
use prost::Message;

use super::super::TraceStore;
use super::super::receive::Receiver;
use super::*;

fn attribute() -> KeyValue {
    let value = Some(AnyValue { value: Some(Value::StringValue("v".into())) });
    KeyValue { key: "k".into(), value, ..KeyValue::default() }
}

fn export(spans: Vec<Span>, resource: Resource) -> Vec<u8> {
    let scope = ScopeSpans { spans, ..ScopeSpans::default() };
    let group =
        ResourceSpans { resource: Some(resource), scope_spans: vec![scope], ..ResourceSpans::default() };
    ExportTraceServiceRequest { resource_spans: vec![group] }.encode_to_vec()
}

fn spans(spans: Vec<Span>) -> Vec<u8> {
    export(spans, Resource::default())
}

fn resource(attributes: Vec<KeyValue>) -> Vec<u8> {
    export(Vec::new(), Resource { attributes, ..Resource::default() })
}

/// A field with a length before it.
fn field(number: u8, value: &[u8]) -> Vec<u8> {
    let mut all = vec![number << 3 | 2];
    prost::encoding::encode_varint(value.len() as u64, &mut all);
    all.extend(value);
    all
}

/// What a Collector sends that nobody has tuned, and some more.
#[test]
fn a_large_batch_fits_and_what_would_be_larger_in_memory_does_not() {
    let span = Span { attributes: vec![attribute(); 15], trace_id: vec![1; 16], ..Span::default() };
    let batch = spans(vec![span; 8_192 + 512]);
    assert!(batch.len() < MAX_MESSAGE, "{}", batch.len());
    assert_eq!(weigh(&batch), Ok(()));
    let empty = spans(vec![Span::default(); 100_000]);
    assert!(empty.len() < 1 << 20, "{} bytes", empty.len());
    let many = ArrayValue { values: vec![AnyValue::default(); 400_000] };
    let value = Some(AnyValue { value: Some(Value::ArrayValue(many)) });
    let entities = vec![EntityRef::default(); 200_000];
    for heavy in [
        empty,
        spans(vec![Span { events: vec![Event::default(); 200_000], ..Span::default() }]),
        spans(vec![Span { links: vec![Link::default(); 200_000], ..Span::default() }]),
        resource(vec![KeyValue::default(); 400_000]),
        resource(vec![KeyValue { value, ..KeyValue::default() }]),
        export(Vec::new(), Resource { entity_refs: entities, ..Resource::default() }),
    ] {
        assert_eq!(weigh(&heavy), Err(Refused::Heavy));
    }
}

/// What [`HEAVIEST`] says of memory.
#[test]
fn no_part_is_larger_than_its_weight() {
    for (part, size) in [
        (Part::ResourceSpans, size_of::<ResourceSpans>()),
        (Part::ScopeSpans, size_of::<ScopeSpans>()),
        (Part::Span, size_of::<Span>()),
        (Part::Event, size_of::<Event>()),
        (Part::Link, size_of::<Link>()),
        (Part::KeyValue, size_of::<KeyValue>()),
        (Part::AnyValue, size_of::<AnyValue>()),
        (Part::EntityRef, size_of::<EntityRef>()),
        (Part::Text, size_of::<String>()),
    ] {
        assert!(size <= 100 * part.weight(), "{size}");
    }
}

/// Whatever OTLP has of messages is weighed: what the names of fields are is not told by any compiler.
#[test]
fn every_part_is_found() {
    let list = KeyValueList { values: vec![attribute()] };
    let values = vec![AnyValue { value: Some(Value::KvlistValue(list)) }];
    let value = Some(AnyValue { value: Some(Value::ArrayValue(ArrayValue { values })) });
    let deep = vec![KeyValue { value, ..KeyValue::default() }];
    let event = Event { attributes: deep.clone(), ..Event::default() };
    let link = Link { attributes: deep.clone(), ..Link::default() };
    // Texts are no messages: these bytes are no fields.
    let entity = EntityRef { id_keys: vec!["\u{b}\u{7f}".into()], ..EntityRef::default() };
    let span = Span { attributes: deep.clone(), events: vec![event], links: vec![link], ..Span::default() };
    let scope = InstrumentationScope { attributes: deep.clone(), ..InstrumentationScope::default() };
    let scope = ScopeSpans { scope: Some(scope), spans: vec![span], ..ScopeSpans::default() };
    let resource = Resource { attributes: deep, entity_refs: vec![entity], ..Resource::default() };
    let group =
        ResourceSpans { resource: Some(resource), scope_spans: vec![scope], ..ResourceSpans::default() };
    let whole = ExportTraceServiceRequest { resource_spans: vec![group] }.encode_to_vec();
    assert_eq!(weigh(&whole), Ok(()));
}

/// A decoder takes what comes behind a group, and all that a lying length leads it over, before it finds fault with anything.
#[test]
fn what_cannot_be_read_is_refused() {
    let empty = spans(vec![Span::default(); 100_000]);
    let behind = |what: &[u8]| [what, &empty].concat();
    // Fields that nobody knows, as the next version of OTLP may have.
    assert_eq!(weigh(&field(15, b"\xff\xff")), Ok(()));
    assert_eq!(weigh(&behind(&field(15, b"\xff\xff"))), Err(Refused::Heavy));
    // A group of its own, one in a part, one that never began.
    let group = [0x7b, 0x7c];
    for bytes in [behind(&group), behind(&field(1, &group)), behind(&[0x7c]), group.to_vec()] {
        assert_eq!(weigh(&bytes), Err(Refused::Unreadable));
    }
    // A part that says to be longer than what it is in.
    let lying = field(1, &[0x12, 0xff, 0xff, 0xff, 0x01]);
    assert_eq!(weigh(&behind(&lying)), Err(Refused::Unreadable));
    for bytes in [&[0xff; 20][..], &[0x0a, 0x7f, 1], &[0x0a], &[0x09, 1], &[0x0f]] {
        assert_eq!(weigh(bytes), Err(Refused::Unreadable), "{bytes:?}");
    }
    assert_eq!(weigh(&[]), Ok(()));
}

fn framed(message: &[u8]) -> Vec<u8> {
    let length = u32::try_from(message.len()).unwrap();
    [&[0][..], &length.to_be_bytes(), message].concat()
}

async fn status<S>(service: S, body: Vec<u8>) -> Option<String>
where
    Weighed<S>: Service<Request<Body>, Response = Response<Body>, Error = Infallible>,
{
    let request = Request::builder().uri("/opentelemetry.proto.collector.trace.v1.TraceService/Export");
    let request = request.header("content-type", "application/grpc").body(Body::new(Full::from(body)));
    let answer = Weighed(service).call(request.unwrap()).await.unwrap();
    answer.headers().get("grpc-status").map(|status| status.to_str().unwrap().to_owned())
}

#[tokio::test]
async fn what_is_too_heavy_or_unreadable_is_refused_before_anybody_decodes_it() {
    let reached = |_: Request<Body>| async { Ok::<_, Infallible>(Response::new(Body::default())) };
    let send = async |body: Vec<u8>| status(tower::service_fn(reached), body).await;
    let one = framed(&spans(vec![Span::default()]));
    assert_eq!(send(one.clone()).await, None);
    let heavy = framed(&spans(vec![Span::default(); 100_000]));
    assert_eq!(send(heavy.clone()).await.as_deref(), Some("8"));
    assert_eq!(send(vec![0; MAX_MESSAGE + PREFIX + 1]).await.as_deref(), Some("8"));
    // A second message, a message that ends too soon, none at all.
    for bytes in [[one.clone(), heavy].concat(), one[..one.len() - 1].to_vec(), vec![0; 4], Vec::new()] {
        assert_eq!(send(bytes).await.as_deref(), Some("3"));
    }
}

/// Nobody has weighed it.
#[tokio::test]
async fn what_says_to_be_compressed_is_decoded_by_nobody() {
    let Weighed(service) = Receiver::server(TraceStore::new(10, 1 << 20));
    assert_eq!(status(service.clone(), framed(&spans(vec![Span::default()]))).await, None);
    let mut compressed = framed(&spans(vec![Span::default()]));
    compressed[0] = 1;
    assert_eq!(status(service, compressed).await.as_deref(), Some("13"));
}
