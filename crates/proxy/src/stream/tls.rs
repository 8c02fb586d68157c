//! TLS of either end over a socket, on rustls's unbuffered API: a session between two records owns no buffer.
//!
//! What the socket gives goes into a buffer of the thread, which is decrypted in place and given back when all of it was
//! used; what is to be sent is encrypted into another, which is given back when the socket has taken it.
//!
//! ```text
//! poll_read:  plain text left over? -> records in the buffer? -> socket
//! poll_write: ciphertext left over? -> socket; then encrypt -> socket, as far as it takes it at once
//! ```

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use rustls::client::UnbufferedClientConnection;
use rustls::pki_types::ServerName;
use rustls::server::UnbufferedServerConnection;
use rustls::unbuffered::{ConnectionState, EncodeError, EncryptError, UnbufferedStatus};
use rustls::{ClientConfig, CommonState, ServerConfig};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use super::region::{READ_SIZE, Region, WRITE_SIZE};

/// Plain text that one write takes: several records, which leave together.
const WRITE_MOST: usize = 64 * 1024;

/// What several slices are joined to, at most: one record.
const JOINED: usize = 16 * 1024;

enum Session {
    Client(UnbufferedClientConnection),
    Server(UnbufferedServerConnection),
}

/// A TLS connection.
pub struct Tls {
    tcp: TcpStream,
    session: Session,
    /// Ciphertext that was not processed.
    incoming: Option<Region>,
    /// All whole records of `incoming` were processed.
    starved: bool,
    /// Plain text for which no reader had room, and how much of it was read since.
    plain: Vec<u8>,
    plain_at: usize,
    /// Ciphertext that the socket has not taken.
    outgoing: Option<Region>,
    /// The peer has said that it is done.
    peer_closed: bool,
    /// We have.
    closed: bool,
}

/// What to do once the session can send.
#[derive(Clone, Copy)]
enum Job<'d> {
    Nothing,
    Encrypt(&'d [u8]),
    Close,
}

/// How far the session came.
#[derive(PartialEq)]
enum Turn {
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

impl Tls {
    /// The client's end; `tcp` is connected.
    ///
    /// # Errors
    /// The handshake failed, or the connection broke.
    pub async fn connect(
        config: Arc<ClientConfig>,
        name: ServerName<'static>,
        tcp: TcpStream,
    ) -> io::Result<Self> {
        let session = UnbufferedClientConnection::new(config, name).map_err(invalid)?;
        Self::new(tcp, Session::Client(session)).shaken().await
    }

    /// The server's end; `prefix` was read from `tcp` already.
    ///
    /// # Errors
    /// The handshake failed, or the connection broke.
    pub async fn accept(config: Arc<ServerConfig>, tcp: TcpStream, prefix: &[u8]) -> io::Result<Self> {
        let session = UnbufferedServerConnection::new(config).map_err(invalid)?;
        let mut tls = Self::new(tcp, Session::Server(session));
        if !prefix.is_empty() {
            tls.incoming.insert(Region::borrow(prefix.len().max(READ_SIZE))).put(prefix);
        }
        tls.shaken().await
    }

    fn new(tcp: TcpStream, session: Session) -> Self {
        Self {
            tcp,
            session,
            incoming: None,
            starved: false,
            plain: Vec::new(),
            plain_at: 0,
            outgoing: None,
            peer_closed: false,
            closed: false,
        }
    }

    /// The socket.
    pub fn tcp(&self) -> &TcpStream {
        &self.tcp
    }

    /// What was negotiated, and with whom.
    pub fn session(&self) -> &CommonState {
        match &self.session {
            Session::Client(session) => session,
            Session::Server(session) => session,
        }
    }

    /// Whether only the socket can bring something to read.
    pub fn is_quiet(&self) -> bool {
        self.plain.is_empty() && !self.peer_closed && (self.incoming.is_none() || self.starved)
    }

    async fn shaken(mut self) -> io::Result<Self> {
        std::future::poll_fn(|cx| self.poll_handshake(cx)).await?;
        Ok(self)
    }

