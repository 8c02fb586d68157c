//! BackendTLSPolicy: TLS towards the backends of services; and ConfigMap, where its certificates are.

use std::collections::BTreeMap;

use super::flaw::{Flaws, INVALID_KIND, flaw};
use super::parent::service;
use crate::dialect::shared::bounded;
use crate::finding::{code, quote};
use crate::intent::{
    BackendTls, DestinationIntent, Host, Intent, Roots, RootsIntent, RouteCondition, TrafficPolicy,
    Visibility,
};
use crate::reader::{At, Fields, Reader, Table};

const SPEC: Table = Table::new("a BackendTLSPolicy", &["targetRefs", "validation"]).later(&["options"]);
const TARGET: Table = Table::new("a target reference", &["group", "kind", "name", "sectionName"]);
const VALIDATION: Table = Table::new(
    "a validation",
    &["caCertificateRefs", "wellKnownCACertificates", "hostname", "subjectAltNames"],
);
const REFERENCE: Table = Table::new("a certificate reference", &["group", "kind", "name"]);
const NAME: Table = Table::new("a subject alternative name", &["type", "hostname", "uri"]);

/// A policy that the API server takes and nobody can follow.
const INVALID: (RouteCondition, &str) = (RouteCondition::Accepted, "Invalid");
/// Where a ConfigMap has its certificates.
const KEY: &str = "ca.crt";

pub(in crate::dialect) fn read(reader: &mut Reader<'_>, spec: &At<'_>) -> Vec<Intent> {
    let Some(fields) = reader.fields(spec, &SPEC) else { return Vec::new() };
    bounded(reader, &fields, &[("targetRefs", 16)]);
    for name in ["targetRefs", "validation"].into_iter().filter(|name| !fields.has(name)) {
        reader.missing(&fields, name);
    }
    let mut flaws = Flaws::new();
    let validation = fields.get("validation").and_then(|at| validation(reader, &at, &mut flaws));
    let targets: Vec<_> =
        reader.list(fields.get("targetRefs")).iter().filter_map(|item| target(reader, item)).collect();
    for (i, (at, host, section)) in targets.iter().enumerate() {
        let twice = |(_, other, of): &(At<'_>, Host, Option<String>)| other == host && of == section;
        if targets[..i].iter().any(twice) {
            reader
                .error(at, format!("{} is there twice; sectionName tells ports of a Service apart", at.path));
        }
    }
    let Some((hostname, names, roots)) = validation else { return Vec::new() };
    let (origin, created) = (reader.origin.clone(), reader.created.clone());
    let intent = |(at, host, section): (At<'_>, Host, Option<String>)| {
        let (hostname, names, roots) = (hostname.clone(), names.clone(), roots.clone());
        let (flaws, place) = (flaws.clone(), at.place());
        let backend_tls = vec![BackendTls {
            origin: origin.clone(),
            created: created.clone(),
            section,
            hostname,
            names,
            roots,
            flaws,
            place: place.clone(),
        }];
        Intent::Destination(DestinationIntent {
            origin: origin.clone(),
            created: created.clone(),
            host,
            place,
            visibility: Visibility::Everyone,
            policy: TrafficPolicy::default(),
            ports: BTreeMap::new(),
            subsets: Vec::new(),
            subsets_only: true,
            merged: Vec::new(),
            backend_tls,
        })
    };
    targets.into_iter().map(intent).collect()
}

/// A Service of the policy's own namespace, and which of its ports.
fn target<'n>(reader: &mut Reader<'_>, at: &At<'n>) -> Option<(At<'n>, Host, Option<String>)> {
    let fields = reader.fields(at, &TARGET)?;
    for name in ["group", "kind", "name"].into_iter().filter(|name| !fields.has(name)) {
        reader.missing(&fields, name);
    }
    let (group, kind) = (reader.text(fields.get("group"))?, reader.text(fields.get("kind"))?);
    let name = reader.text(fields.get("name"))?;
    let section = reader.text(fields.get("sectionName"));
    if (group.as_str(), kind.as_str()) != ("", "Service") {
        let message = format!(
            "{} is a {}: a BackendTLSPolicy holds for Services (group: \"\", kind: Service) only",
            at.path,
            quote(&kind)
        );
        reader.warn(code::NOT_IMPLEMENTED, at, message);
        return None;
    }
    service(reader, at, &name, None).map(|host| (at.clone(), host, section))
}

