use std::collections::VecDeque;

use outrigger_model::rate_limit::By;
use outrigger_model::route::RouteMatch;

use super::*;

fn limit(requests: u32, per: Duration, algorithm: Algorithm) -> RateLimit {
    let (name, matches) = ("l".to_owned(), RouteMatch::any());
    RateLimit { name, matches, by: Vec::new(), requests, per, algorithm, origin: None }
}

const SECOND: Duration = Duration::from_secs(1);

fn bucket(requests: u32, burst: u32) -> RateLimit {
    limit(requests, SECOND, Algorithm::TokenBucket { burst })
}

fn window(requests: u32) -> RateLimit {
    limit(requests, SECOND, Algorithm::SlidingWindow)
}

fn keyed(limit: RateLimit) -> RateLimit {
    RateLimit { by: vec![By::Path], ..limit }
}

fn key(counts: &Counts, value: &str) -> CountKey {
    counts.key(|hasher| part(hasher, value.as_bytes()))
}

/// At this time after the start.
fn ask(counts: &Counts, at: Duration, value: &str) -> Result<(), Duration> {
    counts.take(counts.epoch + at, key(counts, value)).map_err(|refused| refused.wait)
}

fn millis(n: u64) -> Duration {
    Duration::from_millis(n)
}

#[test]
fn a_bucket_gives_its_burst_at_once_and_then_a_token_at_a_time() {
    for limit in [bucket(10, 3), keyed(bucket(10, 3))] {
        let counts = Counts::new(limit);
        for _ in 0..3 {
            assert_eq!(ask(&counts, SECOND, "a"), Ok(()));
        }
        assert_eq!(ask(&counts, SECOND, "a"), Err(millis(100)));
        assert_eq!(ask(&counts, millis(1099), "a"), Err(millis(1)));
        assert_eq!(ask(&counts, millis(1100), "a"), Ok(()));
        assert_eq!(ask(&counts, millis(1100), "a"), Err(millis(100)));
        // Full again, and not more than full.
        let later = millis(60_000);
        assert_eq!((0..9).filter(|_| ask(&counts, later, "a").is_ok()).count(), 3);
        assert_eq!(counts.refused(), 3 + 6);
    }
}

#[test]
fn a_time_that_does_not_divide_gives_rather_less_than_more() {
    let counts = Counts::new(bucket(3, 1));
    let passed = (0..=10_000).filter(|n| ask(&counts, millis(*n), "").is_ok()).count();
    assert_eq!(passed, 30, "one at once, and 29 whole thirds: each begins at a whole millisecond");
}

#[test]
fn each_value_has_its_own_count() {
    for limit in [keyed(bucket(1, 1)), keyed(window(1))] {
        let counts = Counts::new(limit);
        assert_eq!(ask(&counts, SECOND, "a"), Ok(()));
        assert!(ask(&counts, SECOND, "a").is_err());
        assert_eq!(ask(&counts, SECOND, "b"), Ok(()));
        assert!(ask(&counts, SECOND, "b").is_err());
    }
}

#[test]
fn a_table_of_strangers_values_stays_as_large_as_it_is() {
    let counts = Counts::new(keyed(window(5)));
    for n in 0..200_000 {
        assert_eq!(ask(&counts, SECOND, &n.to_string()), Ok(()));
    }
    let Kind::Windows(table) = &counts.kind else { panic!() };
    let held: usize = table.sets.get().unwrap().iter().map(|set| set.lock().len()).sum();
    assert_eq!(held, SETS * WAYS);
    assert!(size_of::<(u64, Window)>() * SETS * WAYS <= 1 << 20, "a MiB for each limit at most");
}

/// Hashes that share one place of a table.
fn neighbours() -> Vec<u64> {
    (0..=WAYS as u64).map(|n| 7 + n * SETS as u64).collect()
}

#[test]
fn where_a_place_is_full_the_fullest_bucket_begins_anew() {
    let (table, all) = (Table::<u64>::default(), neighbours());
    for (age, hash) in all[..WAYS].iter().enumerate() {
        table.with(*hash, |state| *state = 100 + age as u64);
    }
    table.with(all[0], |state| *state = 500);
    table.with(all[WAYS], |state| assert_eq!(std::mem::replace(state, 600), 0));
    assert_eq!(table.with(all[0], |state| *state), 500, "it owes the most but one");
    assert_eq!(table.with(all[1], |state| *state), 0, "it owed the least");
}

