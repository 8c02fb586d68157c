//! The names of compiled resources, written and read in one place.
//!
//! | resource | name |
//! |---|---|
//! | outbound listener, its routes | `outbound\|PORT\|\|HOST` |
//! | outbound listener of hosts that only the first bytes name, its routes | `outbound\|PORT\|\|*` |
//! | outbound cluster, its endpoints | `outbound\|PORT\|SUBSET\|HOST` |
//! | outbound listener of an egress proxy | `egress\|PORT\|SUBSET\|HOST` |
//! | inbound listener | `inbound\|ADDRESS:PORT` |
//! | inbound listener of all other ports | `inbound\|ADDRESS:0` |
//! | inbound cluster | `inbound\|PORT\|\|` |
//! | outbound routes of an Envoy | `PORT` |

use std::net::SocketAddr;

use outrigger_rules::intent::Host;

/// Stands for every host, where the first bytes say which.
pub const ANY_HOST: &str = "*";

/// Stands for every port that is not registered.
pub const OTHER_PORTS: u16 = 0;

/// Direction, port, subset and host of a cluster, listener or route configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Outbound<'a> {
    /// The service's port.
    pub port: u16,
    /// The subset; empty for all instances.
    pub subset: &'a str,
    /// The host, or the address of one workload.
    pub host: &'a str,
}

impl<'a> Outbound<'a> {
    /// Reads `outbound|PORT|SUBSET|HOST`.
    pub fn parse(name: &'a str) -> Option<Self> {
        let mut parts = name.splitn(4, '|');
        if parts.next() != Some("outbound") {
            return None;
        }
        let port = port(parts.next()?)?;
        let subset = parts.next()?;
        let host = parts.next().filter(|host| !host.is_empty())?;
        Some(Self { port, subset, host })
    }

    /// The address of a workload, if it names one.
    pub fn address(&self) -> Option<SocketAddr> {
        self.host.parse().ok().map(|ip| SocketAddr::new(ip, self.port))
    }
}

/// `egress|PORT|SUBSET|HOST`: whatever comes goes there.
pub fn through(port: u16, subset: &str, host: &str) -> String {
    format!("egress|{port}|{subset}|{host}")
}

/// Reads `egress|PORT|SUBSET|HOST`.
pub fn parse_through(name: &str) -> Option<Outbound<'_>> {
    let rest = name.strip_prefix("egress|")?;
    let mut parts = rest.splitn(3, '|');
    let (port, subset, host) = (port(parts.next()?)?, parts.next()?, parts.next()?);
    (!host.is_empty()).then_some(Outbound { port, subset, host })
}

/// A port in its only spelling: one thing that has many names would be compiled once for each.
pub fn port(text: &str) -> Option<u16> {
    let port: u16 = text.parse().ok()?;
    (port.to_string() == text).then_some(port)
}

/// `outbound|PORT|SUBSET|HOST`.
pub fn outbound(port: u16, subset: &str, host: &str) -> String {
    format!("outbound|{port}|{subset}|{host}")
}

/// `inbound|ADDRESS:PORT`.
pub fn inbound_listener(address: SocketAddr) -> String {
    format!("inbound|{address}")
}

/// Reads `inbound|ADDRESS:PORT`.
pub fn parse_inbound_listener(name: &str) -> Option<SocketAddr> {
    name.strip_prefix("inbound|")?.parse().ok()
}

/// `inbound|PORT||`.
pub fn inbound_cluster(port: u16) -> String {
    format!("inbound|{port}||")
}

/// Reads `inbound|PORT||`.
pub fn parse_inbound_cluster(name: &str) -> Option<u16> {
    port(name.strip_prefix("inbound|")?.strip_suffix("||")?)
}

/// The SNI between sidecars, `outbound_.PORT_.SUBSET_.HOST`.
pub fn server_name(port: u16, subset: &str, host: &Host) -> String {
    format!("outbound_.{port}_.{subset}_.{}", host.as_str())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_reads_as_it_was_written() {
        let name = outbound(8080, "v1", "catalog.shop.svc.cluster.local");
        let read = Outbound::parse(&name).unwrap();
        assert_eq!((read.port, read.subset, read.host), (8080, "v1", "catalog.shop.svc.cluster.local"));
        assert_eq!(parse_inbound_cluster(&inbound_cluster(80)), Some(80));
        let address = "[::1]:80".parse().unwrap();
        assert_eq!(parse_inbound_listener(&inbound_listener(address)), Some(address));
    }

    #[test]
    fn what_is_no_name_is_nothing() {
        for bad in [
            "",
            "outbound",
            "outbound|+80||h",
            "outbound|080||h",
            "outbound|x||h",
            "outbound|80|v1|",
            "inbound|80||",
            "outbound|80",
        ] {
            assert_eq!(Outbound::parse(bad), None, "{bad}");
        }
    }
}
