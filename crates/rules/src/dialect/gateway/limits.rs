//! How long requests may take and how often they are tried: `timeouts` and `retry`.

use std::time::Duration;

use outrigger_model::route::{RetryOn, RetryPolicy};

use crate::reader::{At, Fields, Reader, Table};

const TIMEOUTS: Table = Table::new("timeouts", &["request", "backendRequest"]);
const RETRY: Table = Table::new("a retry", &["codes", "attempts", "backoff"]);

/// What is tried again whatever the codes: connections that break before there is an answer.
const BROKEN: [RetryOn; 4] =
    [RetryOn::ConnectFailure, RetryOn::RefusedStream, RetryOn::Reset, RetryOn::ResetBeforeRequest];

/// The timeout of a request, and its retries with the timeout of an attempt. Without `retry` they are Outrigger's.
pub(super) fn read(reader: &mut Reader<'_>, fields: &Fields<'_>) -> (Option<Duration>, RetryPolicy) {
    let (request, attempt) = timeouts(reader, fields.get("timeouts"));
    let retry = fields.get("retry").and_then(|at| retry(reader, &at)).unwrap_or_default();
    (request, RetryPolicy { per_try_timeout: attempt, ..retry })
}

fn timeouts(reader: &mut Reader<'_>, at: Option<At<'_>>) -> (Option<Duration>, Option<Duration>) {
    let Some(fields) = at.and_then(|at| reader.fields(&at, &TIMEOUTS)) else { return (None, None) };
    // 0 is none.
    let some = |timeout: &Duration| !timeout.is_zero();
    let request = reader.duration(fields.get("request")).filter(some);
    let attempt_at = fields.get("backendRequest");
    let attempt = reader.duration(attempt_at.clone()).filter(some);
    if let (Some(whole), Some(one), Some(at)) = (request, attempt, attempt_at)
        && one > whole
    {
        let message = format!("{} must not be longer than request, {whole:?}, not {one:?}", at.path);
        reader.error(&at, message);
    }
    (request, attempt)
}

fn retry(reader: &mut Reader<'_>, at: &At<'_>) -> Option<RetryPolicy> {
    let fields = reader.fields(at, &RETRY)?;
    let mut statuses = Vec::new();
    for item in reader.list(fields.get("codes")) {
        statuses.extend(reader.number(Some(item), 400..=599).and_then(|code| u16::try_from(code).ok()));
    }
    statuses.sort_unstable();
    statuses.dedup();
    let attempts = reader.number(fields.get("attempts"), 0..=100);
    let default = RetryPolicy::default();
    let attempts = attempts.unwrap_or(default.attempts);
    let policy = RetryPolicy { on: BROKEN.to_vec(), statuses, attempts, ..default };
    Some(policy.with_backoff(reader.positive(fields.get("backoff"))))
}
