//! Linkerd's word for ports of a Service whose bytes nobody looks into: numbers, ranges, and names of the Service's own ports. As with Linkerd
//! `appProtocol` goes before it; and it goes before the name of a port, which tells Linkerd nothing.

use std::ops::RangeInclusive;

use crate::finding::quote;

/// The annotation.
pub(super) const NAME: &str = "config.linkerd.io/opaque-ports";
/// What of a list is read: it is looked through for each port.
const MOST: usize = 256;

/// Whether a port is one of them.
pub(super) fn has(said: &str, number: u16, name: &str) -> bool {
    let mut items = items(said).take(MOST);
    items.any(|item| item == name || range(item).is_some_and(|range| range.contains(&number)))
}

/// What of it has no effect, and why.
pub(super) fn wrong(said: &str) -> Option<String> {
    if items(said).nth(MOST).is_some() {
        return Some(format!("what comes after {MOST} ports has no effect"));
    }
    let wrong = items(said).find(|item| range(item).is_none() && !is_name(item))?;
    Some(format!(
        "{} has no effect: it is no port such as 25, no range such as 3306-3310, and no name",
        quote(wrong)
    ))
}

fn items(said: &str) -> impl Iterator<Item = &str> {
    said.split(',').map(str::trim).filter(|item| !item.is_empty())
}

fn range(item: &str) -> Option<RangeInclusive<u16>> {
    let (first, last) = item.split_once('-').unwrap_or((item, item));
    let (first, last): (u16, u16) = (first.trim().parse().ok()?, last.trim().parse().ok()?);
    (first > 0 && first <= last).then_some(first..=last)
}

/// As Kubernetes has names of ports.
fn is_name(item: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    item.bytes().all(plain) && item.bytes().any(|byte| byte.is_ascii_lowercase())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_meant_by_number_by_range_and_by_name() {
        let said = " 25, 3306-3308,sql ,9";
        for (number, name, meant) in [
            (25, "", true),
            (26, "", false),
            (3306, "http", true),
            (3308, "", true),
            (3309, "", false),
            (80, "sql", true),
            (80, "sql2", false),
            (9, "web", true),
        ] {
            assert_eq!(has(said, number, name), meant, "{number} {name:?}");
        }
        assert_eq!(wrong(said), None);
        assert_eq!((wrong(""), has("", 80, "")), (None, false));
        for item in ["70000", "0", "9-8", "1-", "SQL", "a b", "80;81"] {
            let why = wrong(&format!("25,{item}")).unwrap();
            assert!(why.starts_with(&quote(item)), "{why}");
        }
        let many = "80,".repeat(MOST);
        assert_eq!(wrong(&many), None);
        assert!(wrong(&format!("{many}81")).unwrap().contains("after 256 ports"));
        assert!(has(&many, 80, "") && !has(&format!("{many}81"), 81, ""));
    }
}
