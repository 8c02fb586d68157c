//! Wall-clock conversions: certificates count seconds since 1970, people read UTC.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustls_pki_types::UnixTime;
use time::OffsetDateTime;

/// Whole seconds since 1970, negative before.
pub fn unix_seconds(at: SystemTime) -> i64 {
    match at.duration_since(UNIX_EPOCH) {
        Ok(after) => i64::try_from(after.as_secs()).unwrap_or(i64::MAX),
        Err(before) => i64::try_from(before.duration().as_secs()).map_or(i64::MIN, |s| -s),
    }
}

/// Milliseconds since 1970; 0 before.
pub fn unix_millis(at: SystemTime) -> i64 {
    at.duration_since(UNIX_EPOCH).map_or(0, |d| i64::try_from(d.as_millis()).unwrap_or(i64::MAX))
}

/// The moment that many seconds after 1970; what no `SystemTime` can hold becomes 1970.
pub fn from_unix_seconds(seconds: i64) -> SystemTime {
    let distance = Duration::from_secs(seconds.unsigned_abs());
    let at = if seconds >= 0 { UNIX_EPOCH.checked_add(distance) } else { UNIX_EPOCH.checked_sub(distance) };
    at.unwrap_or(UNIX_EPOCH)
}

/// As certificate verification wants it.
pub fn unix_time(at: SystemTime) -> UnixTime {
    UnixTime::since_unix_epoch(at.duration_since(UNIX_EPOCH).unwrap_or_default())
}

/// RFC 3339 in UTC with whole seconds, `2026-11-21T01:30:00Z`.
pub fn rfc3339(at: SystemTime) -> String {
    let seconds = unix_seconds(at);
    match OffsetDateTime::from_unix_timestamp(seconds) {
        Ok(t) => format!(
            "{:04}-{:02}-{:02}T{:02}:{:02}:{:02}Z",
            t.year(),
            u8::from(t.month()),
            t.day(),
            t.hour(),
            t.minute(),
            t.second()
        ),
        Err(_) => format!("@{seconds}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_are_written_as_rfc_3339() {
        assert_eq!(rfc3339(from_unix_seconds(1_795_224_600)), "2026-11-21T01:30:00Z");
        assert_eq!(rfc3339(from_unix_seconds(-1)), "1969-12-31T23:59:59Z");
        assert_eq!(rfc3339(from_unix_seconds(1 << 50)), format!("@{}", 1u64 << 50));
    }
}
