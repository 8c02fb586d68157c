//! The rules as text for `nft -f` (one transaction) and as arguments for `ip`. Pure.
//!
//! ```text
//! from the application ─ output ─┬─ the probe ───────────────────────────────────> outbound port
//!                                ├─ the sidecar's own: to its own workload ──────> inbound port
//!                                │                     to the application, out ──> passes
//!                                ├─ DNS to a known server ───────────────────────> DNS port
//!                                ├─ to this host, excluded ──────────────────────> passes
//!                                ├─ to a port of --also-outbound-ports ──────────> outbound port
//!                                ├─ not included ────────────────────────────────> passes
//!                                └─ the rest ────────────────────────────────────> outbound port
//! from the network ─ prerouting ─┬─ excluded, the sidecar's own ports ───────────> passes
//!                                └─ the rest ────────────────────────────────────> inbound port
//!                      input ────┬─ opens a connection, and was not brought ─────> reset
//!                                └─ the rest ────────────────────────────────────> passes
//! ```

use std::fmt::Write as _;
use std::net::IpAddr;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::{APP_PRIORITY, Block, Method, Options, Ports, inbound_ports, outbound_ports, probe};

/// The one table that is ours; nothing outside of it is touched.
pub const TABLE: &str = "inet outrigger";

/// Ports on which sidecars serve admin pages, metrics and health; they are never intercepted.
const OWN_PORTS: [u16; 4] = [15000, 15020, 15021, 15090];

/// Preference of the routing rule of `tproxy`, by which it is found again.
const RULE_PREFERENCE: &str = "15006";

/// The transaction that puts the rules in force, whatever was in our table before.
pub fn apply(options: &Options, name_servers: &[IpAddr]) -> String {
    let mut text = remove();
    let _ = writeln!(text, "table {TABLE} {{");
    outbound(&mut text, options, name_servers);
    own_workload(&mut text, options);
    match options.mode {
        Method::Redirect => {
            inbound_redirect(&mut text, options);
            inbound_check(&mut text, options);
        }
        Method::Tproxy => inbound_tproxy(&mut text, options),
    }
    text.push_str("}\n");
    text
}

/// The transaction that removes our table, whether it is there or not.
pub fn remove() -> String {
    // Without the declaration `delete` would fail where there is no table.
    format!("table {TABLE} {{}}\ndelete table {TABLE}\n")
}

fn outbound(text: &mut String, options: &Options, name_servers: &[IpAddr]) {
    let Options { outbound_port, mark, .. } = options;
    let sidecar = redirect(&outbound_ports(*outbound_port));
    let uids = options.uid.iter().map(u32::to_string).collect::<Vec<_>>().join(", ");
    chain(text, "outbound", "type nat hook output priority -100; policy accept;");
    only_new(text);
    // Ahead of the sidecar's own, because it is the sidecar that asks.
    for address in probe::ADDRESSES {
        let (family, ip, port) = (family(address.ip()), address.ip(), address.port());
        rule(text, format!("{family} daddr {ip} tcp dport {port} {sidecar}"));
    }
    rule(text, format!("meta mark {mark:#x} return"));
    if !options.uid.is_empty() {
        rule(
            text,
            format!(
                "meta skuid {{ {uids} }} meta priority != 0:{APP_PRIORITY:x} fib daddr type local goto own-workload"
            ),
        );
        rule(text, format!("meta skuid {{ {uids} }} return"));
    }
    for server in name_servers.iter().filter(|_| options.dns) {
        let (family, port) = (family(*server), options.dns_port);
        rule(text, format!("{family} daddr {server} udp dport 53 redirect to :{port}"));
        rule(text, format!("{family} daddr {server} tcp dport 53 redirect to :{port}"));
    }
    rule(text, "fib daddr type local return");
    excluded_ports(text, &options.exclude_outbound_ports);
    excluded_blocks(text, "daddr", &options.exclude_outbound_cidrs);
    // Between the exclusions, which go before everything, and the inclusions, beside which it stands.
    if !options.also_outbound_ports.is_empty() {
        rule(text, format!("tcp dport {{ {} }} {sidecar}", merged(&options.also_outbound_ports)));
    }
    included_ports(text, &options.include_outbound_ports);
    included_blocks(text, "daddr", &options.include_outbound_cidrs);
    rule(text, format!("meta l4proto tcp {sidecar}"));
    end(text);
}

