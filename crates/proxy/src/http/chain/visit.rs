//! A request as filters that do more than look at it see it.

use std::future::poll_fn;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use outrigger_model::identity::SpiffeId;
use outrigger_model::route::HeaderEdits;
use outrigger_model::route::table::{CompiledRoute, RouteRef};
use outrigger_model::token::{Known, Proven};

use super::tunnel;
use crate::failure::{Failure, FailureKind, Stage};
use crate::http::breakage::{client_gone, downstream_failure};
use crate::http::call::{self, Answer, Call};
use crate::http::conn::RequestConfig;
use crate::http::context::{Asked, RequestCtx};
use crate::http::filter::tokens::Witness;
use crate::http::filter::visit::{Held, Visit};
use crate::http::filter::{Input, ResponseEdit};
use crate::http::h1::{Framing, H1Response};
use crate::http::head::{RequestHead, ResponseHead};
use crate::http::upgrade::Upgrade;
use crate::http::watch::{self, Idle};
use crate::http::written;
use crate::runtime::endpoint::Reach;

/// Of the answer of a service that is asked.
const MOST_ANSWER: usize = 64 * 1024;

/// A request, its configuration, and the route that was found last.
pub(super) struct Visiting<'a, 'c, 'v> {
    pub(super) ctx: &'a mut RequestCtx<'c>,
    pub(super) view: &'v RequestConfig,
    pub(super) route: Option<RouteRef<'v>>,
}

impl<'v> Visit<'v> for Visiting<'_, '_, 'v> {
    fn route(&self) -> Option<&'v CompiledRoute> {
        self.route.map(|found| found.route)
    }

    fn input(&self) -> Input<'_> {
        self.ctx.input(self.route())
    }

    fn own(&self) -> Option<&SpiffeId> {
        self.ctx.conn.worker.metrics.local().principal.as_ref()
    }

    fn is_grpc(&self) -> bool {
        self.ctx.record.is_grpc
    }

    fn is_upgrade(&self) -> bool {
        self.ctx.upgrade != Upgrade::None
    }

    fn length(&self) -> Option<u64> {
        match self.ctx.framing {
            Framing::Length(length) => Some(length),
            Framing::None => Some(0),
            _ => None,
        }
    }

    fn head_mut(&mut self) -> &mut RequestHead {
        &mut self.ctx.head
    }

    fn keep_out(&mut self, names: &Arc<Vec<String>>) {
        self.ctx.head.remove_lookalikes_of(names);
        self.ctx.body.keep_out(names);
    }

    fn respond(&mut self, edits: impl IntoIterator<Item = ResponseEdit>) {
        let mut edits = edits.into_iter().peekable();
        if edits.peek().is_some() {
            self.ctx.extras().response.extend(edits);
        }
    }

    fn write(&mut self, edits: &HeaderEdits) {
        if let Some(route) = self.route() {
            written::passed(self.ctx, route, edits);
        }
    }

    fn write_refusal(&mut self, edits: &HeaderEdits, failure: &Failure) {
        if let Some(route) = self.route() {
            written::refused(self.ctx, route, edits, failure);
        }
    }

    fn flag(&mut self, flag: &'static str) {
        self.ctx.record.flags.add(flag);
    }

    fn tokens<T>(&mut self, now: u64, look: impl FnOnce(&RequestHead, &mut dyn Known) -> T) -> T {
        let mut memory = self.ctx.conn.worker.tokens.borrow_mut();
        match Asked::of(&mut self.ctx.extras) {
            None => look(&self.ctx.head, &mut *memory),
            Some(tunnel) => {
                let mut witness = Witness { memory: &mut memory, good: &mut tunnel.good, now };
                look(&self.ctx.head, &mut witness)
            }
        }
    }

    fn prove(&mut self, proven: Proven) {
        if !proven.is_empty() {
            self.ctx.extras().proven.extend(proven);
        }
    }

    fn note_asked(&mut self, filter: &str) {
        tunnel::authorized(self.ctx, filter);
    }

    async fn hold(&mut self, most: usize) -> Result<Held, Failure> {
        let ctx = &mut *self.ctx;
        if !ctx.reserve(most + 1) {
            return Ok(Held::NoRoom);
        }
        // The application, which could tell the client to go on, has not heard of it yet.
        let waits =
            ctx.head.first("expect").is_some_and(|expect| expect.eq_ignore_ascii_case(b"100-continue"));
        if waits && let Some(responder) = &mut ctx.responder {
            ctx.head.remove("expect");
            responder.interim(&mut ResponseHead::H1(H1Response::new(100, Framing::None)));
        }
        let mut told = !waits;
        let mut idle = Idle::new(ctx);
        let mut parked = None;
        let paid = ctx.reserved();
        let whole = poll_fn(|cx| {
            if parked.is_none() {
                parked = Some(watch::park(ctx, cx));
            }
            if let Some(responder) = ctx.responder.as_mut().filter(|_| !told) {
                match responder.poll_flush(cx) {
                    Poll::Ready(Ok(())) => told = true,
                    Poll::Ready(Err(error)) => return Poll::Ready(Err(client_gone(&error.to_string()))),
                    Poll::Pending => return idle.poll(ctx, cx, None, 0).map(Err),
                }
            }
            match ctx.body.poll_hold(cx, most, paid) {
                Poll::Ready(Ok(whole)) => return Poll::Ready(Ok(whole)),
                Poll::Ready(Err(error)) => return Poll::Ready(Err(downstream_failure(&error))),
                Poll::Pending => {}
            }
            let held = ctx.body.held().len() as u64;
            idle.poll(ctx, cx, None, held).map(Err)
        })
        .await?;
        ctx.tick();
        Ok(if whole { Held::Whole } else { Held::Part })
    }

    fn held(&self, most: usize) -> &[u8] {
        let held = self.ctx.body.held();
        &held[..held.len().min(most)]
    }

    async fn call(
        &mut self,
        cluster: &str,
        head: RequestHead,
        body: Bytes,
        timeout: Duration,
    ) -> Result<Result<Answer, Failure>, Failure> {
        let Some(cluster) = self.view.http.cluster(cluster) else {
            let detail = format!("there is no cluster {cluster}");
            return Ok(Err(Failure::local(Stage::Authorize, FailureKind::NoCluster(503), detail)));
        };
        let framing = Framing::Length(body.len() as u64);
        let original = (self.ctx.conn.info.view().destination, Reach::Network);
        let (cluster, trailers, hash, again) = (cluster.clone(), None, None, true);
        let call = Call {
            cluster,
            head,
            framing,
            body,
            trailers,
            original,
            hash,
            timeout,
            again,
            most: MOST_ANSWER,
        };
        let pools = &self.ctx.conn.worker.pools;
        let calling = async { Ok(call::send(pools, call).await) };
        let came = watch::guarded(self.ctx, None, calling).await?;
        self.ctx.tick();
        Ok(came)
    }
}
