//! Whose an address is. Clients connect to what is registered, so whoever registers the address of another gets its calls.
//!
//! A workload proves an address by calling from it, or has it in a range of its token; for all others, and for an instance
//! without a sidecar, which is called in plain text, an operator must vouch. Within a network one address and port is one
//! identity's. Several workloads of a host share its address and differ by port; a process on loopback may bind any
//! loopback address, so a caller from loopback has all of them.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::instance::Instance;

/// Addresses of a network: `10.1.0.0/16`, `10.1.2.3`, or with the network's name `edge/10.1.0.0/16`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Range {
    /// The network; empty is the default one.
    pub network: String,
    /// Its addresses.
    pub net: IpNet,
}

impl FromStr for Range {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let net = |text: &str| {
            text.parse::<IpNet>()
                .ok()
                .or_else(|| text.parse::<IpAddr>().ok().map(|ip| IpNet::from(ip.to_canonical())))
        };
        if let Some(net) = net(text) {
            return Ok(Self { network: String::new(), net });
        }
        let named = text.split_once('/').filter(|(network, _)| !network.is_empty());
        match named.and_then(|(network, rest)| Some((network, net(rest)?))) {
            Some((network, net)) => Ok(Self { network: network.to_owned(), net }),
            None => Err(format!(
                "\"{text}\" is no range of addresses; write 10.1.0.0/16, 10.1.2.3, or NETWORK/10.1.0.0/16"
            )),
        }
    }
}

impl fmt::Display for Range {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.network.as_str() {
            "" => self.net.fmt(f),
            network => write!(f, "{network}/{}", self.net),
        }
    }
}

impl TryFrom<String> for Range {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<Range> for String {
    fn from(range: Range) -> Self {
        range.to_string()
    }
}

/// The addresses that a workload may give its instances.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Reach {
    /// Where it calls from, as we see it.
    pub source: Option<IpAddr>,
    /// The ranges of its tokens.
    pub ranges: Vec<Range>,
}

impl Reach {
    fn covers(&self, network: &str, address: IpAddr) -> bool {
        let address = address.to_canonical();
        let called_from = |source: IpAddr| {
            let source = source.to_canonical();
            source == address || (source.is_loopback() && address.is_loopback())
        };
        // Only the default network is one that we are in.
        network.is_empty() && self.source.is_some_and(called_from)
            || self.ranges.iter().any(|range| range.network == network && range.net.contains(&address))
    }

    /// Whether a workload may register this on its own, or by what an operator said of the same instance before
    /// (`vouched`). Yields whether it takes the operator's word.
    ///
    /// # Errors
    /// Says which field is not the caller's, and what to do.
    pub fn admits(&self, instance: &Instance, vouched: Option<&Instance>) -> Result<bool, String> {
        let said = vouched.filter(|known| known.network == instance.network);
        let by_operator = |address: &IpAddr| said.is_some_and(|known| known.addresses.contains(address));
        if !instance.sidecar {
            let same = said.is_some_and(|known| !known.sidecar) && instance.addresses.iter().all(by_operator);
            return if same { Ok(true) } else { Err(plain(instance)) };
        }
        let mut rests = false;
        for address in &instance.addresses {
            if self.covers(&instance.network, *address) {
                continue;
            }
            if !by_operator(address) {
                return Err(self.foreign(instance, *address));
            }
            rests = true;
        }
        Ok(rests)
    }

    fn foreign(&self, instance: &Instance, address: IpAddr) -> String {
        let source = self
            .source
            .map_or_else(|| "nowhere known".to_owned(), |source| source.to_canonical().to_string());
        let ranges: Vec<String> = self.ranges.iter().map(ToString::to_string).collect();
        let ranges =
            if ranges.is_empty() { "has none".to_owned() } else { format!("has {}", ranges.join(", ")) };
        let network = match instance.network.as_str() {
            "" => String::new(),
            network => format!(" of network \"{network}\""),
        };
        format!(
            "instance \"{}\": addresses: {address}{network} is not the caller's: it calls from {source}, and of ranges its \
             token {ranges}; make a token with `outrigger token create --range {address}`, or let an operator register it",
            instance.id
        )
    }
}

fn plain(instance: &Instance) -> String {
    format!(
        "instance \"{}\": sidecar: false makes clients call it in plain text, which only an operator may say; let one \
         register it, or leave the field out",
        instance.id
    )
}

/// An address and port that another identity has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Held {
    address: IpAddr,
    port: u16,
    id: String,
    account: String,
}

impl fmt::Display for Held {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { address, port, id, account } = self;
        write!(
            f,
            "addresses: {address} port {port} is held by instance \"{id}\", which runs as {account}; deregister that one \
             (an operator may), wait until its lease ends, or register another address or port"
        )
    }
}

