//! The limits of a client's own service: rates that each instance keeps, rates that a service keeps for all, and how many requests are
//! under way.

use std::collections::BTreeMap;

use outrigger_model::concurrency::AdaptiveConcurrency;
use outrigger_model::global_limit::GlobalLimit;
use outrigger_model::listener::HttpFilter;
use outrigger_model::rate_limit::{MOST_LIMITS, RateLimit};
use outrigger_rules::intent::LimitsIntent;

use super::asked::asked;
use super::lens::Lens;
use super::origin;
use crate::instance::Instance;

/// In order: what has no room here is not asked about elsewhere. That there are too many is a finding.
pub(super) fn compile(lens: &Lens<'_>, own: &Instance) -> Vec<HttpFilter> {
    let intents: Vec<&LimitsIntent> = lens.limits_for(own).collect();
    let mut room = MOST_LIMITS;
    let mut filters = Vec::new();
    let with_origin = |intent: &&LimitsIntent| {
        let origin = Some(origin(&intent.origin));
        let limits = intent.limits.iter().cloned();
        limits.map(move |limit| RateLimit { origin: origin.clone(), ..limit }).collect::<Vec<_>>()
    };
    let all: Vec<RateLimit> = intents.iter().flat_map(with_origin).take(room).collect();
    room -= all.len();
    if !all.is_empty() {
        filters.push(HttpFilter::RateLimit(all));
    }
    let mut by_provider: BTreeMap<&str, Vec<GlobalLimit>> = BTreeMap::new();
    let global = intents.iter().flat_map(|intent| intent.global.iter().map(move |global| (intent, global)));
    let mut asks = 0;
    for (intent, global) in global.take(room) {
        asks += 1;
        let limit = GlobalLimit { origin: Some(origin(&intent.origin)), ..global.limit.clone() };
        by_provider.entry(&global.provider).or_default().push(limit);
    }
    filters
        .extend(by_provider.into_iter().filter_map(|(provider, limits)| asking(lens, own, provider, limits)));
    // Last: what is refused otherwise is not under way, and took no time.
    let adaptive = intents.iter().filter_map(|intent| {
        let origin = Some(origin(&intent.origin));
        Some(AdaptiveConcurrency { origin, ..intent.concurrency.clone()? })
    });
    filters.extend(adaptive.take(room - asks).map(Box::new).map(HttpFilter::Concurrency));
    filters
}

/// Nothing where the provider cannot be asked, which is a finding.
fn asking(lens: &Lens<'_>, own: &Instance, provider: &str, limits: Vec<GlobalLimit>) -> Option<HttpFilter> {
    let provider = lens.provider(provider)?;
    let (service, cluster) = asked(lens, provider)?;
    // It would ask itself about each of its own questions.
    if lens.members(service).any(|instance| instance.id == own.id) {
        return None;
    }
    let limits = provider.global_limits(&cluster, limits).ok()?;
    Some(HttpFilter::GlobalLimit(Box::new(limits)))
}
