//! From names and what is known of them to an endpoint set. Pure.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

use outrigger_model::cluster::{DnsDiscovery, DnsFamilies};
use outrigger_model::endpoint::{Endpoint, EndpointSet, LocalityEndpoints};

use super::lookup::Addresses;

/// Whether a host needs no asking.
pub(super) fn is_address(host: &str) -> bool {
    host.parse::<IpAddr>().is_ok()
}

/// The set of that name; `None` while one of its names has not been answered for. `known`: the addresses of a name, of the
/// last answer that was one, and what went wrong since.
pub(super) fn resolved<'k>(
    name: &str,
    dns: &DnsDiscovery,
    known: impl Fn(&str) -> Option<(Option<&'k Addresses>, Option<&'k str>)>,
) -> Option<EndpointSet> {
    let mut troubles = BTreeSet::new();
    let mut taken = BTreeSet::new();
    let mut set = EndpointSet { cluster: name.to_owned(), ..EndpointSet::default() };
    for locality in &dns.endpoints.localities {
        let mut endpoints = Vec::new();
        for endpoint in &locality.endpoints {
            let host = &endpoint.address.host;
            let addresses = match host.parse::<IpAddr>() {
                Ok(address) => vec![address],
                Err(_) => {
                    let (addresses, trouble) = known(host)?;
                    troubles.extend(trouble.map(|trouble| format!("{host}: {trouble}")));
                    addresses.map(|addresses| wanted(addresses, dns)).unwrap_or_default()
                }
            };
            for address in addresses {
                let address = SocketAddr::new(address, endpoint.address.port);
                // Two names may be one host.
                if taken.insert(address) {
                    let hostname = endpoint.hostname.clone().unwrap_or_else(|| host.as_str().into());
                    endpoints.push(Endpoint { hostname: Some(hostname), ..endpoint.at(address) });
                }
            }
        }
        set.localities.push(LocalityEndpoints {
            locality: locality.locality.clone(),
            priority: locality.priority,
            weight: locality.weight,
            endpoints,
        });
    }
    if set.is_empty() && !troubles.is_empty() {
        set.trouble = Some(troubles.into_iter().collect::<Vec<_>>().join("; "));
    }
    Some(set)
}

/// Those that count, in an order that does not depend on the server's: resolvers turn their answers round.
fn wanted(addresses: &Addresses, dns: &DnsDiscovery) -> Vec<IpAddr> {
    let v4 = || addresses.v4.iter().copied().map(IpAddr::from);
    let v6 = || addresses.v6.iter().copied().map(IpAddr::from);
    let mut all: Vec<IpAddr> = match dns.families {
        DnsFamilies::V4Only => v4().collect(),
        DnsFamilies::V6Only => v6().collect(),
        DnsFamilies::V4Preferred if addresses.v4.is_empty() => v6().collect(),
        DnsFamilies::V4Preferred => v4().collect(),
        DnsFamilies::V6Preferred if addresses.v6.is_empty() => v4().collect(),
        DnsFamilies::V6Preferred => v6().collect(),
        DnsFamilies::All => v4().chain(v6()).collect(),
    };
    if dns.first_only {
        all.truncate(1);
    }
    all.sort_unstable();
    all
}

#[cfg(test)]
mod tests {
    use outrigger_model::endpoint::{Endpoint, NamedAddress};

    use super::*;

    fn discovery(hosts: &[(&str, u16)], families: DnsFamilies) -> DnsDiscovery {
        let endpoint = |(host, port): &(&str, u16)| {
            Endpoint::new(NamedAddress { host: (*host).to_owned(), port: *port })
        };
        let locality = LocalityEndpoints {
            weight: 1,
            endpoints: hosts.iter().map(endpoint).collect(),
            ..Default::default()
        };
        DnsDiscovery { endpoints: EndpointSet::new("c", vec![locality]), families, ..DnsDiscovery::default() }
    }

    fn addresses(v4: &[&str], v6: &[&str]) -> Addresses {
        Addresses {
            v4: v4.iter().map(|a| a.parse().unwrap()).collect(),
            v6: v6.iter().map(|a| a.parse().unwrap()).collect(),
            ..Addresses::default()
        }
    }

    fn said(dns: &DnsDiscovery, known: &Addresses) -> Vec<String> {
        let set = resolved("c", dns, |_| Some((Some(known), None))).unwrap();
        set.iter().map(|endpoint| endpoint.address.to_string()).collect()
    }

    #[test]
    fn each_address_is_an_endpoint_once_whatever_the_order_of_the_answer() {
        let dns = discovery(&[("a.example", 80), ("b.example", 80), ("192.0.2.9", 81)], DnsFamilies::All);
        let both = addresses(&["192.0.2.2", "192.0.2.1"], &["2001:db8::1"]);
        let expected = ["192.0.2.1:80", "192.0.2.2:80", "[2001:db8::1]:80", "192.0.2.9:81"];
        assert_eq!(said(&dns, &both), expected);
    }

    #[test]
    fn the_families_are_those_that_are_wanted() {
        use DnsFamilies::{All, V4Only, V4Preferred, V6Only, V6Preferred};
        let (v4, v6): (&[&str], &[&str]) = (&["192.0.2.1"], &["2001:db8::1"]);
        for (families, v4, v6, count) in [
            (All, v4, v6, 2),
            (V4Only, v4, v6, 1),
            (V4Only, &[], v6, 0),
            (V6Only, v4, &[], 0),
            (V4Preferred, &[], v6, 1),
            (V6Preferred, v4, &[], 1),
            (V6Preferred, v4, v6, 1),
        ] {
            let found = said(&discovery(&[("a.example", 80)], families), &addresses(v4, v6));
            assert_eq!(found.len(), count, "{families:?} {v4:?} {v6:?}: {found:?}");
        }
        let preferred = |families| said(&discovery(&[("a.example", 80)], families), &addresses(v4, v6));
        assert_eq!(preferred(V6Preferred), ["[2001:db8::1]:80"]);
        assert_eq!(preferred(V4Preferred), ["192.0.2.1:80"]);
    }

    #[test]
    fn of_a_logical_name_the_first_address_counts() {
        let dns = DnsDiscovery { first_only: true, ..discovery(&[("a.example", 80)], DnsFamilies::All) };
        assert_eq!(said(&dns, &addresses(&["192.0.2.2", "192.0.2.1"], &[])), ["192.0.2.2:80"]);
    }

    #[test]
    fn one_name_without_an_answer_holds_the_set_back_and_one_that_fails_says_why() {
        let dns = discovery(&[("a.example", 80), ("b.example", 80)], DnsFamilies::All);
        let good = addresses(&["192.0.2.1"], &[]);
        assert_eq!(resolved("c", &dns, |host| (host == "a.example").then_some((Some(&good), None))), None);
        let set = resolved("c", &dns, |host| match host {
            "a.example" => Some((Some(&good), Some("nobody answers"))),
            _ => Some((None, Some("SERVFAIL"))),
        });
        assert_eq!(set.as_ref().map(|set| (set.len(), set.trouble.clone())), Some((1, None)));
        let set = resolved("c", &dns, |_| Some((None, Some("SERVFAIL")))).unwrap();
        assert_eq!(set.trouble.as_deref(), Some("a.example: SERVFAIL; b.example: SERVFAIL"));
    }
}
