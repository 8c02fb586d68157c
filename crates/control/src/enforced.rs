//! Who does not enforce a rule, though it was sent everything that it takes.
//!
//! To clients, by what the compiler took out for them ([`crate::compile::foreign`]). Inbound, by who stands in front of the
//! workload: policies hold where a sidecar of ours asks for them, and nowhere else.

use std::collections::{BTreeMap, BTreeSet};

use outrigger_rules::intent::MtlsMode;
use outrigger_xds::ClientKind;

use crate::instance::{Instance, State};
use crate::keeper::Published;
use crate::others::{Gaps, Others};
use crate::status::{Board, Client};
use crate::world::World;

/// Names in one line of a report.
const MOST_NAMES: usize = 12;

/// What is not enforced, by rule (`VirtualService shop/catalog`).
#[derive(Debug, Default)]
pub(crate) struct Unenforced {
    /// By the reason, who.
    by_rule: Gaps,
}

impl Unenforced {
    /// Asks every connected foreign client and every registered instance, and what other replicas have asked theirs.
    pub(crate) fn now(published: &Published, board: &Board, others: &Others) -> Self {
        let clients = board.clients();
        let mut found = Self { by_rule: gaps(published, &clients) };
        for (rule, why, who) in others.gaps() {
            found.note(rule.clone(), why.clone(), who);
        }
        found.inbound(&published.world, &clients, others);
        found
    }

    fn note(&mut self, rule: String, why: String, who: &str) {
        self.by_rule.entry(rule).or_default().entry(why).or_default().insert(who.to_owned());
    }

    fn inbound(&mut self, world: &World, clients: &[Client], others: &Others) {
        let elsewhere =
            others.proxies().filter_map(|proxy| Some((proxy.instance.as_deref()?, proxy.kind()?)));
        let here = clients.iter().filter_map(|client| Some((client.instance.as_deref()?, client.kind)));
        let by_instance: BTreeMap<&str, ClientKind> = elsewhere.chain(here).collect();
        for instance in world.instances() {
            let why = match by_instance.get(instance.id.as_str()) {
                Some(ClientKind::Outrigger) => continue,
                Some(ClientKind::Envoy) => {
                    "an Envoy is given no inbound listener: what comes in is its own configuration's business"
                }
                Some(ClientKind::Grpc) => "a gRPC server is given no inbound listener",
                None if !instance.sidecar => "it has no sidecar",
                // Out of service: nobody is sent there.
                None if instance.state != State::Running => continue,
                // It may be, to one that does not answer.
                None if !others.silent.is_empty() => continue,
                None => "its sidecar is not connected",
            };
            let alone = !by_instance.contains_key(instance.id.as_str());
            let sidecar = world.sidecar_for(&instance.namespace, Some(&instance.labels));
            // Of what is not known a foreign client has said itself that it decides.
            let sidecar = sidecar.filter(|one| one.admits() || (alone && one.bars()));
            let sidecar = sidecar.map(|one| one.origin.to_string());
            for rule in policies(world, instance).into_iter().chain(sidecar) {
                self.note(rule, why.to_owned(), &instance.id);
            }
        }
    }

    /// Of one rule, as `not enforced by X: why`.
    pub(crate) fn of(&self, rule: &str) -> Vec<String> {
        let reasons = self.by_rule.get(rule).into_iter().flatten();
        reasons.map(|(why, who)| format!("not enforced by {}: {why}", some(who))).collect()
    }

    /// Connected proxies that lack something of one of these rules.
    pub(crate) fn proxies(&self, board: &Board, others: &Others, rules: &[String]) -> usize {
        let who: BTreeSet<&String> = rules
            .iter()
            .filter_map(|rule| self.by_rule.get(rule))
            .flat_map(BTreeMap::values)
            .flatten()
            .collect();
        if who.is_empty() {
            return 0;
        }
        let lacks = |known: &str| who.iter().any(|name| *name == known);
        let elsewhere = others.proxies().filter(|proxy| lacks(&proxy.name)).count();
        elsewhere + board.clients().iter().filter(|client| lacks(client.name())).count()
    }
}

/// What connected foreign clients do not enforce.
pub(crate) fn gaps(published: &Published, clients: &[Client]) -> Gaps {
    let mut found = Unenforced::default();
    for client in clients.iter().filter(|client| client.kind != ClientKind::Outrigger) {
        for gap in published.compiled.gaps(&client.scope, &client.asked.lock().clone()) {
            found.note(gap.rule, gap.why, client.name());
        }
    }
    found.by_rule
}

/// The policies that would hold for what comes in to an instance. What lets everything in needs nobody to enforce it.
fn policies(world: &World, instance: &Instance) -> Vec<String> {
    let authorization = world.authorization_for(instance).into_iter().map(|intent| intent.origin.to_string());
    let tokens = world.tokens_for(instance).into_iter().map(|intent| intent.origin.to_string());
    let strict = world.mtls_for(instance).filter(|intent| {
        intent.mode == Some(MtlsMode::Strict)
            || intent.ports.values().any(|mode| *mode == Some(MtlsMode::Strict))
    });
    let limits = world.limits_for(instance).filter(|intent| intent.count() > 0);
    let limits = limits.map(|intent| intent.origin.to_string());
    let authorization = authorization.chain(tokens);
    authorization.chain(strict.map(|intent| intent.origin.to_string())).chain(limits).collect()
}

fn some(names: &BTreeSet<String>) -> String {
    let shown: Vec<&str> = names.iter().take(MOST_NAMES).map(String::as_str).collect();
    let more = names.len() - shown.len();
    let shown = shown.join(", ");
    if more > 0 { format!("{shown} and {more} more") } else { shown }
}
