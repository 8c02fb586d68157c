//! One timer per connection or stream, for whatever deadline is next.
//!
//! Arming a timer for every request would cost more than reading its head. So the timer is left as it is while it fires
//! early enough, and looks again when it fires; it never sleeps longer than `ARM`, so that a shorter deadline seldom
//! needs it moved.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use tokio::task::coop::has_budget_remaining;
use tokio::time::{Instant, Sleep, sleep_until};

/// The longest sleep without a look at the clock.
const ARM: Duration = Duration::from_secs(300);

/// A lazy timer.
#[derive(Default)]
pub struct Timer {
    sleep: Option<Pin<Box<Sleep>>>,
    /// Whom the sleep wakes, once it was polled.
    waker: Option<Waker>,
}

impl Timer {
    /// Ready once `deadline` has passed; never without one.
    pub fn poll(&mut self, cx: &mut Context<'_>, deadline: Option<Instant>) -> Poll<()> {
        let Some(deadline) = deadline else { return Poll::Pending };
        let sleep = match &mut self.sleep {
            Some(sleep) => {
                if sleep.deadline() > deadline {
                    sleep.as_mut().reset(deadline);
                }
                sleep
            }
            None => self.sleep.insert(Box::pin(sleep_until(deadline.min(Instant::now() + ARM)))),
        };
        // It keeps its waker until it fires.
        let registered = self.waker.as_ref().is_some_and(|waker| waker.will_wake(cx.waker()));
        if registered && !sleep.is_elapsed() {
            return Poll::Pending;
        }
        loop {
            // Without budget a sleep is pending without having registered anybody.
            self.waker = has_budget_remaining().then(|| cx.waker().clone());
            if sleep.as_mut().poll(cx).is_pending() {
                return Poll::Pending;
            }
            let now = Instant::now();
            if now >= deadline {
                return Poll::Ready(());
            }
            sleep.as_mut().reset(deadline.min(now + ARM));
        }
    }
}

/// When a duration is over that begins `now`; `None` for a duration of zero, which means off.
pub fn after(now: Instant, duration: Duration) -> Option<Instant> {
    (!duration.is_zero()).then(|| now + duration)
}

/// What a route or an attempt may take, from the end of the request on. Before that, time passes only while nothing takes what the client
/// sends: no connection is there yet, or its application does not read.
#[derive(Debug, Clone, Copy, Default)]
pub struct Clock {
    /// Until the request has gone up.
    limit: Option<Duration>,
    deadline: Option<Instant>,
    /// Bytes that had gone up when nothing took more.
    moved: u64,
}

impl Clock {
    /// `whole`: the request has come.
    pub fn new(limit: Option<Duration>, whole: bool, now: Instant) -> Self {
        Self { limit: limit.filter(|_| !whole), deadline: after(now, limit.unwrap_or_default()), moved: 0 }
    }

    /// When time is up, as far as can be said.
    pub fn deadline(&self) -> Option<Instant> {
        self.deadline
    }

    /// What is left, or will be.
    pub fn left(&self, now: Instant) -> Option<Duration> {
        self.deadline.map(|deadline| deadline.saturating_duration_since(now)).or(self.limit)
    }

    /// The request goes up: all of it has, or so much and nothing takes more.
    #[inline]
    pub fn follow(&mut self, over: bool, stuck: bool, bytes: u64) {
        let Some(limit) = self.limit else { return };
        match (over, stuck) {
            (true, _) => (self.limit, self.deadline) = (None, self.deadline.or(after(Instant::now(), limit))),
            (false, true) if self.deadline.is_none() || self.moved != bytes => {
                (self.moved, self.deadline) = (bytes, after(Instant::now(), limit));
            }
            (false, true) => {}
            (false, false) => self.deadline = None,
        }
    }

    /// Nobody is there to take it.
    pub fn wait(&mut self) {
        self.follow(false, true, self.moved);
    }
}

/// The earlier of two deadlines.
pub fn earlier(a: Option<Instant>, b: Option<Instant>) -> Option<Instant> {
    match (a, b) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (a, b) => a.or(b),
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn timer_follows_deadlines_in_both_directions() {
        let mut timer = Timer::default();
        let start = Instant::now();
        let far = Some(start + Duration::from_secs(900));
        let near = Some(start + Duration::from_secs(2));
        assert!(poll_fn(|cx| Poll::Ready(timer.poll(cx, far))).await.is_pending());
        poll_fn(|cx| timer.poll(cx, near)).await;
        assert_eq!(start.elapsed().as_secs(), 2);
        poll_fn(|cx| timer.poll(cx, far)).await;
        assert_eq!(start.elapsed().as_secs(), 900);
        assert!(poll_fn(|cx| Poll::Ready(timer.poll(cx, None))).await.is_pending());
    }
}
