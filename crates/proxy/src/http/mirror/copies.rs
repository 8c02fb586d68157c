//! Copies of requests: what waits for a body, what is under way, what became of it.

use std::cell::Cell;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use smallvec::SmallVec;
use tokio::time::Instant;

use crate::http::call::{self, Call};
use crate::http::h1::Framing;
use crate::http::head::{RequestHead, Trailers};
use crate::metrics::Mirrored;
use crate::runtime::cluster::ClusterHandle;
use crate::runtime::endpoint::Reach;
use crate::upstream::pool::Pools;

/// Of a worker, under way.
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
#[derive(Default)]
pub struct UnderWay {
    copies: Cell<usize>,
    bytes: Cell<usize>,
}

/// One copy.
pub struct Copy {
    pub cluster: Arc<ClusterHandle>,
    pub head: RequestHead,
    pub framing: Framing,
    pub body: Bytes,
    pub trailers: Option<Trailers>,
    pub original: (SocketAddr, Reach),
    pub hash: Option<u64>,
    pub timeout: Duration,
}

impl Copy {
    /// Sends it, if there is room.
    pub fn send(self, pools: &Pools, under_way: &Rc<UnderWay>) {
        let holds = self.head.size() + self.body.len();
        let Some(held) = Held::take(under_way, holds) else {
            pools.way().metrics.count_mirrored(Mirrored::Dropped, 1);
            return;
        };
        let pools = pools.clone();
        tokio::task::spawn_local(Box::pin(async move {
            let call = Call {
                cluster: &self.cluster,
                head: self.head,
                framing: self.framing,
                body: self.body,
                trailers: self.trailers,
                original: self.original,
                hash: self.hash,
                deadline: Instant::now() + self.timeout,
                most: 0,
            };
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
}

/// A copy's share of what may be under way.
struct Held {
    all: Rc<UnderWay>,
    bytes: usize,
}

impl Held {
    fn take(all: &Rc<UnderWay>, bytes: usize) -> Option<Self> {
        if all.copies.get() >= MOST_COPIES || all.bytes.get() + bytes > MOST_BYTES {
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
        let all = Rc::<UnderWay>::default();
        let held: Vec<_> = std::iter::from_fn(|| Held::take(&all, 1)).collect();
        assert_eq!(held.len(), MOST_COPIES);
        drop(held);
        let large = Held::take(&all, MOST_BYTES - 1);
        assert!(Held::take(&all, 2).is_none() && Held::take(&all, 1).is_some());
        drop(large);
        assert_eq!((all.copies.get(), all.bytes.get()), (0, 0));
    }
}
