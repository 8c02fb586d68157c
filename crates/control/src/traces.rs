//! The built-in trace store: OTLP in, Jaeger's query API out, bounded memory in between.
//!
//! For demos, tests and small meshes; whoever needs retention sends the same spans to a real Jaeger. Whole traces are
//! forgotten, the oldest first, so that what is shown is never half a trace by our doing.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::Semaphore;

pub mod query;
pub mod receive;
pub(crate) mod weigh;

/// Spans of one trace; beyond that the trace is a loop, and must not push out all others.
const MOST_PER_TRACE: usize = 2_000;
/// Of the store's bytes, one trace may have this part.
const PART_PER_TRACE: usize = 8;
/// Answers that may be on their way at once; each holds as much as [`query`] lets one have.
const ANSWERS: usize = 8;

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
    answers: Arc<Semaphore>,
}

struct Ring {
    capacity: usize,
    spans: usize,
    most_bytes: usize,
    bytes: usize,
    traces: HashMap<TraceId, Trace>,
    /// By first arrival.
    order: VecDeque<TraceId>,
    received: u64,
    dropped: u64,
}

#[derive(Default)]
struct Trace {
    spans: Vec<Arc<Span>>,
    bytes: usize,
}

/// What the store has and had.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Counts {
    /// Spans that are kept.
    pub kept: usize,
    /// Bytes that they take.
    pub bytes: usize,
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
    /// Keeps at most `capacity` spans and `bytes` bytes.
    pub fn new(capacity: usize, bytes: usize) -> Self {
        let ring = Ring {
            capacity,
            spans: 0,
            most_bytes: bytes,
            bytes: 0,
            traces: HashMap::new(),
            order: VecDeque::new(),
            received: 0,
            dropped: 0,
        };
        Self { shared: Arc::new(Mutex::new(ring)), answers: Arc::new(Semaphore::new(ANSWERS)) }
    }

    /// Adds spans.
    pub fn add(&self, spans: Vec<Span>) {
        let mut ring = self.shared.lock();
        spans.into_iter().for_each(|span| ring.add(span));
    }

    /// The spans of a trace, by start.
    pub fn trace(&self, id: &TraceId) -> Option<Vec<Arc<Span>>> {
        self.shared.lock().traces.get(id).map(|trace| by_start(trace.spans.clone()))
    }

    /// Names of services.
    pub fn services(&self) -> BTreeSet<String> {
        let ring = self.shared.lock();
        let names: BTreeSet<&str> = ring.spans().map(|span| span.process.service.as_str()).collect();
        names.into_iter().map(str::to_owned).collect()
    }

    /// Names of a service's spans with their kinds.
    pub fn operations(&self, service: &str) -> BTreeSet<(String, String)> {
        let ring = self.shared.lock();
        let of = ring.spans().filter(|span| span.process.service == service);
        let names: BTreeSet<(&str, String)> = of.map(|span| (span.name.as_str(), span.kind())).collect();
        names.into_iter().map(|(name, kind)| (name.to_owned(), kind)).collect()
    }

    /// The traces that a filter takes, the latest first.
    pub fn find(&self, filter: &Filter) -> Vec<Vec<Arc<Span>>> {
        let ring = self.shared.lock();
        let mut found = BTreeMap::new();
        for (id, Trace { spans, .. }) in &ring.traces {
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
        Counts { kept: ring.spans, bytes: ring.bytes, received: ring.received, dropped: ring.dropped }
    }
}

impl Ring {
    fn spans(&self) -> impl Iterator<Item = &Arc<Span>> {
        self.traces.values().flat_map(|trace| &trace.spans)
    }

    fn add(&mut self, span: Span) {
        self.received += 1;
        let (id, bytes) = (span.trace, span.bytes());
        let known = self.traces.entry(id).or_insert_with(|| {
            self.order.push_back(id);
            Trace::default()
        });
        // An exporter that got no answer sends again.
        let full = known.spans.len() >= MOST_PER_TRACE
            || (known.bytes + bytes > self.most_bytes / PART_PER_TRACE && !known.spans.is_empty());
        if full || known.spans.iter().any(|other| other.id == span.id) {
            self.dropped += 1;
            return;
        }
        known.spans.push(Arc::new(span));
        known.bytes += bytes;
        self.spans += 1;
        self.bytes += bytes;
        // The newest trace stays, even if it alone is too large.
        while (self.spans > self.capacity || self.bytes > self.most_bytes) && self.order.len() > 1 {
            if let Some(gone) = self.order.pop_front().and_then(|old| self.traces.remove(&old)) {
                self.spans -= gone.spans.len();
                self.bytes -= gone.bytes;
                self.dropped += gone.spans.len() as u64;
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
    /// What it takes in memory, its maker counted in full though spans may share it: a bound, not a measure.
    fn bytes(&self) -> usize {
        let logs = self.logs.iter().map(|(_, fields)| 64 + tag_bytes(fields)).sum::<usize>();
        let process = size_of::<Process>() + self.process.service.len() + tag_bytes(&self.process.tags);
        size_of::<Self>() + self.name.len() + tag_bytes(&self.tags) + logs + process
    }

    fn kind(&self) -> String {
        let kind = self.tags.iter().find(|(key, _)| key == "span.kind");
        kind.map(|(_, kind)| kind.text()).unwrap_or_default()
    }
}

fn tag_bytes(tags: &[(String, Tag)]) -> usize {
    let text = |tag: &Tag| if let Tag::Text(text) = tag { text.len() } else { 0 };
    tags.iter().map(|(key, tag)| size_of::<(String, Tag)>() + key.len() + text(tag)).sum()
}

fn by_start(mut spans: Vec<Arc<Span>>) -> Vec<Arc<Span>> {
    spans.sort_by_key(|span| (span.start, span.id));
    spans
}

#[cfg(test)]
mod tests;
