//! The `status` of a rule, where its kind has one: what the Gateway API wants to know of its routes, per parent.

use outrigger_rules::conditions::{self, Condition, ParentStatus};
use outrigger_rules::intent::{BackendTls, Host, Intent, ObjectKind, Parent};
use serde_json::{Value, json};

use crate::keeper::Rule;
use crate::world::World;

/// As the Gateway API calls who writes a status.
pub(crate) const CONTROLLER: &str = "outrigger.io/control-plane";

/// The status of a rule of which this release knows what it means.
pub(crate) fn of(rule: &Rule, world: &World) -> Option<Value> {
    let intents = rule.object.iter().flat_map(|object| &object.intents);
    if let Some(ancestors) = ancestors(rule, world) {
        return Some(json!({ "ancestors": ancestors }));
    }
    let mut attached = intents.filter_map(|intent| match intent {
        Intent::Attached(attached) => Some(attached),
        _ => None,
    });
    let parents: Vec<Value> =
        conditions::of(attached.next()?, world).iter().map(|status| parent(status, rule)).collect();
    Some(json!({ "parents": parents }))
}

/// Of a policy for TLS towards services: what becomes of it at each of them.
fn ancestors(rule: &Rule, world: &World) -> Option<Vec<Value>> {
    let object = rule.object.as_ref().filter(|object| object.kind == ObjectKind::BackendTlsPolicy)?;
    let destinations = object.intents.iter().filter_map(|intent| match intent {
        Intent::Destination(destination) => Some(destination),
        _ => None,
    });
    let targets = destinations.flat_map(|rule| rule.backend_tls.iter().map(move |tls| (&rule.host, tls)));
    let ancestor = |(host, written): (&Host, &BackendTls)| {
        let all = world.backend_tls(host);
        let is = |tls: &&BackendTls| tls.origin == written.origin && tls.section == written.section;
        let known = all.iter().find(is).unwrap_or(written);
        let conditions = conditions::of_backend_tls(known, host, &all, world);
        let name = host.as_str().split('.').next().unwrap_or_default();
        let mut reference =
            json!({ "group": "", "kind": "Service", "namespace": object.namespace, "name": name });
        if let Some(section) = &written.section {
            reference["sectionName"] = section.as_str().into();
        }
        json!({
            "ancestorRef": reference,
            "controllerName": CONTROLLER,
            "conditions": conditions.iter().map(|one| condition(one, rule)).collect::<Vec<_>>(),
        })
    };
    Some(targets.map(ancestor).collect())
}

fn parent(status: &ParentStatus<'_>, rule: &Rule) -> Value {
    let conditions: Vec<Value> = status.conditions.iter().map(|one| condition(one, rule)).collect();
    parent_of(reference(status.parent), conditions)
}

/// What we say of a parent.
pub(crate) fn parent_of(reference: Value, conditions: Vec<Value>) -> Value {
    json!({
        "parentRef": reference,
        "controllerName": CONTROLLER,
        "conditions": conditions,
    })
}

fn condition(condition: &Condition, rule: &Rule) -> Value {
    json!({
        "type": condition.kind.as_str(),
        "status": if condition.holds { "True" } else { "False" },
        "reason": condition.reason,
        "message": condition.message,
        "observedGeneration": rule.stored.version,
        // Of the version: conditions are not kept, they are looked up.
        "lastTransitionTime": rule.stored.at,
    })
}

/// As it was written.
fn reference(parent: &Parent) -> Value {
    let mut written = json!({ "group": parent.group, "kind": parent.kind, "name": parent.name });
    let more = [
        ("namespace", parent.namespace.clone().map(Value::from)),
        ("sectionName", parent.section.clone().map(Value::from)),
        ("port", parent.port.map(Value::from)),
    ];
    for (name, value) in more {
        if let Some(value) = value {
            written[name] = value;
        }
    }
    written
}
