//! Istio's AuthorizationPolicy: who may call what.
//!
//! What is not implemented fails closed: in an ALLOW policy the rule is left out, in a DENY policy the condition is, so
//! that the rest matches more.

mod rules;

use super::shared::selector;
use crate::intent::{AuthorizationAction, AuthorizationIntent, Intent};
use crate::reader::{At, Reader, Table};

const SPEC: Table = Table::new(
    "an AuthorizationPolicy",
    &["selector", "action", "rules", "targetRefs", "targetRef", "provider"],
);

pub(super) fn read(reader: &mut Reader<'_>, spec: &At<'_>) -> Vec<Intent> {
    let Some(fields) = reader.fields(spec, &SPEC) else { return Vec::new() };
    let selector = selector(reader, fields.get("selector"));
    for name in ["targetRefs", "targetRef"] {
        if let Some(at) = fields.get(name) {
            // Ignoring it would put the policy on the whole namespace.
            reader
                .error(&at, format!("{} is not implemented by Outrigger: use selector.matchLabels", at.path));
        }
    }
    let action = action(reader, fields.get("action"));
    if let Some(at) = fields.get("provider").filter(|_| action.is_some()) {
        reader.error(&at, format!("{} is for action CUSTOM only", at.path));
    }
    let deny = action == Some(AuthorizationAction::Deny);
    let rules: Vec<_> =
        reader.list(fields.get("rules")).iter().filter_map(|rule| rules::rule(reader, rule, deny)).collect();
    if deny && !fields.has("rules") {
        let message = "a DENY policy without rules matches nothing; write rules: [{}] to deny everything";
        reader.warn(crate::finding::code::NO_EFFECT, spec, message);
    }
    let Some(action) = action else { return Vec::new() };
    let origin = reader.origin.clone();
    vec![Intent::Authorization(AuthorizationIntent { origin, selector, action, rules, place: spec.place() })]
}

fn action(reader: &mut Reader<'_>, at: Option<At<'_>>) -> Option<AuthorizationAction> {
    let Some(at) = at else { return Some(AuthorizationAction::Allow) };
    let words = [
        ("ALLOW", Some(AuthorizationAction::Allow)),
        ("DENY", Some(AuthorizationAction::Deny)),
        ("AUDIT", Some(AuthorizationAction::Audit)),
        ("CUSTOM", None),
    ];
    let action = reader.choice(Some(at.clone()), &words)?;
    match action {
        None => reader.error(
            &at,
            format!("{}: CUSTOM (external authorization) is not implemented by Outrigger", at.path),
        ),
        Some(AuthorizationAction::Audit) => reader.not_implemented(&at, "matching requests are not recorded"),
        Some(_) => {}
    }
    action
}

#[cfg(test)]
mod tests;
