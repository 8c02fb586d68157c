use crate::intent::MtlsMode;
use crate::testing::{mtls, object, one_told};

fn policy(spec: &str) -> String {
    object("security.istio.io/v1", "PeerAuthentication", spec)
}

#[test]
fn strict_for_a_namespace_arrives() {
    let found = mtls(&policy("mtls: {mode: STRICT}"));
    assert_eq!(
        (found.mode, found.selector.len(), found.origin.namespace.as_str()),
        (Some(MtlsMode::Strict), 0, "shop")
    );
}

#[test]
fn ports_may_have_modes_of_their_own() {
    let found = mtls(&policy(
        "selector: {matchLabels: {app: a}}\nmtls: {mode: STRICT}\nportLevelMtls: {80: {mode: DISABLE}, 81: {}}",
    ));
    assert_eq!(found.ports, [(80, Some(MtlsMode::Disable)), (81, None)].into());
}

#[test]
fn unset_is_inherited() {
    assert_eq!(mtls(&policy("mtls: {mode: UNSET}")).mode, None);
    assert_eq!(mtls(&policy("{}")).mode, None);
}

#[test]
fn port_modes_need_a_selector() {
    assert!(one_told(&policy("portLevelMtls: {80: {mode: STRICT}}")).contains("needs a selector"));
}

#[test]
fn an_unknown_mode_is_told_with_the_nearest() {
    assert!(one_told(&policy("mtls: {mode: STRIKT}")).ends_with("Did you mean \"STRICT\"?"));
}

#[test]
fn port_modes_name_a_port() {
    let told = one_told(&policy("selector: {matchLabels: {app: a}}\nportLevelMtls: {}"));
    assert!(told.contains("error IST0106: spec.portLevelMtls must name a port"), "{told}");
}
