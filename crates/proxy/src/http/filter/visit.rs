//! What a filter may do with a request that it does not only look at. Filters are compiled with the configuration and know no request;
//! requests know their configuration: this trait is between them, and `http/chain/visit.rs` is its other side.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use outrigger_model::identity::SpiffeId;
use outrigger_model::route::HeaderEdits;
use outrigger_model::route::table::CompiledRoute;
use outrigger_model::token::{Known, Proven};

use super::{Input, ResponseEdit};
use crate::failure::Failure;
use crate::http::call::message::Answer;
use crate::http::head::RequestHead;
use crate::http::respond::Local;

/// What follows for a request that goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum After {
    Same,
    /// Routes are looked for again.
    Reroute,
}

/// Why a request goes no further.
pub enum Stop {
    Failed(Failure),
    /// A filter has answered it.
    Answered(Box<Local>, &'static str),
}

impl From<Failure> for Stop {
    fn from(failure: Failure) -> Self {
        Self::Failed(failure)
    }
}

/// What is held of a body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Held {
    Whole,
    /// More follows.
    Part,
    /// Nothing: there is no memory for it.
    NoRoom,
}

/// A request at a filter.
pub trait Visit<'v> {
    /// Its route, if there is one.
    fn route(&self) -> Option<&'v CompiledRoute>;

    /// As filters see it that only look.
    fn input(&self) -> Input<'_>;

    /// Who we are.
    fn own(&self) -> Option<&SpiffeId>;

    fn is_grpc(&self) -> bool;

    /// It asks for another protocol: what follows its head is a tunnel's, and may never end.
    fn is_upgrade(&self) -> bool;

    /// Of its body, where it says so.
    fn length(&self) -> Option<u64>;

    fn head_mut(&mut self) -> &mut RequestHead;

    /// What applications take for these names goes, and trailers have neither: only the filter says them.
    fn keep_out(&mut self, names: &Arc<Vec<String>>);

    /// For the response, whoever makes it.
    fn respond(&mut self, edits: impl IntoIterator<Item = ResponseEdit>);

    /// Writes what is configured into the request, which may name its route: nothing where it has none.
    fn write(&mut self, edits: &HeaderEdits);

    /// The same for the answer that is made of a failure.
    fn write_refusal(&mut self, edits: &HeaderEdits, failure: &Failure);

    /// For the access log.
    fn flag(&mut self, flag: &'static str);

    /// What is remembered of tokens.
    fn tokens<T>(&mut self, now: u64, look: impl FnOnce(&RequestHead, &mut dyn Known) -> T) -> T;

    /// What its good tokens say, for the filters that follow.
    fn prove(&mut self, proven: Proven);

    /// The service of the filter of this name is asked about it: open tunnels are judged by that.
    fn note_asked(&mut self, filter: &str);

    /// Reads so many bytes of its body, and whether more follow; when it is forwarded they are read again. The client is watched meanwhile.
    ///
    /// # Errors
    /// The client is gone, or time is up.
    fn hold(&mut self, most: usize) -> impl Future<Output = Result<Held, Failure>>;

    /// What is held of its body, up to so many bytes.
    fn held(&self, most: usize) -> &[u8];

    /// Sends this to a cluster and waits for the whole answer, or for what became of it; the client is watched meanwhile.
    ///
    /// # Errors
    /// The client is gone, or time is up for the request itself.
    fn call(
        &mut self,
        cluster: &str,
        head: RequestHead,
        body: Bytes,
        timeout: Duration,
    ) -> impl Future<Output = Result<Result<Answer, Failure>, Failure>>;
}
