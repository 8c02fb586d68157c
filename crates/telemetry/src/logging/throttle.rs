//! How often a line is written that a stranger can cause: a burst, then a few in a second. The next line says how many were
//! left out.
//!
//! A line is throttled that comes from a library (a peer that breaks its protocol), or that names a `remote` or a `node` and no `id`: whoever
//! connects causes it. Others have a [`Throttle`] of their own where they are written. Each line has its own count, so that a
//! flood of one hides no other; one that names an `identity` has one for each, so that nobody hides by a flood what another was given.

use std::collections::HashMap;
use std::fmt;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tracing::callsite::Identifier;
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Metadata, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::Context;

/// Lines at once.
const BURST: u32 = 50;

/// After that, one line in so much time.
const EVERY: Duration = Duration::from_millis(200);

/// Bounds the rate of a line; a `static` beside it.
#[derive(Debug, Default)]
pub struct Throttle(Mutex<Window>);

#[derive(Debug, Default)]
struct Window {
    /// Of the burst.
    used: u32,
    /// When one of the burst was last given back.
    since: Option<Instant>,
    suppressed: u64,
}

impl Throttle {
    /// Nothing was written yet.
    pub const fn new() -> Self {
        Self(Mutex::new(Window { used: 0, since: None, suppressed: 0 }))
    }

    /// Whether the line may be written, and how many were left out since the last.
    pub fn admit(&self) -> Option<u64> {
        self.admit_at(Instant::now(), 1)
    }

    /// The same of so many times as many lines.
    fn admit_at(&self, now: Instant, times: u32) -> Option<u64> {
        let mut state = self.0.lock();
        let (since, every) = (*state.since.get_or_insert(now), EVERY / times);
        let earned = now.saturating_duration_since(since).as_millis() / every.as_millis();
        if earned > 0 {
            let earned = u32::try_from(earned).unwrap_or(u32::MAX);
            state.used = state.used.saturating_sub(earned);
            state.since = Some(if state.used == 0 { now } else { since + every * earned });
        }
        if state.used >= BURST * times {
            state.suppressed += 1;
            return None;
        }
        state.used += 1;
        Some(std::mem::take(&mut state.suppressed))
    }
}

/// Throttles what strangers cause; as many throttles as there are such lines in the program.
#[derive(Default)]
pub(super) struct Strangers(Mutex<Throttles>);

/// By line, and whom it is about.
type Throttles = HashMap<(Identifier, Option<u64>), Arc<Throttle>>;

/// Lines and identities that are counted: with more of them all begin anew.
const MOST: usize = 20_000;

/// Stands for all whom a line is about, and how many times as many lines they have together as one.
const EVERYBODY: u64 = 0;
const WIDER: u32 = 20;

/// Whom a line is about.
#[derive(Default)]
struct Whom(Option<u64>);

impl Visit for Whom {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        if field.name() == "identity" {
            let mut hasher = DefaultHasher::new();
            format!("{value:?}").hash(&mut hasher);
            self.0 = Some(hasher.finish());
        }
    }
}

/// Whether anybody can cause the line.
fn is_a_strangers(metadata: &Metadata<'_>) -> bool {
    let names = |field| metadata.fields().field(field).is_some();
    !metadata.target().starts_with("outrigger") || ((names("remote") || names("node")) && !names("id"))
}

