//! Requests that were given up before they had an answer, and how quickly the peer is told.
//!
//! A peer that is told of resets faster than it takes streams ends the connection (RFC 9113, section 10.5): the h2 crate with
//! 20 of them before it has looked, Envoy with 500 in all, nghttp2 with 1000. And with it everybody's streams. So only few
//! resets are under way, the next leave when a PING that followed them was answered; and a connection that has told of many
//! takes no new streams, while the old ones go on.

use std::collections::VecDeque;
use std::task::{Context, Poll};
use std::time::Duration;

use h2::client::ResponseFuture;
use h2::{Ping, PingPong};
use tokio::time::Instant;

use crate::http::send::Sender;
use crate::http::timeout::Timer;

/// Resets under way.
const AT_ONCE: usize = 4;

/// Resets that wait. At a peer far away they become many, each with a place among its streams.
const WAITING: usize = 128;

/// A peer that does not answer a PING for so long is told of all of them.
const PATIENCE: Duration = Duration::from_secs(1);

/// Resets in all: below what the strictest of the peers above takes.
const IN_ALL: u32 = 400;

/// The handles of a stream: dropping them resets it.
type Handles = (ResponseFuture, Sender);

/// The resets of one connection.
#[derive(Default)]
pub struct Cancelled {
    waiting: VecDeque<Handles>,
    under_way: usize,
    told: u32,
    /// When the PING behind those under way has left.
    pinged: Option<Instant>,
    timer: Timer,
}

impl Cancelled {
    /// Takes a stream that nobody waits for. What is returned is to be dropped, outside of any borrow: it wakes the
    /// connection's task.
    #[must_use]
    pub fn add(&mut self, handles: Handles) -> Option<Handles> {
        self.told += 1;
        if self.under_way < AT_ONCE && self.waiting.is_empty() {
            self.under_way += 1;
            return Some(handles);
        }
        self.waiting.push_back(handles);
        None
    }

    /// Counts a reset that leaves at once: the peer has answered, so it has long taken the stream.
    pub fn count(&mut self) {
        self.told += 1;
    }

    /// Streams that the peer does not know yet to be over.
    pub fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// The connection shall take no more streams.
    pub fn is_spent(&self) -> bool {
        self.told >= IN_ALL || self.waiting.len() >= WAITING
    }

    /// Before a turn of the connection: what may leave now.
    pub fn next(&mut self, ping: &mut PingPong, cx: &mut Context<'_>) -> Vec<Handles> {
        let Some(since) = self.pinged else { return Vec::new() };
        let now = if ping.poll_pong(cx).is_ready() {
            self.pinged = None;
            self.under_way = self.waiting.len().min(AT_ONCE);
            self.under_way
        } else if self.waiting.is_empty() || self.timer.poll(cx, Some(since + PATIENCE)).is_pending() {
            0
        } else {
            self.told = IN_ALL;
            self.waiting.len()
        };
        let leave = self.waiting.drain(..now).collect();
        self.discard(cx);
        leave
    }

    /// What comes for the others is not kept. Bodies are bounded by their windows, interim heads by nothing.
    fn discard(&mut self, cx: &mut Context<'_>) {
        for (response, _) in &mut self.waiting {
            while let Poll::Ready(Some(Ok(_))) = response.poll_informational(cx) {}
        }
    }

    /// After it: the resets were written, the PING comes behind them.
    pub fn follow(&mut self, ping: &mut PingPong, cx: &mut Context<'_>) {
        if self.under_way == 0 || self.pinged.is_some() || ping.send_ping(Ping::opaque()).is_err() {
            return;
        }
        self.pinged = Some(Instant::now());
        // The task is to be woken by the answer, which cannot be here yet.
        let _ = ping.poll_pong(cx);
    }
}

#[cfg(test)]
mod tests {
    use std::pin::Pin;
    use std::task::Waker;

    use bytes::Bytes;
    use h2::server::SendResponse;
    use http::{Request, Response};
    use tokio::io::DuplexStream;

    use super::*;

    /// Both ends go on, as far as they can.
    async fn turns(
        client: &mut h2::client::Connection<DuplexStream, Bytes>,
        server: &mut h2::server::Connection<DuplexStream, Bytes>,
        accepted: &mut Vec<SendResponse<Bytes>>,
    ) {
        for _ in 0..8 {
            let mut cx = Context::from_waker(Waker::noop());
            let _ = Pin::new(&mut *client).poll(&mut cx);
            while let Poll::Ready(Some(Ok((_, respond)))) = server.poll_accept(&mut cx) {
                accepted.push(respond);
            }
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test]
    async fn interim_heads_for_streams_that_wait_for_their_reset_are_not_kept() {
        let (near, far) = tokio::io::duplex(64 * 1024);
        let (client, server) = tokio::join!(h2::client::handshake(near), h2::server::handshake(far));
        let ((mut send, mut client), mut server) = (client.unwrap(), server.unwrap());
        let mut ping = client.ping_pong().unwrap();
        let asked: Vec<_> = (0..=AT_ONCE)
            .map(|_| send.send_request(Request::get("http://a/").body(()).unwrap(), true).unwrap())
            .collect();
        let mut accepted = Vec::new();
        turns(&mut client, &mut server, &mut accepted).await;
        assert_eq!(accepted.len(), AT_ONCE + 1);
        for _ in 0..8 {
            let early = Response::builder().status(103).body(()).unwrap();
            accepted[AT_ONCE].send_informational(early).unwrap();
        }
        turns(&mut client, &mut server, &mut accepted).await;

        let mut cancelled = Cancelled::default();
        let mut leave = Vec::new();
        for (response, stream) in asked {
            leave.extend(cancelled.add((response, Sender::h2(Some(stream)))));
        }
        assert_eq!((leave.len(), cancelled.waiting()), (AT_ONCE, 1));
        let mut cx = Context::from_waker(Waker::noop());
        let first = cancelled.waiting[0].0.poll_informational(&mut cx);
        assert!(matches!(first, Poll::Ready(Some(Ok(_)))), "they have come");
        cancelled.follow(&mut ping, &mut cx);
        assert!(cancelled.next(&mut ping, &mut cx).is_empty(), "the PING has not been answered");
        assert!(cancelled.waiting[0].0.poll_informational(&mut cx).is_pending(), "one was kept");
    }
}
