use clap::Parser;

use super::*;

#[derive(Parser)]
struct Line {
    #[command(flatten)]
    options: Options,
}

fn options(line: &str) -> Options {
    Line::try_parse_from(std::iter::once("apply").chain(line.split_whitespace())).unwrap().options
}

fn position(text: &str, line: &str) -> usize {
    text.find(line).unwrap_or_else(|| panic!("{line} is not in\n{text}"))
}

#[test]
fn the_order_of_outbound_rules_decides_what_passes() {
    let text =
        rules::apply(&options("--dns --exclude-outbound-ports 9000"), &["127.0.0.53".parse().unwrap()]);
    let order = [
        "tcp flags & (fin | syn | rst | ack) != syn return",
        "ip daddr 127.0.0.6 tcp dport 15003 redirect to :15101-15116 random",
        "ip6 daddr ::1 tcp dport 15003 redirect to :15101-15116 random",
        "meta mark 0x539 return",
        "meta skuid { 1337 } meta priority != 0:6 fib daddr type local goto own-workload",
        "meta skuid { 1337 } return",
        "ip daddr 127.0.0.53 udp dport 53 redirect to :15053",
        "fib daddr type local return",
        "tcp dport { 9000 } return",
        "meta l4proto tcp redirect to :15101-15116 random",
    ];
    let places: Vec<usize> = order.iter().map(|line| position(&text, line)).collect();
    assert!(places.is_sorted(), "{text}");
}

#[test]
fn the_sidecars_own_ports_and_ssh_are_never_intercepted() {
    let text = rules::apply(&options(""), &[]);
    assert!(
        text.contains(
            "tcp dport { 22, 15000-15001, 15006, 15020-15021, 15053, 15090, 15101-15116, 15126-15141 } return"
        ),
        "{text}"
    );
    assert!(!text.contains("dport 53 "), "DNS is taken only when asked for");
}

#[test]
fn translation_has_ports_to_choose_from_and_never_one_that_is_taken() {
    let text = rules::apply(&options("--inbound-port 4143 --outbound-port 4140"), &[]);
    position(&text, "meta l4proto tcp redirect to :4263-4278 random");
    position(&text, "meta l4proto tcp redirect to :4240-4255 random");
    let new = "tcp flags & (fin | syn | rst | ack) != syn return";
    assert_eq!(
        text.matches(new).count(),
        3,
        "what is open already is left alone, both ways and at the end: {text}"
    );
    position(&text, "type filter hook input priority 0; policy accept;");
    position(&text, "meta l4proto tcp reject with tcp reset");
    check_ports(15006, 15001).unwrap();
    for (inbound, outbound) in [(0, 15001), (15001, 15001), (15001, 15006), (15006, 15020), (65500, 15001)] {
        let reason = check_ports(inbound, outbound).unwrap_err();
        assert!(reason.contains("inbound_port"), "{reason}");
    }
}

#[test]
fn lists_become_sets_without_overlaps() {
    let text = rules::apply(
        &options(
            "--include-inbound-ports 80,8000-8010,8005-8020,8021 --exclude-outbound-cidrs 10.1.0.0/16,10.0.0.0/8,fd00::1 \
             --include-outbound-cidrs 10.0.0.0/8",
        ),
        &[],
    );
    position(&text, "tcp dport != { 80, 8000-8021 } return");
    position(&text, "ip daddr { 10.0.0.0/8 } return");
    position(&text, "ip6 daddr { fd00::1/128 } return");
    position(&text, "ip daddr != { 10.0.0.0/8 } return");
    position(&text, "meta nfproto ipv6 return");
}

#[test]
fn a_port_that_is_added_goes_before_inclusions_and_behind_exclusions() {
    let line = "--also-outbound-ports 9443,9000-9010 --include-outbound-cidrs none --include-outbound-ports 80 \
         --exclude-outbound-ports 9001 --exclude-outbound-cidrs 10.9.0.0/16";
    let text = rules::apply(&options(line), &[]);
    let order = [
        "tcp dport { 9001 } return",
        "ip daddr { 10.9.0.0/16 } return",
        "tcp dport { 9000-9010, 9443 } redirect to :15101-15116 random",
        "tcp dport != { 80 } return",
        "meta nfproto ipv4 return",
        "meta nfproto ipv6 return",
        "meta l4proto tcp redirect to :15101-15116 random",
    ];
    let places: Vec<usize> = order.iter().map(|line| position(&text, line)).collect();
    assert!(places.is_sorted(), "{text}");
}

#[test]
fn what_is_no_port_or_block_is_refused_by_name() {
    for bad in ["0", "70000", "9-8", "http", "80-"] {
        assert!(bad.parse::<Ports>().is_err(), "{bad}");
    }
    assert!("10.0.0.0/33".parse::<Block>().is_err());
    let refused =
        Line::try_parse_from(["apply", "--exclude-inbound-ports", "http"]).err().unwrap().to_string();
    assert!(refused.contains("--exclude-inbound-ports") && refused.contains("8000-8099"), "{refused}");
}

#[test]
fn tproxy_marks_and_its_routing_is_found_again() {
    let text = rules::apply(&options("--mode tproxy"), &[]);
    let taken = position(&text, "tproxy to :15006 meta mark set 0x539 accept");
    let refused = position(&text, "tcp flags & (fin | syn | rst | ack) == syn reject with tcp reset");
    assert!(taken < refused, "nothing is let through when nobody takes it: {text}");
    position(&text, "ct direction reply ct mark 0x539 meta mark set ct mark");
    let [rule, route, ..] = rules::routing(MARK, "add");
    assert_eq!(rule.join(" "), "-4 rule add fwmark 0x539 lookup 1337 pref 15006");
    assert_eq!(route.join(" "), "-4 route add local default dev lo table 1337");
    assert_eq!(rules::our_rule("15006:\tfrom all fwmark 0x539 lookup 1337"), Some(MARK));
    for other in
        ["0:\tfrom all lookup local", "15006:\tfrom all lookup main", "150061:\tfrom all fwmark 0x1 lookup 1"]
    {
        assert_eq!(rules::our_rule(other), None, "{other}");
    }
}

#[test]
fn applying_and_removing_work_on_whatever_is_there() {
    for text in [rules::apply(&options(""), &[]), rules::remove()] {
        assert!(text.starts_with("table inet outrigger {}\ndelete table inet outrigger\n"), "{text}");
    }
}
