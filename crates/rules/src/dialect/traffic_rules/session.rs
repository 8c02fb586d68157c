//! Sessions in a native page: a client stays at the instance that has answered it first.

use outrigger_model::route::{Session, SessionBy};
use serde_json::Value as Json;

use crate::dialect::sessions::{self, own_name};
use crate::intent::{Host, HttpRoute, Origin};
use crate::reader::{At, Fields, Reader, Table};
use crate::schema::{DURATION, any, described, mapping, object, one_of, text};
use crate::yaml::Value;

const SESSION: Table =
    Table::new("a session", &["cookie", "header", "absoluteTimeout", "idleTimeout", "strict"]);
const COOKIE: Table = Table::new("a cookie", &["name", "path", "lifetime", "attributes"]);
const LIFETIMES: [(&str, bool); 4] =
    [("session", false), ("permanent", true), ("Session", false), ("Permanent", true)];
/// What is answered where a strict session has lost its instance.
const LOST: u16 = 503;

/// A session; the name of its cookie is empty where none is said, until its route is known.
pub(super) fn read(reader: &mut Reader<'_>, at: Option<At<'_>>) -> Option<Session> {
    let at = at?;
    let fields = reader.fields(&at, &SESSION)?;
    let absolute = reader.positive(fields.get("absoluteTimeout"));
    let by = match (fields.get("cookie"), fields.get("header")) {
        (Some(_), Some(_)) => {
            reader.error(&at, format!("{} has cookie and header, but only one of them can hold", at.path));
            return None;
        }
        (None, Some(header)) => {
            let name = reader.text(Some(header.clone()))?;
            SessionBy::Header { name: reader.header_name(&header, &name)? }
        }
        (cookie, None) => self::cookie(reader, cookie)?,
    };
    if matches!(by, SessionBy::Cookie { permanent: true, .. }) && absolute.is_none() {
        let message =
            format!("{}: a permanent cookie needs absoluteTimeout, which says when it ends", at.path);
        reader.error(&at, message);
    }
    let strict = match fields.get("strict") {
        Some(status) if matches!(status.node.value, Value::Number(_)) => reader.status(Some(status)),
        said => reader.boolean(said).and_then(|strict| strict.then_some(LOST)),
    };
    let idle = sessions::ends(reader, fields.get("idleTimeout"), absolute);
    Some(Session { by, strict, absolute, idle })
}

/// The session of a route. Without a name the page's own, for all of its service, is called after the page; another has a name by where
/// it leads and what it says, so that those are one session which may be. Beside it stand the page's service and session.
pub(super) fn named(
    mut session: Session,
    route: &HttpRoute,
    (service, own): (Option<&Host>, Option<&Session>),
    of: &Origin,
) -> Session {
    let SessionBy::Cookie { name, .. } = &session.by else { return session };
    if !name.is_empty() {
        return session;
    }
    let places = sessions::places(route);
    let whole = service.map(|host| (host.as_str(), None, None));
    let is_pages = own == Some(&session) && places.iter().copied().eq(whole);
    let part = if is_pages { String::new() } else { sessions::digest(&(&places, &session)) };
    if let SessionBy::Cookie { name, .. } = &mut session.by {
        *name = own_name(of, &part);
    }
    session
}

fn cookie(reader: &mut Reader<'_>, at: Option<At<'_>>) -> Option<SessionBy> {
    let own = String::new;
    let path = Some("/".to_owned());
    let Some(at) = at else {
        return Some(SessionBy::Cookie { name: own(), path, permanent: false, attributes: Vec::new() });
    };
    let fields = reader.fields(&at, &COOKIE)?;
    let name = match fields.get("name") {
        Some(at) => sessions::cookie_name(reader, &at)?,
        None => own(),
    };
    let path = match fields.get("path") {
        Some(at) => Some(sessions::cookie_path(reader, &at)?),
        None => path,
    };
    let mut attributes = Vec::new();
    for (key, item) in entries(reader, &fields) {
        if let Some(value) = sessions::clean(reader, &item) {
            attributes.push((key, value));
        }
    }
    let permanent = reader.choice(fields.get("lifetime"), &LIFETIMES).unwrap_or(false);
    Some(SessionBy::Cookie { name, path, permanent, attributes })
}

/// Attributes whose names can be some; the cookie's own fields say the rest.
fn entries<'a>(reader: &mut Reader<'_>, fields: &Fields<'a>) -> Vec<(String, At<'a>)> {
    let mut all = Vec::new();
    for (key, item) in reader.entries(fields.get("attributes")) {
        let own = ["max-age", "path", "httponly", "expires"];
        let name = key.text.to_ascii_lowercase();
        if own.contains(&name.as_str()) || reader.header_name(&item, &key.text).is_none() {
            let message = format!("{}: write attributes such as SameSite, Secure or Domain here", item.path);
            reader.error(&item, message);
            continue;
        }
        all.push((key.text.clone(), item));
    }
    all
}

