//! One form for each path: what is judged is what is forwarded. Pure; the proxy calls it before routing and policy, the
//! analyzer on the paths of rules.
//!
//! The modes are Istio's (`pathNormalization`) and the outcome is Envoy's, so that one policy means one thing in a mixed
//! mesh. Where Envoy leaves open what an application will see, we refuse: see [`PathRefusal`]. The query is never touched.
//!
//! ```text
//! escapes: %61 ─> a, " ─> %22 ─> dot segments: /a/../b ─> /b, ..;x as .. ─> slashes: //a ─> /a
//! ```

use std::fmt;

use serde::{Deserialize, Serialize};

/// What is made equal before a path is looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct PathNormalization {
    /// RFC 3986, section 6.2.2: escapes of unreserved characters are decoded, dot segments removed (`normalize_path`).
    pub base: bool,
    /// Of several slashes in a row one is left (`merge_slashes`).
    pub merge_slashes: bool,
    /// What becomes of `%2f` and `%5c`.
    pub escaped_slashes: EscapedSlashes,
}

/// What becomes of `%2f` and `%5c` (`path_with_escaped_slashes_action`).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum EscapedSlashes {
    /// They stay: names of packages and objects have them.
    #[default]
    Keep,
    /// The request is refused.
    Reject,
    /// They become slashes, before anything else is done.
    Decode,
}

impl PathNormalization {
    /// Paths are judged and forwarded as they were sent.
    pub const NONE: Self = Self { base: false, merge_slashes: false, escaped_slashes: EscapedSlashes::Keep };
    /// RFC 3986.
    pub const BASE: Self = Self { base: true, ..Self::NONE };
    /// RFC 3986, then slashes in a row become one. The default.
    pub const MERGE_SLASHES: Self = Self { merge_slashes: true, ..Self::BASE };
    /// Escaped slashes too, for applications that decode them.
    pub const DECODE_AND_MERGE_SLASHES: Self =
        Self { escaped_slashes: EscapedSlashes::Decode, ..Self::MERGE_SLASHES };

    /// By Istio's names.
    pub const NAMES: [(&'static str, Self); 4] = [
        ("NONE", Self::NONE),
        ("BASE", Self::BASE),
        ("MERGE_SLASHES", Self::MERGE_SLASHES),
        ("DECODE_AND_MERGE_SLASHES", Self::DECODE_AND_MERGE_SLASHES),
    ];

    /// By Istio's name.
    pub fn named(name: &str) -> Option<Self> {
        Self::NAMES.iter().find(|(known, _)| *known == name).map(|(_, mode)| *mode)
    }
}

impl Default for PathNormalization {
    fn default() -> Self {
        Self::MERGE_SLASHES
    }
}

/// Why a path has no one form.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PathRefusal {
    /// `%00`: what reads it as the end of a text sees another path.
    Nul,
    /// `%2f` or `%5c`, and the mode refuses them.
    EscapedSlash,
    /// `..%2f`, `..%3b` and the like: a dot segment for those who decode first, and none for others.
    HiddenDotSegment,
    /// `/;x/`: no segment at all for those who take parameters off first (Tomcat, Jetty), and one for others.
    NamelessSegment,
}

impl fmt::Display for PathRefusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Nul => "the path has %00, an escaped NUL",
            Self::EscapedSlash => {
                "the path has an escaped slash (%2f or %5c), which pathNormalization refuses"
            }
            Self::HiddenDotSegment => {
                "the path has a dot segment beside %2f, %5c or %3b, which applications read differently"
            }
            Self::NamelessSegment => {
                "the path has a segment of parameters alone (/;x/), which applications read differently"
            }
        })
    }
}

const SLASH: u8 = 1;
const DOT: u8 = 2;
/// Never in a path that is in its form, or only after a closer look.
const ODD: u8 = 4;
const END: u8 = 8;
const PARAMETER: u8 = 16;

static KIND: [u8; 256] = {
    let mut kind = [0; 256];
    kind[b'/' as usize] = SLASH;
    kind[b'.' as usize] = DOT;
    kind[b'?' as usize] = END;
    kind[b';' as usize] = PARAMETER;
    kind[b'%' as usize] = ODD;
    kind[b'\\' as usize] = ODD;
    let mut at = 0;
    while at < ESCAPED.len() {
        kind[ESCAPED[at] as usize] = ODD;
        at += 1;
    }
    kind
};

/// No characters of a path (RFC 3986, section 3.3), yet sent by real clients: escaped, as Envoy does.
const ESCAPED: [u8; 8] = *b"\"<>^`{|}";

impl PathNormalization {
    /// The path in its one form, with its query as it was; `None`: it is in it already. CONNECT has no path and `OPTIONS *` no
    /// other form. One look at each byte, and no allocation, where there is nothing to do.
    ///
    /// # Errors
    /// There is no one form: see [`PathRefusal`].
    #[inline]
    pub fn apply(self, path_and_query: &str) -> Result<Option<String>, PathRefusal> {
        if self == Self::NONE || self.is_plain(path_and_query.as_bytes()) {
            return Ok(None);
        }
        self.look_closer(path_and_query)
    }

    /// Whether nothing in it could want a change.
    fn is_plain(self, path: &[u8]) -> bool {
        let mut before = 0;
        for &byte in path {
            let kind = KIND[usize::from(byte)];
            if kind & (ODD | END) != 0 || (before & SLASH != 0 && kind != 0) {
                return kind & END != 0;
            }
            before = kind;
        }
        true
    }