/// Who of the others has an address and port of this instance, though it is another identity.
pub fn held<'i>(instance: &Instance, others: impl IntoIterator<Item = &'i Instance>) -> Option<Held> {
    let foreign = others.into_iter().filter(|other| {
        other.id != instance.id
            && other.network == instance.network
            && (other.namespace != instance.namespace || other.service_account != instance.service_account)
    });
    foreign
        .filter_map(|other| {
            let shared = |address: &&IpAddr| {
                other.addresses.iter().any(|have| have.to_canonical() == address.to_canonical())
            };
            let address = *instance.addresses.iter().find(shared)?;
            let port = instance.ports.iter().find(|port| other.port(port.number).is_some())?.number;
            let account = format!("{}/{}", other.namespace, other.service_account);
            Some(Held { address, port, id: other.id.clone(), account })
        })
        .next()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::instance::{Protocol, sample};

    fn at(address: &str) -> Instance {
        sample("c1", "catalog", "v1", address, 8080, Protocol::Http)
    }

    fn reach(source: &str, ranges: &[&str]) -> Reach {
        let ranges = ranges.iter().map(|range| range.parse().unwrap()).collect();
        Reach { source: Some(source.parse().unwrap()), ranges }
    }

    #[test]
    fn an_address_is_the_callers_by_its_source_by_its_token_or_on_loopback() {
        for (source, ranges, address, network, own) in [
            ("10.0.0.7", &[][..], "10.0.0.7", "", true),
            ("::ffff:10.0.0.7", &[], "10.0.0.7", "", true),
            ("10.0.0.7", &[], "::ffff:10.0.0.7", "", true),
            ("10.0.0.7", &[], "10.0.0.8", "", false),
            ("10.0.0.7", &[], "127.0.0.1", "", false),
            ("127.0.0.1", &[], "127.3.2.1", "", true),
            ("127.0.0.1", &[], "::1", "", true),
            ("127.0.0.1", &[], "10.0.0.7", "", false),
            ("10.0.0.7", &["10.0.1.0/24"], "10.0.1.9", "", true),
            ("10.0.0.7", &["10.0.1.9"], "10.0.1.9", "", true),
            ("10.0.0.7", &["10.0.1.0/24"], "10.0.2.9", "", false),
            ("10.0.0.7", &[], "10.0.0.7", "edge", false),
            ("10.0.0.7", &["10.0.0.0/24"], "10.0.0.7", "edge", false),
            ("10.0.0.7", &["edge/10.0.0.0/24"], "10.0.0.9", "edge", true),
            ("10.0.0.7", &["edge/fd00::/8"], "fd00::9", "edge", true),
        ] {
            let instance = Instance { network: network.into(), ..at(address) };
            let admitted = reach(source, ranges).admits(&instance, None);
            assert_eq!(admitted.is_ok(), own, "{source} {ranges:?} {address} {network:?}: {admitted:?}");
        }
        let refused = reach("10.0.0.7", &["10.0.1.0/24"]).admits(&at("10.0.0.8"), None).unwrap_err();
        for said in ["10.0.0.8 is not", "from 10.0.0.7", "has 10.0.1.0/24", "token create --range 10.0.0.8"] {
            assert!(refused.contains(said), "{said}: {refused}");
        }
    }

    #[test]
    fn an_operators_word_holds_for_the_addresses_that_it_named() {
        let reach = reach("10.0.0.7", &[]);
        let plain = Instance { sidecar: false, ..at("10.0.0.7") };
        assert!(reach.admits(&plain, None).unwrap_err().contains("sidecar: false"));
        assert!(reach.admits(&plain, Some(&at("10.0.0.7"))).is_err(), "vouched for with a sidecar");
        assert_eq!(reach.admits(&plain, Some(&plain)), Ok(true));
        let moved = Instance { sidecar: false, ..at("10.0.0.9") };
        assert!(reach.admits(&plain, Some(&moved)).is_err(), "vouched for elsewhere");
        assert_eq!(reach.admits(&at("10.0.0.9"), Some(&moved)), Ok(true));
        assert_eq!(
            reach.admits(&at("10.0.0.7"), Some(&moved)),
            Ok(false),
            "its own: nobody's word is needed"
        );
        let edge = Instance { network: "edge".into(), ..moved.clone() };
        assert!(reach.admits(&at("10.0.0.9"), Some(&edge)).is_err(), "vouched for in another network");
    }

    #[test]
    fn one_address_and_port_is_one_identitys() {
        let own = at("10.0.0.7");
        let web = |address: &str, port| sample("w1", "web", "v1", address, port, Protocol::Http);
        let said = held(&own, [&web("10.0.0.7", 8080)]).unwrap().to_string();
        assert!(
            said.contains("10.0.0.7 port 8080") && said.contains("\"w1\"") && said.contains("shop/web"),
            "{said}"
        );
        assert!(
            held(&own, [&web("::ffff:10.0.0.7", 8080)]).is_some(),
            "the same address in another spelling"
        );
        assert_eq!(held(&own, [&web("10.0.0.7", 8081), &web("10.0.0.8", 8080)]), None);
        let sibling = Instance { id: "c2".into(), ..own.clone() };
        assert_eq!(held(&own, [&sibling, &own]), None, "the same identity");
        let edge = Instance { network: "edge".into(), ..web("10.0.0.7", 8080) };
        assert_eq!(held(&own, [&edge]), None, "another network");
    }

    #[test]
    fn a_range_reads_back_as_it_was_written() {
        for text in ["10.1.0.0/16", "edge/10.1.0.0/16", "fd00::/8", "edge/fd00::/8", "10.1.2.3/32"] {
            assert_eq!(text.parse::<Range>().unwrap().to_string(), text);
        }
        for bad in ["", "/10.0.0.0/8", "10.0.0.0/33", "edge", "edge/", "a/b/10.0.0.0/8"] {
            assert!(bad.parse::<Range>().is_err(), "{bad}");
        }
    }
}
