//! What is known of each rule of a cluster.

use std::collections::{HashMap, HashSet};
use std::hash::{Hash, Hasher};

use outrigger_rules::Finding;
use serde_json::{Value, json};

use crate::api::route_status;
use crate::enforced::Unenforced;
use crate::keeper::{Published, Rule};
use crate::others::Others;
use crate::registry::kubernetes::read;
use crate::status::Board;

/// Reasons told of one rule, and bytes of all.
const MOST: (usize, usize) = (12, 2048);

/// What is known of a rule.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Told {
    /// As in `VirtualService shop/catalog`.
    pub(super) id: String,
    pub(super) kind: String,
    pub(super) namespace: String,
    pub(super) name: String,
    /// The generation of the object that was judged; none where it cannot be read.
    pub(super) generation: Option<i64>,
    /// Whether it holds as it is written, a word and words.
    pub(super) accepted: bool,
    pub(super) reason: &'static str,
    pub(super) message: String,
    /// What is wrong, worth a word or refused.
    pub(super) findings: Vec<Finding>,
    /// Who refuses it or does not enforce it.
    pub(super) lacking: String,
    /// How many proxies have it, of how many, and since which generation of the mesh.
    pub(super) proxies: (usize, usize),
    pub(super) since: u64,
    /// Which replicas could not be asked.
    pub(super) unheard: String,
    /// Of a route or a policy of the Gateway API: its conditions by parent, or by ancestor.
    pub(super) parents: Vec<Value>,
    /// What an Event would say of it, if one would, as a number.
    pub(super) word: Option<u64>,
}

impl Hash for Told {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.essence().hash(state);
        self.proxies.hash(state);
        self.unheard.hash(state);
    }
}

impl Told {
    fn new(id: &str) -> Option<Self> {
        let (kind, rest) = id.split_once(' ')?;
        let (namespace, name) = rest.split_once('/')?;
        // A ReferenceGrant has no status.
        read::resources(kind).next().filter(|resource| resource.plural != "referencegrants")?;
        let (kind, namespace, name) = (kind.to_owned(), namespace.to_owned(), name.to_owned());
        Some(Self { id: id.to_owned(), kind, namespace, name, ..Self::default() })
    }

    /// All but numbers that change with every proxy that comes and goes.
    pub(super) fn essence(&self) -> String {
        let parents: String = self.parents.iter().map(Value::to_string).collect();
        let findings: String = self.findings.iter().map(Finding::of_field).collect();
        let Self { generation, accepted, reason, message, lacking, since, .. } = self;
        format!("{generation:?} {accepted} {reason} {message} {lacking} {since} {findings} {parents}")
    }

    /// Whether all proxies that there are have it, and enforce it.
    pub(super) fn is_everywhere(&self) -> bool {
        self.is_reached() && self.unheard.is_empty()
    }

    /// Whether all that are known of do.
    pub(super) fn is_reached(&self) -> bool {
        self.proxies.0 == self.proxies.1 && self.lacking.is_empty()
    }

    /// As these findings of its text say.
    pub(super) fn unreadable(mut self, findings: Vec<Finding>, spec: &Value) -> Self {
        let before = std::mem::take(&mut self.message);
        self.message = joined(findings.iter().filter(|one| one.is_error()).map(Finding::of_field)) + &before;
        self.findings = findings;
        self.lacking.clear();
        let services =
            spec["parentRefs"].as_array().into_iter().flatten().filter(|parent| parent["kind"] == "Service");
        let condition = json!({"type": "Accepted", "status": "False", "reason": "UnsupportedValue", "message": self.message});
        let parents = services.map(|parent| route_status::parent_of(parent.clone(), vec![condition.clone()]));
        self.parents = parents.collect();
        self
    }
}

/// Everything that a registry has of rules. `flaws` are the ids of its objects that cannot be read.
pub(super) fn all(
    published: &Published,
    (board, others): (&Board, &Others),
    registry: &str,
    place: usize,
    flaws: &[(String, String)],
    findings: &HashMap<String, Vec<Finding>>,
) -> Vec<Told> {
    let unenforced = Unenforced::now(published, board, others);
    let flawed: HashSet<&str> = flaws.iter().map(|(id, _)| id.as_str()).collect();
    let owned = published.ruled.owned().filter(|(_, (source, _))| &*source.registry == registry);
    let owned = owned.filter_map(|(key, (_, rule))| {
        let id = id_of(key)?;
        if flawed.contains(id.as_str()) {
            None
        } else {
            in_force(id, rule, published, (board, others), &unenforced, findings)
        }
    });
    let shadowed = published.ruled.shadowed(place).filter_map(|(key, of, by)| {
        let rule = published.ruled.said(of, key)?;
        let mut told = Told::new(&id_of(key)?)?;
        told.generation = generation(rule);
        (told.reason, told.message) =
            ("Overruled", format!("{by} has a rule of this name, which goes before"));
        Some(told)
    });
    let flawed = flaws.iter().filter_map(|(id, why)| {
        let mut told = Told::new(id)?;
        (told.reason, told.lacking) = ("Invalid", why.clone());
        if published.rules.contains_key(&id.replacen(' ', "/", 1)) {
            told.message = "; what it said before stays in force".to_owned();
        }
        Some(told)
    });
    owned.chain(shadowed).chain(flawed).collect()
}

fn in_force(
    id: String,
    rule: &Rule,
    published: &Published,
    (board, others): (&Board, &Others),
    unenforced: &Unenforced,
    findings: &HashMap<String, Vec<Finding>>,
) -> Option<Told> {
    let mut told = Told::new(&id)?;
    let mut lacking = board.refused_rule(&id);
    lacking.extend(others.refused(&id));
    lacking.extend(unenforced.of(&id));
    told.generation = generation(rule);
    told.since = rule.stored().generation;
    let reached = board.in_force(told.since);
    let elsewhere = others.reached(&id, told.generation);
    let without = unenforced.proxies(board, others, std::slice::from_ref(&id));
    told.proxies = ((reached.proxies + elsewhere.0).saturating_sub(without), reached.of + elsewhere.1);
    told.unheard = others.unheard();
    if others.expected {
        // Generations of the mesh are each replica's own; this one all have in common, whoever writes.
        told.since =
            told.generation.and_then(|generation| u64::try_from(generation).ok()).unwrap_or_default();
    }
    told.lacking = joined(lacking.into_iter());
    told.findings = findings.get(&id).cloned().unwrap_or_default();
    (told.accepted, told.reason) = (true, if told.findings.is_empty() { "Accepted" } else { "Findings" });
    told.message = joined(told.findings.iter().map(Finding::of_field));
    let status = route_status::of(rule, &published.world).unwrap_or_default();
    let parents = status["parents"].as_array().into_iter().flatten();
    // A parent of another kind is another controller's.
    told.parents = parents.filter(|parent| parent["parentRef"]["kind"] == "Service").cloned().collect();
    told.parents.extend(status["ancestors"].as_array().into_iter().flatten().cloned());
    Some(told)
}

/// That of the API server.
fn generation(rule: &Rule) -> Option<i64> {
    rule.object.as_ref()?.json["metadata"]["generation"].as_i64()
}

fn id_of(key: &str) -> Option<String> {
    key.contains('/').then(|| key.replacen('/', " ", 1))
}

pub(super) fn joined(all: impl Iterator<Item = String>) -> String {
    let mut text = all.take(MOST.0).collect::<Vec<_>>().join("; ");
    text.truncate(text.floor_char_boundary(MOST.1));
    text
}
