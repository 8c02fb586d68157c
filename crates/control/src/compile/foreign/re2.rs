//! What RE2 makes of a regular expression: Envoy and gRPC compile ours with it, and refuse the whole resource for one that it
//! does not take.
//!
//! Two questions, answered from the syntax tree: whether RE2 reads it as we do, and how many instructions it becomes. The
//! second is an upper bound: RE2 shares prefixes and suffixes that are counted apart here.

use regex_syntax::ast::{
    AssertionKind, Ast, ClassPerl, ClassPerlKind, ClassSet, ClassSetItem, Flag, FlagsItemKind, GroupKind,
    HexLiteralKind, LiteralKind, RepetitionKind, RepetitionOp, RepetitionRange, parse::Parser,
};
use regex_syntax::utf8::Utf8Sequences;

/// The most that RE2 repeats anything, nested repetitions multiplied.
const MOST_REPEATS: u64 = 1000;
/// The loop in front of an unanchored match, the match and the failure.
const FRAME: u64 = 4;
/// All characters outside of ASCII: RE2 has few instructions for this very range.
const REST: (u32, u32) = (0x80, 0x10_FFFF);
const REST_SIZE: u64 = 6;

/// An upper bound of the program's size, RE2's `ProgramSize`.
///
/// # Errors
/// When RE2 refuses the expression or reads it differently; says why.
pub(super) fn program_size(pattern: &str) -> Result<u64, String> {
    let ast = Parser::new().parse(pattern).map_err(|error| error.kind().to_string())?;
    let mut walk = Walk { pattern, fold: false, dot_takes_line_ends: false };
    Ok(FRAME.saturating_add(walk.size(&ast, 1)?))
}

/// How many groups an expression captures.
pub(super) fn groups(pattern: &str) -> u32 {
    fn count(ast: &Ast) -> u32 {
        match ast {
            Ast::Repetition(repetition) => count(&repetition.ast),
            Ast::Group(group) => {
                u32::from(!matches!(group.kind, GroupKind::NonCapturing(_))) + count(&group.ast)
            }
            Ast::Alternation(all) => all.asts.iter().map(count).sum(),
            Ast::Concat(all) => all.asts.iter().map(count).sum(),
            _ => 0,
        }
    }
    Parser::new().parse(pattern).map_or(0, |ast| count(&ast))
}

type Size = Result<u64, String>;

fn refused<T>(what: &str) -> Result<T, String> {
    Err(format!("RE2 does not know {what}"))
}

/// The flags at the present place of the expression.
struct Walk<'p> {
    pattern: &'p str,
    fold: bool,
    dot_takes_line_ends: bool,
}

