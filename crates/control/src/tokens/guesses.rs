//! Wrong tokens, by where they come from: whoever guesses is not even looked at for a while.
//!
//! A secret has 256 bits, so guessing is hopeless; what this bounds is the noise that it makes, and a weakness that nobody
//! knows yet. Others behind the same address wait with the guesser, unless they have a certificate, or a token that the keys of
//! a cluster have signed.
//!
//! Of IPv6 whoever has an address may have all of its network of 64 bits, and a node's Pods, or a cluster's, may share one. So
//! there are two rings: an address has its share, its network that of several, which no address alone takes from the others.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// Wrong tokens that a source may show at once.
const BURST: u32 = 20;
/// After that, one in this time.
const EACH: Duration = Duration::from_secs(3);
/// So many addresses' share a network has.
const NETWORK: u32 = 16;
/// Sources that are remembered.
const SOURCES: usize = 4096;

/// Who has shown wrong tokens.
#[derive(Default)]
pub(super) struct Guesses {
    /// When the last wrong token of a source is made up for.
    until: Mutex<HashMap<Source, Instant>>,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum Source {
    Address(IpAddr),
    /// The first 64 bits.
    Network(u64),
}

impl Guesses {
    /// Whether a token of this source is looked at.
    ///
    /// # Errors
    /// After which time it is.
    pub(super) fn admit(&self, source: IpAddr, now: Instant) -> Result<(), Duration> {
        let until = self.until.lock();
        let waits = |of: Source| {
            let debt = until.get(&of)?.saturating_duration_since(now);
            // The last of a burst has room for itself.
            debt.checked_sub(EACH * BURST - of.each()).filter(|wait| !wait.is_zero())
        };
        match rings(source).filter_map(waits).max() {
            None => Ok(()),
            Some(wait) => Err(wait),
        }
    }

    /// A source has shown a wrong token.
    pub(super) fn wrong(&self, source: IpAddr, now: Instant) {
        let mut until = self.until.lock();
        for source in rings(source) {
            if until.len() >= SOURCES && !until.contains_key(&source) {
                until.retain(|_, until| *until > now);
                // All of them guess at this moment: the one that has guessed least makes room.
                let least = until.iter().min_by_key(|(_, until)| **until).map(|(source, _)| *source);
                if let Some(least) = least.filter(|_| until.len() >= SOURCES) {
                    until.remove(&least);
                }
            }
            let made_up = until.entry(source).or_insert(now);
            *made_up = (*made_up).max(now) + source.each();
        }
    }
}

impl Source {
    /// What a wrong token costs it.
    fn each(self) -> Duration {
        match self {
            Self::Address(_) => EACH,
            Self::Network(_) => EACH / NETWORK,
        }
    }
}

/// The address, and of IPv6 its network.
fn rings(source: IpAddr) -> impl Iterator<Item = Source> {
    let source = source.to_canonical();
    let network = match source {
        IpAddr::V6(v6) => u64::try_from(v6.to_bits() >> 64).ok().map(Source::Network),
        IpAddr::V4(_) => None,
    };
    [Source::Address(source)].into_iter().chain(network)
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
        let near = source("2001:db8::2");
        assert_eq!(guesses.admit(near, end), Ok(()), "another Pod of the node");
        assert!(guesses.admit(evil, end - Duration::from_secs(2)).is_err());
        assert_eq!(guesses.admit(evil, end + Duration::from_secs(60)), Ok(()));
    }

    #[test]
    fn whoever_has_all_addresses_of_a_network_is_slowed_too() {
        let (guesses, start) = (Guesses::default(), Instant::now());
        let source = |n: u32| format!("2001:db8::{n:x}").parse::<IpAddr>().unwrap();
        let mut taken = 0;
        for n in 0..60_000 {
            // Each comes once, a hundred in a second.
            let now = start + Duration::from_millis(10) * n;
            if guesses.admit(source(n), now).is_ok() {
                guesses.wrong(source(n), now);
                taken += 1;
            }
        }
        let most = (BURST + 200) * NETWORK;
        assert!((most - NETWORK..=most + NETWORK).contains(&taken), "as sixteen addresses alone: {taken}");
        assert_eq!(guesses.admit("2001:db8:0:1::1".parse().unwrap(), start), Ok(()));
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
