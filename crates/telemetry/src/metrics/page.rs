//! The scrape page: Prometheus text format 0.0.4, and OpenMetrics for whoever puts it beside another's page that is so.
//!
//! The page owns grouping (all samples of a family stand under one `# TYPE` line, whatever order the sources write
//! in), escaping, and number notation. It does not look for duplicate series: that would cost a set of all series
//! per scrape, and merging shards is the sources' job.

use std::collections::HashMap;
use std::fmt::Write;

use super::histogram::{HistogramSnapshot, ISTIO_BUCKETS};

/// Samples of series with labels that a page has room for. A scraper's limit is seldom larger, and a page is held whole.
const BUDGET: usize = 32 << 20;

/// Content type of a rendered page.
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// How a page is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Format {
    /// Prometheus text format 0.0.4.
    #[default]
    Text,
    /// OpenMetrics 1.0, without the line that ends it. Samples are called as in the other: a counter that does not end in `_total` is of
    /// unknown type.
    OpenMetrics,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Counter,
    Gauge,
    Histogram,
}

impl Kind {
    fn as_str(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
            Self::Histogram => "histogram",
        }
    }
}

struct FamilyText {
    name: String,
    help: String,
    kind: Kind,
    samples: String,
}

impl FamilyText {
    /// Its name and type.
    fn named(&self, format: Format) -> (&str, &'static str) {
        match (format, self.kind, self.name.strip_suffix("_total")) {
            (Format::OpenMetrics, Kind::Counter, Some(name)) => (name, self.kind.as_str()),
            (Format::OpenMetrics, Kind::Counter, None) => (&self.name, "unknown"),
            _ => (&self.name, self.kind.as_str()),
        }
    }
}

/// A page being written.
pub struct Page {
    families: Vec<FamilyText>,
    by_name: HashMap<String, usize>,
    /// Takes the samples of a family that was declared before with another type; never shown.
    refused: String,
    room: Room,
}

/// What is left of the budget.
struct Room {
    left: usize,
    /// Series that had none.
    left_out: u64,
}

impl Default for Page {
    fn default() -> Self {
        Self::with_room(BUDGET)
    }
}

impl Page {
    /// An empty page.
    pub fn new() -> Self {
        Self::default()
    }

    fn with_room(left: usize) -> Self {
        let (families, by_name, refused) = Default::default();
        Self { families, by_name, refused, room: Room { left, left_out: 0 } }
    }

    /// Opens a counter family; by convention the name ends in `_total`.
    pub fn counter(&mut self, name: &str, help: &str) -> Family<'_> {
        self.family(name, help, Kind::Counter)
    }

    /// Opens a gauge family.
    pub fn gauge(&mut self, name: &str, help: &str) -> Family<'_> {
        self.family(name, help, Kind::Gauge)
    }

    /// Opens a histogram family; `_bucket`, `_sum` and `_count` are appended to the name.
    pub fn histogram(&mut self, name: &str, help: &str) -> HistogramFamily<'_> {
        HistogramFamily(self.family(name, help, Kind::Histogram))
    }

    fn family(&mut self, name: &str, help: &str, kind: Kind) -> Family<'_> {
        let at = match self.by_name.get(name) {
            Some(at) => *at,
            None => {
                let shown = valid_name(name, true);
                self.families.push(FamilyText {
                    name: shown,
                    help: help.to_owned(),
                    kind,
                    samples: String::new(),
                });
                self.by_name.insert(name.to_owned(), self.families.len() - 1);
                self.families.len() - 1
            }
        };
        let family = &mut self.families[at];
        if family.kind != kind {
            tracing::warn!(
                metric = name,
                "metric is declared as {} and as {}; the second is left out",
                family.kind.as_str(),
                kind.as_str()
            );
            self.refused.clear();
            return Family { name: &family.name, samples: &mut self.refused, room: &mut self.room };
        }
        Family { name: &family.name, samples: &mut family.samples, room: &mut self.room }
    }

    /// The text of the page.
    pub fn finish(self) -> String {
        self.finish_as(Format::Text)
    }

    /// The text of the page in a format.
    pub fn finish_as(mut self, format: Format) -> String {
        let left_out = self.room.left_out;
        if left_out > 0 {
            let help = "Series that this page has no room for.";
            self.gauge("outrigger_metrics_left_out", help).sample((), left_out);
        }
        let size: usize =
            self.families.iter().map(|f| f.samples.len() + f.help.len() + 2 * f.name.len() + 32).sum();
        let mut out = String::with_capacity(size);
        // A family without samples is left out, HELP and TYPE included: it says nothing.
        for family in self.families.iter().filter(|family| !family.samples.is_empty()) {
            let (name, kind) = family.named(format);
            out.push_str("# HELP ");
            out.push_str(name);
            out.push(' ');
            escape(&mut out, &family.help, format == Format::OpenMetrics);
            out.push_str("\n# TYPE ");
            out.push_str(name);
            out.push(' ');
            out.push_str(kind);
            out.push('\n');
            out.push_str(&family.samples);
        }
        out
    }
}