impl Walk<'_> {
    /// `repeats` is how often the repetitions around it multiply it. The parser bounds the depth.
    fn size(&mut self, ast: &Ast, repeats: u64) -> Size {
        match ast {
            Ast::Empty(_) => Ok(0),
            Ast::Flags(set) => self.flags(&set.flags).map(|()| 0),
            Ast::Literal(literal) => {
                if matches!(
                    literal.kind,
                    LiteralKind::HexFixed(HexLiteralKind::UnicodeShort | HexLiteralKind::UnicodeLong)
                        | LiteralKind::HexBrace(HexLiteralKind::UnicodeShort | HexLiteralKind::UnicodeLong)
                ) {
                    return refused("\\u and \\U; write \\x{…}");
                }
                Ok(self.literal(literal.c))
            }
            Ast::Dot(_) => Ok(if self.dot_takes_line_ends { 1 } else { 2 } + REST_SIZE),
            Ast::Assertion(assertion) => match assertion.kind {
                AssertionKind::StartLine
                | AssertionKind::EndLine
                | AssertionKind::StartText
                | AssertionKind::EndText
                | AssertionKind::WordBoundary
                | AssertionKind::NotWordBoundary => Ok(1),
                _ => refused("\\<, \\> and \\b{…}"),
            },
            Ast::ClassUnicode(_) => refused("this \\p class as we do"),
            Ast::ClassPerl(class) => Ok(encoded(&perl(class))),
            Ast::ClassBracketed(class) => {
                let ClassSet::Item(item) = &class.kind else { return refused("&&, -- and ~~ in a class") };
                let mut ranges = Vec::new();
                members(item, &mut ranges)?;
                if self.fold {
                    fold(&mut ranges);
                }
                let ranges = if class.negated { complement(ranges) } else { merged(ranges) };
                Ok(encoded(&ranges))
            }
            Ast::Repetition(repetition) => {
                if matches!(*repetition.ast, Ast::Repetition(_)) {
                    return refused("a repetition of a repetition without a group between them");
                }
                self.repetition(&repetition.op, &repetition.ast, repeats)
            }
            Ast::Group(group) => {
                let before = (self.fold, self.dot_takes_line_ends);
                let own = match &group.kind {
                    GroupKind::CaptureIndex(_) => 2,
                    GroupKind::CaptureName { starts_with_p: true, .. } => 2,
                    GroupKind::CaptureName { .. } => return refused("(?<name>…); write (?P<name>…)"),
                    GroupKind::NonCapturing(flags) => self.flags(flags).map(|()| 0)?,
                };
                let inner = self.size(&group.ast, repeats)?;
                (self.fold, self.dot_takes_line_ends) = before;
                Ok(inner.saturating_add(own))
            }
            // Where a branch is empty RE2 has an instruction for it; single letters become a class.
            Ast::Alternation(all) => match all.asts.iter().map(letter).collect::<Option<Ranges>>() {
                Some(letters) if !self.fold => Ok(encoded(&merged(letters))),
                _ => self.sum(&all.asts, 1, repeats),
            },
            Ast::Concat(all) => self.sum(&all.asts, 0, repeats),
        }
    }

    fn sum(&mut self, all: &[Ast], more: u64, repeats: u64) -> Size {
        let mut sum = 0u64;
        for ast in all {
            sum = sum.saturating_add(more).saturating_add(self.size(ast, repeats)?);
        }
        Ok(sum)
    }

    fn repetition(&mut self, op: &RepetitionOp, ast: &Ast, repeats: u64) -> Size {
        let (least, most) = match &op.kind {
            RepetitionKind::ZeroOrOne => (0, Some(1)),
            RepetitionKind::ZeroOrMore => (0, None),
            RepetitionKind::OneOrMore => (1, None),
            RepetitionKind::Range(range) => {
                if self.pattern.get(op.span.start.offset..).is_some_and(|text| text.starts_with("{,")) {
                    return Err("RE2 reads {,n} as text; write {0,n}".to_owned());
                }
                match *range {
                    RepetitionRange::Exactly(n) => (u64::from(n), Some(u64::from(n))),
                    RepetitionRange::AtLeast(n) => (u64::from(n), None),
                    RepetitionRange::Bounded(n, m) => (u64::from(n), Some(u64::from(m))),
                }
            }
        };
        // Only counted ones multiply.
        let counted = matches!(op.kind, RepetitionKind::Range(_));
        let repeats =
            if counted { repeats.saturating_mul(least.max(most.unwrap_or(0)).max(1)) } else { repeats };
        if repeats > MOST_REPEATS {
            return Err(format!(
                "RE2 repeats nothing more than {MOST_REPEATS} times, nested repetitions multiplied"
            ));
        }
        let one = self.size(ast, repeats)?;
        let copies = |n: u64, one: u64| n.saturating_mul(one);
        Ok(match most {
            Some(most) => {
                copies(least, one).saturating_add(copies(most - least.min(most), one.saturating_add(1)))
            }
            None => copies(least.max(1), one).saturating_add(1),
        })
    }

    fn flags(&mut self, flags: &regex_syntax::ast::Flags) -> Result<(), String> {
        let mut on = true;
        for item in &flags.items {
            match item.kind {
                FlagsItemKind::Negation => on = false,
                FlagsItemKind::Flag(Flag::CaseInsensitive) => self.fold = on,
                FlagsItemKind::Flag(Flag::DotMatchesNewLine) => self.dot_takes_line_ends = on,
                FlagsItemKind::Flag(Flag::MultiLine | Flag::SwapGreed) => {}
                FlagsItemKind::Flag(Flag::Unicode | Flag::CRLF | Flag::IgnoreWhitespace) => {
                    return refused("the flags u, R and x");
                }
            }
        }
        Ok(())
    }

    fn literal(&self, c: char) -> u64 {
        match c {
            // Their other forms are outside of ASCII.
            'k' | 'K' if self.fold => 4,
            's' | 'S' if self.fold => 3,
            c if c.is_ascii() => 1,
            c if self.fold => 3 * c.len_utf8() as u64,
            c => c.len_utf8() as u64,
        }
    }
}

