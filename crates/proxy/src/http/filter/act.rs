//! What filters do: each implements [`Build`] and, of [`Act`], what it has to say; the rest lets all pass.

use std::future::ready;
use std::sync::Arc;

use outrigger_model::request::ConnectionView;
use outrigger_model::resource::Flaw;
use outrigger_model::route::table::{CompiledRoute, RouteTable};
use outrigger_model::token::{Known, Proven};
use tokio::time::Instant;

use super::visit::{After, Stop, Visit};
use super::{By, Input, State, Verdict};
use crate::failure::{Failure, FailureKind, Stage};
use crate::http::head::{RequestHead, ResponseHead};
use crate::runtime::concurrency::Controller;
use crate::runtime::rate::tally::{Refusals, Tally};
use crate::runtime::rate::{Counts, Rates};

/// Where a filter is compiled.
pub struct Place<'a> {
    /// Its listener, chain and number.
    pub name: &'a str,
    /// They may have their own word.
    pub routes: &'a RouteTable,
    /// The counts of limits, which go on.
    pub rates: &'a Rates,
}

/// A filter as it is made from its configuration.
pub trait Build: Sized {
    type Config: ?Sized;

    /// Compiles it.
    ///
    /// # Errors
    /// The field that cannot be taken, and why.
    fn build(config: &Self::Config, place: &Place<'_>) -> Result<Self, Flaw>;
}

impl<F: Build> Build for Box<F> {
    type Config = F::Config;

    fn build(config: &F::Config, place: &Place<'_>) -> Result<Self, Flaw> {
        F::build(config, place).map(Self::new)
    }
}

/// What a filter does with requests, their responses and tunnels.
pub trait Act {
    /// Looks at a request.
    fn on_request(&self, input: &Input<'_>) -> Verdict;

    /// Does what it wants with a request, at once: after [`Verdict::Visit`].
    ///
    /// # Errors
    /// The request stops here.
    fn visit<'v>(&self, _visit: &mut impl Visit<'v>) -> Result<After, Stop> {
        Err(nobody())
    }

    /// Waits for what it wants: after [`Verdict::Wait`].
    ///
    /// # Errors
    /// The request stops here.
    fn settle<'v>(&self, _visit: &mut impl Visit<'v>) -> impl Future<Output = Result<After, Stop>> {
        ready(Err(nobody()))
    }

    /// A response is about to leave, to a request of which it keeps this.
    fn on_response(&self, _state: &mut State, _head: &mut ResponseHead, _by: By<'_>) {}

    /// The whole response has left.
    fn on_end(&self, _state: State, _now: Instant) {}

    /// What a request may do depends on what it is: bytes that come without a request are none of whom it would let pass.
    fn judges(&self) -> bool {
        true
    }

    /// It takes tokens out of heads: tunnels keep what they came with.
    fn takes_tokens(&self) -> bool {
        false
    }

    /// Judges an open tunnel as the request that it stands for. Who counts requests or delays them has done so.
    ///
    /// # Errors
    /// It is forbidden now.
    fn judge_again(&self, _tunnel: &mut Tunnel<'_>) -> Result<(), Failure> {
        Ok(())
    }

    /// What it has counted, for metrics.
    fn tally<'t>(&'t self, _all: &mut Tallies<'t>) {}
}

/// What wants something of nobody does not pass.
#[cold]
fn nobody() -> Stop {
    let detail = "a filter wants something that it does not do";
    Failure::local(Stage::Authorize, FailureKind::AuthzUnavailable(500), detail).into()
}

/// An open tunnel.
pub struct Tunnel<'t> {
    pub connection: ConnectionView<'t>,
    /// As it came to the filters, and as they left it.
    pub came: &'t RequestHead,
    pub judged: &'t RequestHead,
    /// When it came, in seconds since 1970.
    pub at: u64,
    /// The route of now.
    pub route: Option<&'t CompiledRoute>,
    /// The services that were asked about it, by the names of their filters.
    pub asked: &'t [String],
    /// What is remembered of tokens.
    pub known: &'t mut dyn Known,
    /// What its tokens say by the rules of now.
    pub proven: Proven,
    /// There are some that nobody can look at yet: the keys are still to come.
    pub waits: bool,
}

impl Tunnel<'_> {
    /// As it was judged.
    pub fn input(&self) -> Input<'_> {
        Input {
            connection: self.connection,
            request: self.judged,
            route: self.route,
            tokens: Some(&self.proven),
        }
    }
}

/// What filters have counted, each once: chains and listeners share them.
#[derive(Default)]
pub struct Tallies<'t> {
    pub counts: Vec<&'t Arc<Counts>>,
    pub refusals: Vec<&'t Arc<Refusals>>,
    pub services: Vec<&'t Arc<Tally>>,
    pub controllers: Vec<&'t Arc<Controller>>,
}

/// Adds one that is not there yet.
pub fn add<'t, T>(all: &mut Vec<&'t Arc<T>>, one: &'t Arc<T>) {
    if !all.iter().any(|known| Arc::ptr_eq(known, one)) {
        all.push(one);
    }
}
