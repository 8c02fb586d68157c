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
use crate::world::KeyWish;

mod fetch;

/// Between two looks at the keys of an issuer (Istio's): it shows new ones for longer before it uses them.
const REFRESH: Duration = Duration::from_secs(20 * 60);
/// Before an issuer that failed is asked again: at first, and at most.
const PAUSE: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));
/// Places that are asked at all.
const MOST: usize = 256;
/// Asked at once.
const AT_ONCE: usize = 16;
/// How long one may be waited for: who never answers holds one of those places.
const PATIENCE: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));
/// How problems call it.
const NAME: &str = "keys";

/// Of those for one namespace.
const SHARE: usize = AT_ONCE / 4;

/// One place.
struct Place {
    wish: KeyWish,
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
        let published = keeper.published();
        let (wanted, beyond) =
            chosen(published.world.key_sources(), |source| published.world.keys(source).is_some());
        let known = places.len();
        places.retain(|source, _| wanted.contains_key(source));
        let mut changed = places.len() < known || beyond != passed_over;
        passed_over = beyond;
        for (source, wish) in wanted {
            let new = || Place {
                wish: wish.clone(),
                next: Instant::now(),
                pause: PAUSE.0,
                asked: false,
                problem: None,
            };
            places.entry(source).or_insert_with(new).wish = wish.clone();
        }
        let now = Instant::now();
        for source in due(&places, now) {
            let Some(place) = places.get_mut(&source) else { continue };
            place.asked = true;
            let timeout = place.wish.timeout.clamp(PATIENCE.0, PATIENCE.1);
            asked.spawn(async move {
                let keys = fetch::keys(&source, timeout).await;
                (source, keys)
            });
        }
        // Who is due and was not asked waits for the next answer, which makes room.
        let waiting =
            places.values().filter(|place| !place.asked && place.next > now).map(|place| place.next);
        let waiting = waiting.min().unwrap_or(now + REFRESH);
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
                    "not asked: rules name more than {MOST} places, and this is beyond its namespace's share of them"
                )
            };
            let beyond = passed_over.iter().map(|source| problem(source, why()));
            let failing =
                places.iter().filter_map(|(source, place)| Some(problem(source, place.problem.clone()?)));
            table.set_key_problems(failing.chain(beyond).collect());
        }
    }
}

/// Those that are asked at all, and the others: those whose keys are known stay, and what room is left is shared out among namespaces.
fn chosen(
    wanted: BTreeMap<KeySource, KeyWish>,
    knows: impl Fn(&KeySource) -> bool,
) -> (BTreeMap<KeySource, KeyWish>, Vec<KeySource>) {
    if wanted.len() <= MOST {
        return (wanted, Vec::new());
    }
    let mut of_namespace: BTreeMap<String, usize> = BTreeMap::new();
    let mut order: Vec<_> = wanted
        .into_iter()
        .map(|(source, wish)| {
            let known = knows(&source);
            let before = of_namespace.entry(wish.namespace.clone()).or_default();
            let turn = if known { 0 } else { *before };
            *before += usize::from(!known);
            ((!known, turn), source, wish)
        })
        .collect();
    order.sort_by_key(|(turn, ..)| *turn);
    let beyond = order.split_off(MOST);
    let mut beyond: Vec<_> = beyond.into_iter().map(|(_, source, _)| source).collect();
    beyond.sort_unstable();
    (order.into_iter().map(|(_, source, wish)| (source, wish)).collect(), beyond)
}

/// Who is asked next: as many as there is room for, and of one namespace no more than its share.
fn due(places: &BTreeMap<KeySource, Place>, now: Instant) -> Vec<KeySource> {
    let mut busy: BTreeMap<&str, usize> = BTreeMap::new();
    for place in places.values().filter(|place| place.asked) {
        *busy.entry(&place.wish.namespace).or_default() += 1;
    }
    let mut room = AT_ONCE.saturating_sub(busy.values().sum());
    let mut next = Vec::new();
    for (source, place) in places.iter().filter(|(_, place)| !place.asked && place.next <= now) {
        let own = busy.entry(&place.wish.namespace).or_default();
        if room > 0 && *own < SHARE {
            (room, *own) = (room - 1, *own + 1);
            next.push(source.clone());
        }
    }
    next
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

#[cfg(test)]
mod tests {
    use super::*;

    fn wish(namespace: &str) -> KeyWish {
        KeyWish { timeout: Duration::from_secs(5), namespace: namespace.into() }
    }

    fn source(name: &str) -> KeySource {
        KeySource::Url(format!("https://{name}/jwks"))
    }

    #[test]
    fn a_namespace_of_many_places_takes_none_from_others() {
        let many = (0..400).map(|n| (source(&format!("0{n:03}")), wish("greedy")));
        let (known, new) = (source("z-known"), source("z-new"));
        let others = [(known.clone(), wish("shop")), (new.clone(), wish("bank"))];
        let (taken, beyond) = chosen(many.chain(others).collect(), |source| *source == known);
        assert!(taken.contains_key(&known) && taken.contains_key(&new));
        assert_eq!((taken.len(), beyond.len()), (MOST, 402 - MOST));
        assert!(beyond.iter().all(|source| !taken.contains_key(source)));
    }

    #[test]
    fn who_never_answers_holds_no_more_than_the_share_of_its_namespace() {
        let now = Instant::now();
        let place = |namespace| Place {
            wish: wish(namespace),
            next: now,
            pause: PAUSE.0,
            asked: false,
            problem: None,
        };
        let mut places: BTreeMap<_, _> =
            (0..40).map(|n| (source(&format!("0{n:02}")), place("greedy"))).collect();
        places.insert(source("z"), place("shop"));
        let first = due(&places, now);
        assert_eq!(first.len(), SHARE + 1);
        assert!(first.contains(&source("z")));
        for source in first {
            places.get_mut(&source).unwrap().asked = true;
        }
        assert_eq!(due(&places, now), []);
    }
}
