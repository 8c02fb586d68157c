//! The section `dns` of the bootstrap file: where the workload's resolver listens and whom it asks itself.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use serde::Deserialize;

/// Istio's port.
const PORT: u16 = 15053;
/// Where it listens if nothing else is said.
pub const DEFAULT_BINDS: [SocketAddr; 2] = [
    SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), PORT),
    SocketAddr::new(IpAddr::V6(Ipv6Addr::LOCALHOST), PORT),
];

/// The section.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Section {
    /// Addresses, for UDP and TCP. Default `127.0.0.1:15053` and `[::1]:15053`.
    #[serde(default)]
    pub bind: Option<Vec<SocketAddr>>,
    /// Resolvers for names outside the mesh. Default: those of /etc/resolv.conf.
    #[serde(default)]
    pub upstream: Option<Vec<Upstream>>,
    /// Domains in which the applications look names up. Default: those of /etc/resolv.conf.
    #[serde(default)]
    pub search: Option<Vec<String>>,
    /// The control plane's `domain`. Default `cluster.local`.
    #[serde(default = "default_domain")]
    pub domain: String,
}

/// An address, with port 53 if none is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Upstream(pub SocketAddr);

impl TryFrom<String> for Upstream {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let bare = || text.parse::<IpAddr>().map(|ip| SocketAddr::new(ip, 53));
        let address = text.parse::<SocketAddr>().or_else(|_| bare());
        address.map(Self).map_err(|_| format!("\"{text}\" is not an IP address or IP:port"))
    }
}

impl Section {
    pub(super) fn check(&self) -> Result<(), String> {
        let binds = self.bind.as_deref().unwrap_or(&DEFAULT_BINDS);
        if binds.is_empty() {
            return Err("dns.bind: is empty; leave the section dns out to do without DNS".into());
        }
        for (i, bind) in binds.iter().enumerate() {
            // An answer leaves from the address that was asked only if the socket has it; and nobody else shall ask.
            if bind.ip().is_unspecified() {
                return Err(format!(
                    "dns.bind[{i}]: {bind} is every address; give those that applications ask"
                ));
            }
            if bind.port() != 0 && binds[..i].contains(bind) {
                return Err(format!("dns.bind[{i}]: {bind} occurs twice"));
            }
        }
        for (field, name) in [("dns.domain", &self.domain)]
            .into_iter()
            .chain(self.search.iter().flatten().map(|s| ("dns.search", s)))
        {
            let labels = name.trim_end_matches('.').split('.');
            let mut wrong = labels.filter(|label| {
                !(1..=63).contains(&label.len())
                    || !label.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'))
            });
            if wrong.next().is_some() || name.len() > 200 {
                return Err(format!("{field}: \"{name}\" is not a domain such as cluster.local"));
            }
        }
        Ok(())
    }
}

fn default_domain() -> String {
    "cluster.local".into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(yaml: &str) -> Result<Section, String> {
        let section: Section = serde_saphyr::from_str(yaml).map_err(|e| e.to_string())?;
        section.check().map(|()| section)
    }

    #[test]
    fn an_empty_section_has_the_defaults() {
        let section = read("{}").unwrap();
        assert_eq!((section.bind, section.upstream, section.search), (None, None, None));
        assert_eq!(section.domain, "cluster.local");
    }

    #[test]
    fn an_upstream_without_a_port_has_port_53() {
        let section = read("upstream: [\"10.0.0.1\", \"10.0.0.2:5353\", \"::1\", \"[::1]:54\"]").unwrap();
        let all: Vec<String> = section.upstream.unwrap().iter().map(|u| u.0.to_string()).collect();
        assert_eq!(all, ["10.0.0.1:53", "10.0.0.2:5353", "[::1]:53", "[::1]:54"]);
    }

    #[test]
    fn what_cannot_be_taken_is_named() {
        for (yaml, word) in [
            ("bind: []", "dns.bind"),
            ("bind: [\"0.0.0.0:53\"]", "dns.bind[0]"),
            ("bind: [\"127.0.0.1:53\", \"127.0.0.1:53\"]", "twice"),
            ("domain: \"\"", "dns.domain"),
            ("search: [\"a b\"]", "dns.search"),
            ("upstream: [resolver]", "resolver"),
            ("ttl: 3", "ttl"),
        ] {
            let error = read(yaml).unwrap_err();
            assert!(error.contains(word), "{yaml}: {error}");
        }
    }
}
