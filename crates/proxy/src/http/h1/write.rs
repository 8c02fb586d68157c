//! Puts a head on the wire in one pass: lines as they arrived are copied in runs, hop-by-hop fields stay behind, and the
//! framing and connection fields are ours (RFC 9110, section 7.6.1; RFC 9112, sections 6 and 9).
//!
//! Nothing is added that the message does not need: no Via, Date or Server.

use bytes::BytesMut;

use super::Framing;
use super::fields::{Field, H1Fields, list_members};
use super::grammar;
use super::known::{HOP_BY_HOP, Known};
use super::message::{H1Request, H1Response, TargetForm};

const FRAMING: u64 = (1 << Known::ContentLength as u8) | (1 << Known::TransferEncoding as u8);

/// What we say about the connection.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Persist {
    /// Nothing: HTTP/1.1 persists.
    #[default]
    Implied,
    /// `Connection: close`.
    Close,
    /// `Connection: keep-alive`, for an HTTP/1.0 peer that asked for it.
    KeepAlive,
}

impl Persist {
    /// For a response to a client of HTTP/1.`minor`.
    pub fn downstream(minor: u8, keep: bool) -> Self {
        match (keep, minor) {
            (false, _) => Self::Close,
            (true, 0) => Self::KeepAlive,
            (true, _) => Self::Implied,
        }
    }
}

/// How a head is to be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct How {
    /// The framing that the body will have on this connection.
    pub framing: Framing,
    pub persist: Persist,
    /// The upgrade that the head asks for, or answers, is forwarded.
    pub upgrade: bool,
}

impl How {
    /// A message on a connection that persists.
    pub fn framed(framing: Framing) -> Self {
        Self { framing, persist: Persist::Implied, upgrade: false }
    }
}

/// The framing of a forwarded response on a connection to a client of HTTP/1.`minor`: 1.0 knows no chunks, and for 1.1 a
/// body until close becomes chunked, so that its connection lives on.
pub fn downstream_framing(framing: Framing, minor: u8) -> Framing {
    match framing {
        Framing::Chunked if minor == 0 => Framing::Close,
        Framing::Close if minor > 0 => Framing::Chunked,
        framing => framing,
    }
}

/// A head that must not leave: a part of it has a control byte, which its reader could take for the end of a line. Whatever
/// brought it there, the writers look once more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a part of the head has a control byte, which HTTP/1 cannot carry (RFC 9112, section 2.2)")]
pub struct Unwritable;

/// Writes a request head.
///
/// # Errors
/// When it must not leave; `out` is then as it was.
pub fn request(head: &H1Request, how: How, out: &mut BytesMut) -> Result<(), Unwritable> {
    whole(out, |out| try_request(head, how, out))
}

/// All of a head or nothing.
pub(crate) fn whole(
    out: &mut BytesMut,
    write: impl FnOnce(&mut BytesMut) -> Result<(), Unwritable>,
) -> Result<(), Unwritable> {
    let start = out.len();
    let written = write(out);
    if written.is_err() {
        out.truncate(start);
    }
    written
}

fn try_request(head: &H1Request, how: How, out: &mut BytesMut) -> Result<(), Unwritable> {
    out.reserve(head.fields.buf.len() + 128);
    let mut skip = HOP_BY_HOP;
    let own_host = head.new_authority || !head.fields.has(Known::Host);
    let arrived_line = if own_host { 0 } else { usize::from(head.arrived_line) };
    if arrived_line == 0 {
        let target = if head.form == TargetForm::Authority { head.authority() } else { head.path() };
        request_line(head.method().as_bytes(), target.as_bytes(), out)?;
    }
    if own_host {
        skip |= Known::Host.bit();
        // RFC 9112, section 3.2: 1.1 needs a Host, even an empty one. It goes first where the old one's place is unknown.
        line(b"Host", head.authority().as_bytes(), out)?;
    }
    if head.minor == 0 {
        skip |= Known::Expect.bit(); // RFC 9110, section 10.1.1: void in 1.0, but we send 1.1
    }
    let own_framing = framing_skip(&head.fields, how.framing == head.framing, &mut skip);
    copy(&head.fields, arrived_line, skip, out)?;
    if own_framing {
        framing(how.framing, out);
    }
    let upgrade = how.upgrade && copy_upgrade(&head.fields, out)?;
    let te = wants_trailers(&head.fields);
    if te {
        out.extend_from_slice(b"TE: trailers\r\n");
    }
    connection(how.persist, upgrade, te, out);
    out.extend_from_slice(b"\r\n");
    Ok(())
}

