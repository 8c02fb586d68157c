//! Where the workload runs.

use serde::{Deserialize, Serialize};

/// Region and zone.
#[derive(Debug, Clone, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Locality {
    /// Region.
    #[serde(default)]
    pub region: String,
    /// Zone.
    #[serde(default)]
    pub zone: String,
}

impl Locality {
    /// As endpoints have it.
    pub fn to_model(&self) -> outrigger_model::endpoint::Locality {
        let (region, zone) = (self.region.clone(), self.zone.clone());
        outrigger_model::endpoint::Locality { region, zone, sub_zone: String::new() }
    }
}
