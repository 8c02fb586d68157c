//! A connection as its requests see it: who is at its ends, its present configuration, its account of memory.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;

use outrigger_model::listener::Direction;
use outrigger_model::route::table::RouteRef;
use tokio::time::Instant;

use crate::downstream::ConnInfo;
use crate::failure::{Failure, FailureKind, Stage};
use crate::http::h1::Limits;
use crate::http::head::RequestHead;
use crate::memory::Account;
use crate::runtime::snapshot::{HttpHandle, Snapshot, TerminalHandle};
use crate::worker::Worker;

/// What a connection's requests share.
pub struct HttpConn {
    pub worker: Rc<Worker>,
    pub info: Rc<ConnInfo>,
    view: RefCell<Rc<RequestConfig>>,
    /// `x-forwarded-client-cert` for the application, made once per connection.
    pub(super) client_cert: Option<Box<str>>,
    /// What it holds of the worker's memory.
    pub account: Account,
}

/// The configuration that a request sees.
pub struct RequestConfig {
    generation: u64,
    pub http: Arc<HttpHandle>,
}

impl RequestConfig {
    /// Of what would take the connection now, as open connections are judged. Where that is no HTTP the old one serves on, until the
    /// connection is closed.
    fn present(snapshot: &Snapshot, info: &ConnInfo, old: Arc<HttpHandle>) -> Rc<Self> {
        let found = info.present(snapshot).and_then(|listener| info.chosen(listener));
        let http = match found.map(|chain| &chain.terminal) {
            Some(TerminalHandle::Http(http)) => http.clone(),
            _ => old,
        };
        Rc::new(Self { generation: snapshot.generation, http })
    }

    /// Of the snapshot that it is of.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// The route of a request.
    ///
    /// # Errors
    /// There is none.
    pub fn route(&self, head: &RequestHead) -> Result<RouteRef<'_>, Failure> {
        self.http.routes.find(head).ok_or_else(|| self.no_route(head))
    }

    /// What there is to say where none takes a request.
    #[cold]
    pub fn no_route(&self, head: &RequestHead) -> Failure {
        let detail = format!(
            "no route of {} takes {} {}{}",
            self.http.routes.name(),
            head.method(),
            head.authority(),
            head.path().split('?').next().unwrap_or_default()
        );
        Failure::local(Stage::Route, FailureKind::NoRoute, detail)
    }
}

impl HttpConn {
    /// For a connection that chose this configuration. There may be another by now: a handshake takes its time.
    pub fn new(worker: Rc<Worker>, info: Rc<ConnInfo>, http: Arc<HttpHandle>) -> Self {
        let own = worker.metrics.local().principal.as_ref();
        let client_cert = info.peer.as_ref().filter(|_| info.direction == Direction::Inbound).map(|peer| {
            let by = own.map_or(String::new(), |own| format!("By={own};"));
            format!("{by}URI={peer}").into_boxed_str()
        });
        let account = worker.ledger.open(worker.alarm.place(&worker.process.drain));
        let view = RefCell::new(RequestConfig::present(&worker.snapshot(), &info, http));
        Self { worker, info, view, client_cert, account }
    }

    /// The present configuration.
    pub fn view(&self) -> Rc<RequestConfig> {
        let snapshot = self.worker.snapshot();
        let mut view = self.view.borrow_mut();
        if view.generation != snapshot.generation {
            *view = RequestConfig::present(&snapshot, &self.info, view.http.clone());
        }
        view.clone()
    }

    /// When it takes leave, as its present configuration says.
    pub fn ends(&self) -> Option<Instant> {
        let longest = self.view.borrow().http.config.max_connection_duration?;
        Some(self.info.started + longest)
    }

    /// No more requests are to come over it: the process goes, or it is as old as one may be.
    pub fn takes_leave(&self) -> bool {
        self.worker.process.drain.is_draining() || self.ends().is_some_and(|ends| ends <= Instant::now())
    }

    /// Whether the client is our own application, or a peer of the mesh.
    pub fn is_trusted(&self) -> bool {
        self.info.direction == Direction::Outbound || self.info.peer.is_some()
    }

    /// The limits of request heads.
    pub fn limits(&self) -> Limits {
        let is_peer = self.info.direction == Direction::Inbound && self.info.peer.is_some();
        Limits::heads(self.view().http.config.max_request_headers_kb as usize * 1024, is_peer)
    }

    /// The scheme that requests of this connection have if nothing says another.
    pub fn scheme(&self) -> &'static str {
        if self.info.mtls && self.info.direction == Direction::Inbound { "https" } else { "http" }
    }
}