type Validation = (String, Vec<String>, Roots);

fn validation(reader: &mut Reader<'_>, at: &At<'_>, flaws: &mut Flaws) -> Option<Validation> {
    let fields = reader.fields(at, &VALIDATION)?;
    bounded(reader, &fields, &[("caCertificateRefs", 8), ("subjectAltNames", 5)]);
    if !fields.has("hostname") {
        reader.missing(&fields, "hostname");
    }
    let hostname = fields.get("hostname").and_then(|at| hostname(reader, &at, flaws));
    let mut names = Vec::new();
    for item in reader.list(fields.get("subjectAltNames")) {
        names.extend(name(reader, &item, flaws));
    }
    let roots = roots(reader, &fields, flaws);
    Some((hostname?, names, roots?))
}

/// A whole name: it is what is asked for. What the API server takes and TLS cannot send is a condition: refused here, the rule would be
/// none, and the backend be called in plain text.
fn hostname(reader: &mut Reader<'_>, at: &At<'_>, flaws: &mut Flaws) -> Option<String> {
    let name = reader.text(Some(at.clone()))?;
    let label = |label: &str| {
        let edge = |b: Option<u8>| b.is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
        edge(label.bytes().next())
            && edge(label.bytes().last())
            && label.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
    };
    let good = name.len() <= 253 && name.split('.').all(label);
    let why = if name.parse::<std::net::IpAddr>().is_ok() {
        Some("is an address, and TLS asks for names")
    } else if name.split('.').any(|label| label.len() > 63) {
        Some("has a part of more than 63 characters, which is no server name")
    } else {
        None
    };
    if let Some(why) = why.filter(|_| good) {
        let message = format!("{}: {} {why}, so requests are answered with an error", at.path, quote(&name));
        flaw(reader, flaws, at, INVALID, message);
    }
    if !good {
        let message = format!(
            "{} must be a whole host name in lower case, such as api.example.com, not {}",
            at.path,
            quote(&name)
        );
        reader.error(at, message);
    }
    good.then_some(name)
}

/// A name of which the certificate may have one.
fn name(reader: &mut Reader<'_>, at: &At<'_>, flaws: &mut Flaws) -> Option<String> {
    let fields = reader.fields(at, &NAME)?;
    if !fields.has("type") {
        reader.missing(&fields, "type");
    }
    let field = reader.choice(fields.get("type"), &[("Hostname", "hostname"), ("URI", "uri")])?;
    if !fields.has(field) {
        reader.missing(&fields, field);
        return None;
    }
    let text = reader.text(fields.get(field))?;
    if field == "uri" && !text.contains("://") {
        reader.error(
            at,
            format!("{} must be a whole URI, such as spiffe://a/b, not {}", at.path, quote(&text)),
        );
        return None;
    }
    if text.contains('*') {
        let message = format!(
            "{}: {} is a pattern, and certificates are looked at for whole names only, so requests are answered with an error",
            at.path,
            quote(&text)
        );
        flaw(reader, flaws, at, INVALID, message);
        return None;
    }
    Some(text)
}

/// Exactly one of both says whom a certificate must come from.
fn roots(reader: &mut Reader<'_>, fields: &Fields<'_>, flaws: &mut Flaws) -> Option<Roots> {
    let items = reader.list(fields.get("caCertificateRefs"));
    let known = fields.get("wellKnownCACertificates").filter(|at| at.node.as_text() != Some(""));
    match (items.is_empty(), known) {
        (true, None) => {
            let path = &fields.at.path;
            reader.error(&fields.at, format!("{path} needs caCertificateRefs or wellKnownCACertificates"));
            None
        }
        (false, Some(at)) => {
            reader.error(&at, format!("{} can not stand beside caCertificateRefs", at.path));
            None
        }
        (true, Some(at)) => {
            let word = reader.text(Some(at.clone()))?;
            if word == "System" {
                return Some(Roots::System);
            }
            let message = format!(
                "{} is {}, and only System is known, so requests are answered with an error",
                at.path,
                quote(&word)
            );
            flaw(reader, flaws, &at, INVALID, message);
            Some(Roots::ConfigMaps(Vec::new()))
        }
        (false, None) => {
            let names = items.iter().filter_map(|item| reference(reader, item, flaws));
            Some(Roots::ConfigMaps(names.map(|name| (name, None)).collect()))
        }
    }
}

