//! Traces as waterfalls: parsed from Jaeger's JSON, drawn as a tree with bars.

use std::collections::{BTreeMap, HashMap};

use serde_json::Value;

use crate::print::clean;

/// A trace.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Trace {
    pub(crate) id: String,
    pub(crate) spans: Vec<Span>,
}

/// A span.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Span {
    pub(crate) id: String,
    pub(crate) parent: Option<String>,
    pub(crate) service: String,
    pub(crate) name: String,
    /// Microseconds since the epoch.
    pub(crate) start: u64,
    /// Microseconds.
    pub(crate) duration: u64,
    pub(crate) tags: BTreeMap<String, String>,
}

impl Trace {
    fn start(&self) -> u64 {
        self.spans.iter().map(|span| span.start).min().unwrap_or_default()
    }

    fn duration(&self) -> u64 {
        let end = self.spans.iter().map(|span| span.start + span.duration).max().unwrap_or_default();
        (end - self.start()).max(1)
    }
}

/// Reads the answer of `/api/traces`.
pub(crate) fn parse(json: &[u8]) -> anyhow::Result<Vec<Trace>> {
    let body: Value = serde_json::from_slice(json)?;
    let traces = body["data"].as_array().into_iter().flatten();
    Ok(traces
        .map(|trace| Trace {
            id: text(&trace["traceID"]),
            spans: trace["spans"]
                .as_array()
                .into_iter()
                .flatten()
                .map(|span| read_span(trace, span))
                .collect(),
        })
        .collect())
}

fn read_span(trace: &Value, span: &Value) -> Span {
    let process = span["processID"].as_str().unwrap_or_default();
    let references = span["references"].as_array().into_iter().flatten();
    let tags = span["tags"].as_array().into_iter().flatten();
    Span {
        id: text(&span["spanID"]),
        parent: references.filter(|r| r["refType"] == "CHILD_OF").map(|r| text(&r["spanID"])).next(),
        service: text(&trace["processes"][process]["serviceName"]),
        name: text(&span["operationName"]),
        start: span["startTime"].as_u64().unwrap_or_default(),
        duration: span["duration"].as_u64().unwrap_or_default(),
        tags: tags.map(|tag| (text(&tag["key"]), text(&tag["value"]))).collect(),
    }
}

fn text(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), clean)
}

const WIDTH: u64 = 40;

/// One line per span: tree, service, operation, what happened, bar.
pub(crate) fn render(trace: &Trace) -> String {
    let mut children: HashMap<Option<&str>, Vec<&Span>> = HashMap::new();
    for span in &trace.spans {
        // A parent that is not in the trace makes its child a root.
        let known =
            span.parent.as_deref().filter(|parent| trace.spans.iter().any(|other| other.id == **parent));
        children.entry(known).or_default().push(span);
    }
    for list in children.values_mut() {
        list.sort_by_key(|span| (span.start, &span.id));
    }
    let mut rows = Vec::new();
    walk(&children, None, 0, &mut rows);
    let width = rows.iter().map(|(left, _)| left.chars().count()).max().unwrap_or_default();
    let mut out =
        format!("trace {}  {:.1} ms  {} spans\n", trace.id, millis(trace.duration()), trace.spans.len());
    for (left, span) in rows {
        let at = (span.start - trace.start()) * WIDTH / trace.duration();
        let long = (span.duration * WIDTH / trace.duration()).max(1).min(WIDTH - at.min(WIDTH - 1));
        let bar = format!("{}{}", " ".repeat(at as usize), "█".repeat(long as usize));
        let padding = " ".repeat(width - left.chars().count());
        out += &format!("{left}{padding}  {:>8.1} ms |{bar:<40}|\n", millis(span.duration));
    }
    out
}

fn walk<'a>(
    children: &HashMap<Option<&str>, Vec<&'a Span>>,
    parent: Option<&str>,
    depth: usize,
    rows: &mut Vec<(String, &'a Span)>,
) {
    // Deeper than any real trace: a cycle in what a collector sent must not end the process.
    if depth > 64 {
        return;
    }
    for span in children.get(&parent).into_iter().flatten() {
        let branch = if depth == 0 { String::new() } else { format!("{}└ ", "  ".repeat(depth - 1)) };
        let kind = span.tags.get("span.kind").map_or("", String::as_str);
        let status =
            span.tags.get("http.response.status_code").or_else(|| span.tags.get("rpc.grpc.status_code"));
        let mut line = format!("{branch}{} {kind} {}", span.service, span.name);
        if let Some(status) = status {
            line += &format!(" → {status}");
        }
        if let Some(attempt) = span.tags.get("http.request.resend_count") {
            line += &format!(" (attempt {attempt})");
        }
        rows.push((line, span));
        walk(children, Some(&span.id), depth + 1, rows);
    }
}

fn millis(micros: u64) -> f64 {
    micros as f64 / 1000.0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn span(id: &str, parent: Option<&str>, start: u64, duration: u64) -> Span {
        Span {
            id: id.into(),
            parent: parent.map(str::to_owned),
            service: "web.shop".into(),
            name: format!("GET {id}"),
            start,
            duration,
            tags: BTreeMap::new(),
        }
    }

    #[test]
    fn children_stand_below_their_parents_in_order_of_time() {
        let spans = vec![span("c", Some("a"), 50, 10), span("a", None, 0, 100), span("b", Some("a"), 10, 20)];
        let text = render(&Trace { id: "t".into(), spans });
        let order: Vec<&str> =
            text.lines().skip(1).filter_map(|l| l.split("GET ").nth(1)).map(|l| &l[..1]).collect();
        assert_eq!(order, ["a", "b", "c"]);
    }

    #[test]
    fn a_span_without_its_parent_is_a_root_and_a_cycle_ends() {
        let spans =
            vec![span("a", Some("gone"), 0, 1), span("b", Some("c"), 0, 1), span("c", Some("b"), 0, 1)];
        assert!(render(&Trace { id: "t".into(), spans }).contains("GET a"));
    }

    #[test]
    fn jaegers_json_is_read() {
        let json = br#"{"data":[{"traceID":"t","processes":{"p1":{"serviceName":"s"}},"spans":[{"spanID":"a","operationName":"GET","processID":"p1","startTime":5,"duration":7,"references":[{"refType":"CHILD_OF","spanID":"z"}],"tags":[{"key":"n","value":3}]}]}]}"#;
        let traces = parse(json).unwrap();
        let span = &traces[0].spans[0];
        assert_eq!((span.service.as_str(), span.parent.as_deref(), span.duration), ("s", Some("z"), 7));
        assert_eq!(span.tags["n"], "3");
    }
}
