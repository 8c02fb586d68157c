//! Regular expressions that mean what they mean to RE2, which is what Envoy, gRPC and Istio read them with.
//!
//! The same text says other things to the `regex` crate in two places: `\d`, `\w`, `\s` and `\b` are Unicode's there and ASCII's
//! to RE2, and a class has set operations and classes within it, whose signs are plain characters to RE2.

use std::borrow::Cow;

use regex_syntax::ast::parse::Parser;
use regex_syntax::ast::{
    Assertion, AssertionKind, Ast, ClassPerl, ClassPerlKind, ClassSetBinaryOp, ClassSetItem, Span, Visitor,
    visit,
};

/// The expression in the words of the `regex` crate.
///
/// # Errors
/// It is malformed, or has a set operation or a class within a class; the last line says why.
pub fn as_re2(pattern: &str) -> Result<Cow<'_, str>, String> {
    let ast = Parser::new().parse(pattern).map_err(|error| error.to_string())?;
    let found = visit(&ast, Found::default())?;
    if found.0.is_empty() {
        return Ok(Cow::Borrowed(pattern));
    }
    let (mut out, mut at) = (String::with_capacity(pattern.len() + 16), 0);
    for (span, text) in found.0 {
        out.push_str(&pattern[at..span.start.offset]);
        out.push_str(text);
        at = span.end.offset;
    }
    out.push_str(&pattern[at..]);
    Ok(Cow::Owned(out))
}

/// What is written otherwise, in the order of the text.
#[derive(Default)]
struct Found(Vec<(Span, &'static str)>);

impl Found {
    fn class(&mut self, class: &ClassPerl) {
        let text = match (&class.kind, class.negated) {
            (ClassPerlKind::Digit, false) => "[0-9]",
            (ClassPerlKind::Digit, true) => "[^0-9]",
            (ClassPerlKind::Space, false) => r"[\t\n\x0C\r ]",
            (ClassPerlKind::Space, true) => r"[^\t\n\x0C\r ]",
            (ClassPerlKind::Word, false) => "[0-9A-Za-z_]",
            (ClassPerlKind::Word, true) => "[^0-9A-Za-z_]",
        };
        self.0.push((class.span, text));
    }

    fn assertion(&mut self, assertion: &Assertion) {
        match assertion.kind {
            AssertionKind::WordBoundary => self.0.push((assertion.span, r"(?-u:\b)")),
            AssertionKind::NotWordBoundary => self.0.push((assertion.span, r"(?-u:\B)")),
            _ => {}
        }
    }
}

const NO_SETS: &str =
    "has &&, --, ~~ or a [ inside of a class, which are plain characters to Envoy; escape them with \\";

impl Visitor for Found {
    type Output = Self;
    type Err = String;

    fn finish(self) -> Result<Self, String> {
        Ok(self)
    }

    fn visit_pre(&mut self, ast: &Ast) -> Result<(), String> {
        match ast {
            Ast::ClassPerl(class) => self.class(class),
            Ast::Assertion(assertion) => self.assertion(assertion),
            _ => {}
        }
        Ok(())
    }

    fn visit_class_set_item_pre(&mut self, item: &ClassSetItem) -> Result<(), String> {
        match item {
            ClassSetItem::Perl(class) => self.class(class),
            ClassSetItem::Bracketed(_) => return Err(NO_SETS.to_owned()),
            _ => {}
        }
        Ok(())
    }

    fn visit_class_set_binary_op_pre(&mut self, _: &ClassSetBinaryOp) -> Result<(), String> {
        Err(NO_SETS.to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::super::whole_text_regex;

    fn matches(pattern: &str, text: &str) -> bool {
        whole_text_regex(pattern).unwrap().is_match(text)
    }

    #[test]
    fn classes_of_perl_are_ascii() {
        for (pattern, yes, no) in [
            (r"\d+", "09", "\u{663}"),
            (r"\w+", "aZ_9", "ä"),
            (r"[\w-]+", "a-b", "ä-b"),
            (r"[^\d]", "\u{663}", "3"),
            (r"a\sb", "a b", "a\u{a0}b"),
            (r"\D", "\u{663}", "3"),
            (r"\W", "ä", "a"),
            (r"\S", "\u{a0}", " "),
            (r".*\bb", "äb", "ab"),
            (r".*\Bb", "ab", "äb"),
            (r"[[:alpha:]]\d", "a1", "a\u{663}"),
            (r"(?i)x\d\.\w", "X1.y", "x1zy"),
        ] {
            assert!(matches(pattern, yes), "{pattern} {yes}");
            assert!(!matches(pattern, no), "{pattern} {no}");
        }
        assert!(matches("ä.ö", "äxö") && matches(r"\\d", r"\d"));
    }

    #[test]
    fn signs_that_are_characters_to_envoy_are_refused() {
        for pattern in ["[a-z&&[^b]]+", "[a--b]", "[a~~b]", "[a[bc]]"] {
            let error = whole_text_regex(pattern).unwrap_err();
            assert!(error.contains("plain characters to Envoy"), "{error}");
        }
        // Whole in itself, whatever stands around it.
        assert!(whole_text_regex("a)|(b").is_err());
        for pattern in [r"[a\[bc]", r"[a&b]", "[[:digit:]x]", "[a-z-]"] {
            assert!(whole_text_regex(pattern).is_ok(), "{pattern}");
        }
    }
}
