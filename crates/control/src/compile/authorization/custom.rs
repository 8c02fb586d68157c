//! Policies of action CUSTOM: providers of the settings are asked about what they match, each provider about its own policies.
//!
//! Where a provider cannot be asked, what its policies match is denied: it is unknown, its service is not there, or there are only bytes
//! to ask about. As with Istio an HTTP provider has no say over a port that is registered as opaque TCP. Everywhere else bytes that may
//! be requests would pass without a question, so there they are denied.

use std::collections::BTreeMap;
use std::sync::Arc;

use outrigger_model::ext_authz::ExtAuthz;
use outrigger_model::listener::HttpFilter;
use outrigger_model::policy::{Rbac, RbacAction};
use outrigger_rules::intent::AuthorizationIntent;

use super::super::asked::asked;
use super::super::lens::Lens;
use super::policies;

pub(super) fn of_requests(lens: &Lens<'_>, all: &[&Arc<AuthorizationIntent>]) -> Vec<HttpFilter> {
    let filter = |(provider, its): (&str, Vec<_>)| match asking(lens, provider) {
        Some(authz) => HttpFilter::ExtAuthz(Box::new(ExtAuthz { only: Some(matching(&its, true)), ..authz })),
        None => HttpFilter::Rbac(denial(provider, matching(&its, true))),
    };
    by_provider(all).into_iter().map(filter).collect()
}

pub(super) fn of_connections(lens: &Lens<'_>, all: &[&Arc<AuthorizationIntent>], opaque: bool) -> Vec<Rbac> {
    let has_no_say =
        |provider: &str| opaque && lens.provider(provider).is_some_and(|provider| !provider.is_grpc());
    let bound = by_provider(all).into_iter().filter(|(provider, _)| !has_no_say(provider));
    bound.map(|(provider, its)| denial(provider, matching(&its, false))).collect()
}

fn by_provider<'i>(
    all: &[&'i Arc<AuthorizationIntent>],
) -> BTreeMap<&'i str, Vec<&'i Arc<AuthorizationIntent>>> {
    let mut by_provider: BTreeMap<&str, Vec<_>> = BTreeMap::new();
    for intent in all {
        if let Some(provider) = intent.action.provider() {
            by_provider.entry(provider).or_default().push(*intent);
        }
    }
    by_provider
}

fn matching(its: &[&Arc<AuthorizationIntent>], http: bool) -> Rbac {
    let policies = its.iter().flat_map(|intent| policies(intent, http)).collect();
    Rbac { action: RbacAction::Deny, policies }
}

/// Says in the policies' names, which the refused are told, why.
fn denial(provider: &str, matching: Rbac) -> Rbac {
    let name = |name: String| format!("{name}-provider[{provider}]-cannot-be-asked");
    let policies = matching.policies.into_iter().map(|(n, policy)| (name(n), policy)).collect();
    Rbac { policies, ..matching }
}

/// The filter that asks a provider about everything.
fn asking(lens: &Lens<'_>, provider: &str) -> Option<ExtAuthz> {
    let provider = lens.provider(provider)?;
    let (_, cluster) = asked(lens, provider)?;
    provider.ext_authz(&cluster).ok()
}
