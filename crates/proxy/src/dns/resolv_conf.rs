//! The resolver configuration of the host, as far as it concerns us: whom to ask, and where applications search. Pure.

use std::net::{IpAddr, SocketAddr};

/// What `/etc/resolv.conf` says.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct ResolvConf {
    /// At most three, as in the C library.
    pub(crate) nameservers: Vec<SocketAddr>,
    pub(crate) search: Vec<String>,
}

/// Reads a file's text as `resolv.conf(5)` says: of `domain` and `search` the last counts. Lines that mean nothing are passed
/// over; so are link-local servers, whose interface only the host can name.
pub(crate) fn parse(text: &str) -> ResolvConf {
    let mut read = ResolvConf::default();
    for line in text.lines() {
        let line = line.split(['#', ';']).next().unwrap_or_default();
        let mut words = line.split_ascii_whitespace();
        match words.next() {
            Some("nameserver") => {
                let address = words.next().and_then(|word| word.parse::<IpAddr>().ok());
                read.nameservers.extend(address.map(|address| SocketAddr::new(address, 53)));
            }
            Some("domain" | "search") => read.search = words.map(str::to_owned).collect(),
            _ => {}
        }
    }
    read.nameservers.truncate(3);
    read
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_and_the_last_search_list_are_read() {
        let text = "# by somebody\ndomain old.example\nsearch shop.svc.cluster.local corp.example # two\n\
                    nameserver 10.0.0.10\nnameserver ::1 ; local\nnameserver fe80::1%eth0\nnameserver nonsense\n\
                    options ndots:5\nnameserver 10.0.0.11\nnameserver 10.0.0.12\n";
        let servers = ["10.0.0.10:53", "[::1]:53", "10.0.0.11:53"].map(|s| s.parse().unwrap());
        let search = ["shop.svc.cluster.local", "corp.example"].map(str::to_owned);
        assert_eq!(parse(text), ResolvConf { nameservers: servers.into(), search: search.into() });
        assert_eq!(parse(""), ResolvConf::default());
    }
}
