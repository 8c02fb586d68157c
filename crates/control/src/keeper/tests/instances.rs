//! Registrations over the API: whose they are, how long they live, and who may say what of them.

use super::*;
use crate::registry::api::MAX_PER_IDENTITY;

#[tokio::test(start_paused = true)]
async fn a_silent_instance_expires_and_after_a_restart_its_time_runs_anew() {
    let first = keeper().await;
    let leased = Instance { ttl_seconds: Some(30), ..catalog_instance("c1") };
    first.0.register(leased, operator()).await.unwrap();
    tokio::time::advance(Duration::from_secs(20)).await;
    first.0.heartbeat("c1", operator()).await.unwrap();
    tokio::time::advance(Duration::from_secs(20)).await;
    assert!(first.0.published().world.instance("c1").is_some(), "the heartbeat renewed it");

    let (keeper, store) = reopened(first).await;
    tokio::time::advance(Duration::from_secs(20)).await;
    assert!(keeper.published().world.instance("c1").is_some(), "the time runs anew");
    let mut generation = keeper.subscribe();
    generation.mark_unchanged();
    generation.changed().await.unwrap();
    assert!(keeper.published().world.instance("c1").is_none());
    assert!(store.contents().instances.is_empty());
    assert!(matches!(keeper.heartbeat("c1", operator()).await, Err(Refused::Unknown(_))));
}

#[tokio::test(start_paused = true)]
async fn when_all_heartbeats_stop_at_once_everything_stays_and_is_reported() {
    let (keeper, _) = keeper().await;
    for n in 0..5 {
        let leased = Instance { ttl_seconds: Some(30), ..catalog_instance(&format!("c{n}")) };
        keeper.register(leased, operator()).await.unwrap();
    }
    for _ in 0..300 {
        tokio::time::advance(Duration::from_secs(1)).await;
    }
    let published = keeper.published();
    assert_eq!(published.world.instance_count(), 5);
    assert_eq!(published.held.len(), 1);
    assert_eq!(published.held[0].instances.len(), 5);
    for id in ["c1", "c2", "c3", "c4"] {
        keeper.set_state(id, State::Maintenance, operator()).await.unwrap();
    }
    tokio::time::advance(Duration::from_secs(2)).await;
    assert_eq!(keeper.published().held, published.held, "what is taken out has not been heard of");
    keeper.deregister("c0", operator()).await.unwrap();
    assert_eq!(keeper.published().world.instance_count(), 4, "an operator's word counts");
}

#[tokio::test]
async fn a_workload_cannot_take_over_the_instance_of_another() {
    let (keeper, _) = keeper().await;
    keeper.register(catalog_instance("c1"), operator()).await.unwrap();
    let web = workload("web", "10.0.0.9");
    let stolen = sample("c1", "web", "v1", "127.0.0.66", 8080, Protocol::Http);
    assert!(matches!(keeper.register(stolen, web.clone()).await, Err(Refused::Conflict(_))));
    let none = "there is no instance \"c1\"; register it (again)";
    let set = keeper.set_state("c1", State::Stopped, web.clone()).await.unwrap_err();
    let deregistered = keeper.deregister("c1", web).await.unwrap_err();
    assert_eq!([set.to_string(), deregistered.to_string()], [none, none]);
    assert!(keeper.published().world.instance("c1").is_some());
}

/// A process of a workload.
fn process(account: &str, source: &str, name: &str) -> Caller {
    let mut caller = workload(account, source);
    if let Caller::Workload { incarnation, .. } = &mut caller {
        *incarnation = Some(name.to_owned());
    }
    caller
}

