//! The application's page line by line. One line that a scraper cannot read would cost it the whole page, ours too, so all must be readable;
//! and a family that is ours stays ours.

use outrigger_telemetry::metrics::Format;

/// Of a line that is shown in an error.
const SHOWN: usize = 80;

/// Types of both formats.
const TYPES: [&str; 9] =
    ["counter", "gauge", "histogram", "summary", "untyped", "unknown", "info", "stateset", "gaugehistogram"];

/// The lines that may stand behind ours.
///
/// # Errors
/// What cannot be read, and where.
pub(super) fn merged(text: &[u8], format: Format, is_ours: impl Fn(&str) -> bool) -> Result<Vec<u8>, String> {
    let text = std::str::from_utf8(text).map_err(|error| format!("it is not UTF-8: {error}"))?;
    let mut kept = Vec::with_capacity(text.len() + 1);
    let mut is_whole = format == Format::Text;
    for (number, line) in text.split_terminator('\n').enumerate() {
        if format == Format::OpenMetrics && line == "# EOF" {
            is_whole = true;
            break;
        }
        let name = match read(line, format) {
            Some(Line::Nothing) => continue,
            Some(Line::Of(name)) => name,
            None => {
                let shown: String = line.chars().take(SHOWN).collect();
                return Err(format!("line {} is \"{}\"", number + 1, shown.escape_debug()));
            }
        };
        // In OpenMetrics a family of counters is called without the end of its samples' names.
        let is_ours = is_ours(name)
            || (format == Format::OpenMetrics && line.starts_with('#') && is_ours(&format!("{name}_total")));
        if !is_ours {
            kept.extend_from_slice(line.as_bytes());
            kept.push(b'\n');
        }
    }
    if !is_whole {
        return Err("it does not end in # EOF".into());
    }
    if format == Format::OpenMetrics {
        kept.extend_from_slice(b"# EOF\n");
    }
    Ok(kept)
}

enum Line<'t> {
    /// Empty, or a remark.
    Nothing,
    /// About the family or the sample of this name.
    Of(&'t str),
}

/// `None`: a scraper would not know what to do with it.
fn read(line: &str, format: Format) -> Option<Line<'_>> {
    if line.trim_ascii().is_empty() {
        return Some(Line::Nothing);
    }
    let Some(remark) = line.strip_prefix('#') else { return sample(line, format).map(Line::Of) };
    let remark = remark.trim_ascii_start();
    let word = ["HELP", "TYPE", "UNIT"].into_iter().find_map(|word| {
        let rest = remark.strip_prefix(word)?;
        rest.starts_with([' ', '\t']).then(|| (word, rest.trim_ascii_start()))
    });
    let Some((word, rest)) = word else { return Some(Line::Nothing) };
    let (name, rest) = named(rest)?;
    match word {
        "TYPE" => TYPES.contains(&rest.trim_ascii()).then_some(Line::Of(name)),
        _ => (rest.is_empty() || rest.starts_with([' ', '\t'])).then_some(Line::Of(name)),
    }
}

/// `name{labels} value time`, and in OpenMetrics an exemplar behind it.
fn sample(line: &str, format: Format) -> Option<&str> {
    let (name, rest) = match line.strip_prefix('{') {
        // Names of any letters stand between the braces.
        Some(inner) => (named(inner.trim_ascii_start())?.0, line),
        None => named(line)?,
    };
    let rest = labels(rest.trim_ascii_start())?;
    let (rest, exemplar) = match rest.split_once('#') {
        Some((rest, exemplar)) => (rest, Some(exemplar)),
        None => (rest, None),
    };
    numbers(rest, format)?;
    match exemplar {
        None => Some(name),
        Some(exemplar) if format == Format::OpenMetrics => {
            let exemplar = exemplar.trim_ascii_start();
            numbers(labels(exemplar.starts_with('{').then_some(exemplar)?)?, format).map(|()| name)
        }
        Some(_) => None,
    }
}

/// A value, and perhaps a time.
fn numbers(text: &str, format: Format) -> Option<()> {
    let mut words = text.split([' ', '\t']).filter(|word| !word.is_empty());
    words.next()?.parse::<f64>().ok()?;
    if let Some(time) = words.next() {
        match format {
            Format::Text => drop(time.parse::<i64>().ok()?),
            Format::OpenMetrics => drop(time.parse::<f64>().ok()?),
        }
    }
    words.next().is_none().then_some(())
}

/// A name, and what is behind it.
fn named(text: &str) -> Option<(&str, &str)> {
    if let Some(quoted) = text.strip_prefix('"') {
        let end = quote_end(quoted)?;
        return Some((&quoted[..end], &quoted[end + 1..]));
    }
    let is_part = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | ':');
    let end = text.find(|c| !is_part(c)).unwrap_or(text.len());
    let (name, rest) = text.split_at(end);
    name.starts_with(|c: char| !c.is_ascii_digit()).then_some((name, rest))
}

