//! The load: open loop, so that a slow answer delays no later request, and counted by who answered.

use std::io::{IsTerminal, Write};
use std::sync::Arc;
use std::time::{Duration, Instant};

use hyper::HeaderMap;
use hyper::header::HeaderValue;
use parking_lot::Mutex;
use tokio::task::JoinHandle;
use tokio::time::MissedTickBehavior;

use crate::shop::{Pool, Reply};

/// Requests per second in all.
pub(super) const RATE: u32 = 80;

/// One request.
#[derive(Debug, Clone)]
pub(super) struct Sample {
    /// When it was due.
    pub(super) due: Instant,
    /// It carried `end-user: jason`.
    pub(super) jason: bool,
    /// 0 when there was no answer.
    pub(super) status: u16,
    /// From when it was due to the end of the answer.
    pub(super) latency: Duration,
    /// Who answered.
    pub(super) reply: Reply,
}

/// A running load.
pub(super) struct Load {
    samples: Arc<Mutex<Vec<Sample>>>,
    ticker: JoinHandle<()>,
}

impl Drop for Load {
    fn drop(&mut self) {
        self.ticker.abort();
    }
}

impl Load {
    /// Starts sending to an address; every second request is jason's.
    pub(super) fn start(address: &str) -> Self {
        let samples: Arc<Mutex<Vec<Sample>>> = Arc::default();
        let pool = Pool::new(address, "web.shop");
        let into = samples.clone();
        let ticker = tokio::spawn(async move {
            let mut ticks = tokio::time::interval(Duration::from_secs(1) / RATE);
            ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
            for number in 0u64.. {
                let due = ticks.tick().await.into_std();
                let (pool, into) = (pool.clone(), into.clone());
                tokio::spawn(async move {
                    let sample = one(&pool, number, due).await;
                    into.lock().push(sample);
                });
            }
        });
        Self { samples, ticker }
    }

    /// What was due within a window that begins now; `what` says why somebody waits.
    pub(super) async fn window(&self, length: Duration, what: &str) -> Vec<Sample> {
        let begin = Instant::now();
        // Answers of the window's last requests come after its end.
        wait(length + Duration::from_secs(1), what).await;
        let mut samples = self.samples.lock();
        let all = std::mem::take(&mut *samples);
        all.into_iter().filter(|s| s.due >= begin && s.due < begin + length).collect()
    }
}

/// Waits, and says so: on a terminal in one line that counts down and goes, elsewhere in one that stays.
async fn wait(length: Duration, what: &str) {
    let mut out = std::io::stderr();
    if !out.is_terminal() {
        eprintln!("  … {what}, {} s", length.as_secs());
        return tokio::time::sleep(length).await;
    }
    let end = Instant::now() + length;
    while let Some(left) = end.checked_duration_since(Instant::now()).filter(|left| !left.is_zero()) {
        // Nobody reads what a closed terminal does not take.
        let _ = write!(out, "\r\x1b[K  … {what}, {} s", left.as_secs() + 1).and_then(|()| out.flush());
        tokio::time::sleep(left.min(Duration::from_secs(1))).await;
    }
    let _ = write!(out, "\r\x1b[K").and_then(|()| out.flush());
}

async fn one(pool: &Pool, number: u64, due: Instant) -> Sample {
    let jason = number.is_multiple_of(2);
    let mut headers = HeaderMap::new();
    if jason {
        headers.insert("end-user", HeaderValue::from_static("jason"));
    }
    let path = format!("/product/{}", number % 50);
    let asked = tokio::time::timeout(Duration::from_secs(10), pool.get(&path, headers)).await;
    let (status, reply) = match asked {
        Ok(Ok((status, body))) => (status.as_u16(), serde_json::from_slice(&body).unwrap_or_default()),
        _ => (0, Reply::default()),
    };
    Sample { due, jason, status, latency: due.elapsed(), reply }
}

/// The share of samples for which something holds.
pub(super) fn share(samples: &[Sample], holds: impl Fn(&Sample) -> bool) -> f64 {
    samples.iter().filter(|s| holds(s)).count() as f64 / samples.len().max(1) as f64
}

/// The share of a version among those that its service answered.
pub(super) fn version_share(samples: &[Sample], service: &str, version: &str) -> (f64, usize) {
    let answered: Vec<&Sample> = samples.iter().filter(|s| s.reply.versions.contains_key(service)).collect();
    let of = answered.iter().filter(|s| s.reply.versions[service] == version).count();
    (of as f64 / answered.len().max(1) as f64, answered.len())
}

/// The share of answers with status 200.
pub(super) fn success(samples: &[Sample]) -> f64 {
    share(samples, |s| s.status == 200)
}

/// A quantile of the latency.
pub(super) fn latency(samples: &[Sample], quantile: f64) -> Duration {
    let mut all: Vec<Duration> = samples.iter().map(|s| s.latency).collect();
    all.sort_unstable();
    let index = ((all.len() as f64 - 1.0) * quantile).round().max(0.0) as usize;
    all.get(index).copied().unwrap_or_default()
}
