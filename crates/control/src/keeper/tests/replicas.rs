//! What replicas share reaches the keeper, and what they do not it does not take.

use jiff::Timestamp;

use super::*;

fn revoked(account: &str) -> StoredRevocation {
    let entry = format!("spiffe://cluster.local/ns/shop/sa/{account}");
    StoredRevocation { entry, by: "ann".into(), at: Timestamp::UNIX_EPOCH }
}

fn entries(keeper: &Keeper) -> Vec<String> {
    let published = keeper.published();
    published.revocations.keys().map(|entry| entry.rsplit('/').next().unwrap().to_owned()).collect()
}

#[tokio::test]
async fn whom_another_replica_revokes_is_out_of_the_world_until_it_reinstates_it() {
    let (keeper, _) = keeper().await;
    keeper.register(catalog_instance("c1"), operator()).await.unwrap();
    let generation = keeper.share(Box::new(|| Some(vec![revoked("catalog")]))).await.unwrap();
    assert_eq!(entries(&keeper), ["catalog"]);
    assert!(keeper.published().world.instance("c1").is_none());
    assert_eq!(
        keeper.share(Box::new(|| Some(vec![revoked("catalog")]))).await.unwrap(),
        generation,
        "no news"
    );
    assert_eq!(keeper.share(Box::new(|| None)).await.unwrap(), generation, "nobody can say");
    keeper.share(Box::new(|| Some(Vec::new()))).await.unwrap();
    assert!(keeper.published().world.instance("c1").is_some());
}

#[tokio::test]
async fn what_is_heard_takes_nothing_back_that_is_being_stored() {
    let (keeper, _) = keeper().await;
    let id = |account: &str| Revocation::parse(&revoked(account).entry).unwrap();
    keeper.revoke(id("old"), "ann").await.unwrap();
    // All in one turn; what is heard is of before.
    let (first, second, heard) = tokio::join!(
        keeper.revoke(id("web"), "ann"),
        keeper.reinstate(id("old")),
        keeper.share(Box::new(|| Some(vec![revoked("old"), revoked("other")]))),
    );
    first.unwrap();
    second.unwrap();
    heard.unwrap();
    assert_eq!(entries(&keeper), ["other", "web"]);
}

#[tokio::test]
async fn a_replica_takes_neither_rules_nor_registrations_for_itself() {
    let (keeper, store) = keeper().await;
    let keeper = keeper.among_replicas();
    let rules = || objects(SUBSETS);
    let refused = keeper.apply(rules(), "shop", "ann", false).await.unwrap_err().to_string();
    assert!(refused.contains("kubectl apply"), "{refused}");
    assert!(keeper.apply(rules(), "shop", "ann", true).await.unwrap().dry_run, "it still judges them");
    let key = "DestinationRule/shop/catalog";
    assert!(matches!(keeper.delete(key, "ann", false, false).await, Err(Refused::Alone(..))));
    let refused = keeper.register(catalog_instance("c1"), operator()).await.unwrap_err().to_string();
    assert!(refused.contains("WorkloadEntry"), "{refused}");
    assert!(store.contents().rules.is_empty() && store.contents().instances.is_empty());
}
