//! Bodies of fuzz targets, as plain functions: stable tests replay seeded mutations, the fuzzer does the long runs.

use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue};
use opentelemetry_proto::tonic::resource::v1::Resource;
use opentelemetry_proto::tonic::trace::v1::Span;
use prost::Message;

use crate::traces::weigh;

/// An OTLP message of arbitrary bytes. Never panics.
///
/// # Panics
/// When what was let through is more in memory than was weighed: an error there is a bug of ours.
pub fn fuzz_otlp(data: &[u8]) {
    if weigh::weigh(data).is_err() {
        return;
    }
    let Ok(message) = ExportTraceServiceRequest::decode(data) else { return };
    let held = held(&message);
    assert!(held <= weigh::HEAVIEST, "{held} is held of what was let through");
}

/// What a message holds in memory, in weights: of what occurs twice where there is room for one, the decoder holds one.
fn held(message: &ExportTraceServiceRequest) -> usize {
    let groups = message.resource_spans.iter().map(|group| {
        let scopes = group.scope_spans.iter().map(|scope| {
            let own = scope.scope.as_ref().map_or(0, |scope| 1 + attributes(&scope.attributes));
            4 + own + scope.spans.iter().map(span).sum::<usize>()
        });
        4 + group.resource.as_ref().map_or(0, resource) + scopes.sum::<usize>()
    });
    groups.sum()
}

fn resource(resource: &Resource) -> usize {
    let texts = |one: &opentelemetry_proto::tonic::common::v1::EntityRef| {
        one.id_keys.len() + one.description_keys.len()
    };
    1 + attributes(&resource.attributes)
        + resource.entity_refs.iter().map(|one| 2 + texts(one)).sum::<usize>()
}

fn span(span: &Span) -> usize {
    let events = span.events.iter().map(|event| 2 + attributes(&event.attributes));
    let links = span.links.iter().map(|link| 2 + attributes(&link.attributes));
    4 + attributes(&span.attributes) + events.chain(links).sum::<usize>()
}

fn attributes(all: &[KeyValue]) -> usize {
    all.iter().map(|one| 1 + one.value.as_ref().map_or(0, value)).sum()
}

fn value(of: &AnyValue) -> usize {
    1 + match &of.value {
        Some(Value::ArrayValue(all)) => 1 + all.values.iter().map(value).sum::<usize>(),
        Some(Value::KvlistValue(all)) => 1 + attributes(&all.values),
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use opentelemetry_proto::tonic::common::v1::{ArrayValue, KeyValueList};
    use opentelemetry_proto::tonic::trace::v1::span::{Event, Link};
    use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, ScopeSpans};

    use super::*;

    fn sample(random: &mut fastrand::Rng, depth: u32) -> AnyValue {
        let value = match random.u8(..if depth > 3 { 2 } else { 4 }) {
            0 => Value::StringValue("text".repeat(random.usize(..4))),
            1 => Value::IntValue(random.i64(..)),
            2 => Value::ArrayValue(ArrayValue {
                values: (0..random.usize(..4)).map(|_| sample(random, depth + 1)).collect(),
            }),
            _ => Value::KvlistValue(KeyValueList { values: pairs(random, depth + 1) }),
        };
        AnyValue { value: Some(value) }
    }

    fn pairs(random: &mut fastrand::Rng, depth: u32) -> Vec<KeyValue> {
        let count = random.usize(1..4);
        let mut pair =
            || KeyValue { key: "k".into(), value: Some(sample(random, depth)), ..KeyValue::default() };
        (0..count).map(|_| pair()).collect()
    }

    fn message(random: &mut fastrand::Rng) -> Vec<u8> {
        let events = vec![Event { attributes: pairs(random, 0), ..Event::default() }];
        let links = vec![Link { attributes: pairs(random, 0), ..Link::default() }];
        let span =
            Span { attributes: pairs(random, 0), events, links, trace_id: vec![1; 16], ..Span::default() };
        let scope = ScopeSpans { spans: vec![span; random.usize(1..4)], ..ScopeSpans::default() };
        let resource = Some(Resource { attributes: pairs(random, 0), ..Resource::default() });
        let group = ResourceSpans { resource, scope_spans: vec![scope], ..ResourceSpans::default() };
        ExportTraceServiceRequest { resource_spans: vec![group] }.encode_to_vec()
    }

    /// Good messages, damaged in a way that is the same in every run: what a fuzzer would try first.
    #[test]
    fn damaged_messages_never_panic_and_what_is_let_through_is_what_was_weighed() {
        let mut random = fastrand::Rng::with_seed(7);
        let mut passed = 0;
        for _ in 0..4000 {
            let mut bytes = message(&mut random);
            for _ in 0..random.usize(..3) {
                let at = random.usize(..bytes.len());
                match random.u8(..4) {
                    0 => bytes[at] ^= 1 << random.u8(..8),
                    1 => bytes.truncate(at.max(1)),
                    2 => bytes.insert(at, random.u8(..)),
                    _ => drop(bytes.remove(at)),
                }
                if bytes.is_empty() {
                    break;
                }
            }
            passed += usize::from(weigh::weigh(&bytes).is_ok());
            fuzz_otlp(&bytes);
        }
        assert!((1000..3999).contains(&passed), "{passed} of them were let through");
    }

    #[test]
    fn what_a_message_holds_is_counted_as_it_is_weighed() {
        let value =
            AnyValue { value: Some(Value::ArrayValue(ArrayValue { values: vec![AnyValue::default(); 3] })) };
        let pair = KeyValue { value: Some(value), ..KeyValue::default() };
        let span = Span { attributes: vec![pair], ..Span::default() };
        let scope = ScopeSpans { spans: vec![span], ..ScopeSpans::default() };
        let group = ResourceSpans { scope_spans: vec![scope], ..ResourceSpans::default() };
        // Group, scope, span; the attribute, its value, the list, and three in it.
        assert_eq!(
            held(&ExportTraceServiceRequest { resource_spans: vec![group] }),
            4 + 4 + 4 + 1 + 1 + 1 + 3
        );
    }
}
