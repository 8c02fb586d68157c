//! The turns that TLS handshakes with one endpoint take: a burst of them does not become quicker by more of them at once, but
//! the key exchanges of those that wait for its CPU would hold 6 KiB each, and leave that in the heap.

use std::pin::pin;
use std::sync::atomic::{AtomicU8, AtomicU32, Ordering::Relaxed};
use std::time::Duration;

use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::{Instant, timeout};

/// Handshakes at once, of all workers.
const TURNS: usize = 8;
/// Who sees no handshake succeed for so long goes on without a turn: it may be that others hang.
const PATIENCE: Duration = Duration::from_secs(1);
/// Nobody waits for longer.
const LONGEST: Duration = Duration::from_secs(10);
/// With a round trip like this, the way takes the time, and not the CPU.
const FAR: Duration = Duration::from_millis(2);
/// So many connections in a row must have such a one.
const SAMPLES: u8 = 3;

/// The turns of one endpoint.
#[derive(Debug)]
pub struct Turns {
    /// Closed when the endpoint turns out to be far away.
    free: Semaphore,
    succeeded: AtomicU32,
    /// Connections whose round trip was long; [`SAMPLES`] when no more is to be learnt.
    far: AtomicU8,
}

/// A turn, for as long as it lives.
#[must_use = "it lasts only while it lives"]
#[derive(Debug)]
pub struct HandshakeTurn<'t> {
    turns: &'t Turns,
    _permit: SemaphorePermit<'t>,
}

impl Default for Turns {
    fn default() -> Self {
        Self { free: Semaphore::new(TURNS), succeeded: AtomicU32::new(0), far: AtomicU8::new(0) }
    }
}

impl Turns {
    /// Waits for a turn, within a limit. Without one a handshake may go on, too.
    pub async fn take(&self, limit: Duration) -> Option<HandshakeTurn<'_>> {
        let mut acquire = pin!(self.free.acquire());
        let until = Instant::now() + limit.min(LONGEST);
        loop {
            let succeeded = self.succeeded.load(Relaxed);
            let patience = until.saturating_duration_since(Instant::now()).min(PATIENCE);
            match timeout(patience, &mut acquire).await {
                Ok(permit) => return Some(HandshakeTurn { turns: self, _permit: permit.ok()? }),
                Err(_) if self.succeeded.load(Relaxed) == succeeded || Instant::now() >= until => {
                    return None;
                }
                Err(_) => {}
            }
        }
    }

    /// There is a connection; the round trips of the first few are asked for, until one is short or not known.
    pub fn connected(&self, round_trip: impl FnOnce() -> Option<Duration>) {
        if self.far.load(Relaxed) >= SAMPLES {
            return;
        }
        if round_trip().is_none_or(|time| time < FAR) {
            self.far.store(SAMPLES, Relaxed);
        } else if self.far.fetch_add(1, Relaxed) + 1 == SAMPLES {
            self.free.close();
        }
    }
}

impl HandshakeTurn<'_> {
    /// The handshake succeeded: those who wait may go on waiting.
    pub fn succeeded(self) {
        self.turns.succeeded.fetch_add(1, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: Duration = Duration::from_secs(60);

    async fn all(turns: &Turns) -> Vec<HandshakeTurn<'_>> {
        let mut taken = Vec::new();
        for _ in 0..TURNS {
            taken.push(turns.take(LONG).await.unwrap());
        }
        taken
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_waits_for_long_while_others_hang() {
        let turns = Turns::default();
        let mut taken = all(&turns).await;
        let began = Instant::now();
        assert!(turns.take(LONG).await.is_none());
        assert_eq!(began.elapsed(), PATIENCE);
        taken.pop();
        assert!(turns.take(LONG).await.is_some());
    }

    /// How long the last in a row waits while every two thirds of a second a turn ends and goes to one who came earlier.
    async fn waited(succeed: bool, limit: Duration) -> Duration {
        let turns = Turns::default();
        let mut taken = all(&turns).await;
        let mut earlier: Vec<_> = (0..40).map(|_| Box::pin(turns.take(LONG))).collect();
        for waiting in &mut earlier {
            assert!(timeout(Duration::ZERO, waiting).await.is_err());
        }
        let mut last = Box::pin(turns.take(limit));
        let began = Instant::now();
        for waiting in &mut earlier {
            if let Ok(turn) = timeout(PATIENCE * 2 / 3, &mut last).await {
                assert!(turn.is_none());
                return began.elapsed();
            }
            let ended = taken.remove(0);
            if succeed {
                ended.succeeded();
            }
            taken.extend(waiting.await);
        }
        unreachable!("nobody waits for so long");
    }

    #[tokio::test(start_paused = true)]
    async fn who_waits_goes_on_waiting_while_handshakes_succeed() {
        assert_eq!(waited(true, LONG).await, LONGEST);
        assert_eq!(waited(true, LONGEST / 4).await, LONGEST / 4);
        assert_eq!(waited(false, LONG).await, PATIENCE);
    }

    #[tokio::test(start_paused = true)]
    async fn a_far_endpoint_has_no_turns() {
        let turns = Turns::default();
        let taken = all(&turns).await;
        let began = Instant::now();
        turns.connected(|| Some(FAR));
        turns.connected(|| Some(FAR));
        let third = async { turns.connected(|| Some(FAR)) };
        assert!(tokio::join!(turns.take(LONG), third).0.is_none());
        assert_eq!(began.elapsed(), Duration::ZERO);
        turns.connected(|| unreachable!("it is known"));
        drop(taken);
        assert!(turns.take(LONG).await.is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn one_short_round_trip_or_none_at_all_leaves_the_turns() {
        for known in [Some(FAR / 2), None] {
            let turns = Turns::default();
            turns.connected(|| Some(FAR));
            turns.connected(|| Some(FAR));
            turns.connected(|| known);
            turns.connected(|| unreachable!("it is known"));
            assert!(turns.take(LONG).await.is_some());
        }
    }
}
