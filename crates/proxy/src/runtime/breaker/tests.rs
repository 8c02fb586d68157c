use std::sync::Barrier;

use super::*;

fn breaker(rules: model::Breaker) -> Arc<Breaker> {
    Arc::new(Breaker::new(rules, "catalog".into(), None))
}

fn rules() -> model::Breaker {
    model::Breaker { minimum_requests: 4, ..model::Breaker::default() }
}

fn send(breaker: &Arc<Breaker>, outcome: Outcome) {
    breaker.admit().unwrap_or_else(|refused| panic!("{refused}")).tell(outcome);
}

const GOOD: Outcome = Outcome::Status(200);
const BAD: Outcome = Outcome::Status(500);

fn open(breaker: &Arc<Breaker>) {
    (0..4).for_each(|_| send(breaker, BAD));
    assert_eq!(breaker.phase(), Phase::Open);
}

async fn pass(time: Duration) {
    tokio::time::advance(time).await;
}

#[tokio::test(start_paused = true)]
async fn it_opens_at_the_share_of_failures_and_not_before_the_least_number() {
    let breaker = breaker(rules());
    for outcome in [BAD, BAD, BAD] {
        send(&breaker, outcome);
    }
    assert_eq!(breaker.phase(), Phase::Closed, "three of three, but four are wanted");
    send(&breaker, GOOD);
    assert_eq!(breaker.phase(), Phase::Open, "the fourth is a success, and three of four are too many");
    let refused = breaker.admit().err().unwrap().to_string();
    let wanted = "local pick: circuit_open: cluster catalog: the circuit breaker is open for another 30.0s; 3 of 4 requests in 10s failed";
    assert_eq!(refused, wanted);
}

#[tokio::test(start_paused = true)]
async fn what_is_older_than_the_interval_does_not_count() {
    let breaker = breaker(rules());
    (0..3).for_each(|_| send(&breaker, BAD));
    pass(Duration::from_millis(9_999)).await;
    assert_eq!((breaker.look().ended, breaker.look().failed), (3, 3));
    pass(Duration::from_millis(1)).await;
    assert_eq!((breaker.look().ended, breaker.look().failed), (0, 0));
    (0..3).for_each(|_| send(&breaker, BAD));
    assert_eq!(breaker.phase(), Phase::Closed);
    send(&breaker, BAD);
    assert_eq!(breaker.phase(), Phase::Open);
}

#[tokio::test(start_paused = true)]
async fn failures_in_a_row_open_it_whatever_their_share() {
    let rules = model::Breaker { failure_percent: 0.0, consecutive_failures: 3, ..rules() };
    let breaker = breaker(rules);
    for outcome in [BAD, BAD, GOOD, BAD, Outcome::GatewayError, Outcome::LocalFailure, GOOD, BAD, BAD] {
        send(&breaker, outcome);
    }
    assert_eq!(breaker.phase(), Phase::Closed);
    send(&breaker, Outcome::GatewayError);
    assert_eq!(breaker.phase(), Phase::Open);
}

#[tokio::test(start_paused = true)]
async fn probes_that_succeed_close_it_and_no_more_are_under_way_than_allowed() {
    let breaker = breaker(rules());
    open(&breaker);
    pass(Duration::from_millis(29_999)).await;
    assert!(breaker.admit().is_err());
    pass(Duration::from_millis(1)).await;
    let probes: Vec<Pass> = (0..3).map(|_| breaker.admit().ok().unwrap()).collect();
    assert!(probes.iter().all(Pass::is_probe));
    assert_eq!(breaker.phase(), Phase::HalfOpen);
    let refused = breaker.admit().err().unwrap().to_string();
    assert!(refused.contains("half-open, and all 3 probes are under way; 4 of 4 requests"), "{refused}");
    for (i, probe) in probes.into_iter().enumerate() {
        assert_eq!(breaker.phase(), Phase::HalfOpen, "after {i}");
        probe.tell(GOOD);
    }
    assert_eq!((breaker.phase(), breaker.look().ended), (Phase::Closed, 0), "it begins anew");
    assert_eq!(breaker.look().transitions, [1, 1, 1]);
}

