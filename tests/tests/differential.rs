//! The same resources from one control plane to our sidecar and to a real Envoy, the same requests to both: what the client gets and
//! what the applications get is the same, or the difference is one that docs/differences.md gives a reason for.

use std::collections::BTreeSet;
use std::sync::Arc;

use outrigger_tests::require;
use tokio::sync::Semaphore;

mod ages;
mod apps;
mod balancing;
mod case;
mod differences;
mod filters;
mod play;
mod rates;
mod retries;
mod rewriting;
mod routing;
mod sessions;
mod stage;
mod zones;

use case::Group;
use play::{Outcome, play};
use stage::Stage;

fn groups() -> Vec<Group> {
    let all = [
        routing::groups(),
        rewriting::groups(),
        retries::groups(),
        filters::groups(),
        balancing::groups(),
        sessions::groups(),
        ages::groups(),
    ];
    all.into_iter().flatten().collect()
}

/// What both did, by the case.
async fn compare(stage: &Arc<Stage>, groups: Vec<Group>) -> Vec<(String, [String; 2])> {
    let places = Arc::new(Semaphore::new(16));
    let mut tasks = Vec::new();
    for group in groups.into_iter().map(Arc::new) {
        let all: Vec<usize> = (0..group.cases.len()).collect();
        let size = if group.ordered { all.len() } else { 1 };
        for some in all.chunks(size.max(1)) {
            let (stage, group, places, some) = (stage.clone(), group.clone(), places.clone(), some.to_vec());
            tasks.push(tokio::spawn(async move {
                let _place = places.acquire_owned().await;
                let mut found = Vec::new();
                for at in some {
                    let ours = play(&stage.ours, &stage.apps, &group, at);
                    let theirs = play(&stage.theirs, &stage.apps, &group, at);
                    let (ours, theirs) = tokio::join!(ours, theirs);
                    let both =
                        ours.iter().zip(&theirs).map(|(ours, theirs)| Outcome::comparable(ours, theirs));
                    let both: Vec<[String; 2]> = both.collect();
                    let side = |at: usize| {
                        both.iter().map(|both| both[at].as_str()).collect::<Vec<_>>().join("\n        ")
                    };
                    found.push((format!("{}: {}", group.name, group.cases[at].name), [side(0), side(1)]));
                }
                found
            }));
        }
    }
    let mut all = Vec::new();
    for task in tasks {
        all.extend(task.await.expect("it does not panic"));
    }
    all
}

/// A group that is no longer played must not go unnoticed.
const FEWEST: usize = 400;

#[tokio::test(flavor = "multi_thread")]
async fn the_same_resources_mean_the_same_to_our_sidecar_and_to_an_envoy() {
    let Some(envoy) = require::tool("envoy") else { return };
    let groups = groups();
    let of_rates = rates::groups();
    let of_zones = zones::groups();
    let on_stage: Vec<&Group> = groups.iter().chain(&of_rates).chain(&of_zones).collect();
    let stage = Arc::new(Stage::set(&envoy, &on_stage).await);
    rates::compare(&stage).await;
    ages::compare(&stage).await;
    zones::compare(&stage).await;
    let all = compare(&stage, groups).await;
    // What both leave out would be the same, too.
    let limited = |(name, [ours, _]): &(String, [String; 2])| {
        name == "gradient-of-1: one under way" && ours.contains("reached concurrency limit")
    };
    assert!(all.iter().any(limited), "the limit of requests under way acts");
    let (mut surprises, mut met) = (Vec::new(), BTreeSet::new());
    let mut meant = 0;
    for (name, [ours, theirs]) in all.iter().filter(|(_, [ours, theirs])| ours != theirs) {
        let difference = format!("{name}\n ours   {ours}\n theirs {theirs}");
        match differences::of(name) {
            Some(known) => {
                println!("as {known:?}: {difference}");
                met.insert(known);
                meant += 1;
            }
            None => surprises.push(difference),
        }
    }
    println!("{} cases, of which {meant} differ as docs/differences.md says", all.len());
    assert!(all.len() >= FEWEST, "{} cases are fewer than there were", all.len());
    assert!(surprises.is_empty(), "{} of {} differ:\n{}", surprises.len(), all.len(), surprises.join("\n"));
    let gone: Vec<&str> = differences::patterns().filter(|pattern| !met.contains(pattern)).collect();
    assert!(gone.is_empty(), "these differ no longer: {gone:#?}");
}