#[tokio::test(start_paused = true)]
async fn of_two_processes_with_one_id_the_newer_has_it_as_long_as_it_lives() {
    let at = |ip: &str, state| {
        let ttl_seconds = Some(30);
        Instance { state, ttl_seconds, ..sample("c1", "catalog", "v1", ip, 8080, Protocol::Http) }
    };
    let (old, new) = (process("catalog", "10.0.0.1", "old"), process("catalog", "10.0.0.2", "new"));
    let first = keeper().await;
    first.0.register(at("10.0.0.1", State::Running), old.clone()).await.unwrap();
    first.0.register(at("10.0.0.2", State::Running), new.clone()).await.unwrap();
    // Who has it survives a restart of the control plane.
    let (keeper, _) = reopened(first).await;
    let there = || {
        let published = keeper.published();
        published.world.instance("c1").map(|c1| (c1.addresses[0].to_string(), c1.state))
    };
    let newer = Some(("10.0.0.2".to_owned(), State::Running));
    for refused in [
        keeper.register(at("10.0.0.1", State::Stopping), old.clone()).await,
        keeper.set_state("c1", State::Stopping, old.clone()).await,
        keeper.heartbeat("c1", old.clone()).await,
        keeper.deregister("c1", old.clone()).await,
    ] {
        let Err(Refused::Replaced { id, by }) = refused else { panic!("{refused:?}") };
        assert_eq!((id.as_str(), by.as_str()), ("c1", "new"));
        assert_eq!(there(), newer);
    }
    keeper.register(at("10.0.0.2", State::Stopping), new.clone()).await.unwrap();
    keeper.register(at("10.0.0.2", State::Running), new.clone()).await.unwrap();
    assert_eq!(there(), newer);

    // The newer one's lease ends, whatever the old one says, and the old one has it again.
    let mut generation = keeper.subscribe();
    generation.mark_unchanged();
    for _ in 0..2 {
        tokio::time::advance(Duration::from_secs(10)).await;
        keeper.heartbeat("c1", old.clone()).await.unwrap_err();
    }
    generation.changed().await.unwrap();
    assert_eq!(there(), None);
    keeper.register(at("10.0.0.1", State::Running), old.clone()).await.unwrap();
    // A third takes over, and is taken out: it leaves, and whoever comes may have it, and stays out.
    let third = process("catalog", "10.0.0.1", "third");
    keeper.register(at("10.0.0.1", State::Running), third.clone()).await.unwrap();
    keeper.set_state("c1", State::Maintenance, operator()).await.unwrap();
    keeper.deregister("c1", old.clone()).await.unwrap_err();
    keeper.register(at("10.0.0.1", State::Running), old.clone()).await.unwrap_err();
    keeper.deregister("c1", third).await.unwrap();
    keeper.register(at("10.0.0.1", State::Unhealthy), old).await.unwrap();
    assert_eq!(there(), Some(("10.0.0.1".to_owned(), State::Maintenance)));
    keeper.set_state("c1", State::Running, operator()).await.unwrap();
    assert_eq!(
        there(),
        Some(("10.0.0.1".to_owned(), State::Unhealthy)),
        "what a refused one said is not kept"
    );
}

#[tokio::test]
async fn maintenance_survives_the_sidecars_own_registration_but_not_the_operators_word() {
    let (keeper, _) = keeper().await;
    let own = workload("catalog", "127.0.0.1");
    keeper.register(catalog_instance("c1"), own.clone()).await.unwrap();
    keeper.set_state("c1", State::Maintenance, operator()).await.unwrap();
    let taken_out = keeper.published().generation();
    keeper.register(catalog_instance("c1"), own.clone()).await.unwrap();
    keeper.set_state("c1", State::Running, own).await.unwrap();
    let state = || keeper.published().world.instance("c1").unwrap().state;
    assert_eq!(state(), State::Maintenance);
    assert_eq!(keeper.published().generation(), taken_out, "to say it again is no change");
    keeper.set_state("c1", State::Running, operator()).await.unwrap();
    assert_eq!(state(), State::Running);
}

#[tokio::test]
async fn what_an_operator_took_out_stays_when_its_sidecar_leaves_and_comes_back_as_it_is_by_then() {
    let (keeper, _) = keeper().await;
    let own = workload("catalog", "127.0.0.1");
    keeper.register(catalog_instance("c1"), own.clone()).await.unwrap();
    keeper.set_state("c1", State::Maintenance, operator()).await.unwrap();
    let state = || keeper.published().world.instance("c1").map(|instance| instance.state);
    keeper.deregister("c1", own.clone()).await.unwrap();
    assert_eq!(state(), Some(State::Maintenance), "its sidecar is restarted");
    let failing = Instance { state: State::Unhealthy, ..catalog_instance("c1") };
    keeper.register(failing, own.clone()).await.unwrap();
    assert_eq!(state(), Some(State::Maintenance));
    keeper.set_state("c1", State::Running, operator()).await.unwrap();
    assert_eq!(state(), Some(State::Unhealthy), "its checks fail");
    keeper.deregister("c1", own.clone()).await.unwrap();
    assert_eq!(state(), None);
    keeper.register(catalog_instance("c1"), operator()).await.unwrap();
    keeper.deregister("c1", own.clone()).await.unwrap();
    assert_eq!(state(), Some(State::Stopped), "an operator answers for it");
    keeper.register(catalog_instance("c1"), own).await.unwrap();
    assert_eq!(state(), Some(State::Running));
}

