//! Where instances and rules come from, as `status` tells it.

use serde::{Deserialize, Serialize};
use tokio::time::Instant;
use utoipa::ToSchema;

use crate::keeper::Published;
use crate::registry::Source;
use crate::registry::health::{Condition, Registered, Table};
use crate::world::Contested;

/// Names of one registry that another goes before, and addresses that another identity has.
const MOST_SHADOWED: usize = 100;

/// A source of instances and rules.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct RegistryBody {
    /// Its name in the settings; `api` is the management API.
    pub name: String,
    /// What it is.
    pub kind: String,
    /// How it is.
    pub state: Condition,
    /// Seconds since it last said something, news or not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub heard_seconds: Option<u64>,
    /// Instances that it has, those among them that another goes before.
    pub instances: usize,
    /// The same of rules.
    pub rules: usize,
    /// Instances registered here that were written there, where that is asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub registered: Option<usize>,
    /// Of what it has, so much is kept for a start while it is away; nothing for files, and before it is kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kept: Option<usize>,
    /// Failures since the start.
    pub failures: u64,
    /// The last failure, over or not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_error: Option<String>,
    /// Seconds since then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_error_seconds: Option<u64>,
    /// What it has and another goes before, by name; at most 100.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub shadowed: Vec<Shadowed>,
    /// How many these are in all.
    #[serde(default)]
    pub shadowed_count: usize,
    /// Addresses that it gives to others than who has them; at most 100.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub contested: Vec<ContestedAddress>,
    /// How many these are in all.
    #[serde(default)]
    pub contested_count: usize,
}

/// An instance is said to be where another identity is: calls to that address are not for it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ContestedAddress {
    /// The id of the instance.
    pub instance: String,
    /// Which part of the registry says it.
    pub part: String,
    /// `10.0.0.7:8080`.
    pub address: String,
    /// Who has the address.
    pub by: String,
}

/// What one registry has and another goes before.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Shadowed {
    /// The id of an instance, or `Kind/namespace/name` of a rule.
    pub what: String,
    /// Which part of the registry says it.
    pub part: String,
    /// Who has it.
    pub by: String,
}

/// All rows of the table.
pub(crate) fn bodies(table: &Table, published: &Published) -> Vec<RegistryBody> {
    let contested = published.contested();
    table.rows().map(|(place, row)| body(place, row, published, &contested)).collect()
}

fn body(
    place: usize,
    row: &Registered,
    published: &Published,
    contested: &[(&Source, Contested<'_>)],
) -> RegistryBody {
    let contested = || contested.iter().filter(|(of, _)| of.place == place);
    let state = row.health.state();
    let age = |at: Instant| at.elapsed().as_secs();
    let shadowed = || published.claims.shadowed(place).chain(published.ruled.shadowed(place));
    RegistryBody {
        name: row.name.to_string(),
        kind: row.kind.to_owned(),
        state: row.condition(),
        heard_seconds: state.heard.map(age),
        instances: published.claims.count(place),
        rules: published.ruled.count(place),
        registered: state.written,
        kept: state.kept,
        failures: state.failures,
        last_error_seconds: state.error.as_ref().map(|error| age(error.at)),
        last_error: state.error.map(|error| error.message),
        shadowed: shadowed().take(MOST_SHADOWED).map(|(what, source, by)| told(what, source, by)).collect(),
        shadowed_count: shadowed().count(),
        contested: contested()
            .take(MOST_SHADOWED)
            .map(|(of, one)| contested_address(of, one, published))
            .collect(),
        contested_count: contested().count(),
    }
}

fn told(what: &str, source: &Source, by: &Source) -> Shadowed {
    Shadowed { what: what.to_owned(), part: source.part.clone(), by: by.to_string() }
}

fn contested_address(of: &Source, one: &Contested<'_>, published: &Published) -> ContestedAddress {
    let holder = one.holder;
    let by = format!("instance \"{}\" ({}/{})", holder.id, holder.namespace, holder.service_account);
    let said = published.claims.owner(&holder.id).map(|(source, _)| format!(" of {source}"));
    ContestedAddress {
        instance: one.claimant.id.clone(),
        part: of.part.clone(),
        address: one.address.to_string(),
        by: by + &said.unwrap_or_default(),
    }
}
