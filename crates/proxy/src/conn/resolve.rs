//! The listener for a connection. A destination without an answer yet is pending: the connection waits a bounded time.

use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use outrigger_model::listener::Direction;
use outrigger_model::resource;
use tokio::net::lookup_host;
use tokio::time::timeout;

use crate::bootstrap::OutboundPolicy;
use crate::failure::{Failure, FailureKind, Stage};
use crate::runtime::build::PASSTHROUGH;
use crate::runtime::snapshot::{Destination, ListenerHandle, Snapshot};
use crate::runtime::usage::InUse;
use crate::worker::Worker;

/// Of a name that is not in the mesh.
const DNS_TIMEOUT: Duration = Duration::from_secs(5);

/// The inbound listener of an address.
pub(super) async fn inbound(
    worker: &Rc<Worker>,
    destination: SocketAddr,
) -> Result<Arc<ListenerHandle>, Failure> {
    if let Some(found) = worker.snapshot().listener_or_other(Direction::Inbound, destination) {
        return Ok(found.clone());
    }
    let find = |s: &Snapshot| s.listener_or_other(Direction::Inbound, destination).cloned();
    // Inbound listeners come unasked; a first configuration without this one will not change its mind, but may be followed
    // by one that has it: the instance may just be registering.
    worker.process.wait_for(&format!("inbound {destination}"), || {}, find).await
}

/// Where an outbound connection goes.
pub(super) struct Outbound {
    pub listener: Arc<ListenerHandle>,
    /// With the port of what an explicit address stands for.
    pub destination: SocketAddr,
    /// Keeps the destination from being forgotten. Absent for a listener that nobody asked for.
    pub in_use: Option<InUse>,
}

/// The outbound listener of a name or an address.
pub(super) async fn outbound(
    worker: &Rc<Worker>,
    destination: SocketAddr,
    to: Option<&str>,
) -> Result<Outbound, Failure> {
    let by_address;
    let name = match to {
        Some(name) => name,
        None => {
            by_address = format!("/{destination}");
            &by_address
        }
    };
    let find = |snapshot: &Snapshot| {
        if let Some(known) = snapshot.destination(name) {
            // One that was just forgotten is asked for anew.
            let in_use = known.usage.begin()?;
            return Some((known.answer.clone(), Some(in_use)));
        }
        // With a foreign control plane the feed is the wildcard: a listener for the very address needs no answer.
        let by_address = snapshot.listener(Direction::Outbound, destination).filter(|_| to.is_none());
        by_address.cloned().map(|listener| (Destination::Listener(listener), None))
    };
    let (found, in_use) = match find(&worker.snapshot()) {
        Some(found) => found,
        None => worker.process.wait_for(name, || worker.process.demand.ask(name), find).await?,
    };
    match found {
        Destination::Listener(listener) => {
            Ok(Outbound { listener, destination: with_port(destination, to), in_use })
        }
        Destination::NotInMesh => {
            let (listener, destination) = passthrough(worker, destination, to).await?;
            Ok(Outbound { listener, destination, in_use })
        }
        Destination::Refused(by) => {
            let detail = format!("{name} is not known, and by {by} the outbound policy is REGISTRY_ONLY");
            Err(Failure::local(Stage::Route, FailureKind::Blocked, detail))
        }
    }
}

/// The explicit address stands for `host:port`: the port is the destination's.
fn with_port(bound: SocketAddr, to: Option<&str>) -> SocketAddr {
    let port = to.and_then(|to| to.rsplit_once(':')).and_then(|(_, port)| port.parse().ok());
    SocketAddr::new(bound.ip(), port.unwrap_or(bound.port()))
}

async fn passthrough(
    worker: &Rc<Worker>,
    destination: SocketAddr,
    to: Option<&str>,
) -> Result<(Arc<ListenerHandle>, SocketAddr), Failure> {
    let name = to.map_or_else(|| destination.to_string(), str::to_owned);
    if worker.process.outbound_policy == OutboundPolicy::RegistryOnly {
        let detail = format!("{name} is not in the mesh, and the outbound policy is REGISTRY_ONLY");
        return Err(Failure::local(Stage::Route, FailureKind::Blocked, detail));
    }
    let address = match to {
        Some(name) => lookup(name).await?,
        None => destination,
    };
    worker.process.loops.outward(address)?;
    if resource::is_virtual(address.ip()) {
        // Nobody answers there, not even with a refusal.
        let detail = format!(
            "{address} is a virtual address of the mesh, and no service has it with this port; was {name} given up, or \
             the port never registered?"
        );
        return Err(Failure::local(Stage::Route, FailureKind::Blocked, detail));
    }
    let snapshot = worker.snapshot();
    let listener = snapshot.listener_named(PASSTHROUGH).cloned().ok_or_else(|| {
        Failure::local(Stage::Route, FailureKind::Internal, "the snapshot has no passthrough listener")
    })?;
    Ok((listener, address))
}

async fn lookup(name: &str) -> Result<SocketAddr, Failure> {
    let failed = |reason: String| {
        let detail = format!("{name} is not in the mesh, and {reason}");
        Failure::local(Stage::Route, FailureKind::DnsFailed, detail)
    };
    match timeout(DNS_TIMEOUT, lookup_host(name)).await {
        Ok(Ok(mut addresses)) => addresses.next().ok_or_else(|| failed("its name has no address".into())),
        Ok(Err(error)) => Err(failed(format!("its name is not resolved: {error}"))),
        Err(_) => Err(failed(format!("its name was not resolved within {DNS_TIMEOUT:?}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_explicit_address_takes_the_port_of_what_it_stands_for() {
        let bound = SocketAddr::from(([127, 0, 0, 5], 15101));
        assert_eq!(with_port(bound, Some("catalog.shop:8080")).to_string(), "127.0.0.5:8080");
        assert_eq!(with_port(bound, None), bound);
    }
}
