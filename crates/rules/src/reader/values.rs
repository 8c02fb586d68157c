//! Typed values: texts, numbers, durations, shares, patterns, hosts, labels. Each says what it wanted when it got something else.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::time::Duration;

use ipnet::IpNet;
use outrigger_model::matcher::as_re2;
use regex::RegexBuilder;

use super::{At, Reader};
use crate::finding::{closest, code, quote};
use crate::intent::Host;
use crate::yaml::{Value, integer};

/// Memory of one compiled pattern. A pattern runs on every request; a larger one is a mistake or an attack.
const PATTERN_BYTES: usize = 256 << 10;
const PATTERN_LENGTH: usize = 1024;

impl Reader<'_> {
    /// A text; numbers and booleans must be quoted, as Kubernetes demands.
    pub(crate) fn text(&mut self, at: Option<At<'_>>) -> Option<String> {
        let at = at?;
        match &at.node.value {
            Value::Text(text) => return Some(text.clone()),
            Value::Number(text) => {
                let message =
                    format!("{} must be a text, not the number {text}: write it in quotes", at.path);
                self.error(&at, message);
            }
            Value::Bool(value) => {
                let message = format!("{} must be a text, not {value}: write it in quotes", at.path);
                self.error(&at, message);
            }
            other => self.error(&at, format!("{} must be a text, not {other}", at.path)),
        }
        None
    }

    pub(crate) fn boolean(&mut self, at: Option<At<'_>>) -> Option<bool> {
        let at = at?;
        if let Value::Bool(value) = at.node.value {
            return Some(value);
        }
        self.error(&at, format!("{} must be true or false, not {}", at.path, at.node.value));
        None
    }

    /// A whole number, quoted or not.
    pub(crate) fn number(&mut self, at: Option<At<'_>>, range: RangeInclusive<u32>) -> Option<u32> {
        let at = at?;
        let value = match &at.node.value {
            Value::Number(text) | Value::Text(text) => integer(text),
            _ => None,
        };
        let found = value.and_then(|value| u32::try_from(value).ok()).filter(|value| range.contains(value));
        if found.is_none() {
            let (low, high) = (range.start(), range.end());
            let message =
                format!("{} must be a whole number from {low} to {high}, not {}", at.path, at.node.value);
            self.error(&at, message);
        }
        found
    }

    /// A whole number, be it below 0.
    pub(crate) fn integer(&mut self, at: Option<At<'_>>) -> Option<i64> {
        let at = at?;
        let found = match &at.node.value {
            Value::Number(text) | Value::Text(text) => text.parse().ok(),
            _ => None,
        };
        if found.is_none() {
            self.error(&at, format!("{} must be a whole number of 64 bits, not {}", at.path, at.node.value));
        }
        found
    }

    pub(crate) fn port(&mut self, at: Option<At<'_>>) -> Option<u16> {
        self.number(at, 1..=65535).and_then(|port| u16::try_from(port).ok())
    }

    pub(crate) fn status(&mut self, at: Option<At<'_>>) -> Option<u16> {
        self.number(at, 200..=599).and_then(|status| u16::try_from(status).ok())
    }

    pub(crate) fn duration(&mut self, at: Option<At<'_>>) -> Option<Duration> {
        let at = at?;
        let (found, meant) = match &at.node.value {
            Value::Text(text) => (duration(text), None),
            Value::Number(text) => {
                (None, integer(text).filter(|n| *n >= 0).map(|seconds| format!("{seconds}s")))
            }
            _ => (None, None),
        };
        if found.is_none() {
            let message =
                format!("{} must be a duration such as 1h, 1m, 1s or 250ms, not {}", at.path, at.node.value);
            self.error_meant(&at, message, meant);
        }
        // Istio refuses both, and Envoy's timers have no finer ones.
        if let Some(fine) = found.filter(|found| found.subsec_nanos() % 1_000_000 != 0) {
            let message = format!("{} must be whole milliseconds, not {fine:?}", at.path);
            self.error(&at, message);
            return None;
        }
        found
    }

    /// A duration that must not be 0.
    pub(crate) fn positive(&mut self, at: Option<At<'_>>) -> Option<Duration> {
        let value = self.duration(at.clone())?;
        if value.is_zero() {
            if let Some(at) = at {
                self.error(&at, format!("{} must be longer than 0", at.path));
            }
            return None;
        }
        Some(value)
    }

    /// A percentage from 0 to 100, with or without `%`.
    pub(crate) fn percent(&mut self, at: Option<At<'_>>) -> Option<f64> {
        self.decimal(at, "a percentage from 0 to 100", |value| (0.0..=100.0).contains(&value))
            .map(per_million)
    }

    /// A number that may have a fraction, quoted or not; `what` says which are allowed.
    pub(crate) fn decimal(
        &mut self,
        at: Option<At<'_>>,
        what: &str,
        allowed: impl Fn(f64) -> bool,
    ) -> Option<f64> {
        let at = at?;
        let value = match &at.node.value {
            Value::Number(text) => text.parse().ok(),
            Value::Text(text) => text.strip_suffix('%').unwrap_or(text).trim().parse().ok(),
            _ => None,
        };
        let found = value.filter(|value| allowed(*value));
        if found.is_none() {
            self.error(&at, format!("{} must be {what}, not {}", at.path, at.node.value));
        }
        found
    }

    /// One of a few words.
    pub(crate) fn choice<T: Clone>(&mut self, at: Option<At<'_>>, words: &[(&str, T)]) -> Option<T> {
        let at = at?;
        let text = self.text(Some(at.clone()))?;
        if let Some((_, value)) = words.iter().find(|(word, _)| *word == text) {
            return Some(value.clone());
        }
        let names: Vec<&str> = words.iter().map(|(word, _)| *word).collect();
        let meant = closest(&text, names.iter().copied());
        let message = format!("{} must be one of {}, not {}", at.path, names.join(", "), quote(&text));
        self.error_meant(&at, message, meant);
        None
    }

    pub(crate) fn texts(&mut self, at: Option<At<'_>>) -> Vec<String> {
        self.list(at).into_iter().filter_map(|item| self.text(Some(item))).collect()
    }

    /// A mapping of texts, such as labels.
    pub(crate) fn labels(&mut self, at: Option<At<'_>>) -> BTreeMap<String, String> {
        let mut labels = BTreeMap::new();
        for (key, item) in self.entries(at) {
            if let Some(value) = self.text(Some(item)) {
                labels.insert(key.text.clone(), value);
            }
        }
        labels
    }

    /// A host, resolved in the namespace of the object.
    pub(crate) fn host(&mut self, at: Option<At<'_>>) -> Option<Host> {
        let at = at?;
        let text = self.text(Some(at.clone()))?;
        match self.resolver().resolve(&text, &self.origin.namespace) {
            Ok(host) => Some(host),
            Err(error) => {
                self.error(&at, format!("{}: {error}", at.path));
                None
            }
        }
    }

    /// A host without wildcards.
    pub(crate) fn one_host(&mut self, at: Option<At<'_>>) -> Option<Host> {
        let host = self.host(at.clone())?;
        if host.is_wildcard() {
            if let Some(at) = at {
                self.error(
                    &at,
                    format!("{} must name one host, not the wildcard {}", at.path, quote(host.as_str())),
                );
            }
            return None;
        }
        Some(host)
    }

    pub(crate) fn ip_blocks(&mut self, at: Option<At<'_>>) -> Vec<IpNet> {
        self.list(at).into_iter().filter_map(|item| self.ip_block(&item)).collect()
    }

    fn ip_block(&mut self, at: &At<'_>) -> Option<IpNet> {
        let text = self.text(Some(at.clone()))?;
        let block =
            text.parse::<IpNet>().ok().or_else(|| text.parse::<std::net::IpAddr>().ok().map(IpNet::from));
        if block.is_none() {
            let message =
                format!("{} must be an address or a block such as 10.0.0.0/8, not {}", at.path, quote(&text));
            self.error(at, message);
        }
        block.map(|block| block.trunc())
    }

    /// What replaces a match: `\\1` to `\\9` are groups of the pattern, `\\\\` is a backslash.
    pub(crate) fn substitution(&mut self, at: Option<At<'_>>, pattern: Option<&str>) -> Option<String> {
        let at = at?;
        let text = self.text(Some(at.clone()))?;
        let groups = pattern.and_then(|p| compile(p).ok()).map_or(9, |pattern| pattern.captures_len() - 1);
        let mut chars = text.chars();
        while let Some(c) = chars.next() {
            let next = if c == '\\' { chars.next() } else { Some('\\') };
            let group = next.and_then(|c| c.to_digit(10));
            if next != Some('\\') && group.is_none_or(|group| group as usize > groups) {
                let named = next.map(String::from).unwrap_or_default();
                let message = format!(
                    "{}: \\{named} is none of the {groups} groups of the pattern (\\0 is the whole match, \\\\ a backslash)",
                    at.path
                );
                self.error(&at, message);
                return None;
            }
        }
        Some(text)
    }

    /// A pattern that compiles, alone and anchored on both sides.
    pub(crate) fn pattern(&mut self, at: Option<At<'_>>) -> Option<String> {
        let at = at?;
        let text = self.text(Some(at.clone()))?;
        match self.check_pattern(&text) {
            Ok(()) => Some(text),
            Err(reason) => {
                let message = format!("{} is not a regular expression that can be used: {reason}", at.path);
                self.error_of(code::REGEX, &at, message);
                None
            }
        }
    }

    fn check_pattern(&mut self, text: &str) -> Result<(), String> {
        if text.is_empty() {
            return Err("it is empty; .* matches everything".to_owned());
        }
        if text.len() > PATTERN_LENGTH {
            return Err(format!("it has {} bytes, at most {PATTERN_LENGTH} are allowed", text.len()));
        }
        self.patterns_left =
            self.patterns_left.checked_sub(1).ok_or("the text has too many patterns; split it into files")?;
        let text = as_re2(text).map_err(|error| last_line(&error))?;
        // Alone first: `a)|(b` would compile inside the anchors and mean something else.
        compile(&text).and_then(|_| compile(&anchored(&text))).map(drop).map_err(|error| match error {
            regex::Error::CompiledTooBig(limit) => format!("compiled it is larger than {limit} bytes"),
            other => last_line(&other.to_string()),
        })
    }

    /// A name of a header in lower case; pseudo-headers only where they may be edited.
    pub(crate) fn header_name(&mut self, at: &At<'_>, name: &str) -> Option<String> {
        if is_header_name(name) {
            return Some(name.to_ascii_lowercase());
        }
        self.error(at, format!("{} is not a header name", quote(name)));
        None
    }
}

