//! Which Sidecar holds for whom.

use std::collections::BTreeMap;
use std::sync::Arc;

use outrigger_rules::intent::{Carried, Host, RouteIntent, SidecarIntent};

use super::{World, selected};
use crate::instance::Instance;

type Labels = BTreeMap<String, String>;

impl World {
    /// The Sidecar of a client: of its namespace one that selects it, else one for all, else one for all of the root namespace. Of
    /// several the oldest, as in Istio; that there are is a finding.
    pub fn sidecar_for(&self, namespace: &str, labels: Option<&Labels>) -> Option<&Arc<SidecarIntent>> {
        let all = &self.rules.sidecars;
        if all.all.is_empty() {
            return None;
        }
        let first = |namespace: &str, fits: &dyn Fn(&SidecarIntent) -> bool| {
            all.of(namespace).iter().filter(|one| fits(one)).min_by(|a, b| a.age().cmp(&b.age()))
        };
        let selects = |one: &SidecarIntent| {
            !one.selector.is_empty() && labels.is_some_and(|labels| selected(&one.selector, labels))
        };
        let wide = |one: &SidecarIntent| one.selector.is_empty();
        first(namespace, &selects)
            .or_else(|| first(namespace, &wide))
            .or_else(|| self.settings.roots().find_map(|root| first(root, &wide)))
    }

    /// The hosts of all of an instance's services.
    pub(crate) fn served_by(&self, instance: &Instance) -> impl Iterator<Item = Host> {
        let own = instance.serves().is_empty().then_some(&instance.service);
        let names = instance.serves().iter().chain(own);
        names.map(|name| self.resolver.service(name, &instance.namespace))
    }

    /// The routing that a client has for a host, with the Sidecar that holds for it: as [`World::route_for`], of what that knows.
    pub(crate) fn route_known(
        &self,
        host: &Host,
        namespace: &str,
        sidecar: Option<&SidecarIntent>,
        carried: Carried,
    ) -> Option<Arc<RouteIntent>> {
        let known =
            |route: &RouteIntent| sidecar.is_none_or(|sidecar| sidecar.imports_rule(namespace, route));
        let say = self.say(host, namespace);
        let reach = |route: &RouteIntent| route.reach(namespace, &say).filter(|_| known(route));
        self.route_among(host, |route| reach(route).filter(|_| route.routes(carried)))
    }
}