/// Writes a response head, interim ones too (they say nothing about framing or connection).
///
/// # Errors
/// When it must not leave; `out` is then as it was.
pub fn response(head: &H1Response, how: How, out: &mut BytesMut) -> Result<(), Unwritable> {
    whole(out, |out| try_response(head, how, out))
}

fn try_response(head: &H1Response, how: How, out: &mut BytesMut) -> Result<(), Unwritable> {
    out.reserve(head.fields.buf.len() + 128);
    if head.arrived_line == 0 {
        status_line(head.status(), head.reason(), out)?;
    }
    let mut skip = HOP_BY_HOP;
    // HEAD and 304 describe the body that a GET would have: those fields pass as they are.
    let describes = how.framing == Framing::None && head.framing == Framing::None;
    let bodyless = is_bodyless(head.status()) || how.framing == Framing::Tunnel;
    let own_framing = match bodyless {
        true => {
            skip |= FRAMING;
            false
        }
        false => framing_skip(&head.fields, how.framing == head.framing, &mut skip) && !describes,
    };
    copy(&head.fields, usize::from(head.arrived_line), skip, out)?;
    if own_framing {
        // An answer of ours to HEAD: its length is that of the body that a GET would have (RFC 9110, section 9.3.2).
        let unsent = how.framing == Framing::None && matches!(head.framing, Framing::Length(_));
        framing(if unsent { head.framing } else { how.framing }, out);
    }
    let upgrade = how.upgrade && copy_upgrade(&head.fields, out)?;
    if !head.is_interim() {
        connection(how.persist, upgrade, false, out);
    }
    out.extend_from_slice(b"\r\n");
    Ok(())
}

/// 1xx and 204 never have Content-Length or Transfer-Encoding (RFC 9112, section 6.1; RFC 9110, section 8.6).
pub(crate) fn is_bodyless(status: u16) -> bool {
    status < 200 || status == 204
}

pub(crate) fn request_line(method: &[u8], target: &[u8], out: &mut BytesMut) -> Result<(), Unwritable> {
    if method.contains(&b' ') || target.contains(&b' ') {
        return Err(Unwritable);
    }
    clean(method)?;
    clean(target)?;
    out.extend_from_slice(method);
    out.extend_from_slice(b" ");
    out.extend_from_slice(target);
    out.extend_from_slice(b" HTTP/1.1\r\n");
    Ok(())
}

pub(crate) fn status_line(status: u16, reason: &[u8], out: &mut BytesMut) -> Result<(), Unwritable> {
    clean(reason)?;
    let digit = |number: u16| b'0' + (number % 10) as u8;
    out.extend_from_slice(b"HTTP/1.1 ");
    out.extend_from_slice(&[digit(status / 100), digit(status / 10), digit(status), b' ']);
    out.extend_from_slice(reason);
    out.extend_from_slice(b"\r\n");
    Ok(())
}

/// One header line.
pub(crate) fn line(name: &[u8], value: &[u8], out: &mut BytesMut) -> Result<(), Unwritable> {
    clean(name)?;
    clean(value)?;
    out.extend_from_slice(name);
    out.extend_from_slice(b": ");
    out.extend_from_slice(value);
    out.extend_from_slice(b"\r\n");
    Ok(())
}

/// No control byte but the tab.
#[inline]
pub(crate) fn clean(text: &[u8]) -> Result<(), Unwritable> {
    // Without an early exit the compiler looks at many bytes at once.
    let fine = text.iter().fold(true, |fine, &b| fine & ((b == b'\t') | ((b >= 0x20) & (b != 0x7f))));
    if fine { Ok(()) } else { Err(Unwritable) }
}

/// The field that announces `framing`, if one does.
pub(crate) fn framing(framing: Framing, out: &mut BytesMut) {
    match framing {
        Framing::Length(length) => {
            out.extend_from_slice(b"content-length: ");
            decimal(length, out);
            out.extend_from_slice(b"\r\n");
        }
        Framing::Chunked => out.extend_from_slice(b"transfer-encoding: chunked\r\n"),
        Framing::None | Framing::Close | Framing::Tunnel => {}
    }
}

fn decimal(mut number: u64, out: &mut BytesMut) {
    let mut digits = [0u8; 20];
    let mut at = digits.len();
    loop {
        at -= 1;
        digits[at] = b'0' + (number % 10) as u8;
        number /= 10;
        if number == 0 {
            break;
        }
    }
    out.extend_from_slice(&digits[at..]);
}

