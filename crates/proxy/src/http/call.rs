//! One call to a cluster with no client behind it: this head and body there, the answer here. For copies of requests, and for
//! asking a service what to do with one.
//!
//! It is picked, leased, counted and told to outlier detection like any request; it has no retries, but for a pooled connection
//! that was found dead before anything of the answer came.

use std::future::poll_fn;
use std::task::{Poll, ready};

use bytes::BytesMut;
use tokio::time::{Instant, timeout_at};

use super::attempt::lease::{Leases, outcome_of};
use super::attempt::live::{Live, Outgoing};
use super::body::{Body, Frame};
use super::breakage;
use super::head::ResponseHead;
use super::upgrade::Upgrade;
use crate::failure::{Failure, FailureKind, Stage};
use crate::runtime::cluster::PickContext;
use crate::runtime::endpoint::Outcome;
use crate::upstream::pool::Pools;

pub mod message;

pub use message::{Answer, Call};

/// Makes a call.
///
/// # Errors
/// A limit of the cluster, no endpoint, no connection, no answer in time, or one that broke off.
pub async fn send(pools: &Pools, mut call: Call<'_>) -> Result<Answer, Failure> {
    let _permit = call.cluster.limits.try_request()?;
    let deadline = call.deadline;
    match timeout_at(deadline, attempts(pools, &mut call)).await {
        Ok(answer) => answer,
        Err(_) => {
            pools.way().metrics.cluster(&call.cluster.name).timeouts.inc();
            let detail = format!("cluster {} did not answer a call in time", call.cluster.name);
            Err(Failure::local(Stage::Forward, FailureKind::UpstreamTimeout, detail))
        }
    }
}

async fn attempts(pools: &Pools, call: &mut Call<'_>) -> Result<Answer, Failure> {
    let body = std::mem::take(&mut call.body);
    let mut body = Body::saved(body, call.trailers.take());
    let mut fresh = false;
    loop {
        let endpoint =
            call.cluster.pick(&PickContext { tried: &[], original: call.original, hash: call.hash })?;
        let mut introduced = false;
        let now = Instant::now();
        let leases = Leases { pools, cluster: call.cluster, endpoint: &endpoint, fresh, now };
        let leased = leases.any(leases.want(&call.head), false).await?;
        let mut out = Outgoing {
            head: &mut call.head,
            framing: call.framing,
            upgrade: Upgrade::None,
            empty: body.is_end(),
            introduced: &mut introduced,
            metrics: &pools.way().metrics,
            now: Instant::now(),
        };
        let mut live = Live::send(&mut out, call.cluster, &endpoint, leased)?;
        live.cells.attempt();
        let result = exchange(&mut live, &mut body, call.head.method() == "HEAD", call.most).await;
        let stale = result.is_err() && live.is_stale();
        if !stale {
            let outcome = match &result {
                Ok(answer) => Outcome::Status(answer.head.status()),
                Err(failure) => outcome_of(failure),
            };
            call.cluster.report(&endpoint, outcome);
        }
        if stale && !fresh {
            fresh = true;
            body.rewind();
            continue;
        }
        if result.is_ok() {
            live.recycle(pools, Instant::now());
        }
        return result;
    }
}

async fn exchange(live: &mut Live, body: &mut Body, is_head: bool, most: usize) -> Result<Answer, Failure> {
    poll_fn(|cx| {
        live.poll_upload(cx, body)?;
        loop {
            match ready!(live.poll_head(cx)) {
                Ok(()) if live.head.is_interim() => {}
                result => return Poll::Ready(result),
            }
        }
    })
    .await?;
    live.note_head(Instant::now());
    live.begin_response(is_head)?;
    let mut answer =
        Answer { head: ResponseHead::absent(), body: BytesMut::new(), cut: false, trailers: None };
    poll_fn(|cx| {
        live.poll_upload(cx, body)?;
        loop {
            match ready!(live.body.poll_chunk(cx)).map_err(|error| cut_off(&error))? {
                Frame::Data(len) => {
                    let kept = len.min(most - answer.body.len());
                    answer.body.extend_from_slice(live.body.chunk(kept));
                    answer.cut |= kept < len;
                    live.body.consume(len);
                }
                Frame::Trailers(trailers) => answer.trailers = Some(trailers),
                Frame::End => return Poll::Ready(Ok::<_, Failure>(())),
            }
        }
    })
    .await?;
    answer.head = std::mem::replace(&mut live.head, ResponseHead::absent());
    Ok(answer)
}

fn cut_off(error: &super::body::BodyError) -> Failure {
    breakage::upstream_cut(error).failure
}