pub(super) fn schema() -> Json {
    let schema = object(&SESSION, &[], |name| match name {
        "cookie" => object(&COOKIE, &[], |name| match name {
            "name" => text("Its name; made of the page's without it."),
            "path" => text("Only requests for this path and beneath it belong to the session; / without it."),
            "lifetime" => one_of(
                &LIFETIMES.map(|(word, _)| word),
                "session: until the client's own ends; permanent: until absoluteTimeout.",
            ),
            "attributes" => mapping(text(""), "Such as SameSite: Lax, or Secure with an empty text."),
            _ => Json::Null,
        }),
        "header" => {
            text("A header of answers, in place of a cookie, which the client repeats in its requests.")
        }
        "absoluteTimeout" => text(&format!("After which a session ends, {DURATION}")),
        "idleTimeout" => text(&format!("After which it ends without a request, {DURATION}")),
        "strict" => any(
            "true, or a status: what is answered where the instance is gone, in place of another instance.",
        ),
        _ => Json::Null,
    });
    described(schema, "A client stays at the instance that has answered it first.")
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::testing::{object as page_of, one_told, route, told};

    fn page(spec: &str) -> String {
        page_of("outrigger.io/v1", "TrafficRules", &format!("service: reviews\n{spec}"))
    }

    fn sessions(spec: &str) -> Vec<Option<Session>> {
        let text = page(spec);
        assert_eq!(told(&text), Vec::<String>::new());
        route(&text).http.iter().map(|http| http.route.session.as_deref().cloned()).collect()
    }

    #[test]
    fn a_session_is_carried_by_a_cookie_of_the_pages_name_unless_it_says_otherwise() {
        let plain = SessionBy::Cookie {
            name: "outrigger-session.shop.reviews".into(),
            path: Some("/".into()),
            permanent: false,
            attributes: Vec::new(),
        };
        let page = Session { by: plain, strict: None, absolute: None, idle: None };
        let found = sessions(
            "session: {}\nroutes:\n- {match: {path: /a}}\n\
             - {match: {path: /b}, session: {cookie: {name: mine, path: /b, lifetime: permanent, attributes: {SameSite: Lax, Secure: ''}}, \
             absoluteTimeout: 1h, idleTimeout: 1m, strict: 410}}\n\
             - {match: {path: /c}, session: {header: X-Mine, strict: true}}\n- {match: {path: /d}, redirect: {path: /e}}",
        );
        let attributes =
            vec![("SameSite".to_owned(), "Lax".to_owned()), ("Secure".to_owned(), String::new())];
        let own = Session {
            by: SessionBy::Cookie {
                name: "mine".into(),
                path: Some("/b".into()),
                permanent: true,
                attributes,
            },
            strict: Some(410),
            absolute: Some(Duration::from_secs(3600)),
            idle: Some(Duration::from_secs(60)),
        };
        let header = SessionBy::Header { name: "x-mine".into() };
        let header = Session { by: header, strict: Some(503), ..page.clone() };
        assert_eq!(found, [Some(page), Some(own), Some(header), None]);
    }

    fn names(spec: &str) -> Vec<String> {
        let name = |session: Option<Session>| match session.unwrap().by {
            SessionBy::Cookie { name, .. } => name,
            SessionBy::Header { name } => name,
        };
        sessions(spec).into_iter().map(name).collect()
    }

    #[test]
    fn routes_share_a_session_where_it_is_one_and_no_name_where_it_is_not() {
        let routes = |session: &str, routes: &[&str]| {
            let routes: String = routes.iter().map(|route| format!("- {route}\n")).collect();
            format!("{session}routes:\n{routes}")
        };
        let page = |all: &[&str]| names(&routes("session: {}\n", all));
        let (a, b) = ("{match: {path: /a}}", "{match: {path: /b}, timeout: 3s}");
        let old = "{match: {path: /v1}, to: [{version: v1, weight: 9}, {service: old, weight: 1}]}";
        let shifted = "{match: {path: /v}, to: [{service: old, weight: 8}, {version: v1, weight: 2}]}";
        let v2 = "{match: {path: /v2}, to: [{version: v2}]}";
        let found = page(&[a, b, old, shifted, v2]);
        assert_eq!(found[0], "outrigger-session.shop.reviews");
        assert_eq!((&found[1], &found[3]), (&found[0], &found[2]), "the same instances");
        assert!(found[2] != found[0] && found[4] != found[0] && found[4] != found[2], "{found:?}");
        assert_eq!(page(&[v2, old]), [found[4].as_str(), &found[2]], "wherever they stand");
        // Sessions of their own: those that end otherwise are others.
        let own = |path: &str, session: &str| format!("{{match: {{path: {path}}}, session: {session}}}");
        let (x, y, z) = (own("/x", "{}"), own("/y", "{idleTimeout: 1m}"), own("/z", "{}"));
        let found = names(&routes("", &[&x, &y, &z]));
        assert!(found[0] != found[1] && found[0] == found[2], "{found:?}");
    }

    #[test]
    fn a_name_that_is_said_for_sessions_that_are_others_is_told() {
        let text =
            page("session: {cookie: {name: mine}}\nroutes:\n- {match: {path: /a}}\n- {to: [{version: v2}]}");
        let found = one_told(&text);
        assert!(found.contains("carry \"mine\" as those of spec.routes[0]"), "{found}");
    }

    #[test]
    fn what_cannot_be_or_does_nothing_is_told() {
        for (session, wanted) in [
            ("{cookie: {}, header: x}", "only one of them can hold"),
            ("{cookie: {lifetime: permanent}}", "needs absoluteTimeout"),
            ("{cookie: {name: 'a b'}}", "is not a name of a cookie"),
            ("{cookie: {path: '/;x'}}", "neither semicolons"),
            ("{cookie: {path: cart}}", "must begin with a slash"),
            ("{cookie: {attributes: {Max-Age: '5'}}}", "write attributes such as SameSite"),
            ("{header: 'a b'}", "is not a header name"),
            ("{absoluteTimeout: 1m, idleTimeout: 2m}", "has no effect"),
            ("{idleTimeout: 0s}", "longer than 0"),
            ("{strict: 99}", "from 200 to 599"),
        ] {
            let told = one_told(&page(&format!("session: {session}")));
            assert!(told.contains(wanted), "{session}: {told}");
        }
    }
}
