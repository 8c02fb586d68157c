use std::time::Duration;

use outrigger_model::matcher::StringMatch;
use outrigger_model::route::{PathMatch, RetryPolicy, RouteAction};

use super::*;
use crate::intent::Intent;
use crate::testing::objects;

/// A root that delegates with these fields, and a delegate with these routes; what comes of them.
fn merge(root: &str, delegate: &str) -> Vec<HttpRoute> {
    let block = |text: &str| text.lines().map(|line| format!("    {line}\n")).collect::<String>();
    let text = format!(
        "apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {{name: root, namespace: shop}}
spec:
  hosts: [catalog]
  http:
  - delegate: {{name: part, namespace: team}}
{}---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {{name: part, namespace: team}}
spec:
  http:
{}",
        block(root),
        block(delegate)
    );
    let all: Vec<RouteIntent> = objects(&text)
        .into_iter()
        .flat_map(|object| object.intents)
        .map(|intent| if let Intent::Route(route) = intent { route } else { panic!("{intent:?}") })
        .collect();
    let delegates = Delegates::among(&all);
    assert!(delegates.resolve(&all[1]).is_none(), "a rule that delegates nothing is what it is");
    delegates.resolve(&all[0]).unwrap().http
}

const TO: &str = "route: [{destination: {host: catalog.shop}}]";

fn paths(root: &str, delegate: &str) -> Vec<PathMatch> {
    let delegate = format!("- {TO}\n  match: [{delegate}]");
    let merged = merge(&format!("match: [{root}]"), &delegate);
    merged.into_iter().flat_map(|route| route.matches).map(|m| m.request.path).collect()
}

#[test]
fn a_path_of_the_delegate_lies_within_the_path_that_delegates() {
    let prefix = |path: &str| PathMatch::Prefix(path.into());
    let exact = |path: &str| PathMatch::Exact(path.into());
    assert_eq!(paths("uri: {prefix: /a}", "uri: {prefix: /a/b}"), [prefix("/a/b")]);
    assert_eq!(paths("uri: {prefix: /a}", "uri: {exact: /a/b}"), [exact("/a/b")]);
    assert_eq!(paths("uri: {exact: /a}", "uri: {exact: /a}"), [exact("/a")]);
    assert_eq!(paths("uri: {prefix: /a}", "headers: {x: {exact: y}}"), [prefix("/a")]);
    assert_eq!(paths("headers: {x: {exact: y}}", "uri: {regex: /a.*}"), [PathMatch::Regex("/a.*".into())]);
    assert_eq!(
        paths("{uri: {prefix: /a}, ignoreUriCase: true}", "{uri: {exact: /A/b}, ignoreUriCase: true}"),
        [exact("/A/b")]
    );
    let outside = [
        ("uri: {prefix: /a/b}", "uri: {prefix: /a}"),
        ("uri: {exact: /a}", "uri: {prefix: /a}"),
        ("uri: {exact: /a}", "uri: {exact: /ab}"),
        ("uri: {prefix: /a}", "uri: {regex: /a.*}"),
        ("{uri: {prefix: /a}, ignoreUriCase: true}", "uri: {prefix: /a}"),
        ("port: 80", "port: 81"),
        ("sourceNamespace: a", "sourceNamespace: b"),
        ("sourceLabels: {app: a}", "sourceLabels: {app: b}"),
    ];
    for (root, delegate) in outside {
        assert_eq!(paths(root, delegate), [], "{root} and {delegate}");
    }
}

