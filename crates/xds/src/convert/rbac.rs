//! `envoy.extensions.filters.http.rbac.v3.RBAC`: a policy, or what a filter behind it asks about.

use outrigger_model::listener::HttpFilter;

use super::extension::{HTTP_RBAC, is, unpack};
use super::flaw::{Decoded, Under, flaw};
use super::metadata::policies_value;
use super::row::{Reading, Row, Writing};
use super::{note, policy, shadow};
use crate::wire::any;
use crate::wire::http_rbac::Rbac;

/// Under which the origins of policies of requests ride on the chain.
pub(super) const ORIGINS: &str = "http_rbac_origins";

pub(super) const ROW: Row = Row {
    is: is::<Rbac>,
    read,
    reads_disabled: false,
    write,
    origins: |filter| match filter {
        HttpFilter::Rbac(rbac) => Some((ORIGINS, policies_value(policy::origins(rbac)))),
        _ => None,
    },
};

fn read(reading: &mut Reading<'_>) -> Decoded<Option<HttpFilter>> {
    let wire: Rbac = unpack(reading.config)?;
    note!(wire, shadow_matcher);
    if wire.matcher.is_some() {
        return flaw("matcher", "is not supported; use rules");
    }
    let origins = reading.origins(ORIGINS);
    // No rules: nothing is enforced.
    let rules = wire.rules.as_ref().map(|rules| policy::decode(rules, origins, reading.index));
    let rules = rules.transpose().under("rules")?;
    reading.shadows.extend(shadow::of(&wire, reading.index));
    Ok(rules.map(HttpFilter::Rbac))
}

fn write(filter: &HttpFilter, out: &mut Writing) {
    if let HttpFilter::Rbac(rbac) = filter {
        let rules = Some(policy::encode(rbac, out.kind));
        out.push(HTTP_RBAC, any(&Rbac { rules, ..Default::default() }));
    }
}
