//! What a route of a native page does beside sending requests on: redirects, answers of its own, rewrites.

use outrigger_model::route::{Redirect, Rewrite, Route, RouteAction};

use crate::dialect::gateway::whole_path;
use crate::finding::code;
use crate::intent::HttpRoute;
use crate::reader::{At, Fields, Reader, Table};

pub(super) const REDIRECT: Table =
    Table::new("a redirect", &["path", "prefix", "authority", "scheme", "port", "status"]);
pub(super) const REWRITE: Table = Table::new("a rewrite", &["path", "prefix", "regex", "authority"]);
pub(super) const REGEX: Table = Table::new("a regex rewrite", &["pattern", "substitution"]);
pub(super) const DIRECT: Table = Table::new("a direct response", &["status", "body"]);

/// Whether a route answers itself.
pub(super) enum Answer {
    /// It sends requests on.
    None,
    /// It does not hold; why is told.
    Wrong,
    /// It does so.
    Own(Box<HttpRoute>),
}

/// Only one of `to`, `redirect` and `directResponse` can hold.
pub(super) fn answer(reader: &mut Reader<'_>, at: &At<'_>, fields: &Fields<'_>) -> Answer {
    let given: Vec<&'static str> =
        ["to", "redirect", "directResponse"].into_iter().filter(|name| fields.has(name)).collect();
    let sent = ["timeout", "streams", "retry", "hedge", "session", "mirror", "rateLimit"];
    let found = match given.as_slice() {
        [] | ["to"] => return Answer::None,
        ["redirect"] => {
            for refused in ["rewrite", "fault"] {
                if let Some(at) = fields.get(refused) {
                    reader.error(&at, format!("{} can not stand beside a redirect", at.path));
                }
            }
            useless(reader, fields, &sent, "a redirect");
            fields.get("redirect").and_then(|at| redirect(reader, &at))
        }
        ["directResponse"] => {
            useless(reader, fields, &sent, "a direct response");
            useless(reader, fields, &["rewrite"], "a direct response");
            fields.get("directResponse").and_then(|at| direct(reader, &at))
        }
        several => {
            let message =
                format!("{} has {}, but a route takes exactly one of them", at.path, several.join(" and "));
            reader.error(at, message);
            None
        }
    };
    found.map_or(Answer::Wrong, |route| Answer::Own(Box::new(route)))
}

/// What is about requests that are sent on says nothing of an answer of our own.
fn useless(reader: &mut Reader<'_>, fields: &Fields<'_>, names: &[&'static str], beside: &str) {
    for at in names.iter().filter_map(|name| fields.get(name)) {
        reader.warn(code::NO_EFFECT, &at, format!("{} has no effect beside {beside}", at.path));
    }
}

fn answered(action: RouteAction) -> HttpRoute {
    HttpRoute { route: Route { action, ..Route::default() }, ..HttpRoute::default() }
}

fn redirect(reader: &mut Reader<'_>, at: &At<'_>) -> Option<HttpRoute> {
    let fields = reader.fields(at, &REDIRECT)?;
    if ["path", "prefix", "authority", "scheme", "port"].into_iter().all(|name| !fields.has(name)) {
        reader
            .error(at, format!("{} says nothing: it needs path, prefix, authority, scheme or port", at.path));
    }
    one_of(reader, &fields, &["path", "prefix"]);
    let status_at = fields.get("status");
    let status = reader.number(status_at.clone(), 300..=399).unwrap_or(301);
    if let Some(at) = status_at.filter(|_| !matches!(status, 301 | 302 | 303 | 307 | 308)) {
        reader.error(&at, format!("{} must be 301, 302, 303, 307 or 308", at.path));
    }
    // `request`: the port that the request came for.
    let port_at = fields.get("port");
    let to_request_port = port_at.as_ref().is_some_and(|at| at.node.as_text() == Some("request"));
    let redirect = Redirect {
        path: filled(reader, fields.get("path")),
        prefix: filled(reader, fields.get("prefix")),
        authority: filled(reader, fields.get("authority")),
        scheme: reader
            .choice(fields.get("scheme"), &[("http", "http"), ("https", "https")])
            .map(str::to_owned),
        port: if to_request_port { None } else { reader.port(port_at) },
        status: u16::try_from(status).unwrap_or(301),
        ..Redirect::default()
    };
    Some(HttpRoute { to_request_port, ..answered(RouteAction::Redirect(redirect)) })
}

fn direct(reader: &mut Reader<'_>, at: &At<'_>) -> Option<HttpRoute> {
    let fields = reader.fields(at, &DIRECT)?;
    if !fields.has("status") {
        reader.missing(&fields, "status");
    }
    let body = reader.text(fields.get("body")).unwrap_or_default();
    let status = reader.status(fields.get("status"))?;
    Some(answered(RouteAction::Direct { status, body }))
}

fn one_of(reader: &mut Reader<'_>, fields: &Fields<'_>, names: &[&'static str]) {
    let given: Vec<&str> = names.iter().copied().filter(|name| fields.has(name)).collect();
    if given.len() > 1 {
        let message =
            format!("{} has {}, but only one of them can hold", fields.at.path, given.join(" and "));
        reader.error(&fields.at, message);
    }
}

/// A text that says something: an empty one cannot travel.
fn filled(reader: &mut Reader<'_>, at: Option<At<'_>>) -> Option<String> {
    let at = at?;
    let text = reader.text(Some(at.clone()))?;
    if text.is_empty() {
        reader.error(&at, format!("{} must not be empty", at.path));
        return None;
    }
    Some(text)
}

/// `path` is the whole path, `prefix` what stands in the place of the prefix that the route matches.
pub(super) fn rewrite(reader: &mut Reader<'_>, at: &At<'_>) -> Option<Rewrite> {
    let fields = reader.fields(at, &REWRITE)?;
    if REWRITE.known.iter().all(|name| !fields.has(name)) {
        reader.error(at, format!("{} says nothing: it needs {}", at.path, REWRITE.known.join(", ")));
    }
    one_of(reader, &fields, &["path", "prefix", "regex"]);
    let regex = fields.get("regex").and_then(|at| {
        let fields = reader.fields(&at, &REGEX)?;
        for name in ["pattern", "substitution"] {
            if !fields.has(name) {
                reader.missing(&fields, name);
            }
        }
        let pattern = reader.pattern(fields.get("pattern"));
        let substitution = reader.substitution(fields.get("substitution"), pattern.as_deref());
        Some((pattern?, substitution?))
    });
    let whole = reader.text(fields.get("path")).map(|path| whole_path(&path));
    Some(Rewrite {
        prefix: filled(reader, fields.get("prefix")),
        regex: regex.or(whole),
        authority: filled(reader, fields.get("authority")),
        ..Rewrite::default()
    })
}
