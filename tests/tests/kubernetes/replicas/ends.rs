//! One of two ends, freezes, is cut off from the API server, or restarts, while requests go on.

use rustix::process::Signal;

use super::*;

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_ends_freezes_or_is_cut_off_costs_no_request_and_another_writes() {
    let Some(mut pair) = Pair::start().await else { return };
    let web = pair.shop().await;
    pair.until_told("7s", "2 of 2 proxies").await;
    let load = Load::start(pair.stage.host(&web), pair.stage.service("catalog", 80));

    // Killed: its sidecar goes to the other, which takes the Lease when it has run out.
    let leader = pair.until_led().await;
    let left = 1 - leader;
    let before = pair.mesh(left).client.status().await.unwrap();
    let moved = before.proxies.iter().find(|proxy| proxy.replica.as_deref() == Some(NAMES[leader])).unwrap();
    let begun = Instant::now();
    pair.mesh_mut(leader).kill_control();
    let over = pair.until_status(left, "its sidecar has come over", |all| {
        let here = all.proxies.iter().filter(|proxy| proxy.replica.as_deref() == Some(NAMES[left]));
        here.filter(|proxy| proxy.synced).count() == 2
    });
    let over = over.await;
    // It has everything already: it is told a generation, and sent nothing.
    let moved = over.proxies.iter().find(|proxy| proxy.node == moved.node).unwrap();
    let sent: Vec<_> =
        moved.types.iter().filter(|(_, count)| count.resources > 0).map(|(kind, _)| kind).collect();
    assert_eq!(sent, ["Barrier"], "{moved:#?}");
    eprintln!("the sidecar of the killed one was with the other after {:?}", begun.elapsed());
    assert_eq!(pair.until_led().await, left);
    let taken = begun.elapsed();
    eprintln!("the Lease was taken after {taken:?}");
    assert!(taken > Duration::from_secs(10) && taken < Duration::from_secs(22), "{taken:?}");
    // Whoever is missed is said; its endpoint has not gone, as a kubelet would see to it.
    let silent = pair.until_status(left, "the killed one is said to be silent", |all| {
        all.replicas.iter().any(|one| one.name == NAMES[leader] && one.error.is_some())
    });
    let silent = silent.await;
    assert!(silent.notices.iter().any(|notice| notice.contains(NAMES[leader])), "{silent:#?}");
    let unheard = format!("2 of 2 proxies at generation 2; replica {} does not answer", NAMES[leader]);
    pair.stage.cluster.apply(&RULE.replace("{}", "8s"));
    eventually("the other writes", || async {
        let path = r#"jsonpath={.status.conditions[?(@.type=="Reconciled")].message}"#;
        let said = ["-n", "shop", "get", "virtualservice", "reviews", "-o", path];
        let said = pair.stage.cluster.kubectl(&said)?;
        if said.starts_with(&unheard) { Ok(()) } else { Err(said) }
    })
    .await;
    pair.mesh_mut(leader).start_control().await;
    pair.until_told("9s", "2 of 2 proxies").await;

    // Stopped: it gives the Lease back, and nobody waits.
    let leader = pair.until_led().await;
    let begun = Instant::now();
    pair.mesh_mut(leader).stop_control().await;
    assert_eq!(pair.until_led().await, 1 - leader);
    let taken = begun.elapsed();
    eprintln!("a Lease that was given back was taken after {taken:?}");
    assert!(taken < Duration::from_secs(9), "{taken:?}");
    pair.mesh_mut(leader).start_control().await;

    frozen(&pair).await;
    cut_off(&pair).await;
    restarted(&mut pair).await;
    away(&mut pair).await;
    eprintln!("{} requests, none failed", load.none_failed().await);
}

/// One that came back gets its share of the sidecars without anybody's doing.
#[tokio::test(flavor = "multi_thread")]
async fn one_that_came_back_serves_its_share_again_and_no_request_is_lost_by_that() {
    let Some(mut pair) = Pair::start().await else { return };
    pair.stage.cluster.apply(STRICT);
    pair.stage.cluster.apply(&deployment("web", "v1", 1));
    pair.stage.cluster.apply(&deployment("catalog", "v1", 5));
    let [web] = pair.stage.until_ready("web", 1).await.try_into().unwrap();
    pair.stage.until_ready("catalog", 5).await;
    pair.until_called(&web).await;
    let load = Load::start(pair.stage.host(&web), pair.stage.service("catalog", 80));
    pair.mesh_mut(1).kill_control();
    let at = |all: &StatusBody, which: usize| {
        all.proxies.iter().filter(|proxy| proxy.replica.as_deref() == Some(NAMES[which])).count()
    };
    pair.until_status(0, "all have come over", |all| at(all, 0) == 6).await;
    pair.mesh_mut(1).start_control().await;
    let begun = Instant::now();
    pair.until_status(0, "one has gone back", |all| at(all, 1) >= 1).await;
    pair.until_status(0, "both have their share", |all| at(all, 1) >= 2 && at(all, 0) + at(all, 1) == 6)
        .await;
    eprintln!(
        "both had a share after {:?}; {} requests, none failed",
        begun.elapsed(),
        load.none_failed().await
    );
}

