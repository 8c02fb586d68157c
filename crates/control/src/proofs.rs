//! What makes a caller somebody before it has a certificate: a join token, or a service account's where there is a cluster that knows it.

use std::sync::Arc;

use outrigger_identity::csr::service::{Caller, CallerPolicy, Denied};
use outrigger_model::identity::SpiffeId;

use crate::canonical;
use crate::instance::{Instance, Word};
use crate::keeper::Keeper;
use crate::service_accounts::{self, Refused, ServiceAccounts};
use crate::tokens::Tokens;

/// What a caller may show: a join token, or the token of a service account where there is a cluster that knows it.
pub(crate) struct Proofs {
    pub(crate) tokens: Tokens,
    pub(crate) cluster: Option<ServiceAccounts>,
    /// Knows who runs.
    pub(crate) keeper: Keeper,
}

/// Who is known to run as an identity.
#[derive(Default)]
struct Running {
    /// Pods of the cluster.
    pods: bool,
    /// What else a registry or an operator knows, and has a sidecar.
    others: bool,
    /// Anybody at all, whoever says so.
    any: bool,
}

impl Running {
    fn of(keeper: &Keeper, identity: &SpiffeId) -> Self {
        let mut running = Self::default();
        let Some((namespace, account)) = identity.namespace().zip(identity.service_account()) else {
            return running;
        };
        let published = keeper.published();
        let world = &published.world;
        let is_it = |one: &&Arc<Instance>| one.namespace == namespace && one.service_account == account;
        for instance in world.instances().filter(is_it) {
            running.any = true;
            // Who has a key can register as its identity: that says nothing of where the key is.
            if instance.word == Word::Trusted {
                let is_pod = instance.metadata.contains_key(canonical::UID);
                running.pods |= is_pod;
                running.others |= !is_pod && instance.sidecar;
            }
        }
        let mut written = world.workloads(namespace).iter();
        running.others |= written.any(|entry| entry.workload.service_account == account);
        running
    }
}

#[tonic::async_trait]
impl CallerPolicy for Proofs {
    async fn identify(&self, caller: &Caller) -> Result<SpiffeId, Denied> {
        let of_cluster = caller.bearer.as_deref().filter(|secret| service_accounts::is_token(secret));
        let Some((cluster, secret)) = self.cluster.as_ref().zip(of_cluster) else {
            return self.tokens.identify(caller).await;
        };
        let source = caller.remote.ip();
        let judged = cluster.judge(secret);
        // Whoever has one that is signed does not wait for those who guess beside it: Pods of a node, and of a cluster, share networks.
        if !judged.is_good() {
            self.tokens.admit(source).map_err(|wait| Denied::guess(wait.to_string()))?;
        }
        cluster.identify(secret, judged).await.map_err(|refused| match refused {
            Refused::Wrong(denied) => {
                self.tokens.wrong(source);
                Denied::guess(denied.reason)
            }
            Refused::Unknown(denied) => denied,
        })
    }

    async fn spend(&self, caller: &Caller) -> Result<(), Denied> {
        // The cluster counts none.
        match caller.bearer.as_deref().filter(|secret| service_accounts::is_token(secret)) {
            Some(_) if self.cluster.is_some() => Ok(()),
            _ => self.tokens.spend(caller).await,
        }
    }

    /// Of a cluster a key that somebody has taken ends with what it was made for: a Pod's with the Pod, which renews by its own token, as
    /// far as that can be judged; a VM's, whose join token may be used up, with the instances and WorkloadEntries of its account.
    fn renew(&self, identity: &SpiffeId) -> Result<(), Denied> {
        self.tokens.renew(identity)?;
        let Some(cluster) = &self.cluster else { return Ok(()) };
        let Running { pods, others, any } = Running::of(&self.keeper, identity);
        if others || (any && self.tokens.knows(identity)) {
            return Ok(());
        }
        match (pods, cluster.is_away()) {
            (true, false) => Err(Denied::expected(format!(
                "all that run as {identity} are Pods, which renew by the tokens of their service account"
            ))),
            // While its API server is away a Pod's token may end, and no other comes.
            (true, true) => Ok(()),
            (false, _) => Err(Denied::new(format!(
                "nobody is known who runs as {identity}, and no token was shown that is good for it"
            ))),
        }
    }
}

#[cfg(test)]
mod tests;
