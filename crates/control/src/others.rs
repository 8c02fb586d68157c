//! What other control planes of the same mesh say of their proxies, and what it adds up to.
//!
//! Generations are each one's own. What is the same at all is the object of the cluster, with the generation that its API server counts: a
//! replica says which of them it has, and since which generation of its own.

use std::collections::{BTreeMap, BTreeSet};

use outrigger_xds::ClientKind;
use serde::{Deserialize, Serialize};

/// By rule and reason, who does not enforce it.
pub(crate) type Gaps = BTreeMap<String, BTreeMap<String, BTreeSet<String>>>;

/// What one replica says.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Report {
    /// Who is connected there.
    pub(crate) proxies: Vec<Proxy>,
    /// Rules as `VirtualService shop/catalog`.
    pub(crate) rules: BTreeMap<String, At>,
    /// Of a rule, who refuses what was made from it, and why.
    pub(crate) refused: BTreeMap<String, Vec<String>>,
    /// What foreign clients do not enforce.
    pub(crate) gaps: Gaps,
}

/// A connected proxy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Proxy {
    /// As reports call it.
    pub(crate) name: String,
    /// The instance that it stands beside.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) instance: Option<String>,
    /// `outrigger`, `envoy` or `grpc`.
    pub(crate) client: String,
    /// The generation that it has in force.
    pub(crate) generation: u64,
}

impl Proxy {
    /// As it is called in reports; nothing where a newer release knows more.
    pub(crate) fn kind(&self) -> Option<ClientKind> {
        let all = [ClientKind::Outrigger, ClientKind::Envoy, ClientKind::Grpc];
        all.into_iter().find(|kind| named(*kind) == self.client)
    }
}

/// As reports call a kind of client.
pub(crate) fn named(kind: ClientKind) -> String {
    format!("{kind:?}").to_lowercase()
}

/// A rule at a replica.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct At {
    /// The API server's generation of the object that is in force.
    pub(crate) object: Option<i64>,
    /// Since which generation of that replica.
    pub(crate) since: u64,
}

/// What all others say.
#[derive(Debug, Clone, Default)]
pub(crate) struct Others {
    reports: Vec<Sorted>,
    /// Who does not answer.
    pub(crate) silent: Vec<String>,
    /// There are others, or there may be.
    pub(crate) expected: bool,
}

#[derive(Debug, Clone)]
struct Sorted {
    report: Report,
    /// Of all its proxies, in order.
    generations: Vec<u64>,
}

impl Others {
    pub(crate) fn new(reports: impl IntoIterator<Item = Report>, silent: Vec<String>) -> Self {
        let sorted = |report: Report| {
            let mut generations: Vec<u64> = report.proxies.iter().map(|proxy| proxy.generation).collect();
            generations.sort_unstable();
            Sorted { report, generations }
        };
        Self { reports: reports.into_iter().map(sorted).collect(), silent, expected: true }
    }

    /// How many of their proxies have a rule as the API server's generation of it says, and of how many.
    pub(crate) fn reached(&self, rule: &str, object: Option<i64>) -> (usize, usize) {
        let mut all = (0, 0);
        for Sorted { report, generations } in &self.reports {
            all.1 += generations.len();
            // One that has a newer one has this one's successor, which is as good.
            if let Some(at) = report.rules.get(rule).filter(|at| at.object >= object) {
                all.0 += generations.len() - generations.partition_point(|generation| *generation < at.since);
            }
        }
        all
    }

    /// Who refuses what was made from a rule.
    pub(crate) fn refused(&self, rule: &str) -> impl Iterator<Item = String> {
        self.reports.iter().filter_map(move |one| one.report.refused.get(rule)).flatten().cloned()
    }

    /// What their foreign clients do not enforce: rule, reason, who.
    pub(crate) fn gaps(&self) -> impl Iterator<Item = (&String, &String, &String)> {
        let rules = self.reports.iter().flat_map(|one| &one.report.gaps);
        let reasons =
            rules.flat_map(|(rule, reasons)| reasons.iter().map(move |(why, who)| (rule, why, who)));
        reasons.flat_map(|(rule, why, who)| who.iter().map(move |who| (rule, why, who)))
    }

    /// Their proxies.
    pub(crate) fn proxies(&self) -> impl Iterator<Item = &Proxy> {
        self.reports.iter().flat_map(|one| &one.report.proxies)
    }

    /// Who does not answer, in words; nothing where all do.
    pub(crate) fn unheard(&self) -> String {
        match self.silent.as_slice() {
            [] => String::new(),
            [one] => format!("replica {one} does not answer, and its proxies are not among them"),
            all => format!("replicas {} do not answer, and their proxies are not among them", all.join(", ")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(generations: &[u64], object: i64, since: u64) -> Report {
        let proxy = |generation: &u64| Proxy {
            name: format!("p{generation}"),
            instance: None,
            client: "outrigger".to_owned(),
            generation: *generation,
        };
        let rules =
            BTreeMap::from([("VirtualService shop/web".to_owned(), At { object: Some(object), since })]);
        Report { proxies: generations.iter().map(proxy).collect(), rules, ..Report::default() }
    }

    #[test]
    fn proxies_of_others_count_by_the_object_and_their_own_replicas_generation() {
        let rule = "VirtualService shop/web";
        let others = Others::new([report(&[5, 7, 7], 3, 7), report(&[9000], 2, 1)], Vec::new());
        assert_eq!(others.reached(rule, Some(3)), (2, 4), "the second has not heard of it");
        assert_eq!(others.reached(rule, Some(2)), (3, 4));
        assert_eq!(others.reached("VirtualService shop/other", Some(1)), (0, 4));
        assert_eq!(others.unheard(), "");
        let others = Others::new([], vec!["outrigger-control-1".to_owned()]);
        assert!(others.unheard().contains("outrigger-control-1 does not answer"));
    }
}
