use tokio::time::advance;

use super::*;

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
