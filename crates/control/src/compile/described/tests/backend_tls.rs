//! TLS that a policy wants towards a service that is described: nothing makes it less, and without it nobody is called.

use outrigger_identity::{Authority, AuthorityOptions};

use super::*;

fn policy(validation: &str) -> String {
    format!(
        "---\napiVersion: gateway.networking.k8s.io/v1\nkind: BackendTLSPolicy\nmetadata: {{name: billing, namespace: shop}}\nspec:\n  \
         targetRefs: [{{group: '', kind: Service, name: billing}}]\n  validation: {validation}\n"
    )
}

/// A service outside, whose servers have other names, too.
fn billing() -> String {
    entry(
        "billing",
        "hosts: [billing.shop.svc.cluster.local]
location: MESH_EXTERNAL
resolution: STATIC
subjectAltNames: [edge.example.com]
ports: [{number: 80, name: http, protocol: HTTP}]
endpoints: [{address: 192.0.2.1}]",
    )
}

fn tls(yaml: &str) -> Cluster {
    let compiled = compiled(shop(), &(billing() + yaml));
    cluster(&compiled, &web(), "outbound|80||billing.shop.svc.cluster.local").unwrap()
}

/// Why nobody is called.
fn trouble(found: &Cluster) -> String {
    let Discovery::Static(set) = &found.discovery else { panic!("{found:?}") };
    assert_eq!((set.iter().count(), &found.tls), (0, &ClientTls::None));
    set.trouble.clone().unwrap()
}

#[test]
fn the_names_of_a_policy_hold_whatever_names_the_description_has() {
    for (validation, wanted) in [
        ("{hostname: a.example.com, wellKnownCACertificates: System}", "a.example.com"),
        (
            "{hostname: a.example.com, wellKnownCACertificates: System, subjectAltNames: [{type: Hostname, hostname: b.example.com}]}",
            "b.example.com",
        ),
    ] {
        let ClientTls::Outside(tls) = tls(&policy(validation)).tls else { panic!("{validation}") };
        assert_eq!(
            (tls.server_name.as_str(), tls.subject_alt_names),
            ("a.example.com", vec![wanted.to_owned()])
        );
    }
}

#[test]
fn without_roots_that_can_be_used_nobody_is_called() {
    let map = |pem: &str| {
        let pem: String = pem.lines().map(|line| format!("    {line}\n")).collect();
        format!(
            "---\napiVersion: v1\nkind: ConfigMap\nmetadata: {{name: ca, namespace: shop}}\ndata:\n  ca.crt: |\n{pem}"
        )
    };
    let by_map =
        policy("{hostname: a.example.com, caCertificateRefs: [{group: '', kind: ConfigMap, name: ca}]}");
    assert!(trouble(&tls(&by_map)).contains("BackendTLSPolicy shop/billing names nobody"));
    // It has the form of a certificate, and is none.
    let shell = "-----BEGIN CERTIFICATE-----\nMAMCAQE=\n-----END CERTIFICATE-----";
    assert!(trouble(&tls(&(by_map.clone() + &map(shell)))).contains("names nobody"));
    let authority = Authority::in_memory(AuthorityOptions::new("cluster.local")).unwrap();
    let good = tls(&(by_map + &map(&authority.bundle().to_pem("cluster.local"))));
    assert!(matches!(good.tls, ClientTls::Outside(_)), "{good:?}");
}

#[test]
fn a_name_that_nobody_can_ask_for_is_asked_of_nobody() {
    let label = "a".repeat(64);
    let long = format!("{{hostname: {label}.example.com, wellKnownCACertificates: System}}");
    assert!(trouble(&tls(&policy(&long))).contains("names nobody"));
    let found = tls(&rule("billing", &format!("tls: {{mode: SIMPLE, sni: {label}.example.com}}")));
    assert!(trouble(&found).contains("cannot be asked for as a server name"), "{found:?}");
}