/// What the world says of c1.
fn state(keeper: &Keeper) -> Option<State> {
    keeper.published().world.instance("c1").map(|instance| instance.state)
}

/// Lets time pass, and the keeper act on it.
async fn pass(keeper: &Keeper, seconds: u64) {
    tokio::time::advance(Duration::from_secs(seconds)).await;
    keeper.register(sample("idle", "idle", "v1", "127.0.0.9", 80, Protocol::Http), operator()).await.unwrap();
}

#[tokio::test]
async fn only_what_was_taken_of_a_drained_instance_decides_what_it_is_afterwards() {
    let first = keeper().await;
    let keeper = first.0.clone();
    let own = workload("catalog", "127.0.0.1");
    keeper.register(catalog_instance("c1"), own.clone()).await.unwrap();
    keeper.set_state("c1", State::Maintenance, operator()).await.unwrap();
    let failing = Instance { state: State::Unhealthy, ..catalog_instance("c1") };
    // From where its address is not, by another, and in what cannot be stored.
    keeper.register(failing.clone(), workload("catalog", "10.0.0.66")).await.unwrap_err();
    keeper.register(failing.clone(), workload("web", "127.0.0.1")).await.unwrap_err();
    keeper.set_state("c1", State::Unhealthy, workload("web", "127.0.0.1")).await.unwrap_err();
    first.1.fail("the disk is full");
    keeper.set_state("c1", State::Unhealthy, own.clone()).await.unwrap_err();
    first.1.clone().retry().await.unwrap();
    keeper.set_state("c1", State::Running, operator()).await.unwrap();
    assert_eq!(state(&keeper), Some(State::Running));

    // What was taken survives a restart.
    keeper.set_state("c1", State::Maintenance, operator()).await.unwrap();
    keeper.register(failing, own).await.unwrap();
    drop(keeper);
    let (keeper, _) = reopened(first).await;
    assert_eq!(state(&keeper), Some(State::Maintenance));
    keeper.set_state("c1", State::Running, operator()).await.unwrap();
    assert_eq!(state(&keeper), Some(State::Unhealthy));
}

#[tokio::test(start_paused = true)]
async fn what_fell_silent_while_it_was_out_is_stopped_until_it_is_heard_of_and_then_ends() {
    let mut kept = keeper().await;
    let own = || process("catalog", "127.0.0.1", "own");
    let leased = Instance { ttl_seconds: Some(30), ..catalog_instance("c1") };
    kept.0.register(leased.clone(), own()).await.unwrap();
    kept.0.set_state("c1", State::Maintenance, operator()).await.unwrap();
    for restart in [false, true] {
        pass(&kept.0, 31).await;
        if restart {
            kept = reopened(kept).await;
        }
        let keeper = &kept.0;
        assert_eq!(state(keeper), Some(State::Maintenance), "an operator keeps it");
        for _ in 0..2 {
            keeper.set_state("c1", State::Running, operator()).await.unwrap();
            assert_eq!(state(keeper), Some(State::Stopped), "however often it is said");
        }
        keeper.heartbeat("c1", process("catalog", "127.0.0.1", "older")).await.unwrap_err();
        assert_eq!(state(keeper), Some(State::Stopped), "what it said was not this one's word");
        keeper.heartbeat("c1", own()).await.unwrap();
        assert_eq!(state(keeper), Some(State::Running));
        keeper.set_state("c1", State::Maintenance, operator()).await.unwrap();
    }
    // Heard of before the operator takes it back in, and its lease with it.
    let keeper = &kept.0;
    pass(keeper, 31).await;
    keeper.heartbeat("c1", own()).await.unwrap();
    keeper.set_state("c1", State::Running, operator()).await.unwrap();
    assert_eq!(state(keeper), Some(State::Running));
    pass(keeper, 29).await;
    assert_eq!(state(keeper), Some(State::Running));
    pass(keeper, 2).await;
    assert_eq!(state(keeper), None);

    // Silent for good: taken back in, it has one more lease.
    keeper.register(leased, own()).await.unwrap();
    keeper.set_state("c1", State::Maintenance, operator()).await.unwrap();
    pass(keeper, 31).await;
    keeper.set_state("c1", State::Running, operator()).await.unwrap();
    pass(keeper, 29).await;
    assert_eq!(state(keeper), Some(State::Stopped));
    pass(keeper, 2).await;
    assert_eq!(state(keeper), None);
}