type Ranges = Vec<(u32, u32)>;

fn letter(ast: &Ast) -> Option<(u32, u32)> {
    match ast {
        Ast::Literal(literal) => Some((literal.c.into(), literal.c.into())),
        _ => None,
    }
}

fn members(item: &ClassSetItem, ranges: &mut Ranges) -> Result<(), String> {
    match item {
        ClassSetItem::Empty(_) => {}
        ClassSetItem::Literal(literal) => ranges.push((literal.c.into(), literal.c.into())),
        ClassSetItem::Range(range) => ranges.push((range.start.c.into(), range.end.c.into())),
        ClassSetItem::Perl(class) => ranges.extend(perl(class)),
        ClassSetItem::Union(union) => union.items.iter().try_for_each(|item| members(item, ranges))?,
        ClassSetItem::Ascii(class) => {
            // By its name alone: the largest of them has three ranges, the complement of one five.
            let all = if class.negated { REST } else { (0, 0) };
            ranges.extend([
                (0x09, 0x0d),
                (0x20, 0x20),
                (0x30, 0x39),
                (0x41, 0x5a),
                (0x5f, 0x5f),
                (0x61, 0x7a),
                all,
            ]);
        }
        ClassSetItem::Unicode(_) => return refused("this \\p class as we do"),
        ClassSetItem::Bracketed(_) => return refused("a class inside of a class"),
    }
    Ok(())
}

/// RE2's are ASCII.
fn perl(class: &ClassPerl) -> Ranges {
    let ranges = match class.kind {
        ClassPerlKind::Digit => vec![(0x30, 0x39)],
        ClassPerlKind::Space => vec![(0x09, 0x0a), (0x0c, 0x0d), (0x20, 0x20)],
        ClassPerlKind::Word => vec![(0x30, 0x39), (0x41, 0x5a), (0x5f, 0x5f), (0x61, 0x7a)],
    };
    if class.negated { complement(ranges) } else { ranges }
}

/// Adds the other case of letters, and the two characters outside of ASCII that are forms of `k` and `s`.
fn fold(ranges: &mut Ranges) {
    let mut more = Vec::new();
    for &(low, high) in ranges.iter() {
        for (first, last, other) in [(0x41u32, 0x5au32, 0x61u32), (0x61, 0x7a, 0x41)] {
            let (from, to) = (low.max(first), high.min(last));
            if from <= to {
                more.push((from - first + other, to - first + other));
                let has = |letter: u32| (from..=to).contains(&(first + letter));
                more.extend(has(u32::from(b'k' - b'a')).then_some((0x212a, 0x212a)));
                more.extend(has(u32::from(b's' - b'a')).then_some((0x17f, 0x17f)));
            }
        }
    }
    ranges.extend(more);
}

fn merged(mut ranges: Ranges) -> Ranges {
    ranges.sort_unstable();
    let mut out: Ranges = Vec::with_capacity(ranges.len());
    for (low, high) in ranges {
        match out.last_mut() {
            Some((_, end)) if low <= end.saturating_add(1) => *end = high.max(*end),
            _ => out.push((low, high)),
        }
    }
    out
}

fn complement(ranges: Ranges) -> Ranges {
    let mut out = Vec::new();
    let mut next = 0;
    for (low, high) in merged(ranges) {
        if low > next {
            out.push((next, low - 1));
        }
        next = high + 1;
    }
    if next <= REST.1 {
        out.push((next, REST.1));
    }
    out
}