#[test]
fn conditions_add_up() {
    let root = "match: [{name: r, method: {exact: GET}, port: 80, sourceLabels: {app: web}}, {method: {exact: PUT}}]";
    let delegate =
        format!("- {TO}\n  match: [{{name: d, headers: {{x: {{exact: y}}}}, sourceNamespace: front}}]");
    let merged = merge(root, &delegate);
    let [one, two] = merged[0].matches.as_slice() else { panic!("{merged:?}") };
    let names: Vec<&str> = one.request.headers.iter().map(|header| header.name.as_str()).collect();
    assert_eq!(names, [":method", "x"]);
    assert_eq!(
        (one.name.as_deref(), one.port, one.source_labels["app"].as_str()),
        (Some("r-d"), Some(80), "web")
    );
    assert_eq!(one.source_namespace.as_deref(), Some("front"));
    assert_eq!((two.method(), two.port), (Some(&StringMatch::exact("PUT")), None));
    assert_eq!(merged[0].of.as_ref().unwrap().to_string(), "VirtualService team/part");
}

#[test]
fn what_the_delegate_does_not_say_the_other_says() {
    let root = "name: r
timeout: 3s
retries: {attempts: 7}
rewrite: {uri: /new}
fault: {abort: {httpStatus: 500, percentage: {value: 1}}}
mirror: {host: other}
corsPolicy: {allowOrigins: [{exact: 'https://a.test'}]}
headers: {request: {set: {x-a: '1'}}}";
    let merged = merge(
        root,
        &format!(
            "- {TO}\n- name: d\n  timeout: 0s\n  retries: {{attempts: 1}}\n  rewrite: {{uri: /own}}\n  headers: {{response: {{remove: [x-b]}}}}\n  {TO}"
        ),
    );
    let [silent, own] = merged.as_slice() else { panic!("{merged:?}") };
    let forward = silent.forward().unwrap();
    assert_eq!((silent.route.name.as_str(), forward.timeout), ("r", Some(Duration::from_secs(3))));
    assert_eq!(forward.retry.as_ref().unwrap().attempts, 7);
    assert_eq!(forward.rewrite.prefix.as_deref(), Some("/new"));
    assert!(silent.route.fault.is_some() && silent.route.cors.is_some() && silent.mirrors.len() == 1);
    assert_eq!(silent.route.request_headers.set.len(), 1);
    let forward = own.forward().unwrap();
    assert_eq!((own.route.name.as_str(), forward.timeout), ("r-d", None));
    assert_eq!(forward.retry.as_ref().unwrap().attempts, 1);
    assert_eq!(forward.rewrite.prefix.as_deref(), Some("/own"));
    assert!(own.route.request_headers.set.is_empty(), "its own edits stand alone");
    let plain = merge("name: r", &format!("- {TO}"));
    assert_eq!(plain[0].forward().unwrap().retry, Some(RetryPolicy::default()));
}

#[test]
fn a_route_that_leaves_the_others_matches_is_gone_and_the_rest_stays() {
    let delegate = format!(
        "- match: [{{uri: {{prefix: /a/x}}}}, {{uri: {{prefix: /b}}}}]\n  {TO}\n- match: [{{uri: {{prefix: /a/y}}}}]\n  {TO}\n- {TO}"
    );
    let merged = merge("match: [{uri: {prefix: /a}}]", &delegate);
    let paths: Vec<_> = merged.iter().map(|route| route.matches[0].request.path.clone()).collect();
    assert_eq!(paths, [PathMatch::Prefix("/a/y".into()), PathMatch::Prefix("/a".into())]);
}

#[test]
fn the_product_of_matches_is_bounded() {
    let many = |n: usize, name: &str| {
        (0..n).map(|i| format!("{{headers: {{{name}-{i}: {{}}}}}}")).collect::<Vec<_>>().join(", ")
    };
    let root = format!("match: [{}]", many(50, "r"));
    let delegate = format!("- match: [{}]\n  {TO}\n- match: [{}]\n  {TO}", many(30, "d"), many(20, "e"));
    let merged = merge(&root, &delegate);
    assert_eq!(merged.iter().map(|route| route.matches.len()).collect::<Vec<_>>(), [1500, 50]);
    assert!(
        matches!(merged[1].route.action, RouteAction::Direct { status: 500, .. }),
        "and not the next route's"
    );
}
