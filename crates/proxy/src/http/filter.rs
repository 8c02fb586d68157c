//! Request filters, compiled when the runtime is built: run in order, once per request, before the retry loop (`http/chain.rs`).
//!
//! To add one: a file in `filter/` and a row in each match here. A filter looks at a request ([`Filter::on_request`]) and lets it pass,
//! stops it, or wants a [`Visit`], in which it may edit, answer, hold the body and ask a cluster.

use std::borrow::Cow;
use std::net::SocketAddr;

use outrigger_model::ext_authz::How;
use outrigger_model::listener::HttpFilter;
use outrigger_model::request::ConnectionView;
use outrigger_model::resource::Flaw;
use outrigger_model::route::Fault;
use outrigger_model::route::session::Token;
use outrigger_model::route::table::{CompiledRoute, RouteTable};
use outrigger_model::token::{Proven, WithTokens};
use tokio::time::Instant;

pub use self::visit::{After, Stop, Visit};
use super::head::{RequestHead, ResponseHead};
use crate::failure::{Failure, FailureKind, Stage};
use crate::runtime::concurrency::Permit;
use crate::runtime::rate::Rates;

pub mod concurrency;
pub mod cors;
pub mod ext_authz;
pub mod fault;
pub mod global_limit;
pub mod local_limit;
pub mod rate_limit;
pub mod rbac;
pub mod session;
pub mod tokens;
pub mod visit;

/// What a filter does to a header of the response.
pub struct ResponseEdit {
    pub name: Cow<'static, str>,
    pub value: Vec<u8>,
    pub how: How,
}

impl ResponseEdit {
    /// Instead of whatever there is.
    pub fn set(name: &'static str, value: impl Into<Vec<u8>>) -> Self {
        Self { name: name.into(), value: value.into(), how: How::Set }
    }

    /// A cookie more.
    pub fn cookie(value: String) -> Self {
        Self { name: "set-cookie".into(), value: value.into_bytes(), how: How::Append }
    }

    /// Edits a head; one without room goes on as it is.
    pub fn apply(self, head: &mut ResponseHead) {
        let _ = match (self.how, head.has(&self.name)) {
            (How::IfAbsent, true) | (How::IfPresent, false) => Ok(()),
            (How::Append, _) => head.append(&self.name, self.value),
            _ => head.set(&self.name, self.value),
        };
    }
}

/// What a filter knows of one request until its response has left. Who leaves some is told of the response.
#[derive(Debug)]
pub enum State {
    /// It is counted.
    Permit(Permit),
    /// It belongs to a session: what its client carries.
    Session(Option<Token>),
}

impl State {
    /// It says nothing any more where the exchange has become a tunnel.
    pub fn ends_with_exchange(&self) -> bool {
        match self {
            // How long it stays open says nothing of how fast the application is.
            Self::Permit(_) => true,
            Self::Session(_) => false,
        }
    }
}

/// Who makes a response.
#[derive(Clone, Copy)]
pub enum By<'a> {
    /// The endpoint that it was sent to, by this route.
    Upstream(&'a CompiledRoute, SocketAddr),
    Us,
}

/// A compiled request filter.
#[derive(Debug)]
pub enum Filter {
    /// Authorization.
    Rbac(rbac::Rbac),
    /// Injected faults.
    Fault(fault::FaultFilter),
    /// A service is asked.
    ExtAuthz(Box<ext_authz::ExtAuthz>),
    /// How many requests pass.
    RateLimit(rate_limit::Limits),
    /// The same, as other control planes have it.
    LocalLimit(Box<local_limit::Limits>),
    /// The same, by a service that is asked.
    GlobalLimit(Box<global_limit::GlobalLimits>),
    /// How many are under way, as latency allows.
    Concurrency(concurrency::Limit),
    /// What tokens say.
    Tokens(Box<tokens::Tokens>),
    /// Sessions, of the routes that have one.
    Session,
    /// Pages of other origins, by the policies of routes.
    Cors,
}

/// Compiles a filter. `rates` has the counts of limits; `place` is its listener, chain and number; `routes` may have their own word.
///
/// # Errors
/// The field that cannot be taken, and why.
pub fn build(config: &HttpFilter, rates: &Rates, place: &str, routes: &RouteTable) -> Result<Filter, Flaw> {
    Ok(match config {
        HttpFilter::Rbac(config) => Filter::Rbac(rbac::Rbac::build(config)?),
        HttpFilter::Fault(config) => Filter::Fault(fault::FaultFilter::build(config)),
        HttpFilter::ExtAuthz(config) => Filter::ExtAuthz(Box::new(ext_authz::ExtAuthz::build(config)?)),
        HttpFilter::Tokens(config) => Filter::Tokens(Box::new(tokens::Tokens::build(config)?)),
        HttpFilter::GlobalLimit(config) => {
            Filter::GlobalLimit(Box::new(global_limit::GlobalLimits::build(config, rates)?))
        }
        HttpFilter::Concurrency(config) => {
            Filter::Concurrency(concurrency::Limit(rates.controllers.of(config, place)))
        }
        HttpFilter::LocalLimit(limits) => {
            Filter::LocalLimit(Box::new(local_limit::Limits::build(limits, routes, rates)))
        }
        HttpFilter::RateLimit(limits) => Filter::RateLimit(rate_limit::Limits::build(limits, rates)?),
    })
}

