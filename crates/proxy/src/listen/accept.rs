//! The accept loop: a permit, a connection, a task. An error never ends it.

use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use outrigger_telemetry::logging::Throttle;
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::spawn_local;
use tokio::time::Instant;

use super::orig_dst::Original;
use super::{Bound, Purpose};
use crate::conn::{self, Accepted};
use crate::descriptors::Descriptor;
use crate::intercept::probe;
use crate::stream::{Stream, Unanswered};
use crate::upstream::connect::prepare;
use crate::worker::Worker;

/// Downstream connections of one worker: far above any sidecar's, so that a flood meets a limit before memory does.
pub const MAX_CONNECTIONS: usize = 32 * 1024;

/// Pause after an error that will not go away by itself at once: no descriptors, no memory.
const PAUSE: Duration = Duration::from_millis(50);

/// Who finds no room for so long is refused: better a clear end than a wait in the queue of the kernel.
const PATIENCE: Duration = Duration::from_secs(1);

static FULL: Throttle = Throttle::new();
static FAILED: Throttle = Throttle::new();
static LOST: Throttle = Throttle::new();

/// A connection's place among the worker's, and its descriptor.
pub(crate) type Room = (OwnedSemaphorePermit, Descriptor);

/// Room for one more connection; those that rest make way.
pub(crate) async fn room(worker: &Worker, permits: &Arc<Semaphore>) -> Option<Room> {
    let until = Instant::now() + PATIENCE;
    loop {
        let taken = take(worker, permits);
        if taken.is_some() || Instant::now() >= until {
            return taken;
        }
        worker.way.make_room();
        tokio::time::sleep(PAUSE).await;
    }
}

fn take(worker: &Worker, permits: &Arc<Semaphore>) -> Option<Room> {
    let permit = permits.clone().try_acquire_owned().ok()?;
    Some((permit, worker.process.descriptors.downstream()?))
}

/// Accepts until the drain; outbound until the process ends, because the application may still need it.
pub async fn run(worker: Rc<Worker>, bound: Bound, permits: Arc<Semaphore>) {
    let Bound { listener, address, purpose, original } = bound;
    let listener = match TcpListener::from_std(listener) {
        Ok(listener) => listener,
        Err(error) => {
            tracing::error!(%address, %error, "the socket cannot be used");
            return;
        }
    };
    worker.process.loops.accepting(address);
    let is_inbound = matches!(purpose, Purpose::Inbound { .. });
    let drain = worker.process.drain.clone();
    let mut draining = std::pin::pin!(async {
        if is_inbound {
            drain.draining().await;
        } else {
            std::future::pending::<()>().await;
        }
    });
    loop {
        let room = room(&worker, &permits).await;
        let accepted = tokio::select! {
            biased;
            accepted = listener.accept() => accepted,
            // Only once the queue is empty: what the kernel has accepted would be reset when the socket closes.
            () = &mut draining => return,
        };
        let (tcp, source) = match accepted {
            Ok(accepted) => accepted,
            Err(error) if is_the_clients(&error) => continue,
            Err(error) => {
                if let Some(suppressed) = FAILED.admit() {
                    tracing::warn!(%address, %error, suppressed, "cannot accept; trying again");
                }
                worker.way.make_room();
                tokio::time::sleep(PAUSE).await;
                continue;
            }
        };
        let Some(room) = room.or_else(|| take(&worker, &permits)) else {
            if let Some(suppressed) = FULL.admit() {
                tracing::warn!(%address, %source, suppressed, "no room for a connection and nobody rests; it is reset");
            }
            drop(Unanswered::from(Stream::Tcp(tcp)));
            continue;
        };
        prepare(&tcp);
        let Original { address: destination, transparent } = match original.of(&tcp, address) {
            Ok(original) => original,
            Err(error) => {
                if let Some(suppressed) = LOST.admit() {
                    tracing::info!(%source, %error, suppressed, "a connection has no original destination; it is reset");
                }
                drop(Unanswered::from(Stream::Tcp(tcp)));
                continue;
            }
        };
        if !is_inbound && probe::ADDRESSES.contains(&destination) {
            spawn_local(answer(tcp, worker.clone()));
            continue;
        }
        let accepted = Accepted { tcp, source, destination, transparent, purpose: purpose.clone() };
        let guard = drain.guard();
        // Not an async block: that would have room for the future twice.
        spawn_local(conn::serve(worker.clone(), accepted).map(move |()| drop((guard, room))));
    }
}

/// Tells a probe that the rules brought it to us. So few bytes always fit.
async fn answer(mut tcp: TcpStream, worker: Rc<Worker>) {
    let _ = tcp.write_all(worker.process.token.bytes()).await;
}

/// The connection went away before it was accepted; the next is not affected.
fn is_the_clients(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionReset, Interrupted, WouldBlock};
    matches!(error.kind(), ConnectionAborted | ConnectionReset | Interrupted | WouldBlock)
}
