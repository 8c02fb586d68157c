//! The turns that TLS handshakes with one endpoint take: a burst of them does not become quicker by more of them at once, but
//! the key exchanges of those that wait for its CPU would hold 6 KiB each, and leave that in the heap.

use std::pin::pin;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::Relaxed};
use std::time::Duration;

use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::{Instant, timeout};

/// Handshakes at once, of all workers.
const TURNS: usize = 8;
/// Who sees no turn end for so long goes on without one: it may be that others hang.
const PATIENCE: Duration = Duration::from_secs(1);
/// Nobody waits for longer.
const LONGEST: Duration = Duration::from_secs(10);
/// With a round trip like this, the way takes the time, and not the CPU.
const FAR: Duration = Duration::from_millis(2);

/// The turns of one endpoint.
#[derive(Debug)]
pub struct Turns {
    /// Closed when the endpoint turns out to be far away.
    free: Semaphore,
    ended: AtomicU32,
    /// The round trip was asked for.
    asked: AtomicBool,
}

/// Ends when it is dropped.
#[must_use = "it lasts only while it lives"]
#[derive(Debug)]
pub struct Turn<'t> {
    turns: &'t Turns,
    _permit: SemaphorePermit<'t>,
}

impl Default for Turns {
    fn default() -> Self {
        Self { free: Semaphore::new(TURNS), ended: AtomicU32::new(0), asked: AtomicBool::new(false) }
    }
}

impl Turns {
    /// Waits for a turn. Without one a handshake may go on, too.
    pub async fn take(&self) -> Option<Turn<'_>> {
        let mut acquire = pin!(self.free.acquire());
        let began = Instant::now();
        loop {
            let ended = self.ended.load(Relaxed);
            match timeout(PATIENCE, &mut acquire).await {
                Ok(permit) => return Some(Turn { turns: self, _permit: permit.ok()? }),
                Err(_) if self.ended.load(Relaxed) == ended || began.elapsed() >= LONGEST => return None,
                Err(_) => {}
            }
        }
    }

    /// There is a connection, whose round trip is asked for if it is the first.
    pub fn connected(&self, round_trip: impl FnOnce() -> Option<Duration>) {
        if !self.asked.swap(true, Relaxed) && round_trip().is_none_or(|time| time >= FAR) {
            self.free.close();
        }
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.turns.ended.fetch_add(1, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn all(turns: &Turns) -> Vec<Turn<'_>> {
        let mut taken = Vec::new();
        for _ in 0..TURNS {
            taken.push(turns.take().await.unwrap());
        }
        taken
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_waits_for_long_while_others_hang() {
        let turns = Turns::default();
        let mut taken = all(&turns).await;
        let began = Instant::now();
        assert!(turns.take().await.is_none());
        assert_eq!(began.elapsed(), PATIENCE);
        taken.pop();
        assert!(turns.take().await.is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn who_waits_goes_on_waiting_while_turns_end() {
        let turns = Turns::default();
        let mut taken = all(&turns).await;
        let began = Instant::now();
        let slow = async {
            // Each turn that ends goes to one who came earlier.
            let mut earlier: Vec<_> = (0..TURNS).map(|_| Box::pin(turns.take())).collect();
            for waiting in &mut earlier {
                assert!(timeout(Duration::ZERO, waiting).await.is_err());
            }
            let (mut last, mut kept) = (Box::pin(turns.take()), Vec::new());
            for waiting in &mut earlier {
                assert!(timeout(PATIENCE * 2 / 3, &mut last).await.is_err());
                drop(taken.pop());
                kept.push(waiting.await);
            }
            last.await
        };
        assert!(slow.await.is_none());
        let waited = began.elapsed();
        assert!(waited > PATIENCE * 5 && waited <= LONGEST + PATIENCE, "{waited:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_far_endpoint_has_no_turns() {
        for (far, trip) in [(true, Some(FAR)), (true, None), (false, Some(FAR / 2))] {
            let turns = Turns::default();
            let taken = all(&turns).await;
            let began = Instant::now();
            let found = async { turns.connected(|| trip) };
            assert!(tokio::join!(turns.take(), found).0.is_none());
            assert_eq!(began.elapsed() == Duration::ZERO, far);
            turns.connected(|| unreachable!("it is asked for once"));
            drop(taken);
            assert_eq!(turns.take().await.is_none(), far);
        }
    }
}
