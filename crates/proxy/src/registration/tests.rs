use std::collections::BTreeMap;
use std::path::Path;

use outrigger_model::identity::SpiffeId;
use tokio::sync::mpsc;
use tokio::time::advance;

use super::*;
use crate::bootstrap::Bootstrap;

type Answer = fn(Standing) -> Result<(), Trouble>;

/// A task beside a control plane of which the test says what it answers; none is one that says nothing.
struct Rig {
    registrar: Registrar,
    health: watch::Sender<Health>,
    inbound: Arc<watch::Sender<u64>>,
    answer: Arc<Mutex<Option<Answer>>>,
    told: mpsc::Receiver<(Standing, Instant)>,
    task: JoinHandle<()>,
}

impl Rig {
    fn start(answer: Option<Answer>) -> Self {
        let text = "node: {id: c1}\nstate_dir: /s\nregister: {ports: [{number: 80}]}\n";
        let bootstrap = Bootstrap::parse(Path::new("b"), text).unwrap();
        let identity = SpiffeId::workload("cluster.local", "shop", "catalog").unwrap();
        let registrar = Registrar {
            own: Arc::new(Own::new(&bootstrap, bootstrap.register.as_ref().unwrap(), &identity)),
            checks: Checks::start(&BTreeMap::new()),
            told: Arc::default(),
            phase: Arc::new(watch::Sender::new(Phase::Serving)),
            tried: Arc::new(watch::Sender::new(false)),
        };
        // How many inbound listeners there are.
        let inbound = Arc::new(watch::Sender::new(1));
        let health = watch::Sender::new(Health::Running);
        let seen = inbound.clone();
        let task = Task {
            health: health.subscribe(),
            phase: registrar.phase.subscribe(),
            swapped: inbound.subscribe(),
            has_inbound: Box::new(move || *seen.borrow() > 0),
            known: false,
            flap: Flap::default(),
            registrar: registrar.clone(),
        };
        let (said, told) = mpsc::channel(64);
        let answer = Arc::new(Mutex::new(answer));
        let answers = answer.clone();
        let tell = move |state| {
            said.try_send((state, Instant::now())).unwrap();
            let answer = *answers.lock();
            async move {
                match answer {
                    Some(answer) => answer(state),
                    None => std::future::pending().await,
                }
            }
        };
        Self { registrar, health, inbound, answer, told, task: tokio::spawn(task.run(tell)) }
    }

    /// The next that is told, and after how long.
    async fn next(&mut self) -> (Standing, Duration) {
        let began = Instant::now();
        let (state, at) = self.told.recv().await.unwrap();
        (state, at.saturating_duration_since(began))
    }
}

fn away(_: Standing) -> Result<(), Trouble> {
    Err(Trouble::Away("nobody is there".into()))
}

#[tokio::test(start_paused = true)]
async fn the_end_does_not_wait_for_an_answer_to_what_was_before() {
    let mut rig = Rig::start(None);
    assert_eq!(rig.next().await.0, Standing::Running);
    rig.registrar.leave();
    assert_eq!(rig.next().await, (Standing::Stopping, Duration::ZERO));
    // Whoever is away has been asked less and less, but not now.
    *rig.answer.lock() = Some(away);
    for _ in 0..8 {
        rig.next().await;
    }
    *rig.answer.lock() = None;
    rig.registrar.end(rig.task).await;
    let mut last_words = Vec::new();
    while let Ok((state, _)) = rig.told.try_recv() {
        last_words.push(state);
    }
    assert!(
        last_words.len() >= 2 && last_words.iter().all(|state| *state == Standing::Gone),
        "{last_words:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn one_that_was_replaced_says_so_and_asks_again_after_minutes() {
    let mut rig = Rig::start(Some(|_| Err(Trouble::Replaced("a newer process has it".into()))));
    rig.next().await;
    for _ in 0..5 {
        let (_, pause) = rig.next().await;
        assert!(pause >= REPLACED / 2 && pause <= REPLACED, "{pause:?}");
    }
    assert_eq!(rig.registrar.told.lock().error.as_deref(), Some("a newer process has it"));
}

#[tokio::test(start_paused = true)]
async fn who_comes_and_goes_is_out_at_once_and_back_after_longer_and_longer() {
    let mut rig = Rig::start(Some(|_| Ok(())));
    rig.next().await;
    let mut pauses = Vec::new();
    for _ in 0..9 {
        rig.health.send_replace(Health::Unhealthy);
        assert_eq!(rig.next().await, (Standing::Unhealthy, Duration::ZERO));
        rig.health.send_replace(Health::Running);
        let (state, pause) = rig.next().await;
        assert_eq!(state, Standing::Running);
        pauses.push(pause.as_secs());
    }
    assert_eq!(pauses, [0, 1, 2, 4, 8, 16, 32, 60, 60]);
    // Back and out again within the pause nobody hears of.
    rig.health.send_replace(Health::Unhealthy);
    assert_eq!(rig.next().await.0, Standing::Unhealthy);
    for health in [Health::Running, Health::Unhealthy, Health::Running] {
        advance(Duration::from_secs(5)).await;
        rig.health.send_replace(health);
    }
    assert_eq!(rig.next().await, (Standing::Running, Duration::from_secs(45)));
    // It has stayed, and is as it was.
    advance(Duration::from_secs(61)).await;
    for (health, state) in [(Health::Unhealthy, Standing::Unhealthy), (Health::Running, Standing::Running)] {
        rig.health.send_replace(health);
        assert_eq!(rig.next().await, (state, Duration::ZERO));
    }
}

#[tokio::test(start_paused = true)]
async fn the_forgotten_do_not_come_back_all_at_once() {
    let mut rig = Rig::start(Some(|_| Ok(())));
    rig.next().await;
    let mut pauses = Vec::new();
    for _ in 0..20 {
        rig.inbound.send_replace(0);
        pauses.push(rig.next().await.1);
        rig.inbound.send_replace(1);
        tokio::task::yield_now().await;
    }
    assert!(pauses.iter().all(|pause| (FORGOTTEN.0..=FORGOTTEN.1).contains(pause)), "{pauses:?}");
    pauses.dedup();
    assert!(pauses.len() > 10, "{pauses:?}");
}
