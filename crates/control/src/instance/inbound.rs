//! Which ports of a workload all come to its sidecar, whether or not somebody has declared them: those of a Pod whose rules of interception
//! say so. Only there a caller may begin mTLS at a port of which nothing is known.

/// Ports that no sidecar takes in, whatever the rules say: its own.
const NEVER: [std::ops::RangeInclusive<u16>; 7] =
    [15000..=15001, 15006..=15006, 15020..=15021, 15053..=15053, 15090..=15090, 15101..=15116, 15126..=15141];
/// What passes where nobody says what does.
const SSH: u16 = 22;
const INCLUDE: &str = "--include-inbound-ports=";
const EXCLUDE: &str = "--exclude-inbound-ports=";

/// What is kept of the options of `outrigger-proxy intercept`: `*`, or the ranges that are included, and behind a `!` those that are not.
pub(crate) fn of_options<'a>(options: impl Iterator<Item = &'a str>) -> String {
    let (mut included, mut excluded) = (String::new(), String::new());
    for option in options {
        for (flag, list) in [(INCLUDE, &mut included), (EXCLUDE, &mut excluded)] {
            if let Some(ports) = option.strip_prefix(flag) {
                list.push_str(if list.is_empty() { "" } else { "," });
                list.push_str(ports);
            }
        }
    }
    let included = if included.is_empty() { "*".to_owned() } else { included };
    if excluded.is_empty() { included } else { format!("{included}!{excluded}") }
}

/// Whether a port comes to the sidecar, by what [`of_options`] has kept.
pub(super) fn comes_in(kept: &str, port: u16) -> bool {
    let (included, excluded) = kept.split_once('!').unwrap_or((kept, ""));
    !NEVER.iter().any(|range| range.contains(&port))
        && (port != SSH || !excluded.is_empty())
        && (included == "*" || is_among(included, port))
        && !is_among(excluded, port)
}

fn is_among(list: &str, port: u16) -> bool {
    list.split(',').any(|range| {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let number = |text: &str| text.trim().parse::<u16>().ok();
        matches!((number(first), number(last)), (Some(first), Some(last)) if (first..=last).contains(&port))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_taken_in_is_what_the_rules_take_in() {
        let comes_in = |options: &[&str], port| comes_in(&of_options(options.iter().copied()), port);
        assert!(comes_in(&["intercept", "apply", "--dns"], 7946));
        for own in [22, 15000, 15006, 15020, 15021, 15090, 15101, 15141] {
            assert!(!comes_in(&["intercept", "apply"], own), "{own}");
        }
        let some = ["--exclude-inbound-ports=9300-9400,7000", "--include-inbound-ports=7000-9999"];
        assert!(comes_in(&["--exclude-inbound-ports=9"], 22), "as its own words have it");
        for (port, wanted) in [(7000, false), (7001, true), (9350, false), (9401, true), (6999, false)] {
            assert_eq!(comes_in(&some, port), wanted, "{port}");
        }
        assert!(!comes_in(&["--exclude-inbound-ports=1-65535"], 8080));
        assert!(!super::comes_in("nonsense!", 8080) && !super::comes_in("", 8080));
    }
}
