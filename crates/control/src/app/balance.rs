//! Among replicas sidecars go where there is room: one that serves many more than its share lets some of them go, those first that are
//! connected for longest. They come in again by the Service, a part of them elsewhere. So one that came back is not idle until the next stops.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Semaphore;

use crate::replicas::Replicas;
use crate::status::Board;

/// Between two rounds.
const ROUND: Duration = Duration::from_secs(5);
/// Of its own that one lets go in a round: 2 %, and one at least.
const PART: usize = 50;
/// More than its share by a fifth, and by more than one, is many more.
const FIFTH: usize = 5;

/// Connections wait here until they are to go, in the order in which they came.
#[derive(Clone)]
pub(super) struct Leavers {
    gone: Arc<Semaphore>,
}

impl Leavers {
    /// Nobody goes.
    pub(super) fn new() -> Self {
        Self { gone: Arc::new(Semaphore::new(0)) }
    }

    /// Returns when whoever waits is to go.
    pub(super) async fn leaves(&self) {
        match self.gone.acquire().await {
            Ok(permit) => permit.forget(),
            Err(_) => std::future::pending().await,
        }
    }

    /// Looks after it, for ever.
    pub(super) async fn balance(self, replicas: Arc<Replicas>, board: Arc<Board>) {
        loop {
            tokio::time::sleep(ROUND).await;
            // What nobody has taken is not for those who come later.
            self.gone.forget_permits(self.gone.available_permits());
            let (own, others) = (board.count(), replicas.loads().await);
            let many = too_many(own, &others);
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

    #[tokio::test]
    async fn who_is_there_for_longest_goes_first() {
        let leavers = Leavers::new();
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
        leavers.gone.add_permits(1);
        assert_eq!(all.join_next().await.unwrap().unwrap(), "first");
        assert!(tokio::time::timeout(Duration::from_millis(20), all.join_next()).await.is_err());
    }
}
