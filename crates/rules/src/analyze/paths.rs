//! Paths that no request has: what a rule looks at is a path in its one form, without its query, and it begins with a slash.

use outrigger_model::matcher::Pattern;
use outrigger_model::path::PathNormalization;
use outrigger_model::route::PathMatch;
use regex_syntax::hir::literal::{Extractor, Literal};

use super::{Scene, finding};
use crate::finding::{Finding, Severity, code, quote};
use crate::intent::{Origin, Place};

pub(super) fn impossible(scene: &Scene<'_>, findings: &mut Vec<Finding>) {
    let mode = scene.catalog.map(|catalog| catalog.path).unwrap_or_default();
    for asked in scene.asked() {
        let (wanted, flaw) = match &asked.request.path {
            PathMatch::Exact(path) => (Wanted::Exact(path), Wanted::Exact(path).flaw(mode)),
            PathMatch::Prefix(path) | PathMatch::Segments(path) => {
                (Wanted::Prefix(path), Wanted::Prefix(path).flaw(mode))
            }
            PathMatch::Regex(pattern) => {
                let flaw = |why| Flaw { why, meant: Some(format!("/{pattern}")) };
                (Wanted::Exact(pattern), rootless(pattern).map(flaw))
            }
            PathMatch::Connect => continue,
        };
        if let Some(flaw) = flaw.filter(|_| !scene.asks_for_its_route(&asked)) {
            let what = (asked.what(), asked.in_vain());
            findings.push(tell(asked.origin, asked.place, what, wanted, flaw));
        }
    }
    for policy in &scene.authorization {
        for rule in &policy.rules {
            for path in rule.to.iter().flat_map(|to| to.paths.iter().chain(&to.not_paths)) {
                let wanted = match &path.pattern {
                    Pattern::Exact(path) => Wanted::Exact(path),
                    Pattern::Prefix(path) => Wanted::Prefix(path),
                    Pattern::Suffix(_)
                    | Pattern::Contains(_)
                    | Pattern::Regex(_)
                    | Pattern::Present
                    | Pattern::Range(..) => continue,
                };
                if let Some(flaw) = wanted.flaw(mode) {
                    let what = (rule.place.path.clone(), "never matches");
                    findings.push(tell(&policy.origin, &rule.place, what, wanted, flaw));
                }
            }
        }
    }
}

/// Of routes and limits nothing stands for a part of a path but a regular expression.
pub(super) fn stars(scene: &Scene<'_>, findings: &mut Vec<Finding>) {
    for asked in scene.asked() {
        let (path, end) = match &asked.request.path {
            PathMatch::Exact(path) => (path, ""),
            PathMatch::Prefix(path) | PathMatch::Segments(path) => (path, ".*"),
            PathMatch::Regex(_) | PathMatch::Connect => continue,
        };
        // `OPTIONS *` has no path but this.
        if !path.contains('*') || end.is_empty() && path == "*" || scene.asks_for_its_route(&asked) {
            continue;
        }
        let segment = |part: &str| if part == "*" { "[^/]+".to_owned() } else { regex::escape(part) };
        let meant = match path.strip_suffix('*').filter(|rest| !rest.contains('*')) {
            Some(rest) => format!("prefix: {rest}"),
            None => format!("regex: {}{end}", path.split('/').map(segment).collect::<Vec<_>>().join("/")),
        };
        let message = format!(
            "{}: {} has a * in the path {} that is a character like any other: match a prefix, or a regular expression",
            asked.origin,
            asked.what(),
            quote(path)
        );
        let mut found = finding(Severity::Warning, code::STAR, asked.origin, asked.place, message);
        found.suggestion = Some(meant);
        findings.push(found);
    }
}

/// Why nothing that a pattern matches begins as paths do, where that is sure.
fn rootless(pattern: &str) -> Option<String> {
    let hir = regex_syntax::parse(pattern).ok()?;
    let starts = Extractor::new().extract(&hir);
    let starts = starts.literals()?;
    let never = |start: &Literal| start.as_bytes().first().is_some_and(|byte| *byte != b'/' && *byte != b'*');
    let all = !starts.is_empty() && starts.iter().all(never);
    all.then(|| "a regular expression is for the whole path, and every path begins with a slash".to_owned())
}

/// What a rule asks of a path.
#[derive(Clone, Copy)]
enum Wanted<'r> {
    Exact(&'r str),
    Prefix(&'r str),
}

/// Why no path is like it, and which is.
struct Flaw {
    why: String,
    meant: Option<String>,
}

impl Wanted<'_> {
    fn flaw(self, mode: PathNormalization) -> Option<Flaw> {
        let (Self::Exact(path) | Self::Prefix(path)) = self;
        // `OPTIONS *` has no path but this.
        if path.is_empty() || path == "*" {
            return None;
        }
        if let Some((before, _)) = path.split_once('?') {
            let why = "the query is no part of the path; match query parameters by themselves".to_owned();
            return Some(Flaw { why, meant: Some(before.to_owned()).filter(|before| !before.is_empty()) });
        }
        if !path.starts_with('/') {
            return Some(Flaw {
                why: "every path begins with a slash".to_owned(),
                meant: Some(format!("/{path}")),
            });
        }
        // What a prefix ends with may go on: only whole segments of it have one form.
        let (whole, rest) = match self {
            Self::Exact(path) => (path, ""),
            Self::Prefix(path) => path.split_at(path.rfind('/').map_or(0, |at| at + 1)),
        };
        let normal =
            |text: &str| mode.apply(text).map_err(|refusal| Flaw { why: refusal.to_string(), meant: None });
        let formed = normal(whole).and_then(|whole| Ok((whole, normal(&format!("/{rest}-"))?)));
        let (whole_form, rest_form) = match formed {
            Ok(forms) => forms,
            Err(flaw) => return Some(flaw),
        };
        if whole_form.is_none() && rest_form.is_none() {
            return None;
        }
        let rest = rest_form.as_deref().map_or(rest, |form| &form[1..form.len() - 1]);
        let form = format!("{}{rest}", whole_form.as_deref().unwrap_or(whole));
        Some(Flaw { why: "paths are normalised before rules look at them".to_owned(), meant: Some(form) })
    }
}

/// `what` asks for it, and what becomes of that.
fn tell(
    origin: &Origin,
    place: &Place,
    (what, in_vain): (String, &str),
    wanted: Wanted<'_>,
    flaw: Flaw,
) -> Finding {
    let (Wanted::Exact(path) | Wanted::Prefix(path)) = wanted;
    let message = format!(
        "{origin}: {what} names the path {}, which no request has, so it {in_vain}: {}",
        quote(path),
        flaw.why
    );
    let mut found = finding(Severity::Warning, code::NO_SUCH_PATH, origin, place, message);
    found.suggestion = flaw.meant;
    found
}
