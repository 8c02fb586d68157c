//! The record of one hop, built only for requests that are recorded.
//!
//! Sizes are bounded where text enters: what a peer sent as path or user agent must not turn the export queue into
//! a memory leak.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use super::context::{SpanId, TraceContext, TraceId, new_span_id};

/// Longest text of an attribute, in bytes; longer text is cut at a character.
pub const MAX_TEXT: usize = 1024;

/// Attributes per span; more are counted, not kept.
pub const MAX_ATTRIBUTES: usize = 64;

/// Events per span; more are not kept.
pub const MAX_EVENTS: usize = 8;

/// Which side of a hop a span describes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SpanKind {
    /// A request received.
    Server,
    /// A request, or one attempt of it, sent.
    Client,
    /// Something in between.
    Internal,
}

/// How the operation ended.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum SpanStatus {
    /// Nothing to say; the usual case.
    #[default]
    Unset,
    /// Explicitly successful.
    Ok,
    /// Failed, with a short reason.
    Error(Cow<'static, str>),
}

/// An attribute value.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// Text that is static or owned.
    Text(Cow<'static, str>),
    /// Text that many spans share, such as a cluster name.
    Shared(Arc<str>),
    /// A whole number.
    Int(i64),
    /// A floating-point number.
    Float(f64),
    /// A truth value.
    Bool(bool),
}

impl From<&'static str> for Value {
    fn from(text: &'static str) -> Self {
        Self::Text(Cow::Borrowed(text))
    }
}

impl From<String> for Value {
    fn from(text: String) -> Self {
        if text.len() > MAX_TEXT { Self::copied(&text) } else { Self::Text(Cow::Owned(text)) }
    }
}

impl From<Arc<str>> for Value {
    fn from(text: Arc<str>) -> Self {
        Self::Shared(text)
    }
}

impl From<i64> for Value {
    fn from(number: i64) -> Self {
        Self::Int(number)
    }
}

impl From<u16> for Value {
    fn from(number: u16) -> Self {
        Self::Int(i64::from(number))
    }
}

impl From<u32> for Value {
    fn from(number: u32) -> Self {
        Self::Int(i64::from(number))
    }
}

impl From<f64> for Value {
    fn from(number: f64) -> Self {
        Self::Float(number)
    }
}

impl From<bool> for Value {
    fn from(truth: bool) -> Self {
        Self::Bool(truth)
    }
}

impl Value {
    /// Copies text, cut to [`MAX_TEXT`] before it is allocated.
    pub fn copied(text: &str) -> Self {
        let end = text.floor_char_boundary(MAX_TEXT);
        Self::Text(Cow::Owned(text[..end].to_owned()))
    }

    fn weight(&self) -> usize {
        match self {
            Self::Text(text) => text.len(),
            Self::Shared(text) => text.len(),
            Self::Int(_) | Self::Float(_) | Self::Bool(_) => 8,
        }
    }
}

/// One finished (or still open) span.
#[derive(Clone, Debug, PartialEq)]
pub struct SpanRecord {
    /// The trace.
    pub trace_id: TraceId,
    /// This span.
    pub span_id: SpanId,
    /// The span that this is a child of; `None` for a root.
    pub parent: Option<SpanId>,
    /// Whether the parent was recorded by another process.
    pub parent_is_remote: bool,
    /// `trace-flags` of the context.
    pub flags: u8,
    /// `tracestate` as it came, if it came.
    pub tracestate: Option<Box<str>>,
    /// Side of the hop.
    pub kind: SpanKind,
    /// Low-cardinality name, e.g. `GET /reviews/*`.
    pub name: Cow<'static, str>,
    /// Begin, nanoseconds since the Unix epoch.
    pub start: u64,
    /// End, nanoseconds since the Unix epoch.
    pub end: u64,
    /// Outcome.
    pub status: SpanStatus,
    /// Attributes in the order they were set.
    pub attributes: Vec<(Cow<'static, str>, Value)>,
    /// Attributes beyond [`MAX_ATTRIBUTES`].
    pub dropped_attributes: u32,
    /// What happened meanwhile; most spans have nothing.
    pub events: Vec<SpanEvent>,
}

/// Something that happened during a span.
#[derive(Clone, Debug, PartialEq)]
pub struct SpanEvent {
    /// What, in words of low cardinality.
    pub name: &'static str,
    /// When, nanoseconds since the Unix epoch.
    pub time: u64,
    /// What is known of it.
    pub attributes: Vec<(&'static str, Value)>,
}

impl SpanRecord {
    /// A span that begins now. `context` gives trace and flags; `parent` is the span above, remote for a server span.
    pub fn begin(
        context: &TraceContext,
        parent: Option<SpanId>,
        kind: SpanKind,
        name: impl Into<Cow<'static, str>>,
    ) -> Self {
        let start = unix_nanos();
        Self {
            trace_id: context.trace_id,
            span_id: new_span_id(),
            parent,
            parent_is_remote: parent.is_some() && kind == SpanKind::Server,
            flags: context.flags,
            tracestate: None,
            kind,
            name: name.into(),
            start,
            end: start,
            status: SpanStatus::Unset,
            attributes: Vec::with_capacity(16),
            dropped_attributes: 0,
            events: Vec::new(),
        }
    }

