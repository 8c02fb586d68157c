//! The status of each kind, as its definition has it. What others say in it stays.

use jiff::Timestamp;
use outrigger_rules::finding::code;
use outrigger_rules::{Finding, Severity};
use serde_json::{Value, json};

use super::told::{Told, joined};
use crate::api::route_status::CONTROLLER;

/// A route has no other place for what is worth a word about it.
const WARNINGS: &str = "outrigger.io/Warnings";

/// The status of an object of this generation, which has `now`, to be merged into it.
pub(super) fn status(told: &Told, generation: i64, now: &Value, at: Timestamp) -> Value {
    match told.kind.as_str() {
        "HTTPRoute" | "GRPCRoute" | "TLSRoute" | "TCPRoute" => {
            by_place(told, ("parents", "parentRef", 32), generation, now, at)
        }
        "BackendTLSPolicy" => by_place(told, ("ancestors", "ancestorRef", 16), generation, now, at),
        "TrafficRules" => {
            let all = vec![accepted(told), enforced(told)];
            let mut status = json!({"observedGeneration": generation, "conditions": conditions(all, generation, &now["conditions"], at)});
            status["inForce"] = if told.accepted { reach(told).into() } else { Value::Null };
            status
        }
        _ => {
            // As Istio calls it.
            let all = vec![accepted(told), reached("Reconciled", told, told.accepted)];
            let mut status = json!({"observedGeneration": generation, "conditions": conditions(all, generation, &now["conditions"], at)});
            if let Some(messages) = messages(told, &now["validationMessages"]) {
                status["validationMessages"] = messages;
            }
            status
        }
    }
}

/// Each of ours says besides how many proxies have it. Entries of other controllers stay; those of parents that are no longer ours go. Policies call them ancestors. An API server takes no more
/// than `most` of all, or none at all: of ours those that come last are left out.
fn by_place(
    told: &Told,
    (list, reference, most): (&str, &str, usize),
    generation: i64,
    now: &Value,
    at: Timestamp,
) -> Value {
    let before = now[list].as_array().cloned().unwrap_or_default();
    let (ours, others): (Vec<Value>, Vec<Value>) =
        before.into_iter().partition(|parent| parent["controllerName"] == CONTROLLER);
    let parents = told.parents.iter().map(|parent| {
        let known = ours.iter().find(|known| known[reference] == parent[reference]);
        let known = known.map_or(&Value::Null, |known| &known["conditions"]);
        let mut all = parent["conditions"].as_array().cloned().unwrap_or_default();
        let is_accepted = |one: &Value| one["type"] == "Accepted" && one["status"] == "True";
        all.push(reached("outrigger.io/InForce", told, told.accepted && all.iter().any(is_accepted)));
        all.extend(warnings(told));
        // It is there only while there is something to say.
        let of_ours =
            |one: &&Value| one["type"] != WARNINGS || all.last().is_some_and(|last| last["type"] == WARNINGS);
        let known: Value = known.as_array().into_iter().flatten().filter(of_ours).cloned().collect();
        let mut parent = parent.clone();
        parent["conditions"] = conditions(all, generation, &known, at);
        parent
    });
    let parents: Vec<Value> = others.into_iter().chain(parents).take(most).collect();
    // Nothing of ours, and nothing there: no status at all.
    if parents.is_empty() && now[list].is_null() { json!({}) } else { json!({list: parents}) }
}

fn accepted(told: &Told) -> Value {
    let status = if told.accepted { "True" } else { "False" };
    json!({"type": "Accepted", "status": status, "reason": told.reason, "message": told.message})
}

/// What has no effect, or is probably not what was meant; but for what its other conditions say.
fn warnings(told: &Told) -> Option<Value> {
    let said = |finding: &&Finding| finding.code != code::ROUTE_CONDITION;
    let message = joined(told.findings.iter().filter(said).filter(|_| told.accepted).map(Finding::of_field));
    (!message.is_empty())
        .then(|| json!({"type": WARNINGS, "status": "True", "reason": "Findings", "message": message}))
}

