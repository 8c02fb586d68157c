//! Listening sockets: one per worker and address (`SO_REUSEPORT`), bound before there is any configuration.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};
use std::sync::Arc;

use outrigger_model::listener::Direction;
use socket2::{Domain, Protocol, Socket, Type};

use crate::bootstrap::{Bootstrap, Mode};
use crate::intercept;

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

impl Purpose {
    /// Which way connections go.
    pub fn direction(&self) -> Direction {
        match self {
            Self::Inbound { .. } => Direction::Inbound,
            Self::Outbound { .. } => Direction::Outbound,
        }
    }
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
#[error("cannot listen on {address} ({what}): {source}; {hint}")]
pub struct BindError {
    pub address: SocketAddr,
    pub what: String,
    pub hint: &'static str,
    pub source: io::Error,
}

/// A socket to bind.
struct Wanted {
    address: SocketAddr,
    purpose: Purpose,
    what: String,
    intercepted: bool,
    /// Takes connections to addresses that are not its own.
    transparent: bool,
    /// One of the ports among which the kernel spreads connections, and so workers need not share each.
    spread: Option<usize>,
}

impl Wanted {
    /// Whether this worker listens there.
    fn is_for(&self, worker: usize, workers: usize) -> bool {
        let turns = workers.min(intercept::SPREAD.into());
        self.spread.is_none_or(|port| port % turns == worker % turns)
    }
}

/// Binds all sockets, for each worker its own set.
///
/// # Errors
/// The first address that cannot be bound.
pub fn bind(workers: usize, bootstrap: &Bootstrap) -> Result<Vec<Vec<Bound>>, BindError> {
    let mut sets: Vec<Vec<Bound>> = (0..workers).map(|_| Vec::new()).collect();
    for wanted in listed(bootstrap).into_iter().chain(intercepted(bootstrap)) {
        let all = sets.iter_mut().enumerate().filter(|(worker, _)| wanted.is_for(*worker, workers));
        let Wanted { address, ref purpose, ref what, intercepted, transparent, .. } = wanted;
        // The first socket may choose the port; the others join it.
        let mut real = address;
        for (_, set) in all {
            let opened = open(real, workers > 1, transparent).and_then(|l| Ok((l.local_addr()?, l)));
            let listener = match opened {
                Ok((bound, listener)) => {
                    real = bound;
                    listener
                }
                Err(error) if intercepted && address.is_ipv6() && is_no_family(&error) => {
                    tracing::info!(%address, "this host has no IPv6: nothing of it will be intercepted");
                    break;
                }
                Err(source) => {
                    let (what, hint) = (what.clone(), hint(&source, transparent));
                    return Err(BindError { address, what, hint, source });
                }
            };
            let original = if intercepted { OriginalDst::Intercepted } else { OriginalDst::Bound(real) };
            set.push(Bound { listener, address: real, purpose: purpose.clone(), original });
        }
    }
    Ok(sets)
}

/// The addresses that the bootstrap lists.
fn listed(bootstrap: &Bootstrap) -> Vec<Wanted> {
    let wanted = |address, purpose, what| {
        let (intercepted, transparent, spread) = (false, false, None);
        Wanted { address, purpose, what, intercepted, transparent, spread }
    };
    let inbound = bootstrap.inbound.iter().map(|inbound| {
        wanted(
            inbound.bind,
            Purpose::Inbound { app: Some(inbound.app) },
            format!("inbound for {}", inbound.app),
        )
    });
    let outbound = bootstrap.outbound.iter().map(|outbound| {
        let to = Some(outbound.to.as_str().into());
        wanted(outbound.bind, Purpose::Outbound { to }, format!("outbound to {}", outbound.to))
    });
    inbound.chain(outbound).collect()
}

/// The ports of interception. Translation brings what the workload sends to a loopback address, and what others send to
/// the address of the interface, each to one of many ports. The port before them is that of `tproxy`, and of rules that an
/// earlier sidecar has left.
fn intercepted(bootstrap: &Bootstrap) -> Vec<Wanted> {
    if bootstrap.mode == Mode::Explicit {
        return Vec::new();
    }
    let (inbound, outbound) = (bootstrap.interception.inbound_port, bootstrap.interception.outbound_port);
    let tproxy = bootstrap.mode == Mode::Tproxy;
    let mut wanted = Vec::new();
    for ip in [Ipv4Addr::UNSPECIFIED.into(), Ipv6Addr::UNSPECIFIED.into()] {
        let socket = |port, spread: Option<usize>| Wanted {
            address: SocketAddr::new(ip, port),
            purpose: Purpose::Inbound { app: None },
            what: "intercepted inbound".into(),
            intercepted: true,
            // Under `tproxy` only what the sidecar sends to its own workload is translated, and so comes behind the port.
            transparent: tproxy && spread.is_none(),
            spread,
        };
        wanted.push(socket(inbound, None));
        wanted.extend(intercept::inbound_ports(inbound).0.zip(0..).map(|(p, n)| socket(p, Some(n))));
    }
    for ip in [Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()] {
        let socket = |port, spread| Wanted {
            address: SocketAddr::new(ip, port),
            purpose: Purpose::Outbound { to: None },
            what: "intercepted outbound".into(),
            intercepted: true,
            transparent: false,
            spread,
        };
        wanted.push(socket(outbound, None));
        wanted.extend(intercept::outbound_ports(outbound).0.zip(0..).map(|(p, n)| socket(p, Some(n))));
    }
    wanted
}

fn is_no_family(error: &io::Error) -> bool {
    const EAFNOSUPPORT: i32 = 97;
    error.kind() == io::ErrorKind::AddrNotAvailable || error.raw_os_error() == Some(EAFNOSUPPORT)
}

fn hint(error: &io::Error, transparent: bool) -> &'static str {
    match error.kind() {
        io::ErrorKind::PermissionDenied if transparent => {
            "mode tproxy needs CAP_NET_ADMIN in the proxy; mode redirect does not"
        }
        io::ErrorKind::PermissionDenied => "ports below 1024 need CAP_NET_BIND_SERVICE",
        _ => "is another process there, or the address not on this host?",
    }
}

