//! The built-in trace store: OTLP in, Jaeger's query API out, bounded memory in between.
//!
//! For demos, tests and small meshes; whoever needs retention sends the same spans to a real Jaeger. Whole traces are
//! forgotten, the oldest first, so that what is shown is never half a trace by our doing.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::Arc;

use parking_lot::Mutex;

pub mod query;
pub mod receive;

/// Spans of one trace; beyond that the trace is a loop, and must not push out all others.
const MOST_PER_TRACE: usize = 2_000;

/// A trace id.
pub type TraceId = [u8; 16];
/// A span id.
pub type SpanId = [u8; 8];

/// One span as it is kept.
#[derive(Debug, Clone, PartialEq)]
pub struct Span {
    /// Its trace.
    pub trace: TraceId,
    /// Itself.
    pub id: SpanId,
    /// What caused it.
    pub parent: Option<SpanId>,
    /// What it did.
    pub name: String,
    /// Nanoseconds since 1970.
    pub start: u64,
    /// Nanoseconds since 1970.
    pub end: u64,
    /// Attributes, kind and status as Jaeger's tags.
    pub tags: Vec<(String, Tag)>,
    /// Events: when, and what.
    pub logs: Vec<(u64, Vec<(String, Tag)>)>,
    /// Who did it; shared by the spans of one export.
    pub process: Arc<Process>,
}

/// Who made spans.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Process {
    /// `service.name`.
    pub service: String,
    /// The other resource attributes.
    pub tags: Vec<(String, Tag)>,
}

/// A value of a tag.
#[derive(Debug, Clone, PartialEq)]
pub enum Tag {
    /// Text; lists, maps and bytes as JSON text.
    Text(String),
    /// A flag.
    Bool(bool),
    /// A whole number.
    Int(i64),
    /// Another number.
    Float(f64),
}

impl Tag {
    /// As text, for comparison with a query.
    pub fn text(&self) -> String {
        match self {
            Self::Text(text) => text.clone(),
            Self::Bool(value) => value.to_string(),
            Self::Int(value) => value.to_string(),
            Self::Float(value) => value.to_string(),
        }
    }
}

/// The store; cheap to clone.
#[derive(Clone)]
pub struct TraceStore {
    shared: Arc<Mutex<Ring>>,
}

struct Ring {
    capacity: usize,
    spans: usize,
    traces: HashMap<TraceId, Vec<Arc<Span>>>,
    /// By first arrival.
    order: VecDeque<TraceId>,
    received: u64,
    dropped: u64,
}

/// What the store has and had.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Counts {
    /// Spans that are kept.
    pub kept: usize,
    /// Spans that ever arrived.
    pub received: u64,
    /// Spans that were pushed out or refused.
    pub dropped: u64,
}

/// Which traces are wanted.
#[derive(Debug, Clone, Default)]
pub struct Filter {
    /// A span of this service.
    pub service: Option<String>,
    /// With this name.
    pub operation: Option<String>,
    /// Having these tags.
    pub tags: Vec<(String, String)>,
    /// Begun not before, nanoseconds since 1970.
    pub from: u64,
    /// Begun not after; 0 is no bound.
    pub until: u64,
    /// At least this long, nanoseconds.
    pub shortest: u64,
    /// At most this long; 0 is no bound.
    pub longest: u64,
    /// At most so many, the latest.
    pub limit: usize,
}

impl TraceStore {
    /// Keeps at most `capacity` spans.
    pub fn new(capacity: usize) -> Self {
        let ring = Ring {
            capacity,
            spans: 0,
            traces: HashMap::new(),
            order: VecDeque::new(),
            received: 0,
            dropped: 0,
        };
        Self { shared: Arc::new(Mutex::new(ring)) }
    }

    /// Adds spans.
    pub fn add(&self, spans: Vec<Span>) {
        let mut ring = self.shared.lock();
        spans.into_iter().for_each(|span| ring.add(span));
    }

    /// The spans of a trace, by start.
    pub fn trace(&self, id: &TraceId) -> Option<Vec<Arc<Span>>> {
        self.shared.lock().traces.get(id).map(|spans| by_start(spans.clone()))
    }

    /// Names of services.
    pub fn services(&self) -> BTreeSet<String> {
        self.shared.lock().traces.values().flatten().map(|span| span.process.service.clone()).collect()
    }

    /// Names of a service's spans with their kinds.
    pub fn operations(&self, service: &str) -> BTreeSet<(String, String)> {
        let ring = self.shared.lock();
        let of = ring.traces.values().flatten().filter(|span| span.process.service == service);
        of.map(|span| (span.name.clone(), span.kind())).collect()
    }

    /// The traces that a filter takes, the latest first.
    pub fn find(&self, filter: &Filter) -> Vec<Vec<Arc<Span>>> {
        let ring = self.shared.lock();
        let mut found = BTreeMap::new();
        for (id, spans) in &ring.traces {
            if spans.iter().any(|span| filter.takes(span)) {
                let start = spans.iter().map(|span| span.start).min().unwrap_or_default();
                found.insert((start, *id), spans);
            }
        }
        found.into_values().rev().take(filter.limit).map(|spans| by_start(spans.clone())).collect()
    }

    /// What it has and had.
    pub fn counts(&self) -> Counts {
        let ring = self.shared.lock();
        Counts { kept: ring.spans, received: ring.received, dropped: ring.dropped }
    }
}

impl Ring {
    fn add(&mut self, span: Span) {
        self.received += 1;
        let id = span.trace;
        let known = self.traces.entry(id).or_insert_with(|| {
            self.order.push_back(id);
            Vec::new()
        });
        // An exporter that got no answer sends again.
        if known.len() >= MOST_PER_TRACE || known.iter().any(|other| other.id == span.id) {
            self.dropped += 1;
            return;
        }
        known.push(Arc::new(span));
        self.spans += 1;
        // The newest trace stays, even if it alone is too large.
        while self.spans > self.capacity && self.order.len() > 1 {
            if let Some(old) = self.order.pop_front() {
                let gone = self.traces.remove(&old).map_or(0, |spans| spans.len());
                self.spans -= gone;
                self.dropped += gone as u64;
            }
        }
    }
}

impl Filter {
    fn takes(&self, span: &Span) -> bool {
        let long = span.end.saturating_sub(span.start);
        self.service.as_ref().is_none_or(|service| span.process.service == *service)
            && self.operation.as_ref().is_none_or(|operation| span.name == *operation)
            && span.start >= self.from
            && (self.until == 0 || span.start <= self.until)
            && long >= self.shortest
            && (self.longest == 0 || long <= self.longest)
            && self
                .tags
                .iter()
                .all(|(key, value)| span.tags.iter().any(|(k, v)| k == key && v.text() == *value))
    }
}

impl Span {
    fn kind(&self) -> String {
        let kind = self.tags.iter().find(|(key, _)| key == "span.kind");
        kind.map(|(_, kind)| kind.text()).unwrap_or_default()
    }
}

fn by_start(mut spans: Vec<Arc<Span>>) -> Vec<Arc<Span>> {
    spans.sort_by_key(|span| (span.start, span.id));
    spans
}

#[cfg(test)]
mod tests;