/// Whether the text is a token of RFC 9110, 5.6.2.
pub(crate) fn is_header_name(name: &str) -> bool {
    !name.is_empty()
        && name.len() <= 256
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b))
}

fn last_line(error: &str) -> String {
    let reason = error.lines().last().unwrap_or(error);
    reason.strip_prefix("error: ").unwrap_or(reason).to_owned()
}

fn anchored(pattern: &str) -> String {
    format!("^(?:{pattern})$")
}

fn compile(pattern: &str) -> Result<regex::Regex, regex::Error> {
    RegexBuilder::new(pattern).size_limit(PATTERN_BYTES).build()
}

/// No finer than what travels: Envoy counts in millionths.
fn per_million(percentage: f64) -> f64 {
    (percentage * 10_000.0).round() / 10_000.0
}

/// Go's durations, as Kubernetes and Istio take them: `1h`, `1m30s`, `1.5s`, `250ms`. At most 100 years.
pub fn duration(text: &str) -> Option<Duration> {
    const LONGEST: u128 = 100 * 365 * 86_400 * 1_000_000_000;
    if text.is_empty() || text.len() > 40 {
        return None;
    }
    let mut rest = text;
    let mut nanos = 0u128;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let (number, tail) = rest.split_at(digits);
        let (unit, scale) = [
            ("ms", 1_000_000u128),
            ("us", 1_000),
            ("µs", 1_000),
            ("ns", 1),
            ("h", 3_600_000_000_000),
            ("m", 60_000_000_000),
            ("s", 1_000_000_000),
        ]
        .into_iter()
        .find(|(unit, _)| tail.starts_with(unit))?;
        nanos = nanos.checked_add(scaled(number, scale)?)?;
        rest = &tail[unit.len()..];
    }
    let secs = u64::try_from(nanos / 1_000_000_000).ok()?;
    (nanos <= LONGEST).then(|| Duration::new(secs, (nanos % 1_000_000_000) as u32))
}

/// A decimal number times a scale, without the error of floating point.
fn scaled(number: &str, scale: u128) -> Option<u128> {
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if whole.is_empty() && fraction.is_empty() || fraction.len() > 12 || fraction.contains('.') {
        return None;
    }
    let whole: u128 = if whole.is_empty() { 0 } else { whole.parse().ok()? };
    let part: u128 = if fraction.is_empty() { 0 } else { fraction.parse().ok()? };
    whole.checked_mul(scale)?.checked_add(part * scale / 10u128.pow(fraction.len() as u32))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_as_go_writes_them() {
        for (text, millis) in
            [("1h", 3_600_000), ("1m", 60_000), ("1m30s", 90_000), ("1.5s", 1500), ("250ms", 250), ("0s", 0)]
        {
            assert_eq!(duration(text), Some(Duration::from_millis(millis)), "{text}");
        }
        assert_eq!(duration("0.1s"), Some(Duration::from_millis(100)));
        for text in ["", "5", "s", "1x", "-1s", "1..s", ".s", "1s ", "99999999999h", "1d", &"9".repeat(39)] {
            assert_eq!(duration(text), None, "{text}");
        }
    }
}
