//! What a VirtualService's route does to a request beside sending it on: redirects, rewrites, answers, retries, faults.

use outrigger_model::route::{
    Fault, FaultAbort, FaultDelay, FaultStatus, Redirect, RetryOn, RetryPolicy, Rewrite, RouteAction,
};

use crate::dialect::shared::retry_on;
use crate::finding::{closest, code, quote};
use crate::reader::{At, Fields, Reader, Table};
use crate::yaml::Value;

const REDIRECT: Table = Table::new(
    "a redirect",
    &["uri", "prefixRewrite", "authority", "scheme", "port", "derivePort", "redirectCode"],
);
const REWRITE: Table = Table::new("a rewrite", &["uri", "authority", "uriRegexRewrite"]);
const REGEX_REWRITE: Table = Table::new("a regex rewrite", &["match", "rewrite"]);
const DIRECT: Table = Table::new("a direct response", &["status", "body"]);
const BODY: Table = Table::new("a body", &["string"]).later(&["bytes"]);
const RETRIES: Table = Table::new(
    "retries",
    &["attempts", "perTryTimeout", "retryOn", "backoff", "retryRemoteLocalities", "retryIgnorePreviousHosts"],
);
const FAULT: Table = Table::new("a fault", &["delay", "abort"]);
const DELAY: Table =
    Table::new("a fault's delay", &["fixedDelay", "percentage", "percent"]).later(&["exponentialDelay"]);
const ABORT: Table = Table::new("a fault's abort", &["httpStatus", "grpcStatus", "percentage", "percent"])
    .later(&["http2Error"]);
const PERCENTAGE: Table = Table::new("a percentage", &["value"]);

/// A redirect, and whether it leads to the port that the request came for.
pub(super) fn redirect(reader: &mut Reader<'_>, at: &At<'_>) -> Option<(Redirect, bool)> {
    let fields = reader.fields(at, &REDIRECT)?;
    let ports = [("FROM_PROTOCOL_DEFAULT", false), ("FROM_REQUEST_PORT", true)];
    let to_request_port = reader.choice(fields.get("derivePort"), &ports).unwrap_or(false);
    for (one, other) in [("port", "derivePort"), ("uri", "prefixRewrite")] {
        if fields.has(one) && fields.has(other) {
            reader.error(at, format!("{} has {one} and {other}, but only one of them can hold", at.path));
        }
    }
    let code_at = fields.get("redirectCode");
    let code = reader.number(code_at.clone(), 300..=399).unwrap_or(301) as u16;
    if let Some(at) = code_at.filter(|_| !matches!(code, 301 | 302 | 303 | 307 | 308)) {
        reader.error(&at, format!("{} must be 301, 302, 303, 307 or 308", at.path));
    }
    let redirect = Redirect {
        path: said(reader, fields.get("uri")),
        prefix: said(reader, fields.get("prefixRewrite")),
        authority: said(reader, fields.get("authority")),
        scheme: reader
            .choice(fields.get("scheme"), &[("http", "http"), ("https", "https")])
            .map(str::to_owned),
        port: reader.port(fields.get("port")),
        status: code,
        ..Redirect::default()
    };
    let nowhere = Redirect { status: code, ..Redirect::default() };
    if redirect == nowhere && !fields.has("scheme") && !fields.has("port") && !fields.has("derivePort") {
        let message = format!(
            "{} leads nowhere else: it needs uri, prefixRewrite, authority, scheme, port or derivePort",
            at.path
        );
        reader.error(at, message);
    }
    Some((redirect, to_request_port))
}

/// In protobuf an empty text is "not set".
fn said(reader: &mut Reader<'_>, at: Option<At<'_>>) -> Option<String> {
    reader.text(at).filter(|text| !text.is_empty())
}

