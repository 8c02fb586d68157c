//! `sessionPersistence` of HTTPRoute and GRPCRoute rules (GEP-1619).

use outrigger_model::route::{Session, SessionBy};

use crate::dialect::sessions::{self, own_name};
use crate::intent::HttpMatch;
use crate::reader::{Fields, Reader, Table, is_header_name};

const SESSION: Table = Table::new(
    "a session persistence",
    &["sessionName", "absoluteTimeout", "idleTimeout", "type", "cookieConfig"],
);
const COOKIE: Table = Table::new("a cookie", &["lifetimeType"]);

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Cookie,
    Header,
}

/// Of a rule with these matches.
pub(super) fn read(
    reader: &mut Reader<'_>,
    rule: &Fields<'_>,
    matches: &[HttpMatch],
) -> Option<Box<Session>> {
    let at = rule.get("sessionPersistence")?;
    let fields = reader.fields(&at, &SESSION)?;
    let kinds = [("Cookie", Kind::Cookie), ("Header", Kind::Header)];
    let kind = match fields.get("type") {
        Some(at) => reader.choice(Some(at), &kinds)?,
        None => Kind::Cookie,
    };
    let absolute = reader.positive(fields.get("absoluteTimeout"));
    let idle = sessions::ends(reader, fields.get("idleTimeout"), absolute);
    let permanent = permanent(reader, &fields, kind)?;
    if permanent && absolute.is_none() {
        let message =
            format!("{}: a Permanent cookie needs absoluteTimeout, which says when it ends", at.path);
        reader.error(&at, message);
    }
    bounded_name(reader, &fields);
    let name = match (fields.get("sessionName"), kind) {
        (Some(at), Kind::Cookie) => sessions::cookie_name(reader, &at)?,
        (Some(at), Kind::Header) => {
            let name = reader.text(Some(at.clone()))?;
            reader.header_name(&at, &name)?
        }
        // Each rule has sessions of its own.
        (None, _) => {
            let part = reader.text(rule.get("name")).filter(|name| is_header_name(name));
            own_name(&reader.origin, &part.unwrap_or_else(|| unnamed(matches)))
        }
    };
    let by = match kind {
        Kind::Header => SessionBy::Header { name },
        // A rule may have several paths, and rewrite them.
        Kind::Cookie => {
            SessionBy::Cookie { name, path: Some("/".to_owned()), permanent, attributes: Vec::new() }
        }
    };
    Some(Box::new(Session { by, strict: None, absolute, idle }))
}

/// Whether the cookie outlives the client's own session; `Session` is the API's default.
fn permanent(reader: &mut Reader<'_>, fields: &Fields<'_>, kind: Kind) -> Option<bool> {
    let Some(at) = fields.get("cookieConfig") else { return Some(false) };
    let cookie = reader.fields(&at, &COOKIE)?;
    if kind == Kind::Header {
        reader.error(&at, format!("{} can only stand beside type Cookie", at.path));
    }
    let lifetimes = [("Session", false), ("Permanent", true)];
    match cookie.get("lifetimeType") {
        Some(at) => reader.choice(Some(at), &lifetimes).map(|permanent| permanent && kind == Kind::Cookie),
        None => Some(false),
    }
}

/// A rule without a name is told apart by what it matches.
fn unnamed(matches: &[HttpMatch]) -> String {
    let requests: Vec<_> = matches.iter().map(|one| &one.request).collect();
    sessions::digest(&requests)
}

