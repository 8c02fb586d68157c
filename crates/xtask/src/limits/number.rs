//! Numbers as the tables write them: `32,768`, `64 KiB`, `4.5 s`, `half`, `an hour`.

use std::fmt;
use std::time::Duration;

/// A number of the page or of the code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Value {
    /// Of things, or of bytes; of a part, how many of it make a whole.
    Count(u64),
    Time(Duration),
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Count(count) => {
                let (digits, mut text) = (count.to_string(), String::new());
                for (i, digit) in digits.chars().enumerate() {
                    if i > 0 && (digits.len() - i).is_multiple_of(3) {
                        text.push(',');
                    }
                    text.push(digit);
                }
                f.write_str(&text)?;
                let unit = [("MiB", 20), ("KiB", 10)].into_iter().find(|(_, shift)| {
                    let whole = *count >> shift;
                    whole > 0 && whole << shift == *count
                });
                unit.map_or(Ok(()), |(name, shift)| write!(f, " ({} {name})", count >> shift))
            }
            Self::Time(time) => write!(f, "{time:?}"),
        }
    }
}

const WORDS: &[(&str, u64)] = &[
    ("half", 2),
    ("third", 3),
    ("quarter", 4),
    ("eighth", 8),
    ("sixteenth", 16),
    ("two", 2),
    ("twice", 2),
    ("three", 3),
    ("four", 4),
    ("five", 5),
    ("six", 6),
    ("seven", 7),
    ("eight", 8),
    ("nine", 9),
    ("ten", 10),
    ("twelve", 12),
    ("fifteen", 15),
    ("sixteen", 16),
    ("twenty", 20),
    ("hundred", 100),
    ("thousand", 1000),
];

/// In milliseconds.
const TIMES: &[(&str, u64)] = &[
    ("ms", 1),
    ("s", 1000),
    ("second", 1000),
    ("seconds", 1000),
    ("min", 60_000),
    ("minute", 60_000),
    ("minutes", 60_000),
    ("hour", 3_600_000),
    ("hours", 3_600_000),
];

const BYTES: &[(&str, u64)] =
    &[("bytes", 1), ("KiB", 1 << 10), ("MB", 1_000_000), ("MiB", 1 << 20), ("GiB", 1 << 30)];

/// Names that have digits in them and are no numbers.
const NAMES: &[&str] = &["HTTP/1", "HTTP/2"];

/// The numbers of a cell, as they are written and what they are; `Err`: what has a digit and cannot be read.
pub fn numbers(cell: &str) -> Vec<Result<(String, Value), String>> {
    let words: Vec<&str> = cell
        .split_ascii_whitespace()
        .map(|word| word.trim_matches(&['(', ')', ';', ',', '.', ':', '`'][..]))
        .collect();
    let mut found = Vec::new();
    let mut i = 0;
    while i < words.len() {
        let (word, next) = (words[i], words.get(i + 1).copied().unwrap_or_default());
        i += 1;
        let unit = |of: &[(&str, u64)]| of.iter().find(|(name, _)| *name == next).map(|(_, times)| *times);
        if let Some((_, count)) = WORDS.iter().find(|(name, _)| *name == word) {
            found.push(Ok((word.to_owned(), Value::Count(*count))));
        } else if let Some(millis) = unit(TIMES).filter(|_| ["a", "an"].contains(&word)) {
            found.push(Ok((format!("{word} {next}"), Value::Time(Duration::from_millis(millis)))));
            i += 1;
        } else if word.contains(|c: char| c.is_ascii_digit()) && !NAMES.contains(&word) {
            let (value, has_unit) = match (unit(TIMES), unit(BYTES)) {
                (Some(millis), _) => (thousandths(word, millis).map(Value::Time), true),
                (None, Some(bytes)) => (whole(word).map(|count| Value::Count(count * bytes)), true),
                // The first 64 bits of an address.
                (None, None) => (whole(word.strip_prefix('/').unwrap_or(word)).map(Value::Count), false),
            };
            let written = if has_unit { format!("{word} {next}") } else { word.to_owned() };
            found.push(value.map(|value| (written.clone(), value)).ok_or(written));
            i += usize::from(has_unit);
        }
    }
    found
}

/// `20,000`: groups of three.
fn whole(text: &str) -> Option<u64> {
    let (first, groups) = text.split_once(',').map_or((text, None), |(first, rest)| (first, Some(rest)));
    let digits = |part: &str| part.bytes().all(|b| b.is_ascii_digit());
    let grouped = groups.is_none_or(|rest| rest.split(',').all(|group| group.len() == 3 && digits(group)));
    let fits = digits(first) && grouped && (groups.is_none() || first.len() <= 3);
    fits.then(|| text.replace(',', "").parse().ok()).flatten()
}

/// `4.5` times so many milliseconds.
fn thousandths(text: &str, millis: u64) -> Option<Duration> {
    let (first, part) = text.split_once('.').unwrap_or((text, "0"));
    let tenth = part.parse::<u64>().ok().filter(|_| part.len() == 1)?;
    Some(Duration::from_millis(whole(first)? * millis + tenth * millis / 10))
}
