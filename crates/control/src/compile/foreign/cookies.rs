//! A match by a cookie as one of the field that cookies come in. gRPC and Envoys before 1.37 pass over the condition that is meant for
//! it, and would take every request.

use outrigger_model::matcher::{HeaderMatch, Pattern, StringMatch};
use outrigger_model::route::CookieMatch;
use regex_syntax::escape;

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