    #[cold]
    fn look_closer(self, path_and_query: &str) -> Result<Option<String>, PathRefusal> {
        let path = path_and_query.split_once('?').map_or(path_and_query, |(path, _)| path);
        if !path.starts_with('/') {
            return Ok(None);
        }
        let mut form = self.decoded(path.as_bytes())?;
        if self.base {
            form = without_dot_segments(&form);
            if hides_dot_segment(&form) {
                return Err(PathRefusal::HiddenDotSegment);
            }
            if self.merge_slashes && has_nameless_segment(&form) {
                return Err(PathRefusal::NamelessSegment);
            }
        }
        if self.merge_slashes {
            form.dedup_by(|next, before| *next == b'/' && *before == b'/');
        }
        if form == path.as_bytes() {
            return Ok(None);
        }
        form.extend_from_slice(&path_and_query.as_bytes()[path.len()..]);
        // Only ASCII was changed, so it is text as before.
        String::from_utf8(form).map(Some).map_err(|_| PathRefusal::Nul)
    }

    /// The path after one round of decoding. A stray `%` that would begin an escape now, and not before, is escaped itself:
    /// an application that decodes must not see what we did not.
    fn decoded(self, path: &[u8]) -> Result<Vec<u8>, PathRefusal> {
        let mut out = Vec::with_capacity(path.len() + 8);
        let mut strays: Vec<usize> = Vec::new();
        let mut at = 0;
        while at < path.len() {
            let byte = path[at];
            let escaped = if byte == b'%' { escape_at(path, at) } else { None };
            let Some(value) = escaped else {
                match byte {
                    b'%' => {
                        strays.push(out.len());
                        out.push(byte);
                    }
                    b'\\' if self.base => out.push(b'/'),
                    _ if self.base && ESCAPED.contains(&byte) => {
                        out.push(b'%');
                        out.extend(hex(byte));
                    }
                    _ => out.push(byte),
                }
                at += 1;
                continue;
            };
            match value {
                0 if self.base => return Err(PathRefusal::Nul),
                b'/' | b'\\' if self.escaped_slashes == EscapedSlashes::Reject => {
                    return Err(PathRefusal::EscapedSlash);
                }
                b'/' | b'\\' if self.escaped_slashes == EscapedSlashes::Decode => out.push(b'/'),
                b'-' | b'.' | b'_' | b'~' if self.base => out.push(value),
                _ if self.base && value.is_ascii_alphanumeric() => out.push(value),
                _ => out.extend_from_slice(&path[at..at + 3]),
            }
            at += 3;
        }
        // From the last, so that the others stay where they are.
        for stray in strays.into_iter().rev().filter(|_| self.base) {
            if escape_at(&out, stray).is_some() {
                out.splice(stray..=stray, *b"%25");
            }
        }
        Ok(out)
    }
}

/// The byte that an escape stands for.
fn escape_at(text: &[u8], at: usize) -> Option<u8> {
    let digit = |at: usize| text.get(at).and_then(|b| char::from(*b).to_digit(16));
    u8::try_from(digit(at + 1)? * 16 + digit(at + 2)?).ok()
}

fn hex(byte: u8) -> [u8; 2] {
    const DIGITS: &[u8; 16] = b"0123456789ABCDEF";
    [DIGITS[usize::from(byte >> 4)], DIGITS[usize::from(byte & 15)]]
}

/// RFC 3986, section 5.2.4, on whole segments; an empty one counts as one. Parameters do not hide a dot segment: servers
/// that know them (`..;x`, Tomcat and Jetty) take them off first.
fn without_dot_segments(path: &[u8]) -> Vec<u8> {
    let mut out: Vec<u8> = Vec::with_capacity(path.len());
    let mut segments = path[1..].split(|b| *b == b'/').peekable();
    while let Some(segment) = segments.next() {
        let last = segments.peek().is_none();
        match bare(segment) {
            b"." => {}
            b".." => {
                let parent = out.iter().rposition(|b| *b == b'/').unwrap_or(0);
                out.truncate(parent);
            }
            _ => {
                out.push(b'/');
                out.extend_from_slice(segment);
                continue;
            }
        }
        if last {
            out.push(b'/');
        }
    }
    out
}

/// A segment without its parameters (RFC 3986, section 3.3).
fn bare(segment: &[u8]) -> &[u8] {
    segment.split(|b| *b == b';').next().unwrap_or_default()
}

/// Whether whoever decodes slashes and semicolons, too, would find a dot segment.
fn hides_dot_segment(path: &[u8]) -> bool {
    let (mut at, mut dots, mut parameters) = (0, 0_u8, false);
    while at < path.len() {
        let escaped = if path[at] == b'%' { escape_at(path, at) } else { None };
        match escaped.unwrap_or(path[at]) {
            b'/' | b'\\' => {
                if matches!(dots, 1 | 2) {
                    return true;
                }
                (dots, parameters) = (0, false);
            }
            b';' => parameters = true,
            b'.' if !parameters => dots = dots.saturating_add(1),
            _ if !parameters => dots = 3,
            _ => {}
        }
        at += if escaped.is_some() { 3 } else { 1 };
    }
    matches!(dots, 1 | 2)
}

/// Whether a segment but the last has parameters and no name: `/;x/a` is `//a` to those who take parameters off, and then `/a`. As the
/// last one it is common (`/;jsessionid=1`).
fn has_nameless_segment(path: &[u8]) -> bool {
    let mut segments = path[1..].split(|b| *b == b'/');
    let last = segments.next_back();
    let begins = |segment: &[u8]| {
        segment.first() == Some(&b';') || segment.get(..3).is_some_and(|s| s.eq_ignore_ascii_case(b"%3b"))
    };
    last.is_some() && segments.any(begins)
}

#[cfg(test)]
mod tests;
