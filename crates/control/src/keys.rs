//! Keys of tokens, fetched from where rules say they are, once for the whole mesh: sidecars get them in place.
//!
//! What was fetched last holds until there is something better; it is stored, so it also holds after a restart while an issuer is away.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use outrigger_rules::intent::KeySource;
use tokio::task::{Id, JoinError, JoinSet};
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
    problem: Option<String>,
}

/// Who is being asked, and in whose share: also for those that no rule names any more.
type Running = BTreeMap<KeySource, String>;

/// What an issuer answers, or why there is nothing.
type Answer = Result<String, String>;

/// Follows what rules want until the keeper is gone.
pub(crate) async fn follow(keeper: Keeper, table: Table) {
    let mut generation = keeper.subscribe();
    let mut places: BTreeMap<KeySource, Place> = BTreeMap::new();
    let mut passed_over = Vec::new();
    let mut asked: JoinSet<Answer> = JoinSet::new();
    let mut tasks: HashMap<Id, KeySource> = HashMap::new();
    let mut running = Running::new();
    loop {
        let (wanted, beyond) = {
            // Not kept while this waits: it is a whole world.
            let published = keeper.published();
            chosen(published.world.key_sources(), |source| published.world.keys(source).is_some())
        };
        let known = places.len();
        places.retain(|source, _| wanted.contains_key(source));
        let mut changed = places.len() < known || beyond != passed_over;
        passed_over = beyond;
        for (source, wish) in wanted {
            let new = || Place { wish: wish.clone(), next: Instant::now(), pause: PAUSE.0, problem: None };
            places.entry(source).or_insert_with(new).wish = wish.clone();
        }
        let now = Instant::now();
        for (source, namespace) in due(&places, &running, now) {
            let Some(place) = places.get(&source) else { continue };
            running.insert(source.clone(), namespace);
            let timeout = place.wish.timeout.clamp(PATIENCE.0, PATIENCE.1);
            let of = source.clone();
            let task = asked.spawn(async move { fetch::keys(&of, timeout).await });
            tasks.insert(task.id(), source);
        }
        // Who is due and was not asked waits for the next answer, which makes room.
        let rests =
            |(source, place): &(&KeySource, &Place)| place.next > now && !running.contains_key(*source);
        let waiting = places.iter().filter(rests).map(|(_, place)| place.next);
        let waiting = waiting.min().unwrap_or(now + REFRESH);
        tokio::select! {
            changed = generation.changed() => {
                if changed.is_err() {
                    return;
                }
            }
            Some(ended) = asked.join_next_with_id() => {
                if let Some((source, answer)) = answered(ended, &mut tasks) {
                    running.remove(&source);
                    changed |= take(&keeper, &mut places, source, answer).await;
                }
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

/// Who has answered, and what. A task that has failed is an answer, too: nobody waits for another.
fn answered(
    ended: Result<(Id, Answer), JoinError>,
    tasks: &mut HashMap<Id, KeySource>,
) -> Option<(KeySource, Answer)> {
    let (task, answer) =
        ended.unwrap_or_else(|error| (error.id(), Err(format!("it cannot be asked: {error}"))));
    Some((tasks.remove(&task)?, answer))
}

/// Those that are asked at all, and the others: there is as much room for each namespace, and of one's places those come first whose keys
/// are known. A place of several is that of whoever has fewest.
fn chosen(
    wanted: BTreeMap<KeySource, KeyWish>,
    knows: impl Fn(&KeySource) -> bool,
) -> (BTreeMap<KeySource, KeyWish>, Vec<KeySource>) {
    if wanted.len() <= MOST {
        return (wanted, Vec::new());
    }
    let mut order: Vec<_> =
        wanted.into_iter().map(|(source, wish)| ((0, !knows(&source)), source, wish)).collect();
    order.sort_by_key(|((_, new), ..)| *new);
    let mut counts: BTreeMap<String, usize> = BTreeMap::new();
    for ((turn, _), _, wish) in &mut order {
        if let Some((namespace, count)) = least(&wish.namespaces, &counts) {
            *turn = count;
            counts.insert(namespace.to_owned(), count + 1);
        }
    }
    order.sort_by_key(|(turn, ..)| *turn);
    let beyond = order.split_off(MOST);
    let mut beyond: Vec<_> = beyond.into_iter().map(|(_, source, _)| source).collect();
    beyond.sort_unstable();
    (order.into_iter().map(|(_, source, wish)| (source, wish)).collect(), beyond)
}

/// Which of some namespaces has the least, and how much.
fn least<'n>(namespaces: &'n BTreeSet<String>, counts: &BTreeMap<String, usize>) -> Option<(&'n str, usize)> {
    let each = namespaces.iter().map(|namespace| (namespace.as_str(), counts.get(namespace).copied()));
    each.map(|(namespace, count)| (namespace, count.unwrap_or(0))).min_by_key(|(_, count)| *count)
}

/// Who is asked next, and in whose share: who has waited longest, as many as there is room for, and of one namespace no more than its share.
fn due(places: &BTreeMap<KeySource, Place>, running: &Running, now: Instant) -> Vec<(KeySource, String)> {
    let mut busy: BTreeMap<String, usize> = BTreeMap::new();
    for namespace in running.values() {
        *busy.entry(namespace.clone()).or_default() += 1;
    }
    let is_due = |(source, place): &(&KeySource, &Place)| place.next <= now && !running.contains_key(*source);
    let mut waiting: Vec<_> = places.iter().filter(is_due).collect();
    waiting.sort_by_key(|(_, place)| place.next);
    let mut room = AT_ONCE.saturating_sub(running.len());
    let mut next = Vec::new();
    for (source, place) in waiting {
        match least(&place.wish.namespaces, &busy) {
            Some((namespace, own)) if room > 0 && own < SHARE => {
                room -= 1;
                busy.insert(namespace.to_owned(), own + 1);
                next.push((source.clone(), namespace.to_owned()));
            }
            _ => {}
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
    answer: Answer,
) -> bool {
    let has = keeper.published().world.keys(&source).is_some();
    let Some(place) = places.get_mut(&source) else { return false };
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

    fn wish(namespaces: &[&str]) -> KeyWish {
        let namespaces = namespaces.iter().map(|name| (*name).to_owned()).collect();
        KeyWish { timeout: Duration::from_secs(5), namespaces }
    }

    fn source(name: &str) -> KeySource {
        KeySource::Url(format!("https://{name}/jwks"))
    }

    fn place(namespaces: &[&str], next: Instant) -> Place {
        Place { wish: wish(namespaces), next, pause: PAUSE.0, problem: None }
    }

    #[test]
    fn a_namespace_of_many_places_takes_none_from_others() {
        // All of its keys are known already.
        let many = (0..400).map(|n| (source(&format!("0{n:03}")), wish(&["greedy"])));
        let (known, new, both) = (source("z-known"), source("z-new"), source("z-both"));
        let others = [
            (known.clone(), wish(&["shop"])),
            (new.clone(), wish(&["bank"])),
            (both.clone(), wish(&["greedy", "other"])),
        ];
        let (taken, beyond) =
            chosen(many.chain(others).collect(), |source| *source != new && *source != both);
        for source in [&known, &new, &both] {
            assert!(taken.contains_key(source), "{source}");
        }
        assert_eq!((taken.len(), beyond.len()), (MOST, 403 - MOST));
        assert!(beyond.iter().all(|source| !taken.contains_key(source)));
    }

    #[test]
    fn of_a_namespace_those_stay_whose_keys_are_known() {
        let many = (0..400).map(|n| (source(&format!("{n:03}")), wish(&["greedy"])));
        let last = source("399");
        assert!(chosen(many.collect(), |source| *source == last).0.contains_key(&last));
    }

    #[test]
    fn who_never_answers_holds_no_more_than_the_share_of_its_namespace() {
        let now = Instant::now();
        let many = (0..40).map(|n| (source(&format!("0{n:02}")), place(&["greedy"], now)));
        let mut places: BTreeMap<_, _> = many.collect();
        places.insert(source("y"), place(&["greedy", "bank"], now));
        places.insert(source("z"), place(&["shop"], now));
        let first: Running = due(&places, &Running::new(), now).into_iter().collect();
        assert_eq!(first.len(), SHARE + 2);
        assert_eq!((first[&source("y")].as_str(), first[&source("z")].as_str()), ("bank", "shop"));
        assert_eq!(due(&places, &first, now), []);
        // Rules that are gone give nothing back before the answer has come.
        places.retain(|source, _| !first.contains_key(source));
        assert_eq!(due(&places, &first, now), []);
    }

    #[tokio::test]
    async fn a_question_that_fails_by_our_own_fault_has_failed() {
        fn broken() -> Answer {
            panic!("broken")
        }
        let mut asked: JoinSet<Answer> = JoinSet::new();
        let (first, second) = (source("first"), source("second"));
        let mut tasks = HashMap::from([(asked.spawn(async { broken() }).id(), first.clone())]);
        let (of, answer) = answered(asked.join_next_with_id().await.unwrap(), &mut tasks).unwrap();
        assert!(of == first && answer.unwrap_err().contains("it cannot be asked"), "{of}");
        tasks.insert(asked.spawn(async { Ok("keys".to_owned()) }).id(), second.clone());
        let answer = answered(asked.join_next_with_id().await.unwrap(), &mut tasks);
        assert_eq!((answer, tasks.len()), (Some((second, Ok("keys".to_owned()))), 0));
    }

    #[test]
    fn who_has_waited_longest_is_next() {
        let now = Instant::now();
        let late = now.checked_sub(Duration::from_secs(9)).unwrap();
        let many = (0..9).map(|n| (source(&format!("0{n}")), place(&["greedy"], now)));
        let mut places: BTreeMap<_, _> = many.collect();
        places.insert(source("z"), place(&["greedy"], late));
        let next = due(&places, &Running::new(), now);
        assert_eq!((next.len(), &next[0].0), (SHARE, &source("z")));
    }
}
