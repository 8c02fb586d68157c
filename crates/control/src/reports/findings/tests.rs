use std::sync::Arc;

use outrigger_rules::parse;

use super::*;
use crate::keeper::Keeper;
use crate::keeper::tests::keeper;
use crate::registry::{Event, Item, Source};

/// One field has no effect, and the host is nobody's.
const ROUTE: &str =
    "{apiVersion: networking.istio.io/v1, kind: VirtualService, metadata: {name: catalog, namespace: shop},
    spec: {hosts: [catalog], gateways: [mesh, front], http: [{route: [{destination: {host: catalog}}]}]}}";

/// What a cluster says.
async fn say(keeper: &Keeper, text: &str) {
    let rules = parse("", text).objects.into_iter().map(|object| Item::Rule(Box::new(object)));
    let source = Source { last: false, place: 1, registry: "cluster".into(), part: "VirtualService".into() };
    keeper.registry(Arc::new(source), Event::Reset(rules.collect())).await.unwrap();
}

#[tokio::test]
async fn what_a_rule_says_in_vain_is_found_beside_what_is_wrong_with_all_and_read_once() {
    let (keeper, mut found) = (keeper().await.0, Found::default());
    say(&keeper, ROUTE).await;
    found.renew(&keeper.published(), "cluster", &MeshSettings::default());
    let of = |found: &Found| -> Vec<String> {
        let all = found.all().get("VirtualService shop/catalog").into_iter().flatten();
        all.map(Finding::of_field).collect()
    };
    let said = of(&found);
    assert!(said[0].contains("spec.gateways is not implemented"), "{said:?}");
    assert!(said.iter().any(|words| words.contains("catalog") && !words.contains("gateways")), "{said:?}");

    // Another registry's rules are not this one's to tell.
    let mut others = Found::default();
    others.renew(&keeper.published(), "another", &MeshSettings::default());
    assert!(!of(&others).iter().any(|words| words.contains("gateways")));

    // The same text is not read again, another is.
    let place = found.read.get("VirtualService shop/catalog").map(|(_, findings)| findings.as_ptr());
    let other = ROUTE.replace("catalog,", "other,");
    say(&keeper, &format!("{ROUTE}\n---\n{other}\n")).await;
    found.renew(&keeper.published(), "cluster", &MeshSettings::default());
    assert_eq!(found.read.get("VirtualService shop/catalog").map(|(_, findings)| findings.as_ptr()), place);
    assert_eq!(found.read.len(), 2);
    say(&keeper, &ROUTE.replace(", front", "")).await;
    found.renew(&keeper.published(), "cluster", &MeshSettings::default());
    assert!(!of(&found).iter().any(|words| words.contains("gateways")), "{:?}", of(&found));
    assert_eq!(found.read.len(), 1);
}
