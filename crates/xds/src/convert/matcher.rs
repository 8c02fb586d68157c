//! Text, header, query and path matchers. Regular expressions are compiled for validation only.

use outrigger_model::matcher::{Pattern, StringMatch, whole_text_regex};
use outrigger_model::route::{CookieMatch, HeaderMatch, QueryMatch};

use super::flaw::{Decoded, Flaw, Under, flaw};
use super::left_out;
use crate::kind::ClientKind;
use crate::wire::matcher::{RegexMatcher, StringMatcher, string_matcher::MatchPattern};
use crate::wire::route::{
    CookieMatcher, HeaderMatcher, QueryParameterMatcher, header_matcher::HeaderMatchSpecifier as H,
    query_parameter_matcher::QueryParameterMatchSpecifier as Q,
};
use crate::wire::scalar::Int64Range;

/// How "any value" is spelt where the wire has no "is present": it matches every text.
const ANYTHING: &str = "(?s).*";
/// What no text matches: only headers have numbers.
const NOTHING: &str = "[^\\s\\S]";

pub(super) fn encode_regex(pattern: &str) -> RegexMatcher {
    RegexMatcher { regex: pattern.to_owned(), ..Default::default() }
}

pub(super) fn decode_regex(wire: &RegexMatcher) -> Decoded<String> {
    if wire.regex.is_empty() {
        return flaw("regex", "must not be empty");
    }
    match whole_text_regex(&wire.regex) {
        Ok(_) => Ok(wire.regex.clone()),
        Err(reason) => flaw("regex", reason),
    }
}

pub(super) fn encode(text: &StringMatch) -> StringMatcher {
    // Envoy refuses empty prefixes, suffixes and contained texts: they match everything.
    let pattern = match &text.pattern {
        Pattern::Exact(s) => MatchPattern::Exact(s.clone()),
        Pattern::Prefix(s) if !s.is_empty() => MatchPattern::Prefix(s.clone()),
        Pattern::Suffix(s) if !s.is_empty() => MatchPattern::Suffix(s.clone()),
        Pattern::Contains(s) if !s.is_empty() => MatchPattern::Contains(s.clone()),
        Pattern::Regex(s) if !s.is_empty() => MatchPattern::SafeRegex(encode_regex(s)),
        Pattern::Regex(_) => MatchPattern::Exact(String::new()),
        Pattern::Prefix(_) | Pattern::Suffix(_) | Pattern::Contains(_) | Pattern::Present => {
            MatchPattern::SafeRegex(encode_regex(ANYTHING))
        }
        Pattern::Range(..) => MatchPattern::SafeRegex(encode_regex(NOTHING)),
    };
    let folds = !matches!(pattern, MatchPattern::SafeRegex(_));
    StringMatcher { ignore_case: text.ignore_case && folds, match_pattern: Some(pattern) }
}

pub(super) fn decode(wire: &StringMatcher) -> Decoded<StringMatch> {
    let pattern = match &wire.match_pattern {
        Some(MatchPattern::Exact(s)) => Pattern::Exact(s.clone()),
        Some(MatchPattern::Prefix(s)) => Pattern::Prefix(not_empty(s, "prefix")?),
        Some(MatchPattern::Suffix(s)) => Pattern::Suffix(not_empty(s, "suffix")?),
        Some(MatchPattern::Contains(s)) => Pattern::Contains(not_empty(s, "contains")?),
        Some(MatchPattern::SafeRegex(r)) if r.regex == ANYTHING => Pattern::Present,
        Some(MatchPattern::SafeRegex(r)) => Pattern::Regex(decode_regex(r).under("safe_regex")?),
        Some(MatchPattern::Custom(_)) => return flaw("custom", "custom matchers are not supported"),
        None => return Err(Flaw::new("one of exact, prefix, suffix, contains and safe_regex is required")),
    };
    let folds = !matches!(pattern, Pattern::Regex(_) | Pattern::Present);
    Ok(StringMatch { pattern, ignore_case: wire.ignore_case && folds })
}

fn not_empty(text: &str, field: &str) -> Decoded<String> {
    if text.is_empty() { flaw(field, "must not be empty") } else { Ok(text.to_owned()) }
}

pub(super) fn encode_header(header: &HeaderMatch, kind: ClientKind) -> HeaderMatcher {
    let host = kind == ClientKind::Envoy && matches!(header.name.as_str(), ":authority" | "host");
    let text = |value: &StringMatch| match host.then(|| host_regex(value)).flatten() {
        Some(regex) => StringMatcher {
            match_pattern: Some(MatchPattern::SafeRegex(encode_regex(&regex))),
            ..Default::default()
        },
        None => encode(value),
    };
    let present = header.value.pattern == Pattern::Present;
    HeaderMatcher {
        name: header.name.clone(),
        invert_match: header.invert,
        // Without it an absent header never matches in Envoy, negated or not.
        treat_missing_header_as_empty: header.invert && !present,
        header_match_specifier: Some(match header.value.pattern {
            Pattern::Present => H::PresentMatch(true),
            Pattern::Range(start, end) => H::RangeMatch(Int64Range { start, end }),
            _ => H::StringMatch(text(&header.value)),
        }),
    }
}

