//! `sessionPersistence` of HTTPRoute and GRPCRoute rules (GEP-1619).

use outrigger_model::route::{Session, SessionBy};

use crate::dialect::sessions::{self, own_name};
use crate::reader::{At, Fields, Reader, Table};

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

/// Of the rule at a path such as `spec.rules[2]`.
pub(super) fn read(reader: &mut Reader<'_>, rule: &Fields<'_>) -> Option<Box<Session>> {
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
    let name = match (fields.get("sessionName"), kind) {
        (Some(at), Kind::Cookie) => sessions::cookie_name(reader, &at)?,
        (Some(at), Kind::Header) => {
            let name = reader.text(Some(at.clone()))?;
            reader.header_name(&at, &name)?
        }
        // Each rule has sessions of its own.
        (None, _) => own_name(&reader.origin, &index(&rule.at)),
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

/// `.2` of `spec.rules[2]`.
fn index(at: &At<'_>) -> String {
    let number = at.path.rsplit_once('[').and_then(|(_, rest)| rest.strip_suffix(']'));
    number.map_or(String::new(), |number| format!(".{number}"))
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
        let plain = Session {
            by: cookie("outrigger-session.shop.reviews.1", false),
            strict: None,
            absolute: None,
            idle: None,
        };
        for kind in ["HTTPRoute", "GRPCRoute"] {
            assert_eq!(session(kind, "{}"), plain);
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
    fn what_the_api_server_would_refuse_is_refused() {
        for (session, wanted) in [
            ("{cookieConfig: {lifetimeType: Permanent}}", "needs absoluteTimeout"),
            ("{type: Header, cookieConfig: {}}", "can only stand beside type Cookie"),
            ("{type: Body}", "must be one of Cookie, Header"),
            ("{cookieConfig: {lifetimeType: Long}}", "must be one of Session, Permanent"),
        ] {
            let told = one_told(&text("HTTPRoute", session));
            assert!(told.contains(wanted), "{session}: {told}");
        }
    }
}
