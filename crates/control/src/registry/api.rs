//! Registrations over the management API: who may register what.

use outrigger_model::identity::SpiffeId;

use super::claim::Reach;
use crate::instance::{Instance, State, Word};

/// Registrations of one identity that its workloads may make themselves, each of at most
/// [`crate::instance::MAX_BYTES`].
pub const MAX_PER_IDENTITY: usize = 1000;

/// Who asks for a change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Caller {
    /// Somebody with the socket, the admin token or an admin certificate; the name goes into the history.
    Operator(String),
    /// A workload, and the services that its token allows it.
    Workload {
        /// What its certificate or token proves.
        identity: SpiffeId,
        /// The services that it may register in its namespace.
        services: Vec<String>,
        /// The addresses that it may register.
        reach: Reach,
        /// Which process it is, where it says so: a sidecar makes a new one at each start.
        incarnation: Option<String>,
    },
}

impl Caller {
    /// How the caller is named in the history.
    pub fn name(&self) -> &str {
        match self {
            Self::Operator(name) => name,
            Self::Workload { identity, .. } => identity.as_str(),
        }
    }

    /// Its identity, when it is a workload.
    pub fn identity(&self) -> Option<&SpiffeId> {
        match self {
            Self::Operator(_) => None,
            Self::Workload { identity, .. } => Some(identity),
        }
    }

    /// Which process of it that is, where it says so.
    pub fn incarnation(&self) -> Option<&String> {
        match self {
            Self::Operator(_) => None,
            Self::Workload { incarnation, .. } => incarnation.as_ref(),
        }
    }

    /// Whether the caller may register an instance of this service as this identity. Its addresses are [`Reach`]'s.
    ///
    /// # Errors
    /// Says what the caller may not.
    pub fn may_register(&self, instance: &Instance) -> Result<(), String> {
        let Self::Workload { identity, services, .. } = self else { return Ok(()) };
        self.may_touch(instance)?;
        let may = |name: &String| services.iter().any(|service| service == "*" || service == name);
        let mut named = std::iter::once(&instance.service).chain(instance.services.iter().flatten());
        let Some(refused) = named.find(|name| !may(name)) else { return Ok(()) };
        Err(format!(
            "{identity} may not register service \"{}\": its token allows {}; create one with that service",
            refused,
            if services.is_empty() { "none".to_owned() } else { services.join(", ") }
        ))
    }

    /// What the labels of an instance are worth that the caller registers.
    pub fn word(&self, instance: &Instance) -> Word {
        let Self::Workload { services, .. } = self else { return Word::Trusted };
        let may = |name: &String| services.contains(name);
        match (services.iter().any(|service| service == "*"), instance.labels.get("app")) {
            (true, _) => Word::Any,
            (false, Some(app)) if may(app) => Word::Named,
            (false, _) => Word::Own,
        }
    }

    /// Whether the caller may say that an instance is in this state.
    ///
    /// # Errors
    /// `maintenance` is an operator's word, which a workload neither gives nor takes back.
    pub fn may_say(&self, state: State) -> Result<(), String> {
        match self {
            Self::Workload { identity, .. } if state == State::Maintenance => Err(format!(
                "{identity} may not set state maintenance: only an operator takes out what only an operator takes back \
                 (outrigger instance drain); say unhealthy or stopping"
            )),
            _ => Ok(()),
        }
    }

    /// Whether the caller may send heartbeats for, change or deregister this instance.
    ///
    /// # Errors
    /// Says what the caller may not, and whose it is: only an operator is told that of another's.
    pub fn may_touch(&self, instance: &Instance) -> Result<(), String> {
        let Self::Workload { identity, .. } = self else { return Ok(()) };
        let own = identity.namespace() == Some(instance.namespace.as_str())
            && identity.service_account() == Some(instance.service_account.as_str());
        if own {
            return Ok(());
        }
        Err(format!(
            "{identity} may not act for instance \"{}\", which runs as {}/{}",
            instance.id, instance.namespace, instance.service_account
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::instance::{Protocol, sample};

    #[test]
    fn a_workload_registers_only_itself_and_only_services_of_its_token() {
        let identity = SpiffeId::workload("cluster.local", "shop", "catalog").unwrap();
        let (services, reach, incarnation) = (vec!["catalog".into()], Reach::default(), None);
        let caller = Caller::Workload { identity, services, reach, incarnation };
        let own = sample("c1", "catalog", "v1", "127.0.0.5", 80, Protocol::Http);
        assert_eq!(caller.may_register(&own), Ok(()));
        let other_service = Instance { service: "web".into(), ..own.clone() };
        assert!(caller.may_register(&other_service).unwrap_err().contains("web"));
        let called = |app: &str| {
            let mut instance = own.clone();
            instance.labels.insert("app".into(), app.into());
            caller.word(&instance)
        };
        assert_eq!((called("catalog"), called("bank")), (Word::Named, Word::Own));
        assert_eq!(Caller::Operator("me".into()).word(&own), Word::Trusted);
        let more = Instance { services: Some(vec!["catalog".into(), "bank".into()]), ..own.clone() };
        assert!(caller.may_register(&more).unwrap_err().contains("bank"));
        let other_account = Instance { service_account: "web".into(), ..own.clone() };
        assert!(caller.may_register(&other_account).is_err());
        let other_namespace = Instance { namespace: "bank".into(), ..own.clone() };
        assert!(caller.may_touch(&other_namespace).is_err());
        assert_eq!(Caller::Operator("me".into()).may_register(&other_namespace), Ok(()));
    }
}
