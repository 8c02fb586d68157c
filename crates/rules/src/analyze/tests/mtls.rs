//! mTLS that two sides do not agree on.

use super::*;

/// As `catalog`, and all have sidecars.
fn found(text: &str) -> Vec<String> {
    let mut catalog = catalog();
    catalog.services.values_mut().for_each(|service| service.sidecars = true);
    analyze(&objects(text), Some(&catalog)).iter().map(Finding::to_string).collect()
}

fn client(mode: &str) -> String {
    let tls = format!("host: reviews\ntrafficPolicy: {{tls: {{mode: {mode}}}}}");
    object("networking.istio.io/v1", "DestinationRule", &tls)
}

fn server(name: &str, namespace: &str, spec: &str) -> String {
    format!(
        "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {{name: {name}, namespace: {namespace}}}\nspec:\n  {spec}\n"
    )
}

#[test]
fn clients_that_are_refused_for_want_of_mtls_are_told() {
    let strict = server("a", "shop", "mtls: {mode: STRICT}");
    for mode in ["DISABLE", "SIMPLE"] {
        let mut told = found(&both(&client(mode), &strict));
        told.retain(|line| !line.contains("IST0128"));
        assert_eq!(told.len(), 1, "{told:#?}");
        assert!(
            told[0].contains("warning IST0113") && told[0].contains("port 80 of reviews.shop"),
            "{told:?}"
        );
    }
    let none = Vec::<String>::new();
    assert_eq!(found(&both(&client("ISTIO_MUTUAL"), &strict)), none);
    assert_eq!(found(&client("DISABLE")), none, "PERMISSIVE unless somebody says otherwise");
    silent(&both(&client("DISABLE"), &strict));
}

#[test]
fn a_policy_for_backends_that_take_mtls_only_is_told() {
    let strict = server("a", "shop", "mtls: {mode: STRICT}");
    let policy = |section: &str| {
        object(
            "gateway.networking.k8s.io/v1",
            "BackendTLSPolicy",
            &format!(
                "targetRefs: [{{group: '', kind: Service, name: reviews{section}}}]\n\
                 validation: {{hostname: a.example.com, wellKnownCACertificates: System}}"
            ),
        )
    };
    let told = found(&both(&policy(""), &strict));
    assert_eq!(told.len(), 1, "{told:#?}");
    assert!(
        told[0].contains("warning IST0113") && told[0].contains("for servers without a sidecar"),
        "{told:?}"
    );
    assert_eq!(found(&policy("")), Vec::<String>::new(), "PERMISSIVE");
    let other = found(&both(&policy(", sectionName: other"), &strict));
    assert!(other.iter().all(|line| !line.contains("IST0113")), "another port: {other:?}");
}

#[test]
fn the_narrowest_scope_says_what_servers_take() {
    let root = server("a", "istio-system", "mtls: {mode: STRICT}");
    let said = |more: &str| found(&both(&client("DISABLE"), &both(&root, more))).len();
    assert_eq!(
        said(&server("b", "other", "mtls: {mode: PERMISSIVE}")),
        2,
        "nobody is in that namespace, and it is refused"
    );
    assert_eq!(said(&server("b", "shop", "mtls: {mode: PERMISSIVE}")), 0);
    assert_eq!(said(&server("b", "shop", "mtls: {mode: UNSET}")), 1);
    let app = "selector: {matchLabels: {app: reviews}}";
    assert_eq!(said(&server("b", "shop", &format!("{app}\n  mtls: {{mode: DISABLE}}"))), 0);
    let by_port =
        |mode: &str| format!("{app}\n  mtls: {{mode: STRICT}}\n  portLevelMtls: {{80: {{mode: {mode}}}}}");
    assert_eq!(said(&server("b", "shop", &by_port("PERMISSIVE"))), 0);
    assert_eq!(said(&server("b", "shop", &by_port("STRICT"))), 1);
}

#[test]
fn two_policies_for_the_same_workloads_are_told() {
    let told = found(&both(
        &server("a", "shop", "mtls: {mode: STRICT}"),
        &server("b", "shop", "mtls: {mode: PERMISSIVE}"),
    ));
    assert_eq!(told.len(), 1, "{told:#?}");
    assert!(
        told[0].contains("warning OUT0112")
            && told[0].contains("PeerAuthentication shop/b and PeerAuthentication a"),
        "{told:?}"
    );
    let narrower = server("b", "shop", "selector: {matchLabels: {app: reviews}}\n  mtls: {mode: PERMISSIVE}");
    assert_eq!(found(&both(&server("a", "shop", "mtls: {mode: STRICT}"), &narrower)), Vec::<String>::new());
}
