use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::Duration;

use super::*;

fn limits(edit: impl FnOnce(&mut model::Limits)) -> Limits {
    let mut values = model::Limits { retry_budget: None, ..model::Limits::default() };
    edit(&mut values);
    Limits::new("c".into(), values, None)
}

fn kind(result: Result<impl Sized, Failure>) -> FailureKind {
    result.map(|_| ()).unwrap_err().kind
}

#[test]
fn requests_are_limited_exactly_and_freed_on_drop() {
    let limits = limits(|l| l.max_requests = 2);
    let first = limits.try_request().unwrap();
    let _second = limits.try_request().unwrap();
    assert_eq!(kind(limits.try_request()), FailureKind::Overflow { limit: "max_requests", value: 2 });
    drop(first);
    let _third = limits.try_request().unwrap();
    assert_eq!((limits.view().requests, limits.view().request_overflows), (2, 1));
}

#[test]
fn many_threads_never_exceed_a_limit() {
    let limits = limits(|l| l.max_requests = 3);
    let peak = AtomicU32::new(0);
    let inside = AtomicU32::new(0);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..5_000 {
                    if let Ok(permit) = limits.try_request() {
                        peak.fetch_max(inside.fetch_add(1, Relaxed) + 1, Relaxed);
                        inside.fetch_sub(1, Relaxed);
                        drop(permit);
                    }
                }
            });
        }
    });
    assert!(peak.load(Relaxed) <= 3);
    assert_eq!(limits.view().requests, 0);
}

#[test]
fn who_is_refused_is_never_counted() {
    let limits = limits(|l| (l.max_requests, l.max_pending, l.max_retries) = (3, 3, 3));
    std::thread::scope(|scope| {
        let storm = || {
            for _ in 0..20_000 {
                drop((limits.try_request(), limits.try_pending(), limits.try_retry()));
            }
        };
        let threads: Vec<_> = (0..8).map(|_| scope.spawn(storm)).collect();
        while !threads.iter().all(|thread| thread.is_finished()) {
            let seen = limits.view();
            assert!(seen.requests.max(seen.pending).max(seen.retries) <= 3, "{seen:?}");
        }
    });
    let left = limits.view();
    assert_eq!((left.requests, left.pending, left.retries), (0, 0, 0));
}

/// One gives its place back and takes it again, others want it: whoever is refused, somebody has it. When each try counted itself first
/// and took that back, a place that became free in between was nobody's.
#[test]
fn a_free_place_is_refused_to_nobody() {
    let limits = limits(|l| l.max_requests = 1);
    for round in 0..2_000 {
        let over = AtomicBool::new(false);
        let mut mine = limits.try_request().ok();
        assert!(mine.is_some(), "nobody else is there");
        std::thread::scope(|scope| {
            let want = || {
                let mut taken = None;
                while taken.is_none() && !over.load(SeqCst) {
                    taken = limits.try_request().ok();
                }
                taken
            };
            let others: Vec<_> = (0..2).map(|_| scope.spawn(want)).collect();
            for _ in 0..1_000 {
                drop(mine.take());
                mine = limits.try_request().ok();
                if mine.is_none() {
                    break;
                }
            }
            over.store(true, SeqCst);
            let theirs: Vec<_> = others.into_iter().filter_map(|other| other.join().unwrap()).collect();
            assert_eq!(theirs.len() + usize::from(mine.is_some()), 1, "round {round}");
        });
    }
}

#[test]
fn a_retry_budget_follows_the_requests_in_flight() {
    let budget = model::RetryBudget { percent: 20.0, min_concurrency: 1 };
    let limits = limits(|l| l.retry_budget = Some(budget));
    let _requests: Vec<_> = (0..14).map(|_| limits.try_request().unwrap()).collect();
    let _two = (limits.try_retry().unwrap(), limits.try_retry().unwrap());
    assert_eq!(kind(limits.try_retry()), FailureKind::Overflow { limit: "retry_budget", value: 2 });
    let _fifteenth = limits.try_request().unwrap();
    let _third = limits.try_retry().unwrap();
}

#[test]
fn without_a_budget_max_retries_counts() {
    let limits = limits(|l| l.max_retries = 1);
    let _one = limits.try_retry().unwrap();
    assert_eq!(kind(limits.try_retry()), FailureKind::Overflow { limit: "max_retries", value: 1 });
}

#[tokio::test]
async fn a_freed_connection_goes_to_the_oldest_waiter() {
    let limits = limits(|l| (l.max_connections, l.max_pending) = (1, 2));
    let held = limits.connection().await.unwrap();
    let mut first = Box::pin(limits.connection());
    let mut second = Box::pin(limits.connection());
    assert!(futures_util::poll!(&mut first).is_pending());
    assert!(futures_util::poll!(&mut second).is_pending());
    assert_eq!(
        kind(limits.connection().await),
        FailureKind::Overflow { limit: "max_pending", value: 2 },
        "the queue is bounded"
    );
    assert!(limits.wants_fewer());
    drop(held);
    assert!(futures_util::poll!(&mut second).is_pending(), "the oldest goes first");
    let held = first.await.unwrap();
    assert_eq!((limits.view().connections, limits.view().pending), (1, 1));
    drop(held);
    drop(second.await.unwrap());
    assert_eq!(limits.view().connections, 0);
}

#[tokio::test]
async fn a_waiter_that_went_away_is_skipped_and_leaks_nothing() {
    let limits = limits(|l| (l.max_connections, l.max_pending) = (1, 5));
    let held = limits.try_connection().unwrap();
    let mut gone = Box::pin(limits.connection());
    let mut next = Box::pin(limits.connection());
    assert!(futures_util::poll!(&mut gone).is_pending());
    assert!(futures_util::poll!(&mut next).is_pending());
    drop(gone);
    drop(held);
    drop(next.await.unwrap());
    assert_eq!((limits.view().connections, limits.view().pending), (0, 0));
}

#[tokio::test]
async fn a_raised_limit_lets_waiters_in_and_a_lowered_one_lets_connections_go() {
    let limits = limits(|l| (l.max_connections, l.max_pending) = (1, 5));
    let first = limits.try_connection().unwrap();
    let mut waiting = Box::pin(limits.connection());
    assert!(futures_util::poll!(&mut waiting).is_pending());
    limits.configure(model::Limits { max_connections: 2, max_pending: 5, ..model::Limits::default() }, None);
    let second = tokio::time::timeout(Duration::from_secs(5), waiting).await.unwrap().unwrap();
    limits.configure(model::Limits { max_connections: 1, max_pending: 5, ..model::Limits::default() }, None);
    let mut waiting = Box::pin(limits.connection());
    assert!(futures_util::poll!(&mut waiting).is_pending());
    drop(second);
    assert!(futures_util::poll!(&mut waiting).is_pending(), "one is still one");
    drop(first);
    drop(waiting.await.unwrap());
    assert_eq!(limits.view().connections, 0);
}

#[test]
fn who_may_not_wait_may_still_make_a_connection() {
    let none = limits(|l| l.max_pending = 0);
    let _waits = (none.try_pending().unwrap(), none.try_pending().unwrap());
    let one = limits(|l| l.max_pending = 1);
    let waits = one.try_pending().unwrap();
    assert_eq!(kind(one.try_pending()), FailureKind::Overflow { limit: "max_pending", value: 1 });
    drop(waits);
    assert!(one.try_pending().is_ok());
}
