//! Among replicas sidecars go where there is room: one that serves many more than its share lets some of them go, those first that are
//! connected for longest. They come in again by the Service, a part of them elsewhere. So one that came back is not idle until the next stops.
//!
//! Where nobody comes in elsewhere (a Service that keeps clients where they were, a replica that they do not reach) it is tried less and less.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use tokio::sync::Semaphore;

use crate::replicas::Replicas;

/// Between two rounds.
const ROUND: Duration = Duration::from_secs(5);
/// Of its own that one lets go in a round: 2 %, and one at least.
const PART: usize = 50;
/// More than its share by a fifth, and by more than one, is many more.
const FIFTH: usize = 5;
/// Tries in a row that may be fruitless by chance: of one that is let go as often as not the others get nobody.
const PATIENT: u32 = 12;
/// Rounds between two tries at most, where others get nobody: ten minutes.
const RAREST: u32 = 120;

/// Connections wait here until they are to go, in the order in which they came.
#[derive(Clone)]
pub(super) struct Leavers {
    gone: Arc<Semaphore>,
    /// How many wait.
    waiting: Arc<AtomicUsize>,
}

/// One that waits.
struct Waiting<'l>(&'l AtomicUsize);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

impl Leavers {
    /// Nobody goes. `waiting` is how many could.
    pub(super) fn new(waiting: Arc<AtomicUsize>) -> Self {
        Self { gone: Arc::new(Semaphore::new(0)), waiting }
    }

    /// Returns when whoever waits is to go.
    pub(super) async fn leaves(&self) {
        self.waiting.fetch_add(1, Relaxed);
        let _waiting = Waiting(&self.waiting);
        match self.gone.acquire().await {
            Ok(permit) => permit.forget(),
            Err(_) => std::future::pending().await,
        }
    }

    /// Looks after it, for ever.
    pub(super) async fn balance(self, replicas: Arc<Replicas>) {
        let mut tries = Tries::default();
        loop {
            tokio::time::sleep(ROUND).await;
            // What nobody has taken is not for those who come later.
            self.gone.forget_permits(self.gone.available_permits());
            let (own, others) = (self.waiting.load(Relaxed), replicas.loads().await);
            let many = tries.round(own, &others);
            if many > 0 {
                tracing::info!(
                    own,
                    ?others,
                    many,
                    "more than a share of the sidecars is here: some are let go, to come in again elsewhere"
                );
                self.gone.add_permits(many);
            }
        }
    }
}

/// What came of letting some go.
#[derive(Default)]
struct Tries {
    /// What the others had at the last one.
    others: usize,
    /// In a row, of which the others got nobody.
    fruitless: u32,
    /// Rounds to the next.
    left: u32,
}

impl Tries {
    /// How many to let go in this round.
    fn round(&mut self, own: usize, others: &[usize]) -> usize {
        let many = too_many(own, others);
        if many == 0 {
            *self = Self::default();
            return 0;
        }
        if self.left > 0 {
            self.left -= 1;
            return 0;
        }
        let others = others.iter().sum();
        self.fruitless = if others > self.others { 0 } else { self.fruitless.saturating_add(1) };
        let wait = 1_u32.checked_shl(self.fruitless.saturating_sub(PATIENT)).unwrap_or(RAREST);
        (self.left, self.others) = (wait.min(RAREST) - 1, others);
        many
    }
}

/// How many to let go.
fn too_many(own: usize, others: &[usize]) -> usize {
    if others.is_empty() {
        return 0;
    }
    let share = (own + others.iter().sum::<usize>()).div_ceil(others.len() + 1);
    let bound = share + (share / FIFTH).max(1);
    if own > bound { (own / PART).clamp(1, own - share) } else { 0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_has_much_more_than_a_share_lets_some_go() {
        for (own, others, many) in [
            (100, &[][..], 0),
            (0, &[0], 0),
            (1, &[0], 0),
            (2, &[0], 0),
            (4, &[0], 1),
            (6, &[5], 0),
            (110, &[90], 0),
            (130, &[70], 2),
            (10_000, &[0], 200),
            (5_000, &[5_000], 0),
            (600, &[0, 0], 12),
        ] {
            assert_eq!(too_many(own, others), many, "{own} {others:?}");
        }
    }

    #[test]
    fn where_nobody_comes_in_elsewhere_it_is_tried_less_and_less() {
        // An hour, in which all come back.
        let mut tries = Tries::default();
        let shed: Vec<usize> = (0..720).filter(|_| tries.round(100, &[0]) > 0).collect();
        assert_eq!(shed[..12], Vec::from_iter(0..12));
        assert_eq!(shed[12..16], [12, 14, 18, 26]);
        assert!(shed.len() < 25 && shed.last() > Some(&500), "{shed:?}");
        // As soon as somebody stays there all goes on as before.
        let mut other = 1;
        while tries.round(100, &[other]) == 0 {}
        for _ in 0..20 {
            other += 1;
            assert_eq!(tries.round(100, &[other]), 2);
        }
        // Where there was nothing to do nothing is held against anybody.
        assert_eq!(tries.round(100, &[90]), 0);
        assert_eq!(tries.round(100, &[20]), 2);
    }

    #[tokio::test]
    async fn who_is_there_for_longest_goes_first() {
        let waiting = Arc::new(AtomicUsize::new(0));
        let leavers = Leavers::new(waiting.clone());
        let wait = |name: &'static str| {
            let leavers = leavers.clone();
            async move {
                leavers.leaves().await;
                name
            }
        };
        let mut all = tokio::task::JoinSet::new();
        for name in ["first", "second", "third"] {
            all.spawn(wait(name));
            tokio::task::yield_now().await;
        }
        assert_eq!(waiting.load(Relaxed), 3);
        leavers.gone.add_permits(1);
        assert_eq!(all.join_next().await.unwrap().unwrap(), "first");
        assert!(tokio::time::timeout(Duration::from_millis(20), all.join_next()).await.is_err());
        assert_eq!(waiting.load(Relaxed), 2);
        all.shutdown().await;
        assert_eq!(waiting.load(Relaxed), 0);
    }
}
