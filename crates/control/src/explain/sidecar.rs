//! What the Sidecar of a client says of a destination: whether the client knows it, and what becomes of it otherwise.

use std::net::SocketAddr;
use std::sync::Arc;

use outrigger_model::resource::{Destination, Resource, ResourceKind};
use outrigger_rules::intent::{SidecarIntent, Unknown};

use super::request::Goal;
use super::{See, Work};
use crate::world::Service;

impl<'a> See<'a> {
    /// The Sidecar that holds for the client.
    pub(super) fn sidecar(&self) -> Option<&'a Arc<SidecarIntent>> {
        self.scope.sidecar(self.world)
    }

    /// Why the client does not find a port of a service that is there.
    pub(super) fn unknown(&self, service: &Service, port: u16) -> Option<String> {
        let sidecar = self.sidecar()?;
        service.offer(port, self.namespace())?;
        let owner = service.known(port).owner(port, self.namespace()).unwrap_or(&service.namespace);
        let known = sidecar.imports(self.namespace(), owner, &service.host, port);
        (!known).then(|| {
            format!("port {port} of {} is not among the hosts that it lets clients know", service.host)
        })
    }

    /// The answer of the control plane to who asks for a destination.
    pub(super) fn destination(&self, goal: &Goal) -> Option<Destination> {
        let name = match goal.host.parse() {
            Ok(ip) => format!("/{}", SocketAddr::new(ip, goal.port)),
            Err(_) => format!("{}:{}", goal.host, goal.port),
        };
        match self.resource(ResourceKind::Destination, &name)? {
            Resource::Destination(destination) => Some(destination),
            _ => None,
        }
    }
}

impl Work<'_> {
    /// What becomes of a connection that no listener takes.
    pub(super) fn outside(&mut self, goal: &Goal) {
        let see = self.caller.see;
        self.missing(goal);
        let refused = see.destination(goal).filter(|destination| destination.refused_by().is_some());
        match refused.as_ref().and_then(Destination::refused_by) {
            Some(by) => {
                let why = "it is not known, and the outbound policy is REGISTRY_ONLY";
                self.outcome("failed", Some(502), Some(by.to_owned()), why);
            }
            None => self.outcome("outside", None, None, super::OUTSIDE),
        }
    }

    /// Says that the client would find more without its Sidecar; whether it did.
    pub(super) fn is_unknown(&mut self, goal: &Goal) -> bool {
        let see = self.caller.see;
        let service = see.service(&goal.host);
        let Some(why) = service.and_then(|service| see.unknown(service, goal.port)) else { return false };
        let sidecar = see.sidecar().map_or(String::new(), |sidecar| sidecar.origin.to_string());
        let through = matches!(see.scope.unknown(see.world), Some(Unknown::Through(_)));
        let goes = if through { ", so it goes through the egress proxy" } else { "" };
        self.answer.notes.push(format!("{sidecar}: {why}{goes}"));
        true
    }
}