#[tokio::test(start_paused = true)]
async fn what_left_while_it_was_out_is_stopped_until_it_registers_and_then_ends() {
    let mut kept = keeper().await;
    let own = || workload("catalog", "127.0.0.1");
    let leased = Instance { ttl_seconds: Some(30), ..catalog_instance("c1") };
    for (restart, back) in [(false, true), (true, true), (true, false)] {
        kept.0.register(leased.clone(), own()).await.unwrap();
        kept.0.set_state("c1", State::Maintenance, operator()).await.unwrap();
        kept.0.deregister("c1", own()).await.unwrap();
        if restart {
            kept = reopened(kept).await;
        }
        let keeper = &kept.0;
        let gone = keeper.heartbeat("c1", own()).await.unwrap_err();
        assert!(matches!(&gone, Refused::Unknown(text) if text.contains("register it (again)")), "{gone}");
        pass(keeper, 31).await;
        assert_eq!(state(keeper), Some(State::Maintenance), "an operator keeps it");
        keeper.set_state("c1", State::Running, operator()).await.unwrap();
        assert_eq!(state(keeper), Some(State::Stopped));
        if back {
            keeper.register(leased.clone(), own()).await.unwrap();
            assert_eq!(state(keeper), Some(State::Running));
        }
        pass(keeper, 31).await;
        assert_eq!(state(keeper), None, "its lease has begun anew");
    }
    // Answered for by an operator, it stays listed, whoever is heard of.
    let keeper = &kept.0;
    keeper.register(leased, operator()).await.unwrap();
    keeper.deregister("c1", own()).await.unwrap();
    keeper.heartbeat("c1", own()).await.unwrap_err();
    pass(keeper, 31).await;
    assert_eq!(state(keeper), Some(State::Stopped));
}

#[tokio::test(start_paused = true)]
async fn an_end_and_a_registration_of_one_moment_leave_a_lease() {
    let (keeper, _) = keeper().await;
    let leased = Instance { ttl_seconds: Some(30), ..catalog_instance("c1") };
    keeper.register(leased.clone(), operator()).await.unwrap();
    let (gone, back) = tokio::join!(keeper.deregister("c1", operator()), keeper.register(leased, operator()));
    assert_eq!(gone.unwrap(), back.unwrap(), "it was one turn");
    pass(&keeper, 31).await;
    assert_eq!(state(&keeper), None);
}

#[tokio::test]
async fn maintenance_is_an_operators_word() {
    let (keeper, _) = keeper().await;
    let own = workload("catalog", "127.0.0.1");
    let out = Instance { state: State::Maintenance, ..catalog_instance("c1") };
    let told = refused(keeper.register(out.clone(), own.clone()).await);
    assert!(told.contains("may not set state maintenance") && told.contains("say unhealthy"), "{told}");
    keeper.register(catalog_instance("c1"), own.clone()).await.unwrap();
    for result in [
        keeper.register(out.clone(), own.clone()).await,
        keeper.set_state("c1", State::Maintenance, own.clone()).await,
    ] {
        assert!(refused(result).contains("may not set state maintenance"));
        assert_eq!(state(&keeper), Some(State::Running), "nobody holds it");
    }
    keeper.set_state("c1", State::Stopping, own.clone()).await.unwrap();
    keeper.set_state("c1", State::Running, own.clone()).await.unwrap();
    // An operator's registration is one, too, and says nothing of what it is.
    keeper.set_state("c1", State::Unhealthy, own).await.unwrap();
    keeper.register(out, operator()).await.unwrap();
    assert_eq!(state(&keeper), Some(State::Maintenance));
    keeper.set_state("c1", State::Running, operator()).await.unwrap();
    assert_eq!(state(&keeper), Some(State::Unhealthy));
}

fn refused(result: Result<u64, Refused>) -> String {
    match result {
        Err(Refused::Forbidden(text) | Refused::Conflict(text)) => text,
        other => panic!("it should be forbidden: {other:?}"),
    }
}

