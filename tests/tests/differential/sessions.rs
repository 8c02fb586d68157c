//! Clients that stay at the endpoint that has answered them.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use super::apps::Apps;
use super::case::{Case, Group, to, typed};

/// A request in which `{cookie:a}` and `{header:a}` are what a client of the endpoint `a` carries.
pub fn carrying(request: &str, apps: &Apps) -> String {
    let mut text = request.to_owned();
    for (name, address) in apps.addresses.iter() {
        let address = address.to_string();
        let cookie = [&[0x0a, address.len() as u8], address.as_bytes()].concat();
        for (mark, bytes) in [("cookie", &cookie[..]), ("header", address.as_bytes())] {
            text = text.replace(&format!("{{{mark}:{name}}}"), &STANDARD.encode(bytes));
        }
    }
    text
}

fn group(name: &str, cluster: &str, state: Value, more: Value) -> Group {
    let mut session = more;
    session["session_state"] = state;
    let mut route = to(json!({ "prefix": "/" }), cluster, json!({}));
    route["typed_per_filter_config"] = json!({ "envoy.filters.http.stateful_session": typed(
        "envoy.extensions.filters.http.stateful_session.v3.StatefulSessionPerRoute",
        json!({ "stateful_session": session }),
    ) });
    Group::new(name, json!([route]))
}

fn cookie(cookie: Value) -> Value {
    let kind = "envoy.extensions.http.stateful_session.cookie.v3.CookieBasedSessionState";
    json!({ "name": "envoy.http.stateful_session.cookie", "typed_config": typed(kind, json!({ "cookie": cookie })) })
}

fn header() -> Value {
    let kind = "envoy.extensions.http.stateful_session.header.v3.HeaderBasedSessionState";
    json!({ "name": "envoy.http.stateful_session.header", "typed_config": typed(kind, json!({ "name": "x-session" })) })
}

pub fn groups() -> Vec<Group> {
    let plain = || cookie(json!({ "name": "s", "path": "/" }));
    let timed = cookie(json!({ "name": "s", "ttl": "90s", "path": "/a" }));
    let attributes = json!([{ "name": "SameSite", "value": "Lax" }, { "name": "Secure" }]);
    let dressed = cookie(json!({ "name": "s", "attributes": attributes }));
    vec![
        group("session-of-one", "a", plain(), json!({})).ask([
            "GET /",
            "HEAD /",
            "POST /\n\nhello",
            "GET /\nx-answers: 503",
            "GET /\nx-answers: 200+set-cookie=s=mine",
            "GET /\ncookie: s=\"{cookie:a}\"",
            "GET /\ncookie: s={cookie:a}",
            "GET /\ncookie: other=x; s={cookie:a}",
            "GET /\ncookie: s={cookie:b}",
            "GET /\ncookie: s=%%%",
            "GET /\ncookie: s=",
        ]),
        group("session-of-three", "three", plain(), json!({}))
            .ask([
                "GET /\ncookie: s=\"{cookie:a}\"",
                "GET /\ncookie: s=\"{cookie:b}\"",
                "GET /x\ncookie: s=\"{cookie:c}\"",
                "POST /\ncookie: s=\"{cookie:c}\"\n\nhello",
            ])
            .case(Case::new("it stays", ["GET /\ncookie: s={cookie:b}", "GET /\ncookie: s={cookie:b}"])),
        group("session-strict", "three", plain(), json!({ "strict": true }))
            .ask(["GET /\ncookie: s={cookie:b}", "GET /\ncookie: s={cookie:d}"]),
        group("session-timed", "a", timed, json!({})).ask([
            "GET /a",
            "GET /a/b",
            "GET /b",
            "GET /ab",
            "GET /a\ncookie: s={cookie:a}",
        ]),
        group("session-dressed", "a", dressed, json!({})).ask(["GET /", "GET /\ncookie: s={cookie:a}"]),
        group("session-header", "three", header(), json!({}))
            .ask(["GET /\nx-session: {header:a}", "GET /\nX-Session: {header:c}"]),
        group("session-header-of-one", "a", header(), json!({})).ask([
            "GET /",
            "GET /\nx-session: {header:b}",
            "GET /\nx-session: nothing",
            "GET /\nx-answers: 200+x-session=mine",
        ]),
    ]
}
