//! From the world to what one client is told: (world, intents, node) → `model`, one file per resource kind.
//!
//! Pure. A resource is compiled when somebody asks for it by name; [`cache`] keeps it for all clients that see the same.

use outrigger_model::resource::Origin;
use outrigger_rules::intent;

mod any_host;
mod asked;
mod attached;
mod authorization;
pub mod cache;
mod chains;
mod checks;
mod cluster;
mod connections;
mod described;
mod destination;
mod edits;
mod elsewhere;
pub(crate) mod endpoints;
pub mod foreign;
mod hashes;
mod headless;
mod hints;
mod host;
mod imports;
mod inbound;
mod inbound_limits;
mod ingress;
mod lens;
mod limits;
pub mod names;
mod outbound;
mod place;
mod route;
pub mod scope;
mod tokens;
mod upgrade;

#[cfg(test)]
mod tests;

/// The model's form of an origin.
fn origin(origin: &intent::Origin) -> Origin {
    Origin {
        kind: origin.kind.as_str().to_owned(),
        namespace: origin.namespace.clone(),
        name: origin.name.clone(),
    }
}
