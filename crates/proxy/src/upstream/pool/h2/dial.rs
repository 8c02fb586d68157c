//! One attempt to make an HTTP/2 connection, whose outcome all share that wait for it.
//!
//! It has a task of its own: the client that came first may leave without the others starting over.

use std::cell::{Cell, OnceCell};
use std::rc::Rc;

use tokio::sync::Notify;

use super::{Known, Siblings};
use crate::failure::{Failure, FailureKind, Retry, Stage};

/// What came of it.
pub enum Outcome {
    Connected(Rc<Known>),
    /// The peer speaks only HTTP/1: everybody needs a connection of its own.
    Http1,
    Failed(Failure),
}

/// An attempt.
#[derive(Default)]
pub struct Dial {
    outcome: OnceCell<Outcome>,
    over: Notify,
    claims: Cell<u32>,
}

/// A request that waits for an attempt, as long as it lives.
pub struct Claim<'d>(&'d Dial);

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        self.0.claims.set(self.0.claims.get().saturating_sub(1));
    }
}

impl Dial {
    /// Waits for it.
    pub fn claim(&self) -> Claim<'_> {
        self.claims.set(self.claims.get() + 1);
        Claim(self)
    }

    /// How many wait for it.
    pub fn claims(&self) -> u32 {
        self.claims.get()
    }

    /// Waits for the end.
    pub async fn outcome(&self) -> &Outcome {
        loop {
            let over = self.over.notified();
            if let Some(outcome) = self.outcome.get() {
                return outcome;
            }
            over.await;
        }
    }
}

/// The attempt's end, however it comes.
pub struct Dialling {
    shared: Siblings,
    dial: Rc<Dial>,
}

impl Dialling {
    pub(super) fn new(shared: Siblings, dial: Rc<Dial>) -> Self {
        Self { shared, dial }
    }

    /// Tells all.
    pub fn ended(self, outcome: Outcome) {
        let _ = self.dial.outcome.set(outcome);
    }
}

impl Drop for Dialling {
    fn drop(&mut self) {
        self.shared.0.dials.borrow_mut().retain(|dial| !Rc::ptr_eq(dial, &self.dial));
        // Without an outcome the task was dropped with its runtime.
        self.dial.outcome.get_or_init(|| {
            let detail = "the attempt to connect was dropped";
            Outcome::Failed(Failure::upstream(
                Stage::Connect,
                FailureKind::ConnectFailed,
                Retry::Safe,
                detail,
            ))
        });
        self.dial.over.notify_waiters();
    }
}