fn enforced(told: &Told) -> Value {
    let (status, reason) = match (told.accepted, told.lacking.is_empty()) {
        (false, _) => ("Unknown", "NotAccepted"),
        (true, true) => ("True", "Enforced"),
        (true, false) => ("False", "NotEnforced"),
    };
    json!({"type": "Enforced", "status": status, "reason": reason, "message": told.lacking})
}

/// Whether all proxies have it, and how many do.
fn reached(name: &str, told: &Told, is_accepted: bool) -> Value {
    if !is_accepted {
        return json!({"type": name, "status": "Unknown", "reason": "NotAccepted", "message": ""});
    }
    let (status, reason) = match (told.is_everywhere(), told.unheard.is_empty()) {
        (true, _) => ("True", "InForce"),
        (false, true) => ("False", "NotEverywhere"),
        (false, false) => ("Unknown", "ReplicaSilent"),
    };
    let lacking = if told.lacking.is_empty() { String::new() } else { format!("; {}", told.lacking) };
    json!({"type": name, "status": status, "reason": reason, "message": reach(told) + &lacking})
}

fn reach(told: &Told) -> String {
    let (have, of) = told.proxies;
    let unheard = if told.unheard.is_empty() { String::new() } else { format!("; {}", told.unheard) };
    format!("{have} of {of} proxies at generation {}{unheard}", told.since)
}

/// What the list becomes, if it is ours. A merge has it as a whole or not at all, and so does istiod, whose analysis writes it, too: beside
/// that ours would only take turns, each of which wakes the other. Ours are in the conditions' messages and in Events as well. Codes do not
/// tell them apart, for many of ours are Istio's: theirs lead to its documentation.
fn messages(told: &Told, now: &Value) -> Option<Value> {
    let is_ours = |one: &&Value| one["documentationUrl"].is_null();
    let (ours, theirs): (Vec<&Value>, Vec<&Value>) = now.as_array().into_iter().flatten().partition(is_ours);
    if !theirs.is_empty() {
        return (!ours.is_empty()).then(|| json!(theirs));
    }
    let messages: Vec<Value> = told.findings.iter().map(message).collect();
    Some(if messages.is_empty() { Value::Null } else { messages.into() })
}

/// A finding as Istio has them.
fn message(finding: &Finding) -> Value {
    let what = code::ALL.iter().find(|(code, _)| *code == finding.code).map_or("", |(_, what)| *what);
    let level = match finding.severity {
        Severity::Error => "ERROR",
        Severity::Warning => "WARNING",
        Severity::Info => "INFO",
    };
    json!({"type": {"code": finding.code, "name": what}, "level": level})
}

