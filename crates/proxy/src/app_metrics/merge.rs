//! The application's page line by line. One line that a scraper cannot read would cost it the whole page, ours too, so all must be readable;
//! and a family that is ours stays ours, whether there is anything in it yet or not.
//!
//! What Prometheus reads is less than both formats' specifications say, and of OpenMetrics not a blank more: that is what holds here.

use outrigger_telemetry::metrics::Format;
use smallvec::SmallVec;

/// Of a line that is shown in an error.
const SHOWN: usize = 80;

const OF_TEXT: [&str; 5] = ["counter", "gauge", "histogram", "summary", "untyped"];

const OF_OPEN_METRICS: [&str; 8] =
    ["counter", "gauge", "histogram", "gaugehistogram", "summary", "info", "stateset", "unknown"];

/// Of the text format, between words.
const BLANKS: [char; 2] = [' ', '\t'];

/// What who scrapes can read.
#[derive(Debug, Clone, Copy)]
pub(super) struct Reader {
    pub format: Format,
    /// Names of any letters too, which stand between quotes.
    pub any_names: bool,
}

/// The lines that may stand behind ours.
///
/// # Errors
/// What cannot be read, and where.
pub(super) fn merged(text: &[u8], reader: Reader, is_ours: impl Fn(&str) -> bool) -> Result<Vec<u8>, String> {
    let text = std::str::from_utf8(text).map_err(|error| format!("it is not UTF-8: {error}"))?;
    let is_open = reader.format == Format::OpenMetrics;
    let mut kept = Vec::with_capacity(text.len() + 1);
    let mut is_whole = !is_open;
    for (number, line) in text.split_terminator('\n').enumerate() {
        if is_open && line == "# EOF" {
            is_whole = true;
            break;
        }
        let name = match reader.line(line) {
            Some(Line::Nothing) => continue,
            Some(Line::Of(name)) => name,
            None => {
                let shown: String = line.chars().take(SHOWN).collect();
                return Err(format!("line {} is \"{}\"", number + 1, shown.escape_debug()));
            }
        };
        // In OpenMetrics a family of counters is called without the end of its samples' names.
        let is_ours =
            is_ours(name) || (is_open && line.starts_with('#') && is_ours(&format!("{name}_total")));
        if !is_ours {
            kept.extend_from_slice(line.as_bytes());
            kept.push(b'\n');
        }
    }
    if !is_whole {
        return Err("it does not end in # EOF".into());
    }
    if is_open {
        kept.extend_from_slice(b"# EOF\n");
    }
    Ok(kept)
}

enum Line<'t> {
    /// Empty, or a remark: it is left out, for not everybody reads it.
    Nothing,
    /// About the family or the sample of this name.
    Of(&'t str),
}

