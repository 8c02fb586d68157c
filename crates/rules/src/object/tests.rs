use super::*;
use crate::Resolver;
use crate::testing::{objects, one_told, told};

const MTLS: &str = "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: a}\nspec: {mtls: {mode: STRICT}}\n";

#[test]
fn every_example_is_free_of_findings() {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../config/examples");
    let mut count = 0;
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|extension| extension != "yaml") {
            continue;
        }
        let text = std::fs::read_to_string(&path).unwrap();
        let parsed = parse(&path.display().to_string(), &text);
        assert_eq!(parsed.findings, [], "{}", path.display());
        let found = crate::analyze(&parsed.objects, None);
        let wrong = |f: &&Finding| f.code != code::REFERENCE && f.severity != Severity::Info;
        assert_eq!(found.iter().filter(wrong).count(), 0, "{found:?}");
        count += parsed.objects.len();
    }
    assert!(count >= 10, "{count} objects");
}

#[test]
fn an_object_keeps_its_text_its_metadata_and_its_line() {
    let text = "# first\n---\n# the second\napiVersion: security.istio.io/v1beta1\nkind: PeerAuthentication\nmetadata:\n  name: a\n  labels: {team: x}\n  annotations: {note: y}\n  uid: z\nstatus: {}\n";
    let found = &objects(text)[0];
    assert_eq!((found.namespace.as_str(), found.name.as_str(), found.origin.line), ("default", "a", 4));
    assert_eq!((found.labels["team"].as_str(), found.annotations["note"].as_str()), ("x", "y"));
    assert!(found.source.starts_with("# the second\napiVersion"));
    assert_eq!(found.json["metadata"]["name"], "a");
    assert_eq!(found.id(), "PeerAuthentication default/a");
}

#[test]
fn an_object_survives_its_way_through_json() {
    let found = objects(MTLS).remove(0);
    let json = serde_json::to_string(&found).unwrap();
    assert_eq!(serde_json::from_str::<Object>(&json).unwrap(), found);
}

#[test]
fn json_and_lists_are_read_too() {
    let json = serde_json::to_string(&objects(MTLS)[0].json).unwrap();
    assert_eq!(objects(&json)[0].intents.len(), 1);
    let list = format!(r#"{{"apiVersion": "v1", "kind": "List", "items": [{json}, {json}]}}"#);
    let found = objects(&list);
    assert_eq!(found.len(), 2);
    assert_eq!(objects(&found[1].source)[0].json, found[1].json);
}

#[test]
fn an_unknown_kind_is_told_with_the_known_ones() {
    let told = one_told(&MTLS.replace("PeerAuthentication", "PeerAuthentification"));
    assert!(told.starts_with("rules.yaml:2:7 error OUT0004: unknown kind"), "{told}");
    assert!(told.contains("VirtualService, DestinationRule, PeerAuthentication"), "{told}");
    assert!(told.ends_with("Did you mean \"PeerAuthentication\"?"), "{told}");
}

#[test]
fn a_kind_that_cannot_be_supported_says_why() {
    let told = one_told("apiVersion: networking.istio.io/v1alpha3\nkind: EnvoyFilter\nmetadata: {name: a}\n");
    assert!(told.contains("patches Envoy's own configuration"), "{told}");
}

#[test]
fn an_unknown_version_is_told_with_the_known_ones() {
    let told = one_told(&MTLS.replace("istio.io/v1", "istio.io/v2"));
    assert!(
        told.starts_with("rules.yaml:1:13 error OUT0004") && told.ends_with("\"security.istio.io/v1\"?"),
        "{told}"
    );
}

#[test]
fn metadata_is_checked() {
    assert!(one_told(&MTLS.replace("metadata: {name: a}\n", "")).contains("metadata is missing"));
    assert!(one_told(&MTLS.replace("{name: a}", "{}")).contains("metadata.name is missing"));
    assert!(one_told(&MTLS.replace("{name: a}", "{name: A_b}")).contains("lower-case"));
    assert!(one_told(&MTLS.replace("{name: a}", "{name: a, namespase: b}")).ends_with("\"namespace\"?"));
    assert!(one_told(&MTLS.replace("{name: a}", "{name: a, namespace: b.c}")).contains("metadata.namespace"));
}

#[test]
fn an_object_with_errors_is_refused_and_the_others_are_kept() {
    let text = format!("{}---\n{}", MTLS.replace("STRICT", "STRIKT"), MTLS.replace("name: a", "name: b"));
    let parsed = parse("rules.yaml", &text);
    assert!(parsed.has_errors());
    assert_eq!(parsed.objects.iter().map(|object| object.name.as_str()).collect::<Vec<_>>(), ["b"]);
    let finding = &parsed.findings[0];
    assert_eq!(finding.object.as_deref(), Some("PeerAuthentication default/a"));
    assert_eq!(finding.path, "spec.mtls.mode");
}

#[test]
fn a_duplicate_key_refuses_its_object() {
    let parsed = parse("rules.yaml", &MTLS.replace("spec:", "metadata: {name: b}\nspec:"));
    assert_eq!(parsed.objects, []);
    assert_eq!(parsed.findings[0].code, code::DUPLICATE_KEY);
}

#[test]
fn documents_that_are_no_objects_are_told() {
    for (text, word) in
        [("- a\n", "a list"), ("hello\n", "\"hello\""), ("kind: VirtualService\n", "apiVersion is missing")]
    {
        assert!(one_told(text).contains(word), "{text}");
    }
    assert_eq!(told("a: b\n").len(), 2);
}

#[test]
fn bytes_that_are_not_utf8_are_told_by_place() {
    let parsed = parse_bytes("rules.yaml", b"a: b\nc: \xff\n", &ParseOptions::default());
    assert_eq!(parsed.findings[0].to_string(), "rules.yaml:2:4 error OUT0001: the text is not UTF-8");
}

#[test]
fn a_flood_of_findings_is_cut_but_keeps_its_errors() {
    let fields: String = (0..2000).map(|n| format!("  unknown{n}: 1\n")).collect();
    let text = format!(
        "{MTLS}---\napiVersion: outrigger.io/v1\nkind: TrafficRules\nmetadata: {{name: a}}\nspec:\n{fields}"
    );
    let parsed = parse("rules.yaml", &text);
    assert_eq!(parsed.findings.len(), MOST_FINDINGS + 1);
    assert!(parsed.has_errors());
    assert_eq!(parsed.objects.len(), 1);
}

#[test]
fn the_domain_and_the_default_namespace_are_options() {
    let options = ParseOptions {
        resolver: Resolver::new("mesh.test"),
        default_namespace: "shop".into(),
        ..ParseOptions::default()
    };
    let text = "apiVersion: outrigger.io/v1\nkind: TrafficRules\nmetadata: {name: a}\nspec: {service: reviews, timeout: 1s}\n";
    let parsed = parse_with("", text, &options);
    let Intent::Route(route) = &parsed.objects[0].intents[0] else { panic!("{parsed:?}") };
    assert_eq!(route.hosts[0].as_str(), "reviews.shop.svc.mesh.test");
    assert_eq!(route.origin.file, None);
}
