//! Authorization at L7: `envoy.filters.http.rbac`. The decision is the model's.

use std::sync::Arc;

use outrigger_model::policy::decide::{Decision, Denial, PolicySet};
use outrigger_model::policy::{self};
use outrigger_model::resource::Flaw;
use outrigger_model::token::WithTokens;

use super::{Act, Build, Input, Place, Tunnel, Verdict};
use crate::failure::{Failure, FailureKind, Stage};

/// A compiled RBAC filter.
#[derive(Debug)]
pub struct Rbac(PolicySet);

impl Build for Rbac {
    type Config = policy::Rbac;

    fn build(config: &policy::Rbac, _place: &Place<'_>) -> Result<Self, Flaw> {
        PolicySet::compile([config]).map(Self)
    }
}

impl Act for Rbac {
    fn on_request(&self, input: &Input<'_>) -> Verdict {
        match self.0.decide(&input.connection, Some(&input.judged())) {
            Decision::Allow => Verdict::Continue,
            Decision::Deny(denial) => Verdict::Fail(denied(denial)),
        }
    }

    fn judge_again(&self, tunnel: &mut Tunnel<'_>) -> Result<(), Failure> {
        let input = tunnel.input();
        let denied = match self.on_request(&input) {
            // What its tokens will say may be what allows it, or what does not deny it.
            _ if tunnel.waits => self.denies_anyway(&input),
            Verdict::Fail(failure) => Some(failure),
            _ => None,
        };
        denied.map_or(Ok(()), Err)
    }
}

impl Rbac {
    /// Why it is denied whatever its tokens say.
    fn denies_anyway(&self, input: &Input<'_>) -> Option<Failure> {
        let supposing = |holds| {
            let judged = WithTokens { supposed: Some(holds), ..input.judged() };
            match self.0.decide(&input.connection, Some(&judged)) {
                Decision::Allow => None,
                Decision::Deny(denial) => Some(denied(denial)),
            }
        };
        supposing(true).and(supposing(false))
    }
}

fn denied(denial: Denial<'_>) -> Failure {
    let origin = denial.origin().cloned().map(Arc::new);
    Failure::local(Stage::Authorize, FailureKind::Denied, denial.to_string()).because_of(origin)
}
