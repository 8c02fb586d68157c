//! Requests of a worker that wait for a connection to an endpoint where connections are limited: what another request of the worker has
//! used is handed on to the oldest of them, instead of being closed to make room for another of the same.

use std::cell::RefCell;
use std::collections::BTreeMap;

use tokio::sync::oneshot;

use super::{FastMap, H1Conn, Place};

#[derive(Default)]
struct Line {
    next: u64,
    /// By when they came.
    waiting: BTreeMap<u64, oneshot::Sender<H1Conn>>,
}

/// All lines of a worker.
#[derive(Default)]
pub struct Queues(RefCell<FastMap<Place, Line>>);

/// A request in line; it leaves when this is dropped.
pub struct QueuePlace<'q> {
    queues: &'q Queues,
    place: Place,
    number: u64,
    hand: oneshot::Receiver<H1Conn>,
}

impl Queues {
    /// Goes to the end of a line.
    pub fn join(&self, place: Place) -> QueuePlace<'_> {
        let (sender, hand) = oneshot::channel();
        let mut lines = self.0.borrow_mut();
        let line = lines.entry(place).or_default();
        let number = line.next;
        line.next += 1;
        line.waiting.insert(number, sender);
        QueuePlace { queues: self, place, number, hand }
    }

    /// How long a line is.
    pub fn length(&self, place: &Place) -> usize {
        self.0.borrow().get(place).map_or(0, |line| line.waiting.len())
    }

    /// Hands a connection on; yields it where nobody wants it.
    pub fn offer(&self, mut conn: H1Conn) -> Option<H1Conn> {
        let mut lines = self.0.borrow_mut();
        let Some(line) = lines.get_mut(&conn.place()) else { return Some(conn) };
        while let Some((_, first)) = line.waiting.pop_first() {
            match first.send(conn) {
                Ok(()) => return None,
                Err(back) => conn = back,
            }
        }
        Some(conn)
    }
}

impl QueuePlace<'_> {
    /// What is handed on.
    pub async fn handed(&mut self) -> H1Conn {
        match (&mut self.hand).await {
            Ok(conn) => conn,
            // Whoever holds the sender sends.
            Err(_) => std::future::pending().await,
        }
    }
}

impl Drop for QueuePlace<'_> {
    fn drop(&mut self) {
        let mut lines = self.queues.0.borrow_mut();
        let Some(line) = lines.get_mut(&self.place) else { return };
        line.waiting.remove(&self.number);
        if line.waiting.is_empty() {
            lines.remove(&self.place);
        }
    }
}
