//! From the bootstrap's section to running servers: binds, reads the host's resolver configuration, spawns.

use std::io;
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::path::Path;
use std::sync::Arc;

use outrigger_telemetry::{Registry, listen};
use parking_lot::Mutex;

use super::names::MeshNames;
use super::resolv_conf::{self, ResolvConf};
use super::upstream::Upstreams;
use super::{Counters, Dns, tcp, udp};
use crate::bootstrap::dns::{DEFAULT_BINDS, Section};
use crate::config_feed::FeedStatus;
use crate::loops::is_among;
use crate::process::Process;

const RESOLV_CONF: &str = "/etc/resolv.conf";

/// Why the resolver cannot listen.
#[derive(Debug, thiserror::Error)]
#[error(
    "dns.bind: cannot listen on {address} ({transport}): {source}; is another process there, or the address not on this \
     host? Set dns.bind, or leave the section dns out to do without"
)]
pub struct BindError {
    address: SocketAddr,
    transport: &'static str,
    source: io::Error,
}

/// Bound, not served yet.
pub struct Sockets(Vec<(UdpSocket, TcpListener)>);

/// Binds every address for both transports.
///
/// # Errors
/// The first address that cannot be bound. Of the default addresses one whose family the host does not have is passed over.
pub fn bind(section: &Section) -> Result<Sockets, BindError> {
    let defaults = section.bind.is_none();
    let mut sockets = Vec::new();
    for address in section.bind.as_deref().unwrap_or(&DEFAULT_BINDS) {
        match open(*address) {
            Ok(pair) => sockets.push(pair),
            Err(error) if defaults && is_absent(&error.source) => {
                tracing::info!(%address, "no DNS for this address family: the host does not have it");
            }
            Err(error) => return Err(error),
        }
    }
    Ok(Sockets(sockets))
}

fn open(address: SocketAddr) -> Result<(UdpSocket, TcpListener), BindError> {
    let failed = |transport| move |source| BindError { address, transport, source };
    let listener = TcpListener::bind(address).map_err(failed("TCP"))?;
    // Where the port is left to the kernel, both get the same.
    let chosen = listener.local_addr().map_err(failed("TCP"))?;
    let socket = UdpSocket::bind(chosen).map_err(failed("UDP"))?;
    listener.set_nonblocking(true).map_err(failed("TCP"))?;
    socket.set_nonblocking(true).map_err(failed("UDP"))?;
    Ok((socket, listener))
}

fn is_absent(error: &io::Error) -> bool {
    const EAFNOSUPPORT: i32 = 97;
    error.kind() == io::ErrorKind::AddrNotAvailable || error.raw_os_error() == Some(EAFNOSUPPORT)
}

/// Whom to ask about names of the world, and the domains in which names without a dot are looked for; never ourselves.
pub fn resolvers(section: Option<&Section>, sockets: Option<&Sockets>) -> (Vec<SocketAddr>, Vec<String>) {
    let host = host_configuration(Path::new(RESOLV_CONF));
    let bound = sockets.iter().flat_map(|sockets| &sockets.0);
    let bound: Vec<SocketAddr> = bound.filter_map(|(socket, _)| socket.local_addr().ok()).collect();
    let search = section.and_then(|section| section.search.clone()).unwrap_or_else(|| host.search.clone());
    (upstreams(section, &host, &bound), search)
}

/// Serves on the runtime that it is called in. `namespace` is the workload's.
///
/// # Errors
/// When a socket cannot be watched.
pub fn start(
    sockets: Sockets,
    section: &Section,
    namespace: &str,
    process: &Arc<Process>,
    feed: &Arc<Mutex<FeedStatus>>,
    registry: &Registry,
) -> io::Result<()> {
    let bound: Vec<SocketAddr> =
        sockets.0.iter().map(|(socket, _)| socket.local_addr()).collect::<io::Result<_>>()?;
    let (upstreams, search) = resolvers(Some(section), Some(&sockets));
    tracing::info!(?bound, ?upstreams, ?search, "answering DNS");
    if upstreams.is_empty() {
        tracing::warn!("dns.upstream: there is none; names outside the mesh are refused");
    }
    let counters = Arc::new(Counters::default());
    let dns = Arc::new(Dns {
        process: process.clone(),
        feed: feed.clone(),
        names: MeshNames::new(namespace, &section.domain, &search),
        upstreams: Upstreams::new(upstreams),
        counters: counters.clone(),
    });
    registry.register_fn(move |page| counters.write(page));
    for (socket, listener) in sockets.0 {
        tokio::spawn(udp::serve(dns.clone(), tokio::net::UdpSocket::from_std(socket)?));
        tokio::spawn(tcp::serve(dns.clone(), tokio::net::TcpListener::from_std(listener)?));
    }
    Ok(())
}