/// A counter or gauge family on a page.
pub struct Family<'p> {
    name: &'p str,
    samples: &'p mut String,
    room: &'p mut Room,
}

impl Family<'_> {
    /// Writes one series.
    pub fn sample(&mut self, labels: impl LabelText, value: impl Into<Number>) {
        if self.begin(&labels) {
            self.line("", labels, None, value.into());
        }
    }

    /// Whether there is room for one more series. Those without labels are as many as the program has lines for them.
    fn begin(&mut self, labels: &impl LabelText) -> bool {
        let has_room = self.room.left > 0 || labels.is_empty();
        self.room.left_out += u64::from(!has_room);
        has_room
    }

    fn line(&mut self, suffix: &str, labels: impl LabelText, bound: Option<f64>, value: Number) {
        let out = &mut *self.samples;
        out.push_str(self.name);
        out.push_str(suffix);
        out.push('{');
        let start = out.len();
        labels.write(out);
        if let Some(bound) = bound {
            if out.len() > start {
                out.push(',');
            }
            out.push_str("le=\"");
            Number::F64(bound).write(out);
            out.push('"');
        }
        if out.len() == start {
            out.pop();
        } else {
            out.push('}');
            // The rest of a line is short.
            self.room.left = self.room.left.saturating_sub(out.len() - start + self.name.len());
        }
        out.push(' ');
        value.write(out);
        out.push('\n');
    }
}

/// A histogram family on a page.
pub struct HistogramFamily<'p>(Family<'p>);

impl HistogramFamily<'_> {
    /// Writes one distribution over [`ISTIO_BUCKETS`].
    pub fn sample(&mut self, labels: impl LabelText, snapshot: &HistogramSnapshot) {
        self.sample_with_bounds(labels, &ISTIO_BUCKETS, &snapshot.buckets, snapshot.sum);
    }

    /// Writes one distribution; `buckets` are not cumulative and have one more entry than `bounds`, for `+Inf`.
    pub fn sample_with_bounds(&mut self, labels: impl LabelText, bounds: &[f64], buckets: &[u64], sum: f64) {
        if !self.0.begin(&labels) {
            return;
        }
        let mut seen = 0;
        for (at, in_bucket) in buckets.iter().enumerate().take(bounds.len() + 1) {
            seen += in_bucket;
            let bound = bounds.get(at).copied().unwrap_or(f64::INFINITY);
            self.0.line("_bucket", &labels, Some(bound), Number::U64(seen));
        }
        self.0.line("_sum", &labels, None, Number::F64(sum));
        self.0.line("_count", &labels, None, Number::U64(seen));
    }
}

/// A value on the page.
#[derive(Clone, Copy, Debug)]
pub enum Number {
    /// Written without loss.
    U64(u64),
    /// Written without loss.
    I64(i64),
    /// Written in the shortest notation that reads back the same.
    F64(f64),
}

impl Number {
    fn write(self, out: &mut String) {
        // Writing to a String cannot fail.
        let _ = match self {
            Self::U64(value) => write!(out, "{value}"),
            Self::I64(value) => write!(out, "{value}"),
            Self::F64(value) if value == f64::INFINITY => write!(out, "+Inf"),
            Self::F64(value) if value == f64::NEG_INFINITY => write!(out, "-Inf"),
            Self::F64(value) if value.is_nan() => write!(out, "NaN"),
            Self::F64(value) => write!(out, "{value}"),
        };
    }
}

macro_rules! number_from {
    ($($from:ty => $kind:ident as $to:ty),*) => {$(
        impl From<$from> for Number {
            fn from(value: $from) -> Self {
                Self::$kind(value as $to)
            }
        }
    )*};
}

number_from!(u64 => U64 as u64, u32 => U64 as u64, usize => U64 as u64, i64 => I64 as i64, f64 => F64 as f64);

impl From<bool> for Number {
    fn from(value: bool) -> Self {
        Self::U64(u64::from(value))
    }
}

/// Labels in their escaped form. A hot-path shard keeps one per series, so that a scrape only copies text.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Labels(String);

impl Labels {
    /// No labels.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a label; a name that Prometheus would refuse gets underscores.
    #[must_use]
    pub fn with(mut self, name: &str, value: &str) -> Self {
        self.push(name, value);
        self
    }

    /// Adds a label in place.
    pub fn push(&mut self, name: &str, value: &str) {
        write_label(&mut self.0, name, value);
    }

