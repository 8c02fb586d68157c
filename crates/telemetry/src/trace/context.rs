//! W3C Trace Context: `traceparent` and `tracestate` on bytes.
//!
//! Nothing here allocates. A header that does not parse is not repaired: the caller forwards it byte for byte and
//! records no span, because a restarted trace is worse than a missing span.

/// 16 bytes, not all zero.
pub type TraceId = [u8; 16];

/// 8 bytes, not all zero.
pub type SpanId = [u8; 8];

/// Header name of the W3C context.
pub const TRACEPARENT: &str = "traceparent";

/// Header name of the W3C vendor list.
pub const TRACESTATE: &str = "tracestate";

/// Length of a version 00 `traceparent`.
pub const TRACEPARENT_LEN: usize = 55;

const SAMPLED: u8 = 0x01;
/// Level 2: the right-most 7 bytes of the trace id are random.
const RANDOM: u8 = 0x02;

/// One position in one trace.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct TraceContext {
    /// The whole trace.
    pub trace_id: TraceId,
    /// The span that the next hop is a child of.
    pub parent: SpanId,
    /// `trace-flags`; only the bits that version 00 and level 2 define.
    pub flags: u8,
}

impl TraceContext {
    /// A new trace with random ids; `sampled` sets the flag.
    pub fn root(sampled: bool) -> Self {
        Self { trace_id: new_trace_id(), parent: new_span_id(), flags: RANDOM | u8::from(sampled) }
    }

    /// The same position, recorded or not.
    #[must_use]
    pub fn with_sampled(self, sampled: bool) -> Self {
        Self { flags: self.flags & !SAMPLED | u8::from(sampled), ..self }
    }

    /// Whether the caller recorded this trace.
    pub fn sampled(&self) -> bool {
        self.flags & SAMPLED != 0
    }

    /// Parses a `traceparent` value. `None` is "not valid", for which the specification forbids any use.
    pub fn parse(value: &[u8]) -> Option<Self> {
        // version "-" trace-id "-" parent-id "-" trace-flags, lower-case hex.
        let fixed = value.get(..TRACEPARENT_LEN)?;
        if fixed[2] != b'-' || fixed[35] != b'-' || fixed[52] != b'-' {
            return None;
        }
        let [version] = hex::<1>(&fixed[..2])?;
        match version {
            0xff => return None,
            0 if value.len() != TRACEPARENT_LEN => return None,
            // "Versioning of traceparent": a higher version is read as far as version 00 goes, and what follows
            // must begin with a dash.
            _ if value.len() > TRACEPARENT_LEN && value[TRACEPARENT_LEN] != b'-' => return None,
            _ => {}
        }
        let trace_id = hex::<16>(&fixed[3..35])?;
        let parent = hex::<8>(&fixed[36..52])?;
        let [flags] = hex::<1>(&fixed[53..55])?;
        if trace_id == [0; 16] || parent == [0; 8] {
            return None;
        }
        // Unknown flags are zeroed when a new header is made, and a new header is version 00.
        Some(Self { trace_id, parent, flags: flags & (SAMPLED | RANDOM) })
    }

    /// Formats a version 00 `traceparent` value.
    pub fn format(&self) -> [u8; TRACEPARENT_LEN] {
        let mut out = *b"00-00000000000000000000000000000000-0000000000000000-00";
        to_hex(&self.trace_id, &mut out[3..35]);
        to_hex(&self.parent, &mut out[36..52]);
        to_hex(&[self.flags], &mut out[53..55]);
        out
    }
}

/// A random trace id, never zero.
pub fn new_trace_id() -> TraceId {
    loop {
        let id = fastrand::u128(..);
        if id != 0 {
            return id.to_be_bytes();
        }
    }
}

/// A random span id, never zero.
pub fn new_span_id() -> SpanId {
    fastrand::u64(1..).to_be_bytes()
}

/// The notation in which a context came, and in which it has to go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// `traceparent`.
    W3c,
    /// `b3`.
    B3Single,
    /// `x-b3-traceid` and its siblings.
    B3Multi,
}

/// What the headers of a request say about its trace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Incoming {
    /// No trace header.
    Absent,
    /// There is a header and it is not valid: forward as it is, record nothing.
    Invalid(Format),
    /// B3 only: no ids, but a decision.
    Decision {
        /// The notation.
        format: Format,
        /// Record or not.
        sampled: bool,
    },
    /// A valid context.
    Context {
        /// The notation.
        format: Format,
        /// Trace, parent, flags.
        context: TraceContext,
        /// `None`: the caller defers the decision, which only B3 can say.
        sampled: Option<bool>,
    },
}

/// The members of one `tracestate` value, or `None` when it is not valid. Allocates nothing; several header lines
/// are one list in their order.
///
/// Limits: 32 members; keys of lower-case letters, digits and `_-*/@`, values of printable ASCII without `,` and `=`.
pub fn tracestate(value: &[u8]) -> Option<impl Iterator<Item = (&str, &str)>> {
    let members = |value| {
        std::str::from_utf8(value).unwrap_or_default().split(',').map(|m| m.trim_matches([' ', '\t']))
    };
    let mut count = 0;
    for member in members(value).filter(|member| !member.is_empty()) {
        let (key, value) = member.split_once('=')?;
        count += 1;
        if count > 32 || !is_state_key(key.as_bytes()) || !is_state_value(value.as_bytes()) {
            return None;
        }
    }
    // An empty list is allowed, bytes that are not text are not.
    if count == 0 && !value.iter().all(|byte| matches!(byte, b',' | b' ' | b'\t')) {
        return None;
    }
    Some(members(value).filter_map(|member| member.split_once('=')))
}

fn is_state_key(key: &[u8]) -> bool {
    let start = key.first().is_some_and(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit());
    let rest = |byte: &u8| {
        byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'_' | b'-' | b'*' | b'/' | b'@')
    };
    start && key.len() <= 256 && key.iter().all(rest)
}

fn is_state_value(value: &[u8]) -> bool {
    let printable = |byte: &u8| matches!(byte, 0x20..=0x7e) && !matches!(byte, b',' | b'=');
    (1..=256).contains(&value.len()) && value.iter().all(printable) && !value.ends_with(b" ")
}

/// Optional white space around a field value is not part of it (RFC 9110 §5.5).
pub(super) fn trim(value: &[u8]) -> &[u8] {
    let start = value.iter().position(|byte| !matches!(byte, b' ' | b'\t')).unwrap_or(value.len());
    let end = value.iter().rposition(|byte| !matches!(byte, b' ' | b'\t')).map_or(start, |at| at + 1);
    &value[start..end]
}

/// Lower-case hex of exactly `2 * N` digits.
pub(super) fn hex<const N: usize>(text: &[u8]) -> Option<[u8; N]> {
    if text.len() != 2 * N {
        return None;
    }
    let mut out = [0; N];
    for (byte, pair) in out.iter_mut().zip(text.chunks_exact(2)) {
        *byte = nibble(pair[0])? << 4 | nibble(pair[1])?;
    }
    Some(out)
}

fn nibble(digit: u8) -> Option<u8> {
    match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        _ => None,
    }
}

pub(super) fn to_hex(bytes: &[u8], out: &mut [u8]) {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    for (byte, pair) in bytes.iter().zip(out.chunks_exact_mut(2)) {
        pair[0] = DIGITS[usize::from(byte >> 4)];
        pair[1] = DIGITS[usize::from(byte & 15)];
    }
}

#[cfg(test)]
mod tests;
