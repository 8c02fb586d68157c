//! Paths that no request has: what a rule looks at is a path in its one form, without its query, and it begins with a slash.

use outrigger_model::matcher::Pattern;
use outrigger_model::path::PathNormalization;
use outrigger_model::route::PathMatch;

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
                PathMatch::Regex(_) | PathMatch::Connect => continue,
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
                    Pattern::Suffix(_) | Pattern::Contains(_) | Pattern::Regex(_) | Pattern::Present => {
                        continue;
                    }
                };
                findings
                    .extend(wanted.flaw(mode).map(|flaw| tell(&policy.origin, &rule.place, wanted, flaw)));
            }
        }
    }
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