/// Those that act where a route has something for them, whatever the listener says; they act last.
pub fn of_routes(filters: &mut Vec<Filter>, routes: &RouteTable) {
    let (mut fault, mut session, mut cors) = (false, false, false);
    for route in routes.routes() {
        fault |= route.config.fault.is_some();
        session |= route.config.session.is_some();
        cors |= route.config.cors.is_some();
    }
    if fault && !filters.iter().any(|filter| matches!(filter, Filter::Fault(_))) {
        filters.push(Filter::Fault(fault::FaultFilter::build(&Fault::default())));
    }
    filters.extend(session.then_some(Filter::Session));
    filters.extend(cors.then_some(Filter::Cors));
}

/// What a filter sees.
pub struct Input<'a> {
    pub connection: ConnectionView<'a>,
    pub request: &'a RequestHead,
    /// Which may have its own configuration for the filter; absent: none takes the request, so far.
    pub route: Option<&'a CompiledRoute>,
    /// What its good tokens say.
    pub tokens: Option<&'a Proven>,
}

impl Input<'_> {
    /// As policies look at it.
    pub fn judged(&self) -> WithTokens<'_, RequestHead> {
        WithTokens { request: self.request, tokens: self.tokens, supposed: None }
    }
}

/// What a filter wants.
#[derive(Debug)]
pub enum Verdict {
    /// Go on.
    Continue,
    /// Go on, and keep this until it is answered.
    Keep(State),
    /// Wait, then go on or fail.
    Delay(std::time::Duration, Option<Failure>),
    /// Answer with this.
    Fail(Failure),
    /// The filter does more than look: [`Filter::visit`].
    Visit,
    /// It waits for something: [`Filter::settle`].
    Wait,
}

impl Filter {
    /// Looks at a request.
    pub fn on_request(&self, input: &Input<'_>) -> Verdict {
        match self {
            Self::Rbac(rbac) => rbac.on_request(input),
            Self::Fault(fault) => fault.on_request(input),
            Self::ExtAuthz(authz) => authz.on_request(input),
            Self::RateLimit(limits) => limits.on_request(input),
            Self::Tokens(_) | Self::LocalLimit(_) => Verdict::Visit,
            Self::GlobalLimit(limits) => limits.on_request(input),
            Self::Concurrency(limit) => limit.on_request(),
            Self::Session => session::on_request(input),
            Self::Cors => cors::on_request(input),
        }
    }

    /// Does what it wants with the request, at once.
    ///
    /// # Errors
    /// The request stops here.
    pub fn visit<'v>(&self, visit: &mut impl Visit<'v>) -> Result<After, Stop> {
        match self {
            Self::Tokens(tokens) => tokens.visit(visit),
            Self::LocalLimit(limits) => limits.visit(visit),
            Self::Cors => cors::visit(visit),
            _ => Err(nobody()),
        }
    }

    /// Waits for what it wants.
    ///
    /// # Errors
    /// The request stops here.
    pub async fn settle<'v>(&self, visit: &mut impl Visit<'v>) -> Result<After, Stop> {
        match self {
            Self::ExtAuthz(authz) => authz.settle(visit).await,
            Self::GlobalLimit(limits) => limits.settle(visit).await,
            _ => Err(nobody()),
        }
    }

    /// A response is about to leave, to a request of which it knows this.
    pub fn on_response(&self, state: &mut State, head: &mut ResponseHead, by: By<'_>) {
        if let (Self::Session, State::Session(had), By::Upstream(route, address)) = (self, state, by) {
            session::on_response(*had, head, route, address);
        }
    }

    /// The whole response has left.
    pub fn on_end(&self, state: State, now: Instant) {
        if let (Self::Concurrency(_), State::Permit(permit)) = (self, state) {
            permit.answered(now);
        }
    }
}

/// What wants something of nobody does not pass.
#[cold]
fn nobody() -> Stop {
    let detail = "a filter wants something that it does not do";
    Failure::local(Stage::Authorize, FailureKind::AuthzUnavailable(500), detail).into()
}
