use super::*;

const WINDOW: Duration = Duration::from_millis(100);
const INTERVAL: Duration = Duration::from_secs(60);

fn millis(n: u64) -> Duration {
    Duration::from_millis(n)
}

/// Measures by ten requests, without jitter; of a window the median counts.
fn rules() -> AdaptiveConcurrency {
    AdaptiveConcurrency {
        min_rtt: MinRtt::Measured { interval: INTERVAL, requests: 10, jitter: 0.0 },
        update_interval: WINDOW,
        ..AdaptiveConcurrency::default()
    }
}

/// A controller, and the time of the test after its epoch.
struct Bench {
    controller: Arc<Controller>,
    now: Duration,
}

impl Bench {
    fn new(rules: AdaptiveConcurrency) -> Self {
        let controller = Controllers::default().of(&rules, "here");
        Self { controller, now: Duration::ZERO }
    }

    fn admit(&self) -> Result<Permit, u32> {
        self.controller.admit(self.controller.epoch + self.now)
    }

    /// One request after the other, each of which takes so long.
    fn ask(&mut self, count: u32, took: Duration) {
        for _ in 0..count {
            let permit = self.admit().unwrap();
            self.now += took;
            permit.answered(self.controller.epoch + self.now);
        }
    }

    /// A window in which answers take so long, and then the next one's beginning: what the limit is then.
    fn window(&mut self, took: Duration) -> u32 {
        let held: Vec<_> = (0..3).map_while(|_| self.admit().ok()).collect();
        self.now += took;
        held.into_iter().for_each(|permit| permit.answered(self.controller.epoch + self.now));
        // Those that took longer than a window are of the next.
        self.now += WINDOW;
        drop(self.admit());
        self.limit()
    }

    fn limit(&self) -> u32 {
        self.controller.look().limit
    }
}

/// `before` and `after` of the formula, written out.
fn next(before: u32, gradient: f64) -> u32 {
    let scaled = f64::from(before) * gradient;
    (scaled + scaled.sqrt()) as u32
}

#[test]
fn it_begins_at_the_lowest_and_measures_until_there_were_enough_requests() {
    let mut bench = Bench::new(rules());
    let held: Vec<_> = (0..3).map(|_| bench.admit().unwrap()).collect();
    assert_eq!(bench.admit().map(drop), Err(3), "min_concurrency");
    let look = bench.controller.look();
    assert_eq!((look.requests, look.refused, look.measuring), (3, 1, true));
    drop(held);
    bench.ask(9, millis(10));
    assert!(bench.controller.look().measuring, "who was given up was no sample");
    bench.ask(1, millis(10));
    let look = bench.controller.look();
    assert!(!look.measuring && (look.min_rtt_millis - 10.0).abs() < 0.2, "{look:?}");
    assert_eq!((look.limit, look.requests), (3, 0));
}

#[test]
fn the_limit_grows_while_latency_is_flat_and_falls_when_it_rises() {
    let mut bench = Bench::new(rules());
    bench.ask(10, millis(10));
    let mut wanted = 3;
    for _ in 0..8 {
        // As fast as ever, and a quarter is allowed for: 1.25.
        wanted = next(wanted, 1.25);
        assert_eq!(bench.window(millis(10)), wanted);
    }
    assert!(wanted > 60, "{wanted}");
    // Twice as slow: 12.5 ms of 20.
    wanted = next(wanted, 0.625);
    assert_eq!(bench.window(millis(20)), wanted);
    // However slow it is, a window halves it at most, and however fast, it doubles it at most.
    wanted = next(wanted, 0.5);
    assert_eq!(bench.window(millis(900)), wanted);
    wanted = next(wanted, 2.0);
    assert_eq!(bench.window(millis(1)), wanted);
    for _ in 0..60 {
        bench.window(millis(10));
    }
    assert_eq!(bench.limit(), 1000, "never more than max_limit");
    assert!((0..12).any(|_| bench.window(millis(200)) < 10), "{}", bench.limit());
}

