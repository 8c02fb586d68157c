//! Where a provider of the settings is asked.

use super::lens::{Lens, Seen};
use super::names;
use crate::provider::ExtensionProvider;

/// The service that a provider is, and the cluster by which this client asks it; `None` where it cannot be asked.
pub(super) fn asked<'a>(lens: &Lens<'a>, provider: &ExtensionProvider) -> Option<(Seen<'a>, String)> {
    let (namespace, host, port) = provider.service();
    let service = lens.service(&lens.resolve_in(host, namespace.unwrap_or_default())?)?;
    // Whoever says where the requests of this client go, is whom it would ask.
    let owner = lens.owner(service, port)?;
    if namespace.is_some_and(|namespace| namespace != owner) {
        return None;
    }
    let cluster = names::outbound(port, "", service.host().as_str());
    Some((service, cluster))
}
