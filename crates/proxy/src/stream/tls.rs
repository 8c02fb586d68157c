//! TLS of either end over a socket, without buffers of a session's own: one between two records owns none.
//!
//! rustls shakes hands; then keys and records are ours (`records`), unless it is TLS 1.2 (`session`). What the socket gives goes
//! into a buffer of the thread, which is given back when all of it was used; what is to be sent is encrypted into
//! another, which is given back when the socket has taken it.
//!
//! ```text
//! poll_read:  plain text left over? -> records in the buffer? -> socket
//! poll_write: ciphertext left over? -> socket; then encrypt -> socket, as far as it takes it at once
//! ```

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use rustls::pki_types::ServerName;
use rustls::{ClientConfig, Error, ServerConfig};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use super::region::{READ_SIZE, Region, WRITE_SIZE};

mod records;
mod session;

use records::Records;
#[cfg(any(test, fuzzing))]
pub use records::fuzzing::fuzz_records;
pub use session::Peer;
use session::Session;

/// Plain text that one write takes: several records, which leave together.
const WRITE_MOST: usize = 64 * 1024;

/// What several slices are joined to, at most: one record.
const JOINED: usize = 16 * 1024;

/// A TLS connection.
pub struct Tls {
    tcp: TcpStream,
    layer: Layer,
    /// Ciphertext that was not processed.
    incoming: Option<Region>,
    /// All whole records of `incoming` were processed.
    starved: bool,
    /// The last read from the socket brought much.
    bulk: bool,
    /// Plain text for which no reader had room, and how much of it was read since.
    plain: Vec<u8>,
    plain_at: usize,
    /// Ciphertext that the socket has not taken.
    outgoing: Option<Region>,
    /// The peer has said that it is done.
    peer_closed: bool,
    /// We have.
    closed: bool,
    /// What ended the session: reads and writes say so from then on.
    failure: Option<Box<Error>>,
}

/// Who makes and reads records.
#[expect(clippy::large_enum_variant, reason = "nearly all are the large one, and it is in a box already")]
enum Layer {
    Rustls(Box<Session>),
    Ours(Records),
}

/// What to do once the session can send.
#[derive(Clone, Copy)]
enum Job<'d> {
    Nothing,
    Encrypt(&'d [u8]),
    Close,
}

/// How far the session came.
#[derive(Debug, PartialEq)]
enum Advance {
    Again,
    /// There was plain text.
    Plain,
    PeerClosed,
    /// Nothing goes on without more from the peer.
    Starved,
    /// The job is done.
    Done,
}

/// Where a turn of the session puts what it makes.
struct Out<'o, 'b> {
    reader: Option<&'o mut ReadBuf<'b>>,
    plain: &'o mut Vec<u8>,
    outgoing: &'o mut Option<Region>,
    job: Job<'o>,
}

/// What is to be sent, with room for so much more.
fn room_for(outgoing: &mut Option<Region>, bytes: usize) -> &mut Region {
    let size = if bytes <= READ_SIZE { READ_SIZE } else { WRITE_SIZE.max(bytes) };
    let region = outgoing.get_or_insert_with(|| Region::borrow(size));
    if region.room().len() < bytes {
        region.reserve(bytes);
    }
    region
}

impl Tls {
    /// The client's end; `tcp` is connected.
    ///
    /// # Errors
    /// The handshake failed, or the connection broke.
    pub async fn connect(
        config: Arc<ClientConfig>,
        name: ServerName<'static>,
        tcp: TcpStream,
    ) -> io::Result<(Self, Peer)> {
        shake(tcp, Session::client(config, name).map_err(invalid)?, b"").await
    }

    /// The server's end; `prefix` was read from `tcp` already.
    ///
    /// # Errors
    /// The handshake failed, or the connection broke.
    pub async fn accept(
        config: Arc<ServerConfig>,
        tcp: TcpStream,
        prefix: &[u8],
    ) -> io::Result<(Self, Peer)> {
        shake(tcp, Session::server(config).map_err(invalid)?, prefix).await
    }

    /// The socket.
    pub fn tcp(&self) -> &TcpStream {
        &self.tcp
    }

    /// Whether only the socket can bring something to read.
    pub fn is_quiet(&self) -> bool {
        self.plain.is_empty()
            && !self.peer_closed
            && self.failure.is_none()
            && (self.incoming.is_none() || self.starved)
    }

    /// Whether there is another whole record for a reader with so much room left.
    fn fits_another(&self, room: usize) -> bool {
        match (&self.layer, &self.incoming) {
            (Layer::Ours(_), Some(region)) => {
                records::whole(region.filled()).is_some_and(|length| length <= room)
            }
            _ => false,
        }
    }

