//! Interception: the kernel's rules that bring a workload's connections to its sidecar, and the proof that they are there.
//!
//! Owns one nftables table, and for `tproxy` one routing rule and one route of either family; touches nothing else.
//! [`rules`] is the text, pure, so that a dry run cannot differ from the real one; [`apply`] runs `nft` and `ip`;
//! [`probe`] is how an unprivileged sidecar finds out whether the rules are in force, [`check`] how whoever
//! comes before it does. Where an intercepted connection was
//! going is `listen::orig_dst`'s.

use std::fmt;
use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::str::FromStr;

use clap::{Args, Subcommand, ValueEnum};
use ipnet::IpNet;

pub mod apply;
pub mod check;
pub mod probe;
pub mod rules;

/// `SO_PRIORITY` of a sidecar's connections to its application (`TC_PRIO_INTERACTIVE`, the highest that takes no privilege).
/// Without it the rules could not tell them from a sidecar's calls to a peer that happens to be its own workload.
pub const APP_PRIORITY: u32 = 6;

/// Mark of the traffic that passes by, and the routing table of `tproxy`; Istio's number.
pub const MARK: u32 = 1337;

/// Translation needs so many ports of the sidecar for either direction. The kernel takes one at which a client's address and
/// port are still free, since the same client port may be in use towards other destinations, which look the same once
/// they are translated; with one port it would have to translate the client's as well, and a translated one can be lost in
/// mid-conversation. Each is used again 16 times before that happens: with 28,000 ports, by more connections than the
/// kernel tracks.
pub const SPREAD: u16 = 16;

/// The ports of translation behind the sidecar's port for what the workload sends.
pub fn outbound_ports(port: u16) -> Ports {
    spread(port, 100)
}

/// The ports of translation behind the sidecar's port for what comes to the workload.
pub fn inbound_ports(port: u16) -> Ports {
    spread(port, 120)
}

fn spread(port: u16, by: u16) -> Ports {
    let first = port.saturating_add(by).min(u16::MAX - (SPREAD - 1));
    Ports(first..=first + (SPREAD - 1))
}

/// Whether a sidecar can have these two ports, and those behind them.
///
/// # Errors
/// Two of them are one, or there are none so high.
pub fn check_ports(inbound: u16, outbound: u16) -> Result<(), String> {
    let all = [
        Ports(inbound..=inbound),
        Ports(outbound..=outbound),
        inbound_ports(inbound),
        outbound_ports(outbound),
    ];
    let apart = |a: &Ports, b: &Ports| a.0.end() < b.0.start() || b.0.end() < a.0.start();
    let disjoint = all.iter().enumerate().all(|(n, a)| all[..n].iter().all(|b| apart(a, b)));
    if inbound > 0 && outbound > 0 && disjoint && inbound.max(outbound) <= u16::MAX - 120 - SPREAD {
        return Ok(());
    }
    let [.., behind_inbound, behind_outbound] = all;
    Err(format!(
        "inbound_port {inbound} and outbound_port {outbound}, as the rules name them, and the ports behind them \
         ({behind_inbound}, {behind_outbound}) must be different ones"
    ))
}

/// `outrigger-proxy intercept …`
#[derive(Debug, Clone, Subcommand)]
#[allow(clippy::large_enum_variant)] // parsed once
pub enum Command {
    /// Install the rules in this network namespace, instead of any that are there (needs CAP_NET_ADMIN)
    Apply(Options),
    /// Show the rules that are in force
    Show,
    /// Remove the rules, and nothing else
    Remove,
    /// Find out, without a privilege and before there is a sidecar, whether the rules are in force: exit code 1 where they are not
    Check(check::Check),
}

/// How connections reach the sidecar.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum Method {
    /// By address translation; only `apply` needs a privilege
    #[default]
    Redirect,
    /// Inbound without address translation: the application sees the client's address; the proxy needs CAP_NET_ADMIN too
    Tproxy,
}