/// What replaces the URI is a prefix; after a regular expression, the compiler makes it the whole path.
pub(super) fn rewrite(reader: &mut Reader<'_>, at: &At<'_>) -> Option<Rewrite> {
    let fields = reader.fields(at, &REWRITE)?;
    let regex = fields.get("uriRegexRewrite").and_then(|at| {
        let fields = reader.fields(&at, &REGEX_REWRITE)?;
        for name in ["match", "rewrite"] {
            if !fields.has(name) {
                reader.missing(&fields, name);
            }
        }
        let pattern = reader.pattern(fields.get("match"));
        let substitution = reader.substitution(fields.get("rewrite"), pattern.as_deref());
        Some((pattern?, substitution?))
    });
    if fields.has("uri") && fields.has("uriRegexRewrite") {
        reader.error(at, format!("{} has uri and uriRegexRewrite, but only one of them can hold", at.path));
    }
    let (prefix, authority) = (said(reader, fields.get("uri")), said(reader, fields.get("authority")));
    if prefix.is_none() && authority.is_none() && !fields.has("uriRegexRewrite") {
        reader.error(at, format!("{} says nothing: it needs uri, authority or uriRegexRewrite", at.path));
    }
    Some(Rewrite { prefix, regex, authority, ..Rewrite::default() })
}

pub(super) fn direct_response(reader: &mut Reader<'_>, at: &At<'_>) -> Option<RouteAction> {
    let fields = reader.fields(at, &DIRECT)?;
    if !fields.has("status") {
        reader.missing(&fields, "status");
    }
    let body = fields.get("body").and_then(|at| {
        let fields = reader.fields(&at, &BODY)?;
        reader.text(fields.get("string"))
    });
    let status = reader.status(fields.get("status"))?;
    Some(RouteAction::Direct { status, body: body.unwrap_or_default() })
}

/// What an Istio `retries` block without `retryOn` means.
const ISTIO_RETRIES: [RetryOn; 4] =
    [RetryOn::ConnectFailure, RetryOn::RefusedStream, RetryOn::Cancelled, RetryOn::Unavailable];

/// An absent block is our default; a block without `retryOn` is Istio's list.
pub(super) fn retries(reader: &mut Reader<'_>, at: Option<At<'_>>) -> RetryPolicy {
    let default = RetryPolicy::default();
    let Some(at) = at else { return default };
    let Some(fields) = reader.fields(&at, &RETRIES) else { return default };
    let attempts = reader.number(fields.get("attempts"), 0..=100);
    let is_said = |name: &&'static str| fields.get(name).is_some_and(|at| at.node.to_json() != "");
    let said = ["perTryTimeout", "retryOn", "retryRemoteLocalities"].into_iter().find(is_said);
    let off = attempts == Some(0) || !fields.has("attempts");
    if let Some(said) = said.filter(|_| off) {
        let message = format!(
            "{} has {said}, but no attempts, or 0, with which retries are off: write attempts, or leave {said} out",
            at.path
        );
        reader.error(&at, message);
    } else if !fields.has("attempts") {
        let message =
            format!("{} has no attempts, which Istio reads as 0: retries are off. Write attempts", at.path);
        reader.warn(code::NO_EFFECT, &at, message);
    }
    let (on, statuses) = match (fields.get("retryOn"), reader.text(fields.get("retryOn"))) {
        (Some(at), Some(text)) if !text.trim().is_empty() => retry_on(reader, &at, &text),
        _ => (ISTIO_RETRIES.to_vec(), Vec::new()),
    };
    if let Some(at) = fields.get("retryOn").filter(|_| on.contains(&RetryOn::RetriableHeaders)) {
        let message =
            format!("{}: retriable-headers has no effect: a VirtualService cannot say which", at.path);
        reader.warn(code::NO_EFFECT, &at, message);
    }
    let policy = RetryPolicy {
        attempts: attempts.unwrap_or(0),
        on,
        statuses,
        per_try_timeout: reader.duration(fields.get("perTryTimeout")).filter(|timeout| !timeout.is_zero()),
        avoid_previous_hosts: reader.boolean(fields.get("retryIgnorePreviousHosts")).unwrap_or(true),
        leave_priorities: match reader.boolean(fields.get("retryRemoteLocalities")) {
            Some(true) => RetryPolicy::ATTEMPTS_OF_PRIORITY,
            _ => 0,
        },
        ..default
    };
    policy.with_backoff(reader.positive(fields.get("backoff")))
}