/// We compare hosts without port and final dot; Envoy compares what was sent, so it is told to let both be there.
fn host_regex(value: &StringMatch) -> Option<String> {
    let (before, text) = match &value.pattern {
        Pattern::Exact(text) => ("", text),
        Pattern::Suffix(text) => (".*", text),
        _ => return None,
    };
    let has_port = text.rsplit_once(':').is_some_and(|(_, port)| port.bytes().all(|b| b.is_ascii_digit()));
    if has_port && !text.ends_with(']') {
        return None;
    }
    let fold = if value.ignore_case { "(?i)" } else { "" };
    let text = escape(text.strip_suffix('.').unwrap_or(text));
    Some(format!("{fold}{before}{text}\\.*(:[0-9]+)?"))
}

/// One or two conditions that must all hold: "there is a value and it is not x" is two here.
#[allow(deprecated)] // older control planes still send the fields that string_match replaced
pub(super) fn decode_header(wire: &HeaderMatcher) -> Decoded<Vec<HeaderMatch>> {
    if wire.name.is_empty() {
        return flaw("name", "must not be empty");
    }
    let simple = |pattern| StringMatch { pattern, ignore_case: false };
    let (value, invert) = match &wire.header_match_specifier {
        // Envoy: nothing said means "is present".
        None => (StringMatch::present(), wire.invert_match),
        Some(H::PresentMatch(present)) => (StringMatch::present(), wire.invert_match == *present),
        Some(H::StringMatch(s)) => (decode(s).under("string_match")?, wire.invert_match),
        Some(H::ExactMatch(s)) => (simple(Pattern::Exact(s.clone())), wire.invert_match),
        Some(H::PrefixMatch(s)) => {
            (simple(Pattern::Prefix(not_empty(s, "prefix_match")?)), wire.invert_match)
        }
        Some(H::SuffixMatch(s)) => {
            (simple(Pattern::Suffix(not_empty(s, "suffix_match")?)), wire.invert_match)
        }
        Some(H::ContainsMatch(s)) => {
            (simple(Pattern::Contains(not_empty(s, "contains_match")?)), wire.invert_match)
        }
        Some(H::SafeRegexMatch(r)) => {
            (simple(Pattern::Regex(decode_regex(r).under("safe_regex_match")?)), wire.invert_match)
        }
        Some(H::RangeMatch(range)) => (simple(Pattern::Range(range.start, range.end)), wire.invert_match),
    };
    let name = wire.name.to_ascii_lowercase();
    let is_presence = value.pattern == Pattern::Present;
    if wire.treat_missing_header_as_empty && !invert && !is_presence {
        left_out("treat_missing_header_as_empty");
    }
    let needs_value = invert && !is_presence && !wire.treat_missing_header_as_empty;
    let mut all = Vec::with_capacity(1 + usize::from(needs_value));
    if needs_value {
        all.push(HeaderMatch { name: name.clone(), value: StringMatch::present(), invert: false });
    }
    all.push(HeaderMatch { name, value, invert });
    Ok(all)
}

pub(super) fn encode_query(query: &QueryMatch) -> QueryParameterMatcher {
    QueryParameterMatcher {
        name: query.name.clone(),
        query_parameter_match_specifier: Some(match query.value.pattern {
            Pattern::Present => Q::PresentMatch(true),
            _ => Q::StringMatch(encode(&query.value)),
        }),
    }
}

pub(super) fn decode_query(wire: &QueryParameterMatcher) -> Decoded<QueryMatch> {
    if wire.name.is_empty() {
        return flaw("name", "must not be empty");
    }
    let value = match &wire.query_parameter_match_specifier {
        None | Some(Q::PresentMatch(true)) => StringMatch::present(),
        Some(Q::PresentMatch(false)) => return flaw("present_match", "a negated match is not supported"),
        Some(Q::StringMatch(s)) => decode(s).under("string_match")?,
    };
    Ok(QueryMatch { name: wire.name.clone(), value })
}

pub(super) fn encode_cookie(cookie: &CookieMatch) -> CookieMatcher {
    CookieMatcher {
        name: cookie.name.clone(),
        string_match: Some(encode(&cookie.value)),
        invert_match: cookie.invert,
    }
}

pub(super) fn decode_cookie(wire: &CookieMatcher) -> Decoded<CookieMatch> {
    if wire.name.is_empty() {
        return flaw("name", "must not be empty");
    }
    let Some(value) = &wire.string_match else { return flaw("string_match", "is required") };
    let value = decode(value).under("string_match")?;
    Ok(CookieMatch { name: wire.name.clone(), value, invert: wire.invert_match })
}

/// Escapes what RE2 reads as syntax.
pub(super) fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len() + 8);
    for c in text.chars() {
        if r"\.+*?()|[]{}^$".contains(c) {
            escaped.push('\\');
        }
        escaped.push(c);
    }
    escaped
}