impl<S: Subscriber> Layer<S> for Strangers {
    fn event_enabled(&self, event: &Event<'_>, _context: Context<'_, S>) -> bool {
        let metadata = event.metadata();
        // Whoever asks for more wants all of it.
        if *metadata.level() > Level::INFO || !is_a_strangers(metadata) {
            return true;
        }
        let mut whom = Whom::default();
        event.record(&mut whom);
        let mut all = self.0.lock();
        if all.len() >= MOST {
            all.retain(|(_, whom), _| whom.is_none_or(|whom| whom == EVERYBODY));
        }
        let throttle = all.entry((metadata.callsite(), whom.0)).or_default().clone();
        // Names may be made up: all of them together have so many.
        let together = whom.0.map(|_| all.entry((metadata.callsite(), Some(EVERYBODY))).or_default().clone());
        drop(all);
        let now = Instant::now();
        let together = together.map_or(Some(0), |together| together.admit_at(now, WIDER));
        let Some(suppressed) = together.and_then(|others| Some(others + throttle.admit_at(now, 1)?)) else {
            return false;
        };
        if suppressed > 0 {
            tracing::warn!(suppressed, of = metadata.target(), "lines were left out");
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_then_a_few_and_the_next_says_how_many_are_missing() {
        let throttle = Throttle::new();
        let began = Instant::now();
        let admitted = (0..1000).filter(|_| throttle.admit_at(began, 1) == Some(0)).count();
        assert_eq!(admitted, BURST as usize);
        assert_eq!(throttle.admit_at(began + EVERY, 1), Some(950));
        assert_eq!(throttle.admit_at(began + EVERY, 1), None);
        // In the long run so many in a second and no more.
        let later = (2..=101).filter_map(|n| throttle.admit_at(began + EVERY * n, 1)).count();
        assert_eq!(later, 100);
        let rested = began + Duration::from_secs(3600);
        assert_eq!((0..1000).filter(|_| throttle.admit_at(rested, 1).is_some()).count(), BURST as usize);
    }

    #[test]
    fn a_strangers_flood_is_cut_and_hides_nothing_else() {
        use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
        use tracing_subscriber::layer::SubscriberExt;

        struct Count(Arc<[AtomicUsize; 6]>);
        impl<S: Subscriber> Layer<S> for Count {
            fn on_event(&self, event: &Event<'_>, _context: Context<'_, S>) {
                let line = match event.metadata().target() {
                    "h2::proto" => 0,
                    "outrigger_a" => 1,
                    "outrigger_c" => 3,
                    "outrigger_d" => 4,
                    "outrigger_e" => 5,
                    _ => 2,
                };
                self.0[line].fetch_add(1, Relaxed);
            }
        }
        let counts: Arc<[AtomicUsize; 6]> = Arc::default();
        let subscriber =
            tracing_subscriber::registry().with(Strangers::default()).with(Count(counts.clone()));
        tracing::subscriber::with_default(subscriber, || {
            for _ in 0..500 {
                tracing::warn!(target: "h2::proto", "a stranger did something");
                tracing::info!(target: "outrigger_a", remote = "1.2.3.4", "refused");
                tracing::info!(target: "outrigger_b", remote = "1.2.3.4", id = "a", "who changed what");
                tracing::info!(target: "outrigger_c", node = "web-1", "a member did something");
            }
            let issued = |identity: &str| {
                tracing::info!(target: "outrigger_d", remote = "1.2.3.4", %identity, "issued");
            };
            (0..500).for_each(|_| issued("web"));
            issued("bank");
            // Whoever makes names up has as many lines as twenty, whatever they are.
            for n in 0..30_000 {
                tracing::info!(target: "outrigger_e", remote = "1.2.3.4", identity = %n, "issued");
            }
        });
        let [library, refused, ours, members, issued, made_up] =
            [0, 1, 2, 3, 4, 5].map(|line| counts[line].load(Relaxed));
        // A hundred more in each second that it takes.
        let most = (BURST * WIDER) as usize;
        assert!((most..most * 3).contains(&made_up), "{made_up} lines");
        // The line that tells of what is missing counts as neither.
        assert!((500..520).contains(&ours), "{ours} lines");
        // One of them is of another identity, which has nothing to do with that flood.
        assert!(issued > BURST as usize, "{issued} lines");
        for lines in [library, refused, members, issued - 1] {
            assert!((BURST as usize..BURST as usize + 20).contains(&lines), "{lines} lines");
        }
    }
}
