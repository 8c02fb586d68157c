//! Active health checks: asks the endpoints of the clusters that want it whether they are well, and tells the clusters.
//!
//! One task on the control runtime for all of them, so each endpoint is asked once per sidecar, however many workers there are. It has
//! pools of its own: what is asked takes no place of the cluster's limits, and counts for no breaker, ejection or statistics of requests.
//!
//! ```text
//! snapshot ──▶ who is to be asked (`rounds`) ──due──▶ asked (`ask`) ──▶ the cluster judges ──▶ due again after the interval
//! ```

use std::rc::Rc;
use std::sync::Arc;

use outrigger_telemetry::logging::Throttle;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};

use crate::http::wire::Buffers;
use crate::memory::Ledger;
use crate::metrics::Totals;
use crate::process::Process;
use crate::runtime::cluster::ClusterHandle;
use crate::runtime::endpoint::EndpointState;
use crate::runtime::verdict::{Failed, Flip, Verdict};
use crate::upstream::pool::Pools;
use crate::upstream::way::Way;

mod ask;
mod rounds;

use rounds::Rounds;

/// Checks under way at a time. Beyond that they come later, and none is left out.
const MOST_UNDER_WAY: usize = 64;

/// What a check said of the endpoint; `None`: nothing, as the reason was ours.
type Said = Option<Result<(), Failed>>;

/// Asks until the process ends; call it where local tasks can be spawned.
pub async fn run(process: Arc<Process>) {
    let mut swapped = process.swapped.subscribe();
    swapped.mark_changed();
    let mut rounds = Rounds::default();
    // As many as are under way.
    let (told, mut results) = mpsc::channel::<(u64, Said)>(MOST_UNDER_WAY);
    let mut pools = None;
    let mut under_way = 0;
    loop {
        let due = rounds.due().filter(|_| under_way < MOST_UNDER_WAY);
        tokio::select! {
            changed = swapped.changed() => match changed {
                Ok(()) => rounds.follow(&process.snapshot.load(), Instant::now()),
                Err(_) => return,
            },
            Some((id, said)) = results.recv() => {
                under_way -= 1;
                let Some((cluster, endpoint)) = rounds.ended(id, Instant::now()) else { continue };
                let handle = process.snapshot.load().cluster(&cluster).cloned();
                if let (Some(handle), Some(said)) = (handle, said) {
                    tell(&handle, &endpoint, said);
                }
            }
            () = sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => {
                let Some(next) = rounds.begin(Instant::now()) else { continue };
                let pools = pools.get_or_insert_with(|| own_pools(&process)).clone();
                let told = told.clone();
                under_way += 1;
                tokio::task::spawn_local(async move {
                    let said = ask::ask(&pools, &next.cluster, &next.endpoint, &next.check).await;
                    let _ = told.send((next.id, said)).await;
                });
            }
        }
    }
}

/// Pools whose connections and requests appear in no statistics but those of checks.
fn own_pools(process: &Arc<Process>) -> Pools {
    let metrics = Totals::new(process.metrics.local().clone()).shard();
    let way = Way::new(process, Rc::new(metrics), Buffers::new(), Ledger::new(&process.memory));
    Pools::new(way)
}

static TURNED: Throttle = Throttle::new();

fn tell(cluster: &ClusterHandle, endpoint: &EndpointState, said: Result<(), Failed>) {
    let why = said.as_ref().err().map(|failed| failed.why.clone());
    let Some(Flip { from, to }) = cluster.judge(endpoint, said) else { return };
    // That who was taken for well is well is no news.
    if (from, to) == (Verdict::Presumed, Verdict::Healthy) {
        return;
    }
    let Some(suppressed) = TURNED.admit() else { return };
    let (cluster, endpoint) = (&cluster.name, endpoint.address);
    match why {
        Some(why) => {
            tracing::warn!(%cluster, %endpoint, why, suppressed, "endpoint is unhealthy by its checks; it gets no requests");
        }
        None => tracing::info!(%cluster, %endpoint, suppressed, "endpoint is healthy by its checks"),
    }
}
