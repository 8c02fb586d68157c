//! Finds a head in the connection's buffer and takes it out of there.
//!
//! The end of the head is searched line by line from where the last search stopped, so a head that comes in single bytes
//! is scanned once, and parsed once when it is complete. The rules are in `strict`.

use std::mem::MaybeUninit;

use bytes::{Buf, BytesMut};

use super::explain;
use super::fields::{Field, H1Fields};
use super::known::{self, Known};
use super::message::{Asked, H1Request, H1Response, Span, TargetForm};
use super::names;
use super::strict::{self, Refusal};
use super::{CEILING, Limits};

/// The most header lines that [`Limits::fields`] can allow: the array on the stack.
pub const MAX_FIELDS: usize = 256;

/// Up to this size a head with bytes behind it is copied out: cheaper than splitting the buffer, which would make it
/// shared, and it leaves room for edits.
const COPY_OUT: usize = 4096;

/// Room behind a copied head for trace context, request id and the like.
const EDIT_ROOM: usize = 256;

/// Interim responses before the final one; a server needs one or two.
pub const MAX_INTERIM: u8 = 16;

/// What a parser found.
#[derive(Debug)]
pub enum Parsed<H> {
    /// Read more into the same buffer and try again.
    NeedMore,
    /// The head is out of the buffer; what is left there follows it.
    Head(H),
}

/// Where the search for the blank line stands.
#[derive(Debug, Default)]
pub(super) struct Scan {
    /// First byte not looked at.
    at: usize,
    /// Start of the line that `at` is in.
    line: usize,
    /// Complete lines so far.
    pub(super) lines: usize,
}

impl Scan {
    /// The length of the head, once its blank line is there.
    pub(super) fn head_len(&mut self, buf: &[u8], limits: &Limits) -> Result<Option<usize>, Refusal> {
        let max = limits.head.min(CEILING);
        while let Some(found) = memchr::memchr(b'\n', &buf[self.at..]) {
            let lf = self.at + found;
            // Sizes first, so that the verdict does not depend on how the bytes were split.
            if self.lines == 0 && lf - self.line > limits.start_line {
                return Err(Refusal::StartLineTooLong);
            }
            if lf >= max {
                return Err(Refusal::HeadTooLarge);
            }
            if lf == self.line || buf[lf - 1] != b'\r' {
                return Err(Refusal::BareLf);
            }
            let blank = lf - 1 == self.line;
            (self.at, self.line) = (lf + 1, lf + 1);
            if blank {
                return Ok(Some(lf + 1));
            }
            self.lines += 1;
            if self.lines > limits.fields.min(MAX_FIELDS) + 1 {
                return Err(Refusal::TooManyFields);
            }
        }
        self.at = buf.len();
        if self.lines == 0 && buf.len() > limits.start_line {
            return Err(Refusal::StartLineTooLong);
        }
        if buf.len() >= max { Err(Refusal::HeadTooLarge) } else { Ok(None) }
    }
}

/// Takes the head out of the connection's buffer. A buffer with nothing else in it moves as a whole, allocation and all.
pub(super) fn take_head(buf: &mut BytesMut, len: usize, fields: &mut H1Fields) {
    if buf.len() == len {
        fields.buf = std::mem::take(buf);
        return;
    }
    if len > COPY_OUT {
        fields.buf = buf.split_to(len);
        return;
    }
    fields.buf.reserve(len + EDIT_ROOM);
    fields.buf.extend_from_slice(&buf[..len]);
    buf.advance(len);
}

type Slots<'b> = [MaybeUninit<httparse::Header<'b>>; MAX_FIELDS];