fn reference(reader: &mut Reader<'_>, at: &At<'_>, flaws: &mut Flaws) -> Option<String> {
    let fields = reader.fields(at, &REFERENCE)?;
    for name in ["group", "kind", "name"].into_iter().filter(|name| !fields.has(name)) {
        reader.missing(&fields, name);
    }
    let (group, kind) = (reader.text(fields.get("group"))?, reader.text(fields.get("kind"))?);
    let name = reader.text(fields.get("name"))?;
    if (group.as_str(), kind.as_str()) == ("", "ConfigMap") {
        return Some(name);
    }
    let message =
        format!("{} is a {}: certificates are looked for in ConfigMaps only", at.path, quote(&kind));
    flaw(reader, flaws, at, INVALID_KIND, message);
    None
}

/// Of a ConfigMap the certificates; the rest of it is somebody else's. `data` stands where others have their spec.
pub(in crate::dialect) fn config_map(reader: &mut Reader<'_>, data: &At<'_>) -> Vec<Intent> {
    let certificates = reader.entries(Some(data.clone())).into_iter().find(|(key, _)| key.text == KEY);
    let Some((_, at)) = certificates else {
        let message =
            format!("a ConfigMap without {KEY} has no effect: it is where certificates are looked for");
        reader.warn(code::NO_EFFECT, data, message);
        return Vec::new();
    };
    let Some(pem) = reader.text(Some(at.clone())) else { return Vec::new() };
    if let Err(why) = crate::pem::certificates(&pem) {
        reader.error(&at, format!("{} must be certificates in PEM: {why}", at.path));
    }
    vec![Intent::Roots(RootsIntent { origin: reader.origin.clone(), pem })]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::intent::ClientTlsMode;
    use crate::testing::{CERTIFICATE, destination, object, objects, one_told, quoted_certificate, told};

    const TARGETS: &str = "targetRefs: [{group: '', kind: Service, name: catalog, sectionName: web}]\n";

    fn text(spec: &str) -> String {
        object("gateway.networking.k8s.io/v1", "BackendTLSPolicy", spec)
    }

    fn policy(validation: &str) -> BackendTls {
        let text = text(&format!("{TARGETS}validation: {validation}"));
        destination(&text).backend_tls.remove(0)
    }

    #[test]
    fn a_policy_is_tls_towards_a_service_of_its_namespace() {
        let found = destination(&text(&format!(
            "{TARGETS}validation: {{hostname: a.example.com, wellKnownCACertificates: System}}"
        )));
        assert_eq!(found.host.as_str(), "catalog.shop.svc.cluster.local");
        let tls = &found.backend_tls[0];
        assert_eq!((tls.section.as_deref(), &tls.roots), (Some("web"), &Roots::System));
        let client = tls.client_tls().unwrap();
        assert_eq!((client.mode, client.sni.as_deref()), (ClientTlsMode::Simple, Some("a.example.com")));
        assert_eq!((client.roots_pem, client.subject_alt_names), (None, vec!["a.example.com".to_owned()]));
    }

    #[test]
    fn certificates_come_from_config_maps_that_are_there() {
        let mut tls = policy(
            "{hostname: a, caCertificateRefs: [{group: '', kind: ConfigMap, name: one}, {group: '', kind: ConfigMap, name: two}], \
             subjectAltNames: [{type: Hostname, hostname: b.c}, {type: URI, uri: 'spiffe://d/e'}]}",
        );
        assert_eq!(tls.client_tls(), None, "nobody is trusted without");
        assert_eq!(tls.lost().collect::<Vec<_>>(), ["one", "two"]);
        tls.resolve(|namespace, name| (namespace == "shop" && name == "two").then_some("PEM"));
        assert_eq!(tls.lost().collect::<Vec<_>>(), ["one"]);
        let client = tls.client_tls().unwrap();
        assert_eq!(
            (client.roots_pem.as_deref(), client.subject_alt_names),
            (Some("PEM"), vec!["b.c".into(), "spiffe://d/e".into()])
        );
        let map = |pem: &str| {
            format!(
                "apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: two, namespace: shop}}\ndata:\n  ca.crt: {pem}\n  other: text\n"
            )
        };
        assert!(matches!(
            &objects(&map(&quoted_certificate()))[0].intents[..],
            [Intent::Roots(RootsIntent { pem, .. })] if pem == CERTIFICATE
        ));
        // The right words are not enough.
        let wrong = one_told(&map("'-----BEGIN CERTIFICATE----- of ours -----END CERTIFICATE-----'"));
        assert!(wrong.contains("must be certificates in PEM: certificate 1 is not base64"), "{wrong}");
    }

    #[test]
    fn a_config_map_without_certificates_says_that_it_does_nothing() {
        for data in ["", "data: {}\n", "data: {other: text}\n", "binaryData: {ca.crt: AAAA}\n"] {
            let told = one_told(&format!(
                "apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: two, namespace: shop}}\n{data}"
            ));
            assert!(
                told.contains("warning") && told.contains("a ConfigMap without ca.crt has no effect"),
                "{data}: {told}"
            );
        }
    }

    #[test]
    fn the_port_s_own_policy_goes_before_the_service_s_and_the_older_before_the_younger() {
        let tls = |name: &str, section: Option<&str>, created: Option<&str>| {
            let plain = policy("{hostname: a, wellKnownCACertificates: System}");
            let mut origin = plain.origin.clone();
            origin.name = name.into();
            BackendTls { origin, section: section.map(Into::into), created: created.map(Into::into), ..plain }
        };
        let (old, new) = (Some("2026-01-01T00:00:00Z"), Some("2026-02-01T00:00:00Z"));
        let all = [
            tls("a", None, new),
            tls("b", None, old),
            tls("c", Some("web"), new),
            tls("d", Some("rpc"), old),
            tls("e", Some("web"), None),
        ];
        let at = |port: &str| BackendTls::at(&all, |name| name == port).unwrap().origin.name.clone();
        assert_eq!((at("web").as_str(), at("rpc").as_str(), at("other").as_str()), ("c", "d", "b"));
    }

    #[test]
    fn what_the_api_server_would_refuse_is_refused_and_what_nobody_can_do_is_a_condition() {
        let wrong = |spec: &str, wanted: &str| {
            let told = one_told(&text(spec));
            assert!(told.contains(wanted), "{spec}: {told}");
        };
        let validation = "validation: {hostname: a, wellKnownCACertificates: System}";
        wrong(validation, "targetRefs");
        wrong(&format!("{TARGETS}validation: {{wellKnownCACertificates: System}}"), "hostname");
        wrong(&format!("{TARGETS}validation: {{hostname: a}}"), "needs caCertificateRefs or");
        wrong(
            &format!("{TARGETS}validation: {{hostname: '*.a', wellKnownCACertificates: System}}"),
            "whole host name",
        );
        wrong(
            &format!("targetRefs: [{{group: '', kind: Pod, name: a}}]\n{validation}"),
            "holds for Services",
        );
        wrong(
            &format!(
                "targetRefs: [{{group: '', kind: Service, name: a}}, {{group: '', kind: Service, name: a}}]\n{validation}"
            ),
            "is there twice",
        );
        for (validation, reason) in [
            ("{hostname: a, wellKnownCACertificates: Mozilla}", "Invalid"),
            ("{hostname: 10.0.0.1, wellKnownCACertificates: System}", "Invalid"),
            (&format!("{{hostname: a.{}, wellKnownCACertificates: System}}", "b".repeat(64)), "Invalid"),
            (
                "{hostname: a, wellKnownCACertificates: System, subjectAltNames: [{type: Hostname, hostname: '*.b'}]}",
                "Invalid",
            ),
            ("{hostname: a, caCertificateRefs: [{group: '', kind: Secret, name: b}]}", "InvalidKind"),
        ] {
            let tls = policy(validation);
            assert_eq!((tls.flaws.len(), tls.flaws[0].reason.as_str()), (1, reason));
            assert_eq!(tls.client_tls(), None, "{validation}: never without verification");
            assert_eq!(told(&text(&format!("{TARGETS}validation: {validation}"))).len(), 1);
        }
    }
}
