//! Which endpoints a client goes to first, by where both are.

use std::fmt;

use outrigger_model::endpoint::Locality;
pub use outrigger_model::endpoint::ZoneAware;
use serde::{Deserialize, Serialize};

/// `localityLbSetting`. With nothing in it: the nearest first, the others where these cannot serve.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Nearness {
    /// All are alike, whatever holds around it (`enabled: false`).
    pub off: bool,
    /// Shares by place instead of the nearest first: the first that takes the client's place.
    pub distribute: Vec<Distribution>,
    /// From region to region: that one goes before all other regions.
    pub failover: Vec<(String, String)>,
    /// Labels that the nearest have in common with the client, the most important first; with a value that one instead.
    pub priority: Vec<(String, Option<String>)>,
    /// What it costs to go to a place, the cheapest first: the most exact that takes a place counts, and who has no cost comes last.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub costs: Vec<(PlacePattern, u32)>,
    /// The client's own zone takes what its part of the service can bear beside those of the other zones.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub zone_aware: Option<ZoneAware>,
    /// So many requests in flight for each endpoint fill who is nearest; what comes then goes on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub capacity: Option<u32>,
}

/// The shares of clients in one place.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Distribution {
    /// Where the clients are.
    pub from: PlacePattern,
    /// Where they go, in percent of their requests.
    pub to: Vec<(PlacePattern, u32)>,
}

/// `region/zone/sub-zone`, each a name or `*`; what is left out is any.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlacePattern(Vec<String>);

impl PlacePattern {
    /// Reads one.
    pub fn parse(text: &str) -> Option<Self> {
        let parts: Vec<String> = text.split('/').map(str::to_owned).collect();
        let good = |part: &String| !part.is_empty() && (part == "*" || !part.contains('*'));
        // After `*` nothing can be told apart.
        let ends = parts.iter().position(|part| part == "*").is_none_or(|at| at + 1 == parts.len());
        (parts.len() <= 3 && parts.iter().all(good) && ends).then_some(Self(parts))
    }

    /// Whether a place is one of these.
    pub fn takes(&self, place: &Locality) -> bool {
        let parts = [&place.region, &place.zone, &place.sub_zone];
        self.0.iter().zip(parts).all(|(wanted, part)| wanted == "*" || wanted == part)
    }

    /// How many parts it names.
    pub fn exactness(&self) -> usize {
        self.0.iter().filter(|part| *part != "*").count()
    }

    /// Whether some place is of both.
    pub fn overlaps(&self, other: &Self) -> bool {
        self.0.iter().zip(&other.0).all(|(a, b)| a == b || a == "*" || b == "*")
    }
}

impl fmt::Display for PlacePattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.join("/"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_takes_places_by_what_it_names() {
        let place = |text: &str| {
            let mut parts = text.split('/').map(str::to_owned);
            let mut next = || parts.next().unwrap_or_default();
            Locality { region: next(), zone: next(), sub_zone: next() }
        };
        for (pattern, place_text, taken) in [
            ("*", "eu/a", true),
            ("eu", "eu/a/1", true),
            ("eu/*", "eu/a/1", true),
            ("eu/a", "eu/b", false),
            ("eu/a/1", "eu/a/1", true),
            ("eu/a/1", "eu/a", false),
            ("us/*", "eu/a", false),
        ] {
            assert_eq!(PlacePattern::parse(pattern).unwrap().takes(&place(place_text)), taken, "{pattern}");
        }
        for bad in ["", "eu//a", "*/a", "e*", "a/b/c/d", "eu/a*"] {
            assert_eq!(PlacePattern::parse(bad), None, "{bad}");
        }
        let overlap =
            |a: &str, b: &str| PlacePattern::parse(a).unwrap().overlaps(&PlacePattern::parse(b).unwrap());
        assert!(overlap("eu", "eu/a") && overlap("*", "us/b") && overlap("eu/*", "eu/a/1"));
        assert!(!overlap("eu/a", "eu/b") && !overlap("eu", "us"));
    }
}