#[test]
fn a_window_without_requests_says_nothing() {
    let mut bench = Bench::new(rules());
    bench.ask(10, millis(10));
    let limit = bench.window(millis(10));
    for _ in 0..9 {
        bench.now += WINDOW;
        // Who is given up is no sample.
        drop(bench.admit());
        assert_eq!(bench.limit(), limit);
    }
}

#[test]
fn the_percentile_is_that_of_the_rule() {
    for (percentile, slow) in [(50.0, false), (100.0, true)] {
        let mut bench = Bench::new(AdaptiveConcurrency { percentile, ..rules() });
        bench.ask(10, millis(10));
        bench.ask(2, millis(1));
        bench.ask(1, millis(90));
        bench.now += WINDOW;
        drop(bench.admit());
        assert_eq!(bench.limit() < 6, slow, "p{percentile}: {}", bench.limit());
    }
}

#[test]
fn the_min_rtt_is_measured_anew_at_min_concurrency_and_the_limit_is_then_what_it_was() {
    let mut bench = Bench::new(rules());
    bench.ask(10, millis(10));
    let measured = bench.now;
    for _ in 0..5 {
        bench.window(millis(10));
    }
    let limit = bench.limit();
    let early = bench.admit().unwrap();
    bench.now = measured + INTERVAL - millis(1);
    drop(bench.admit());
    assert!(!bench.controller.look().measuring);
    bench.now = measured + INTERVAL;
    let late: Vec<_> = (0..2).map(|_| bench.admit().unwrap()).collect();
    assert!(bench.controller.look().measuring);
    assert_eq!((bench.limit(), bench.admit().map(drop)), (3, Err(3)), "with the one that came before");
    early.answered(bench.controller.epoch + bench.now);
    drop(late);
    bench.ask(9, millis(30));
    assert!(bench.controller.look().measuring, "what came before the measurement is none of it");
    bench.ask(1, millis(30));
    let look = bench.controller.look();
    assert!((look.min_rtt_millis - 30.0).abs() < 0.5 && !look.measuring, "{look:?}");
    assert_eq!(look.limit, limit);
}

#[test]
fn a_lowest_limit_of_its_own_is_none_of_measurements() {
    let mut bench = Bench::new(AdaptiveConcurrency { min_limit: Some(20), ..rules() });
    assert_eq!(bench.limit(), 3, "it begins with one");
    bench.ask(10, millis(10));
    assert_eq!(bench.limit(), 20);
    let limit = bench.window(millis(10));
    bench.now += INTERVAL;
    drop(bench.admit());
    assert!(bench.controller.look().measuring);
    assert_eq!(bench.limit(), 3);
    bench.ask(10, millis(10));
    assert!(bench.limit() >= limit);
    for _ in 0..3 {
        bench.window(millis(500));
    }
    assert_eq!(bench.limit(), 20);
}

#[test]
fn five_windows_at_the_lowest_limit_call_the_min_rtt_into_doubt() {
    let mut bench = Bench::new(AdaptiveConcurrency { min_concurrency: 1, ..rules() });
    bench.ask(10, millis(10));
    let windows = (1..).find(|_| {
        bench.window(millis(50));
        bench.controller.look().measuring
    });
    assert_eq!(windows, Some(5), "of 1 a half and its root are 1 again");
    bench.ask(10, millis(50));
    assert!(bench.window(millis(50)) > 1, "it is no slower than it is");
}

#[test]
fn a_fixed_min_rtt_is_never_measured() {
    let fixed = AdaptiveConcurrency { min_rtt: MinRtt::Fixed(millis(10)), min_concurrency: 1, ..rules() };
    let mut bench = Bench::new(fixed);
    assert_eq!((bench.limit(), bench.controller.look().min_rtt_millis), (1, 10.0));
    for _ in 0..20 {
        assert_eq!(bench.window(millis(50)), 1);
    }
    bench.now += INTERVAL * 2;
    for _ in 0..20 {
        bench.window(millis(10));
    }
    assert!(!bench.controller.look().measuring && bench.limit() > 100);
}

