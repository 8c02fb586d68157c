//! The header section of one message: the bytes that arrived, ranges over them, and edits behind them in the same buffer.
//!
//! Reads see edits. A range is 16 bits, so bytes and edits together stay below 64 KiB. What a field *means* for framing
//! is decided in `strict`. The memory of heads that are done is used again by those that come, on each thread.

use std::cell::RefCell;

use bytes::BytesMut;
use outrigger_model::names;

use super::known::{self, Known};

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
    /// The line is in the buffer as it is sent, CRLF included: it arrived so, or was written so.
    pub(super) whole: bool,
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
    pub(super) list: Vec<Field>,
    /// Method, target and authority, which are asked for as text again and again.
    pub(super) line: String,
    /// Bits of the known names and prefixes that are (or once were) in the list.
    pub(super) present: u64,
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

/// What a head leaves to the next one.
#[derive(Default)]
struct Spare {
    buf: BytesMut,
    list: Vec<Field>,
    line: String,
}

/// Spares that a thread keeps, and their limits.
const MAX_SPARES: usize = 64;
const MAX_SPARE_BYTES: usize = 4096;
const MAX_SPARE_FIELDS: usize = 64;

thread_local! {
    static SPARES: RefCell<Vec<Spare>> = const { RefCell::new(Vec::new()) };
}

impl Drop for H1Fields {
    fn drop(&mut self) {
        if self.list.capacity() == 0 {
            return;
        }
        let mut spare = Spare {
            buf: std::mem::take(&mut self.buf),
            list: std::mem::take(&mut self.list),
            line: std::mem::take(&mut self.line),
        };
        // A larger buffer is a connection's, or a part of one.
        if spare.buf.capacity() > MAX_SPARE_BYTES {
            spare.buf = BytesMut::new();
        }
        if spare.list.capacity() > MAX_SPARE_FIELDS || spare.line.capacity() > MAX_SPARE_BYTES {
            return;
        }
        spare.buf.clear();
        spare.list.clear();
        spare.line.clear();
        // Without the pool (the thread is ending) it is simply freed.
        let _ = SPARES.try_with(|spares| {
            let mut spares = spares.borrow_mut();
            if spares.len() < MAX_SPARES {
                spares.push(spare);
            }
        });
    }
}

impl H1Fields {
    /// Fields of our own making; room for a usual head.
    pub fn new() -> Self {
        let mut fields = Self::spare();
        fields.buf.reserve(512);
        fields
    }

