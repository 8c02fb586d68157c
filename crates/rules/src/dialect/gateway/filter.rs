//! Filters: what happens to requests and responses of a rule, or of one backend.

use std::time::Duration;

use outrigger_model::matcher::StringMatch;
use outrigger_model::route::{
    Cors, Forward, HeaderEdits, Mirror, Redirect, RetryPolicy, Rewrite, RouteAction,
};

use super::flaw::{Flaws, INVALID_KIND, flaw};
use super::path::{self, NewPath};
use super::{auth, headers, reference};
use crate::finding::{code, quote};
use crate::intent::{ExternalAuth, HttpRoute, MirrorTarget};
use crate::reader::{At, Fields, Reader, Table, is_header_name};
use crate::yaml::Value;

const FILTER: Table = Table::new(
    "a filter",
    &[
        "type",
        "requestHeaderModifier",
        "responseHeaderModifier",
        "requestMirror",
        "requestRedirect",
        "urlRewrite",
        "cors",
        "externalAuth",
        "extensionRef",
    ],
);
const GRPC_FILTER: Table = Table::new(
    "a filter",
    &["type", "requestHeaderModifier", "responseHeaderModifier", "requestMirror", "extensionRef"],
);
const REDIRECT: Table = Table::new("a redirect", &["scheme", "hostname", "path", "port", "statusCode"]);
const REWRITE: Table = Table::new("a rewrite", &["hostname", "path"]);
const MIRROR: Table = Table::new("a mirror", &["backendRef", "percent", "fraction"]);
const FRACTION: Table = Table::new("a fraction", &["numerator", "denominator"]);
const CORS: Table = Table::new(
    "a CORS filter",
    &["allowOrigins", "allowMethods", "allowHeaders", "exposeHeaders", "maxAge", "allowCredentials"],
);

/// What the filters of a rule or of a backend do.
#[derive(Default)]
pub(super) struct Effects {
    pub(super) request: HeaderEdits,
    pub(super) response: HeaderEdits,
    /// With whether it leads to the port that the request came for.
    pub(super) redirect: Option<(Redirect, bool)>,
    pub(super) rewrite: Rewrite,
    pub(super) mirrors: Vec<MirrorTarget>,
    pub(super) cors: Option<Cors>,
    pub(super) auth: Option<ExternalAuth>,
    /// There is a filter that nobody runs, so that no request may pass.
    pub(super) refused: bool,
}

impl Effects {
    /// What there is beside edits of headers, by the types of its filters.
    pub(super) fn names(&self) -> Vec<&'static str> {
        let Rewrite { authority, .. } = &self.rewrite;
        let path = Rewrite { authority: authority.clone(), ..Rewrite::default() } != self.rewrite;
        let all = [
            ("RequestRedirect", self.redirect.is_some()),
            ("URLRewrite with a path", path),
            ("URLRewrite with a hostname", authority.is_some()),
            ("RequestMirror", !self.mirrors.is_empty()),
            ("CORS", self.cors.is_some()),
            ("ExternalAuth", self.auth.is_some()),
        ];
        all.into_iter().filter(|(_, there)| *there).map(|(name, _)| name).collect()
    }

    /// Takes what a lone backend has beside edits of headers, where the rule has not its like.
    pub(super) fn absorb(&mut self, mut other: Self) -> bool {
        let both = (self.redirect.is_some() && other.redirect.is_some())
            || (self.cors.is_some() && other.cors.is_some())
            || (self.auth.is_some() && other.auth.is_some())
            || (self.rewrite != Rewrite::default() && other.rewrite != Rewrite::default());
        if both {
            return false;
        }
        self.redirect = self.redirect.take().or(other.redirect);
        self.cors = self.cors.take().or(other.cors);
        self.auth = self.auth.take().or(other.auth);
        if self.rewrite == Rewrite::default() {
            self.rewrite = other.rewrite;
        }
        self.mirrors.append(&mut other.mirrors);
        self.refused |= other.refused;
        true
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Request,
    Response,
    Mirror,
    Redirect,
    Rewrite,
    Cors,
    Auth,
    Extension,
}

