use tokio::time::{Instant, Interval, interval_at};

use super::health::{Condition, Table};
use super::opened::keep;
use super::*;
use crate::instance::{Protocol, sample};

/// Says one thing each time, and fails.
struct Restless {
    times: usize,
    asked: mpsc::Sender<Instant>,
}

impl Registry for Restless {
    async fn follow(&mut self, voice: &Voice) -> Result<(), String> {
        let _ = self.asked.send(Instant::now()).await;
        self.times += 1;
        // The third and fourth time there is nobody.
        if ![3, 4].contains(&self.times) {
            voice.say("part", Event::Reset(Vec::new())).await?;
        }
        Err(format!("trouble {}", self.times))
    }
}

#[tokio::test(start_paused = true)]
async fn a_registry_that_fails_is_asked_less_and_less_until_it_says_something() {
    let mut table = Table::new();
    let row = table.add("restless", "test");
    assert_eq!(row.condition(), Condition::Away, "it was never heard");
    let (asked, mut times) = mpsc::channel(1);
    let (words, mut heard) = mpsc::channel(WORDS);
    let voice = Voice::new(1, &row, words, &BTreeMap::new());
    let keeping = tokio::spawn(keep(Restless { times: 0, asked }, voice));
    let mut last = times.recv().await.unwrap();
    let mut pauses = Vec::new();
    for _ in 0..5 {
        let next = times.recv().await.unwrap();
        pauses.push((next - last).as_millis());
        last = next;
    }
    assert_eq!(pauses, [500, 500, 1000, 2000, 500]);
    let state = row.health.state();
    assert_eq!((state.failures, state.error.unwrap().message), (6, "trouble 6".to_owned()));
    assert_eq!(row.condition(), Condition::Away);
    tokio::time::advance(Duration::from_millis(400)).await;
    assert_eq!(state.heard.unwrap().elapsed().as_millis(), 400, "it ages");
    assert!(
        matches!(heard.recv().await, Some(Word::Event(source, _)) if source.to_string() == "registry \"restless\" (part)")
    );
    drop(heard);
    keeping.await.unwrap();
}

/// Of a registry that is played: by the clock of the test, which stands still but for what waits.
fn every(seconds: u64) -> Interval {
    let pause = Duration::from_secs(seconds);
    interval_at(Instant::now() + pause, pause)
}

#[tokio::test(start_paused = true)]
async fn a_start_waits_as_long_as_a_listing_goes_on_and_no_longer() {
    /// Lists a page every 20 s; behind the last it only answers.
    struct Large {
        pages: usize,
        whole: bool,
    }
    impl Registry for Large {
        async fn follow(&mut self, voice: &Voice) -> Result<(), String> {
            let mut pages = every(20);
            for _ in 0..self.pages {
                pages.tick().await;
                voice.heard();
            }
            if self.whole {
                voice.say("Pod", Event::Reset(Vec::new())).await?;
                voice.whole().await?;
            }
            let mut answers = every(10);
            loop {
                answers.tick().await;
                voice.is_there();
            }
        }
    }
    for (whole, seconds) in [(true, 180..=180), (false, 180..=240)] {
        let mut table = Table::new();
        let row = table.add("cluster", "kubernetes");
        let (words, receiver) = mpsc::channel(WORDS);
        let voice = Voice::new(1, &row, words, &BTreeMap::new());
        let keeping = tokio::spawn(keep(Large { pages: 9, whole }, voice));
        let begun = Instant::now();
        let first = Heard::new(row, receiver).first().await;
        assert_eq!(first.is_ok(), whole, "{first:?}");
        assert!(seconds.contains(&begun.elapsed().as_secs()), "{:?}", begun.elapsed());
        keeping.abort();
    }
}

#[tokio::test(start_paused = true)]
async fn a_start_waits_for_what_registries_say_and_names_the_one_that_says_nothing() {
    struct Silent;
    impl Registry for Silent {
        async fn follow(&mut self, _: &Voice) -> Result<(), String> {
            Err("nobody answers at 10.0.0.1:8500".into())
        }
    }
    let mut table = Table::new();
    let row = table.add("dc1", "consul");
    let (words, receiver) = mpsc::channel(WORDS);
    let voice = Voice::new(1, &row, words, &BTreeMap::new());
    let keeping = tokio::spawn(keep(Silent, voice));
    let refused = Heard::new(row, receiver).first().await.unwrap_err().to_string();
    for said in [
        "registry \"dc1\" (consul)",
        "has not said what it has: nobody answers at 10.0.0.1:8500",
        "go on with what they have",
    ] {
        assert!(refused.contains(said), "{refused}");
    }
    keeping.abort();
}

#[tokio::test(start_paused = true)]
async fn a_start_waits_a_minute_at_most_for_one_that_it_knows_from_before() {
    /// Says something new every few seconds, for ever; never all of it.
    struct Restless(u64);
    impl Registry for Restless {
        async fn follow(&mut self, voice: &Voice) -> Result<(), String> {
            let mut words = every(self.0);
            loop {
                words.tick().await;
                voice.say("part", Event::Reset(Vec::new())).await?;
            }
        }
    }
    for (every, seconds) in [(3, 60..=60), (20, 5..=5)] {
        let mut table = Table::new();
        let row = table.add("names", "dns");
        let (words, receiver) = mpsc::channel(WORDS);
        let voice = Voice::new(1, &row, words, &BTreeMap::new());
        let keeping = tokio::spawn(keep(Restless(every), voice));
        let begun = Instant::now();
        Heard::new(row, receiver).that_was_heard_before().first().await.unwrap();
        assert!(seconds.contains(&begun.elapsed().as_secs()), "{:?}", begun.elapsed());
        keeping.abort();
    }
}

#[tokio::test]
async fn what_a_registry_has_gets_its_labels() {
    let labels = BTreeMap::from([("from".to_owned(), "consul".to_owned())]);
    let mut table = Table::new();
    let row = table.add("dc1", "consul");
    let (words, mut heard) = mpsc::channel(WORDS);
    let voice = Voice::new(1, &row, words, &labels);
    let mut one = sample("c1", "catalog", "v1", "10.0.0.1", 8080, Protocol::Http);
    one.labels.insert("from".into(), "elsewhere".into());
    let item = || Item::Instance(Arc::new(one.clone()));
    for event in [Event::Reset(vec![item()]), Event::Upsert(item())] {
        voice.say("catalog", event).await.unwrap();
        let Some(Word::Event(_, Event::Reset(mut items))) = heard.recv().await.map(|word| match word {
            Word::Event(source, Event::Upsert(item)) => Word::Event(source, Event::Reset(vec![item])),
            other => other,
        }) else {
            panic!("nothing is heard")
        };
        let Some(Item::Instance(said)) = items.pop() else { panic!("no instance") };
        assert_eq!((&*said.labels["from"], &*said.labels["version"]), ("consul", "v1"));
    }
    let row = |text: &str| serde_json::from_str::<Row>(text).unwrap();
    let wrong = |labels: &str| {
        let row = row(&format!(r#"{{"consul": {{}}, "labels": {labels}}}"#));
        Row::validate(&[row]).map_err(|error| error.to_string())
    };
    assert_eq!(wrong(r#"{"example.com/from": "a.b_c", "empty": ""}"#), Ok(()));
    for labels in [r#"{"from": "a b"}"#, r#"{"-from": "a"}"#, r#"{"/from": "a"}"#, r#"{"": "a"}"#] {
        assert!(wrong(labels).unwrap_err().starts_with("registries[0].labels: "), "{labels}");
    }
}
