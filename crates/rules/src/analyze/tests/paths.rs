//! Paths of routes that hold a `*`, or begin without a slash.

use super::*;

fn route(uri: &str) -> String {
    virtual_service(&format!(
        "hosts: [reviews]\nhttp:\n- match: [{{uri: {{{uri}}}}}]\n  route: [{{destination: {{host: reviews}}}}]"
    ))
}

#[test]
fn a_star_in_a_path_of_a_route_is_told_with_what_stands_for_it() {
    for (uri, meant) in [
        ("prefix: '/api/*'", "prefix: /api/"),
        ("exact: '/api/*'", "prefix: /api/"),
        ("exact: '/a/*/b.c'", r"regex: /a/[^/]+/b\.c"),
        ("prefix: '/a/*/b'", "regex: /a/[^/]+/b.*"),
    ] {
        let told = only(&route(uri));
        assert!(
            told.contains("warning OUT0117: VirtualService shop/reviews: spec.http[0].match[0]"),
            "{told}"
        );
        assert!(told.ends_with(&format!("Did you mean \"{meant}\"?")), "{told}");
    }
    silent(&route("exact: '*'"));
    silent(&route("regex: '/a/.*/b'"));
}

#[test]
fn a_pattern_that_begins_without_a_slash_is_told() {
    for pattern in ["api/.*", "^api", "(a|b)/c", "[a-c]x"] {
        let told = only(&route(&format!("regex: '{pattern}'")));
        assert!(
            told.contains("warning OUT0107") && told.contains("every path begins with a slash"),
            "{told}"
        );
    }
    for pattern in
        ["/api/.*", ".*api", "(/a|b)", "/?a", "[/a]b", "(?i)/A", "[^/]*/a", "\\W.*", "a*/b", "(|x)/b", "\\*"]
    {
        silent(&route(&format!("regex: '{pattern}'")));
    }
}