#[tokio::test(start_paused = true)]
async fn a_probe_that_fails_opens_it_for_its_whole_time() {
    let breaker = breaker(rules());
    open(&breaker);
    pass(Duration::from_secs(30)).await;
    let (first, second) = (breaker.admit().ok().unwrap(), breaker.admit().ok().unwrap());
    first.tell(BAD);
    assert_eq!(breaker.phase(), Phase::Open);
    second.tell(GOOD);
    assert_eq!(breaker.phase(), Phase::Open, "what was sent before says nothing");
    pass(Duration::from_millis(29_999)).await;
    assert!(breaker.admit().is_err());
    pass(Duration::from_millis(1)).await;
    assert!(breaker.admit().is_ok());
}

#[tokio::test(start_paused = true)]
async fn a_probe_that_says_nothing_leaves_its_place_to_another() {
    let breaker = breaker(rules());
    open(&breaker);
    pass(Duration::from_secs(30)).await;
    let probes: Vec<Pass> = (0..3).map(|_| breaker.admit().ok().unwrap()).collect();
    assert!(breaker.admit().is_err());
    drop(probes);
    for _ in 0..3 {
        assert_eq!(breaker.phase(), Phase::HalfOpen);
        send(&breaker, GOOD);
    }
    assert_eq!(breaker.phase(), Phase::Closed);
}

#[tokio::test(start_paused = true)]
async fn probes_that_never_come_back_do_not_keep_it_half_open_for_ever() {
    let breaker = breaker(rules());
    open(&breaker);
    pass(Duration::from_secs(30)).await;
    let hanging: Vec<Pass> = (0..3).map(|_| breaker.admit().ok().unwrap()).collect();
    pass(Duration::from_secs(30)).await;
    let refused = breaker.admit().err().unwrap().to_string();
    assert!(refused.contains("3 of its probes did not answer in time"), "{refused}");
    assert_eq!(breaker.phase(), Phase::Open);
    pass(Duration::from_secs(30)).await;
    send(&breaker, GOOD);
    drop(hanging);
    assert_eq!((breaker.phase(), breaker.look().probes_under_way), (Phase::HalfOpen, 0));
}

#[tokio::test(start_paused = true)]
async fn a_probe_that_was_sent_late_is_waited_for_as_long_as_any() {
    let breaker = breaker(rules());
    open(&breaker);
    pass(Duration::from_secs(30)).await;
    send(&breaker, GOOD);
    pass(Duration::from_secs(10)).await;
    send(&breaker, GOOD);
    pass(Duration::from_secs(25)).await;
    let late = breaker.admit().ok().unwrap();
    pass(Duration::from_millis(1)).await;
    assert!(breaker.admit().is_err());
    assert_eq!(breaker.phase(), Phase::HalfOpen);
    late.tell(GOOD);
    assert_eq!(breaker.phase(), Phase::Closed);
}

#[test]
fn a_clock_that_was_read_earlier_counts_for_now() {
    let word = AtomicU64::new(0);
    add(&word, 20);
    add(&word, 10);
    assert_eq!(word.load(Relaxed), 20 << 32 | 2);
    add(&word, 30);
    assert_eq!(word.load(Relaxed), 30 << 32 | 1);
}

#[tokio::test(start_paused = true)]
async fn what_was_sent_before_it_opened_says_nothing_later() {
    let breaker = breaker(rules());
    let slow: Vec<Pass> = (0..9).map(|_| breaker.admit().ok().unwrap()).collect();
    open(&breaker);
    pass(Duration::from_secs(30)).await;
    (0..3).for_each(|_| send(&breaker, GOOD));
    assert_eq!(breaker.phase(), Phase::Closed);
    slow.into_iter().for_each(|pass| drop(pass.tell(Outcome::GatewayError)));
    assert_eq!((breaker.phase(), breaker.look().ended), (Phase::Closed, 0));
}

