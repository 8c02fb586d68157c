//! How an access log line looks. Peers choose some of the text: what would break a line or a quote is escaped.

use std::fmt::Write as _;
use std::io::Write as _;
use std::time::Duration;

use tokio::time::Instant;

use super::StreamRecord;
use super::began::began;
use crate::access_log::Format;
use crate::http::head::RequestHead;
use crate::http::redact;
use crate::http::respond::ORIGINAL_PATH;

/// Names of the JSON fields, in the order of the text format.
const NAMES: [&str; 24] = [
    "start_time",
    "method",
    "path",
    "protocol",
    "response_code",
    "response_flags",
    "response_code_details",
    "connection_termination_details",
    "upstream_transport_failure_reason",
    "bytes_received",
    "bytes_sent",
    "duration",
    "upstream_service_time",
    "x_forwarded_for",
    "user_agent",
    "request_id",
    "authority",
    "upstream_host",
    "upstream_cluster",
    "upstream_local_address",
    "downstream_local_address",
    "downstream_remote_address",
    "requested_server_name",
    "route_name",
];

/// What stands around each field of the text format: before it. The last is followed by a line feed.
const BEFORE: [&str; 24] = [
    "[", "] \"", " ", " ", "\" ", " ", " ", " ", " \"", "\" ", " ", " ", " ", " \"", "\" \"", "\" \"",
    "\" \"", "\" \"", "\" ", " ", " ", " ", " ", " ",
];

/// Fields that are numbers in JSON.
const NUMBERS: [usize; 5] = [4, 9, 10, 11, 12];

/// One line, with its line feed.
pub fn of(
    record: &StreamRecord,
    request: Option<&RequestHead>,
    elapsed: Duration,
    format: Format,
) -> Vec<u8> {
    let mut line = Vec::with_capacity(640);
    if format == Format::Json {
        line.push(b'{');
    }
    let mut text = String::with_capacity(64);
    for (at, before) in BEFORE.iter().enumerate() {
        text.clear();
        field(record, request, elapsed, at, &mut text);
        match format {
            Format::Text => {
                line.extend_from_slice(before.as_bytes());
                if text.is_empty() { line.push(b'-') } else { escape(&text, &mut line) }
            }
            Format::Json => json_field(at, &text, &mut line),
        }
    }
    match (format, &record.failure) {
        (Format::Text, _) => {}
        (Format::Json, Some(failure)) => {
            let _ = write!(line, ",\"error\":");
            json_text(&failure.to_string(), &mut line);
            line.push(b'}');
        }
        (Format::Json, None) => line.push(b'}'),
    }
    line.push(b'\n');
    line
}

fn json_field(at: usize, text: &str, line: &mut Vec<u8>) {
    if at > 0 {
        line.push(b',');
    }
    let _ = write!(line, "\"{}\":", NAMES[at]);
    if text.is_empty() {
        line.extend_from_slice(b"null");
    } else if NUMBERS.contains(&at) {
        line.extend_from_slice(text.as_bytes());
    } else {
        json_text(text, line);
    }
}

fn json_text(text: &str, line: &mut Vec<u8>) {
    if serde_json::to_writer(&mut *line, text).is_err() {
        line.extend_from_slice(b"null");
    }
}

/// Quotes, backslashes and control characters would let a peer forge fields or lines.
fn escape(text: &str, line: &mut Vec<u8>) {
    for byte in text.bytes() {
        match byte {
            b'"' | b'\\' | 0..=0x1f | 0x7f => {
                let _ = write!(line, "\\x{byte:02x}");
            }
            _ => line.push(byte),
        }
    }
}

fn field(
    record: &StreamRecord,
    request: Option<&RequestHead>,
    elapsed: Duration,
    at: usize,
    out: &mut String,
) {
    // Writing to a String cannot fail.
    let _ = match at {
        0 => write!(out, "{}", start_time(record.started)),
        4 => write!(out, "{}", record.status),
        5 => write!(out, "{}", record.flags),
        9 => write!(out, "{}", record.received),
        10 => write!(out, "{}", record.sent),
        11 => write!(out, "{}", elapsed.as_millis()),
        12 => record.upstream_time.map_or(Ok(()), |time| write!(out, "{}", time.as_millis())),
        17 => record.endpoint.as_ref().map_or(Ok(()), |e| write!(out, "{}", e.address)),
        19 => record.upstream_local.map_or(Ok(()), |address| write!(out, "{address}")),
        20 => write!(out, "{}", record.conn.destination),
        21 => write!(out, "{}", record.conn.source),
        _ => {
            text_field(record, request, at, out);
            Ok(())
        }
    };
}

fn text_field(record: &StreamRecord, request: Option<&RequestHead>, at: usize, out: &mut String) {
    let header = |name: &'static str| request.and_then(|r| r.first(name)).map(String::from_utf8_lossy);
    let failure = record.failure.as_deref();
    let text = match at {
        1 => request.map(RequestHead::method).map(Into::into),
        2 if record.rewritten => header(ORIGINAL_PATH),
        2 => request.map(RequestHead::path).map(Into::into),
        3 => record.spoken().map(Into::into),
        6 => Some(record.details.as_ref().into()),
        // For a TCP connection the failure is why it ended; Envoy has only a few words there.
        7 => failure.filter(|_| record.spoken().is_none()).map(|f| f.to_string().into()),
        8 => failure.filter(|f| f.kind.flag() == "UF").map(|f| f.detail.as_ref().into()),
        13 => header("x-forwarded-for"),
        14 => header("user-agent"),
        15 => header("x-request-id"),
        16 => request.map(RequestHead::authority).map(Into::into),
        18 => record.cluster.as_ref().map(|cluster| (*cluster.name).into()),
        22 => record.conn.server_name.as_deref().map(Into::into),
        23 => record.route.as_deref().map(Into::into),
        _ => None,
    };
    let text = text.as_deref().unwrap_or_default();
    // The path has the query.
    if at == 2 { out.push_str(&redact::path(text)) } else { out.push_str(text) }
}

/// RFC 3339 in UTC with milliseconds, as Envoy writes it.
fn start_time(started: Instant) -> jiff::fmt::strtime::Display<'static> {
    began(started).strftime("%Y-%m-%dT%H:%M:%S.%3fZ")
}
