use std::collections::BTreeSet;
use std::convert::Infallible;
use std::future::pending;

use http::{Method, Request, Response};
use http_body_util::{BodyExt, Full};
use kube::client::Body;
use serde_json::Value;
use tokio::time::advance;

use super::*;
use crate::registry::Problem;

fn told(proxies: (usize, usize)) -> Told {
    Told { generation: Some(3), accepted: true, reason: "Accepted", proxies, since: 12, ..Told::default() }
}

/// As it is kept once it is written.
fn known(told: &Told) -> Known {
    Known {
        essence: hash(&told.essence()),
        whole: hash(told),
        at: Instant::now(),
        everywhere: told.is_reached(),
    }
}

#[tokio::test(start_paused = true)]
async fn another_number_of_proxies_is_written_twice_a_minute_at_most() {
    assert!(due(&told((0, 42)), None), "what was never told is told at once");
    let written = known(&told((30, 42)));
    let mut writes = 0;
    let mut last = written;
    // A rollout of a minute and a half, where each second another proxy comes or goes.
    for second in 0..90 {
        advance(Duration::from_secs(1)).await;
        let now = told((31 + second % 7, 42));
        if due(&now, Some(&last)) {
            last = known(&now);
            writes += 1;
        }
    }
    assert_eq!(writes, 3);
    advance(Duration::from_secs(600)).await;
    assert!(!due(&told((30, 42)), Some(&written)), "the same again is never written");
}

#[tokio::test(start_paused = true)]
async fn how_long_a_number_waits_is_known_to_the_round() {
    let before = known(&told((30, 42)));
    assert_eq!(held(&told((30, 42)), &before), None);
    assert_eq!(held(&told((31, 42)), &before), Some(CALM));
    advance(Duration::from_secs(20)).await;
    assert_eq!(held(&told((31, 42)), &before), Some(CALM - Duration::from_secs(20)));
    advance(Duration::from_secs(20)).await;
    assert_eq!(held(&told((31, 42)), &before), Some(Duration::ZERO));
}

#[tokio::test(start_paused = true)]
async fn that_all_have_it_is_said_soon_and_once() {
    let before = known(&told((41, 42)));
    assert_eq!(held(&told((42, 42)), &before), Some(PAUSE));
    advance(PAUSE).await;
    assert!(due(&told((42, 42)), Some(&before)));
    // One that comes, and has it a moment later, is only another number.
    let all = known(&told((42, 42)));
    advance(PAUSE).await;
    assert!(!due(&told((43, 43)), Some(&all)));
    advance(CALM).await;
    assert!(due(&told((43, 43)), Some(&all)));
}

#[tokio::test(start_paused = true)]
async fn whatever_is_no_number_of_proxies_is_written_at_once() {
    let before = known(&told((30, 42)));
    for change in [
        |told: &mut Told| told.generation = Some(4),
        |told: &mut Told| told.since = 13,
        |told: &mut Told| told.lacking = "web-1 refuses it".to_owned(),
        |told: &mut Told| (told.accepted, told.reason) = (false, "Invalid"),
        |told: &mut Told| told.message = "no such host".to_owned(),
        |told: &mut Told| told.parents = vec![json!({"parentRef": {"name": "web"}})],
    ] {
        let mut now = told((30, 42));
        change(&mut now);
        assert!(due(&now, Some(&before)), "{now:?}");
    }
    let silent = Told { unheard: "replica b does not answer".to_owned(), ..told((30, 42)) };
    assert!(!due(&silent, Some(&before)), "a replica that is away for a moment is as a number");
}

/// What an API server was asked for, by the names of rules.
#[derive(Default)]
struct Seen {
    patched: BTreeSet<String>,
    events: Vec<String>,
}

/// A cluster whose rules cannot be read. Each Event is answered by this status; nothing: not at all.
fn cluster(takes: impl Fn(&str) -> Option<u16> + Clone + Send + 'static) -> (Client, Arc<Mutex<Seen>>) {
    cluster_of(takes, |_| false)
}

/// The same, where the authors of some mend them as soon as they have a status.
fn cluster_of(
    takes: impl Fn(&str) -> Option<u16> + Clone + Send + 'static,
    mended: fn(&str) -> bool,
) -> (Client, Arc<Mutex<Seen>>) {
    let seen: Arc<Mutex<Seen>> = Arc::default();
    let all = seen.clone();
    let service = tower::service_fn(move |request: Request<Body>| {
        let (takes, all) = (takes.clone(), all.clone());
        async move {
            let (head, body) = request.into_parts();
            let body = body.collect().await.unwrap().to_bytes();
            let body: Value = serde_json::from_slice(&body).unwrap_or_default();
            let (mut status, path) = (200, head.uri.path().trim_end_matches("/status"));
            let mut name = path.rsplit('/').next().unwrap().to_owned();
            if head.method == Method::PATCH {
                all.lock().patched.insert(name.clone());
            }
            if head.method == Method::POST {
                name = body["regarding"]["name"].as_str().unwrap().to_owned();
                all.lock().events.push(name.clone());
                let Some(answer) = takes(&name) else { return pending().await };
                status = answer;
            }
            let value = if status < 400 {
                let timeout = if all.lock().patched.contains(&name) && mended(&name) { "9s" } else { "soon" };
                json!({
                    "apiVersion": "outrigger.io/v1", "kind": "TrafficRules", "spec": {"service": "web", "timeout": timeout},
                    "metadata": {"name": name, "namespace": "shop", "uid": name, "generation": 1, "resourceVersion": "1"},
                })
            } else {
                json!({"kind": "Status", "status": "Failure", "code": status, "reason": "No", "message": "no"})
            };
            let body = Full::new(bytes::Bytes::from(value.to_string()));
            Ok::<_, Infallible>(Response::builder().status(status).body(body).unwrap())
        }
    });
    (Client::new(service, "shop"), seen)
}