/// What was open before the rules is not tracked yet, and its next segment would be taken for its first. Translated, it would
/// reach a sidecar that knows nothing of it, and the reset that ends both.
fn only_new(text: &mut String) {
    rule(text, "tcp flags & (fin | syn | rst | ack) != syn return");
}

/// To any port of these at which the client's own need not be translated.
fn redirect(ports: &Ports) -> String {
    format!("redirect to :{ports} random")
}

/// The sidecar calls a service and picks its own workload: its peer is itself.
fn own_workload(text: &mut String, options: &Options) {
    chain(text, "own-workload", "");
    rule(text, "ip daddr 127.0.0.0/8 return");
    rule(text, "ip6 daddr ::1 return");
    passing_ports(text, options);
    rule(text, format!("meta l4proto tcp {}", redirect(&inbound_ports(options.inbound_port))));
    end(text);
}

fn inbound_redirect(text: &mut String, options: &Options) {
    chain(text, "inbound", "type nat hook prerouting priority -100; policy accept;");
    only_new(text);
    rule(text, "fib daddr type != local return");
    passing_ports(text, options);
    excluded_blocks(text, "saddr", &options.exclude_inbound_cidrs);
    included_blocks(text, "saddr", &options.include_inbound_cidrs);
    rule(text, format!("meta l4proto tcp {}", redirect(&inbound_ports(options.inbound_port))));
    end(text);
}

/// A flow is brought to the sidecar when the first of its segments is seen. Where a stranger has that be one that opens nothing, the
/// segment that opens a connection comes in the same flow, and nobody looks at it again. What was brought has a port of the sidecar's by
/// now.
fn inbound_check(text: &mut String, options: &Options) {
    chain(text, "inbound-check", "type filter hook input priority 0; policy accept;");
    rule(text, "tcp flags & (fin | syn | rst | ack) != syn return");
    rule(text, "iifname \"lo\" return");
    passing_ports(text, options);
    excluded_blocks(text, "saddr", &options.exclude_inbound_cidrs);
    included_blocks(text, "saddr", &options.include_inbound_cidrs);
    rule(text, "meta l4proto tcp reject with tcp reset");
    end(text);
}

fn inbound_tproxy(text: &mut String, options: &Options) {
    let Options { mark, inbound_port, .. } = options;
    chain(text, "inbound", "type filter hook prerouting priority -150; policy accept;");
    rule(text, "meta l4proto != tcp return");
    // The sidecar's connection to the application, in the client's name: its replies must come back to the sidecar.
    rule(text, format!("meta mark {mark:#x} ct mark set meta mark return"));
    rule(text, "iifname \"lo\" return");
    rule(text, "ct direction reply return");
    rule(text, "fib daddr type != local return");
    passing_ports(text, options);
    excluded_blocks(text, "saddr", &options.exclude_inbound_cidrs);
    included_blocks(text, "saddr", &options.include_inbound_cidrs);
    rule(text, format!("meta l4proto tcp tproxy to :{inbound_port} meta mark set {mark:#x} accept"));
    // Without a sidecar that listens the rule above does not hold, and the next would be the application, in plain text.
    // Only what opens a connection: those from before the rules go on, as under `redirect`.
    rule(text, "tcp flags & (fin | syn | rst | ack) == syn reject with tcp reset");
    end(text);
    chain(text, "replies", "type route hook output priority -150; policy accept;");
    rule(text, format!("ct direction reply ct mark {mark:#x} meta mark set ct mark"));
    end(text);
}

/// The commands of `ip` that bring marked packets to this host, or take that back. Each for either family.
pub fn routing(mark: u32, verb: &str) -> [Vec<String>; 4] {
    let (fwmark, table) = (format!("{mark:#x}"), mark.to_string());
    let rule = |family: &str| {
        let words = [family, "rule", verb, "fwmark", &fwmark, "lookup", &table, "pref", RULE_PREFERENCE];
        words.map(str::to_owned).to_vec()
    };
    let route = |family: &str| {
        let words = [family, "route", verb, "local", "default", "dev", "lo", "table", &table];
        words.map(str::to_owned).to_vec()
    };
    [rule("-4"), route("-4"), rule("-6"), route("-6")]
}

