//! What clusters have done at intervals, outside of the path of requests: endpoints are compared by their rates of success, and weights are
//! made of reported load. One task on the control runtime for all of them.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use outrigger_model::cluster::{Balance, Cluster, SHORTEST_UPDATE};
use tokio::time::{Instant, sleep_until};

use crate::process::Process;
use crate::runtime::snapshot::Snapshot;

/// Whatever others say, nobody is looked at more often.
const SHORTEST: Duration = Duration::from_millis(10);

/// What is done for a cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Duty {
    /// Rates of success are compared.
    Look,
    /// Weights are made.
    Weigh,
}

/// What is to be done, how often, and when next.
#[derive(Debug, Default)]
struct Duties(BTreeMap<(Arc<str>, Duty), (Duration, Instant)>);

/// Runs until the process ends.
pub async fn run(process: Arc<Process>) {
    let mut swapped = process.swapped.subscribe();
    swapped.mark_changed();
    let mut duties = Duties::default();
    loop {
        let due = duties.due();
        tokio::select! {
            changed = swapped.changed() => match changed {
                Ok(()) => duties.follow(&process.snapshot.load(), Instant::now()),
                Err(_) => return,
            },
            () = sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => {
                duties.perform(&process.snapshot.load(), Instant::now());
            }
        }
    }
}

fn of(cluster: &Cluster) -> [Option<(Duty, Duration)>; 2] {
    let rules = cluster.outlier.as_ref().filter(|rules| rules.needs_rates());
    let update = || cluster.load_reports.as_ref().map_or(Duration::from_secs(1), |reports| reports.update);
    let weighs = cluster.balance == Balance::Reported;
    [
        rules.map(|rules| (Duty::Look, rules.interval.max(SHORTEST))),
        weighs.then(|| (Duty::Weigh, update().max(SHORTEST_UPDATE))),
    ]
}

impl Duties {
    fn due(&self) -> Option<Instant> {
        self.0.values().map(|(_, due)| *due).min()
    }

    /// Another configuration: what goes on as before keeps its time.
    fn follow(&mut self, snapshot: &Snapshot, now: Instant) {
        let before = std::mem::take(&mut self.0);
        for cluster in snapshot.clusters() {
            for (duty, period) in of(&cluster.config).into_iter().flatten() {
                let key = (cluster.name.clone(), duty);
                let kept = before.get(&key).filter(|(known, _)| *known == period);
                let entry = kept.copied().unwrap_or((period, now + period));
                self.0.insert(key, entry);
            }
        }
    }

    fn perform(&mut self, snapshot: &Snapshot, now: Instant) {
        for ((name, duty), (period, due)) in &mut self.0 {
            if *due > now {
                continue;
            }
            *due = now + *period;
            let Some(cluster) = snapshot.cluster(name) else { continue };
            match duty {
                Duty::Look => cluster.look_at_rates(),
                Duty::Weigh => cluster.weigh(),
            }
        }
    }
}
