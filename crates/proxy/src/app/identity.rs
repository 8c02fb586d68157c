//! Who this sidecar is at start: the join file or what stands in its place, what the state directory still holds, and the loop that keeps both fresh.

use std::path::Path;
use std::time::{Duration, SystemTime};

use anyhow::{Context, anyhow, bail};
use outrigger_identity::{
    ControlPeer, ControlPlane, CredentialStore, Enrollment, JoinFile, Lock, RenewalHandle, StateDir, Token,
    TrustBundle, run_renewal,
};
use outrigger_model::identity::SpiffeId;

use crate::bootstrap::join::{Join, Section};
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
        let Invited { address, id, roots, token } = match &bootstrap.join {
            Some(Join::File(path)) => {
                by_file(path, &bootstrap.node).with_context(|| format!("join: {}", path.display()))?
            }
            Some(Join::Section(section)) => by_token(section, &bootstrap.node).context("join")?,
            None => bail!(
                "join: a join file is needed to find and trust the control plane; `outrigger token create` writes one"
            ),
        };
        let (store, problems) = state.restore(&id, &roots, SystemTime::now());
        for problem in problems {
            tracing::warn!(%problem, "a file of the state directory is ignored");
        }
        let peer = ControlPeer::outrigger(id.trust_domain()).context("join: trust_domain")?;
        let control = ControlPlane::new(&[address.as_str()], peer, store.clone()).context("join: address")?;
        let enrollment = Enrollment {
            identity: id.clone(),
            control: control.clone(),
            token,
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

/// What it takes to join, wherever that is written.
struct Invited {
    address: String,
    id: SpiffeId,
    roots: TrustBundle,
    token: Token,
}

fn by_file(path: &Path, node: &Node) -> anyhow::Result<Invited> {
    let join = JoinFile::read(path)?;
    let roots = join.bundle()?;
    differs(node, &join.identity).map_or(Ok(()), |what| Err(anyhow!("{what}")))?;
    Ok(Invited { address: join.address, id: join.identity, roots, token: Token::Text(join.token) })
}

/// The token is not looked at: who its bearer is, whoever issues certificates asks those who made it.
fn by_token(section: &Section, node: &Node) -> anyhow::Result<Invited> {
    let id = SpiffeId::workload(&section.trust_domain, &node.namespace, &node.service_account)
        .context("trust_domain, node.namespace and node.service_account")?;
    let (field, text) = match (&section.roots, &section.roots_file) {
        (None, Some(path)) => (
            "roots_file",
            std::fs::read_to_string(path).with_context(|| format!("roots_file: {}", path.display()))?,
        ),
        (roots, _) => ("roots", roots.clone().unwrap_or_default()),
    };
    let roots = TrustBundle::from_pem(&section.trust_domain, &text).context(field)?;
    let token = Token::File(section.token_file.clone());
    Ok(Invited { address: section.address.clone(), id, roots, token })
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
    use outrigger_identity::{Authority, AuthorityOptions};

    use super::*;

    #[test]
    fn who_has_the_token_of_a_platform_is_who_the_node_says() {
        let authority = Authority::in_memory(AuthorityOptions::new("mesh.example")).unwrap();
        let roots = authority.bundle().to_pem("mesh.example");
        let node: Node = serde_saphyr::from_str("{id: a, namespace: shop, service_account: web}").unwrap();
        let section = |roots: Option<&str>, trust_domain: &str| Section {
            address: "control:15012".into(),
            trust_domain: trust_domain.into(),
            roots: roots.map(str::to_owned),
            roots_file: roots.is_none().then(|| "/nowhere/root.pem".into()),
            token_file: "/var/run/token".into(),
        };
        let invited = by_token(&section(Some(&roots), "mesh.example"), &node).unwrap();
        assert_eq!(invited.id.to_string(), "spiffe://mesh.example/ns/shop/sa/web");
        assert!(matches!(&invited.token, Token::File(path) if path == Path::new("/var/run/token")));
        assert_eq!(invited.roots.roots("mesh.example").len(), 1);
        for (section, word) in [
            (section(Some("no PEM"), "mesh.example"), "roots"),
            (section(None, "mesh.example"), "roots_file: /nowhere/root.pem"),
            (section(Some(&roots), "Mesh Example"), "trust_domain"),
        ] {
            let error = by_token(&section, &node).map(|_| ()).unwrap_err();
            assert!(format!("{error:#}").contains(word), "{error:#}");
        }
    }

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