    /// No fields, in memory of a head that is done.
    pub(super) fn spare() -> Self {
        let spare = SPARES.try_with(|spares| spares.borrow_mut().pop()).ok().flatten();
        let Spare { buf, list, line } = spare.unwrap_or_else(|| Spare {
            list: Vec::with_capacity(16),
            line: String::with_capacity(128),
            ..Spare::default()
        });
        Self { buf, list, line, present: 0, options: ConnectionOptions::default() }
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
    #[inline]
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
    #[inline(always)] // of a constant name that we know, only a look at one bit is left, nearly always
    pub fn first<'a>(&'a self, name: &'a str) -> Option<&'a [u8]> {
        let known = Known::of(name.as_bytes());
        if known != Known::Other && self.present & known.bit() == 0 {
            return None;
        }
        self.find(known, name.as_bytes()).map(|at| self.value_of(&self.list[at]))
    }

    /// The first line of a name.
    fn find(&self, known: Known, name: &[u8]) -> Option<usize> {
        self.list.iter().position(|field| self.matches(field, known, name))
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
    #[inline(always)]
    pub fn set(&mut self, name: &str, value: impl AsRef<[u8]>) -> Result<(), EditError> {
        self.set_known(Known::of(name.as_bytes()), name, value.as_ref())
    }

    fn set_known(&mut self, known: Known, name: &str, value: &[u8]) -> Result<(), EditError> {
        if !is_value(value) {
            return Err(EditError::Value);
        }
        let absent = known != Known::Other && self.present & known.bit() == 0;
        let found = if absent { None } else { self.find(known, name.as_bytes()) };
        let Some(at) = found else { return self.append_known(known, name.as_bytes(), value) };
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
        (field.value, field.value_len) = (start, len);
        (field.arrived, field.whole) = (false, false);
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
        if !is_value(value) {
            return Err(EditError::Value);
        }
        self.append_known(Known::of(name), name, value)
    }

    /// Adds a line whose value was looked at.
    fn append_known(&mut self, known: Known, name: &[u8], value: &[u8]) -> Result<(), EditError> {
        // A recognised name is a token.
        if known == Known::Other && (name.is_empty() || !name.iter().all(|&b| is_tchar(b))) {
            return Err(EditError::Name);
        }
        self.room(name.len() + value.len() + 4)?;
        self.present |= known::bits(name, known);
        self.buf.reserve(name.len() + value.len() + 4);
        let (name, name_len) = self.put(name);
        self.buf.extend_from_slice(b": ");
        let (value, value_len) = self.put(value);
        self.buf.extend_from_slice(b"\r\n");
        self.list.push(Field { name, name_len, value, value_len, known, arrived: false, whole: true });
        Ok(())
    }

    /// Removes all lines of `name`; says whether there was one.
    #[inline(always)]
    pub fn remove(&mut self, name: &str) -> bool {
        let known = Known::of(name.as_bytes());
        if known != Known::Other && self.present & known.bit() == 0 {
            return false;
        }
        self.remove_if(|fields, field| fields.matches(field, known, name.as_bytes()))
    }

    /// Removes all lines whose name starts with `prefix` (any case); says whether there was one.
    #[inline]
    pub fn remove_prefix(&mut self, prefix: &str) -> bool {
        let prefix = prefix.as_bytes();
        let bit = known::prefix_bit(prefix);
        if bit != 0 && self.present & bit == 0 {
            return false;
        }
        self.remove_if(|fields, field| {
            fields.name_of(field).get(..prefix.len()).is_some_and(|start| start.eq_ignore_ascii_case(prefix))
        })
    }

    /// Whether a line's name starts with `prefix` (any case).
    #[inline]
    pub fn has_prefix(&self, prefix: &str) -> bool {
        let prefix = prefix.as_bytes();
        let bit = known::prefix_bit(prefix);
        let starts = |(name, _): (&[u8], &[u8])| {
            name.get(..prefix.len()).is_some_and(|start| start.eq_ignore_ascii_case(prefix))
        };
        (bit == 0 || self.present & bit != 0) && self.iter().any(starts)
    }

    /// Removes what only looks like a name of ours.
    #[inline]
    pub fn remove_lookalikes(&mut self) {
        if self.present & known::ANY_LOOKALIKE != 0 {
            self.remove_if(|fields, field| names::is_lookalike_of_ours(fields.name_of(field)));
        }
    }

    /// Removes what only looks like one of these names.
    pub fn remove_lookalikes_of(&mut self, own: &[String]) {
        self.remove_if(|fields, field| {
            let name = fields.name_of(field);
            own.iter().any(|own| names::is_lookalike_of(name, own.as_bytes()))
        });
    }

    /// Removes these names, and what looks like them.
    pub fn remove_alike(&mut self, own: &[String]) {
        self.remove_if(|fields, field| {
            own.iter().any(|own| names::are_alike(fields.name_of(field), own.as_bytes()))
        });
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

    /// Bytes that arrived, and those of edits behind them.
    pub fn size(&self) -> usize {
        self.buf.len()
    }

    /// What a copy takes in memory.
    pub fn weight(&self) -> usize {
        self.buf.len() + self.line.len() + self.list.len() * size_of::<Field>()
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

    /// Takes the buffer, emptied, for the next read.
    pub fn take_buffer(&mut self) -> BytesMut {
        self.buf.clear();
        std::mem::take(&mut self.buf)
    }

    /// Whether the buffer is one that a connection had read into: it goes back to where that came from.
    pub fn has_lent_buffer(&self) -> bool {
        self.buf.capacity() > MAX_SPARE_BYTES
    }

    /// A part of the start line.
    pub(super) fn part(&self, start: u16, len: u16) -> &str {
        self.line.get(usize::from(start)..usize::from(start) + usize::from(len)).unwrap_or_default()
    }

    /// Adds a part of the start line; both numbers fit.
    pub(super) fn put_part(&mut self, text: &str) -> Result<(u16, u16), EditError> {
        if self.line.len() + text.len() > usize::from(u16::MAX) {
            return Err(EditError::TooLarge);
        }
        let start = self.line.len() as u16;
        self.line.push_str(text);
        Ok((start, text.len() as u16))
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
