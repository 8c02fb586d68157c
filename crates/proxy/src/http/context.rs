//! One request while it is served: what it came with, what was found out, what it holds.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use outrigger_model::grpc;
use outrigger_model::route::session::Token;
use outrigger_model::route::table::CompiledRoute;
use outrigger_model::token::Proven;
use outrigger_telemetry::trace::SpanRecord;
use smallvec::SmallVec;
use tokio::time::Instant;

use super::body::{Body, Room};
use super::conn::{HttpConn, RequestConfig};
use super::filter::tokens::Vouched;
use super::filter::{Input, ResponseEdit, State};
use super::h1::Framing;
use super::head::{RequestHead, Trailers};
use super::mirror::copies::Copies;
use super::respond::Responder;
use super::send::Sender;
use super::timeout::{Clock, Timer};
use super::trace::Recording;
use super::upgrade::Upgrade;
use crate::protocol::Protocol;
use crate::record::StreamRecord;
use crate::runtime::breaker::{Pass, Turned};
use crate::runtime::limits::RequestPermit;
use crate::runtime::snapshot::HttpHandle;

mod ended;

/// One request.
pub struct RequestCtx<'c> {
    pub conn: &'c HttpConn,
    pub view: Rc<RequestConfig>,
    pub record: StreamRecord,
    pub head: RequestHead,
    pub framing: Framing,
    pub upgrade: Upgrade,
    /// What few requests have.
    pub extras: Option<Box<Extras>>,
    pub body: Body,
    /// There never was any byte of it.
    bodyless: bool,
    /// Of the connection's account, for what is held of the body.
    reserved: usize,
    /// The head stands in for one that could not be read: the record shows none.
    pub(super) unread: bool,
    /// Until the response begins.
    pub responder: Option<Responder>,
    /// From then on.
    pub sender: Option<Sender>,
    /// The connection's, lent so that its requests need none of their own.
    pub timer: Timer,
    /// The time when the task began to wait for nothing, or a little later: read once per wake-up, not at each look.
    pub now: Instant,
    /// Of the route.
    pub clock: Clock,
    /// How long it may be silent; zero: for ever.
    pub idle: Duration,
    /// When it must be over, whatever is on its way.
    pub ends: Option<Instant>,
    pub recording: Option<Recording>,
    /// That was decided: it is drawn for once.
    pub decided: bool,
    /// By its number in the table.
    pub route: Option<u32>,
    /// An attempt has had a span.
    pub attempted: bool,
    /// The head says who we are.
    pub introduced: bool,
    pub permit: Option<RequestPermit>,
    /// The downstream connection can take another request.
    pub keep: bool,
}

/// What few requests have.
#[derive(Default)]
pub struct Extras {
    /// Of a request for a tunnel: what it is judged by again.
    pub tunnel: Option<Box<Asked>>,
    /// What its good tokens say.
    pub proven: Proven,
    /// Headers to be set in the response, whoever makes it.
    pub response: Vec<ResponseEdit>,
    /// What filters, by their numbers, know of it.
    pub filters: SmallVec<[(usize, State); 1]>,
    /// The span of an attempt, until its circuit breaker is told of it.
    pub ended: Option<Box<SpanRecord>>,
    /// What attempts without a span have made of a circuit breaker.
    pub turned: Vec<Turned>,
    /// The leave of a probe that is sent once more, because its pooled connection was dead.
    pub pass: Option<Pass>,
    /// Copies that wait for the body.
    pub copies: Option<Copies>,
    /// When the attempt must be over, and when the request must be in any case.
    pub attempt: Option<(Instant, Option<Instant>)>,
}

impl Extras {
    /// The endpoint that it belongs to, as its client says.
    pub fn session(&self) -> Option<Token> {
        self.filters.iter().find_map(|(_, state)| match state {
            State::Session(token) => *token,
            State::Permit(_) => None,
        })
    }
}

/// A request for a tunnel.
#[derive(Default)]
pub struct Asked {
    /// As it came to the filters, where they may have taken tokens out.
    pub came: Option<RequestHead>,
    /// As they left it.
    pub judged: Option<RequestHead>,
    /// What it was judged by last.
    pub by: Option<Arc<HttpHandle>>,
    /// Its tokens whose signatures were good, each with whose it is.
    pub good: Vouched,
    /// When it came: what its tokens say, they say for that time.
    pub at: Duration,
    /// The services that were asked whether it may pass, by the names of their filters.
    pub authorized: Vec<String>,
    /// Of the connection's account, for these heads.
    pub paid: usize,
}

impl Asked {
    /// Of a request, if it is for a tunnel.
    pub fn of(extras: &mut Option<Box<Extras>>) -> Option<&mut Self> {
        extras.as_deref_mut()?.tunnel.as_deref_mut()
    }
}

/// What is left when a request has ended.
pub struct Done {
    pub body: Body,
    /// Absent if there was no response.
    pub sender: Option<Sender>,
    /// Unused, if there was none.
    pub responder: Option<Responder>,
    pub timer: Timer,
    pub keep: bool,
}

impl Done {
    /// Whether the exchange ended as it should, with nothing left to read.
    pub fn is_clean(&self) -> bool {
        self.keep && self.body.is_end() && self.sender.as_ref().is_some_and(Sender::is_finished)
    }
}