/// A leader that wakes after another has taken over writes nothing.
async fn frozen(pair: &Pair) {
    let leader = pair.until_led().await;
    let other = 1 - leader;
    pair.mesh(leader).signal_control(Signal::STOP);
    pair.until_status(other, "the other leads", |all| {
        all.replicas.iter().any(|one| one.name == NAMES[other] && one.leads)
    })
    .await;
    pair.mesh(leader).signal_control(Signal::CONT);
    let status = pair.mesh(leader).client.status().await.unwrap();
    let own = status.replicas.iter().find(|one| one.name == NAMES[leader]).unwrap();
    assert!(!own.leads, "{status:#?}");
    pair.until_told("10s", "2 of 2 proxies").await;
}

/// A leader that does not reach the API server any more ends by itself before another begins.
async fn cut_off(pair: &Pair) {
    let leader = pair.until_led().await;
    let other = 1 - leader;
    let begun = Instant::now();
    pair.ways[leader].cut();
    let leads =
        |all: &StatusBody, which: usize| all.replicas.iter().any(|one| one.name == NAMES[which] && one.leads);
    pair.until_status(leader, "it leads no longer", |all| !leads(all, leader)).await;
    let ended = begun.elapsed();
    pair.until_status(other, "the other leads", |all| leads(all, other)).await;
    let taken = begun.elapsed();
    eprintln!("cut off from the API server it ended after {ended:?}, and the other began after {taken:?}");
    assert!(ended < taken && ended < Duration::from_secs(13), "{ended:?}, {taken:?}");
    // Sidecars that come are to go to the other: it is not ready, as a kubelet asks.
    let ready = async |wanted: u16| {
        eventually(&format!("/ready says {wanted}"), || async {
            let address = SocketAddr::new(pair.stage.master.v4(), PORTS[leader] + 14);
            match pair.stage.master.run(app::get(address, "/ready", "")).await {
                Ok((status, _)) if status == wanted => Ok(()),
                other => Err(format!("{other:?}")),
            }
        })
        .await;
    };
    ready(503).await;
    eprintln!("and was ready no longer after {:?}", begun.elapsed());
    // The other knows where it is, and asks it all the same: those that are served there have not heard of the rule.
    let status = pair.mesh(other).client.status().await.unwrap();
    let there = status.proxies.iter().filter(|proxy| proxy.replica.as_deref() == Some(NAMES[leader])).count();
    assert_eq!(status.proxies.len(), 2, "{status:#?}");
    pair.until_told("11s", &format!("{} of 2 proxies", 2 - there)).await;
    // What must be shared is refused where it cannot be.
    let refused = pair.mesh(leader).client.revoke(&whom("web")).await.unwrap_err();
    assert!(refused.to_string().contains("outrigger-revocations cannot be written"), "{refused}");
    // Whoever is revoked at the other is revoked here all the same: it says so itself.
    let begun = Instant::now();
    pair.mesh(other).client.revoke(&whom("outcast")).await.unwrap();
    let revoked = |count: usize| async move {
        let all = pair.mesh(leader).client.revoked().await.map_err(|error| error.to_string())?;
        if all.len() == count { Ok(()) } else { Err(format!("{all:?}")) }
    };
    eventually("it hears of a revocation from the other", || revoked(1)).await;
    eprintln!("cut off from the API server it knew of a revocation after {:?}", begun.elapsed());
    pair.mesh(other).client.reinstate(&whom("outcast")).await.unwrap();
    eventually("and of its end", || revoked(0)).await;
    pair.ways[leader].mend();
    ready(200).await;
    pair.until_told("12s", "2 of 2 proxies").await;
}

/// One after the other, as a rollout does it.
async fn restarted(pair: &mut Pair) {
    for which in [1, 0] {
        pair.mesh_mut(which).stop_control().await;
        pair.mesh_mut(which).start_control().await;
    }
    pair.until_told("13s", "2 of 2 proxies").await;
}

/// Without an API server both serve.
async fn away(pair: &mut Pair) {
    pair.stage.cluster.kill_api();
    for which in 0..2 {
        pair.until_status(which, "it says that the cluster is away", |all| {
            all.registries.iter().any(|row| row.last_error.is_some())
        })
        .await;
        let client = &pair.mesh(which).client;
        let status = client.status().await.unwrap();
        assert_eq!(status.proxies.len(), 2, "{status:#?}");
    }
    pair.stage.cluster.start_api().await;
    pair.until_led().await;
    pair.until_told("14s", "2 of 2 proxies").await;
}
