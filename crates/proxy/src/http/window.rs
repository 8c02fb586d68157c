//! Receive windows of HTTP/2 connections, on both sides.
//!
//! The h2 crate gives credit back to stream and connection together, when the bytes were consumed. So a connection's window
//! must hold all that its streams may be sent: with less, a few streams whose bytes nobody takes starve the others. What a
//! peer can make us hold is bounded by the streams' windows instead, which shrink as there are more of them.
//!
//! ```text
//! streams   up to 64   up to 256   more
//! window     256 KiB      64 KiB   16 KiB     together 16 MiB at most; 40 MiB with what was granted before
//! ```

use std::time::Duration;

use tokio::time::Instant;

/// Receive window of a stream: enough for 100 Mbit/s at 20 ms.
pub const STREAM: u32 = STEPS[0].1;

/// Streams of a connection, of a client that calls us and of ours to an upstream.
pub const MAX_STREAMS: u32 = 1024;

/// Receive window of a connection: no stream waits for another's. It is no promise of memory, see above.
pub const CONNECTION: u32 = MAX_STREAMS * STREAM;

/// Streams up to which a window is granted.
const STEPS: [(usize, u32); 3] = [(64, 256 * 1024), (256, 64 * 1024), (usize::MAX, 16 * 1024)];

/// A peer that has not acknowledged a smaller window for so long never will (RFC 9113, section 6.5.3).
const PATIENCE: Duration = Duration::from_secs(5);

/// The window that a connection's streams have.
#[derive(Default)]
pub struct Windows {
    step: usize,
    /// The h2 crate takes no new window while the peer owes the acknowledgement of the last.
    owed_since: Option<Instant>,
}

/// The peer ignores our SETTINGS.
#[derive(Debug, PartialEq, Eq)]
pub struct Unacknowledged;

impl Windows {
    /// Fits the window to the number of open streams. `set` announces it, and fails while the peer owes an acknowledgement.
    ///
    /// # Errors
    /// The peer owes it for too long.
    #[inline]
    pub fn follow<E>(
        &mut self,
        open: usize,
        set: impl FnOnce(u32) -> Result<(), E>,
    ) -> Result<(), Unacknowledged> {
        let enough = open <= STEPS[self.step].0;
        // Grows again at half of what made it shrink.
        if enough && (self.step == 0 || open > STEPS[self.step - 1].0 / 2) {
            self.owed_since = None;
            return Ok(());
        }
        self.change(open, set)
    }

    #[cold]
    fn change<E>(
        &mut self,
        open: usize,
        set: impl FnOnce(u32) -> Result<(), E>,
    ) -> Result<(), Unacknowledged> {
        let step = STEPS.iter().position(|(most, _)| open <= *most).unwrap_or(STEPS.len() - 1);
        if set(STEPS[step].1).is_ok() {
            (self.step, self.owed_since) = (step, None);
            return Ok(());
        }
        let since = *self.owed_since.get_or_insert_with(Instant::now);
        if step > self.step && since.elapsed() > PATIENCE { Err(Unacknowledged) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_shrink_with_the_streams_and_grow_again() {
        let mut windows = Windows::default();
        let mut set = Vec::new();
        for open in [1, 64, 65, 200, 256, 257, 1024, 200, 128, 40, 32, 1] {
            windows
                .follow(open, |size| -> Result<(), ()> {
                    set.push((open, size / 1024));
                    Ok(())
                })
                .unwrap();
        }
        assert_eq!(set, [(65, 64), (257, 16), (128, 64), (32, 256)]);
    }

    #[test]
    fn streams_together_are_granted_what_the_connection_holds() {
        for (streams, window) in [(64, 256), (256, 64), (MAX_STREAMS as usize, 16)] {
            assert!(streams * window * 1024 <= 16 << 20);
        }
        assert_eq!(CONNECTION as usize, MAX_STREAMS as usize * STREAM as usize);
    }

    #[tokio::test(start_paused = true)]
    async fn a_peer_that_acknowledges_nothing_is_given_up() {
        let mut windows = Windows::default();
        windows.follow(65, |_| Ok::<_, ()>(())).unwrap();
        assert_eq!(windows.follow(257, |_| Err(())), Ok(()));
        tokio::time::advance(PATIENCE * 2).await;
        assert_eq!(windows.follow(257, |_| Err(())), Err(Unacknowledged));
    }
}
