//! Who this sidecar is at start: the join file, what the state directory still holds, and the loop that keeps both fresh.

use std::time::{Duration, SystemTime};

use anyhow::{Context, anyhow};
use outrigger_identity::{
    ControlPeer, ControlPlane, CredentialStore, Enrollment, JoinFile, Lock, RenewalHandle, StateDir, Token,
    TrustBundle, run_renewal,
};
use outrigger_model::identity::SpiffeId;

use crate::bootstrap::{Bootstrap, Node};

/// Nothing asked for: how long certificates live is the control plane's setting (a day by default).
const TTL: Duration = Duration::ZERO;

/// Everything about identity that the rest of the process needs.
pub struct Joined {
    /// Who we are.
    pub id: SpiffeId,
    /// Our credentials as they change.
    pub store: CredentialStore,
    /// The control plane; makes channels.
    pub control: ControlPlane,
    /// Shows what the renewal loop does.
    pub renewal: RenewalHandle,
    enrollment: Enrollment,
    /// The state directory is ours for as long as we live.
    _lock: Lock,
}

impl Joined {
    /// Reads the join file and the state directory.
    ///
    /// # Errors
    /// Says which file cannot be used and why. A damaged state directory is only logged: joining anew mends it.
    pub fn start(bootstrap: &Bootstrap) -> anyhow::Result<Self> {
        let state = StateDir::open(&bootstrap.state_dir)
            .with_context(|| format!("state_dir: {}", bootstrap.state_dir.display()))?;
        let lock = state.lock().context("state_dir")?;
        let path = bootstrap.join.as_ref().context(
            "join: a join file is needed to find and trust the control plane; `outrigger token create` writes one",
        )?;
        let join = JoinFile::read(path).with_context(|| format!("join: {}", path.display()))?;
        let roots: TrustBundle = join.bundle().with_context(|| format!("join: {}", path.display()))?;
        let id = join.identity.clone();
        differs(&bootstrap.node, &id)
            .map_or(Ok(()), |what| Err(anyhow!("join: {}: {what}", path.display())))?;
        let (store, problems) = state.restore(&id, &roots, SystemTime::now());
        for problem in problems {
            tracing::warn!(%problem, "a file of the state directory is ignored");
        }
        let peer = ControlPeer::outrigger(&join.trust_domain).context("join: trust_domain")?;
        let control =
            ControlPlane::new(&[join.address.as_str()], peer, store.clone()).context("join: address")?;
        let enrollment = Enrollment {
            identity: id.clone(),
            control: control.clone(),
            token: Token::Text(join.token),
            ttl: TTL,
            state: Some(state),
        };
        Ok(Self { id, store, control, renewal: RenewalHandle::new(), enrollment, _lock: lock })
    }

    /// Obtains and renews the certificate, for ever; spawn it on the control runtime.
    pub fn renew(&self) -> impl Future<Output = ()> + Send + 'static {
        run_renewal(self.enrollment.clone(), self.store.clone(), self.renewal.clone())
    }
}

/// What the bootstrap says of the identity and the join file otherwise; what is left out there says nothing.
fn differs(node: &Node, id: &SpiffeId) -> Option<String> {
    let fields = [
        ("node.namespace", &node.namespace, id.namespace()),
        ("node.service_account", &node.service_account, id.service_account()),
    ];
    let wrong =
        |(_, said, proven): &(_, &String, Option<&str>)| *said != "default" && Some(said.as_str()) != *proven;
    fields.into_iter().find(wrong).map(|(field, said, _)| {
        format!(
            "its token is for {id}, but the bootstrap says {field}: {said}; make one with `outrigger token create`, or mend \
             the bootstrap"
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_for_another_workload_than_the_bootstraps_is_told_by_field() {
        let id = SpiffeId::workload("cluster.local", "shop", "web").unwrap();
        let node = |text: &str| serde_saphyr::from_str::<Node>(text).unwrap();
        assert_eq!(differs(&node("id: web-1"), &id), None);
        assert_eq!(differs(&node("{id: web-1, namespace: shop, service_account: web}"), &id), None);
        let said = differs(&node("{id: web-1, namespace: shop, service_account: catalog}"), &id).unwrap();
        assert!(said.contains("sa/web") && said.contains("node.service_account: catalog"), "{said}");
        let said = differs(&node("{id: web-1, namespace: bank}"), &id).unwrap();
        assert!(said.contains("node.namespace: bank"), "{said}");
    }
}
