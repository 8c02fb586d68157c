//! Who waits for a stream of an endpoint's connections: for the next one that ends, or for a connection that is being made.
//!
//! A stream that is free again is that of whoever has waited longest; who comes later does not take it from under them.

use std::cell::Cell;
use std::rc::Rc;

use tokio::sync::Notify;
use tokio::sync::futures::Notified;

use super::dial::{Dial, Outcome};

/// The queue.
#[derive(Default)]
pub(super) struct Room {
    waiting: Cell<u32>,
    freed: Notify,
}

impl Room {
    /// How many wait.
    pub(super) fn waiting(&self) -> usize {
        self.waiting.get() as usize
    }

    /// So many streams more can be had.
    #[inline]
    pub(super) fn freed(&self, streams: usize) {
        if self.waiting.get() > 0 {
            (0..streams.min(self.waiting())).for_each(|_| self.freed.notify_one());
        }
    }
}

/// A place in the queue, as long as it lives.
pub(in crate::upstream::pool) struct Place(Rc<Room>);

impl Place {
    pub(super) fn new(room: Rc<Room>) -> Self {
        room.waiting.set(room.waiting.get() + 1);
        Self(room)
    }

    /// Waits until a stream is free, which is nothing, or until a connection has been made or has not.
    pub(in crate::upstream::pool) async fn next<'d>(&self, dial: &'d Dial) -> Option<&'d Outcome> {
        let _claim = dial.claim();
        let freed: Notified<'_> = self.0.freed.notified();
        tokio::select! {
            biased;
            outcome = dial.outcome() => Some(outcome),
            () = freed => None,
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.waiting.set(self.0.waiting.get().saturating_sub(1));
    }
}