/// Each gives back what is behind it; `None`: a scraper would not know what to do with it.
impl Reader {
    fn line(self, line: &str) -> Option<Line<'_>> {
        // To some it is the end of the page.
        if line.contains('\0') {
            return None;
        }
        if line.trim_ascii().is_empty() {
            return Some(Line::Nothing);
        }
        match self.blanks(line).strip_prefix('#') {
            None => self.sample(line).map(Line::Of),
            Some(remark) => self.remark(remark),
        }
    }

    fn remark(self, remark: &str) -> Option<Line<'_>> {
        let words: &[&str] = match self.format {
            Format::Text => &["HELP", "TYPE"],
            Format::OpenMetrics => &["HELP", "TYPE", "UNIT"],
        };
        let said = self.blank(remark).and_then(|remark| {
            words.iter().find_map(|word| Some((*word, self.blank(remark.strip_prefix(*word)?)?)))
        });
        let Some((word, rest)) = said else { return Some(Line::Nothing) };
        let (name, rest) = self.name(rest)?;
        // Behind one blank all counts, blanks too.
        let text = rest.strip_prefix(' ').or_else(|| rest.strip_prefix('\t').filter(|_| self.is_text()));
        let is_read = match word {
            "TYPE" => text.is_some_and(|kind| self.types().contains(&kind)),
            "UNIT" => text.is_some_and(|unit| {
                unit.is_empty() || name.strip_suffix(unit).is_some_and(|name| name.ends_with('_'))
            }),
            _ => text.is_some() || (rest.is_empty() && self.is_text()),
        };
        is_read.then_some(Line::Of(name))
    }

    /// `name{labels} value time`, and in OpenMetrics an exemplar behind it.
    fn sample(self, line: &str) -> Option<&str> {
        let (name, rest) = match line.starts_with('{') {
            true => (None, line),
            false => plain(line, true).map(|(name, rest)| (Some(name), rest))?,
        };
        let rest = self.blanks(rest);
        let (name, rest) = match rest.strip_prefix('{') {
            Some(labels) => self.labels(labels, name)?,
            None => (name, rest),
        };
        let name = name?;
        let rest = self.numbers(rest)?;
        match rest.strip_prefix(" # {").filter(|_| !self.is_text()) {
            None => self.blanks(rest).is_empty().then_some(name),
            // Of others some have none, and refuse the page.
            Some(exemplar) if name.ends_with("_total") || name.ends_with("_bucket") => {
                let (_, rest) = self.labels(exemplar, Some(name))?;
                self.numbers(rest)?.is_empty().then_some(name)
            }
            Some(_) => None,
        }
    }

    /// What stands between braces: labels, and the name of the metric if it is not `known` yet.
    fn labels<'t>(self, text: &'t str, known: Option<&'t str>) -> Option<(Option<&'t str>, &'t str)> {
        let (mut name, mut rest) = (known, self.blanks(text));
        let mut labels: SmallVec<[&str; 16]> = SmallVec::new();
        while !rest.starts_with('}') {
            let is_quoted = rest.starts_with('"');
            let (label, behind) = if is_quoted { self.name(rest)? } else { plain(rest, false)? };
            rest = self.blanks(behind);
            match rest.strip_prefix('=') {
                Some(value) => {
                    labels.push(label);
                    rest = self.blanks(quoted(self.blanks(value))?.1);
                }
                None if is_quoted && name.is_none() => name = Some(label),
                None => return None,
            }
            rest = match rest.strip_prefix(',').map(|more| self.blanks(more)) {
                Some(more) if self.is_text() || !more.starts_with('}') => more,
                _ => rest.starts_with('}').then_some(rest)?,
            };
        }
        // One that is there twice costs the page as well, and the name is a label to Prometheus.
        labels.sort_unstable();
        let is_twice = labels.windows(2).any(|two| two[0] == two[1]) || labels.contains(&"__name__");
        (!is_twice).then(|| (name, &rest[1..]))
    }

    /// A value, and perhaps a time.
    fn numbers(self, text: &str) -> Option<&str> {
        let (value, rest) = self.word(text)?;
        number(value)?;
        match self.word(rest).filter(|(word, _)| !word.starts_with('#')) {
            Some((time, rest)) => self.is_time(time).then_some(rest),
            None => Some(rest),
        }
    }

    fn is_time(self, word: &str) -> bool {
        match self.format {
            Format::Text => word.bytes().all(|byte| byte.is_ascii_digit()) && word.parse::<i64>().is_ok(),
            Format::OpenMetrics => number(word).is_some_and(f64::is_finite),
        }
    }

    fn word(self, text: &str) -> Option<(&str, &str)> {
        let text = if self.is_text() { self.blanks(text) } else { text.strip_prefix(' ')? };
        let end = text.find(BLANKS).unwrap_or(text.len());
        (end > 0).then(|| text.split_at(end))
    }

    /// The name of a metric.
    fn name(self, text: &str) -> Option<(&str, &str)> {
        if !text.starts_with('"') {
            return plain(text, true);
        }
        // Without a backslash there is one way to write it.
        quoted(text).filter(|(name, _)| self.any_names && !name.is_empty() && !name.contains('\\'))
    }

    /// Where there must be one: in OpenMetrics one alone.
    fn blank(self, text: &str) -> Option<&str> {
        match self.format {
            Format::Text => text.starts_with(BLANKS).then(|| self.blanks(text)),
            Format::OpenMetrics => text.strip_prefix(' '),
        }
    }

    /// Where there may be some: in OpenMetrics none.
    fn blanks(self, text: &str) -> &str {
        if self.is_text() { text.trim_start_matches(BLANKS) } else { text }
    }

    fn types(self) -> &'static [&'static str] {
        if self.is_text() { &OF_TEXT } else { &OF_OPEN_METRICS }
    }

    fn is_text(self) -> bool {
        self.format == Format::Text
    }
}

/// As Go reads one: no sign before NaN, and none that is too large.
fn number(text: &str) -> Option<f64> {
    let number: f64 = text.parse().ok()?;
    let is_read = if number.is_nan() {
        !text.starts_with(['+', '-'])
    } else {
        number.is_finite() || text.contains(['i', 'I'])
    };
    is_read.then_some(number)
}

/// A name without quotes; that of a metric may have colons.
fn plain(text: &str, is_of_metric: bool) -> Option<(&str, &str)> {
    let is_part = |c: char| c.is_ascii_alphanumeric() || c == '_' || (is_of_metric && c == ':');
    let end = text.find(|c| !is_part(c)).unwrap_or(text.len());
    let (name, rest) = text.split_at(end);
    name.starts_with(|c: char| !c.is_ascii_digit()).then_some((name, rest))
}

/// What stands between quotes.
fn quoted(text: &str) -> Option<(&str, &str)> {
    let text = text.strip_prefix('"')?;
    let mut escaped = false;
    let end = text.bytes().position(|byte| {
        let ends = byte == b'"' && !escaped;
        escaped = byte == b'\\' && !escaped;
        ends
    })?;
    Some((&text[..end], &text[end + 1..]))
}

#[cfg(test)]
mod tests;
