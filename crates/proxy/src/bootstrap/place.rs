//! Where the workload runs.

use serde::{Deserialize, Serialize};

/// Region, zone and sub-zone.
#[derive(Debug, Clone, Default, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Locality {
    /// Region.
    pub region: String,
    /// Zone.
    pub zone: String,
    /// Part of the zone.
    pub sub_zone: String,
}

impl Locality {
    /// As endpoints have it.
    pub fn to_model(&self) -> outrigger_model::endpoint::Locality {
        let Self { region, zone, sub_zone } = self.clone();
        outrigger_model::endpoint::Locality { region, zone, sub_zone }
    }
}
