//! Who this sidecar is at start: the join file, what the state directory still holds, and the loop that keeps both fresh.

use std::time::{Duration, SystemTime};

use anyhow::Context;
use outrigger_identity::{
    ControlPeer, ControlPlane, CredentialStore, Enrollment, JoinFile, RenewalHandle, StateDir, Token,
    TrustBundle, run_renewal,
};
use outrigger_model::identity::SpiffeId;

use crate::bootstrap::Bootstrap;

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
}

impl Joined {
    /// Reads the join file and the state directory.
    ///
    /// # Errors
    /// Says which file cannot be used and why. A damaged state directory is only logged: joining anew mends it.
    pub fn start(bootstrap: &Bootstrap) -> anyhow::Result<Self> {
        let state = StateDir::open(&bootstrap.state_dir)
            .with_context(|| format!("state_dir: {}", bootstrap.state_dir.display()))?;
        let path = bootstrap.join.as_ref().context(
            "join: a join file is needed to find and trust the control plane; `outrigger token create` writes one",
        )?;
        let join = JoinFile::read(path).with_context(|| format!("join: {}", path.display()))?;
        let roots: TrustBundle = join.bundle().with_context(|| format!("join: {}", path.display()))?;
        let id = join.identity.clone();
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
        Ok(Self { id, store, control, renewal: RenewalHandle::new(), enrollment })
    }

    /// Obtains and renews the certificate, for ever; spawn it on the control runtime.
    pub fn renew(&self) -> impl Future<Output = ()> + Send + 'static {
        run_renewal(self.enrollment.clone(), self.store.clone(), self.renewal.clone())
    }
}
