//! Matchers of texts and headers: how they are written ([`StringMatch`], [`HeaderMatch`]) and how they run ([`Matcher`]).

use regex::{Regex, RegexBuilder};
use serde::{Deserialize, Serialize};

mod expression;
pub(crate) mod header;

pub use expression::as_re2;

/// `envoy.type.matcher.v3.StringMatcher`, plus "is present".
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct StringMatch {
    /// The comparison.
    pub pattern: Pattern,
    /// ASCII case is ignored (never for regular expressions).
    pub ignore_case: bool,
}

/// On a header or pseudo-header.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeaderMatch {
    /// Lower-case name, or a pseudo-header.
    pub name: String,
    /// On its value; several values are joined with `,` as Envoy does.
    pub value: StringMatch,
    /// The result is negated; an absent header then matches.
    pub invert: bool,
}

/// The comparison of a [`StringMatch`].
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Pattern {
    /// Equal.
    Exact(String),
    /// Starts with.
    Prefix(String),
    /// Ends with.
    Suffix(String),
    /// Contains.
    Contains(String),
    /// The whole text matches (RE2 syntax; look-around and back-references do not exist).
    Regex(String),
    /// Anything, as long as there is a value.
    Present,
    /// A whole number from the first up to, and without, the second; only of headers.
    Range(i64, i64),
}

impl StringMatch {
    /// Case-sensitive equality.
    pub fn exact(text: impl Into<String>) -> Self {
        Self { pattern: Pattern::Exact(text.into()), ignore_case: false }
    }

    /// Case-sensitive prefix.
    pub fn prefix(text: impl Into<String>) -> Self {
        Self { pattern: Pattern::Prefix(text.into()), ignore_case: false }
    }

    /// Case-sensitive suffix.
    pub fn suffix(text: impl Into<String>) -> Self {
        Self { pattern: Pattern::Suffix(text.into()), ignore_case: false }
    }

    /// The whole text matches the pattern.
    pub fn regex(pattern: impl Into<String>) -> Self {
        Self { pattern: Pattern::Regex(pattern.into()), ignore_case: false }
    }

    /// A whole number from `start` up to, and without, `end`.
    pub fn range(start: i64, end: i64) -> Self {
        Self { pattern: Pattern::Range(start, end), ignore_case: false }
    }

    /// Any value.
    pub fn present() -> Self {
        Self { pattern: Pattern::Present, ignore_case: false }
    }

    /// Whether every text matches, so that the condition says nothing of what is always there (a path, a method).
    pub fn is_any(&self) -> bool {
        match &self.pattern {
            Pattern::Present => true,
            Pattern::Prefix(text) | Pattern::Suffix(text) | Pattern::Contains(text) => text.is_empty(),
            Pattern::Regex(pattern) => matches!(pattern.as_str(), ".*" | "^.*$" | "(.*)"),
            Pattern::Exact(_) | Pattern::Range(..) => false,
        }
    }

    /// Compiles it.
    ///
    /// # Errors
    /// When the regular expression is malformed or larger than [`REGEX_SIZE_LIMIT`].
    pub fn compile(&self) -> Result<Matcher, String> {
        let fold =
            |s: &String| if self.ignore_case { s.to_ascii_lowercase() } else { s.clone() }.into_boxed_str();
        Ok(Matcher {
            ignore_case: self.ignore_case,
            kind: match &self.pattern {
                Pattern::Exact(s) => Kind::Exact(fold(s)),
                Pattern::Prefix(s) => Kind::Prefix(fold(s)),
                Pattern::Suffix(s) => Kind::Suffix(fold(s)),
                Pattern::Contains(s) => Kind::Contains(fold(s)),
                Pattern::Regex(s) => Kind::Regex(whole_text_regex(s)?),
                Pattern::Present => Kind::Present,
                Pattern::Range(start, end) => Kind::Range(*start..*end),
            },
        })
    }
}

/// The size limit of one compiled regular expression, in bytes.
pub const REGEX_SIZE_LIMIT: usize = 256 * 1024;

/// Compiles a regular expression that must match the whole text, as Envoy's `safe_regex` does.
///
/// # Errors
/// When it is malformed or too large; the text says where.
pub fn whole_text_regex(pattern: &str) -> Result<Regex, String> {
    compiled(pattern, |text| format!("^(?:{text})$"))
}

