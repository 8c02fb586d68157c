//! Istio's AuthorizationPolicy: who may call what.
//!
//! What is not implemented fails closed: in an ALLOW policy the rule is left out, in any other the condition is, so that the rest
//! matches more.

mod rules;

use super::shared::selector;
use crate::finding::code;
use crate::intent::{AuthorizationAction, AuthorizationIntent, Intent};
use crate::reader::{At, Fields, Reader, Table};

const SPEC: Table = Table::new(
    "an AuthorizationPolicy",
    &["selector", "action", "rules", "targetRefs", "targetRef", "provider"],
);

const PROVIDER: Table = Table::new("a provider", &["name"]);

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
    let action = action(reader, &fields);
    let allows = matches!(action, None | Some(AuthorizationAction::Allow));
    let rules: Vec<_> = reader
        .list(fields.get("rules"))
        .iter()
        .filter_map(|rule| rules::rule(reader, rule, allows))
        .collect();
    if !fields.has("rules") {
        match action {
            Some(AuthorizationAction::Deny) => {
                let message =
                    "a DENY policy without rules matches nothing; write rules: [{}] to deny everything";
                reader.warn(code::NO_EFFECT, spec, message);
            }
            Some(AuthorizationAction::Custom(_)) => reader.error(
                spec,
                "a CUSTOM policy without rules asks about nothing; write rules: [{}] to ask about everything",
            ),
            _ => {}
        }
    }
    let Some(action) = action else { return Vec::new() };
    let origin = reader.origin.clone();
    vec![Intent::Authorization(AuthorizationIntent { origin, selector, action, rules, place: spec.place() })]
}

/// The action, with the provider where it has one.
fn action(reader: &mut Reader<'_>, fields: &Fields<'_>) -> Option<AuthorizationAction> {
    let words = [
        ("ALLOW", Some(AuthorizationAction::Allow)),
        ("DENY", Some(AuthorizationAction::Deny)),
        ("AUDIT", Some(AuthorizationAction::Audit)),
        ("CUSTOM", None),
    ];
    let (at, provider) = (fields.get("action"), fields.get("provider"));
    let action = match &at {
        None => Some(AuthorizationAction::Allow),
        Some(at) => reader.choice(Some(at.clone()), &words)?,
    };
    match (action, at, provider) {
        (None, Some(at), None) => {
            reader.error(&at, format!("{} CUSTOM needs provider.name: who is to be asked", at.path));
            None
        }
        (None, _, Some(provider)) => self::provider(reader, &provider).map(AuthorizationAction::Custom),
        (action, at, provider) => {
            if let Some(provider) = provider {
                reader.error(&provider, format!("{} is for action CUSTOM only", provider.path));
            }
            if let (Some(AuthorizationAction::Audit), Some(at)) = (&action, at) {
                reader.not_implemented(&at, "matching requests are not recorded");
            }
            action
        }
    }
}

fn provider(reader: &mut Reader<'_>, at: &At<'_>) -> Option<String> {
    let fields = reader.fields(at, &PROVIDER)?;
    let Some(name) = fields.get("name") else {
        reader.missing(&fields, "name");
        return None;
    };
    let text = reader.text(Some(name.clone()))?;
    if text.is_empty() {
        reader.error(&name, format!("{} must not be empty", name.path));
        return None;
    }
    Some(text)
}

#[cfg(test)]
mod tests;
