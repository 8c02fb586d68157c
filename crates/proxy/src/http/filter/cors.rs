//! Cross-origin requests: `envoy.filters.http.cors`, by the policy of the route that was found. It acts where a route has one.

use outrigger_model::route::Cors;
use outrigger_model::route::table::CompiledRoute;

use super::{Act, After, Input, ResponseEdit, Stop, Verdict, Visit, fault};
use crate::http::head::RequestHead;
use crate::http::respond::{self, Local};

/// By the policies of routes.
#[derive(Debug)]
pub struct CrossOrigin;

/// What it makes of a request.
enum Look {
    /// It is none of another origin, or the policy does not act.
    Pass,
    /// The response is to be edited.
    Edit(Vec<ResponseEdit>),
    /// A preflight, answered here.
    Answer(Local, Vec<ResponseEdit>),
}

impl Act for CrossOrigin {
    fn on_request(&self, input: &Input<'_>) -> Verdict {
        let has_policy = input.route.is_some_and(|route| route.config.cors.is_some());
        if has_policy && origin(input.request).is_some() { Verdict::Visit } else { Verdict::Continue }
    }

    /// Answers what a browser asks before, and says in the response what it may show.
    fn visit<'v>(&self, visit: &mut impl Visit<'v>) -> Result<After, Stop> {
        let Some(route) = visit.route() else { return Ok(After::Same) };
        let Some(policy) = &route.config.cors else { return Ok(After::Same) };
        match look(policy, route, visit.input().request) {
            Look::Pass => {}
            Look::Edit(edits) => visit.respond(edits),
            Look::Answer(local, edits) => {
                visit.respond(edits);
                return Err(Stop::Answered(Box::new(local), "cors_response"));
            }
        }
        Ok(After::Same)
    }

    fn judges(&self) -> bool {
        false
    }
}

fn origin(head: &RequestHead) -> Option<&[u8]> {
    head.first("origin").filter(|origin| !origin.is_empty())
}

/// Looks at a request (Fetch, section 3.2).
fn look(policy: &Cors, route: &CompiledRoute, head: &RequestHead) -> Look {
    let Some(origin) = origin(head) else { return Look::Pass };
    if !fault::hits(policy.percentage) {
        return Look::Pass;
    }
    let allowed = route.allows_origin(origin);
    let mut edits = Vec::new();
    if allowed {
        edits.push(ResponseEdit::set("access-control-allow-origin", origin));
        if policy.allow_credentials {
            edits.push(ResponseEdit::set("access-control-allow-credentials", "true"));
        }
        if !policy.expose_headers.is_empty() {
            edits.push(ResponseEdit::set("access-control-expose-headers", policy.expose_headers.as_str()));
        }
    }
    let asked = head.first("access-control-request-method").filter(|method| !method.is_empty());
    let Some(method) = asked.filter(|_| head.method() == "OPTIONS") else {
        return if allowed { Look::Edit(edits) } else { Look::Pass };
    };
    if !allowed && policy.forward_not_matching {
        return Look::Pass;
    }
    let mut local = respond::direct(200, "", (false, false), None);
    let mut say = |name: &str, configured: &str, value: &[u8]| {
        if !configured.is_empty() {
            // A head of our own has room for what is configured.
            let _ = local.head.set(name, value);
        }
    };
    if policy.allow_credentials {
        say("access-control-allow-credentials", "true", b"true");
    }
    let echo = |text: &str, asked: &[u8]| if text == "*" { asked.to_vec() } else { text.as_bytes().to_vec() };
    say("access-control-allow-methods", &policy.allow_methods, &echo(&policy.allow_methods, method));
    let headers = head.first("access-control-request-headers").unwrap_or_default();
    // Also where none was asked for, as Envoy does.
    say("access-control-allow-headers", &policy.allow_headers, &echo(&policy.allow_headers, headers));
    say("access-control-max-age", &policy.max_age, policy.max_age.as_bytes());
    let private = head.first("access-control-request-private-network") == Some(b"true");
    if policy.allow_private_network && private {
        say("access-control-allow-private-network", "true", b"true");
    }
    Look::Answer(local, edits)
}
