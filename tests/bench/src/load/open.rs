//! The open loop: a timer of nanoseconds wakes at each scheduled arrival; an idle client takes it.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::Result;
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create, timerfd_settime,
};
use tokio::io::unix::AsyncFd;
use tokio::sync::Notify;
use tokio::task::spawn_local;

use super::client::Client;
use super::{Outcome, Plan, Tally};
use crate::process;

#[derive(Default)]
struct Backlog {
    arrivals: RefCell<VecDeque<Instant>>,
    news: Notify,
}

/// Runs the schedule.
pub async fn run(plan: &Plan, rate: f64, clients: Vec<Client>, tally: &Rc<Tally>) -> Result<Outcome> {
    let backlog = Rc::new(Backlog::default());
    for client in clients {
        spawn_local(work(client, Rc::clone(&backlog), Rc::clone(tally)));
    }
    #[expect(deprecated, reason = "its demand, that the descriptor stays the same, holds for an OwnedFd")]
    let timer = AsyncFd::new(timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::NONBLOCK)?)?;
    let mut random = fastrand::Rng::with_seed(plan.seed);
    let start = Instant::now();
    let measured = start + Duration::from_secs_f64(plan.warmup);
    let end = measured + Duration::from_secs_f64(plan.seconds);
    let (mut next, mut window) = (start, None);
    while next < end {
        wait_until(&timer, next).await?;
        if window.is_none() && next >= measured {
            tally.reset();
            window = Some((Instant::now(), process::cpu_seconds(&plan.pids)?));
        }
        while next <= Instant::now() {
            backlog.arrivals.borrow_mut().push_back(next);
            backlog.news.notify_one();
            next += Duration::from_secs_f64(-(1.0 - random.f64()).ln() / rate);
        }
    }
    let (since, before) = window.unwrap_or((start, 0.0));
    let (seconds, cpu) = (since.elapsed().as_secs_f64(), process::cpu_seconds(&plan.pids)? - before);
    // What is still queued when the window ends counts with the time it has waited so far.
    for late in backlog.arrivals.borrow_mut().drain(..) {
        tally.record(late, Ok(0));
    }
    Ok(tally.outcome(seconds, cpu))
}

async fn work(mut client: Client, backlog: Rc<Backlog>, tally: Rc<Tally>) {
    loop {
        let arrival = backlog.arrivals.borrow_mut().pop_front();
        let Some(arrival) = arrival else {
            backlog.news.notified().await;
            continue;
        };
        let result = client.ask().await;
        if result.is_err() && client.again().await.is_err() {
            tally.record(arrival, result);
            return;
        }
        tally.record(arrival, result);
    }
}

async fn wait_until(timer: &AsyncFd<OwnedFd>, at: Instant) -> Result<()> {
    let after = at.saturating_duration_since(Instant::now());
    if after.is_zero() {
        tokio::task::yield_now().await;
        return Ok(());
    }
    let value = Timespec { tv_sec: after.as_secs() as i64, tv_nsec: i64::from(after.subsec_nanos()) };
    let never = Timespec { tv_sec: 0, tv_nsec: 0 };
    timerfd_settime(
        timer.get_ref(),
        TimerfdTimerFlags::empty(),
        &Itimerspec { it_interval: never, it_value: value },
    )?;
    let mut ready = timer.readable().await?;
    let mut ticks = [0; 8];
    let _ = rustix::io::read(timer.get_ref(), &mut ticks);
    ready.clear_ready();
    Ok(())
}
