//! Copies of requests: what waits for a body, what is under way, what became of it.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use smallvec::SmallVec;

use crate::descriptors;
use crate::http::call::{self, Call};
use crate::http::head::RequestHead;
use crate::metrics::Mirrored;
use crate::runtime::cluster::ClusterHandle;
use crate::upstream::pool::Pools;

/// Of a worker, under way; fewer where there are few descriptors.
const MOST_COPIES: usize = 256;
const MOST_BYTES: usize = 16 * 1024 * 1024;

/// Copies of one request that wait for its body.
pub struct Copies {
    pub head: RequestHead,
    /// It has no body.
    pub empty: bool,
    /// And whether the host stays.
    pub to: SmallVec<[(Arc<ClusterHandle>, bool); 1]>,
    pub timeout: Duration,
    pub hash: Option<u64>,
}

/// What the copies of a worker hold.
pub struct UnderWay {
    most: usize,
    copies: Cell<usize>,
    bytes: Cell<usize>,
}

impl UnderWay {
    /// Of one of so many workers. All of them together leave descriptors for those who wait for an answer.
    pub fn new(workers: usize) -> Self {
        let most =
            descriptors::limit().map_or(MOST_COPIES, |all| (all / 16 / workers.max(1)).min(MOST_COPIES));
        Self { most: most.max(1), copies: Cell::new(0), bytes: Cell::new(0) }
    }
}

/// Sends a copy, if there is room.
pub fn send(call: Call, pools: &Pools, under_way: &Rc<UnderWay>) {
    let holds = call.head.size() + call.body.len();
    let Some(held) = Held::take(under_way, holds) else {
        pools.way().metrics.count_mirrored(Mirrored::Dropped, 1);
        return;
    };
    let pools = pools.clone();
    tokio::task::spawn_local(Box::pin(async move {
        let came = match call::send(&pools, call).await {
            Ok(_) => Mirrored::Answered,
            Err(failure) => {
                tracing::debug!(%failure, "a copy of a request was not answered");
                Mirrored::Failed
            }
        };
        pools.way().metrics.count_mirrored(came, 1);
        drop(held);
    }));
}

/// A copy's share of what may be under way.
struct Held {
    all: Rc<UnderWay>,
    bytes: usize,
}

impl Held {
    fn take(all: &Rc<UnderWay>, bytes: usize) -> Option<Self> {
        if all.copies.get() >= all.most || all.bytes.get() + bytes > MOST_BYTES {
            return None;
        }
        all.copies.set(all.copies.get() + 1);
        all.bytes.set(all.bytes.get() + bytes);
        Some(Self { all: all.clone(), bytes })
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.all.copies.set(self.all.copies.get() - 1);
        self.all.bytes.set(self.all.bytes.get() - self.bytes);
    }
}

/// The host of a copy, as Envoy names it: so that whoever reads logs can tell.
pub fn shadow(authority: &str) -> String {
    match authority.rsplit_once(':') {
        Some((host, port)) if !host.ends_with(':') && port.bytes().all(|b| b.is_ascii_digit()) => {
            format!("{host}-shadow:{port}")
        }
        _ => format!("{authority}-shadow"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copys_host_says_that_it_is_one() {
        assert_eq!(shadow("shop"), "shop-shadow");
        assert_eq!(shadow("shop.example:8080"), "shop.example-shadow:8080");
    }

    #[test]
    fn copies_under_way_are_bounded_in_number_and_bytes() {
        let all = Rc::new(UnderWay { most: 200, copies: Cell::new(0), bytes: Cell::new(0) });
        let held: Vec<_> = std::iter::from_fn(|| Held::take(&all, 1)).collect();
        assert_eq!(held.len(), 200);
        drop(held);
        let large = Held::take(&all, MOST_BYTES - 1);
        assert!(Held::take(&all, 2).is_none() && Held::take(&all, 1).is_some());
        drop(large);
        assert_eq!((all.copies.get(), all.bytes.get()), (0, 0));
    }
}
