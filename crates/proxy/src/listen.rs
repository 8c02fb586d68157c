//! Listening sockets: one per worker and address (`SO_REUSEPORT`), bound before there is any configuration.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;

use socket2::{Domain, Protocol, Socket, Type};

use crate::bootstrap::{InboundBind, OutboundBind};

pub mod accept;
pub mod orig_dst;

use orig_dst::OriginalDst;

/// Connections that wait to be accepted.
const BACKLOG: i32 = 4096;

/// What a listening socket stands for.
#[derive(Debug, Clone)]
pub enum Purpose {
    /// Connections to the workload.
    Inbound {
        /// Where the application is; absent under interception: at the original destination.
        app: Option<SocketAddr>,
    },
    /// Connections from the workload.
    Outbound {
        /// `host:port`; absent under interception: the original destination says it.
        to: Option<Arc<str>>,
    },
}

/// A listening socket of one worker.
pub struct Bound {
    pub listener: TcpListener,
    pub address: SocketAddr,
    pub purpose: Purpose,
    pub original: OriginalDst,
}

/// Why an address cannot be bound.
#[derive(Debug, thiserror::Error)]
#[error(
    "cannot listen on {address} ({what}): {source}; is another process there, or the address not on this host?"
)]
pub struct BindError {
    pub address: SocketAddr,
    pub what: String,
    pub source: io::Error,
}

/// Binds all sockets of explicit mode, for each worker its own set.
///
/// # Errors
/// The first address that cannot be bound.
pub fn bind(
    workers: usize,
    inbound: &[InboundBind],
    outbound: &[OutboundBind],
) -> Result<Vec<Vec<Bound>>, BindError> {
    let mut sets: Vec<Vec<Bound>> = (0..workers).map(|_| Vec::new()).collect();
    let wanted = inbound
        .iter()
        .map(|i| (i.bind, Purpose::Inbound { app: Some(i.app) }, format!("inbound for {}", i.app)));
    let outbound = outbound.iter().map(|o| {
        let to = Some(o.to.as_str().into());
        (o.bind, Purpose::Outbound { to }, format!("outbound to {}", o.to))
    });
    for (address, purpose, what) in wanted.chain(outbound) {
        let failed = |source| BindError { address, what: what.clone(), source };
        // The first socket may choose the port; the others join it.
        let mut real = address;
        for set in &mut sets {
            let listener = open(real, workers > 1).map_err(failed)?;
            real = listener.local_addr().map_err(failed)?;
            let (purpose, original) = (purpose.clone(), OriginalDst::Bound(real));
            set.push(Bound { listener, address: real, purpose, original });
        }
    }
    Ok(sets)
}

fn open(address: SocketAddr, share: bool) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    if share {
        socket.set_reuse_port(true)?;
    }
    if address.is_ipv6() {
        // Its own IPv4 bind is another entry; one that takes both would collide with it.
        socket.set_only_v6(true)?;
    }
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn workers_share_the_port_that_the_first_was_given() {
        let inbound = [InboundBind { bind: ([127, 0, 0, 1], 0).into(), app: ([127, 0, 0, 1], 1).into() }];
        let sets = bind(2, &inbound, &[]).unwrap();
        assert_eq!(sets[0][0].address, sets[1][0].address);
        assert_ne!(sets[0][0].address.port(), 0);
    }

    #[test]
    fn an_address_in_use_is_named_with_its_purpose() {
        let held = TcpListener::bind("127.0.0.1:0").unwrap();
        let bind_to = held.local_addr().unwrap();
        let outbound = [OutboundBind { bind: bind_to, to: "catalog.shop:8080".into() }];
        let error = bind(1, &[], &outbound).err().unwrap().to_string();
        assert!(error.contains(&bind_to.to_string()) && error.contains("catalog.shop:8080"), "{error}");
    }
}
