//! Load: closed loop for the peak, open loop for latency. Reads the sidecars' CPU itself, at the very ends of the window.
//!
//! Open loop: Poisson arrivals, fixed in advance, which do not wait for answers; latency runs from the scheduled
//! arrival, so what queues behind a slow sidecar counts (no coordinated omission).

mod client;
mod open;

use std::cell::{Cell, RefCell};
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::Result;
use serde::{Deserialize, Serialize};

use crate::{Kind, process};
use client::Client;

/// What to send, where, for how long.
#[derive(clap::Args, Clone, Debug)]
pub struct Plan {
    /// Kind of traffic.
    #[arg(long)]
    pub kind: Kind,
    /// Where.
    #[arg(long)]
    pub target: SocketAddr,
    /// Connections.
    #[arg(long, default_value_t = 32)]
    pub connections: usize,
    /// Requests at once on each HTTP/2 connection.
    #[arg(long, default_value_t = 1)]
    pub streams: usize,
    /// Body size, bytes.
    #[arg(long, default_value_t = 1024)]
    pub size: usize,
    /// Seconds before the window.
    #[arg(long, default_value_t = 0.3)]
    pub warmup: f64,
    /// Seconds of the window.
    #[arg(long, default_value_t = 2.0)]
    pub seconds: f64,
    /// Arrivals per second; absent: as many as there are answers.
    #[arg(long)]
    pub rate: Option<f64>,
    /// Seed of the arrivals.
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// Requests in all instead of a time: closed loop, one after the other on each connection.
    #[arg(long)]
    pub requests: Option<u64>,
    /// Processes whose CPU is read.
    #[arg(long, value_delimiter = ',')]
    pub pids: Vec<u32>,
    /// Keep the connections open and print, then wait for the end of standard input.
    #[arg(long)]
    pub hold: bool,
}

/// What came of it.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Outcome {
    /// Answers (or MiB, one way).
    pub completed: u64,
    /// Anything but the answer that was asked for.
    pub failed: u64,
    /// Length of the window.
    pub seconds: f64,
    /// CPU of the sidecars in it.
    pub cpu_seconds: f64,
    /// Latency, microseconds.
    pub p50: f64,
    /// Latency, microseconds.
    pub p99: f64,
    /// An example of what failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// What the connections share.
#[derive(Default)]
struct Tally {
    stop: Cell<bool>,
    left: Cell<u64>,
    completed: Cell<u64>,
    failed: Cell<u64>,
    error: RefCell<Option<String>>,
    nanos: RefCell<Vec<u64>>,
}

impl Tally {
    fn record(&self, since: Instant, result: Result<u64>) {
        match result {
            Ok(count) => {
                self.completed.set(self.completed.get() + count);
                let nanos = u64::try_from(since.elapsed().as_nanos()).unwrap_or(u64::MAX);
                self.nanos.borrow_mut().push(nanos);
            }
            Err(error) => {
                self.failed.set(self.failed.get() + 1);
                *self.error.borrow_mut() = Some(format!("{error:#}"));
            }
        }
    }

    fn reset(&self) {
        self.completed.set(0);
        self.failed.set(0);
        self.nanos.borrow_mut().clear();
    }

    /// One of a fixed number of requests, if any is left.
    fn take(&self) -> bool {
        let left = self.left.get();
        self.left.set(left.saturating_sub(1));
        left > 0
    }

    fn outcome(&self, seconds: f64, cpu_seconds: f64) -> Outcome {
        let mut nanos = self.nanos.borrow_mut();
        nanos.sort_unstable();
        let at = |share: f64| {
            let index = (nanos.len().saturating_sub(1) as f64 * share) as usize;
            nanos.get(index).map_or(0.0, |nanos| *nanos as f64 / 1e3)
        };
        Outcome {
            completed: self.completed.get(),
            failed: self.failed.get(),
            seconds,
            cpu_seconds,
            p50: at(0.5),
            p99: at(0.99),
            error: self.error.borrow().clone(),
        }
    }
}

/// Runs the plan, prints its outcome as JSON.
pub async fn run(plan: Plan) -> Result<()> {
    let tally = Rc::new(Tally::default());
    tally.left.set(plan.requests.unwrap_or(u64::MAX));
    let mut clients = Vec::new();
    for _ in 0..plan.connections {
        clients.extend(Client::connect(&plan).await?);
    }
    if plan.hold {
        return hold(clients).await;
    }
    let outcome = match plan.rate {
        Some(rate) => open::run(&plan, rate, clients, &tally).await?,
        None => closed(&plan, clients, &tally).await?,
    };
    println!("{}", serde_json::to_string(&outcome)?);
    Ok(())
}

async fn closed(plan: &Plan, clients: Vec<Client>, tally: &Rc<Tally>) -> Result<Outcome> {
    let mut tasks = tokio::task::JoinSet::new();
    for mut client in clients {
        let tally = Rc::clone(tally);
        tasks.spawn_local(async move {
            while !tally.stop.get() && tally.take() {
                let since = Instant::now();
                let result = client.ask().await;
                if result.is_err() && client.again().await.is_err() {
                    tally.record(since, result);
                    return; // nobody listens any more: the count says it
                }
                tally.record(since, result);
            }
        });
    }
    if plan.requests.is_none() {
        tokio::time::sleep(Duration::from_secs_f64(plan.warmup)).await;
        tally.reset();
    }
    let (before, since) = (process::cpu_seconds(&plan.pids)?, Instant::now());
    if plan.requests.is_some() {
        while tasks.join_next().await.is_some() {}
    } else {
        tokio::time::sleep(Duration::from_secs_f64(plan.seconds)).await;
    }
    let (seconds, cpu) = (since.elapsed().as_secs_f64(), process::cpu_seconds(&plan.pids)? - before);
    tally.stop.set(true);
    Ok(tally.outcome(seconds, cpu))
}

/// Makes one request on each connection and keeps them.
async fn hold(mut clients: Vec<Client>) -> Result<()> {
    let mut failed = 0;
    for client in &mut clients {
        failed += u64::from(client.ask().await.is_err());
    }
    println!(
        "{}",
        serde_json::to_string(&Outcome { completed: clients.len() as u64, failed, ..Outcome::default() })?
    );
    // Blocks the thread: nothing else is to be done until the end of standard input.
    std::io::Read::read_to_end(&mut std::io::stdin(), &mut Vec::new())?;
    Ok(())
}
