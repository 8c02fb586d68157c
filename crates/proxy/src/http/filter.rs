//! Request filters, compiled when the runtime is built: run in order, once per request, before the retry loop.
//!
//! To add one: a file in `filter/` and a row here.

use std::borrow::Cow;

use outrigger_model::ext_authz::How;
use outrigger_model::listener::HttpFilter;
use outrigger_model::request::ConnectionView;
use outrigger_model::resource::Flaw;
use outrigger_model::route::Fault;
use outrigger_model::route::table::RouteTable;
use outrigger_model::token::{Proven, WithTokens};

use super::head::RequestHead;
use crate::failure::Failure;
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
pub mod tokens;

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

/// What a filter sees.
pub struct Input<'a> {
    pub connection: ConnectionView<'a>,
    pub request: &'a RequestHead,
    /// The route's own fault, which replaces the listener's.
    pub route_fault: Option<&'a Fault>,
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
    /// Go on, and hold this until it is answered.
    Admitted(Permit),
    /// Wait, then go on or fail.
    Delay(std::time::Duration, Option<Failure>),
    /// Answer with this.
    Fail(Failure),
    /// Somebody must be asked first, or its tokens be looked at, or its route.
    Ask,
}

impl Filter {
    /// Looks at a request.
    pub fn on_request(&self, input: &Input<'_>) -> Verdict {
        match self {
            Self::Rbac(rbac) => rbac.on_request(input),
            Self::ExtAuthz(authz) if authz.concerns(input) => Verdict::Ask,
            Self::Tokens(_) | Self::LocalLimit(_) => Verdict::Ask,
            Self::ExtAuthz(_) => Verdict::Continue,
            Self::RateLimit(limits) => limits.on_request(input),
            Self::Concurrency(limit) => limit.on_request(),
            Self::GlobalLimit(limits) => limits.on_request(input),
            Self::Fault(fault) => fault::plan(input.route_fault.unwrap_or(fault.config())),
        }
    }
}
