//! The accept loop: a permit, a connection, a task. An error never ends it.

use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::spawn_local;

use super::orig_dst::Original;
use super::{Bound, Purpose};
use crate::conn::{self, Accepted};
use crate::intercept::probe;
use crate::upstream::connect::prepare;
use crate::worker::Worker;

/// Downstream connections of one worker: far above any sidecar's, so that a flood meets a limit before memory does.
pub const MAX_CONNECTIONS: usize = 32 * 1024;

/// Pause after an error that will not go away by itself at once: no descriptors, no memory.
const PAUSE: Duration = Duration::from_millis(50);

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
    let is_inbound = matches!(purpose, Purpose::Inbound { .. });
    let drain = worker.shared.drain.clone();
    let mut draining = std::pin::pin!(async {
        if is_inbound {
            drain.draining().await;
        } else {
            std::future::pending::<()>().await;
        }
    });
    loop {
        // The semaphore is never closed.
        let Ok(permit) = permits.clone().acquire_owned().await else { return };
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
                tracing::warn!(%address, %error, "cannot accept; trying again");
                tokio::time::sleep(PAUSE).await;
                continue;
            }
        };
        prepare(&tcp);
        let Original { address: destination, transparent } = match original.of(&tcp, address) {
            Ok(original) => original,
            Err(error) => {
                tracing::info!(%source, %error, "a connection has no original destination; it is closed");
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
        spawn_local(conn::serve(worker.clone(), accepted).map(move |()| drop((guard, permit))));
    }
}

/// Tells a probe that the rules brought it to us. So few bytes always fit.
async fn answer(mut tcp: TcpStream, worker: Rc<Worker>) {
    let _ = tcp.write_all(worker.shared.token.bytes()).await;
}

/// The connection went away before it was accepted; the next is not affected.
fn is_the_clients(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionReset, Interrupted, WouldBlock};
    matches!(error.kind(), ConnectionAborted | ConnectionReset | Interrupted | WouldBlock)
}
