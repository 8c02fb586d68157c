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
    for route in &scene.routes {
        for block in route.http.iter().flat_map(|http| &http.matches) {
            let wanted = match &block.request.path {
                PathMatch::Exact(path) => Wanted::Exact(path),
                PathMatch::Prefix(path) | PathMatch::Segments(path) => Wanted::Prefix(path),
                PathMatch::Regex(pattern) => {
                    findings.extend(rootless(pattern).map(|why| {
                        let flaw = Flaw { why, meant: Some(format!("/{pattern}")) };
                        tell(&route.origin, &block.place, Wanted::Exact(pattern), flaw)
                    }));
                    continue;
                }
                PathMatch::Connect => continue,
            };
            findings.extend(wanted.flaw(mode).map(|flaw| tell(&route.origin, &block.place, wanted, flaw)));
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
                findings
                    .extend(wanted.flaw(mode).map(|flaw| tell(&policy.origin, &rule.place, wanted, flaw)));
            }
        }
    }
}

/// Of routes nothing stands for a part of a path but a regular expression.
pub(super) fn stars(scene: &Scene<'_>, findings: &mut Vec<Finding>) {
    for route in &scene.routes {
        for block in route.http.iter().flat_map(|http| &http.matches) {
            let (path, end) = match &block.request.path {
                PathMatch::Exact(path) => (path, ""),
                PathMatch::Prefix(path) | PathMatch::Segments(path) => (path, ".*"),
                PathMatch::Regex(_) | PathMatch::Connect => continue,
            };
            // `OPTIONS *` has no path but this.
            if !path.contains('*') || end.is_empty() && path == "*" {
                continue;
            }
            let segment = |part: &str| if part == "*" { "[^/]+".to_owned() } else { regex::escape(part) };
            let meant = match path.strip_suffix('*').filter(|rest| !rest.contains('*')) {
                Some(rest) => format!("prefix: {rest}"),
                None => format!("regex: {}{end}", path.split('/').map(segment).collect::<Vec<_>>().join("/")),
            };
            let message = format!(
                "{}: {} has a * in the path {} that is a character like any other: match a prefix, or a regular expression",
                route.origin,
                block.place.path,
                quote(path)
            );
            let mut found = finding(Severity::Warning, code::STAR, &route.origin, &block.place, message);
            found.suggestion = Some(meant);
            findings.push(found);
        }
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

fn tell(origin: &Origin, place: &Place, wanted: Wanted<'_>, flaw: Flaw) -> Finding {
    let (Wanted::Exact(path) | Wanted::Prefix(path)) = wanted;
    let message = format!(
        "{origin}: {} names the path {}, which no request has, so it never matches: {}",
        place.path,
        quote(path),
        flaw.why
    );
    let mut found = finding(Severity::Warning, code::NO_SUCH_PATH, origin, place, message);
    found.suggestion = flaw.meant;
    found
}
