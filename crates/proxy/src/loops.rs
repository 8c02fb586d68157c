//! No connection leads back to where it came from.
//!
//! What is passed through goes to any address, and so perhaps to one of ours: refused, or each connection would make the next
//! until there are no descriptors. A loop over others cannot be seen in one connection, as bytes carry no mark; it shows in
//! their number, which is limited for each address. The refusal ends the last connection of the loop, by a reset, and so each
//! before it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6, UdpSocket};

use parking_lot::RwLock;

use crate::descriptors;
use crate::failure::{Failure, FailureKind, Stage};

/// Passed through to one address at once; fewer if there are not eight times as many descriptors.
const MOST: u32 = 4096;

/// Where this process listens, and what keeps its calls from coming back.
pub struct Loops {
    /// Of the data path.
    listeners: RwLock<Vec<SocketAddr>>,
    /// Admin pages, metrics, health.
    pages: RwLock<Vec<SocketAddr>>,
    most: u32,
}

impl Default for Loops {
    fn default() -> Self {
        let most = descriptors::limit().map_or(MOST, |all| (all / 8).clamp(16, MOST as usize) as u32);
        Self { listeners: RwLock::default(), pages: RwLock::default(), most }
    }
}

impl Loops {
    #[cfg(test)]
    pub fn limited(most: u32) -> Self {
        Self { most, ..Self::default() }
    }

    /// Connections are accepted on this address.
    pub fn accepting(&self, address: SocketAddr) {
        let mut all = self.listeners.write();
        // Each worker says so.
        if !all.contains(&address) {
            all.push(address);
        }
    }

    /// Pages are served on this address.
    pub fn serving(&self, address: SocketAddr) {
        self.pages.write().push(address);
    }

    /// Whether a call may be passed through to this address.
    ///
    /// # Errors
    /// We are there.
    pub fn outward(&self, address: SocketAddr) -> Result<(), Failure> {
        match is_among(&self.listeners.read(), address) || is_among(&self.pages.read(), address) {
            true => Err(ourselves(address)),
            false => Ok(()),
        }
    }

    /// Whether a rule may lead to this address.
    ///
    /// # Errors
    /// Pages of ours are there, which answer who asks from this host.
    #[inline]
    pub fn led(&self, address: SocketAddr) -> Result<(), Failure> {
        if is_among(&self.pages.read(), address) { Err(a_page(address)) } else { Ok(()) }
    }

    /// Whether our application may be there.
    ///
    /// # Errors
    /// We are.
    pub fn inward(&self, address: SocketAddr) -> Result<(), Failure> {
        if is_among(&self.listeners.read(), address) { Err(ourselves(address)) } else { Ok(()) }
    }

    /// Whether so many connections to one address that is not in the mesh leave room for one more.
    ///
    /// # Errors
    /// They do not.
    pub fn one_more(&self, open: u32) -> Result<(), Failure> {
        if open < self.most {
            return Ok(());
        }
        let kind =
            FailureKind::Overflow { limit: "passthrough connections to one address", value: self.most };
        let detail = "so many connections are passed through to this address already; do they come back to this sidecar?";
        Err(Failure::local(Stage::Connect, kind, detail))
    }
}

#[cold]
fn ourselves(address: SocketAddr) -> Failure {
    let detail = format!("{address} is this sidecar itself: the connection would come back, for ever");
    Failure::local(Stage::Route, FailureKind::Blocked, detail)
}

#[cold]
fn a_page(address: SocketAddr) -> Failure {
    let detail = format!("{address} are this sidecar's own pages, to which no rule leads");
    Failure::local(Stage::Connect, FailureKind::Blocked, detail)
}

/// Whether a connection to `address` reaches one of these.
pub fn is_among(all: &[SocketAddr], address: SocketAddr) -> bool {
    let scope = match address {
        SocketAddr::V6(v6) => v6.scope_id(),
        SocketAddr::V4(_) => 0,
    };
    // Linux takes a connection to no address for one to this host.
    let ip = match address.ip().to_canonical() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    let reaches = |own: &SocketAddr| {
        own.port() == address.port()
            && match own.ip().to_canonical() {
                any if any.is_unspecified() => own.is_ipv4() == ip.is_ipv4() && is_of_this_host(ip, scope),
                one => one == ip,
            }
    };
    all.iter().any(reaches)
}

/// Only an address of this host can be bound. One of a link is somebody's on each link: without its scope nobody can be called by it.
fn is_of_this_host(ip: IpAddr, scope: u32) -> bool {
    match ip {
        IpAddr::V6(v6) if v6.is_unicast_link_local() && scope == 0 => true,
        IpAddr::V6(v6) => UdpSocket::bind(SocketAddrV6::new(v6, 0, 0, scope)).is_ok(),
        IpAddr::V4(_) => UdpSocket::bind(SocketAddr::new(ip, 0)).is_ok(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_ours_in_each_of_its_forms() {
        let loops = Loops::default();
        loops.accepting("127.0.0.1:15001".parse().unwrap());
        loops.accepting("0.0.0.0:15006".parse().unwrap());
        loops.serving("127.0.0.1:15000".parse().unwrap());
        for ours in [
            "127.0.0.1:15001",
            "0.0.0.0:15001",
            "[::ffff:127.0.0.1]:15001",
            "127.0.0.1:15006",
            "127.9.9.9:15006",
            "127.0.0.1:15000",
        ] {
            let failure = loops.outward(ours.parse().unwrap()).expect_err(ours);
            assert_eq!(failure.kind, FailureKind::Blocked, "{ours}");
        }
        for others in ["127.0.0.2:15001", "127.0.0.1:15002", "192.0.2.1:15006", "[::1]:15006"] {
            loops.outward(others.parse().unwrap()).expect(others);
        }
        loops.inward("127.0.0.1:15000".parse().unwrap()).expect("pages may be asked for like an application");
        loops.inward("127.0.0.1:15006".parse().unwrap()).unwrap_err();
        // An endpoint: to call oneself is fine, to ask one's own pages is not.
        loops.led("127.0.0.1:15006".parse().unwrap()).unwrap();
        for page in ["127.0.0.1:15000", "0.0.0.0:15000", "[::ffff:127.0.0.1]:15000"] {
            assert_eq!(loops.led(page.parse().unwrap()).unwrap_err().kind, FailureKind::Blocked, "{page}");
        }
    }

    #[test]
    fn an_address_of_a_link_is_ours_with_its_scope() {
        let loops = Loops::default();
        loops.accepting("[::]:15006".parse().unwrap());
        let scoped = |ip: Ipv6Addr, scope| SocketAddr::from(SocketAddrV6::new(ip, 15006, 0, scope));
        let nobody = "fe80::dead:beef".parse().unwrap();
        loops.outward(scoped(nobody, 0)).unwrap_err();
        loops.outward(scoped(nobody, 1)).unwrap();
        // Where this host has such an address: address, number of the interface, length, scope, flags, name.
        for line in std::fs::read_to_string("/proc/net/if_inet6").unwrap_or_default().lines() {
            let fields: Vec<&str> = line.split_whitespace().collect();
            let ip = u128::from_str_radix(fields[0], 16).map(Ipv6Addr::from).unwrap();
            if ip.is_unicast_link_local() {
                loops.outward(scoped(ip, u32::from_str_radix(fields[1], 16).unwrap())).expect_err(line);
            }
        }
    }

    #[test]
    fn so_many_may_come_from_one_address() {
        let loops = Loops::limited(16);
        assert!(loops.one_more(15).is_ok() && loops.one_more(16).is_err());
    }
}
