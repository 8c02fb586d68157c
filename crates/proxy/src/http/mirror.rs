//! Mirrors: copies of requests, for clusters whose answers nobody waits for.
//!
//! A copy leaves in a task of its own, so that the caller does not feel its connection nor its answer: when the response begins and
//! the request's body has been read whole by then, else when the response ends. What is copied is bounded: bodies up to what is kept
//! for retries, and per worker so many copies and bytes under way. What is over it is not copied, and counted. The limits of a
//! cluster hold for copies, too: one that serves callers as well has fewer places for them.

use std::time::Duration;

use bytes::Bytes;
use outrigger_model::route::{Forward, Mirror};
use smallvec::SmallVec;

use super::attempt;
use super::body::REPLAY_LIMIT;
use super::call::Call;
use super::conn::RequestConfig;
use super::context::RequestCtx;
use super::filter::fault;
use super::h1::Framing;
use super::retry;
use super::upgrade::Upgrade;
use crate::metrics::Mirrored;

pub mod copies;

use copies::{Copies, shadow};

/// For the answer, however long the route would wait: a copy holds a connection.
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
    if !ctx.reserve(REPLAY_LIMIT) {
        ctx.conn.worker.metrics.count_mirrored(Mirrored::Dropped, to.len() as u64);
        return;
    }
    let timeout = forward.timeout.map_or(PATIENCE, |timeout| timeout.min(PATIENCE));
    let empty = ctx.body.is_end();
    ctx.body.keep(ctx.reserved());
    let mut head = ctx.head.clone();
    if let Some(timeout) = forward.timeout {
        attempt::tell_time(&mut head, timeout);
    }
    ctx.extras().copies = Some(Copies { head, empty, to, timeout, hash });
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
        let again = retry::is_idempotent(head.method());
        let (body, trailers) = (body.clone(), trailers.clone());
        let (original, hash, timeout) = (ctx.conn.info.original(), copies.hash, copies.timeout);
        let call = Call { cluster, head, framing, body, trailers, original, hash, timeout, again, most: 0 };
        copies::send(call, &worker.pools, &worker.mirrors);
    }
}
