//! Durations, as they are written in a bootstrap.

use std::time::Duration;

use serde::{Deserialize, Deserializer};

/// `1h`, `5m`, `2s`, `100ms`, or a number of seconds.
pub(crate) fn duration<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    let text = String::deserialize(deserializer)?;
    parse_duration(&text).ok_or_else(|| {
        serde::de::Error::custom(format!("\"{text}\" is not a duration such as 5s, 100ms, 2m or 1h"))
    })
}

/// The same, if it is one.
pub(crate) fn parse_duration(text: &str) -> Option<Duration> {
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let seconds = match unit {
        "ms" => 0.001,
        "s" | "" => 1.0,
        "m" => 60.0,
        "h" => 3600.0,
        _ => return None,
    };
    Duration::try_from_secs_f64(number.parse::<f64>().ok()? * seconds).ok()
}

/// The same, or nothing.
pub(crate) fn some_duration<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<Duration>, D::Error> {
    let Some(text) = Option::<String>::deserialize(deserializer)? else { return Ok(None) };
    let wrong =
        || serde::de::Error::custom(format!("\"{text}\" is not a duration such as 5s, 100ms, 2m or 1h"));
    parse_duration(&text).map(Some).ok_or_else(wrong)
}