/// Ranges for httparse's slices of `base`.
fn ranges(fields: &mut H1Fields, base: &[u8], headers: &[httparse::Header<'_>]) {
    let start_of = |part: &[u8]| (part.as_ptr() as usize).wrapping_sub(base.as_ptr() as usize) as u16;
    for header in headers {
        let (name, name_len) = (start_of(header.name.as_bytes()), header.name.len() as u16);
        let known = Known::of(header.name.as_bytes());
        // An empty value may point anywhere: it then starts right behind the colon.
        let value = if header.value.is_empty() { name + name_len + 1 } else { start_of(header.value) };
        let value_len = header.value.len() as u16;
        fields.list.push(Field { name, name_len, value, value_len, known, arrived: true, whole: true });
        fields.present |= known::bits(header.name.as_bytes(), known);
    }
}

/// Whether each line of a head ends in CRLF, which httparse does not ask for. The head is `head_len` bytes, its
/// lines are `fields`.
fn has_only_crlf(buf: &[u8], head_len: usize, fields: &H1Fields) -> bool {
    let starts = fields.list.iter().map(|field| usize::from(field.name));
    head_len >= 4
        && starts.chain([head_len]).all(|at| buf.get(..at).is_some_and(|b| b.ends_with(b"\r\n")))
        && buf[..head_len].ends_with(b"\r\n\r\n")
}

/// Whether a head that httparse took is within the limits; `fields` are those of the whole head.
fn is_within(limits: &Limits, head_len: usize, fields: &H1Fields) -> bool {
    // Size first: in a larger head the ranges have overflown.
    head_len <= limits.head.min(CEILING) && line_len(fields, head_len) < limits.start_line
}

/// The length of the start line, without CRLF, of a head as it arrived.
fn line_len(fields: &H1Fields, head_len: usize) -> usize {
    fields.list.first().map_or(head_len, |first| usize::from(first.name) + 2).saturating_sub(4)
}

/// Parses request heads of one connection.
#[derive(Debug)]
pub struct RequestParser {
    limits: Limits,
    scan: Scan,
    skipped_blank: bool,
}

impl RequestParser {
    /// A parser for one downstream connection.
    pub fn new(limits: Limits) -> Self {
        Self { limits, scan: Scan::default(), skipped_blank: false }
    }

    /// Whether no byte of the next request has been seen: the connection is idle.
    pub fn is_idle(&self) -> bool {
        self.scan.at == 0
    }

    /// Looks for a whole head at the start of `buf`. Between calls that answer `NeedMore`, only append to it.
    ///
    /// # Errors
    /// When the head breaks a rule; the connection is then to be closed after the answer.
    pub fn parse(&mut self, buf: &mut BytesMut) -> Result<Parsed<H1Request>, Refusal> {
        if buf.len() == self.scan.at {
            return Ok(Parsed::NeedMore);
        }
        // Nearly every head arrives in one piece and without fault: then it is parsed at once. Whatever is otherwise is
        // left to the search for its end, whose verdicts do not depend on how the bytes were split.
        if self.scan.at == 0
            && let Some((line, fields, len)) = whole_request(buf, &self.limits)
        {
            self.skipped_blank = false;
            return take_request(line, fields, buf, len).map(Parsed::Head);
        }
        // RFC 9112, section 2.2: one empty line before the request line is tolerated (old clients end a body so).
        if !self.skipped_blank && self.scan.at <= 1 && buf.first() == Some(&b'\r') {
            match buf.get(1) {
                None => return Ok(Parsed::NeedMore),
                Some(b'\n') => {
                    buf.advance(2);
                    self.skipped_blank = true;
                }
                Some(_) => return Err(Refusal::BareCr),
            }
        }
        let Some(len) = self.scan.head_len(buf, &self.limits)? else { return Ok(Parsed::NeedMore) };
        if self.scan.lines == 0 {
            return Err(Refusal::RequestLine);
        }
        self.scan = Scan::default();
        self.skipped_blank = false;
        let mut fields = H1Fields::spare();
        let (line, _) = read_request(&buf[..len], self.limits.fields, &mut fields)?;
        take_request(line, fields, buf, len).map(Parsed::Head)
    }
}

/// What a request line said, its words in `fields.line`.
struct RequestLine {
    method: Span,
    path: Span,
    authority: Span,
    form: TargetForm,
    scheme: &'static str,
    minor: u8,
}

fn whole_request(buf: &[u8], limits: &Limits) -> Option<(RequestLine, H1Fields, usize)> {
    let mut fields = H1Fields::spare();
    let (line, len) = read_request(buf, limits.fields, &mut fields).ok()?;
    // httparse skips any number of empty lines.
    let fine = !matches!(buf.first(), Some(b'\r' | b'\n'))
        && has_only_crlf(buf, len, &fields)
        && is_within(limits, len, &fields);
    fine.then_some((line, fields, len))
}

/// Reads the head at the start of `buf`; answers with its length, too.
fn read_request(
    buf: &[u8],
    max_fields: usize,
    fields: &mut H1Fields,
) -> Result<(RequestLine, usize), Refusal> {
    let mut slots: Slots<'_> = [const { MaybeUninit::uninit() }; MAX_FIELDS];
    let slots = &mut slots[..max_fields.min(MAX_FIELDS)];
    let mut parsed = httparse::Request::new(&mut []);
    let len = match parsed.parse_with_uninit_headers(buf, slots) {
        Ok(httparse::Status::Complete(len)) => len,
        Ok(httparse::Status::Partial) => return Err(Refusal::RequestLine),
        Err(error) => return Err(explain::head(buf, error, true)),
    };
    let (Some(method), Some(path), Some(minor)) = (parsed.method, parsed.path, parsed.version) else {
        return Err(Refusal::RequestLine);
    };
    if method.len() > 64 {
        return Err(Refusal::Method);
    }
    if names::is_method_variant(method.as_bytes()) {
        return Err(Refusal::MethodCase);
    }
    let target = strict::target(method.as_bytes(), path.as_bytes())?;
    ranges(fields, buf, parsed.headers);
    let mut put = |text| fields.put_part(text).map_err(|_| Refusal::HeadTooLarge);
    let method = put(method)?;
    let (start, _) = put(path)?;
    let span =
        |range: &std::ops::Range<usize>| Span { start: start + range.start as u16, len: range.len() as u16 };
    let line = RequestLine {
        method: Span { start: method.0, len: method.1 },
        path: span(&target.path),
        authority: span(&target.authority),
        form: target.form,
        scheme: target.scheme,
        minor,
    };
    Ok((line, len))
}

/// Takes the head, which was read, out of the connection's buffer, and checks what its lines say together.
fn take_request(
    line: RequestLine,
    mut fields: H1Fields,
    buf: &mut BytesMut,
    len: usize,
) -> Result<H1Request, Refusal> {
    let line_len = line_len(&fields, len);
    take_head(buf, len, &mut fields);
    let seen = strict::survey(&mut fields, true)?;
    let host = seen.host.map(|at| fields.list[at]);
    let named = fields.part(line.authority.start, line.authority.len).as_bytes();
    let host = host.as_ref().map(|field| fields.value_of(field));
    strict::host(host, line.minor, line.form, named)?;
    let mut authority = line.authority;
    if let (Some(host), 0) = (seen.host, authority.len) {
        let (value, len) = (fields.list[host].value, fields.list[host].value_len);
        let (value, len) = (usize::from(value), usize::from(len));
        // Split borrow: the text goes from one buffer of the head into the other.
        let H1Fields { buf, line, .. } = &mut fields;
        let text = std::str::from_utf8(&buf[value..value + len]).map_err(|_| Refusal::HostInvalid)?;
        authority = Span { start: line.len() as u16, len: len as u16 };
        line.push_str(text);
    }
    let is_connect = line.form == TargetForm::Authority;
    let framing = strict::request_framing(&seen, line.minor, is_connect)?;
    let mut request = H1Request {
        fields,
        method: line.method,
        path: line.path,
        authority,
        form: line.form,
        minor: line.minor,
        scheme: line.scheme,
        framing,
        new_authority: false,
        arrived_line: if line.form == TargetForm::Origin && line.minor == 1 { line_len as u16 } else { 0 },
    };
    if line.form == TargetForm::Absolute {
        let asked_options = request.method() == "OPTIONS";
        complete_path(&mut request, asked_options)?;
        replace_host(&mut request)?;
    }
    Ok(request)
}

/// RFC 9112, sections 3.2.1 and 3.2.4: an absolute form without a path means `/`, and for OPTIONS `*`.
fn complete_path(request: &mut H1Request, is_options: bool) -> Result<(), Refusal> {
    let path = match request.path().as_bytes().first() {
        Some(b'/') => return Ok(()),
        Some(_) => format!("/{}", request.path()),
        None if is_options => "*".to_owned(),
        None => "/".to_owned(),
    };
    request.set_path(&path).map_err(|_| Refusal::HeadTooLarge)
}

/// RFC 9112, section 3.2.2: a received Host is ignored, and replaced by the target's.
fn replace_host(request: &mut H1Request) -> Result<(), Refusal> {
    let differs = request.fields.first("host").is_some_and(|host| host != request.authority().as_bytes());
    if differs {
        let authority = request.authority().to_owned();
        request.fields.set("Host", authority).map_err(|_| Refusal::HeadTooLarge)?;
    }
    Ok(())
}

/// Parses response heads of one upstream connection.
#[derive(Debug)]
pub struct ResponseParser {
    limits: Limits,
    scan: Scan,
    interim: u8,
}

impl ResponseParser {
    /// A parser for one upstream connection.
    pub fn new(limits: Limits) -> Self {
        Self { limits, scan: Scan::default(), interim: 0 }
    }

    /// Whether no byte of the next response has been seen.
    pub fn is_idle(&self) -> bool {
        self.scan.at == 0
    }

    /// Looks for a whole head at the start of `buf`. Interim heads (1xx) come out like others: forward them and parse on.
    /// Behind a head whose framing is [`super::Framing::Tunnel`], what is left in `buf` belongs to the tunnel.
    ///
    /// # Errors
    /// When the head breaks a rule; the connection is then to be closed.
    pub fn parse(&mut self, buf: &mut BytesMut, asked: Asked) -> Result<Parsed<H1Response>, Refusal> {
        if buf.len() == self.scan.at {
            return Ok(Parsed::NeedMore);
        }
        let head = match whole_response(buf, &self.limits).filter(|_| self.scan.at == 0) {
            Some((line, fields, len)) => take_response(line, fields, buf, len, asked)?,
            None => {
                let Some(len) = self.scan.head_len(buf, &self.limits)? else { return Ok(Parsed::NeedMore) };
                if self.scan.lines == 0 {
                    return Err(Refusal::StatusLine);
                }
                self.scan = Scan::default();
                let mut fields = H1Fields::spare();
                let (line, _) = read_response(&buf[..len], self.limits.fields, &mut fields)?;
                take_response(line, fields, buf, len, asked)?
            }
        };
        self.interim = if head.is_interim() { self.interim + 1 } else { 0 };
        if self.interim > MAX_INTERIM { Err(Refusal::TooManyInterim) } else { Ok(Parsed::Head(head)) }
    }
}

/// Status and minor version.
type StatusLine = (u16, u8);

fn whole_response(buf: &[u8], limits: &Limits) -> Option<(StatusLine, H1Fields, usize)> {
    let mut fields = H1Fields::spare();
    let (line, len) = read_response(buf, limits.fields, &mut fields).ok()?;
    let fine =
        buf.first() == Some(&b'H') && has_only_crlf(buf, len, &fields) && is_within(limits, len, &fields);
    fine.then_some((line, fields, len))
}

/// Reads the head at the start of `buf`; answers with its length, too.
fn read_response(
    buf: &[u8],
    max_fields: usize,
    fields: &mut H1Fields,
) -> Result<(StatusLine, usize), Refusal> {
    let mut slots: Slots<'_> = [const { MaybeUninit::uninit() }; MAX_FIELDS];
    let slots = &mut slots[..max_fields.min(MAX_FIELDS)];
    let mut parsed = httparse::Response::new(&mut []);
    let config = httparse::ParserConfig::default();
    let len = match config.parse_response_with_uninit_headers(&mut parsed, buf, slots) {
        Ok(httparse::Status::Complete(len)) => len,
        Ok(httparse::Status::Partial) => return Err(Refusal::StatusLine),
        Err(error) => return Err(explain::head(buf, error, false)),
    };
    let (Some(minor), Some(status)) = (parsed.version, parsed.code) else { return Err(Refusal::StatusLine) };
    if status < 100 {
        return Err(Refusal::StatusLine);
    }
    ranges(fields, buf, parsed.headers);
    Ok(((status, minor), len))
}

/// Takes the head, which was read, out of the connection's buffer, and checks what its lines say together.
fn take_response(
    (status, minor): StatusLine,
    mut fields: H1Fields,
    buf: &mut BytesMut,
    len: usize,
    asked: Asked,
) -> Result<H1Response, Refusal> {
    // "HTTP/1.1 200 OK": the phrase starts at 13, and httparse has checked its bytes.
    let end = line_len(&fields, len);
    take_head(buf, len, &mut fields);
    let reason = Span { start: 13.min(end) as u16, len: end.saturating_sub(13) as u16 };
    let seen = strict::survey(&mut fields, false)?;
    let framing = strict::response_framing(&seen, minor, status, asked)?;
    // A 204 has no body, whatever its framing says (RFC 9110, section 15.3.5). Its server may think otherwise: nothing that
    // follows on this connection can be trusted.
    fields.options.close |= status == 204 && seen.announces_body();
    // Without a phrase there may be no space after the status: ours has one.
    let arrived_line = if minor == 1 && reason.len > 0 { end as u16 } else { 0 };
    Ok(H1Response { fields, status, reason, minor, framing, arrived_line })
}

/// The lines of a trailer section, blank line included, in a buffer of their own; forbidden ones are dropped.
pub(super) fn trailers(buf: &mut BytesMut, len: usize, max_fields: usize) -> Result<H1Fields, Refusal> {
    let mut fields = H1Fields::spare();
    let mut slots = [httparse::EMPTY_HEADER; MAX_FIELDS];
    match httparse::parse_headers(&buf[..len], &mut slots[..max_fields.min(MAX_FIELDS)]) {
        Ok(httparse::Status::Complete((_, headers))) => ranges(&mut fields, buf, headers),
        Err(httparse::Error::TooManyHeaders) => return Err(Refusal::TrailersTooLarge),
        _ => return Err(Refusal::Trailer),
    }
    take_head(buf, len, &mut fields);
    for at in 0..fields.list.len() {
        if names::is_forbidden_trailer(fields.name_of(&fields.list[at])) {
            fields.list[at].name_len = 0;
        }
    }
    Ok(fields)
}