/// The instructions of a class: one for each byte of each sequence of bytes.
fn encoded(ranges: &[(u32, u32)]) -> u64 {
    let mut size = 0;
    for &(low, high) in ranges {
        if low < REST.0 {
            size += 1;
        }
        if high < REST.0 {
            continue;
        }
        match (low.max(REST.0), high) {
            REST => size += REST_SIZE,
            (low, high) => {
                // A surrogate is no character; the next ones are.
                let low = char::from_u32(low).unwrap_or('\u{e000}');
                let high = char::from_u32(high).unwrap_or('\u{d7ff}');
                size += Utf8Sequences::new(low, high).map(|sequence| sequence.len() as u64).sum::<u64>();
            }
        }
    }
    size
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What RE2 itself says (`RE2::ProgramSize`, google-re2 1.1 on 2024-07-02's RE2).
    const MEASURED: &[(&str, u64)] = &[
        (r"a", 5),
        (r"abc", 7),
        (r"[a-z]+", 6),
        (r".*", 12),
        (r"[^/]+", 13),
        (r"/api/v[0-9]+/.*", 21),
        (r"(a|b|c)", 7),
        (r"\d{3}", 7),
        (r".{10}", 84),
        (r"[a-z]{20}", 24),
        (r"\w+@\w+", 13),
        (r"(?i)abc", 7),
        (r"é", 6),
        (r"(foo|bar|baz)", 13),
        (r"(?s).", 11),
        (r"[^?]*", 12),
        (r"(?i)kelvin", 13),
        (r"a{0,5}", 14),
        (r"(ab){2,4}", 22),
        (r"(ab){3,}", 17),
        (r"a?", 6),
        (r"(a*)+", 8),
        (r"^abc$", 4),
        (r"\bfoo\b", 9),
        (r"x{100}", 104),
        (r"[a-zA-Z0-9._-]{0,200}", 1004),
        (r"(?:a|b){10}", 14),
        (r"[^a-z]{5}", 44),
        (r"/static/[a-zA-Z0-9._-]{0,20}/", 113),
        (r"日本", 10),
        (r"[あ-ん]+", 10),
        (r"a|bc|def", 10),
        (r"(|a)", 8),
        (r"a||b", 7),
        (r"(?i)[a-z]+", 11),
        (r"(?i)straße", 16),
        (r"\S+", 15),
        (r"\W+", 16),
        (r"[^\d]+", 13),
        (r"(a?){20}", 84),
        (r"", 4),
        (r"(a|b)*c", 8),
        (r"/users/[^/]+/orders/[0-9]+(/items/[^/]+)?", 49),
        (r"(?:x+x+)+y", 9),
        (r"[\w.-]+@[\w.-]+\.[a-z]{2,}", 19),
        (r"(?i)s{10}", 34),
        (r"[^\x00-\x7f]", 10),
        (r"[α-ω]", 8),
        (r"(.*)(.*)(.*)", 34),
        (r"(?m)^a$", 7),
        (r"[[:alpha:]]", 5),
        (r"[]a]", 6),
        (r"[^]a]", 13),
    ];

    #[test]
    fn the_size_is_never_below_re2s_own_and_seldom_far_above() {
        for (pattern, measured) in MEASURED {
            let ours = program_size(pattern).unwrap();
            assert!(ours >= *measured, "{pattern}: {ours}, but RE2 has {measured}");
            assert!(ours <= measured + measured / 4 + 8, "{pattern}: {ours} for {measured}");
        }
    }

    #[test]
    fn what_re2_refuses_or_reads_differently_is_refused() {
        for pattern in [
            "a{1001}",
            "(a{100}){100}",
            "((a{30}){30}){2}",
            "(?x)a b",
            "[a&&b]",
            "[a--b]",
            "[a[bc]]",
            r"\<a\>",
            r"\b{start}",
            r"\u0041",
            "a**",
            "a++",
            "x{2}{3}",
            "(?R)a",
            "(?u)a",
            "a{,5}",
            r"\pL",
            "(?<n>a)",
        ] {
            assert!(program_size(pattern).is_err(), "{pattern}");
        }
    }

    #[test]
    fn groups_are_counted() {
        for (pattern, n) in [("a", 0), ("(a)(?:b)((c)|(?P<x>d))*", 4)] {
            assert_eq!(groups(pattern), n, "{pattern}");
        }
    }
}
