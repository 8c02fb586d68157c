//! The header section of one message: the bytes that arrived, ranges over them, and edits behind them in the same buffer.
//!
//! Reads see edits. A range is 16 bits, so bytes and edits together stay below 64 KiB. What a field *means* for framing
//! is decided in `strict`.

use bytes::BytesMut;
use smallvec::SmallVec;

use super::known::Known;

/// One header line. `name_len == 0` marks the line as removed: no line has an empty name.
#[derive(Debug, Clone, Copy)]
pub(super) struct Field {
    pub(super) name: u16,
    pub(super) name_len: u16,
    pub(super) value: u16,
    pub(super) value_len: u16,
    pub(super) known: Known,
    /// The line is in the buffer as it arrived, up to its CRLF, so that a run of such lines is one copy.
    pub(super) arrived: bool,
}

impl Field {
    pub(super) fn is_removed(&self) -> bool {
        self.name_len == 0
    }
}

/// Why a header could not be set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum EditError {
    /// The name is not a token.
    #[error("the header name is not a token (RFC 9110, section 5.6.2)")]
    Name,
    /// The value has a control character, or the text is not allowed in this place.
    #[error("the header value has a control character (RFC 9110, section 5.5)")]
    Value,
    /// Head and edits together are larger than 64 KiB.
    #[error("head and edits together are larger than 64 KiB")]
    TooLarge,
    /// A new method, path or authority is not valid.
    #[error("the new method, path or authority is not valid")]
    Line,
}

/// Header fields with their bytes.
#[derive(Debug, Clone, Default)]
pub struct H1Fields {
    pub(super) buf: BytesMut,
    pub(super) list: SmallVec<[Field; 16]>,
    /// Bits of the known names that are (or once were) in the list.
    pub(super) present: u32,
    /// What `Connection` said, gathered while parsing.
    pub(super) options: ConnectionOptions,
}

/// The options of the `Connection` field.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ConnectionOptions {
    pub close: bool,
    pub keep_alive: bool,
    pub upgrade: bool,
    /// It names other fields, which then must not be forwarded.
    pub names_fields: bool,
}

impl H1Fields {
    /// Fields of our own making; room for a usual head.
    pub fn new() -> Self {
        Self { buf: BytesMut::with_capacity(512), ..Self::default() }
    }

    pub(super) fn text(&self, start: u16, len: u16) -> &[u8] {
        &self.buf[usize::from(start)..usize::from(start) + usize::from(len)]
    }

    pub(super) fn name_of(&self, field: &Field) -> &[u8] {
        self.text(field.name, field.name_len)
    }

    pub(super) fn value_of(&self, field: &Field) -> &[u8] {
        self.text(field.value, field.value_len)
    }

    pub(super) fn matches(&self, field: &Field, known: Known, name: &[u8]) -> bool {
        field.known == known
            && !field.is_removed()
            && (known != Known::Other || self.name_of(field).eq_ignore_ascii_case(name))
    }

    /// All values of `name` (any case), in the order of their lines.
    pub fn headers<'a>(&'a self, name: &'a str) -> Values<'a> {
        let known = Known::of(name.as_bytes());
        let absent = known != Known::Other && self.present & known.bit() == 0;
        Values { fields: self, list: if absent { &[] } else { &self.list }, known, name: name.as_bytes() }
    }

