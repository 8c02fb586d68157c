//! When something began, by the clock that people read: hops of one request are put in order by it.

use std::time::{Duration, SystemTime};

use jiff::Timestamp;
use tokio::time::Instant;

/// Two looks at a clock further apart than this had a wait between them.
const CLOSE: Duration = Duration::from_micros(20);
const TRIES: usize = 8;

/// When that was. Both clocks are looked at in the same moment: on a host with much to do a thread may wait between any two
/// instructions, for longer than a hop is from the next.
pub fn began(at: Instant) -> Timestamp {
    let mut closest: Option<(Duration, SystemTime)> = None;
    for _ in 0..TRIES {
        let (before, now, after) = (at.elapsed(), SystemTime::now(), at.elapsed());
        let apart = after.saturating_sub(before);
        if closest.is_none_or(|(known, _)| apart < known) {
            closest = Some((apart, now.checked_sub(before).unwrap_or(SystemTime::UNIX_EPOCH)));
        }
        if apart <= CLOSE {
            break;
        }
    }
    let began = closest.map_or(SystemTime::UNIX_EPOCH, |(_, began)| began);
    Timestamp::try_from(began).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_the_same_time_however_long_ago_that_was() {
        let (before, at, after) = (Timestamp::now(), Instant::now(), Timestamp::now());
        for ago in [Duration::ZERO, Duration::from_secs(30)] {
            let began = began(at.checked_sub(ago).unwrap()) + ago;
            let slack = 2 * CLOSE;
            assert!(began >= before - slack && began <= after + slack, "{before} {began} {after}");
        }
    }
}