    /// The context for whatever is called under this span.
    pub fn context(&self) -> TraceContext {
        TraceContext { trace_id: self.trace_id, parent: self.span_id, flags: self.flags }
    }

    /// Adds an attribute.
    pub fn set(&mut self, key: impl Into<Cow<'static, str>>, value: impl Into<Value>) {
        if self.attributes.len() < MAX_ATTRIBUTES {
            self.attributes.push((key.into(), value.into()));
        } else {
            self.dropped_attributes += 1;
        }
    }

    /// Adds a text attribute whose text is copied, and cut where it is long.
    pub fn set_text(&mut self, key: impl Into<Cow<'static, str>>, text: &str) {
        self.set(key, Value::copied(text));
    }

    /// Adds what happened; what is beyond [`MAX_EVENTS`] is lost.
    pub fn add_event(&mut self, event: SpanEvent) {
        if self.events.len() < MAX_EVENTS {
            self.events.push(event);
        }
    }

    /// Ends the span now.
    pub fn finish(&mut self) {
        // The wall clock may have been set back since: a span never ends before it began.
        self.end = unix_nanos().max(self.start);
    }

    /// About how many bytes this record holds, for the bounds of queue and batch.
    pub fn weight(&self) -> usize {
        let attributes: usize =
            self.attributes.iter().map(|(key, value)| key.len() + value.weight() + 16).sum();
        let state = self.tracestate.as_ref().map_or(0, |state| state.len());
        128 + self.name.len() + state + attributes + self.events.iter().map(SpanEvent::weight).sum::<usize>()
    }
}

impl SpanEvent {
    fn weight(&self) -> usize {
        let attributes = self.attributes.iter().map(|(key, value)| key.len() + value.weight() + 16);
        48 + self.name.len() + attributes.sum::<usize>()
    }
}

/// Nanoseconds since the Unix epoch.
pub fn unix_nanos() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn child_context_carries_trace_flags_and_own_span_id() {
        let incoming = TraceContext::root(true);
        let server = SpanRecord::begin(&incoming, Some(incoming.parent), SpanKind::Server, "GET /");
        assert!(server.parent_is_remote);
        let client = SpanRecord::begin(&incoming, Some(server.span_id), SpanKind::Client, "GET /");
        assert!(!client.parent_is_remote);
        let onward = client.context();
        assert_eq!((onward.trace_id, onward.flags), (incoming.trace_id, incoming.flags));
        assert_eq!(onward.parent, client.span_id);
        assert_ne!(client.span_id, server.span_id);
    }

    #[test]
    fn long_text_and_many_attributes_are_bounded() {
        let mut span = SpanRecord::begin(&TraceContext::root(true), None, SpanKind::Client, "x");
        span.set_text("url.path", &"ü".repeat(5000));
        span.set("owned", "y".repeat(5000));
        for (_, value) in &span.attributes {
            let Value::Text(text) = value else { panic!() };
            assert!(text.len() <= MAX_TEXT && text.len() >= MAX_TEXT - 1);
        }
        for number in 0..100_i64 {
            span.set("n", number);
        }
        assert_eq!(span.attributes.len(), MAX_ATTRIBUTES);
        assert_eq!(span.dropped_attributes, 38);
        assert!(span.weight() < 5000);
    }

    #[test]
    fn events_are_bounded_and_weigh_something() {
        let mut span = SpanRecord::begin(&TraceContext::root(true), None, SpanKind::Client, "x");
        let before = span.weight();
        for time in 0..100 {
            let attributes = vec![("why", Value::copied(&"y".repeat(100)))];
            span.add_event(SpanEvent { name: "it happened", time, attributes });
        }
        assert_eq!(span.events.len(), MAX_EVENTS);
        assert!(span.weight() >= before + MAX_EVENTS * 100);
    }

    #[test]
    fn span_never_ends_before_it_began() {
        let mut span = SpanRecord::begin(&TraceContext::root(true), None, SpanKind::Client, "x");
        span.start += 3_600_000_000_000;
        span.finish();
        assert_eq!(span.end, span.start);
    }
}