pub(super) fn fault(reader: &mut Reader<'_>, at: Option<At<'_>>) -> Option<Fault> {
    let fields = at.and_then(|at| reader.fields(&at, &FAULT))?;
    let delay = fields.get("delay").and_then(|at| {
        let fields = reader.fields(&at, &DELAY)?;
        let percentage = fault_percent(reader, &at, &fields);
        if !fields.has("fixedDelay") && !fields.has_later() {
            reader.missing(&fields, "fixedDelay");
        }
        Some(FaultDelay { duration: reader.positive(fields.get("fixedDelay"))?, percentage })
    });
    let abort = fields.get("abort").and_then(|at| {
        let fields = reader.fields(&at, &ABORT)?;
        let percentage = fault_percent(reader, &at, &fields);
        let status = abort_status(reader, &at, &fields)?;
        Some(FaultAbort { status, percentage })
    });
    Fault { delay, abort }.if_any()
}

fn abort_status(reader: &mut Reader<'_>, at: &At<'_>, fields: &Fields<'_>) -> Option<FaultStatus> {
    match (fields.has("httpStatus"), fields.get("grpcStatus")) {
        (true, Some(_)) => {
            reader.error(
                at,
                format!("{} has httpStatus and grpcStatus, but an abort takes one of them", at.path),
            );
            None
        }
        (true, None) => reader.status(fields.get("httpStatus")).map(FaultStatus::Http),
        (false, Some(status)) => grpc_status(reader, &status).map(FaultStatus::Grpc),
        (false, None) => {
            if !fields.has_later() {
                reader.error(at, format!("{} needs httpStatus or grpcStatus", at.path));
            }
            None
        }
    }
}

/// `percentage: {value: 50}`, or the deprecated `percent: 50`. Without either a fault never happens, as in Istio.
fn fault_percent(reader: &mut Reader<'_>, at: &At<'_>, fields: &Fields<'_>) -> f64 {
    if let Some(percentage) = fields.get("percentage") {
        let Some(inner) = reader.fields(&percentage, &PERCENTAGE) else { return 0.0 };
        return reader.percent(inner.get("value")).unwrap_or(0.0);
    }
    if fields.has("percent") {
        return reader.percent(fields.get("percent")).unwrap_or(0.0);
    }
    let message =
        format!("{} has no percentage, so it never happens: write percentage: {{value: 100}}", at.path);
    reader.warn(code::NO_EFFECT, at, message);
    0.0
}

const GRPC_STATUSES: [&str; 17] = [
    "OK",
    "CANCELLED",
    "UNKNOWN",
    "INVALID_ARGUMENT",
    "DEADLINE_EXCEEDED",
    "NOT_FOUND",
    "ALREADY_EXISTS",
    "PERMISSION_DENIED",
    "RESOURCE_EXHAUSTED",
    "FAILED_PRECONDITION",
    "ABORTED",
    "OUT_OF_RANGE",
    "UNIMPLEMENTED",
    "INTERNAL",
    "UNAVAILABLE",
    "DATA_LOSS",
    "UNAUTHENTICATED",
];

/// A gRPC status by name or number.
pub(crate) fn grpc_status(reader: &mut Reader<'_>, at: &At<'_>) -> Option<u32> {
    let Value::Text(text) = &at.node.value else { return reader.number(Some(at.clone()), 0..=16) };
    if let Ok(number @ 0..=16) = text.parse::<u32>() {
        return Some(number);
    }
    let found = (0u32..).zip(GRPC_STATUSES).find(|(_, name)| name == text).map(|(number, _)| number);
    if found.is_none() {
        let meant = closest(text, GRPC_STATUSES);
        reader.error_meant(
            at,
            format!("{} must be a gRPC status by name or number, not {}", at.path, quote(text)),
            meant,
        );
    }
    found
}
