//! Keys of tokens, fetched from where rules say they are, once for the whole mesh: sidecars get them in place.
//!
//! What was fetched last holds until there is something better; it is stored, so it also holds after a restart while an issuer is away.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use outrigger_rules::intent::KeySource;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};

use crate::keeper::Keeper;
use crate::registry::Problem;
use crate::registry::health::Table;

mod fetch;

/// Between two looks at the keys of an issuer (Istio's): it shows new ones for longer before it uses them.
const REFRESH: Duration = Duration::from_secs(20 * 60);
/// Before an issuer that failed is asked again: at first, and at most.
const PAUSE: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));
/// Places that are asked at all.
const MOST: usize = 256;
/// Asked at once.
const AT_ONCE: usize = 16;
/// How problems call it.
const NAME: &str = "keys";

/// One place.
struct Place {
    timeout: Duration,
    next: Instant,
    pause: Duration,
    asked: bool,
    problem: Option<String>,
}

/// Follows what rules want until the keeper is gone.
pub(crate) async fn follow(keeper: Keeper, table: Table) {
    let mut generation = keeper.subscribe();
    let mut places: BTreeMap<KeySource, Place> = BTreeMap::new();
    let mut passed_over = Vec::new();
    let mut asked: JoinSet<(KeySource, Result<String, String>)> = JoinSet::new();
    loop {
        let mut wanted = keeper.published().world.key_sources();
        let beyond: Vec<KeySource> = wanted.keys().skip(MOST).cloned().collect();
        wanted.retain(|source, _| !beyond.contains(source));
        let known = places.len();
        places.retain(|source, _| wanted.contains_key(source));
        let mut changed = places.len() < known || beyond != passed_over;
        passed_over = beyond;
        for (source, timeout) in wanted {
            let new = || Place { timeout, next: Instant::now(), pause: PAUSE.0, asked: false, problem: None };
            places.entry(source).or_insert_with(new).timeout = timeout;
        }
        let now = Instant::now();
        let due = places.iter_mut().filter(|(_, place)| !place.asked && place.next <= now);
        for (source, place) in due.take(AT_ONCE.saturating_sub(asked.len())) {
            place.asked = true;
            let (source, timeout) = (source.clone(), place.timeout);
            asked.spawn(async move {
                let keys = fetch::keys(&source, timeout).await;
                (source, keys)
            });
        }
        let waiting = places.values().filter(|place| !place.asked).map(|place| place.next).min();
        // Full: the next answer makes room.
        let waiting = waiting.filter(|_| asked.len() < AT_ONCE).unwrap_or(now + REFRESH);
        tokio::select! {
            changed = generation.changed() => {
                if changed.is_err() {
                    return;
                }
            }
            Some(Ok((source, answer))) = asked.join_next() => {
                changed |= take(&keeper, &mut places, source, answer).await;
            }
            () = sleep_until(waiting) => {}
        }
        if changed {
            let why = || {
                format!(
                    "not asked: rules name more than {MOST} places, of which this is beyond the first by name"
                )
            };
            let beyond = passed_over.iter().map(|source| problem(source, why()));
            let failing =
                places.iter().filter_map(|(source, place)| Some(problem(source, place.problem.clone()?)));
            table.set_key_problems(failing.chain(beyond).collect());
        }
    }
}

fn problem(source: &KeySource, message: String) -> Problem {
    Problem { registry: NAME.to_owned(), file: source.to_string(), line: 0, message }
}

/// Takes an answer; whether problems are others now.
async fn take(
    keeper: &Keeper,
    places: &mut BTreeMap<KeySource, Place>,
    source: KeySource,
    answer: Result<String, String>,
) -> bool {
    let has = keeper.published().world.keys(&source).is_some();
    let Some(place) = places.get_mut(&source) else { return false };
    place.asked = false;
    let answer = match answer {
        Ok(keys) => keeper.learn(source.clone(), Arc::from(keys)).await.map_err(|error| error.to_string()),
        Err(why) => Err(why),
    };
    let problem = match answer {
        Ok(_) => {
            (place.pause, place.next) = (PAUSE.0, Instant::now() + REFRESH);
            None
        }
        Err(why) => {
            place.next = Instant::now() + place.pause;
            place.pause = (place.pause * 2).min(PAUSE.1);
            let holds = match has {
                true => "the keys that it had hold",
                false => "until there are keys its tokens are refused",
            };
            Some(format!("{why}; {holds}"))
        }
    };
    let changed = place.problem != problem;
    if changed && let Some(why) = &problem {
        tracing::warn!(keys = %source, "{why}");
    }
    place.problem = problem;
    changed
}
