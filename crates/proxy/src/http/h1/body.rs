//! Unframes a body in the connection's own buffer (RFC 9112, sections 6 and 7): it lends what is there and copies nothing.
//!
//! `poll` says how many bytes at the start of the buffer are body, `consume` takes them. Chunk extensions are dropped,
//! chunk lines and trailers limited. Who waits for more bytes, and for how long, is the connection's matter.

use bytes::{Buf, Bytes, BytesMut};

use super::fields::{H1Fields, is_tchar};
use super::parse::{Scan, trailers};
use super::strict::Refusal;
use super::{Framing, Limits};

/// What stands at the start of the buffer.
#[derive(Debug)]
pub enum Step {
    /// Read more, or report the end with [`BodyDecoder::eof`].
    NeedMore,
    /// So many bytes of body (at least one): use them, then `consume`.
    Data(usize),
    /// The trailer section; `End` follows.
    Trailers(H1Fields),
    /// The message is complete; what is left in the buffer is the next one.
    End,
}

/// As [`Step`], with the data taken out of the buffer.
#[derive(Debug)]
pub enum Decoded {
    NeedMore,
    Data(Bytes),
    Trailers(H1Fields),
    End,
}

#[derive(Debug)]
enum Expected {
    Length(u64),
    /// In a chunk-size line; the number of its bytes that are known to have no LF.
    ChunkLine(usize),
    ChunkData(u64),
    ChunkEnd,
    Trailers(Scan),
    /// Until the connection ends.
    Raw,
    Done,
}

/// Decodes one body.
#[derive(Debug)]
pub struct BodyDecoder {
    state: Expected,
    limits: Limits,
    extensions: usize,
}

impl BodyDecoder {
    /// For a message with this framing.
    pub fn new(framing: Framing, limits: Limits) -> Self {
        let state = match framing {
            Framing::None | Framing::Length(0) => Expected::Done,
            Framing::Length(length) => Expected::Length(length),
            Framing::Chunked => Expected::ChunkLine(0),
            Framing::Close | Framing::Tunnel => Expected::Raw,
        };
        Self { state, limits, extensions: 0 }
    }

    /// For the next message on the same connection.
    pub fn begin(&mut self, framing: Framing) {
        *self = Self::new(framing, self.limits);
    }

    /// Whether the message is complete.
    pub fn is_done(&self) -> bool {
        matches!(self.state, Expected::Done)
    }

    /// Bytes still to come, where the framing says so.
    pub fn remaining(&self) -> Option<u64> {
        match self.state {
            Expected::Length(left) => Some(left),
            Expected::Done => Some(0),
            _ => None,
        }
    }

    /// What comes next. Takes framing out of `buf`, never data.
    ///
    /// # Errors
    /// When the framing is malformed; the connection cannot be used any further.
    pub fn poll(&mut self, buf: &mut BytesMut) -> Result<Step, Refusal> {
        loop {
            match &mut self.state {
                Expected::Done => return Ok(Step::End),
                Expected::Length(left) | Expected::ChunkData(left) => {
                    let here = usize::try_from(*left).unwrap_or(usize::MAX).min(buf.len());
                    return Ok(if here == 0 { Step::NeedMore } else { Step::Data(here) });
                }
                Expected::Raw => {
                    return Ok(if buf.is_empty() { Step::NeedMore } else { Step::Data(buf.len()) });
                }
                Expected::ChunkLine(scanned) => match chunk_line(buf, scanned, &self.limits)? {
                    None => return Ok(Step::NeedMore),
                    Some((size, extensions)) => {
                        self.extensions += extensions;
                        if self.extensions > self.limits.chunk_extensions {
                            return Err(Refusal::ChunkExtensions);
                        }
                        self.state = if size == 0 {
                            Expected::Trailers(Scan::default())
                        } else {
                            Expected::ChunkData(size)
                        };
                    }
                },
                Expected::ChunkEnd => match buf.get(..2.min(buf.len())) {
                    Some(b"\r\n") => {
                        buf.advance(2);
                        self.state = Expected::ChunkLine(0);
                    }
                    Some(b"" | b"\r") => return Ok(Step::NeedMore),
                    _ => return Err(Refusal::ChunkEnd),
                },
                Expected::Trailers(scan) => {
                    let limits = Limits {
                        head: self.limits.trailers,
                        start_line: self.limits.trailers,
                        ..self.limits
                    };
                    let len = match scan.head_len(buf, &limits) {
                        Ok(Some(len)) => len,
                        Ok(None) => return Ok(Step::NeedMore),
                        Err(Refusal::BareLf) => return Err(Refusal::BareLf),
                        Err(_) => return Err(Refusal::TrailersTooLarge),
                    };
                    self.state = Expected::Done;
                    if len > 2 {
                        return trailers(buf, len, limits.fields).map(Step::Trailers);
                    }
                    buf.advance(2);
                }
            }
        }
    }