    fn poll_handshake(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            let turn = self.turn(None, Job::Nothing)?;
            // Data, and even the farewell, may have come with the last message.
            if !self.session().is_handshaking() {
                return self.poll_send(cx);
            }
            match turn {
                Turn::Done | Turn::Starved => {
                    ready!(self.poll_send(cx))?;
                    if ready!(self.poll_fill(cx))? == 0 {
                        return Poll::Ready(Err(io::Error::new(
                            io::ErrorKind::UnexpectedEof,
                            "the peer closed the connection in the TLS handshake",
                        )));
                    }
                }
                Turn::PeerClosed => return Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into())),
                Turn::Plain | Turn::Again => {}
            }
        }
    }

    /// Lets the session go on until there is something for the caller.
    fn turn(&mut self, reader: Option<&mut ReadBuf<'_>>, job: Job<'_>) -> io::Result<Turn> {
        let Self { session, incoming, plain, outgoing, .. } = self;
        let mut out = Out { reader, plain, outgoing, job };
        let turn = loop {
            let records = incoming.as_mut().map_or(&mut [][..], Region::filled_mut);
            let (discard, turn) = match session {
                Session::Client(session) => advance(session.process_tls_records(records), &mut out),
                Session::Server(session) => advance(session.process_tls_records(records), &mut out),
            };
            if let Some(region) = incoming
                && region.consume(discard)
            {
                *incoming = None;
            }
            match turn {
                Ok(Turn::Again) => {}
                // Whoever writes reads later.
                Ok(Turn::Plain) if !matches!(job, Job::Nothing) => {}
                Ok(Turn::PeerClosed) if !matches!(job, Job::Nothing) => self.peer_closed = true,
                other => break other,
            }
        };
        match turn {
            Ok(turn) => {
                self.starved = matches!(turn, Turn::Starved | Turn::Done);
                self.peer_closed |= turn == Turn::PeerClosed;
                Ok(turn)
            }
            Err(error) => Err(self.fail(error)),
        }
    }

    /// Tells the peer why, as far as the socket takes it at once.
    fn fail(&mut self, error: rustls::Error) -> io::Error {
        let Self { session, incoming, plain, outgoing, .. } = self;
        let mut out = Out { reader: None, plain, outgoing, job: Job::Nothing };
        let records = incoming.as_mut().map_or(&mut [][..], Region::filled_mut);
        // An alert comes before anything else.
        let _ = match session {
            Session::Client(session) => advance(session.process_tls_records(records), &mut out),
            Session::Server(session) => advance(session.process_tls_records(records), &mut out),
        };
        if let Some(region) = self.outgoing.take() {
            let _ = self.tcp.try_write(region.filled());
        }
        self.incoming = None;
        invalid(error)
    }

    /// Reads more ciphertext; 0 is the end of the stream.
    fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let region = self.incoming.get_or_insert_with(|| Region::borrow(READ_SIZE));
        region.make_room();
        let mut buf = ReadBuf::new(region.room());
        let polled = Pin::new(&mut self.tcp).poll_read(cx, &mut buf);
        let n = buf.filled().len();
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
        if !std::mem::replace(&mut self.closed, true) {
            // A session that cannot say farewell has failed before.
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

fn invalid(error: rustls::Error) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}

/// Handles one state of a session; answers with what it has used up, too.
fn advance<D>(
    status: UnbufferedStatus<'_, '_, D>,
    out: &mut Out<'_, '_>,
) -> (usize, Result<Turn, rustls::Error>) {
    let state = match status.state {
        Ok(state) => state,
        Err(error) => return (status.discard, Err(error)),
    };
    let turn = match state {
        ConnectionState::ReadTraffic(mut traffic) => match traffic.next_record() {
            Some(Ok(record)) => {
                let now =
                    out.reader.as_ref().map_or(0, |reader| reader.remaining().min(record.payload.len()));
                let (now, later) = record.payload.split_at(now);
                if let Some(reader) = &mut out.reader {
                    reader.put_slice(now);
                }
                out.plain.extend_from_slice(later);
                return (status.discard + record.discard, Ok(Turn::Plain));
            }
            Some(Err(error)) => Err(error),
            None => Ok(Turn::Again),
        },
        ConnectionState::EncodeTlsData(mut data) => {
            encoded(out.outgoing, READ_SIZE, |room| match data.encode(room) {
                Err(EncodeError::InsufficientSize(more)) => Err(Some(more.required_size)),
                other => other.map_err(|_| None),
            })
            .map(|()| Turn::Again)
        }
        // It leaves before anything that comes after it.
        ConnectionState::TransmitTlsData(data) => {
            data.done();
            Ok(Turn::Again)
        }
        ConnectionState::WriteTraffic(mut traffic) => {
            let sent = |result: Result<usize, EncryptError>| match result {
                Err(EncryptError::InsufficientSize(more)) => Err(Some(more.required_size)),
                other => other.map_err(|_| None),
            };
            let done = match out.job {
                Job::Nothing => Ok(()),
                Job::Encrypt(data) => {
                    let size = if data.len() + 1024 <= READ_SIZE { READ_SIZE } else { WRITE_SIZE };
                    encoded(out.outgoing, size, |room| sent(traffic.encrypt(data, room)))
                }
                Job::Close => encoded(out.outgoing, READ_SIZE, |room| sent(traffic.queue_close_notify(room))),
            };
            done.map(|()| Turn::Done)
        }
        ConnectionState::BlockedHandshake => Ok(Turn::Starved),
        ConnectionState::PeerClosed => Ok(Turn::PeerClosed),
        ConnectionState::Closed => Ok(Turn::Done),
        // Early data is never offered or accepted.
        _ => Err(rustls::Error::General("an unexpected state of the TLS session".into())),
    };
    (status.discard, turn)
}

/// Lets `encode` write behind what is to be sent; it says how much room it needs, or `None` for a failure that room does
/// not mend.
fn encoded(
    outgoing: &mut Option<Region>,
    size: usize,
    mut encode: impl FnMut(&mut [u8]) -> Result<usize, Option<usize>>,
) -> Result<(), rustls::Error> {
    let region = outgoing.get_or_insert_with(|| Region::borrow(size));
    loop {
        match encode(region.room()) {
            Ok(n) => {
                region.grew(n);
                return Ok(());
            }
            Err(Some(required)) if required > region.room().len() => region.reserve(required),
            Err(_) => return Err(rustls::Error::EncryptError),
        }
    }
}

impl AsyncRead for Tls {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buf.filled().len();
        loop {
            if !this.plain.is_empty() {
                this.take_plain(buf);
            }
            if buf.filled().len() > before || buf.remaining() == 0 || this.peer_closed {
                return Poll::Ready(Ok(()));
            }
            match this.turn(Some(&mut *buf), Job::Nothing)? {
                Turn::Plain | Turn::PeerClosed | Turn::Again => continue,
                Turn::Starved | Turn::Done => {}
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
        if this.closed {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        let n = buf.len().min(WRITE_MOST);
        if n == 0 {
            return Poll::Ready(Ok(0));
        }
        if this.turn(None, Job::Encrypt(&buf[..n]))? != Turn::Done {
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