const KINDS: [(&str, Kind); 8] = [
    ("RequestHeaderModifier", Kind::Request),
    ("ResponseHeaderModifier", Kind::Response),
    ("RequestMirror", Kind::Mirror),
    ("RequestRedirect", Kind::Redirect),
    ("URLRewrite", Kind::Rewrite),
    ("CORS", Kind::Cors),
    ("ExternalAuth", Kind::Auth),
    ("ExtensionRef", Kind::Extension),
];
const GRPC_KINDS: [(&str, Kind); 4] = [
    ("RequestHeaderModifier", Kind::Request),
    ("ResponseHeaderModifier", Kind::Response),
    ("RequestMirror", Kind::Mirror),
    ("ExtensionRef", Kind::Extension),
];

fn field_of(kind: Kind) -> &'static str {
    match kind {
        Kind::Request => "requestHeaderModifier",
        Kind::Response => "responseHeaderModifier",
        Kind::Mirror => "requestMirror",
        Kind::Redirect => "requestRedirect",
        Kind::Rewrite => "urlRewrite",
        Kind::Cors => "cors",
        Kind::Auth => "externalAuth",
        Kind::Extension => "extensionRef",
    }
}

/// Filters of an HTTPRoute; `prefix` is the one that the rule matches, if it matches one and nothing else.
pub(super) fn read(
    reader: &mut Reader<'_>,
    at: Option<At<'_>>,
    prefix: Option<&str>,
    flaws: &mut Flaws,
    effects: &mut Effects,
) {
    filters(reader, at, (&FILTER, &KINDS), prefix, flaws, effects);
}

/// Filters of a GRPCRoute.
pub(super) fn read_grpc(
    reader: &mut Reader<'_>,
    at: Option<At<'_>>,
    flaws: &mut Flaws,
    effects: &mut Effects,
) {
    filters(reader, at, (&GRPC_FILTER, &GRPC_KINDS), None, flaws, effects);
}

fn filters(
    reader: &mut Reader<'_>,
    at: Option<At<'_>>,
    (table, kinds): (&'static Table, &[(&str, Kind)]),
    prefix: Option<&str>,
    flaws: &mut Flaws,
    effects: &mut Effects,
) {
    let mut seen = Vec::new();
    for item in reader.list(at.clone()) {
        let Some(fields) = reader.fields(&item, table) else { continue };
        if !fields.has("type") {
            reader.missing(&fields, "type");
        }
        let Some(kind) = reader.choice(fields.get("type"), kinds) else { continue };
        let Some(config) = only(reader, &fields, kinds, kind) else { continue };
        if seen.contains(&kind) && !matches!(kind, Kind::Mirror | Kind::Extension) {
            reader.error(&item, format!("{}: a filter of this type can stand here only once", item.path));
        }
        seen.push(kind);
        one(reader, &config, kind, prefix, flaws, effects);
    }
    if let Some(at) = at.filter(|_| seen.contains(&Kind::Redirect) && seen.contains(&Kind::Rewrite)) {
        reader.error(
            &at,
            format!("{} has RequestRedirect and URLRewrite, but only one of them can be", at.path),
        );
    }
}

/// The configuration of a filter, which stands under the name of its type and nowhere else.
fn only<'n>(
    reader: &mut Reader<'_>,
    fields: &Fields<'n>,
    kinds: &[(&str, Kind)],
    kind: Kind,
) -> Option<At<'n>> {
    for (_, other) in kinds.iter().filter(|(_, other)| *other != kind) {
        if let Some(at) = fields.get(field_of(*other)) {
            reader.error(&at, format!("{} belongs to a filter of another type", at.path));
        }
    }
    let config = fields.get(field_of(kind));
    if config.is_none() {
        reader.missing(fields, field_of(kind));
    }
    config
}