    /// The text between the braces.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// What can stand between the braces of a series.
pub trait LabelText {
    /// Appends the escaped labels, without braces.
    fn write(&self, out: &mut String);

    /// Whether there are none.
    fn is_empty(&self) -> bool;
}

impl LabelText for () {
    fn write(&self, _out: &mut String) {}

    fn is_empty(&self) -> bool {
        true
    }
}

impl LabelText for Labels {
    fn write(&self, out: &mut String) {
        out.push_str(&self.0);
    }

    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl LabelText for [(&str, &str)] {
    fn write(&self, out: &mut String) {
        let mut first = true;
        for (name, value) in self {
            if !first {
                out.push(',');
            }
            first = false;
            write_pair(out, name, value);
        }
    }

    fn is_empty(&self) -> bool {
        <[_]>::is_empty(self)
    }
}

impl<const N: usize> LabelText for [(&str, &str); N] {
    fn write(&self, out: &mut String) {
        self.as_slice().write(out);
    }

    fn is_empty(&self) -> bool {
        N == 0
    }
}

impl<T: LabelText + ?Sized> LabelText for &T {
    fn write(&self, out: &mut String) {
        (**self).write(out);
    }

    fn is_empty(&self) -> bool {
        (**self).is_empty()
    }
}

fn write_label(out: &mut String, name: &str, value: &str) {
    if !out.is_empty() {
        out.push(',');
    }
    write_pair(out, name, value);
}

fn write_pair(out: &mut String, name: &str, value: &str) {
    if is_valid_name(name, false) {
        out.push_str(name);
    } else {
        out.push_str(&valid_name(name, false));
    }
    out.push_str("=\"");
    escape(out, value, true);
    out.push('"');
}

/// Backslash and line feed are escaped everywhere, the quote only inside label values (HELP shows it as it is).
fn escape(out: &mut String, text: &str, quotes: bool) {
    let mut rest = text;
    while let Some(at) = rest.find(['\\', '\n', '"']) {
        out.push_str(&rest[..at]);
        match rest.as_bytes()[at] {
            b'\\' => out.push_str("\\\\"),
            b'\n' => out.push_str("\\n"),
            _ if quotes => out.push_str("\\\""),
            _ => out.push('"'),
        }
        rest = &rest[at + 1..];
    }
    out.push_str(rest);
}

/// Prometheus: `[a-zA-Z_:][a-zA-Z0-9_:]*`, without the colon for labels.
fn is_valid_name(name: &str, colon: bool) -> bool {
    let first = name.bytes().next().is_some_and(|byte| !byte.is_ascii_digit());
    first && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_' || (colon && byte == b':'))
}

fn valid_name(name: &str, colon: bool) -> String {
    let allowed = |c: char| c.is_ascii_alphanumeric() || c == '_' || (colon && c == ':');
    let mut valid: String = name.chars().map(|c| if allowed(c) { c } else { '_' }).collect();
    if valid.is_empty() || valid.starts_with(|c: char| c.is_ascii_digit()) {
        valid.insert(0, '_');
    }
    valid
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_has_a_size_and_says_what_it_leaves_out() {
        let mut page = Page::with_room(1000);
        for n in 0..100 {
            page.counter("x_total", "Many.").sample([("n", n.to_string().as_str())], 1_u64);
        }
        page.gauge("y", "One.").sample((), 7_u64);
        let text = page.finish();
        let shown = text.lines().filter(|line| line.starts_with("x_total{")).count();
        assert!((50..100).contains(&shown), "{shown} are shown");
        assert!(text.contains(&format!("outrigger_metrics_left_out {}", 100 - shown)), "{text}");
        assert!(text.contains("\ny 7\n"), "what has no labels is always shown");
    }

    #[test]
    fn open_metrics_call_families_without_total_and_samples_as_ever() {
        let mut page = Page::new();
        page.counter("calls_total", "Say \"calls\".").sample([("a", "b")], 1_u64);
        page.counter("envoy_cluster_upstream_rq_xx", "Odd.").sample((), 2_u64);
        page.histogram("took", "Took.").sample_with_bounds((), &[1.0], &[1, 0], 0.5);
        assert_eq!(
            page.finish_as(Format::OpenMetrics),
            "# HELP calls Say \\\"calls\\\".\n# TYPE calls counter\ncalls_total{a=\"b\"} 1\n\
             # HELP envoy_cluster_upstream_rq_xx Odd.\n# TYPE envoy_cluster_upstream_rq_xx unknown\nenvoy_cluster_upstream_rq_xx 2\n\
             # HELP took Took.\n# TYPE took histogram\ntook_bucket{le=\"1\"} 1\ntook_bucket{le=\"+Inf\"} 1\ntook_sum 0.5\ntook_count 1\n"
        );
    }
}
