//! Who is meant: an instance, or one of a service.

use std::collections::BTreeSet;
use std::sync::Arc;

use crate::instance::{Instance, State};
use crate::world::World;

/// Names that an error lists.
const MOST_NAMES: usize = 12;

/// The instance of an id, or the first of a service, one that runs if there is any.
///
/// # Errors
/// There is none, or there are several services of that name.
pub(super) fn instance<'w>(world: &'w World, from: &str) -> Result<&'w Arc<Instance>, String> {
    if let Some(instance) = world.instance(from) {
        return Ok(instance);
    }
    let whole = named(world, from);
    let (name, namespace) = match &whole {
        Some((name, namespace)) => (name.as_str(), Some(namespace)),
        None => (from, None),
    };
    // A Pod of a cluster is called by what its labels say, and serves what selects it.
    let is_meant = |instance: &&Arc<Instance>| {
        namespace.is_none_or(|namespace| instance.namespace == *namespace)
            && (instance.service == name || instance.serves().iter().any(|service| service == name))
    };
    let found: Vec<_> = world.instances().filter(is_meant).collect();
    let services: BTreeSet<String> =
        found.iter().map(|instance| format!("{}/{name}", instance.namespace)).collect();
    if services.len() > 1 {
        return Err(format!("{from:?} may be {}; say which", listed(services.into_iter())));
    }
    let running = found.iter().find(|instance| instance.state == State::Running);
    running.or(found.first()).copied().ok_or_else(|| {
        let all = |instance: &Arc<Instance>| {
            let served = instance.serves().iter().map(|name| format!("{}/{name}", instance.namespace));
            served.chain([service_of(instance)]).collect::<Vec<_>>()
        };
        let known: BTreeSet<String> = world.instances().flat_map(all).collect();
        match known.is_empty() {
            true => format!("there is no instance and no service {from:?}: nothing is registered"),
            false => format!(
                "there is no instance and no service {from:?}; there are {}",
                listed(known.into_iter())
            ),
        }
    })
}

/// Name and namespace of `shop/web`, `web.shop` or a whole host.
fn named(world: &World, from: &str) -> Option<(String, String)> {
    if let Some((namespace, name)) = from.split_once('/') {
        return Some((name.to_owned(), namespace.to_owned()));
    }
    let host = world.resolver.resolve(from, "").ok().filter(|_| from.contains('.'))?;
    let (name, namespace) = world.resolver.split(&host)?;
    Some((name.to_owned(), namespace.to_owned()))
}

/// `shop/web`.
pub(super) fn service_of(instance: &Instance) -> String {
    format!("{}/{}", instance.namespace, instance.service)
}

/// The first names, and how many more there are.
pub(super) fn listed(names: impl ExactSizeIterator<Item = String>) -> String {
    let more = names.len().saturating_sub(MOST_NAMES);
    let shown: Vec<String> = names.take(MOST_NAMES).collect();
    let shown = shown.join(", ");
    if more > 0 { format!("{shown} and {more} more") } else { shown }
}
