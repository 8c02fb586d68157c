//! What makes a caller somebody before it has a certificate: a join token, or a service account's where there is a cluster that knows it.

use outrigger_identity::csr::service::{Caller, CallerPolicy, Denied};
use outrigger_model::identity::SpiffeId;

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

/// Whether an instance runs as this, a Pod or another.
fn runs(keeper: &Keeper, identity: &SpiffeId) -> bool {
    let of = identity.namespace().zip(identity.service_account());
    let published = keeper.published();
    of.is_some_and(|(namespace, account)| {
        let mut all = published.world.instances();
        let mut written = published.world.workloads(namespace).iter();
        all.any(|instance| instance.namespace == namespace && instance.service_account == account)
            || written.any(|entry| entry.workload.service_account == account)
    })
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

    fn renew(&self, identity: &SpiffeId) -> Result<(), Denied> {
        self.tokens.renew(identity)?;
        if self.cluster.is_some() && !runs(&self.keeper, identity) {
            // A key that somebody has taken ends with the workloads that it was made for.
            return Err(Denied::new(format!(
                "nobody is known who runs as {identity}, and no token was shown that is good for it"
            )));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