    /// Takes `bytes` that `poll` lent, or fewer, out of `buf`.
    pub fn consume(&mut self, buf: &mut BytesMut, bytes: usize) {
        if bytes == buf.len() {
            buf.clear()
        } else {
            buf.advance(bytes)
        }
        self.took(bytes);
    }

    fn took(&mut self, bytes: usize) {
        match &mut self.state {
            Expected::Length(left) => {
                *left = left.saturating_sub(bytes as u64);
                if *left == 0 {
                    self.state = Expected::Done;
                }
            }
            Expected::ChunkData(left) => {
                *left = left.saturating_sub(bytes as u64);
                if *left == 0 {
                    self.state = Expected::ChunkEnd;
                }
            }
            _ => {}
        }
    }

    /// `poll`, with the data split off the buffer (shared, not copied).
    ///
    /// # Errors
    /// As `poll`.
    pub fn decode(&mut self, buf: &mut BytesMut) -> Result<Decoded, Refusal> {
        Ok(match self.poll(buf)? {
            Step::NeedMore => Decoded::NeedMore,
            Step::Trailers(fields) => Decoded::Trailers(fields),
            Step::End => Decoded::End,
            Step::Data(len) => {
                let data = buf.split_to(len).freeze();
                self.took(len);
                Decoded::Data(data)
            }
        })
    }

    /// The peer closed its side, and all that it sent was decoded.
    ///
    /// # Errors
    /// When the message is not complete: it must not be passed on as if it were (RFC 9112, section 8).
    pub fn eof(&mut self) -> Result<(), Refusal> {
        match self.state {
            Expected::Done | Expected::Raw => {
                self.state = Expected::Done;
                Ok(())
            }
            _ => Err(Refusal::UnexpectedEof),
        }
    }
}

/// A chunk-size line at the start of `buf`: the size, and the length of its extensions. Taken out once complete.
fn chunk_line(
    buf: &mut BytesMut,
    scanned: &mut usize,
    limits: &Limits,
) -> Result<Option<(u64, usize)>, Refusal> {
    let Some(found) = memchr::memchr(b'\n', &buf[*scanned..]) else {
        *scanned = buf.len();
        return if buf.len() > limits.chunk_line { Err(Refusal::ChunkLine) } else { Ok(None) };
    };
    let lf = *scanned + found;
    if lf > limits.chunk_line {
        return Err(Refusal::ChunkLine);
    }
    if lf == 0 || buf[lf - 1] != b'\r' {
        return Err(Refusal::BareLf);
    }
    let line = &buf[..lf - 1];
    let digits = line.iter().take_while(|b| b.is_ascii_hexdigit()).count();
    if digits == 0 || digits > 16 {
        return Err(Refusal::ChunkSize);
    }
    let size = line[..digits].iter().fold(0u64, |sum, &digit| (sum << 4) | u64::from(hex(digit)));
    // A size near 2^64 wraps in somebody's signed arithmetic; nobody sends one.
    if size > i64::MAX as u64 {
        return Err(Refusal::ChunkSize);
    }
    let extensions = line.len() - digits;
    chunk_extensions(&line[digits..])?;
    buf.advance(lf + 1);
    Ok(Some((size, extensions)))
}

fn hex(digit: u8) -> u8 {
    match digit {
        b'0'..=b'9' => digit - b'0',
        _ => (digit | 0x20) - b'a' + 10,
    }
}

/// RFC 9112, section 7.1.1: `*( BWS ";" BWS name [ BWS "=" BWS value ] )`. Looked at only to refuse what is none.
fn chunk_extensions(rest: &[u8]) -> Result<(), Refusal> {
    let rest = match rest.trim_ascii_start() {
        [] if rest.is_empty() => return Ok(()),
        [b';', name @ ..] => name.trim_ascii_start(),
        _ => return Err(Refusal::ChunkLine),
    };
    let starts_with_name = rest.first().is_some_and(|&b| is_tchar(b));
    if starts_with_name && rest.iter().all(|&b| b == b'\t' || (b >= 0x20 && b != 0x7f)) {
        Ok(())
    } else {
        Err(Refusal::ChunkLine)
    }
}