fn open(address: SocketAddr, share: bool, transparent: bool) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    if share {
        socket.set_reuse_port(true)?;
    }
    if address.is_ipv6() {
        // Its own IPv4 bind is another entry; one that takes both would collide with it.
        socket.set_only_v6(true)?;
    }
    if transparent {
        make_transparent(&socket, address)?;
    }
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// The socket may have addresses that this host has not.
#[cfg(target_os = "linux")]
pub(crate) fn make_transparent(socket: &Socket, address: SocketAddr) -> io::Result<()> {
    if address.is_ipv4() { socket.set_ip_transparent_v4(true) } else { socket.set_ip_transparent_v6(true) }
}

#[cfg(not(target_os = "linux"))]
pub(crate) fn make_transparent(_socket: &Socket, _address: SocketAddr) -> io::Result<()> {
    Err(io::Error::new(io::ErrorKind::Unsupported, "mode tproxy exists only on Linux"))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn bootstrap(more: &str) -> Bootstrap {
        Bootstrap::parse(Path::new("b.yaml"), &format!("node: {{id: web-1}}\nstate_dir: /tmp/x\n{more}\n"))
            .unwrap()
    }

    #[test]
    fn workers_share_the_port_that_the_first_was_given() {
        let sets = bind(2, &bootstrap("inbound: [{bind: \"127.0.0.1:0\", app: \"127.0.0.1:1\"}]")).unwrap();
        assert_eq!(sets[0][0].address, sets[1][0].address);
        assert_ne!(sets[0][0].address.port(), 0);
    }

    #[test]
    fn every_port_that_connections_are_spread_over_has_a_worker_and_every_worker_a_port() {
        let wanted = intercepted(&bootstrap("mode: redirect"));
        for workers in [1, 2, 3, 16, 40] {
            let ports = wanted.iter().filter(|wanted| wanted.spread.is_some());
            assert!(ports.clone().all(|port| (0..workers).any(|worker| port.is_for(worker, workers))));
            assert!((0..workers).all(|worker| ports.clone().any(|port| port.is_for(worker, workers))));
        }
    }

    #[test]
    fn an_address_in_use_is_named_with_its_purpose() {
        let held = TcpListener::bind("127.0.0.1:0").unwrap();
        let bind_to = held.local_addr().unwrap();
        let listed = format!("outbound: [{{bind: \"{bind_to}\", to: \"catalog.shop:8080\"}}]");
        let error = bind(1, &bootstrap(&listed)).err().unwrap().to_string();
        assert!(error.contains(&bind_to.to_string()) && error.contains("catalog.shop:8080"), "{error}");
    }

    #[test]
    fn interception_listens_everywhere_for_inbound_and_on_loopback_for_outbound() {
        let wanted = intercepted(&bootstrap("mode: redirect\ninterception: {inbound_port: 4143}"));
        let shared = wanted.iter().filter(|wanted| wanted.spread.is_none());
        let addresses: Vec<String> = shared.map(|wanted| wanted.address.to_string()).collect();
        assert_eq!(addresses, ["0.0.0.0:4143", "[::]:4143", "127.0.0.1:15001", "[::1]:15001"]);
        let spread = |to: &str| wanted.iter().filter(|w| w.address.to_string().starts_with(to)).count();
        assert_eq!((spread("0.0.0.0:42"), spread("[::]:42"), spread("[::1]:151")), (16, 16, 16));
        assert!(wanted.iter().all(|wanted| !wanted.transparent));
        assert!(intercepted(&bootstrap("mode: tproxy"))[0].transparent);
        assert!(intercepted(&bootstrap("")).is_empty());
    }
}