#[tokio::test]
async fn a_workload_cannot_draw_the_calls_of_another() {
    let (keeper, _) = keeper().await;
    let at =
        |id: &str, service: &str, address: &str| sample(id, service, "v1", address, 8080, Protocol::Http);
    keeper.register(at("c1", "catalog", "10.0.0.7"), workload("catalog", "10.0.0.7")).await.unwrap();
    let evil = workload("evil", "10.0.0.66");
    let foreign = refused(keeper.register(at("e1", "evil", "10.0.0.7"), evil.clone()).await);
    assert!(foreign.contains("10.0.0.7 is not the caller's") && foreign.contains("--range"), "{foreign}");
    let plain = Instance { sidecar: false, ..at("e1", "evil", "10.0.0.66") };
    assert!(refused(keeper.register(plain, evil.clone()).await).contains("only an operator"));
    keeper.register(at("e1", "evil", "10.0.0.66"), evil).await.unwrap();
    // From the same host, as two processes are, an address is shared, but not with its port.
    let beside = workload("evil", "10.0.0.7");
    let held = refused(keeper.register(at("e2", "evil", "10.0.0.7"), beside.clone()).await);
    assert!(held.contains("held by instance \"c1\"") && held.contains("shop/catalog"), "{held}");
    let free = sample("e2", "evil", "v1", "10.0.0.7", 8081, Protocol::Http);
    keeper.register(free, beside).await.unwrap();
    let told = refused(keeper.register(at("e3", "evil", "10.0.0.7"), operator()).await);
    assert!(told.contains("held by instance \"c1\""), "an operator's slip is one too: {told}");
    let world = keeper.published();
    assert!(world.world.instances().all(|instance| instance.sidecar));
}

#[tokio::test]
async fn workloads_of_one_machine_share_loopback_by_port() {
    let (keeper, _) = keeper().await;
    for (account, address, port) in
        [("web", "127.0.0.1", 8080), ("catalog", "127.0.0.1", 8081), ("stock", "127.9.0.3", 8080)]
    {
        let instance = sample(account, account, "v1", address, port, Protocol::Http);
        keeper.register(instance, workload(account, "127.0.0.1")).await.unwrap();
    }
    let stolen = sample("e1", "evil", "v1", "127.0.0.1", 8081, Protocol::Http);
    assert!(refused(keeper.register(stolen, workload("evil", "127.0.0.1")).await).contains("\"catalog\""));
}

#[tokio::test]
async fn an_address_of_a_file_is_not_anothers() {
    let (keeper, _) = keeper().await;
    keeper.registry(file(1, "web.yaml"), has(&[catalog_instance("c1")])).await.unwrap();
    let stolen = sample("e1", "evil", "v1", "127.0.0.5", 8080, Protocol::Http);
    assert!(refused(keeper.register(stolen, workload("evil", "127.0.0.1")).await).contains("\"c1\""));
}

#[tokio::test]
async fn what_an_operator_vouched_for_a_workload_may_say_again() {
    let (keeper, _) = keeper().await;
    let own = || workload("catalog", "10.0.0.7");
    let plain = Instance {
        sidecar: false,
        ttl_seconds: Some(30),
        ..sample("c1", "catalog", "v1", "10.9.9.9", 8080, Protocol::Http)
    };
    assert!(keeper.register(plain.clone(), own()).await.is_err());
    keeper.register(plain.clone(), operator()).await.unwrap();
    for weight in [50, 60] {
        keeper.register(Instance { weight, ..plain.clone() }, own()).await.unwrap();
        assert_eq!(keeper.published().world.instance("c1").unwrap().weight, weight);
    }
    let moved = sample("c1", "catalog", "v1", "10.0.0.7", 8080, Protocol::Http);
    keeper.register(moved, own()).await.unwrap();
    assert!(keeper.register(plain, own()).await.is_err(), "the word was for what is no longer registered");
}

#[tokio::test]
async fn an_identity_registers_a_bounded_number_of_instances() {
    let (keeper, _) = keeper().await;
    let own = || workload("catalog", "127.0.0.1");
    let all: Vec<_> = (0..=MAX_PER_IDENTITY)
        .map(|n| {
            let keeper = keeper.clone();
            tokio::spawn(async move { keeper.register(catalog_instance(&format!("c{n}")), own()).await })
        })
        .collect();
    let mut full = Vec::new();
    for registered in all {
        full.extend(registered.await.unwrap().err());
    }
    assert_eq!(full.len(), 1, "{full:?}");
    assert!(full[0].to_string().contains("1000 instances"), "{full:?}");
    let known = keeper.published().registrations.keys().next().unwrap().clone();
    let again = Instance { weight: 7, ..catalog_instance(&known) };
    keeper.register(again, own()).await.unwrap();
    keeper.register(catalog_instance("more"), operator()).await.unwrap();
}
