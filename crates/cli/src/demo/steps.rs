//! What the tour pushes, and how each effect is judged.

use std::collections::BTreeMap;
use std::time::Duration;

use super::bounds::interval;
use super::load::{Sample, latency, share, success, version_share};

/// Service, version (all if absent) and setting of a switch.
pub(super) type Switch = (&'static str, Option<&'static str>, &'static str);

/// One step.
pub(super) struct Step {
    /// For `--steps`.
    pub(super) name: &'static str,
    pub(super) title: &'static str,
    /// Switches thrown in the applications before the first measurement.
    pub(super) scene: &'static [Switch],
    pub(super) yaml: &'static str,
    /// Left out of the measurement after the rule is in force, and after the trouble.
    pub(super) settle: Duration,
    /// Switches thrown with the rule in force, before a third measurement.
    pub(super) trouble: &'static [Switch],
    /// A service whose applications say how many requests they were sent.
    pub(super) counted: Option<&'static str>,
    /// What was seen, or what was missed.
    pub(super) judge: fn(&Seen) -> anyhow::Result<String>,
}

/// What was seen of a step.
#[derive(Debug, Default)]
pub(super) struct Seen {
    /// Without the rule.
    pub(super) before: Vec<Sample>,
    /// With the rule in force.
    pub(super) after: Vec<Sample>,
    /// With the rule in force and the trouble that the step makes.
    pub(super) trouble: Vec<Sample>,
    /// How many requests each version of the service that is counted was sent while `after` was measured.
    pub(super) asked: BTreeMap<&'static str, u64>,
}

/// What most steps do not have.
const PLAIN: Step = Step {
    name: "",
    title: "",
    scene: &[],
    yaml: "",
    settle: Duration::ZERO,
    trouble: &[],
    counted: None,
    judge: |_| anyhow::bail!("a step without a judge"),
};

/// The tour.
pub(super) const STEPS: [Step; 12] = [
    Step {
        name: "canary",
        title: "canary: one request in ten to catalog v2",
        yaml: include_str!("../../../../config/demo/canary.yaml"),
        judge: canary,
        ..PLAIN
    },
    Step {
        name: "header-route",
        title: "header route: jason gets reviews v3, everybody else v1",
        yaml: include_str!("../../../../config/demo/header-route.yaml"),
        judge: header_route,
        ..PLAIN
    },
    Step {
        name: "mirror",
        title: "mirroring: reviews v3 gets copies of all requests, fails, and nobody notices",
        scene: &[("reviews", Some("v3"), "fail=100")],
        yaml: include_str!("../../../../config/demo/mirror.yaml"),
        counted: Some("reviews"),
        judge: mirror,
        ..PLAIN
    },
    Step {
        name: "fault",
        title: "fault injection: 400 ms for 30 %, 500 for 20 % of requests to reviews",
        yaml: include_str!("../../../../config/demo/fault.yaml"),
        judge: fault,
        ..PLAIN
    },
    Step {
        name: "timeout",
        title: "timeout: reviews takes 900 ms, web waits no longer than 300 ms",
        scene: &[("reviews", None, "delay=900")],
        yaml: include_str!("../../../../config/demo/timeout.yaml"),
        judge: timeout,
        ..PLAIN
    },
    Step {
        name: "hedge",
        title: "hedging: reviews v2 takes 500 ms, who has waited for 60 ms asks another",
        scene: &[("reviews", Some("v2"), "delay=500")],
        yaml: include_str!("../../../../config/demo/hedge.yaml"),
        settle: Duration::from_secs(1),
        judge: hedge,
        ..PLAIN
    },
    Step {
        name: "retries",
        title: "retries: reviews fails 30 % of requests",
        scene: &[("reviews", None, "fail=30")],
        yaml: include_str!("../../../../config/demo/retries.yaml"),
        judge: retries,
        ..PLAIN
    },
    Step {
        name: "breaker",
        title: "circuit breaker: reviews v2 fails every request and is ejected",
        scene: &[("reviews", Some("v2"), "fail=100")],
        yaml: include_str!("../../../../config/demo/breaker.yaml"),
        settle: Duration::from_secs(2),
        judge: breaker,
        ..PLAIN
    },
    Step {
        name: "trip",
        title: "circuit breaker: all of reviews fails, slowly, and is called no more but for probes",
        scene: &[("reviews", None, "fail=100&delay=300")],
        yaml: include_str!("../../../../config/demo/trip.yaml"),
        settle: Duration::from_secs(1),
        judge: trip,
        ..PLAIN
    },
    Step {
        name: "locality",
        title: "locality: web asks reviews v1 in its own zone, and the others only when v1 fails",
        yaml: include_str!("../../../../config/demo/locality.yaml"),
        settle: Duration::from_secs(2),
        trouble: &[("reviews", Some("v1"), "fail=100")],
        judge: locality,
        ..PLAIN
    },
    Step {
        name: "rate-limit",
        title: "rate limit: web takes 40 requests a second of each caller, and is sent 80",
        yaml: include_str!("../../../../config/demo/rate-limit.yaml"),
        settle: Duration::from_secs(1),
        judge: rate_limit,
        ..PLAIN
    },
    Step {
        name: "deny",
        title: "authorization: web may no longer read items from catalog",
        yaml: include_str!("../../../../config/demo/deny.yaml"),
        judge: deny,
        ..PLAIN
    },
];

fn percent(share: f64) -> f64 {
    share * 100.0
}

/// The measured share is one that the true share yields, but for one run in a million.
fn expect_share(what: &str, seen: f64, truth: f64, n: usize) -> anyhow::Result<()> {
    let (low, high) = interval(truth, n);
    anyhow::ensure!(
        low <= seen && seen <= high,
        "{what}: {:.1} % of {n}, expected {:.1} % to {:.1} %",
        percent(seen),
        percent(low),
        percent(high)
    );
    Ok(())
}

fn canary(Seen { before, after, .. }: &Seen) -> anyhow::Result<String> {
    let ((was, _), (is, n)) = (version_share(before, "catalog", "v2"), version_share(after, "catalog", "v2"));
    expect_share("catalog v2", is, 0.1, n)?;
    anyhow::ensure!(was > is, "catalog v2 had {:.1} % before", percent(was));
    Ok(format!("catalog v2: {:.1} % → {:.1} % of {n} requests", percent(was), percent(is)))
}

fn header_route(Seen { before, after, .. }: &Seen) -> anyhow::Result<String> {
    let split = |samples: &[Sample], jason: bool| -> Vec<Sample> {
        samples.iter().filter(|s| s.jason == jason).cloned().collect()
    };
    let (was, _) = version_share(&split(before, true), "reviews", "v3");
    let (jason, n) = version_share(&split(after, true), "reviews", "v3");
    let (others, m) = version_share(&split(after, false), "reviews", "v1");
    anyhow::ensure!(n > 100 && m > 100, "too few answers from reviews: {n} and {m}");
    anyhow::ensure!(jason >= 1.0, "jason got v3 in {:.1} % of {n} requests", percent(jason));
    anyhow::ensure!(others >= 1.0, "others got v1 in {:.1} % of {m} requests", percent(others));
    Ok(format!(
        "jason gets reviews v3: {:.1} % → {:.1} %; others get v1: {:.1} %",
        percent(was),
        percent(jason),
        percent(others)
    ))
}

fn mirror(Seen { before, after, asked, .. }: &Seen) -> anyhow::Result<String> {
    let (was, is) = (success(before), success(after));
    let (v1, n) = version_share(after, "reviews", "v1");
    let [asked, copies] = ["v1", "v3"].map(|version| asked.get(version).copied().unwrap_or_default());
    anyhow::ensure!(
        was <= 0.9,
        "success was {:.1} % before, the failing version was hardly used",
        percent(was)
    );
    anyhow::ensure!(
        is >= 1.0 && v1 >= 1.0,
        "success {:.1} %, {:.1} % of {n} by v1",
        percent(is),
        percent(v1)
    );
    // At either end of the window some are under way.
    anyhow::ensure!(
        asked > 200 && copies.abs_diff(asked) <= asked / 20,
        "reviews v1 was sent {asked} requests and v3 {copies} copies"
    );
    Ok(format!(
        "success {:.1} % → {:.1} %; reviews v1 was sent {asked} requests, v3 {copies} copies",
        percent(was),
        percent(is)
    ))
}

fn fault(Seen { before, after, .. }: &Seen) -> anyhow::Result<String> {
    let slow = |s: &Sample| s.latency >= Duration::from_millis(400);
    let (was_slow, is_slow) = (share(before, slow), share(after, slow));
    let aborted = share(after, |s| s.status == 500);
    let n = after.len();
    expect_share("status 500", aborted, 0.2, n)?;
    let (low, high) = interval(0.3, n);
    // A crowded machine makes some requests slow by itself; those before the rule say how many.
    anyhow::ensure!(
        is_slow >= low && is_slow <= high + was_slow + 0.05,
        "{:.1} % took 400 ms or more (before: {:.1} %), expected about 30 %",
        percent(is_slow),
        percent(was_slow)
    );
    Ok(format!(
        "slow: {:.1} % → {:.1} %; status 500: {:.1} % → {:.1} %",
        percent(was_slow),
        percent(is_slow),
        percent(share(before, |s| s.status == 500)),
        percent(aborted)
    ))
}

fn timeout(Seen { before, after, .. }: &Seen) -> anyhow::Result<String> {
    let (was, is) = (latency(before, 0.5), latency(after, 0.5));
    let timed_out = share(after, |s| s.status == 504);
    anyhow::ensure!(
        was >= Duration::from_millis(900),
        "the median was {was:?} before, it should be 900 ms or more"
    );
    anyhow::ensure!(is <= was - Duration::from_millis(300), "the median is {is:?}, it was {was:?}");
    anyhow::ensure!(timed_out >= 0.99, "{:.1} % were answered 504, expected all", percent(timed_out));
    Ok(format!(
        "median {:.0} ms → {:.0} ms; status 504: {:.1} % → {:.1} %",
        was.as_secs_f64() * 1e3,
        is.as_secs_f64() * 1e3,
        percent(share(before, |s| s.status == 504)),
        percent(timed_out)
    ))
}

fn hedge(Seen { before, after, .. }: &Seen) -> anyhow::Result<String> {
    let slow = |samples: &[Sample]| share(samples, |s| s.latency >= Duration::from_millis(500));
    let (was, is) = (slow(before), slow(after));
    // Balancing by requests under way sends it fewer than its third.
    anyhow::ensure!(was >= 0.05, "{:.1} % waited for reviews v2 before", percent(was));
    anyhow::ensure!(is <= 0.02, "{:.1} % still wait for reviews v2", percent(is));
    Ok(format!(
        "95 % within {:.0} ms → {:.0} ms; waited for reviews v2: {:.1} % → {:.1} %",
        latency(before, 0.95).as_secs_f64() * 1e3,
        latency(after, 0.95).as_secs_f64() * 1e3,
        percent(was),
        percent(is)
    ))
}

fn retries(Seen { before, after, .. }: &Seen) -> anyhow::Result<String> {
    let (was, is) = (success(before), success(after));
    expect_share("success without retries", was, 0.7, before.len())?;
    // Three retries of an independent 30 %: 1 - 0.3^4.
    let (low, _) = interval(1.0 - 0.3f64.powi(4), after.len());
    anyhow::ensure!(is >= low, "success {:.1} %, expected at least {:.1} %", percent(is), percent(low));
    Ok(format!("success {:.1} % → {:.1} %", percent(was), percent(is)))
}

fn breaker(Seen { before, after, .. }: &Seen) -> anyhow::Result<String> {
    let (was, is) = (success(before), success(after));
    let (v2, n) = version_share(after, "reviews", "v2");
    anyhow::ensure!(
        was <= 0.9,
        "success was {:.1} % before, the failing version was hardly used",
        percent(was)
    );
    anyhow::ensure!(is >= 0.99, "success {:.1} % with the failing version ejected", percent(is));
    anyhow::ensure!(v2 <= 0.01, "reviews v2 still answers {:.1} % of {n} requests", percent(v2));
    Ok(format!(
        "success {:.1} % → {:.1} %; reviews v2 answers {:.1} %",
        percent(was),
        percent(is),
        percent(v2)
    ))
}

fn trip(Seen { before, after, .. }: &Seen) -> anyhow::Result<String> {
    let (was, is) = (latency(before, 0.5), latency(after, 0.5));
    // Who waits for it that long has called it; a crowded machine makes some of the others slow.
    let called = |samples: &[Sample]| share(samples, |s| s.latency >= Duration::from_millis(300));
    let (called_before, called_after) = (called(before), called(after));
    anyhow::ensure!(success(before) <= 0.0, "{:.1} % succeeded before", percent(success(before)));
    anyhow::ensure!(called_before >= 1.0, "{:.1} % called reviews before", percent(called_before));
    anyhow::ensure!(is <= Duration::from_millis(150), "the median is {is:?}, it was {was:?}");
    anyhow::ensure!(called_after <= 0.2, "reviews is still called by {:.1} %", percent(called_after));
    Ok(format!(
        "median {:.0} ms → {:.0} ms; reviews is called by {:.1} % → {:.1} %",
        was.as_secs_f64() * 1e3,
        is.as_secs_f64() * 1e3,
        percent(called_before),
        percent(called_after)
    ))
}

fn locality(Seen { before, after, trouble, .. }: &Seen) -> anyhow::Result<String> {
    let near = |samples: &[Sample]| version_share(samples, "reviews", "v1");
    let ((was, n), (is, _), (failing, _)) = (near(before), near(after), near(trouble));
    anyhow::ensure!(was <= 0.7, "v1 already had {:.1} % of {n} before", percent(was));
    anyhow::ensure!(is >= 1.0, "{:.1} % were answered in the zone, expected all", percent(is));
    anyhow::ensure!(
        success(trouble) >= 0.99 && failing <= 0.01,
        "v1 fails: success {:.1} %, and it still has {:.1} %",
        percent(success(trouble)),
        percent(failing)
    );
    Ok(format!(
        "answered in the zone of web: {:.1} % → {:.1} %; while v1 fails {:.1} %, success {:.1} %",
        percent(was),
        percent(is),
        percent(failing),
        percent(success(trouble))
    ))
}

fn rate_limit(Seen { before, after, .. }: &Seen) -> anyhow::Result<String> {
    let limited = |samples: &[Sample]| share(samples, |s| s.status == 429);
    let (was, is) = (limited(before), limited(after));
    anyhow::ensure!(was <= 0.0, "{:.1} % were limited before", percent(was));
    // Half of what comes, give or take a bucket at either end of the window.
    anyhow::ensure!((0.38..=0.55).contains(&is), "{:.1} % were limited, expected half", percent(is));
    Ok(format!("status 429: {:.1} % → {:.1} %", percent(was), percent(is)))
}

fn deny(Seen { before, after, .. }: &Seen) -> anyhow::Result<String> {
    let denied = |samples: &[Sample]| share(samples, |s| s.reply.failed.get("catalog") == Some(&403));
    let (was, is) = (denied(before), denied(after));
    anyhow::ensure!(was <= 0.0, "{:.1} % were denied before", percent(was));
    anyhow::ensure!(is >= 1.0, "{:.1} % were denied, expected all", percent(is));
    Ok(format!("denied with 403 by catalog's sidecar: {:.1} % → {:.1} %", percent(was), percent(is)))
}