impl Drop for RequestCtx<'_> {
    fn drop(&mut self) {
        // The record writes the request down, also when the task is cancelled.
        self.record.finish((!self.unread).then_some(&self.head));
        let worker = &self.conn.worker;
        worker.process.recent.note(worker.id, ended::has_failed(&self.record), self.now, || ended::of(self));
        let heads = Asked::of(&mut self.extras).map_or(0, |tunnel| tunnel.paid);
        if self.reserved + heads > 0 {
            self.conn.account.give(self.reserved + heads);
        }
        if let RequestHead::H1(head) = &mut self.head {
            self.conn.worker.buffers.give_head(&mut head.fields);
        }
    }
}

impl<'c> RequestCtx<'c> {
    /// A request whose head has come.
    #[inline(always)] // made where it stays
    pub fn open(
        conn: &'c HttpConn,
        head: RequestHead,
        framing: Framing,
        body: Body,
        responder: Responder,
    ) -> Self {
        let protocol = match &head {
            RequestHead::H1(_) => Protocol::Http1,
            RequestHead::H2(_) => Protocol::Http2,
        };
        let now = Instant::now();
        let mut record = StreamRecord::open(&conn.worker, &conn.info, protocol, now);
        record.http10 = matches!(&head, RequestHead::H1(head) if head.minor() == 0);
        record.is_grpc = head.first("content-type").is_some_and(grpc::is_grpc);
        let upgrade = Upgrade::of(&head);
        let view = conn.view();
        Self {
            conn,
            idle: view.http.config.stream_idle_timeout,
            ends: view.http.config.max_stream_duration.map(|longest| now + longest),
            view,
            record,
            head,
            framing,
            upgrade,
            extras: None,
            bodyless: body.is_end(),
            reserved: 0,
            unread: false,
            body,
            responder: Some(responder),
            sender: None,
            timer: Timer::default(),
            now,
            clock: Clock::default(),
            recording: None,
            decided: false,
            route: None,
            attempted: false,
            introduced: false,
            permit: None,
            keep: true,
        }
    }

    /// Takes of the connection's account what may be held of the body, up to `most`, until the request ends; whether there is room.
    /// Whoever wants it held, it is held once.
    #[cold]
    pub fn reserve(&mut self, most: usize) -> bool {
        let bytes = match self.framing {
            _ if self.body.is_end() => 0,
            Framing::Length(length) => usize::try_from(length).map_or(most, |length| length.min(most)),
            _ => most,
        };
        let more = bytes.saturating_sub(self.reserved);
        let taken = self.conn.account.take(more);
        self.reserved += if taken { more } else { 0 };
        taken
    }

    /// Gives that back, where nothing is held any more.
    #[cold]
    pub fn give_back(&mut self) {
        let copies = self.extras.as_ref().is_some_and(|extras| extras.copies.is_some());
        if !copies && self.body.held().is_empty() {
            self.conn.account.give(std::mem::take(&mut self.reserved));
        }
    }

    /// What was taken so.
    pub fn reserved(&self) -> usize {
        self.reserved
    }

    /// What takes it now, or nothing does: so it is logged and shown.
    pub fn leads_to(&mut self, route: Option<&CompiledRoute>) {
        self.route = route.map(|route| route.id);
        // Whether it is recorded may still be open, and a span has the name of its route.
        let is_recorded = self.recording.is_some() || !self.decided;
        let is_named = is_recorded || self.conn.worker.process.access_log.is_on();
        let name = route.map(|route| route.config.name.as_str()).filter(|name| is_named && !name.is_empty());
        self.record.route = name.map(Into::into);
    }

    /// As filters see it.
    pub fn input<'a>(&'a self, route: Option<&'a CompiledRoute>) -> Input<'a> {
        let tokens = self.extras.as_ref().map(|extras| &extras.proven);
        Input { connection: self.conn.info.view(), request: &self.head, route, tokens }
    }

    /// Room for what few requests have.
    #[cold]
    pub fn extras(&mut self) -> &mut Extras {
        self.extras.get_or_insert_default()
    }

    /// What is left at the end.
    pub fn done(&mut self) -> Done {
        Done {
            body: std::mem::replace(&mut self.body, Body::Empty).into_live(),
            sender: self.sender.take(),
            responder: self.responder.take(),
            timer: std::mem::take(&mut self.timer),
            keep: self.keep,
        }
    }

    /// Whether the request can be sent once more. `untouched`: no byte of its body was read.
    pub fn can_replay(&self, untouched: bool) -> bool {
        let is_tunnel = self.upgrade != Upgrade::None && self.framing == Framing::Tunnel;
        self.bodyless || untouched || is_tunnel || self.body.can_replay()
    }

    /// A copy of the body, if all of it is there and short enough.
    pub fn whole_body(&self) -> Option<(Bytes, Option<Trailers>)> {
        if self.bodyless { Some((Bytes::new(), None)) } else { self.body.whole() }
    }

    /// Whether there never was any byte of its body.
    pub fn is_bodyless(&self) -> bool {
        self.bodyless
    }

    /// Copies the body aside from now on, as far as there is memory to spare: nobody else is sent away for it.
    #[cold]
    pub fn make_replayable(&mut self) {
        self.body.make_replayable(Room { paid: self.reserved, spare: Some(self.conn.account.spare()) });
    }

    /// Looks at the clock: the task has waited.
    pub fn tick(&mut self) {
        self.now = Instant::now();
    }

    /// The request's side of a tunnel; it has no time limit of the route any more.
    pub fn open_tunnel(&mut self) {
        self.body.make_tunnel();
        self.clock = Clock::default();
        if let Some(extras) = &mut self.extras {
            extras.filters.retain(|(_, state)| !state.ends_with_exchange());
        }
    }
}
