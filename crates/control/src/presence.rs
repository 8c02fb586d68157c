//! A sidecar that is there is the heartbeat of the instance beside it: while its xDS stream is open, and the server's pings of
//! that connection are answered, the lease is renewed three times in its TTL.
//!
//! Whether a registration is the stream's to renew is decided as for any heartbeat, by the identity that was proved, and by which
//! process of it has registered: one that was replaced does not keep its successor's lease.

use outrigger_model::identity::SpiffeId;
use tokio::sync::watch;
use tokio::task::AbortHandle;
use tokio::time::{Duration, Instant};

use crate::keeper::{Keeper, Refused};
use crate::registry::api::Caller;
use crate::registry::claim::Reach;

/// Between two beats, however short the TTL.
const LEAST: Duration = Duration::from_millis(200);

/// Ends with the stream.
pub(crate) struct Presence(AbortHandle);

impl Drop for Presence {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Presence {
    /// Keeps the lease of `instance` alive, now or when it is registered. `moves` wakes when its registration changes, and `told` is
    /// told then, and once at first.
    pub(crate) fn of(
        instance: String,
        (identity, incarnation): (SpiffeId, Option<String>),
        keeper: Keeper,
        moves: watch::Receiver<()>,
        told: impl Fn() + Send + 'static,
    ) -> Self {
        let (services, reach) = (Vec::new(), Reach::default());
        let caller = Caller::Workload { identity, services, reach, incarnation };
        Self(tokio::spawn(renew(instance, caller, keeper, moves, told)).abort_handle())
    }
}

async fn renew(id: String, caller: Caller, keeper: Keeper, mut moves: watch::Receiver<()>, told: impl Fn()) {
    let mut last: Option<Instant> = None;
    loop {
        moves.borrow_and_update();
        told();
        let due =
            ttl(&keeper, &id).map(|ttl| last.map_or_else(Instant::now, |last| last + (ttl / 3).max(LEAST)));
        let changed = match due {
            None => moves.changed().await,
            // A registration anew may have another TTL: then it is due at another time.
            Some(due) => tokio::select! {
                changed = moves.changed() => changed,
                () = tokio::time::sleep_until(due) => {
                    match keeper.heartbeat(&id, caller.clone()).await {
                        Err(Refused::Stopping) => return,
                        // Somebody else's, or gone this moment: a new world says so, and the next beat.
                        Err(_) | Ok(_) => last = Some(Instant::now()),
                    }
                    Ok(())
                }
            },
        };
        if changed.is_err() {
            return;
        }
    }
}

/// The TTL of a registration; none of a file, and of none.
fn ttl(keeper: &Keeper, id: &str) -> Option<Duration> {
    let published = keeper.published();
    let seconds = published.registrations.get(id)?.stored.instance.ttl_seconds?;
    Some(Duration::from_secs(seconds.into()))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::instance::{Instance, Protocol, sample};
    use crate::keeper::Start;
    use crate::store::Contents;
    use crate::store::memory::Memory;
    use crate::world::MeshSettings;

    async fn keeper() -> Keeper {
        let (store, contents) = (Arc::new(Memory::default()), Contents::default());
        let (settings, said) = (MeshSettings::default(), Vec::new());
        Keeper::start(Start { store, contents, settings, said, roots_pem: "roots".into() }).await.unwrap()
    }

    fn identity(account: &str) -> SpiffeId {
        SpiffeId::workload("cluster.local", "shop", account).unwrap()
    }

    fn is_there(keeper: &Keeper, id: &str) -> bool {
        keeper.published().world.instance(id).is_some()
    }

    #[tokio::test(start_paused = true)]
    async fn an_open_stream_renews_the_lease_of_its_own_instance_until_it_ends() {
        let keeper = keeper().await;
        // Before the registration: a sidecar may be there first.
        let seat = |id: &str| keeper.published().compiled.audience().join(Some(id));
        let (own, other) = (seat("c1"), seat("w1"));
        let catalog = || (identity("catalog"), None);
        let presence = Presence::of("c1".into(), catalog(), keeper.clone(), own.moves(), || {});
        let _stranger = Presence::of("w1".into(), catalog(), keeper.clone(), other.moves(), || {});
        for (id, service, ip) in [("c1", "catalog", "127.0.0.5"), ("w1", "web", "127.0.0.6")] {
            let instance = sample(id, service, "v1", ip, 8080, Protocol::Http);
            let leased = Instance { ttl_seconds: Some(30), ..instance };
            keeper.register(leased, Caller::Operator("ann".into())).await.unwrap();
        }
        tokio::time::sleep(Duration::from_secs(300)).await;
        assert!(is_there(&keeper, "c1"), "ten times its TTL");
        assert!(!is_there(&keeper, "w1"), "web's is not catalog's to renew");
        drop(presence);
        tokio::time::sleep(Duration::from_secs(31)).await;
        assert!(!is_there(&keeper, "c1"));
    }
}
