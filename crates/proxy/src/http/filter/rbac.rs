//! Authorization at L7: `envoy.filters.http.rbac`. The decision is the model's.

use std::sync::Arc;

use outrigger_model::policy::decide::{Decision, Denial, PolicySet};
use outrigger_model::policy::{self};
use outrigger_model::resource::Flaw;

use super::{Input, Verdict};
use crate::failure::{Failure, FailureKind, Stage};

/// A compiled RBAC filter.
#[derive(Debug)]
pub struct Rbac(PolicySet);

impl Rbac {
    /// Compiles it.
    ///
    /// # Errors
    /// The field that cannot be taken, and why.
    pub fn build(config: &policy::Rbac) -> Result<Self, Flaw> {
        PolicySet::compile([config]).map(Self)
    }

    pub fn on_request(&self, input: &Input<'_>) -> Verdict {
        match self.0.decide(&input.connection, Some(&input.judged())) {
            Decision::Allow => Verdict::Continue,
            Decision::Deny(denial) => Verdict::Fail(denied(denial)),
        }
    }

    /// Whether a policy matches that denies; that none allows is no matter.
    pub fn forbids(&self, input: &Input<'_>) -> Option<Failure> {
        match self.0.decide(&input.connection, Some(&input.judged())) {
            Decision::Deny(denial @ Denial::Matched { .. }) => Some(denied(denial)),
            _ => None,
        }
    }
}

fn denied(denial: Denial<'_>) -> Failure {
    let origin = denial.origin().cloned().map(Arc::new);
    Failure::local(Stage::Authorize, FailureKind::Denied, denial.to_string()).because_of(origin)
}
