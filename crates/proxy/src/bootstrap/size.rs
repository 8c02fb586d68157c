//! Sizes in bytes: a number, or one with a unit.

use serde::{Deserialize, Deserializer};

/// `536870912`, `512Mi`, `512MiB`, `1Gi`; absent is none.
pub fn optional<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<usize>, D::Error> {
    let text = String::deserialize(deserializer)?;
    parse(&text).map(Some).ok_or_else(|| {
        serde::de::Error::custom(format!("\"{text}\" is not a size such as 536870912, 512Mi or 1Gi"))
    })
}

fn parse(text: &str) -> Option<usize> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let shift = match unit.trim_end_matches('B') {
        "" => 0,
        "Ki" => 10,
        "Mi" => 20,
        "Gi" => 30,
        _ => return None,
    };
    number.parse::<usize>().ok()?.checked_mul(1 << shift).filter(|size| *size > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_units_of_two() {
        assert_eq!(parse("536870912"), Some(512 << 20));
        assert_eq!(parse("512Mi"), Some(512 << 20));
        assert_eq!(parse("1GiB"), Some(1 << 30));
        for bad in ["", "Mi", "0", "1.5Gi", "5 Mi", "1M", "99999999999Gi"] {
            assert_eq!(parse(bad), None, "{bad}");
        }
    }
}
