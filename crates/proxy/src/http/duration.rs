//! How long the streams of a route may last and be silent, where it says so; and what a call of gRPC says of its own time.

use std::time::Duration;

use outrigger_model::route::{Forward, Route, RouteAction, StreamLimits};
use tokio::time::Instant;

use super::context::RequestCtx;
use super::timeout::{Clock, earlier};

/// How long the answer to a call is waited for, in its own words.
const GRPC_TIMEOUT: &str = "grpc-timeout";

/// Why an attempt ends whose cluster lets it last no longer.
pub const OF_ATTEMPT: &str = "the attempt has lasted as long as its cluster lets it";

/// The route of a request is known: from now on its stream may be silent and last only so long, whatever filters wait for.
#[inline]
pub fn begin(ctx: &mut RequestCtx<'_>, route: &Route) {
    if let RouteAction::Forward(Forward { limits: Some(limits), .. }) = &route.action
        && limits.concern(ctx.record.is_grpc)
    {
        bound(ctx, limits);
    }
}

/// It is another route than before, or none.
#[cold]
pub fn begin_anew(ctx: &mut RequestCtx<'_>, route: Option<&Route>) {
    let config = &ctx.view.http.config;
    let ends = config.max_stream_duration.map(|longest| ctx.record.started + longest);
    (ctx.idle, ctx.ends) = (config.stream_idle_timeout, ends);
    if let Some(route) = route {
        begin(ctx, route);
    }
}

#[cold]
fn bound(ctx: &mut RequestCtx<'_>, limits: &StreamLimits) {
    if let Some(idle) = limits.idle_timeout {
        ctx.idle = idle;
    }
    // Where nothing depends on it the head is not searched.
    let said = limits.grpc_duration.and_then(|_| ctx.head.first(GRPC_TIMEOUT)).and_then(parse);
    if limits.says_duration(said) {
        ctx.ends = limits.duration(said).map(|duration| ctx.record.started + duration);
    }
}

/// An attempt was sent at this time, and its cluster lets it last only so long.
#[cold]
pub fn attempt(ctx: &mut RequestCtx<'_>, longest: Duration, since: Instant) {
    between(ctx);
    let (ends, of_request) = (since + longest, ctx.ends);
    ctx.extras().attempt = Some((ends, of_request));
    ctx.ends = earlier(of_request, Some(ends));
}

/// An attempt is over, and there may be another: its time does not count any more.
#[cold]
pub fn between(ctx: &mut RequestCtx<'_>) {
    if let Some((_, of_request)) = ctx.extras.as_mut().and_then(|extras| extras.attempt.take()) {
        ctx.ends = of_request;
    }
}

/// When the request must be over, however many attempts it takes.
pub fn ends(ctx: &RequestCtx<'_>) -> Option<Instant> {
    let attempt = ctx.extras.as_ref().and_then(|extras| extras.attempt);
    attempt.map_or(ctx.ends, |(_, of_request)| of_request)
}

/// Whether it is the attempt's time that has passed, and not the request's.
pub fn is_of_attempt(ctx: &RequestCtx<'_>) -> bool {
    let attempt = ctx.extras.as_ref().and_then(|extras| extras.attempt);
    attempt.is_some_and(|(ends, of_request)| of_request.is_none_or(|of_request| ends < of_request))
}

/// Sets the clock of a request whose route has limits, and says in its head what holds.
#[cold]
pub fn limit(ctx: &mut RequestCtx<'_>, limits: &StreamLimits) {
    let said = ctx.head.first(GRPC_TIMEOUT).and_then(parse);
    if let Some(duration) = limits.duration(said) {
        // As an Envoy: the application is told what holds here, if it was told anything, be it nonsense.
        if ctx.head.has(GRPC_TIMEOUT) {
            tell(ctx, duration);
        }
    }
    if ctx.record.is_grpc
        && let Some(timeout) = limits.timeout(said)
    {
        let limit = Some(timeout).filter(|timeout| !timeout.is_zero());
        ctx.clock = Clock::new(limit, ctx.body.is_end(), ctx.now);
        if let Some(limit) = limit {
            tell(ctx, limit);
        }
    }
}

/// One attempt may be silent for so long; so may then its response.
#[cold]
pub fn silent(ctx: &mut RequestCtx<'_>, idle: Duration) {
    ctx.idle = if ctx.idle.is_zero() { idle } else { ctx.idle.min(idle) };
}

fn tell(ctx: &mut RequestCtx<'_>, time: Duration) {
    // A head without room goes on with what it says.
    let _ = ctx.head.set(GRPC_TIMEOUT, format(time));
}

/// At most eight digits and a unit.
fn parse(text: &[u8]) -> Option<Duration> {
    let (unit, digits) = text.split_last()?;
    if digits.is_empty() || digits.len() > 8 || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let number: u64 = std::str::from_utf8(digits).ok()?.parse().ok()?;
    Some(match unit {
        b'H' => Duration::from_secs(number * 3600),
        b'M' => Duration::from_secs(number * 60),
        b'S' => Duration::from_secs(number),
        b'm' => Duration::from_millis(number),
        b'u' => Duration::from_micros(number),
        b'n' => Duration::from_nanos(number),
        _ => return None,
    })
}

/// In milliseconds as long as these have eight digits.
fn format(time: Duration) -> String {
    const MOST: u128 = 99_999_999;
    let millis = time.as_millis();
    let (minutes, hours) = (u128::from(time.as_secs() / 60), u128::from(time.as_secs() / 3600));
    match (millis, u128::from(time.as_secs())) {
        (millis, _) if millis <= MOST => format!("{millis}m"),
        (_, seconds) if seconds <= MOST => format!("{seconds}S"),
        _ if minutes <= MOST => format!("{minutes}M"),
        _ => format!("{}H", hours.min(MOST)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_says_its_time_in_one_of_six_units() {
        for (text, millis) in [
            ("1H", Some(3_600_000)),
            ("2M", Some(120_000)),
            ("3S", Some(3_000)),
            ("4m", Some(4)),
            ("5000u", Some(5)),
            ("99999999n", Some(99)),
            ("", None),
            ("S", None),
            ("5", None),
            ("-1S", None),
            ("1.5S", None),
            ("123456789m", None),
            ("1s", None),
        ] {
            assert_eq!(parse(text.as_bytes()).map(|time| time.as_millis()), millis, "{text}");
        }
        for (seconds, text) in
            [(1, "1000m"), (99_999, "99999000m"), (100_000, "100000S"), (6_000_000_000, "100000000")]
        {
            let told = format(Duration::from_secs(seconds));
            assert!(told.starts_with(text) || told == "1666666H", "{told}");
            assert!(parse(told.as_bytes()).is_some(), "{told}");
        }
    }
}
