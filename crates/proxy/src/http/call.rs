//! One call to a cluster with no client behind it: this head and body there, the answer here. For copies of requests, and for
//! asking a service what to do with one.
//!
//! It is picked, leased, counted and told to outlier detection like any request. It has one repetition, on a fresh connection:
//! where it provably never arrived, or where a pooled connection was found dead and it may be sent twice.

use std::future::poll_fn;
use std::net::SocketAddr;
use std::sync::Arc;
use std::task::{Poll, ready};

use bytes::BytesMut;
use outrigger_identity::CredentialStore;
use outrigger_model::grpc;
use smallvec::SmallVec;
use tokio::time::{Instant, timeout_at};

use super::attempt::lease::{Leases, outcome_of, status_of};
use super::attempt::live::{Live, Outgoing};
use super::body::{Body, Frame};
use super::breakage;
use super::head::ResponseHead;
use super::respond::{ERROR_HEADER, says_no_room, says_not_reached};
use super::upgrade::Upgrade;
use crate::failure::{Failure, FailureKind, Retry, Stage};
use crate::runtime::cluster::PickContext;
use crate::runtime::endpoint::{EndpointState, Outcome};
use crate::upstream::pool::Pools;

pub mod message;

pub use message::{Answer, Call};

/// Makes a call.
///
/// # Errors
/// A limit of the cluster, no endpoint, no connection, no answer in time, or one that broke off.
pub async fn send(pools: &Pools, mut call: Call) -> Result<Answer, Failure> {
    let cluster = call.cluster.clone();
    let _permit = cluster.limits.try_request()?;
    let deadline = Instant::now() + call.timeout;
    let is_grpc = call.head.first("content-type").is_some_and(grpc::is_grpc);
    let mut body = Body::saved(std::mem::take(&mut call.body), call.trailers.take());
    let (mut fresh, mut tried) = (false, SmallVec::<[SocketAddr; 1]>::new());
    loop {
        let pass = cluster.admit()?;
        let endpoint =
            cluster.pick(&PickContext { tried: &tried, original: call.original, hash: call.hash })?;
        let mut stale = false;
        let attempt = attempt(pools, &mut call, &mut body, &endpoint, fresh, &mut stale);
        let result = timeout_at(deadline, attempt).await.unwrap_or_else(|_| {
            pools.way().metrics.cluster(&cluster.name).timeouts.inc();
            let detail = format!("cluster {} did not answer a call in time", cluster.name);
            Err(Failure::local(Stage::Forward, FailureKind::UpstreamTimeout, detail))
        });
        let again = |failure: &Failure| failure.retry == Retry::Safe || (stale && call.again);
        let again = !fresh && result.as_ref().is_err_and(again);
        // That a pooled connection was dead says nothing against the endpoint.
        if !(again && stale) {
            let outcome = match &result {
                Ok(answer) => {
                    let grpc = answer.early_status.filter(|_| is_grpc);
                    Outcome::Status(status_of(&answer.head, grpc))
                }
                Err(failure) => outcome_of(failure),
            };
            cluster.report(&endpoint, outcome, pass);
            tried.push(endpoint.address);
        }
        if !again {
            return result;
        }
        fresh = true;
        body.rewind();
    }
}

/// Makes a call to this one endpoint, whatever limits, breaker and balancer would say, and tells nobody what came of it.
///
/// # Errors
/// No connection, no answer in time, or one that broke off.
pub async fn to_endpoint(
    pools: &Pools,
    mut call: Call,
    endpoint: &Arc<EndpointState>,
) -> Result<Answer, Failure> {
    let deadline = Instant::now() + call.timeout;
    let mut body = Body::saved(std::mem::take(&mut call.body), call.trailers.take());
    for fresh in [false, true] {
        let mut stale = false;
        let attempt = attempt(pools, &mut call, &mut body, endpoint, fresh, &mut stale);
        let Ok(result) = timeout_at(deadline, attempt).await else { break };
        if fresh || !stale || result.is_ok() {
            return result;
        }
        body.rewind();
    }
    let detail = format!("no answer within {:?}", call.timeout);
    Err(Failure::upstream(Stage::Forward, FailureKind::UpstreamTimeout, Retry::Never, detail))
}

async fn attempt(
    pools: &Pools,
    call: &mut Call,
    body: &mut Body,
    endpoint: &Arc<EndpointState>,
    fresh: bool,
    stale: &mut bool,
) -> Result<Answer, Failure> {
    let leases = Leases { pools, cluster: &call.cluster, endpoint, fresh, now: Instant::now() };
    let leased = leases.any(leases.want(&call.head), false).await?;
    // A first try may have said who we are.
    let mut introduced = fresh;
    let mut out = Outgoing {
        head: &mut call.head,
        framing: call.framing,
        upgrade: Upgrade::None,
        empty: body.is_end(),
        introduced: &mut introduced,
        metrics: &pools.way().metrics,
        now: Instant::now(),
    };
    let mut live = Live::send(&mut out, &call.cluster, endpoint, leased)?;
    live.cells.attempt();
    let wanted = (call.head.method() == "HEAD", call.most);
    let result = exchange(&mut live, body, wanted, &pools.way().credentials).await;
    match &result {
        Ok(_) => live.recycle(pools, Instant::now()),
        Err(_) => *stale = live.is_stale(),
    }
    match result {
        // The peer's sidecar speaks for itself: whoever was called has not answered.
        Ok(answer) if call.cluster.uses_mesh(endpoint) && answer.head.has(ERROR_HEADER) => {
            Err(word_of_sidecar(&answer.head, endpoint.address))
        }
        result => result,
    }
}

/// What the answer of a peer's sidecar, which its application has no part in, comes to.
pub(crate) fn word_of_sidecar(head: &ResponseHead, address: SocketAddr) -> Failure {
    let said = head.first(ERROR_HEADER).map(String::from_utf8_lossy).unwrap_or_default();
    let detail = format!("the sidecar of {address} answered {}: {said}", head.status());
    let kind = if says_no_room(head) { FailureKind::Overload } else { FailureKind::UpstreamReset };
    match says_not_reached(head) {
        true => Failure::upstream(Stage::Forward, kind, Retry::Never, detail),
        false => Failure::local(Stage::Forward, kind, detail),
    }
}

async fn exchange(
    live: &mut Live,
    body: &mut Body,
    (is_head, most): (bool, usize),
    credentials: &CredentialStore,
) -> Result<Answer, Failure> {
    live.until_head(body, credentials).await?;
    live.note_head(Instant::now());
    live.begin_response(is_head)?;
    let mut answer = Answer {
        head: ResponseHead::absent(),
        early_status: live.grpc_status,
        body: BytesMut::new(),
        cut: false,
        trailers: None,
    };
    poll_fn(|cx| {
        live.trusted(credentials)?;
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
