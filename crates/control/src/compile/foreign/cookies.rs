//! A match by a cookie as one of the field that cookies come in. gRPC and Envoys before 1.37 pass over the condition that is meant for
//! it, and would take every request.

use outrigger_model::matcher::{HeaderMatch, Pattern, StringMatch};
use outrigger_model::route::CookieMatch;
use regex_syntax::escape;
use regex_syntax::hir::{Class, Hir, HirKind};

/// Why a condition would be another one there: of a regular expression that would look at other cookies of the field, too.
pub(super) fn flaw(cookie: &CookieMatch) -> Option<String> {
    let Pattern::Regex(pattern) = &cookie.value.pattern else { return None };
    let hir = regex_syntax::parse(pattern).ok()?;
    let looks = !hir.properties().look_set().is_empty();
    (looks || may_take_semicolon(&hir)).then(|| {
        let shown: String = pattern.chars().take(80).collect();
        format!(
            "the cookie {} by \"{shown}\": here it is a part of the field cookie; write it without ^, $ and \\b, and so that it takes no \
             semicolon ([^;] instead of .)",
            cookie.name
        )
    })
}

fn may_take_semicolon(hir: &Hir) -> bool {
    match hir.kind() {
        HirKind::Empty | HirKind::Look(_) => false,
        HirKind::Literal(literal) => literal.0.contains(&b';'),
        HirKind::Class(Class::Unicode(class)) => {
            class.iter().any(|range| (range.start()..=range.end()).contains(&';'))
        }
        HirKind::Class(Class::Bytes(class)) => {
            class.iter().any(|range| (range.start()..=range.end()).contains(&b';'))
        }
        HirKind::Repetition(repetition) => may_take_semicolon(&repetition.sub),
        HirKind::Capture(capture) => may_take_semicolon(&capture.sub),
        HirKind::Concat(all) | HirKind::Alternation(all) => all.iter().any(may_take_semicolon),
    }
}

/// Takes any cookie of the name where ours takes the first; who sends two means them alike.
pub(super) fn as_header(cookie: CookieMatch) -> HeaderMatch {
    let value = match &cookie.value.pattern {
        Pattern::Exact(text) => escape(text),
        Pattern::Prefix(text) => format!("{}[^;]*", escape(text)),
        Pattern::Suffix(text) => format!("[^;]*{}", escape(text)),
        Pattern::Contains(text) => format!("[^;]*{}[^;]*", escape(text)),
        Pattern::Regex(pattern) => format!("(?:{pattern})"),
        Pattern::Present => "[^;]*".to_owned(),
        // No dialect has numbers in cookies: nothing is one.
        Pattern::Range(..) => r"[^\s\S]".to_owned(),
    };
    let fold = if cookie.value.ignore_case { "i" } else { "" };
    let pattern = format!("(?:.*;)? *{}=\"?(?{fold}:{value})\"?(?:;.*)?", escape(&cookie.name));
    HeaderMatch { name: "cookie".to_owned(), value: StringMatch::regex(pattern), invert: cookie.invert }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_regular_expression_that_would_look_at_other_cookies_is_told() {
        let told = |pattern: &str| {
            let value = StringMatch::regex(pattern);
            flaw(&CookieMatch { name: "user".into(), value, invert: false })
        };
        for pattern in ["^ann$", ".*ann.*", "a;b", r"\bann", "[^x]+", r"\W"] {
            let why = told(pattern).unwrap_or_else(|| panic!("{pattern}"));
            assert!(why.contains("the cookie user") && why.contains(pattern), "{why}");
        }
        for pattern in ["ann|bob", "[^;]*ann[^;]*", "a[0-9]{2}", r"\w+", "(a|b)c?"] {
            assert_eq!(told(pattern), None, "{pattern}");
        }
    }

    #[test]
    fn the_field_says_what_the_cookie_would() {
        let takes = |value: StringMatch, line: &str| {
            let cookie = CookieMatch { name: "a.b".into(), value, invert: false };
            as_header(cookie).value.compile().unwrap().matches(line.as_bytes())
        };
        let ann = || StringMatch::exact("a+n");
        for line in ["a.b=a+n", "x=y; a.b=a+n", "x=y;a.b=\"a+n\"; z", "a.b=a+n;c=d"] {
            assert!(takes(ann(), line), "{line}");
            assert!(takes(StringMatch::present(), line), "{line}");
            assert!(takes(StringMatch::prefix("a+"), line) && takes(StringMatch::suffix("+n"), line));
            assert!(takes(StringMatch::regex("a.n|q"), line), "{line}");
        }
        for line in ["", "a.b=aan", "axb=a+n", "xa.b=a+n", "a.b=a+nn", "x=a.b=a+n", "a.b=x; c=a+n"] {
            assert!(!takes(ann(), line), "{line}");
        }
        assert!(!takes(StringMatch::suffix("+n"), "a.b=x; c=a+n"), "what another one says is nothing");
        let folded = StringMatch { ignore_case: true, ..ann() };
        assert!(takes(folded.clone(), "a.b=A+N") && !takes(folded, "A.b=a+n"));
    }
}
