//! Wrong tokens, by where they come from: whoever guesses is not even looked at for a while.
//!
//! A secret has 256 bits, so guessing is hopeless; what this bounds is the noise that it makes, and a weakness that nobody
//! knows yet. Others behind the same address wait with the guesser, unless they have a certificate.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// Wrong tokens that a source may show at once.
const BURST: u32 = 20;
/// After that, one in this time.
const EACH: Duration = Duration::from_secs(3);
/// Sources that are remembered.
const SOURCES: usize = 4096;

/// Who has shown wrong tokens.
#[derive(Default)]
pub(super) struct Guesses {
    /// When the last wrong token of a source is made up for.
    until: Mutex<HashMap<IpAddr, Instant>>,
}

impl Guesses {
    /// Whether a token of this source is looked at.
    ///
    /// # Errors
    /// After which time it is.
    pub(super) fn admit(&self, source: IpAddr, now: Instant) -> Result<(), Duration> {
        let until = self.until.lock();
        let debt =
            until.get(&network(source)).map_or(Duration::ZERO, |until| until.saturating_duration_since(now));
        match debt.checked_sub(EACH * (BURST - 1)) {
            None | Some(Duration::ZERO) => Ok(()),
            Some(wait) => Err(wait),
        }
    }

    /// A source has shown a wrong token.
    pub(super) fn wrong(&self, source: IpAddr, now: Instant) {
        let mut until = self.until.lock();
        let source = network(source);
        if until.len() >= SOURCES && !until.contains_key(&source) {
            until.retain(|_, until| *until > now);
            // All of them guess at this moment: the one that has guessed least makes room.
            let least = until.iter().min_by_key(|(_, until)| **until).map(|(source, _)| *source);
            if let Some(least) = least.filter(|_| until.len() >= SOURCES) {
                until.remove(&least);
            }
        }
        let made_up = until.entry(source).or_insert(now);
        *made_up = (*made_up).max(now) + EACH;
    }
}

/// What one guesser has: an IPv4 address, or a /64 of IPv6.
fn network(source: IpAddr) -> IpAddr {
    match source.to_canonical() {
        IpAddr::V6(v6) => IpAddr::V6((v6.to_bits() >> 64 << 64).into()),
        v4 => v4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guesser_is_slowed_and_nobody_else_is() {
        let (guesses, start) = (Guesses::default(), Instant::now());
        let source = |text: &str| text.parse::<IpAddr>().unwrap();
        let (evil, honest) = (source("2001:db8::1"), source("2001:db8:0:1::1"));
        let mut taken = 0;
        for tenth in 0..6000 {
            let now = start + Duration::from_millis(100) * tenth;
            if guesses.admit(evil, now).is_ok() {
                guesses.wrong(evil, now);
                taken += 1;
            }
            assert_eq!(guesses.admit(honest, now), Ok(()));
        }
        assert!(
            (219..=221).contains(&taken),
            "20 at once, then one in three seconds for ten minutes: {taken}"
        );
        let end = start + Duration::from_secs(600);
        assert!(guesses.admit(source("2001:db8::2"), end - Duration::from_secs(2)).is_err(), "the same /64");
        assert_eq!(guesses.admit(evil, end + Duration::from_secs(60)), Ok(()));
    }

    #[test]
    fn the_memory_of_guessers_is_bounded() {
        let (guesses, now) = (Guesses::default(), Instant::now());
        for n in 0..2 * SOURCES as u32 {
            guesses.wrong(IpAddr::V4(n.into()), now);
        }
        assert!(guesses.until.lock().len() <= SOURCES);
    }
}
