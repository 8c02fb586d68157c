//! Whose tokens a workload knows: Istio's rules as the providers and requirements of one filter.
//!
//! With several issuers a request may have tokens of any; each token that is there must be good. (Istio asks for one good token first, beside
//! which others may be bad.)

use std::sync::Arc;

use outrigger_model::route::RouteMatch;
use outrigger_model::token::{JwtAuthn, JwtProvider, NOT_KNOWN, Requirement, TokenRule};
use outrigger_rules::intent::Issuer;

use super::lens::Lens;
use super::origin;
use crate::instance::Instance;

pub(super) fn compile(lens: &Lens<'_>, own: &Instance) -> Option<JwtAuthn> {
    let intents = lens.tokens_for(own);
    let mut issuers: Vec<_> = intents
        .iter()
        .flat_map(|intent| intent.rules.iter().map(|issuer| (issuer, &intent.origin)))
        .collect();
    if issuers.is_empty() {
        return None;
    }
    // Of two for one issuer that of the first object goes before.
    issuers.sort_by(|(a, _), (b, _)| a.provider.issuer.cmp(&b.provider.issuer));
    let keys = |issuer: &Issuer| match &issuer.keys {
        None => issuer.provider.keys.clone(),
        Some(source) => {
            lens.keys(source).map_or_else(|| NOT_KNOWN.to_owned(), |keys: &Arc<str>| keys.to_string())
        }
    };
    let providers = issuers.iter().enumerate().map(|(i, (issuer, from))| {
        let provider =
            JwtProvider { keys: keys(issuer), origin: Some(origin(from)), ..issuer.provider.clone() };
        (name(i), provider)
    });
    let required = (0..issuers.len()).filter(|i| issuers[*i].0.required).map(provider);
    let mut all: Vec<Requirement> = required.collect();
    if all.len() < issuers.len() {
        all.push(Requirement::AllowMissing);
    }
    let requires = if all.len() == 1 { all.swap_remove(0) } else { Requirement::All(all) };
    Some(JwtAuthn {
        providers: providers.collect(),
        rules: vec![TokenRule { matches: RouteMatch::any(), requires }],
        bypass_preflight: true,
    })
}

/// As Istio calls them.
fn name(i: usize) -> String {
    format!("origins-{i}")
}

fn provider(i: usize) -> Requirement {
    Requirement::Provider { name: name(i), audiences: Vec::new() }
}

#[cfg(test)]
mod tests;
