//! Secrets in queries, which no span, no log and no page shows: who reads those is not who may use them.

use std::borrow::Cow;

/// Bearer tokens (RFC 6750, section 2.3) and signatures of URLs; of the latter those of OpenTelemetry's conventions (`url.full`), and AWS's
/// newer ones.
const SECRETS: [&str; 9] = [
    "access_token",
    "id_token",
    "refresh_token",
    "AWSAccessKeyId",
    "Signature",
    "sig",
    "X-Goog-Signature",
    "X-Amz-Signature",
    "X-Amz-Security-Token",
];

/// OpenTelemetry's word.
const REDACTED: &str = "REDACTED";

/// A path with its query.
pub fn path(path: &str) -> Cow<'_, str> {
    match path.split_once('?') {
        Some((before, text)) => match query(text) {
            Cow::Borrowed(_) => Cow::Borrowed(path),
            Cow::Owned(text) => Cow::Owned(format!("{before}?{text}")),
        },
        None => Cow::Borrowed(path),
    }
}

/// A query.
pub fn query(query: &str) -> Cow<'_, str> {
    if !parts(query).any(is_secret) {
        return Cow::Borrowed(query);
    }
    let mut out = String::with_capacity(query.len());
    for part in parts(query) {
        match part.split_once('=') {
            Some((name, _)) if is_secret(part) => {
                let rest = if part.ends_with('&') { "&" } else { "" };
                out.extend([name, "=", REDACTED, rest]);
            }
            _ => out.push_str(part),
        }
    }
    Cow::Owned(out)
}

/// Each with the `&` behind it.
fn parts(query: &str) -> impl Iterator<Item = &str> {
    query.split_inclusive('&')
}

fn is_secret(part: &str) -> bool {
    let Some((name, value)) = part.split_once('=') else { return false };
    let name = if name.contains('%') { Cow::Owned(decoded(name)) } else { Cow::Borrowed(name) };
    !value.trim_end_matches('&').is_empty() && SECRETS.iter().any(|secret| name.eq_ignore_ascii_case(secret))
}

/// Of a name, which has nothing but ASCII where it is one of ours.
fn decoded(name: &str) -> String {
    let bytes = name.as_bytes();
    let (mut out, mut at) = (String::with_capacity(bytes.len()), 0);
    while at < bytes.len() {
        let escaped = name.get(at + 1..at + 3).and_then(|digits| u8::from_str_radix(digits, 16).ok());
        match (bytes[at], escaped) {
            (b'%', Some(byte)) => {
                out.push(char::from(byte));
                at += 3;
            }
            (byte, _) => {
                out.push(char::from(byte));
                at += 1;
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_and_signatures_are_not_shown() {
        for (written, shown) in [
            ("/a", "/a"),
            ("/a?", "/a?"),
            ("/a?b=c&d", "/a?b=c&d"),
            ("/a?access_token=x.y.z", "/a?access_token=REDACTED"),
            ("/a?b=c&ACCESS_TOKEN=x&d=e", "/a?b=c&ACCESS_TOKEN=REDACTED&d=e"),
            ("/a?access%5Ftoken=x&sig=y", "/a?access%5Ftoken=REDACTED&sig=REDACTED"),
            ("/a?X-Goog-Signature=1=2&&", "/a?X-Goog-Signature=REDACTED&&"),
            ("/a?sig=&signature", "/a?sig=&signature"),
            ("/a?%=1&%5=2&sig%zz=3&\u{e4}%=4", "/a?%=1&%5=2&sig%zz=3&\u{e4}%=4"),
            ("/sig=1?design=2", "/sig=1?design=2"),
        ] {
            assert_eq!(path(written), shown);
        }
    }
}