/// Of many threads that ask at once no more are let through in a term than there may be probes.
#[test]
fn probes_are_exact_across_threads() {
    let rules = model::Breaker { open_time: Duration::from_nanos(1), probes: 5, ..rules() };
    for _ in 0..50 {
        let breaker = breaker(rules.clone());
        open(&breaker);
        let barrier = Barrier::new(8);
        let ask = || {
            barrier.wait();
            let passes: Vec<_> = (0..4).filter_map(|_| breaker.admit().ok()).collect();
            // They are held until all have asked, so that no place is free again.
            barrier.wait();
            passes.iter().map(|pass| pass.now / 4).collect::<Vec<_>>()
        };
        let terms: Vec<u32> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..8).map(|_| scope.spawn(ask)).collect();
            threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
        });
        assert!(!terms.is_empty());
        for term in &terms {
            let admitted = terms.iter().filter(|other| *other == term).count();
            assert!(admitted <= 5, "{admitted} probes in term {term}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn each_request_is_told_what_it_has_made_of_it() {
    let breaker =
        breaker(model::Breaker { failure_percent: 0.0, consecutive_failures: 2, probes: 1, ..rules() });
    let told = |outcome| breaker.admit().unwrap_or_else(|refused| panic!("{refused}")).tell(outcome);
    assert!(told(GOOD).is_nothing() && told(BAD).is_nothing());
    let why = || "2 requests in a row failed".to_owned();
    assert_eq!(told(BAD), Turned { half_opened: false, to: Some(Box::new((Phase::Open, why()))) });
    pass(rules().open_time).await;
    assert_eq!(
        told(BAD),
        Turned { half_opened: true, to: Some(Box::new((Phase::Open, "a probe failed".into()))) }
    );
    pass(rules().open_time).await;
    // It has opened half, and says nothing else.
    assert_eq!(told(Outcome::LocalFailure), Turned { half_opened: true, to: None });
    assert_eq!(told(GOOD), Turned { half_opened: false, to: Some(Box::new((Phase::Closed, String::new()))) });
    assert!(told(GOOD).is_nothing());
}

/// Whatever becomes of them, and however many they are.
#[tokio::test(start_paused = true)]
async fn what_was_sent_before_it_opened_is_no_probe_and_takes_no_place_of_one() {
    let breaker = breaker(rules());
    let mut before: Vec<Pass> = (0..9).map(|_| breaker.admit().ok().unwrap()).collect();
    open(&breaker);
    pass(Duration::from_secs(30)).await;
    let mut probe = breaker.admit().ok().unwrap();
    let look = || (breaker.phase(), breaker.look().probes_under_way, breaker.look().probes_succeeded);
    assert_eq!(look(), (Phase::HalfOpen, 1, 0));
    for outcome in [BAD, GOOD, Outcome::LocalFailure, Outcome::Refused] {
        let late = before.pop().unwrap();
        assert!(!late.is_probe() && !late.is_probing());
        assert!(late.tell(outcome).is_nothing());
        assert_eq!(look(), (Phase::HalfOpen, 1, 0), "after {outcome:?}");
    }
    drop(before);
    assert_eq!(look(), (Phase::HalfOpen, 1, 0), "after those that nobody told of");
    assert_eq!(probe.came(), Turned { half_opened: true, to: None });
    assert!(probe.came().is_nothing() && probe.is_probing(), "it is said once, and its place is kept");
    assert!(probe.tell(GOOD).is_nothing());
    assert_eq!(look(), (Phase::HalfOpen, 0, 1));
    let late = breaker.admit().ok().unwrap();
    send(&breaker, BAD);
    assert!(!late.is_probing(), "it has opened since");
}
