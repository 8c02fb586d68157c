//! Linkerd's word for ports of a Service whose bytes nobody looks into: numbers, ranges, and names of the Service's own ports. As with Linkerd
//! `appProtocol` goes before it; and it goes before the name of a port, which tells Linkerd nothing.

use std::collections::BTreeSet;

use crate::finding::quote;

/// The annotation.
pub(super) const NAME: &str = "config.linkerd.io/opaque-ports";
/// What of a list is read.
const MOST: usize = 256;

/// What it says, in the form in which many ports are looked up.
#[derive(Debug, Default)]
pub(crate) struct Opaque {
    /// First and last ports, in their order and none in two of them.
    ranges: Vec<(u16, u16)>,
    names: BTreeSet<String>,
}

impl Opaque {
    pub(super) fn read(said: &str) -> Self {
        let mut all: Vec<(u16, u16)> = items(said).take(MOST).filter_map(range).collect();
        all.sort_unstable();
        let mut ranges: Vec<(u16, u16)> = Vec::new();
        for (first, last) in all {
            match ranges.last_mut() {
                Some((_, end)) if first <= *end => *end = last.max(*end),
                _ => ranges.push((first, last)),
            }
        }
        let names = items(said).take(MOST).filter(|item| is_name(item)).map(str::to_owned).collect();
        Self { ranges, names }
    }

    /// Whether a port is one of them.
    pub(super) fn has(&self, number: u16, name: &str) -> bool {
        let before = self.ranges.partition_point(|(first, _)| *first <= number);
        let is_in = self.ranges[..before].last().is_some_and(|(_, last)| number <= *last);
        is_in || self.names.contains(name)
    }
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

fn range(item: &str) -> Option<(u16, u16)> {
    let (first, last) = item.split_once('-').unwrap_or((item, item));
    let (first, last): (u16, u16) = (first.trim().parse().ok()?, last.trim().parse().ok()?);
    (first > 0 && first <= last).then_some((first, last))
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
            assert_eq!(Opaque::read(said).has(number, name), meant, "{number} {name:?}");
        }
        assert_eq!(wrong(said), None);
        assert_eq!((wrong(""), Opaque::read("").has(80, "")), (None, false));
        for item in ["70000", "0", "9-8", "1-", "SQL", "a b", "80;81"] {
            let why = wrong(&format!("25,{item}")).unwrap();
            assert!(why.starts_with(&quote(item)), "{why}");
        }
        let many = "80,".repeat(MOST);
        assert_eq!(wrong(&many), None);
        assert!(wrong(&format!("{many}81")).unwrap().contains("after 256 ports"));
        assert!(Opaque::read(&many).has(80, "") && !Opaque::read(&format!("{many}81")).has(81, ""));
    }

    /// A Service may have thousands of ports, each of which is looked up.
    #[test]
    fn what_is_said_twice_is_looked_at_once() {
        let many = Opaque::read(&format!("{}sql,sql,70-90,5-9,85-100,8-10,100,101", "80,".repeat(200)));
        assert_eq!((many.ranges.as_slice(), many.names.len()), (&[(5, 10), (70, 100), (101, 101)][..], 1));
        for (number, meant) in
            [(4, false), (5, true), (10, true), (11, false), (69, false), (99, true), (102, false)]
        {
            assert_eq!(many.has(number, ""), meant, "{number}");
        }
    }
}
