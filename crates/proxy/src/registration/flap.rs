//! An application that comes and goes: out at once, back after a pause that doubles each time it does not stay, so that a check on
//! the edge does not make the whole mesh a new configuration every second.

use std::time::Duration;

use tokio::time::Instant;

use super::Standing;

/// Of the pause, when it begins to be one, and at most.
const LEAST: Duration = Duration::from_secs(1);
const LONGEST: Duration = Duration::from_secs(60);
/// Whoever has stayed for so long has not come to go.
const STAYED: Duration = Duration::from_secs(60);

/// What was told, and how soon the next may be.
#[derive(Debug, Default)]
pub(super) struct Flap {
    told: Option<Standing>,
    /// When it came back last.
    back: Option<Instant>,
    pause: Duration,
    /// Until then it stays out.
    until: Option<Instant>,
}

impl Flap {
    /// What is to be told of this.
    pub(super) fn damp(&self, state: Standing, now: Instant) -> Standing {
        match self.told {
            Some(Standing::Unhealthy) if state == Standing::Running && self.held(now).is_some() => {
                Standing::Unhealthy
            }
            _ => state,
        }
    }

    /// Until when it is kept out.
    pub(super) fn held(&self, now: Instant) -> Option<Instant> {
        self.until.filter(|until| *until > now)
    }

    /// It has been told.
    pub(super) fn told(&mut self, state: Standing, now: Instant) {
        match (self.told, state) {
            (Some(Standing::Running), Standing::Unhealthy) => {
                let stayed = self.back.is_none_or(|back| now.duration_since(back) >= STAYED);
                self.pause = if stayed { Duration::ZERO } else { (self.pause * 2).clamp(LEAST, LONGEST) };
                self.until = Some(now + self.pause);
            }
            (Some(Standing::Unhealthy), Standing::Running) => self.back = Some(now),
            _ => {}
        }
        self.told = Some(state);
    }
}
