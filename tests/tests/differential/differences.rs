//! Where we are otherwise than an Envoy and mean to be: each a section of docs/differences.md, which has the reason.

use super::play::LEFT_OUT;

const DOCS: &str = include_str!("../../../docs/differences.md");

/// The section, and the cases that show it; `*` at an end stands for any text.
const DIFFERENCES: &[(&str, &[&str])] = &[
    (
        "Hosts without their port and final dot",
        &[
            "one: * | Host: one.example:80*",
            "one: * | Host: one.example.",
            "authority: * | Host: authority.test:80",
        ],
    ),
    (
        "Rewritten paths have one form",
        &["prefix-to-root: *", "regex-groups: *", "regex-whole: *", "to-root: GET /a/b?x=y"],
    ),
    ("Ports in redirects", &["to-port-80: *", "to-https-443: *", "to-https: *:8080", "to-scheme: *:8080"]),
    ("Direct responses of 3xx", &["direct-301: *"]),
    ("gRPC statuses of faults for others", &["abort-grpc-5: *", "abort-grpc-14: *"]),
    ("Which limit a refusal is for", &["max-requests-*: *"]),
    ("No request may wait", &["max-pending-0: *"]),
    ("Instructions to proxies in requests", &["asked-*: *"]),
    ("A wait that is longer than the time that is left", &["wait-too-long: *"]),
    ("Tokens of sessions that say no end", &["session-timed: GET /a | cookie: *"]),
    ("A connection that an application has given up", &["given-up: *"]),
    ("The host of a second attempt", &["host-of-endpoint-again: *"]),
    ("The status of an answer to a failure, in its headers", &["answer-command-0: *reset"]),
];

/// The pattern of a known difference that a case shows.
pub fn of(case: &str) -> Option<&'static str> {
    patterns().find(|pattern| matches(pattern, case))
}

pub fn patterns() -> impl Iterator<Item = &'static str> {
    DIFFERENCES.iter().flat_map(|(_, cases)| cases.iter().copied())
}

fn matches(pattern: &str, case: &str) -> bool {
    let mut parts = pattern.split('*');
    let Some(mut rest) = case.strip_prefix(parts.next().unwrap_or_default()) else { return false };
    let mut last = None;
    for part in parts {
        let Some(at) = rest.find(part) else { return false };
        rest = &rest[at + part.len()..];
        last = Some(part);
    }
    rest.is_empty() || last == Some("")
}

#[test]
fn the_documentation_has_a_section_for_each_difference_and_no_other() {
    let documented: Vec<&str> = DOCS.lines().filter_map(|line| line.strip_prefix("### ")).collect();
    let tested: Vec<&str> = DIFFERENCES.iter().map(|(section, _)| *section).collect();
    assert_eq!(documented, tested);
    for name in LEFT_OUT {
        assert!(DOCS.contains(&format!("`{name}`")), "{name} is not compared");
    }
}

#[test]
fn a_pattern_is_a_text_with_gaps() {
    assert!(matches("a: * | Host: x*", "a: GET / | Host: x:80") && matches("a: b", "a: b"));
    assert!(!matches("a: b", "a: bc") && !matches("a: *c", "a: d") && !matches("b*", "a: b"));
}
