//! B3 propagation, single (`b3`) and multiple headers (`x-b3-…`): accepted where an app speaks no W3C.
//!
//! Hex is taken in either case here, as Zipkin's own libraries do; a 64-bit trace id is padded on the left.

use super::context::{Format, Incoming, SpanId, TraceContext, TraceId, hex, to_hex, trim};

/// The single header.
pub const B3: &str = "b3";
/// What the names of the multi-header form begin with.
pub const MULTI_PREFIX: &str = "x-b3-";
/// Trace id of the multi-header form.
pub const TRACE_ID: &str = "x-b3-traceid";
/// Span id of the multi-header form.
pub const SPAN_ID: &str = "x-b3-spanid";
/// Parent span id of the multi-header form; read by nobody, dropped when our span becomes the parent.
pub const PARENT_SPAN_ID: &str = "x-b3-parentspanid";
/// Decision of the multi-header form.
pub const SAMPLED: &str = "x-b3-sampled";
/// `1` is debug: record whatever anybody else says.
pub const FLAGS: &str = "x-b3-flags";

/// Length of the single header as we write it: trace id, span id, decision.
pub const SINGLE_LEN: usize = 32 + 1 + 16 + 2;

/// Reads a B3 context; the single header wins.
pub fn extract<'a, I>(values: impl Fn(&'static str) -> I) -> Incoming
where
    I: Iterator<Item = &'a [u8]>,
{
    let first = |name| values(name).next().map(trim);
    if let Some(value) = first(B3) {
        return parse_single(value).unwrap_or(Incoming::Invalid(Format::B3Single));
    }
    let (trace, span, sampled, flags) = (first(TRACE_ID), first(SPAN_ID), first(SAMPLED), first(FLAGS));
    parse_multi(trace, span, sampled, flags)
}

fn parse_single(value: &[u8]) -> Option<Incoming> {
    let format = Format::B3Single;
    if let [_] = value {
        return decision(value).map(|sampled| Incoming::Decision { format, sampled });
    }
    let mut parts = value.split(|byte| *byte == b'-');
    let (trace, span) = (parts.next()?, parts.next()?);
    let sampled = match parts.next() {
        Some(state) => Some(decision(state)?),
        None => None,
    };
    if let Some(parent) = parts.next() {
        lower_hex::<8>(parent)?;
    }
    if parts.next().is_some() {
        return None;
    }
    Some(context(format, trace_id(trace)?, span_id(span)?, sampled))
}

fn parse_multi(
    trace: Option<&[u8]>,
    span: Option<&[u8]>,
    sampled: Option<&[u8]>,
    flags: Option<&[u8]>,
) -> Incoming {
    let format = Format::B3Multi;
    let invalid = Incoming::Invalid(format);
    let sampled = match (flags, sampled) {
        (Some(b"1"), _) => Some(true),
        (_, None) => None,
        (_, Some(value)) => match decision(value) {
            Some(sampled) => Some(sampled),
            None => return invalid,
        },
    };
    match (trace, span) {
        (None, None) => sampled.map_or(Incoming::Absent, |sampled| Incoming::Decision { format, sampled }),
        (Some(trace), Some(span)) => match (trace_id(trace), span_id(span)) {
            (Some(trace), Some(span)) => context(format, trace, span, sampled),
            _ => invalid,
        },
        _ => invalid,
    }
}

fn context(format: Format, trace_id: TraceId, parent: SpanId, sampled: Option<bool>) -> Incoming {
    let flags = u8::from(sampled == Some(true));
    Incoming::Context { format, context: TraceContext { trace_id, parent, flags }, sampled }
}

fn decision(state: &[u8]) -> Option<bool> {
    match state {
        b"1" | b"d" | b"true" => Some(true),
        b"0" | b"false" => Some(false),
        _ => None,
    }
}

fn trace_id(text: &[u8]) -> Option<TraceId> {
    let id = match text.len() {
        16 => {
            let mut id = [0; 16];
            id[8..].copy_from_slice(&lower_hex::<8>(text)?);
            id
        }
        _ => lower_hex::<16>(text)?,
    };
    (id != [0; 16]).then_some(id)
}

fn span_id(text: &[u8]) -> Option<SpanId> {
    lower_hex::<8>(text).filter(|id| *id != [0; 8])
}

fn lower_hex<const N: usize>(text: &[u8]) -> Option<[u8; N]> {
    let mut lower = [0; 32];
    let lower = lower.get_mut(..text.len())?;
    for (to, from) in lower.iter_mut().zip(text) {
        *to = from.to_ascii_lowercase();
    }
    hex::<N>(lower)
}

/// Formats the value of the single header. The multi-header form has the same parts: see [`hex_trace_id`] and
/// [`hex_span_id`].
pub fn format_single(context: &TraceContext) -> [u8; SINGLE_LEN] {
    let mut out = [b'-'; SINGLE_LEN];
    to_hex(&context.trace_id, &mut out[..32]);
    to_hex(&context.parent, &mut out[33..49]);
    out[50] = if context.sampled() { b'1' } else { b'0' };
    out
}

/// A trace id as 32 hex digits.
pub fn hex_trace_id(id: &TraceId) -> [u8; 32] {
    let mut out = [0; 32];
    to_hex(id, &mut out);
    out
}

/// A span id as 16 hex digits.
pub fn hex_span_id(id: &SpanId) -> [u8; 16] {
    let mut out = [0; 16];
    to_hex(id, &mut out);
    out
}