fn one(
    reader: &mut Reader<'_>,
    at: &At<'_>,
    kind: Kind,
    prefix: Option<&str>,
    flaws: &mut Flaws,
    effects: &mut Effects,
) {
    match kind {
        Kind::Request => effects.request = headers::edits(reader, at, true),
        Kind::Response => effects.response = headers::edits(reader, at, false),
        Kind::Mirror => effects.mirrors.extend(mirror(reader, at, flaws)),
        Kind::Redirect => effects.redirect = redirect(reader, at, prefix),
        Kind::Rewrite => effects.rewrite = rewrite(reader, at, prefix).unwrap_or_default(),
        Kind::Cors => effects.cors = cors(reader, at),
        Kind::Auth => {
            effects.auth = auth::read(reader, at, flaws);
            effects.refused |= effects.auth.is_none();
        }
        Kind::Extension => {
            let message = format!(
                "{}: Outrigger knows no filters of others, and a filter must not be skipped: requests of the rule are answered \
                 with an error",
                at.path
            );
            flaw(reader, flaws, at, INVALID_KIND, message);
            effects.refused = true;
        }
    }
}

fn hostname(reader: &mut Reader<'_>, at: Option<At<'_>>) -> Option<String> {
    let at = at?;
    let text = reader.text(Some(at.clone()))?;
    if text.contains('*') || reader.resolver().resolve(&text, "default").is_err() {
        reader.error(&at, format!("{} must be the name of a host, not {}", at.path, quote(&text)));
        return None;
    }
    Some(text)
}

fn redirect(reader: &mut Reader<'_>, at: &At<'_>, prefix: Option<&str>) -> Option<(Redirect, bool)> {
    let fields = reader.fields(at, &REDIRECT)?;
    let scheme = reader.choice(fields.get("scheme"), &[("http", "http"), ("https", "https")]);
    let port = reader.port(fields.get("port"));
    let status_at = fields.get("statusCode");
    let status = reader.number(status_at.clone(), 300..=399).unwrap_or(302) as u16;
    if let Some(at) = status_at.filter(|_| !matches!(status, 301 | 302 | 303 | 307 | 308)) {
        reader.error(&at, format!("{} must be 301, 302, 303, 307 or 308", at.path));
    }
    let mut redirect = Redirect {
        scheme: scheme.map(str::to_owned),
        authority: hostname(reader, fields.get("hostname")),
        port,
        status,
        ..Redirect::default()
    };
    match path::modifier(reader, fields.get("path"), prefix) {
        Some(NewPath::Whole(path)) => redirect.path = Some(path),
        Some(NewPath::Prefix(prefix)) => redirect.prefix = Some(prefix),
        Some(NewPath::Regex(pattern, text)) => redirect.regex = Some((pattern, text)),
        None => {}
    }
    // Without either it is the port of the listener; a scheme means its own.
    let to_request_port = redirect.port.is_none() && redirect.scheme.is_none();
    Some((redirect, to_request_port))
}

fn rewrite(reader: &mut Reader<'_>, at: &At<'_>, prefix: Option<&str>) -> Option<Rewrite> {
    let fields = reader.fields(at, &REWRITE)?;
    let authority = hostname(reader, fields.get("hostname"));
    let mut rewrite = Rewrite { authority, ..Rewrite::default() };
    match path::modifier(reader, fields.get("path"), prefix) {
        Some(NewPath::Whole(text)) => rewrite.regex = Some(path::whole(&text)),
        Some(NewPath::Prefix(prefix)) => rewrite.prefix = Some(prefix),
        Some(NewPath::Regex(pattern, text)) => rewrite.regex = Some((pattern, text)),
        None => {}
    }
    Some(rewrite)
}

fn mirror(reader: &mut Reader<'_>, at: &At<'_>, flaws: &mut Flaws) -> Option<MirrorTarget> {
    let fields = reader.fields(at, &MIRROR)?;
    if fields.has("percent") && fields.has("fraction") {
        reader.error(at, format!("{} has percent and fraction, but only one of them can hold", at.path));
    }
    let percent = reader.number(fields.get("percent"), 0..=100).map(f64::from);
    let fraction = fields.get("fraction").and_then(|at| fraction(reader, &at));
    let percentage = percent.or(fraction).unwrap_or(100.0);
    let Some(backend_at) = fields.get("backendRef") else {
        reader.missing(&fields, "backendRef");
        return None;
    };
    let target = reference::object(reader, &backend_at, flaws, "no copies are sent")?;
    if percentage == 0.0 {
        let message = format!("{} gets 0 % of the requests, so it has no effect", at.path);
        reader.warn(code::NO_EFFECT, at, message);
        return None;
    }
    // A copy is a copy: the suffix of the host is Istio's.
    let mirror = Mirror { percentage, keep_host: true, ..Mirror::default() };
    Some(MirrorTarget { target, mirror, place: backend_at.place() })
}

