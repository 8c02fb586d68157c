//! Delegation.

use super::*;

fn part(spec: &str) -> String {
    let spec: String = spec.lines().map(|line| format!("  {line}\n")).collect();
    format!(
        "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {{name: part, namespace: shop}}\nspec:\n{spec}"
    )
}

#[test]
fn a_delegate_that_is_not_there_is_told() {
    let root =
        |name: &str| virtual_service(&format!("hosts: [reviews]\nhttp:\n- delegate: {{name: {name}}}"));
    let leaf = "http:\n- route: [{destination: {host: reviews}}]";
    silent(&both(&root("part"), &part(leaf)));
    let told = found(&both(&root("part1"), &part(leaf)));
    assert!(
        told[0].contains(
            "delegates to \"shop/part1\", but there is no such VirtualService. Did you mean \"part\"?"
        ),
        "{told:#?}"
    );
    assert!(
        told[1].contains("warning OUT0006") && told[1].contains("no other VirtualService delegates to it"),
        "{told:#?}"
    );
    assert!(
        found(&both(&root("part"), &part(&format!("hosts: [stock]\n{leaf}"))))[0]
            .contains("has hosts of its own")
    );
    let hidden = found(&both(&root("part"), &part(&format!("exportTo: [other]\n{leaf}"))));
    assert!(hidden[0].contains("hides it from namespace shop"), "{hidden:#?}");
    let behind = virtual_service(
        "hosts: [reviews]\nhttp:\n- delegate: {name: part}\n- route: [{destination: {host: reviews}}]",
    );
    silent(&both(&behind, &part(leaf)));
}

#[test]
fn more_matches_by_delegation_than_are_taken_are_told() {
    let many =
        |n: usize| (0..n).map(|i| format!("{{headers: {{h-{i}: {{}}}}}}")).collect::<Vec<_>>().join(", ");
    let rules = |n: usize| {
        let half = format!("- match: [{}]\n  delegate: {{name: part}}\n", many(50));
        both(
            &virtual_service(&format!("hosts: [reviews]\nhttp:\n{half}{}", half.replace("h-", "i-"))),
            &part(&format!("http:\n- match: [{}]\n  route: [{{destination: {{host: reviews}}}}]", many(n))),
        )
    };
    silent(&rules(20));
    assert!(only(&rules(21)).contains("error OUT0003"), "of both together");
}