/// The `Connection` field, if something is to be said.
pub(crate) fn connection(persist: Persist, upgrade: bool, te: bool, out: &mut BytesMut) {
    if persist == Persist::Implied && !upgrade && !te {
        return;
    }
    let options = [
        (persist == Persist::Close, "close"),
        (persist == Persist::KeepAlive, "keep-alive"),
        (upgrade, "Upgrade"),
        (te, "TE"), // RFC 9110, section 10.1.4: whoever sends TE lists it
    ];
    let mut before: &[u8] = b"Connection: ";
    for (_, option) in options.iter().filter(|(said, _)| *said) {
        out.extend_from_slice(before);
        out.extend_from_slice(option.as_bytes());
        before = b", ";
    }
    if before == b", " {
        out.extend_from_slice(b"\r\n");
    }
}

/// Decides on the framing lines: those that arrived stay, spelling and place, where the framing is the same. Says whether
/// ours has to be written.
fn framing_skip(fields: &H1Fields, same: bool, skip: &mut u64) -> bool {
    let mut lines = fields.list.iter().filter(|f| f.known.bit() & FRAMING != 0 && !f.is_removed());
    let keep =
        same && fields.present & FRAMING != 0 && lines.clone().next().is_some() && lines.all(|f| f.arrived);
    if !keep {
        *skip |= FRAMING;
    }
    !keep
}

/// Copies all lines but those in `skip`, and those that arrived and that `Connection` names. Before them goes the start line
/// at the start of the buffer, if `arrived_line` is its length.
fn copy(fields: &H1Fields, arrived_line: usize, skip: u64, out: &mut BytesMut) -> Result<(), Unwritable> {
    let goes = |field: &Field| {
        !field.is_removed()
            && field.known.bit() & skip == 0
            && !(fields.options.names_fields && is_named(fields, field))
    };
    let list = &fields.list;
    // Where the run that is to be copied begins and ends, and whether its lines arrived. Neighbours that arrived together are
    // together in the buffer, with their CRLFs; those that were written one after the other are, too.
    let mut run = (arrived_line > 0).then_some((0, arrived_line, true));
    for field in list {
        let passes = goes(field);
        let (name, end) = (usize::from(field.name), usize::from(field.value) + usize::from(field.value_len));
        if passes && field.whole {
            let follows = |at: usize, arrived: bool| arrived == field.arrived && (arrived || at + 2 == name);
            run = match run {
                Some((from, at, arrived)) if follows(at, arrived) => Some((from, end, arrived)),
                other => {
                    end_run(fields, other, out);
                    Some((name, end, field.arrived))
                }
            };
            continue;
        }
        end_run(fields, run.take(), out);
        if passes {
            line(fields.name_of(field), fields.value_of(field), out)?;
        }
    }
    end_run(fields, run, out);
    Ok(())
}

fn end_run(fields: &H1Fields, run: Option<(usize, usize, bool)>, out: &mut BytesMut) {
    if let Some((from, to, _)) = run {
        out.extend_from_slice(&fields.buf[from..to]);
        out.extend_from_slice(b"\r\n");
    }
}

/// Whether the peer's `Connection` names this line, which came from that peer too. Host and framing fields are ours to
/// decide: naming them is an old trick to have a proxy take them away.
fn is_named(fields: &H1Fields, field: &Field) -> bool {
    const KEPT: u64 = FRAMING | (1 << Known::Host as u8);
    field.arrived
        && field.known.bit() & KEPT == 0
        && fields
            .known(Known::Connection)
            .flat_map(list_members)
            .any(|option| option.eq_ignore_ascii_case(fields.name_of(field)))
}

/// The lines that mean something beyond this connection, without the framing that is this connection's own.
pub(crate) fn end_to_end(fields: &H1Fields) -> impl Iterator<Item = (&[u8], &[u8])> {
    let skip = HOP_BY_HOP | Known::TransferEncoding.bit();
    let goes = move |field: &&Field| {
        !field.is_removed()
            && field.known.bit() & skip == 0
            && !(fields.options.names_fields && is_named(fields, field))
    };
    fields.list.iter().filter(goes).map(|field| (fields.name_of(field), fields.value_of(field)))
}

/// Writes the `Upgrade` lines, unless they offer h2c.
fn copy_upgrade(fields: &H1Fields, out: &mut BytesMut) -> Result<bool, Unwritable> {
    let mut any = false;
    for field in fields.list.iter().filter(|f| f.known == Known::Upgrade && !f.is_removed()) {
        if !grammar::is_h2c(fields.value_of(field)) {
            line(fields.name_of(field), fields.value_of(field), out)?;
            any = true;
        }
    }
    Ok(any)
}

/// `TE` passes as far as it says that trailers are understood.
pub(crate) fn wants_trailers(fields: &H1Fields) -> bool {
    fields.known(Known::Te).flat_map(list_members).any(|coding| coding.eq_ignore_ascii_case(b"trailers"))
}
