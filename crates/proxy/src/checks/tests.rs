use std::sync::atomic::{AtomicBool, Ordering::SeqCst};

use super::*;

const SECOND: Duration = Duration::from_secs(1);

fn seconds(n: u64) -> Duration {
    SECOND * n as u32
}

/// A check without a kind, whose answers the test gives.
fn timing(interval: u64, healthy: u32, unhealthy: u32, delay: u64) -> Check {
    Check {
        interval: Some(seconds(interval)),
        timeout: Some(seconds(2)),
        healthy: Some(healthy),
        unhealthy: Some(unhealthy),
        initial_delay: Some(seconds(delay)),
        ..Check::default()
    }
}

fn entry(checks: &Checks, name: &str, check: &Check, beat: Option<Arc<Notify>>) {
    let status =
        Status { verdict: Verdict::Unknown, since: SystemTime::now(), reason: None, runs: 0, failures: 0 };
    let threshold = Threshold::new(check.healthy.unwrap_or(1), check.unhealthy.unwrap_or(1));
    checks.entries.lock().insert(name.to_owned(), Entry { status, threshold, beat });
    checks.settle();
}

/// The time until all checks come to this.
async fn until(checks: &Checks, health: Health) -> Duration {
    let began = Instant::now();
    checks.health().wait_for(|now| *now == health).await.unwrap();
    began.elapsed()
}

#[tokio::test(start_paused = true)]
async fn an_application_leaves_and_comes_back_after_its_thresholds() {
    // Interval, healthy, unhealthy, delay; seconds to the first verdict, out, back.
    for ((interval, healthy, unhealthy, delay), times) in [
        ((10, 1, 3, 0), (0, 30, 10)),
        ((10, 2, 1, 5), (15, 10, 20)),
        ((1, 1, 1, 0), (0, 1, 1)),
        ((5, 3, 2, 60), (70, 10, 15)),
    ] {
        let (checks, well) = (Checks::start(&BTreeMap::new()), Arc::new(AtomicBool::new(true)));
        let check = timing(interval, healthy, unhealthy, delay);
        entry(&checks, "web", &check, None);
        assert_eq!(*checks.health().borrow(), Health::Starting);
        let asked = well.clone();
        let answer = move || {
            let well = asked.load(SeqCst);
            async move { if well { Ok(()) } else { Err("no".to_owned()) } }
        };
        let task = tokio::spawn(checks.clone().follow("web".into(), check, answer));
        let first = until(&checks, Health::Running).await;
        well.store(false, SeqCst);
        let out = until(&checks, Health::Unhealthy).await;
        well.store(true, SeqCst);
        let back = until(&checks, Health::Running).await;
        assert_eq!((first, out, back), (seconds(times.0), seconds(times.1), seconds(times.2)));
        task.abort();
    }
}

#[tokio::test(start_paused = true)]
async fn one_that_does_not_answer_fails_at_its_timeout_and_says_so() {
    let checks = Checks::start(&BTreeMap::new());
    let check = timing(1, 1, 2, 0);
    entry(&checks, "web", &check, None);
    tokio::spawn(checks.clone().follow("web".into(), check, std::future::pending));
    assert_eq!(until(&checks, Health::Unhealthy).await, seconds(4), "two of 2 s, one after the other");
    let status = checks.statuses()["web"].clone();
    assert_eq!(status.reason.as_deref(), Some("no answer within 2s"));
    assert_eq!((status.runs, status.failures, status.verdict), (2, 2, Verdict::Failing));
}

#[tokio::test(start_paused = true)]
async fn silence_of_an_application_that_must_speak_takes_it_out_and_a_word_brings_it_back() {
    let beat = Check { ttl: Some(seconds(30)), ..Check::default() };
    let checks = Checks::start(&[("beat".to_owned(), beat)].into());
    assert_eq!(*checks.health().borrow(), Health::Starting);
    checks.says("beat", Ok(())).unwrap();
    assert_eq!(until(&checks, Health::Running).await, Duration::ZERO);
    for _ in 0..10 {
        sleep(seconds(20)).await;
        checks.says("beat", Ok(())).unwrap();
        assert_eq!(*checks.health().borrow(), Health::Running);
    }
    assert_eq!(until(&checks, Health::Unhealthy).await, seconds(30));
    assert!(checks.statuses()["beat"].reason.as_deref().is_some_and(|why| why.contains("nothing for 30s")));
    checks.says("beat", Ok(())).unwrap();
    assert_eq!(*checks.health().borrow(), Health::Running);
    checks.says("beat", Err("the queue is full".into())).unwrap();
    assert_eq!(*checks.health().borrow(), Health::Unhealthy, "its word holds at once");
    assert!(checks.says("other", Ok(())).unwrap_err().contains("no check \"other\""));
}

#[tokio::test(start_paused = true)]
async fn the_worst_check_decides() {
    let checks = Checks::start(&BTreeMap::new());
    assert_eq!(*checks.health().borrow(), Health::Running, "without any it is well");
    let check = timing(1, 1, 1, 0);
    entry(&checks, "a", &check, None);
    entry(&checks, "b", &check, None);
    let health = || *checks.health().borrow();
    checks.note("a", Ok(()));
    assert_eq!(health(), Health::Starting);
    checks.note("b", Err("no".into()));
    assert_eq!(health(), Health::Unhealthy);
    checks.note("b", Ok(()));
    assert_eq!(health(), Health::Running);
    checks.note("a", Err("é".repeat(1000)));
    assert_eq!(checks.statuses()["a"].reason.as_ref().map(String::len), Some(REASON));
    assert!(checks.says("a", Ok(())).unwrap_err().contains("asks by itself"));
}

#[tokio::test(start_paused = true)]
async fn a_check_that_breaks_fails_with_its_reason() {
    let checks = Checks::start(&BTreeMap::new());
    let check = timing(1, 1, 3, 0);
    entry(&checks, "web", &check, None);
    let runs = std::sync::atomic::AtomicU64::new(0);
    let ask = move || {
        let run = runs.fetch_add(1, SeqCst);
        async move { if run < 2 { Ok(()) } else { panic!("the third run") } }
    };
    checks.mind("web", checks.clone().follow("web".into(), check, ask));
    until(&checks, Health::Running).await;
    assert_eq!(until(&checks, Health::Unhealthy).await, seconds(2), "at once, whatever the threshold");
    let reason = checks.statuses()["web"].reason.clone().unwrap();
    assert!(reason.contains("the check itself is broken") && reason.contains("the third run"), "{reason}");
}
