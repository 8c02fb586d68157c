//! Why the keeper does not do something.

use outrigger_rules::Finding;

use crate::store::StoreError;

/// Why a change was refused.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum Refused {
    /// The rules have errors; nothing was applied.
    #[error("nothing was changed: {}", .0.iter().filter(|f| f.is_error()).map(ToString::to_string).collect::<Vec<_>>().join("; "))]
    Findings(Vec<Finding>),
    /// The request is wrong.
    #[error("{0}")]
    Invalid(String),
    /// The caller may not.
    #[error("{0}")]
    Forbidden(String),
    /// There is no such thing.
    #[error("{0}")]
    Unknown(String),
    /// It belongs to somebody else.
    #[error("{0}")]
    Conflict(String),
    /// A newer process has registered it.
    #[error(
        "instance \"{id}\" was registered by a newer process (incarnation {by}), which has it now: one node.id is one \
         workload's; stop this sidecar, or give it an id of its own"
    )]
    Replaced {
        /// The instance.
        id: String,
        /// Who has it.
        by: String,
    },
    /// The store cannot be written; nothing has changed.
    #[error("{0}")]
    Store(String),
    /// Replicas do not share it, so none of them has it.
    #[error("this control plane has replicas, and each would have {0} for itself alone: {1}")]
    Alone(&'static str, &'static str),
    /// The control plane is stopping.
    #[error("the control plane is stopping; try again when it is back")]
    Stopping,
}

impl From<StoreError> for Refused {
    fn from(error: StoreError) -> Self {
        Self::Store(error.to_string())
    }
}

/// Replicas share no rules but the cluster's.
pub(super) const RULES: Refused = Refused::Alone(
    "rules that are applied here",
    "they are the cluster's, and `kubectl apply` gives them to all",
);
/// Nor registrations.
pub(super) const INSTANCES: Refused = Refused::Alone(
    "instances that are registered here",
    "Pods are registered by the cluster, and what is outside of it by a WorkloadEntry there, or by another registry",
);