#[test]
fn the_highest_limit_may_be_the_lowest() {
    let one = AdaptiveConcurrency {
        max_limit: 1,
        min_concurrency: 1,
        min_rtt: MinRtt::Fixed(millis(9)),
        ..rules()
    };
    let mut bench = Bench::new(one);
    for _ in 0..9 {
        assert_eq!(bench.window(millis(1)), 1);
        let held = bench.admit().unwrap();
        assert_eq!(bench.admit().map(drop), Err(1));
        drop(held);
    }
}

#[test]
fn a_measurement_comes_later_by_a_part_of_its_interval() {
    assert_eq!(jittered(INTERVAL, 15.0, 0.0), INTERVAL);
    assert_eq!(jittered(INTERVAL, 0.0, 0.99), INTERVAL);
    assert_eq!(jittered(INTERVAL, 15.0, 0.5), Duration::from_millis(64_500));
    let min_rtt = MinRtt::Measured { interval: INTERVAL, requests: 1, jitter: 50.0 };
    for _ in 0..50 {
        let mut bench = Bench::new(AdaptiveConcurrency { min_rtt: min_rtt.clone(), ..rules() });
        bench.ask(1, millis(10));
        let due = Duration::from_nanos(bench.controller.turn.lock().next_measurement) - bench.now;
        assert!((INTERVAL..INTERVAL + INTERVAL / 2).contains(&due), "{due:?}");
    }
}

/// However many threads ask, and whatever the limit does meanwhile.
#[test]
fn no_more_are_under_way_than_the_limit_says_whatever_the_threads() {
    let rules = AdaptiveConcurrency { max_limit: 7, min_limit: Some(7), ..rules() };
    let controller = Controllers::default().of(&rules, "here");
    let (most, admitted) = (AtomicU32::new(0), AtomicU32::new(0));
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..20_000 {
                    let now = Instant::now();
                    let held: Vec<_> = (0..3).filter_map(|_| controller.admit(now).ok()).collect();
                    most.fetch_max(controller.in_flight.load(Relaxed), Relaxed);
                    admitted.fetch_add(held.len() as u32, Relaxed);
                    held.into_iter().for_each(|permit| permit.answered(now));
                }
            });
        }
    });
    assert!(most.into_inner() <= 7);
    let look = controller.look();
    assert_eq!((look.requests, u64::from(admitted.into_inner()) + look.refused), (0, 4 * 20_000 * 3));
}

#[test]
fn a_rule_has_one_controller_wherever_it_holds_and_a_place_its_own() {
    let all = Controllers::default();
    let origin = |name: &str| {
        Some(Origin { kind: "TrafficRules".into(), namespace: "shop".into(), name: name.into() })
    };
    let of_rule = AdaptiveConcurrency { origin: origin("a"), ..rules() };
    let first = all.of(&of_rule, "here");
    assert!(Arc::ptr_eq(&first, &all.of(&of_rule, "there")));
    let other = AdaptiveConcurrency { origin: origin("b"), ..rules() };
    assert!(!Arc::ptr_eq(&first, &all.of(&other, "here")));
    let here = all.of(&rules(), "here");
    assert!(Arc::ptr_eq(&here, &all.of(&rules(), "here")));
    assert!(!Arc::ptr_eq(&here, &all.of(&rules(), "there")));
    // Other settings begin anew, and count who is under way.
    let held: Vec<_> = (0..2).map(|_| first.admit(first.epoch).unwrap()).collect();
    let changed = all.of(&AdaptiveConcurrency { max_limit: 9, ..of_rule.clone() }, "here");
    assert!(changed.admit(changed.epoch).is_ok());
    let third = changed.admit(changed.epoch).unwrap();
    assert_eq!(changed.admit(changed.epoch).map(drop), Err(3));
    drop((held, third));
    assert_eq!(changed.look().requests, 0);
    drop((first, changed));
    assert!(all.of(&of_rule, "here").look().measuring, "nobody has kept it");
}