/// What is intercepted. Lists are separated by commas; a connection that an exclusion names passes by, whatever includes it.
#[derive(Debug, Clone, PartialEq, Eq, Args)]
pub struct Options {
    /// How connections reach the sidecar
    #[arg(long, value_enum, default_value_t)]
    pub mode: Method,
    /// Port on which the sidecar takes connections to the workload
    #[arg(long, value_name = "PORT", default_value_t = 15006)]
    pub inbound_port: u16,
    /// Port on which the sidecar takes connections from the workload
    #[arg(long, value_name = "PORT", default_value_t = 15001)]
    pub outbound_port: u16,
    /// User ids of the sidecar, whose own connections pass by
    #[arg(long, value_name = "UID", value_delimiter = ',', default_values_t = [1337], env = "OUTRIGGER_PROXY_UID")]
    pub uid: Vec<u32>,
    /// Socket mark of connections that pass by
    #[arg(long, value_name = "MARK", default_value_t = MARK)]
    pub mark: u32,
    /// Inbound: intercept only these ports (such as 80,8000-8099)
    #[arg(long, value_name = "PORTS", value_delimiter = ',')]
    pub include_inbound_ports: Vec<Ports>,
    /// Inbound: let these ports pass
    #[arg(long, value_name = "PORTS", value_delimiter = ',', default_value = "22")]
    pub exclude_inbound_ports: Vec<Ports>,
    /// Inbound: intercept only connections from these addresses (such as 10.0.0.0/8,fd00::/8), or from `none`
    #[arg(long, value_name = "CIDRS", value_delimiter = ',')]
    pub include_inbound_cidrs: Vec<Block>,
    /// Inbound: let connections from these addresses pass
    #[arg(long, value_name = "CIDRS", value_delimiter = ',')]
    pub exclude_inbound_cidrs: Vec<Block>,
    /// Outbound: intercept only these ports
    #[arg(long, value_name = "PORTS", value_delimiter = ',')]
    pub include_outbound_ports: Vec<Ports>,
    /// Outbound: let these ports pass
    #[arg(long, value_name = "PORTS", value_delimiter = ',')]
    pub exclude_outbound_ports: Vec<Ports>,
    /// Outbound: intercept only connections to these addresses, or to `none`
    #[arg(long, value_name = "CIDRS", value_delimiter = ',')]
    pub include_outbound_cidrs: Vec<Block>,
    /// Outbound: let connections to these addresses pass
    #[arg(long, value_name = "CIDRS", value_delimiter = ',')]
    pub exclude_outbound_cidrs: Vec<Block>,
    /// Outbound: intercept these ports, too, whatever the inclusions name
    #[arg(long, value_name = "PORTS", value_delimiter = ',')]
    pub also_outbound_ports: Vec<Ports>,
    /// Send the workload's DNS queries to the sidecar
    #[arg(long)]
    pub dns: bool,
    /// Port on which the sidecar answers DNS
    #[arg(long, value_name = "PORT", default_value_t = 15053)]
    pub dns_port: u16,
    /// Name servers whose queries are taken [default: those of /etc/resolv.conf]
    #[arg(long, value_name = "IPS", value_delimiter = ',')]
    pub dns_servers: Vec<IpAddr>,
    /// Print what would be done and do nothing
    #[arg(long)]
    pub dry_run: bool,
}

/// A port, or a range of them such as `8000-8099`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ports(pub RangeInclusive<u16>);

/// A block of addresses, or one address, or `none` of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Block(pub Option<IpNet>);

impl FromStr for Ports {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        let port = |text: &str| text.parse::<u16>().ok().filter(|port| *port > 0);
        match (port(first), port(last)) {
            (Some(first), Some(last)) if first <= last => Ok(Self(first..=last)),
            _ => Err("a port of 1 to 65535, or a range of them such as 8000-8099, is wanted".into()),
        }
    }
}

impl fmt::Display for Ports {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.0.start(), self.0.end()) {
            (first, last) if first == last => write!(f, "{first}"),
            (first, last) => write!(f, "{first}-{last}"),
        }
    }
}

impl FromStr for Block {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "none" {
            return Ok(Self(None));
        }
        let net = text.parse::<IpNet>().or_else(|_| text.parse::<IpAddr>().map(IpNet::from));
        net.map(|net| Self(Some(net.trunc())))
            .map_err(|_| "an address, a block such as 10.0.0.0/8, or none is wanted".into())
    }
}

#[cfg(test)]
mod tests;