    /// All values of a recognised name.
    pub fn known(&self, known: Known) -> Values<'_> {
        let list: &[Field] =
            if known == Known::Other || self.present & known.bit() == 0 { &[] } else { &self.list };
        Values { fields: self, list, known, name: b"" }
    }

    /// The first value of `name`.
    pub fn first<'a>(&'a self, name: &'a str) -> Option<&'a [u8]> {
        self.headers(name).next()
    }

    /// Whether a recognised name has a line.
    pub fn has(&self, known: Known) -> bool {
        self.present & known.bit() != 0 && self.known(known).next().is_some()
    }

    /// All lines, as name and value.
    pub fn iter(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        self.list.iter().filter(|field| !field.is_removed()).map(|f| (self.name_of(f), self.value_of(f)))
    }

    /// How many lines there are.
    pub fn len(&self) -> usize {
        self.list.iter().filter(|field| !field.is_removed()).count()
    }

    /// Whether there is no line.
    pub fn is_empty(&self) -> bool {
        self.list.iter().all(Field::is_removed)
    }

    /// What `Connection` said when the head arrived.
    pub fn connection(&self) -> ConnectionOptions {
        self.options
    }

    /// Replaces all values of `name` by one, in the place and with the spelling of the first line; appends without one.
    ///
    /// # Errors
    /// When name or value could not be a header line, or the head would grow beyond 64 KiB.
    pub fn set(&mut self, name: &str, value: impl AsRef<[u8]>) -> Result<(), EditError> {
        let value = value.as_ref();
        if !is_value(value) {
            return Err(EditError::Value);
        }
        let known = Known::of(name.as_bytes());
        let Some(at) = self.list.iter().position(|f| self.matches(f, known, name.as_bytes())) else {
            return self.append(name, value);
        };
        // A value that fits is written over the old one: a traceparent per attempt costs no room at all.
        let (start, len) = if value.len() <= usize::from(self.list[at].value_len) {
            let start = usize::from(self.list[at].value);
            self.buf[start..start + value.len()].copy_from_slice(value);
            (self.list[at].value, value.len() as u16)
        } else {
            self.room(value.len())?;
            self.put(value)
        };
        let field = &mut self.list[at];
        (field.value, field.value_len, field.arrived) = (start, len, false);
        for next in at + 1..self.list.len() {
            if self.matches(&self.list[next], known, name.as_bytes()) {
                self.list[next].name_len = 0;
            }
        }
        Ok(())
    }

    /// Adds a line at the end.
    ///
    /// # Errors
    /// When name or value could not be a header line, or the head would grow beyond 64 KiB.
    pub fn append(&mut self, name: &str, value: impl AsRef<[u8]>) -> Result<(), EditError> {
        self.append_bytes(name.as_bytes(), value.as_ref())
    }

    pub(crate) fn append_bytes(&mut self, name: &[u8], value: &[u8]) -> Result<(), EditError> {
        if name.is_empty() || !name.iter().all(|&b| is_tchar(b)) {
            return Err(EditError::Name);
        }
        if !is_value(value) {
            return Err(EditError::Value);
        }
        self.room(name.len() + value.len())?;
        let known = Known::of(name);
        let (name, name_len) = self.put(name);
        let (value, value_len) = self.put(value);
        self.list.push(Field { name, name_len, value, value_len, known, arrived: false });
        self.present |= known.bit();
        Ok(())
    }

    /// Removes all lines of `name`; says whether there was one.
    pub fn remove(&mut self, name: &str) -> bool {
        let known = Known::of(name.as_bytes());
        if known != Known::Other && self.present & known.bit() == 0 {
            return false;
        }
        self.remove_if(|fields, field| fields.matches(field, known, name.as_bytes()))
    }

    /// Removes all lines whose name starts with `prefix` (any case); says whether there was one.
    pub fn remove_prefix(&mut self, prefix: &str) -> bool {
        let prefix = prefix.as_bytes();
        self.remove_if(|fields, field| {
            fields.name_of(field).get(..prefix.len()).is_some_and(|start| start.eq_ignore_ascii_case(prefix))
        })
    }

    fn remove_if(&mut self, gone: impl Fn(&Self, &Field) -> bool) -> bool {
        let mut any = false;
        for at in 0..self.list.len() {
            if !self.list[at].is_removed() && gone(self, &self.list[at]) {
                self.list[at].name_len = 0;
                any = true;
            }
        }
        any
    }

    /// Checks that so many more bytes can be addressed.
    pub(super) fn room(&self, bytes: usize) -> Result<(), EditError> {
        if self.buf.len() + bytes > usize::from(u16::MAX) { Err(EditError::TooLarge) } else { Ok(()) }
    }

    /// Writes behind the head. The caller has checked `room`, so both numbers fit.
    pub(super) fn put(&mut self, bytes: &[u8]) -> (u16, u16) {
        let start = self.buf.len() as u16;
        self.buf.extend_from_slice(bytes);
        (start, bytes.len() as u16)
    }

    /// Gives the buffer back, emptied, for the next head.
    pub fn into_buffer(mut self) -> BytesMut {
        self.buf.clear();
        self.buf
    }
}

/// The values of one name.
#[derive(Clone)]
pub struct Values<'a> {
    fields: &'a H1Fields,
    list: &'a [Field],
    known: Known,
    name: &'a [u8],
}

impl<'a> Iterator for Values<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        while let [field, rest @ ..] = self.list {
            self.list = rest;
            if self.fields.matches(field, self.known, self.name) {
                return Some(self.fields.value_of(field));
            }
        }
        None
    }
}

/// One bit of a character class per byte.
pub(crate) const fn class(punctuation: &[u8]) -> [bool; 256] {
    let mut table = [false; 256];
    let mut at = 0;
    while at < 256 {
        table[at] = (at as u8).is_ascii_alphanumeric();
        at += 1;
    }
    let mut at = 0;
    while at < punctuation.len() {
        table[punctuation[at] as usize] = true;
        at += 1;
    }
    table
}

static TOKEN: [bool; 256] = class(b"!#$%&'*+-.^_`|~");

/// Bytes of a token (RFC 9110, section 5.6.2).
pub(crate) fn is_tchar(byte: u8) -> bool {
    TOKEN[usize::from(byte)]
}

/// Field content: visible, obs-text, space and tab (RFC 9110, section 5.5), with no space at either end.
pub(crate) fn is_value(value: &[u8]) -> bool {
    let blank = |byte: Option<&u8>| matches!(byte, Some(b' ' | b'\t'));
    // Without an early exit the compiler looks at many bytes at once.
    let fine = value.iter().fold(true, |fine, &b| fine & ((b == b'\t') | ((b >= 0x20) & (b != 0x7f))));
    fine && !blank(value.first()) && !blank(value.last())
}

/// The members of a comma-separated list, trimmed, without empty ones.
pub fn list_members(value: &[u8]) -> impl Iterator<Item = &[u8]> {
    value.split(|&b| b == b',').map(<[u8]>::trim_ascii).filter(|member| !member.is_empty())
}