/// As long as the API server takes.
fn bounded_name(reader: &mut Reader<'_>, fields: &Fields<'_>) {
    const MOST: usize = 128;
    if let Some(at) = fields.get("sessionName")
        && at.node.as_text().is_some_and(|name| name.chars().count() > MOST)
    {
        reader.error(&at, format!("{} has at most {MOST} characters", at.path));
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::testing::{attached, object, one_told, told};

    fn text(kind: &str, session: &str) -> String {
        let spec = format!(
            "parentRefs: [{{group: '', kind: Service, name: catalog}}]\nrules:\n\
             - {{backendRefs: [{{name: catalog, port: 8080}}]}}\n\
             - {{sessionPersistence: {session}, backendRefs: [{{name: catalog, port: 8080}}]}}"
        );
        object("gateway.networking.k8s.io/v1", kind, &spec)
    }

    fn session(kind: &str, session: &str) -> Session {
        let text = text(kind, session);
        assert_eq!(told(&text), Vec::<String>::new());
        *attached(&text).http.remove(1).route.session.unwrap()
    }

    #[test]
    fn a_rule_has_sessions_of_its_own() {
        let cookie = |name: &str, permanent| SessionBy::Cookie {
            name: name.into(),
            path: Some("/".into()),
            permanent,
            attributes: Vec::new(),
        };
        for kind in ["HTTPRoute", "GRPCRoute"] {
            let plain = session(kind, "{}");
            let SessionBy::Cookie { name, .. } = &plain.by else { panic!() };
            assert!(name.starts_with("outrigger-session.shop.reviews."), "{name}");
            let by = cookie(name, false);
            assert_eq!(plain, Session { by, strict: None, absolute: None, idle: None });
            let long = "{sessionName: mine, absoluteTimeout: 1h, cookieConfig: {lifetimeType: Permanent}}";
            let absolute = Some(Duration::from_secs(3600));
            assert_eq!(session(kind, long), Session { by: cookie("mine", true), absolute, ..plain.clone() });
            let header = SessionBy::Header { name: "x-mine".into() };
            let (by, idle) = (header, Some(Duration::from_secs(60)));
            let silent = "{type: Header, sessionName: X-Mine, idleTimeout: 1m}";
            assert_eq!(session(kind, silent), Session { by, idle, ..plain.clone() });
        }
    }

    #[test]
    fn a_rule_keeps_the_name_of_its_sessions_wherever_it_stands_and_shares_it_with_none() {
        let rules = |rules: &[&str]| {
            let rules: String = rules.iter().map(|rule| format!("- {rule}\n")).collect();
            let spec = format!("parentRefs: [{{group: '', kind: Service, name: catalog}}]\nrules:\n{rules}");
            let text = object("gateway.networking.k8s.io/v1", "HTTPRoute", &spec);
            assert_eq!(told(&text), Vec::<String>::new());
            let name = |rule: &crate::intent::HttpRoute| match &rule.route.session.as_ref().unwrap().by {
                SessionBy::Cookie { name, .. } => name.clone(),
                SessionBy::Header { .. } => panic!(),
            };
            attached(&text).http.iter().map(name).collect::<Vec<_>>()
        };
        let rule = |more: &str| {
            format!("{{{more}, sessionPersistence: {{}}, backendRefs: [{{name: catalog, port: 8080}}]}}")
        };
        let by_path = |path: &str| rule(&format!("matches: [{{path: {{value: {path}}}}}]"));
        let (a, b) = (by_path("/a"), by_path("/b"));
        let named = rule("name: cart");
        let before = rules(&[&a, &b, &named]);
        assert_ne!(before[0], before[1]);
        assert_eq!(before[2], "outrigger-session.shop.reviews.cart");
        assert_eq!(rules(&[&by_path("/new"), &named, &b, &a])[1..], [&*before[2], &before[1], &before[0]]);
        // What is said twice is told.
        let said = |to: &str| {
            format!(
                "{{name: {to}, sessionPersistence: {{sessionName: mine}}, backendRefs: [{{name: {to}, port: 8080}}]}}"
            )
        };
        let spec = format!(
            "parentRefs: [{{group: '', kind: Service, name: catalog}}]\nrules: [{}, {}]",
            said("catalog"),
            said("stock")
        );
        let found = one_told(&object("gateway.networking.k8s.io/v1", "HTTPRoute", &spec));
        assert!(found.contains("carry \"mine\" as those of spec.rules[0]"), "{found}");
    }

    #[test]
    fn a_redirect_has_no_session_and_says_so() {
        let spec = "parentRefs: [{group: '', kind: Service, name: catalog}]\nrules:\n\
                    - {sessionPersistence: {}, filters: [{type: RequestRedirect, requestRedirect: {scheme: https}}]}";
        let found = one_told(&object("gateway.networking.k8s.io/v1", "HTTPRoute", spec));
        assert!(found.contains("sessionPersistence has no effect beside a redirect"), "{found}");
    }

    #[test]
    fn what_the_api_server_would_refuse_is_refused() {
        for (session, wanted) in [
            ("{cookieConfig: {lifetimeType: Permanent}}", "needs absoluteTimeout"),
            ("{type: Header, cookieConfig: {}}", "can only stand beside type Cookie"),
            (&format!("{{sessionName: {}}}", "a".repeat(129)), "at most 128 characters"),
            ("{type: Body}", "must be one of Cookie, Header"),
            ("{cookieConfig: {lifetimeType: Long}}", "must be one of Session, Permanent"),
        ] {
            let told = one_told(&text("HTTPRoute", session));
            assert!(told.contains(wanted), "{session}: {told}");
        }
    }
}
