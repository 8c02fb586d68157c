//! Request filters, compiled when the runtime is built: run in order, once per request, before the retry loop (`http/chain.rs`).
//!
//! To add one: a file in `filter/` that implements [`Build`] and [`Act`], and a row here. A filter looks at a request and lets it pass,
//! stops it, or wants a [`Visit`], in which it may edit, answer, hold the body and ask a cluster.

use std::borrow::Cow;
use std::net::SocketAddr;

use outrigger_model::ext_authz::How;
use outrigger_model::listener::HttpFilter;
use outrigger_model::request::ConnectionView;
use outrigger_model::resource::Flaw;
use outrigger_model::route::session::Token;
use outrigger_model::route::table::{CompiledRoute, RouteTable};
use outrigger_model::token::{Proven, WithTokens};
use tokio::time::Instant;

pub use self::act::{Act, Build, Place, Tallies, Tunnel};
pub use self::visit::{After, Stop, Visit};
use super::head::{RequestHead, ResponseHead};
use crate::failure::Failure;
use crate::runtime::concurrency::Permit;

pub mod act;
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

/// One row for each filter: those that configurations have, under the names that they have there, and those that only routes ask for.
macro_rules! filters {
    (
        configured { $($(#[$what:meta])* $name:ident($filter:ty),)* }
        of_routes { $($(#[$whose:meta])* $own:ident($routes:ty),)* }
    ) => {
        /// A compiled request filter.
        #[derive(Debug)]
        pub enum Filter {
            $($(#[$what])* $name($filter),)*
            $($(#[$whose])* $own($routes),)*
        }

        /// Compiles a filter.
        ///
        /// # Errors
        /// The field that cannot be taken, and why.
        pub fn build(config: &HttpFilter, place: &Place<'_>) -> Result<Filter, Flaw> {
            match config {
                $(HttpFilter::$name(config) => <$filter as Build>::build(config, place).map(Filter::$name),)*
            }
        }

        /// What is said of each is done by the one that there is.
        macro_rules! each {
            ($of:ident, $one:ident => $done:expr) => {
                match $of {
                    $(Self::$name($one) => $done,)*
                    $(Self::$own($one) => $done,)*
                }
            };
        }
    };
}

filters! {
    configured {
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
    }
    of_routes {
        /// Sessions.
        Session(session::Sessions),
        /// Pages of other origins.
        Cors(cors::CrossOrigin),
    }
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
        filters.push(Filter::Fault(fault::FaultFilter::default()));
    }
    filters.extend(session.then_some(Filter::Session(session::Sessions)));
    filters.extend(cors.then_some(Filter::Cors(cors::CrossOrigin)));
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
    /// The filter does more than look: [`Act::visit`].
    Visit,
    /// It waits for something: [`Act::settle`].
    Wait,
}

impl Act for Filter {
    #[inline]
    fn on_request(&self, input: &Input<'_>) -> Verdict {
        each!(self, filter => filter.on_request(input))
    }

    fn visit<'v>(&self, visit: &mut impl Visit<'v>) -> Result<After, Stop> {
        each!(self, filter => filter.visit(visit))
    }

    async fn settle<'v>(&self, visit: &mut impl Visit<'v>) -> Result<After, Stop> {
        each!(self, filter => filter.settle(visit).await)
    }

    fn on_response(&self, state: &mut State, head: &mut ResponseHead, by: By<'_>) {
        each!(self, filter => filter.on_response(state, head, by));
    }

    fn on_end(&self, state: State, now: Instant) {
        each!(self, filter => filter.on_end(state, now));
    }

    fn judges(&self) -> bool {
        each!(self, filter => filter.judges())
    }

    fn takes_tokens(&self) -> bool {
        each!(self, filter => filter.takes_tokens())
    }

    fn judge_again(&self, tunnel: &mut Tunnel<'_>) -> Result<(), Failure> {
        each!(self, filter => filter.judge_again(tunnel))
    }

    fn tally<'t>(&'t self, all: &mut Tallies<'t>) {
        each!(self, filter => filter.tally(all));
    }
}
