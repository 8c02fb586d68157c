//! Mirrors: copies of requests, for clusters whose answers nobody waits for.
//!
//! A copy leaves when the request's body has been read whole, in a task of its own, so that neither its connection nor its answer
//! is ever felt by the caller. What is copied is bounded: bodies up to what is kept for retries, and per worker so many copies
//! and bytes under way. What is over it is not copied, and counted.

use std::time::Duration;

use bytes::Bytes;
use outrigger_model::route::{Forward, Mirror};
use smallvec::SmallVec;

use super::conn::RequestConfig;
use super::context::RequestCtx;
use super::filter::fault;
use super::h1::Framing;
use super::upgrade::Upgrade;
use crate::metrics::Mirrored;

pub mod copies;

use copies::{Copies, Copy, shadow};

/// For the answer, where the route has no timeout.
const PATIENCE: Duration = Duration::from_secs(15);

/// Draws the mirrors of a request that is about to be forwarded; its body is copied aside from now on.
#[cold]
pub fn begin(ctx: &mut RequestCtx<'_>, config: &RequestConfig, forward: &Forward, hash: Option<u64>) {
    let drawn = forward.mirrors.iter().filter(|mirror| fault::hits(mirror.percentage));
    let known = |mirror: &Mirror| match config.http.cluster(&mirror.cluster) {
        Some(cluster) => Some((cluster.clone(), mirror.keep_host)),
        None => {
            tracing::debug!(cluster = mirror.cluster, "there is no such cluster to mirror to");
            None
        }
    };
    let to: SmallVec<[_; 1]> = drawn.filter_map(known).collect();
    // A tunnel has no end at which it could be copied.
    if to.is_empty() || ctx.upgrade != Upgrade::None {
        return;
    }
    let timeout = forward.timeout.unwrap_or(PATIENCE);
    let empty = ctx.body.is_end();
    ctx.body.keep();
    ctx.extras().copies = Some(Copies { head: ctx.head.clone(), empty, to, timeout, hash });
}

/// Sends the copies if the whole body is known. `last`: it will not be, if it is not now.
#[cold]
pub fn finish(ctx: &mut RequestCtx<'_>, last: bool) {
    let Some(slot) = ctx.extras.as_mut().map(|extras| &mut extras.copies) else { return };
    let Some(copies) = slot else { return };
    let saved = if copies.empty { Some((Bytes::new(), None)) } else { ctx.body.kept() };
    if saved.is_none() && ctx.body.is_kept() && !last {
        return;
    }
    let Some(copies) = slot.take() else { return };
    let worker = &ctx.conn.worker;
    let Some((body, trailers)) = saved else {
        worker.metrics.count_mirrored(Mirrored::Dropped, copies.to.len() as u64);
        return;
    };
    for (cluster, keep_host) in copies.to {
        let mut head = copies.head.clone();
        if !keep_host && head.set_authority(&shadow(head.authority())).is_err() {
            worker.metrics.count_mirrored(Mirrored::Dropped, 1);
            continue;
        }
        let framing = match (ctx.framing, &trailers) {
            (Framing::None, None) => Framing::None,
            (Framing::Length(_), None) => Framing::Length(body.len() as u64),
            _ => Framing::Chunked,
        };
        let copy = Copy {
            cluster,
            head,
            framing,
            body: body.clone(),
            trailers: trailers.clone(),
            original: ctx.conn.info.original(),
            hash: copies.hash,
            timeout: copies.timeout,
        };
        copy.send(&worker.pools, &worker.mirrors);
    }
}