/// Who tells it of so many rules.
async fn reporter(rules: usize) -> Reporter {
    let mut table = Table::new();
    let row = table.add("cluster", "kubernetes");
    let flaw = |n| Problem {
        registry: "cluster".to_owned(),
        file: format!("TrafficRules shop/web-{n}"),
        line: 0,
        message: "spec.timeout must be a duration".to_owned(),
    };
    row.health.set_problems((0..rules).map(flaw).collect());
    let (keeper, _) = crate::keeper::tests::keeper().await;
    let board = Arc::new(Board::new(keeper.published().compiled.audience().clone()));
    Reporter {
        cluster: KubernetesSettings::default(),
        registry: row.name,
        place: 1,
        keeper,
        board,
        table,
        settings: MeshSettings::default(),
        replicas: None,
        leadership: Leadership::alone(),
        events: Mutex::default(),
    }
}

/// Rounds, with the time between them in which there is room for another Event: how many there have been after each.
async fn rounds(count: usize, reporter: &Reporter, client: &Client, seen: &Mutex<Seen>) -> Vec<usize> {
    let (mut known, mut late, mut found) = (HashMap::new(), HashMap::new(), Found::default());
    let mut events = Vec::new();
    for _ in 0..count {
        let (_, trouble) = reporter.round(client, &mut known, &mut late, &mut found).await.unwrap();
        assert_eq!(trouble, None);
        events.push(seen.lock().events.len());
        advance(events::PACE).await;
    }
    events
}

#[tokio::test(start_paused = true)]
async fn who_found_no_room_for_its_event_has_it_later_though_its_status_is_news_no_more() {
    let (client, seen) = cluster(|_| Some(201));
    let reporter = reporter(30).await;
    assert_eq!(rounds(8, &reporter, &client, &seen).await, [25, 26, 27, 28, 29, 30, 30, 30]);
    let seen = seen.lock();
    let told: BTreeSet<String> = seen.events.iter().cloned().collect();
    assert_eq!((told.len(), &told), (30, &seen.patched));
}

#[tokio::test(start_paused = true)]
async fn who_needs_no_event_takes_the_room_of_none() {
    // Objects that have changed since they were judged, before the watch has said so.
    let (client, seen) = cluster_of(|_| Some(201), |name| !name.starts_with("web-2"));
    let reporter = reporter(40).await;
    assert_eq!(rounds(3, &reporter, &client, &seen).await, [11, 11, 11]);
    assert!(seen.lock().events.iter().all(|name| name.starts_with("web-2")));
    // Events that whoever led before has made.
    let (client, seen) = cluster(|_| Some(409));
    let reporter = self::reporter(40).await;
    assert_eq!(rounds(2, &reporter, &client, &seen).await, [40, 40]);
}

/// As with a webhook for everything that is away: statuses are not its matter.
#[tokio::test(start_paused = true)]
async fn an_api_server_that_has_no_time_for_events_has_all_statuses_written() {
    for answer in [None, Some(500), Some(429)] {
        let (client, seen) = cluster(move |_| answer);
        let reporter = reporter(30).await;
        let begun = Instant::now();
        assert_eq!(rounds(3, &reporter, &client, &seen).await, [1, 2, 3], "one in each round: {answer:?}");
        assert!(begun.elapsed() < 3 * (events::PACE + EVENT) + EVENT, "{answer:?}");
        let seen = seen.lock();
        assert_eq!(seen.patched.len(), 30, "{answer:?}");
        let tried: BTreeSet<&String> = seen.events.iter().collect();
        assert_eq!(tried.len(), 3, "who had no time comes last: {answer:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn an_event_that_is_refused_is_asked_for_once_and_keeps_no_other() {
    let (client, seen) = cluster(|name| Some(if name == "web-1" { 403 } else { 201 }));
    let reporter = reporter(3).await;
    assert_eq!(rounds(3, &reporter, &client, &seen).await, [3, 3, 3]);
    assert_eq!(seen.lock().events.iter().filter(|name| *name == "web-1").count(), 1);
}