/// Whether a line of `ip rule show` is ours; its mark if so.
pub fn our_rule(line: &str) -> Option<u32> {
    let rest = line.strip_prefix(RULE_PREFERENCE)?.strip_prefix(':')?;
    let (_, mark) = rest.split_once("fwmark ")?;
    let digits = mark.split_whitespace().next()?.strip_prefix("0x")?;
    u32::from_str_radix(digits, 16).ok()
}

fn chain(text: &mut String, name: &str, head: &str) {
    let _ = writeln!(text, "  chain {name} {{");
    if !head.is_empty() {
        let _ = writeln!(text, "    {head}");
    }
}

fn rule(text: &mut String, rule: impl AsRef<str>) {
    let _ = writeln!(text, "    {}", rule.as_ref());
}

fn end(text: &mut String) {
    text.push_str("  }\n");
}

fn passing_ports(text: &mut String, options: &Options) {
    let own = OWN_PORTS.into_iter().chain([options.inbound_port, options.outbound_port, options.dns_port]);
    let behind = [inbound_ports(options.inbound_port), outbound_ports(options.outbound_port)];
    let own = own.map(|port| Ports(port..=port)).chain(behind);
    let excluded: Vec<Ports> = options.exclude_inbound_ports.iter().cloned().chain(own).collect();
    excluded_ports(text, &excluded);
    included_ports(text, &options.include_inbound_ports);
}

fn excluded_ports(text: &mut String, exclude: &[Ports]) {
    if !exclude.is_empty() {
        rule(text, format!("tcp dport {{ {} }} return", merged(exclude)));
    }
}

fn included_ports(text: &mut String, include: &[Ports]) {
    if !include.is_empty() {
        rule(text, format!("tcp dport != {{ {} }} return", merged(include)));
    }
}

/// As elements of a set, which must not overlap.
fn merged(ports: &[Ports]) -> String {
    let mut all: Vec<_> = ports.iter().map(|Ports(range)| range.clone()).collect();
    all.sort_unstable_by_key(|range| *range.start());
    let mut out: Vec<Ports> = Vec::with_capacity(all.len());
    for range in all {
        match out.last_mut() {
            Some(Ports(last)) if u32::from(*range.start()) <= u32::from(*last.end()) + 1 => {
                *last = *last.start()..=*last.end().max(range.end());
            }
            _ => out.push(Ports(range)),
        }
    }
    out.iter().map(Ports::to_string).collect::<Vec<_>>().join(", ")
}

fn excluded_blocks(text: &mut String, side: &str, exclude: &[Block]) {
    let (v4, v6) = by_family(exclude);
    for (family, list) in [("ip", v4), ("ip6", v6)] {
        if !list.is_empty() {
            rule(text, format!("{family} {side} {{ {list} }} return"));
        }
    }
}

fn included_blocks(text: &mut String, side: &str, include: &[Block]) {
    if include.is_empty() {
        return;
    }
    let (v4, v6) = by_family(include);
    for (family, protocol, list) in [("ip", "ipv4", v4), ("ip6", "ipv6", v6)] {
        match list.is_empty() {
            // Of a family that no block names nothing is included.
            true => rule(text, format!("meta nfproto {protocol} return")),
            false => rule(text, format!("{family} {side} != {{ {list} }} return")),
        }
    }
}

/// As elements of sets, which must not overlap.
fn by_family(blocks: &[Block]) -> (String, String) {
    let (mut v4, mut v6) = (Vec::new(), Vec::new());
    for net in blocks.iter().filter_map(|Block(net)| *net) {
        match net {
            IpNet::V4(net) => v4.push(net),
            IpNet::V6(net) => v6.push(net),
        }
    }
    (listed(&Ipv4Net::aggregate(&v4)), listed(&Ipv6Net::aggregate(&v6)))
}

fn listed(nets: &[impl ToString]) -> String {
    nets.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

fn family(address: IpAddr) -> &'static str {
    if address.is_ipv4() { "ip" } else { "ip6" }
}