/// Compiles a regular expression that is looked for anywhere in a text.
///
/// # Errors
/// As of [`whole_text_regex`].
pub fn regex_within(pattern: &str) -> Result<Regex, String> {
    compiled(pattern, str::to_owned)
}

fn compiled(pattern: &str, framed: impl Fn(&str) -> String) -> Result<Regex, String> {
    as_re2(pattern)
        .and_then(|text| {
            RegexBuilder::new(&framed(&text))
                .size_limit(REGEX_SIZE_LIMIT)
                .dfa_size_limit(REGEX_SIZE_LIMIT)
                .build()
                .map_err(|error| error.to_string())
        })
        .map_err(|error| format!("regular expression \"{pattern}\": {error}"))
}

/// A compiled [`StringMatch`].
#[derive(Debug, Clone)]
pub struct Matcher {
    ignore_case: bool,
    kind: Kind,
}

#[derive(Debug, Clone)]
enum Kind {
    Exact(Box<str>),
    Prefix(Box<str>),
    Suffix(Box<str>),
    Contains(Box<str>),
    Regex(Regex),
    Present,
    Range(std::ops::Range<i64>),
}

impl Matcher {
    /// Whether the text matches; bytes that are not UTF-8 match no regular expression.
    pub fn matches(&self, text: &[u8]) -> bool {
        match &self.kind {
            Kind::Exact(s) => text.len() == s.len() && self.equal(text, s.as_bytes()),
            Kind::Prefix(s) => text.len() >= s.len() && self.equal(&text[..s.len()], s.as_bytes()),
            Kind::Suffix(s) => {
                text.len() >= s.len() && self.equal(&text[text.len() - s.len()..], s.as_bytes())
            }
            Kind::Contains(s) => {
                s.is_empty() || text.windows(s.len()).any(|window| self.equal(window, s.as_bytes()))
            }
            Kind::Regex(regex) => std::str::from_utf8(text).is_ok_and(|text| regex.is_match(text)),
            Kind::Present => true,
            Kind::Range(range) => {
                let text = std::str::from_utf8(text.trim_ascii());
                text.is_ok_and(|text| text.parse().is_ok_and(|number| range.contains(&number)))
            }
        }
    }

    fn equal(&self, a: &[u8], b: &[u8]) -> bool {
        if self.ignore_case { a.eq_ignore_ascii_case(b) } else { a == b }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(pattern: Pattern, ignore_case: bool, text: &str) -> bool {
        StringMatch { pattern, ignore_case }.compile().unwrap().matches(text.as_bytes())
    }

    #[test]
    fn each_pattern_compares_as_named() {
        assert!(run(Pattern::Exact("a".into()), false, "a"));
        assert!(!run(Pattern::Exact("a".into()), false, "A"));
        assert!(run(Pattern::Exact("A".into()), true, "a"));
        assert!(run(Pattern::Prefix("ab".into()), false, "abc"));
        assert!(run(Pattern::Suffix("bc".into()), false, "abc"));
        assert!(run(Pattern::Contains("B".into()), true, "abc"));
        assert!(!run(Pattern::Contains("d".into()), true, "abc"));
        assert!(run(Pattern::Present, false, ""));
    }

    #[test]
    fn a_regular_expression_matches_the_whole_text() {
        assert!(run(Pattern::Regex("a|b".into()), false, "b"));
        assert!(!run(Pattern::Regex("a|b".into()), false, "bc"));
    }

    #[test]
    fn a_range_takes_whole_numbers_from_its_start_up_to_its_end() {
        let range = |text: &str| run(Pattern::Range(-3, 10), false, text);
        for inside in ["-3", "0", "9", "+9", "007", " 5 "] {
            assert!(range(inside), "{inside:?}");
        }
        for outside in ["-4", "10", "", "5.0", "5x", "0x5", "1,2", "99999999999999999999"] {
            assert!(!range(outside), "{outside:?}");
        }
        assert!(!run(Pattern::Range(5, 5), false, "5"), "nothing is in an empty range");
    }

    #[test]
    fn a_bad_or_huge_regular_expression_is_an_error() {
        for bad in ["(", "(?=a)", "(a{1000}){1000}"] {
            assert!(whole_text_regex(bad).is_err(), "{bad}");
        }
    }
}