/// What is behind the labels, if there are any.
fn labels(text: &str) -> Option<&str> {
    let Some(mut rest) = text.strip_prefix('{') else { return Some(text) };
    loop {
        rest = rest.trim_ascii_start();
        if let Some(behind) = rest.strip_prefix('}') {
            return Some(behind);
        }
        let is_quoted = rest.starts_with('"');
        let (_, behind) = named(rest)?;
        rest = behind.trim_ascii_start();
        if let Some(value) = rest.strip_prefix('=') {
            let value = value.trim_ascii_start().strip_prefix('"')?;
            rest = value[quote_end(value)? + 1..].trim_ascii_start();
        } else if !is_quoted {
            return None;
        }
        rest = match rest.strip_prefix(',') {
            Some(more) => more,
            None => rest.starts_with('}').then_some(rest)?,
        };
    }
}

/// Where the quote ends that has begun before.
fn quote_end(text: &str) -> Option<usize> {
    let mut escaped = false;
    text.bytes().position(|byte| {
        let ends = byte == b'"' && !escaped;
        escaped = byte == b'\\' && !escaped;
        ends
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(text: &str, format: Format) -> Result<String, String> {
        let all = merged(text.as_bytes(), format, |name| matches!(name, "ours_total" | "took_bucket"));
        all.map(|all| String::from_utf8(all).unwrap())
    }

    #[test]
    fn what_a_scraper_reads_is_kept_as_it_is() {
        let text = "# HELP a Of \"a\" \\n.\n# TYPE a counter\na 1\na{b=\"c\"} 2 1700000000000\n\
                    a{b=\"}\\\"{ x\",c=\"\",} NaN\na{ b = \"c\" , d = \"e\" }\t+Inf\n# a remark\nx:y_z -1.5e-7\n{\"a.b\",c=\"d\"} 1";
        let kept = format!("{}\n", text.replace("# a remark\n", ""));
        assert_eq!(lines(text, Format::Text).unwrap(), kept);
        assert_eq!(lines("", Format::Text).unwrap(), "");
        let open = "# TYPE a counter\n# UNIT a seconds\na_total 1 17.5 # {trace_id=\"#1\"} 0.5 17.5\n# EOF\n";
        assert_eq!(lines(open, Format::OpenMetrics).unwrap(), open);
        assert_eq!(lines("\na 1\n# EOF", Format::OpenMetrics).unwrap(), "a 1\n# EOF\n");
    }

    #[test]
    fn one_line_that_cannot_be_read_is_named() {
        for line in [
            "<html>",
            "a",
            "a one",
            "a 1 2 3",
            "a 1 2.5",
            "a{b} 1",
            "a{b=\"c\"} 1 x",
            "a{b=\"c} 1",
            "a{b=c} 1",
            "a{b=\"c\"d=\"e\"} 1",
            "1a 2",
            "a 1\r",
            "# TYPE a number",
            "# TYPE a",
            "# HELP 1 x",
            "a 1 # {b=\"c\"} 1",
        ] {
            let error = lines(&format!("ok 1\n{line}\n"), Format::Text).unwrap_err();
            assert!(error.starts_with("line 2 is "), "{line}: {error}");
        }
        for exemplar in ["# 1", "# {b=\"c\"}", "# {b=c} 1"] {
            assert!(
                lines(&format!("a_total 1 {exemplar}\n# EOF\n"), Format::OpenMetrics).is_err(),
                "{exemplar}"
            );
        }
        assert!(lines("a 1\n", Format::OpenMetrics).unwrap_err().contains("# EOF"), "it was cut off");
        assert!(merged(b"a \xff", Format::Text, |_| false).unwrap_err().contains("UTF-8"));
        let long = lines(&"\u{fc}".repeat(1000), Format::Text).unwrap_err();
        assert!(long.chars().count() < 2 * SHOWN, "{long}");
    }

    #[test]
    fn what_is_ours_is_not_the_application_s_to_say() {
        let text =
            "# TYPE ours_total counter\nours_total{a=\"b\"} 1\ntook_bucket{le=\"1\"} 1\nourss_total 2\n";
        assert_eq!(lines(text, Format::Text).unwrap(), "ourss_total 2\n");
        let open = "# TYPE ours counter\nours_total 1\n# TYPE theirs counter\ntheirs_total 1\n# EOF\nmore\n";
        assert_eq!(
            lines(open, Format::OpenMetrics).unwrap(),
            "# TYPE theirs counter\ntheirs_total 1\n# EOF\n"
        );
    }
}