fn fraction(reader: &mut Reader<'_>, at: &At<'_>) -> Option<f64> {
    let fields = reader.fields(at, &FRACTION)?;
    if !fields.has("numerator") {
        reader.missing(&fields, "numerator");
    }
    let parts = reader.number(fields.get("numerator"), 0..=u32::MAX)?;
    let whole = match fields.get("denominator") {
        Some(at) => reader.number(Some(at), 1..=u32::MAX)?,
        None => 100,
    };
    if parts > whole {
        reader.error(at, format!("{}: {parts} of {whole} is more than all", at.path));
        return None;
    }
    // No finer than what travels, which is in millionths.
    Some((f64::from(parts) / f64::from(whole) * 1_000_000.0).round() / 10_000.0)
}

fn cors(reader: &mut Reader<'_>, at: &At<'_>) -> Option<Cors> {
    let fields = reader.fields(at, &CORS)?;
    let mut allow_origins = Vec::new();
    for item in reader.list(fields.get("allowOrigins")) {
        let Some(text) = reader.text(Some(item)) else { continue };
        allow_origins.push(match text.as_str() {
            "*" => StringMatch::present(),
            text if text.contains('*') => StringMatch::regex(regex::escape(text).replace("\\*", ".+")),
            text => StringMatch::exact(text),
        });
    }
    if allow_origins.is_empty() {
        let message = format!("{} allows no origin, so it has no effect: write allowOrigins", at.path);
        reader.warn(code::NO_EFFECT, at, message);
    }
    let age = reader.number(fields.get("maxAge"), 1..=u32::MAX >> 1).unwrap_or(5);
    Some(Cors {
        allow_origins,
        allow_methods: tokens(reader, fields.get("allowMethods"), "a method"),
        allow_headers: tokens(reader, fields.get("allowHeaders"), "a header name"),
        expose_headers: tokens(reader, fields.get("exposeHeaders"), "a header name"),
        max_age: age.to_string(),
        allow_credentials: reader.boolean(fields.get("allowCredentials")).unwrap_or(false),
        // Preflights of strangers are answered, without permission.
        forward_not_matching: false,
        ..Cors::default()
    })
}

fn tokens(reader: &mut Reader<'_>, at: Option<At<'_>>, what: &str) -> String {
    let mut found = Vec::new();
    for item in reader.list(at) {
        match &item.node.value {
            Value::Text(name) if is_header_name(name) => found.push(name.clone()),
            other => {
                let message = format!("{} must be {what}, not {other}", item.path);
                reader.error(&item, message);
            }
        }
    }
    // Beside others it says nothing more than alone.
    if found.iter().any(|name| name == "*") { "*".to_owned() } else { found.join(",") }
}

/// A rule with what its filters do.
pub(super) fn applied(
    mut rule: HttpRoute,
    effects: Effects,
    timeout: Option<Duration>,
    retry: RetryPolicy,
) -> HttpRoute {
    let Effects { request, response, redirect, rewrite, mirrors, cors, auth, refused } = effects;
    rule.route.request_headers = request;
    rule.route.response_headers = response;
    rule.route.cors = cors;
    rule.auth = auth.map(Box::new);
    match redirect.filter(|_| !refused) {
        Some((redirect, to_request_port)) => {
            rule.route.action = RouteAction::Redirect(redirect);
            rule.to_request_port = to_request_port;
            rule.targets.clear();
        }
        None => {
            let forward = Forward { timeout, retry: Some(retry), rewrite, ..Forward::default() };
            rule.route.action = RouteAction::Forward(forward);
            rule.mirrors = mirrors;
        }
    }
    rule
}