/// Ours among those that are there, in their order. A condition that is as it was has changed when it did.
fn conditions(ours: Vec<Value>, generation: i64, now: &Value, at: Timestamp) -> Value {
    let mut all = now.as_array().cloned().unwrap_or_default();
    for mut condition in ours {
        condition["observedGeneration"] = generation.into();
        condition["lastTransitionTime"] = at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string().into();
        match all.iter_mut().find(|known| known["type"] == condition["type"]) {
            Some(known) => {
                if known["status"] == condition["status"] && known["lastTransitionTime"].is_string() {
                    condition["lastTransitionTime"] = known["lastTransitionTime"].clone();
                }
                *known = condition;
            }
            None => all.push(condition),
        }
    }
    all.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(kind: &str) -> Told {
        Told {
            kind: kind.to_owned(),
            accepted: true,
            reason: "Accepted",
            proxies: (41, 42),
            since: 12,
            ..Told::default()
        }
    }

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    #[test]
    fn what_others_say_stays_and_a_condition_changes_when_its_status_does() {
        let others = json!({"type": "Custom", "status": "True"});
        let first = status(&told("VirtualService"), 3, &json!({"conditions": [others]}), at(0));
        assert_eq!(first["conditions"][0], others);
        assert_eq!(first["conditions"][1]["lastTransitionTime"], "1970-01-01T00:00:00Z");
        assert_eq!(first["conditions"][2]["message"], "41 of 42 proxies at generation 12");
        assert_eq!(
            (&first["conditions"][2]["status"], &first["observedGeneration"]),
            (&json!("False"), &json!(3))
        );
        // The same again is the same, later or not.
        assert_eq!(status(&told("VirtualService"), 3, &first, at(60)), first);
        let all = Told { proxies: (42, 42), ..told("VirtualService") };
        let second = status(&all, 4, &first, at(60));
        assert_eq!(second["conditions"][1]["lastTransitionTime"], "1970-01-01T00:00:00Z");
        assert_eq!(second["conditions"][2]["lastTransitionTime"], "1970-01-01T00:01:00Z");
    }

    #[test]
    fn messages_of_another_analysis_stay_and_ours_do_not_take_turns_with_them() {
        let text = "{apiVersion: networking.istio.io/v1, kind: VirtualService, metadata: {name: web, namespace: shop},
            spec: {hosts: [web], http: [{route: [{destination: {host: web}}], nobodyKnows: 1}]}}";
        let findings = outrigger_rules::parse("", text).findings;
        assert!(!findings.is_empty());
        let told = Told { findings, ..told("VirtualService") };
        let list = "validationMessages";
        let first = status(&told, 1, &Value::Null, at(0));
        let ours = first[list].as_array().unwrap().clone();
        assert_eq!(ours[0]["type"]["code"], "IST0106", "a code of Istio's, and our finding");
        assert_eq!(status(&told, 1, &first, at(60)), first);
        let theirs = json!({"type": {"code": "IST0101", "name": "ReferencedResourceNotFound"}, "level": "ERROR", "documentationUrl": "https://istio.io/v1.30/docs/reference/config/analysis/ist0101/"});
        let beside = status(&told, 1, &json!({list: [theirs]}), at(0));
        assert_eq!(beside.get(list), None, "a merge leaves what it does not name");
        let mixed = status(&told, 1, &json!({list: [ours[0], theirs]}), at(0));
        assert_eq!(mixed[list], json!([theirs]));
        let mended = status(&Told { findings: Vec::new(), ..told }, 2, &first, at(60));
        assert_eq!(mended.get(list), Some(&Value::Null), "ours go with what was wrong");
    }

    #[test]
    fn a_replica_that_does_not_answer_is_said_and_nothing_is_claimed_of_it() {
        let others = crate::others::Others::new([], vec!["outrigger-control-1".to_owned()]);
        let heard = Told { proxies: (42, 42), unheard: others.unheard(), ..told("VirtualService") };
        let status = status(&heard, 1, &Value::Null, at(0));
        let condition = &status["conditions"][1];
        assert_eq!(
            (&condition["status"], &condition["reason"]),
            (&json!("Unknown"), &json!("ReplicaSilent"))
        );
        let words = "42 of 42 proxies at generation 12; replica outrigger-control-1 does not answer, and its proxies are not among them";
        assert_eq!(condition["message"], words);
    }

    #[test]
    fn a_page_of_ours_says_where_it_is_in_force_and_one_that_is_invalid_what_is_wrong() {
        let good = status(&told("TrafficRules"), 1, &Value::Null, at(0));
        assert_eq!(good["inForce"], "41 of 42 proxies at generation 12");
        let bad = Told {
            accepted: false,
            reason: "Invalid",
            message: "spec.timeout must be".into(),
            ..told("TrafficRules")
        };
        let bad = status(&bad, 2, &good, at(0));
        assert_eq!((&bad["inForce"], &bad["conditions"][0]["status"]), (&Value::Null, &json!("False")));
        assert_eq!(bad["conditions"][1]["status"], "Unknown");
    }

    #[test]
    fn each_parent_and_ancestor_says_how_many_proxies_have_it() {
        let of = |name: &str, accepted: &str| {
            json!({"parentRef": {"name": name}, "ancestorRef": {"name": name}, "controllerName": CONTROLLER,
            "conditions": [{"type": "Accepted", "status": accepted, "reason": "X", "message": ""},
                {"type": "ResolvedRefs", "status": "True", "reason": "X", "message": ""}]})
        };
        for (kind, list) in [("HTTPRoute", "parents"), ("BackendTLSPolicy", "ancestors")] {
            let route = Told { parents: vec![of("web", "True"), of("no", "False")], ..told(kind) };
            let first = status(&route, 5, &Value::Null, at(0));
            let said = |status: &Value, n: usize| {
                let condition = &status[list][n]["conditions"][2];
                assert_eq!(condition["type"], "outrigger.io/InForce");
                let word = |name: &str| condition[name].as_str().unwrap().to_owned();
                [word("status"), word("reason"), word("message"), word("lastTransitionTime")]
            };
            let words = "41 of 42 proxies at generation 12";
            assert_eq!(said(&first, 0), ["False", "NotEverywhere", words, "1970-01-01T00:00:00Z"]);
            assert_eq!(said(&first, 1), ["Unknown", "NotAccepted", "", "1970-01-01T00:00:00Z"]);
            assert_eq!(status(&route, 5, &first, at(60)), first);
            let all = Told { proxies: (42, 42), ..route };
            let second = said(&status(&all, 5, &first, at(60)), 0);
            let words = "42 of 42 proxies at generation 12";
            assert_eq!(second, ["True", "InForce", words, "1970-01-01T00:01:00Z"]);
        }
    }

    #[test]
    fn what_of_a_route_has_no_effect_stands_beside_its_conditions_for_as_long_as_it_is_so() {
        let parent = json!({"parentRef": {"name": "web"}, "controllerName": CONTROLLER,
            "conditions": [{"type": "Accepted", "status": "True", "reason": "X", "message": ""}]});
        let text = "{apiVersion: gateway.networking.k8s.io/v1, kind: HTTPRoute, metadata: {name: web, namespace: shop},
            spec: {useDefaultGateways: All, parentRefs: [{group: '', kind: Service, name: web}], rules: [{backendRefs: [{name: web, port: 80}]}]}}";
        let read = outrigger_rules::parse("", text);
        assert_eq!(read.objects.len(), 1, "{:?}", read.findings);
        let route = Told { parents: vec![parent], findings: read.findings, ..told("HTTPRoute") };
        let first = status(&route, 5, &Value::Null, at(0));
        let all = first["parents"][0]["conditions"].as_array().unwrap();
        let words = all.iter().find(|one| one["type"] == WARNINGS).unwrap()["message"].as_str().unwrap();
        assert!(words.starts_with("spec.useDefaultGateways is not implemented"), "{words}");
        assert_eq!(status(&route, 5, &first, at(60)), first);
        let mended = status(&Told { findings: Vec::new(), ..route }, 6, &first, at(60));
        let types: Vec<&Value> =
            mended["parents"][0]["conditions"].as_array().unwrap().iter().map(|one| &one["type"]).collect();
        assert_eq!(types, ["Accepted", "outrigger.io/InForce"]);
    }

    #[test]
    fn a_route_keeps_the_entries_of_other_controllers_and_has_none_of_ours_without_our_parents() {
        let theirs = json!({"parentRef": {"name": "gateway"}, "controllerName": "other", "conditions": []});
        let ours = |name: &str| {
            json!({"parentRef": {"name": name, "kind": "Service"}, "controllerName": CONTROLLER,
            "conditions": [{"type": "Accepted", "status": "True", "reason": "Accepted", "message": ""}]})
        };
        let now = json!({"parents": [theirs, ours("gone")]});
        let route = Told { parents: vec![ours("web")], ..told("HTTPRoute") };
        let after = status(&route, 5, &now, at(0));
        assert_eq!(after["parents"].as_array().unwrap().len(), 2);
        assert_eq!(
            (&after["parents"][0], &after["parents"][1]["parentRef"]["name"]),
            (&theirs, &json!("web"))
        );
        assert_eq!(after["parents"][1]["conditions"][0]["observedGeneration"], 5);
        assert_eq!(status(&told("HTTPRoute"), 5, &Value::Null, at(0)), json!({}));
        // More than the definition has room for would lose the others, too.
        for (kind, list, most) in [("HTTPRoute", "parents", 32), ("BackendTLSPolicy", "ancestors", 16)] {
            let many = Told { parents: (0..40).map(|n| ours(&format!("s{n}"))).collect(), ..told(kind) };
            let after = status(&many, 5, &json!({list: [theirs]}), at(0));
            let all = after[list].as_array().unwrap();
            assert_eq!((all.len(), &all[0]), (most, &theirs));
        }
    }
}
