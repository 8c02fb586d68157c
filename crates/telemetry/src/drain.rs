//! The end of a process, in order: a signal begins the drain, users leave, a deadline forces the rest.
//!
//! ```text
//! serving --begin()--> draining --last guard dropped--> idle
//!                          \-----deadline or second signal-----> forced
//! ```
//!
//! What draining means (GOAWAY, `Connection: close`, grace periods) is the business of those who wait for it.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{Notify, oneshot, watch};

/// How far the end has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// Normal life.
    Serving,
    /// New work is discouraged, present work goes on.
    Draining,
    /// The deadline has passed: cut what is left.
    Forced,
}

struct Inner {
    phase: watch::Sender<Phase>,
    active: AtomicUsize,
    /// Rung whenever `active` falls to zero.
    idle: Notify,
}

/// The drain token; cheap to clone, usable from any runtime.
#[derive(Clone)]
pub struct Drain {
    inner: Arc<Inner>,
}

/// Users were still active at the deadline and have been told to stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{active} connections were still active when the drain deadline of {deadline:?} passed; they are cut"
)]
pub struct Forced {
    /// Guards that were still held.
    pub active: usize,
    /// The time that they had.
    pub deadline: Duration,
}

impl Default for Drain {
    fn default() -> Self {
        Self::new()
    }
}

impl Drain {
    /// A token in phase serving.
    pub fn new() -> Self {
        let phase = watch::Sender::new(Phase::Serving);
        Self { inner: Arc::new(Inner { phase, active: AtomicUsize::new(0), idle: Notify::new() }) }
    }

    /// Begins the drain; `false` if it had begun before.
    pub fn begin(&self) -> bool {
        self.advance(Phase::Draining)
    }

    /// Skips to the end: whoever is active is to be cut.
    pub fn force(&self) -> bool {
        self.advance(Phase::Forced)
    }

    fn advance(&self, to: Phase) -> bool {
        self.inner.phase.send_if_modified(|phase| {
            let later = *phase < to;
            if later {
                *phase = to;
            }
            later
        })
    }

    /// The present phase.
    pub fn phase(&self) -> Phase {
        *self.inner.phase.borrow()
    }

    /// Whether the drain has begun.
    pub fn is_draining(&self) -> bool {
        self.phase() >= Phase::Draining
    }

    /// Whether what is left has to be cut.
    pub fn is_forced(&self) -> bool {
        self.phase() >= Phase::Forced
    }

    /// Resolves when the drain begins, at once if it has begun.
    pub async fn draining(&self) {
        self.reached(Phase::Draining).await;
    }

    /// Resolves when what is left has to be cut.
    pub async fn forced(&self) {
        self.reached(Phase::Forced).await;
    }

    async fn reached(&self, wanted: Phase) {
        let mut phase = self.inner.phase.subscribe();
        // The sender lives in `self`, so waiting cannot end for lack of one.
        let _ = phase.wait_for(|phase| *phase >= wanted).await;
    }

    /// Counts one user (a connection, a stream) until the guard is dropped.
    pub fn guard(&self) -> DrainGuard {
        self.inner.active.fetch_add(1, SeqCst);
        DrainGuard { inner: self.inner.clone() }
    }

    /// Users at this moment.
    pub fn active(&self) -> usize {
        self.inner.active.load(SeqCst)
    }

    /// Waits until nobody is active, at most `deadline`; then forces, so that [`Drain::forced`] resolves.
    pub async fn wait_idle(&self, deadline: Duration) -> Result<(), Forced> {
        tokio::select! {
            biased;
            () = self.idle() => Ok(()),
            () = self.forced() => Err(Forced { active: self.active(), deadline }),
            () = tokio::time::sleep(deadline) => {
                let active = self.active();
                self.force();
                Err(Forced { active, deadline })
            }
        }
    }

    async fn idle(&self) {
        loop {
            let rung = self.inner.idle.notified();
            tokio::pin!(rung);
            // Registered before the count is read: a guard dropped in between rings for us.
            rung.as_mut().enable();
            if self.active() == 0 {
                return;
            }
            rung.await;
        }
    }
}

/// Proof that somebody is still at work.
#[must_use = "the user counts only while the guard lives"]
pub struct DrainGuard {
    inner: Arc<Inner>,
}

impl Drop for DrainGuard {
    fn drop(&mut self) {
        if self.inner.active.fetch_sub(1, SeqCst) == 1 {
            self.inner.idle.notify_waiters();
        }
    }
}

/// Begins the drain at the first SIGTERM or SIGINT and forces it at the second; returns after that.
///
/// The handlers are installed when this is first polled; an error means that they could not be.
pub async fn on_signals(drain: Drain) -> io::Result<()> {
    let mut term = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    for step in [Phase::Draining, Phase::Forced] {
        let name = tokio::select! {
            _ = term.recv() => "SIGTERM",
            _ = interrupt.recv() => "SIGINT",
        };
        match step {
            Phase::Forced => tracing::warn!("{name} again: stopping at once"),
            _ => tracing::info!("{name}: draining"),
        }
        drain.advance(step);
    }
    Ok(())
}

/// Resolves when the other end of `pipe` is gone, for instance because the parent that held it has died.
///
/// A thread of its own reads, so that any kind of descriptor will do and the shared file description is not
/// switched to non-blocking; the thread ends at EOF or with the process. Bytes that arrive are ignored.
pub async fn parent_pipe(pipe: OwnedFd) -> io::Result<()> {
    let (gone, wait) = oneshot::channel();
    let read = move || {
        let mut pipe = File::from(pipe);
        let mut sink = [0; 64];
        loop {
            match pipe.read(&mut sink) {
                Ok(0) => break,
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // A pipe that cannot be read is as good as closed: better an early end than an orphan.
                Err(_) => break,
            }
        }
        let _ = gone.send(());
    };
    std::thread::Builder::new().name("parent-pipe".to_owned()).stack_size(64 * 1024).spawn(read)?;
    let _ = wait.await;
    Ok(())
}

/// [`parent_pipe`] on a duplicate of stdin.
pub async fn parent_stdin() -> io::Result<()> {
    parent_pipe(io::stdin().as_fd().try_clone_to_owned()?).await
}

#[cfg(test)]
mod tests;
