use std::sync::atomic::AtomicUsize;
use std::time::Duration;

use outrigger_telemetry::Drain;

use super::*;
use crate::alarm::Alarm;

/// A worker with 8 MiB to hand out, of a process that "uses" so much.
fn ledger(resident: fn() -> usize) -> (Ledger, impl Fn() -> Place) {
    let alarm = Alarm::default();
    let drain = Drain::new();
    let budget = Budget { resident, ..Budget::new(Some(16 << 20), 1) };
    (Ledger::new(&budget), move || alarm.place(&drain))
}

async fn with(test: impl Fn(&Ledger, &dyn Fn() -> Place), resident: fn() -> usize) {
    let set = tokio::task::LocalSet::new();
    set.run_until(async {
        let (ledger, place) = ledger(resident);
        test(&ledger, &place);
        assert_eq!(ledger.held(), 0, "what was taken went back");
    })
    .await;
}

const MIB: usize = 1 << 20;

#[tokio::test]
async fn one_connection_gets_half_and_no_more() {
    let test = |ledger: &Ledger, place: &dyn Fn() -> Place| {
        let account = ledger.open(place());
        assert!(account.take(4 * MIB));
        assert!(!account.take(1));
        account.give(MIB);
        assert!(account.take(MIB));
        assert_eq!(account.told(), None, "nobody else needed it");
    };
    with(test, || 0).await;
}

#[tokio::test]
async fn what_is_spared_grows_as_it_is_used_up_to_half_and_goes_back() {
    let test = |ledger: &Ledger, place: &dyn Fn() -> Place| {
        let account = ledger.open(place());
        let (mut one, mut other) = (account.spare(), account.spare());
        assert!(one.grow_to(MIB) && one.grow_to(MIB / 2));
        assert_eq!(ledger.held(), MIB, "it only grows");
        assert!(other.grow_to(MIB) && !other.grow_to(MIB + 1), "half of what a connection may have");
        assert!(account.take(2 * MIB), "others have the rest");
        one.release();
        assert_eq!(ledger.held(), 3 * MIB);
        drop(other);
        account.give(2 * MIB);
    };
    with(test, || 0).await;
}

#[tokio::test]
async fn the_greediest_goes_for_a_newcomer() {
    let test = |ledger: &Ledger, place: &dyn Fn() -> Place| {
        let accounts = [4, 3, 1].map(|mib| {
            let account = ledger.open(place());
            assert!(account.take(mib * MIB));
            account
        });
        let honest = ledger.open(place());
        assert!(honest.take(STREAM));
        let told: Vec<_> = accounts.iter().map(Account::told).collect();
        assert_eq!(told, [Some(Told::Greedy), None, None]);
        assert!(honest.take(MIB), "what is about to be freed is free");
        assert!(!accounts[0].take(1), "who was told gets nothing");
    };
    with(test, || 0).await;
}

#[tokio::test]
async fn among_equals_the_idle_go_and_then_the_newcomer_is_refused() {
    let test = |ledger: &Ledger, place: &dyn Fn() -> Place| {
        let small = 256 * 1024;
        let accounts: Vec<_> = (0..32).map(|_| ledger.open(place())).collect();
        assert!(accounts.iter().all(|account| account.take(small)));
        let newcomer = ledger.open(place());
        assert!(!newcomer.take(small));
        let now = Instant::now();
        accounts[3].rest(Some(now + Duration::from_secs(1)));
        accounts[7].rest(Some(now));
        assert_eq!(ledger.shed_idle(1), 1);
        assert_eq!(accounts[7].told(), Some(Told::Idle), "idle for longer");
        assert!(newcomer.take(small));
    };
    with(test, || 0).await;
}

#[tokio::test]
async fn who_holds_bytes_that_nobody_takes_goes_when_memory_ends() {
    let parks = |ledger: &Ledger, place: &dyn Fn() -> Place| {
        let (greedy, honest) = (ledger.open(place()), ledger.open(place()));
        let _parked: Vec<_> = (0..LOOK).map(|_| greedy.park(false)).collect();
        let _own = honest.park(false);
        (greedy.told(), honest.told())
    };
    with(move |ledger, place| assert_eq!(parks(ledger, place), (Some(Told::Greedy), None)), || 15 << 20)
        .await;
    with(move |ledger, place| assert_eq!(parks(ledger, place), (None, None)), || 8 << 20).await;
}

/// As HTTP/1 and tunnels do, which have one stream each.
#[tokio::test]
async fn of_many_that_hold_little_as_many_go_as_come() {
    let told = |accounts: &[Account]| accounts.iter().filter(|account| account.told().is_some()).count();
    let crowd = move |ledger: &Ledger, place: &dyn Fn() -> Place, come: usize| {
        let accounts: Vec<_> = (0..come).map(|_| ledger.open(place())).collect();
        accounts.iter().for_each(|account| account.park_alone(1));
        let went = told(&accounts);
        accounts.iter().for_each(|account| account.park_alone(0));
        went
    };
    // 2 MiB are always theirs, and each counts as a quarter of one.
    let much: fn() -> usize = || 15 << 20;
    with(move |ledger, place| assert_eq!(crowd(ledger, place, 31), 0, "nobody has looked yet"), much).await;
    with(move |ledger, place| assert_eq!(crowd(ledger, place, 32), 24), much).await;
    with(move |ledger, place| assert_eq!(crowd(ledger, place, 320), 320 - 8), much).await;
    with(move |ledger, place| assert_eq!(crowd(ledger, place, 320), 0), || 8 << 20).await;
}

/// Memory that was full once is no reason to end who waits later.
#[tokio::test]
async fn who_waits_when_there_is_memory_again_stays() {
    static USED: AtomicUsize = AtomicUsize::new(15 << 20);
    let test = |ledger: &Ledger, place: &dyn Fn() -> Place| {
        let crowd: Vec<_> = (0..LOOK).map(|_| ledger.open(place())).collect();
        crowd.iter().for_each(|account| account.park_alone(1));
        let late = [ledger.open(place()), ledger.open(place())];
        late[0].park_alone(1);
        assert_eq!(late[0].told(), Some(Told::Greedy), "there is no room for more");
        USED.store(1 << 20, Relaxed);
        let at = ledger.0.looked.get().unwrap();
        while at.elapsed() < PAUSE {
            std::thread::yield_now();
        }
        late[1].park_alone(1);
        assert_eq!(late[1].told(), None);
        crowd.iter().chain(&late).for_each(|account| account.park_alone(0));
    };
    with(test, || USED.load(Relaxed)).await;
}

/// Who is told to go is one of whom something comes back.
#[tokio::test]
async fn nobody_makes_room_who_holds_nothing() {
    let test = |ledger: &Ledger, place: &dyn Fn() -> Place| {
        let (tunnel, holder, other) = (ledger.open(place()), ledger.open(place()), ledger.open(place()));
        tunnel.park_alone(40);
        assert!(holder.take(4 * MIB) && other.take(4 * MIB));
        let newcomer = ledger.open(place());
        assert!(newcomer.take(STREAM));
        assert_eq!(tunnel.told(), None);
        assert!(holder.told().is_some() != other.told().is_some());
        tunnel.park_alone(0);
        newcomer.give(STREAM);
        holder.give(4 * MIB);
        other.give(4 * MIB);
    };
    with(test, || 0).await;
}