    fn is_handshaking(&self) -> bool {
        matches!(&self.layer, Layer::Rustls(session) if session.is_handshaking())
    }

    fn poll_handshake(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            let turn = self.turn(None, Job::Nothing).map_err(invalid)?;
            match turn {
                // Data, and even the farewell, may have come with the last message.
                Advance::Plain | Advance::Again => {}
                Advance::PeerClosed if !self.is_handshaking() => {}
                _ if !self.is_handshaking() => return self.poll_send(cx),
                Advance::Done | Advance::Starved => {
                    ready!(self.poll_send(cx))?;
                    if ready!(self.poll_fill(cx))? == 0 {
                        return Poll::Ready(Err(io::Error::new(
                            io::ErrorKind::UnexpectedEof,
                            "the peer closed the connection in the TLS handshake",
                        )));
                    }
                }
                Advance::PeerClosed => return Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into())),
            }
        }
    }

    /// Lets the session go on until there is something for the caller.
    fn turn(&mut self, reader: Option<&mut ReadBuf<'_>>, job: Job<'_>) -> Result<Advance, Error> {
        let Self { layer, incoming, plain, outgoing, .. } = self;
        let mut out = Out { reader, plain, outgoing, job };
        let turn = loop {
            let records = incoming.as_mut().map_or(&mut [][..], Region::filled_mut);
            let (discard, turn) = match layer {
                Layer::Rustls(session) => session.turn(records, &mut out),
                Layer::Ours(session) => session.turn(records, &mut out),
            };
            if let Some(region) = incoming
                && region.consume(discard)
            {
                *incoming = None;
            }
            match turn {
                Ok(Advance::Again) => {}
                // Whoever writes reads later.
                Ok(Advance::Plain) if !matches!(job, Job::Nothing) => {}
                Ok(Advance::PeerClosed) if !matches!(job, Job::Nothing) => self.peer_closed = true,
                other => break other,
            }
        };
        match &turn {
            Ok(Advance::Starved) => self.starved = true,
            Ok(Advance::Done) => self.starved |= matches!(self.layer, Layer::Rustls(_)),
            Ok(Advance::PeerClosed) => {
                self.peer_closed = true;
                // Nothing that comes behind it counts.
                if matches!(self.layer, Layer::Ours(_)) {
                    self.incoming = None;
                }
            }
            Ok(_) => self.starved = false,
            Err(error) => {
                self.tell(error);
                self.failure = Some(Box::new(error.clone()));
            }
        }
        turn
    }

    /// Tells the peer why, as far as the socket takes it at once.
    fn tell(&mut self, error: &Error) {
        let Self { layer, incoming, plain, outgoing, .. } = self;
        match layer {
            Layer::Rustls(session) => {
                let mut out = Out { reader: None, plain, outgoing, job: Job::Nothing };
                let records = incoming.as_mut().map_or(&mut [][..], Region::filled_mut);
                // An alert comes before anything else.
                let _ = session.turn(records, &mut out);
            }
            Layer::Ours(session) => session.tell(error, outgoing),
        }
        if let Some(region) = self.outgoing.take() {
            let _ = self.tcp.try_write(region.filled());
        }
        self.incoming = None;
    }

    /// Reads more ciphertext; 0 is the end of the stream.
    fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let size = if self.bulk { WRITE_SIZE } else { READ_SIZE };
        let region = self.incoming.get_or_insert_with(|| Region::borrow(size));
        region.make_room(size);
        let mut buf = ReadBuf::new(region.room());
        let polled = Pin::new(&mut self.tcp).poll_read(cx, &mut buf);
        let n = buf.filled().len();
        self.bulk = n >= READ_SIZE / 2;
        region.grew(n);
        self.starved = self.starved && n == 0;
        if region.filled().is_empty() {
            self.incoming = None;
        }
        polled.map_ok(|()| n)
    }

    /// Gives the socket what is encrypted.
    fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while let Some(region) = &mut self.outgoing {
            let n = ready!(Pin::new(&mut self.tcp).poll_write(cx, region.filled()))?;
            if n == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            if region.consume(n) {
                self.outgoing = None;
            }
        }
        Poll::Ready(Ok(()))
    }

    /// Sends close_notify, once: RFC 8446, section 6.1. The socket stays open.
    pub fn poll_farewell(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        // After an alert nothing is said any more.
        if !std::mem::replace(&mut self.closed, true) && self.failure.is_none() {
            let _ = self.turn(None, Job::Close);
        }
        self.poll_send(cx)
    }

    fn take_plain(&mut self, buf: &mut ReadBuf<'_>) {
        let rest = &self.plain[self.plain_at..];
        let n = rest.len().min(buf.remaining());
        buf.put_slice(&rest[..n]);
        self.plain_at += n;
        if self.plain_at == self.plain.len() {
            (self.plain, self.plain_at) = (Vec::new(), 0);
        }
    }
}