/// Within one tenth, too: whoever came last stays.
#[test]
fn where_a_place_is_full_the_window_that_was_not_asked_for_the_longest_begins_anew() {
    let (table, all) = (Table::<Window>::default(), neighbours());
    let take = |hash: u64| table.with(hash, |window| window.take(0, 1, SECOND).is_ok());
    for hash in &all[..WAYS] {
        assert!(take(*hash));
    }
    assert!(!take(all[0]), "it was asked once more");
    assert!(take(all[WAYS]));
    assert!(!take(all[WAYS]), "the newest is remembered");
    assert!(!take(all[0]));
    assert!(take(all[1]), "it was forgotten");
}

#[test]
fn what_is_given_back_was_never_taken() {
    for limit in [bucket(10, 2), keyed(bucket(10, 2)), window(2), keyed(window(2))] {
        let counts = Counts::new(limit);
        for _ in 0..9 {
            assert_eq!(ask(&counts, SECOND, "a"), Ok(()));
            counts.give(key(&counts, "a"));
        }
        assert_eq!((ask(&counts, SECOND, "a"), ask(&counts, SECOND, "a")), (Ok(()), Ok(())));
        assert!(ask(&counts, SECOND, "a").is_err(), "{:?}", counts.limit);
    }
}

/// In no stretch of a second are there ever more than allowed, whatever comes when; and each that is refused may come after its wait.
#[test]
fn a_window_never_lets_more_through_than_its_limit() {
    fastrand::seed(7);
    for _ in 0..50 {
        let most = fastrand::u32(1..40);
        let counts = Counts::new(window(most));
        let mut passed: VecDeque<Duration> = VecDeque::new();
        let (mut at, mut refusals) = (Duration::ZERO, 0);
        for _ in 0..3_000 {
            at += Duration::from_micros(fastrand::u64(0..60_000) * u64::from(fastrand::bool()));
            match ask(&counts, at, "") {
                Ok(()) => passed.push_back(at),
                Err(wait) => {
                    refusals += 1;
                    assert!(wait > Duration::ZERO && wait <= SECOND + millis(100), "{wait:?}");
                    if fastrand::u8(..) < 16 {
                        at += wait;
                        assert_eq!(ask(&counts, at, ""), Ok(()), "after the time that it was told");
                        passed.push_back(at);
                    }
                }
            }
            while passed.front().is_some_and(|first| at - *first >= SECOND) {
                passed.pop_front();
            }
            assert!(passed.len() <= most as usize, "{} of {most} in a second", passed.len());
        }
        assert!(refusals > 0 || most > 20, "of {most}");
    }
}

#[test]
fn a_window_forgets_after_its_time_and_a_tenth() {
    let counts = Counts::new(window(2));
    assert_eq!(ask(&counts, millis(50), ""), Ok(()));
    assert_eq!(ask(&counts, millis(950), ""), Ok(()));
    assert_eq!(ask(&counts, millis(1050), ""), Err(millis(50)), "the first part leaves at 1.1 s");
    assert_eq!(ask(&counts, millis(1100), ""), Ok(()));
    assert_eq!(ask(&counts, millis(1100), ""), Err(millis(900)));
    assert_eq!(ask(&counts, millis(99_000), ""), Ok(()));
}

/// Eight threads ask 500 times each at one moment: exactly as many pass as are allowed, whichever way they are counted.
#[test]
fn limits_are_exact_across_threads() {
    for limit in [bucket(1, 321), keyed(bucket(1, 321)), window(321), keyed(window(321))] {
        let counts = Counts::new(limit);
        let passed: usize = std::thread::scope(|scope| {
            let ask = || (0..500).filter(|_| ask(&counts, SECOND, "one").is_ok()).count();
            let threads: Vec<_> = (0..8).map(|_| scope.spawn(ask)).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).sum()
        });
        assert_eq!((passed, counts.refused()), (321, 4_000 - 321), "{:?}", counts.limit);
    }
}

#[test]
fn listeners_that_are_compiled_anew_find_their_counts_again() {
    let rates = Rates::default();
    let first = rates.of(&bucket(1, 1));
    assert!(Arc::ptr_eq(&first, &rates.of(&bucket(1, 1))));
    assert!(!Arc::ptr_eq(&first, &rates.of(&bucket(1, 2))));
    drop(first);
    rates.of(&window(1));
    assert_eq!(rates.counts.lock().len(), 1, "what nobody has is forgotten");
}