fn host_configuration(path: &Path) -> ResolvConf {
    match std::fs::read_to_string(path) {
        Ok(text) => resolv_conf::parse(&text),
        Err(error) => {
            tracing::warn!(path = %path.display(), %error, "the host's resolver configuration cannot be read");
            ResolvConf::default()
        }
    }
}

/// Never ourselves, by whichever of our addresses: a query would go round for ever.
fn upstreams(section: Option<&Section>, host: &ResolvConf, bound: &[SocketAddr]) -> Vec<SocketAddr> {
    let given = section.and_then(|section| section.upstream.as_ref());
    let given = given.map(|given| given.iter().map(|upstream| upstream.0).collect());
    let mut all: Vec<SocketAddr> = given.unwrap_or_else(|| host.nameservers.clone());
    // A socket for all addresses of IPv6 takes those of IPv4, too.
    let own: Vec<SocketAddr> = bound.iter().copied().flat_map(listen::reached).collect();
    all.retain(|upstream| {
        let ours = is_among(&own, *upstream);
        if ours {
            tracing::warn!(%upstream, "this resolver is ourselves, and not asked: a query would go round for ever");
        }
        !ours
    });
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    fn section(yaml: &str) -> Section {
        serde_saphyr::from_str(yaml).unwrap()
    }

    #[test]
    fn the_host_s_resolvers_are_asked_unless_others_are_given_and_never_ourselves() {
        let host = resolv_conf::parse("nameserver 127.0.0.1\nnameserver 10.0.0.10\n");
        let bound = ["127.0.0.1:53".parse().unwrap()];
        let ask = |section: &Section| -> Vec<String> {
            upstreams(Some(section), &host, &bound).iter().map(ToString::to_string).collect()
        };
        assert_eq!(ask(&section("{}")), ["10.0.0.10:53"]);
        assert_eq!(ask(&section("upstream: [\"127.0.0.1\", \"[::1]:5353\"]")), ["[::1]:5353"]);
        assert_eq!(ask(&section("upstream: []")), [""; 0]);
        assert_eq!(upstreams(None, &host, &[]).len(), 2, "without a section nobody is asked but the host's");
    }

    #[test]
    fn ourselves_are_all_addresses_that_a_socket_for_all_takes() {
        let given = section("upstream: [\"127.0.0.1\", \"127.0.0.53:5353\", \"::1\", \"192.0.2.53\"]");
        let ask = |bound: &str| -> Vec<String> {
            let bound = [bound.parse().unwrap()];
            let asked = upstreams(Some(&given), &ResolvConf::default(), &bound);
            asked.iter().map(ToString::to_string).collect()
        };
        assert_eq!(ask("0.0.0.0:53"), ["127.0.0.53:5353", "[::1]:53", "192.0.2.53:53"]);
        assert_eq!(ask("0.0.0.0:5353"), ["127.0.0.1:53", "[::1]:53", "192.0.2.53:53"]);
        assert_eq!(ask("127.0.0.1:53"), ["127.0.0.53:5353", "[::1]:53", "192.0.2.53:53"]);
        let both = ask("[::]:53");
        assert!(
            !both.contains(&"127.0.0.1:53".to_owned()) && both.contains(&"192.0.2.53:53".to_owned()),
            "{both:?}"
        );
    }

    #[test]
    fn a_taken_address_is_named_with_what_to_do() {
        let taken = UdpSocket::bind("127.0.0.1:0").unwrap();
        let address = taken.local_addr().unwrap();
        let error = bind(&section(&format!("bind: [\"{address}\"]"))).err().unwrap().to_string();
        assert!(error.contains(&address.to_string()) && error.contains("dns.bind"), "{error}");
    }
}
