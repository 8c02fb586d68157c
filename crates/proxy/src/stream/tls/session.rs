//! A session on rustls's unbuffered API: each one until its handshake is over, and those of TLS 1.2 for good.

use std::sync::Arc;

use outrigger_identity::handover::{self, TrafficSecrets};
use rustls::client::UnbufferedClientConnection;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::server::UnbufferedServerConnection;
use rustls::unbuffered::{ConnectionState, EncodeError, EncryptError, UnbufferedStatus};
use rustls::{ClientConfig, CommonState, Error, ProtocolVersion, ServerConfig, Side};

use super::records::{self, Records};
use super::{Advance, Job, Out};
use crate::stream::region::{READ_SIZE, Region, WRITE_SIZE};

/// What the handshake told of the peer.
pub struct Peer {
    /// The protocol that was agreed on.
    pub alpn: Option<Box<[u8]>>,
    /// The peer's chain, leaf first.
    pub certificates: Vec<CertificateDer<'static>>,
}

/// A session of rustls, and its secrets as soon as there are some.
pub struct Session {
    end: End,
    secrets: Option<TrafficSecrets>,
    /// In the handshake records are given one by one: rustls would take those behind it, too, and keep what they ask for.
    one_by_one: bool,
    /// Whole records that it has been given and not used up.
    given: usize,
}

enum End {
    Client(UnbufferedClientConnection),
    Server(UnbufferedServerConnection),
}

impl Session {
    pub fn client(config: Arc<ClientConfig>, name: ServerName<'static>) -> Result<Self, Error> {
        Ok(Self::new(End::Client(UnbufferedClientConnection::new(config, name)?)))
    }

    pub fn server(config: Arc<ServerConfig>) -> Result<Self, Error> {
        Ok(Self::new(End::Server(UnbufferedServerConnection::new(config)?)))
    }

    fn new(end: End) -> Self {
        Self { end, secrets: None, one_by_one: true, given: 0 }
    }

    fn negotiated(&self) -> &CommonState {
        match &self.end {
            End::Client(session) => session,
            End::Server(session) => session,
        }
    }

    pub fn is_handshaking(&self) -> bool {
        self.negotiated().is_handshaking()
    }

    pub fn peer(&self) -> Peer {
        let negotiated = self.negotiated();
        Peer {
            alpn: negotiated.alpn_protocol().map(Into::into),
            certificates: negotiated.peer_certificates().unwrap_or_default().to_vec(),
        }
    }

    /// Goes on by one state; answers with what of `records` is used up, too.
    pub fn turn(&mut self, records: &mut [u8], out: &mut Out<'_, '_>) -> (usize, Result<Advance, Error>) {
        if !self.one_by_one {
            return self.advance(records, out);
        }
        loop {
            let given = if self.is_handshaking() { self.given.min(records.len()) } else { 0 };
            let (used, turn) = self.advance(&mut records[..given], out);
            self.given = given - used;
            if turn != Ok(Advance::Starved) || !self.is_handshaking() {
                return (used, turn);
            }
            match records::end_of_first(&records[given..]) {
                Some(end) => self.given += end,
                None => return (used, turn),
            }
            if used > 0 {
                return (used, Ok(Advance::Again));
            }
        }
    }

    fn advance(&mut self, records: &mut [u8], out: &mut Out<'_, '_>) -> (usize, Result<Advance, Error>) {
        let turned = match &mut self.end {
            End::Client(session) => advance(session.process_tls_records(records), out),
            End::Server(session) => advance(session.process_tls_records(records), out),
        };
        if let Some(secrets) = handover::take() {
            self.secrets = Some(secrets);
        }
        turned
    }

    /// Hands over to our own record layer, where the configuration allows it and the protocol is TLS 1.3.
    pub fn handed_over(mut self: Box<Self>) -> Result<Result<Records, Box<Self>>, Error> {
        let secrets = match self.negotiated().protocol_version() {
            Some(ProtocolVersion::TLSv1_3) => self.secrets.take(),
            _ => None,
        };
        let Some(secrets) = secrets else {
            self.one_by_one = false;
            return Ok(Err(self));
        };
        let (extracted, side) = match self.end {
            End::Client(session) => (session.dangerous_into_kernel_connection()?.0, Side::Client),
            End::Server(session) => (session.dangerous_into_kernel_connection()?.0, Side::Server),
        };
        Records::new(extracted, secrets, side).map(Ok)
    }
}

/// Handles one state of a session; answers with what it has used up, too.
fn advance<D>(status: UnbufferedStatus<'_, '_, D>, out: &mut Out<'_, '_>) -> (usize, Result<Advance, Error>) {
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
                return (status.discard + record.discard, Ok(Advance::Plain));
            }
            Some(Err(error)) => Err(error),
            None => Ok(Advance::Again),
        },
        ConnectionState::EncodeTlsData(mut data) => {
            encoded(out.outgoing, READ_SIZE, |room| match data.encode(room) {
                Err(EncodeError::InsufficientSize(more)) => Err(Some(more.required_size)),
                other => other.map_err(|_| None),
            })
            .map(|()| Advance::Again)
        }
        // It leaves before anything that comes after it.
        ConnectionState::TransmitTlsData(data) => {
            data.done();
            Ok(Advance::Again)
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
            done.map(|()| Advance::Done)
        }
        ConnectionState::BlockedHandshake => Ok(Advance::Starved),
        ConnectionState::PeerClosed => Ok(Advance::PeerClosed),
        ConnectionState::Closed => Ok(Advance::Done),
        // Early data is never offered or accepted.
        _ => Err(Error::General("an unexpected state of the TLS session".into())),
    };
    (status.discard, turn)
}

/// Lets `encode` write behind what is to be sent; it says how much room it needs, or `None` for a failure that room does
/// not mend.
fn encoded(
    outgoing: &mut Option<Region>,
    size: usize,
    mut encode: impl FnMut(&mut [u8]) -> Result<usize, Option<usize>>,
) -> Result<(), Error> {
    let region = outgoing.get_or_insert_with(|| Region::borrow(size));
    loop {
        match encode(region.room()) {
            Ok(n) => {
                region.grew(n);
                return Ok(());
            }
            Err(Some(required)) if required > region.room().len() => region.reserve(required),
            Err(_) => return Err(Error::EncryptError),
        }
    }
}
