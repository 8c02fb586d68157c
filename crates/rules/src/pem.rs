//! Whether a text is certificates in PEM. What the certificates say is for those to judge who verify with them; here it is what can be
//! said without that: that each block is whole, is base64, and has the outer form of a certificate.

const BEGIN: &str = "-----BEGIN CERTIFICATE-----";
const END: &str = "-----END CERTIFICATE-----";

/// Looks at every certificate of a text; what stands between them is skipped.
///
/// # Errors
/// What is wrong, of which certificate.
pub(crate) fn certificates(text: &str) -> Result<(), String> {
    let mut rest = text;
    let mut count = 0;
    while let Some((_, after)) = rest.split_once(BEGIN) {
        count += 1;
        let Some((body, after)) = after.split_once(END) else {
            return Err(format!("certificate {count} has no end ({END})"));
        };
        let Some(der) = base64(body) else { return Err(format!("certificate {count} is not base64")) };
        if !is_sequence(&der) {
            return Err(format!("certificate {count} is cut off, or no certificate"));
        }
        rest = after;
    }
    if count == 0 { Err(format!("there is no {BEGIN} in it")) } else { Ok(()) }
}

/// The bytes behind a text of whole groups of four characters.
fn base64(text: &str) -> Option<Vec<u8>> {
    let digits: Vec<u8> = text.bytes().filter(|b| !b.is_ascii_whitespace()).collect();
    let padding = digits.iter().rev().take_while(|b| **b == b'=').count();
    if padding > 2 || !digits.len().is_multiple_of(4) {
        return None;
    }
    let value = |digit: &u8| match digit {
        b'A'..=b'Z' => Some(digit - b'A'),
        b'a'..=b'z' => Some(digit - b'a' + 26),
        b'0'..=b'9' => Some(digit - b'0' + 52),
        b'+' => Some(62),
        b'/' => Some(63),
        _ => None,
    };
    let mut bytes = Vec::with_capacity(digits.len() / 4 * 3);
    for group in digits[..digits.len() - padding].chunks(4) {
        let mut all = 0u32;
        for digit in group {
            all = all << 6 | u32::from(value(digit)?);
        }
        let missing = 4 - group.len();
        let whole = (all << (6 * missing)).to_be_bytes();
        bytes.extend(&whole[1..4 - missing]);
    }
    Some(bytes)
}

/// Whether this is one DER sequence and nothing else: its length says where it ends.
fn is_sequence(der: &[u8]) -> bool {
    let [0x30, first, rest @ ..] = der else { return false };
    let of_length = usize::from(first & 0x7f);
    if first & 0x80 == 0 {
        return rest.len() == of_length;
    }
    if !(1..=3).contains(&of_length) || rest.len() < of_length {
        return false;
    }
    let (length, body) = rest.split_at(of_length);
    body.len() == length.iter().fold(0, |sum, byte| sum << 8 | usize::from(*byte))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::CERTIFICATE;

    #[test]
    fn certificates_are_looked_at_and_what_is_between_them_is_not() {
        assert_eq!(certificates(CERTIFICATE), Ok(()));
        assert_eq!(certificates(&format!("# ours\n{CERTIFICATE}\ntheirs:\n{CERTIFICATE}")), Ok(()));
    }

    #[test]
    fn what_only_looks_like_a_certificate_is_none() {
        let wrong = |text: &str, wanted: &str| {
            let why = certificates(text).unwrap_err();
            assert!(why.contains(wanted), "{text}: {why}");
        };
        wrong("", "there is no -----BEGIN CERTIFICATE-----");
        wrong(BEGIN, "1 has no end");
        wrong(&format!("{BEGIN}\n{END}"), "1 is cut off");
        wrong(&format!("{BEGIN}\nSGVsbG8=\n{END}"), "1 is cut off, or no certificate");
        wrong(&format!("{BEGIN}\n(the certificate of our authority)\n{END}"), "1 is not base64");
        // A line that was lost on the way.
        let mut lines: Vec<&str> = CERTIFICATE.lines().collect();
        lines.remove(2);
        wrong(&format!("{CERTIFICATE}\n{}", lines.join("\n")), "2 is cut off");
    }
}