fn invalid(error: Error) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}

/// Shakes hands and hands over.
async fn shake(tcp: TcpStream, session: Session, prefix: &[u8]) -> io::Result<(Tls, Peer)> {
    let mut tls = Tls {
        tcp,
        layer: Layer::Rustls(Box::new(session)),
        incoming: None,
        starved: false,
        bulk: false,
        plain: Vec::new(),
        plain_at: 0,
        outgoing: None,
        peer_closed: false,
        closed: false,
        failure: None,
    };
    if !prefix.is_empty() {
        tls.incoming.insert(Region::borrow(prefix.len().max(READ_SIZE))).put(prefix);
    }
    std::future::poll_fn(|cx| tls.poll_handshake(cx)).await?;
    let Layer::Rustls(session) = tls.layer else { return Err(io::ErrorKind::Unsupported.into()) };
    let peer = session.peer();
    let layer = match session.handed_over().map_err(invalid)? {
        Ok(records) => Layer::Ours(records),
        Err(session) => Layer::Rustls(session),
    };
    // What came behind the handshake was not looked at.
    Ok((Tls { layer, starved: false, ..tls }, peer))
}

impl AsyncRead for Tls {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buf.filled().len();
        loop {
            if !this.plain.is_empty() {
                this.take_plain(buf);
            }
            let some = buf.filled().len() > before;
            if some && !this.fits_another(buf.remaining()) || buf.remaining() == 0 || this.peer_closed {
                return Poll::Ready(Ok(()));
            }
            if let Some(failure) = &this.failure {
                return Poll::Ready(Err(invalid((**failure).clone())));
            }
            match this.turn(Some(&mut *buf), Job::Nothing) {
                Ok(Advance::Plain | Advance::PeerClosed | Advance::Again) => continue,
                Ok(Advance::Starved | Advance::Done) if some => return Poll::Ready(Ok(())),
                Ok(Advance::Starved | Advance::Done) => {}
                Err(_) if some => return Poll::Ready(Ok(())),
                Err(error) => return Poll::Ready(Err(invalid(error))),
            }
            // An answer to what the peer asked of the session; if that cannot be sent, a write will say so.
            if this.outgoing.is_some() {
                let _ = this.poll_send(cx);
            }
            if ready!(this.poll_fill(cx))? == 0 {
                // RFC 8446, section 6.1: without the farewell the data may have been cut.
                return Poll::Ready(Err(io::Error::new(
                    io::ErrorKind::UnexpectedEof,
                    "the peer closed the connection without TLS close_notify",
                )));
            }
        }
    }
}

impl AsyncWrite for Tls {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        ready!(this.poll_send(cx))?;
        if let Some(failure) = &this.failure {
            return Poll::Ready(Err(invalid((**failure).clone())));
        }
        if this.closed {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        let n = buf.len().min(WRITE_MOST);
        if n == 0 {
            return Poll::Ready(Ok(0));
        }
        if this.turn(None, Job::Encrypt(&buf[..n])).map_err(invalid)? != Advance::Done {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        match this.poll_send(cx) {
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
            // What is left goes with the next write or flush.
            _ => Poll::Ready(Ok(n)),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let mut some = bufs.iter().filter(|buf| !buf.is_empty());
        let (first, second) = (some.next(), some.next());
        let first = first.map_or(&[][..], |buf| buf);
        if second.is_none() || first.len() >= JOINED {
            return self.poll_write(cx, first);
        }
        // One record for a frame's head and what follows it.
        let mut joined = Region::borrow(READ_SIZE);
        for buf in bufs {
            joined.put(&buf[..buf.len().min(JOINED - joined.filled().len())]);
        }
        self.poll_write(cx, joined.filled())
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.get_mut().poll_send(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(this.poll_farewell(cx))?;
        match ready!(Pin::new(&mut this.tcp).poll_shutdown(cx)) {
            Err(error) if error.kind() != io::ErrorKind::NotConnected => Poll::Ready(Err(error)),
            _ => Poll::Ready(Ok(())),
        }
    }
}

#[cfg(test)]
mod tests;
