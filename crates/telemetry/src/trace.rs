//! Traces: who called whom, as it travels in headers and as it leaves the process.
//!
//! [`context`] and [`b3`] read and write the headers without allocating, [`headers`] picks the one that is there, [`sample`] decides before anything is
//! built, [`span`] is the record of one hop, [`export`] takes records from the workers and sends them by OTLP. What
//! a span is called and which attributes it has is for the caller to say.

pub mod b3;
pub mod context;
pub mod export;
pub mod headers;
pub mod sample;
pub mod span;

pub use context::{Format, Incoming, SpanId, TraceContext, TraceId};
pub use export::{ExportConfig, ExportError, Exporter, SpanSender, exporter};
pub use headers::extract;
pub use sample::{Decision, Sampler};
pub use span::{SpanEvent, SpanKind, SpanRecord, SpanStatus, Value};
